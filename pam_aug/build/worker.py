"""The units of work of a build, done in a worker that keeps its models; each is a pure function of its inputs."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pam_aug.build.config import BuildConfig, open_backend, open_converter, open_judges
from pam_aug.build.failures import FailedImage, Streak, write_failures
from pam_aug.build.hand_crop import AbsentHand, HandCrops
from pam_aug.build.layout import candidates_path, failures_path, rejected_path, screening_path, shards_folder
from pam_aug.build.screen import read_screening, write_screening
from pam_aug.build.workdir import InputWork, drop_shard_work
from pam_aug.errors import BackendError, SchemaError, ShardDamaged, SourceError, StorageError, UnsafeInput
from pam_aug.generate.base import Prompted
from pam_aug.hand import HandAssets
from pam_aug.render.conditions import Conditions, depth_png, seg_png
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import Item, LeftOut, Scene, build_scene
from pam_aug.rollouts.screening import Screener, ScreenRow
from pam_aug.schema import Candidate, Generation, Sample, Verdict, make_key
from pam_aug.score import combine_scores, score_candidates, score_of
from pam_aug.seeds import candidate_seed
from pam_aug.select import select
from pam_aug.shards.images import decode_image
from pam_aug.shards.manifest import write_candidates, written_row
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import LEFT_OUT, ShardWriter, shard_name

__all__ = ["SENSOR_DEPTH", "Job", "MakeCandidates", "PackSynthetic", "WriteReal", "Written", "make_worker"]

SENSOR_DEPTH = "depth: the sensor's, 0 and 65535 where nothing was measured"
"""The note of samples whose depth was not drawn."""

# What may go wrong with one input without ending the build: it becomes rows with a reason.
_PER_INPUT = (SourceError, SchemaError, BackendError, UnsafeInput, ShardDamaged)  # the last: an image that is none


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a build is given once."""

    config: BuildConfig
    real: dict[str, Any]
    out: Path


@dataclass(frozen=True, slots=True)
class WriteReal:
    """Write real shard `shard` from the items `indices` of the real converter. Result: a `Written`."""

    shard: int
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class Written:
    """A committed shard: its tar's hash, and the manifest's rows of it, for which its labels need not be read again."""

    sha256: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class MakeCandidates:
    """Make and score all candidates of source item `index`, at `position` in shard `shard`. Result: their number."""

    shard: int
    position: int
    index: int


@dataclass(frozen=True, slots=True)
class PackSynthetic:
    """Select and write synthetic shard `shard`. `verdicts` are given where the rule ranks over the whole build.

    Result: the shard's counts.
    """

    shard: int
    indices: tuple[int, ...]
    verdicts: tuple[Verdict, ...] | None = None


Unit = WriteReal | MakeCandidates | PackSynthetic


def make_worker(job: Job) -> Callable[[Unit], Any]:
    """The function that does one unit. Models and sources are opened when a unit first needs them, and kept."""
    return Worker(job).do


