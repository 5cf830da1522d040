"""Pose metrics: exact values, and the properties that alignments must have."""

import numpy as np
import pytest
import torch

from pam_aug.errors import SchemaError
from pam_aug.estimators.base import Estimates
from pam_aug.evaluate.metrics import best_constant_pose, pck_auc, pose_metrics, separability
from pam_aug.evaluate.perturb import label_separability, repose
from pam_aug.geometry import euler_to_matrix, project
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.label import hand_label
from pam_aug.schema import Camera

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


# ------------------------------------------------------------------------------------------------- re-posed labels


@pytest.fixture(scope="module")
def label():
    layer = HandLayer(load_open_hand("left"), dtype=torch.float64)
    camera = Camera(256, 256, np.array([[300.0, 0, 127.5], [0, 300, 127.5], [0, 0, 1]]), np.eye(4))
    zero = np.zeros(3)
    hand = hand_label(layer, "open_hand", zero, np.full(45, 0.1), np.zeros(10), np.array([0, 0, 0.5]), camera)
    return hand, camera, layer


@pytest.mark.parametrize("kind", ["fingers", "global", "both"])
def test_reposed_labels_lie_at_the_asked_distance(label, kind):
    hand, camera, layer = label
    other = repose(hand, camera, layer, 15.0, kind, np.random.default_rng(3))
    assert np.allclose(other.joints_cam_m[0], hand.joints_cam_m[0], atol=1e-6)  # the wrist stays
    moved = np.linalg.norm(other.joints_cam_m - hand.joints_cam_m, axis=1)
    assert 1000 * moved.mean() == pytest.approx(15.0, abs=0.02)
    palm = moved[[1, 5, 9, 13, 17]]  # the fingers' bases hang on the wrist
    assert (palm.max() < 1e-6) == (kind == "fingers")
    assert other.joints_px == pytest.approx(project(other.joints_cam_m.astype(float), camera.K_px), abs=1e-3)


class Knows:
    """Answers with one hand whatever it is shown; errors of its true label are the noise that it adds."""

    name, version = "knows", "0"

    def __init__(self, hand, noise_m):
        self.hand, self.noise_m, self.rng = hand, noise_m, np.random.default_rng(0)

    def requires(self):
        return []

    def estimate(self, images, queries):
        n = len(images)
        joints = np.repeat((self.hand.joints_cam_m - self.hand.joints_cam_m[0])[None].astype(float), n, 0)
        joints += self.rng.normal(0, self.noise_m, joints.shape)
        return Estimates(joints, np.repeat(self.hand.joints_px[None], n, 0), None, np.ones(n, bool), ("",) * n)


def test_a_good_estimator_separates_and_a_blind_one_does_not(label):
    hand, camera, layer = label
    inputs = [(hand, camera, [np.zeros((4, 4, 3), np.uint8)] * 6)]
    layers = {"left": layer}
    good = label_separability(Knows(hand, 0.002), inputs, layers, [15.0], labels_per_image=2)
    assert good[15.0].tolist() == [1.0]
    blind = label_separability(Knows(hand, 0.5), inputs * 8, layers, [15.0])
    assert 0.25 < blind[15.0].mean() < 0.75
