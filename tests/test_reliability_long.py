"""Promises of reliability with their full figures: minutes each, run by `make nightly` (`pytest -m slow`).

`PAM_AUG_FUZZ_SECONDS` sets how long each reader is fed damaged bytes (default 600).
"""

import math
import os
import resource
import time
from fractions import Fraction
from pathlib import Path

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_shards import write_shard
from processes import exit_code, fork
from test_build import tar_bytes
from test_mix import keys_of, mixed
from test_reliability import linked_shards, memory_of_reading
from test_reliability_fuzz import FUZZED, fuzz
from test_reliability_stops import config, kill_generating, kill_packing
from torch.utils.data import DataLoader

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.mix import MixedDataset
from pam_aug.mix_order import Schedule, order
from pam_aug.shards.card import write_card
from pam_aug.shards.manifest import read_mix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.usefixtures("fakes_installed")]


def test_c5_01_two_hundred_kills_of_a_process_that_packs(tmp_path):
    kill_packing(tmp_path, 200)


def test_c5_02_fifty_kills_of_a_build_that_generates(tmp_path, monkeypatch):
    kill_generating(tmp_path, monkeypatch, kills=50, inputs=60)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """1,000 real and 500 synthetic hands."""
    root = tmp_path_factory.mktemp("thousand")
    for shard in range(5):
        write_shard(root / "shards" / f"real-{shard:05d}.tar", range(200 * shard, 200 * shard + 200), size=16)
    for shard in range(2):
        numbers = range(5000 + 250 * shard, 5250 + 250 * shard)
        write_shard(root / "shards" / f"syn-{shard:05d}.tar", numbers, synthetic=True, size=16)
    return mixed(root, "2/3")


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_c5_06_every_number_of_workers_and_ranks_reads_one_order(thousand, workers, world):
    for epoch in (0, 3):
        alone = keys_of(MixedDataset(thousand, 48), 0, epoch)
        assert len(alone) == 1500
        parts = []
        for rank in range(world):
            dataset = MixedDataset(thousand, 48, rank=rank, world=world)
            dataset.set_epoch(epoch)
            loader = DataLoader(dataset, batch_size=None, num_workers=workers)
            parts.append([batch["keys"] for batch in loader])
        assert [key for step in zip(*parts, strict=True) for keys in step for key in keys] == alone


