"""Shards: deterministic bytes, exact round trips, all-or-nothing commits, and plain WebDataset compatibility."""

import errno
import hashlib
import io
import os
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
from made_shards import SIZE, leftovers, make_jpeg, make_sample, write_shard

from pam_aug.errors import SchemaError, ShardDamaged, StorageError
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.writer import ShardWriter, index_path, is_committed, marker_path, shard_name


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
from made_shards import make_jpeg, make_sample
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
from made_shards import make_jpeg, make_sample
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
