"""Appending to a large file past the system's page cache, and hashing what is appended, both in a thread of their own.

Two processes that write shards through the page cache take three times the system's time of one and get a third of the
disk's rate; written past it (O_DIRECT), a shard costs a copy in memory, and a conversion does not drive the dataset out
of the cache that it reads from. Where the file system has no such writing, the same blocks are written as usual.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Appender"]

_BUFFER_BYTES = 4 << 20  # disks that turn and network file systems need large requests
_ALIGNMENT = 4096  # of a page, and of every disk's blocks; buffers are mapped, so they begin at a page
_DIRECT = getattr(os, "O_DIRECT", 0)


class Appender:
    """Appends to an empty open file: `append` any bytes, then `finish`, or `close` to give up.

    `bytes` counts what was appended; `sha256` is of all of it after `finish`. A write that fails raises OSError in one
    of the calls after it, at the latest in `finish`; then nothing can be appended any more.
    """

    def __init__(self, descriptor: int) -> None:
        self.bytes, self.sha256 = 0, ""
        self._descriptor, self._hash = descriptor, hashlib.sha256()
        # One is filled while the other is written.
        self._buffer, self._spare = (memoryview(mmap.mmap(-1, _BUFFER_BYTES)) for _ in range(2))
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, "append")
        self._writing: Future[None] | None = None
        self._failed: OSError | None = None
        self._aligned = _set_direct(descriptor, True)

    def append(self, *parts: bytes) -> None:
        """Appends the bytes of `parts`. Raises OSError."""
        for part in parts:
            rest, size = part, len(part)
            self.bytes += size
            while size >= (room := _BUFFER_BYTES - self._filled):
                self._buffer[self._filled :] = rest[:room]
                self._filled = _BUFFER_BYTES
                self._send()
                rest, size = memoryview(rest)[room:], size - room
            self._buffer[self._filled : self._filled + size] = rest
            self._filled += size

    def finish(self) -> None:
        """Writes what is left. The file is not flushed to the disk (fsync). Raises OSError."""
        self._send()
        self._wait()
        self.sha256 = self._hash.hexdigest()
        self.close()

    def close(self) -> None:
        """Ends the thread; what was appended since the last full buffer is not written."""
        self._thread.shutdown()

    def _send(self) -> None:
        self._wait()
        self._writing = self._thread.submit(self._write, self._buffer[: self._filled])
        self._buffer, self._spare, self._filled = self._spare, self._buffer, 0

    def _wait(self) -> None:
        """Until no buffer is being written. Raises what the last or an earlier writing raised."""
        if self._failed is None and self._writing is not None:
            try:
                self._writing.result()
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise self._failed

    def _write(self, data: memoryview) -> None:
        self._hash.update(data)
        while data:
            # The end of the file, and what follows a write that was cut short, fit no whole blocks.
            if self._aligned and len(data) % _ALIGNMENT:
                self._aligned = _set_direct(self._descriptor, False)
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                if not self._aligned or error.errno != errno.EINVAL:
                    raise
                self._aligned = _set_direct(self._descriptor, False)  # the file system only seemed to have it


def _set_direct(descriptor: int, on: bool) -> bool:
    """Whether writes go past the cache from now on; many file systems have no such writing."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
        return on
    return False
