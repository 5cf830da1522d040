"""Read foreign pickles without running what is in them.

A pickle names functions to call while it loads. The readers here hand out only the names in an allow-list, and each of
those is an object of ours that can do nothing but build arrays: a name outside the list stops the load with
`UnsafeInput`, before anything ran. Damaged files end in `SourceError`, never in a raw traceback from inside `pickle`.

`load_pickle` uses the C unpickler. `load_joblib_pickle` reads what `joblib.dump(..., compress=0)` writes: there the raw
bytes of an array follow its header inside the stream, so the pure-Python unpickler has to step aside for them.
"""

import io
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pam_aug.errors import SourceError, UnsafeInput

__all__ = ["ALLOWED_NUMPY", "AllowedCall", "AllowedState", "load_joblib_pickle", "load_npy_object", "load_pickle"]

DEFAULT_MAX_BYTES = 1 << 30
# Numbers, booleans and plain text. No objects ("O", pickles inside pickles), no records ("V"), no dates.
_PLAIN_KINDS = "biufcSU"
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x04\x22M")


class _Refused(Exception):
    """Something in the stream is not allowed; becomes `UnsafeInput` with the file's name."""


class AllowedCall:
    """A function that a pickle may call. Unlike a bare function it cannot be altered by a BUILD instruction."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> None:
        raise _Refused("an instruction that alters an allowed function")


class AllowedState:
    """Stands for a foreign class: keeps the instance's state as a dictionary and has no behaviour of its own."""

    def __new__(cls, *_args: Any) -> "AllowedState":
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *_args: Any) -> None:
        self.state: dict[str, Any]

    # Defining it also guards the class itself: BUILD on a class finds this function and fails for want of `self`.
    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if part is None:
                continue
            if not isinstance(part, dict):
                raise _Refused(f"a state of type {type(part).__name__} where a dictionary belongs")
            self.state.update({str(key): _plain(value) for key, value in part.items()})


class _Dtype:
    """What `numpy.dtype` becomes while loading: a plain element type whose byte order alone can be set."""

    __slots__ = ("dtype",)

    def __new__(cls, *args: Any) -> "_Dtype":
        self = object.__new__(cls)
        code = args[0] if args else ""
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or code[:1] == "O":
            raise _Refused(f"an array of Python objects (dtype {code!r})")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in _PLAIN_KINDS:
            raise _Refused(f"an array of dtype {code!r}")
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(item is not None for item in state[2:5]):
            raise _Refused("an array with a structured dtype")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


def _element_type(value: Any) -> np.dtype:
    if not isinstance(value, _Dtype):
        raise ValueError("an array without an element type")
    return value.dtype


