"""Training on mixed shards: one order, exact resume, labels with and without meshes, a network that learns."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from mixed_build import write_build

from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand import load_net
from pam_aug.hand import load_open_hand
from pam_aug.mix import MixedDataset
from pam_aug.recipes import load_recipe
from pam_aug.train import mixed, nets, run
from pam_aug.train.mesh_labels import Targets
from pam_aug.train.mixed_config import GeometryConfig, MixedTrainConfig, read_recipe
from pam_aug.train.mixed_data import MixBatches, crop_window, derive_mix
from pam_aug.train.nets import net_spec

NET = {"input_px": 64, "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "dims": [32, 16, 8],
       "mixers": ["attention", "identity", "identity"], "uv_head": "heatmap", "token_map": "pyramid"}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def joint_map():
    """Fitted once: it is a function of the bundled hand, and a second of work."""
    found = fit_joint_map(load_open_hand("right"))
    patch = pytest.MonkeyPatch()
    patch.setattr(nets, "fit_joint_map", lambda *_: found)
    yield torch.from_numpy(found)
    patch.undo()


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("build"), real=9, synthetic=7, ratio="2/3")


def recipe(build, **fields) -> dict:
    return {
        "name": "tiny", "net": NET, "data": {"mix": str(build)}, "iterations": 6, "batch": 4, "warmup": 2, "drops": [4],
        "loaders": 0, "checkpoint_every": 3, "log_every": 2, "tensorboard": False, "cpu": True, "weight_heat": 1.0,
        **fields,
    }  # fmt: skip


def batches_of(build, rank=0, world=1, config=None, batch=4, iterations=8, last="pad"):
    spec = net_spec(NET)
    px, scale = crop_window(spec, None if config is None else config.geometry)
    dataset = MixedDataset(build, batch, crop_px=px, crop_scale=scale, last=last, rank=rank, world=world)
    return MixBatches(dataset, spec, config, iterations)


def test_two_processes_read_the_order_of_one(build):
    config = read_recipe(recipe(build))
    alone = batches_of(build, config=config)
    halves = [batches_of(build, rank, 2, config) for rank in (0, 1)]
    assert alone.dataset.schedule.epoch_length == 14  # not a multiple of the batch
    for i in range(8):  # two epochs
        whole, parts = alone[i], [half[i] for half in halves]
        assert [key for part in parts for key in part["keys"]] == list(whole["keys"])
        assert {part["position"] for part in parts} == {whole["position"]}
        for name in ("H_px", "turned", "uv", "image"):  # and what is drawn for each hand
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    firsts = [k for i in range(4) for k in alone[i]["keys"]][:14]
    assert len({k for k in firsts if "/real/" in k}) == 9  # an epoch is one pass over the real hands


def test_a_batch_is_a_function_of_its_number(build):
    config = read_recipe(recipe(build, gap={"spectrum": 0.5, "occluder": 0.5}))
    one, other = (batches_of(build, config=config) for _ in range(2))
    for i in (5, 0, 2):
        a, b = one[i], other[i]
        assert all(torch.equal(a[name], b[name]) for name in ("image", "uv", "H_px"))
    assert not torch.equal(one[0]["image"], one[1]["image"])


def test_targets_agree_with_the_view(build, joint_map):
    """Image positions against the projected points of the same view, through loader, crop and homography."""
    config = read_recipe(recipe(build))
    batches = batches_of(build, config=config)
    targets = Targets(batches.spec, joint_map, torch.device("cpu"))
    for i in range(3):
        raw = batches[i]
        x, batch = targets(raw)
        assert x.shape == (4, 3, 64, 64)
        assert batch.verts_valid is not None
        assert batch.verts_valid.all()
        assert batch.joints_m[:, 0].abs().max() == 0
        camera = raw["joints_cam_m"].double()
        camera[:, [4, 8, 12, 16, 20]] = targets.vertices_cam_m(raw)[0].double()[:, [744, 320, 443, 554, 671]]
        K_view = raw["H_px"] @ raw["K_px"].double() @ raw["turned"].transpose(1, 2)
        px = (raw["turned"] @ camera.transpose(1, 2)).transpose(1, 2) @ K_view.transpose(1, 2)
        error = px[..., :2] / px[..., 2:] - (batch.uv.double() * 64 - 0.5)
        assert error.abs().max() < 0.01
        turned = (raw["turned"] @ (camera - camera[:, :1]).transpose(1, 2)).transpose(1, 2)
        assert (turned - batch.joints_m).abs().max() < 1e-6
        assert (batch.verts_m[:, 320] - batch.joints_m[:, 8]).abs().max() < 1e-6


def test_labels_without_a_mesh_train_joints(tmp_path, joint_map):
    folder = write_build(tmp_path, real=4, synthetic=4, mano_valid=False)
    targets = Targets(net_spec(NET), joint_map, torch.device("cpu"))
    _, batch = targets(batches_of(folder)[0])
    assert batch.verts_valid is not None
    assert batch.joints_valid is not None
    assert not batch.verts_valid.any()
    assert batch.joints_valid.all()


def test_labels_whose_mano_is_not_there_train_joints_with_a_warning(tmp_path, joint_map, monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)
    folder = write_build(tmp_path, real=4, synthetic=4, hand_model="mano")
    (folder / "build.json").write_text(json.dumps({"identity": {"hands": {"mano/right": "0", "mano/left": "0"}}}))
    targets = Targets(net_spec(NET), joint_map, torch.device("cpu"))
    with pytest.warns(UserWarning, match="joints alone"):
        _, batch = targets(batches_of(folder)[0])
    assert batch.verts_valid is not None
    assert not batch.verts_valid.any()


@pytest.mark.parametrize(
    ("ratio", "fraction", "length", "real"),
    [("1", "", 9, 9), ("0", "", 7, 0), ("union", "", 16, 9), ("union", "0.25", 11, 4), ("1/2", "", 18, 9),
     ("", "", 14, 9)],
)  # fmt: skip
def test_rows_of_a_table_are_ratios_of_one_build(build, tmp_path, ratio, fraction, length, real):
    schedule = MixedDataset(derive_mix(build, tmp_path / "mix.json", ratio, fraction), 4, crop_px=8).schedule
    assert schedule.epoch_length == length
    positions = schedule.at(np.arange(length))
    first = 0 if ratio != "0" else 99
    assert (positions[0] == first).sum() == real
    if ratio == "union":
        assert schedule.reads_per_epoch == (1.0, 1.0)


def test_a_folder_of_shards_is_read_whole(tmp_path):
    folder = write_build(tmp_path / "build", real=5, synthetic=3)
    (folder / "mix.json").unlink()
    schedule = MixedDataset(derive_mix(folder, tmp_path / "all.json"), 4, crop_px=8).schedule
    assert (schedule.epoch_length, schedule.reads_per_epoch) == (8, (1.0, 1.0))
    with pytest.raises(ConfigError, match="neither"):
        derive_mix(tmp_path, tmp_path / "none.json")


def rows_of(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(build, tmp_path, monkeypatch):
    fields = recipe(build, ema=0.9, muon_lr=1e-3, weight_aligned=2.0, held_out={"mix": str(build), "every": 4})
    figures = run(fields, tmp_path / "whole")
    step = mixed.MixedRun.step

    def dies(self, iteration, raw):
        if iteration == 4:
            raise KeyboardInterrupt
        step(self, iteration, raw)

    monkeypatch.setattr(mixed.MixedRun, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(fields, tmp_path / "broken")
    monkeypatch.setattr(mixed.MixedRun, "step", step)
    assert run(fields, tmp_path / "broken", ["loaders=1"]) == figures  # even with another number of workers
    assert figures["hands"] == 16
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert (whole / "tiny.safetensors").read_bytes() == (broken / "tiny.safetensors").read_bytes()
    assert load_net(broken / "tiny.safetensors").config.input_px == 64
    timed = ("images_per_s", "loader_share")
    logs = [
        [{k: v for k, v in row.items() if k not in timed} for row in rows_of(p / "log.csv")] for p in (whole, broken)
    ]
    assert logs[0] == logs[1]
    assert [row["iteration"] for row in logs[0]] == ["2", "4", "6"]
    assert [float(row["lr"]) for row in logs[0]] == pytest.approx([5e-4, 5e-4, 5e-5])
    assert rows_of(whole / "held_out.csv") == rows_of(broken / "held_out.csv")
    assert len(rows_of(whole / "held_out.csv")) == 2

    with pytest.raises(ResumeMismatch, match="lr"):
        run(fields, tmp_path / "whole", ["lr=0.1"])
    (broken / "checkpoint.safetensors").write_bytes(b"12345678 no checkpoint")
    with pytest.raises(SchemaError, match="checkpoint"):
        run(fields, broken)


def test_other_shards_under_a_checkpoint_are_refused(tmp_path):
    folder = write_build(tmp_path / "build", real=5, synthetic=3)
    fields = recipe(folder, iterations=2, checkpoint_every=1, warmup=0)
    run(fields, tmp_path / "out")
    shutil.rmtree(folder / "shards")
    write_build(folder, real=6, synthetic=3)
    with pytest.raises(ResumeMismatch, match="order"):
        run(fields, tmp_path / "out")


def learn(build, out, hands: int, iterations: int, **fields) -> dict:
    """The error on the hands that are trained on, without augmentation."""
    steps = {"iterations": iterations, "warmup": 10, "drops": [], "decay": iterations // 2, "lr": 4e-3}
    weights = {"weight_uv": 2.0, "weight_heat": 1.0, "clip_norm": 5.0, "log_every": iterations}
    every = {"held_out": {"mix": str(build), "every": iterations}, "checkpoint_every": iterations}
    data = {"mix": str(build), "ratio": "union"}
    return run(recipe(build, augment=False, batch=hands, data=data, **steps, **weights, **every, **fields), out)


def test_a_few_hands_are_learned(tmp_path):
    folder = write_build(tmp_path / "build", real=4, synthetic=2)
    before = learn(folder, tmp_path / "short", 6, 20)
    after = learn(folder, tmp_path / "long", 6, 120)
    assert after["hands"] == 6
    assert after["mpjpe_mm"] < before["mpjpe_mm"] / 2
    assert after["mpjpe_mm"] < 15


def test_backgrounds_are_swapped_behind_hands_only(tmp_path):
    folder = write_build(tmp_path / "seg", real=4, synthetic=4, seg=True)
    neutral = {"gain": [1, 1], "brightness": [0, 0], "contrast": [0, 0]}
    fields = recipe(folder, gap={"background": 1.0}, pixels=neutral)
    plain, swapped = (batches_of(folder, config=read_recipe(f)) for f in (recipe(folder, pixels=neutral), fields))
    before, after = plain[0]["image"].numpy(), swapped[0]["image"].numpy()
    found = swapped.dataset.items_at(swapped.dataset.positions_at(0)[0])
    for i, (reader, row) in enumerate(found):
        kept = swapped._kept(reader, row)
        hand, ground = kept == 1, kept == 0
        assert hand.sum() > 20
        assert np.array_equal(after[i][hand], before[i][hand])
        assert np.abs(after[i][ground].astype(int) - before[i][ground]).mean() > 5
    without = write_build(tmp_path / "none", real=4, synthetic=4)
    with pytest.raises(ConfigError, match="seg"):
        batches_of(without, config=read_recipe({**fields, "data": {"mix": str(without)}}))[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_four_hands_are_learned_to_a_millimetre(tmp_path):
    folder = write_build(tmp_path / "build", real=40, synthetic=24)
    assert learn(folder, tmp_path / "out", 64, 3000, muon_lr=4e-3)["mpjpe_mm"] < 1.0


def test_wrong_recipes_are_named(build):
    with pytest.raises(ConfigError, match="learning_rate"):
        read_recipe(recipe(build, learning_rate=1))
    with pytest.raises(ConfigError, match=r"data\.mix"):
        read_recipe({"data": {}})
    with pytest.raises(ConfigError, match="fp16"):
        read_recipe(recipe(build, precision="fp16"))
    with pytest.raises(ConfigError, match="row 'some'"):
        read_recipe(recipe(build, row="some"))
    with pytest.raises(ConfigError, match="share"):
        read_recipe(recipe(build), ["data.ratio=2"])


def test_the_loaders_window_holds_the_widest_view():
    spec = net_spec(NET)
    px, scale = crop_window(spec, GeometryConfig(turn_deg=180, scale=[0.8, 1.2], shift=0.1))
    assert scale > spec.enlarge * 1.2 * 2**0.5
    assert px >= 64 * 1.2 * 2**0.5  # no less detail than the view has, in the middle of the scales
    assert crop_window(spec, None)[1] == pytest.approx(1.05 * spec.enlarge)
    assert crop_window(spec, None, 100, 2.0) == (100, 2.0)
    assert MixedTrainConfig().iterations * MixedTrainConfig().batch == 13_107_200  # the published number of images


@pytest.mark.parametrize("name", ["table4_dexycb", "table4_standin"])
def test_the_tables_rows_differ_in_data_alone(name):
    tree = load_recipe(name)
    rows = {row: read_recipe(tree, [f"row={row}", "data.mix=somewhere"]) for row in tree["rows"]}
    data = {row: (config.data.ratio, config.data.real_fraction) for row, config in rows.items()}
    assert data == {
        "real": ("1", ""), "generated": ("0", ""), "generated+25": ("union", "0.25"), "generated+50": ("union", "0.5"),
        "generated+75": ("union", "0.75"), "generated+100": ("union", ""),
    }  # fmt: skip
    assert len({(c.iterations, c.batch, c.lr, c.seed, repr(c.net)) for c in rows.values()}) == 1
    assert {c.data.mix for c in rows.values()} == {"somewhere"}
    assert read_recipe(tree, ["row=generated+50", "data.mix=x", "data.ratio=0.3"]).data.ratio == "0.3"
    assert net_spec(rows["real"].net).input_px == (224 if name == "table4_dexycb" else 96)
    with pytest.raises(ConfigError, match="mix"):
        read_recipe(tree)
