"""Torch tensors out of a foreign pickle, as numpy arrays and without torch.

`pickle.dump` of a tensor writes a call of `torch._utils._rebuild_tensor_v2` on a storage, and the storage as the bytes
that `torch.save` wrote before it had zip files: four small pickles (magic number, protocol, byte order, the storage's
type and key), then its element count and its elements. Those bytes are a pickle inside a pickle, so they get an
allow-list of their own, that of the storage types. They are only looked at when a tensor's numbers are asked for:
opening a sequence does not pay for the body model's 100,000 tensors, and what is never asked for is never parsed.
"""

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pam_aug.errors import SourceError, UnsafeInput
from pam_aug.safe_pickle import ALLOWED_NUMPY, AllowedCall, load_pickle

__all__ = ["ALLOWED_TORCH", "PickledTensor", "load_tensor_pickle", "stack_arrays", "to_array"]

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's serialisation before zip files
_PROTOCOL = 1001
_STORAGE_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
_MAX_ELEMENTS = 1 << 24


class _StorageType:
    """What a storage class becomes: an element type, which a pickle can neither call nor alter."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)

    def __setstate__(self, _state: object) -> None:
        raise UnsafeInput("an instruction that alters a storage type")


class _StorageUnpickler(pickle.Unpickler):
    """Reads one of the small pickles; storage types are the only globals it knows."""

    def find_class(self, module_name: str, global_name: str, /) -> _StorageType:
        if module_name != "torch" or global_name not in _STORAGE_TYPES:
            raise UnsafeInput(f"the global {module_name}.{global_name} inside a tensor's storage")
        return _StorageType(_STORAGE_TYPES[global_name])

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype, int]:
        kind, storage_type, key, _device, count, view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or view is not None:
            raise ValueError(f"a persistent id {kind!r} that is no plain storage")
        return str(key), storage_type.dtype, int(count)


@dataclass(frozen=True, slots=True)
class _Form:
    """What `torch.save` wrote around a storage's key and elements; storages of one type and length share it."""

    before: bytes
    between: bytes
    after: bytes
    key_bytes: int
    dtype: np.dtype

    def elements(self, raw: bytes) -> np.ndarray | None:
        """The elements of a storage of this form; None for one of another."""
        first = len(self.before)
        second = first + self.key_bytes + len(self.between)
        end = second + self.key_bytes + len(self.after)
        key = raw[first : first + self.key_bytes]
        same = raw.startswith(self.before) and raw.startswith(self.between, first + self.key_bytes)
        if same and key.isdigit() and raw.startswith(key + self.after, second):
            return np.frombuffer(raw, self.dtype, offset=end)
        return None


def _parse_storage(raw: bytes) -> np.ndarray:
    """The elements of a storage. Its four pickles are only unpickled for the first of a form."""
    form = _FORMS.get(len(raw))
    values = form.elements(raw) if form else None
    if values is None:
        values, key = _unpickle_storage(raw)
        _FORMS.pop(len(raw), None)
        head = len(raw) - values.nbytes
        parts = raw[:head].split(key.encode())
        if key.isdigit() and len(parts) == 3 and len(_FORMS) < _MAX_FORMS:
            before, between, after = parts
            _FORMS[len(raw)] = _Form(before, between, after, len(key), values.dtype)
    return values


_FORMS: dict[int, _Form] = {}
_MAX_FORMS = 64


def _unpickle_storage(raw: bytes) -> tuple[np.ndarray, str]:
    stream = io.BytesIO(raw)

    def small() -> Any:
        return _StorageUnpickler(stream).load()

    if small() != _MAGIC or small() != _PROTOCOL:
        raise ValueError("not a storage as torch pickles it")
    if small().get("little_endian") is not True:
        raise ValueError("a storage of a big-endian machine")
    key, dtype, count = small()
    if small() != [key]:
        raise ValueError("a storage whose key list does not name it")
    written = int.from_bytes(stream.read(8), "little")
    data = stream.read()
    if written != count or len(data) != count * dtype.itemsize:
        raise ValueError(f"a storage of {count} elements that holds {len(data)} bytes")
    return np.frombuffer(data, dtype), key


