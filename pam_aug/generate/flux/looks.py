"""Condition images in the looks that PAM's weights were trained on, and as the tensor that the ControlNets read.

Two looks, as the two datasets' own loaders draw them: "dexycb" (also the simulator's) and "oakink2".
"""

import hashlib
import re
from collections.abc import Mapping

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from pam_aug.errors import ConfigError
from pam_aug.render.conditions import (
    DEXYCB_KEYPOINTS,
    OAKINK2_LEFT_KEYPOINTS,
    OAKINK2_RIGHT_KEYPOINTS,
    Conditions,
    depth_to_inferno,
    draw_keypoints,
)
from pam_aug.rollouts.scene import Scene
from pam_aug.schema import SEG_LEFT_HAND, SEG_RIGHT_HAND

__all__ = ["LOOKS", "PALETTE", "condition_images", "condition_tensor", "object_label", "seg_image", "stretch_back"]

LOOKS = ("dexycb", "oakink2")

# The 150 colours of ADE20K's classes in mmsegmentation's order, and black. PAM takes DexYCB's label ids as rows.
_ADE20K = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
PALETTE: UInt8[np.ndarray, "151 3"] = np.frombuffer(bytes.fromhex(_ADE20K) + b"\0\0\0", np.uint8).reshape(-1, 3)
"""Rows 0 to 149 are the colours, row 150 black."""

_HAND_ROW, _BLACK_ROW = 149, 150
_OAKINK_FIRST_ROW = 20
_YCB_NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 19, 21, 24, 25, 35, 36, 37, 40, 51, 52, 61)
_YCB_NAME = re.compile(r"(?:^|[^0-9])0?(\d{2})_[a-z]")


def object_label(name: str) -> int:
    """DexYCB's label id, 1 to 21, of an object: a YCB model by the number in its name, others by a hash of the name."""
    found = _YCB_NAME.search(name.lower())
    if found and int(found[1]) in _YCB_NUMBERS:
        return _YCB_NUMBERS.index(int(found[1])) + 1
    return hashlib.blake2b(name.encode(), digest_size=4).digest()[0] % len(_YCB_NUMBERS) + 1


def seg_image(
    seg: UInt8[np.ndarray, "h w"], labels: Mapping[int, int], look: str = "dexycb"
) -> UInt8[np.ndarray, "h w 3"]:
    """Segmentation in colours. `seg` has this library's ids, `labels` maps object ids to DexYCB's (`object_label`).

    Forearms and whatever has no label are black: the datasets do not segment them.
    """
    rows = np.full(256, _BLACK_ROW)
    hand = _HAND_ROW if look == "dexycb" else _OAKINK_FIRST_ROW + 1
    rows[[SEG_RIGHT_HAND, SEG_LEFT_HAND]] = hand
    for seg_id, label in labels.items():
        rows[seg_id] = label if look == "dexycb" else _OAKINK_FIRST_ROW + 1 + label
    return PALETTE[rows[seg]]


def condition_images(scene: Scene, conditions: Conditions, look: str = "dexycb") -> dict[str, np.ndarray]:
    """ "depth", "keypoints" and "seg" of a scene, RGB uint8 at the camera's size. Raises ConfigError for another look.

    Depth is inferno-coloured over hand and objects and black elsewhere; PAM's own depth is estimated from the image
    and its range is the whole frame's, which a rendered scene does not have.
    """
    if look not in LOOKS:
        raise ConfigError(f"look {look!r}: choose one of {', '.join(LOOKS)}", look=look)
    labels = {o.seg_id: object_label(o.mesh.name) for o in scene.objects}
    colours = seg_image(conditions.seg, labels, look)
    foreground = np.isin(conditions.seg, [SEG_RIGHT_HAND, SEG_LEFT_HAND, *labels])
    depth = depth_to_inferno(np.where(foreground, conditions.depth_m, 0.0))
    return {"depth": depth, "keypoints": _keypoints(scene, look), "seg": colours}


def _keypoints(scene: Scene, look: str) -> UInt8[np.ndarray, "h w 3"]:
    """The skeletons as the appearance model's loader draws them: limbs always from the wrist on, it knows no depths."""
    sample = scene.sample
    hands = [(hand.joints_px, np.full(21, float(np.mean(hand.joints_cam_m[:, 2])))) for hand in sample.hands]
    sides = {"right": OAKINK2_RIGHT_KEYPOINTS, "left": OAKINK2_LEFT_KEYPOINTS}
    looks = [DEXYCB_KEYPOINTS if look == "dexycb" else sides[hand.side] for hand in sample.hands]
    return draw_keypoints(hands, sample.camera.width, sample.camera.height, looks)


def condition_tensor(
    images: Mapping[str, UInt8[np.ndarray, "h w 3"]], width: int, height: int
) -> Float[Tensor, "1 12 height width"]:
    """The slots of `controlnet.CONDITIONS` in [-1, 1], stretched to a size without crop or border.

    Keypoints and segmentation by nearest neighbour, depth and normals bilinearly with antialiasing; what is absent is
    -1. Depth that the stretch blurs into the background is cut by the segmentation again.
    """
    from pam_aug.generate.flux.controlnet import CONDITIONS

    out = torch.full((1, 12, height, width), -1.0)
    for slot, name in enumerate(CONDITIONS):
        if name not in images:
            continue
        pixels = torch.from_numpy(np.ascontiguousarray(images[name])).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        if pixels.shape[2:] != (height, width):
            size = (height, width)
            if name in ("keypoints", "seg"):
                pixels = functional.interpolate(pixels, size, mode="nearest")
            else:
                pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        out[:, 3 * slot : 3 * slot + 3] = pixels
    if "depth" in images and "seg" in images:
        empty = (out[:, 9:12] == -1.0).all(1, keepdim=True)
        out[:, :3] = torch.where(empty, -1.0, out[:, :3])
    return out


def stretch_back(rgb: UInt8[np.ndarray, "h w 3"], width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """An image at the scene's own size again, so that its labels hold as they are."""
    if rgb.shape[:2] == (height, width):
        return rgb
    smaller = width * height < rgb.shape[0] * rgb.shape[1]
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4)
