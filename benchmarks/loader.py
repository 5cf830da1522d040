"""Samples per second from disk to a batch: ours, webdataset, litdata, mosaicml-streaming, a folder, and bare decoding.

    python benchmarks/loader.py [--quick] [--json] [--cache FOLDER]

20,000 JPEGs of 224 × 224 (about 12 kB each) and 175 label numbers per image, the same for all, from a warm page cache,
on two cores. What each reader delivers and how is in `loader_readers.py`; that all deliver the same is checked. Each
runs two epochs with 0 and with 2 worker processes (ours without workers decodes in 2 threads), of which the second
counts, and enters with its better one.
`decode_ceiling` is two processes that decode the same JPEGs from memory and do nothing else.

Large data: a mix of 1,000 shards of 1,000 samples (hard links of one shard): opening all its indexes, the first batch
of a shuffled epoch, and memory above that of the idle process after 200 batches from all over it.

Every peer has an environment of its own, built here under the cache folder (`--cache`, else `pam_aug/benchmarks` in
$XDG_CACHE_HOME or ~/.cache), with the torch of the environment that runs this; data stay there too. `--quick` takes
2,000 images and one round, and leaves a peer out, saying so, whose environment is not there and takes over 30 s.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from loader_readers import PER_SHARD, SIZE_PX, SPLITS, named, raw
from rows import parser, print_rows, row

from pam_aug.schema import Camera, Hand, Sample, Source, make_key
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import ShardWriter, index_path, marker_path, shard_name

PEERS = {
    "webdataset": ("webdataset", "1.0.2"),
    "litdata": ("litdata", "0.2.76"),
    "mosaicml": ("mosaicml-streaming", "0.13.0"),
    "folder": ("", ""),
}
READERS = Path(__file__).with_name("loader_readers.py")
QUICK_BUILD_S = 30.0
MILLION_SHARDS = 1000
DATA_VERSION = 1  # of what `make_raw` and the writers make; other data go to another folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_folder(given: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "pam_aug" / "benchmarks"


def two_cores() -> None:
    """This process and all that it starts run on two cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


# ------------------------------------------------------------------------------------------------------ environments


def environment(cache: Path, reader: str, limit_s: float | None) -> str | None:
    """The Python of a reader's own environment, built where it is missing; None where that takes longer than allowed.

    Half-built ones are built again: the stamp is written last.
    """
    package, version = PEERS[reader]
    if not package:
        return sys.executable
    pins = [f"{n}=={metadata.version(n).partition('+')[0]}" for n in ("torch", "simplejpeg", "orjson")]
    pins.append(f"{package}=={version}")
    folder = cache / f"{package}-{version}"
    python, stamp = str(folder / "bin" / "python"), folder / "installed.txt"
    if stamp.is_file() and stamp.read_text().split() == pins:
        return python
    say(f"building an environment for {package} {version} in {folder}")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=2)
        subprocess.run([python, *install], check=True, stdout=2, timeout=limit_s)
    except subprocess.TimeoutExpired:
        shutil.rmtree(folder)
        say(f"{package}: left out, its environment was not built in {limit_s:.0f} s; run once without --quick")
        return None
    stamp.write_text("\n".join(pins))
    return python


