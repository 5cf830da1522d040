"""Selecting again: another rule on the candidates that a build made, without generating or scoring anything.

The new build goes into a folder of its own, and the old one stays as it is: a rule that turned out worse costs nothing,
and no moment exists at which a killed command leaves one folder with shards of two rules. The stored candidates, kept
and rejected, are put where a build keeps finished work, real shards are linked, and the build's own code does the rest:
it finds every candidate finished, selects, packs and mixes. So the result equals a build made with the new rule, byte
for byte, and the same command resumes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import orjson

from pam_aug.build.config import BuildConfig, open_converter, pixel_fields
from pam_aug.build.finish import Result
from pam_aug.build.hand_crop import AbsentHand
from pam_aug.build.layout import (
    build_file,
    candidates_path,
    failures_path,
    rejected_path,
    screening_path,
    shards_folder,
)
from pam_aug.build.resume import claim_folder, first_difference
from pam_aug.build.run import Plan, plan, run_build
from pam_aug.build.screen import read_screening, write_screening
from pam_aug.build.workdir import InputWork
from pam_aug.config import resolve, to_dict
from pam_aug.errors import ConfigError, PamAugError, ResumeMismatch, ShardDamaged
from pam_aug.rollouts.scene import LeftOut
from pam_aug.schema import Candidate, Verdict
from pam_aug.select import PRESETS, SelectConfig, select
from pam_aug.shards.atomic import copy_atomic
from pam_aug.shards.manifest import read_candidates
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import check_hash
from pam_aug.shards.writer import index_path, is_committed, marker_path, shard_name

__all__ = ["Reselection", "plan_reselection", "reselect"]


@dataclass(frozen=True, slots=True)
class Reselection:
    """What another rule would do, before anything is written."""

    rule: dict[str, Any]
    candidates: int
    kept_before: int
    kept: int
    newly_kept: int
    newly_rejected: int

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def as_text(self) -> str:
        rule = ", ".join(f"{name}={value}" for name, value in self.rule.items())
        return (
            f"rule       {rule}\n"
            f"candidates {self.candidates}: {self.kept_before} kept before, {self.kept} now "
            f"(+{self.newly_kept} -{self.newly_rejected})\nnothing was written (dry run)"
        )


def plan_reselection(folder: Path, preset: str | None = None, overrides: Sequence[str] = ()) -> Reselection:
    """The verdicts of another rule, counted. The rule is a preset, or the build's own, with `overrides` ("gate=25").

    Raises ConfigError for an unknown rule or a folder that holds no finished build.
    """
    config, todo, _ = _open(Path(folder), preset, overrides)
    rows = [r for s in range(len(todo.synthetic_shards)) for r in read_candidates(candidates_path(Path(folder), s))]
    kept = [v.kept for v in select(rows, config.select)]
    was = [row.verdict.kept for row in rows]
    return Reselection(
        rule=config.select.rule(),
        candidates=len(rows),
        kept_before=sum(was),
        kept=sum(kept),
        newly_kept=sum(now and not before for now, before in zip(kept, was)),
        newly_rejected=sum(before and not now for now, before in zip(kept, was)),
    )


def reselect(
    folder: Path, out: Path, preset: str | None = None, overrides: Sequence[str] = (), workers: int = -1
) -> Result:
    """Builds `out` from the candidates of the build in `folder` with another rule; see `plan_reselection`.

    Needs what the build needed to label samples: its source and its backends' files; no image is generated and no
    estimator runs. Raises ConfigError where rejected samples were not kept, ShardDamaged for changed shards,
    ResumeMismatch where source or backends are not what they were.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out}: is the build itself; --out names a new folder", path=str(out))
    config, todo, parts = _open(folder, preset, overrides)
    claim_folder(out, todo.identity, to_dict(config))
    for s, indices in enumerate(todo.synthetic_shards):
        if not is_committed(shards_folder(out) / shard_name("syn", s)):
            _stage(folder, out, s, indices, config)
    for s in range(len(todo.real_shards)):
        _link_table(failures_path(folder, s), failures_path(out, s))
        _link_shard(shards_folder(folder) / shard_name("real", s), shards_folder(out) / shard_name("real", s))
    return run_build(config, out, parts, workers)


