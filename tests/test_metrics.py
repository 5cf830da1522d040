"""Pose metrics: exact values, and the properties that alignments must have."""

import numpy as np
import pytest

from pam_aug.errors import SchemaError
from pam_aug.evaluate.metrics import best_constant_pose, pck_auc, pose_metrics, separability
from pam_aug.geometry import euler_to_matrix

RNG = np.random.default_rng(0)
HANDS = RNG.normal(0, 0.03, (5, 21, 3))


def test_a_perfect_prediction_has_no_error():
    m = pose_metrics(HANDS, HANDS)
    assert (m.hands, m.root) == (5, 0)
    assert m.mpjpe_mm == 0
    assert m.pa_mpjpe_mm < 1e-9
    assert m.auc == pytest.approx(1.0)
    assert m.mpvpe_mm == -1


def test_a_shift_vanishes_and_a_shift_of_the_root_spreads():
    assert pose_metrics(HANDS + 0.3, HANDS).mpjpe_mm == pytest.approx(0, abs=1e-9)
    moved = HANDS.copy()
    moved[:, 0, 0] += 0.021
    assert pose_metrics(moved, HANDS).mpjpe_mm == pytest.approx(20.0)  # 20 of 21 joints by 21 mm
    assert pose_metrics(moved, HANDS, root=9).mpjpe_mm == pytest.approx(1.0)


def test_procrustes_forgives_similarity_but_not_mirrors():
    R = euler_to_matrix(np.array([0.3, -1.0, 2.0]))
    assert pose_metrics(1.4 * HANDS @ R.T + 0.1, HANDS).pa_mpjpe_mm < 1e-9
    mirrored = HANDS * np.array([-1, 1, 1])
    assert pose_metrics(mirrored, HANDS).pa_mpjpe_mm > 5
    assert pose_metrics(mirrored, HANDS, allow_reflection=True).pa_mpjpe_mm < 1e-9


def test_vertices_are_compared_about_the_same_root():
    verts = RNG.normal(0, 0.05, (5, 778, 3))
    m = pose_metrics(HANDS + 0.2, HANDS, pred_verts_m=verts + 0.2, gt_verts_m=verts)
    assert m.mpvpe_mm == pytest.approx(0, abs=1e-9)
    assert m.pa_mpvpe_mm == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("distance", "auc"), [(0.0, 1.0), (0.06, 0.0), (0.025, 0.5)])
def test_auc_of_one_distance(distance, auc):
    assert pck_auc(np.full((4, 21), distance)) == pytest.approx(auc, abs=0.006)


def test_auc_of_two_points_is_the_trapezoid():
    # Thresholds 0 and 50 mm: PCK rises from a quarter (the exact hit) to three quarters.
    assert pck_auc(np.array([[0.0], [0.01], [0.05], [0.2]]), steps=2) == 0.5


def test_the_constant_pose_is_exact_for_one_pose_seen_anywhere():
    R = euler_to_matrix(RNG.normal(0, 1, (8, 3)))
    seen = HANDS[0] @ R.swapaxes(1, 2) + RNG.normal(0, 1, (8, 1, 3))
    constant = np.broadcast_to(best_constant_pose(seen), seen.shape)
    assert pose_metrics(constant, seen).pa_mpjpe_mm < 1e-6


def test_the_constant_pose_is_no_worse_than_any_sample():
    hands = HANDS[0] + RNG.normal(0, 0.004, (20, 21, 3))
    constant = pose_metrics(np.broadcast_to(best_constant_pose(hands), hands.shape), hands).pa_mpjpe_mm
    assert all(constant < pose_metrics(np.broadcast_to(h, hands.shape), hands).pa_mpjpe_mm for h in hands)


def test_separability_counts_pairs():
    assert separability(np.array([1.0, 2.0]), np.array([3.0])) == 1.0
    assert separability(np.array([3.0]), np.array([1.0, 2.0])) == 0.0
    assert separability(np.array([2.0, 1.0]), np.array([2.0])) == 0.75
    assert separability(np.array([1.0]), np.array([np.inf])) == 1.0


def test_unequal_or_empty_sets_are_refused():
    with pytest.raises(SchemaError):
        pose_metrics(HANDS[:4], HANDS)
    with pytest.raises(SchemaError):
        pose_metrics(HANDS[:0], HANDS[:0])
    with pytest.raises(SchemaError):
        separability(np.zeros(0), np.ones(2))
