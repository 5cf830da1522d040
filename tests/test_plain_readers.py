"""Readers that know nothing of this library get what was written: webdataset, and Hugging Face datasets."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
import webdataset
from made_shards import make_jpeg, make_sample

from pam_aug.schema import Object, Sample, sample_from_json, sample_to_json
from pam_aug.shards.arrow import sample_arrow_type, webdataset_arrow_schema
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.writer import ShardWriter, shard_name


def samples(kind: str) -> list[tuple[Sample, bytes]]:
    """Seven samples; some have two hands, some objects, some notes, and the first five have none of it."""
    made = []
    for number in range(7):
        sample = make_sample(number, synthetic=kind == "syn", hands=1 + (number > 4))
        if number > 4:
            objects = (Object("mug", "mug.obj", 16, np.eye(4)),) * (number - 4)
            sample = type(sample)(**{**{n: getattr(sample, n) for n in Sample.__slots__}, "objects": objects})
        made.append((sample, make_jpeg(number)))
    return made


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    paths = []
    for kind in ("real", "syn"):
        content = samples(kind)
        for number, part in enumerate((content[:4], content[4:])):
            paths.append(tmp_path / shard_name(kind, number))
            with ShardWriter(paths[-1], kind) as shard:
                for sample, image in part:
                    shard.add(sample, image)
    return paths


def written() -> list[tuple[Sample, bytes]]:
    return [*samples("real"), *samples("syn")]


def test_our_reader_gives_what_was_written(shards):
    found = []
    for path in shards:
        with ShardReader(path) as reader:
            found += [(reader.sample(i), reader.image_bytes(i)) for i in range(len(reader))]
    assert found == written()


def test_plain_webdataset_gives_the_same_samples(shards):
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList([str(p) for p in shards]),
        webdataset.tarfile_to_samples(),
        webdataset.to_tuple("__key__", "jpg", "json"),
    )
    found = list(pipeline)
    assert [(sample_from_json(label), image) for _, image, label in found] == written()
    assert [key for key, _, _ in found] == [sample.key for sample, _ in written()]


def test_the_arrow_types_hold_every_sample():
    kind = sample_arrow_type()
    trees = [orjson.loads(sample_to_json(sample)) for sample, _ in written()]
    again = pa.array(trees, kind).to_pylist()
    assert [list(tree) for tree in again] == [list(tree) for tree in trees]
    assert [sample_from_json(orjson.dumps(tree)) for tree in again] == [sample for sample, _ in written()]
    assert kind.field("objects").type.value_type.field("T_cam_obj").type == pa.list_(pa.list_(pa.float32()))
    assert [kind.field(i).name for i in range(kind.num_fields)] == list(trees[0])
    assert webdataset_arrow_schema("png", ("seg.png", "depth.png")).names == [
        *("png", "json", "depth.png", "seg.png"),
        *("__key__", "__url__"),
    ]


READ = """
import hashlib, json, sys
import datasets, pyarrow
out, cache, types, *files = sys.argv[1:]
features = None
if types:
    features = datasets.Features.from_arrow_schema(pyarrow.ipc.read_schema(pyarrow.OSFile(types)))
    features["jpg"] = datasets.Image(decode=False)
found = datasets.load_dataset(
    "webdataset", data_files={"train": files}, split="train", features=features, cache_dir=cache
).cast_column("jpg", datasets.Image(decode=False))
rows = [[row["__key__"], hashlib.sha256(row["jpg"]["bytes"]).hexdigest(), row["json"]] for row in found]
with open(out, "w") as file:
    json.dump(rows, file)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hugging_face_datasets_gives_the_same_samples(shards, tmp_path):
    """In an environment of its own, which this test makes (it needs the network, or pip's own mirror)."""
    python, packages = str(tmp_path / "venv" / "bin" / "python"), ("datasets", "pillow")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    types, out = tmp_path / "types", tmp_path / "found.json"
    types.write_bytes(webdataset_arrow_schema().serialize())

    def read(types: str, files: list[Path]) -> list[tuple[str, str, Sample]]:
        subprocess.run([python, "-c", READ, out, tmp_path / "cache", types, *files], check=True)
        return [
            (key, image, sample_from_json(orjson.dumps(tree))) for key, image, tree in orjson.loads(out.read_bytes())
        ]

    def wanted(content: list[tuple[Sample, bytes]]) -> list[tuple[str, str, Sample]]:
        return [(sample.key, hashlib.sha256(image).hexdigest(), sample) for sample, image in content]

    assert read(str(types), shards) == wanted(written())
    # Without the types, shards whose first samples fill the same lists as all others are read as well.
    assert read("", shards[:1]) == wanted(samples("real")[:4])
