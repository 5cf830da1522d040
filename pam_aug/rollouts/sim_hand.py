"""The hand as a rigid-body engine moves it: capsules on MANO's joint tree, hinges with limits, and the way back.

Bodies keep the rest pose's axes, so a joint's turn in the engine is its MANO rotation: the product of hinges about the
model's flexion, abduction and twist axes, in this order. Labels made from joint angles are therefore exact. Capsules
follow the skin: each is fitted to the vertices that a bone carries most of.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pam_aug.errors import ConfigError
from pam_aug.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pam_aug.hand import FINGER_NAMES, MANO_PARENTS, TIP_SETS, HandAssets

__all__ = ["DIGITS", "Capsule", "Dof", "SimHand", "make_sim_hand"]

DIGITS: Final = FINGER_NAMES
"""thumb, index, middle, ring, little: rows of everything per digit; the palm comes after them."""

_FIRST: Final = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 13}
_TURNS: Final = {"finger": ((0, 1), (0,), (0,)), "thumb": ((0, 1, 2), (0,), (0,))}
_PAD_ALONG: Final = 0.6  # where on the end bone the pad is, as a share of its length


class Dof(NamedTuple):
    """One hinge: MANO joint 1 to 15; 0 flexion, 1 abduction, 2 twist; its axis in the rest frame; limits in radians."""

    joint: int
    turn: int
    axis: Float[np.ndarray, "3"]
    low_rad: float
    high_rad: float
    digit: int


class Capsule(NamedTuple):
    """A capsule on the body of MANO joint `joint`, in the rest frame about the model's origin, metres."""

    joint: int
    start_m: Float[np.ndarray, "3"]
    end_m: Float[np.ndarray, "3"]
    radius_m: float
    digit: int


