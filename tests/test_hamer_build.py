"""HaMeR as the judge of a build. Weights are random and narrow: form is tested, not skill."""

import math
import sys
from dataclasses import asdict

import fakes
import pytest
import yaml
from fake_hamer import TINY, write_checkpoint

from pam_aug import cli, registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing
from pam_aug.estimators.hamer import HamerEstimator, HamerOptions
from pam_aug.estimators.hamer_net import HamerConfig
from pam_aug.report.summary import read_all_candidates


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("hamer") / "hamer.ckpt")


def test_a_build_is_judged_by_it(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    options = {"checkpoint": str(checkpoint), "net": asdict(TINY), "device": "cpu"}
    tree = {**fakes.CONFIG, "score": {"estimator": "hamer", "options": options}}
    config = resolve(BuildConfig, tree, ["source.count=1", "real.count=1", "generate.candidates=4"])
    run_build(config, tmp_path / "out", workers=0)
    rows = read_all_candidates(tmp_path / "out")
    assert [row.estimator for row in rows] == ["hamer"] * 4
    assert all(math.isfinite(row.err_mm) and 0 <= row.mask_iou <= 1 for row in rows)
    assert len({row.err_mm for row in rows}) == 4
    lost = resolve(BuildConfig, tree, ["score.options.checkpoint=/nowhere/hamer.ckpt"])
    with pytest.raises(AssetMissing, match="HaMeR's published checkpoint"):
        run_build(lost, tmp_path / "lost", workers=0)


@pytest.mark.parametrize("judges", ["hamer", "hamer,fake"])
def test_the_command_line_names_it(monkeypatch, checkpoint, tmp_path, judges):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    options = {"checkpoint": str(checkpoint), "net": asdict(TINY), "device": "cpu"}
    tree = {**fakes.CONFIG, "score": {"options": {"hamer": options} if "," in judges else options}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    arguments = ["build", str(tmp_path / "tiny.yaml"), "--out", str(out), "--estimator", judges, "--workers", "0"]
    arguments += ["--candidates", "4", "--set", "source.count=1", "--set", "real.count=1"]
    monkeypatch.setattr(sys, "argv", ["pam-aug", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    rows = read_all_candidates(out)
    assert {row.estimator for row in rows} == {judges if "," not in judges else f"mean({judges})"}
    assert all(math.isfinite(row.err_mm) and row.vert_err_mm > 0 for row in rows)
    assert [len(row.judgements) for row in rows] == [2 if "," in judges else 0] * 4


def test_the_registry_knows_it_and_a_recipe_can_set_it():
    assert registry.load("estimators", "hamer") is HamerEstimator
    options = resolve(HamerOptions, {"net": {"width": 64}, "precision": "bf16"}, where="score.options")
    assert options.net == HamerConfig(width=64)
    assert options.precision == "bf16"
