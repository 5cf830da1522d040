"""Units of work on this machine's cores: worker processes that keep their models, results as they finish."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from pam_aug.engines.lanes import Lanes
from pam_aug.errors import BackendError, PamAugError

__all__ = ["Failure", "LocalEngine"]

# One thread per library in a worker: the cores are already taken by the workers, and thread pools of several libraries
# on the same cores slow small models down by an order of magnitude.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

_work: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that raised: which, and the error (a PamAugError; anything else ends the run)."""

    unit: Any
    error: PamAugError


class LocalEngine:
    """Worker processes on one machine, alive between `__enter__` and `__exit__`.

    `make_work` is called once in each worker (it loads the models) and returns the function that does one unit; it, the
    units and the results are pickled. 0 workers does the units in this process, in order.
    """

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]], workers: int) -> None:
        self._make_work = make_work
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._environment = {name: os.environ.get(name) for name in _ONE_THREAD}

    def __enter__(self) -> "LocalEngine":
        if self._workers > 0:
            os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
            self._pool = self._new_pool(self._workers)
        else:
            _start_here(self._make_work)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            for name, value in self._environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def run(self, units: Iterable[Any]) -> Iterator[tuple[Any, Any] | Failure]:
        """Yield `(unit, result)` as units finish, in no set order, and `Failure` for those that raised a PamAugError.

        At most two units per worker are under way or waiting, so `units` may decide late what comes next. Raises
        BackendError when a worker process dies.
        """
        if self._pool is None:
            for unit in units:
                try:
                    yield unit, _do(unit)
                except PamAugError as error:
                    yield Failure(unit, error)
            return
        waiting: dict[Future[Any], Any] = {}
        with _deaths_told():
            for unit in units:
                waiting[self._pool.submit(_do, unit)] = unit
                if len(waiting) >= 2 * self._workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)

    def run_grouped(self, groups: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, Any] | Failure]:
        """As `run`, a group's units in order and by one worker as far as that leaves none idle, see `Lanes`.

        For units that share what a worker opens once and keeps. The worker processes are others than those of `run`,
        and end with this call.
        """
        if self._pool is None:
            yield from self.run(unit for group in groups for unit in group)
            return
        lanes = Lanes(groups, self._workers)
        pools = [self._new_pool(1) for _ in range(self._workers)]
        waiting: dict[Future[Any], tuple[int, Any]] = {}

        def submit(worker: int) -> None:
            unit = lanes.take(worker)
            if unit is not None:
                waiting[pools[worker].submit(_do, unit)] = worker, unit

        try:
            with _deaths_told():
                for worker in [*range(self._workers)] * 2:  # one under way, one waiting
                    submit(worker)
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        worker, unit = waiting.pop(future)
                        submit(worker)
                        yield _outcome(unit, future)
        finally:
            for pool in pools:
                pool.shutdown(wait=not waiting, cancel_futures=True)

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(self._make_work,))


@contextlib.contextmanager
def _deaths_told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise BackendError(
            "a worker process died (killed, or out of memory); what was finished is kept: run the same command "
            "again to go on, with fewer --workers if memory is short"
        ) from error


def _finished(waiting: dict[Future[Any], Any]) -> Iterator[tuple[Any, Any] | Failure]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield _outcome(waiting.pop(future), future)


def _outcome(unit: Any, future: Future[Any]) -> tuple[Any, Any] | Failure:
    try:
        return unit, future.result()
    except PamAugError as error:
        return Failure(unit, error)


def _start_worker(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    _start_here(make_work)


def _start_here(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    _work = make_work()


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, and the pool's pipes stay open among siblings: watch it from here."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _do(unit: Any) -> Any:
    assert _work is not None
    return _work(unit)
