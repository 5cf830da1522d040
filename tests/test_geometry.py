"""Rotations, projection, crops, alignment: exact values and round trips."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from pam_aug.errors import SchemaError
from pam_aug.geometry import (
    axis_angle_to_matrix,
    crop_intrinsics,
    euler_to_matrix,
    flip_intrinsics,
    flip_points,
    invert_rigid,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    pa_mpjpe_mm,
    procrustes_align,
    project,
    quaternion_to_matrix,
    resize_intrinsics,
    resize_points,
    rigid_matrix,
    root_aligned_mpjpe_mm,
    square_crop,
    transform_points,
    unproject,
)

vectors = arrays(np.float64, 3, elements=st.floats(-10, 10, allow_subnormal=False))
K = np.array([[600.0, 0.0, 311.0], [0.0, 580.0, 247.5], [0.0, 0.0, 1.0]])


def random_points(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, 3))


@given(vectors)
def test_axis_angle_agrees_with_scipy_and_returns(v):
    R = axis_angle_to_matrix(v)
    np.testing.assert_allclose(R, Rotation.from_rotvec(v).as_matrix(), atol=1e-12)
    back = matrix_to_axis_angle(R)
    assert np.linalg.norm(back) <= np.pi + 1e-12
    np.testing.assert_allclose(axis_angle_to_matrix(back), R, atol=1e-12)


@given(vectors, st.floats(0, np.pi - 1e-6))
def test_angles_below_pi_return_exactly(v, angle):
    if np.linalg.norm(v) < 1e-3:
        v = np.array([0.0, 0.0, 1.0])
    v = v / np.linalg.norm(v) * angle
    np.testing.assert_allclose(matrix_to_axis_angle(axis_angle_to_matrix(v)), v, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1e-3, np.pi - 1e-9, np.pi])
@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.0, -0.8], [-0.48, 0.6, 0.64]])
def test_small_and_half_turns(angle, axis):
    v = angle * np.array(axis, float)
    back = matrix_to_axis_angle(axis_angle_to_matrix(v))
    # At pi exactly, v and -v are the same turn.
    error = min(np.abs(back - v).max(), np.abs(back + v).max() if angle > 3 else np.inf)
    assert error < 1e-9


def test_float32_half_turns_stay_accurate():
    v = random_points(0, 500)
    v *= (np.pi - np.geomspace(1e-6, 1e-2, 500)[:, None]) / np.linalg.norm(v, axis=1, keepdims=True)
    R = axis_angle_to_matrix(v.astype(np.float32))
    assert R.dtype == np.float32
    np.testing.assert_allclose(axis_angle_to_matrix(matrix_to_axis_angle(R)), R, atol=2e-6)


def test_torch_and_numpy_agree():
    v = random_points(1, 4, 5)
    R = axis_angle_to_matrix(torch.from_numpy(v))
    np.testing.assert_allclose(R.numpy(), axis_angle_to_matrix(v), atol=1e-14)
    np.testing.assert_allclose(matrix_to_axis_angle(R).numpy(), matrix_to_axis_angle(R.numpy()), atol=1e-15)
    T = rigid_matrix(R, torch.from_numpy(v))
    np.testing.assert_allclose(invert_rigid(T).numpy(), np.linalg.inv(T.numpy()), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-5, 0.7, np.pi - 1e-4])
def test_gradients_are_right_at_zero_and_near_pi(scale):
    v = torch.tensor([[0.48, -0.6, 0.64]], dtype=torch.float64) * scale
    v.requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (v,))
    assert torch.autograd.gradcheck(lambda x: matrix_to_axis_angle(axis_angle_to_matrix(x)), (v,))


@given(arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_quaternions_return_in_both_orders(q):
    unit = q / np.linalg.norm(q)
    for order, xyzw in (("wxyz", [1, 2, 3, 0]), ("xyzw", [0, 1, 2, 3])):
        R = quaternion_to_matrix(q, order)
        np.testing.assert_allclose(R, Rotation.from_quat(unit[xyzw]).as_matrix(), atol=1e-12)
        back = matrix_to_quaternion(R, order)
        assert min(np.abs(back - unit).max(), np.abs(back + unit).max()) < 1e-12


def test_euler_is_intrinsic_xyz():
    angles = random_points(2, 20)
    np.testing.assert_allclose(euler_to_matrix(angles), Rotation.from_euler("XYZ", angles).as_matrix(), atol=1e-12)


def test_rigid_transforms():
    T = rigid_matrix(axis_angle_to_matrix(random_points(3, 6)), random_points(4, 6))
    points = random_points(5, 6, 8)
    np.testing.assert_allclose(transform_points(invert_rigid(T), transform_points(T, points)), points, atol=1e-12)
    np.testing.assert_array_equal(T[:, 3], np.tile([0, 0, 0, 1], (6, 1)))


def test_project_known_point_and_behind_the_camera():
    points = np.array([[0.1, -0.2, 0.5], [0.1, 0.1, 0.0], [0.1, 0.1, -1.0]])
    px = project(points, K)
    np.testing.assert_allclose(px[0], [600 * 0.2 + 311, 580 * -0.4 + 247.5])
    assert np.isnan(px[1:]).all()
    visible = torch.tensor(points, requires_grad=True)
    project(visible, torch.from_numpy(K))[0].sum().backward()
    assert torch.isfinite(visible.grad).all()


@given(st.integers(0, 1000))
def test_unproject_inverts_project(seed):
    points = random_points(seed, 2, 7) + np.array([0, 0, 6])
    skewed = K + np.array([[0, 3.0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(unproject(project(points, skewed), points[..., 2], skewed), points, atol=1e-10)


def test_flip_of_scene_and_camera_is_flip_of_image():
    points = random_points(6, 9) + np.array([0, 0, 6])
    mirrored = project(points * [-1, 1, 1], flip_intrinsics(K, 640))
    np.testing.assert_allclose(mirrored, flip_points(project(points, K), 640), atol=1e-9)
    assert flip_intrinsics(K, 640)[0, 2] == 640 - 1 - 311.0
    np.testing.assert_array_equal(flip_intrinsics(flip_intrinsics(K, 640), 640), K)


def test_resize_convention():
    np.testing.assert_array_equal(resize_points(np.array([[0.0, 3.0]]), 2.0, 0.5), [[0.5, 1.25]])
    points = random_points(7, 9) + np.array([0, 0, 6])
    np.testing.assert_allclose(
        project(points, resize_intrinsics(K, 0.5, 1.7)), resize_points(project(points, K), 0.5, 1.7), atol=1e-9
    )


def test_crop_centres_the_box_and_moves_camera_and_points_alike():
    points = random_points(8, 21) * 0.05 + [0, 0, 0.6]
    px = project(points, K)
    crop = square_crop(px, 224, 1.5)
    low, high = px.min(0), px.max(0)
    np.testing.assert_allclose(crop.side_px, (high - low).max() * 1.5)
    np.testing.assert_allclose(crop.points(((low + high) / 2)[None])[0], [111.5, 111.5], atol=1e-9)
    np.testing.assert_allclose(project(points, crop.intrinsics(K)), crop.points(px), atol=1e-9)
    np.testing.assert_allclose(crop.points_to_image(crop.points(px)), px, atol=1e-9)
    np.testing.assert_allclose(crop.affine @ [*px[0], 1.0], crop.points(px)[0], atol=1e-9)
    K32 = torch.from_numpy(K).float()
    assert crop.intrinsics(K32).dtype == torch.float32


def test_crop_affine_is_what_opencv_wants():
    image = np.zeros((60, 80), np.float32)
    image[33, 41] = 1.0
    crop = square_crop(np.array([[31.0, 28.0], [47.0, 44.0]]), 32, 2.0)  # scale 1, centre (39, 36)
    assert crop.scale == 1.0
    warped = cv2.warpAffine(image, crop.affine, (32, 32), flags=cv2.INTER_LINEAR)
    v, u = np.unravel_index(np.arange(32 * 32), (32, 32))
    centroid = [(u * warped.ravel()).sum(), (v * warped.ravel()).sum()] / warped.sum()
    np.testing.assert_allclose(centroid, crop.points(np.array([[41.0, 33.0]]))[0], atol=0.02)
    # An integer cut is a slice.
    np.testing.assert_array_equal(crop_intrinsics(np.eye(3), 10.0, 20.0, 1.0), [[1, 0, -10], [0, 1, -20], [0, 0, 1]])


def test_crop_of_odd_inputs():
    with pytest.raises(SchemaError, match="No joint"):
        square_crop(np.full((21, 2), np.nan), 224)
    assert square_crop(np.array([[5.0, 6.0], [np.nan, 1.0]]), 8).side_px == 1.0


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_procrustes_undoes_a_similarity(seed, scale):
    rng = np.random.default_rng(seed)
    gt = rng.normal(size=(3, 21, 3))
    R = Rotation.random(3, random_state=seed).as_matrix()
    pred = scale * gt @ R.swapaxes(1, 2) + rng.normal(size=(3, 1, 3))
    np.testing.assert_allclose(procrustes_align(pred, gt), gt, atol=1e-9)
    assert pa_mpjpe_mm(pred, gt).shape == (3,)


def test_mirrored_hand_is_an_error_unless_reflection_is_allowed():
    gt = random_points(9, 2, 21) * 0.05
    mirrored = gt * [-1, 1, 1]
    assert (pa_mpjpe_mm(mirrored, gt) > 10).all()
    np.testing.assert_allclose(pa_mpjpe_mm(mirrored, gt, allow_reflection=True), 0, atol=1e-9)


def test_procrustes_beats_any_nearby_similarity():
    gt, pred = random_points(10, 21), random_points(11, 21)
    best = ((procrustes_align(pred, gt) - gt) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(200):
        aligned = procrustes_align(pred, gt)
        turn = axis_angle_to_matrix(rng.normal(scale=0.02, size=3))
        trial = (aligned @ turn.T) * (1 + rng.normal(scale=0.02)) + rng.normal(scale=0.02, size=3)
        assert ((trial - gt) ** 2).sum() >= best - 1e-12


def test_procrustes_of_degenerate_sets():
    gt = random_points(12, 21)
    line = np.linspace(0, 1, 21)[:, None] * [1.0, 2.0, 3.0]
    plane = random_points(13, 21) * [1, 1, 0]
    point = np.ones((21, 3))
    broken = gt.copy()
    broken[3, 1] = np.nan
    batch = np.stack([line, plane, point, broken, gt])
    aligned = procrustes_align(batch, np.stack([gt] * 5))
    assert np.isfinite(aligned[[0, 1, 2, 4]]).all()
    assert np.isnan(aligned[3]).all()
    np.testing.assert_allclose(aligned[2], np.tile(gt.mean(0), (21, 1)), atol=1e-12)
    np.testing.assert_allclose(procrustes_align(line, -3 * line + 1), -3 * line + 1, atol=1e-9)
    assert np.isnan(pa_mpjpe_mm(broken, gt))


def test_zero_predictor_and_root_alignment():
    gt = np.zeros((1, 21, 3))
    gt[:, 1:, 0] = 0.1
    np.testing.assert_allclose(root_aligned_mpjpe_mm(np.ones((1, 21, 3)), gt), 100 * 20 / 21)
    np.testing.assert_allclose(root_aligned_mpjpe_mm(gt + 5, gt), 0, atol=1e-9)
    np.testing.assert_allclose(root_aligned_mpjpe_mm(np.ones((1, 21, 3)), gt, root=9), 100 / 21)
