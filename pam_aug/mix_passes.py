"""The endless passes over one source: every pass reads each item once, in an order that is arithmetic on its number.

A full pass is one keyed permutation of all items. A windowed pass is for data that seeks slowly: it puts the shards in
a keyed order, cuts that into groups of W shards, and reads group after group, each in a keyed permutation of its items.
So a pass opens every shard once and has W of them open, at the price that items meet only those of their group.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from pam_aug.seeds import derived_seed

__all__ = ["Passes", "WindowedPasses", "permute"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TURNS = np.arange(1, 9, dtype=np.uint64) * _GOLDEN


class Passes:
    """Passes over `size` items, each shuffled as a whole; `key` names their chain."""

    def __init__(self, size: int, key: int) -> None:
        self._size, self._key = size, key

    def items(self, draws: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The items of draws of the chain: draw d is the (d mod size)-th of pass floor(d / size)."""
        number, j = np.divmod(draws, self._size)
        return permute(j, self._size, self._key, number)


class WindowedPasses:
    """Passes over the items of shards, `window` shards at a time. Items are numbered shard after shard."""

    def __init__(self, shard_sizes: Sequence[int], window: int, key: int) -> None:
        self._sizes = np.array(shard_sizes, np.int64)
        self._window, self._key = window, key
        self._order_key = derived_seed(key, "shards")
        self._layout = lru_cache(maxsize=4)(self._lay_out)

    def __getstate__(self) -> tuple[list[int], int, int]:
        return self._sizes.tolist(), self._window, self._key

    def __setstate__(self, state: tuple[list[int], int, int]) -> None:
        self.__init__(*state)

    def items(self, draws: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """As `Passes.items`."""
        numbers, places = np.divmod(draws, int(self._sizes.sum()))
        found = np.empty_like(places)
        for number in np.unique(numbers):
            of_pass = numbers == number
            found[of_pass] = self._of_pass(int(number), places[of_pass])
        return found

    def _of_pass(self, number: int, places: np.ndarray) -> np.ndarray:
        ends, starts, group_ends = self._layout(number)
        group = np.searchsorted(group_ends, places, side="right")
        shuffled = np.empty_like(places)
        for g in np.unique(group):
            mine = group == g
            begin, size = int(group_ends[g - 1]) if g else 0, int(np.diff(group_ends, prepend=0)[g])
            turn = np.full(np.count_nonzero(mine), number * len(group_ends) + int(g))
            shuffled[mine] = begin + permute(places[mine] - begin, size, self._key, turn)
        shard = np.searchsorted(ends, shuffled, side="right")
        return starts[shard] + shuffled - np.append(0, ends)[shard]

    def _lay_out(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a pass: where its shards end in it, the first item of each, and where its groups end."""
        count = len(self._sizes)
        order = permute(np.arange(count), count, self._order_key, np.full(count, number))
        ends = np.cumsum(self._sizes[order])
        group_ends = np.append(ends[self._window - 1 : -1 : self._window], ends[-1:])
        return ends, (np.cumsum(self._sizes) - self._sizes)[order], group_ends


def permute(j: Int[np.ndarray, " n"], size: int, key: int, number: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The places of `j` under permutations of range(size), each with its `number` in the chain of `key`.

    A balanced Feistel network over the next even power of two, walked until the value falls into the range (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"): constant memory and random access. Its round function is the
    finalizer of splitmix64. Our own arithmetic, because numpy's shuffles may change between its versions.
    """
    half = np.uint64(max(6, (size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    first = _mix64(number.astype(np.uint64) * _GOLDEN + np.uint64(key))
    rounds = _mix64(first + _TURNS[:, None])
    value = j.astype(np.uint64)
    walking = np.arange(len(value))
    while len(walking):
        left, right = value[walking] >> half, value[walking] & mask
        for keys in rounds:
            left, right = right, left ^ (_mix64(right + keys[walking]) & mask)
        value[walking] = (left << half) | right
        walking = walking[value[walking] >= np.uint64(size)]
    return value.astype(np.int64)


def _mix64(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
