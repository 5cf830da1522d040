"""Simulated grasps: the share of rollouts that lift their object 5 cm and hold it for 0.5 s, and what one takes.

    python benchmarks/stage_one.py --meshes FOLDER [--pattern '*/textured_meshlab.obj'] [--seeds 10] [--workers 1]

Every object is tried with every seed, up to 8 grasps each, their time included; decompositions are kept between runs
and not timed. Without --meshes: three shapes of our own. --quick takes 2 seeds.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rows import parser, print_rows, row

from pam_aug.build.rollouts import RolloutJob, find_meshes, roll_out
from pam_aug.errors import BudgetExceeded
from pam_aug.rollouts.convex_parts import convex_parts
from pam_aug.rollouts.scene import load_mesh

_NARROW_M = (0.02, 0.08)


def lift_success_rows(meshes: list[str], pattern: str, seeds: int, workers: int) -> list[dict[str, Any]]:
    """Rows lift_success_share, the same over objects whose smallest side is 2 to 8 cm, seconds, and one per object."""
    for name, path in find_meshes(meshes, pattern).items():
        mesh = load_mesh(path, name)
        convex_parts(mesh.vertices_m, mesh.faces)
    with tempfile.TemporaryDirectory() as folder:
        try:
            table = roll_out(RolloutJob(tuple(meshes), folder, seeds=seeds, pattern=pattern), workers)
        except BudgetExceeded:
            return [row("lift_success_share", 0.0, "share")]
    made = table.rows
    narrow = [r["success"] for r in made if _NARROW_M[0] <= r["smallest_side_m"] <= _NARROW_M[1]]
    rows = [row("lift_success_share", float(np.mean([r["success"] for r in made])), "share")]
    if narrow:
        rows.append(row("lift_success_share_2_to_8_cm", float(np.mean(narrow)), "share"))
    rows.append(row("seconds_per_rollout", [r["seconds"] for r in made], "s"))
    rows.append(row("mean_seconds_per_rollout", float(np.mean([r["seconds"] for r in made])), "s"))
    for name in sorted({r["object"] for r in made}):
        rows.append(row(f"lift {name}", float(np.mean([r["success"] for r in made if r["object"] == name])), "share"))
    return rows


def own_shapes(folder: Path) -> list[str]:
    """A box, a can and a ball, written into `folder`; what `lift_success_rows` takes as meshes."""
    import trimesh

    shapes = {
        "box": trimesh.creation.box((0.05, 0.06, 0.12)),
        "can": trimesh.creation.cylinder(0.033, 0.1),
        "ball": trimesh.creation.icosphere(3, 0.03),
    }
    for name, shape in shapes.items():
        shape.export(folder / f"{name}.obj")
    return [str(folder)]


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--meshes", nargs="*", default=[])
    arguments.add_argument("--pattern", default="**/*")
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--workers", type=int, default=1)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        places = given.meshes or own_shapes(Path(temporary))
        found = lift_success_rows(places, given.pattern, 2 if given.quick else given.seeds, given.workers)
    print_rows(found, given.json, ["mujoco", "coacd", "numpy"])
