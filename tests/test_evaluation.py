"""Evaluation: scores against a per-sample loop written from the definitions, groups, result files, the command."""

import itertools
import json
import sys
from dataclasses import replace

import fakes
import numpy as np
import orjson
import pytest

from pam_aug import cli, registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import ConfigError, SchemaError
from pam_aug.estimators.base import Estimates
from pam_aug.estimators.hamer import HamerEstimator
from pam_aug.estimators.simplehand import SimpleHandEstimator
from pam_aug.estimators.simplehand_fastvit import SimpleHandFastViTEstimator, SimpleHandFastViTOptions
from pam_aug.evaluate import fscore
from pam_aug.evaluate.evaluation import EvaluationOptions, evaluate_estimator, evaluate_predictions
from pam_aug.evaluate.hand_set import mean_scores, score_hands
from pam_aug.evaluate.labels import LabelMeshes, count_hands, hand_blocks
from pam_aug.evaluate.result_files import read_predictions, write_dexycb, write_freihand
from pam_aug.geometry import euler_to_matrix
from pam_aug.hand import load_open_hand
from pam_aug.schema import Source

RNG = np.random.default_rng(5)
N, V = 12, 60  # the definitions know no number of vertices


# ------------------------------------------------------------------------------- the definitions, one hand at a time


def loop_align(pred, gt, reflect):
    p0, g0 = pred.mean(0), gt.mean(0)
    p, g = pred - p0, gt - g0
    if not np.abs(p).max():
        return np.repeat(g0[None], len(gt), 0)
    U, s, Vt = np.linalg.svd(g.T @ p)
    sign = np.eye(3)
    if not reflect and np.linalg.det(U @ Vt) < 0:
        sign[2, 2] = -1
    scale = (s * np.diag(sign)).sum() / (p**2).sum()
    return scale * p @ (U @ sign @ Vt).T + g0


def loop_auc(distances_m):
    thresholds = np.linspace(0, 0.05, 100)
    areas = []
    for per_joint in distances_m:
        pck = [float(per_joint <= t) for t in thresholds]
        areas.append(sum((a + b) / 2 for a, b in itertools.pairwise(pck)) / 99)
    return np.mean(areas)


def loop_f(pred, gt, limit):
    precision = np.mean([np.sqrt(((gt - p) ** 2).sum(1)).min() < limit for p in pred])
    recall = np.mean([np.sqrt(((pred - g) ** 2).sum(1)).min() < limit for g in gt])
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def loop_scores(pred, gt, pv, gv, root, reflect):
    rel = np.linalg.norm((pred - pred[root]) - (gt - gt[root]), axis=1)
    pa = np.linalg.norm(loop_align(pred, gt, reflect) - gt, axis=1)
    pa[pa < 1e-12] = 0  # rounding; PCK has a threshold at 0
    moved = pv - pred[root] + gt[root]
    aligned = loop_align(pv, gv, reflect)
    return {
        "mpjpe_mm": 1000 * rel.mean(),
        "pa_mpjpe_mm": 1000 * pa.mean(),
        "auc": loop_auc(rel),
        "pa_auc": loop_auc(pa),
        "abs_mpjpe_mm": 1000 * np.linalg.norm(pred - gt, axis=1).mean(),
        "mpvpe_mm": 1000 * np.linalg.norm(moved - gv, axis=1).mean(),
        "pa_mpvpe_mm": 1000 * np.linalg.norm(aligned - gv, axis=1).mean(),
        "f5": loop_f(moved, gv, 0.005),
        "f15": loop_f(moved, gv, 0.015),
        "pa_f5": loop_f(aligned, gv, 0.005),
        "pa_f15": loop_f(aligned, gv, 0.015),
    }


def sets(kind):
    gt, gv = RNG.normal(0, 0.03, (N, 21, 3)), RNG.normal(0, 0.03, (N, V, 3))
    if kind == "random":
        return RNG.normal(0, 0.03, gt.shape), gt, RNG.normal(0, 0.03, gv.shape), gv
    if kind == "near":
        R = euler_to_matrix(np.array([0.1, -0.05, 0.2]))
        return (
            1.1 * (gt + RNG.normal(0, 0.004, gt.shape)) @ R.T + 0.01,
            gt,
            1.1 * (gv + RNG.normal(0, 0.004, gv.shape)) @ R.T + 0.01,
            gv,
        )
    if kind == "mirrored":
        flip = np.array([-1.0, 1, 1])
        return gt * flip, gt, gv * flip, gv
    if kind == "degenerate":  # all points in one place
        return np.full_like(gt, 0.25), gt, np.full_like(gv, 0.25), gv
    return gt.copy(), gt, gv.copy(), gv


