"""The mixed dataset in real DataLoaders: one order, resumption at every batch, crops with their labels, damage."""

import itertools
import multiprocessing
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pytest
import simplejpeg
import torch
from made_shards import SIZE, make_jpeg, make_sample, write_shard
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.geometry import square_crop
from pam_aug.mix import MixedDataset, order
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_mix, write_mix
from pam_aug.shards.writer import ShardWriter, index_path


@pytest.fixture
def folder(tmp_path) -> Path:
    """13 real samples of 20 hands in three shards, 9 synthetic ones in two."""
    shards = tmp_path / "shards"
    write_shard(shards / "real-00000.tar", range(4), hands=2)
    write_shard(shards / "real-00001.tar", range(4, 8))
    with ShardWriter(shards / "real-00002.tar", "real") as shard:
        for n in range(8, 13):
            shard.add(make_sample(n, hands=1 + (n > 9), sequence=f"q{n}"), make_jpeg(n))
    write_shard(shards / "syn-00000.tar", range(100, 105), synthetic=True)
    write_shard(shards / "syn-00001.tar", range(105, 109), synthetic=True)
    return mixed(tmp_path)


def mixed(root: Path, ratio: str = "2/3", keep: str = "1", when_short: str = "repeat", window_shards: int = 0) -> Path:
    real, syn = (collect_shards(root / "shards", kind, root) for kind in ("real", "syn"))
    sources = (MixSource("real", ratio, real, keep), MixSource("syn", str(1 - Fraction(ratio)), syn))
    write_mix(root / "mix.json", Mix(sources, 7, when_short, window_shards))
    return root


def keys_of(dataset: MixedDataset, workers: int = 0, epoch: int = 0) -> list[str]:
    dataset.set_epoch(epoch)
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    try:
        return [key for batch in batches for key in batch["keys"]]
    finally:
        if workers:  # an iterator with an error, left to the collector, waits 5 s per worker
            batches._shutdown_workers()  # type: ignore[attr-defined]


def test_mix_json_round_trip_and_damage(folder):
    mix = read_mix(folder)
    assert [(s.name, s.samples, s.hands) for s in mix.sources] == [("real", 13, 20), ("syn", 9, 9)]
    assert mix.sources[0].shards[0].path == "shards/real-00000.tar"
    for text in ("[]", "{}", '{"version":1,"sources":[{"name":1}]}', '{"version":1,"sources":[],"seed":"0"}'):
        (folder / "mix.json").write_text(text)
        with pytest.raises(SchemaError, match=r"mix\.json"):
            read_mix(folder)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_mix(folder / "nowhere")


def test_memory_is_filled_again_only_when_nobody_holds_it(folder):
    """Whoever keeps a batch, one of its images or an array over it keeps what was in it."""
    dataset, held, seen = MixedDataset(folder, 4, decode_threads=2), [], set()
    for number, batch in enumerate(itertools.chain(*itertools.repeat(dataset, 4))):
        image = batch["image"]
        seen.add(image.data_ptr())
        if number % 4 < 3:
            kept = (image, image[1:].permute(0, 3, 1, 2), image.numpy()[-1])[number % 4]
            held.append((kept, np.array(kept)))
    assert len(held) > 15
    for kept, copy in held:
        np.testing.assert_array_equal(kept, copy)
    held.clear()
    batches = iter(MixedDataset(folder, 1, decode_threads=2))
    assert len({next(batches)["image"].data_ptr() for _ in range(25)}) <= 5


def test_a_whole_epoch_is_looked_up_in_parts(folder, monkeypatch):
    monkeypatch.setattr("pam_aug.mix._LOOKUP", 5)
    dataset = MixedDataset(folder, 2)
    calls, at = [], dataset.schedule.at
    monkeypatch.setattr(dataset.schedule, "at", lambda positions: calls.append(len(positions)) or at(positions))
    keys = keys_of(dataset)
    assert calls == [6, 6, 6, 6, 6]
    monkeypatch.undo()
    assert keys == keys_of(MixedDataset(folder, 2))


