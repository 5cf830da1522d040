"""Where the members of a shard lie: our own USTAR scan, of regular members with known suffixes only."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pam_aug.errors import SchemaError, ShardDamaged, UnsafeInput
from pam_aug.schema import check_key
from pam_aug.shards.images import Suffix
from pam_aug.shards.writer import EXTRAS

__all__ = ["MAX_MEMBERS", "MAX_MEMBER_BYTES", "Members", "scan_tar"]

MAX_MEMBER_BYTES = 256 << 20
MAX_MEMBERS = 1 << 16
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_OCTAL = re.compile(rb"[0-7]{1,12}")
_SUFFIXES = ("jpg", "png", "json", *EXTRAS)


@dataclass(slots=True)
class Members:
    """Offset and size of each member of one sample."""

    key: str
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def suffix(self) -> Suffix:
        return "jpg" if "jpg" in self.spans else "png"


def scan_tar(read: Callable[[int, int], bytes], size_bytes: int, path: str) -> list[Members]:
    """The samples of a shard in the order of the file: `read(offset, size)` gives its bytes, `path` is for messages.

    Raises ShardDamaged where the structure is not whole, UnsafeInput for what no shard of ours holds.
    """
    samples: list[Members] = []
    seen: set[str] = set()
    offset = count = 0
    while True:
        header = read(offset, _BLOCK) if offset + _BLOCK <= size_bytes else b""
        if len(header) < _BLOCK:
            raise ShardDamaged(f"{path}: ends at byte {size_bytes} without an end mark", path=path)
        if header == _ZEROS:
            break
        count += 1
        if count > MAX_MEMBERS:
            raise UnsafeInput(f"{path}: more than {MAX_MEMBERS} members", path=path)
        size, kind = _parse(header, offset, path)
        start = offset + _BLOCK
        offset = start + size + -size % _BLOCK
        if offset > size_bytes:
            raise ShardDamaged(f"{path}: ends inside the member at byte {start}", path=path)
        if kind in b"xg":  # PAX headers of foreign writers carry times and owners, which nobody reads
            continue
        key, suffix = _name(header, path)
        if not samples or samples[-1].key != key:
            if key in seen:
                raise ShardDamaged(f"{path}: the key {key} stands in it twice", path=path, key=key)
            _check_complete(samples, path)
            seen.add(key)
            samples.append(Members(key))
        if suffix in samples[-1].spans:
            raise ShardDamaged(f"{path}:{key}.{suffix} stands in it twice", path=path, key=key)
        samples[-1].spans[suffix] = (start, size)
    _check_complete(samples, path)
    rest = size_bytes - offset
    if rest < 2 * _BLOCK or rest > 1 << 20 or read(offset, rest).strip(b"\0"):
        raise ShardDamaged(f"{path}: no proper end of the archive at byte {offset}", path=path)
    return samples


def _check_complete(samples: list[Members], path: str) -> None:
    spans = samples[-1].spans if samples else {}
    if samples and ("json" not in spans or ("jpg" in spans) == ("png" in spans)):
        key, has = samples[-1].key, sorted(spans)
        raise ShardDamaged(f"{path}:{key}: has {has}; a sample is one image and its json", path=path, key=key)


def _parse(header: bytes, offset: int, path: str) -> tuple[int, int]:
    """(size, type flag) of a member's header, after its checksum."""
    where = f"{path}: header at byte {offset}"
    if header[257:263] not in (b"ustar\0", b"ustar "):
        what = "compressed" if header[:2] in (b"\x1f\x8b", b"BZ") or header[:4] == b"\xfd7zX" else "not USTAR"
        raise UnsafeInput(f"{where}: {what}; shards are plain, uncompressed tar files", path=path)
    stored = header[148:156].strip(b" \0")
    if not _OCTAL.fullmatch(stored) or int(stored, 8) != sum(header) - sum(header[148:156]) + 8 * 32:
        raise ShardDamaged(f"{where}: wrong checksum", path=path)
    text = header[124:136].strip(b" \0")
    if not _OCTAL.fullmatch(text):
        raise UnsafeInput(f"{where}: the size field is no octal number", path=path)
    size, kind = int(text, 8), header[156]
    if size > MAX_MEMBER_BYTES:
        raise UnsafeInput(f"{where}: a member of {size} bytes is over the limit", path=path)
    if kind not in b"0\0xg":
        raise UnsafeInput(f"{where}: type {chr(kind)!r}; shards hold regular files only", path=path)
    return size, kind


def _name(header: bytes, path: str) -> tuple[str, str]:
    """(key, suffix) of a member's header."""
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    full = (prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name).decode("ascii", "replace")
    key, _, suffix = full.partition(".")
    if full.startswith("/") or ".." in full.split("/") or "\\" in full:
        raise UnsafeInput(f"{path}: the member name {full!r} leaves its folder", path=path)
    if suffix not in _SUFFIXES:
        raise UnsafeInput(f"{path}: the member {full!r} is none of {', '.join(_SUFFIXES)}", path=path, member=full)
    try:
        check_key(key)
    except SchemaError as error:
        raise ShardDamaged(f"{path}: the member {full!r}: {error}", path=path) from error
    return key, suffix
