"""`pam-aug rollout`: simulated grasps of a folder of meshes: an archive per object and seed, a table of success."""

import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from pam_aug.build.progress import Progress
from pam_aug.build.rollout_given import read_grasp, read_target
from pam_aug.build.rollout_video import film
from pam_aug.engines.local import Failure, LocalEngine
from pam_aug.errors import BudgetExceeded, ConfigError, PamAugError, SourceError
from pam_aug.hand import Side
from pam_aug.rollouts.archive import write_archive
from pam_aug.rollouts.scene import load_mesh
from pam_aug.rollouts.sim_scene import load_mujoco
from pam_aug.rollouts.simulate import PARAMETERS, TRIES, Prepared, prepare, simulate, to_archive
from pam_aug.seeds import derived_seed
from pam_aug.shards.atomic import write_atomic

__all__ = ["RolloutJob", "RolloutTable", "roll_out"]

_SUFFIXES: Final = (".obj", ".ply", ".stl", ".off", ".glb")
_TABLE: Final = "rollouts.json"
_FURTHEST: Final = 2.5  # standard deviations of a drawn shape value
_LARGEST_BETA: Final = 5.0


@dataclass(frozen=True)
class RolloutJob:
    """What `roll_out` does: which meshes, how many seeds, and what every rollout shares.

    `meshes` are files or folders (searched with `pattern`). `scale` takes mesh units to metres; `mass_kg` below 0 is
    found from the volume. `start` is a JSON file with T_world_obj and T_world_wrist (4x4, metres, z up, table at 0) and
    hand_pose (45, absolute axis-angle); `target` one with T_world_obj. `side` is the hand's; its shape is `betas` (up
    to 10 values, the rest 0) plus what each seed draws, normal with `shape_spread` as standard deviation, for all
    objects the same: a seed is a person. `video` films every success (`<seed>.mp4`).
    """

    meshes: tuple[str, ...]
    out: str
    seeds: int = 1
    first_seed: int = 0
    tries: int = TRIES
    scale: float = 1.0
    mass_kg: float = -1.0
    pattern: str = "**/*"
    start: str = ""
    target: str = ""
    side: str = "right"
    betas: tuple[float, ...] = ()
    shape_spread: float = 0.0
    video: bool = False

    def shape(self, seed: int) -> tuple[float, ...]:
        """The 10 shape values of a seed's hand."""
        betas = np.zeros(10)
        betas[: len(self.betas)] = self.betas
        if self.shape_spread > 0:
            rng = np.random.default_rng(derived_seed("hand shape", seed))
            betas += self.shape_spread * np.clip(rng.normal(size=10), -_FURTHEST, _FURTHEST)
        return tuple(float(b) for b in np.round(betas, 6))


@dataclass(frozen=True)
class _Unit:
    name: str
    path: str
    seed: int


@dataclass(frozen=True)
class RolloutTable:
    """Rows per object and seed, as in rollouts.json; meshes that could not be simulated at all, with the reason."""

    rows: tuple[dict[str, Any], ...]
    refused: dict[str, str]
    planned: int

    def as_dict(self) -> dict[str, Any]:
        """The table, the success per object and its share over all rollouts."""
        objects = {name: self._object(name) for name in sorted({r["object"] for r in self.rows})}
        share = float(np.mean([r["success"] for r in self.rows])) if self.rows else 0.0
        return {
            "planned": self.planned,
            "lift_success_share": share,
            "seconds_per_rollout": float(np.mean([r["seconds"] for r in self.rows])) if self.rows else 0.0,
            "objects": objects,
            "refused": self.refused,
            "rows": list(self.rows),
        }

    def as_text(self) -> str:
        """One line per object, then what was refused."""
        if not self.rows and not self.refused:
            return f"{self.planned} rollouts are to be made"
        lines = [f"{'object':32} {'success':>9} {'tries':>6} {'s/rollout':>9}  reasons of failed tries"]
        for name in sorted({r["object"] for r in self.rows}):
            o = self._object(name)
            reasons = ", ".join(f"{k} {v}" for k, v in sorted(o["reasons"].items()))
            lines.append(
                f"{name:32} {o['success']:>4}/{o['seeds']:<4} {o['tries']:6.1f} {o['seconds']:9.2f}  {reasons}"
            )
        total = sum(bool(r["success"]) for r in self.rows)
        if self.rows:
            lines.append(f"{total} of {len(self.rows)} rollouts succeeded ({total / len(self.rows):.0%})")
        lines += [f"refused {name}: {reason}" for name, reason in sorted(self.refused.items())]
        return "\n".join(lines)

    def _object(self, name: str) -> dict[str, Any]:
        rows = [r for r in self.rows if r["object"] == name]
        reasons: dict[str, int] = {}
        for row in rows:
            for attempt in row["attempts"] or [{"reason": "no_start"}]:
                if attempt["reason"]:
                    reasons[attempt["reason"]] = reasons.get(attempt["reason"], 0) + 1
        return {
            "seeds": len(rows),
            "success": sum(bool(r["success"]) for r in rows),
            "tries": float(np.mean([len(r["attempts"]) for r in rows])),
            "seconds": float(np.mean([r["seconds"] for r in rows])),
            "reasons": reasons,
        }


