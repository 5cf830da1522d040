"""Names that stand twice in many shards, found with 8 bytes in memory for each name."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

__all__ = ["Repeats"]


class Repeats:
    """Takes the names of shard after shard; `found` tells which of them a name before was equal to.

    What is kept are 64 bits of a hash, so `found` may, very rarely, name two that differ: the caller compares them.
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, names: Sequence[str]) -> None:
        """The names of the next shard, in order."""
        digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
        self._parts.append(np.frombuffer(digests, np.uint64))

    def found(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """((shard, number), (shard, number) of the first that is equal) of each that is not the first, in order."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._parts])
        if not len(hashes):
            return []
        by_value = np.argsort(hashes, kind="stable")  # stable: of equal ones the first comes first
        ordered = hashes[by_value]
        new = np.append(True, ordered[1:] != ordered[:-1])
        firsts = by_value[np.flatnonzero(new)[np.cumsum(new) - 1]]
        again = np.sort(by_value[~new])
        first_of = np.empty(len(hashes), np.int64)
        first_of[by_value] = firsts
        ends = np.cumsum([len(part) for part in self._parts])

        def place(n: int) -> tuple[int, int]:
            shard = int(np.searchsorted(ends, n, side="right"))
            return shard, n - int(ends[shard]) + len(self._parts[shard])

        return [(place(int(n)), place(int(first_of[n]))) for n in again]
