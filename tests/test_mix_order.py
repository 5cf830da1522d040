"""The exact mix as arithmetic: ratios, prefixes, passes, epochs, and the independence of everything else."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_aug.errors import ConfigError
from pam_aug.mix_order import Schedule, keep_fraction, order, parse_ratio, sequence_of
from pam_aug.mix_passes import permute

RATIOS = [Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10), Fraction(999, 1000), Fraction(1)]


def test_parse_ratio_is_exact():
    assert parse_ratio("0.9") == Fraction(9, 10)
    assert parse_ratio(" 1/3 ") == Fraction(1, 3)
    assert parse_ratio("0") == 0
    assert parse_ratio("1e-6") == Fraction(1, 10**6)
    for text in ("1.1", "-0.1", "half", "", "1/0", "nan", "inf", "1/1000001", "0.0000001"):
        with pytest.raises(ConfigError, match="ratio"):
            parse_ratio(text)


def test_the_two_source_rule_by_hand():
    source, index = order((2, 9), Fraction(1, 3), 0, 0)
    assert source.tolist() == [1, 1, 0, 1, 1, 0]
    assert sorted(index[source == 0]) == [0, 1]
    assert order((4, 2), Fraction(2, 3), 0, 0)[0].tolist() == [1, 0, 0, 1, 0, 0]
    assert order((3, 0), Fraction(1), 0, 0)[0].tolist() == [0, 0, 0]
    assert order((0, 3), Fraction(0), 0, 0)[0].tolist() == [1, 1, 1]


@settings(max_examples=150, deadline=None)
@given(
    real=st.integers(1, 300),
    synthetic=st.integers(1, 300),
    ratio=st.sampled_from(RATIOS) | st.fractions(0, 1, max_denominator=200),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_every_prefix_and_every_epoch(real, synthetic, ratio, seed, epoch):
    if 0 < ratio < Fraction(1, 100):
        ratio = Fraction(1, 100)
    source, index = order((real, synthetic), ratio, seed, epoch)
    k = np.arange(1, len(source) + 1)
    error = np.cumsum(source == 0) * ratio.denominator - k * ratio.numerator
    assert np.abs(error).max() < ratio.denominator
    lead, size = (0, real) if ratio > 0 else (1, synthetic)
    assert len(source) == (-(-size * ratio.denominator // ratio.numerator) if ratio > 0 else size)
    assert sorted(index[source == lead]) == list(range(size))
    schedule = Schedule((real, synthetic), (ratio, 1 - ratio), seed)
    for position in {0, len(source) // 2, len(source) - 1}:  # random access gives what the whole epoch gives
        s, i = schedule.at(np.array([epoch * len(source) + position]))
        assert (s[0], i[0]) == (source[position], index[position])


def test_synthetic_samples_come_in_passes_over_the_epochs():
    drawn = np.concatenate([i[s == 1] for s, i in (order((4, 7), Fraction(1, 2), 3, e) for e in range(7))])
    assert len(drawn) == 28
    for n in range(4):  # each chain of 7 reads every synthetic sample once, across the ends of epochs
        assert sorted(drawn[7 * n : 7 * n + 7]) == list(range(7))
    assert len({tuple(drawn[7 * n : 7 * n + 7]) for n in range(4)}) == 4


def test_too_few_synthetic_samples_repeat_or_stop():
    repeat = Schedule((10, 4), (Fraction(1, 2), Fraction(1, 2)), 0)
    assert (repeat.epoch_length, repeat.epoch_counts, repeat.reads_per_epoch) == (20, (10, 10), (1.0, 2.5))
    stop = Schedule((10, 4), (Fraction(1, 2), Fraction(1, 2)), 0, "stop")
    assert (stop.epoch_length, stop.epoch_counts) == (8, (4, 4))
    real = []
    for e in range(5):
        source, index = stop.at(np.arange(8 * e, 8 * e + 8))
        assert sorted(index[source == 1]) == [0, 1, 2, 3]
        real += index[source == 0].tolist()
    assert sorted(real[:10]) == sorted(real[10:]) == list(range(10))  # what "stop" leaves comes in the next epoch


@settings(max_examples=80, deadline=None)
@given(shares=st.lists(st.integers(0, 12), min_size=2, max_size=5).filter(lambda s: sum(s) > 0), seed=st.integers(0, 9))
def test_any_number_of_sources_keeps_the_bound_and_reduces_to_two(shares, seed):
    q = sum(shares)
    weights = [Fraction(s, q) for s in shares]
    schedule = Schedule([7] * len(shares), weights, seed)
    length = schedule.epoch_length
    source, index = schedule.at(np.arange(length))
    counts = np.cumsum(source[:, None] == np.arange(len(shares)), axis=0)
    k = np.arange(1, length + 1)
    assert np.abs(counts * q - k[:, None] * np.array(shares)).max() < q
    lead = next(i for i, s in enumerate(shares) if s)
    assert sorted(index[source == lead]) == list(range(7))
    two = [*shares, 0] if len(shares) == 2 else shares
    if len(shares) == 2:  # an idle third source changes nothing
        again = Schedule([7, 7, 7], [Fraction(s, q) for s in two], seed)
        np.testing.assert_array_equal(again.at(np.arange(length))[0], source)
    if shares[0]:  # the first source stands where the two-source rule puts it
        p = weights[0]
        rule = (k * p.numerator) // p.denominator > ((k - 1) * p.numerator) // p.denominator
        np.testing.assert_array_equal(source == 0, rule)


def test_large_sizes_are_random_access():
    schedule = Schedule((10**6, 10**7), (Fraction(999, 1000), Fraction(1, 1000)), 5)
    assert schedule.epoch_length == 1_001_002
    source, index = schedule.at(np.arange(schedule.epoch_length))
    assert np.array_equal(np.sort(index[source == 0]), np.arange(10**6))
    assert (source == 1).sum() == 1002
    s, i = schedule.at(np.array([777_777]))
    assert (s[0], i[0]) == (source[777_777], index[777_777])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 63, 64, 65, 128, 1000, 4097])
def test_permutations_are_bijections(size):
    found = [permute(np.arange(size), size, seed, np.zeros(size, int)) for seed in range(3)]
    assert all(sorted(f) == list(range(size)) for f in found)
    assert size < 5 or not np.array_equal(found[0], found[1])


def test_small_permutations_are_even():
    """All 24 orders of four, chi-square with 23 degrees of freedom: 49.7 is the 0.1 % point."""
    number = np.repeat(np.arange(4800), 4)
    found = permute(np.tile(np.arange(4), 4800), 4, 0, number).reshape(4800, 4)
    counts = np.bincount(found @ [64, 16, 4, 1])
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_the_order_never_changes_between_versions():
    """Golden: a changed order breaks the resumption of every training that is under way."""
    source, index = order((5, 5), Fraction(1, 2), 42, 1)
    assert source.tolist() == [1, 0] * 5
    assert index.tolist() == [0, 3, 1, 1, 2, 4, 4, 2, 3, 0]


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    window=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_window_reads_each_item_once_and_each_shard_in_one_go(shards, window, seed):
    total, ends = sum(shards), np.cumsum(shards)
    schedule = Schedule((total,), (Fraction(1),), seed, "repeat", [shards], window)
    drawn = schedule.at(np.arange(3 * total))[1]
    for items in drawn.reshape(3, total):
        assert sorted(items) == list(range(total))
        shard = np.searchsorted(ends, items, side="right")
        first = {s: int(np.flatnonzero(shard == s)[0]) for s in shard.tolist()}
        last = {s: int(np.flatnonzero(shard == s)[-1]) for s in shard.tolist()}
        for place in range(total):  # shards that are begun and not finished are those that must be open
            assert sum(first[s] <= place <= last[s] for s in first) <= window
    places = np.random.default_rng(0).permutation(3 * total)
    np.testing.assert_array_equal(schedule.at(places)[1], drawn[places])
    again = pickle.loads(pickle.dumps(schedule))
    np.testing.assert_array_equal(again.at(places)[1], drawn[places])


def test_a_window_keeps_the_ratio_and_shuffles_shards_and_items():
    shards = [[50] * 40, [30] * 20]
    schedule = Schedule((2000, 600), (Fraction(2, 3), Fraction(1, 3)), 1, "repeat", shards, 4)
    full = Schedule((2000, 600), (Fraction(2, 3), Fraction(1, 3)), 1)
    (source, index), (wanted, _) = (s.at(np.arange(6000)) for s in (schedule, full))
    np.testing.assert_array_equal(source, wanted)
    real = index[source == 0].reshape(2, 2000)
    assert not np.array_equal(real[0], real[1])
    assert len({tuple(np.unique(items[:200] // 50)) for items in real}) == 2  # other shards come first in the next pass
    assert np.abs(np.diff(real[0][:200])).mean() > 20
    one = Schedule((2000, 600), (Fraction(2, 3), Fraction(1, 3)), 1, "repeat", shards, 40).at(np.arange(3000))[1]
    assert sorted(one[source[:3000] == 0]) == list(range(2000))  # a window of all shards is a full shuffle


def test_bad_schedules_are_refused():
    half = Fraction(1, 2)
    for sizes, weights in [((1, 0), (half, half)), ((1, 1), (half, half + half)), ((1,), (half, half)), ((), ())]:
        with pytest.raises(ConfigError):
            Schedule(sizes, weights, 0)
    with pytest.raises(ConfigError, match="when_short"):
        Schedule((1, 1), (half, half), 0, "skip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="denominator"):
        Schedule((1, 1, 1), (Fraction(1, 999_983), Fraction(1, 3), 1 - Fraction(1, 3) - Fraction(1, 999_983)), 0)


def test_keep_fraction_is_nested_and_exact():
    names = [f"d/s/q{n}/c" for n in range(10)]
    half, most = keep_fraction(names, Fraction(1, 2), 0), keep_fraction(names, Fraction(9, 10), 0)
    assert (len(half), len(most)) == (5, 9)
    assert half < most < keep_fraction(names, Fraction(1), 0) == set(names)
    assert keep_fraction(reversed(names * 3), Fraction(1, 2), 0) == half
    assert keep_fraction(names, Fraction(1, 2), 1) != half
    assert len(keep_fraction(names, Fraction(1, 1000), 0)) == 1
    for wrong in (Fraction(0), Fraction(2)):
        with pytest.raises(ConfigError):
            keep_fraction(names, wrong, 0)
    assert sequence_of("d/s/q/c/000001@03") == "d/s/q"
