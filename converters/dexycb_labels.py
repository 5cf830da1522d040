"""One DexYCB frame: its label archive, and what marks a value as absent.

Absent are: a hand's joints where all 63 values are -1, a hand's pose or an object's pose where all values are 0, depth
of 0 and of 65535. Negative pixels are not absent: joints outside the image are not clipped. Whether a frame has a hand
is decided for all eight views at once by the dataset's fit, and says nothing about the hand being visible in a view.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pam_aug.errors import SourceError

from .dexycb_calibration import is_rotation
from .dexycb_npz import read_bytes, read_npz

__all__ = [
    "HEIGHT",
    "WIDTH",
    "FrameLabel",
    "read_depth_m",
    "read_depth_png",
    "read_frame",
    "read_hand_frames",
    "read_jpeg",
    "read_seg",
]

WIDTH, HEIGHT = 640, 480
_NO_DEPTH = (0, 65535)
_IDENTITY = np.eye(4)
_DEPTH_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", WIDTH, HEIGHT, 16, 0)  # 16 bits, grey


@dataclass(frozen=True, slots=True, eq=False)
class FrameLabel:
    """A frame's label in the camera frame, metres.

    `pose_m`: global axis-angle (3), PCA coefficients (45), translation (3).
    """

    joints_cam_m: Float[np.ndarray, "21 3"]
    joints_px: Float[np.ndarray, "21 2"]
    pose_m: Float[np.ndarray, "51"]
    T_cam_obj: Float[np.ndarray, "o 4 4"]
    object_valid: Bool[np.ndarray, "o"]


def read_frame(path: str | Path, objects: int) -> FrameLabel | None:
    """The label of a frame with `objects` objects, or None where the frame has no hand.

    Raises SourceError naming the file for a label that is damaged or not of this form.
    """
    arrays = read_npz(
        path, {"joint_3d": (1, 21, 3), "joint_2d": (1, 21, 2), "pose_m": (1, 51), "pose_y": (objects, 3, 4)}
    )
    joints, pose_m, pose_y = arrays["joint_3d"][0], arrays["pose_m"][0], arrays["pose_y"]
    if joints[0, 0] == -1 and (joints == -1).all():
        return None
    if not pose_m.any():
        raise SourceError(f"{path}: has a hand's joints and no hand pose; copy it again", path=str(path))
    if not joints[:, 2].min() > 0:
        raise SourceError(f"{path}: joints lie behind the camera; copy it again", path=str(path))
    valid = np.asarray(pose_y.reshape(objects, 12).any(axis=1))
    if not valid.all():
        pose_y = np.where(valid[:, None, None], pose_y, _IDENTITY[:3])
    if not is_rotation(pose_y[:, :, :3]):
        raise SourceError(f"{path}: an object's pose is not a rotation and a translation", path=str(path))
    T_cam_obj = np.empty((objects, 4, 4))
    T_cam_obj[:, :3], T_cam_obj[:, 3] = pose_y, _IDENTITY[3]
    return FrameLabel(joints, arrays["joint_2d"][0], pose_m, T_cam_obj, valid)


def read_hand_frames(path: str | Path, frames: int) -> Bool[np.ndarray, "f"]:
    """Which frames of a sequence have a hand, from its `pose.npz`: a hand's 51 values are all 0 where it has none."""
    pose_m = read_npz(path, {"pose_m": (frames, 1, 51)})["pose_m"]
    return np.asarray(np.any(pose_m != 0, axis=(1, 2)))


def read_jpeg(path: str | Path) -> bytes:
    """A colour image's bytes as they are. Raises SourceError for a file that is no whole JPEG."""
    data = read_bytes(path)
    if not data.startswith(b"\xff\xd8") or b"\xff\xd9" not in data[-64:]:
        raise SourceError(f"{path}: not a whole JPEG file ({len(data)} bytes); copy it again", path=str(path))
    return data


def read_depth_png(path: str | Path) -> bytes:
    """A depth image's bytes as they are. Raises SourceError for a file that is no whole 640x480 PNG of 16 bits."""
    data = read_bytes(path)
    if not data.startswith(_DEPTH_HEADER) or b"IEND" not in data[-64:]:
        raise SourceError(f"{path}: not a whole 640x480 depth image of 16 bits; copy it again", path=str(path))
    return data


def read_depth_m(path: str | Path) -> Float[np.ndarray, "480 640"]:
    """Depth (z) aligned to the colour image, metres; 0 where nothing was measured."""
    raw = cv2.imdecode(np.frombuffer(read_depth_png(path), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.shape != (HEIGHT, WIDTH):
        raise SourceError(f"{path}: the depth image does not decode; copy it again", path=str(path))
    return np.where(np.isin(raw, _NO_DEPTH), np.float32(0), raw.astype(np.float32) / np.float32(1000))


def read_seg(path: str | Path) -> UInt8[np.ndarray, "480 640"]:
    """The dataset's own ids: 0 background, 1 to 21 the YCB class, 255 the hand."""
    return read_npz(path, {"seg": (HEIGHT, WIDTH)})["seg"].astype(np.uint8)
