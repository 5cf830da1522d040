"""Files that are either whole or absent: temporary name in the same folder, fsync, rename, fsync of the folder."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pam_aug.errors import StorageError

__all__ = ["TEMPORARY_PREFIX", "fsync_folder", "storage_errors", "temporary_path", "write_atomic"]

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
    temporary = temporary_path(path)
    with storage_errors(path):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
