"""Memory of batches: used again, because fresh memory comes zeroed by the kernel, page by page, each time; and shared
by the labels of a batch, because each piece of it that a worker hands over costs a file descriptor."""

import sys
import threading
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["BatchMemory", "tensors_of"]


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


def tensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Copies of small arrays as tensors; in a loader's worker process, as parts of one storage.

    A worker passes each storage to the training process by a descriptor and a connection of its own, a third of a
    millisecond each.
    """
    if get_worker_info() is None:
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    sizes = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays.values()]
    memory, tensors, start = torch.empty(sum(sizes), dtype=torch.uint8), {}, 0
    for (name, array), size in zip(arrays.items(), sizes):
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        part = memory[start : start + array.nbytes].view(kind).view(array.shape)
        part.numpy()[...] = array
        tensors[name] = part
        start += size
    return tensors


_ALIGNED = 16
