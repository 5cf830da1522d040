"""Synthetic grasps: a hand that closes on a mesh until it touches, and free poses, without any dataset.

A grasp is made in the hand's rest frame (right hand: fingers along -x, palm facing -y). The object is put where the
grasp type wants it and moved until it just clears the palm; then each finger bends on its own, all joints first and the
outer two once the inner bone is stopped, until its skin meets the surface. Distances are those to a cloud of oriented
surface points, good to some 2 mm: enough to pose by, while `rollouts.contact` measures exactly.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from pam_aug.geometry import axis_angle_to_matrix, rigid_matrix
from pam_aug.hand import MANO_PARENTS, TIP_SETS, HandAssets
from pam_aug.rollouts.contact import PARTS, hand_parts

__all__ = ["FREE_KINDS", "GRASP_KINDS", "Grasp", "GraspSampler", "Surface", "surface_of"]

GraspKind = Literal["power", "pinch", "tripod", "flat"]
GRASP_KINDS: Final[tuple[GraspKind, ...]] = ("power", "pinch", "tripod", "flat")
FreeKind = Literal["relaxed", "wide", "fist", "point", "open"]
FREE_KINDS: Final[tuple[FreeKind, ...]] = ("relaxed", "wide", "fist", "point", "open")

_PALM = np.array([0.0, -1.0, 0.0])
_STEPS = 14
_FIRST_JOINT: Final = {"index": 0, "middle": 3, "little": 6, "ring": 9, "thumb": 12}  # rows of the 15 finger joints
# How far a joint bends when its finger is fully closed, radians: a little inside the usual clinical ranges.
_CLOSED_RAD: Final = {"finger": (1.45, 1.7, 1.05), "thumb": (0.75, 0.85, 1.0)}


class Surface(NamedTuple):
    """Points on a mesh with outward normals, and the tree that finds the nearest."""

    points_m: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    tree: KDTree
    extent_m: Float[np.ndarray, "3"]
    middle_m: Float[np.ndarray, "3"]

    def distance_m(self, points_m: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p"]:
        """Approximate signed distance, positive outside: the nearest point's distance, signed by its normal."""
        distance, row = self.tree.query(points_m)
        toward = np.einsum("pi,pi->p", points_m - self.points_m[row], self.normals[row])
        return np.where(toward < 0.0, -distance, distance)


class Grasp(NamedTuple):
    """A right hand's absolute pose and where the object stands in the hand's rest frame."""

    hand_pose: Float[np.ndarray, "45"]
    T_hand_obj: Float[np.ndarray, "4 4"]


