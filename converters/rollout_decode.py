"""A rollout archive's hands in our conventions: absolute axis-angle in MANO's order, transl as our hand takes it."""

from pathlib import Path
from typing import Final

import numpy as np
import torch

from pam_aug.errors import AssetMissing
from pam_aug.geometry import axis_angle_to_matrix, euler_to_matrix, matrix_to_axis_angle, quaternion_to_matrix
from pam_aug.hand import Side
from pam_aug.rollouts.archive import RolloutArchive
from pam_aug.rollouts.archive_checks import ROTATION_SHAPES, finger_order

from .rollout_tracks import MANO_J0_M, Hands, HandTrack

__all__ = ["finger_angles", "hand_track", "rotations_of"]

_MANO: Final = finger_order("mano")


def rotations_of(values: np.ndarray, rot_repr: str) -> np.ndarray:
    """Rotation matrices (..., 3, 3), float64, of rotations in one of the archive's forms."""
    values = np.asarray(values, np.float64)
    if rot_repr == "matrix":
        return values
    if rot_repr == "axis_angle":
        return axis_angle_to_matrix(values)
    if rot_repr == "euler_XYZ":
        return euler_to_matrix(values)
    return quaternion_to_matrix(values, "wxyz" if rot_repr == "quat_wxyz" else "xyzw")


def hand_track(path: Path, a: RolloutArchive, h: int, hands: Hands, source: str) -> HandTrack:
    """Hand `h` of the archive that `path` names. Raises AssetMissing for PCA coefficients without MANO's files."""
    side: Side = "left" if a.hand_side[h] == "left" else "right"
    valid = np.asarray(a.hand_valid)[:, h]
    betas = np.asarray(a.hand_betas, np.float64)
    betas = np.tile(betas[h], (a.frames, 1)) if betas.ndim == 2 else betas[:, h]
    orient = matrix_to_axis_angle(rotations_of(_filled(a.hand_global_orient[:, h], valid, a), a.hand_rot_repr))
    said, mean = "exact", np.zeros(45)
    if not a.hand_flat_mean:
        mean, said = hands.mean_pose(side, source)
    if a.hand_pca:
        if hands.model != "mano":
            raise AssetMissing(
                f"{path}: poses are {a.hand_pca} coefficients of MANO's pose space, which only MANO's files "
                "define. Give mano_dir (or $MANO_DIR), or write rotations.",
                path=str(path),
            )
        coefficients = np.where(valid[:, None], np.asarray(a.hand_pose[:, h], np.float64), 0.0)
        pose = coefficients @ hands.assets(side).hands_components[: a.hand_pca].astype(np.float64)
    else:
        pose = finger_angles(a, h, finger_order(a.hand_finger_order))
    transl = np.where(valid[:, None], np.asarray(a.hand_transl[:, h], np.float64), 0.0) * a.unit_m
    if a.hand_transl_type == "wrist":
        layer = hands.layer(side)
        transl = layer.transl_from_wrist(torch.from_numpy(transl), torch.from_numpy(betas)).numpy()
    elif hands.model != "mano":
        # smplx's translation is MANO's: what stays in place when another hand stands in for it is the wrist.
        transl = transl + np.array(MANO_J0_M[side]) - hands.assets(side).rest_joints_m[0]
    return HandTrack(side, orient, pose + mean, betas, transl, valid, said)


def finger_angles(a: RolloutArchive, h: int, fingers: tuple[str, ...]) -> np.ndarray:
    """(T,45) axis-angle of hand `h` in MANO's order, read in the order `fingers`, before any mean is added."""
    valid = np.asarray(a.hand_valid)[:, h]
    one = ROTATION_SHAPES[a.hand_rot_repr]
    raw = _filled(np.asarray(a.hand_pose[:, h]).reshape(a.frames, 15, *one), valid, a)
    # Axis-angle values stay as they are: MANO's mean is added to the values, and pi and 3 pi are then not the same.
    turns = raw if a.hand_rot_repr == "axis_angle" else matrix_to_axis_angle(rotations_of(raw, a.hand_rot_repr))
    by_finger = turns.reshape(a.frames, 5, 3, 3)
    return by_finger[:, [fingers.index(name) for name in _MANO]].reshape(a.frames, 45)


def _filled(values: np.ndarray, valid: np.ndarray, a: RolloutArchive) -> np.ndarray:
    """`values` with the identity rotation at invalid frames, which may hold anything."""
    one = ROTATION_SHAPES[a.hand_rot_repr]
    unit = {"quat_wxyz": np.array([1.0, 0, 0, 0]), "quat_xyzw": np.array([0, 0, 0, 1.0]), "matrix": np.eye(3)}
    identity = unit.get(a.hand_rot_repr, np.zeros(one))
    return np.where(valid.reshape(-1, *[1] * (values.ndim - 1)), np.asarray(values, np.float64), identity)
