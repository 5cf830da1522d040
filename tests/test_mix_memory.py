"""What reading a mix holds: nothing that grows with the samples, few files, and no memory that a batch still has."""

import gc
import itertools
import os
import tracemalloc
from types import FunctionType, ModuleType

import pytest
import torch
from index_only import write_index_only
from test_mix import keys_of
from torch.utils.data import DataLoader

from pam_aug.mix import MixedDataset, open_mix, parse_ratio
from pam_aug.shards.manifest import read_mix


def test_what_is_held_of_a_shard_does_not_grow_with_its_samples(tmp_path):
    (source,), _ = open_mix(read_mix(write_index_only(tmp_path, 20, 1000)), tmp_path)
    tracemalloc.start()
    for item in range(0, 20_000, 1000):
        source.find(item)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / 20 < 10_000


def held(thing: object) -> int:
    """How many Python objects hang on `thing`, arrays and strings counted as one each."""
    seen: set[int] = set()
    todo = [thing]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        todo += gc.get_referents(one)
    return len(seen)


@pytest.mark.parametrize("keep", ["1", "1/2"])
def test_what_is_held_grows_with_shards_not_with_samples(tmp_path, keep):
    """Open every index, read a batch: no object per sample, 8 bytes per item at most, few files open at once."""
    counts = []
    for name, per_shard in (("few", 20), ("many", 2000)):
        dataset = MixedDataset(write_index_only(tmp_path / name, 50, per_shard, keep), 32, decode_threads=1)
        assert len(dataset.sources[0]) == 50 * per_shard * parse_ratio(keep)
        for item in range(0, len(dataset.sources[0]), per_shard):
            reader, number = dataset.sources[0].find(item)
            assert reader.row(number)["key"].startswith(b"demo/s1/take")
        (batch, *_) = itertools.islice(dataset, 1)
        assert len(set(batch["keys"])) == 32
        counts.append(held(dataset.sources))
        descriptors = len(os.listdir("/proc/self/fd"))
        assert descriptors < 250
        if keep != "1":
            assert dataset.sources[0]._kept.nbytes == 8 * len(dataset.sources[0])
    assert counts[1] < counts[0] + 1000  # 99,000 samples more; a few numbers per shard no longer share one object


def test_open_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("pam_aug.mix_sources._open_files", lambda: 64)
    before = len(os.listdir("/proc/self/fd"))
    dataset = MixedDataset(write_index_only(tmp_path, 40, 25), 100, decode_threads=1)
    keys = keys_of(dataset)
    assert len(set(keys)) == 1000
    assert len(os.listdir("/proc/self/fd")) - before <= 18  # 8 shards and what looks
    betas = torch.cat([batch["betas"][:, :2] for batch in dataset])
    assert len({tuple(b) for b in betas.tolist()}) == 1000


def test_a_worker_hands_over_two_pieces_of_memory_and_the_same_labels(tmp_path):
    folder = write_index_only(tmp_path, 1, 30)
    alone = list(MixedDataset(folder, 8))
    for one, batch in zip(alone, DataLoader(MixedDataset(folder, 8), batch_size=None, num_workers=1), strict=True):
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == 2  # the images, and all labels
        for name, tensor in tensors.items():
            assert (tensor.dtype, tensor.is_contiguous()) == (one[name].dtype, True)
            assert torch.equal(tensor, one[name])
            tensor[:] = 0  # nobody else's
        assert all((tensor == 0).all() for tensor in tensors.values())
