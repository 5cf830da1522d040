"""Shards: deterministic bytes, all-or-nothing commits, safe reading, and plain WebDataset compatibility."""

import errno
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
import simplejpeg

from pam_aug.errors import PamAugError, SchemaError, ShardDamaged, StorageError, UnsafeInput
from pam_aug.schema import Camera, Hand, Sample, Source, make_key, sample_from_json, sample_to_json
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.writer import ShardWriter, index_path, is_committed, marker_path, shard_name

SIZE = 32


def make_sample(
    number: int, *, synthetic: bool = False, hands: int = 1, size: int = SIZE, sequence: str = "take"
) -> Sample:
    rng = np.random.default_rng(number)
    sides = ("right", "left")
    key = make_key("demo", "s1", sequence, "cam0", f"{number:06d}") + ("@03" if synthetic else "")
    return Sample(
        key=key,
        camera=Camera(size, size, np.array([[50, 0, size / 2], [0, 50, size / 2], [0, 0, 1]]), np.eye(4)),
        hands=tuple(
            Hand(
                sides[(number + h) % 2],
                "open_hand",
                rng.normal(0, 0.1, (21, 3)) + np.array([0, 0, 0.6]),
                rng.uniform(4, size - 5, (21, 2)),
                np.ones(21, bool),
                hand_pose=rng.normal(0, 0.3, 45),
                betas=rng.normal(0, 1, 10),
            )
            for h in range(hands)
        ),
        objects=(),
        source=Source("demo", f"frame {number}", "CC0", "test"),
        synthetic=synthetic,
    )


def make_jpeg(number: int, size: int = SIZE) -> bytes:
    image = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(cv2.resize(image, (size, size)), quality=90)


def write_shard(path: Path, numbers: range, *, synthetic: bool = False, hands: int = 1, size: int = SIZE) -> Path:
    with ShardWriter(path, "syn" if synthetic else "real") as shard:
        for n in numbers:
            shard.add(make_sample(n, synthetic=synthetic, hands=hands, size=size), make_jpeg(n, size))
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --------------------------------------------------------------------------------------------------------- round trip


