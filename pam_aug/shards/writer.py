"""Writing one shard: a plain USTAR tar that is committed whole, or not at all.

Commit: temporary names in the same folder, fsync, rename of tar and index, fsync of the folder, then the marker
`<shard>.json`, last. The same samples give the same bytes: fixed mode and owner, mtime 0, members in order. The headers
are made with the standard library, because webdataset's TarWriter cannot be told the format and writes a PAX header per
long key.
"""

import contextlib
import fcntl
import hashlib
import os
import tarfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import orjson

from pam_aug.errors import SchemaError, StorageError
from pam_aug.schema import SCHEMA_VERSION, Sample, sample_to_json
from pam_aug.shards.appending import Appender
from pam_aug.shards.atomic import create_temporary, fsync_together, staged, storage_errors, temporary_path
from pam_aug.shards.images import Suffix, image_size
from pam_aug.shards.index import INDEX_DTYPE, hand_rows, index_bytes

__all__ = ["EXTRAS", "LEFT_OUT", "ShardKind", "ShardWriter", "index_path", "is_committed", "marker_path", "shard_name"]

ShardKind = Literal["real", "syn", "rejected", "mixed"]
"""What a shard may hold: real samples, synthetic ones ("syn", "rejected"), or both ("mixed")."""
EXTRAS = ("depth.png", "seg.png")
LEFT_OUT = "left out: "
"""How a marker's counts name inputs that were left out; the reason follows."""
_BLOCK, _RECORD = 512, 10240


def shard_name(kind: Literal["real", "syn", "mixed"], index: int) -> str:
    """`real-00012.tar`, `syn-00012.tar`."""
    return f"{kind}-{index:05d}.tar"


def marker_path(path_tar: Path) -> Path:
    """The commit marker of a shard: the JSON file beside it."""
    return Path(path_tar).with_suffix(".json")


def index_path(path_tar: Path) -> Path:
    """The derived index of a shard."""
    return Path(path_tar).with_suffix(".idx")


def is_committed(path_tar: Path) -> bool:
    """Whether the shard was finished: its marker is there, which is written last."""
    return marker_path(path_tar).is_file() and Path(path_tar).is_file()


