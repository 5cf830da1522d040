"""Files that must be refused: tars that lie, links, pickles that would run, headers without their data."""

import io
import os
import pickle
import tarfile
from pathlib import Path

from made_shards import make_jpeg


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], fmt: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=fmt) as tar:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("payload-ran",))


KEY = "demo/s1/take/cam0/000000"


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{KEY}.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def patched(path: Path, offset: int, data: bytes) -> Path:
    """The tar with `data` in its first header, and the checksum made right again."""
    raw = bytearray(tar_of(path, (f"{KEY}.jpg", make_jpeg(0))).read_bytes())
    raw[offset : offset + len(data)] = data
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    return path


HOSTILE = {
    "symlink": lambda p: tar_of(p, (link(tarfile.SYMTYPE), b"")),
    "hard link": lambda p: tar_of(p, (link(tarfile.LNKTYPE), b"")),
    "device": lambda p: tar_of(p, (link(tarfile.CHRTYPE), b"")),
    "parent": lambda p: tar_of(p, ("demo/../../s1/cam0/0.jpg", b"x")),
    "absolute": lambda p: tar_of(p, ("/demo/s1/take/cam0/0.jpg", b"x")),
    "pickle": lambda p: tar_of(p, (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.pyd", pickle.dumps(Payload()))),
    "huge size": lambda p: patched(p, 124, b"77777777777\0"),
    "negative size": lambda p: patched(p, 124, b"\xff" * 12),
    "signed size": lambda p: patched(p, 124, b"-0000000512\0"),
    "GNU long name": lambda p: tar_of(p, ("/".join("a" * 60 for _ in range(3)) + ".jpg", b"x"), fmt=tarfile.GNU_FORMAT),
    "gzip": lambda p: p.write_bytes(__import__("gzip").compress(bytes(1 << 20))),
    "million members": lambda p: p.write_bytes(tarfile.TarInfo(f"{KEY}.jpg").tobuf(tarfile.USTAR_FORMAT) * 200_000),
}


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    ihdr = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + ihdr + bytes(4)
