"""What the stand-in experiment says: means with their spread, the claim as a number, a page in Markdown, and plots."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rows import row
from scipy import stats
from table4_data import SEEDS, Sizes
from table4_runs import Setting

from pam_aug.errors import AssetMissing
from pam_aug.shards.atomic import write_atomic

__all__ = ["Difference", "benchmark_rows", "compare", "require_plots", "write_report"]

Row = dict[str, Any]

_METRICS = (
    ("mpjpe_mm", "MPJPE mm", 2),
    ("pa_mpjpe_mm", "PA-MPJPE mm", 2),
    ("pa_mpvpe_mm", "PA-MPVPE mm", 2),
    ("auc", "AUC", 3),
    ("pa_f15", "PA-F@15", 3),
)
_PLOTTED = ("pa_mpjpe_mm", "mpjpe_mm")
# What is compared with what: a title for the page, the setting, and the one that it is held against.
_QUESTIONS = (
    ("The claim: generated + 50 % real against 100 % real", "generated+50", "real"),
    ("What generated images add to half of the real ones", "generated+50", "real-50"),
    ("What they add to all of the real ones", "generated+100", "real"),
    ("The filter: kept candidates against a random 75 %", "generated", "random"),
)

_QUICK_WARNING = """**A quick run: a few steps on a few images, to see that it works. Its numbers mean nothing.**

"""

_PAGE = """# Table 4 on stand-in data

{warning}"Real" is not real here: it is the demo's path-traced domain, whose people, objects, rooms and lights the
generator does not have. The question is that of the PAM paper's Table 4, asked of data that anyone can make again: do
generated images replace half of the real ones?

{table}

{spread}. Errors: lower is better; AUC and F-score: higher.

{answers}

![PA-MPJPE over the share of real images](table4_standin_pa_mpjpe.png)
![MPJPE over the share of real images](table4_standin_mpjpe.png)

## How it was measured

* Real: {sizes.real} images, {sizes.frames} a sequence, seed {seeds[real]} of `demo-real`. Test: {sizes.test}, seed
  {seeds[test]}: other people. Generated: {sizes.inputs} rollouts of `demo-rollouts` (split test, seed
  {seeds[generated]}), {sizes.candidates} candidates each, of which the filter takes the worst quarter away. All are
  {sizes.image_px} pixels wide.
* Recipe `table4_standin`: {first[iterations]} iterations of {first[batch]} hands, whatever the data; random first
  weights; every hand that is kept is read equally often. A seed draws weights, order, augmentation, and which real
  sequences a share keeps.
* No part shares a sequence, an object or a hand's shape with another one, and none is drawn from the split and seed
  that the judge of the candidates was trained or measured on. The script checks both before it trains.
* As `pam-aug eval` does: root {first[root]}; alignment: {first[alignment]}; joints: {first[joints]}.
* Longest run: {training_min:.1f} minutes of training, {evaluation_s} s of evaluation (runs side by side share the
  cores). Versions: {versions}.
* Again: `python benchmarks/table4_standin.py --out DIR`. What every run found is in `rows/`.

The bundled generator's labels are exact, so what the filter takes away are hard images, not wrong ones: what it gains
or loses here says little about a generator that paints hands that are not there.

This page stands beside the scripts that wrote it: at its top the repository has code, recipes, tests and benchmarks,
and no folder of documents.
"""


@dataclass(frozen=True)
class Difference:
    """Mean of one setting minus that of another, with Welch's 95 % interval (None where a setting has one run)."""

    value: float
    low: float | None
    high: float | None
    base: float

    def as_text(self, unit: str = "mm") -> str:
        """The number, its interval, and what may be said with it of an error."""
        share = f"{100 * self.value / self.base:+.1f} %" if self.base else "of nothing"
        if self.low is None or self.high is None:
            return f"{self.value:+.2f} {unit} ({share}); one run each, so nothing can be said about chance"
        if self.high < 0:
            verdict = "lower"
        elif self.low > 0:
            verdict = "higher"
        else:
            verdict = "no difference that these runs can tell"
        return f"{self.value:+.2f} {unit} ({share}; 95 % interval {self.low:+.2f} to {self.high:+.2f}): {verdict}"


def compare(mine: Sequence[float], other: Sequence[float]) -> Difference:
    """Means of two settings' runs compared by Welch's t interval (1947): unequal variances, few runs."""
    value, base = statistics.fmean(mine) - statistics.fmean(other), statistics.fmean(other)
    if min(len(mine), len(other)) < 2:
        return Difference(value, None, None, base)
    a, b = (statistics.variance(v) / len(v) for v in (mine, other))
    if a + b == 0:
        return Difference(value, value, value, base)
    freedom = (a + b) ** 2 / (a**2 / (len(mine) - 1) + b**2 / (len(other) - 1))
    half = float(stats.t.ppf(0.975, freedom)) * (a + b) ** 0.5
    return Difference(value, value - half, value + half, base)


def values_of(rows: Sequence[Row], setting: str, metric: str) -> list[float]:
    """A metric of all runs of a setting."""
    return [float(r["test"][metric]) for r in rows if r["setting"] == setting]


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _answers(rows: Sequence[Row], metric: str) -> list[tuple[str, str, str, Difference]]:
    found = []
    for title, mine, other in _QUESTIONS:
        pair = [values_of(rows, name, metric) for name in (mine, other)]
        if all(pair):
            found.append((title, mine, other, compare(*pair)))
    return found


