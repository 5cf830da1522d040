"""DexYCB's objects: names of their meshes, read only where they are asked for, and whether a hand is near one."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pam_aug.geometry import invert_rigid, transform_points
from pam_aug.rollouts.scene import Mesh, load_mesh

from .dgrasp import YCB_NAMES

__all__ = ["ObjectMeshes", "distance_to_object_m", "mesh_name"]


def mesh_name(ycb_id: int) -> str:
    """The mesh of a class id (1 to 21), as labels name it."""
    return f"ycb/{YCB_NAMES[ycb_id]}/textured_simple.obj"


class ObjectMeshes(Mapping[str, Mesh]):
    """The meshes of a sample's objects under `models/`, read when they are asked for: converting images needs none."""

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self._root, self._names = root, names

    def __getitem__(self, name: str) -> Mesh:
        """Raises AssetMissing where `models/` lacks the mesh."""
        if name not in self._names:
            raise KeyError(name)
        return load_mesh(self._root / "models" / Path(name).relative_to("ycb"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def distance_to_object_m(
    root: Path, ycb_id: int, points_cam_m: Float[np.ndarray, "n 3"], T_cam_obj: Float[np.ndarray, "4 4"]
) -> float:
    """The smallest distance (metres) from any of the points to any vertex of the object's mesh."""
    tree = _vertex_tree(str(root), ycb_id)
    return float(tree.query(transform_points(invert_rigid(T_cam_obj), points_cam_m))[0].min())


@functools.lru_cache(maxsize=32)
def _vertex_tree(root: str, ycb_id: int) -> Any:
    from scipy.spatial import KDTree

    name = mesh_name(ycb_id)
    return KDTree(ObjectMeshes(Path(root), (name,))[name].vertices_m)