class Worker:
    """One process's share of a build. `generator` and `judges`, where given, stand in for the configuration's."""

    def __init__(self, job: Job, generator: Any = None, judges: Sequence[Any] = ()) -> None:
        self._config, self._real_section, self._out = job.config, job.real, job.out
        self._given_generator, self._given_judges = generator, list(judges)
        self._streak = Streak(job.config.stop_after_failures)

    def do(self, unit: Unit) -> Any:
        if isinstance(unit, WriteReal):
            return self._write_real(unit)
        if isinstance(unit, MakeCandidates):
            return self._make_candidates(unit)
        return self._pack(unit)

    @functools.cached_property
    def _source(self) -> Any:
        return open_converter(self._config.source, "source")

    @functools.cached_property
    def _real(self) -> Any:
        return open_converter(self._real_section, "real")

    @functools.cached_property
    def _generator(self) -> Any:
        generate = self._config.generate
        return self._given_generator or open_backend(
            "generators", generate.generator, generate.options, "generate.options"
        )

    @functools.cached_property
    def _screener(self) -> Screener | None:
        return Screener(self._config.screen) if self._config.screen.on else None

    @functools.cached_property
    def _judges(self) -> list[Any]:
        return self._given_judges or open_judges(self._config.score)

    # ------------------------------------------------------------------------------------------------------- real half

    def _write_real(self, unit: WriteReal) -> Written:
        path = shards_folder(self._out) / shard_name("real", unit.shard)
        hands, measured = self._real.hand_assets(), self._config.shards.sensor_depth
        failed: list[FailedImage] = []
        rows: list[dict[str, Any]] = []
        self._streak.shards.append(unit.shard)
        with ShardWriter(path, "real") as shard:
            for index in unit.indices:
                for number in self._real.slots(index) if isinstance(self._real, HandCrops) else (index,):
                    key = ""
                    try:
                        item = self._real.item(number)
                        key = item.sample.key
                        extras = self._extras(
                            lambda number=number, item=item: self._real_conditions(number, item, hands),
                            functools.partial(self._real.sensor_depth_png, number) if measured else None,
                        )
                        digest = item.image_sha256 or hashlib.sha256(item.image).hexdigest()
                        sample = _with_provenance(item.sample, digest, SENSOR_DEPTH if measured else "")
                        shard.add(sample, item.image, _suffix(item.image), extras, digest)
                        rows.append(written_row(sample, path.name, len(rows), len(item.image), digest))
                        self._streak.ended()
                    except AbsentHand:
                        pass
                    except LeftOut as error:
                        shard.count(f"{LEFT_OUT}{error.reason}")
                    except _PER_INPUT as error:
                        shard.count("failed")
                        failed.append(FailedImage(index, key, type(error).__name__, str(error)))
                        self._streak.add(str(error))
            write_failures(failures_path(self._out, unit.shard), failed)
        return Written(shard.sha256, rows)

    def _real_conditions(self, number: int, item: Item, hands: Mapping[str, HandAssets]) -> Conditions:
        if isinstance(self._real, HandCrops):
            return self._real.conditions(number, hands)
        return scene_conditions(build_scene(item, hands))

    def _extras(self, draw: Callable[[], Conditions], measured: Callable[[], bytes] | None = None) -> dict[str, bytes]:
        """What goes beside an image: drawn where it is asked for, except depth that was `measured`."""
        shards = self._config.shards
        extras: dict[str, bytes] = {}
        if not shards.depth and not shards.seg:
            return extras
        drawn = functools.cache(draw)
        if shards.depth:
            extras["depth.png"] = measured() if measured else depth_png(drawn().depth_m)
        if shards.seg:
            extras["seg.png"] = seg_png(drawn().seg)
        return extras

    # -------------------------------------------------------------------------------------------------- synthetic half

    def _make_candidates(self, unit: MakeCandidates) -> int:
        work = InputWork(self._out, unit.shard, unit.position)
        if work.is_done():
            return len(work.rows())
        try:
            rows = self._candidates(self._source.item(unit.index), work)
        except (AbsentHand, LeftOut):
            rows = []
        except _PER_INPUT as error:
            rows = self._failed_rows(unit.index, error)
            # An input that cannot be used is one failure. Where a backend fails on it, all that it was to make is.
            self._streak.add(str(error), len(rows) if isinstance(error, BackendError) else 1)
            self._streak.inputs.append((unit.shard, unit.position))
        else:
            self._count_failures(unit, rows)
        work.put_rows(rows)
        return len(rows)

    def _count_failures(self, unit: MakeCandidates, rows: Sequence[Candidate]) -> None:
        for row in rows:
            if row.failure:
                self._streak.add(row.failure)
            else:
                self._streak.ended()
        if all(row.failure for row in rows):
            self._streak.inputs.append((unit.shard, unit.position))

    def _candidates(self, item: Item, work: InputWork) -> list[Candidate]:
        generate = self._config.generate
        scene = build_scene(item, self._source.hand_assets())
        self._screen(scene, work)
        seeds = [candidate_seed(generate.run_seed, item.sample.key, i) for i in range(generate.candidates)]
        images = work.images()
        missing = [i for i in range(generate.candidates) if i not in images]
        for i, made in zip(missing, self._generator.generate(scene, [seeds[i] for i in missing])):
            work.put_image(i, made.jpeg)
            images[i] = made.jpeg
        decoded = [decode_image(images[i], "jpg", f"{item.sample.key}@{i:02d}") for i in range(generate.candidates)]
        name = self._generator.name
        judged = [
            score_candidates(item.sample, decoded, seeds, estimator=judge, generator=name, meshes=scene.hands)
            for judge in self._judges
        ]
        return combine_scores(judged, self._config.score.combine)

    def _screen(self, scene: Scene, work: InputWork) -> None:
        """Raises LeftOut for an input that screening refuses; what was measured is kept either way."""
        if self._screener is None:
            return
        row = self._screener.screen(scene)
        write_screening(work.screening_path, [row])
        if not row.kept:
            raise LeftOut(f"{row.key}: {row.reason}", reason=_screened(row))

    def _failed_rows(self, index: int, error: Exception) -> list[Candidate]:
        generate = self._config.generate
        try:
            key = self._source.item(index).sample.key
        except _PER_INPUT:
            key = make_key(self._source.name, "unread", "unread", "unread", f"{index:06d}")
        inf = float("inf")
        return [
            Candidate(
                input_key=key,
                index=i,
                seed=candidate_seed(generate.run_seed, key, i),
                generator=generate.generator,
                estimator=self._config.score.name,
                err_mm=inf,
                pa_err_mm=inf,
                err_2d=inf,
                mask_iou=-1.0,
                failure=f"input {index}: {error}",
            )
            for i in range(generate.candidates)
        ]

    def _pack(self, unit: PackSynthetic) -> dict[str, int]:
        works = [InputWork(self._out, unit.shard, position) for position in range(len(unit.indices))]
        rows = [row for work in works for row in work.rows()]
        verdicts = unit.verdicts if unit.verdicts is not None else select(rows, self._config.select)
        rows = [replace(row, verdict=verdict) for row, verdict in zip(rows, verdicts, strict=True)]
        judged = iter(rows)
        inputs = []
        for index, work in zip(unit.indices, works):
            images, made = work.images(), [next(judged) for _ in work.rows()]
            if any(not row.failure and row.index not in images for row in made):
                path = shards_folder(self._out) / shard_name("syn", unit.shard)
                if marker := read_marker(path):  # another builder of this folder was faster and tidied up
                    return marker["counts"]
                work.forget_rows()
                raise StorageError(
                    f"{work.folder}: images that were scored are gone or torn; run the same command again, it makes "
                    "them anew",
                    path=str(work.folder),
                )
            inputs.append((index, images, made))
        if self._config.shards.keep_rejected:
            self._write_candidates(rejected_path(self._out, unit.shard), "rejected", inputs, kept=False)
        write_candidates(candidates_path(self._out, unit.shard), rows)
        screened = [
            row for work in works if work.screening_path.is_file() for row in read_screening(work.screening_path)
        ]
        if screened:
            write_screening(screening_path(self._out, unit.shard), screened)
        left_out = [_screened(row) for row in screened if not row.kept]
        for index, work, (_, _, made) in zip(unit.indices, works, inputs):
            if not made and not work.screening_path.is_file():
                left_out += self._why_left_out(index)
        path = shards_folder(self._out) / shard_name("syn", unit.shard)
        counts = self._write_candidates(path, "syn", inputs, kept=True, left_out=left_out)
        drop_shard_work(self._out, unit.shard)
        return counts

    def _why_left_out(self, index: int) -> list[str]:
        """The source's reason, where it says that there is nothing to make of an input."""
        try:
            self._source.item(index)
        except LeftOut as error:
            return [error.reason]
        except (AbsentHand, *_PER_INPUT):
            pass
        return []

    def _write_candidates(
        self,
        path: Path,
        kind: Any,
        inputs: Sequence[tuple[int, Mapping[int, bytes], list[Candidate]]],
        kept: bool,
        left_out: Sequence[str] = (),
    ) -> dict[str, int]:
        with ShardWriter(path, kind) as shard:
            for reason in left_out:
                shard.count(f"{LEFT_OUT}{reason}")
            for index, images, rows in inputs:
                wanted = [row for row in rows if row.verdict.kept == kept and row.index in images]
                if kept and rows:
                    shard.count("inputs")
                    shard.count("rejected", sum(not row.verdict.kept for row in rows))
                    shard.count("failed", sum(bool(row.failure) for row in rows))
                if not wanted:
                    continue
                item = self._source.item(index)
                scene = functools.cache(functools.partial(build_scene, item, self._source.hand_assets()))
                extras = self._extras(lambda scene=scene: self._generator.conditions(scene()))
                for row in wanted:
                    told = self._generator.prompt(scene(), row.seed) if isinstance(self._generator, Prompted) else ""
                    shard.add(self._labelled(item.sample, row, told), images[row.index], "jpg", extras)
        return shard.marker["counts"]

    def _labelled(self, sample: Sample, row: Candidate, prompt: str) -> Sample:
        generation = Generation(
            generator=row.generator,
            version=self._generator.version,
            input_key=row.input_key,
            candidate=row.index,
            seed=row.seed,
            prompt=prompt,
        )
        return replace(sample, key=row.key, synthetic=True, generation=generation, score=score_of(row))


def _with_provenance(sample: Sample, image_sha256: str, note: str) -> Sample:
    source = sample.source
    if source.image_sha256 and not note:
        return sample
    notes = (*source.notes, note) if note else source.notes
    return replace(sample, source=replace(source, image_sha256=source.image_sha256 or image_sha256, notes=notes))


def _screened(row: ScreenRow) -> str:
    return f"refused by screening, {row.reason.partition(':')[0]}"


def _suffix(image: bytes) -> Any:
    return "png" if image.startswith(b"\x89PNG") else "jpg"
