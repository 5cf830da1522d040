"""Arrays out of an `.npz` in a tenth of the time of `numpy.load`, and from damaged or hostile bytes not at all.

A DexYCB frame's labels are a zip file of five small arrays, and opening one with `zipfile` costs more than the arrays
themselves. Here the zip directory is read once (PKWARE's APPNOTE 6.3, without encryption, zip64 or parts on several
disks) and only the members that are asked for are unpacked, up to the size that the directory gives. Their CRC is
checked, and nothing is ever unpickled.
"""

import functools
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from pam_aug.errors import PamAugError, SourceError, UnsafeInput

__all__ = ["read_bytes", "read_npz"]

_MAX_FILE_BYTES = 32 << 20
_MAX_ARRAY_BYTES = 64 << 20
_MAX_MEMBERS = 256
_STORED, _DEFLATED = 0, 8
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s22x2H")


def read_bytes(path: str | Path) -> bytes:
    """A file as it is. Raises SourceError where it cannot be read, UnsafeInput above 32 MB."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file object takes as long as all the rest here
        try:
            size = os.fstat(descriptor).st_size
            data = _read_whole(descriptor, size) if size <= _MAX_FILE_BYTES else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); copy it again", path=str(path)) from error
    if max(size, len(data)) > _MAX_FILE_BYTES:
        raise UnsafeInput(f"{path}: over {_MAX_FILE_BYTES >> 20} MB, no frame of DexYCB is. Refused", path=str(path))
    return data


def _read_whole(descriptor: int, size: int) -> bytes:
    """Until the end, which is one call of the system nearly always; a file that shrinks or grows meanwhile as it is."""
    data = os.read(descriptor, size + 1)
    if len(data) in (0, size):
        return data
    parts = [data]
    while parts[-1] and sum(map(len, parts)) <= _MAX_FILE_BYTES:
        parts.append(os.read(descriptor, 1 << 20))
    return b"".join(parts)


def read_npz(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz`, floats as float64; other members are not unpacked, and nothing is unpickled.

    Raises SourceError naming the file and the array: unreadable, of another shape or kind, not finite.
    """
    try:
        data = read_bytes(path)
        members = _directory(data)
        arrays = {name: _array(path, data, members, name) for name in shapes}
    except PamAugError:
        raise
    except Exception as error:  # struct, zlib and numpy's header parser raise many kinds on damaged bytes
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path}: not a readable label archive ({reason}); copy it again", path=str(path)) from error
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind not in ("u" if name == "seg" else "f"):
            raise SourceError(
                f"{path}: {name} has shape {array.shape} and type {array.dtype}, expected {shape}", path=str(path)
            )
        if array.dtype.kind == "f":
            arrays[name] = array = array.astype(np.float64)
            # The sum of squares is finite only where all are: one pass for two, which decide where it is not.
            if not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
                raise SourceError(f"{path}: {name} holds NaN or infinity; copy it again", path=str(path))
    return arrays


def _directory(data: bytes) -> dict[bytes, tuple[int, int, int, int, int]]:
    """Member name → compression method, CRC, packed bytes, unpacked bytes, offset of its local header."""
    end = len(data) - _END.size
    if data[end : end + 4] != b"PK\x05\x06":  # a comment may follow; numpy writes none
        end = data.rfind(b"PK\x05\x06", max(0, end - 0xFFFF))
    if end < 0:
        raise ValueError("no zip directory, the file is cut short or no .npz")
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(data, end)
    if disk or first_disk or here != count or count > _MAX_MEMBERS or start + size > end:
        raise ValueError(f"a zip directory of {count} members at {start} in {len(data)} bytes")
    members: dict[bytes, tuple[int, int, int, int, int]] = {}
    at = start
    for _ in range(count):
        entry = _ENTRY.unpack_from(data, at)
        magic, flags, method, crc, packed, unpacked, length = entry[0], entry[3], entry[4], *entry[7:11]
        name = data[at + _ENTRY.size : at + _ENTRY.size + length]
        if magic != b"PK\x01\x02" or flags & 1 or name in members:
            raise ValueError(f"member {name!r} is encrypted, there twice, or no entry of a zip directory")
        members[name] = method, crc, packed, unpacked, entry[16]
        at += _ENTRY.size + length + entry[11] + entry[12]
    if at > start + size:
        raise ValueError("the zip directory is longer than it says")
    return members


def _array(
    path: str | Path, data: bytes, members: dict[bytes, tuple[int, int, int, int, int]], name: str
) -> np.ndarray:
    file_name = f"{name}.npy".encode()
    if file_name not in members:
        raise ValueError(f"it has no {name}")
    method, crc, packed, unpacked, at = members[file_name]
    if unpacked > _MAX_ARRAY_BYTES:
        raise UnsafeInput(f"{path}: {name} unpacks to {unpacked} bytes. Refused", path=str(path))
    magic, name_bytes, extra_bytes = _LOCAL.unpack_from(data, at)
    start = at + _LOCAL.size + name_bytes + extra_bytes
    if magic != b"PK\x03\x04" or data[at + _LOCAL.size : at + _LOCAL.size + name_bytes] != file_name:
        raise ValueError(f"{name} is not where the zip directory says")
    raw = data[start : start + packed]
    if method == _DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = unpacker.decompress(raw, unpacked + 1)  # never more than the directory promises
        if not unpacker.eof:
            raise ValueError(f"{name} is cut short, or unpacks to more than {unpacked} bytes")
    elif method != _STORED:
        raise ValueError(f"{name} is packed by method {method}")
    if len(raw) != unpacked or zlib.crc32(raw) != crc:
        raise ValueError(f"{name} is damaged: its length or CRC is another")
    if raw[:8] != b"\x93NUMPY\x01\x00":
        raise SourceError(f"{path}: {name} is not an array of numpy's version 1; copy it again", path=str(path))
    header_end = 10 + int.from_bytes(raw[8:10], "little")
    shape, fortran, dtype = _header(raw[8:header_end])
    if dtype.hasobject:
        raise UnsafeInput(f"{path}: {name} holds Python objects, which are not read. Refused", path=str(path))
    return np.frombuffer(raw, dtype, offset=header_end).reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=256)  # a dataset has a handful of headers, and parsing one costs more than its array
def _header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(raw))
