"""Geometric augmentation of a batch, exact in two and three dimensions.

Every view is one that a turned pinhole camera sees: it looks at the hand, moved by the shift, turned in its plane and
zoomed, and is mirrored last. So images follow by a homography, image positions by the same one, and root-relative
points by the same rotation: rotation, scale, translation, perspective and flip are all exact. What a square crop around
an off-centre hand gets wrong (it shows the hand as from straight ahead, while the label says where the camera looked)
does not arise. Unequal focal lengths and a hand right at the principal point need no special case.

It is `estimators.crop.perspective_crop` over a batch, with the in-plane turn in degrees.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from pam_aug.train.mixed_config import GeometryConfig

__all__ = ["Draws", "Views", "draw", "make_views", "warp"]


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What is drawn for each of n hands: `turn_deg`, `scale` (n,), `shift` (n,2) in box sides, `mirror` (n,)."""

    turn_deg: Float[np.ndarray, "n"]
    scale: Float[np.ndarray, "n"]
    shift: Float[np.ndarray, "n 2"]
    mirror: Bool[np.ndarray, "n"]


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """`H_px` (n,3,3) takes image pixels to view pixels; `R_view_cam` (n,3,3) turns camera points into the unmirrored
    view's axes, `K_view_px` (n,3,3) are its intrinsics; `flip` (n,) says that x is negated after that. `valid` (n,) is
    False for a hand that makes no view (a box that is not finite or reaches behind the camera); its view is the middle
    of the image."""

    H_px: Float[np.ndarray, "n 3 3"]
    R_view_cam: Float[np.ndarray, "n 3 3"]
    K_view_px: Float[np.ndarray, "n 3 3"]
    flip: Bool[np.ndarray, "n"]
    valid: Bool[np.ndarray, "n"]

    def points(self, px: Float[np.ndarray, "n k 2"]) -> Float[np.ndarray, "n k 2"]:
        """Image pixels in view pixels."""
        lifted = np.einsum("nij,nkj->nki", self.H_px[:, :, :2], px) + self.H_px[:, None, :, 2]
        return lifted[..., :2] / np.where(np.abs(lifted[..., 2:]) < 1e-9, 1e-9, lifted[..., 2:])

    @property
    def turned(self) -> Float[np.ndarray, "n 3 3"]:
        """The matrix that takes camera-frame vectors to the view's axes, mirrored where the view is."""
        sign = np.ones((len(self.flip), 3, 1))
        sign[self.flip, 0] = -1.0
        return sign * self.R_view_cam


def draw(config: GeometryConfig | None, left: Bool[np.ndarray, "n"], seeds: list[int]) -> Draws:
    """One draw per hand, each from its own seed, so that a hand's view does not depend on its neighbours.

    Without `config` nothing is drawn: left hands are mirrored, nothing else. A mirrored hand keeps the right hand's
    vertex order; with `flip` half of the hands are shown as left ones, whichever they are.
    """
    n = len(left)
    if config is None:
        return Draws(np.zeros(n), np.ones(n), np.zeros((n, 2)), left.copy())
    numbers = np.stack([np.random.default_rng(seed).random(5) for seed in seeds]) if n else np.zeros((0, 5))
    low, high = config.scale
    return Draws(
        turn_deg=config.turn_deg * (2.0 * numbers[:, 0] - 1.0),
        scale=low + (high - low) * numbers[:, 1],
        shift=config.shift * (2.0 * numbers[:, 2:4] - 1.0),
        mirror=left ^ (numbers[:, 4] < config.flip),
    )


def make_views(
    K_px: Float[np.ndarray, "n 3 3"],
    joints_px: Float[np.ndarray, "n 21 2"],
    draws: Draws,
    size_px: int,
    enlarge: float,
    centre_px: float,
) -> Views:
    """The views of hands whose boxes are their joints'. `enlarge` is the side of an unscaled view over the box's longer
    side; `centre_px` is where the view's axis meets it: (size - 1) / 2, in the published SimpleHand's form size / 2.
    """
    K, points = np.asarray(K_px, np.float64), np.asarray(joints_px, np.float64)
    n = len(K)
    valid = np.asarray(np.isfinite(points).all(axis=(1, 2)) & np.isfinite(K).all(axis=(1, 2)))
    K = np.where(valid[:, None, None], K, np.eye(3))
    points = np.where(valid[:, None, None], points, np.zeros((n, 1, 2)))
    low, high = points.min(1), points.max(1)
    side = np.maximum((high - low).max(1), 1.0)
    middle = (low + high) / 2
    centre = middle + side[:, None] * draws.shift
    inverse = np.linalg.inv(K)
    R = _look_at(_rays(inverse, centre[:, None])[:, 0])
    half = side[:, None] / 2
    offsets = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    square = middle[:, None] + half[:, :, None] * offsets
    seen = np.einsum("nij,nkj->nki", R, _rays(inverse, square))
    valid &= (seen[..., 2] > 1e-6).all(1)
    depth = np.where(seen[..., 2] > 1e-6, seen[..., 2], 1.0)
    x, y = seen[..., 0] / depth, seen[..., 1] / depth
    wide = np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0])
    tall = np.hypot(x[:, 3] - x[:, 2], y[:, 3] - y[:, 2])
    focal = size_px / (enlarge * draws.scale * np.maximum(np.maximum(wide, tall), 1e-9))
    K_view = np.zeros((n, 3, 3))
    K_view[:, 0, 0] = K_view[:, 1, 1] = focal
    K_view[:, :2, 2], K_view[:, 2, 2] = centre_px, 1.0
    turn = np.deg2rad(draws.turn_deg)
    in_plane = np.zeros((n, 3, 3))
    in_plane[:, 0, 0] = in_plane[:, 1, 1] = np.cos(turn)
    in_plane[:, 1, 0], in_plane[:, 2, 2] = np.sin(turn), 1.0
    in_plane[:, 0, 1] = -in_plane[:, 1, 0]
    R = in_plane @ R
    H = K_view @ R @ inverse
    # About the view's own axis, so that intrinsics of a mirrored view are those of an unmirrored one.
    H[draws.mirror] = np.array([[-1.0, 0.0, 2.0 * centre_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ H[draws.mirror]
    return Views(H, R, K_view, draws.mirror, valid)


def warp(images: Tensor, H_px: Tensor, size_px: int) -> Float[Tensor, "n s s 3"]:
    """The views of images (n,h,w,3) uint8 under homographies (n,3,3), bilinear, 0 to 255; black outside the image."""
    from kornia.geometry.transform import warp_perspective

    x: Any = images.permute(0, 3, 1, 2).float()
    seen = warp_perspective(x, H_px.float(), (size_px, size_px), align_corners=True)  # pixel centres at integers
    return seen.permute(0, 2, 3, 1)


def _rays(inverse: np.ndarray, px: Float[np.ndarray, "n k 2"]) -> Float[np.ndarray, "n k 3"]:
    return np.einsum("nij,nkj->nki", inverse[:, :, :2], px) + inverse[:, None, :, 2]


def _look_at(rays: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """The smallest rotations that take rays (z > 0) to the z axis; defined at the axis itself."""
    a = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    skew = np.zeros((len(a), 3, 3))  # of a × z = (a_y, -a_x, 0)
    skew[:, 0, 2], skew[:, 2, 0] = -a[:, 0], a[:, 0]
    skew[:, 1, 2], skew[:, 2, 1] = -a[:, 1], a[:, 1]
    return np.eye(3) + skew + skew @ skew / (1.0 + a[:, 2])[:, None, None]
