"""Where shards lie and how their bytes are read: folders on a disk, or URLs read by ranges through fsspec.

Ranges come by `pread` and by range requests, never through a memory map: a file cut short under a map kills the
process, while a short read is an error with a name. A URL names a folder or file in memory, on a disk, on a web server
or in an S3 bucket; protocols that start programs or chain others are refused.
"""

import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote

from pam_aug.errors import AssetMissing, ConfigError, UnsafeInput

__all__ = [
    "MAX_TABLE_BYTES",
    "ByteSource",
    "Place",
    "RemotePath",
    "inside",
    "local_folder",
    "open_bytes",
    "place",
    "read_whole",
]

MAX_TABLE_BYTES = 256 << 20
"""The most bytes that a marker, a `mix.json` or an index may have."""
_PROTOCOLS = ("memory", "http", "https", "s3")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class RemotePath:
    """The URL of a folder or file, with as much of `Path` as reading shards needs."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.url.rpartition("/")[0])

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name


Place = Path | RemotePath


class ByteSource(Protocol):
    """An open file: its size in bytes when it was opened, and any range of it from any thread."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of a range; fewer where the file ends inside it. Raises OSError."""
        ...

    def close(self) -> None: ...


def place(text: "str | Path | RemotePath") -> Place:
    """A path or URL as a place. Raises UnsafeInput for protocols that are not read, ConfigError for a query."""
    if isinstance(text, Path | RemotePath):
        return text
    found = re.match(r"([A-Za-z0-9+.-]+)://", text)
    if found is None and "::" not in text:
        return Path(text)
    protocol = found[1].lower() if found else ""
    if "::" in text or protocol not in (*_PROTOCOLS, "file"):
        raise UnsafeInput(
            f"{text}: shards are read from a path or from {', '.join(('file', *_PROTOCOLS))} URLs, not from this one",
            url=text,
        )
    if protocol == "file":
        return Path(unquote(text[len("file://") :].removeprefix("localhost")))
    if "?" in text or "#" in text:
        raise ConfigError(f"{text}: a folder's URL has no query and no fragment", url=text)
    return RemotePath(text.rstrip("/"))


def local_folder(folder: Path | str, what: str) -> Path:
    """`folder` as a path, for what reads every file of it. Raises ConfigError for a URL, also one that was a Path."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        raise ConfigError(
            f"{folder}: is a URL, and {what} needs local files: copy the folder to a disk first. Reading from a URL "
            "checks what it reads: markers against mix.json, images against their checksums",
            path=str(folder),
        )
    return Path(folder)


def inside(root: Place, name: str) -> Place:
    """The file that a `mix.json` in `root` names: relative to it; on a disk also absolute, or a URL.

    Raises UnsafeInput where a remote mix names anything outside its own folder.
    """
    if isinstance(root, RemotePath):
        if "://" in name or name.startswith("/") or ".." in name.split("/") or re.search(r"[\\?#]|::", name):
            raise UnsafeInput(f"{root}: its mix names {name!r}, which lies outside of it", url=str(root), name=name)
        return root / name
    return place(name) if "://" in name else root / name


def open_bytes(at: Place) -> ByteSource:
    """Opens a file for reading ranges. Raises FileNotFoundError, OSError, AssetMissing for a missing package."""
    return _RemoteBytes(at) if isinstance(at, RemotePath) else _LocalBytes(at)


def read_whole(at: Place, limit: int = MAX_TABLE_BYTES) -> bytes:
    """A small file's bytes. Raises OSError, and UnsafeInput above `limit` bytes before they are read."""
    source = open_bytes(at)
    try:
        if source.size > limit:
            raise UnsafeInput(f"{at}: {source.size} bytes is over the limit of {limit}", path=str(at))
        data = source.read(0, source.size)
    finally:
        source.close()
    if len(data) != source.size:
        raise OSError(0, f"{len(data)} of {source.size} bytes came")
    return data


class _LocalBytes:
    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


class _RemoteBytes:
    """Holds no connection: a forked worker process opens its own, see `_filesystem`."""

    def __init__(self, at: RemotePath) -> None:
        self._url = at.url
        self._protocol = at.url.partition("://")[0].lower()
        size = self._try(lambda fs: fs.info(self._url).get("size"))
        if not isinstance(size, int):
            raise OSError(0, "the server does not tell the file's size")
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        if size == 0:
            return b""
        data = self._try(lambda fs: self._fetch(fs, offset, size))
        if len(data) > size:
            raise OSError(0, f"{len(data)} bytes came where {size} were asked for")
        return data

    def close(self) -> None:
        pass

    def _fetch(self, fs: Any, offset: int, size: int) -> bytes:
        if self._protocol not in ("http", "https"):
            return fs.cat_file(self._url, start=offset, end=offset + size)
        # A web server may answer a range with the whole file: the file object stops reading, `cat_file` does not.
        with fs.open(self._url, "rb", size=self.size, cache_type="none") as file:
            file.seek(offset)
            return file.read(size)

    def _try(self, work: Any) -> Any:
        """The result of `work`, tried again after a moment where the network failed; any failure as an OSError."""
        fs = _filesystem(self._protocol)
        for attempt in range(_ATTEMPTS):
            try:
                return work(fs)
            except FileNotFoundError:
                raise
            except Exception as error:  # each protocol's package has errors of its own
                if attempt + 1 == _ATTEMPTS or isinstance(error, PermissionError | ValueError):
                    raise OSError(0, f"{type(error).__name__}: {error}") from error
                time.sleep(0.2 * 4**attempt)
        raise AssertionError  # the loop returns or raises


_filesystems: dict[tuple[int, str], Any] = {}
_making = threading.Lock()


def _new_lock() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)  # another thread of the parent may have held it


def _filesystem(protocol: str) -> Any:
    """This process's file system of a protocol.

    Kept here and not in fsspec's own cache, which a forked process empties: that closes the parent's connections in the
    child, and takes them out of the event queue that both processes share, so that the parent waits for ever.
    """
    import fsspec

    key = (os.getpid(), protocol)
    with _making:  # two threads that start fsspec's event loop at once can leave one of them without
        if key not in _filesystems:
            try:
                _filesystems[key] = fsspec.filesystem(protocol, skip_instance_cache=True)
            except ImportError as error:
                package = _PACKAGES.get(protocol, protocol)
                raise AssetMissing(
                    f"{protocol} URLs need the package {package}: pip install {package}", package=package
                ) from error
    return _filesystems[key]
