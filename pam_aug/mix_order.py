"""The order of a mix: which item of which source stands at a position. Pure arithmetic, random access, no state.

Position k of an epoch is real iff floor((k+1) p/q) > floor(k p/q) for the ratio p/q, so that every prefix holds less
than one sample more or less than its share. Each source is read through an endless chain of keyed permutations, one per
pass.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int

from pam_aug.errors import ConfigError
from pam_aug.mix_passes import Passes, WindowedPasses
from pam_aug.seeds import derived_seed

__all__ = ["Schedule", "WhenShort", "keep_fraction", "order", "parse_ratio", "sequence_of"]

WhenShort = Literal["repeat", "stop"]
MAX_DENOMINATOR = 10**6


def parse_ratio(text: str) -> Fraction:
    """A share in [0, 1] from "0.9" or "1/3", exactly. Raises ConfigError; the denominator is at most a million."""
    try:
        ratio = Fraction(str(text).strip())
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"ratio {text!r}: write a number or a fraction in [0, 1], as 0.9 or 1/3") from error
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio {text!r}: a share lies in [0, 1]; 1 is only real, 0 only synthetic")
    if ratio.denominator > MAX_DENOMINATOR:
        raise ConfigError(f"ratio {text!r}: its denominator is over {MAX_DENOMINATOR}; round it")
    return ratio


def sequence_of(key: str) -> str:
    """The sequence of a sample, all its cameras together: the first three parts of its key."""
    return "/".join(key.split("/", 3)[:3])


def keep_fraction(sequences: Iterable[str], fraction: Fraction, seed: int) -> set[str]:
    """The share `fraction` of the distinct sequences, at least one; a larger share of one seed holds the smaller.

    Which ones depends on names and seed alone. The count is rounded half up.
    """
    names = sorted(set(sequences), key=lambda name: (derived_seed(seed, "keep", name), name))
    if not 0 < fraction <= 1:
        raise ConfigError(f"real fraction {fraction}: lies in (0, 1]; for no real data use the ratio 0")
    return set(names[: max(1, int(len(names) * fraction + Fraction(1, 2)))])


class Schedule:
    """The order of N weighted sources, the first one leading: an epoch is one pass over the first source of weight > 0.

    Every prefix of an epoch holds of each source less than one sample more or less than its weight asks for. Epochs
    continue the chains: what one leaves unread comes in the next. Where another source has too few samples for an
    epoch it is repeated ("repeat"), or the epoch ends before the repetition ("stop").

    With `window_shards` W > 0 and the sizes of each source's shards (their sum is its size), a pass goes over the
    shards in a keyed order, W at a time: it shuffles within those W and opens no other, and each shard once.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[Fraction],
        seed: int,
        when_short: WhenShort = "repeat",
        shard_sizes: Sequence[Sequence[int]] = (),
        window_shards: int = 0,
    ) -> None:
        if len(sizes) != len(weights) or not sizes or sum(weights) != 1 or any(w < 0 for w in weights):
            raise ConfigError(f"weights {[str(w) for w in weights]}: one per source, each at least 0, their sum 1")
        for number, (size, weight) in enumerate(zip(sizes, weights)):
            if weight > 0 and size < 1:
                raise ConfigError(
                    f"source {number} has a share of {weight} and no samples: change the ratio or give it samples",
                    source=number,
                )
        if when_short not in ("repeat", "stop"):
            raise ConfigError(f"when_short {when_short!r}: is 'repeat' or 'stop'")
        if window_shards < 0 or (window_shards and [sum(s) for s in shard_sizes] != list(sizes)):
            raise ConfigError(f"window_shards {window_shards}: at least 1, or 0 to shuffle over all shards")
        self.sizes, self.weights, self.seed = tuple(map(int, sizes)), tuple(weights), int(seed)
        keys = [derived_seed(self.seed, "mix", s) for s in range(len(sizes))]
        if window_shards:
            self._passes = [WindowedPasses(s, window_shards, key) for s, key in zip(shard_sizes, keys)]
        else:
            self._passes = [Passes(size, key) for size, key in zip(self.sizes, keys)]
        self._table = _table(self.weights) if sum(w > 0 for w in self.weights[1:]) > 1 else None
        lead = next(i for i, w in enumerate(self.weights) if w > 0)
        length = self._first_with(lead, self.sizes[lead])
        if when_short == "stop":
            others = (i for i, w in enumerate(self.weights) if w > 0 and i != lead)
            length = min([length, *(self._first_with(i, self.sizes[i] + 1) - 1 for i in others)])
        self.epoch_length: int = length
        self.epoch_counts: tuple[int, ...] = tuple(int(c) for c in self._counts(np.array([length]))[0])

    @property
    def reads_per_epoch(self) -> tuple[float, ...]:
        """How often an epoch reads each item of each source, on average."""
        return tuple(count / size if size else 0.0 for count, size in zip(self.epoch_counts, self.sizes))

    def at(self, positions: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """(source, index in the source) at global positions; epoch e begins at e times `epoch_length`."""
        positions = np.asarray(positions, np.int64)
        epoch, k = np.divmod(positions, self.epoch_length)
        before, after = self._counts(k), self._counts(k + 1)
        source = (after - before).argmax(1)
        rows = np.arange(len(k))
        draw = epoch * np.array(self.epoch_counts)[source] + before[rows, source]
        index = np.empty_like(draw)
        for s in np.unique(source):
            mine = source == s
            index[mine] = self._passes[s].items(draw[mine])
        return source, index

    def _counts(self, k: np.ndarray) -> np.ndarray:
        """(n, sources): how many of the first k positions of an epoch each source has."""
        p, q = self.weights[0].numerator, self.weights[0].denominator
        counts = np.zeros((len(k), len(self.weights)), np.int64)
        counts[:, 0] = k * p // q
        if self._table is None:
            rest = next((i for i, w in enumerate(self.weights) if w > 0 and i > 0), None)
            if rest is not None:
                counts[:, rest] = k - counts[:, 0]
            return counts
        periods, within = np.divmod(k, len(self._table) - 1)
        return periods[:, None] * self._table[-1] + self._table[within]

    def _first_with(self, source: int, count: int) -> int:
        """The shortest prefix that holds `count` of `source`; the bound on the error limits the search."""
        limit = int((count + 1) / self.weights[source]) + 1
        return bisect_left(range(limit), count, key=lambda k: int(self._counts(np.array([k]))[0, source]))


def order(
    sizes: tuple[int, int], ratio: Fraction, seed: int, epoch: int, when_short: WhenShort = "repeat"
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """One epoch of real (source 0) and synthetic (source 1) items as (source, index): a pure function."""
    schedule = Schedule(sizes, (ratio, 1 - ratio), seed, when_short)
    return schedule.at(np.arange(epoch * schedule.epoch_length, (epoch + 1) * schedule.epoch_length))


@lru_cache(maxsize=8)
def _table(weights: tuple[Fraction, ...]) -> np.ndarray:
    """(q + 1, sources) prefix counts of one period for three and more sources.

    Source 0 stands where the two-source rule puts it. Of the others, the unit j of weight w must stand in the slots
    from floor(j / w) to ceil((j + 1) / w) - 1, which keeps its error below one; each free slot goes to the released
    unit with the earliest deadline (the windows of Baruah et al. 1996, "Proportionate progress").
    """
    q = int(np.lcm.reduce([w.denominator for w in weights]))
    if q > MAX_DENOMINATOR:
        raise ConfigError(f"weights {[str(w) for w in weights]}: common denominator {q} is over {MAX_DENOMINATOR}")
    share = [int(w * q) for w in weights]
    counts = [0] * len(weights)
    table = np.zeros((q + 1, len(weights)), np.int64)
    for k in range(q):
        chosen = 0
        if (k + 1) * share[0] // q == k * share[0] // q:
            released = [i for i in range(1, len(share)) if share[i] and counts[i] * q < share[i] * (k + 1)]
            chosen = min(released, key=lambda i: (-(-(counts[i] + 1) * q // share[i]), i))
        counts[chosen] += 1
        table[k + 1] = counts
    return table
