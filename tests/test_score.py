"""Scores of made-up estimates, with exact values."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from pam_aug.errors import ConfigError, SchemaError
from pam_aug.estimators.base import Estimates, HandQuery, tight_box
from pam_aug.geometry import axis_angle_to_matrix
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.label import hand_label
from pam_aug.rollouts.scene import HandMesh, hand_vertices
from pam_aug.schema import Camera, Candidate, Hand, Sample, Source
from pam_aug.score import combine_scores, hand_errors, looks_mirrored, score_candidates, score_of

K = np.array([[200.0, 0, 50], [0, 200, 50], [0, 0, 1]])
CAMERA = Camera(100, 100, K, np.eye(4))
JOINTS = np.random.default_rng(1).normal(0, 0.04, (21, 3)).astype(np.float32)
PX = np.stack([np.linspace(10, 60, 21), np.linspace(40, 20, 21)], 1)  # 50 wide, 20 high
IMAGE = np.zeros((100, 100, 3), np.uint8)


def hand(side="right", at=(0.0, 0.0, 0.5)) -> Hand:
    return Hand(side, "open_hand", joints_cam_m=JOINTS + np.float32(at), joints_px=PX, in_view=np.ones(21, bool))


def sample(*hands: Hand) -> Sample:
    return Sample("demo/s/q/c/f", CAMERA, hands, (), Source("demo", "f", "Apache-2.0", "test"))


def estimates(offsets_mm, *, valid=None, px_shift=0.0) -> Estimates:
    """The label's hand with every joint but the wrist moved along x."""
    n = len(offsets_mm)
    joints = np.repeat((JOINTS - JOINTS[0])[None].astype(np.float64), n, 0)
    joints[:, 1:, 0] += np.asarray(offsets_mm)[:, None] / 1000
    ok = np.ones(n, bool) if valid is None else np.asarray(valid)
    return Estimates(joints, np.repeat(PX[None] + px_shift, n, 0), None, ok, ("",) * n)


@dataclass
class Scripted:
    """Answers with prepared estimates, hand by hand, and remembers what it was asked."""

    answers: list
    asked: list = field(default_factory=list)
    name = "scripted"
    version = "0"

    def requires(self):
        return []

    def estimate(self, images, queries):
        self.asked.append((len(images), list(queries)))
        return self.answers[len(self.asked) - 1]


def test_box_is_tight_unclipped_and_ignores_what_is_not_there():
    px = np.array([[-5.0, 3.0], [np.nan, 1.0], [120.0, 7.0]])
    assert tight_box(px).tolist() == [-5, 3, 120, 7]
    with pytest.raises(SchemaError):
        tight_box(np.full((21, 2), np.nan))


def test_errors_are_exact():
    errors = hand_errors(estimates([0.0, 21.0], px_shift=3.0), hand())
    assert errors.err_mm == pytest.approx([0, 20.0], abs=1e-4)  # the wrist is one of 21 and does not move
    assert errors.pa_err_mm[0] == pytest.approx(0, abs=1e-4)
    assert 0 < errors.pa_err_mm[1] < 20
    assert errors.err_2d == pytest.approx([math.hypot(3, 3) / 50] * 2)
    assert errors.mask_iou.tolist() == [-1, -1]


def test_position_and_scale_of_the_label_do_not_matter_to_the_wrist_error():
    far = hand_errors(estimates([7.0]), hand(at=(0.3, -0.2, 2.0)))
    assert far.err_mm[0] == pytest.approx(7 * 20 / 21, abs=1e-3)


def test_no_hand_and_nan_are_infinite_with_a_reason():
    found = estimates([0.0, 1.0, 2.0], valid=[True, False, True])
    found.joints_m[2, 5, 1] = np.nan
    errors = hand_errors(found, hand())
    assert np.isinf(errors.err_mm).tolist() == [False, True, True]
    assert np.isinf(errors.pa_err_mm).tolist() == [False, True, True]
    assert errors.failures == ("", "no hand found", "the estimate is not finite")


