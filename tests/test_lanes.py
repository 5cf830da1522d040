"""Dealing units to workers by group: every unit once, groups whole where there are enough, nobody idle."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_aug.engines import Failure, LocalEngine
from pam_aug.engines.lanes import Lanes
from pam_aug.errors import BackendError, SourceError


def deal(groups: list[list], workers: int, pace: list[int]) -> list[list]:
    """What each worker gets where worker w does `pace[w]` units in the time of one round."""
    lanes, got = Lanes(groups, workers), [[] for _ in range(workers)]
    busy = True
    while busy:
        busy = False
        for worker in range(workers):
            for _ in range(pace[worker]):
                unit = lanes.take(worker)
                if unit is not None:
                    got[worker].append(unit)
                    busy = True
    return got


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=30)
paces = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(sizes, paces)
def test_every_unit_is_dealt_once_and_to_one_worker_in_order(sizes, pace):
    groups = [[(g, n) for n in range(size)] for g, size in enumerate(sizes)]
    everything = [unit for group in groups for unit in group]
    assert sorted(unit for units in deal(groups, len(pace), pace) for unit in units) == everything
    assert deal(groups, 1, [1]) == [everything]


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_where_there_are_enough_groups_each_is_one_workers(workers):
    groups = [[(g, n) for n in range(25)] for g in range(8 * workers)]
    got = deal(groups, workers, [1] * workers)
    assert [len({g for g, _ in units}) for units in got] == [8] * workers  # 8 groups each, none is shared
    assert {len(units) for units in got} == {200}


def test_a_slow_workers_groups_go_to_the_others():
    got = deal([[(g, n) for n in range(10)] for g in range(20)], 2, [1, 4])
    assert 35 <= len(got[0]) <= 45
    assert len({g for g, _ in got[0]} & {g for g, _ in got[1]}) <= 1


def test_one_group_is_split_where_that_pays_and_not_below():
    assert sorted(len(units) for units in deal([[*range(25)]], 2, [1, 1])) == [12, 13]
    assert sorted(len(units) for units in deal([[*range(3)]], 2, [1, 1])) == [0, 3]


def _who(unit):
    if unit == "dies":
        os._exit(1)
    if unit == "bad":
        raise SourceError("a bad unit")
    return os.getpid()


def _make_who():
    return _who


@pytest.mark.parametrize("workers", [0, 2])
def test_a_group_is_done_by_one_process(workers):
    groups = [[f"{g}{n}" for n in range(3)] for g in "abcd"] + [["bad"]]
    with LocalEngine(_make_who, workers) as engine:
        outcomes = list(engine.run_grouped(groups))
        assert len(list(engine.run("x"))) == 1  # and the engine goes on
    assert [o.unit for o in outcomes if isinstance(o, Failure)] == ["bad"]
    done = dict(o for o in outcomes if not isinstance(o, Failure))
    assert len(done) == 12
    by_group = [{done[f"{g}{n}"] for n in range(3)} for g in "abcd"]
    assert all(len(processes) == 1 for processes in by_group)
    assert len(set.union(*by_group)) == max(workers, 1)


def test_a_dead_worker_is_one_clear_error():
    with LocalEngine(_make_who, 2) as engine, pytest.raises(BackendError, match="run the same command again"):
        list(engine.run_grouped([["a"], ["dies"], ["b"]]))