class ShardWriter:
    """Context manager that writes one shard and commits it on a clean exit only.

    with ShardWriter(folder / shard_name("real", 12), "real") as shard:
        shard.add(sample, jpeg_bytes)
        shard.count("failed")

    After the block `marker` holds what was committed, and `sha256` is of the tar that was written. Where another writer
    committed the same name first, its shard stands and this one's is dropped. Raises StorageError when the disk
    refuses, SchemaError for a sample that does not belong: nothing is committed then, and no temporary file stays.
    """

    def __init__(self, path_tar: Path, kind: ShardKind) -> None:
        self.path, self.kind = Path(path_tar), kind
        if self.path.suffix != ".tar":
            raise SchemaError(f"{self.path}: a shard's name ends in .tar", path=str(self.path))
        self.marker: dict[str, Any] = {}
        self.sha256 = ""
        self._counts: Counter[str] = Counter(samples=0, hands=0)
        self._keys: list[str] = []
        self._image_sha256: list[str] = []
        self._known: set[str] = set()
        self._rows: list[np.ndarray] = []
        self._extras: tuple[str, ...] | None = None
        self._file: BinaryIO | None = None
        self._tar: Appender | None = None
        self._temporary = temporary_path(self.path)

    def __enter__(self) -> Self:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = create_temporary(self._temporary, buffering=0)
            self._tar = Appender(self._file.fileno())
        self._started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                with storage_errors(self.path):
                    self._commit()
        finally:
            self._discard()

    def add(
        self,
        sample: Sample,
        image: bytes,
        suffix: Suffix = "jpg",
        extras: Mapping[str, bytes] | None = None,
        image_sha256: str = "",
    ) -> None:
        """Appends a sample: its image's bytes as they are, its labels, and `extras` ("depth.png", "seg.png").

        `image_sha256` is the hash of `image` in hexadecimal where the caller has it; else it is computed here.

        Raises SchemaError for a duplicate key, a sample of the other kind, an image that is not of the camera's size,
        or extras that the shard's other samples lack.
        """
        extras = dict(extras or {})
        self._check(sample, image, suffix, extras)
        members = {suffix: image, "json": sample_to_json(sample), **{name: extras[name] for name in sorted(extras)}}
        headers = {name: _header(sample.key, name, len(data)) for name, data in members.items()}
        offset = self._append(*(p for name, data in members.items() for p in (headers[name], data, _padding(data))))
        self._rows.append(hand_rows(sample, len(self._keys), image, suffix, offset + _BLOCK))
        self._image_sha256.append(image_sha256 or hashlib.sha256(image).hexdigest())
        self._extras = tuple(sorted(extras))
        self._keys.append(sample.key)
        self._known.add(sample.key)
        self._counts["samples"] += 1
        self._counts["hands"] += len(sample.hands)

    def count(self, name: str, n: int = 1) -> None:
        """Adds `n` to the count `name` ("failed", "rejected" …) in the commit marker."""
        if name in ("samples", "hands"):
            raise SchemaError(f"{self.path}: the count {name!r} is kept by the writer", name=name)
        self._counts[name] += n

    def _check(self, sample: Sample, image: bytes, suffix: Suffix, extras: Mapping[str, bytes]) -> None:
        where = f"{self.path.name}:{sample.key}"
        if sample.key in self._known:
            raise SchemaError(f"{where}: the key stands in this shard already; keys are unique", key=sample.key)
        if self.kind != "mixed" and sample.synthetic != (self.kind != "real"):
            has = "synthetic" if sample.synthetic else "real"
            raise SchemaError(f"{where}: a {has} sample does not belong into a {self.kind!r} shard", key=sample.key)
        if suffix not in ("jpg", "png") or not set(extras) <= set(EXTRAS):
            raise SchemaError(f"{where}: members are jpg or png, and {EXTRAS}; got {suffix!r}, {sorted(extras)}")
        if self._extras not in (None, tuple(sorted(extras))):
            raise SchemaError(
                f"{where}: extras {sorted(extras)}, but the samples before have {self._extras}; all have the same",
                key=sample.key,
            )
        size = image_size(image, suffix, where)
        if size != (sample.camera.width, sample.camera.height):
            raise SchemaError(
                f"{where}: the image has {size[0]} × {size[1]} pixels, its camera "
                f"{sample.camera.width} × {sample.camera.height}",
                key=sample.key,
            )

    def _append(self, *parts: bytes) -> int:
        """Returns where the parts begin in the file."""
        if self._tar is None:
            raise StorageError(f"{self.path}: the shard is not open; write inside the `with` block")
        offset = self._tar.bytes
        try:
            with storage_errors(self.path):
                self._tar.append(*parts)
        except StorageError:
            self._discard()  # a caller that goes on after a failed write must not commit a torn member
            raise
        return offset

    def _commit(self) -> None:
        if self._file is None or self._tar is None:
            raise StorageError(f"{self.path}: a write failed before; the shard cannot be committed")
        end = 2 * _BLOCK
        self._tar.append(bytes(end + -(self._tar.bytes + end) % _RECORD))
        self._tar.finish()
        self.sha256 = digest = self._tar.sha256
        marker = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "sha256": digest,
            "bytes": self._tar.bytes,
            "counts": dict(sorted(self._counts.items())),
            "seconds": round(time.monotonic() - self._started, 3),
            "keys": self._keys,
            "image_sha256": self._image_sha256,
        }
        # Joined as bytes: concatenate would work out the common type of structured rows pair by pair.
        rows = np.frombuffer(b"".join(row.tobytes() for row in self._rows), INDEX_DTYPE)
        path_index, path_marker = index_path(self.path), marker_path(self.path)
        with (
            staged(path_index, index_bytes(rows, self._tar.bytes, digest)) as index_file,
            staged(path_marker, orjson.dumps(marker) + b"\n") as marker_file,
        ):
            fsync_together(self._file, index_file, marker_file)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # Two writers of one name: the lock makes tar and marker one step, and a killed holder releases it.
                fcntl.flock(folder, fcntl.LOCK_EX)
                if is_committed(self.path):
                    self.marker = orjson.loads(path_marker.read_bytes())
                    return
                os.replace(self._temporary, self.path)
                os.replace(index_file.name, path_index)
                os.fsync(folder)
                os.replace(marker_file.name, path_marker)  # what it vouches for is on the disk, names included
                os.fsync(folder)
            finally:
                os.close(folder)
        self.marker = marker

    def _discard(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
        if self._file is not None:
            with contextlib.suppress(OSError):  # it goes anyway
                self._file.close()
            self._file = None
        self._temporary.unlink(missing_ok=True)


def _padding(data: bytes) -> bytes:
    return bytes(-len(data) % _BLOCK)


def _header(key: str, name: str, size: int) -> bytes:
    """The USTAR header of a member, byte for byte the standard library's, which takes ten times as long."""
    path = f"{key}.{name}".encode("ascii", "strict")
    if len(path) > _NAME_BYTES or size >= 8**11:
        return _long_header(key, name, size)
    size_field = b"%011o\0" % size
    check = _TEMPLATE_SUM + sum(path) + sum(size_field)
    parts = (path, bytes(_NAME_BYTES - len(path)), _TEMPLATE[100:124], size_field, _TEMPLATE[136:148])
    return b"".join((*parts, b"%06o\0 " % check, _TEMPLATE[156:]))


def _long_header(key: str, name: str, size: int) -> bytes:
    """Also for names over 100 bytes, which USTAR cuts in two at a slash."""
    info = tarfile.TarInfo(f"{key}.{name}")
    info.size, info.mtime, info.mode, info.uid, info.gid = size, 0, 0o444, 0, 0
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as error:
        raise SchemaError(
            f"{key}.{name}: does not fit a tar header ({error}); names over 100 bytes need a `/` that leaves at most "
            "155 bytes before and 100 behind it: shorten the key's parts",
            key=key,
        ) from error


# A header's fields beside name (0 to 99), size (124 to 135) and checksum (148 to 155, summed as eight spaces).
_NAME_BYTES = 100
_TEMPLATE = _long_header("k", "n", 0)
_TEMPLATE_SUM = sum(_TEMPLATE[100:124]) + sum(_TEMPLATE[136:148]) + 8 * ord(" ") + sum(_TEMPLATE[156:])
