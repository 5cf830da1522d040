"""What a hand and an object do to each other at rest, measured on their meshes: contact, depth, shared volume.

Nothing here comes from a physics engine. An engine's contact depth depends on its version and on how it splits the
mesh, by centimetres on hollow objects; so depth is that of hand vertices below the object's own surface, and the shared
volume is integrated over both meshes. The four figures of DeepSimHO (Wang et al., NeurIPS 2023) are averaged by
`summarize`: CP, the share in contact; PD, the mean depth; SD, the mean displacement in simulation; SR, the share below
1 cm of it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pam_aug.rollouts.mesh_queries import signed_distance_m

__all__ = ["SR_THRESHOLD_M", "PhysicsSummary", "intersection_volume_m3", "penetration_depth_m", "summarize"]

SR_THRESHOLD_M: Final = 0.01
"""An object that moves less than this has been held (DeepSimHO's SR)."""

_COARSEST: Final = 8  # cells per finest one along an edge, to start with


class PhysicsSummary(NamedTuple):
    """Over many grasps; percentages and centimetres, as the literature prints them. All 0 for none."""

    grasps: int
    cp_percent: float
    pd_cm: float  # a grasp that does not penetrate counts with 0
    sd_cm: float
    sr_percent: float


def summarize(in_contact: Sequence[bool], depth_m: Sequence[float], displacement_m: Sequence[float]) -> PhysicsSummary:
    """CP, PD, SD and SR of equally long lists, one entry per grasp."""
    if not len(in_contact):
        return PhysicsSummary(0, 0.0, 0.0, 0.0, 0.0)
    moved = np.asarray(displacement_m, np.float64)
    return PhysicsSummary(
        grasps=len(in_contact),
        cp_percent=100.0 * float(np.mean(in_contact)),
        pd_cm=100.0 * float(np.mean(depth_m)),
        sd_cm=100.0 * float(moved.mean()),
        sr_percent=100.0 * float((moved <= SR_THRESHOLD_M).mean()),
    )


def penetration_depth_m(
    points_m: Float[np.ndarray, "p 3"], verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> float:
    """How deep the deepest of `points_m` (a hand's vertices) lies below the mesh's surface, metres; 0 outside."""
    return max(0.0, -float(signed_distance_m(points_m, verts_m, faces).min()))


def intersection_volume_m3(
    verts_a_m: Float[np.ndarray, "v 3"],
    faces_a: Int[np.ndarray, "f 3"],
    verts_b_m: Float[np.ndarray, "w 3"],
    faces_b: Int[np.ndarray, "g 3"],
    cell_m: float = 0.002,
) -> float:
    """The volume that two solids share, in m³; both in one frame, a hand closed at the wrist (`f` and `f_cap`).

    Cubes that the distances to both surfaces leave undecided are cut into eight, down to `cell_m`; there each surface
    cuts a cube as a plane would, and the two are taken to face each other, as they do where one solid enters another.
    """
    low = np.maximum(verts_a_m.min(0), verts_b_m.min(0))
    high = np.minimum(verts_a_m.max(0), verts_b_m.max(0))
    if (high <= low).any():
        return 0.0
    size = cell_m * _COARSEST
    axes = [np.arange(lo + size / 2, hi + size / 2, size) for lo, hi in zip(low, high)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    volume = 0.0
    while len(centres):
        reach = size * np.sqrt(3.0) / 2.0
        to_a = signed_distance_m(centres, verts_a_m, faces_a)
        near = to_a < reach
        centres, to_a = centres[near], to_a[near]
        to_b = signed_distance_m(centres, verts_b_m, faces_b) if len(centres) else to_a
        if size <= cell_m * 1.001:
            shares = np.clip(0.5 - to_a / size, 0.0, 1.0) + np.clip(0.5 - to_b / size, 0.0, 1.0) - 1.0
            return volume + float(np.maximum(shares, 0.0).sum()) * size**3
        whole = np.maximum(to_a, to_b) <= -reach
        volume += int(whole.sum()) * size**3
        centres = centres[(to_b < reach) & ~whole]
        size /= 2.0
        centres = (centres[:, None] + (size / 2.0) * _CORNERS).reshape(-1, 3)
    return volume


_CORNERS: Final = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
