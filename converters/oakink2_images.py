"""An image of OAKINK2 by its frame id: JPEG bytes as they are, PNG as JPEG of quality 95 without chroma subsampling."""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from pam_aug.errors import SourceError, UnsafeInput

__all__ = ["SourceImage", "read_image"]

_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 64 << 20
_MAX_PIXELS = 20_000_000


@dataclass(frozen=True, slots=True)
class SourceImage:
    """What goes into the shard, and the sha256 of the bytes that were read: others where a PNG was `encoded`."""

    data: bytes
    sha256: str
    width: int
    height: int
    encoded: bool


def read_image(folder: Path, frame_id: int, keep_png: bool) -> SourceImage:
    """The image `frame_id` of a camera's folder. The content decides whether it is a JPEG or a PNG, not the suffix.

    Raises SourceError where it is gone, truncated or neither, UnsafeInput above 64 MB or 20 megapixels.
    """
    path, data = _read(folder, f"{frame_id:06d}")
    sha256 = hashlib.sha256(data).hexdigest()
    is_png = data.startswith(_PNG_MAGIC)
    width, height = _png_size(data, path) if is_png else _jpeg_size(data, path)
    if width * height > _MAX_PIXELS:
        raise UnsafeInput(f"{path}: {width} × {height} pixels is over the limit of {_MAX_PIXELS}", path=str(path))
    encode = is_png and not keep_png
    if encode:
        data = _encoded(data, (height, width, 3), path)
    return SourceImage(data, sha256, width, height, encode)


def _read(folder: Path, name: str) -> tuple[Path, bytes]:
    """The first file of that name, and its bytes."""
    for suffix in _SUFFIXES:
        path = os.path.join(folder, name + suffix)
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read() if size <= _MAX_BYTES else b""  # one call of the system, no buffer to copy from
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})", path=path) from error
        if max(size, len(data)) > _MAX_BYTES:
            raise UnsafeInput(f"{path}: over {_MAX_BYTES >> 20} MB is no image of this dataset", path=path)
        return Path(path), data
    raise SourceError(f"{folder}: frame {int(name)} has no image {name}.jpg or .png", path=str(folder))


def _png_size(data: bytes, path: Path) -> tuple[int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR" or b"IEND" not in data[-16:]:
        raise SourceError(f"{path}: a truncated PNG; unpack the sequence again", path=str(path))
    width, height, depth = struct.unpack(">IIB", data[16:25])
    if depth != 8:
        raise SourceError(f"{path}: a {depth}-bit PNG; images have 8 bits per channel", path=str(path))
    return width, height


def _jpeg_size(data: bytes, path: Path) -> tuple[int, int]:
    try:
        header = simplejpeg.decode_jpeg_header(data)
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path}: neither a JPEG nor a PNG image ({error})", path=str(path)) from error
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # the end marker; what is copied unread must at least be whole
        raise SourceError(f"{path}: a truncated JPEG; unpack the sequence again", path=str(path))
    return int(header[1]), int(header[0])  # type: ignore[arg-type]


def _encoded(png: bytes, shape: tuple[int, int, int], path: Path) -> bytes:
    try:
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None or image.shape != shape:
        raise SourceError(f"{path}: the PNG does not decode; unpack the sequence again", path=str(path))
    pixels = np.ascontiguousarray(image, dtype=np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")
