"""What the filter removed: exact counts of made-up candidates, and poses that are grouped by their fingers alone."""

import csv
import math
from dataclasses import replace

import fakes
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pam_aug import registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.report.page import write_report
from pam_aug.report.plots import axis_step, histogram
from pam_aug.report.removed import cluster_poses, palm_joints, read_inputs, removed_groups
from pam_aug.report.rule import rule_text, within_inputs
from pam_aug.schema import Candidate, Object, Verdict
from pam_aug.select import SelectConfig

HAND = fakes.label(3, "x").hands[0].joints_cam_m.astype(np.float64)


def curled(amount: float) -> np.ndarray:
    """A flat hand whose fingers' outer joints are pushed out of the palm's plane."""
    hand = np.zeros((21, 3))
    for finger in range(5):
        for part in range(4):
            hand[1 + 4 * finger + part] = [0.02 * (2 - finger), 0.06 + 0.02 * part, -amount * 0.02 * part]
    return hand


def test_place_turn_side_and_size_are_gone():
    expected = palm_joints(HAND, "right")
    assert expected[0].tolist() == [0, 0, 0]
    assert expected[9] == pytest.approx([0, 1, 0])
    turn = Rotation.from_rotvec([0.3, -1.1, 2.0]).as_matrix()
    assert palm_joints(1.3 * HAND @ turn.T + [0.1, 0.2, 0.7], "right") == pytest.approx(expected)
    assert palm_joints(HAND * [-1, 1, 1], "left") == pytest.approx(expected)
    assert np.abs(palm_joints(HAND * [-1, 1, 1], "right") - expected).max() > 0.05
    assert palm_joints(HAND, "right")[5, 0] > palm_joints(HAND, "right")[17, 0]


def test_like_poses_are_one_cluster_and_the_largest_comes_first():
    rng = np.random.default_rng(0)
    amounts = [0.0] * 4 + [2.0] * 6
    poses = np.stack([palm_joints(curled(a) + rng.normal(0, 2e-4, (21, 3)), "right") for a in amounts])
    found = cluster_poses(poses)
    assert found.label.tolist() == [1] * 4 + [0] * 6
    assert found.middle[0] >= 4
    assert found.middle[1] < 4
    again = cluster_poses(poses)
    assert (found.label.tolist(), found.middle) == (again.label.tolist(), again.middle)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_equal_or_few_poses_are_one_cluster(n):
    found = cluster_poses(np.repeat(palm_joints(HAND, "right")[None], n, 0))
    assert found.label.tolist() == [0] * n
    assert len(found.middle) == 1


def candidate(key: str, index: int, err: float, kept: bool, failure: str = "") -> Candidate:
    verdict = Verdict(kept, "" if kept else "rank")
    return Candidate(key, index, 0, "g", "e", err, err, err, -1.0, failure, verdict)


def test_counts_by_object_camera_and_error_are_exact():
    keys = [f"demo/s/q/{camera}/{i}" for i, camera in enumerate(("left", "right", "right"))]
    mug = Object("mug", "mug.obj", 16, np.eye(4))
    inputs = {
        keys[0]: replace(fakes.label(0, "x"), objects=(mug,)),
        keys[1]: replace(
            fakes.label(1, "x"), objects=(replace(mug, id="box"), mug, replace(mug, id="no", valid=False))
        ),
    }
    rows = [candidate(keys[0], i, 1.0 + i, i < 3) for i in range(4)]
    rows += [candidate(keys[1], i, 5.0 + i, i < 2) for i in range(4)]
    rows += [candidate(keys[2], i, math.inf, False, "broken") for i in range(2)]
    groups, middles = removed_groups(rows, inputs)
    table = {(g.kind, g.group): g for g in groups}

    def counts(kind: str, group: str) -> tuple:
        g = table[kind, group]
        return g.inputs, g.candidates, g.kept, g.rejected, g.failed, g.removed_share, g.err_mm

    assert counts("object", "mug") == (1, 4, 3, 1, 0, 0.25, 2.5)
    assert counts("object", "box, mug") == (1, 4, 2, 2, 0, 0.5, 6.5)
    assert counts("object", "unknown") == (1, 2, 0, 2, 2, 1.0, -1.0)
    assert counts("camera", "left") == (1, 4, 3, 1, 0, 0.25, 2.5)
    assert counts("camera", "right") == (2, 6, 2, 4, 2, 4 / 6, 6.5)
    assert counts("pose", "unknown")[1] == 2
    assert [g.group for g in groups if g.kind == "error"][-1] == "not scored"
    assert counts("error", "1.0 to 1.0 mm") == (1, 1, 1, 0, 0, 0.0, 1.0)
    for kind in ("pose", "object", "camera", "error"):
        mine = [g for g in groups if g.kind == kind]
        assert sum(g.candidates for g in mine) == len(rows)
        assert sum(g.kept for g in mine) == 5
        assert all(g.rejected == g.candidates - g.kept for g in mine)
    assert set(middles) <= set(inputs)


