"""What a rollout archive must satisfy: its form, and named tests of its values that catch a wrong flag early.

Each test has a name that the error gives: finite, rotation_range, rigid, units, up_axis, time, transl_type, cameras,
paths. Tests that need a hand model or the meshes are the converter's.
"""

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import numpy as np

from pam_aug.errors import SourceError
from pam_aug.hand import FINGER_NAMES

if TYPE_CHECKING:
    from pam_aug.rollouts.archive import RolloutArchive

__all__ = ["ROTATION_SHAPES", "check_archive", "finger_order"]

ROTATION_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "axis_angle": (3,),
    "quat_wxyz": (4,),
    "quat_xyzw": (4,),
    "matrix": (3, 3),
    "euler_XYZ": (3,),
}
"""The shape of one rotation in each form."""

_MANO_FINGERS: Final = ("index", "middle", "little", "ring", "thumb")
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "length_unit": ("m", "mm"),
    "up_axis": ("x", "y", "z", "-x", "-y", "-z"),
    "hand_rot_repr": tuple(ROTATION_SHAPES),
    "hand_transl_type": ("wrist", "mano_transl"),
}
_FAR_M: Final = 20.0  # a scene on a table lies within this of its origin
_J0_M: Final = 0.096  # length of MANO's J0: what a wrist taken for a translation, or the reverse, is off by


def finger_order(text: str) -> tuple[str, ...]:
    """The five finger names of `hand_finger_order`. Raises SourceError where it is none."""
    fingers = _MANO_FINGERS if text == "mano" else tuple(text.split("-"))
    if sorted(fingers) != sorted(FINGER_NAMES):
        raise SourceError(
            f"hand_finger_order {text!r}: write mano, or {', '.join(FINGER_NAMES)} in the file's order, joined by -"
        )
    return fingers


def check_archive(archive: "RolloutArchive", where: str) -> None:
    """Raise SourceError listing every failure as "name: what"; the names are also its `failures`."""
    failures = _form(archive) or _values(archive)
    if failures:
        lines = "".join(f"\n  - {name}: {text}" for name, text in failures)
        raise SourceError(
            f"{where}: the rollout archive fails {len(failures)} checks; mend what wrote it:{lines}",
            failures=[name for name, _ in failures],
        )


# ------------------------------------------------------------------------------------------------------------- form


def _form(a: "RolloutArchive") -> list[tuple[str, str]]:
    bad: list[tuple[str, str]] = []
    for name, choices in _CHOICES.items():
        if getattr(a, name) not in choices:
            bad.append((name, f"{getattr(a, name)!r} is none of {', '.join(choices)}"))
    for name in ("source", "licence"):
        if not getattr(a, name).strip():
            bad.append((name, "says nothing; who made the rollout, and under which terms"))
    try:
        json.loads(a.provenance)
    except ValueError as error:
        bad.append(("provenance", f"is no JSON ({error})"))
    try:
        finger_order(a.hand_finger_order)
    except SourceError as error:
        bad.append(("hand_finger_order", str(error)))
    if (a.fps is None) == (a.timestamps is None):
        bad.append(("time", "give fps or timestamps, one of them"))
    if not 0 <= a.hand_pca <= 45:
        bad.append(("hand_pca", f"{a.hand_pca} is outside 0 to 45; 0 means rotations"))
    if not a.hand_side or any(s not in ("right", "left") for s in a.hand_side):
        bad.append(("hand_side", f"{a.hand_side} should be right or left for each hand"))
    if len(set(a.hand_side)) != len(a.hand_side):
        bad.append(("hand_side", f"{a.hand_side}: a frame has at most one hand of each side; write one archive each"))
    if len({clean.lower() for clean in a.cam_name}) != len(a.cam_name):
        bad.append(("cameras", "cam_name must differ from camera to camera"))
    if len(set(a.object_id)) != len(a.object_id) or any(not o for o in a.object_id):
        bad.append(("object_id", "ids must be there and differ"))
    return bad or _shapes(a)


