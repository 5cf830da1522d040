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
            for block in self._blocks:
                # The list, this name and the call refer to it; whoever has it refers to a view, which refers to it.
                if sys.getrefcount(block) == 3 and block.shape == shape:
                    return block[:]
            block = np.empty(shape, np.uint8)
            if len(self._blocks) < self._most:
                self._blocks.append(block)
            return block[:]