def _array_from_bytes(raw: Any, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    """The array that `raw` holds, copied; the byte count must be exact."""
    if isinstance(raw, str):  # a Python 2 byte string read as latin1
        raw = raw.encode("latin1")
    if not isinstance(raw, (bytes, bytearray, memoryview, pickle.PickleBuffer)):
        raise _Refused(f"array contents of type {type(raw).__name__}")
    shape = tuple(int(n) for n in shape)
    if any(n < 0 for n in shape):
        raise ValueError(f"array shape {shape}")
    raw = memoryview(raw).cast("B")
    if raw.nbytes != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{raw.nbytes} bytes for an array of shape {shape} and type {dtype}")
    array = np.frombuffer(raw, dtype=dtype) if math.prod(shape) and dtype.itemsize else np.zeros(0, dtype)
    array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return array.astype(dtype.newbyteorder("="), order="K", copy=True)


class _ObjectDtype:
    """The element type of the single 0-d object array that `load_npy_object` opens."""

    __slots__ = ()

    def __setstate__(self, _state: Any) -> None:
        pass


class _Array:
    """What `numpy.ndarray` becomes while loading; `_plain` swaps it for the real array afterwards."""

    __slots__ = ("value",)
    value: Any

    def __new__(cls, *_args: Any) -> "_Array":
        self = object.__new__(cls)
        self.value = np.zeros(0)
        return self

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if isinstance(dtype, _ObjectDtype):  # only where `load_npy_object` hands it out
            if tuple(shape) or not isinstance(raw, list) or len(raw) != 1:
                raise _Refused(f"an array of Python objects of shape {tuple(shape)}")
            self.value = raw[0]
            return
        self.value = _array_from_bytes(raw, _element_type(dtype), shape, bool(fortran))


def _scalar(dtype: Any, raw: Any = None) -> Any:
    return _array_from_bytes(raw, _element_type(dtype), (1,), False)[0]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return _array_from_bytes(raw, _element_type(dtype), shape, order == "F")


def _encode_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or str(encoding).lower().replace("-", "") not in ("latin1", "iso88591"):
        raise _Refused(f"a conversion with the codec {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""  # how protocols 0 to 2 write an empty byte string


def _new_instance(cls: Any, base: Any = object, _state: Any = None) -> Any:
    # What protocols 0 and 1 call to make an instance; only our own stand-ins can be asked for.
    if base is not object or not (isinstance(cls, type) and issubclass(cls, AllowedState)):
        raise _Refused("an instance of a class that is not allowed")
    return cls()


def _numpy_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): AllowedCall(_encode_latin1),
    }
    # The private modules were renamed in numpy 2.0; files carry whichever name wrote them.
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = AllowedCall(_Array)
        names[f"{core}.multiarray", "scalar"] = AllowedCall(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = AllowedCall(_from_buffer)
    for module in ("__builtin__", "builtins"):
        names[module, "set"] = AllowedCall(lambda items=(): set(items))
        names[module, "object"] = object
        names[module, "bytes"] = AllowedCall(_empty_bytes)
    for module in ("copy_reg", "copyreg"):
        names[module, "_reconstructor"] = AllowedCall(_new_instance)
    return names


ALLOWED_NUMPY: Mapping[tuple[str, str], Any] = MappingProxyType(_numpy_names())
"""Allow-list for plain containers of numeric numpy arrays, written by any numpy or Python version."""


def _plain(root: Any) -> Any:
    """Swap the loading stand-ins inside nested containers for the arrays they hold."""
    done: dict[int, Any] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, _Array):
            return visit(value.value)
        if isinstance(value, _Dtype):
            return value.dtype
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in done:  # shared and cyclic containers are walked once
            return done[id(value)]
        done[id(value)] = value
        if isinstance(value, dict):
            for key in list(value):
                value[key] = visit(value[key])
        elif isinstance(value, list):
            value[:] = [visit(item) for item in value]
        else:
            done[id(value)] = value = tuple(visit(item) for item in value)
        return value

    return visit(root)


def _look_up(allow: Mapping[tuple[str, str], Any], module: str, name: str) -> Any:
    try:
        return allow[module, name]
    except KeyError:
        raise _Refused(f"the global {module}.{name}") from None


class _AllowListUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, allow: Mapping[tuple[str, str], Any], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._allow = allow

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _look_up(self._allow, module_name, global_name)


class _ArrayHeader(AllowedState):
    """Stands for joblib's NumpyArrayWrapper: the array's bytes follow in the stream."""


_PurePythonUnpickler: Any = pickle._Unpickler  # not in the type stubs


