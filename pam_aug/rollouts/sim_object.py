"""An object as the simulation needs it: convex parts, mass, surface points, and the ways it rests on a table."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, KDTree

from pam_aug.errors import SourceError
from pam_aug.rollouts.convex_parts import ConvexPart
from pam_aug.rollouts.grasp import Surface, surface_of

__all__ = ["RestPose", "SimObject", "make_sim_object"]

DENSITY: Final = 400.0
"""kg/m3 of the parts: between a full can (900) and a box of cereals (200)."""

_MASS_KG: Final = (0.01, 1.0)
_POINTS: Final = 2400
_MIN_TILT_RAD: Final = 0.08  # a pose that a smaller tilt upsets is none that an object is found in
_SAME_POSE: Final = np.cos(np.radians(20))
_MAX_POSES: Final = 8
_LARGEST_M: Final = 1.0
_SMALLEST_M: Final = 0.004


class RestPose(NamedTuple):
    """`T_world_obj` with the lowest point at height 0 and the centre of mass over the origin; how far it can tilt."""

    T_world_obj: Float[np.ndarray, "4 4"]
    tilt_rad: float


@dataclass(frozen=True, eq=False)
class SimObject:
    """Parts and points in the mesh's frame, metres."""

    parts: tuple[ConvexPart, ...]
    mass_kg: float
    centre_m: Float[np.ndarray, "3"]
    surface: Surface
    rest_poses: tuple[RestPose, ...]

    @property
    def points_m(self) -> Float[np.ndarray, "p 3"]:
        """All corners of the parts."""
        return np.concatenate([verts for verts, _ in self.parts])


def make_sim_object(parts: list[ConvexPart], mass_kg: float | None = None) -> SimObject:
    """The object made of convex parts; its mass from `DENSITY` where none is given.

    Raises SourceError for a size that no hand could hold, which is mostly a wrong unit.
    """
    points = np.concatenate([verts for verts, _ in parts])
    extent = np.ptp(points, axis=0)
    if extent.max() > _LARGEST_M:
        raise SourceError(
            f"the mesh is {extent.max():.3g} m long, which no hand lifts; if it is in millimetres, give --scale 0.001",
            extent_m=extent.tolist(),
        )
    if extent.max() < _SMALLEST_M:
        raise SourceError(
            f"the mesh is {extent.max() * 1e3:.3g} mm long; check its unit and give --scale", extent_m=extent.tolist()
        )
    volumes, centres = zip(*(_volume(*part) for part in parts))
    if mass_kg is None:
        mass_kg = float(np.clip(DENSITY * sum(volumes), *_MASS_KG))
    centre = np.average(centres, axis=0, weights=volumes)
    return SimObject(tuple(parts), mass_kg, centre, _outer_surface(parts), tuple(_rest_poses(points, centre)))


def _volume(verts: np.ndarray, faces: np.ndarray) -> tuple[float, np.ndarray]:
    a, b, c = (verts[faces[:, i]] for i in range(3))
    six = np.einsum("fi,fi->f", a, np.cross(b, c))
    volume = float(six.sum() / 6.0)
    return volume, ((a + b + c) * six[:, None]).sum(0) / (24.0 * volume)


def _outer_surface(parts: list[ConvexPart]) -> Surface:
    """Points on the parts' faces that lie in no other part: what can be touched, with normals that face outwards."""
    verts = np.concatenate([v for v, _ in parts])
    firsts = np.cumsum([0, *(len(v) for v, _ in parts[:-1])])
    faces = np.concatenate([f + first for (_, f), first in zip(parts, firsts)])
    every = surface_of(verts, faces, _POINTS * (1 if len(parts) == 1 else 2))
    if len(parts) == 1:
        return every
    # A point lies on its own part's boundary, so only what is deeper than half a millimetre is inside a part.
    keep = np.ones(len(every.points_m), bool)
    for part_verts, part_faces in parts:
        a, b, c = (part_verts[part_faces[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
        normals /= np.maximum(np.linalg.norm(normals, axis=1), 1e-12)[:, None]
        height = np.einsum("pfi,fi->pf", every.points_m[:, None] - a[None], normals)
        keep &= height.max(1) > -5e-4
    points, normals = every.points_m[keep], every.normals[keep]
    return Surface(points, normals, KDTree(points), every.extent_m, every.middle_m)


def _rest_poses(points: np.ndarray, centre: np.ndarray) -> list[RestPose]:
    """Faces of the hull that the object can stand on, firmest first; a face near a firmer one is that pose again."""
    hull = ConvexHull(points)
    planes = np.unique(np.round(hull.equations, 5), axis=0)
    corners = points[hull.vertices]
    found: list[RestPose] = []
    for plane in planes:
        normal = plane[:3] / np.linalg.norm(plane[:3])
        R = _turn_down(normal)
        turned = corners @ R.T
        low = turned[:, 2].min()
        foot = turned[turned[:, 2] < low + 0.0008, :2]
        middle = R @ centre
        tilt = np.arctan2(_margin(foot, middle[:2]), middle[2] - low)
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R, [-middle[0], -middle[1], -low]
        found.append(RestPose(T, float(tilt)))
    found.sort(key=lambda pose: -pose.tilt_rad)
    kept: list[RestPose] = []
    for pose in found:
        if pose.tilt_rad < _MIN_TILT_RAD and kept:
            break
        if all(pose.T_world_obj[2, :3] @ other.T_world_obj[2, :3] < _SAME_POSE for other in kept):
            kept.append(pose)
    return kept[:_MAX_POSES]


def _turn_down(normal: np.ndarray) -> np.ndarray:
    """A rotation that takes `normal` to -z."""
    other = np.eye(3)[int(np.abs(normal).argmin())]
    x = np.cross(other, normal)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(-normal, x), -normal])


def _margin(foot: np.ndarray, point: np.ndarray) -> float:
    """How far inside the convex hull of `foot` a point lies; below zero outside."""
    if len(foot) < 3 or np.linalg.matrix_rank(foot - foot.mean(0), tol=1e-5) < 2:
        return -1.0
    equations = ConvexHull(foot).equations
    return float(-(equations[:, :2] @ point + equations[:, 2]).max())
