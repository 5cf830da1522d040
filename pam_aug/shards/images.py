"""Image bytes to pixels, with a pixel cap before any memory is taken and one kind of error for all damage."""

import struct
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt, UInt8

from pam_aug.errors import ShardDamaged, UnsafeInput

__all__ = ["MAX_PIXELS", "Suffix", "decode_depth_mm", "decode_image", "decode_jpeg_into", "decode_plane", "image_size"]

MAX_PIXELS = 20_000_000
Suffix = Literal["jpg", "png"]

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_NO_DEPTH_EITHER = 65535


def image_size(data: bytes, suffix: Suffix, where: str) -> tuple[int, int]:
    """(width, height) in pixels from the header alone.

    Raises ShardDamaged where `data` is not an 8-bit grey or colour image of that format, UnsafeInput above 20 Mpx.
    """
    if suffix == "jpg":
        try:
            header = simplejpeg.decode_jpeg_header(data)
        except (ValueError, TypeError) as error:
            raise ShardDamaged(f"{where}: not a JPEG image ({error})", where=where) from error
        height, width, colorspace = int(header[0]), int(header[1]), header[2]  # type: ignore[arg-type]
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            raise ShardDamaged(f"{where}: a {colorspace} JPEG; only colour and grey ones are read", where=where)
    else:
        width, height, depth, _ = _png_header(data, where)
        if depth != 8:
            raise ShardDamaged(f"{where}: a {depth}-bit PNG; images have 8 bits per channel", where=where)
    _check_size(width, height, where)
    return width, height


def decode_image(
    data: bytes, suffix: Suffix, where: str, out: UInt8[np.ndarray, "H W 3"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The RGB image; into `out` where its size fits, which saves a copy. EXIF rotation is not applied.

    Raises ShardDamaged for bytes that do not decode, UnsafeInput above 20 Mpx.
    """
    width, height = image_size(data, suffix, where)
    fits = out is not None and out.shape == (height, width, 3)
    if suffix == "jpg":
        try:
            image = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out if fits else None)
        except ValueError as error:
            raise ShardDamaged(f"{where}: the JPEG does not decode ({error})", where=where) from error
        return out if fits and out is not None else image
    decoded = _decode_png(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None or decoded.shape != (height, width, 3):
        raise ShardDamaged(f"{where}: the PNG does not decode", where=where)
    if fits and out is not None:
        out[:] = decoded
        return out
    return np.asarray(decoded, dtype=np.uint8)


def decode_jpeg_into(data: bytes, out: UInt8[np.ndarray, "H W 3"]) -> bool:
    """Decodes a JPEG of just the size of `out` into it; its header is read once, which `decode_image` does twice.

    False where that is not possible, `out` then being undefined: `decode_image` says what is wrong.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out).shape == out.shape
    except ValueError:
        return False


def decode_plane(data: bytes, dtype: type[np.uint8] | type[np.uint16], where: str) -> UInt[np.ndarray, "H W"]:
    """A grey PNG: depth in uint16 millimetres or segmentation ids in uint8.

    Raises ShardDamaged for another content, UnsafeInput above 20 Mpx.
    """
    width, height, depth, colour = _png_header(data, where)
    _check_size(width, height, where)
    decoded = _decode_png(data, cv2.IMREAD_UNCHANGED)
    wanted = (depth, colour) == (np.dtype(dtype).itemsize * 8, 0)
    if not wanted or decoded is None or decoded.shape != (height, width) or decoded.dtype != dtype:
        raise ShardDamaged(f"{where}: not a grey {np.dtype(dtype).name} PNG", where=where)
    return decoded


def decode_depth_mm(data: bytes, where: str) -> UInt[np.ndarray, "H W"]:
    """Depth (z) in whole millimetres, uint16, 0 where there is none: a sensor's files have 65535 there as well.

    Raises as `decode_plane`.
    """
    plane = decode_plane(data, np.uint16, where)
    return np.where(plane == _NO_DEPTH_EITHER, np.uint16(0), plane)


def _png_header(data: bytes, where: str) -> tuple[int, int, int, int]:
    """(width, height, bits, colour type)."""
    if len(data) < 33 or data[:8] != _PNG_MAGIC or data[12:16] != b"IHDR":
        raise ShardDamaged(f"{where}: not a PNG image", where=where)
    return struct.unpack(">IIBB", data[16:26])


def _check_size(width: int, height: int, where: str) -> None:
    if width < 1 or height < 1:
        raise ShardDamaged(f"{where}: an image of {width} × {height} pixels", where=where)
    if width * height > MAX_PIXELS:
        raise UnsafeInput(f"{where}: {width} × {height} pixels is over the limit of {MAX_PIXELS}", where=where)


def _decode_png(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
