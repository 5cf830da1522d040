"""Promise 13: whatever bytes a reader meets, only errors of this library leave it. Quick versions."""

from collections.abc import Callable
from pathlib import Path

import fakes
import numpy as np
import pytest
import yaml
from made_shards import make_sample, write_shard

from pam_aug.build.config import BuildConfig
from pam_aug.config import read_yaml, resolve
from pam_aug.errors import PamAugError
from pam_aug.mix import MixedDataset
from pam_aug.schema import Candidate, sample_from_json, sample_to_json
from pam_aug.shards.manifest import (
    Mix,
    MixSource,
    collect_shards,
    read_candidates,
    read_mix,
    write_candidates,
    write_mix,
)
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import index_path, marker_path

pytestmark = pytest.mark.usefixtures("fakes_installed")


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out or doubled."""
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 8))):
        a, b = sorted(int(x) for x in rng.integers(0, len(raw) + 1, 2))
        kind = int(rng.integers(0, 5))
        if kind == 0:
            del raw[a : min(b, a + 40)]
        elif kind == 1:
            raw[a:a] = raw[a : min(b, a + 40)]
        elif raw:
            raw[min(a, len(raw) - 1)] = int(rng.integers(0, 256))
    return bytes(raw)


def fuzz_sample(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    return sample_to_json(make_sample(0, hands=2)), sample_from_json


def fuzz_shard(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    whole = write_shard(folder / "whole" / "real-00000.tar", range(3)).read_bytes()

    def read(data: bytes) -> None:
        path = folder / "real-00000.tar"
        path.write_bytes(data)
        with ShardReader(path) as reader:
            for i in range(len(reader)):
                reader.sample(i)
                reader.image(i)

    return whole, read


def fuzz_yaml(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    def read(data: bytes) -> None:
        path = folder / "recipe.yaml"
        path.write_bytes(data)
        resolve(BuildConfig, read_yaml(path))

    return yaml.safe_dump(fakes.CONFIG).encode(), read


def fuzz_mix(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    write_shard(folder / "shards" / "real-00000.tar", range(3))
    write_mix(folder / "mix.json", Mix((MixSource("real", "1", collect_shards(folder / "shards", "real", folder)),)))
    whole = (folder / "mix.json").read_bytes()

    def read(data: bytes) -> None:
        (folder / "mix.json").write_bytes(data)
        read_mix(folder)

    return whole, read


def fuzz_calibration(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    from pam_aug.converters.dexycb_calibration import SERIALS, read_meta

    meta = {"serials": list(SERIALS), "num_frames": 72, "extrinsics": "20200702_151821", "ycb_ids": [2, 5]}
    meta |= {"mano_calib": ["20200709-subject-01_right"], "mano_sides": ["right"], "ycb_grasp_ind": 0}

    def read(data: bytes) -> None:
        path = folder / "meta.yml"
        path.write_bytes(data)
        read_meta(path)

    return yaml.safe_dump(meta).encode(), read


def fuzz_rollout(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    from test_rollout_npz import Truth, read_archive, write_archive

    path = folder / "a.npz"
    write_archive(path, Truth(1).archive())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_archive(path)

    return path.read_bytes(), read


def fuzz_index(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    path = write_shard(folder / "shards" / "real-00000.tar", range(3))
    write_mix(folder / "mix.json", Mix((MixSource("real", "1", collect_shards(folder / "shards", "real", folder)),)))

    def read(data: bytes) -> None:
        index_path(path).write_bytes(data)
        (batch,) = MixedDataset(folder, 3, decode_threads=1)
        assert {"demo/s1/take/cam0/000001-l"} < set(batch["keys"])

    return index_path(path).read_bytes(), read


def fuzz_marker(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    path = write_shard(folder / "real-00000.tar", range(3))

    def read(data: bytes) -> None:
        marker_path(path).write_bytes(data)
        verify(folder).raise_if_damaged()
        len(ShardReader(path))

    return marker_path(path).read_bytes(), read


def fuzz_table(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    path = folder / "candidates.parquet"
    rows = [Candidate("demo/s/q/c/1", n, n, "rendered", "simplehand", 12.5, 6.25, 0.1, 0.9) for n in range(20)]
    write_candidates(path, rows)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_candidates(path)

    return path.read_bytes(), read


FUZZED = (
    fuzz_index,
    fuzz_marker,
    fuzz_table,
    fuzz_sample,
    fuzz_shard,
    fuzz_yaml,
    fuzz_mix,
    fuzz_calibration,
    fuzz_rollout,
)


def fuzz(target: Callable[[Path], tuple[bytes, Callable[[bytes], object]]], folder: Path, go_on: Callable[[], bool]):
    """Damages what a target reads until `go_on` says no; (tries, refused). Another error than ours is raised."""
    whole, read = target(folder)
    read(whole)
    tries = refused = 0
    while go_on():
        tries += 1
        data = damaged(whole, np.random.default_rng(tries))
        try:
            read(data)
        except PamAugError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"try {tries}: {type(error).__name__} escaped: {error}") from error
    return tries, refused


@pytest.mark.parametrize("target", FUZZED)
def test_c5_13_damage_gives_only_errors_of_this_library(tmp_path, target):
    left = iter(range(60))
    tries, refused = fuzz(target, tmp_path, lambda: next(left, None) is not None)
    assert tries == 60
    assert refused > 5
