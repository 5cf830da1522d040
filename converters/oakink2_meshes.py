"""OAKINK2's object meshes by part id, read when one is drawn; converting images alone needs none of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pam_aug.rollouts.scene import Mesh, load_mesh

__all__ = ["MESH_SETS", "MeshFiles", "MeshFolder"]

MESH_SETS = ("raw", "repair")
"""Scans as they are, whose bounds the poses were made for, and watertight ones, up to 8 mm smaller or larger."""


class MeshFolder:
    """One set of meshes: `<root>/object_<set>/align_ds/<part id>/` with one `.obj` or `.ply` each."""

    def __init__(self, root: Path, mesh_set: str) -> None:
        self._root, self._set = root, mesh_set
        self._found: dict[str, tuple[str, Path]] = {}

    def find(self, part_id: str) -> tuple[str, Path]:
        """A mesh's name in the dataset, and its file; where there is none, the folder that should hold it."""
        if part_id not in self._found:
            name = f"object_{self._set}/align_ds/{part_id}"
            files = sorted(p for p in (self._root / name).glob("*") if p.suffix.lower() in (".obj", ".ply"))
            self._found[part_id] = (f"{name}/{files[0].name}", files[0]) if files else (name, self._root / name)
        return self._found[part_id]


class MeshFiles(Mapping[str, Mesh]):
    """The meshes of a sample by name. Taking one raises AssetMissing where its file is not there."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def __getitem__(self, name: str) -> Mesh:
        return load_mesh(self._paths[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