def roll_out(job: RolloutJob, workers: int = -1, dry_run: bool = False) -> RolloutTable:
    """Simulate every mesh with every seed into `job.out`; what is there already is kept, so the same command resumes.

    A success is `<object>/<seed>.npz` with the mesh beside it; every rollout has a `<seed>.json` record. A mesh that
    cannot be simulated is refused with its reason and the others go on; raises its error where all are refused, and
    BudgetExceeded where not one grasp succeeded.
    """
    _check(job)
    meshes = find_meshes(job.meshes, job.pattern)
    units = [_Unit(name, str(path), job.first_seed + s) for name, path in meshes.items() for s in range(job.seeds)]
    if dry_run:
        return RolloutTable((), {}, len(units))
    load_mujoco()
    Path(job.out).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    errors: dict[str, PamAugError] = {}
    count = workers if workers >= 0 else os.cpu_count() or 1
    with LocalEngine(partial(_make_work, job), count) as engine, Progress(len(units), "rollouts") as progress:
        for result in engine.run(_going(units, errors)):
            progress.add(1)
            if isinstance(result, Failure):
                errors.setdefault(result.unit.name, result.error)
            else:
                rows.append(result[1])
    if not rows and errors:
        raise next(iter(errors.values()))
    rows.sort(key=lambda r: (r["object"], r["seed"]))
    table = RolloutTable(tuple(rows), {name: str(error) for name, error in errors.items()}, len(units))
    write_atomic(Path(job.out) / _TABLE, json.dumps(table.as_dict(), indent=1).encode())
    if not any(r["success"] for r in rows):
        raise BudgetExceeded(
            f"{job.out}: none of {len(rows)} rollouts succeeded; {_TABLE} there says why\n{table.as_text()}"
        )
    return table


