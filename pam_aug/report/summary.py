"""What a build's folder holds, in numbers: the one place the terminal, the page and the card take them from."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import ConfigError
from pam_aug.mix import MixedDataset
from pam_aug.schema import Candidate
from pam_aug.shards.manifest import read_candidates, read_mix
from pam_aug.shards.reader import read_marker

__all__ = ["Summary", "read_all_candidates", "rejected_by_input", "summarise"]

_STAND_INS = ("demo-real",)
_STAND_IN = "{name} is path-traced and only stands in for a real dataset: it is not real data"


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and errors of a build. Errors are medians in mm over scored candidates, -1 where there are none."""

    real_images: int
    real_hands: int
    real_failed: int
    inputs: int
    candidates: int
    kept: int
    rejected: int
    failed: int
    synthetic_hands: int
    ratio: str
    epoch_hands: int
    real_reads_per_epoch: float
    synthetic_reads_per_epoch: float
    kept_err_mm: float
    rejected_err_mm: float
    reasons: dict[str, int]
    real_datasets: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def failed_share(self) -> float:
        """Failed units among all that were tried; a failed candidate and an unread real item weigh the same."""
        tried = self.candidates + self.real_images + self.real_failed
        return (self.failed + self.real_failed) / tried if tried else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_all_candidates(folder: Path) -> list[Candidate]:
    """Every candidate row of a build, shard by shard."""
    return [row for path in sorted((folder / "candidates").glob("*.parquet")) for row in read_candidates(path)]


def summarise(folder: Path) -> Summary:
    """The summary of a build's folder. Raises ConfigError where the folder holds no finished build."""
    if not (folder / "mix.json").is_file():
        raise ConfigError(f"{folder}: holds no finished build (no mix.json); give the folder of `pam-aug build --out`")
    mix = read_mix(folder)
    sources = {s.name: s for s in mix.sources}
    rows = read_all_candidates(folder)
    real = sources.get("real")
    schedule = MixedDataset(folder, batch_size=1).schedule
    reads = dict(zip(sources, schedule.reads_per_epoch))
    sizes = dict(zip(sources, schedule.sizes))
    datasets = _real_datasets(folder)
    return Summary(
        real_images=real.samples if real else 0,
        real_hands=sizes.get("real", 0),
        real_failed=sum(_count(folder / s.path, "failed") for s in real.shards) if real else 0,
        inputs=len({r.input_key for r in rows}),
        candidates=len(rows),
        kept=sum(r.verdict.kept for r in rows),
        rejected=sum(not r.verdict.kept for r in rows),
        failed=sum(bool(r.failure) for r in rows),
        synthetic_hands=sizes.get("synthetic", 0),
        ratio=real.share if real else "0",
        epoch_hands=schedule.epoch_length,
        real_reads_per_epoch=reads.get("real", 0.0),
        synthetic_reads_per_epoch=reads.get("synthetic", 0.0),
        kept_err_mm=_median([r.err_mm for r in rows if r.verdict.kept]),
        rejected_err_mm=_median([r.err_mm for r in rows if not r.verdict.kept]),
        real_datasets=datasets,
        notes=tuple(_STAND_IN.format(name=name) for name in datasets if name in _STAND_INS),
        reasons=dict(Counter(_reason_kind(r) for r in rows if not r.verdict.kept)),
    )


def rejected_by_input(rows: list[Candidate]) -> dict[str, tuple[int, int]]:
    """Input key → (kept, rejected), in the order of the rows."""
    table: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        table[row.input_key][not row.verdict.kept] += 1
    return {key: (kept, rejected) for key, (kept, rejected) in table.items()}


def _real_datasets(folder: Path) -> tuple[str, ...]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "manifest.parquet", columns=["dataset", "synthetic"])
    return tuple(sorted(table.filter(~pc.field("synthetic"))["dataset"].unique().to_pylist()))


def _count(path: Path, name: str) -> int:
    marker = read_marker(path)
    return int(marker["counts"].get(name, 0)) if marker else 0


def _median(errors: list[float]) -> float:
    finite = [e for e in errors if np.isfinite(e)]
    return float(np.median(finite)) if finite else -1.0


def _reason_kind(row: Candidate) -> str:
    return row.verdict.reason.split(" ")[0].rstrip(":")