def _shapes(a: "RolloutArchive") -> list[tuple[str, str]]:
    T, H, O, C = a.frames, len(a.hand_side), len(a.object_id), 0 if a.cam_K is None else len(a.cam_K)  # noqa: E741
    one = ROTATION_SHAPES[a.hand_rot_repr]
    pose = [(T, H, a.hand_pca)] if a.hand_pca else [(T, H, 15, *one)] + [(T, H, 45)] * (one == (3,))
    allowed: dict[str, list[tuple[int, ...]]] = {
        "gravity": [(3,)],
        "timestamps": [(T,)],
        "hand_global_orient": [(T, H, *one)],
        "hand_pose": pose,
        "hand_transl": [(T, H, 3)],
        "hand_betas": [(H, 10), (T, H, 10)],
        "hand_valid": [(T, H)],
        "hand_joints3d": [(T, H, 21, 3)],
        "object_mesh": [(O,)],
        "object_scale": [(O,)],
        "object_pose": [(T, O, 4, 4)],
        "object_valid": [(T, O)],
        "object_angle": [(T, O)],
        "cam_K": [(C, 3, 3)],
        "cam_size": [(C, 2)],
        "cam_T_world_cam": [(C, 4, 4), (T, C, 4, 4)],
        "cam_name": [(C,)] if a.cam_name else [(0,)],
    }
    bad = []
    for name, shapes in allowed.items():
        value = getattr(a, name)
        shape = None if value is None else np.shape(value)
        if shape is not None and shape not in shapes:
            bad.append((name, f"has shape {shape}, expected {' or '.join(map(str, dict.fromkeys(shapes)))}"))
    if not T:
        bad.append(("hand_global_orient", "has no frames"))
    for name in ("hand_valid", "object_valid"):
        value = getattr(a, name)
        if value is not None and np.asarray(value).dtype != np.bool_:
            bad.append((name, f"should be bool, is {np.asarray(value).dtype}"))
    cameras = [getattr(a, name) is None for name in ("cam_K", "cam_size", "cam_T_world_cam")]
    if any(cameras) and not all(cameras):
        bad.append(("cameras", "cam_K, cam_size and cam_T_world_cam belong together"))
    return bad


# ----------------------------------------------------------------------------------------------------------- values


def _values(a: "RolloutArchive") -> list[tuple[str, str]]:
    bad: list[tuple[str, str]] = []
    valid = np.asarray(a.hand_valid)
    placed = np.ones(a.object_pose.shape[:2], bool) if a.object_valid is None else np.asarray(a.object_valid)
    judged = {
        "gravity": a.gravity,
        "hand_betas": a.hand_betas,
        "object_scale": a.object_scale,
        "object_pose": a.object_pose[placed],
        **{n: getattr(a, n)[valid] for n in ("hand_global_orient", "hand_pose", "hand_transl")},
    }
    if a.hand_joints3d is not None:
        judged["hand_joints3d"] = a.hand_joints3d[valid]
    nan = [name for name, value in judged.items() if not np.isfinite(value).all()]
    if nan:  # nothing else means anything then
        return [
            ("finite", f"NaN or infinity in {', '.join(nan)} at valid frames; clear hand_valid or object_valid there")
        ]
    bad += _rotations(a, valid, placed)
    bad += _lengths(a, valid, placed)
    up = np.eye(3)["xyz".index(a.up_axis[-1])] * (-1.0 if a.up_axis[0] == "-" else 1.0)
    pull = float(np.linalg.norm(a.gravity))
    if pull and float(up @ a.gravity) > -0.95 * pull:
        bad.append(("up_axis", f"{a.up_axis} is up but gravity is {np.asarray(a.gravity).tolist()}"))
    if a.fps is not None and not (np.isfinite(a.fps) and a.fps > 0):
        bad.append(("time", f"fps {a.fps} should be above 0"))
    if a.timestamps is not None and not (np.diff(a.timestamps) > 0).all():
        bad.append(("time", "timestamps should rise from frame to frame"))
    for mesh in a.object_mesh:
        path = PurePosixPath(mesh)
        if not mesh or path.is_absolute() or ".." in path.parts or "\\" in mesh:
            bad.append(("paths", f"object_mesh {mesh!r} should be a path below the archive's folder"))
    return bad + _cameras(a)


def _rotations(a: "RolloutArchive", valid: np.ndarray, placed: np.ndarray) -> list[tuple[str, str]]:
    bad = []
    named = {"hand_global_orient": a.hand_global_orient[valid]}
    if not a.hand_pca:
        named["hand_pose"] = a.hand_pose[valid]
    for name, value in named.items():
        if a.hand_rot_repr == "matrix":
            off = _off_rotation(value)
            if off > 1e-3:
                bad.append(("rotation_range", f"{name} holds matrices that are no rotations (off by {off:.2g})"))
        elif a.hand_rot_repr.startswith("quat"):
            off = float(np.abs(np.linalg.norm(value, axis=-1) - 1.0).max(initial=0.0))
            if off > 1e-2:
                bad.append(("rotation_range", f"{name} holds quaternions of other than unit length (off by {off:.2g})"))
        else:
            angle = float(np.linalg.norm(value.reshape(-1, 3), axis=1).max(initial=0.0))
            if a.hand_rot_repr == "euler_XYZ":
                angle = float(np.abs(value).max(initial=0.0))
            if angle > 2 * np.pi + 1e-3:
                bad.append(("rotation_range", f"{name} turns by {angle:.1f} rad, over 2 pi: degrees?"))
    off = max(_off_rotation(a.object_pose[placed][:, :3, :3]), _off_last_row(a.object_pose[placed]))
    if off > 1e-3:
        bad.append(
            ("rigid", f"object_pose holds matrices that are not rigid (off by {off:.2g}); scale is object_scale")
        )
    return bad


