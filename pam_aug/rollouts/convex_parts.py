"""A mesh as convex parts, which is what a rigid-body engine collides with; computed once per mesh and kept.

A mesh whose surface is that of its convex hull is one part. Others go through CoACD (Wei et al., "Approximate convex
decomposition for 3D meshes with collision-aware concavity and tree search", SIGGRAPH 2022), which first closes an open
mesh; closing moves the surface outwards by about half a voxel, some 1 mm on an object of 20 cm. So parts are for the
engine only: distances and depths that are reported come from the mesh itself.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull, QhullError

from pam_aug.errors import AssetMissing, SourceError

__all__ = ["MAX_FACES", "ConvexPart", "check_mesh", "convex_hull", "convex_parts", "parts_folder", "too_fine"]

ConvexPart = tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]
"""Vertices in metres and faces, wound outwards, of one convex part."""

MAX_FACES: Final = 250_000
"""More faces than this are refused: no scan needs them to be held, and decomposing them takes minutes."""

_MAX_EXTENT_M: Final = 5.0  # nothing that a hand holds is larger; a mesh in millimetres is
_MIN_VOLUME_M3: Final = 1e-12  # a cube of 0.1 mm
_CONVEX: Final = 0.01  # deepest point below the hull, as a share of the mesh's largest extent
_SAME_AREA: Final = 0.03  # an open shell whose points all lie on its hull lacks the area of its opening
# CoACD's own defaults but for the last three: fewer corners per part and parts per object make simulation faster.
_OPTIONS: Final = {"threshold": 0.05, "seed": 0, "mcts_iterations": 100, "max_convex_hull": 32, "max_ch_vertex": 64}
_VERSION: Final = b"pam_aug convex parts 1"


def parts_folder() -> Path:
    """Where decompositions are kept: `$PAM_AUG_CACHE/convex`, else `~/.cache/pam_aug/convex`."""
    return Path(os.environ.get("PAM_AUG_CACHE") or Path.home() / ".cache" / "pam_aug") / "convex"


def convex_parts(
    mesh_vertices_m: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    cache_dir: str | Path | None = None,
) -> list[ConvexPart]:
    """Convex parts that together cover the mesh, in its frame, metres; a convex mesh is one part.

    Kept by the sha256 of the mesh in `cache_dir` (`parts_folder()` by default); the same mesh gives the same parts.
    Raises SourceError for a mesh that no engine can use (see `check_mesh`), AssetMissing where the mesh is not convex
    and CoACD is not installed.
    """
    verts, faces = np.ascontiguousarray(mesh_vertices_m, np.float64), np.ascontiguousarray(faces, np.int64)
    check_mesh(verts, faces)
    hull = convex_hull(verts)
    if _is_convex(verts, faces, hull):
        return [hull]
    path = Path(cache_dir) if cache_dir is not None else parts_folder()
    path = path / f"{_digest(verts, faces)}.npz"
    parts = _read(path)
    if parts is None:
        parts = _decompose(verts, faces)
        _write(path, parts)
    return parts


def check_mesh(verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> None:
    """Refuses, by SourceError, a mesh that is empty, not finite, flat, over 5 m large or over `MAX_FACES` faces."""
    if not len(faces) or not len(verts_m) or faces.min() < 0 or faces.max() >= len(verts_m):
        raise SourceError("the mesh has no triangles or names vertices that it lacks; check the mesh file")
    if len(faces) > MAX_FACES:
        raise SourceError(too_fine(len(faces)), faces=len(faces))
    used = verts_m[np.unique(faces)]
    if not np.isfinite(used).all():
        raise SourceError("the mesh has vertices that are not finite; check the mesh file")
    extent = np.ptp(used, axis=0)
    if extent.max() > _MAX_EXTENT_M:
        raise SourceError(
            f"the mesh is {extent.max():.0f} m large; it is probably in millimetres: load it with scale 0.001",
            extent_m=float(extent.max()),
        )
    if float(np.linalg.svd(used - used.mean(0), compute_uv=False)[-1]) / np.sqrt(len(used)) < 1e-6:
        raise SourceError(
            "the mesh is flat: it has zero volume, so it can neither be held nor weighed; give a solid mesh"
        )


def too_fine(faces: int) -> str:
    """What is said of a mesh of more than `MAX_FACES` faces."""
    return f"the mesh has {faces} faces, at most {MAX_FACES} are used; decimate it (some thousands are enough)"


def convex_hull(points_m: Float[np.ndarray, "p 3"]) -> ConvexPart:
    """The convex hull's own vertices and outward faces. Raises SourceError for points without a volume."""
    try:
        hull = ConvexHull(points_m)
    except (QhullError, ValueError) as error:
        raise SourceError("the points span zero volume, so they have no convex hull; give a solid mesh") from error
    if hull.volume < _MIN_VOLUME_M3:
        raise SourceError(f"the mesh spans {hull.volume:.1e} m3, practically zero volume; check its unit")
    corners = points_m[hull.simplices]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = np.einsum("fi,fi->f", normals, hull.equations[:, :3]) < 0
    simplices = np.where(inward[:, None], hull.simplices[:, ::-1], hull.simplices)
    used, faces = np.unique(simplices, return_inverse=True)
    return points_m[used], faces.reshape(-1, 3).astype(np.int64)