def run(python: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([python, str(READERS), *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


# --------------------------------------------------------------------------------------------------------------- data


def make_jpegs(job: tuple[int, int]) -> list[bytes]:
    """JPEGs with the spectrum of photographs (amplitude as 1/frequency), each a crop of a larger random picture."""
    start, count = job
    rng = np.random.default_rng(start)
    side = 1024
    picture = np.zeros((side, side, 3), np.float32)
    for octave in range(2, 11):
        grid = rng.standard_normal((2**octave, 2**octave, 3)).astype(np.float32)
        picture += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * (172 / 2 ** (octave / 1.6))
    pixels = np.clip(picture + 120, 0, 255).astype(np.uint8)
    made = []
    for v, u in rng.integers(0, side - SIZE_PX, (count, 2)):
        crop = np.ascontiguousarray(pixels[v : v + SIZE_PX, u : u + SIZE_PX])
        made.append(simplejpeg.encode_jpeg(crop, quality=90, colorsubsampling="420"))
    return made


def make_raw(data: Path, count: int) -> None:
    jobs = [(start, min(250, count - start)) for start in range(0, count, 250)]
    with ProcessPoolExecutor(2) as pool:
        images = [image for part in pool.map(make_jpegs, jobs) for image in part]
    (data / "raw").mkdir(parents=True)
    (data / "raw" / "images.bin").write_bytes(b"".join(images))
    np.save(data / "raw" / "ends.npy", np.cumsum([len(i) for i in images]))
    labels = np.random.default_rng(0).normal(0, 0.3, (count, SPLITS[-1])).astype(np.float32)
    np.save(data / "raw" / "labels.npy", labels)
    say(f"{count} images, mean {np.mean([len(i) for i in images]) / 1000:.1f} kB")


def write_ours(data: Path) -> None:
    """Half the samples as real, half as synthetic ones, so that an epoch at ratio 1/2 reads each of them once."""
    samples = list(raw(data))
    root, half = data / "pam_aug", len(samples) // 2
    for kind, first in (("real", 0), ("syn", half)):
        for number in range(0, half, PER_SHARD):
            with ShardWriter(root / "shards" / shard_name(kind, number // PER_SHARD), kind) as shard:
                for k in range(first + number, first + min(number + PER_SHARD, half)):
                    shard.add(sample_of(k, samples[k][1], kind == "syn"), samples[k][0])
    kinds = [(kind, collect_shards(root / "shards", kind, root)) for kind in ("real", "syn")]
    write_mix(root / "mix.json", Mix(tuple(MixSource(kind, "1/2", shards) for kind, shards in kinds)))


def sample_of(k: int, label: np.ndarray, synthetic: bool) -> Sample:
    parts = named(label)
    key = make_key("bench", "s", f"q{k // 100}", "c", f"{k:08d}") + ("@00" if synthetic else "")
    camera = Camera(SIZE_PX, SIZE_PX, parts.pop("K_px"), np.eye(4))
    hand = Hand("right", "open_hand", in_view=np.ones(21, bool), **parts)
    return Sample(key, camera, (hand,), (), Source("bench", str(k), "none", "bench"), synthetic)


def write_million(data: Path) -> None:
    """A thousand shards that are hard links of the first real one: true sizes, indexes and markers, little disk."""
    first, root = data / "pam_aug" / "shards" / shard_name("real", 0), data / "million"
    (root / "shards").mkdir(parents=True)
    for number in range(MILLION_SHARDS):
        path = root / "shards" / shard_name("real", number)
        for old, new in ((first, path), (index_path(first), index_path(path)), (marker_path(first), marker_path(path))):
            os.link(old, new)
    write_mix(root / "mix.json", Mix((MixSource("real", "1", collect_shards(root / "shards", "real", root)),)))


def prepare(data: Path, pythons: dict[str, str], count: int) -> None:
    """Every reader's data, each written once: a folder has its name when it is whole."""
    writers = {"raw": make_raw, "pam_aug": write_ours, "million": write_million}
    for name in ("raw", "pam_aug", "million", *(r for r in pythons if r in PEERS)):
        if (data / name).is_dir():
            continue
        say(f"writing the data of {name}")
        partial = data / f"partial-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for ready in ("raw", "pam_aug"):
            if (data / ready).is_dir():
                (partial / ready).symlink_to(data / ready)
        if name == "raw":
            make_raw(partial, count)
        elif name in writers:
            writers[name](partial)
        else:
            run(pythons[name], "write", name, str(partial))
        os.replace(partial / name, data / name)
        shutil.rmtree(partial)


def check_same(reader: str, pairs: list[list[int]], known: dict[int, int]) -> None:
    wrong = sum(known.get(label) != image for label, image in pairs)
    if wrong or not pairs:
        raise SystemExit(f"{reader}: {wrong} of {len(pairs)} samples are not those that were written")


def expected_pairs(data: Path) -> dict[int, int]:
    """CRC-32 of each label → of its pixels."""
    import zlib

    return {
        zlib.crc32(np.concatenate([p.ravel() for p in named(label).values()]).tobytes()): zlib.crc32(
            simplejpeg.decode_jpeg(image, colorspace="RGB").tobytes()
        )
        for image, label in raw(data)
    }


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(data: Path, pythons: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    known = expected_pairs(data)
    rates: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for reader, python in {"decode_ceiling": sys.executable, "pam_aug": sys.executable, **pythons}.items():
            say(f"round {number + 1} of {rounds}: {reader}")
            found = run(python, "read", reader, str(data))
            if reader != "decode_ceiling":
                check_same(reader, found.pop("pairs"), known)
            for setting, value in found.items():
                rates.setdefault(reader, {}).setdefault(setting, []).append(value)
    ceiling = statistics.median(rates["decode_ceiling"]["2"])
    best = {r: max(s.items(), key=lambda item: statistics.median(item[1])) for r, s in rates.items()}
    workers, ours = best["pam_aug"]
    rows = [row("samples_per_s", ours, f"1/s, {workers} workers", "decode_ceiling", ceiling)]
    for reader in pythons:
        setting, values = best[reader]
        name = f"{' '.join(PEERS[reader]).strip() or 'folder of JPEG and JSON'}, {setting} workers"
        rows.append(row("samples_per_s", ours, f"1/s, {workers} workers", name, statistics.median(values)))
    rows.append(row("decode_ceiling", rates["decode_ceiling"]["2"], "1/s, 2 processes"))
    rows.append(row("decode_ceiling_one", rates["decode_ceiling"]["1"], "1/s, 1 process"))
    large = [run(sys.executable, "million", str(data / "million")) for _ in range(rounds)]
    samples = f"{large[0]['samples']:,} samples"
    return [
        *rows,
        row("open_million_s", [x["open_s"] for x in large], f"s, {samples}, every index opened"),
        row("epoch_start_million_s", [x["epoch_start_s"] for x in large], f"s, {samples}, to the first shuffled batch"),
        row("samples_per_s_million", [x["samples_per_s"] for x in large], f"1/s, {samples}, shuffled over all shards"),
        row("peak_rss_mb", [x["peak_rss_mb"] for x in large], f"MiB above the idle process, {samples}"),
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--cache", default="", help="where environments and data are kept")
    arguments = options.parse_args()
    quick = arguments.quick
    two_cores()
    cache = cache_folder(arguments.cache)
    count = 2 * PER_SHARD if quick else 20 * PER_SHARD
    data = cache / f"loader-data-{DATA_VERSION}-{count}"
    made = {reader: environment(cache, reader, QUICK_BUILD_S if quick else None) for reader in PEERS}
    pythons = {reader: python for reader, python in made.items() if python is not None}
    data.mkdir(parents=True, exist_ok=True)
    prepare(data, pythons, count)
    rows = measure(data, pythons, 1 if quick else 3)
    print_rows(rows, arguments.json, ("pam_aug", "torch", "numpy", "simplejpeg", "orjson"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
