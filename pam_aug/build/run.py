"""A build from start to end: plan, check everything, run the units, write the mix, say what came out."""

import os
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pam_aug import registry
from pam_aug.build.config import BuildConfig, check, open_backend, open_converter, open_judges, pixel_fields
from pam_aug.build.finish import Result, finish
from pam_aug.build.hand_crop import HandCrops
from pam_aug.build.layout import candidates_path, hands_folder, shards_folder
from pam_aug.build.progress import Progress
from pam_aug.build.resume import claim_folder
from pam_aug.build.workdir import InputWork
from pam_aug.build.worker import Job, MakeCandidates, PackSynthetic, WriteReal, make_worker
from pam_aug.config import to_dict
from pam_aug.engines import Failure, LocalEngine
from pam_aug.errors import AssetMissing, BudgetExceeded, ConfigError
from pam_aug.generate.base import Filed
from pam_aug.hand import save_npz
from pam_aug.rollouts.screening import NO_SIMULATION
from pam_aug.rollouts.stability import engine_version
from pam_aug.schema import SCHEMA_VERSION
from pam_aug.select import select
from pam_aug.shards.manifest import manifest_table, read_candidates
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import index_path, is_committed, marker_path, shard_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Plan", "default_workers", "plan", "run_build"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before any work: sources opened, models found, units numbered.

    `real_groups` are the real images with which a new group begins, where one worker had better do a whole group.
    """

    config: BuildConfig
    real_section: dict[str, Any]
    identity: dict[str, Any]
    hands: dict[str, Any]
    real_shards: tuple[Sequence[int], ...]
    synthetic_shards: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = field(default=())
    real_groups: Sequence[int] = ()

    @property
    def inputs(self) -> int:
        return sum(map(len, self.synthetic_shards))

    def as_dict(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "candidates": self.inputs * self.config.generate.candidates,
            "synthetic_shards": len(self.synthetic_shards),
            "real_images": sum(map(len, self.real_shards)),
            "real_shards": len(self.real_shards),
            "ratio": self.config.mix.ratio,
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        rows = self.as_dict()
        notes = rows.pop("notes")
        lines = [f"{name.replace('_', ' '):18} {value}" for name, value in rows.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in notes), "nothing was written (dry run)"])


def plan(config: BuildConfig, parts: Sequence[str] = ("real", "synthetic"), missing: list[str] | None = None) -> Plan:
    """Open what the configuration names and number the units of work. Raises before anything is written.

    Files that generator and estimators lack are an AssetMissing, or are added to `missing` where it is given.
    """
    check(config)
    notes: list[str] = []
    source = open_converter(config.source, "source")
    real_section = dict(config.real) if "real" in parts else {}
    hands = dict(source.hand_assets())
    identity: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "parts": list(parts)}
    fields = pixel_fields(config)

    synthetic: list[tuple[int, ...]] = []
    if "synthetic" in parts:
        count = len(source) if config.inputs == -1 else min(config.inputs, len(source))
        if config.inputs > len(source):
            notes.append(f"the source has {len(source)} inputs, {config.inputs} were asked for")
        if not count:
            raise ConfigError("the source has no inputs: check its options", source=config.source)
        _needs_hands(source, "generate from it")
        spread = [i * len(source) // count for i in range(count)]
        if isinstance(source, HandCrops):
            notes.append(f"each hand of {count} images is an input; inputs are counted as if every image had two")
            spread = [slot for image in spread for slot in source.slots(image)]
        synthetic = _slices(tuple(spread), config.shards.inputs_per_shard)
        generate = config.generate
        generator = open_backend("generators", generate.generator, generate.options, "generate.options", missing)
        if isinstance(generator, Filed) and not generator.requires():
            identity["generator_files"] = generator.content()
        versions = {judge.name: judge.version for judge in open_judges(config.score, missing)}
        judged_by = next(iter(versions.values())) if len(versions) == 1 else versions
        if config.screen.on:
            config.screen.check()
            if config.screen.preset != NO_SIMULATION:
                identity["screen_engine"] = engine_version()
        identity |= {"generator_version": generator.version, "estimator_version": judged_by}

    real: list[Sequence[int]] = []
    groups: Sequence[int] = ()
    if "real" in parts and "shards" not in real_section:
        if not real_section and source.has_images:
            real_section = dict(config.source)
        elif not real_section and "synthetic" in parts:
            real_section = {"converter": "demo-real"}
            notes.append("the source has no images and no --real was given: the real half is the stand-in demo-real")
        elif not real_section:
            raise ConfigError(
                f"{source.name} has no images to convert; use `build` or `generate` on it", source=source.name
            )
        stand_in = open_converter(real_section, "real")
        if not stand_in.has_images:
            raise ConfigError(f"real.converter: {stand_in.name} has no images; name a dataset or give --real DIR")
        if config.shards.seg or (config.shards.depth and not config.shards.sensor_depth):
            _needs_hands(stand_in, "draw depth and segmentation")
        if config.shards.sensor_depth and not getattr(stand_in, "has_depth", False):
            raise ConfigError(
                f"{stand_in.name}: the dataset has no depth of a sensor to copy; `--depth drawn` (shards.depth_from) "
                "draws it from the labels",
                source=stand_in.name,
            )
        if isinstance(stand_in, HandCrops) and not stand_in.hand_assets() and not stand_in.has_hands():
            _needs_hands(stand_in, "crop its hands")
        notes += getattr(stand_in, "notes", ())  # what a dataset leaves out or lacks, in its own words
        hands |= stand_in.hand_assets()
        real = _slices(range(len(stand_in)), config.shards.samples_per_shard)
        groups = getattr(stand_in, "group_starts", ())
    elif "real" in parts and not list(Path(real_section["shards"]).glob("*.tar")):
        folder = real_section["shards"]
        raise ConfigError(
            f"--real {folder}: holds no shard (*.tar); give the shards/ folder of a conversion", path=folder
        )
    identity |= {
        "hands": {name: assets.sha256 for name, assets in sorted(hands.items())},
        **fields,
        "real": real_section,
    }
    return Plan(config, real_section, identity, hands, tuple(real), tuple(synthetic), tuple(notes), groups)


def run_build(
    config: BuildConfig, out: Path, parts: Sequence[str] = ("real", "synthetic"), workers: int = -1
) -> Result:
    """Build into `out`, or go on with the build that it holds. Raises PamAugError with what to do; nothing is lost."""
    todo = plan(config, parts)
    claim_folder(out, todo.identity, to_dict(config))
    for name, assets in todo.hands.items():
        if name.startswith("fitted:"):
            path = hands_folder(out) / f"{assets.sha256}.npz"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                save_npz(assets, path)
    known = _run_units(todo, out, workers if workers >= 0 else default_workers(config, parts))
    return finish(config, out, real_folder=todo.real_section.get("shards", ""), notes=todo.notes, known=known)


def default_workers(config: BuildConfig, parts: Sequence[str] = ("real", "synthetic")) -> int:
    """Processes where no number is given: one per core, or one alone where the generator fills a GPU by itself."""
    if "synthetic" in parts and getattr(registry.load("generators", config.generate.generator), "fills_gpu", False):
        return 1
    return os.cpu_count() or 1


def _needs_hands(source: Any, purpose: str) -> None:
    """Raises AssetMissing where a source has no hand model, so that no hand of it can be posed."""
    if not source.hand_assets():
        raise AssetMissing(
            f"{source.name}: to {purpose}, its hands must be posed with MANO, and no MANO files were given. Register "
            "at https://mano.is.tue.mpg.de and give the folder of MANO_LEFT.pkl and MANO_RIGHT.pkl as source.mano_dir "
            f"or $MANO_DIR. What works without: `pam-aug convert {source.name}`, whole images and those labels that "
            "the dataset itself gives, no depth and no segmentation",
            source=source.name,
        )


def _slices(items: Any, size: int) -> list[Any]:
    return [items[i : i + size] for i in range(0, len(items), size)]  # of a range: ranges, which take no memory


def _run_units(todo: Plan, out: Path, workers: int) -> "dict[tuple[str, str], pa.Table]":
    """Do what is not committed yet. One bad input is rows with a reason; anything worse is raised here.

    Returns the manifest's rows of the real shards that were written, by name and sha256: some 400 bytes per image.
    """
    known: dict[tuple[str, str], pa.Table] = {}
    shards = shards_folder(out)
    real = {
        s: indices for s, indices in enumerate(todo.real_shards) if not is_committed(shards / shard_name("real", s))
    }
    synthetic = {
        s: indices for s, indices in enumerate(todo.synthetic_shards) if not is_committed(shards / shard_name("syn", s))
    }
    if not real and not synthetic:
        return known
    candidates = todo.config.generate.candidates
    total = sum(map(len, real.values())) + candidates * sum(map(len, synthetic.values()))
    job = Job(todo.config, todo.real_section, out)
    grouped: dict[int, list[WriteReal]] = {}
    if len(todo.real_groups) and workers > 1:
        for s, indices in real.items():
            grouped.setdefault(bisect_right(todo.real_groups, indices[0]), []).append(WriteReal(s, indices))
    whole_build = todo.config.select.resolved().scope == "build"
    left = Counter({s: len(indices) for s, indices in synthetic.items()})
    ready: deque[PackSynthetic] = deque()

    def units() -> Iterator[Any]:
        for s, indices in real.items() if not grouped else ():
            yield WriteReal(s, indices)
        for s, indices in synthetic.items():
            for position, index in enumerate(indices):
                while ready:
                    yield ready.popleft()
                yield MakeCandidates(s, position, index)

    with LocalEngine(partial(make_worker, job), workers) as engine, Progress(total, "images") as progress:

        def go(outcomes: Iterator[Any]) -> None:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    if isinstance(outcome.error, BudgetExceeded):
                        _forget(out, outcome.error)
                    raise outcome.error
                unit, result = outcome
                if isinstance(unit, MakeCandidates):
                    progress.add(result)
                    left[unit.shard] -= 1
                    if not left[unit.shard] and not whole_build:
                        ready.append(PackSynthetic(unit.shard, synthetic[unit.shard]))
                elif isinstance(unit, WriteReal):
                    progress.add(len(unit.indices))
                    # Rows become columns, a tenth of their memory, while the workers are at the next shards.
                    known[shard_name("real", unit.shard), result.sha256] = manifest_table(result.rows)

        if grouped:
            go(engine.run_grouped(list(grouped.values())))
        go(engine.run(units()))
        if whole_build and synthetic:
            ready.extend(_judged_together(todo, out, synthetic))
        go(engine.run(tuple(ready)))
    return known


def _forget(out: Path, stop: BudgetExceeded) -> None:
    """Makes unfinished what wholly failed before a build was stopped, so that the next run tries it again."""
    for shard, position in stop.data.get("inputs", ()):  # type: ignore[attr-defined]
        InputWork(out, shard, position).forget_rows()
    for number in stop.data.get("shards", ()):  # type: ignore[attr-defined]
        path = shards_folder(out) / shard_name("real", number)
        marker = read_marker(path)
        if marker is not None and not marker["counts"]["samples"]:
            for part in (marker_path(path), index_path(path), path):
                part.unlink(missing_ok=True)


def _judged_together(todo: Plan, out: Path, synthetic: dict[int, tuple[int, ...]]) -> Iterator[PackSynthetic]:
    """The packing units of a rule that ranks over everything generated, shards that are committed already included."""
    rows = []
    spans = []
    for s, indices in enumerate(todo.synthetic_shards):
        start = len(rows)
        if s in synthetic:
            rows += [row for position in range(len(indices)) for row in InputWork(out, s, position).rows()]
        else:
            rows += read_candidates(candidates_path(out, s))
        spans.append((start, len(rows)))
    verdicts = select(rows, todo.config.select)
    for s, indices in synthetic.items():
        yield PackSynthetic(s, indices, tuple(verdicts[slice(*spans[s])]))
