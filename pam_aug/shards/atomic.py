"""Files that are either whole or absent: temporary name in the same folder, fsync, rename, fsync of the folder.

Whoever writes a temporary file holds a lock on it until it is renamed; a killed writer's lock goes with it. So a
leftover can be told from a file in use.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pam_aug.errors import StorageError

__all__ = [
    "TEMPORARY_PREFIX",
    "copy_atomic",
    "create_temporary",
    "fsync_folder",
    "fsync_together",
    "remove_temporary",
    "staged",
    "storage_errors",
    "temporary_path",
    "write_atomic",
]

TEMPORARY_PREFIX = ".tmp-"

_ADVICE = {
    errno.ENOSPC: "the disk is full: free space and run the same command again, it resumes",
    errno.EDQUOT: "the quota is used up: free space and run the same command again, it resumes",
    errno.EFBIG: "the file system or a limit refuses a file of this size: make smaller shards",
    errno.EROFS: "the file system is read-only: choose another output folder",
    errno.EACCES: "no permission to write there: choose another output folder or change its mode",
    errno.EIO: "the device reported an I/O error: check the disk, then run the same command again",
}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into StorageError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "run the same command again once the cause is removed, it resumes")
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); {advice}", path=str(path), errno=error.errno
        ) from error


def temporary_path(path: Path) -> Path:
    """A fresh name beside `path` that no reader takes for a finished file; unique per process and call."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def create_temporary(path_temporary: Path, buffering: int = -1) -> BinaryIO:
    """Opens a new temporary file for writing and locks it for as long as it stays open: rename before closing it."""
    while True:
        file = open(path_temporary, "xb", buffering)  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path_temporary.exists():
            return file
        file.close()  # taken for a leftover between its making and its lock: make it again


def remove_temporary(path_temporary: Path, dry_run: bool = False) -> bool | None:
    """Removes a temporary file that nobody writes: True. False where somebody does (or may), None where it is gone.

    It is removed under its lock, so a writer that waits for that lock notices. `dry_run` only looks.
    """
    try:
        with open(path_temporary, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not dry_run:
                path_temporary.unlink()
    except FileNotFoundError:
        return None
    except OSError:
        return False
    return True


@contextlib.contextmanager
def staged(path: Path, data: bytes) -> Iterator[BinaryIO]:
    """`data` in a temporary file beside `path`, open and locked: fsync it, and rename `file.name` to `path` inside the
    block. At the end of the block it is gone where it was not renamed. Raises OSError."""
    temporary = temporary_path(path)
    try:
        with create_temporary(temporary) as file:
            file.write(data)
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def fsync_together(*files: BinaryIO) -> None:
    """Flushes and fsyncs files at the same time, which lets the file system end them in one commit of its journal.

    Returns when all are on the disk. Raises the first OSError.
    """
    for file in files:
        file.flush()
    with ThreadPoolExecutor(len(files)) as threads:
        for done in [threads.submit(os.fsync, file.fileno()) for file in files]:
            done.result()


def fsync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` holds the old bytes or the new ones, never a part. Raises StorageError."""
    path = Path(path)
    with storage_errors(path):
        with staged(path, data) as file:
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        fsync_folder(path.parent)


def copy_atomic(old: Path, new: Path, link: bool = False) -> None:
    """Copies a file so that `new` is whole or not there; with `link` the two share their bytes where one file system
    holds both. Raises StorageError."""
    temporary = temporary_path(new)
    with storage_errors(new):
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            linked = False
            if link:
                with contextlib.suppress(OSError):  # another file system
                    os.link(old, temporary)
                    os.replace(temporary, new)
                    linked = True
            if not linked:
                temporary.unlink(missing_ok=True)
                with open(old, "rb") as source, create_temporary(temporary) as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(temporary, new)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(new.parent)
