"""`verify` finds every flipped bit and every cut; leftovers are listed, not called damage."""

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
from hostile_files import png_header
from made_shards import SIZE, make_jpeg, make_sample, messages, write_folder, write_shard

from pam_aug.errors import ConfigError, PamAugError, ShardDamaged
from pam_aug.shards.manifest import (
    Mix,
    MixSource,
    collect_shards,
    write_mix,
)
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter, index_path, is_committed, marker_path, shard_name


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path)


def test_a_sound_folder(folder):
    report = verify(folder)
    assert report.ok
    assert (report.shards, report.samples, report.hands) == (2, 5, 8)
    assert report.uncommitted == report.rebuilt == []
    assert [pair[0] for pair in report.same_images] == [make_sample(n, synthetic=True).key for n in range(2)]
    report.raise_if_damaged()
    with pytest.raises(ConfigError):
        verify(folder / "nowhere")


def test_every_flipped_bit_is_found(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(3))
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        report = verify(tmp_path)
        assert [p.path for p in report.damaged] == [path], place
    with pytest.raises(ShardDamaged, match=r"real-00000\.tar"):
        report.raise_if_damaged()


def test_a_flipped_bit_of_an_index_never_becomes_a_label(tmp_path):
    """The rows are read as they were written, from the index or, where its header is not of the shard, from the tar."""
    path = write_shard(tmp_path / "real-00000.tar", range(3))
    index = index_path(path)
    whole, wanted = index.read_bytes(), ShardReader(path).rows.tobytes()
    for place in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        index.write_bytes(raw)
        with ShardReader(path) as reader:
            if place < 64:  # the header
                assert b"".join(reader.row(i).tobytes() for i in range(reader.hands)) == wanted
            else:
                with pytest.raises(ShardDamaged, match=r"real-00000\.idx: row \d changed.*--rebuild"):
                    list(map(reader.row, range(reader.hands)))
                with pytest.raises(ShardDamaged, match="--rebuild"):
                    reader.key_column()
        if place % 5 == 0:
            assert [p.path for p in verify(tmp_path).damaged] == [path]


def test_every_cut_is_found(tmp_path):
    path = write_shard(tmp_path / "real-00000.tar", range(3))
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 500).astype(int):
        path.write_bytes(whole[:size])
        assert [p.path for p in verify(tmp_path).damaged] == [path], size


