"""The benchmark's path for a GPU, run tiny on the CPU: the same code with another device and other sizes."""

import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import flux_candidates

    yield flux_candidates
    for name in ("flux_candidates", "flux_models", "rows"):
        sys.modules.pop(name, None)


def options(benchmark, **more):
    return benchmark.FluxOptions(width=64, height=48, steps=2, dtype="float32", device="cpu", **more)


def test_the_sweep_and_the_peer_run_tiny(benchmark):
    gpu = benchmark.GPUS["h100"]
    rows = benchmark.full_rows(benchmark.TINY, options(benchmark), (1, 3), gpu, repeats=1, budget_s=60.0)
    values = {row["name"]: row["value"] for row in rows}
    assert list(values) == [
        "s_per_candidate_b1", "s_per_candidate_b3", "s_per_candidate", "input_of_30_s",
        "peak_memory_gb_b1", "peak_memory_gb_b3", "bf16_share_b1", "bf16_share_b3",
    ]  # fmt: skip
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    assert values["s_per_candidate"] == min(values["s_per_candidate_b1"], values["s_per_candidate_b3"])
    peers = {row["name"]: row["peer"] for row in rows}
    assert peers["s_per_candidate"] == benchmark.PEER
    assert peers["peak_memory_gb_b1"] == "pam-aug plan"


def test_the_peer_paints_the_same_picture(benchmark):
    bench = benchmark.Bench(options(benchmark), benchmark.TINY)
    bench.prepare(benchmark.demo_scene(64, 48))
    ours = bench.paint([7, 8])
    bench.to_float32()
    theirs = torch.cat([bench.paint_officially(7), bench.paint_officially(8)])
    assert ours is not None
    assert ours.shape == theirs.shape == (2, 48, 64, 3)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert (ours[0].int() - ours[1].int()).abs().float().mean() > 1


def test_a_sweep_stops_where_memory_does(benchmark, monkeypatch, capsys):
    real = benchmark.Bench.paint
    monkeypatch.setattr(benchmark.Bench, "paint", lambda self, seeds: None if len(seeds) > 1 else real(self, seeds))
    rows = benchmark.full_rows(benchmark.TINY, options(benchmark), (1, 2, 4), None, repeats=1, budget_s=60.0)
    assert "batch 2 does not fit" in capsys.readouterr().err
    assert {row["name"] for row in rows} >= {"s_per_candidate_b1", "input_of_30_s"}
    assert not any("b2" in row["name"] or "share" in row["name"] for row in rows)
