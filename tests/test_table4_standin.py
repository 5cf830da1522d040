"""The stand-in experiment at its smallest: parts that do not overlap, runs that are not repeated, and its report."""

import json
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from pam_aug import registry
from pam_aug.build.config import open_converter
from pam_aug.errors import ConfigError, ResumeMismatch
from pam_aug.shards.manifest import read_candidates
from pam_aug.shards.reader import ShardReader
from pam_aug.train import mixed

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import table4_data
import table4_runs
from table4_data import FULL, QUICK, Found, Sizes, check_found, check_sections, judge_sections, sections
from table4_report import benchmark_rows, compare
from table4_runs import SETTINGS
from table4_standin import FULL_EXPERIMENT, QUICK_EXPERIMENT, Experiment, run

TINY = Sizes(real=2, test=1, frames=1, inputs=1, candidates=4, image_px=48, spp=1)
SOME = tuple(s for s in SETTINGS if s.name in ("generated+50", "random"))


# ------------------------------------------------------------------------------------------------------- nothing shared


@pytest.mark.parametrize("sizes", [FULL, QUICK, TINY])
def test_no_part_is_drawn_from_anothers_seed_or_the_judges(sizes):
    judge = judge_sections()
    assert "simplehand_small: pool" in judge
    assert judge["simplehand_small: pool"] | {"split": "train", "seed": 0} == judge["simplehand_small: pool"]
    check_sections(sections(sizes), judge)
    trained_on = {**sections(sizes), "generated": {**judge["simplehand_small: pool"], "count": 1}}
    with pytest.raises(ConfigError, match=r"generated and simplehand_small: pool are both"):
        check_sections(trained_on, judge)
    with pytest.raises(ConfigError, match="real and test"):
        check_sections({**sections(sizes), "test": sections(sizes)["real"]}, judge)


def test_samples_of_no_part_share_a_key_an_object_or_a_hand(monkeypatch):
    """Drawn, not only configured: what the sources give under these seeds, the judge's training renders included."""
    converter = registry.load("converters", "demo-real")
    parts = {**sections(FULL), "judge": judge_sections()["simplehand_small: pool"]}
    found: dict[str, Found] = {}
    for name, section in parts.items():
        source = open_converter(section, name)
        if isinstance(source, converter):
            source._render = lambda *_: b""  # labels do not need the picture
        found[name] = Found()
        for index in range(0, 6 * section.get("frames", 1), section.get("frames", 1)):
            found[name].add(source.item(index).sample)
    assert all(len(f.keys) == 6 and len(f.objects) >= 3 and len(f.hands) >= 3 for f in found.values())
    check_found(found)
    for what in ("keys", "objects", "hands"):
        shared = {**found, "other": Found()}
        getattr(shared["other"], what).add(next(iter(getattr(found["judge"], what))))
        with pytest.raises(ConfigError, match=f"judge and other share 1 {what}"):
            check_found(shared)


