"""Condition images of a scene for image generators: metric depth, segmentation and a keypoint drawing."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from pam_aug.errors import SchemaError
from pam_aug.render.rasterizer import Raster, rasterize

_STEP = 35
_DISC_RADIUS_PX = 3
_LIMB_LENGTH_PX = (5.0, 150.0)  # limbs outside this open range are not drawn


class KeypointLook(NamedTuple):
    """How a hand's skeleton is drawn: base colours (RGB, a row per finger; joints and limbs add 35 per step towards the
    tip), the limbs' half widths for the thumb and the other fingers, and whether a sum above 255 wraps or stays there.
    The tip discs take the next finger's row, so there are six."""

    rgb: tuple[tuple[int, int, int], ...]
    half_width_px: tuple[int, int]
    wraps: bool


_PAM_RGB = ((139, 53, 255), (0, 56, 255), (43, 140, 237), (37, 168, 36), (147, 147, 0), (70, 17, 145))
DEXYCB_KEYPOINTS = KeypointLook(_PAM_RGB, (6, 3), wraps=False)
"""PAM's drawing for DexYCB, both sides."""
OAKINK2_LEFT_KEYPOINTS = KeypointLook(_PAM_RGB, (4, 2), wraps=True)
OAKINK2_RIGHT_KEYPOINTS = KeypointLook(
    ((255, 0, 0), (255, 85, 85), (255, 170, 170), (255, 255, 255), (200, 200, 200), (150, 150, 150)), (4, 2), wraps=True
)
"""PAM's drawings for OAKINK2; its colours wrap at 256, and its weights have seen them so."""


class Part(NamedTuple):
    """One mesh of a scene, in the OpenCV camera frame, with its segmentation id."""

    verts_cam_m: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    seg_id: int


class Conditions(NamedTuple):
    """The condition images of one frame."""

    depth_m: Float[np.ndarray, "h w"]  # z in metres, float32, 0 = background
    seg: UInt8[np.ndarray, "h w"]  # 0 background, 1 right hand, 2 left hand, 3 forearm, 16 and up objects
    keypoints: UInt8[np.ndarray, "h w 3"]  # RGB on black


def merge_parts(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All parts as one mesh: vertices (V,3) float64, faces (F,3) int32, and each face's part number (F,) int32."""
    starts = np.cumsum([0, *(len(p.verts_cam_m) for p in parts)])
    verts = np.concatenate([np.zeros((0, 3)), *(np.asarray(p.verts_cam_m, np.float64) for p in parts)])
    faces = [np.asarray(p.faces, np.int32) + np.int32(s) for p, s in zip(parts, starts)]
    which = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p.faces) for p in parts])
    return verts, np.concatenate([np.zeros((0, 3), np.int32), *faces]), which


def segment(raster: Raster, part_of_face: Int[np.ndarray, "f"], parts: Sequence[Part]) -> UInt8[np.ndarray, "h w"]:
    """The segmentation id that each pixel sees."""
    ids = np.array([0, *(p.seg_id for p in parts)])
    if ids.max() > 255 or ids.min() < 0:
        raise SchemaError(f"segment: segmentation ids must fit 8 bits, got {ids[1:].tolist()}.")
    of_face = np.append(ids[1:][part_of_face], 0).astype(np.uint8)  # face -1 reads the last entry
    return of_face[raster.face]


def render_conditions(
    parts: Sequence[Part],
    hands: Sequence[tuple[Float[np.ndarray, "21 2"], Float[np.ndarray, "21"]]],
    K_px: Float[np.ndarray, "3 3"],
    width: int,
    height: int,
) -> Conditions:
    """Depth and segmentation of the parts, and the keypoint drawing of the hands.

    Each hand is given as its joints in pixels and their depths in metres.
    """
    verts, faces, which = merge_parts(parts)
    raster = rasterize(verts, faces, K_px, width, height)
    return Conditions(raster.depth_m, segment(raster, which, parts), draw_keypoints(hands, width, height))


