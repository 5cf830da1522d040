"""Physics of grasps: simulations per second, and whether screening tells holding hands from touching ones.

    python benchmarks/physics.py [--quick] [--json] [--workers 2] [--scenes 400] [--seeds 2]
                                 [--meshes FOLDER --pattern '*/textured_meshlab.obj']

Scenes are boxes, cans and tori of hand size at the density of water with the bundled open hand, half of them opposed
grasps and half one-sided touches (`physics_scenes.py` says how they are told apart, by meshes alone). A simulation is
100 steps of 2 ms with one direction of gravity; `grip` takes six and stops at the first failure. The peer of the pass
shares is the force and mass of the preset `deepsimho` (1000 N, the mass counted twice, six directions), which lets
touching hands pass. `--meshes`: the sampler's grasps on given meshes, time per object; decompositions are kept between
runs and not timed. `lift_success_share` is of `stage_one.py` on three shapes of our own; that script takes real meshes.
--quick takes 200 scenes, once, and a seed.
"""

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from physics_scenes import Body, Sampler, Scene, make_body, own_bodies
from rows import parser, print_rows, row
from stage_one import lift_success_rows, own_shapes

from pam_aug.build.rollouts import find_meshes
from pam_aug.engines import Failure, LocalEngine
from pam_aug.rollouts.physics import SR_THRESHOLD_M
from pam_aug.rollouts.scene import load_mesh
from pam_aug.rollouts.stability import DEEPSIMHO, GRIP, SIX_DIRECTIONS, ObjectModel

_CHUNK = 6  # scenes in a unit of work
_ON_A_MESH = 12  # grasps of each given mesh


class Unit(NamedTuple):
    """Scenes to simulate; `first` is the first one's place."""

    first: int
    scenes: list[Scene]
    directions: np.ndarray


class Held(NamedTuple):
    """How far each scene's object got in each direction that was simulated, and the seconds of each scene."""

    moved_m: list[tuple[float, ...]]
    seconds: list[float]


def make_sampling(bodies: list[Body]) -> Any:
    sampler = Sampler(bodies)
    return lambda unit: sampler.scene(*unit)


def make_simulation(bodies: list[Body], peer: bool) -> Any:
    """The function that simulates a unit. With `peer`: `deepsimho`'s force and masses, on the same capsules."""
    preset = replace(GRIP, name="peer", grip_N=DEEPSIMHO.grip_N, visual_mass=True) if peer else GRIP
    models = [ObjectModel(b.parts, preset, (b.verts_m, b.faces)) for b in bodies]

    def simulate(unit: Unit) -> Held:
        held = Held([], [])
        for scene in unit.scenes:
            start = time.perf_counter()
            result = models[scene.body].hold([scene.capsules], np.eye(4), unit.directions)
            held.seconds.append(time.perf_counter() - start)
            held.moved_m.append(result.displacements_m)
        return held

    return simulate