def benchmark_rows(rows: Sequence[Row], settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """The rows of `--json`: each setting's mean and standard deviation over seeds, beside all real; the answers."""
    made = []
    for metric in _PLOTTED:
        real = values_of(rows, "real", metric)
        for setting in settings:
            mean, sd = _mean_sd(values_of(rows, setting.name, metric))
            beside = ("real", statistics.fmean(real)) if real and setting.name != "real" else (None, None)
            made.append(row(f"{setting.name} {metric}", mean, "mm", *beside, spread=sd))
        for _, mine, other, difference in _answers(rows, metric):
            half = 0.0 if difference.high is None else difference.high - difference.value
            made.append(row(f"{mine} minus {other} {metric}", difference.value, "mm (95 % half width)", spread=half))
    longest = max(r["training_s"] + r["evaluation_s"] for r in rows)
    made.append(row("longest run", longest / 60, "minutes, training and evaluation"))
    return made


def write_report(rows: Sequence[Row], settings: Sequence[Setting], sizes: Sizes, out: Path, quick: bool) -> None:
    """The page `table4_standin.md` and its plots, PNG and SVG, in `out`."""
    for metric in _PLOTTED:
        _plot(rows, metric, out / f"table4_standin_{metric.removesuffix('_mm')}")
    write_atomic(out / "table4_standin.md", _page(rows, settings, sizes, quick).encode())


def _page(rows: Sequence[Row], settings: Sequence[Setting], sizes: Sizes, quick: bool) -> str:
    first = rows[0]
    lines = [
        f"| training data | real | generated | {' | '.join(title for _, title, _ in _METRICS)} |",
        f"|---|---:|---:|{'---:|' * len(_METRICS)}",
    ]
    for setting in settings:
        mine = [r for r in rows if r["setting"] == setting.name]
        # Sequences are kept by draw, so a share of them may differ by a few images between seeds.
        counts = [round(statistics.fmean([r["hands"].get(kind, 0) for r in mine])) for kind in ("real", "synthetic")]
        cells = []
        for metric, _, digits in _METRICS:
            mean, sd = _mean_sd(values_of(rows, setting.name, metric))
            cells.append(f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(mine) > 1 else ""))
        lines.append(f"| {setting.title} | {counts[0]} | {counts[1]} | {' | '.join(cells)} |")
    answers = [f"* {title}: PA-MPJPE {d.as_text()}." for title, _, _, d in _answers(rows, "pa_mpjpe_mm")]
    runs = len({r["seed"] for r in rows})
    return _PAGE.format(
        warning=_QUICK_WARNING if quick else "",
        table="\n".join(lines),
        answers="\n".join(answers),
        spread=f"Mean ± standard deviation over {runs} seeds" if runs > 1 else "One run each: no spread is known",
        sizes=sizes,
        seeds=SEEDS,
        first=first,
        training_min=max(r["training_s"] for r in rows) / 60,
        evaluation_s=max(r["evaluation_s"] for r in rows),
        versions=", ".join(f"{name} {metadata.version(name)}" for name in ("pam_aug", "torch", "mitsuba")),
    )


def require_plots() -> None:
    """Raises AssetMissing without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise AssetMissing(f"the plots need matplotlib ({error}): pip install 'pam_aug[dev]'") from error


def _plot(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Error over the share of real images, with and without generated ones, and the filter beside its control."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1], sharey=False)
    title = next(title for name, title, _ in _METRICS if name == metric)
    with_generated = [(share, f"generated+{share}" if share else "generated") for share in (0, 25, 50, 75, 100)]
    _points(left, rows, metric, with_generated, "generated + real", "tab:blue", "o-")
    _points(left, rows, metric, [(50, "real-50"), (100, "real")], "real alone", "tab:orange", "s-")
    real = values_of(rows, "real", metric)
    if real:
        mean, sd = _mean_sd(real)
        left.axhspan(mean - sd, mean + sd, color="tab:orange", alpha=0.15, linewidth=0)
        left.axhline(mean, color="tab:orange", linestyle="--", linewidth=1, label="100 % real")
    left.set(xlabel="share of the real images, %", ylabel=f"{title}, lower is better", xticks=[0, 25, 50, 75, 100])
    left.legend(frameon=False)
    _points(right, rows, metric, [(0, "generated")], "kept", "tab:blue", "o")
    _points(right, rows, metric, [(1, "random")], "random", "tab:gray", "o")
    right.set(xticks=[0, 1], xticklabels=["kept", "random\n75 %"], xlim=(-0.6, 1.6), title="generated only")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    with matplotlib.rc_context({"svg.hashsalt": "table4", "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150)


def _points(
    axes: Any, rows: Sequence[Row], metric: str, places: Sequence[tuple[int, str]], label: str, colour: str, form: str
) -> None:
    """Mean and standard deviation at each place, and every run as a small dot."""
    there = [(x, values) for x, name in places if (values := values_of(rows, name, metric))]
    if not there:
        return
    means, spreads = zip(*(_mean_sd(values) for _, values in there), strict=True)
    axes.errorbar([x for x, _ in there], means, yerr=spreads, fmt=form, color=colour, capsize=4, label=label)
    for x, values in there:
        axes.scatter([x] * len(values), values, s=9, color=colour, alpha=0.5, zorder=3)
