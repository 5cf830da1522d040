"""Selecting again gives what a build with that rule gives, byte for byte, and neither generates nor scores."""

import hashlib
import shutil
from pathlib import Path

import fakes
import orjson
import pytest

from pam_aug import registry
from pam_aug.build import reselect as reselecting
from pam_aug.build.config import BuildConfig
from pam_aug.build.failures import read_failures
from pam_aug.build.hand_crop import AbsentHand
from pam_aug.build.layout import failures_path
from pam_aug.build.reselect import plan_reselection, reselect
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import ConfigError, ResumeMismatch, ShardDamaged
from pam_aug.mix import MixedDataset
from pam_aug.rollouts.scene import LeftOut
from pam_aug.shards.verify import verify

pytestmark = pytest.mark.usefixtures("fakes_installed")


def build(out: Path, *overrides: str) -> Path:
    run_build(resolve(BuildConfig, fakes.CONFIG, overrides), out, workers=0)
    return out


def content(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted([*out.rglob("*.tar"), *out.rglob("*.idx"), *out.glob("candidates/*"), out / "mix.json"])
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", registry.load)
        fakes.install()
        return build(tmp_path_factory.mktemp("build") / "out")


@pytest.fixture
def no_models(monkeypatch):
    def never(*_):
        raise AssertionError("nothing is generated or scored here")

    monkeypatch.setattr(fakes.FakeGenerator, "generate", never)
    monkeypatch.setattr(fakes.FakeEstimator, "estimate", never)


NO_MESH = ["gates.vert_err_mm=-1", "gates.pa_vert_err_mm=-1"]  # the fake estimator has none
HO3D = ["select.reject=0", "select.gates.err_mm=125"]


@pytest.mark.parametrize(
    ("preset", "rule", "same"),
    [
        (None, ["gate=125"], ["select.gate=125"]),
        ("pam", [], ["select.scope=build"]),
        (None, ["by=err_2d"], ["select.by=err_2d"]),
        ("pam", ["reject=1/2"], ["select.preset=pam", "select.reject=1/2"]),
        (None, ["preset=handbooster-ho3d", "gates.err_mm=125", "gates.pa_err_mm=-1", *NO_MESH], HO3D),
    ],
)
def test_it_equals_a_build_with_that_rule(tmp_path, built, monkeypatch, preset, rule, same):
    before = content(built)
    wanted = content(build(tmp_path / "wanted", *same))
    assert wanted != before
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeGenerator, "generate", None)
        patch.setattr(fakes.FakeEstimator, "estimate", None)
        expected = plan_reselection(built, preset, rule)
        result = reselect(built, tmp_path / "out", preset, rule, workers=0)
        assert (result.summary.kept, result.summary.candidates) == (expected.kept, 40)
        assert expected.kept - expected.kept_before == expected.newly_kept - expected.newly_rejected
    assert content(tmp_path / "out") == wanted
    assert content(built) == before
    assert verify(tmp_path / "out").damaged == []
    assert not list((tmp_path / "out" / "work").glob("*"))
    assert len(MixedDataset(tmp_path / "out", batch_size=1)) == 14
    # Its identity is the new rule's: a build with that rule goes on in it, one with the old rule is refused.
    run_build(resolve(BuildConfig, fakes.CONFIG, same), tmp_path / "out", workers=0)
    with pytest.raises(ResumeMismatch, match=r"select\."):
        run_build(resolve(BuildConfig, fakes.CONFIG), tmp_path / "out", workers=0)


def test_a_stopped_reselection_goes_on(tmp_path, built, monkeypatch, no_models):
    stages = []

    def stop(*arguments):
        stages.append(arguments)
        if len(stages) == 2:
            raise KeyboardInterrupt
        return stage(*arguments)

    stage = reselecting._stage
    monkeypatch.setattr(reselecting, "_stage", stop)
    with pytest.raises(KeyboardInterrupt):
        reselect(built, tmp_path / "out", None, ["gate=125"], workers=0)
    reselect(built, tmp_path / "out", None, ["gate=125"], workers=0)
    reselect(built, tmp_path / "clean", None, ["gate=125"], workers=0)
    assert content(tmp_path / "out") == content(tmp_path / "clean")
    again = reselect(tmp_path / "out", tmp_path / "back", "default", workers=0)
    assert again.summary.kept == 30
    assert content(tmp_path / "back") == content(built)


