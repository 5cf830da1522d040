"""Sampled cameras keep their promises for any hand, and come out the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_aug.errors import ConfigError
from pam_aug.hand import load_open_hand
from pam_aug.rollouts.cameras import CameraRanges, look_at, sample_camera

HAND = load_open_hand("right")
VERTS = HAND.v_template.astype(np.float64)
JOINTS = np.concatenate([HAND.rest_joints_m, VERTS[[744, 320, 443, 554, 671]]])
JOINTS = JOINTS[[0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]]


def _project(camera, points):
    T = camera.T_world_cam.astype(np.float64)
    cam = (points - T[:3, 3]) @ T[:3, :3]
    return (cam @ camera.K_px.astype(np.float64).T)[:, :2] / cam[:, 2:], cam[:, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(256, 256), (320, 200), (120, 360)]))
def test_every_framed_point_is_in_view_and_fills_its_share(seed, size):
    ranges = CameraRanges(width=size[0], height=size[1], fill=(0.3, 0.6), elevation_deg=(-90, 90), roll_deg=(-180, 180))
    camera, hidden = sample_camera(np.random.default_rng(seed), VERTS, JOINTS, ranges)
    px, z = _project(camera, VERTS)
    assert (z > 0).all()
    assert (px >= 0).all()
    assert (px <= np.array(size) - 1).all()
    assert 0.29 < np.ptp(px, axis=0).max() / min(size) < 0.61
    assert hidden == 0.0


@given(st.integers(0, 10**6))
def test_the_same_state_gives_the_same_camera(seed):
    draws = [sample_camera(np.random.default_rng(seed), VERTS, JOINTS, CameraRanges())[0] for _ in range(2)]
    assert draws[0] == draws[1]


def test_elevation_azimuth_and_gravity_are_respected():
    ranges = CameraRanges(elevation_deg=(30, 40), azimuth_deg=(0, 90), roll_deg=(0, 0), off_centre=0.0, max_behind=1.0)
    middle = 0.5 * (VERTS.min(0) + VERTS.max(0))
    for seed in range(40):
        T = sample_camera(np.random.default_rng(seed), VERTS, JOINTS, ranges)[0].T_world_cam.astype(float)
        away = -T[:3, 2]
        assert 29.9 < np.degrees(np.arcsin(away[2])) < 40.1
        assert T[2, 0] == pytest.approx(0.0, abs=1e-6)  # the image's rows are level
        assert T[2, 1] < 0  # and its down points down
        assert np.linalg.norm(np.cross(middle - T[:3, 3], T[:3, 2])) < 0.02
        np.testing.assert_allclose(T[:3, :3].T @ T[:3, :3], np.eye(3), atol=1e-6)


def test_directions_are_uniform_on_the_sphere():
    ranges = CameraRanges(elevation_deg=(-90, 90), max_behind=1.0, off_centre=0.0)
    eyes = [sample_camera(np.random.default_rng(i), VERTS, JOINTS, ranges)[0].T_world_cam[:3, 2] for i in range(1500)]
    directions = -np.array(eyes, float)
    assert np.abs(directions.mean(0)).max() < 0.06
    np.testing.assert_allclose(np.cov(directions.T), np.eye(3) / 3, atol=0.04)


def test_views_into_the_wrist_and_behind_a_wall_are_refused():
    ranges = CameraRanges(elevation_deg=(-90, 90), max_behind=0.5, max_hidden=0.3, tries=40)
    wall = VERTS.min(0)[2] - 0.02
    quad = np.array([[-9, -9, wall], [9, -9, wall], [9, 9, wall], [-9, 9, wall]], float)
    blockers = (quad, np.array([[0, 1, 2], [0, 2, 3]]))
    forearm = (JOINTS[0] - JOINTS[9]) / np.linalg.norm(JOINTS[0] - JOINTS[9])
    below = 0
    for seed in range(60):
        camera, hidden = sample_camera(np.random.default_rng(seed), VERTS, JOINTS, ranges, blockers=blockers)
        eye = camera.T_world_cam[:3, 3].astype(float)
        toward = (eye - JOINTS[0]) / np.linalg.norm(eye - JOINTS[0])
        assert forearm @ toward < 0.5 + 1e-6
        assert hidden <= 0.3
        below += eye[2] < wall
    assert below == 0


def test_looking_straight_down_is_a_camera():
    T = look_at(np.array([0, 0, 1.0]), np.zeros(3), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(T[:3, 2], [0, 0, -1])
    assert np.linalg.det(T[:3, :3]) == pytest.approx(1.0)


def test_impossible_ranges_are_named():
    with pytest.raises(ConfigError, match="fill"):
        CameraRanges(fill=(0.8, 0.2))
    with pytest.raises(ConfigError, match="elevation_deg"):
        CameraRanges(elevation_deg=(0, 120))
