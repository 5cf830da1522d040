"""Converting DexYCB and OAKINK2 beside `tar` of exactly the files that a conversion reads, both ending in fsync.

    python benchmarks/convert.py [--quick | --full] [--json] [--workers N] [--folder DIR]

Frames per second are of the whole conversion (labels, shards, hashes, manifest, report) less its start, which
`startup_s` gives: the time of a conversion of one image. `..._per_cpu_s` counts the processor time of all processes
instead and says what a loaded machine would hide; tar has one process. `peak_rss_mb` adds up all processes of a
conversion, pages that they share counted once in each. Caches are warm: every file was read just before.

The trees are made here, in the published form. Real in size and form: names, calibration, label archives (members,
types, compression, segmentation shapes), the annotation pickle with all its tensors, JPEG images of natural entropy
(70 to 100 kB). Not real: what the images show, and that frames share files by hard links (64 images, some labels), so
that making a tree takes seconds; reading them costs the same system calls and the same bytes. No depth is read.
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

import cv2
import numpy as np
from rows import parser, print_rows, row

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import fake_dexycb
import fake_oakink2

TAR = "tar"
_IMAGES = 64
_SEQUENCE_FRAMES = 72  # of a DexYCB sequence
_OAK_FRAMES = 1600  # images per camera of an OAKINK2 sequence
_SIZES = {"quick": (1_152, 1_600, 3), "usual": (9_216, 6_400, 5), "full": (50_112, 51_200, 1)}  # images, images, rounds


# --- trees -----------------------------------------------------------------------------------------------------------


def natural_jpegs(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """JPEG files of pictures whose spectrum falls off as that of photographs, each of another size of 70 to 100 kB."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = []
    fall = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1.0 / width
    for k in range(count):
        waves = rng.normal(size=(3, *fall.shape)) + 1j * rng.normal(size=(3, *fall.shape))
        planes = np.fft.irfft2(waves / fall**1.2, s=(height, width))
        planes[1:] = 0.8 * planes[:1] + 0.2 * planes[1:]  # colours of a picture go together
        picture = 128 + 45 * (planes - planes.mean()) / planes.std()
        pixels = np.clip(np.moveaxis(picture, 0, 2), 0, 255).astype(np.uint8)
        low, high = 30, 100
        wanted = rng.integers(70_000, 100_000)
        while high - low > 1:  # the quality that gives the size
            middle = (low + high) // 2
            size = len(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, middle])[1])
            low, high = (middle, high) if size <= wanted else (low, middle)
        path = folder / f"{k}.jpg"
        path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, low])[1].tobytes())
        paths.append(path)
    return paths


def segmentation(rng: np.random.Generator) -> np.ndarray:
    """Outlines of a hand and some objects, as ragged as those that are drawn from meshes."""
    seg = np.zeros((480, 640), np.uint8)
    for value in (2, 5, 14, 255):
        turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        radius = rng.uniform(40, 70) * (1 + 0.25 * rng.normal(size=60).cumsum() / 8)
        outline = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None] + rng.uniform([150, 130], [490, 350])
        cv2.fillPoly(seg, [outline.astype(np.int32)], value)
    return seg


