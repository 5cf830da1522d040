"""A posed hand as bodies that a rigid-body engine collides with: 23 capsules, or 16 convex hulls of its mesh.

Capsules are fitted to the posed skin, so they serve every hand model and both sides, and their number never changes: a
compiled model takes the next grasp by new sizes and places. Hulls follow DeepSimHO's release: one part per joint of
MANO, a vertex belonging to the joint with its largest skinning weight and a part taking every face that it touches.
"""

import functools
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from pam_aug.geometry import transform_points
from pam_aug.hand import HandAssets
from pam_aug.hand.joints import JOINTS21_TO_MANO16
from pam_aug.rollouts.convex_parts import ConvexPart, convex_hull

__all__ = ["CAPSULES_PER_HAND", "Capsules", "hand_capsules", "hand_hulls", "part_vertices"]

CAPSULES_PER_HAND: Final = 23
"""Three for each finger, the thumb's first being its metacarpal, and eight in the palm, two to a metacarpal."""

_PALM_BONES: Final = (5, 9, 13, 17)  # rows of the finger bases among the 21 joints, from the wrist
_ALONG_PALM: Final = ((0.05, 0.5), (0.5, 0.95))  # from wrist to finger base; the palm's heel is its thicker end
_FINGER_RADIUS_M: Final = (0.004, 0.018)  # a fit outside is a fit to too few vertices
_PALM_RADIUS_M: Final = (0.006, 0.010)  # small ones follow the palm's hollow
_THIN_M: Final = np.array([-0.01, 0.01])  # where the mesh has next to no palm