@pytest.mark.parametrize("root", [0, 9])
@pytest.mark.parametrize("alignment", ["proper", "freihand"])
@pytest.mark.parametrize("kind", ["random", "near", "mirrored", "degenerate", "identical"])
def test_scores_equal_a_loop_over_the_definitions(kind, alignment, root):
    pred, gt, pv, gv = sets(kind)
    ours = score_hands(pred, gt, pv, gv, root=root, alignment=alignment)
    loop = [loop_scores(*hand, root, alignment == "freihand") for hand in zip(pred, gt, pv, gv)]
    for name in loop[0]:
        assert getattr(ours, name) == pytest.approx([row[name] for row in loop], abs=1e-9), name
    means = mean_scores(ours)
    assert (means.hands, means.failed, means.meshes) == (N, 0, N)
    for name in loop[0]:
        assert getattr(means, name) == pytest.approx(np.mean([row[name] for row in loop]), abs=1e-9)


def test_known_values():
    gt = RNG.normal(0, 0.03, (2, 21, 3))
    zero = score_hands(gt, gt, gt, gt)
    assert zero.mpjpe_mm.tolist() == [0, 0]
    assert zero.auc == pytest.approx([1, 1], abs=1e-12)
    assert zero.f5.tolist() == [1, 1]
    mirrored = gt * np.array([-1.0, 1, 1])
    assert score_hands(mirrored, gt).pa_mpjpe_mm.min() > 5
    assert score_hands(mirrored, gt, alignment="freihand").pa_mpjpe_mm.max() < 1e-9
    # Strictly below: vertices exactly 5 mm away are not within 5 mm, and are within 15.
    apart = np.zeros((1, 4, 3))
    assert fscore.f_scores(apart + np.array([0.005, 0, 0]), apart)[0].tolist() == [0, 1]


def test_a_hand_that_was_not_found_is_in_no_mean():
    gt = RNG.normal(0, 0.03, (3, 21, 3))
    pred = gt + np.array([0.0, 0.0, 0.1])
    pred[1] = np.nan
    pred[2, 3, 0] = np.inf
    scores = score_hands(pred, gt)
    assert np.isnan(scores.auc[1:]).all()
    means = mean_scores(scores)
    assert (means.hands, means.failed, means.meshes, means.mpvpe_mm) == (3, 2, 0, -1)
    assert means.mpjpe_mm == pytest.approx(0, abs=1e-9)
    assert means.abs_mpjpe_mm == pytest.approx(100)


@pytest.mark.parametrize("spread", [0.001, 0.006, 0.05])
def test_both_ways_to_count_near_vertices_agree(spread):
    gt = RNG.normal(0, 0.03, (70, 40, 3))
    pred = gt[:, :35] + RNG.normal(0, spread, (70, 35, 3))
    pred[3, 2] = np.nan
    quick = fscore.f_scores(pred, gt, (0.002, 0.005, 0.015))
    limits = np.array([0.002, 0.005, 0.015])
    assert np.array_equal(quick, fscore._count_tree(pred, gt, limits))
    assert not quick[3].any()


def test_what_does_not_pair_up_is_refused():
    gt = np.zeros((2, 21, 3))
    for bad in (
        lambda: score_hands(gt[:1], gt),
        lambda: score_hands(gt[:0], gt[:0]),
        lambda: score_hands(gt, gt, gt),
        lambda: score_hands(gt, gt, root=21),
        lambda: score_hands(gt, gt, alignment="umeyama"),  # type: ignore[arg-type]
        lambda: fscore.f_scores(gt, gt, (0.015, 0.005)),
        lambda: fscore.f_scores(gt, gt[:1]),
    ):
        with pytest.raises(SchemaError):
            bad()


# ----------------------------------------------------------------------------------------------------- result files


def test_freihands_form_is_two_nested_lists(tmp_path):
    joints, verts = RNG.normal(0, 0.1, (3, 21, 3)), RNG.normal(0, 0.1, (3, 778, 3))
    write_freihand(tmp_path / "pred.json", joints, verts, ["a/right", "b/right", "c/left"])
    tree = json.loads((tmp_path / "pred.json").read_text())
    assert len(tree) == 2
    assert np.array_equal(np.array(tree[0]), joints)
    assert np.array_equal(np.array(tree[1]), verts)
    assert json.loads((tmp_path / "pred.json.names.json").read_text()) == ["a/right", "b/right", "c/left"]
    again = read_predictions(tmp_path / "pred.json")
    assert np.array_equal(again.joints_m, joints)
    assert again.verts_m is not None
    assert np.array_equal(again.verts_m, verts)