def test_batches_hold_the_order_and_the_labels(folder):
    dataset = MixedDataset(folder, 8)
    source, index = order((20, 9), Fraction(2, 3), 7, 0)
    real = [(n, h) for n in range(13) for h in range(2 if n < 4 or n > 9 else 1)]
    syn = [(n, 0) for n in range(100, 109)]
    wanted = [(real, syn)[s][i] for s, i in zip(source, index)]
    assert len(dataset) == 4
    batches = list(dataset)
    assert [b["position"] for b in batches] == [8, 16, 24, 30]
    assert [len(b["keys"]) for b in batches] == [8, 8, 8, 6]
    place = 0
    for batch in batches:
        for j in range(len(batch["keys"])):
            n, h = wanted[place]
            sequence = f"q{n}" if 8 <= n < 13 else "take"
            sample = make_sample(n, hands=2, synthetic=n >= 100, sequence=sequence)
            hand = sample.hands[h]
            assert batch["keys"][j] == f"{sample.key}-{hand.side[0]}"
            assert bool(batch["is_synthetic"][j]) == (n >= 100)
            assert batch["side"][j] == ("right", "left").index(hand.side)
            for name in ("joints_cam_m", "joints_px", "hand_pose", "betas", "transl", "global_orient", "in_view"):
                np.testing.assert_array_equal(batch[name][j].numpy(), getattr(hand, name))
            np.testing.assert_array_equal(batch["K_px"][j].numpy(), sample.camera.K_px)
            np.testing.assert_array_equal(batch["image"][j].numpy(), simplejpeg.decode_jpeg(make_jpeg(n)))
            place += 1
    assert place == 30
    assert batches[0]["image"].dtype == torch.uint8
    assert batches[0]["joints_cam_m"].dtype == torch.float32


def test_the_order_is_the_same_for_any_number_of_workers(folder):
    dataset = MixedDataset(folder, 4, crop_px=16)
    for epoch in (0, 2):
        alone = keys_of(dataset, 0, epoch)
        assert len(alone) == 30
        assert all(keys_of(dataset, workers, epoch) == alone for workers in (1, 2))
    assert keys_of(dataset, 5, 2) == alone


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("last", ["short", "pad", "drop"])
def test_ranks_read_slices_of_one_global_order(folder, world, last):
    alone = keys_of(MixedDataset(folder, 8))
    ranks = [list(MixedDataset(folder, 8, rank=r, world=world, last=last)) for r in range(world)]
    assert {len(r) for r in ranks} == {3 if last == "drop" else 4}
    merged = [key for parts in zip(*ranks) for part in parts for key in part["keys"]]
    padded = sum(batch["padded"] for r in ranks for batch in r)
    if last == "pad":
        assert (merged, padded) == (alone + alone[:2], 2)
        assert [len(r[-1]["keys"]) for r in ranks] == [len(r[0]["keys"]) for r in ranks]
    else:
        assert (merged, padded) == (alone if last == "short" else alone[:24], 0)


def test_workers_that_outlive_an_epoch_see_the_next(folder):
    dataset = MixedDataset(folder, 4)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        wanted = keys_of(dataset, 0, epoch)
        assert [key for batch in loader for key in batch["keys"]] == wanted


def test_resumption_at_every_batch_under_other_workers(folder):
    whole = list(MixedDataset(folder, 4))
    for stop in range(len(whole)):
        state = MixedDataset(folder, 4).state_dict(whole[stop])
        dataset = MixedDataset(folder, 4)
        dataset.load_state_dict(state)
        assert dataset.state_dict() == state
        workers = 2 if stop % 3 == 1 else 0
        rest = [key for batch in DataLoader(dataset, batch_size=None, num_workers=workers) for key in batch["keys"]]
        if stop + 1 < len(whole):
            assert rest == [key for batch in whole[stop + 1 :] for key in batch["keys"]]
        else:  # the end of an epoch is the beginning of the next
            assert rest == keys_of(MixedDataset(folder, 4), epoch=1)


def test_a_position_of_another_order_is_refused(folder):
    state = MixedDataset(folder, 4).state_dict()
    with pytest.raises(ResumeMismatch):
        MixedDataset(folder, 4, seed=8).load_state_dict(state)
    mixed(folder, "1/2")
    with pytest.raises(ResumeMismatch):
        MixedDataset(folder, 4).load_state_dict(state)


