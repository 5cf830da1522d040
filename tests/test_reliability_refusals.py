"""Promises 9 to 12: what must not pass. The same thing twice, another configuration, hostile files, broken images."""

import gc
import gzip
import io
import os
import pickle
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import fakes
import numpy as np
import pytest
import simplejpeg
from fakes import config
from hostile_files import HOSTILE, KEY, Payload, link, patched, png_header, tar_of
from made_shards import make_jpeg, make_sample
from processes import exit_code, fork
from test_build import tar_bytes

from pam_aug.build import run as build_run
from pam_aug.build.run import run_build
from pam_aug.errors import BudgetExceeded, PamAugError, ResumeMismatch, SchemaError, UnsafeInput
from pam_aug.rollouts.scene import Item
from pam_aug.shards.images import decode_image, decode_plane
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter

pytestmark = pytest.mark.usefixtures("fakes_installed")


def test_c5_09_the_same_input_twice_is_an_error(tmp_path, monkeypatch):
    """A seed is a function of run seed, key and index, so the same seed twice is the same key twice."""
    item = fakes.FakeRollouts.item
    monkeypatch.setattr(fakes.FakeRollouts, "item", lambda self, index: item(self, index // 2))
    with pytest.raises(SchemaError, match="keys are unique"):
        run_build(config(), tmp_path / "out", ("synthetic",), workers=0)
    assert not list((tmp_path / "out" / "shards").glob("*.json"))


def test_c5_09_the_same_image_twice_is_told_by_verify(tmp_path):
    with ShardWriter(tmp_path / "real-00000.tar", "real") as shard:
        for n in (0, 1, 2):
            shard.add(make_sample(n), make_jpeg(n % 2))
    report = verify(tmp_path)
    assert report.same_images == [(make_sample(2).key, make_sample(0).key)]
    assert report.ok


def test_c5_10_what_changes_the_pixels_is_refused_by_name(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_build(config(), out, workers=0)
    before = tar_bytes(out)

    def refused(field: str, *overrides: str) -> None:
        with pytest.raises(ResumeMismatch) as caught:
            run_build(config(*overrides), out, workers=0)
        assert caught.value.field == field

    refused("select.reject", "select.reject=0.5")
    refused("generate.run_seed", "generate.run_seed=1")
    refused("source.count", "source.count=4")
    with monkeypatch.context() as patch:
        patch.setattr(build_run, "SCHEMA_VERSION", 2)
        refused("schema_version")
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeGenerator, "version", "2")
        refused("generator_version")
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEstimator, "version", "weights-of-another-hash")
        refused("estimator_version")
    with monkeypatch.context() as patch:
        hand = fakes.load_open_hand("right")
        wider = replace(hand, v_template=hand.v_template * np.float32(1.01))
        patch.setattr(fakes.FakeRollouts, "hand_assets", lambda self: {"open_hand/right": wider})
        refused("hands.open_hand/right")
    assert tar_bytes(out) == before


def object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def million_members(path: Path) -> Path:
    """Whole headers for more samples than any shard may hold, in a file as long as that of a million members."""
    parts = []
    bases = [bytearray(tarfile.TarInfo(f"{KEY}.{s}").tobuf(tarfile.USTAR_FORMAT)) for s in ("jpg", "json")]
    digits = len(KEY) - 6
    for n in range(1 << 15):
        for base in bases:
            base[digits : digits + 6] = b"%06d" % n
            base[148:156] = b" " * 8
            base[148:156] = b"%06o\0 " % sum(base)
            parts.append(bytes(base))
    path.write_bytes(b"".join(parts) + tarfile.TarInfo(f"{KEY}.jpg").tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 10**6 * 512)
    return path


def pax_of_a_gigabyte(path: Path) -> Path:
    patched(path, 124, b"%011o\0" % 10**9)
    raw = bytearray(path.read_bytes())
    raw[156:157] = b"x"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    return path


ELEVEN = {
    "pickle": lambda p: tar_of(p, (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.pkl", pickle.dumps(Payload()))),
    "object npy": lambda p: tar_of(p, (f"{KEY}.jpg", make_jpeg(0)), (f"{KEY}.npy", object_array())),
    "symlink": HOSTILE["symlink"],
    "hard link": lambda p: tar_of(p, (link(tarfile.LNKTYPE), b"")),
    "parent": HOSTILE["parent"],
    "absolute": HOSTILE["absolute"],
    "header of 10^9 bytes": pax_of_a_gigabyte,
    "size of 10^9 bytes": lambda p: patched(p, 124, b"%011o\0" % 10**9),
    "negative offset": HOSTILE["negative size"],
    "10^6 members": million_members,
    "gzip bomb of 10^9 bytes": lambda p: p.write_bytes(gzip.compress(bytes(1 << 20)) * 1000),
}


@pytest.mark.parametrize("name", ELEVEN)
def test_c5_11_hostile_input_costs_under_a_second_and_200_mb(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "real-00000.tar"
    ELEVEN[name](path)
    answer = tmp_path / "answer"

    def refuse() -> None:
        gc.freeze()  # or the child's collections would walk through all that the tests before have left
        idle = resource.getrusage(resource.RUSAGE_SELF)
        with pytest.raises(UnsafeInput, match="real-00000"):
            len(ShardReader(path))
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime
        answer.write_text(f"{seconds} {(used.ru_maxrss - idle.ru_maxrss) / 1024}")

    assert exit_code(fork(refuse)) == 0
    seconds, megabytes = map(float, answer.read_text().split())
    assert seconds < 1
    assert megabytes < 200
    assert not (tmp_path / "payload-ran").exists()


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + jpeg[at + 4 :]


def rotated(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF tag that asks for a quarter turn."""
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def cmyk() -> bytes:
    pixels = np.zeros((fakes.SIZE, fakes.SIZE, 4), np.uint8)
    return simplejpeg.encode_jpeg(pixels, colorspace="CMYK", colorsubsampling="444")


def test_c5_12_a_build_goes_on_past_broken_images_and_counts_them(tmp_path, monkeypatch):
    good = fakes.picture(0)
    grey16 = cv2.imencode(".png", np.zeros((fakes.SIZE, fakes.SIZE), np.uint16))[1].tobytes()
    images = {
        "sound": good,
        "empty": b"",
        "corrupt JPEG": good[:150],
        "corrupt PNG": png_header(0, fakes.SIZE),
        "16 bit": grey16,
        "CMYK": cmyk(),
        "50,000 wide": with_size(good, 1000, 50_000),
        "another size": with_size(good, 1, 1),
        "rotated": rotated(good),
    }
    wrong = [name for name in images if name not in ("sound", "rotated")]
    listed = list(images.values())
    monkeypatch.setattr(fakes.FakeReal, "item", lambda self, i: Item(fakes.label(i, self.name), listed[i], {}))
    settings = config(f"real.count={len(images)}", "shards.samples_per_shard=100")
    with pytest.raises(BudgetExceeded):  # more than 1 % failed, which is said at the end
        run_build(settings, tmp_path / "out", ("real",), workers=0)
    path = tmp_path / "out" / "shards" / "real-00000.tar"
    marker = read_marker(path)
    assert marker is not None
    assert marker["counts"] == {"failed": len(wrong), "hands": 2, "samples": 2}
    reader = ShardReader(path)
    np.testing.assert_array_equal(reader.image(1), reader.image(0))  # labels are in the pixels as they are stored


def test_c5_12_planes_of_another_depth_and_one_pixel(tmp_path):
    planes = {d: cv2.imencode(".png", np.ones((4, 4), d))[1].tobytes() for d in (np.uint8, np.uint16)}
    for wanted, other in ((np.uint8, np.uint16), (np.uint16, np.uint8)):
        assert decode_plane(planes[wanted], wanted, "x").dtype == wanted
        with pytest.raises(PamAugError, match="x: not a grey"):
            decode_plane(planes[other], wanted, "x")
    assert decode_image(make_jpeg(0, 1), "jpg", "x").shape == (1, 1, 3)