def test_c5_07_saved_at_each_of_a_thousand_steps_and_restored_under_other_workers(thousand):
    """Each of 1,000 steps of an epoch of 1,500 hands, one per step, read by one of 0, 1, 2 and 5 workers and restored
    under another number. What follows is read to the end of the epoch, by whole batches of other sizes."""
    saved: dict[int, tuple[list, list[str]]] = {}
    for workers in (0, 1, 2, 5):
        dataset = MixedDataset(thousand, 1)
        states, keys = [], []
        for batch in DataLoader(dataset, batch_size=None, num_workers=workers):
            states.append(dataset.state_dict(batch))
            keys.extend(batch["keys"])
        assert len(keys) == len(set(keys)) == 1500
        saved[workers] = states, keys
    whole = saved[0][1]
    assert all(keys == whole for _, keys in saved.values())
    for step in range(1000):
        several = (1, 2, 5)[step // 4 % 3]
        workers, other = (0, several) if step % 4 == 0 else (several, 0)  # starting processes takes most of the time
        again = MixedDataset(thousand, 97, decode_threads=1)
        again.load_state_dict(saved[workers][0][step])
        found = DataLoader(again, batch_size=None, num_workers=other)
        assert [key for batch in found for key in batch["keys"]] == whole[step + 1 :]


def test_c5_08_every_ratio_to_a_thousandth():
    """All p/q with q ≤ 1000: every prefix of an epoch that is one period long, and each real item once in it."""
    for q in range(1, 1001):
        k = np.arange(1, q + 1)
        for p in (p for p in range(1, q + 1) if math.gcd(p, q) == 1):
            schedule = Schedule((p, max(1, q - p)), (Fraction(p, q), 1 - Fraction(p, q)), seed=p)
            assert schedule.epoch_length == q
            source, index = schedule.at(k - 1)
            assert np.abs(np.cumsum(source == 0) * q - k * p).max() < q
            assert np.bincount(index[source == 0], minlength=p).tolist() == [1] * p


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    real=st.integers(1, 10**6),
    synthetic=st.integers(1, 10**6),
    ratio=st.fractions(0, 1, max_denominator=1000),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
)
def test_c5_08_every_size_to_a_million(real, synthetic, ratio, seed, epoch):
    if ratio > 0:  # an epoch of at most four million
        real = max(1, min(real, 4 * 10**6 * ratio.numerator // ratio.denominator))
    source, index = order((real, synthetic), ratio, seed, epoch)
    k = np.arange(1, len(source) + 1)
    assert np.abs(np.cumsum(source == 0) * ratio.denominator - k * ratio.numerator).max() < ratio.denominator
    lead, size = (0, real) if ratio > 0 else (1, synthetic)
    assert np.bincount(index[source == lead], minlength=size).tolist() == [1] * size
    other = index[source == 1 - lead]
    if len(other):  # in passes: nothing is left out while something is repeated
        reads = np.bincount(other, minlength=synthetic)
        assert reads.max() - reads.min() <= 2


@pytest.mark.parametrize("target", FUZZED)
def test_c5_13_minutes_of_damage(tmp_path, target):
    end = time.monotonic() + float(os.environ.get("PAM_AUG_FUZZ_SECONDS", "600"))
    tries, refused = fuzz(target, tmp_path, lambda: time.monotonic() < end)
    assert refused > tries / 10


def test_c5_14_one_and_four_processes_give_the_same_bytes(tmp_path):
    """With the bundled backends, because worker processes know the registered ones only."""
    tree = {
        "source": {"converter": "demo-rollouts", "count": 6},
        "real": {"shards": str(tmp_path / "real" / "shards")},
        "generate": {"candidates": 4},
        "shards": {"inputs_per_shard": 2, "depth": True, "seg": True},
    }
    write_shard(tmp_path / "real" / "shards" / "real-00000.tar", range(4))
    whole = resolve(BuildConfig, tree)
    for workers in (0, 1, 4):
        run_build(whole, tmp_path / str(workers), workers=workers)
        assert tar_bytes(tmp_path / str(workers)) == tar_bytes(tmp_path / "0")
    assert len(tar_bytes(tmp_path / "0")) == 9


def test_c5_16_a_million_samples_in_500_mb(tmp_path):
    torch.set_num_threads(1)
    found = memory_of_reading(linked_shards(tmp_path, 1000, 1000), tmp_path / "answer", 300)
    assert found["samples"] == 10**6
    assert found["megabytes"] < 500
    assert found["seconds"] < 2  # of the CPU, to open it and read the first shuffled batch


def test_c5_16_the_tables_of_a_million_samples_in_500_mb(tmp_path):
    folder, answer = linked_shards(tmp_path, 1000, 1000), tmp_path / "answer"

    def describe() -> None:
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_card(folder, read_mix(folder))
        answer.write_text(str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) / 1024))

    assert exit_code(fork(describe)) == 0
    assert pq.read_metadata(folder / "manifest.parquet").num_rows == 10**6
    assert "| 1000000 | 1000000 |" in (folder / "card.md").read_text()
    assert float(answer.read_text()) < 500


def test_c5_17_two_builders_many_times(tmp_path, monkeypatch):
    run_build(config(), tmp_path / "clean", workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.001)
    for number in range(20):
        out = tmp_path / str(number)
        children = [fork(lambda out=out: run_build(config(), out, workers=0)) for _ in range(3)]
        codes = [exit_code(child) for child in children]
        assert 0 in codes
        assert 99 not in codes
        run_build(config(), out, workers=0)
        assert tar_bytes(out) == tar_bytes(tmp_path / "clean")
