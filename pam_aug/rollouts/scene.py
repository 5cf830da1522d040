"""A scene: everything that is needed to draw one input, and the protocol of the converters that yield it."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int

from pam_aug.errors import AssetMissing, SchemaError, SourceError
from pam_aug.hand import HandAssets, HandLayer
from pam_aug.schema import Sample

__all__ = [
    "Converter",
    "HandMesh",
    "Item",
    "LeftOut",
    "Mesh",
    "ObjectMesh",
    "Scene",
    "build_scene",
    "hand_vertices",
    "load_mesh",
]

_MAX_MESH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A triangle mesh in its own frame, metres."""

    name: str
    vertices_m: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class HandMesh:
    """A posed hand in the camera frame, with the assets that made it (rest vertices carry the texture)."""

    side: str
    assets: HandAssets
    verts_cam_m: Float[np.ndarray, "778 3"]
    joints_cam_m: Float[np.ndarray, "21 3"]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectMesh:
    """An object in the scene: its mesh, where it stands, and its segmentation id."""

    mesh: Mesh
    seg_id: int
    T_cam_obj: Float[np.ndarray, "4 4"]

    @property
    def verts_cam_m(self) -> Float[np.ndarray, "v 3"]:
        return self.mesh.vertices_m @ self.T_cam_obj[:3, :3].T + self.T_cam_obj[:3, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One input of a generator: the label, the posed hands and the valid objects, all in the camera frame."""

    sample: Sample
    hands: tuple[HandMesh, ...]
    objects: tuple[ObjectMesh, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """What a converter yields: a label, its image's bytes (b"" for a rollout) and the meshes that it names.

    `image_sha256` is of `image`, in hexadecimal, where the converter has it at hand.
    """

    sample: Sample
    image: bytes
    meshes: Mapping[str, Mesh]
    image_sha256: str = ""


class LeftOut(SourceError):
    """An input that there is nothing to make of, and in which nothing is broken: counted by `reason`, not as failed."""

    def __init__(self, message: str, *, reason: str, **data: Any) -> None:
        super().__init__(message, reason=reason, **data)
        self.reason = reason


class Converter(Protocol):
    """A source of samples. `Options` is a frozen dataclass, read from the configuration's `source` section.

    Items are numbered 0 to len-1 in an order that depends on the options only, so that any worker can make any item.
    `item` raises SourceError for one bad input, LeftOut for one that there is nothing to make of; opening a source that
    cannot be used at all raises in the constructor.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    has_images: ClassVar[bool]

    def __init__(self, options: Any) -> None: ...
    def __len__(self) -> int: ...
    def item(self, index: int) -> Item: ...
    def hand_assets(self) -> Mapping[str, HandAssets]:
        """Every hand model that the labels name, as "<hand_model>/<side>"."""
        ...


def load_mesh(path: str | Path, name: str, scale: float = 1.0) -> Mesh:
    """A mesh file (obj, ply, stl, off, glb) as one triangle mesh in metres; vertices are not merged or reordered.

    Raises AssetMissing where there is no file, SourceError where it is no mesh.
    """
    path = Path(path)
    if not path.is_file():
        raise AssetMissing(f"{path}: no such mesh file; it is needed to draw {name}", path=str(path), mesh=name)
    if path.stat().st_size > _MAX_MESH_BYTES:
        raise SourceError(f"{path}: over {_MAX_MESH_BYTES >> 20} MB; decimate the mesh", path=str(path))
    return _load_mesh_cached(str(path), name, scale)


@functools.lru_cache(maxsize=256)
def _load_mesh_cached(path: str, name: str, scale: float) -> Mesh:
    import trimesh

    data = Path(path).read_bytes()
    try:
        loaded = cast(trimesh.Trimesh, trimesh.load(path, process=False, force="mesh", skip_materials=True))
    except Exception as error:  # trimesh's loaders raise anything on broken files
        raise SourceError(f"{path}: not a readable mesh ({type(error).__name__}: {error})", path=path) from error
    vertices = np.ascontiguousarray(np.asarray(loaded.vertices, dtype=np.float64) * scale)
    faces = np.ascontiguousarray(np.asarray(loaded.faces, dtype=np.int64))
    if not len(faces) or not np.isfinite(vertices).all():
        raise SourceError(f"{path}: holds no finite triangles", path=path)
    return Mesh(name=name, vertices_m=vertices, faces=faces, sha256=hashlib.sha256(data).hexdigest())


@functools.lru_cache(maxsize=64)
def _layer(assets: HandAssets) -> HandLayer:
    return HandLayer(assets, dtype=torch.float64)


def hand_vertices(sample: Sample, hand_assets: Mapping[str, HandAssets]) -> tuple[HandMesh, ...]:
    """The posed meshes of a sample's hands, recomputed from their labels.

    Raises SchemaError for a hand model that is not among `hand_assets`.
    """
    meshes: list[HandMesh] = []
    for hand in sample.hands:
        name = f"{hand.hand_model}/{hand.side}"
        if name not in hand_assets:
            raise SchemaError(
                f"{sample.key}: its hand model {name} is not among {sorted(hand_assets)}", hand_model=name
            )
        with torch.no_grad():
            out = _layer(hand_assets[name])(
                *(
                    torch.from_numpy(np.array(a, np.float64))[None]
                    for a in (hand.global_orient, hand.hand_pose, hand.betas, hand.transl)
                )
            )
        meshes.append(HandMesh(hand.side, hand_assets[name], out.verts[0].numpy(), out.joints21[0].numpy()))
    return tuple(meshes)


def build_scene(item: Item, hand_assets: Mapping[str, HandAssets]) -> Scene:
    """The scene of an item: hands posed from their labels, valid objects placed."""
    objects = tuple(
        ObjectMesh(item.meshes[o.mesh], o.seg_id, np.asarray(o.T_cam_obj, np.float64))
        for o in item.sample.objects
        if o.valid
    )
    return Scene(item.sample, hand_vertices(item.sample, hand_assets), objects)
