"""Units of work on this machine's cores: worker processes that keep their models, results as they finish."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

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
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_start_worker, initargs=(self._make_work,)
            )
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
        try:
            for unit in units:
                waiting[self._pool.submit(_do, unit)] = unit
                if len(waiting) >= 2 * self._workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except BrokenProcessPool as error:
            raise BackendError(
                "a worker process died (killed, or out of memory); what was finished is kept: run the same command "
                "again to go on, with fewer --workers if memory is short"
            ) from error


def _finished(waiting: dict[Future[Any], Any]) -> Iterator[tuple[Any, Any] | Failure]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        unit = waiting.pop(future)
        try:
            yield unit, future.result()
        except PamAugError as error:
            yield Failure(unit, error)


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
