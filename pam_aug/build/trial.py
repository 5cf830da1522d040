"""A few inputs and candidates made for real in a temporary folder: what a plan is scaled from."""

import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from pam_aug.build.layout import shards_folder
from pam_aug.build.run import Plan
from pam_aug.build.workdir import InputWork
from pam_aug.build.worker import Job, MakeCandidates, PackSynthetic, Worker, WriteReal
from pam_aug.generate.base import GeneratedImage
from pam_aug.generate.rendered import RenderedGenerator
from pam_aug.rollouts.scene import Scene
from pam_aug.select import SelectConfig
from pam_aug.shards.writer import shard_name

__all__ = ["NOISE", "Trial", "run_trial"]

_TRIED = 8  # inputs that may fail or be refused before a trial gives up
_REAL_IMAGES = 2
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Trial:
    """Means over what one thread made; 0 where nothing was made. What is made first loads and compiles: it is not in
    them.

    `candidate_s`: seconds of an input with all its candidates and scores, divided by their number. Bytes are those of a
    sample in a shard: `image_bytes` of the image, `label_bytes` of everything else, the tar's blocks included.
    `image_pixels`: of a candidate's image.
    `peak_bytes`: this process's largest resident memory so far.
    """

    inputs: int = 0
    candidates: int = 0
    candidate_s: float = 0.0
    image_bytes: float = 0.0
    image_pixels: float = 0.0
    label_bytes: float = 0.0
    real_images: int = 0
    real_s: float = 0.0
    real_bytes: float = 0.0
    peak_bytes: int = 0
    problem: str = ""


class Noise(RenderedGenerator):
    """In place of a generator that cannot run here: pictures for the judges to look at, never kept."""

    def generate(
        self, scene: Scene, seeds: Sequence[int], size: tuple[int, int] | None = None
    ) -> Iterator[GeneratedImage]:
        camera = scene.sample.camera
        width, height = size or (camera.width, camera.height)
        for seed in seeds:
            rgb = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
            yield GeneratedImage(rgb, simplejpeg.encode_jpeg(rgb, quality=50))


NOISE = Noise()


def run_trial(
    todo: Plan, inputs: int = 2, candidates: int = 4, generator: Any = None, judges: Sequence[Any] = ()
) -> Trial:
    """Make `candidates` candidates of each of `inputs` inputs as a build makes them, and two real images.

    `generator` and `judges` stand in for the configuration's, where those cannot run here.
    """
    config = replace(
        todo.config,
        generate=replace(todo.config.generate, candidates=min(candidates, todo.config.generate.candidates)),
        select=SelectConfig(reject="0"),
        shards=replace(todo.config.shards, keep_rejected=False),
    )
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        worker = Worker(Job(config, todo.real_section, Path(folder)), generator, judges)
        trial = _synthetic(worker, Path(folder), todo, inputs) if todo.synthetic_shards else Trial()
        if todo.real_shards:
            trial = _real(worker, Path(folder), todo, trial)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return replace(trial, peak_bytes=peak)


def _synthetic(worker: Worker, out: Path, todo: Plan, inputs: int) -> Trial:
    indices = [index for shard in todo.synthetic_shards for index in shard]
    tried = min(_TRIED, len(indices))
    order = [indices[i * len(indices) // tried] for i in range(tried)]
    worker.do(MakeCandidates(0, 0, order[0]))
    made: list[int] = []
    sizes: list[int] = []
    pixels: list[int] = []
    seconds, problem = 0.0, ""
    for index in order[1:] or order:
        if len(made) == inputs:
            break
        work = InputWork(out, 1, len(made))
        began = time.perf_counter()
        worker.do(MakeCandidates(1, len(made), index))
        took = time.perf_counter() - began
        images = work.images()
        if not images:
            failures = [row.failure for row in work.rows() if row.failure]
            problem = failures[0] if failures else "screening refused it, or it shows no hand"
            work.rows_path.unlink()
            continue
        made.append(index)
        seconds += took
        sizes += [len(data) for data in images.values()]
        pixels += [_pixels(data) for data in images.values()]
    if not made:
        return Trial(problem=f"none of {tried} inputs that were tried could be used; the last: {problem}")
    worker.do(PackSynthetic(1, tuple(made)))
    samples, images_bytes, rest_bytes = _contents(shards_folder(out) / shard_name("syn", 1))
    return Trial(
        inputs=len(made),
        candidates=len(sizes),
        candidate_s=seconds / len(sizes),
        image_bytes=images_bytes / samples if samples else float(np.mean(sizes)),
        label_bytes=rest_bytes / samples if samples else 0.0,
        image_pixels=float(np.mean(pixels)),
    )


def _real(worker: Worker, out: Path, todo: Plan, trial: Trial) -> Trial:
    indices = [index for shard in todo.real_shards for index in shard]
    worker.do(WriteReal(0, (indices[0],)))
    chosen = tuple(indices[1 : 1 + _REAL_IMAGES] or indices)
    began = time.perf_counter()
    worker.do(WriteReal(1, chosen))
    seconds = time.perf_counter() - began
    samples, image_bytes, rest_bytes = _contents(shards_folder(out) / shard_name("real", 1))
    size = (image_bytes + rest_bytes) / samples if samples else 0.0
    return replace(trial, real_images=len(chosen), real_s=seconds / len(chosen), real_bytes=size)


def _pixels(jpeg: bytes) -> int:
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    return int(height) * int(width)


def _contents(path: Path) -> tuple[int, int, int]:
    """Samples of a shard, the bytes of their images, and those of everything else but the tar's end."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    images = [m.size for m in members if m.name.endswith((".jpg", ".png")) and m.name.count(".") == 1]
    whole = sum(_BLOCK + -(-m.size // _BLOCK) * _BLOCK for m in members)
    return len(images), sum(images), whole - sum(images)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a build's workers compute."""
    import numba

    before = torch.get_num_threads(), cv2.getNumThreads(), numba.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
        numba.set_num_threads(before[2])