def test_crops_move_joints_and_intrinsics_with_the_pixels(tmp_path):
    """A dot drawn at a joint of the image is found at that joint of the crop, and K projects the 3-D joints there."""
    size, place = 200, np.array([120.0, 90.0])
    pixels = np.zeros((size, size, 3), np.uint8)
    cv2.circle(pixels, (120, 90), 4, (255, 255, 255), -1, cv2.LINE_AA)
    sample = make_sample(0, size=size)
    K = np.array([[180.0, 0, 97], [0, 190, 104], [0, 0, 1]])
    joints_px = np.random.default_rng(0).uniform(60, 160, (21, 2))
    joints_px[5] = place
    depth = np.linspace(0.4, 0.6, 21)[:, None]
    joints = np.concatenate([(joints_px - K[:2, 2]) / [K[0, 0], K[1, 1]] * depth, depth], axis=1)
    hand = type(sample.hands[0])("left", "open_hand", joints, joints_px, np.ones(21, bool))
    camera = type(sample.camera)(size, size, K, np.eye(4))
    sample = type(sample)(sample.key, camera, (hand,), (), sample.source)
    with ShardWriter(tmp_path / "shards" / "real-00000.tar", "real") as shard:
        shard.add(sample, simplejpeg.encode_jpeg(pixels, quality=100, colorsubsampling="444"))
    (batch,) = MixedDataset(mixed(tmp_path, "1"), 1, crop_px=224)
    image = batch["image"][0].numpy().astype(float)[..., 0]
    assert image.shape == (224, 224)
    v, u = np.indices(image.shape)
    weight = np.where(image > 32, image, 0)
    centre = np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()
    np.testing.assert_allclose(centre, batch["joints_px"][0, 5], atol=0.1)
    projected = joints @ batch["K_px"][0].numpy().T.astype(float)
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], batch["joints_px"][0], atol=1e-3)
    crop = square_crop(hand.joints_px, 224)
    np.testing.assert_allclose(batch["joints_px"][0], crop.points(hand.joints_px), atol=1e-4)
    assert list(batch["keys"]) == [f"{sample.key}-l"]


def test_images_of_several_sizes_need_a_crop(tmp_path):
    write_shard(tmp_path / "shards" / "real-00000.tar", range(2))
    write_shard(tmp_path / "shards" / "real-00001.tar", range(2, 4), size=SIZE + 8)
    mixed(tmp_path, "1")
    with pytest.raises(SchemaError, match="crop_px"):
        list(MixedDataset(tmp_path, 4))
    (batch,) = MixedDataset(tmp_path, 4, crop_px=24)
    assert batch["image"].shape == (4, 24, 24, 3)


def test_part_of_the_real_sequences(folder):
    everything = set(keys_of(MixedDataset(folder, 4)))
    mixed(folder, "1", keep="1/2")
    dataset = MixedDataset(folder, 4)
    kept = keys_of(dataset)
    assert len(kept) == len(set(kept)) == len(dataset.sources[0]) < 20
    names = {k.rpartition("/")[0] for k in kept}
    assert len(names) == 3  # of the six sequences, half
    assert {k for k in everything if k.rpartition("/")[0] in names and "@" not in k} == set(kept)


def test_damage_is_named_wherever_it_is_met(folder):
    path = folder / "shards" / "real-00001.tar"
    whole = path.read_bytes()
    row = MixedDataset(folder, 4).sources[0].find(9)[0].rows[1]
    flipped = bytearray(whole)
    flipped[int(row["image_offset"]) + 40] ^= 4
    dataset = MixedDataset(folder, 4)
    path.write_bytes(flipped)
    for workers in (0, 2):
        with pytest.raises(ShardDamaged, match=r"real-00001\.tar"):
            keys_of(dataset, workers)
    path.write_bytes(whole[:-512])
    with pytest.raises(ShardDamaged, match=r"real-00001\.tar"):
        keys_of(MixedDataset(folder, 4))
    path.write_bytes(whole)
    index_path(path).unlink()
    assert keys_of(MixedDataset(folder, 4)) == keys_of(dataset)
    path.unlink()
    with pytest.raises(ShardDamaged, match=r"real-00001\.tar"):
        keys_of(MixedDataset(folder, 4))


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_crash(folder):
    dataset = MixedDataset(folder, 4)
    assert len(keys_of(dataset)) == 30
    with open(folder / "shards" / "syn-00000.tar", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ShardDamaged, match=r"syn-00000\.tar"):
        keys_of(dataset)


def test_a_replaced_shard_is_noticed(folder):
    path = folder / "shards" / "real-00001.tar"
    for name in (".tar", ".json", ".idx"):
        path.with_suffix(name).unlink()
    write_shard(path, range(50, 54))
    with pytest.raises(ShardDamaged, match="run the mix again"):
        keys_of(MixedDataset(folder, 4))


