"""The end of a build: the mix, the tables, the card and the page, and what is said on the terminal."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pam_aug.build.config import BuildConfig
from pam_aug.build.failures import count_failures
from pam_aug.build.layout import failures_folder, shards_folder
from pam_aug.errors import BudgetExceeded, ConfigError
from pam_aug.mix_order import parse_ratio
from pam_aug.report.page import write_report
from pam_aug.report.summary import Summary, summarise
from pam_aug.shards.card import write_card
from pam_aug.shards.manifest import Mix, MixShard, MixSource, collect_shards, write_mix
from pam_aug.shards.reader import read_marker
from pam_aug.shards.writer import LEFT_OUT

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FAILURE_BUDGET", "Result", "finish"]

FAILURE_BUDGET = 0.01  # share of candidates and real items that may fail before a build counts as failed


@dataclass(frozen=True, slots=True)
class Result:
    """A finished build: where it is and what it holds."""

    out: Path
    summary: Summary
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.summary.as_dict(), "notes": list(self.notes)}

    def as_text(self) -> str:
        s = self.summary
        lines = [
            f"real half  {s.real_images} images of {', '.join(s.real_datasets) or 'no dataset'}, {s.real_hands} hands"
        ]
        if s.candidates:
            lines.append(
                f"synthetic  {s.kept} kept of {s.candidates} candidates from {s.inputs} inputs "
                f"({s.rejected} rejected, {s.failed} of them failed)"
            )
            lines.append(f"error      median {s.kept_err_mm:.1f} mm kept, {s.rejected_err_mm:.1f} mm rejected")
        lines.append(
            f"mix        ratio {s.ratio}: an epoch is {s.epoch_hands} hands; it reads each real one "
            f"{s.real_reads_per_epoch:.2f} times, each synthetic one {s.synthetic_reads_per_epoch:.2f} times"
        )
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"{self.out / 'mix.json'} opens in pam_aug.mix.MixedDataset; {self.out / 'report' / 'index.html'}")
        return "\n".join(lines)


def finish(
    config: BuildConfig,
    out: Path,
    real_folder: str,
    notes: tuple[str, ...],
    known: "Mapping[tuple[str, str], pa.Table]",
) -> Result:
    """Write what is derived from the committed shards; `known` as in `write_card`.

    Raises BudgetExceeded, after writing, where too much failed.
    """
    real = collect_shards(Path(real_folder) if real_folder else shards_folder(out), "real", out)
    synthetic = collect_shards(shards_folder(out), "syn", out)
    ratio = parse_ratio(config.mix.ratio)
    if not synthetic or not real:
        ratio = Fraction(int(bool(real)))
    left_out = (*_left_out(out, real), *_left_out(out, synthetic))
    unread = count_failures(sorted(failures_folder(out).glob("*.parquet")))
    left_out = (*left_out, unread) if unread else left_out
    if ratio > 0 and not sum(s.hands for s in real):
        raise ConfigError(
            f"nothing to train on: {sum(s.samples for s in real)} real images were converted and none has a hand "
            f"label{''.join(f'; {note}' for note in left_out)}. The shards are whole and stay in {out}; there is no "
            "mix of them. "
            + ("Use --ratio 0." if synthetic else "Where the labels need MANO, give its files to the converter."),
            path=str(out),
        )
    if ratio < 1 and not sum(s.hands for s in synthetic):
        raise BudgetExceeded(
            "no synthetic sample was kept: every candidate failed or was refused; see the reasons in candidates/ and, "
            "where the build screens its inputs, in screening/",
        )
    sources = [
        MixSource("real", str(ratio), real, keep=str(parse_ratio(config.mix.real_fraction))),
        MixSource("synthetic", str(1 - ratio), synthetic),
    ]
    mix = Mix(tuple(s for s in sources if s.shards), seed=config.mix.seed, when_short=config.mix.when_short)
    write_mix(out / "mix.json", mix)
    write_card(out, mix, known)
    summary = summarise(out)
    write_report(out)
    result = Result(out, summary, (*notes, *left_out, *summary.notes))
    if summary.failed_share > FAILURE_BUDGET:
        raise BudgetExceeded(
            f"{summary.failed} candidates and {summary.real_failed} real images failed, {summary.failed_share:.1%} of "
            f"all (budget {FAILURE_BUDGET:.0%}); what succeeded is in {out}, the reasons are in candidates/ and "
            "failures/.\n" + result.as_text(),
            summary=summary.as_dict(),
        )
    return result


def _left_out(out: Path, shards: tuple[MixShard, ...]) -> tuple[str, ...]:
    """What the shards' markers say was left out, by reason."""
    counts: Counter[str] = Counter()
    for shard in shards:
        marker = read_marker(out / shard.path)
        counts.update({n: c for n, c in (marker or {"counts": {}})["counts"].items() if n.startswith(LEFT_OUT)})
    return tuple(f"{count} images {name}" for name, count in sorted(counts.items()))
