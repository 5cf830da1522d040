"""Units of work on this machine's cores: worker processes that keep their models, results as they finish."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pam_aug.errors import BackendError, PamAugError

__all__ = ["Failure", "run_local"]

# One thread per library in a worker: the cores are already taken by the workers, and thread pools of several libraries
# on the same cores slow small models down by an order of magnitude.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

_work: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that raised: which, and the error (a PamAugError; anything else ends the run)."""

    unit: Any
    error: PamAugError


def run_local(
    make_work: Callable[[], Callable[[Any], Any]], units: Iterable[Any], workers: int
) -> Iterator[tuple[Any, Any] | Failure]:
    """Yield `(unit, result)` as units finish, in no set order, and `Failure` for those that raised a PamAugError.

    `make_work` is called once in each worker (it loads the models) and returns the function that does one unit; both it
    and the units are pickled. 0 workers does the units here, in order. At most two units per worker are under way or
    waiting, so an endless iterable is fine. Raises BackendError when a worker process dies.
    """
    if workers < 1:
        work = make_work()
        for unit in units:
            try:
                yield unit, work(unit)
            except PamAugError as error:
                yield Failure(unit, error)
        return
    context = multiprocessing.get_context("spawn")
    with (
        _environment(_ONE_THREAD),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(make_work,)) as pool,
    ):
        waiting: dict[Future[Any], Any] = {}
        try:
            for unit in units:
                waiting[pool.submit(_do, unit)] = unit
                if len(waiting) >= 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        except BrokenProcessPool as error:
            raise BackendError(
                "a worker process died (killed, or out of memory); what was finished is kept: run the same command "
                "again to go on, with fewer --workers if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finished(waiting: dict[Future[Any], Any]) -> Iterator[tuple[Any, Any] | Failure]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        unit = waiting.pop(future)
        try:
            yield unit, future.result()
        except PamAugError as error:
            yield Failure(unit, error)


def _start_worker(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    _work = make_work()


def _do(unit: Any) -> Any:
    assert _work is not None
    return _work(unit)


@contextmanager
def _environment(names: Iterable[str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
