import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pam_aug.engines import Failure, LocalEngine
from pam_aug.errors import BackendError, SourceError


def _double(unit: int) -> int:
    if unit == 3:
        raise SourceError("unit 3 is bad", unit=unit)
    if unit == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * unit


def _make_double():
    return _double


def _run(make_work, units, workers):
    with LocalEngine(make_work, workers) as engine:
        return list(engine.run(units))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_unit_comes_back_once_and_a_bad_one_as_a_failure(workers):
    outcomes = _run(_make_double, range(8), workers)
    failures = [o for o in outcomes if isinstance(o, Failure)]
    results = dict(o for o in outcomes if not isinstance(o, Failure))
    assert results == {u: 2 * u for u in range(8) if u != 3}
    assert [f.unit for f in failures] == [3]
    assert isinstance(failures[0].error, SourceError)
    assert failures[0].error.unit == 3


def test_a_dead_worker_is_one_clear_error():
    with pytest.raises(BackendError, match="run the same command again"):
        _run(_make_double, [1, 99, 2], 1)


def test_an_error_that_is_none_of_ours_ends_the_run():
    with pytest.raises(TypeError):
        _run(_make_double, [None], 0)


def test_workers_run_one_thread_and_the_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    out = dict(_run(_make_environment, ["OMP_NUM_THREADS"], 1))
    assert out == {"OMP_NUM_THREADS": "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def _make_environment():
    return os.environ.get


def test_units_may_be_decided_late():
    ready = [1]

    def units():
        while ready:
            yield ready.pop()

    with LocalEngine(_make_double, 1) as engine:
        seen = []
        for unit, result in engine.run(units()):
            seen.append(result)
            if unit < 3:
                ready.append(unit + 9)
        seen += [result for _, result in engine.run(units())]
    assert seen == [2, 20]


def test_workers_die_with_their_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from pam_aug.engines import LocalEngine\n"
        "def work(unit):\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "def make():\n"
        "    return work\n"
        "if __name__ == '__main__':\n"
        "    with LocalEngine(make, 1) as engine:\n"
        "        list(engine.run([0]))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"