@dataclass(frozen=True, eq=False)
class SimHand:
    """A right hand: where its joints are, its hinges, its capsules and its finger pads, for the shape `betas`.

    `pads_m` and `pad_normals` (5,3): the middle of each digit's pad and the way it faces, at rest; on the body of that
    digit's last joint.
    """

    assets: HandAssets
    betas: Float[np.ndarray, "10"]
    joints_m: Float[np.ndarray, "16 3"]
    dofs: tuple[Dof, ...]
    capsules: tuple[Capsule, ...]
    pads_m: Float[np.ndarray, "5 3"]
    pad_normals: Float[np.ndarray, "5 3"]

    @property
    def limits_rad(self) -> Float[np.ndarray, "n 2"]:
        """Lowest and highest angle of each hinge."""
        return np.array([(d.low_rad, d.high_rad) for d in self.dofs])

    def rows(self, digit: str) -> Int[np.ndarray, "k"]:
        """The hinges of a digit, base to tip."""
        number = DIGITS.index(digit)
        return np.array([i for i, d in enumerate(self.dofs) if d.digit == number])

    def hand_pose(self, angles_rad: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b 45"]:
        """Absolute axis-angle, MANO's order, of hinge angles."""
        return matrix_to_axis_angle(self.rotations(angles_rad)).reshape(*angles_rad.shape[:-1], 45)

    def rotations(self, angles_rad: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b 15 3 3"]:
        """The rotation of each of the 15 finger joints."""
        R = np.broadcast_to(np.eye(3), (*angles_rad.shape[:-1], 15, 3, 3)).copy()
        for i, dof in enumerate(self.dofs):
            R[..., dof.joint - 1, :, :] = R[..., dof.joint - 1, :, :] @ axis_angle_to_matrix(
                angles_rad[..., i, None] * dof.axis
            )
        return R

    def angles_rad(self, hand_pose: Float[np.ndarray, "45"]) -> Float[np.ndarray, "n"]:
        """The hinge angles nearest to a pose: what its rotations turn about each hinge's axis, within the limits."""
        pose = hand_pose.reshape(15, 3)
        found = np.array([float(pose[d.joint - 1] @ d.axis) for d in self.dofs])
        return np.clip(found, *self.limits_rad.T)

    def place(
        self, angles_rad: Float[np.ndarray, "b n"]
    ) -> tuple[Float[np.ndarray, "b 16 3 3"], Float[np.ndarray, "b 16 3"]]:
        """Turn and place of every joint for a wrist that stands as at rest."""
        R = self.rotations(angles_rad)
        turn, place = np.empty((len(R), 16, 3, 3)), np.empty((len(R), 16, 3))
        turn[:, 0], place[:, 0] = np.eye(3), self.joints_m[0]
        for k in range(1, 16):
            parent = MANO_PARENTS[k]
            turn[:, k] = turn[:, parent] @ R[:, k - 1]
            place[:, k] = place[:, parent] + turn[:, parent] @ (self.joints_m[k] - self.joints_m[parent])
        return turn, place

    def pads(
        self, angles_rad: Float[np.ndarray, "b n"]
    ) -> tuple[Float[np.ndarray, "b 5 3"], Float[np.ndarray, "b 5 3"]]:
        """Where the five pads are and which way they face."""
        turn, place = self.place(angles_rad)
        last = [_FIRST[name] + 2 for name in DIGITS]
        points = place[:, last] + (turn[:, last] @ (self.pads_m - self.joints_m[last])[..., None])[..., 0]
        return points, (turn[:, last] @ self.pad_normals[..., None])[..., 0]

    def skin(self, angles_rad: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "c 2 3"], Float[np.ndarray, "c"]]:
        """Both ends of every capsule, the wrist standing as at rest, and their radii."""
        turn, place = self.place(angles_rad[None])
        ends = np.array([(c.start_m, c.end_m) for c in self.capsules])
        joints = [c.joint for c in self.capsules]
        moved = np.einsum("cij,ckj->cki", turn[0, joints], ends - self.joints_m[joints][:, None])
        return moved + place[0, joints][:, None], np.array([c.radius_m for c in self.capsules])


def make_sim_hand(assets: HandAssets, betas: Float[np.ndarray, "10"] | None = None) -> SimHand:
    """The hand of a model that knows its joints' axes and ranges, as the open hand does; of the mean shape by default.

    Raises ConfigError for a model that does not (MANO's files say nothing of them) and for a left hand: a left hand's
    grasp is the mirror image of a right hand's on the mirrored object.
    """
    if not assets.joint_ranges_rad.any():
        raise ConfigError(
            f"{assets.name}: the hand model has no joint ranges, so it cannot be simulated; simulate with the bundled "
            "open hand (its poses mean the same on MANO)"
        )
    if assets.side != "right":
        raise ConfigError(f"{assets.name}: right hands are simulated; a left one's rollout is a mirror image")
    betas = np.zeros(10) if betas is None else np.asarray(betas, np.float64)
    joints, verts = assets.rest_joints_m, assets.v_template.astype(np.float64)
    if betas.any():
        verts = verts + assets.shapedirs.astype(np.float64) @ betas
        joints = assets.J_regressor.astype(np.float64) @ verts
    tips = verts[list(TIP_SETS["smplx"]["right"])]
    carried = assets.weights.argmax(1)
    dofs: list[Dof] = []
    capsules = _palm(joints, verts[carried == 0])
    pads, normals = np.empty((5, 3)), np.empty((5, 3))
    for number, name in enumerate(DIGITS):
        turns = _TURNS["thumb" if name == "thumb" else "finger"]
        for link in range(3):
            k = _FIRST[name] + link
            axes, ranges = assets.joint_axes[k - 1].astype(np.float64), assets.joint_ranges_rad[k - 1]
            for turn in turns[link]:
                axis = axes[turn] / np.linalg.norm(axes[turn])
                dofs.append(Dof(k, turn, axis, float(ranges[turn, 0]), float(ranges[turn, 1]), number))
            end = joints[k + 1] if link < 2 else tips[number]
            capsule = _fit(k, joints[k], end, verts[carried == k], number, capped=link == 2)
            capsules.append(capsule)
            if link == 2:
                along = (end - joints[k]) / np.linalg.norm(end - joints[k])
                facing = np.cross(axes[0], along)
                normals[number] = facing / np.linalg.norm(facing)
                middle = capsule.start_m + _PAD_ALONG * (capsule.end_m - capsule.start_m)
                pads[number] = middle + capsule.radius_m * normals[number]
    return SimHand(assets, betas, joints, tuple(dofs), tuple(capsules), pads, normals)


def _palm(joints: np.ndarray, verts: np.ndarray) -> list[Capsule]:
    """Four capsules from the wrist to the finger roots, fitted to the palm's vertices nearest to each."""
    roots = [1, 4, 10, 7]
    carpals = joints[0] + np.array([0.0, 0.0, 1.0]) * np.linspace(0.012, -0.014, 4)[:, None]
    starts = carpals + 0.2 * (joints[roots] - carpals)
    share = np.linspace(0.0, 1.0, 9)
    rays = starts[:, None] + share[:, None] * (joints[roots] - starts)[:, None]
    nearest = np.linalg.norm(verts[:, None, None] - rays, axis=3).min(2).argmin(1)
    return [_fit(0, starts[i], joints[k], verts[nearest == i], 5, capped=False) for i, k in enumerate(roots)]


def _fit(joint: int, start: np.ndarray, end: np.ndarray, verts: np.ndarray, digit: int, capped: bool) -> Capsule:
    """A capsule beside the bone: axis through the middle of the skin about it, radius the skin's median distance.

    `capped`: the bone's end is on the skin, so the capsule's round end stops there.
    """
    along = (end - start) / np.linalg.norm(end - start)
    across = verts - start - np.outer((verts - start) @ along, along)
    middle = 0.5 * (across.min(0) + across.max(0))
    middle -= along * (along @ middle)
    radius = float(np.median(np.linalg.norm(across - middle, axis=1)))
    stop = end - along * radius if capped else end
    return Capsule(joint, start + middle, stop + middle, radius, digit)