def surface_of(verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], count: int = 2500) -> Surface:
    """`count` points spread over a mesh by area, the same ones every time; faces wind outwards."""
    a, b, c = (verts_m[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1)
    rng = np.random.default_rng(0)
    edges = np.cumsum(area) / area.sum()
    # Evenly spaced along the cumulated area: no face of some size goes without a point.
    row = np.minimum(np.searchsorted(edges, (np.arange(count) + rng.random(count)) / count), len(faces) - 1)
    u, v = rng.random((2, count))
    over = u + v > 1
    u[over], v[over] = 1 - u[over], 1 - v[over]
    points = a[row] + u[:, None] * (b - a)[row] + v[:, None] * (c - a)[row]
    low, high = verts_m.min(0), verts_m.max(0)
    return Surface(points, cross[row] / area[row, None], KDTree(points), high - low, (high + low) / 2)


@dataclass(frozen=True, eq=False)
class GraspSampler:
    """Grasps and free poses of one right hand model."""

    assets: HandAssets

    def free_pose(self, rng: np.random.Generator, kind: FreeKind) -> Float[np.ndarray, "45"]:
        """A pose without an object: "relaxed" and "wide" from the model's components, the others by finger."""
        if kind in ("relaxed", "wide"):
            scale = 0.9 if kind == "relaxed" else 1.5
            # The first components are whole synergies; beyond some 25 they are small free motion.
            coeffs = rng.normal(0, scale, 45)
            return self._within(self.assets.hands_mean + coeffs @ self.assets.hands_components)
        close = {
            "fist": dict.fromkeys(PARTS[:5], 0.9),
            "point": {"index": 0.03, "middle": 0.85, "ring": 0.9, "little": 0.9, "thumb": 0.7},
            "open": dict.fromkeys(PARTS[:5], 0.06),
        }[kind]
        pose = self._preshape(rng, spread=1.5 if kind == "open" else 0.4)
        for finger, share in close.items():
            amount = float(np.clip(share + rng.normal(0, 0.08), -0.08, 1.0))
            pose += self._bend(finger, self._closing(rng, finger), np.full(3, amount))
        return self._within(pose)

    def grasp(
        self,
        rng: np.random.Generator,
        kind: GraspKind,
        surface: Surface,
        betas: Float[np.ndarray, "10"],
        squeeze_m: tuple[float, float] = (0.0, 0.0015),
    ) -> Grasp:
        """A hand of the given shape on the object, `kind` deciding how they meet.

        Skin that closes on the object ends inside it by a depth between those of `squeeze_m`.
        """
        shaped, joints = self._shape(betas)
        pose = self._preshape(rng, spread=0.7)
        close = {finger: self._closing(rng, finger) for finger in _FIRST_JOINT}
        if kind == "power":
            pose = pose + sum(self._bend(f, close[f], np.full(3, 0.12)) for f in close if f != "thumb")
            T = self._in_palm(rng, surface, joints)
            T = self._advance(T, pose, shaped, joints, surface, _PALM)
        elif kind == "flat":
            T = self._in_palm(rng, surface, joints)
            T = self._advance(T, pose, shaped, joints, surface, _PALM)
            close = {f: c * np.array([0.35, 0.3, 0.3]) for f, c in close.items()}
        else:
            T, away = self._between_tips(rng, kind, pose, close, surface, shaped, joints)
            T = self._clear_palm(T, pose, shaped, joints, surface, away)
        squeeze = rng.uniform(*squeeze_m)
        fingers = {"pinch": ("thumb", "index"), "tripod": ("thumb", "index", "middle")}.get(kind, tuple(close))
        pose = self._close(pose, close, fingers, T, shaped, joints, surface, squeeze, rng.uniform(0.8, 1.0))
        idle = tuple(f for f in close if f not in fingers)
        if idle:  # a finger that has no part in it curls by chance, and stops at the object as well
            pose = self._close(pose, close, idle, T, shaped, joints, surface, 0.0, rng.uniform(0.1, 0.75))
        return Grasp(self._within(pose), T)

    # --- poses -----------------------------------------------------------------------------------------------------

    @cached_property
    def _axes(self) -> dict[str, np.ndarray]:
        """Each finger's flexion axis at rest. A positive turn bends towards the palm."""
        tips: dict[str, np.ndarray] = dict(
            zip(PARTS[:5], self.assets.v_template[list(TIP_SETS["smplx"]["right"])].astype(np.float64))
        )
        axes = {}
        for finger, first in _FIRST_JOINT.items():
            along = tips[finger] - self.assets.rest_joints_m[1 + first]
            # The thumb's own axis is oblique; its end joint bends about nothing else, and at rest it is bent.
            axis = self.assets.hands_mean[42:45].astype(np.float64) if finger == "thumb" else np.cross(along, _PALM)
            axes[finger] = axis / np.linalg.norm(axis)
        return axes

    def _preshape(self, rng: np.random.Generator, spread: float) -> np.ndarray:
        """An open hand with its thumb held off the palm, fingers spread by chance."""
        pose = np.zeros((15, 3))
        fan = rng.uniform(-0.06, 0.12) * spread
        for finger, place in zip(("index", "middle", "ring", "little"), (1.0, 0.2, -0.6, -1.4)):
            pose[_FIRST_JOINT[finger], 1] = fan * place + rng.normal(0, 0.03)
            pose[_FIRST_JOINT[finger], 2] = rng.normal(0, 0.06)
        pose[12] = np.array([0.16, 0.16, 0.12]) * rng.uniform(0.4, 1.4) + rng.normal(0, 0.05, 3)
        return pose.reshape(45)

    def _closing(self, rng: np.random.Generator, finger: str) -> np.ndarray:
        """How far each of a finger's joints goes when it closes, radians; fingers differ in which joint leads."""
        full = np.array(_CLOSED_RAD["thumb" if finger == "thumb" else "finger"])
        lead = rng.uniform(-0.18, 0.18)
        return full * np.array([1 + lead, 1 - lead, 1 - lead]) * rng.uniform(0.92, 1.02)

    def _bend(self, finger: str, closing: np.ndarray, amount: np.ndarray) -> np.ndarray:
        """Pose increments (..., 45) for a share (..., 3) of a finger's closing."""
        out = np.zeros((*amount.shape[:-1], 15, 3))
        first = _FIRST_JOINT[finger]
        out[..., first : first + 3, :] = (amount * closing)[..., None] * self._axes[finger]
        return out.reshape(*amount.shape[:-1], 45)

    def _within(self, pose: np.ndarray) -> np.ndarray:
        """Clipped to a little over the model's joint limits, which are percentiles of natural poses."""
        limits = self.assets.joint_limits_rad.astype(np.float64)
        slack = 0.12
        return np.clip(pose.reshape(15, 3), limits[..., 0] - slack, limits[..., 1] + slack).reshape(45)

    # --- geometry --------------------------------------------------------------------------------------------------

    @cached_property
    def _subset(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Every third vertex and the tips: which part and bone each belongs to, weights, pose directions."""
        tips = [i + d for i in TIP_SETS["smplx"]["right"] for d in (-1, 0, 1)]
        rows = np.unique(np.concatenate([np.arange(0, 778, 3), tips]))
        weights = self.assets.weights[rows].astype(np.float64)
        directions = self.assets.posedirs[rows].astype(np.float64).reshape(-1, 135).T
        return rows, hand_parts(self.assets)[rows], weights.argmax(1), weights, np.ascontiguousarray(directions)

    def _shape(self, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        full = self.assets.v_template.astype(np.float64) + self.assets.shapedirs.astype(np.float64) @ betas
        return full[self._subset[0]], self.assets.J_regressor.astype(np.float64) @ full

    def _skin(self, poses: np.ndarray, shaped: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """Vertices (b, n, 3) of the subset for poses (b, 45), global rotation none."""
        R = axis_angle_to_matrix(poses.reshape(-1, 15, 3))
        turn = np.empty((len(poses), 16, 3, 3))
        place = np.empty((len(poses), 16, 3))
        turn[:, 0], place[:, 0] = np.eye(3), joints[0]
        for k in range(1, 16):
            parent = MANO_PARENTS[k]
            turn[:, k] = turn[:, parent] @ R[:, k - 1]
            place[:, k] = place[:, parent] + turn[:, parent] @ (joints[k] - joints[parent])
        offset = place - (turn @ joints[None, :, :, None])[..., 0]
        _, _, _, weights, directions = self._subset
        moved = shaped + ((R - np.eye(3)).reshape(-1, 135) @ directions).reshape(len(poses), -1, 3)
        per_vertex = np.einsum("nk,bkij->bnij", weights, turn, optimize=True)
        return (per_vertex @ moved[..., None])[..., 0] + np.einsum("nk,bki->bni", weights, offset, optimize=True)

    def _distances(self, T: np.ndarray, verts: np.ndarray, surface: Surface) -> np.ndarray:
        local = (verts.reshape(-1, 3) - T[:3, 3]) @ T[:3, :3]
        return surface.distance_m(local).reshape(verts.shape[:-1])

    def _in_palm(self, rng: np.random.Generator, surface: Surface, joints: np.ndarray) -> np.ndarray:
        """The object in front of the palm, its longest axis roughly across the hand, its thinnest along the fingers'
        closing where that fits."""
        order = np.argsort(surface.extent_m)
        axes = np.zeros((3, 3))  # rows: images of the object's axes in the hand
        axes[order[2]] = [0, 0, rng.choice([-1.0, 1.0])]
        axes[order[0]] = [0, 1, 0] if rng.random() < 0.6 else [1, 0, 0]
        axes[order[1]] = np.cross(axes[order[2]], axes[order[0]])
        R = axes.T
        if np.linalg.det(R) < 0:
            R[:, order[1]] *= -1
        tilt = axis_angle_to_matrix(np.array([rng.normal(0, 0.25), rng.uniform(-0.9, 0.5), rng.normal(0, 0.25)]))
        R = tilt @ R
        knuckles = joints[[1, 4, 7, 10]].mean(0)
        # Along the fingers: on the distal palm; a slide along the object's own length lets other parts be held.
        centre = knuckles + np.array([rng.uniform(-0.012, 0.03), 0, rng.normal(0.004, 0.008)]) + 0.25 * _PALM
        slide = tilt @ np.array([0, 0, 1.0]) * rng.uniform(-0.3, 0.3) * surface.extent_m[order[2]]
        return rigid_matrix(R, centre + slide - R @ surface.middle_m)

    def _advance(self, T, pose, shaped, joints, surface, palm) -> np.ndarray:
        """The object moved against `palm` until it nearly touches; each step is the clearance, so none overshoots."""
        verts = self._skin(pose[None], shaped, joints)[0]
        T = T.copy()
        for _ in range(12):
            gap = float(self._distances(T, verts, surface).min()) - 0.001
            if gap < 0.0005:
                break
            T[:3, 3] -= gap * palm
        return T

    def _between_tips(self, rng, kind, pose, close, surface, shaped, joints) -> tuple[np.ndarray, np.ndarray]:
        """The object between thumb and finger tips, where closing brings them to its thickness apart."""
        share = np.linspace(0.0, 1.0, _STEPS)
        rows = self._subset[0]
        tip = {f: int(np.flatnonzero(rows == i)[0]) for f, i in zip(PARTS[:5], TIP_SETS["smplx"]["right"])}

        def path(finger: str) -> np.ndarray:
            poses = pose + self._bend(finger, close[finger], np.repeat(share[:, None], 3, 1))
            return self._skin(poses, shaped, joints)[:, tip[finger]]

        thumb, index = path("thumb"), path("index")
        if kind == "tripod":
            index = 0.5 * (index + path("middle"))
        order = np.argsort(surface.extent_m)
        apart = np.linalg.norm(thumb[:, None] - index[None], axis=2)
        i, j = np.unravel_index(np.abs(apart - surface.extent_m[order[0]] - 0.008).argmin(), apart.shape)
        axis = (index[j] - thumb[i]) / apart[i, j]
        out = _PALM + np.array([-1.0, 0, 0]) * rng.uniform(0.3, 1.2)  # away from the palm and the fingers' roots
        out = out - axis * (axis @ out)
        out /= np.linalg.norm(out)
        turn = rng.uniform(-1.0, 1.0)
        long = np.cos(turn) * out + np.sin(turn) * np.cross(axis, out)
        R = np.zeros((3, 3))
        R[:, order[0]], R[:, order[2]] = axis, long
        R[:, order[1]] = np.cross(axis, long)
        if np.linalg.det(R) < 0:
            R[:, order[1]] *= -1
        centre = 0.5 * (thumb[i] + index[j])
        # Held near an end as often as in the middle.
        slide = long * rng.uniform(-0.1, 0.42) * surface.extent_m[order[2]]
        return rigid_matrix(R, centre + slide - R @ surface.middle_m), out

    def _clear_palm(self, T, pose, shaped, joints, surface, away) -> np.ndarray:
        """The object moved along `away` until palm and open fingers are free of it, 4 cm at most."""
        verts = self._skin(pose[None], shaped, joints)[0]
        T = T.copy()
        for _ in range(8):
            depth = -float(self._distances(T, verts, surface).min())
            if depth < 0:
                break
            T[:3, 3] += away * min(depth + 0.001, 0.01)
        return T

    def _close(self, pose, close, fingers, T, shaped, joints, surface, squeeze, limit=1.0) -> np.ndarray:
        """Each of `fingers` bent until its skin is `squeeze` metres inside the surface, or by `limit` of its way."""
        _, part, bone, _, _ = self._subset
        share = np.linspace(0.0, 1.0, _STEPS)
        left = dict.fromkeys(fingers, limit)
        for moving in (np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])):
            steps = {f: self._bend(f, close[f], share[:, None] * left[f] * moving) for f in fingers}
            verts = self._skin(pose + sum(steps.values()), shaped, joints)
            watched = {f: (part == PARTS.index(f)) & np.isin(bone, _moving_bones(f, moving)) for f in fingers}
            asked = np.any(list(watched.values()), axis=0)
            gap = np.full(verts.shape[:2], np.inf)
            gap[:, asked] = self._distances(T, verts[:, asked], surface) + squeeze
            for finger in fingers:
                stop = _first_stop(share, gap[:, watched[finger]].min(1)) * left[finger]
                pose = pose + self._bend(finger, close[finger], stop * moving)
                left[finger] = min(left[finger] - stop, 0.6)
        return pose


def _moving_bones(finger: str, moving: np.ndarray) -> np.ndarray:
    return 1 + _FIRST_JOINT[finger] + np.flatnonzero(moving)


def _first_stop(share: np.ndarray, gap: np.ndarray) -> float:
    """Where `gap` first falls below zero, between two steps by straight line; the last share where it never does."""
    blocked = np.flatnonzero(gap < 0)
    if not len(blocked):
        return float(share[-1])
    i = int(blocked[0])
    if i == 0:
        return 0.0
    return float(share[i - 1] + (share[i] - share[i - 1]) * gap[i - 1] / (gap[i - 1] - gap[i]))
