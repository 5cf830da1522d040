"""Where the time of a training step goes: the loader's share, the rest, and images per second. There is no peer.

    python benchmarks/training.py [--quick] [--json]

A build of drawn hands (256 × 256 JPEGs) is written to a temporary folder and trained from with the stand-in recipe's
network and augmentation. `loader_share` is the share of the steps' time that training waits for its one worker.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import simplejpeg
import torch
from rows import parser, print_rows, row

from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.recipes import load_recipe  # type: ignore[import-not-found]  # the recipes folder, under our own name
from pam_aug.rollouts.label import hand_label
from pam_aug.schema import Camera, Sample, Source, make_key
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import ShardWriter
from pam_aug.train.mixed import MixedRun
from pam_aug.train.mixed_config import read_recipe

SIZE = 256
CAMERA = Camera(SIZE, SIZE, np.array([[350.0, 0, 127.5], [0, 350, 127.5], [0, 0, 1]]), np.eye(4))


def write_build(out: Path, hands: int) -> None:
    """A build of open hands in random poses over coloured noise."""
    assets = {side: load_open_hand(side) for side in ("right", "left")}
    layers = {side: HandLayer(a, dtype=torch.float64) for side, a in assets.items()}
    rng = np.random.default_rng(0)
    with ShardWriter(out / "shards" / "real-00000.tar", "real") as shard:
        for n in range(hands):
            side = ("right", "left")[n % 2]
            numbers = rng.normal(0, 0.6, 3), rng.normal(0, 0.2, 45), rng.normal(0, 1, 10), np.array([0.05, 0, 0.5])
            label = hand_label(layers[side], "open_hand", *numbers, CAMERA)
            small = rng.integers(0, 255, (32, 32, 3), np.uint8)
            image = np.ascontiguousarray(np.kron(small, np.ones((8, 8, 1), np.uint8)))
            key = make_key("bench", "s", f"take{n // 8}", "c", f"{n:06d}")
            sample = Sample(key, CAMERA, (label,), (), Source("bench", str(n), "none", "bench"))
            shard.add(sample, simplejpeg.encode_jpeg(image, quality=92), "jpg")
    write_mix(out / "mix.json", Mix((MixSource("real", "1", collect_shards(out / "shards", "real", out)),)))
    hashes = {f"open_hand/{side}": a.sha256 for side, a in assets.items()}
    (out / "build.json").write_bytes(orjson.dumps({"identity": {"hands": hashes}}))


def timed(run: MixedRun, skip: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of waiting for data, of making targets (crops by homography, vertices), and of the whole step."""
    waits, targets_s, steps = [], [], []
    made = run.targets

    def clocked(raw: dict[str, Any]) -> Any:
        began = time.perf_counter()
        out = made(raw)
        targets_s.append(time.perf_counter() - began)
        return out

    run.targets = clocked  # type: ignore[assignment]
    batches: Iterator[dict[str, Any]] = run._loader(run.batches, range(run.config.iterations))
    for i in range(run.config.iterations):
        began = time.perf_counter()
        raw = next(batches)
        waits.append(time.perf_counter() - began)
        run.step(i, raw)
        steps.append(time.perf_counter() - began)
    return waits[skip:], targets_s[skip:], steps[skip:]


def main() -> None:
    options = parser(__doc__).parse_args()
    iterations, skip = (24, 4) if options.quick else (220, 20)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_build(out / "build", 64 if options.quick else 256)
        settings = [f"data.mix={out / 'build'}", f"iterations={iterations}", "warmup=0", "decay=0"]
        settings += [f"threads={os.cpu_count() or 1}", f"log_every={iterations}"]
        run = MixedRun(read_recipe(load_recipe("table4_standin"), settings), out / "run")
        waits, targets_s, steps = timed(run, skip)
        batch = run.config.batch
    rows = [
        row("loader_share", sum(waits) / sum(steps), "of the step"),
        row("targets_share", sum(targets_s) / sum(steps), "of the step: crops by homography, vertices"),
        row("step_s", steps, f"s per {batch} hands"),
        row("images_per_s", [batch / s for s in steps], "images/s"),
    ]
    print_rows(rows, options.json, ("pam_aug", "torch", "kornia", "albumentations", "accelerate"))


if __name__ == "__main__":
    main()
