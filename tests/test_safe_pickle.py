"""Hostile, damaged and honest pickles."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_aug.errors import PamAugError, SourceError, UnsafeInput
from pam_aug.safe_pickle import (
    ALLOWED_NUMPY,
    AllowedCall,
    AllowedState,
    load_joblib_pickle,
    load_npy_object,
    load_pickle,
)

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.array([], dtype=np.int16).reshape(0, 3),
    np.array(7, dtype=np.uint8),
    np.array([1, 2], dtype=">i4"),
    np.array(["ab", "c"]),
    np.array([True, False]),
    np.array([1 + 2j]),
]


class Evil:
    def __init__(self, call, *args):
        self.parts = (call, args)

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_scalars_and_containers_come_back(tmp_path, protocol):
    shared = ARRAYS[0]
    data = {"a": ARRAYS, "t": (1, "x", b"raw"), "s": np.float64(2.5), "i": np.int64(3), "shared": [shared, shared],
            "set": {1, 2}, "d": np.dtype("<f4")}  # fmt: skip
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol))
    back = load_pickle(tmp_path / "x.pkl")
    for got, want in zip(back["a"], ARRAYS, strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype.newbyteorder("=")
    assert back["t"] == (1, "x", b"raw")
    assert back["s"] == 2.5
    assert back["i"] == 3
    assert back["set"] == {1, 2}
    assert back["d"] == np.dtype("<f4")
    np.testing.assert_array_equal(back["shared"][1], shared)


def test_python2_strings_and_zero_dim_dictionaries(tmp_path):
    # "(dp0\nS'a'..." is what Python 2 wrote by default; a byte string of an array's contents is text there.
    (tmp_path / "old.pkl").write_bytes(b"(dp0\nS'pi\\xe9'\np1\nF3.5\ns.")
    assert load_pickle(tmp_path / "old.pkl") == {"pi\xe9": 3.5}


def test_the_forbidden_global_is_named_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    file = tmp_path / "evil.pkl"
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Evil(os.system, f"touch {marker}"), protocol))
        with pytest.raises(UnsafeInput, match=r"evil\.pkl.*(posix|nt)\.system"):
            load_pickle(file)
        with pytest.raises(UnsafeInput, match=r"evil\.pkl.*(posix|nt)\.system"):
            load_joblib_pickle(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    "victim",
    [
        Evil(eval, "1"),
        Evil(getattr, "x", "y"),
        Evil(np.load, "x"),
        Evil(np.frombuffer, b"x"),
        Evil(__import__, "os"),
        {"deep": [Evil(exec, "1")]},
        np.array([{"a": 1}], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        os.PathLike,
    ],
)
def test_everything_else_is_refused(tmp_path, victim):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(victim))
    with pytest.raises(UnsafeInput, match="nothing of it was run"):
        load_pickle(tmp_path / "x.pkl")


def test_allowed_objects_cannot_be_altered(tmp_path):
    # BUILD with a state meant to overwrite attributes of an object that the list hands out.
    file = tmp_path / "x.pkl"
    for module, name in [(b"_codecs", b"encode"), (b"numpy", b"dtype"), (b"numpy", b"ndarray")]:
        file.write_bytes(b"\x80\x02c" + module + b"\n" + name + b"\nN}X\x05\x00\x00\x00_callK\x01s\x86b.")
        with pytest.raises(PamAugError):
            load_pickle(file)
    assert isinstance(ALLOWED_NUMPY["_codecs", "encode"], AllowedCall)
    assert ALLOWED_NUMPY["_codecs", "encode"]("x", "latin1") == b"x"


def test_codecs_other_than_latin1_are_refused(tmp_path):
    import _codecs

    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Evil(_codecs.encode, "x", "rot13")))
    with pytest.raises(UnsafeInput, match="rot13"):
        load_pickle(tmp_path / "x.pkl")


def test_sizes_must_agree(tmp_path):
    data = pickle.dumps(np.zeros(4), protocol=2)
    assert data.count(b"K\x04") == 1
    (tmp_path / "x.pkl").write_bytes(data.replace(b"K\x04", b"K\x7f"))
    with pytest.raises(SourceError, match="bytes for an array of shape"):
        load_pickle(tmp_path / "x.pkl")
    with pytest.raises(UnsafeInput, match="larger than the 10 bytes"):
        load_pickle(tmp_path / "x.pkl", max_bytes=10)
    with pytest.raises(SourceError, match="cannot be read"):
        load_pickle(tmp_path / "absent.pkl")
    with pytest.raises(SourceError, match="cannot be read"):
        load_pickle(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_never_escapes_as_another_error(tmp_path_factory, data):
    whole = pickle.dumps({"a": ARRAYS, "b": [1, "x", (2.5, None)]}, protocol=data.draw(st.sampled_from([0, 2, 4, 5])))
    file = tmp_path_factory.getbasetemp() / "damaged.pkl"
    cut = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    if damaged and data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(damaged))
    for load in (load_pickle, load_joblib_pickle):
        try:
            load(file)
        except (SourceError, UnsafeInput):
            pass
        else:
            assert len(damaged) == len(whole)  # a truncated file never loads


def test_a_truncated_file_says_so(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(ARRAYS)[:-20])
    with pytest.raises(SourceError, match=r"x\.pkl.*truncated"):
        load_pickle(tmp_path / "x.pkl")


class NumpyArrayWrapper:
    """Under joblib's name, it makes streams like joblib's: header object, then raw bytes."""

    def __init__(self, array, padded):
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        self.__dict__ = {"subclass": np.ndarray, "shape": array.shape, "order": order, "dtype": array.dtype,
                         "allow_mmap": False}  # fmt: skip
        if padded:
            self.__dict__["numpy_array_alignment_bytes"] = 16


NumpyArrayWrapper.__module__ = "joblib.numpy_pickle"


class JoblibLike(pickle._Pickler):
    def __init__(self, file, protocol, padded):
        super().__init__(file, protocol)
        self.out, self.padded = file, padded

    def save(self, obj, save_persistent_id=True):
        if type(obj) is not np.ndarray:
            return super().save(obj, save_persistent_id)
        super().save(NumpyArrayWrapper(obj, self.padded))
        if self.proto >= 4:
            self.framer.commit_frame(force=True)
        if self.padded:
            pad = 16 - (self.out.tell() + 1) % 16
            self.out.write(struct.pack("B", pad) + b"\xff" * pad)
        self.out.write(obj.tobytes(order="A"))
        return None


def joblib_bytes(obj, protocol, padded, monkeypatch):
    import sys
    import types

    module = types.ModuleType("joblib.numpy_pickle")
    module.NumpyArrayWrapper = NumpyArrayWrapper
    monkeypatch.setitem(sys.modules, "joblib", types.ModuleType("joblib"))
    monkeypatch.setitem(sys.modules, "joblib.numpy_pickle", module)
    buffer = io.BytesIO()
    JoblibLike(buffer, protocol, padded).dump(obj)
    return buffer.getvalue()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_joblib_streams(tmp_path, monkeypatch, protocol, padded):
    data = {np.int64(3): {"pose": ARRAYS[0], "f": ARRAYS[1], "empty": ARRAYS[2], "after": 5}, "z": [ARRAYS[4], "end"]}
    (tmp_path / "x.pkl").write_bytes(joblib_bytes(data, protocol, padded, monkeypatch))
    back = load_joblib_pickle(tmp_path / "x.pkl")
    assert list(back) == [3, "z"]
    for key, want in [("pose", ARRAYS[0]), ("f", ARRAYS[1]), ("empty", ARRAYS[2])]:
        np.testing.assert_array_equal(back[3][key], want)
    np.testing.assert_array_equal(back["z"][0], [1, 2])
    assert back[3]["after"] == 5
    assert back["z"][1] == "end"


def test_joblib_refusals(tmp_path, monkeypatch):
    file = tmp_path / "x.pkl"
    file.write_bytes(joblib_bytes([np.array([None, "x"], dtype=object)], 3, False, monkeypatch))
    with pytest.raises(UnsafeInput, match="Python objects"):
        load_joblib_pickle(file)
    whole = joblib_bytes([np.zeros(100)], 3, False, monkeypatch)
    file.write_bytes(whole[:-300])
    with pytest.raises(SourceError, match="800 bytes of array contents expected"):
        load_joblib_pickle(file)
    file.write_bytes(b"\x78\x9c" + whole)
    with pytest.raises(SourceError, match="compressed joblib"):
        load_joblib_pickle(file)
    with pytest.raises(UnsafeInput, match="larger than"):
        load_joblib_pickle(file, max_bytes=50)


def test_foreign_state_must_be_a_dictionary(tmp_path):
    allow = {**ALLOWED_NUMPY, ("posix", "thing"): AllowedState}
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02cposix\nthing\n)\x81K\x05b.")
    with pytest.raises(UnsafeInput, match="state of type int"):
        load_pickle(tmp_path / "x.pkl", allow)


def test_saved_dictionaries(tmp_path):
    data = {"right_hand": {"trans": np.ones((4, 3), np.float32), "list": [ARRAYS[1]]}, "cup": 5}
    np.save(tmp_path / "x.npy", data, allow_pickle=True)
    back = load_npy_object(tmp_path / "x.npy")
    assert list(back) == ["right_hand", "cup"]
    np.testing.assert_array_equal(back["right_hand"]["trans"], np.ones((4, 3)))
    assert type(back["right_hand"]["list"][0]) is np.ndarray
    whole = (tmp_path / "x.npy").read_bytes()
    for damaged in (b"", whole[:20], whole[:-9], whole[: whole.index(b"\n") + 1]):
        (tmp_path / "x.npy").write_bytes(damaged)
        with pytest.raises(SourceError, match=r"x\.npy"):
            load_npy_object(tmp_path / "x.npy")
    marker = tmp_path / "ran"
    np.save(tmp_path / "x.npy", {"a": Evil(os.system, f"touch {marker}")}, allow_pickle=True)
    with pytest.raises(UnsafeInput, match="system"):
        load_npy_object(tmp_path / "x.npy")
    assert not marker.exists()
    np.save(tmp_path / "x.npy", {"a": np.array([None, 1], dtype=object)}, allow_pickle=True)
    with pytest.raises(UnsafeInput, match=r"objects of shape \(2,\)"):
        load_npy_object(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(SourceError, match="expected one saved dictionary"):
        load_npy_object(tmp_path / "x.npy")
