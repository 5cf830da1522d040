"""Converting DexYCB and OAKINK2 beside `tar` of exactly the files that a conversion reads, both ending in fsync.

    python benchmarks/convert.py [--quick | --full] [--json] [--workers N] [--folder DIR]

Frames per second are of the whole conversion (labels, shards, hashes, manifest, report) less its start, which
`startup_s` gives: the time of a conversion of one image per worker. `..._per_cpu_s` counts the processor time of all
processes instead and says what a loaded machine would hide; tar has one process. `dexycb_depth_...` is
`--depth sensor`, and its tar has the depth images too. `peak_rss_mb` is the private memory of all processes of a
conversion together, and the file-backed pages (libraries) of that one which has most, as they are shared. Caches are
warm: every file was read just before.

The trees are made by convert_trees.py.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert_trees import files_read, write_dexycb, write_oakink2
from rows import parser, print_rows, row

TAR = "tar"
_SIZES = {"quick": (1_152, 1_600, 3), "usual": (9_216, 6_400, 5), "full": (50_112, 51_200, 1)}  # images, images, rounds


def tar(files: list[Path], root: Path, out: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    names = out.with_suffix(".txt")
    names.write_text("\n".join(str(p.relative_to(root)) for p in files) + "\n")
    before, start = _children_cpu_s(), time.perf_counter()
    # Files that share their bytes by hard links are to be written each, as they would be in the dataset.
    options = ["--hard-dereference", "--no-recursion", "-C", str(root), "-T", str(names)]
    subprocess.run([TAR, "-cf", str(out), *options], check=True)
    with open(out, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    out.unlink()
    return seconds, _children_cpu_s() - before


def convert(section: dict[str, Any], out: Path, workers: int, shards: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of the clock and of the processor, and the greatest MB of all processes together."""
    code = (
        "import json, sys, warnings\nfrom pathlib import Path\nfrom pam_aug.build.config import BuildConfig\n"
        "from pam_aug.build.run import run_build\nfrom pam_aug.config import resolve\n"
        "section, out, workers, shards = json.loads(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    warnings.simplefilter('ignore')\n"
        "    config = resolve(BuildConfig, {'source': section, 'shards': shards})\n"
        "    done = run_build(config, Path(out), ('real',), workers)\n"
        "    print(done.summary.real_images)\n"
    )
    script = out.with_suffix(".py")
    script.write_text(code)
    before, start = _children_cpu_s(), time.perf_counter()
    arguments = json.dumps([section, str(out), workers, shards])
    process = subprocess.Popen(
        [sys.executable, str(script), arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    peak = _Peak(process.pid)
    images, _ = process.communicate()
    seconds = time.perf_counter() - start
    peak.stop()
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode or not images.strip():
        raise SystemExit(f"the conversion failed ({process.returncode}); run it by hand: {arguments}")
    return seconds, _children_cpu_s() - before, peak.mb


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Peak:
    """Samples the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.mb, self._pid, self._end = 0.0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            private, from_files = zip(*_tree_pages(self._pid))
            pages = sum(private) + max(from_files)
            self.mb = max(self.mb, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def _tree_pages(pid: int) -> list[tuple[int, int]]:
    """Private and file-backed resident pages of a process and all below it. Workers are spawned, so none is forked off
    another's private memory; and the kernel keeps these counts, while its shares by mapping cost a walk."""
    try:
        resident, from_files = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
        below = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except OSError:
        return [(0, 0)]
    return [(resident - from_files, from_files), *(pages for child in below for pages in _tree_pages(child))]


# --- rows ------------------------------------------------------------------------------------------------------------


def measure(size: str, workers: int, folder: Path) -> list[dict[str, Any]]:
    dexycb_images, oakink2_images, rounds = _SIZES[size]
    makers: tuple[tuple[str, Callable[[Path, int], dict[str, Any]], int], ...] = (
        ("dexycb", write_dexycb, dexycb_images),
        ("oakink2", write_oakink2, oakink2_images),
    )
    rows: list[dict[str, Any]] = []
    startup: tuple[float, float] | None = None
    peaks: list[float] = []
    shards = {"samples_per_shard": 256}
    for name, make, images in makers:
        section = make(folder / name, images)
        if startup is None:
            least = {**section, "frames": max(1, workers)}, folder / "one", workers, {"samples_per_shard": 1}
            runs = [convert(*least)[:2] for _ in range(min(rounds, 3))]
            startup = statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)
            rows.append(row("startup_s", [r[0] for r in runs], "s"))
        for depth in (False, True) if name == "dexycb" else (False,):
            files = files_read(name, Path(section["root"]), depth)
            for path in files:
                path.read_bytes()
            wanted = shards | ({"depth": True, "depth_from": "sensor"} if depth else {})
            ours, theirs = [], []
            for _ in range(rounds):
                theirs.append(tar(files, Path(section["root"]), folder / f"{name}.tar"))
                wall, cpu, peak = convert(section, folder / f"{name}-out", workers, wanted)
                ours.append((max(wall - startup[0], 1e-3), max(cpu - startup[1], 1e-3)))
                peaks.append(peak)
            for unit, which in (("frames_per_s", 0), ("frames_per_cpu_s", 1)):
                mine, peer = ([images / run[which] for run in runs] for runs in (ours, theirs))
                title = f"{name}_depth_{unit}" if depth else f"{name}_{unit}"
                rows.append(row(title, mine, "frames/s", TAR, statistics.median(peer)))
        shutil.rmtree(folder / name)
    rows.append(row("peak_rss_mb", max(peaks), "MB"))
    return rows


def main() -> int:
    arguments: argparse.ArgumentParser = parser(__doc__ or "")
    arguments.add_argument("--full", action="store_true", help="50,000 frames of each; several minutes, 25 GB of disk")
    arguments.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    arguments.add_argument("--folder", help="where the trees and shards go (default: the system's temporary folder)")
    options = arguments.parse_args()
    size = "quick" if options.quick else "full" if options.full else "usual"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(size, options.workers, Path(folder))
    print_rows(rows, options.json, ("pam_aug", "torch", "numpy"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