def test_one_cut_over_the_build_shows_whom_a_cut_within_inputs_hides():
    rows = [
        candidate(f"demo/s/q/{camera}/f", i, base + i, i < 3)
        for camera, base in (("a", 1), ("b", 10))
        for i in range(4)
    ]
    shares = {g.group: (g.removed_share, g.one_cut_share) for g in removed_groups(rows, {})[0] if g.kind == "camera"}
    assert shares == {"a": (0.25, 0.0), "b": (0.25, 0.5)}  # the worst 2 of 8
    third = removed_groups(rows, {}, SelectConfig(reject="1/3", gates={"err_mm": 3.5}))[0]
    shares = {g.group: g.one_cut_share for g in third if g.kind == "camera"}
    assert shares == {"a": 0.25, "b": 1.0}  # gates are the rule's, too


@pytest.mark.parametrize(
    ("rule", "words", "two"),
    [
        (
            SelectConfig(),
            ("the worst 25 % of each input's candidates, by <code>err_mm</code>", "by construction. "),
            True,
        ),
        (SelectConfig(gate=30.0), ("<code>err_mm</code> above 30 mm", "only gates and failures"), True),
        (SelectConfig(preset="pam", by="err_2d", gate=0.2), ("of all candidates of the build", "above 0.2;"), False),
        (SelectConfig(preset="handbooster-ho3d"), ("<code>pa_err_mm</code> above 20 mm", "cut unequally"), False),
        (SelectConfig(check_side=True), ("of the other side",), True),
    ],
)
def test_the_page_says_how_to_read_the_shares_of_its_rule(rule, words, two):
    text = rule_text(rule)
    assert all(word in text for word in words)
    assert within_inputs(rule) == two
    assert ("scope=build" in text) == two


@pytest.mark.parametrize(
    ("span", "most", "step"), [(19.4, 5, 5), (10.6, 5, 5), (1, 5, 0.2), (7, 3, 5), (0.03, 5, 0.01), (4, 4, 1)]
)
def test_axes_have_round_steps(span, most, step):
    assert axis_step(span, most) == pytest.approx(step)


def test_a_histogram_counts_every_value_once_and_marks_an_open_end():
    drawn = histogram({"kept": [1.0] * 300 + [math.inf], "rejected": [9.0]}, "mm")
    assert "kept: 300 from" in drawn
    assert "rejected: 1 from" in drawn
    assert "+</text>" in drawn
    assert "+</text>" not in histogram({"kept": [1.0, 9.0]}, "mm")
    assert "nothing was scored" in histogram({"kept": [math.inf]}, "mm")


def test_error_tenths_hold_a_tenth_each_and_ties_stay_together():
    rows = [candidate(f"demo/s/q/c/{i}", 0, float(i), i < 15) for i in range(20)]
    errors = [g for g in removed_groups(rows, {})[0] if g.kind == "error"]
    assert [g.candidates for g in errors] == [2] * 10
    assert [g.removed_share for g in errors] == [0.0] * 7 + [0.5, 1.0, 1.0]
    assert (errors[0].group, errors[9].group) == ("0.0 to 1.0 mm", "17.0 to 19.0 mm")
    tied = [candidate(f"demo/s/q/c/{i}", 0, 3.0, True) for i in range(7)]
    assert [g.candidates for g in removed_groups(tied, {})[0] if g.kind == "error"] == [7]
    assert removed_groups([], {}) == ([], [])


def test_a_builds_table_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    run_build(resolve(BuildConfig, fakes.CONFIG, ["source.count=4", "generate.candidates=4"]), tmp_path, workers=0)
    assert len(read_inputs(tmp_path)) == 4
    with open(tmp_path / "report" / "removed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pose = [row for row in rows if row["kind"] == "pose"]
    assert sum(int(row["candidates"]) for row in pose) == 16
    assert sum(int(row["rejected"]) for row in pose) == 4
    assert [row["group"] for row in rows if row["kind"] == "object"] == ["none"]
    page = write_report(tmp_path).read_text()
    assert "What was removed" in page
    assert page.count('class="icon"') == len(pose)
    assert "<th>one cut</th>" in page
    assert all(float(row["one_cut_share"]) >= 0 for row in rows)
    assert sum(float(row["one_cut_share"]) * int(row["candidates"]) for row in pose) == pytest.approx(4)
