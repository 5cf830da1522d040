"""The scenes of the physics benchmark are what they are called, told by their geometry, and come out the same again."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from pam_aug.rollouts.stability import SIX_DIRECTIONS


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import physics

    yield physics
    for name in ("physics", "physics_scenes", "stage_one", "rows"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("number", [1, 4])  # cans
def test_opposed_and_one_sided_hands_are_so(benchmark, number):
    bodies = benchmark.own_bodies()
    normals = {}
    for opposed in (True, False):
        scene = benchmark.Sampler(bodies).scene(opposed, number)
        again = benchmark.Sampler(bodies).scene(opposed, number)
        assert np.array_equal(scene.capsules.starts_m, again.capsules.starts_m)
        assert (scene.opposed, bodies[scene.body].name) == (opposed, "can")
        surface = bodies[scene.body].surface
        pressed = scene.capsules.distance_m(surface.points_m) < -1e-4
        normals[opposed] = surface.normals[pressed]
        assert pressed.any()
    assert (normals[True] @ normals[True].T).min() < -0.7
    assert (normals[False] @ normals[False].mean(0)).min() > 0


def test_shares_count_their_own_kind(benchmark):
    bodies = benchmark.own_bodies()
    sampler = benchmark.Sampler(bodies)
    scenes = [sampler.scene(False, 1), sampler.scene(False, 2)]
    held, seconds = benchmark.hold(bodies, scenes, SIX_DIRECTIONS, 0, 2)
    assert len(held.moved_m) == len(held.seconds) == len(seconds) == 2
    assert all(1 <= len(moved) <= 6 for moved in held.moved_m)
    assert benchmark.pass_share(held, scenes, False) == np.mean([max(m) <= 0.01 for m in held.moved_m])
