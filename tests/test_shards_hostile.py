"""Shards that nobody of ours wrote, or that changed since: refused or found, quickly, with nothing run."""

import tarfile
import time

import numpy as np
import pytest
from hostile_files import HOSTILE, KEY, png_header, tar_of
from made_shards import make_jpeg, make_sample, write_shard

from pam_aug.errors import PamAugError, SchemaError, ShardDamaged, UnsafeInput
from pam_aug.mix import MixedDataset
from pam_aug.schema import sample_to_json
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.reader import ShardReader


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
    monkeypatch.setattr("pam_aug.shards.tar.MAX_MEMBERS", 9)
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


def test_c5_05_a_flipped_byte_never_reaches_a_batch(tmp_path):
    """Images are checked where they are read, labels come from the index: a batch is as it was written, or an error."""
    path = write_shard(tmp_path / "shards" / "real-00000.tar", range(3))
    source = MixSource("real", "1", collect_shards(tmp_path / "shards", "real", tmp_path))
    write_mix(tmp_path / "mix.json", Mix((source,)))
    (wanted,) = MixedDataset(tmp_path, 3, decode_threads=1)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 97):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            (batch,) = MixedDataset(tmp_path, 3, decode_threads=1)
        except ShardDamaged:
            refused += 1
        else:
            np.testing.assert_array_equal(batch["image"], wanted["image"])
            np.testing.assert_array_equal(batch["joints_cam_m"], wanted["joints_cam_m"])
    images = sum(len(make_jpeg(n)) for n in range(3))
    assert abs(refused - images / 97) <= 3


def test_every_truncation_is_found(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(3))
    whole = path.read_bytes()
    for cut in np.linspace(0, len(whole) - 1, 500).astype(int).tolist():
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