def test_oddness_is_from_the_other_candidates_and_not_from_the_label():
    # Four candidates show one pose, which the estimator sees 15 mm off the label; one shows the label's own.
    found = estimates([15.0, 15.0, 0.0, 15.0, 15.0, 99.0], valid=[True] * 5 + [False])
    errors = hand_errors(found, hand())
    assert errors.odd_mm[:5] == pytest.approx([0, 0, 15 * 20 / 21, 0, 0], abs=1e-6)
    assert errors.odd_mm[5] == math.inf  # and it does not count in the median
    assert errors.err_mm[2] == pytest.approx(0, abs=1e-4)
    assert hand_errors(estimates([8.0]), hand()).odd_mm.tolist() == [0.0]  # alone
    assert hand_errors(estimates([8.0], valid=[False]), hand()).odd_mm.tolist() == [math.inf]


def test_the_image_error_leaves_depth_out():
    """Where the estimator misses the depth of the right ones by more than a wrong one's pose, only the image tells."""
    found = estimates([0.0, 0.0, 0.0, 0.0])
    found.joints_m[:3, 1:, 2] += 0.02  # 20 mm too far; the image positions are the label's
    found.joints_m[3, 1:, 0] += 0.01  # another pose: 10 mm aside, 5 px in the image
    found.joints_px[3, 1:, 0] += 5.0
    errors = hand_errors(found, hand())
    assert errors.err_mm == pytest.approx([20 * 20 / 21] * 3 + [10 * 20 / 21], abs=1e-4)
    assert errors.err_2d == pytest.approx([0, 0, 0, 5 * 20 / 21 / 50], abs=1e-6)


def test_a_candidate_is_as_odd_as_its_odder_hand():
    two = sample(hand("right"), hand("left", at=(0.1, 0, 0.6)))
    scripted = Scripted([estimates([0.0, 0.0, 9.0]), estimates([30.0, 30.0, 30.0])])
    rows = score_candidates(two, [IMAGE] * 3, [0, 1, 2], estimator=scripted, generator="g")
    assert [r.err_mm for r in rows] == pytest.approx([30 * 20 / 21] * 3, abs=1e-4)  # the left hand's
    assert [r.odd_mm for r in rows] == pytest.approx([0, 0, 9 * 20 / 21], abs=1e-4)  # the right hand's


def test_rows_are_in_order_with_failures_named():
    scripted = Scripted([estimates([5.0, 1.0])])
    rows = score_candidates(
        sample(hand()), [IMAGE, None, IMAGE], [11, 12, 13], estimator=scripted, generator="rendered",
        failures={1: "the renderer gave up"},
    )  # fmt: skip
    assert [r.index for r in rows] == [0, 1, 2]
    assert [r.seed for r in rows] == [11, 12, 13]
    assert rows[0].err_mm == pytest.approx(100 / 21, abs=1e-4)
    assert rows[2].err_mm == pytest.approx(20 / 21, abs=1e-4)
    assert rows[1].err_mm == math.inf
    assert rows[1].failure == "the renderer gave up"
    assert scripted.asked[0][0] == 2
    assert {r.estimator for r in rows} == {"scripted"}
    assert all(r.verdict.kept for r in rows)


def test_the_worst_hand_decides_with_all_its_errors():
    two = sample(hand("right"), hand("left", at=(0.1, 0, 0.6)))
    scripted = Scripted([estimates([2.0, 9.0], px_shift=1.0), estimates([6.0, 3.0], px_shift=4.0)])
    rows = score_candidates(two, [IMAGE] * 2, [0, 1], estimator=scripted, generator="g")
    assert [r.err_mm for r in rows] == pytest.approx([6 * 20 / 21, 9 * 20 / 21], abs=1e-4)
    assert [r.err_2d for r in rows] == pytest.approx([math.hypot(4, 4) / 50, math.hypot(1, 1) / 50])
    assert [q[1][0].side for q in scripted.asked] == ["right", "left"]


def test_one_lost_hand_fails_the_candidate():
    scripted = Scripted([estimates([2.0]), estimates([2.0], valid=[False])])
    row = score_candidates(sample(hand(), hand("left")), [IMAGE], [0], estimator=scripted, generator="g")[0]
    assert row.err_mm == math.inf
    assert row.failure == "left hand: no hand found"
    assert row.mask_iou == -1


def test_nothing_generated_needs_no_estimator():
    scripted = Scripted([])
    rows = score_candidates(sample(hand()), [None], [0], estimator=scripted, generator="g")
    assert rows[0].failure == "no image"
    assert not scripted.asked


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(SchemaError):
        score_candidates(sample(hand()), [IMAGE], [0, 1], estimator=Scripted([]), generator="g")
    with pytest.raises(SchemaError):
        score_candidates(sample(), [IMAGE], [0], estimator=Scripted([]), generator="g")