class _JoblibUnpickler(_PurePythonUnpickler):
    dispatch = dict(_PurePythonUnpickler.dispatch)  # noqa: RUF012

    def __init__(self, file: io.BytesIO, allow: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self._bytes = file
        self._allow = allow

    def find_class(self, module: str, name: str) -> Any:
        return _look_up(self._allow, module, name)

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _ArrayHeader):
            self.stack[-1] = self._read_array(self.stack[-1].state)

    dispatch[pickle.BUILD[0]] = load_build

    def _read_array(self, header: dict[str, Any]) -> np.ndarray:
        dtype = header["dtype"]
        if not isinstance(dtype, np.dtype):
            raise ValueError("an array header without an element type")
        if header.get("subclass") not in (_Array, None):
            raise _Refused("an array of a class other than numpy.ndarray")
        shape = tuple(int(n) for n in header["shape"])
        if header.get("numpy_array_alignment_bytes") is not None:  # joblib 1.2 and later pad up to an aligned offset
            self._read_exactly(self._read_exactly(1)[0])
        return _array_from_bytes(
            self._read_exactly(math.prod(shape) * dtype.itemsize), dtype, shape, header.get("order") == "F"
        )

    def _read_exactly(self, count: int) -> bytes:
        data = self._bytes.read(count) if count >= 0 else b""
        if len(data) != count:
            raise EOFError(f"{count} bytes of array contents expected, {len(data)} left in the file")
        return data


def _read_capped(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}). Check the path.") from error
    if len(data) > max_bytes:
        raise UnsafeInput(f"{path}: larger than the {max_bytes} bytes that are read from such a file.")
    return data


def _load(path: Path, unpickler: Any) -> Any:
    try:
        return _plain(unpickler.load())
    except _Refused as refused:
        raise UnsafeInput(
            f"{path}: the pickle holds {refused}, which is not on the allow-list; nothing of it was run. "
            "Get the file from its official source, or convert it to .npz where you trust it."
        ) from None
    # A broken stream makes `pickle` raise a dozen types, TypeError and MemoryError among them.
    except Exception as error:
        raise SourceError(
            f"{path}: not a readable pickle ({type(error).__name__}: {error}). "
            "The file is truncated, damaged or of another format; copy it again."
        ) from error


def load_pickle(
    path: str | Path,
    allow: Mapping[tuple[str, str], Any] = ALLOWED_NUMPY,
    *,
    encoding: str = "latin1",
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Any:
    """Load a pickle whose globals are all in `allow`, a map of (module, name) to the object handed out for it.

    Hand out `AllowedState` subclasses and `AllowedCall`s, whose behaviour a pickle cannot alter. `encoding` is for byte
    strings written by Python 2. Arrays with Python objects in them are refused.

    Raises `UnsafeInput` naming the file and the global, or `SourceError` for an unreadable or damaged file.
    """
    path = Path(path)
    return _load(path, _AllowListUnpickler(io.BytesIO(_read_capped(path, max_bytes)), allow, encoding))


def load_joblib_pickle(path: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Load an uncompressed joblib file of plain containers and numeric arrays, without joblib.

    Raises `UnsafeInput` or `SourceError` as `load_pickle` does.
    """
    path = Path(path)
    data = _read_capped(path, max_bytes)
    if data.startswith(_COMPRESSED_MAGIC):
        raise SourceError(f"{path}: a compressed joblib file. Save it again with joblib.dump(..., compress=0).")
    allow = {**ALLOWED_NUMPY, ("joblib.numpy_pickle", "NumpyArrayWrapper"): _ArrayHeader}
    return _load(path, _JoblibUnpickler(io.BytesIO(data), allow))


def load_npy_object(path: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Load the one object in an `.npy` that `numpy.save` wrote of a dictionary (or other container) of numeric arrays.

    Such a file is a 0-d array of Python objects, that is, a pickle behind a header. Raises `UnsafeInput` or
    `SourceError` as `load_pickle` does.
    """
    path = Path(path)
    file = io.BytesIO(_read_capped(path, max_bytes))
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise SourceError(f"{path}: not an .npy file ({error}). Copy it again.") from error
    if shape != () or dtype != np.dtype("O"):
        raise SourceError(f"{path}: holds an array {dtype} of shape {shape}, expected one saved dictionary.")
    numpy_dtype = AllowedCall(lambda *args: _ObjectDtype() if args[:1] in (("O",), ("O8",)) else _Dtype(*args))
    return _load(path, _AllowListUnpickler(file, {**ALLOWED_NUMPY, ("numpy", "dtype"): numpy_dtype}, "latin1"))
