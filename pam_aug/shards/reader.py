"""Reading a shard without trusting it: own USTAR scan, regular members of known suffixes only, nothing extracted.

The shard may lie on a disk or at a URL (`shards/files.py`); both are read by ranges, and nothing is kept in memory but
the table of members of a shard whose labels are read.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from jaxtyping import UInt8

from pam_aug.errors import PamAugError, SchemaError, ShardDamaged, UnsafeInput
from pam_aug.schema import Sample, sample_from_json
from pam_aug.shards.files import Place, open_bytes, place, read_whole
from pam_aug.shards.images import Suffix, decode_image
from pam_aug.shards.index import INDEX_DTYPE, IndexFile, hand_rows, open_index
from pam_aug.shards.tar import MAX_MEMBER_BYTES, Members, scan_tar
from pam_aug.shards.writer import EXTRAS
from pam_aug.versions import check_version

__all__ = ["ShardReader", "read_marker"]

MAX_SHARD_BYTES = 64 << 30


def read_marker(path_tar: Place | str, any_version: bool = False) -> dict[str, Any] | None:
    """The commit marker beside a shard, or None where it is not committed.

    Raises ShardDamaged for another content, SchemaNewer or SchemaOlder for another version, unless `any_version`.
    """
    path = place(path_tar).with_suffix(".json")
    try:
        marker = orjson.loads(read_whole(path))
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ShardDamaged(f"{path}: the commit marker cannot be read ({error})", path=str(path)) from error
    wanted = {"schema_version": int, "kind": str, "sha256": str, "bytes": int, "counts": dict, "keys": list}
    if not isinstance(marker, dict) or not all(isinstance(marker.get(n), t) for n, t in wanted.items()):
        raise ShardDamaged(f"{path}: not a commit marker (needs {', '.join(wanted)})", path=str(path))
    if not re.fullmatch(r"[0-9a-f]{64}", marker["sha256"]) or not isinstance(marker["counts"].get("samples"), int):
        raise ShardDamaged(f"{path}: the commit marker's sha256 or counts are not of their form", path=str(path))
    if not any_version:
        check_version(marker["schema_version"], str(path))
    return marker


class ShardReader:
    """One shard, a path or a URL, opened for reading samples in any order from any thread.

    len, `keys`, `sample(i)`, `image_bytes(i)`, `image(i)`, `extra(i, name)`; `rows` is the table of its hands, `row(i)`
    one of them, read without the others. `marker` is its commit marker, where the caller has read it before; `bytes_at`
    a copy of it, whose bytes are read instead.
    Raises ShardDamaged where bytes, structure or the commit marker disagree, UnsafeInput for what no shard of ours
    holds (links, absolute or `..` names, pickles, compression, sizes out of range), SchemaError for wrong labels.
    """

    def __init__(
        self, path: Place | str, marker: Mapping[str, Any] | None = None, bytes_at: Place | None = None
    ) -> None:
        self.path: Any = place(path)  # a Path, or a RemotePath for a URL
        self.marker = read_marker(self.path) if marker is None else marker
        try:
            self._file = open_bytes(bytes_at or self.path)
        except OSError as error:
            raise ShardDamaged(
                f"{self.path}: cannot be opened ({error.strerror or error})", path=str(self.path)
            ) from error
        self.bytes = self._file.size
        self._scanned: list[Members] | None = None
        self._rows: np.ndarray | None = None
        self._index: IndexFile | None = None
        if self.marker is not None and self.marker["bytes"] != self.bytes:
            raise ShardDamaged(
                f"{self.path}: {self.bytes} bytes, {self.marker['bytes']} were committed: restore it or build it again",
                path=str(self.path),
            )
        if self.bytes > MAX_SHARD_BYTES:
            raise UnsafeInput(f"{self.path}: {self.bytes} bytes is over the limit of a shard", path=str(self.path))

    def close(self) -> None:
        """Closes the files; the reader is of no use afterwards."""
        self._file.close()
        if self._index is not None:
            self._index.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def keys(self) -> list[str]:
        """The samples' keys in the order of the file."""
        return [s.key for s in self._samples]

    @property
    def has_index(self) -> bool:
        """Whether the `.idx` file beside the shard is there and is of this tar, going by its header."""
        return self._opened_index() is not None

    @property
    def rows(self) -> np.ndarray:
        """The hands' table (INDEX_DTYPE) from the `.idx` file, or from the labels where that is missing or stale."""
        if self._rows is None:
            index = self._opened_index()
            self._rows = self.derive_rows() if index is None else index.rows()
        return self._rows

    @property
    def hands(self) -> int:
        """The number of rows."""
        index = self._opened_index()
        return len(self.rows) if index is None else index.count

    def key_column(self) -> np.ndarray:
        """The keys of `rows`, which are not held."""
        index = self._opened_index()
        return (self.rows if index is None else index.rows())["key"]

    def row(self, i: int) -> np.void:
        """Row `i` of `rows`; only this one is read where there is an index."""
        return np.frombuffer(self.row_bytes(i), INDEX_DTYPE)[0]

    def row_bytes(self, i: int) -> bytes:
        """The bytes of row `i`: joined, those of many rows are a table, at a fraction of what single rows take."""
        index = self._opened_index()
        return self.rows[i].tobytes() if index is None else index.row(i)

    def sample(self, i: int) -> Sample:
        """Labels and provenance of sample `i`."""
        members = self._samples[i]
        try:
            sample = sample_from_json(self._member(members, "json"))
        except PamAugError as error:
            data = {**error.data, "path": str(self.path)}
            raise type(error)(f"{self.path}:{members.key}.json: {error}", **data) from error
        if sample.key != members.key:
            raise ShardDamaged(f"{self.path}:{members.key}.json: its label says {sample.key!r}", path=str(self.path))
        return sample

    def label(self, i: int) -> dict[str, Any]:
        """The label of sample `i` as plain JSON, its form unchecked: ten times as fast as `sample`, for tables."""
        members = self._samples[i]
        tree = orjson.loads(self._member(members, "json"))
        if not isinstance(tree, dict) or tree.get("key") != members.key:
            raise ShardDamaged(f"{self.path}:{members.key}.json: is not that sample's label", path=str(self.path))
        return tree

    def label_bytes(self, i: int) -> bytes:
        """The label of sample `i`, as it was written, of whatever version."""
        return self._member(self._samples[i], "json")

    def suffix(self, i: int) -> Suffix:
        """ "jpg" or "png": the format of image `i`."""
        return self._samples[i].suffix

    def image_bytes(self, i: int) -> bytes:
        """The image file of sample `i`, as it was written."""
        return self._member(self._samples[i], self._samples[i].suffix)

    def image_size_bytes(self, i: int) -> int:
        """The length of that file."""
        return self._samples[i].spans[self._samples[i].suffix][1]

    def image(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        """The decoded RGB image of sample `i`."""
        members = self._samples[i]
        return decode_image(self.image_bytes(i), members.suffix, f"{self.path}:{members.key}")

    def extras(self, i: int) -> tuple[str, ...]:
        """Which of "depth.png" and "seg.png" sample `i` has."""
        return tuple(name for name in EXTRAS if name in self._samples[i].spans)

    def extra(self, i: int, name: str) -> bytes:
        """The bytes of "depth.png" (16-bit millimetres) or "seg.png" (8-bit ids) of sample `i`."""
        members = self._samples[i]
        if name not in EXTRAS or name not in members.spans:
            raise SchemaError(f"{self.path}:{members.key}: has no {name!r}, but {self.extras(i)}", name=name)
        return self._member(members, name)

    def row_image_bytes(self, row: np.void) -> bytes:
        """The image file of a row of `rows`; its CRC-32 is checked, so that a flipped bit never reaches training."""
        return self.checked_image(*(row[n].item() for n in ("image_offset", "image_bytes", "image_crc32", "key")))

    def checked_image(self, offset: int, size: int, crc32: int, key: bytes) -> bytes:
        """As `row_image_bytes`, from the row's columns."""
        data = self._read(offset, size)
        if zlib.crc32(data) != crc32:
            name = key.decode("ascii", "replace")
            raise ShardDamaged(
                f"{self.path}:{name}: the image's bytes changed since it was written: run `pam-aug verify`",
                path=str(self.path),
                key=name,
            )
        return data

    def derive_rows(self) -> np.ndarray:
        """The hands' table computed from the tar alone."""
        parts = [np.zeros(0, INDEX_DTYPE)]
        for i, members in enumerate(self._samples):
            offset = members.spans[members.suffix][0]
            parts.append(hand_rows(self.sample(i), i, self.image_bytes(i), members.suffix, offset))
        return np.concatenate(parts)

    # ---------------------------------------------------------------------------------------------------- the tar

    @property
    def _samples(self) -> list[Members]:
        if self._scanned is None:
            self._scanned = scan_tar(self._read, self.bytes, str(self.path))
        return self._scanned

    def _opened_index(self) -> IndexFile | None:
        if self._index is None and self._rows is None and self.marker is not None:
            self._index = open_index(self.path.with_suffix(".idx"), self.bytes, self.marker["sha256"])
        return self._index

    def _read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or size > MAX_MEMBER_BYTES:
            raise ShardDamaged(f"{self.path}: {size} bytes at {offset} cannot be a member", path=str(self.path))
        try:
            data = self._file.read(offset, size)
        except OSError as error:
            raise ShardDamaged(
                f"{self.path}: cannot be read ({error.strerror or error})", path=str(self.path)
            ) from error
        if len(data) != size:
            raise ShardDamaged(f"{self.path}: ends inside a member at byte {offset}", path=str(self.path))
        return data

    def _member(self, members: Members, name: str) -> bytes:
        return self._read(*members.spans[name])