def test_arguments_are_checked_and_the_dataset_pickles(folder):
    for wrong in ({"batch_size": 0}, {"rank": 2, "world": 2}, {"last": "x"}, {"crop_px": 0}):
        with pytest.raises(ConfigError):
            MixedDataset(folder, **{"batch_size": 4, **wrong})
    with pytest.raises(ConfigError, match="none"):
        MixedDataset(folder, 64, last="drop")
    dataset = MixedDataset(folder, 4)
    assert keys_of(pickle.loads(pickle.dumps(dataset))) == keys_of(dataset)


def test_a_window_of_shards_is_one_order_too(folder):
    """Each real hand once, the same for workers and ranks, resumable, and another order than the full shuffle."""
    full = MixedDataset(folder, 4)
    mixed(folder, window_shards=1)
    dataset = MixedDataset(folder, 4)
    keys = keys_of(dataset)
    assert len(dataset) == len(full)
    assert sorted(k for k in keys if "@" not in k) == sorted(k for k in keys_of(full) if "@" not in k)
    assert keys_of(dataset, workers=2) == keys != keys_of(full)
    ranks = [list(MixedDataset(folder, 4, rank=r, world=3)) for r in range(3)]
    assert [key for parts in zip(*ranks) for part in parts for key in part["keys"]] == keys
    shards = [keys[i].split("/")[4][:6] for i in range(len(keys)) if "@" not in keys[i]]
    numbers = [min(int(s) // 4, 2) for s in shards]  # frames 0 to 3, 4 to 7, 8 to 12
    assert len(list(itertools.groupby(numbers))) == 3
    with pytest.raises(ResumeMismatch):
        dataset.load_state_dict(full.state_dict())
    state = dataset.state_dict(list(dataset)[3])
    dataset.load_state_dict(state)
    assert [key for batch in dataset for key in batch["keys"]] == keys[16:]
    mixed(folder, window_shards=-1)
    with pytest.raises(ConfigError, match="window_shards"):
        MixedDataset(folder, 4)


# ------------------------------------------------------------------------------------- other loaders' state, and DDP


def test_an_iteration_goes_on_where_its_own_state_stood(folder):
    """The protocol that StatefulDataLoader uses in each worker: an iterator with a state of plain numbers."""
    dataset = MixedDataset(folder, 4)
    whole = keys_of(dataset, epoch=1)
    dataset.set_epoch(1)
    for used in range(len(dataset) + 1):
        iterator = iter(dataset)
        for _ in range(used):
            next(iterator)
        state = orjson.loads(orjson.dumps(iterator.state_dict()))  # type: ignore[attr-defined]
        again = iter(MixedDataset(folder, 4))
        again.load_state_dict(state)  # type: ignore[attr-defined]
        assert [key for batch in again for key in batch["keys"]] == whole[4 * used :]
    for change in ({"order": "x"}, {"worker": [0, 2]}, {"next": "4"}, {"more": 1}):
        with pytest.raises(ResumeMismatch):
            again.load_state_dict({**state, **change})  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_goes_on_in_the_middle_of_an_epoch(folder, workers):
    dataset = MixedDataset(folder, 4)
    whole = keys_of(dataset, epoch=1)
    for used in (1, 3, 7):
        dataset.set_epoch(1)
        loader = StatefulDataLoader(dataset, batch_size=None, num_workers=workers)
        batches = iter(loader)
        seen = [key for batch in itertools.islice(batches, used) for key in batch["keys"]]
        state = loader.state_dict()
        del batches
        other = MixedDataset(folder, 4)
        resumed = StatefulDataLoader(other, batch_size=None, num_workers=workers)
        resumed.load_state_dict(state)
        assert seen + [key for batch in resumed for key in batch["keys"]] == whole
        other.set_epoch(2)
        assert [key for batch in resumed for key in batch["keys"]] == keys_of(other, epoch=2)


def train_rank(folder: Path, rank: int, world: int, results: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=world, rank=rank)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(10, 1))
    keys = []
    for batch in MixedDataset(folder, 7, decode_threads=1):
        model(batch["betas"]).sum().backward()
        keys.append(batch["keys"])
    gradient = model.module.weight.grad
    results.put((rank, keys, gradient.tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ddp_ranks_take_their_own_slices(folder):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=train_rank, args=(folder, r, 2, results)) for r in range(2)]
    for process in ranks:
        process.start()
    (_, first, a), (_, second, b) = sorted(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert [key for pair in zip(first, second) for keys in pair for key in keys] == keys_of(MixedDataset(folder, 7))
    assert len(first) == len(second) == 5
    assert a == b