def _is_convex(verts: np.ndarray, faces: np.ndarray, hull: ConvexPart) -> bool:
    """Whether the mesh's surface is its hull's: no corner or middle of a face below it, and the same area."""
    corners, hull_corners = verts[faces], hull[0][hull[1]]
    area = _area(corners)
    if abs(area / _area(hull_corners) - 1.0) > _SAME_AREA:
        return False
    points = np.concatenate([verts[np.unique(faces)], corners.mean(1)])
    equations = ConvexHull(hull[0]).equations
    below = max(float(-(p @ equations[:, :3].T + equations[:, 3]).max(1).min()) for p in np.array_split(points, 16))
    return below <= _CONVEX * float(np.ptp(points, axis=0).max())


def _area(corners: np.ndarray) -> float:
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return 0.5 * float(np.linalg.norm(cross, axis=1).sum())


def _decompose(verts: np.ndarray, faces: np.ndarray) -> list[ConvexPart]:
    try:
        import coacd
    except ImportError as error:
        raise AssetMissing(
            "a mesh that is not convex is split by CoACD, which is not installed: pip install 'pam_aug[sim]'",
            package="coacd",
        ) from error
    coacd.set_log_level("off")
    try:
        raw = coacd.run_coacd(coacd.Mesh(verts, faces.astype(np.int32)), decimate=True, **_OPTIONS)
    except Exception as error:  # the compiled library raises plain RuntimeErrors on meshes that it cannot close
        raise SourceError(f"CoACD cannot split the mesh ({error}); close its holes or decimate it") from error
    parts: list[ConvexPart] = []
    for points, _ in raw:
        with contextlib.suppress(SourceError):  # a sliver without volume holds nothing
            parts.append(convex_hull(np.asarray(points, np.float64)))
    if not parts:
        raise SourceError("CoACD found no part with a volume; give a solid mesh")
    return parts


def _digest(verts: np.ndarray, faces: np.ndarray) -> str:
    digest = hashlib.sha256(_VERSION + repr(sorted(_OPTIONS.items())).encode())
    for array in (verts, faces):
        digest.update(np.int64(len(array)).tobytes() + array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> list[ConvexPart] | None:
    """The kept parts, or None where there are none (or a damaged file, which is then made again)."""
    try:
        with np.load(path, allow_pickle=False) as data:
            count = int(data["count"])
            return [(data[f"verts_{i}"], data[f"faces_{i}"]) for i in range(count)]
    except Exception:
        return None


def _write(path: Path, parts: list[ConvexPart]) -> None:
    arrays: dict[str, Any] = {"count": len(parts)}
    for i, (verts, faces) in enumerate(parts):
        arrays[f"verts_{i}"], arrays[f"faces_{i}"] = verts, faces
    temporary = path.with_name(f".tmp-{path.stem}-{secrets.token_hex(4)}.npz")
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, not the result
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