def draw_keypoints(
    hands: Sequence[tuple[Float[np.ndarray, "21 2"], Float[np.ndarray, "21"]]],
    width: int,
    height: int,
    looks: Sequence[KeypointLook] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Hand skeletons on black in the looks that PAM's models were trained on (RGB), one of `looks` per hand.

    Discs of radius 3 at the joints, then an elliptic limb per bone; limbs run from the wrist to the little finger's
    tip, or backwards where the wrist is nearer than that tip. A farther hand is drawn below a nearer one.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    drawn = list(zip(hands, looks or [DEXYCB_KEYPOINTS] * len(hands), strict=True))
    for (joints_px, depth_m), look in sorted(drawn, key=lambda pair: -float(np.mean(pair[0][1]))):
        xy = np.rint(np.asarray(joints_px, np.float64)).clip(-32000, 32000).astype(int)  # OpenCV takes 16 bits safely
        for j in range(21):
            cv2.circle(canvas, (int(xy[j, 0]), int(xy[j, 1])), _DISC_RADIUS_PX, _colour(j, look), -1)
        order = range(20) if depth_m[0] >= depth_m[20] else reversed(range(20))
        for limb in order:
            start = xy[0 if limb % 4 == 0 else limb]
            delta = xy[limb + 1] - start
            length = float(np.hypot(*delta))
            if not _LIMB_LENGTH_PX[0] < length < _LIMB_LENGTH_PX[1]:
                continue
            middle = (start + xy[limb + 1]) / 2.0
            half_width = look.half_width_px[0 if limb < 4 else 1]
            angle = int(np.degrees(np.arctan2(delta[1], delta[0])))
            outline = cv2.ellipse2Poly(
                (int(middle[0]), int(middle[1])), (int(length / 2), half_width), angle, 0, 360, 1
            )
            cv2.fillConvexPoly(canvas, np.asarray(outline, np.int32), _colour(limb, look))
    return canvas


def _colour(index: int, look: KeypointLook) -> tuple[int, int, int]:
    sums = np.array(look.rgb[index // 4]) + _STEP * (index % 4)
    r, g, b = (sums % 256 if look.wraps else np.minimum(sums, 255)).tolist()
    return r, g, b


def depth_png(depth_m: Float[np.ndarray, "h w"]) -> bytes:
    """Depth as a 16-bit PNG in whole millimetres, 0 = nothing; what is beyond 65.535 m is stored as 65535."""
    mm = np.clip(np.rint(np.asarray(depth_m, np.float64) * 1000.0), 0, 65535).astype(np.uint16)
    return cv2.imencode(".png", mm)[1].tobytes()


def seg_png(seg: UInt8[np.ndarray, "h w"]) -> bytes:
    """Segmentation ids as an 8-bit grey PNG."""
    return cv2.imencode(".png", seg)[1].tobytes()


def depth_to_inferno(
    depth_m: Float[np.ndarray, "h w"], near_far_m: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Depth in the look of an inferno-coloured disparity map (RGB): near is bright yellow, far dark, nothing black.

    `near_far_m` fixes the range, so that all frames of a clip share one; without it the frame's own 1st and 99th
    percentiles are used.
    """
    seen = depth_m > 0
    out = np.zeros((*depth_m.shape, 3), np.uint8)
    if not seen.any():
        return out
    near, far = near_far_m or tuple(np.percentile(depth_m[seen], (1.0, 99.0)))
    lo, hi = 1.0 / max(far, 1e-6), 1.0 / max(near, 1e-6)
    disparity = 1.0 / depth_m[seen]
    # A flat scene has no range: it gets the middle colour. The floor keeps foreground apart from the black of nothing.
    level = (disparity - lo) / (hi - lo) if hi - lo > 1e-9 else np.full(disparity.shape, 0.5)
    grey = np.rint(np.clip(level, 0.1, 1.0) * 255).astype(np.uint8)
    out[seen] = cv2.applyColorMap(grey.reshape(-1, 1), cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    return out