def find_meshes(places: Sequence[str], pattern: str = "**/*") -> dict[str, Path]:
    """Mesh files by object id: the file's stem, or its folder's name where the stems are not unique.

    Raises SourceError where there is no mesh, or where two would have one id.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            found = [place / f for f in sorted(glob.glob(pattern, root_dir=place, recursive=True))]
            files += [f for f in found if f.is_file() and f.suffix.lower() in _SUFFIXES]
        elif place.is_file():
            files.append(place)
        else:
            raise SourceError(f"{place}: no such mesh file or folder. Check the path.", path=str(place))
    if not files:
        raise SourceError(f"{', '.join(places)}: no mesh ({', '.join(_SUFFIXES)}) matches {pattern!r}", pattern=pattern)
    for name_of in (lambda f: f.stem, lambda f: f.parent.name, lambda f: f"{f.parent.name}-{f.stem}"):
        named = {name_of(f): f for f in files}
        if len(named) == len(files):
            return named
    raise SourceError("two meshes have the same file and folder name; choose some with --pattern", files=len(files))


def _check(job: RolloutJob) -> None:
    for name, low in (("seeds", 1), ("tries", 1), ("first_seed", 0)):
        if getattr(job, name) < low:
            raise ConfigError(f"rollout: {name} {getattr(job, name)} should be {low} or more")
    if not 0 < job.scale < 1e4:
        raise ConfigError(f"rollout: scale {job.scale} should be above 0; 0.001 takes millimetres to metres")
    if job.side not in ("right", "left"):
        raise ConfigError(f"rollout: side {job.side!r} should be right or left", side=job.side)
    if len(job.betas) > 10 or not all(abs(b) <= _LARGEST_BETA for b in job.betas) or not 0 <= job.shape_spread <= 2:
        raise ConfigError(
            f"rollout: betas {list(job.betas)} are up to 10 numbers from -{_LARGEST_BETA:g} to {_LARGEST_BETA:g}, "
            f"shape_spread {job.shape_spread} is 0 (always the same hand) to 2"
        )


def _going(units: Sequence[_Unit], errors: dict[str, PamAugError]) -> Iterator[_Unit]:
    """The units, without those of a mesh that was refused."""
    for unit in units:
        if unit.name not in errors:
            yield unit


def _make_work(job: RolloutJob) -> Any:
    return partial(_roll_one, job)


@lru_cache(maxsize=2)
def _prepared(path: str, name: str, scale: float, mass_kg: float, side: Side, betas: tuple[float, ...]) -> Prepared:
    mass = mass_kg if mass_kg >= 0 else None
    return prepare(load_mesh(path, name, scale), mass, side=side, betas=np.array(betas))


def _roll_one(job: RolloutJob, unit: _Unit) -> dict[str, Any]:
    """One object and seed: from its record where that is of the same job, else simulated."""
    folder = Path(job.out) / unit.name
    record, archive = folder / f"{unit.seed:04d}.json", folder / f"{unit.seed:04d}.npz"
    begin = time.perf_counter()
    betas = job.shape(unit.seed)
    ready = _prepared(unit.path, unit.name, job.scale, job.mass_kg, "left" if job.side == "left" else "right", betas)
    key = _key(job, ready, unit.seed)
    if record.is_file():
        row = json.loads(record.read_text())
        if row.get("key") == key and (archive.is_file() or not row["success"]):
            _film(job, archive, row["success"])
            return row
    grasp = read_grasp(job.start) if job.start else None
    target = read_target(job.target) if job.target else None
    rollout = simulate(ready, unit.seed, tries=job.tries, grasp=grasp, T_world_target=target)
    seconds = time.perf_counter() - begin
    folder.mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)
    if rollout.success:
        mesh = folder / f"mesh{Path(unit.path).suffix.lower()}"
        if not mesh.is_file() or hashlib.sha256(mesh.read_bytes()).hexdigest() != ready.mesh.sha256:
            temporary = mesh.with_name(f".{mesh.name}.{os.getpid()}.tmp")
            shutil.copyfile(unit.path, temporary)
            temporary.replace(mesh)
        write_archive(archive, to_archive(ready, rollout, mesh.name, job.scale))
    row = {
        "object": unit.name,
        "seed": unit.seed,
        "success": rollout.success,
        "reason": rollout.reason,
        "side": ready.side,
        "betas": list(betas),
        "attempts": [asdict(a) for a in rollout.attempts],
        "seconds": seconds,
        "mass_kg": ready.thing.mass_kg,
        "smallest_side_m": float(np.ptp(ready.mesh.vertices_m, axis=0).min()),
        "key": key,
    }
    write_atomic(record, json.dumps(row).encode())
    _film(job, archive, rollout.success)
    return row


def _film(job: RolloutJob, archive: Path, success: bool) -> None:
    """The video of a success, where it is wanted and not there; none is left of a failure."""
    video = archive.with_suffix(".mp4")
    if not success:
        video.unlink(missing_ok=True)
    elif job.video and not (video.is_file() and video.stat().st_mtime >= archive.stat().st_mtime):
        film(archive, video)


def _key(job: RolloutJob, ready: Prepared, seed: int) -> str:
    """Names everything that decides a rollout's bytes, so that a record of another command is not taken for ours."""
    given = [Path(p).read_text() if p else "" for p in (job.start, job.target)]
    parts = [PARAMETERS, ready.mesh.sha256, seed, job.tries, job.scale, job.mass_kg, load_mujoco().__version__, *given]
    parts += [ready.side, *ready.hand.betas.tolist()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