def test_the_table_has_its_rows_three_seeds_and_the_published_proportion():
    assert [s.name for s in FULL_EXPERIMENT.settings[:6]] == [
        "real", "generated", "generated+25", "generated+50", "generated+75", "generated+100",
    ]  # fmt: skip
    assert len(FULL_EXPERIMENT.seeds) >= 3
    kept = FULL.inputs * (FULL.candidates * 3 // 4)
    assert kept / FULL.real == pytest.approx(207 / 407, abs=0.01)
    assert QUICK_EXPERIMENT.settings == FULL_EXPERIMENT.settings


# ----------------------------------------------------------------------------------------------------- runs and resume


def test_a_stopped_experiment_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "work"
    small = ("batch=2", "iterations=2", *(c for c in QUICK_EXPERIMENT.training if not c.startswith(("batch", "iter"))))
    experiment = Experiment(TINY, (0,), small, SOME)
    step, trained = mixed.MixedRun.step, []

    def dies(self, iteration, raw):
        trained.append(self.out.name)
        if len(set(trained)) == 2:
            raise KeyboardInterrupt
        step(self, iteration, raw)

    monkeypatch.setattr(mixed.MixedRun, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out, work, workers=0, tell=False)
    first = out / "rows" / "generated+50-seed0.json"
    assert [p.name for p in (out / "rows").iterdir()] == [first.name]
    before = first.read_bytes()

    monkeypatch.setattr(mixed.MixedRun, "step", step)
    built = []
    real_build = table4_data.run_build
    monkeypatch.setattr(table4_data, "run_build", lambda *a, **k: built.append(a) or real_build(*a, **k))
    shards = {p: p.stat().st_mtime_ns for p in work.rglob("*.tar")}
    rows = run(experiment, out, work, workers=0, tell=False, at_once=2)  # the rest side by side
    assert first.read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.tar")} == shards  # found, not made again
    assert [r["setting"] for r in rows] == ["generated+50", "random"]
    assert rows[0]["hands"] == {"real": 1, "synthetic": 3}
    assert rows[1]["hands"] == {"synthetic": 3}
    assert all(r["test"]["hands"] == 1 and r["test"]["pa_mpjpe_mm"] > 0 for r in rows)
    assert "kinematic" not in rows[0]["joints"]  # this small network has the hand model's own regressor
    assert "regressor" in rows[0]["joints"]

    page = (out / "table4_standin.md").read_text()
    for words in ("quick run", "| generated + 50 % real | 1 | 3 |", "other people", "no folder of documents"):
        assert words in page
    for kind in ("pa_mpjpe", "mpjpe"):
        assert (out / f"table4_standin_{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"table4_standin_{kind}.svg").read_text()[:1000]
    made = benchmark_rows(rows, SOME)
    assert json.loads(json.dumps(made)) == made
    assert made[0]["name"] == "generated+50 pa_mpjpe_mm"
    assert made[0]["value"] == pytest.approx(rows[0]["test"]["pa_mpjpe_mm"])

    monkeypatch.setattr(table4_runs, "run_mixed", lambda *_: pytest.fail("a finished run was repeated"))
    assert run(experiment, out, work, workers=0, tell=False) == rows
    with pytest.raises(ResumeMismatch, match="another recipe"):
        run(Experiment(TINY, (0,), (*small, "lr=0.5"), SOME), out, work, workers=0, tell=False)

    # The control: as many of the input's candidates, by a draw that does not look at their errors.
    build = work / "data" / "build"
    candidates = read_candidates(build / "candidates" / "00000.parquet")
    keys = {}
    for name in ("build", "random"):
        with ShardReader(work / "data" / name / "shards" / "syn-00000.tar") as reader:
            keys[name] = set(reader.keys)
    assert len(keys["random"]) == len(keys["build"]) == 3
    assert keys["random"] <= {c.key for c in candidates}
    assert keys["build"] == {c.key for c in candidates if c.verdict.kept}
    record = work / "data" / "random" / "build.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "drawn_from": ["0"]}))
    with pytest.raises(ResumeMismatch, match="other candidates"):
        table4_data.draw_random(build, work / "data" / "random")


# ----------------------------------------------------------------------------------------------------------- the answer


def test_differences_have_welchs_interval():
    mine, other = [10.0, 12.0, 14.0], [9.0, 9.5, 10.0]
    known, theirs = compare(mine, other), ttest_ind(mine, other, equal_var=False).confidence_interval(0.95)
    assert (known.value, known.base) == (2.5, 9.5)
    assert (known.low, known.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert "no difference" in known.as_text()
    assert "higher" in compare([20.0, 20.1, 20.2], [9.0, 9.5, 10.0]).as_text()
    assert "lower" in compare([9.0, 9.5, 10.0], [20.0, 20.1, 20.2]).as_text()
    assert "one run" in compare([9.0], [10.0, 11.0]).as_text()
