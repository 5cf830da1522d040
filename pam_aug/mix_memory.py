"""Memory of batches that is used again: fresh memory comes zeroed by the kernel, page by page, each time."""

import sys
import threading

import numpy as np

__all__ = ["BatchMemory"]


class BatchMemory:
    """Blocks of memory, at most `most`, each given out again when nobody holds it any more. From any thread.

    Fresh memory takes a third of the time that decoding small images into it takes. Who holds a batch, one of its
    images, or an array over it, holds its block: tensors refer to the array that they were made of.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._blocks: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of uint8, its content undefined."""
        with self._lock:
            for i in range(len(self._blocks)):
                # Whoever has it refers to a view, which refers to it.
                if _references(self._blocks, i) == _FREE and self._blocks[i].shape == shape:
                    return self._blocks[i][:]
            block = np.empty(shape, np.uint8)
            if len(self._blocks) < self._most:
                self._blocks.append(block)
            return block[:]


def _references(blocks: list[np.ndarray], i: int) -> int:
    return sys.getrefcount(blocks[i])


_FREE = _references([np.empty(0, np.uint8)], 0)
"""Of a block that only the list has. Measured, because Python 3.14 counts fewer references than those before it."""
