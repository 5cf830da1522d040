"""Which worker does which unit, where the units of a group share something dear that a worker keeps once it has it."""

from collections import deque
from collections.abc import Sequence
from typing import Any

__all__ = ["Lanes"]

_WORTH_SPLITTING = 4  # units left of one group: for fewer, what they share is not worth getting a second time


class Lanes:
    """Deals the units of `groups` to workers, each a run of neighbouring groups, in order.

    A worker that has done its run takes over the latter half of the longest one that is left, at the seam between two
    groups where there is one. So nearly every group is one worker's, and no worker is idle while there is enough to do.
    """

    def __init__(self, groups: Sequence[Sequence[Any]], workers: int) -> None:
        self._lanes: list[deque[deque[Any]]] = [deque() for _ in range(workers)]
        total, before = sum(map(len, groups)), 0
        for group in filter(None, groups):  # each run is about as long
            self._lanes[int((before + len(group) / 2) * workers / total)].append(deque(group))
            before += len(group)

    def take(self, worker: int) -> Any | None:
        """The next unit of `worker`; None where nothing is left that is worth taking."""
        lane = self._lanes[worker]
        if not lane:
            self._take_over(worker)
        if not lane:
            return None
        unit = lane[0].popleft()
        if not lane[0]:
            lane.popleft()
        return unit

    def _take_over(self, worker: int) -> None:
        longest = max(self._lanes, key=lambda lane: sum(map(len, lane)))
        half = sum(map(len, longest)) / 2
        taken: deque[deque[Any]] = deque()
        while len(longest) > 1 and sum(map(len, taken)) + len(longest[-1]) / 2 <= half:
            taken.appendleft(longest.pop())
        if not taken and longest and len(longest[-1]) >= _WORTH_SPLITTING:
            group = longest[-1]
            taken.append(deque(group.pop() for _ in range(len(group) // 2)))
            taken[0].reverse()
        self._lanes[worker] = taken
