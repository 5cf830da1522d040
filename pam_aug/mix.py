"""The torch dataset on an exact mix: whole batches, one hand per item, the same order for any workers and ranks."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.geometry import square_crop
from pam_aug.mix_memory import BatchMemory, tensors_of
from pam_aug.mix_order import Schedule, keep_fraction, order, parse_ratio, sequence_of
from pam_aug.mix_sources import SourceItems, open_mix
from pam_aug.shards.files import place
from pam_aug.shards.images import decode_image, decode_jpeg_into
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
# How many items are looked up at once.
_LOOKUP = 2048
_LABELS = (
    "joints_cam_m",
    "joints_px",
    "in_view",
    "K_px",
    "side",
    "global_orient",
    "hand_pose",
    "betas",
    "transl",
    "mano_valid",
)


class MixedDataset(IterableDataset):
    """Batches of hands, real and synthetic in the exact ratio of a `mix.json`.

    dataset = MixedDataset("out", batch_size=64, crop_px=224)
    for epoch in range(10):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_size=None, num_workers=2): ...

    A batch of B hands is a dict: `image` uint8 (B,H,W,3) RGB; `joints_cam_m` (B,21,3) metres, camera frame; `joints_px`
    (B,21,2) and `K_px` (B,3,3) in the pixels of `image`; `in_view` (B,21) bool; `side` (B) uint8, 0 right, 1 left;
    `global_orient` (B,3), `hand_pose` (B,45) absolute axis-angle, `betas` (B,10), `transl` (B,3) metres; `mano_valid`
    and `is_synthetic` (B) bool; `keys` (B) array of str (`tolist()` makes a list); `position` int, the state after
    this batch; `padded` int, how many at the end repeat others.

    With `crop_px` an image is the square around the hand, as wide as its joints' box times `crop_scale`, resized.
    Without, images stay whole and must be of one size. `batch_size` counts hands over all ranks: rank r reads its slice
    of each global batch, so the order does not depend on the number of ranks. The last batch of an epoch is "short",
    "pad" (filled with the epoch's first items) or "drop". `decode_threads` make a batch each; by default up to 4
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

    def load(self, positions: np.ndarray) -> dict[str, Any]:
        """The hands at `positions` as a batch (without `position` and `padded`)."""
        source, item = self.schedule.at(positions)
        return self._load(source, item)

    def _load(
        self,
        source: np.ndarray,
        item: np.ndarray,
        run: Callable[..., Any] = map,
        new: Callable[[tuple[int, ...]], np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """The batch of these items. `run` maps what reads and what decodes over them; `new` gives the images' memory.

        All is read before anything is decoded: threads that decode leave each other alone, those that read wait for
        Python's lock.
        """
        places = [(self.sources[s], i) for s, i in zip(source.tolist(), item.tolist())]
        found = list(run(_find, places))
        readers = [reader for reader, _ in found]
        rows = np.frombuffer(bytearray().join([row for _, row in found]), INDEX_DTYPE)
        shape = (len(rows), *self._image_shape(rows, readers), 3)
        images = np.empty(shape, np.uint8) if new is None else new(shape)
        columns = [rows[n].tolist() for n in ("image_offset", "image_bytes", "image_crc32", "key")]
        data = list(run(ShardReader.checked_image, readers, *columns))
        decode = _decode if self.crop_px is None else partial(_decode_crop, scale=self.crop_scale)
        for _ in run(decode, data, readers, rows, images):  # each into its own image and row
            pass
        labels = {name: rows[name] for name in _LABELS} | {"is_synthetic": rows["synthetic"]}
        batch: dict[str, Any] = {"image": torch.from_numpy(images), **tensors_of(labels)}
        sides = rows["side"].tolist()
        # An array: a DataLoader goes through lists one by one, and the threads wait for Python's lock meanwhile.
        batch["keys"] = np.array([key.decode() + ("-r", "-l")[s] for key, s in zip(columns[-1], sides)], np.str_)
        return batch

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


@dataclass(slots=True)
class _Planned:
    """A batch that is not loaded yet: where it begins and ends, how many of it repeat others, and its items."""

    begin: int
    end: int
    padded: int
    source: np.ndarray
    item: np.ndarray


class _Batches(Iterator[dict[str, Any]]):
    """The batches of one worker, from a position to the end of its epoch. Its state is where the next one begins.

    A thread makes a whole batch: handing over single images costs more than a tenth of decoding a small one. Items at a
    URL are requests that mostly wait, so there two batches are made at once, and their images in all threads.
    """

    def __init__(self, dataset: MixedDataset, start: int, number: int, workers: int, threads: int) -> None:
        self._dataset, self._worker = dataset, [number, workers]
        length = dataset.schedule.epoch_length
        self._next = start + number * dataset.batch_size
        self._end = start // length * length + length
        self._planned: deque[_Planned] = deque()
        self._begun: deque[tuple[_Planned, Future[dict[str, Any]]]] = deque()
        remote = any(source.remote for source in dataset.sources)
        self._batch_threads = 2 if remote else threads
        self._pool = ThreadPoolExecutor(self._batch_threads) if threads > 1 else None
        self._images = ThreadPoolExecutor(threads) if threads > 1 and remote else None
        self._memory = BatchMemory(self._batch_threads + 3)
        self._run: Callable[..., Any] = map if self._images is None else self._images.map

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._pool is None:
            planned = self._plan()
            if planned is None:
                raise StopIteration
            return self._load(planned)
        # One batch more than threads, so that they have work while the caller trains.
        while len(self._begun) <= self._batch_threads and (planned := self._plan()) is not None:
            self._begun.append((planned, self._pool.submit(self._load, planned)))
        if not self._begun:
            self._pool.shutdown(wait=False)
            if self._images is not None:
                self._images.shutdown(wait=False)
            raise StopIteration
        return self._begun.popleft()[1].result()

    def _load(self, planned: _Planned) -> dict[str, Any]:
        batch = self._dataset._load(planned.source, planned.item, self._run, self._memory.take)
        return {**batch, "position": planned.end, "padded": planned.padded}

    def _plan(self) -> _Planned | None:
        """This worker's next batch. Items are looked up for many batches at once, at a tenth of the price."""
        if not self._planned:
            dataset, found = self._dataset, []
            least = dataset.batch_size if dataset.last == "drop" else 1
            while self._next + least <= self._end and sum(len(f[1]) for f in found) < _LOOKUP:
                found.append((self._next, *dataset.positions_at(self._next)))
                self._next += self._worker[1] * dataset.batch_size
            if found:
                source, item = dataset.schedule.at(np.concatenate([positions for _, positions, _, _ in found]))
                cuts = np.cumsum([len(positions) for _, positions, _, _ in found])[:-1]
                for (begin, _, end, padded), s, i in zip(found, np.split(source, cuts), np.split(item, cuts)):
                    self._planned.append(_Planned(begin, end, padded, s, i))
        return self._planned.popleft() if self._planned else None

    def state_dict(self) -> dict[str, Any]:
        """Where this worker's next batch begins and its epoch ends: what StatefulDataLoader saves of each worker."""
        waiting = [planned for planned, _ in self._begun] + list(self._planned)
        after = waiting[0].begin if waiting else self._next
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
        self._planned.clear()


def _find(place: tuple[SourceItems, int]) -> tuple[ShardReader, bytes]:
    source, item = place
    reader, number = source.find(item)
    return reader, reader.row_bytes(number)


def _decode(data: bytes, reader: ShardReader, row: np.void, out: np.ndarray) -> None:
    """Decodes the image of a row into a batch's memory."""
    if row["image_format"] or not decode_jpeg_into(data, out):
        image = _decode_any(data, reader, row, out)
        if image is not out:
            height, width = image.shape[:2]
            raise ShardDamaged(
                f"{reader.path}:{row['key'].decode()}: {width} × {height} pixels, not as its label says",
                path=str(reader.path),
            )


def _decode_crop(data: bytes, reader: ShardReader, row: np.void, out: np.ndarray, scale: float) -> None:
    """Decodes the image of a row, crops the square around the hand, and moves `joints_px` and `K_px` with it."""
    size = out.shape[0]
    crop = square_crop(row["joints_px"], size, scale)
    image = _decode_any(data, reader, row)
    cv2.warpAffine(image, crop.affine, (size, size), dst=out, flags=cv2.INTER_LINEAR)
    row["joints_px"] = crop.points(row["joints_px"])
    row["K_px"] = crop.intrinsics(row["K_px"])


def _decode_any(data: bytes, reader: ShardReader, row: np.void, out: np.ndarray | None = None) -> np.ndarray:
    return decode_image(data, "png" if row["image_format"] else "jpg", f"{reader.path}:{row['key'].decode()}", out)


def _distributed() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
