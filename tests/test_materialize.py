"""Mixes written out as shards: the order of MixedDataset, the same bytes, unique keys; and other ratios."""

import hashlib
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import webdataset
from made_shards import make_jpeg, make_sample

from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.materialize import change_mix, materialize
from pam_aug.mix import MixedDataset
from pam_aug.schema import sample_to_json
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_mix, write_mix
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter, shard_name


def make_build(out: Path, real: int = 5, synthetic: int = 3, hands: int = 1, ratio: str = "1/2") -> Path:
    """A folder with shards of two samples and a mix.json."""
    for kind, count in (("real", real), ("syn", synthetic)):
        for s in range(0, count, 2):
            with ShardWriter(out / "shards" / shard_name(kind, s // 2), kind) as shard:
                for i in range(s, min(s + 2, count)):
                    shard.add(make_sample(i, synthetic=kind == "syn", hands=hands), make_jpeg(i))
    sources = [
        MixSource(name, share, collect_shards(out / "shards", kind, out))
        for name, kind, share in (("real", "real", ratio), ("synthetic", "syn", ratio))
    ]
    write_mix(out / "mix.json", Mix(tuple(sources), seed=3))
    return out


def read(out: Path) -> list[dict]:
    paths = [str(p) for p in sorted(out.glob("mixed-*.tar"))]
    return list(webdataset.WebDataset(paths, shardshuffle=False))


def order(folder: Path, epochs: int) -> list[tuple[str, bytes]]:
    """(crop key, image file) in the order of the dataset."""
    dataset = MixedDataset(folder, batch_size=3)
    images = {}
    for path in (folder / "shards").glob("*.tar"):
        with ShardReader(path) as reader:
            images |= {key: reader.image_bytes(i) for i, key in enumerate(reader.keys)}
    found = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found += [(key, images[key[:-2]]) for batch in dataset for key in batch["keys"]]
    return found


def source_key(key: str) -> str:
    base, at, candidate = key.partition("@")
    return base.partition("--")[0] + at + candidate


def test_the_order_is_the_datasets_and_bytes_stay(tmp_path):
    folder = make_build(tmp_path / "build")
    wanted = order(folder, epochs=2)
    done = materialize(folder, tmp_path / "mixed", epochs=2, samples_per_shard=7)
    written = read(tmp_path / "mixed")
    assert (done.samples, done.shards, done.epoch_hands, len(written)) == (20, 3, 10, 20)
    sides = {"right": "-r", "left": "-l"}
    assert [
        (source_key(w["__key__"]) + sides[orjson.loads(w["json"])["hands"][0]["side"]], w["jpg"]) for w in written
    ] == wanted
    originals = {s.key: sample_to_json(s) for i in range(5) for s in (make_sample(i), make_sample(i, synthetic=True))}
    first = [w for w in written if "--" not in w["__key__"]]
    assert len(first) == 8
    assert all(w["json"] == originals[w["__key__"]] for w in first)
    again = orjson.loads(next(w["json"] for w in written if w["__key__"].endswith("000000--x2")))
    assert again == {**orjson.loads(originals["demo/s1/take/cam0/000000"]), "key": "demo/s1/take/cam0/000000--x2"}
    assert len({w["__key__"] for w in written}) == 20
    assert all(orjson.loads(w["json"])["key"] == w["__key__"] for w in written)
    report = verify(tmp_path / "mixed")
    assert (report.damaged, report.samples) == ([], 20)


def test_two_hands_of_an_image_are_two_samples(tmp_path):
    folder = make_build(tmp_path / "build", real=2, synthetic=2, hands=2)
    materialize(folder, tmp_path / "mixed")
    written = {w["__key__"]: orjson.loads(w["json"]) for w in read(tmp_path / "mixed")}
    assert len(written) == 8
    for key, tree in written.items():
        number = int(key.partition("@")[0][-1])
        truth = make_sample(int(source_key(key).split("/")[-1][:6]), synthetic="@" in key, hands=2)
        assert [h["side"] for h in tree["hands"]] == [truth.hands[number].side]


def test_the_same_command_resumes_and_another_mix_is_refused(tmp_path):
    folder = make_build(tmp_path / "build")
    materialize(folder, tmp_path / "mixed", samples_per_shard=4)
    before = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "mixed").glob("*.tar")}
    (tmp_path / "mixed" / "mixed-00001.json").unlink()
    (tmp_path / "mixed" / "mixed-00001.tar").write_bytes(b"torn")
    materialize(folder, tmp_path / "mixed", samples_per_shard=4)
    assert {p.name: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "mixed").glob("*.tar")} == before
    with pytest.raises(ResumeMismatch):
        materialize(folder, tmp_path / "mixed", ratio="1/3", samples_per_shard=4)
    with pytest.raises(ConfigError, match="new folder"):
        materialize(folder, folder)