class _Storage:
    """The bytes of a storage, parsed on first use; tensors that share it share the parsed elements."""

    __slots__ = ("_raw", "_values")

    def __init__(self, raw: Any) -> None:
        if not isinstance(raw, bytes):
            raise ValueError(f"a storage of type {type(raw).__name__}")
        self._raw: bytes | None = raw
        self._values: np.ndarray | None = None

    def __setstate__(self, _state: object) -> None:
        raise ValueError("an instruction that alters a storage")

    def values(self) -> np.ndarray:
        if self._values is None:
            assert self._raw is not None
            self._values, self._raw = _parse_storage(self._raw), None
        return self._values


class PickledTensor:
    """A tensor as a pickle describes it: storage, offset, size, stride. `array` makes the numbers."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Any) -> None:
        self._parts = parts  # a sequence has a hundred thousand; they are looked at when they are used

    def __setstate__(self, _state: object) -> None:
        raise ValueError("an instruction that alters a tensor")

    def array(self) -> np.ndarray:
        """The tensor's elements, copied. Raises UnsafeInput or, for damaged bytes, any of `pickle`'s errors."""
        storage, offset, size, stride = self._parts[:4]
        size, stride = tuple(size), tuple(stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 8:
            raise ValueError("a tensor without a storage of its own, or with size and stride of different lengths")
        if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) or math.prod(size) > _MAX_ELEMENTS:
            raise ValueError(f"a tensor of size {size}, stride {stride} at {offset}")
        values = storage.values()
        if 0 in size:
            return np.zeros(size, values.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if last >= len(values):
            raise ValueError(f"a tensor that reaches element {last} of a storage of {len(values)}")
        if offset == 0 and math.prod(size) == len(values) and _is_contiguous(size, stride):
            return values.reshape(size).copy()
        return np.lib.stride_tricks.as_strided(
            values[offset:], size, tuple(step * values.itemsize for step in stride)
        ).copy()


def _is_contiguous(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for n, given in zip(reversed(size), reversed(stride)):
        if n != 1 and given != step:
            return False
        step *= n
    return True


def _empty_mapping(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict with contents")
    return {}  # a tensor's backward hooks: always empty


ALLOWED_TORCH: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        **ALLOWED_NUMPY,
        ("torch._utils", "_rebuild_tensor_v2"): AllowedCall(PickledTensor),
        ("torch.storage", "_load_from_bytes"): AllowedCall(_Storage),
        ("collections", "OrderedDict"): AllowedCall(_empty_mapping),
    }
)
"""Allow-list for containers of numeric numpy arrays and of torch tensors; the latter become `PickledTensor`s."""


def load_tensor_pickle(path: str | Path) -> Any:
    """Load a pickle of containers of numpy arrays and torch tensors, which stay `PickledTensor`s until asked for.

    Raises UnsafeInput naming the file and what is forbidden, or SourceError for a damaged file.
    """
    return load_pickle(path, ALLOWED_TORCH)


def to_array(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A pickled tensor, an array or nested lists as a finite float64 array of `shape`.

    Raises SourceError beginning with `where`, or UnsafeInput for a tensor whose bytes hold something forbidden.
    """
    try:
        array = np.asarray(value.array() if isinstance(value, PickledTensor) else value, np.float64)
    except UnsafeInput as refused:
        raise UnsafeInput(
            f"{where}: {refused}. Nothing of it was run; get the file from its official source."
        ) from None
    except Exception as error:  # a broken stream makes `pickle` raise a dozen types
        raise SourceError(f"{where}: not a readable array ({type(error).__name__}: {error})") from error
    if array.shape != shape:
        raise SourceError(f"{where}: shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise SourceError(f"{where}: holds a NaN or an infinity")
    return array


def stack_arrays(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """All of `values` as one finite float64 array (n, *shape), or None where not all of them are such arrays.

    It says nothing about what is wrong: `to_array` on each does.
    """
    try:
        arrays = [v.array() if isinstance(v, PickledTensor) else v for v in values]
        if not all(isinstance(a, np.ndarray) and a.shape == shape and a.dtype.kind in "fiu" for a in arrays):
            return None
        stacked = np.array(arrays, np.float64).reshape(len(arrays), *shape)
    except Exception:  # UnsafeInput too: it comes again, and with its name, when the values are taken one by one
        return None
    return stacked if np.isfinite(stacked).all() else None