def test_dexycbs_form_is_64_fields_per_image(tmp_path):
    joints = RNG.normal(0, 0.1, (3, 21, 3))
    joints[1] = np.nan
    write_dexycb(tmp_path / "results.txt", joints, [700, 12, 40])
    lines = (tmp_path / "results.txt").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["12", "40", "700"]
    assert all(len(line.split(",")) == 64 for line in lines)
    assert [float(v) for v in lines[2].split(",")[1:]] == (1000 * joints[0]).reshape(-1).tolist()
    assert set(lines[0].split(",")[1:]) == {"0.0"}  # not found, yet every image must be there
    again = read_predictions(tmp_path / "results.txt")
    assert again.joints_m[again.rows_for([700, 40], "")] == pytest.approx(joints[[0, 2]], abs=1e-15)
    with pytest.raises(SchemaError, match="number 13"):
        again.rows_for([12, 13], "results")
    with pytest.raises(ConfigError, match="official split"):
        write_dexycb(tmp_path / "other.txt", joints, [1, -1, 2])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[[1, 2]]"),
        ("a.json", "{}"),
        ("a.json", "not json"),
        ("a.json", json.dumps([np.zeros((2, 20, 3)).tolist(), []])),
        ("a.txt", "1,2,3"),
        ("a.txt", "7," + ",".join(["nan"] * 63)),
        ("a.txt", "x," + ",".join(["0"] * 63)),
        ("a.txt", "-1," + ",".join(["0"] * 63)),
        ("a.txt", "\n".join(["7," + ",".join(["0"] * 63)] * 2)),
    ],
)
def test_other_content_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SchemaError):
        read_predictions(tmp_path / name)


def test_a_missing_file_or_unknown_form_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        read_predictions(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="freihand, dexycb"):
        read_predictions(tmp_path / "nothing.json", "ho3d")


# ------------------------------------------------------------------------------------------------------- on shards


class Moved:
    """Knows the labels, in the order that they are asked for, and moves every joint but the wrist by 10 mm."""

    name, version = "moved", "1"

    def __init__(self, folder, lose=()):
        self.hands = [h for block in hand_blocks(folder) for h in block]
        self.lose, self.at = lose, 0

    def estimate(self, images, queries):
        part = self.hands[self.at : self.at + len(images)]
        assert all(image.shape == (fakes.SIZE, fakes.SIZE, 3) for image in images)
        joints = np.stack([h.hand.joints_cam_m - h.hand.joints_cam_m[0] for h in part]).astype(float)
        joints[:, 1:, 2] += 0.01
        wrists = np.stack([h.hand.joints_cam_m[0] for h in part]).astype(float)
        verts = LabelMeshes().vertices_cam_m(part) - wrists[:, None]
        valid = np.array([self.at + i not in self.lose for i in range(len(part))])
        self.at += len(part)
        return Estimates(joints, np.zeros((len(part), 21, 2)), verts, valid, ("",) * len(part))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Seven real images, with the numbers 100, 103, ... of DexYCB's split."""
    patch = pytest.MonkeyPatch()
    patch.setattr(registry, "load", registry.load)
    label = fakes.label

    def numbered(seed, dataset):
        sample = label(seed, dataset)
        note = f"sample {100 + 3 * seed} of the official split"
        source = Source(dataset=dataset, name=str(seed), licence="test", converter=dataset, notes=(note,))
        return replace(sample, source=source)

    patch.setattr(fakes, "label", numbered)
    fakes.install()
    out = tmp_path_factory.mktemp("eval") / "out"
    run_build(resolve(BuildConfig, fakes.CONFIG), out, ("real",), workers=0)
    patch.undo()
    return out