def _open(folder: Path, preset: str | None, overrides: Sequence[str]) -> tuple[BuildConfig, Plan, tuple[str, ...]]:
    """The build's configuration with the new rule, its plan, and its parts, after checking that it can be done."""
    path = build_file(folder)
    try:
        record = orjson.loads(path.read_bytes())
        before, parts = record["identity"], tuple(record["identity"]["parts"])
        config = resolve(BuildConfig, record["config"], where=str(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a build's folder", path=str(path)
        ) from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no build's record ({error!r})", path=str(path)) from error
    if "synthetic" not in parts:
        raise ConfigError(f"{folder}: holds no candidates (only real images were converted)", path=str(folder))
    if not config.shards.keep_rejected:
        raise ConfigError(
            f"{folder}: was built with shards.keep_rejected=false, so the images that another rule may keep are gone; "
            "build with keep_rejected=true to select again",
            path=str(folder),
        )
    config = replace(config, select=_rule(config.select, preset, overrides))
    todo = plan(config, parts)
    same = {**before, "select": pixel_fields(config)["select"]}
    difference = first_difference(same, orjson.loads(orjson.dumps(todo.identity)))
    if difference:
        name, was, now = difference
        raise ResumeMismatch(
            f"{folder}: was built with {name} = {was!r}, here it is {now!r}; select with the source, hand models and "
            "backends of the build, or build anew",
            field=name,
        )
    names = [shard_name("real", s) for s in range(len(todo.real_shards))]
    names += [shard_name("syn", s) for s in range(len(todo.synthetic_shards))]
    missing = [name for name in names if not is_committed(shards_folder(folder) / name)]
    if missing:
        raise ConfigError(f"{folder}: {missing[0]} is not built yet; finish the build first", path=str(folder))
    return config, todo, parts


def _rule(rule: SelectConfig, preset: str | None, overrides: Sequence[str]) -> SelectConfig:
    """The preset, or the build's own rule, with `overrides` on top; a preset among them replaces the own rule, too."""
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: choose one of {', '.join(PRESETS)}", preset=preset)
    if preset is None and any(override.partition("=")[0].strip() == "preset" for override in overrides):
        preset = ""
    base = to_dict(rule) if preset is None else {"preset": preset} if preset else {}
    return resolve(SelectConfig, base, overrides, where="select")


def _stage(folder: Path, out: Path, shard: int, indices: Sequence[int], config: BuildConfig) -> None:
    """Puts the candidates of one shard, scores and images, and what screening measured where a build keeps them."""
    rows = read_candidates(candidates_path(folder, shard))
    inputs = iter([list(group) for _, group in itertools.groupby(rows, key=lambda row: row.input_key)])
    images: dict[str, bytes] = {}
    for path in (shards_folder(folder) / shard_name("syn", shard), rejected_path(folder, shard)):
        marker = read_marker(path)
        if marker is None:
            raise ShardDamaged(f"{path}: has no commit marker; run the build again first", path=str(path))
        check_hash(path, marker["sha256"])  # or a flipped bit would be written under a new hash
        with ShardReader(path) as reader:
            images |= {key: reader.image_bytes(i) for i, key in enumerate(reader.keys)}
    path = screening_path(folder, shard)
    screened = {row.key: row for row in (read_screening(path) if path.is_file() else ())}
    absent: dict[int, str] = {}
    if len(rows) < len(indices) * config.generate.candidates:
        absent = _absent(config, indices, {key for key, row in screened.items() if not row.kept})
    for position, index in enumerate(indices):
        work = InputWork(out, shard, position)
        mine = [] if index in absent else next(inputs, None)
        if mine is None:
            path = candidates_path(folder, shard)
            raise ShardDamaged(f"{path}: lacks the candidates of input {index}; run the build again first")
        if not work.is_done():
            row = screened.get(mine[0].input_key if mine else absent[index])
            if row is not None:
                write_screening(work.screening_path, [row])
            _stage_input(work, mine, images)


def _absent(config: BuildConfig, indices: Sequence[int], refused: set[str]) -> dict[int, str]:
    """The inputs that never had candidates, and their keys: refused by screening, or "" where there is nothing to make
    of an input."""
    source = open_converter(config.source, "source")
    absent: dict[int, str] = {}
    for index in indices:
        try:
            key = source.item(index).sample.key
        except (AbsentHand, LeftOut):
            absent[index] = ""
        except PamAugError:  # its candidates are there, as rows with this reason
            continue
        else:
            if key in refused:
                absent[index] = key
    return absent


def _stage_input(work: InputWork, rows: Sequence[Candidate], images: dict[str, bytes]) -> None:
    for row in rows:
        if row.key in images:
            work.put_image(row.index, images[row.key])
        elif not row.failure:
            raise ShardDamaged(f"{row.key}: is in the candidates table and in no shard; run `pam-aug verify`")
    work.put_rows([replace(row, verdict=Verdict(kept=True)) for row in rows])


def _link_shard(source: Path, target: Path) -> None:
    """The same committed shard in another folder, without a copy where the file system can; the marker comes last."""
    if is_committed(target):
        return
    for part in (Path, index_path, marker_path):
        if part(source).exists():
            copy_atomic(part(source), part(target), link=True)


def _link_table(source: Path, target: Path) -> None:
    if source.is_file() and not target.is_file():
        copy_atomic(source, target, link=True)
