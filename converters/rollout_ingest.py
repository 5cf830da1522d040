"""Checks of a rollout archive that need a hand model or the meshes: bone_lengths, flags, hand_near_object, table."""

import itertools
from typing import Final

import numpy as np
import torch

from pam_aug.hand import BONES
from pam_aug.rollouts.archive import RolloutArchive
from pam_aug.rollouts.archive_checks import finger_order
from pam_aug.rollouts.label import pose_hand

from .rollout_decode import finger_angles
from .rollout_tracks import Hands, HandTrack, ObjectTrack

__all__ = ["check_joints", "check_places"]

_NEAR_M: Final = 0.4
_TABLE_M: Final = 0.02
_FLAGS_M: Final = 0.010  # another reading of the pose explains the joints better by at least this, and twofold
_JUDGED_FRAMES: Final = 5
_ORDERS: Final = ("mano", "index-middle-ring-little-thumb", "thumb-index-middle-ring-little")


def check_joints(a: RolloutArchive, tracks: tuple[HandTrack, ...], hands: Hands) -> list[tuple[str, str]]:
    """bone_lengths and flags, where the archive gives joints: (name, what is wrong)."""
    bad: list[tuple[str, str]] = []
    if a.hand_joints3d is None:
        return bad
    for h, hand in enumerate(tracks):
        frames = np.flatnonzero(hand.valid)[:: max(1, hand.valid.sum() // _JUDGED_FRAMES)]
        if not len(frames):
            continue
        joints = np.asarray(a.hand_joints3d[:, h], np.float64)[frames] * a.unit_m
        posed = _joints(hands, hand, hand.hand_pose, frames)
        ours, theirs = _bones(posed[0]), _bones(joints)
        wrong = np.abs(theirs / ours - 1.0).max(0) > 0.6
        if wrong.any() or np.ptp(theirs, axis=0).max() > 0.01:
            text = (
                f"bones of the {hand.side} hand_joints3d are {theirs.min() * 1e3:.0f} to {theirs.max() * 1e3:.0f} mm "
                f"and change by {np.ptp(theirs, 0).max() * 1e3:.0f} mm; are these 21 joints, thumb to little?"
            )
            bad.append(("bone_lengths", text))
            continue
        error = _off_m(posed, joints)
        best, name = _best_reading(a, h, hand, frames, joints, hands)
        if error > 2 * best and error - best > _FLAGS_M:
            text = f"hand_joints3d are {error * 1e3:.0f} mm from the pose as declared, {best * 1e3:.0f} mm with {name}"
            bad.append(("flags", text))
    return bad


def _best_reading(
    a: RolloutArchive,
    h: int,
    hand: HandTrack,
    frames: np.ndarray,
    joints: np.ndarray,
    hands: Hands,
) -> tuple[float, str]:
    """The least error of any other finger order or mean flag, and which it is."""
    mean = hands.assets(hand.side).hands_mean.astype(np.float64)
    best, name = np.inf, ""
    declared = finger_order(a.hand_finger_order)
    orders = () if a.hand_pca else tuple(finger_order(text) for text in _ORDERS)
    for order, flat in itertools.product(dict.fromkeys([declared, *orders]), (True, False)):
        if (order, flat) == (declared, a.hand_flat_mean):
            continue
        own = hand.hand_pose - (0.0 if a.hand_flat_mean else mean)
        base = own if order == declared else finger_angles(a, h, order)
        error = _off_m(_joints(hands, hand, base if flat else base + mean, frames), joints)
        if error < best:
            best, name = error, f"hand_finger_order {'-'.join(order)} and hand_flat_mean {flat}"
    return best, name


def _joints(hands: Hands, hand: HandTrack, pose: np.ndarray, frames: np.ndarray) -> np.ndarray:
    layer = hands.layer(hand.side)
    return np.stack(
        [pose_hand(layer, hand.global_orient[f], pose[f], hand.betas[f], hand.transl[f])[1] for f in frames]
    )


def check_places(
    a: RolloutArchive, tracks: tuple[HandTrack, ...], objects: tuple[ObjectTrack, ...], up: np.ndarray, hands: Hands
) -> list[tuple[str, str]]:
    """hand_near_object, where there are objects, and table, where its height is given."""
    bad: list[tuple[str, str]] = []
    nearest = np.inf
    for track in objects:
        verts = track.mesh.load().vertices_m
        low, high = verts.min(0), verts.max(0)
        for hand in tracks:
            both = hand.valid & track.valid
            layer = hands.layer(hand.side)
            wrists = layer.wrist_from_transl(torch.from_numpy(hand.transl), torch.from_numpy(hand.betas)).numpy()
            T = track.T_world_obj[both]
            local = np.einsum("tij,ti->tj", T[:, :3, :3], wrists[both] - T[:, :3, 3])
            away = np.linalg.norm(local - np.clip(local, low, high), axis=1)
            nearest = min(nearest, float(away.min(initial=np.inf)))
        if a.table_height is not None and track.valid.any():
            T = track.T_world_obj[track.valid]
            lowest = (verts @ (up @ T[:, :3, :3]).T).min(0) + T[:, :3, 3] @ up
            depth = a.table_height * a.unit_m - float(lowest.min())
            if depth > _TABLE_M:
                bad.append(("table", f"{track.id} reaches {depth * 1e3:.0f} mm below the table; units or up_axis?"))
    if objects and _NEAR_M < nearest < np.inf:
        bad.append(("hand_near_object", f"no wrist comes within {_NEAR_M} m of an object ({nearest:.3g} m at best)"))
    return bad


def _bones(joints: np.ndarray) -> np.ndarray:
    """(n,20) lengths of the 20 bones."""
    return np.linalg.norm(joints[..., 1:, :] - joints[..., list(BONES[1:]), :], axis=-1)


def _off_m(a: np.ndarray, b: np.ndarray) -> float:
    """Mean joint distance once the wrists are together."""
    return float(np.linalg.norm((a - a[:, :1]) - (b - b[:, :1]), axis=-1).mean())