def test_failed_inputs_stay_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("pam_aug.build.finish.FAILURE_BUDGET", 1.0)
    folder = build(tmp_path / "build", "source.bad=2", "real.bad=5")
    wanted = build(tmp_path / "wanted", "source.bad=2", "real.bad=5", "select.reject=0")
    assert reselect(folder, tmp_path / "out", None, ["reject=0"], workers=0).summary.kept == 32
    assert content(tmp_path / "out") == content(wanted)
    table = failures_path(tmp_path / "out", 1)
    assert table.read_bytes() == failures_path(wanted, 1).read_bytes()
    assert [row.index for row in read_failures(table)] == [5]


@pytest.mark.parametrize("error", [AbsentHand("no such hand"), LeftOut("no labels", reason="no labels")])
def test_inputs_that_never_had_candidates_stay_without(tmp_path, monkeypatch, error):
    item = fakes.FakeRollouts.item

    def absent(self, index):
        if self.name == "fake-rollouts" and index == 2:
            raise error
        return item(self, index)

    monkeypatch.setattr(fakes.FakeRollouts, "item", absent)
    folder = build(tmp_path / "build")
    wanted = build(tmp_path / "wanted", "select.reject=0")
    assert reselect(folder, tmp_path / "out", None, ["reject=0"], workers=0).summary.kept == 32
    assert content(tmp_path / "out") == content(wanted)


def test_what_cannot_be_selected_again_says_why(tmp_path, built, monkeypatch):
    for preset, rule, word in ((None, ["gat=3"], "gate"), ("pma", [], "pam"), (None, ["by=mm"], "err_mm")):
        with pytest.raises(ConfigError, match=word):
            reselect(built, tmp_path / "out", preset, rule, workers=0)
    with pytest.raises(ConfigError, match="the build itself"):
        reselect(built, built, "pam", workers=0)
    with pytest.raises(ConfigError, match=r"build\.json"):
        reselect(tmp_path, tmp_path / "out", "pam", workers=0)
    dropped = build(tmp_path / "dropped", "shards.keep_rejected=false")
    with pytest.raises(ConfigError, match="keep_rejected"):
        reselect(dropped, tmp_path / "out", "pam", workers=0)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(built, unfinished)
    (unfinished / "shards" / "syn-00001.json").unlink()
    with pytest.raises(ConfigError, match="syn-00001"):
        reselect(unfinished, tmp_path / "out", "pam", workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "version", "2")
    with pytest.raises(ResumeMismatch, match="generator_version"):
        reselect(built, tmp_path / "out", "pam", workers=0)
    assert not (tmp_path / "out").exists()


def test_damage_is_not_written_under_a_new_hash(tmp_path, built):
    folder = tmp_path / "damaged"
    shutil.copytree(built, folder)
    path = folder / "rejected" / "00001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardDamaged, match="00001"):
        reselect(folder, tmp_path / "out", "pam", workers=0)


def test_the_record_names_the_new_rule(tmp_path, built):
    reselect(built, tmp_path / "out", "pam", ["gate=125"], workers=0)
    record = orjson.loads((tmp_path / "out" / "build.json").read_bytes())
    wanted = {"reject": "0.25", "gate": 125.0, "by": "err_mm", "scope": "build"}
    assert record["identity"]["select"] == wanted
    assert record["config"]["select"] == {
        "preset": "pam", "reject": "", "gate": 125.0, "by": "err_mm", "scope": "", "gates": {}, "check_side": False,
    }  # fmt: skip