def test_damage_is_not_written_under_a_new_hash(tmp_path):
    folder = make_build(tmp_path / "build")
    path = folder / "shards" / "real-00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b'"licence":"CC0"') + 12] ^= 2  # a label: no CRC of an image sees it
    path.write_bytes(data)
    with pytest.raises(ShardDamaged, match="real-00000"):
        materialize(folder, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_names_that_would_clash_are_refused(tmp_path):
    folder = tmp_path / "build"
    with ShardWriter(folder / "shards" / "real-00000.tar", "real") as shard:
        for number, frame in enumerate(("a", "a--x2")):
            sample = make_sample(number, sequence="s")
            shard.add(type(sample)(**{**fields_of(sample), "key": f"demo/s1/s/cam0/{frame}"}), make_jpeg(number))
    write_mix(folder / "mix.json", Mix((MixSource("real", "1", collect_shards(folder / "shards", "real", folder)),)))
    materialize(folder, tmp_path / "once")
    with pytest.raises(SchemaError, match="a--x2"):
        materialize(folder, tmp_path / "twice", epochs=2)


def fields_of(sample) -> dict:
    return {name: getattr(sample, name) for name in sample.__slots__}


def test_another_ratio_rewrites_the_mix_and_only_that(tmp_path):
    folder = make_build(tmp_path / "build")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "mix.json"}
    old = (folder / "mix.json").read_bytes()
    assert change_mix(folder, "1/3", dry_run=True).epoch_hands == 15
    assert (folder / "mix.json").read_bytes() == old
    assert change_mix(folder, "1/3").as_dict() == {
        "ratio": "1/3",
        "epoch_hands": 15,
        "reads_per_epoch": {"real": 1.0, "synthetic": 10 / 3},
    }
    assert [s.share for s in read_mix(folder).sources] == ["1/3", "2/3"]
    assert len(MixedDataset(folder, batch_size=1)) == 15
    assert {p: p.read_bytes() for p in before} == before
    for wrong in ("2", "x"):
        with pytest.raises(ConfigError):
            change_mix(folder, wrong)
    (folder / "shards" / "syn-00001.json").unlink()
    with pytest.raises(ShardDamaged, match="syn-00001"):
        change_mix(folder, "1/4")
    assert [s.share for s in read_mix(folder).sources] == ["1/3", "2/3"]


def test_a_half_that_is_not_there_cannot_be_mixed(tmp_path):
    folder = make_build(tmp_path / "build", synthetic=0)
    mix = read_mix(folder)
    write_mix(folder / "mix.json", Mix((MixSource("real", "1", mix.sources[0].shards),)))
    with pytest.raises(ConfigError, match="no synthetic half"):
        change_mix(folder, "0.5")
    assert change_mix(folder, "1").epoch_hands == 5


def test_a_window_is_stored_and_written_out_in_its_order(tmp_path):
    folder = make_build(tmp_path / "build")
    before = read_mix(folder)
    full = order(folder, 1)
    change_mix(folder, window_shards=1)
    assert read_mix(folder) == replace(before, window_shards=1)
    wanted = order(folder, 1)
    assert wanted != full
    materialize(folder, tmp_path / "mixed")
    assert [w["jpg"] for w in read(tmp_path / "mixed")] == [image for _, image in wanted]
    change_mix(folder, window_shards=2)
    with pytest.raises(ResumeMismatch):
        materialize(folder, tmp_path / "mixed")