def write_dexycb(folder: Path, images: int) -> dict[str, Any]:
    """A DexYCB tree of `images` images (eight cameras, 72 frames a sequence). Returns the converter's options."""
    rng = np.random.default_rng(0)
    fake = fake_dexycb.write_dexycb(folder)
    jpegs = natural_jpegs(folder / "jpegs", 640, 480, _IMAGES)
    model = fake.sequences[0]
    source = fake.root / model.subject / model.name
    labels: dict[str, list[Path]] = {}
    for serial in fake_dexycb.SERIALS:
        for frame in (1, 2, 3, 5):
            path = source / serial / f"labels_{frame:06d}.npz"
            label = {**np.load(path), "seg": segmentation(rng)}
            path.unlink()
            np.savez_compressed(path, **label)
            labels.setdefault(serial, []).append(path)
    meta = (source / "meta.yml").read_text().replace("num_frames: 6", f"num_frames: {_SEQUENCE_FRAMES}")
    lines = []
    for number in range(images // (8 * _SEQUENCE_FRAMES)):
        name, position = f"20200709_{150000 + number:06d}", [i for i in range(100) if i % 5 != 4][number % 80]
        subject = list(fake_dexycb.EXTRINSICS)[number // 80]
        sequence = fake.root / subject / name
        sequence.mkdir()
        lines.append(f"{subject}/{name} {position}")
        (sequence / "meta.yml").write_text(meta)
        np.savez(sequence / "pose.npz", pose_m=np.ones((_SEQUENCE_FRAMES, 1, 51), np.float32))
        for k, serial in enumerate(fake_dexycb.SERIALS):
            (sequence / serial).mkdir()
            for frame in range(_SEQUENCE_FRAMES):
                os.link(jpegs[(11 * k + 5 * number + frame) % _IMAGES], sequence / serial / f"color_{frame:06d}.jpg")
                os.link(labels[serial][frame % 4], sequence / serial / f"labels_{frame:06d}.npz")
    for s in fake.sequences[1:]:
        shutil.rmtree(fake.root / s.subject / s.name)
    shutil.rmtree(source)
    fake.table.write_text("\n".join(lines) + "\n")
    subjects = sorted({list(fake_dexycb.EXTRINSICS).index(line.split("/")[0]) + 1 for line in lines})
    return {
        "converter": "dexycb",
        "root": str(fake.root),
        "subjects": subjects,
        "sequence_table": str(fake.table),
        "mano_dir": str(fake.mano_dir),
    }


def write_oakink2(folder: Path, images: int) -> dict[str, Any]:
    """An OAKINK2 tree of `images` images of four cameras, in sequences of up to 1,600 frames."""
    root = folder / "oakink2"
    frames = min(images // 4, _OAK_FRAMES)
    ids = list(range(5, 5 + 4 * frames, 4))
    jpegs = natural_jpegs(folder / "jpegs", fake_oakink2.WIDTH, fake_oakink2.HEIGHT, _IMAGES)
    first = fake_oakink2.make_sequence(
        fake_oakink2.KEY_A, 1, tuple(fake_oakink2.SERIALS), ids, list(range(5, 5 + 4 * frames))
    )
    whole = fake_oakink2.annotation_of(first, as_torch=True, whole_body=True)
    annotation = root / "annotation.pkl"
    fake_oakink2.write_annotation(annotation, whole)
    for number in range(images // (4 * frames)):
        token = f"scene_01__A001++seq__{number:020x}__2023-04-27-20-38-16"
        (root / "anno_preview").mkdir(exist_ok=True)
        os.link(annotation, root / "anno_preview" / f"{token}.pkl")
        for k, serial in enumerate(fake_oakink2.SERIALS):
            (root / "data" / token / serial).mkdir(parents=True)
            for at, frame in enumerate(ids):
                os.link(
                    jpegs[(11 * k + 5 * number + at) % _IMAGES], root / "data" / token / serial / f"{frame:06d}.jpg"
                )
        key = f"(({ids[0]}, {ids[-1]}), None)"
        fake_oakink2.write_programme(
            root / "program", token, {key: fake_oakink2.primitive("hold", None, "C12001")}, {key: "Hold the bowl."}
        )
    fake_oakink2.write_meshes(root)
    fake_oakink2.write_mano(root / "mano")
    return {"converter": "oakink2", "root": str(root), "mano_dir": str(root / "mano")}


def files_read(name: str, root: Path) -> list[Path]:
    """What a conversion reads of the dataset: no depth, no meshes, no segmentation beyond the label archives."""
    if name == "dexycb":
        return [p for p in sorted(root.rglob("*")) if p.is_file() and "models" not in p.parts]
    folders = [p for part in ("data", "anno_preview", "program") for p in sorted((root / part).rglob("*"))]
    return [p for p in folders if p.is_file()]


# --- one run of each -------------------------------------------------------------------------------------------------


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


def convert(section: dict[str, Any], out: Path, workers: int, samples: int) -> tuple[float, float, float]:
    """Seconds of the clock and of the processor, and the greatest MB of all processes together."""
    code = (
        "import json, sys, warnings\nfrom pathlib import Path\nfrom pam_aug.build.config import BuildConfig\n"
        "from pam_aug.build.run import run_build\nfrom pam_aug.config import resolve\n"
        "section, out, workers, samples = json.loads(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    warnings.simplefilter('ignore')\n"
        "    shards = {'samples_per_shard': samples}\n"
        "    config = resolve(BuildConfig, {'source': section, 'shards': shards})\n"
        "    done = run_build(config, Path(out), ('real',), workers)\n"
        "    print(done.summary.real_images)\n"
    )
    script = out.with_suffix(".py")
    script.write_text(code)
    before, start = _children_cpu_s(), time.perf_counter()
    arguments = json.dumps([section, str(out), workers, samples])
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
    """Samples the resident memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.mb, self._pid, self._end = 0.0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.mb = max(self.mb, _tree_mb(self._pid))


def _tree_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        below = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(map(_tree_mb, below))


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
    for name, make, images in makers:
        section = make(folder / name, images)
        files = files_read(name, Path(section["root"]))
        if startup is None:
            runs = [convert({**section, "frames": 1}, folder / "one", workers, 256)[:2] for _ in range(min(rounds, 3))]
            startup = statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)
            rows.append(row("startup_s", [r[0] for r in runs], "s"))
        for path in files:
            path.read_bytes()
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(tar(files, Path(section["root"]), folder / f"{name}.tar"))
            wall, cpu, peak = convert(section, folder / f"{name}-out", workers, 256)
            ours.append((max(wall - startup[0], 1e-3), max(cpu - startup[1], 1e-3)))
            peaks.append(peak)
        for unit, which in (("frames_per_s", 0), ("frames_per_cpu_s", 1)):
            mine, peer = ([images / run[which] for run in runs] for runs in (ours, theirs))
            rows.append(row(f"{name}_{unit}", mine, "frames/s", TAR, statistics.median(peer)))
        shutil.rmtree(folder / name)
    rows.append(row("peak_rss_mb", max(peaks), "MB"))
    return rows


def main() -> int:
    arguments: argparse.ArgumentParser = parser(__doc__ or "")
    arguments.add_argument("--full", action="store_true", help="50,000 frames of each; several minutes, 10 GB of disk")
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
