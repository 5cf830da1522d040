"""Builds that two estimators judge together, and builds that one judges, which are as they were."""

import hashlib
from pathlib import Path

import fakes
import orjson
import pytest

from pam_aug.build.config import BuildConfig, ScoreConfig, pixel_fields
from pam_aug.build.reselect import reselect
from pam_aug.build.run import plan, run_build
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing, ConfigError, ResumeMismatch
from pam_aug.report.summary import read_all_candidates

BOTH = "score.estimator=[fake, other]"
SMALL = ["source.count=3", "real.count=1", "generate.candidates=4"]


pytestmark = pytest.mark.usefixtures("fakes_installed")


def config(*overrides: str) -> BuildConfig:
    return resolve(BuildConfig, fakes.CONFIG, [*SMALL, *overrides])


def content(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted([*out.rglob("*.tar"), *out.glob("candidates/*")])
    }


@pytest.mark.parametrize("rule", ["mean", "worst"])
def test_both_scores_are_kept_and_the_rule_joins_them(tmp_path, rule):
    alone = {}
    for name in ("fake", "other"):
        run_build(config(f"score.estimator={name}"), tmp_path / name, workers=0)
        alone[name] = read_all_candidates(tmp_path / name)
        assert all(not row.judgements for row in alone[name])
    run_build(config(BOTH, f"score.combine={rule}"), tmp_path / "out", workers=0)
    rows = read_all_candidates(tmp_path / "out")
    assert len(rows) == 12
    for row, one, two in zip(rows, alone["fake"], alone["other"], strict=True):
        assert row.estimator == f"{rule}(fake,other)"
        assert [(j.estimator, j.err_mm, j.pa_err_mm) for j in row.judgements] == [
            ("fake", one.err_mm, one.pa_err_mm), ("other", two.err_mm, two.pa_err_mm),
        ]  # fmt: skip
        assert row.err_mm == ((one.err_mm + two.err_mm) / 2 if rule == "mean" else max(one.err_mm, two.err_mm))
    for key in {row.input_key for row in rows}:
        mine = [row for row in rows if row.input_key == key]
        worst = max(mine, key=lambda row: (row.err_mm, row.index))
        assert [row.index for row in mine if not row.verdict.kept] == [worst.index]


def test_a_list_of_one_is_that_one(tmp_path):
    run_build(config(), tmp_path / "one", workers=0)
    run_build(config("score.estimator=[fake]", "score.combine=worst"), tmp_path / "list", workers=0)
    assert content(tmp_path / "one") == content(tmp_path / "list")


def test_the_rule_is_part_of_what_a_build_is_only_where_it_decides(tmp_path):
    assert pixel_fields(config())["score"] == {"estimator": "fake", "options": {}}
    assert pixel_fields(config())["select"] == {"reject": "0.25", "gate": -1.0, "by": "err_mm", "scope": "input"}
    run_build(config(), tmp_path / "one", workers=0)
    run_build(config("score.combine=worst"), tmp_path / "one", workers=0)  # resumes: nothing to combine
    run_build(config(BOTH), tmp_path / "two", workers=0)
    before = content(tmp_path / "two")
    record = orjson.loads((tmp_path / "two" / "build.json").read_bytes())
    assert record["identity"]["estimator_version"] == {"fake": "1", "other": "1"}
    (tmp_path / "two" / "shards" / "syn-00001.json").unlink()
    run_build(config(BOTH), tmp_path / "two", workers=0)
    assert content(tmp_path / "two") == before
    for other in ([BOTH, "score.combine=worst"], [], ["score.estimator=[other, fake]"]):
        with pytest.raises(ResumeMismatch, match=r"score|estimator_version"):
            run_build(config(*other), tmp_path / "two", workers=0)


def test_it_is_selected_again_like_any_other(tmp_path, monkeypatch):
    run_build(config(BOTH), tmp_path / "build", workers=0)
    run_build(config(BOTH, "select.preset=pam", "select.reject=1/2"), tmp_path / "wanted", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEstimator, "estimate", None)
        patch.setattr(fakes.OtherEstimator, "estimate", None)
        reselect(tmp_path / "build", tmp_path / "out", "pam", ["reject=1/2"], workers=0)
    assert content(tmp_path / "out") == content(tmp_path / "wanted")
    assert all(len(row.judgements) == 2 for row in read_all_candidates(tmp_path / "out"))


def test_failed_inputs_are_named_after_both(tmp_path, monkeypatch):
    monkeypatch.setattr("pam_aug.build.finish.FAILURE_BUDGET", 1.0)
    run_build(config(BOTH, "source.bad=1"), tmp_path / "out", workers=0)
    failed = [row for row in read_all_candidates(tmp_path / "out") if row.failure]
    assert {(row.estimator, row.input_key.split("/")[0]) for row in failed} == {("mean(fake,other)", "fake-rollouts")}
    assert len(failed) == 4


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["score.estimator=[fake, fake]"], "twice"),
        (["score.estimator=[]"], "list of names"),
        (["score.estimator=3"], "list of names"),
        ([BOTH, "score.combine=median"], "mean, worst"),
        ([BOTH, "score.options.weights=x"], r"score\.options\.fake"),
        ([BOTH, "score.options.other.size=3"], "size"),
        (["score.estimator=[fake, nobody]"], "nobody"),
    ],
)
def test_judges_that_cannot_be_had_say_why(overrides, word):
    with pytest.raises(ConfigError, match=word):
        plan(config(*overrides))


def test_what_either_lacks_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fakes.OtherEstimator, "requires", lambda self: ["other.bin"])
    with pytest.raises(AssetMissing, match=r"other\.bin"):
        run_build(config(BOTH), tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_options_go_to_the_one_they_name():
    score = resolve(ScoreConfig, {"estimator": ["a", "b"], "options": {"b": {"x": 1}}})
    assert score.judges() == [("a", {}), ("b", {"x": 1})]
    assert score.name == "mean(a,b)"
    assert ScoreConfig("a", {"x": 2}).judges() == [("a", {"x": 2})]
