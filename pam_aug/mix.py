"""The torch dataset on an exact mix: whole batches, one hand per item, the same order for any workers and ranks."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pam_aug.errors import ConfigError, PamAugError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.geometry import square_crop
from pam_aug.mix_order import Schedule, keep_fraction, order, parse_ratio, sequence_of
from pam_aug.mix_sources import SourceItems, open_mix
from pam_aug.shards.files import place
from pam_aug.shards.images import Suffix, decode_image
from pam_aug.shards.index import INDEX_DTYPE
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import ShardReader

__all__ = [
    "LastBatch",
    "MixedDataset",
    "Schedule",
    "SourceItems",
    "keep_fraction",
    "open_mix",
    "order",
    "parse_ratio",
    "sequence_of",
]

LastBatch = Literal["short", "pad", "drop"]
_LABELS = ("joints_cam_m", "joints_px", "in_view", "K_px", "side", "global_orient", "hand_pose", "betas", "transl")


class MixedDataset(IterableDataset):
    """Batches of hands, real and synthetic in the exact ratio of a `mix.json`.

    dataset = MixedDataset("out", batch_size=64, crop_px=224)
    for epoch in range(10):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_size=None, num_workers=2): ...

    A batch of B hands is a dict: `image` uint8 (B,H,W,3) RGB; `joints_cam_m` (B,21,3) metres, camera frame; `joints_px`
    (B,21,2) and `K_px` (B,3,3) in the pixels of `image`; `in_view` (B,21) bool; `side` (B) uint8, 0 right, 1 left;
    `global_orient` (B,3), `hand_pose` (B,45) absolute axis-angle, `betas` (B,10), `transl` (B,3) metres; `mano_valid`
    and `is_synthetic` (B) bool; `keys` list of B; `position` int, the state after this batch; `padded` int, how many at
    the end repeat others.

    With `crop_px` an image is the square around the hand, as wide as its joints' box times `crop_scale`, resized.
    Without, images stay whole and must be of one size. `batch_size` counts hands over all ranks: rank r reads its slice
    of each global batch, so the order does not depend on the number of ranks. The last batch of an epoch is "short",
    "pad" (filled with the epoch's first items) or "drop". `decode_threads` work on one batch; by default up to 4
    without workers, else 1; where shards lie at a URL, so many requests run at once.

    `mix` is a build's folder or `mix.json`, by path or by a `memory://`, `file://`, `http(s)://` or `s3://` URL, whose
    files are read by ranges, in the same order.

    torchdata's StatefulDataLoader goes on in the middle of an epoch under the same number of workers. To go on under
    another number, save `state_dict(batch)` of the last batch that was used.

    Raises ConfigError for arguments or a mix that cannot be read, ShardDamaged (naming the file) for changed data.
    """

    def __init__(
        self,
        mix: Path | str,
        batch_size: int,
        *,
        seed: int | None = None,
        crop_px: int | None = None,
        crop_scale: float = 1.25,
        last: LastBatch = "short",
        rank: int | None = None,
        world: int | None = None,
        decode_threads: int | None = None,
    ) -> None:
        super().__init__()
        path = place(mix)
        content = read_mix(path)
        self._root = path.parent if path.name.endswith(".json") else path
        self.seed = content.seed if seed is None else seed
        self.sources, self.schedule = open_mix(content, self._root, self.seed)
        if rank is None or world is None:
            rank, world = _distributed()
        if batch_size < 1 or not 0 <= rank < world or last not in ("short", "pad", "drop"):
            raise ConfigError(f"batch size {batch_size}, rank {rank} of {world}, last={last!r}: out of range")
        if last == "drop" and self.schedule.epoch_length < batch_size:
            raise ConfigError(f"an epoch has {self.schedule.epoch_length} hands: dropping short batches leaves none")
        if crop_px is not None and crop_px < 1:
            raise ConfigError(f"crop_px {crop_px}: at least 1")
        self.batch_size, self.rank, self.world, self.last = batch_size, rank, world, last
        self.crop_px, self.crop_scale, self.decode_threads = crop_px, crop_scale, decode_threads
        identity: tuple[Any, ...] = (content.sources, self.seed, content.when_short)
        if content.window_shards:
            identity += (content.window_shards,)
        self._order_id = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        # In shared memory, so that workers that outlive an epoch (persistent_workers) see set_epoch.
        self._start = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Batches of an epoch, from its beginning."""
        length = self.schedule.epoch_length
        return length // self.batch_size if self.last == "drop" else -(-length // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration reads epoch `epoch` from its beginning."""
        self._start[0] = epoch * self.schedule.epoch_length

    def state_dict(self, batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """The state after `batch` (or the one the next iteration starts from): a position, and what it counts in."""
        return {"position": int(self._start[0]) if batch is None else int(batch["position"]), "order": self._order_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on after the batch of that state, under any number of workers and ranks.

        Raises ResumeMismatch where the state counts in another order: other shards, ratio, seed or policy.
        """
        if state.get("order") != self._order_id or not isinstance(state.get("position"), int):
            raise ResumeMismatch(
                f"{self._root}: the position is of another order (shards, ratio, seed or when_short differ); "
                "open the mix it was saved with, or start at an epoch's beginning",
                state=state,
            )
        self._start[0] = state["position"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches from the set position to the end of its epoch; worker w of W makes every W-th of them."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        threads = self.decode_threads or (1 if worker else min(4, os.cpu_count() or 1))
        return _Batches(self, int(self._start[0]), number, workers, threads)

    def positions_at(self, begin: int) -> tuple[np.ndarray, int, int]:
        """Of the batch that begins at position `begin`: this rank's positions, the position after the batch, and how
        many of this rank's repeat others."""
        length = self.schedule.epoch_length
        first = begin // length * length
        end = min(begin + self.batch_size, first + length)
        positions = np.arange(begin, end)
        short = self.batch_size - (end - begin)
        if short and self.last == "pad":
            positions = np.append(positions, first + np.arange(short) % length)
        low, high = (len(positions) * r // self.world for r in (self.rank, self.rank + 1))
        return positions[low:high], end, max(0, high - max(low, end - begin))

    def items_at(self, positions: np.ndarray) -> list[tuple[ShardReader, int]]:
        """(reader, number) of the hand at each position; `reader.row(number)` is its label as it was written."""
        source, item = self.schedule.at(positions)
        return [self.sources[s].find(i) for s, i in zip(source.tolist(), item.tolist())]

    def load(self, positions: np.ndarray, run: Callable[..., Any] = map) -> dict[str, Any]:
        """The hands at `positions` as a batch (without `position` and `padded`); `run` maps decoding over images."""
        return self._begin(positions, run)()

    def _begin(self, positions: np.ndarray, run: Callable[..., Any], **more: int) -> Callable[[], dict[str, Any]]:
        """Gives the decoding of a batch to `run`. The batch, with `more` in it, is what the returned function returns;
        it also raises what went wrong here, so that the batches before come first."""
        try:
            source, item = self.schedule.at(positions)
            places = [(self.sources[s], i) for s, i in zip(source.tolist(), item.tolist())]
            # On a disk a row takes microseconds, less than handing it to a thread; at a URL it is a request.
            found = list((run if any(s.remote for s in self.sources) else map)(_find, places))
            readers = [reader for reader, _ in found]
            rows = np.array([row for _, row in found], INDEX_DTYPE)
            images = np.empty((len(rows), *self._image_shape(rows, readers), 3), np.uint8)  # each task fills its own
        except PamAugError as error:
            return partial(_raise, error)
        parts = list(zip(readers, rows, images))
        if self.crop_px is None:
            tasks: list[_Whole] = [_Whole(*part) for part in parts]
        else:
            tasks = [_Cropped(*part, self.crop_scale) for part in parts]
        # Several images per call of a thread: handing over a call costs as much as a tenth of a small image.
        step = max(1, min(8, len(tasks) // 8))
        done = run(_do_all, [tasks[i : i + step] for i in range(0, len(tasks), step)])

        def finish() -> dict[str, Any]:
            for _ in done:
                pass
            batch: dict[str, Any] = {"image": torch.from_numpy(images)}
            batch |= {name: torch.from_numpy(rows[name].copy()) for name in _LABELS}
            batch["mano_valid"] = torch.from_numpy(rows["mano_valid"].copy())
            batch["is_synthetic"] = torch.from_numpy(rows["synthetic"].copy())
            batch["keys"] = [
                key.decode() + ("-r", "-l")[side] for key, side in zip(rows["key"].tolist(), rows["side"].tolist())
            ]
            return {**batch, **more}

        return finish

    def _image_shape(self, rows: np.ndarray, readers: list[ShardReader]) -> tuple[int, int]:
        if self.crop_px is not None:
            return self.crop_px, self.crop_px
        sizes = set(zip(rows["height"].tolist(), rows["width"].tolist()))
        if len(sizes) > 1:
            names = sorted({str(reader.path) for reader in readers})
            raise SchemaError(
                f"{names[0]}: images of {len(sizes)} sizes do not stack into one batch; set crop_px", paths=names
            )
        return next(iter(sizes), (0, 0))


class _Batches(Iterator[dict[str, Any]]):
    """The batches of one worker, from a position to the end of its epoch. Its state is where the next one begins."""

    def __init__(self, dataset: MixedDataset, start: int, number: int, workers: int, threads: int) -> None:
        self._dataset, self._worker = dataset, [number, workers]
        length = dataset.schedule.epoch_length
        self._next = start + number * dataset.batch_size
        self._end = start // length * length + length
        self._begun: deque[tuple[int, Callable[[], dict[str, Any]]]] = deque()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        # One batch ahead, so that the threads have work while this one finds rows and the caller trains.
        while len(self._begun) < 2 and self._more():
            positions, end, padded = self._dataset.positions_at(self._next)
            run = map if self._pool is None else self._pool.map
            batch = self._dataset._begin(positions, run, position=end, padded=padded)
            self._begun.append((self._next, batch))
            self._next += self._worker[1] * self._dataset.batch_size
        if not self._begun:
            if self._pool is not None:
                self._pool.shutdown(wait=False)
            raise StopIteration
        return self._begun.popleft()[1]()

    def _more(self) -> bool:
        least = self._dataset.batch_size if self._dataset.last == "drop" else 1
        return self._next + least <= self._end

    def state_dict(self) -> dict[str, Any]:
        """Where this worker's next batch begins and its epoch ends: what StatefulDataLoader saves of each worker."""
        after = self._begun[0][0] if self._begun else self._next
        order = self._dataset.state_dict()["order"]
        return {"next": after, "end": self._end, "worker": list(self._worker), "order": order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where a worker of the same number stood. Raises ResumeMismatch for another order or number."""
        wanted = {**self.state_dict(), "next": state.get("next"), "end": state.get("end")}
        if state != wanted or not isinstance(state["next"], int) or not isinstance(state["end"], int):
            raise ResumeMismatch(
                "the saved iteration is of another order or another number of workers; the `state_dict(batch)` of the "
                "dataset goes on under any number",
                state=state,
            )
        self._next, self._end = state["next"], state["end"]
        self._begun.clear()


def _find(place: tuple[SourceItems, int]) -> tuple[ShardReader, np.void]:
    source, item = place
    reader, number = source.find(item)
    return reader, reader.row(number)


@dataclass(slots=True)
class _Whole:
    """Decodes the image of a row into a batch's buffer."""

    reader: ShardReader
    row: np.void
    out: np.ndarray

    def __call__(self) -> None:
        image = self._decode(self.out)
        if image is not self.out:
            raise ShardDamaged(f"{self._where}: {image.shape[1]} × {image.shape[0]} pixels, not as its label says")

    @property
    def _where(self) -> str:
        return f"{self.reader.path}:{self.row['key'].decode()}"

    def _decode(self, out: np.ndarray | None) -> np.ndarray:
        suffix: Suffix = "png" if self.row["image_format"] else "jpg"
        return decode_image(self.reader.row_image_bytes(self.row), suffix, self._where, out)


@dataclass(slots=True)
class _Cropped(_Whole):
    """Decodes the image of a row, crops the square around the hand, and moves `joints_px` and `K_px` with it."""

    scale: float

    def __call__(self) -> None:
        size = self.out.shape[0]
        crop = square_crop(self.row["joints_px"], size, self.scale)
        cv2.warpAffine(self._decode(None), crop.affine, (size, size), dst=self.out, flags=cv2.INTER_LINEAR)
        self.row["joints_px"] = crop.points(self.row["joints_px"])
        self.row["K_px"] = crop.intrinsics(self.row["K_px"])


def _do_all(tasks: Sequence[Callable[[], None]]) -> None:
    for task in tasks:
        task()


def _raise(error: PamAugError) -> Any:
    raise error


def _distributed() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
