"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

__all__ = ["Progress"]

_PLAIN_LINE_SECONDS = 10.0


class Progress:
    """Counts `unit`s of work towards `total` on standard error, with the rate and the time left."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._bar = tqdm(total=total, unit=f" {unit}", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._done and kind is None:
            self._line()

    def add(self, n: int) -> None:
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._printed > _PLAIN_LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._printed = time.monotonic()
        seconds = max(self._printed - self._started, 1e-9)
        rate = self._done / seconds
        left = (self._total - self._done) / rate if rate else float("inf")
        print(
            f"{self._done}/{self._total} {self._unit}, {rate:.1f}/s, {seconds:.0f} s gone, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
