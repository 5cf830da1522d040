"""The hands of a mix's sources by number, over any number of shards: what is in memory does not grow with them."""

import resource
import threading
from bisect import bisect_right
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import ShardDamaged
from pam_aug.mix_order import Schedule, WhenShort, keep_fraction, parse_ratio, sequence_of
from pam_aug.shards.files import Place, RemotePath, inside
from pam_aug.shards.manifest import Mix, MixShard, MixSource
from pam_aug.shards.reader import ShardReader, read_marker

__all__ = ["SourceItems", "open_mix"]


def open_mix(mix: Mix, root: Place, seed: int | None = None) -> tuple[list["SourceItems"], Schedule]:
    """The items of each source of a mix, and the order in which they are read.

    `root` is the folder that the shards' paths start from; `seed` replaces the mix's own. Raises ConfigError for shares
    that cannot be read, UnsafeInput for a remote mix that names files outside its folder.
    """
    seed = mix.seed if seed is None else seed
    sources = [SourceItems(root, s, seed) for s in mix.sources]
    when_short: WhenShort = mix.when_short  # type: ignore[assignment]  # checked by Schedule
    sizes, shares = [len(s) for s in sources], [parse_ratio(s.share) for s in mix.sources]
    shard_sizes = [s.shard_sizes for s in sources]
    return sources, Schedule(sizes, shares, seed, when_short, shard_sizes, mix.window_shards)


class SourceItems:
    """The hands of one source by number, over its shards; shards are opened when first read, a bounded number at once.

    From any thread. A shard's commit marker is read once, when the shard is first opened.
    """

    def __init__(self, root: Place, source: MixSource, seed: int) -> None:
        self._shards = source.shards
        self._paths = [inside(root, s.path) for s in source.shards]
        self.remote = any(isinstance(p, RemotePath) for p in self._paths)
        self._forget()
        self._ends = np.cumsum([s.hands for s in source.shards], dtype=np.int64)
        self._all_ends: list[int] = self._ends.tolist()  # a list is searched in a tenth of the time
        self._kept: np.ndarray | None = None
        keep = parse_ratio(source.keep)
        if keep != 1:
            self._kept = self._of_kept_sequences(keep, seed)

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in self.__dict__.items() if n not in ("_readers", "_markers", "_lock", "_most")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        if self._kept is not None:
            return len(self._kept)
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shard_sizes(self) -> list[int]:
        """How many items each shard has; items are numbered shard after shard."""
        ends = self._ends if self._kept is None else np.searchsorted(self._kept, self._ends)
        return np.diff(ends, prepend=0).tolist()

    def find(self, item: int) -> tuple[ShardReader, int]:
        """(reader, row number) of an item; `reader.row(number)` is its row."""
        if self._kept is not None:
            item = int(self._kept[item])
        number = bisect_right(self._all_ends, item)
        return self._reader(number), item - self._all_ends[number] + self._shards[number].hands

    def _forget(self) -> None:
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._markers: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        # A reader holds two files. Readers of URLs hold none, but a table of 100 bytes each.
        self._most = 1 << 16 if self.remote else _open_files() // 8

    def _reader(self, number: int) -> ShardReader:
        with self._lock:
            reader = self._readers.get(number)
            if reader is not None:
                self._readers.move_to_end(number)
                return reader
        reader = self._open(number)  # outside the lock: URLs are opened by several threads at once
        with self._lock:
            self._readers[number] = reader
            if len(self._readers) > self._most:
                self._readers.popitem(last=False)  # closed when the batch that reads it is done
        return reader

    def _open(self, number: int) -> ShardReader:
        path, shard = self._paths[number], self._shards[number]
        marker = self._markers.get(number)
        if marker is None:
            marker = self._markers[number] = _marker(path, shard)
        reader = ShardReader(path, marker)
        if reader.hands != shard.hands:
            raise _another(path)
        return reader

    def _of_kept_sequences(self, keep: Fraction, seed: int) -> np.ndarray:
        """The items whose sequences are kept. A number per item is held, and a name per sequence."""
        names: dict[str, int] = {}
        numbers = [np.zeros(0, np.int32)]
        for number, shard in enumerate(self._shards):
            if shard.hands:
                first, lengths = _runs(self._reader(number).key_column())
                found = [names.setdefault(sequence_of(key.decode()), len(names)) for key in first]
                numbers.append(np.repeat(np.array(found, np.int32), lengths))
        chosen = keep_fraction(names, keep, seed)
        mask = np.array([name in chosen for name in names], bool)
        return np.flatnonzero(mask[np.concatenate(numbers)])


def _runs(keys: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """(a key of each, length of each) of the runs of neighbours that are of one sequence."""
    letters = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1)
    within = np.cumsum(letters == ord("/"), axis=1, dtype=np.uint8) < 3
    other = np.any((letters[1:] != letters[:-1]) & (within[1:] | within[:-1]), axis=1)
    starts = np.flatnonzero(np.append(True, other))
    return [bytes(k) for k in keys[starts]], np.diff(np.append(starts, len(keys)))


def _marker(path: Place, shard: MixShard) -> dict[str, Any]:
    """A shard's marker, checked against `mix.json`; of it what reading needs: its lists grow with the samples."""
    marker = read_marker(path)
    if marker is None:
        present = path.is_file() if isinstance(path, Path) else True
        what = "has no commit marker" if present else "is missing"
        raise ShardDamaged(f"{path}: {what}: build it again", path=str(path))
    if marker["sha256"] != shard.sha256 or marker["bytes"] != shard.bytes:
        raise _another(path)
    return {name: marker[name] for name in ("schema_version", "kind", "sha256", "bytes", "counts")}


def _another(path: Place) -> ShardDamaged:
    return ShardDamaged(f"{path}: is another shard than the one in mix.json: run the mix again", path=str(path))


def _open_files() -> int:
    """How many files this process may hold open at once."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(512, min(soft, 1 << 16))
