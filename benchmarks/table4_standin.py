"""Table 4 on stand-in data: does half of the real images plus generated ones train as well as all real ones?

    python benchmarks/table4_standin.py [--quick] [--json] [--out DIR] [--work DIR] [--seeds 3] [--at-once 2]

"Real" is the demo's path-traced domain, with hands, objects, textures and lights that the generator does not have. The
generated images are the bundled generator's kept candidates on rollouts of their own; the test is path-traced, too, of
other people, objects and rooms. Each row is trained from random weights, for the same iterations, by the recipe
`table4_standin`, and measured as `pam-aug eval` does. Beside the published table's six rows: half of the real images
alone, and the kept candidates against a random 75 % of all candidates, as many of each input.

Data are made once, in DIR of --work; finished runs stand as DIR/rows/*.json in --out: the same command goes on where it
was stopped. The table, the answer and the plots go to --out. Needs the extras rgb, train and dev (matplotlib).
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import parser, print_rows
from table4_data import FULL, QUICK, Sizes, make_data
from table4_report import benchmark_rows, require_plots, write_report
from table4_runs import SETTINGS, Setting, run_all

from pam_aug.errors import PamAugError

# A few steps of a smaller network: whether everything runs, not what it finds.
_QUICK_TRAINING = (
    "net.input_px=32", "net.widths=[8, 16, 24, 32]", "net.depths=[1, 1, 1, 1]", "net.joints=regressor",
    "iterations=3", "batch=4", "warmup=0", "decay=0", "loaders=0", "threads=1",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """The whole of it: sizes of the data, seeds of the training, and changes to the recipe."""

    sizes: Sizes
    seeds: tuple[int, ...]
    training: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = SETTINGS


FULL_EXPERIMENT = Experiment(FULL, (0, 1, 2))
QUICK_EXPERIMENT = Experiment(QUICK, (0,), _QUICK_TRAINING)


def run(
    experiment: Experiment, out: Path, work: Path, workers: int = -1, tell: bool = True, at_once: int = 1
) -> list[dict[str, Any]]:
    """Everything that is not done yet; returns the rows of all runs, and writes the report to `out`."""
    require_plots()  # rather now than in four hours
    out.mkdir(parents=True, exist_ok=True)
    data = make_data(experiment.sizes, work / "data", workers)
    rows: list[dict[str, Any]] = []
    total, seconds = len(experiment.seeds) * len(experiment.settings), []
    began = time.perf_counter()
    runs = run_all(data, experiment.seeds, out, work, experiment.training, experiment.settings, at_once)
    for row, before in runs:
        rows.append(row)
        now = time.perf_counter()
        if not before:
            seconds.append(now - began)
        began = now
        left = (total - len(rows)) * sum(seconds) / max(len(seconds), 1) / 60
        if tell:
            state = "done before" if before else f"{seconds[-1]:.0f} s, about {left:.0f} min left"
            found = f"PA-MPJPE {row['test']['pa_mpjpe_mm']:.2f} mm"
            print(f"{len(rows)}/{total} {row['setting']}, seed {row['seed']}: {found} ({state})", file=sys.stderr)
    write_report(rows, experiment.settings, experiment.sizes, out, quick=bool(experiment.training))
    return rows


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--out", type=Path, help="rows, table and plots (runs/table4_standin/results)")
    made.add_argument("--work", type=Path, help="data and training runs (runs/table4_standin)")
    made.add_argument("--seeds", type=int, default=3, help="runs of each setting; at least 3 for a spread")
    made.add_argument("--at-once", type=int, default=2, help="trainings side by side; each has its share of the cores")
    made.add_argument("--workers", type=int, default=-1, help="processes that make the data; -1 takes all cores")
    options = made.parse_args()
    if options.seeds < 1 or options.at_once < 1:
        made.error("--seeds, --at-once: at least 1")
    experiment = QUICK_EXPERIMENT if options.quick else FULL_EXPERIMENT
    if not options.quick and options.seeds != len(experiment.seeds):
        experiment = Experiment(FULL, tuple(range(options.seeds)))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or (Path(temporary) if options.quick else Path("runs/table4_standin"))
        out = options.out or work / "results"
        try:
            rows = run(experiment, out, work, options.workers, at_once=1 if options.quick else options.at_once)
        except PamAugError as error:
            print(f"table4_standin: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            sys.exit(130)
    print_rows(benchmark_rows(rows, experiment.settings), options.json, ("pam_aug", "torch", "mitsuba", "accelerate"))


if __name__ == "__main__":
    main()