def test_score_of_a_failed_candidate_says_not_scored():
    row = Candidate("demo/s/q/c/f", 0, 0, "g", "e", 12.5, 6.25, 0.5, 0.75)
    assert (score_of(row).err_mm, score_of(row).mask_iou) == (12.5, 0.75)
    failed = replace(row, err_mm=math.inf, pa_err_mm=math.inf, err_2d=math.inf, mask_iou=-1.0)
    assert (score_of(failed).err_mm, score_of(failed).pa_err_mm, score_of(failed).err_2d) == (-1, -1, -1)


def test_query_takes_the_label_box():
    query = HandQuery.of(hand("left"), CAMERA)
    assert query.side == "left"
    assert query.box_px.tolist() == [10, 20, 60, 40]


def posed_left_hand() -> tuple[Hand, HandMesh]:
    layer = HandLayer(load_open_hand("left"), dtype=torch.float64)
    label = hand_label(
        layer, "open_hand", np.array([0.3, 1.0, 0.2]), np.full(45, 0.1), np.zeros(10), np.array([0.02, 0, 0.5]), CAMERA
    )
    posed = replace(sample(label), camera=CAMERA)
    return label, hand_vertices(posed, {"open_hand/left": load_open_hand("left")})[0]


def test_silhouettes_overlap_wholly_partly_or_are_not_compared():
    label, mesh = posed_left_hand()
    own = mesh.verts_cam_m - mesh.joints_cam_m[0]
    turned = own @ axis_angle_to_matrix(np.array([0.0, 0.0, 0.5])).T
    verts = np.stack([own, turned, own + np.array([0.5, 0, 0]), own])
    found = estimates([0.0] * 4, valid=[True, True, True, False])
    found = replace(found, verts_m=verts)
    errors = hand_errors(found, label, CAMERA, mesh)
    assert errors.mask_iou[0] == 1.0
    assert 0.2 < errors.mask_iou[1] < 0.9
    assert errors.mask_iou[2:].tolist() == [0.0, -1.0]
    assert hand_errors(found, label).mask_iou.tolist() == [-1.0] * 4


