"""Promises of reliability: their index (reliability_index.py), and 14 and 16, the same bytes and bounded memory."""

import ast
import os
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import reliability_index
from fakes import config
from made_shards import write_shard
from processes import exit_code, fork
from test_build import tar_bytes

from pam_aug.build.run import run_build
from pam_aug.mix import MixedDataset
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, write_mix
from pam_aug.shards.writer import index_path, marker_path, shard_name

pytestmark = pytest.mark.usefixtures("fakes_installed")


def test_the_index_names_18_promises_and_tests_that_exist():
    assert list(reliability_index.PROMISES) == list(range(1, 19))
    files = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    found = (f.name for file in files for f in file.body if isinstance(f, ast.FunctionDef))
    names = Counter(map(reliability_index.plain, found))
    for number, (_, tests) in reliability_index.PROMISES.items():
        assert {test: names[test] for test in tests} == dict.fromkeys(tests, 1)
        assert tests or any(name.startswith(f"test_c5_{number:02d}_") for name in names)


def test_c5_14_built_twice(tmp_path):
    for name in "ab":
        run_build(config(), tmp_path / name, workers=0)
    assert tar_bytes(tmp_path / "a") == tar_bytes(tmp_path / "b")


def linked_shards(root: Path, shards: int, samples: int) -> Path:
    """A mix of many shards that are hard links of one: true sizes, indexes and markers, little disk."""
    first = write_shard(root / "first" / "real-00000.tar", range(samples), size=16)
    (root / "shards").mkdir()
    for number in range(shards):
        path = root / "shards" / shard_name("real", number)
        for old, new in ((first, path), (index_path(first), index_path(path)), (marker_path(first), marker_path(path))):
            os.link(old, new)
    write_mix(root / "mix.json", Mix((MixSource("real", "1", collect_shards(root / "shards", "real", root)),)))
    return root


def memory_of_reading(folder: Path, answer: Path, batches: int) -> dict[str, float]:
    """MB above the idle process, and seconds, of opening a mix and reading batches from all over it."""

    def read() -> None:
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        dataset = MixedDataset(folder, 64, decode_threads=1)
        found = iter(dataset)
        next(found)
        opened = time.process_time() - started
        for _ in range(batches - 1):
            next(found)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer.write_text(f"{len(dataset.sources[0])} {opened} {(peak - idle) / 1024}")

    assert exit_code(fork(read)) == 0
    return dict(zip(("samples", "seconds", "megabytes"), map(float, answer.read_text().split())))


def test_c5_16_memory_does_not_grow_with_the_data(tmp_path):
    found = memory_of_reading(linked_shards(tmp_path, 300, 20), tmp_path / "answer", 20)
    assert found["samples"] == 6000
    assert found["megabytes"] < 100