def _lengths(a: "RolloutArchive", valid: np.ndarray, placed: np.ndarray) -> list[tuple[str, str]]:
    bad = []
    places = {"hand_transl": a.hand_transl[valid], "object_pose": a.object_pose[placed][:, :3, 3]}
    if a.hand_joints3d is not None:
        places["hand_joints3d"] = a.hand_joints3d[valid].reshape(-1, 3)
    for name, value in places.items():
        far = float(np.abs(value).max(initial=0.0))
        if far * a.unit_m > _FAR_M:
            bad.append(("units", f"{name} reaches {far:.4g} {a.length_unit}: is it in millimetres?"))
    if a.length_unit == "mm" and max(float(np.abs(v).max(initial=0.0)) for v in places.values()) < 10.0:
        bad.append(("units", "every position is within 10 mm of the origin: is it in metres?"))
    if (np.asarray(a.object_scale) <= 0).any():
        bad.append(("units", "object_scale should be above 0"))
    if bad or a.hand_joints3d is None or not valid.any():
        return bad
    joints, transl = a.hand_joints3d[valid] * a.unit_m, a.hand_transl[valid] * a.unit_m
    palm = np.linalg.norm(joints[:, 9] - joints[:, 0], axis=1)
    if not (0.04 < np.median(palm) < 0.16):
        bad.append(
            ("units", f"the palm of hand_joints3d is {np.median(palm) * 1e3:.4g} mm long, a hand's is 80 to 110")
        )
        return bad
    gap = float(np.median(np.linalg.norm(joints[:, 0] - transl, axis=1)))
    other = "mano_transl" if a.hand_transl_type == "wrist" else "wrist"
    expected = 0.0 if a.hand_transl_type == "wrist" else _J0_M
    if abs(gap - expected) > 0.03:
        bad.append(
            ("transl_type", f"hand_transl is {gap * 1e3:.0f} mm from the wrist of hand_joints3d, which is not what "
                            f"{a.hand_transl_type} means ({expected * 1e3:.0f} mm)"
                            + (f"; {other} would be" if abs(gap - (_J0_M - expected)) < 0.03 else ""))
        )  # fmt: skip
    return bad


def _cameras(a: "RolloutArchive") -> list[tuple[str, str]]:
    if a.cam_K is None or a.cam_size is None or a.cam_T_world_cam is None:
        return []
    bad = []
    if not (np.isfinite(a.cam_K).all() and np.isfinite(a.cam_T_world_cam).all()):
        return [("cameras", "NaN or infinity")]
    if (a.cam_K[:, 0, 0] <= 0).any() or (a.cam_K[:, 1, 1] <= 0).any() or np.abs(a.cam_K[:, 2] - [0, 0, 1]).max() > 1e-6:
        bad.append(("cameras", "cam_K should be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy above 0"))
    poses = a.cam_T_world_cam.reshape(-1, 4, 4)
    off = max(_off_rotation(poses[:, :3, :3]), _off_last_row(poses))
    if off > 1e-3:
        bad.append(("cameras", f"cam_T_world_cam is not rigid (off by {off:.2g})"))
    if np.asarray(a.cam_size).dtype.kind not in "iu" or (np.asarray(a.cam_size) < 8).any():
        bad.append(("cameras", "cam_size should be whole numbers of pixels, width and height, 8 or more"))
    if a.cam_distortion is not None and np.abs(a.cam_distortion).max(initial=0.0) > 0:
        bad.append(("cameras", "cam_distortion is not zero: labels are pinhole; give the undistorted camera's cam_K"))
    return bad


def _off_rotation(R: np.ndarray) -> float:
    """How far matrices are from proper rotations: the largest entry of R R^T - 1, or 2 for a reflection."""
    R = np.asarray(R, np.float64).reshape(-1, 3, 3)
    if not len(R):
        return 0.0
    off = float(np.abs(R @ R.swapaxes(1, 2) - np.eye(3)).max())
    return max(off, 2.0) if (np.linalg.det(R) < 0).any() else off


def _off_last_row(T: np.ndarray) -> float:
    return float(np.abs(T[..., 3, :] - np.array([0.0, 0.0, 0.0, 1.0])).max(initial=0.0))
