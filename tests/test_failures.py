"""Too many failures in a row end a build at once; it goes on, tries them again, and ends as if nothing had been."""

import fakes
import numpy as np
import pytest
from fakes import config
from test_build import tar_bytes

from pam_aug.build.config import pixel_fields
from pam_aug.build.failures import FailedImage, Streak, read_failures
from pam_aug.build.layout import failures_path
from pam_aug.build.run import run_build
from pam_aug.errors import BackendError, BudgetExceeded, ConfigError, SourceError
from pam_aug.shards.verify import verify

pytestmark = pytest.mark.usefixtures("fakes_installed")


def break_items(monkeypatch: pytest.MonkeyPatch, name: str, broken: set[int]) -> list[int]:
    """Items of a source that raise; the list says which were asked for."""
    item, asked = fakes.FakeRollouts.item, []

    def maybe(self, index):
        if self.name == name:
            asked.append(index)
            if index in broken:
                raise SourceError(f"item {index} is torn")
        return item(self, index)

    monkeypatch.setattr(fakes.FakeRollouts, "item", maybe)
    return asked


def test_a_streak_is_broken_by_what_works():
    streak = Streak(3)
    for _ in range(4):
        streak.add("no", 2)
        streak.ended()
    streak.inputs.append((0, 1))
    streak.add("no", 2)
    with pytest.raises(BudgetExceeded, match="3 images in a row failed, the last one with: why") as stop:
        streak.add("why")
    assert (stop.value.exit_code, stop.value.inputs) == (3, ((0, 1),))
    Streak(0).add("no", 10**9)


@pytest.mark.parametrize("per_shard", [4, 100])
def test_a_broken_source_stops_a_conversion_and_it_goes_on(tmp_path, monkeypatch, per_shard):
    given = ("real.count=40", f"shards.samples_per_shard={per_shard}", "stop_after_failures=10")
    run_build(config(*given), tmp_path / "clean", ("real",), workers=0)
    with monkeypatch.context() as patch:
        asked = break_items(patch, "fake-real", set(range(6, 40)))
        with pytest.raises(BudgetExceeded, match=r"10 images in a row .* item 15 is torn"):
            run_build(config(*given), tmp_path / "out", ("real",), workers=0)
        assert max(asked) == 15
        assert not (tmp_path / "out" / "mix.json").exists()
    if per_shard == 4:  # what was whole stays, the shard with two torn images, too; the wholly torn one is gone
        assert [p.name for p in sorted((tmp_path / "out" / "shards").glob("*.tar"))] == [
            "real-00000.tar",
            "real-00001.tar",
        ]
        with pytest.raises(BudgetExceeded, match="2 real images failed"):
            run_build(config(*given), tmp_path / "out", ("real",), workers=0)
        assert verify(tmp_path / "out").ok
    else:
        run_build(config(*given), tmp_path / "out", ("real",), workers=0)
        assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "clean")
        assert not list((tmp_path / "out" / "failures").glob("*"))


def test_the_reasons_of_failed_real_images_are_kept(tmp_path, monkeypatch):
    break_items(monkeypatch, "fake-real", {2, 5})
    with pytest.raises(BudgetExceeded, match=r"2 real images failed: 2 SourceError; the reasons are in failures/"):
        run_build(config(), tmp_path, ("real",), workers=0)
    assert read_failures(failures_path(tmp_path, 0)) == [FailedImage(2, "", "SourceError", "item 2 is torn")]
    assert read_failures(failures_path(tmp_path, 1)) == [FailedImage(5, "", "SourceError", "item 5 is torn")]


def test_an_estimator_that_fails_stops_a_build_and_nothing_is_generated_again(tmp_path, monkeypatch):
    """8 candidates per input: the second input makes 16 failures in a row."""
    given = ("source.count=6", "stop_after_failures=12", "shards.inputs_per_shard=6")
    run_build(config(*given), tmp_path / "clean", ("synthetic",), workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "log", tmp_path / "log")
    estimate = fakes.FakeEstimator.estimate

    def blind(self, images, queries):
        found = estimate(self, images, queries)
        return type(found)(found.joints_m, found.joints_px, None, np.zeros(len(images), bool), ("",) * len(images))

    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEstimator, "estimate", blind)
        with pytest.raises(BudgetExceeded, match=r"12 images in a row .*no hand found"):
            run_build(config(*given), tmp_path / "out", ("synthetic",), workers=0)
    assert len((tmp_path / "log").read_text().split()) == 16
    run_build(config(*given), tmp_path / "out", ("synthetic",), workers=0)
    assert len((tmp_path / "log").read_text().split()) == 48
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "clean")


def test_inputs_that_cannot_be_read_count_once_and_backends_with_all_candidates(tmp_path, monkeypatch):
    given = ("source.count=10", "stop_after_failures=6")
    with monkeypatch.context() as patch:
        asked = break_items(patch, "fake-rollouts", set(range(2, 10)))
        with pytest.raises(BudgetExceeded, match=r"6 images in a row .*item 7 is torn"):
            run_build(config(*given), tmp_path / "torn", ("synthetic",), workers=0)
        assert max(asked) == 7

    def out_of_memory(self, scene, seeds):
        raise BackendError("out of memory")

    monkeypatch.setattr(fakes.FakeGenerator, "generate", out_of_memory)
    with pytest.raises(BudgetExceeded, match=r"8 images in a row .*out of memory"):
        run_build(config(*given), tmp_path / "memory", ("synthetic",), workers=0)


def test_the_limit_may_change_between_two_runs_and_be_none(tmp_path, monkeypatch):
    assert "stop_after_failures" not in pixel_fields(config())
    with pytest.raises(ConfigError, match="stop_after_failures"):
        run_build(config("stop_after_failures=-1"), tmp_path, workers=0)
    break_items(monkeypatch, "fake-rollouts", set(range(1, 5)))
    with pytest.raises(BudgetExceeded, match="3 images in a row"):
        run_build(config("stop_after_failures=3"), tmp_path / "out", ("synthetic",), workers=0)
    with pytest.raises(BudgetExceeded, match="32 candidates"):
        run_build(config("stop_after_failures=0"), tmp_path / "out", ("synthetic",), workers=0)
    assert verify(tmp_path / "out").ok
