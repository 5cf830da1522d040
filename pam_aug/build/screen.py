"""Screening a source: every input measured in worker processes, one table of rows, and what it says by object."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pam_aug.build.config import BuildConfig, open_converter
from pam_aug.build.progress import Progress
from pam_aug.config import resolve
from pam_aug.engines import Failure, LocalEngine
from pam_aug.errors import ConfigError, SchemaError, SourceError, UnsafeInput
from pam_aug.rollouts.physics import PhysicsSummary, summarize
from pam_aug.rollouts.scene import LeftOut, build_scene
from pam_aug.rollouts.screening import ScreenConfig, Screener, ScreenRow, failed_row
from pam_aug.schema import make_key
from pam_aug.shards.tables import read_rows, write_rows

__all__ = ["Screening", "read_screening", "screen_named", "screen_source", "write_screening"]

_DEEP_MM = 10.0
_MISSING_MM = 0.0  # a row that was not measured penetrates nothing and is counted by its reason


@dataclass(frozen=True, slots=True)
class Screening:
    """The rows of a screened source, in its order; `left_out` counts inputs of which there is nothing to make."""

    rows: tuple[ScreenRow, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)  # by reason

    @property
    def reasons(self) -> dict[str, int]:
        """Refused inputs by the kind of reason."""
        return dict(Counter(row.reason.partition(":")[0] for row in self.rows if not row.kept))

    def by_object(self) -> dict[str, dict[str, float]]:
        """For each object, and for "all", the table that `as_text` prints."""
        groups: dict[str, list[ScreenRow]] = defaultdict(list)
        for row in self.rows:
            groups[row.object_id or "none"].append(row)
        return {name: _figures(rows) for name, rows in [*sorted(groups.items()), ("all", list(self.rows))]}

    def as_dict(self) -> dict[str, Any]:
        return {
            "inputs": len(self.rows),
            "kept": sum(row.kept for row in self.rows),
            "left_out": sum(self.left_out.values()),
            "left_out_reasons": dict(self.left_out),
            "reasons": self.reasons,
            "engine": next((row.engine for row in self.rows if row.engine), ""),
            "preset": next((row.preset for row in self.rows if row.preset), ""),
            "objects": self.by_object(),
        }

    def as_text(self) -> str:
        heads = ("inputs", "kept %", "CP %", "PD cm", ">1 cm %", "cm3", "SD cm", "SR %")
        lines = [f"{'object':28}" + "".join(f"{head:>9}" for head in heads)]
        for name, f in self.by_object().items():
            values = (f["kept_percent"], f["cp_percent"], f["pd_cm"], f["deep_percent"], f["volume_cm3"])
            tail = f"{f['sd_cm']:9.2f}{f['sr_percent']:9.1f}" if f["simulated"] else f"{'-':>9}{'-':>9}"
            lines.append(f"{name:28}{f['inputs']:9.0f}" + "".join(f"{v:9.2f}" for v in values) + tail)
        told = self.as_dict()
        refused = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items())) or "none"
        lines.append(f"refused: {refused}" + (f"; {told['preset']}, {told['engine']}" if told["engine"] else ""))
        if self.left_out:
            lines.append(
                "left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
            )
        return "\n".join(lines)


def screen_source(section: Mapping[str, Any], config: ScreenConfig, inputs: int = -1, workers: int = -1) -> Screening:
    """Screen `inputs` of a source's inputs, evenly spread (-1: all). `section` names the converter and its options.

    Raises PamAugError where the source, its hands or the simulator are missing; a bad input is a refused row.
    """
    config.check()
    source = open_converter(section, "source")
    if not len(source) or inputs == 0 or inputs < -1:
        raise ConfigError(f"{source.name}: {len(source)} inputs, {inputs} asked for; give a positive number, -1 is all")
    if not source.hand_assets():
        raise ConfigError(f"{source.name}: its hands have no model to be posed with; give mano_dir or $MANO_DIR")
    count = len(source) if inputs == -1 else min(inputs, len(source))
    indices = [i * len(source) // count for i in range(count)]
    workers = min(workers if workers >= 0 else os.cpu_count() or 1, count)
    found: dict[int, ScreenRow | str] = {}
    with (
        LocalEngine(partial(_make_work, dict(section), config), workers) as engine,
        Progress(count, "inputs") as progress,
    ):
        for outcome in engine.run(indices):
            if isinstance(outcome, Failure):
                raise outcome.error
            index, row = outcome
            found[index] = row
            progress.add(1)
    rows = [found[index] for index in indices]
    left_out = Counter(row for row in rows if isinstance(row, str))
    return Screening(tuple(row for row in rows if not isinstance(row, str)), dict(left_out))


def screen_named(
    converter: str, options: Sequence[str], preset: str, limits: Sequence[str], inputs: int = -1, workers: int = -1
) -> Screening:
    """`screen_source` with the converter's options and the limits given as texts, "name=value"."""
    texts = [f"source.converter={converter}", *(f"source.{option}" for option in options)]
    config = resolve(ScreenConfig, {"preset": preset}, limits, where="screen")
    return screen_source(resolve(BuildConfig, {}, texts).source, config, inputs, workers)


def write_screening(path: Path, rows: Sequence[ScreenRow]) -> None:
    """The rows as a parquet table, one column per field of ScreenRow. Raises StorageError."""
    write_rows(path, ScreenRow, rows)


def read_screening(path: Path) -> list[ScreenRow]:
    """The rows that `write_screening` wrote. Raises ShardDamaged for a file of another content."""
    return read_rows(path, ScreenRow, "screened inputs")


def _make_work(section: Mapping[str, Any], config: ScreenConfig) -> Callable[[int], ScreenRow | str]:
    """The function that screens one input: its row, or why there is nothing to make of it."""
    source, screener = open_converter(section, "source"), Screener(config)

    def work(index: int) -> ScreenRow | str:
        key = make_key(source.name, "unread", "unread", "unread", f"{index:06d}")
        try:
            item = source.item(index)
            key = item.sample.key
            return screener.screen(build_scene(item, source.hand_assets()))
        except LeftOut as error:
            return error.reason
        except (SourceError, SchemaError, UnsafeInput) as error:
            return failed_row(key, error)

    return work


def _figures(rows: Sequence[ScreenRow]) -> dict[str, float]:
    depths = [max(row.penetration_mm, _MISSING_MM) for row in rows]
    volumes = [row.volume_cm3 for row in rows if row.volume_cm3 >= 0]
    simulated = [row for row in rows if row.directions]
    still: PhysicsSummary = summarize([row.in_contact for row in rows], [d * 1e-3 for d in depths], [0.0] * len(rows))
    moved = summarize(
        [row.in_contact for row in simulated], [0.0] * len(simulated), [row.displacement_mm * 1e-3 for row in simulated]
    )
    share = 100.0 / max(len(rows), 1)
    return {
        "inputs": len(rows),
        "kept_percent": share * sum(row.kept for row in rows),
        "cp_percent": still.cp_percent,
        "pd_cm": still.pd_cm,
        "deep_percent": share * sum(depth > _DEEP_MM for depth in depths),
        "volume_cm3": sum(volumes) / max(len(volumes), 1),
        "simulated": len(simulated),
        "sd_cm": moved.sd_cm,
        "sr_percent": moved.sr_percent,
    }
