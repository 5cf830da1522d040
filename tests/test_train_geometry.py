"""Geometric augmentation: what is drawn moves image positions, points and pixels alike."""

import numpy as np
import pytest
import torch

from pam_aug.estimators.base import tight_box
from pam_aug.estimators.crop import perspective_crop
from pam_aug.geometry import project
from pam_aug.train.augment_geometry import Draws, draw, make_views, warp
from pam_aug.train.mixed_config import GeometryConfig

SIZE = 96
CENTRE = (SIZE - 1) / 2


def hands(n: int = 12, seed: int = 0):
    """(K, joints in the camera's frame, joints in pixels, side): off the axis, unequal focal lengths, a skew."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.05, (n, 21, 3)) + rng.uniform([-0.25, -0.2, 0.5], [0.25, 0.2, 0.9], (n, 1, 3))
    K = np.stack([[[600 + 60 * k, 1.5, 320], [0, 600 - 45 * k, 240], [0, 0, 1]] for k in rng.uniform(-1, 1, n)])
    return K, joints, project(joints, K), np.arange(n) % 2 == 1


def views_of(K, px, left, config, seed=5, enlarge=1.3):
    return make_views(K, px, draw(config, left, [seed + i for i in range(len(K))]), SIZE, enlarge, CENTRE)


def reprojected(views, joints):
    """Where the labelled points of the view's frame fall, by its own intrinsics."""
    return project(np.einsum("nij,nkj->nki", views.turned, joints), views.K_view_px)


SINGLE = {
    "nothing": None,
    "rotation": GeometryConfig(turn_deg=180, scale=[1, 1], shift=0, flip=0),
    "scale": GeometryConfig(turn_deg=0, scale=[0.6, 1.6], shift=0, flip=0),
    "translation": GeometryConfig(turn_deg=0, scale=[1, 1], shift=0.3, flip=0),
    "flip": GeometryConfig(turn_deg=0, scale=[1, 1], shift=0, flip=1),
    "everything": GeometryConfig(),
}


@pytest.mark.parametrize("name", SINGLE)
def test_labels_agree_in_two_and_three_dimensions(name):
    K, joints, px, left = hands()
    views = views_of(K, px, left, SINGLE[name])
    assert views.valid.all()
    assert np.abs(views.points(px) - reprojected(views, joints)).max() < 1e-6  # the bar is 0.01 px


@pytest.mark.parametrize("name", ["nothing", "everything"])
def test_pixels_follow_their_labels(name):
    """Images that hold their own coordinates, which bilinear interpolation keeps exactly."""
    K, _, px, left = hands(6)
    px = 100 + 0.1 * (px - 320)  # inside a small image
    K = np.diag([0.1, 0.1, 1.0]) @ K
    views = views_of(K, px, left, SINGLE[name])
    v, u = np.mgrid[0:200, 0:200].astype(np.float32)
    images = torch.from_numpy(np.stack([u, v, np.ones_like(u)], -1)).expand(6, 200, 200, 3)
    seen = warp(images, torch.from_numpy(views.H_px), SIZE).numpy()
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(1, -1, 2).repeat(6, 0)
    lifted = np.einsum("nij,nkj->nki", np.linalg.inv(views.H_px), np.dstack([grid, np.ones(grid.shape[:2])]))
    wanted = (lifted[..., :2] / lifted[..., 2:]).reshape(6, SIZE, SIZE, 2)
    inside = seen[..., 2] > 0.9999
    assert inside.mean() > 0.9
    assert np.abs(seen[..., :2] - wanted)[inside].max() < 0.01


def test_without_a_draw_the_view_is_the_estimators():
    K, _, px, left = hands()
    views = views_of(K, px, left, None)
    for i in range(len(K)):
        crop = perspective_crop(K[i], tight_box(px[i]), SIZE, flip=bool(left[i]), enlarge=1.3)
        assert views.points(px)[i] == pytest.approx(crop.points(px[i]), abs=1e-6)


def test_flip_changes_the_handedness_that_is_shown():
    left = np.arange(40) % 2 == 1
    assert draw(None, left, list(range(40))).mirror.tolist() == left.tolist()  # all are shown as right hands
    config = GeometryConfig(flip=0.5)
    shown_left = draw(config, left, list(range(40))).mirror ^ left
    assert 8 < shown_left.sum() < 32
    assert not (draw(GeometryConfig(flip=0), left, list(range(40))).mirror ^ left).any()


def test_a_draw_is_the_hands_own():
    left = np.array([False, True, False])
    together = draw(GeometryConfig(), left, [7, 8, 9])
    alone = draw(GeometryConfig(), left[1:2], [8])
    assert together.turn_deg[1] == alone.turn_deg[0]
    assert together.shift[1].tolist() == alone.shift[0].tolist()


def test_hands_that_make_no_view_are_marked():
    K, _, px, left = hands(3)
    px[1] = np.nan
    px[2] += 1e7  # at a right angle to the camera's axis and beyond
    views = views_of(K, px, left, None)
    assert views.valid[0]
    assert not views.valid[1]
    assert np.isfinite(views.H_px).all()


# ---------------------------------------------------- traps of the published pipeline, each avoided, each with its test


def test_trap_crop_centre_on_the_principal_point():
    """There: 0/0, matrices of NaN."""
    K, _, px, left = hands(1)
    px = px - (px.min(1) + px.max(1))[:, None] / 2 + [320, 240]
    views = views_of(K, px, left, None)
    assert views.valid.all()
    assert np.abs(views.R_view_cam[0] - np.eye(3)).max() < 1e-12


def test_trap_unequal_focal_lengths_under_rotation():
    """There: 13.5 px between the label's two and three dimensions at 20 %."""
    K, joints, _, left = hands()
    K[:, 1, 1] = 0.8 * K[:, 0, 0]
    px = project(joints, K)
    views = views_of(K, px, left, SINGLE["rotation"])
    assert np.abs(views.points(px) - reprojected(views, joints)).max() < 0.01


@pytest.mark.parametrize("centre", [(SIZE - 1) / 2, SIZE / 2])
def test_trap_flip_off_by_a_pixel(centre):
    """There: points mirrored about (W-1)/2, intrinsics about W/2. Here about the axis, whichever form is chosen."""
    K, joints, px, left = hands()
    draws = draw(SINGLE["flip"], left, list(range(len(K))))
    views = make_views(K, px, draws, SIZE, 1.3, centre)
    assert np.abs(views.points(px) - reprojected(views, joints)).max() < 1e-6


def test_trap_degrees_taken_for_radians():
    K, _, px, _ = hands(1)
    still, turned = (
        make_views(K, px, Draws(np.array([a]), np.ones(1), np.zeros((1, 2)), np.array([False])), SIZE, 1.3, CENTRE)
        for a in (0.0, 90.0)
    )
    before, after = (v.points(px)[0] - CENTRE for v in (still, turned))
    assert after == pytest.approx(np.stack([-before[:, 1], before[:, 0]], 1), abs=1e-6)
    some = draw(GeometryConfig(turn_deg=30), np.zeros(200, bool), list(range(200))).turn_deg
    assert 25 < np.abs(some).max() <= 30