def test_vertices_are_compared_where_the_triangles_are_the_same():
    label, mesh = posed_left_hand()
    own = mesh.verts_cam_m - mesh.joints_cam_m[0]
    turn = axis_angle_to_matrix(np.array([0.0, 0.3, 0.0]))
    verts = np.stack([own, own + np.array([0.003, 0, 0.004]), own @ turn.T, own])
    found = replace(estimates([0.0] * 4, valid=[True, True, True, False]), verts_m=verts)
    flipped = mesh.assets.f[::-1, [0, 2, 1]]  # another order and winding
    for faces in (None, mesh.assets.f, flipped):
        errors = hand_errors(replace(found, faces=faces), label, CAMERA, mesh)
        assert errors.vert_err_mm[:2] == pytest.approx([0, 5], abs=1e-9)
        turned = 1000 * np.linalg.norm(own @ turn.T - own, axis=-1).mean()
        assert errors.vert_err_mm[2:].tolist() == [pytest.approx(turned), math.inf]
        assert errors.pa_vert_err_mm[:3] == pytest.approx([0, 0, 0], abs=1e-6)
        assert errors.mask_iou[0] == 1.0
    other = hand_errors(replace(found, faces=np.roll(mesh.assets.f, 1, axis=1) // 2), label, CAMERA, mesh)
    assert other.vert_err_mm.tolist() == other.pa_vert_err_mm.tolist() == [-1.0] * 4
    assert hand_errors(found, label).vert_err_mm.tolist() == [-1.0] * 4


def test_a_silhouette_is_drawn_with_the_estimates_own_triangles():
    label, mesh = posed_left_hand()
    order = np.random.default_rng(0).permutation(778)  # another hand model: the same surface, numbered otherwise
    verts = np.empty((1, 778, 3))
    verts[0, order] = mesh.verts_cam_m - mesh.joints_cam_m[0]
    whole = np.concatenate([mesh.assets.f, mesh.assets.f_cap])
    found = replace(estimates([0.0]), verts_m=verts, faces=order[whole])
    errors = hand_errors(found, label, CAMERA, mesh)
    assert errors.mask_iou.tolist() == [1.0]
    assert errors.vert_err_mm.tolist() == [-1.0]


def test_a_hand_of_the_other_side_is_seen_by_its_mirror_image():
    layer = HandLayer(load_open_hand("right"), dtype=torch.float64)
    pose = np.zeros(45)
    pose[2::3] = 0.6
    label = hand_label(layer, "open_hand", np.array([0.4, 0.2, 1.0]), pose, np.zeros(10), np.array([0, 0, 0.5]), CAMERA)
    own = (label.joints_cam_m - label.joints_cam_m[0]).astype(np.float64)
    noise = np.random.default_rng(2).normal(0, 0.004, (2, 21, 3))
    shown = np.stack([own, own * [-1, 1, 1], own * [1, 1, -1], own + noise[0], own * [-1, 1, 1] + noise[1]])
    found = Estimates(shown, np.repeat(PX[None], 5, 0), None, np.ones(5, bool), ("",) * 5)
    assert hand_errors(found, label).side_agrees.tolist() == [True, False, False, True, False]
    flat = own * [1, 1, 1e-3]  # in one plane: its own mirror image
    assert not looks_mirrored(flat[None] * [1, 1, -1], flat).any()
    rows = score_candidates(
        sample(label), [IMAGE] * 5, range(5), estimator=Scripted([found]), generator="g"
    )  # fmt: skip
    assert [row.side_agrees for row in rows] == [True, False, False, True, False]


# ---------------------------------------------------------------------------------------------------- several judges


def judged(name: str, err: float, vert: float = -1.0, iou: float = -1.0, **more) -> Candidate:
    row = Candidate("demo/s/q/c/f", 0, 7, "g", name, err, err / 2, err / 100, iou)
    return replace(row, vert_err_mm=vert, **more)


def test_two_judges_are_combined_and_each_is_kept():
    one, two = judged("hamer", 10.0, vert=8.0, iou=0.5), judged("simplehand", 20.0, iou=0.7)
    (mean,) = combine_scores([[one], [two]], "mean")
    assert (mean.estimator, mean.err_mm, mean.pa_err_mm) == ("mean(hamer,simplehand)", 15.0, 7.5)
    assert (mean.err_2d, mean.mask_iou, mean.vert_err_mm, mean.pa_vert_err_mm) == (pytest.approx(0.15), 0.6, 8.0, -1.0)
    (worst,) = combine_scores([[one], [two]], "worst")
    assert (worst.estimator, worst.err_mm, worst.mask_iou, worst.vert_err_mm) == (
        "worst(hamer,simplehand)", 20.0, 0.5, 8.0,
    )  # fmt: skip
    for row in (mean, worst):
        assert [(j.estimator, j.err_mm, j.vert_err_mm) for j in row.judgements] == [
            ("hamer", 10.0, 8.0), ("simplehand", 20.0, -1.0),
        ]  # fmt: skip
        assert (row.input_key, row.index, row.seed, row.side_agrees) == (one.input_key, 0, 7, True)


def test_one_judge_alone_is_left_as_it_is():
    rows = [judged("hamer", 3.0)]
    for rule in ("mean", "worst"):
        assert combine_scores([rows], rule) == rows


def test_what_one_judge_cannot_score_has_failed():
    lost = replace(judged("b", math.inf), failure="left hand: no hand found")
    (row,) = combine_scores([[judged("a", 3.0, side_agrees=False)], [lost]], "mean")
    assert (row.err_mm, row.mask_iou, row.failure) == (math.inf, -1.0, "b: left hand: no hand found")
    assert not row.side_agrees
    assert [j.failure for j in row.judgements] == ["", "left hand: no hand found"]
    absent = [[replace(judged(name, math.inf), failure="no image")] for name in "ab"]
    assert combine_scores(absent, "worst")[0].failure == "no image"


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(ConfigError, match="mean, worst"):
        combine_scores([[judged("a", 1.0)]], "median")
    with pytest.raises(SchemaError):
        combine_scores([[judged("a", 1.0)], [judged("b", 1.0, seed=8)]], "mean")
    with pytest.raises(SchemaError):
        combine_scores([[judged("a", 1.0)], []], "mean")