def test_an_estimator_on_shards(shards, tmp_path):
    files = {"freihand": tmp_path / "pred.json", "dexycb": tmp_path / "dexycb.txt"}
    result = evaluate_estimator(shards, Moved(shards, lose=(2,)), EvaluationOptions(**files))
    hands = len(Moved(shards).hands)
    assert (result.overall.hands, result.overall.failed, result.overall.meshes) == (hands, 1, hands - 1)
    assert result.overall.mpjpe_mm == pytest.approx(10 * 20 / 21, abs=1e-4)
    assert result.overall.mpvpe_mm == pytest.approx(0, abs=1e-3)
    assert result.overall.f5 == 1
    assert result.overall.abs_mpjpe_mm == -1
    text = result.as_text()
    for word in ("fingertips: smplx", "root: 0 (wrist)", "rotation and scale", "moved 1", "1 hands were not found"):
        assert word in text
    assert "how it defines its joints is not known" in text  # nobody told, so nothing is claimed
    assert len(orjson.loads(files["freihand"].read_bytes())[0]) == hands
    numbers = [int(line.split(",")[0]) for line in files["dexycb"].read_text().splitlines()]
    assert numbers == sorted(h.sample_index for h in Moved(shards).hands)
    # What was written says the same again when it is read as a result file; the lost hand is zeros there.
    for file in files.values():
        again = evaluate_predictions(shards, file, "", EvaluationOptions())
        assert again.overall.failed == 0
        assert again.overall.abs_mpjpe_mm > 400
        good = (again.overall.mpjpe_mm * hands - again_lost(shards, 2)) / (hands - 1)
        assert good == pytest.approx(result.overall.mpjpe_mm, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (SimpleHandEstimator(), "16 kinematic joints, by a linear map fitted to the mesh"),
        (
            SimpleHandFastViTEstimator(SimpleHandFastViTOptions(joints="regressor")),
            "16 joints by the hand model's regre",
        ),
        (HamerEstimator(), "16 kinematic joints of the posed hand"),
    ],
)
def test_the_joint_definition_is_said_with_the_number(shards, monkeypatch, estimator, words):
    monkeypatch.setattr(type(estimator), "estimate", lambda _, *given: Moved(shards).estimate(*given))
    monkeypatch.setattr(type(estimator), "version", "1")
    text = evaluate_estimator(shards, estimator, EvaluationOptions()).as_text()
    assert f"predicted: {words}" in text
    assert "fingertips are its vertices of the labels' set" in text


def test_an_estimator_of_others_says_its_own_joint_definition(shards):
    estimator = Moved(shards)
    estimator.joint_definition = "21 joints by hand"
    assert "predicted: 21 joints by hand" in evaluate_estimator(shards, estimator, EvaluationOptions()).as_text()


def again_lost(shards, row):
    """The root-relative error in mm of a hand of zeros against label `row`."""
    joints = Moved(shards).hands[row].hand.joints_cam_m.astype(float)
    return 1000 * np.linalg.norm(joints - joints[0], axis=1).mean()


def test_groups_partition_the_hands(shards):
    result = evaluate_estimator(shards, Moved(shards), EvaluationOptions(root=9, limit=4))
    assert result.root == "9 (middle_mcp)"
    assert result.overall.hands == 4
    assert all(sum(m.hands for m in means.values()) == 4 for means in result.groups.values())
    assert (count_hands(shards), count_hands(shards, limit=4)) == (7, 4)
    block = next(hand_blocks(shards))
    assert {h.groups["side"] for h in block} == {"right"}
    assert {h.groups["object"] for h in block} == {"none"}
    assert {h.groups["occlusion"] for h in block} == {"unknown"}
    assert {h.groups["view"] for h in block} <= {"whole", "cut"}


def test_a_mesh_with_other_triangles_is_not_compared_vertex_by_vertex(shards):
    block, meshes = next(hand_blocks(shards)), LabelMeshes()
    faces = load_open_hand("left").f  # the same triangles, wound otherwise
    assert np.isfinite(meshes.vertices_cam_m(block, faces)).all()
    other = faces.copy()
    other[0] = (0, 1, 777)
    assert np.isnan(meshes.vertices_cam_m(block, other)).all()
    assert "other triangles" in meshes.missing["faces"]


def test_a_file_of_other_hands_is_refused(shards, tmp_path):
    write_dexycb(tmp_path / "few.txt", np.zeros((1, 21, 3)), [100])
    with pytest.raises(SchemaError, match="labelled images are not in it"):
        evaluate_predictions(shards, tmp_path / "few.txt", "", EvaluationOptions())
    write_freihand(tmp_path / "few.json", np.zeros((1, 21, 3)), np.zeros((1, 778, 3)), ["a"])
    with pytest.raises(SchemaError, match="1 hands for"):
        evaluate_predictions(shards, tmp_path / "few.json", "", EvaluationOptions())


def test_the_command(shards, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pam-aug", "eval", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    code, out, _ = run(shards, "--estimator", "fake", "--json", "--dexycb", tmp_path / "r.txt")
    assert code == 0
    tree = json.loads(out)
    assert tree["overall"]["hands"] == 7
    assert tree["root"] == "0 (wrist)"
    code, out, _ = run(shards, "--predictions", tmp_path / "r.txt", "--alignment", "freihand", "--root", "9")
    assert code == 0
    assert "reflection allowed" in out
    for arguments, word in (
        ((tmp_path, "--estimator", "fake"), "shards"),
        ((shards, "--estimator", "fake", "--alignment", "best"), "proper, freihand"),
        ((shards, "--estimator", "fake", "--root", "40"), "root 40"),
        ((shards, "--estimator", "fake", "--part", "synthetic"), "synthetic"),
        ((shards, "--estimator", "fakes"), "fakes"),
        ((shards, "--estimator", "fake", "--set", "a=1"), "a"),
    ):
        code, _, error = run(*arguments)
        assert code == 2
        assert word in error
