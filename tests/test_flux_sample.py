"""The released OAKINK2 sample's condition images beside ours. Its videos are lossy: colours hold to a few levels.

Sound in it are the colours of masks, keypoints and depth, the limbs' widths, and that depth is cut by the mask. Its
masks are splatted points, with holes that ours do not have; its normals and tracks are copies of its depth.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("diffusers")

from pam_aug.generate.flux.looks import PALETTE, seg_image
from pam_aug.render.conditions import (
    OAKINK2_LEFT_KEYPOINTS,
    OAKINK2_RIGHT_KEYPOINTS,
    depth_to_inferno,
    draw_keypoints,
)

REAL = os.environ.get("PAM_AUG_REAL_DATA", "")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL, reason="PAM_AUG_REAL_DATA is not set"),
]

# What the clip shows, as rows of the palette: 20 + the dataset's label. The hand's is 1 on both sides.
HAND, PLATE, MUG, SPOON = 21, 121, 39, 92
LEVELS = 4  # a codec's error of a large patch's median
FRAMES = (0, 24)


def frame(name: str, number: int) -> np.ndarray:
    """One frame of the sample, RGB."""
    video = cv2.VideoCapture(str(Path(REAL) / "noncommercial/pam_oakink2_val" / f"val_{name}.mp4"))
    video.set(cv2.CAP_PROP_POS_FRAMES, number)
    found, bgr = video.read()
    assert found
    assert bgr.shape == (480, 720, 3)
    return np.ascontiguousarray(bgr[:, :, ::-1])


def smooth(rgb: np.ndarray, size: int, levels: int) -> np.ndarray:
    """Pixels inside patches of one colour: at their borders a codec mixes."""
    kernel = np.ones((size, size), np.uint8)
    return (cv2.dilate(rgb, kernel).astype(int) - cv2.erode(rgb, kernel)).max(2) <= levels


def parts(mask: np.ndarray) -> np.ndarray:
    """Each pixel's row of the palette among those that the clip shows; -1 outside patches."""
    rows = np.array([150, HAND, PLATE, MUG, SPOON])
    apart = np.abs(mask[:, :, None].astype(int) - PALETTE[rows].astype(int)).max(-1)
    return np.where(smooth(mask, 5, 24), rows[apart.argmin(-1)], -1)


@pytest.mark.parametrize("number", FRAMES)
def test_masks_have_our_colours(number):
    mask = frame("seg_mask", number)
    rows = parts(mask)
    ids = np.select([rows == HAND, rows == PLATE, rows == MUG, rows == SPOON], [1, 16, 17, 18], 0).astype(np.uint8)
    labels = {16: PLATE - HAND, 17: MUG - HAND, 18: SPOON - HAND}
    ours = seg_image(ids, labels, "oakink2")
    off = np.abs(ours.astype(int) - mask).max(-1)
    for seg_id, pixels in ((1, 6000), (16, 8000), (17, 6000), (18, 1000), (0, 200_000)):
        part = (ids == seg_id) & (rows >= 0)
        assert part.sum() > pixels
        assert np.abs(np.median(mask[part], 0) - ours[part][0]).max() <= LEVELS + 1
        assert np.percentile(off[part], 95) <= 14
    hand = mask[ids == 1].astype(int)
    dexycb = seg_image(np.array([[1]], np.uint8), {}, "dexycb")[0, 0]
    assert np.abs(hand - dexycb).max(-1).min() > 100  # the other dataset's hand is another colour


@pytest.mark.parametrize("number", FRAMES)
def test_depth_is_inferno_cut_by_the_mask(number):
    mask, depth = frame("seg_mask", number), frame("depth", number)
    seen, lit = mask.max(2) > 40, depth.max(2) > 40
    assert (seen & lit).sum() > 0.97 * (seen | lit).sum()
    inside = smooth(mask, 5, 24) & seen & lit
    # The level of each pixel, and from it a depth whose picture ours is to be.
    scale = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].astype(int)
    level = np.abs(depth[inside][:, None].astype(int) - scale).sum(-1).argmin(-1)
    depth_m = np.zeros(depth.shape[:2])
    depth_m[inside] = 1.0 / (0.5 + 1.5 * level / 255.0)
    ours = depth_to_inferno(depth_m, (0.5, 2.0))
    off = np.abs(ours.astype(int) - depth).sum(-1)[inside]
    assert np.median(off) <= 9
    assert np.percentile(off, 90) <= 14
    assert not ours[~inside].any()
    rows = parts(mask)
    nearest = {row: np.median(depth_m[inside & (rows == row)]) for row in (HAND, PLATE, MUG, SPOON)}
    assert min(nearest, key=nearest.__getitem__) == HAND  # near is bright: a hand over the table


def colours(look) -> np.ndarray:
    """Every colour that our drawing of a spread hand has, black left out."""
    joints = np.zeros((21, 2))
    joints[0] = 300, 500
    for finger in range(5):
        turn = np.deg2rad(-150 + 30 * finger)
        for step in range(4):
            joints[1 + 4 * finger + step] = joints[0] + (100 + 60 * step) * np.array([np.cos(turn), np.sin(turn)])
    drawn = draw_keypoints([(joints, np.full(21, 0.5))], 640, 520, [look])
    found = np.unique(drawn.reshape(-1, 3), axis=0)
    return found[found.any(1)].astype(int)


@pytest.mark.parametrize("number", FRAMES)
def test_keypoints_have_our_colours_and_widths(number):
    drawn = frame("hand", number)
    inside = smooth(drawn, 3, 30) & (drawn.max(2) > 30)
    assert inside.sum() > 500

    def off(look) -> np.ndarray:
        return np.abs(drawn[inside][:, None].astype(int) - colours(look)).max(-1).min(-1)

    assert np.median(off(OAKINK2_RIGHT_KEYPOINTS)) <= 6
    assert np.percentile(off(OAKINK2_RIGHT_KEYPOINTS), 90) <= 18
    assert np.median(off(OAKINK2_LEFT_KEYPOINTS)) > 20
    right = OAKINK2_RIGHT_KEYPOINTS
    for finger, colour in ((0, right.rgb[0]), (1, right.rgb[1])):
        ends, across = limb(drawn, colour)
        ours = {}
        for wider in (0, 1):
            look = right._replace(half_width_px=tuple(width + wider for width in right.half_width_px))
            joints = np.repeat(ends[:1], 21, 0)
            joints[1 + 4 * finger : 5 + 4 * finger] = ends[1]
            alone = draw_keypoints([(joints, np.full(21, 0.5))], 848, 480, [look])
            ours[wider] = limb(cv2.resize(alone, (720, 480), interpolation=cv2.INTER_LINEAR), colour)[1]
        assert abs(across - ours[0]) < 1.0
        assert abs(across - ours[0]) < abs(across - ours[1])


def limb(drawn: np.ndarray, colour: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """Both ends (2,2) and the width of the largest patch of a colour, in pixels of the drawing's own 848 columns."""
    near = (np.abs(drawn.astype(int) - colour).max(2) < 60).astype(np.uint8)
    _, names, stats, _ = cv2.connectedComponentsWithStats(near)
    y, x = np.nonzero(names == 1 + stats[1:, cv2.CC_STAT_AREA].argmax())
    points = np.stack([x * 848 / 720, y], 1)
    _, _, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    along, across = ((points - points.mean(0)) @ axes.T).T
    return points[[along.argmin(), along.argmax()]], float(np.ptp(across)) + 1