def test_round_trip_is_exact_with_extras(tmp_path):
    depth = cv2.imencode(".png", np.full((SIZE, SIZE), 600, np.uint16))[1].tobytes()
    path = tmp_path / shard_name("real", 12)
    with ShardWriter(path, "real") as shard:
        for n in range(3):
            shard.add(make_sample(n, hands=1 + n % 2), make_jpeg(n), extras={"depth.png": depth})
        shard.count("failed", 2)
    assert path.name == "real-00012.tar"
    assert leftovers(tmp_path) == ["real-00012.idx", "real-00012.json", "real-00012.tar"]
    assert shard.marker["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shard.marker["counts"] == {"failed": 2, "hands": 4, "samples": 3}
    reader = ShardReader(path)
    assert len(reader) == 3
    assert reader.keys == [make_sample(n).key for n in range(3)] == shard.marker["keys"]
    for n in range(3):
        assert reader.sample(n) == make_sample(n, hands=1 + n % 2)
        assert reader.image_bytes(n) == make_jpeg(n)
        assert reader.extra(n, "depth.png") == depth
        np.testing.assert_array_equal(reader.image(n), simplejpeg.decode_jpeg(make_jpeg(n)))
    with pytest.raises(SchemaError, match=r"seg\.png"):
        reader.extra(0, "seg.png")


def test_index_equals_what_the_tar_alone_gives(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(5), hands=2)
    reader = ShardReader(path)
    assert reader.has_index
    assert reader.rows.tobytes() == reader.derive_rows().tobytes()
    assert len(reader.rows) == 10
    row = reader.rows[5]
    sample = reader.sample(2)
    assert (row["key"].decode(), row["hand"], row["sample"]) == (sample.key, 1, 2)
    np.testing.assert_array_equal(row["joints_cam_m"], sample.hands[1].joints_cam_m)
    assert reader.row_image_bytes(row) == make_jpeg(2)
    index_path(path).unlink()
    again = ShardReader(path)
    assert not again.has_index
    assert again.rows.tobytes() == reader.rows.tobytes()


def test_same_samples_give_the_same_bytes(tmp_path):
    a = write_shard(tmp_path / "a" / "real-00000.tar", range(4))
    time.sleep(0.01)
    b = write_shard(tmp_path / "b" / "real-00000.tar", range(4))
    assert a.read_bytes() == b.read_bytes()
    assert index_path(a).read_bytes() == index_path(b).read_bytes()


def test_png_image_and_empty_shard(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    with ShardWriter(tmp_path / "real-00000.tar", "real") as shard:
        shard.add(make_sample(0), png, "png")
    np.testing.assert_array_equal(ShardReader(shard.path).image(0), pixels)
    with ShardWriter(tmp_path / "syn-00000.tar", "syn") as shard:
        pass
    assert is_committed(shard.path)
    empty = ShardReader(shard.path)
    assert len(empty) == 0
    assert len(empty.rows) == 0


def test_a_shard_is_to_the_byte_what_the_standard_library_writes(tmp_path):
    made = io.BytesIO()
    with (
        ShardWriter(tmp_path / "real-00000.tar", "real") as shard,
        tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as peer,
    ):
        for number in range(3):
            sample, image = make_sample(number, hands=2), make_jpeg(number)
            shard.add(sample, image)
            for name, data in (("jpg", image), ("json", sample_to_json(sample))):
                info = tarfile.TarInfo(f"{sample.key}.{name}")
                info.size, info.mtime, info.mode = len(data), 0, 0o444
                peer.addfile(info, io.BytesIO(data))
    assert made.getvalue() == shard.path.read_bytes()
    assert shard.marker["image_sha256"] == [hashlib.sha256(make_jpeg(n)).hexdigest() for n in range(3)]


def test_long_keys_fit_a_plain_ustar_header(tmp_path):
    key = "/".join(["d" * 20, "s" * 20, "q" * 60, "c" * 13, "f" * 60]) + "@07"
    assert len(key) == 180
    sample = make_sample(0, synthetic=True)
    long = sample_from_json(sample_to_json(sample).replace(sample.key.encode(), key.encode()))
    with ShardWriter(tmp_path / "syn-00000.tar", "syn") as shard:
        shard.add(long, make_jpeg(0), extras={"depth.png": b"d"})
    assert ShardReader(shard.path).keys == [key]
    with tarfile.open(shard.path) as tar:
        assert [m.name for m in tar] == [f"{key}.jpg", f"{key}.json", f"{key}.depth.png"]
        assert all(not m.pax_headers and m.mtime == 0 for m in tar)
    # No slash of this key leaves at most 155 bytes before and 100 behind it.
    bad = "/".join(["d" * 40, "s" * 40, "q" * 76, "c" * 10, "f" * 10])
    unfit = sample_from_json(sample_to_json(sample).replace(sample.key.encode(), bad.encode()))
    with pytest.raises(SchemaError, match="shorten"), ShardWriter(tmp_path / "syn-00001.tar", "syn") as shard:
        shard.add(unfit, make_jpeg(0))


def test_plain_webdataset_reads_the_same_samples(tmp_path):
    import webdataset

    path = write_shard(tmp_path / "real-00000.tar", range(4))
    found = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [f["__key__"] for f in found] == [make_sample(n).key for n in range(4)]
    for n, f in enumerate(found):
        assert f["jpg"] == make_jpeg(n)
        assert sample_from_json(f["json"]) == make_sample(n)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("case", ["duplicate", "kind", "suffix", "extras", "uneven", "size", "not an image"])
def test_writer_refuses_a_sample_that_does_not_belong(tmp_path, case):
    with (  # noqa: PT012
        pytest.raises((SchemaError, ShardDamaged)),
        ShardWriter(tmp_path / "real-00000.tar", "real") as shard,
    ):
        shard.add(make_sample(0), make_jpeg(0))
        if case == "duplicate":
            shard.add(make_sample(0), make_jpeg(1))
        elif case == "kind":
            shard.add(make_sample(1, synthetic=True), make_jpeg(1))
        elif case == "suffix":
            shard.add(make_sample(1), make_jpeg(1), "webp")  # type: ignore[arg-type]
        elif case == "extras":
            shard.add(make_sample(1), make_jpeg(1), extras={"pickle": b""})
        elif case == "uneven":
            shard.add(make_sample(1), make_jpeg(1), extras={"seg.png": b""})
        elif case == "size":
            shard.add(make_sample(1), make_jpeg(1, 40))
        else:
            shard.add(make_sample(1), b"nothing")
    assert leftovers(tmp_path) == []


def test_an_exception_at_each_sample_commits_nothing(tmp_path):
    for stop in range(5):
        with (  # noqa: PT012
            pytest.raises(RuntimeError, match="stop"),
            ShardWriter(tmp_path / "real-00000.tar", "real") as shard,
        ):
            for n in range(5):
                if n == stop:
                    raise RuntimeError("stop")
                shard.add(make_sample(n), make_jpeg(n))
        assert leftovers(tmp_path) == []
        assert not is_committed(shard.path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_failing_disk_is_a_storage_error_without_a_marker(tmp_path, monkeypatch, call, code, at):
    real, calls = getattr(os, call), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > at:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(StorageError) as caught, ShardWriter(tmp_path / "real-00000.tar", "real") as shard:
        shard.add(make_sample(0), make_jpeg(0))
    assert caught.value.errno == code
    assert "real-00000" in str(caught.value)
    assert not is_committed(tmp_path / "real-00000.tar")
    assert not [n for n in leftovers(tmp_path) if n.startswith(".tmp-")]
    monkeypatch.undo()
    write_shard(tmp_path / "real-00000.tar", range(1))
    assert len(ShardReader(tmp_path / "real-00000.tar")) == 1


def test_a_full_disk_in_the_middle_cannot_be_committed_past(tmp_path):
    """A real limit of the kernel (file size), in a process of its own; the caller swallows the error and goes on."""
    code = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shards import make_jpeg, make_sample
from pam_aug.errors import StorageError
from pam_aug.shards.writer import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
failed = 0
try:
    with ShardWriter(Path({str(tmp_path)!r}) / "real-00000.tar", "real") as shard:
        for n in range(3000):
            try:
                shard.add(make_sample(n), make_jpeg(0))
            except StorageError:
                failed += 1
except StorageError:
    print("refused", failed > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused True", done.stderr
    assert leftovers(tmp_path) == []


def test_a_killed_writer_leaves_nothing_that_looks_whole(tmp_path):
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shards import make_jpeg, make_sample
from pam_aug.shards.writer import ShardWriter
with ShardWriter(Path({str(tmp_path)!r}) / "real-00000.tar", "real") as shard:
    for n in range(3):
        shard.add(make_sample(n), make_jpeg(n))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert all(name.startswith(".tmp-") for name in leftovers(tmp_path))
    whole = write_shard(tmp_path / "real-00000.tar", range(3))
    other = write_shard(tmp_path / "other" / "real-00000.tar", range(3))
    assert whole.read_bytes() == other.read_bytes()


def test_two_writers_of_one_name_leave_one_whole_shard(tmp_path):
    path = tmp_path / "real-00000.tar"
    gate, markers = threading.Barrier(4), []

    def work(numbers: range) -> None:
        with ShardWriter(path, "real") as shard:
            for n in numbers:
                shard.add(make_sample(n), make_jpeg(n))
            gate.wait()
        markers.append(shard.marker)

    threads = [threading.Thread(target=work, args=(range(k, k + 3),)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [m["sha256"] for m in markers] == [digest] * 4
    assert orjson.loads(marker_path(path).read_bytes())["sha256"] == digest
    assert leftovers(tmp_path) == ["real-00000.idx", "real-00000.json", "real-00000.tar"]


# ----------------------------------------------------------------------------------------------------- hostile files


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


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tars_are_refused_quickly(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "real-00000.tar"
    HOSTILE[name](path)
    started = time.monotonic()
    wanted = ShardDamaged if name == "million members" else UnsafeInput
    with pytest.raises(wanted, match="real-00000"):
        len(ShardReader(path))
    assert time.monotonic() - started < 1
    assert not (tmp_path / "payload-ran").exists()


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pam_aug.shards.reader.MAX_MEMBERS", 9)
    path = write_shard(tmp_path / "real-00000.tar", range(5))
    with pytest.raises(UnsafeInput, match="members"):
        len(ShardReader(path))


def test_foreign_pax_headers_are_skipped(tmp_path):
    info = tarfile.TarInfo(f"{KEY}.jpg")
    info.mtime = 1.5  # type: ignore[assignment]  # a fraction makes tarfile write a PAX header
    label = sample_to_json(make_sample(0))
    path = tar_of(tmp_path / "real-00000.tar", (info, make_jpeg(0)), (f"{KEY}.json", label), fmt=tarfile.PAX_FORMAT)
    assert b"mtime=1.5" in path.read_bytes()
    reader = ShardReader(path)
    assert reader.sample(0) == make_sample(0)
    assert reader.image_bytes(0) == make_jpeg(0)


@pytest.mark.parametrize(
    "members",
    [
        [("json", b"{}")],
        [("jpg", b"")],
        [("jpg", b""), ("png", b""), ("json", b"")],
        [("jpg", b""), ("jpg", b""), ("json", b"")],
    ],
)
def test_incomplete_samples_are_damage(tmp_path, members):
    path = tar_of(tmp_path / "real-00000.tar", *((f"{KEY}.{s}", d) for s, d in members))
    with pytest.raises(ShardDamaged, match=KEY):
        len(ShardReader(path))


def test_labels_are_checked_by_schema_and_key(tmp_path):
    for label in (b"{}", b"not json", sample_to_json(make_sample(0)).replace(b"right", b"upper")):
        path = tar_of(tmp_path / "real-00000.tar", (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.json", label))
        with pytest.raises(SchemaError, match="real-00000"):
            ShardReader(path).sample(0)
    path = tar_of(tmp_path / "real-00001.tar", (f"{KEY}.jpg", b""), (f"{KEY}.json", sample_to_json(make_sample(1))))
    with pytest.raises(ShardDamaged, match="its label says"):
        ShardReader(path).sample(0)


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    ihdr = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + ihdr + bytes(4)


@pytest.mark.parametrize(
    ("suffix", "data", "error"),
    [
        ("jpg", b"", ShardDamaged),
        ("jpg", b"\xff\xd8\xff\xe0", ShardDamaged),
        ("jpg", make_jpeg(0)[:200], ShardDamaged),
        ("png", b"", ShardDamaged),
        ("png", png_header(32, 32), ShardDamaged),
        ("png", png_header(0, 32), ShardDamaged),
        ("png", png_header(32, 32, depth=16), ShardDamaged),
        ("png", png_header(50_000, 1000), UnsafeInput),
    ],
)
def test_damaged_images_are_typed_errors(suffix, data, error):
    from pam_aug.shards.images import decode_image

    with pytest.raises(error, match="x/y"):
        decode_image(data, suffix, "x/y")


def test_a_changed_image_never_reaches_a_reader_of_rows(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(2))
    row = ShardReader(path).rows[1]
    raw = bytearray(path.read_bytes())
    raw[int(row["image_offset"]) + 300] ^= 1
    path.write_bytes(raw)
    reader = ShardReader(path)
    assert reader.row_image_bytes(reader.rows[0]) == make_jpeg(0)
    with pytest.raises(ShardDamaged, match=r"real-00000\.tar.*verify"):
        reader.row_image_bytes(reader.rows[1])


def test_every_truncation_is_found(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(3))
    whole = path.read_bytes()
    cuts = sorted({0, 1, *range(0, len(whole), 211), len(whole) - 1})
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardDamaged):  # the marker's size
            ShardReader(path)
        bare = tmp_path / "bare" / "real-00000.tar"
        bare.parent.mkdir(exist_ok=True)
        bare.write_bytes(whole[:cut])
        try:  # without a marker the archive itself tells, as far as it was cut inside what it holds
            reader = ShardReader(bare)
            assert [reader.sample(i) for i in range(len(reader))] == [make_sample(n) for n in range(3)]
        except PamAugError:
            pass
        else:
            assert not whole[cut:].strip(b"\0")