def sample(bodies: list[Body], count: int, workers: int) -> list[Scene]:
    """`count` scenes, opposed and one-sided in turn."""
    with LocalEngine(partial(make_sampling, bodies), workers) as engine:
        units = [(i % 2 == 0, i // 2) for i in range(count)]
        found = {outcome[0]: outcome[1] for outcome in engine.run(units) if not isinstance(outcome, Failure)}
    return [found[unit] for unit in units]


def hold(
    bodies: list[Body], scenes: list[Scene], directions: np.ndarray, workers: int, repeats: int, peer: bool = False
) -> tuple[Held, list[float]]:
    """What became of each scene, and the seconds of each repetition over all; models are compiled before."""
    units = [Unit(i, scenes[i : i + _CHUNK], directions) for i in range(0, len(scenes), _CHUNK)]
    held, seconds = Held([], []), []
    with LocalEngine(partial(make_simulation, bodies, peer), workers) as engine:
        list(engine.run([Unit(0, scenes[:64:2], directions[:1])] * 4 * max(workers, 1)))
        for _ in range(repeats):
            start = time.perf_counter()
            done: dict[int, Held] = {}
            for outcome in engine.run(units):
                if isinstance(outcome, Failure):
                    raise outcome.error
                done[outcome[0].first] = outcome[1]
            seconds.append(time.perf_counter() - start)
            parts = [done[unit.first] for unit in units]
            held = Held([m for part in parts for m in part.moved_m], [s for part in parts for s in part.seconds])
    return held, seconds


def pass_share(held: Held, scenes: list[Scene], opposed: bool) -> float:
    passed = [
        max(moved) <= SR_THRESHOLD_M for moved, s in zip(held.moved_m, scenes, strict=True) if s.opposed == opposed
    ]
    return float(np.mean(passed))


def scene_rows(count: int, workers: int, repeats: int) -> list[dict[str, Any]]:
    """Speed and pass shares over boxes, cans and tori."""
    bodies = own_bodies()
    scenes = sample(bodies, count, workers)
    _, single = hold(bodies, scenes, SIX_DIRECTIONS[2:3], workers, repeats)
    held, six = hold(bodies, scenes, SIX_DIRECTIONS, workers, repeats)
    peer, _ = hold(bodies, scenes, SIX_DIRECTIONS, workers, 1, peer=True)
    name = "1000 N, double mass"
    rows = [
        row("simulations_per_s", [len(scenes) / s for s in single], "1/s"),
        row("grip_grasps_per_s", [len(scenes) / s for s in six], "1/s"),
    ]
    for kind, opposed in (("opposed", True), ("one_sided", False)):
        share, theirs = pass_share(held, scenes, opposed), pass_share(peer, scenes, opposed)
        of = sum(s.opposed == opposed for s in scenes)
        rows.append(row(f"{kind}_pass_share", share, f"of {of}", name, theirs, np.sqrt(share * (1 - share) / of)))
    return rows


def mesh_rows(places: list[str], pattern: str, workers: int) -> list[dict[str, Any]]:
    """Speed over given meshes: the mean over objects, and each object's."""
    meshes = [load_mesh(path, name) for name, path in find_meshes(places, pattern).items()]
    bodies = [make_body(mesh.name, mesh.vertices_m, mesh.faces) for mesh in meshes]
    sampler = Sampler(bodies)
    scenes = [sampler.any_grasp(i, number) for i in range(len(bodies)) for number in range(_ON_A_MESH)]
    single, _ = hold(bodies, scenes, SIX_DIRECTIONS[2:3], workers, 1)
    _, whole = hold(bodies, scenes, SIX_DIRECTIONS, workers, 1)
    each = {b.name: [s for s, scene in zip(single.seconds, scenes) if scene.body == i] for i, b in enumerate(bodies)}
    means = {name: float(np.mean(seconds)) for name, seconds in each.items()}
    return [
        row("mesh_ms_per_simulation", 1e3 * float(np.mean(list(means.values()))), f"ms, {len(bodies)} objects"),
        row("mesh_simulations_per_s", max(workers, 1) / float(np.mean(list(means.values()))), "1/s"),
        row("mesh_grip_grasps_per_s", len(scenes) / whole[0], "1/s"),
        *(
            row(f"ms {name}", 1e3 * mean, f"ms, {len(bodies[i].parts)} parts")
            for i, (name, mean) in enumerate(means.items())
        ),
    ]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--workers", type=int, default=2, help="processes that simulate")
    arguments.add_argument("--scenes", type=int, default=0, help="how many, half of each kind (default 400, quick 200)")
    arguments.add_argument("--seeds", type=int, default=0, help="rollouts of each of our shapes (default 2, quick 1)")
    arguments.add_argument("--meshes", nargs="*", default=[], help="mesh files or folders, for the time per object")
    arguments.add_argument("--pattern", default="**/*", help="which files of a folder are meshes")
    given = arguments.parse_args()
    rows = scene_rows(given.scenes or (200 if given.quick else 400), given.workers, 1 if given.quick else 3)
    if given.meshes:
        rows += mesh_rows(given.meshes, given.pattern, given.workers)
    with tempfile.TemporaryDirectory() as folder:
        seeds = given.seeds or (1 if given.quick else 2)
        rows += lift_success_rows(own_shapes(Path(folder)), "**/*", seeds, given.workers)
    print_rows(rows, given.json, ("pam_aug", "mujoco", "numpy"))


if __name__ == "__main__":
    main()