class Capsules(NamedTuple):
    """Spheres swept along segments, in metres and in the frame of the hand that they were fitted to."""

    starts_m: Float[np.ndarray, "n 3"]
    ends_m: Float[np.ndarray, "n 3"]
    radii_m: Float[np.ndarray, "n"]

    def moved(self, T: Float[np.ndarray, "4 4"]) -> "Capsules":
        """The same capsules in another frame."""
        return Capsules(transform_points(T, self.starts_m), transform_points(T, self.ends_m), self.radii_m)

    def distance_m(self, points_m: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p"]:
        """Signed distance of points to the union's surface, negative inside."""
        return self.nearest(points_m)[0]

    def nearest(self, points_m: Float[np.ndarray, "p 3"]) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p 3"]]:
        """Signed distance of points to the nearest capsule, and the unit direction away from its axis."""
        along = self.ends_m - self.starts_m
        away = points_m[:, None] - self.starts_m
        share = np.einsum("pni,ni->pn", away, along) / np.maximum(np.einsum("ni,ni->n", along, along), 1e-12)
        off = away - np.clip(share, 0.0, 1.0)[..., None] * along
        length = np.linalg.norm(off, axis=2)
        row, column = np.arange(len(points_m)), (length - self.radii_m).argmin(1)
        length = length[row, column]
        return length - self.radii_m[column], off[row, column] / np.maximum(length, 1e-12)[:, None]


def hand_capsules(
    verts_m: Float[np.ndarray, "778 3"], joints_m: Float[np.ndarray, "21 3"], assets: HandAssets
) -> Capsules:
    """Capsules of a posed hand, in its frame: circles fitted around the bones, slabs of the palm by their thickness."""
    starts, ends = np.empty((CAPSULES_PER_HAND, 3)), np.empty((CAPSULES_PER_HAND, 3))
    radii = np.empty(CAPSULES_PER_HAND)
    parts = part_vertices(assets)
    for joint in range(1, 16):
        row = JOINTS21_TO_MANO16[joint]
        last = row % 4 == 3  # this bone ends in the fingertip
        starts[joint - 1], ends[joint - 1], radii[joint - 1] = _around_bone(
            verts_m[parts[joint]], joints_m[row], joints_m[row + 1], last
        )
    starts[15:], ends[15:], radii[15:] = _across_palm(verts_m[parts[0]], joints_m, assets.side)
    return Capsules(starts, ends, radii)


@functools.lru_cache(maxsize=64)
def part_vertices(assets: HandAssets) -> tuple[np.ndarray, ...]:
    """For each of MANO's 16 joints the vertices that it carries most of; together every vertex once."""
    owner = assets.weights.argmax(1)
    return tuple(np.flatnonzero(owner == joint) for joint in range(16))


@functools.lru_cache(maxsize=64)
def _ringed_parts(assets: HandAssets) -> tuple[np.ndarray, ...]:
    """The parts with every vertex of the faces that they touch."""
    faces = np.asarray(assets.f)
    return tuple(np.unique(faces[np.isin(faces, own).any(1)]) for own in part_vertices(assets))


def hand_hulls(verts_m: Float[np.ndarray, "778 3"], assets: HandAssets) -> list[ConvexPart]:
    """The 16 convex hulls of a posed hand, in its frame."""
    return [convex_hull(verts_m[rows]) for rows in _ringed_parts(assets)]


def _around_bone(
    skin: np.ndarray, base: np.ndarray, tip: np.ndarray, last: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Start, end and radius of the capsule of a finger's bone; the last one ends inside the fingertip's skin."""
    length = float(np.linalg.norm(tip - base))
    axis = (tip - base) / length
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side /= np.linalg.norm(side)
    across = np.stack([side, np.cross(axis, side)])
    along = (skin - base) @ axis
    ring = (along > 0.0) & (along < length * (0.8 if last else 1.0))
    xy = (skin[ring] if ring.sum() >= 6 else skin) @ across.T - base @ across.T
    # A circle by linear least squares: x² + y² = 2 a x + 2 b y + c (Kåsa, 1976).
    fit, *_ = np.linalg.lstsq(np.c_[2.0 * xy, np.ones(len(xy))], (xy**2).sum(1), rcond=None)
    radius = float(np.clip(np.sqrt(max(fit[2] + fit[0] ** 2 + fit[1] ** 2, 0.0)), *_FINGER_RADIUS_M))
    centre = fit[:2] * min(1.0, 0.6 * radius / max(float(np.hypot(*fit[:2])), 1e-9))
    # Where a part has skin on one side only, or webs, the circle is a guess: rather inside the skin than out of it.
    radius = float(np.clip(np.percentile(np.linalg.norm(xy - centre, axis=1), 35), *_FINGER_RADIUS_M))
    shift = centre @ across
    reach = max(float(along.max()) - radius, 0.5 * length) if last else length
    return base + shift, base + reach * axis + shift, radius


def _across_palm(skin: np.ndarray, joints: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wrist, ends = joints[0], joints[list(_PALM_BONES)]
    bones = ends - wrist
    palmar = np.cross(bones[0], bones[3]) * (1.0 if side == "right" else -1.0)
    palmar /= np.linalg.norm(palmar)
    away = skin - wrist
    share = np.einsum("vi,bi->vb", away, bones) / np.einsum("bi,bi->b", bones, bones)
    flat = away - np.outer(away @ palmar, palmar)
    off = np.linalg.norm(flat[:, None] - share[..., None] * (bones - np.outer(bones @ palmar, palmar)), axis=2)
    nearest = off.argmin(1)
    starts, stops, radii = np.empty((8, 3)), np.empty((8, 3)), np.empty(8)
    for i in range(8):
        bone, along, (low, high) = bones[i // 2], share[:, i // 2], _ALONG_PALM[i % 2]
        mine = (nearest == i // 2) & (along > low - 0.1) & (along < high + 0.1)
        height = (away[mine] - along[mine, None] * bone) @ palmar if mine.sum() >= 4 else _THIN_M
        bottom, top = height.min(), height.max()
        # The inner face is what objects lie against, and it is hollow: half of its skin may stand out.
        face = float(np.median(height[height > (bottom + top) / 2.0]))
        radii[i] = np.clip((face - bottom) / 2.0, *_PALM_RADIUS_M)
        middle = wrist + palmar * (face - radii[i])
        starts[i], stops[i] = middle + low * bone, middle + high * bone
    return starts, stops, radii
