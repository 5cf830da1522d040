"""The `.idx` file beside a shard: one row per hand, so that a dataset opens without reading any tar.

Layout, little-endian: a 64-byte header (`PAMIDX2\\0`, uint64 bytes of the tar, 32 bytes sha256 of the tar, uint64 rows,
uint64 bytes per row), then the rows: one of `INDEX_DTYPE` and the CRC-32 of its bytes, so that a flipped bit never
becomes a label. It is derived: the tar alone gives the same bytes again. Indexes of the first form (`PAMIDX1`, no
checksums) are read as well; `verify --rebuild` writes them anew.
"""

import struct
import zlib

import numpy as np

from pam_aug.errors import ShardDamaged
from pam_aug.schema import Sample
from pam_aug.shards.files import MAX_TABLE_BYTES, ByteSource, Place, open_bytes
from pam_aug.shards.images import Suffix

__all__ = ["INDEX_DTYPE", "SIDES", "IndexFile", "hand_rows", "index_bytes", "open_index"]

SIDES = ("right", "left")
_SUFFIXES = ("jpg", "png")

# Units and frames as in schema.Hand. `side` 0 right, 1 left; `image_format` 0 JPEG, 1 PNG; `sample` is the shard's
# sample number, `hand` the number in `Sample.hands`.
INDEX_DTYPE = np.dtype(
    [
        ("key", "S180"),
        ("sample", "<i4"),
        ("hand", "u1"),
        ("side", "u1"),
        ("synthetic", "?"),
        ("mano_valid", "?"),
        ("image_format", "u1"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("image_offset", "<i8"),
        ("image_bytes", "<i8"),
        ("image_crc32", "<u4"),
        ("K_px", "<f4", (3, 3)),
        ("joints_cam_m", "<f4", (21, 3)),
        ("joints_px", "<f4", (21, 2)),
        ("in_view", "?", (21,)),
        ("global_orient", "<f4", (3,)),
        ("hand_pose", "<f4", (45,)),
        ("betas", "<f4", (10,)),
        ("transl", "<f4", (3,)),
    ]
)
_NUMBERS = struct.Struct("<180si2B2?B2i2qI")  # the fields before K_px; the arrays after it are as the schema holds them
_STORED = np.dtype([("row", INDEX_DTYPE), ("crc32", "<u4")])
_HEADER = struct.Struct("<8sQ32sQQ")
_MAGIC = b"PAMIDX2\0"
_REBUILD = "`pam-aug verify --rebuild` makes it anew from the shard"
_FORMS = {b"PAMIDX1\0": INDEX_DTYPE, _MAGIC: _STORED}


def hand_rows(sample: Sample, ordinal: int, image: bytes, suffix: Suffix, image_offset: int) -> np.ndarray:
    """The rows of one sample's hands, shape (hands,) of INDEX_DTYPE."""
    # Packed as bytes: to fill a structured row field by field takes several times as long.
    camera, key = sample.camera, sample.key.encode()
    place = image_offset, len(image), zlib.crc32(image) if sample.hands else 0
    parts: list[bytes] = []
    for number, hand in enumerate(sample.hands):
        parts.append(
            _NUMBERS.pack(
                *(key, ordinal, number, SIDES.index(hand.side), sample.synthetic, hand.mano_valid),
                *(_SUFFIXES.index(suffix), camera.width, camera.height, *place),
            )
        )
        arrays = camera.K_px, hand.joints_cam_m, hand.joints_px, hand.in_view
        arrays += hand.global_orient, hand.hand_pose, hand.betas, hand.transl
        parts += [array.tobytes() for array in arrays]
    return np.frombuffer(b"".join(parts), INDEX_DTYPE)


def index_bytes(rows: np.ndarray, tar_bytes: int, tar_sha256: str) -> bytes:
    """The whole `.idx` file of a tar of that size and hash."""
    header = _HEADER.pack(_MAGIC, tar_bytes, bytes.fromhex(tar_sha256), len(rows), _STORED.itemsize)
    stored = np.zeros(len(rows), _STORED)
    stored["row"] = rows
    stored["crc32"] = [zlib.crc32(row.tobytes()) for row in rows]
    return header + stored.tobytes()


class IndexFile:
    """An open `.idx` file whose rows are read one by one, so that memory does not grow with the dataset."""

    def __init__(self, source: ByteSource, path: Place, count: int, form: np.dtype) -> None:
        self._source, self._path, self.count, self._form = source, path, count, form

    def row(self, i: int) -> bytes:
        """Row `i` of INDEX_DTYPE. Raises ShardDamaged where its bytes changed or the file has become shorter."""
        if not 0 <= i < self.count:
            raise IndexError(f"{self._path}: row {i} of {self.count}")
        return self._checked(self._read(i, 1), i)

    def rows(self) -> np.ndarray:
        """All rows, in memory. Raises as `row`."""
        if not self.count:
            return np.zeros(0, INDEX_DTYPE)
        data, size = self._read(0, self.count), self._form.itemsize
        for i in range(self.count):
            self._checked(data[i * size : (i + 1) * size], i)
        stored = np.frombuffer(data, self._form)
        return stored if self._form is INDEX_DTYPE else stored["row"]

    def close(self) -> None:
        self._source.close()

    def _read(self, first: int, count: int) -> bytes:
        size = self._form.itemsize
        try:
            data = self._source.read(_HEADER.size + first * size, count * size)
        except OSError as error:
            raise ShardDamaged(
                f"{self._path}: cannot be read ({error.strerror or error})", path=str(self._path)
            ) from error
        if len(data) != count * size:
            raise ShardDamaged(f"{self._path}: ends inside row {first}: {_REBUILD}", path=str(self._path))
        return data

    def _checked(self, stored: bytes, i: int) -> bytes:
        """The row of stored bytes, once they agree with the checksum behind it."""
        row, checksum = stored[: INDEX_DTYPE.itemsize], stored[INDEX_DTYPE.itemsize :]
        if checksum and zlib.crc32(row) != int.from_bytes(checksum, "little"):
            raise ShardDamaged(f"{self._path}: row {i} changed: {_REBUILD}", path=str(self._path))
        return row


def open_index(path: Place, tar_bytes: int, tar_sha256: str) -> IndexFile | None:
    """The index of a tar, or None where the file is missing, of another format, or of another tar."""
    try:
        source = open_bytes(path)
    except OSError:
        return None
    try:
        header = source.read(0, _HEADER.size)
    except OSError:
        header = b""
    if len(header) == _HEADER.size and source.size <= MAX_TABLE_BYTES:
        magic, of_bytes, of_sha256, count, row_bytes = _HEADER.unpack(header)
        form = _FORMS.get(magic)
        same = (of_bytes, of_sha256) == (tar_bytes, bytes.fromhex(tar_sha256))
        if form is not None and same and row_bytes == form.itemsize and source.size == _HEADER.size + count * row_bytes:
            return IndexFile(source, path, count, form)
    source.close()
    return None
