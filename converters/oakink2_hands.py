"""Hands of a whole sequence posed at once in the world.

Four cameras see the same hands, and a batch of poses costs a tenth of its poses one by one: so joints are computed once
per sequence, and a view (`oakink2_views`) is a rigid motion of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.geometry import axis_angle_to_matrix
from pam_aug.hand import HandLayer
from pam_aug.hand.joints import Side

from .oakink2_annotation import HandTrack

__all__ = ["PosedHand", "pose_hands", "pose_track"]

_HANDS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class PosedHand:
    """One side's hand at every frame of a sequence. `joints_world_m` are the layer's; `root_m` is J0(betas)."""

    side: Side
    R_world_wrist: Float[np.ndarray, "n 3 3"]
    hand_pose: Float[np.ndarray, "n 45"]
    betas: Float[np.ndarray, "n 10"]
    root_m: Float[np.ndarray, "n 3"]
    joints_world_m: Float[np.ndarray, "n 21 3"]


def pose_track(track: HandTrack, side: Side, layer: HandLayer) -> PosedHand:
    """The hand of a track in `layer`, which should be a float64 one. Rows that are not valid are posed all the same.

    The track's translation is the wrist joint, which the model puts at transl + J0(betas). Poses and shapes are rounded
    to what the label holds before joints are computed from them.
    """
    pose, betas = (np.asarray(a, np.float32).astype(np.float64) for a in (track.axis_angle, track.betas))
    n = len(pose)
    joints, roots = np.zeros((n, 21, 3)), np.zeros((n, 3))
    with torch.no_grad():
        for start in range(0, n, _HANDS_AT_ONCE):
            part = slice(start, start + _HANDS_AT_ONCE)
            turns, shape = torch.from_numpy(pose[part]), torch.from_numpy(betas[part])
            transl = layer.transl_from_wrist(torch.from_numpy(track.wrist_world_m[part]), shape)
            joints[part] = layer.kinematic_joints21(turns[:, 0], turns[:, 1:].reshape(-1, 45), shape, transl).numpy()
            roots[part] = layer.rest_joints(shape)[:, 0].numpy()
    return PosedHand(
        side=side,
        R_world_wrist=axis_angle_to_matrix(pose[:, 0]),
        hand_pose=pose[:, 1:].reshape(n, 45),
        betas=betas,
        root_m=roots,
        joints_world_m=joints,
    )


def pose_hands(tracks: Mapping[Side, HandTrack], layers: Mapping[Side, HandLayer]) -> dict[Side, PosedHand]:
    """`pose_track` of every side that there is a layer for."""
    return {side: pose_track(tracks[side], side, layer) for side, layer in layers.items()}
