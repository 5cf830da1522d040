"""Does the filter find what is wrong? The benchmark's generator shows another pose in 8 of an input's 30 candidates."""

import sys
from pathlib import Path

import numpy as np
import pytest

from pam_aug.estimators.simplehand import SimpleHandEstimator


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import estimators

    yield estimators
    for name in ("estimators", "candidates", "rows"):
        sys.modules.pop(name, None)


def shares(benchmark, inputs: int, distances_mm: tuple[float, ...]) -> dict[tuple[str, float], float]:
    """Per rule and distance, the share of the mis-posed candidates among the 8 of 30 that the rule rejects."""
    found = benchmark.rejection(SimpleHandEstimator(), inputs, distances_mm, lambda text: None)
    assert all(len(values) == inputs for values in found.values())
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_hands_30_mm_off_are_rejected(benchmark):
    found = shares(benchmark, 2, (30.0,))
    assert found["2d_", 30.0] >= 0.9
    assert found["", 30.0] >= 0.7  # chance is 0.27


@pytest.mark.slow
def test_the_image_error_finds_nine_of_ten_at_20_and_30_mm(benchmark):
    found = shares(benchmark, 16, (20.0, 30.0))
    assert found["2d_", 20.0] >= 0.9
    assert found["2d_", 30.0] >= 0.9
    assert found["2d_", 20.0] > found["", 20.0]