def test_kills_at_any_moment_lose_only_uncommitted_shards(tmp_path):
    """60 kills of a writer that skips what is committed: nothing committed is ever damaged, and the end is exact."""

    def write_all(root: Path) -> None:
        for n in range(6):
            path = root / shard_name("real", n)
            if not is_committed(path):
                write_shard(path, range(10 * n, 10 * n + 8))

    write_all(tmp_path / "whole")
    root, rng = tmp_path / "killed", np.random.default_rng(0)
    root.mkdir()
    for _ in range(60):
        child = os.fork()
        if child == 0:
            write_all(root)
            os._exit(0)
        time.sleep(float(rng.uniform(0, 0.03)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert verify(root).ok
        if rng.random() < 0.2:  # begin again now and then, so that all moments are met
            for path in root.iterdir():
                path.unlink()
    write_all(root)
    for path in sorted((tmp_path / "whole").glob("*.tar")):
        assert (root / path.name).read_bytes() == path.read_bytes()
        assert (root / path.name).with_suffix(".idx").read_bytes() == path.with_suffix(".idx").read_bytes()


def test_leftovers_are_listed_and_missing_files_are_damage(folder):
    shards = folder / "shards"
    (shards / ".tmp-real-00009.tar-1-ab").write_bytes(b"x")
    (shards / "real-00009.tar").write_bytes(b"x")
    report = verify(folder)
    assert report.ok
    assert [p.name for p in report.uncommitted] == [".tmp-real-00009.tar-1-ab", "real-00009.tar"]
    (shards / "real-00000.tar").unlink()
    text = messages(folder)
    assert text.count("real-00000.tar is missing") == 2  # its marker and its index


def test_markers_and_mix_must_agree_with_the_shards(folder):
    path = folder / "shards" / "real-00000.tar"
    good = marker_path(path).read_bytes()
    marker = orjson.loads(good)
    changes = ({"keys": marker["keys"][::-1]}, {"counts": {"samples": 4, "hands": 6}}, {"counts": {"samples": 3}})
    for change in (*changes, {"image_sha256": ["0" * 64] * 3}):
        marker_path(path).write_bytes(orjson.dumps(marker | change))
        assert "not those of the shard" in messages(folder)
    for wrong in (b"", b"[]", b"{}", good.replace(b'"bytes"', b'"bites"')):
        marker_path(path).write_bytes(wrong)
        assert "real-00000.json" in messages(folder)
    marker_path(path).write_bytes(orjson.dumps(marker | {"schema_version": 99}))
    assert "schema version 99" in messages(folder)
    for suffix in (".tar", ".json", ".idx"):
        path.with_suffix(suffix).unlink()
    write_shard(path, range(5, 7))
    assert "run the mix again" in messages(folder)


def test_the_index_is_rebuilt(folder):
    path = index_path(folder / "shards" / "real-00000.tar")
    good = path.read_bytes()
    for wrong in (good[:-1], good[:64], b"", good[:200] + b"\xff" + good[201:]):
        path.write_bytes(wrong)
        assert "--rebuild" in messages(folder)
        report = verify(folder, rebuild=True)
        assert report.ok
        assert report.rebuilt == [path]
        assert path.read_bytes() == good
    path.unlink()
    assert "--rebuild" in messages(folder)


def test_one_shard_or_the_mix_may_be_named(folder):
    tar = folder / "shards" / "real-00000.tar"
    assert (verify(tar).shards, verify(tar).samples) == (1, 3)
    assert verify(folder / "mix.json").samples == 5
    marker_path(tar).unlink()
    assert "no commit marker" in messages(tar)
    assert "real-00009.tar: is missing" in messages(folder / "shards" / "real-00009.tar")


def test_shards_of_the_mix_in_other_folders_are_named(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_mix(other / "mix.json", Mix((MixSource("real", "1", collect_shards(folder / "shards", "real", other)),)))
    report = verify(other)
    assert report.ok
    assert report.elsewhere == [str(folder / "shards" / "real-00000.tar")]
    assert f"not read     shards of the mix in {folder}/shards: verify that folder as well" in report.as_text()


def test_an_index_of_the_first_form_is_read_and_made_anew(folder):
    path = folder / "shards" / "real-00000.tar"
    good = index_path(path).read_bytes()
    rows = ShardReader(path).derive_rows()
    header = b"PAMIDX1\0" + good[8:56] + rows.dtype.itemsize.to_bytes(8, "little")
    index_path(path).write_bytes(header + rows.tobytes())
    with ShardReader(path) as reader:
        assert reader.has_index
        assert reader.row(3).tobytes() == rows[3].tobytes()
    assert verify(folder, rebuild=True).rebuilt == [index_path(path)]
    assert index_path(path).read_bytes() == good


def test_a_key_in_two_shards_is_damage(folder):
    write_shard(folder / "shards" / "real-00001.tar", range(2, 4))
    assert make_sample(2).key in messages(folder)


def test_extras_are_read(tmp_path):
    depth = cv2.imencode(".png", np.full((SIZE, SIZE), 600, np.uint16))[1].tobytes()
    seg = cv2.imencode(".png", np.full((SIZE, SIZE), 16, np.uint8))[1].tobytes()
    wide = cv2.imencode(".png", np.full((SIZE, SIZE + 1), 600, np.uint16))[1].tobytes()
    bad = cv2.imencode(".png", np.full((SIZE, SIZE), 7, np.uint8))[1].tobytes()
    for n, (extras, found) in enumerate(
        [
            ({"depth.png": depth, "seg.png": seg}, ""),
            ({"depth.png": seg, "seg.png": seg}, "depth.png: not a grey uint16 PNG"),
            ({"depth.png": depth, "seg.png": bad}, "name nothing"),
            ({"depth.png": b"", "seg.png": seg}, "depth.png: not a PNG"),
            ({"depth.png": png_header(60_000, 60_000, depth=16), "seg.png": seg}, "over the limit"),
            ({"depth.png": depth[:-30], "seg.png": seg}, "depth.png: not a grey uint16 PNG"),
            ({"depth.png": wide, "seg.png": seg}, "another size"),
        ]
    ):
        with ShardWriter(tmp_path / str(n) / "real-00000.tar", "real") as shard:
            shard.add(make_sample(0), make_jpeg(0), extras=extras)
        text = messages(tmp_path / str(n))
        assert (found in text) if found else text == ""


def test_changed_bytes_give_only_our_errors(tmp_path):
    """A shard without a marker, so that nothing but the reader stands between damage and the caller."""
    whole = write_shard(tmp_path / "a" / "real-00000.tar", range(3)).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b" / "real-00000.tar"
    path.parent.mkdir()
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 40)):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            with ShardReader(path) as reader:
                for i in range(len(reader)):
                    reader.sample(i)
                    reader.image(i)
        except PamAugError:
            refused += 1
    assert refused > 150
