"""`pam-aug plan`: what it counts, what it scales from a trial, and what it says of builds that cannot run here."""

import json
import sys

import fakes
import pytest
import yaml

from pam_aug import cli, registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.plan import GPUS, estimate, parse_gpu
from pam_aug.build.run import default_workers, plan, run_build
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing, ConfigError


@pytest.fixture(autouse=True)
def _fakes(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "load", registry.load)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setenv("PAM_AUG_WEIGHTS", str(tmp_path / "weights"))
    fakes.install()


FLUX = {
    "source": {"converter": "demo-rollouts", "size": [64, 48], "count": 3},
    "generate": {"generator": "flux", "candidates": 30},
    "score": {"estimator": "fake"},
    "real": {"converter": "fake-real", "count": 4},
}


def configured(tree, *overrides) -> BuildConfig:
    return resolve(BuildConfig, tree, overrides)


def test_a_plan_is_close_to_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.01)
    config = configured(fakes.CONFIG)
    told = estimate(config, workers=0)
    assert (told["inputs"], told["candidates"], told["images_kept"], told["real_images"]) == (5, 40, 30, 7)
    result = run_build(config, tmp_path / "out", workers=0)
    assert result.summary.kept == told["images_kept"]
    for name, pattern in (
        ("synthetic_shards_mb", "shards/syn-*.tar"),
        ("rejected_mb", "rejected/*.tar"),
        ("real_shards_mb", "shards/real-*.tar"),
    ):
        real = sum(path.stat().st_size for path in (tmp_path / "out").glob(pattern)) / 1e6
        assert told[name] == pytest.approx(real, rel=0.25), name
    assert told["wall_s"] > 0.4  # 40 candidates of 10 ms each
    assert estimate(config, workers=4)["wall_s"] < 0.6 * told["wall_s"]
    assert told.missing == ()
    assert "generator_files" not in plan(config).identity  # only where a generator reads files of the user's
    assert "estimate: a trial of 8 candidates" in told.as_text()
    assert not list(tmp_path.glob("weights"))


def test_the_rule_says_how_many_are_kept():
    whole = estimate(configured(fakes.CONFIG, "select.preset=pam", "generate.candidates=3"), workers=0)
    assert whole["images_kept"] == 15 - 4  # ceil(15 / 4) of all
    gated = estimate(configured(fakes.CONFIG, "select.gate=20", "select.reject=0"), workers=0)
    kept = next(figure for figure in gated.figures if figure.name == "images_kept")
    assert (kept.value, kept.at_most) == (40, True)
    assert "err_mm > 20" in kept.basis


def test_inputs_that_fail_are_passed_over():
    told = estimate(configured(fakes.CONFIG, "source.bad=1"), workers=0)
    assert told["synthetic_shards_mb"] > 0
    told = estimate(configured(fakes.CONFIG, "source.count=1", "source.bad=0"), workers=0)
    assert "none of 1 inputs that were tried could be used; the last: input 0: item 0 is broken" in told.notes[-1]
    assert "wall_s" not in {figure.name for figure in told.figures}


def test_flux_is_planned_without_its_weights():
    pytest.importorskip("diffusers")
    config = configured(FLUX)
    told = estimate(config, gpu=GPUS["h100"])
    with pytest.raises(AssetMissing) as caught:
        plan(config)
    assert list(told.missing) == [f"flux needs {need}" for need in caught.value.missing]
    assert "controlnet.bin" in told.as_text()
    assert told["tflop_per_candidate"] == pytest.approx(730, rel=0.01)
    assert told["s_per_candidate"] == pytest.approx(730 / (989.4 * 0.5), rel=0.01)
    assert told["gpu_s"] == pytest.approx(90 * told["s_per_candidate"], rel=0.01)
    assert told["wall_s"] > told["gpu_s"]
    assert told["gpu_gb_peak"] == pytest.approx(30.5, abs=2)
    per_image = told["synthetic_shards_mb"] * 1e6 / (3 * 22)
    assert 64 * 48 * 0.6 < per_image < 64 * 48 * 0.6 + 12000  # the labels of a tiny image weigh more than it
    assert all("assumption" in f.basis or "estimate" in f.basis for f in told.figures if f.name.startswith("gpu"))
    assert not any("--workers" in note for note in told.notes)  # one by default: each would load its own FLUX
    assert default_workers(config) == 1 < default_workers(config, ["real"])
    assert any("--workers 1" in note for note in estimate(config, workers=2).notes)
    broken = configured(FLUX, "source={converter: fake-rollouts, bad: 0}")  # its first input cannot be used
    assert 48 * 48 * 0.6 < estimate(broken)["synthetic_shards_mb"] * 1e6 / (6 * 22) < 48 * 48 * 0.6 + 12000
    half = estimate(config, gpu=GPUS["h100"], achieved=0.25)
    assert half["gpu_s"] == pytest.approx(2 * told["gpu_s"])


def test_flux_options_move_the_plan():
    pytest.importorskip("diffusers")
    small = parse_gpu("4090")
    told = estimate(configured(FLUX, "generate.options.memory_gb=24"), gpu=small)
    assert told["gpu_gb_peak"] < 24
    assert any("offload" in note for note in told.notes)
    told = estimate(configured(FLUX, "generate.options.prompt=drawn"), gpu=small)
    assert any("do not fit 4090's 24 GB" in note for note in told.notes)
    assert told["gpu_gb_encoding"] > 38  # encoders beside the transformer
    slow = estimate(configured(FLUX, "generate.options.dtype=float32"), gpu=small)
    assert slow["s_per_candidate"] == pytest.approx(2 * told["s_per_candidate"], rel=0.01)
    steps = estimate(configured(FLUX, "generate.options.steps=14"), gpu=small)
    assert steps["s_per_candidate"] == pytest.approx(told["s_per_candidate"] / 2, rel=0.01)


def test_gpus_by_name_or_rate():
    assert parse_gpu("H200").memory_gb == 141
    assert parse_gpu("500") == ("500 TFLOP/s", 500.0, 0.0, 0.0)
    for text in ("h101", "-3", "0", "inf", "nan"):
        with pytest.raises(ConfigError, match="name one of h100, h200, a100, l40s, 4090"):
            parse_gpu(text)
    with pytest.raises(ConfigError, match="achieved"):
        estimate(configured(fakes.CONFIG), achieved=0)


def test_the_command(monkeypatch, capsys, tmp_path):
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(fakes.CONFIG))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pam-aug", "plan", str(path), "--workers", "0", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().out

    code, out = run("--inputs", "2", "--json")
    assert code == 0
    assert json.loads(out)["figures"]["candidates"]["value"] == 16
    code, out = run("--inputs", "2")
    assert code == 0
    assert "nothing was written" in out
    assert list(tmp_path.iterdir()) == [path]
    pytest.importorskip("diffusers")
    code, out = run("--generator", "flux", "--gpu", "a100", "--json")
    assert code == 2
    assert len(json.loads(out)["missing"]) == 2
