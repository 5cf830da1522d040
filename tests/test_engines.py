import functools
import os
import signal

import pytest

from pam_aug.engines import Failure, run_local
from pam_aug.errors import BackendError, SourceError


def _double(unit: int) -> int:
    if unit == 3:
        raise SourceError("unit 3 is bad", unit=unit)
    if unit == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * unit


def _make_double():
    return _double


@pytest.mark.parametrize("workers", [0, 2])
def test_every_unit_comes_back_once_and_a_bad_one_as_a_failure(workers):
    outcomes = list(run_local(_make_double, range(8), workers))
    failures = [o for o in outcomes if isinstance(o, Failure)]
    results = dict(o for o in outcomes if not isinstance(o, Failure))
    assert results == {u: 2 * u for u in range(8) if u != 3}
    assert [f.unit for f in failures] == [3]
    assert isinstance(failures[0].error, SourceError)
    assert failures[0].error.unit == 3


def test_a_dead_worker_is_one_clear_error():
    with pytest.raises(BackendError, match="run the same command again"):
        list(run_local(_make_double, [1, 99, 2], 1))


def test_an_error_that_is_none_of_ours_ends_the_run():
    with pytest.raises(TypeError):
        list(run_local(_make_double, [None], 0))


def test_workers_run_one_thread_and_the_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    out = dict(run_local(functools.partial(_make_environment), ["OMP_NUM_THREADS"], 1))
    assert out == {"OMP_NUM_THREADS": "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def _make_environment():
    return os.environ.get
