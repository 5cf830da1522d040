"""Training: exact labels, batches that depend on the seed alone, a run that learns, stops and goes on."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pam_aug.errors import ConfigError, ResumeMismatch
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand import SimpleHandEstimator, SimpleHandOptions
from pam_aug.estimators.simplehand_net import NetConfig, SimpleHandNet, normalise_pixels
from pam_aug.hand import load_open_hand
from pam_aug.recipes import load_recipe
from pam_aug.train import run
from pam_aug.train.config import AugmentConfig, PoolConfig, TrainConfig
from pam_aug.train.crops import CropBatches, augment_pixels, crop_with_label
from pam_aug.train.losses import aligned_error, heat_loss, loss_terms, loss_weights
from pam_aug.train.optim import Muon, make_optimizers, orthogonalised, schedule, set_learning_rate
from pam_aug.train.pool import open_pool, render_pool

NET = {"input_px": 64, "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "dims": [32, 16, 8],
       "mixers": ["attention", "identity", "identity"], "uv_head": "heatmap", "token_map": "pyramid"}  # fmt: skip
SOURCE = {"converter": "demo-rollouts", "size": [64, 64], "fill": [0.4, 0.6]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    render_pool(PoolConfig(source=SOURCE, inputs=4, appearances=2), folder, workers=0)
    return folder


@pytest.fixture(scope="module")
def pool(folder):
    return open_pool(PoolConfig(source=SOURCE, inputs=4, appearances=2), folder)


def test_a_pool_holds_every_image_with_its_label(pool):
    assert len(pool) == 8
    assert pool.hand.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pool.image(5).shape == (64, 64, 3)
    joints = pool.joints_m[2].astype(np.float64)
    px = joints @ pool.K_px[2].T
    assert px[:, :2] / px[:, 2:] == pytest.approx(pool.joints_px[2], abs=1e-3)
    tip = pool.verts_m[2, 320] + joints[0]  # the index fingertip's vertex
    assert tip == pytest.approx(joints[8], abs=1e-4)


def test_a_finished_pool_is_not_rendered_again(folder, pool):
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    render_pool(PoolConfig(source=SOURCE, inputs=4, appearances=2), folder, workers=0)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    with pytest.raises(ConfigError):
        open_pool(PoolConfig(source=SOURCE, inputs=400, appearances=2), folder)


@pytest.mark.parametrize("augment", [None, AugmentConfig()])
def test_crop_labels_agree_in_two_and_three_dimensions(pool, augment):
    net = NetConfig.of(NET)
    rng = np.random.default_rng(0)
    for row in range(8):
        crop, uv, joints, verts = crop_with_label(pool, row, net, augment, rng)
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == np.uint8
        assert joints[0].tolist() == [0, 0, 0]
        assert verts[[744, 320, 443, 554, 671]] == pytest.approx(joints[[4, 8, 12, 16, 20]], abs=2e-4)
        # A pinhole camera exists that sees the joints at uv: z of the wrist and one focal length explain all of them.
        px = uv.astype(np.float64) * 64 - 31.5 - 0.5
        rows = [np.stack([joints[:, i], -px[:, i], np.full(21, i == 0), np.full(21, i == 1)], 1) for i in range(2)]
        A = np.concatenate(rows)
        solution, _, rank, _ = np.linalg.lstsq(A, (px * joints[:, 2:]).T.ravel(), rcond=None)
        assert rank == 4
        residual = A @ solution - (px * joints[:, 2:]).T.ravel()
        assert np.abs(residual / solution[1]).max() < 0.05  # pixels


def test_a_left_hand_is_a_mirrored_right_hand(pool):
    assert set(pool.left.tolist()) == {True, False}
    net = NetConfig.of(NET)
    rng = np.random.default_rng(0)
    right = load_open_hand("right")
    for row in range(0, 8, 2):
        _, _, _, verts = crop_with_label(pool, row, net, None, rng)
        triangles = verts[right.f].astype(np.float64)
        volume = np.einsum("fk,fk->f", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])).sum() / 6
        assert volume > 0  # a mirrored mesh under the right hand's faces would be inside out


def test_an_upright_networks_crops_are_upright_but_for_the_noise(pool):
    net, rng = NetConfig.of({**NET, "upright": True}), np.random.default_rng(5)

    def directions(augment):
        joints = [crop_with_label(pool, row % 8, net, augment, rng)[2] for row in range(80)]
        along = np.stack([j[[5, 9, 13, 17]].mean(0) - j[0] for j in joints])
        return np.arctan2(along[:, 0], -along[:, 1])  # 0 where the knuckles are above the wrist

    exact = directions(AugmentConfig(any_turn=0.0, turn_noise=0.0, shift=0.0))
    assert exact == pytest.approx(np.zeros(80), abs=1e-4)
    assert 0.05 < np.abs(directions(AugmentConfig(any_turn=0.0, turn_noise=0.2))).mean() < 0.8
    assert np.abs(directions(AugmentConfig(any_turn=1.0))).mean() == pytest.approx(np.pi / 2, abs=0.4)


def test_batches_depend_on_seed_and_number_only(pool):
    net = NetConfig.of(NET)
    batches = CropBatches(pool, net, AugmentConfig(), batch=4, iterations=5, seed=3)
    later = CropBatches(pool, net, AugmentConfig(), batch=4, iterations=9, seed=3)
    assert torch.equal(batches[3].crops, later[3].crops)
    assert torch.equal(batches[3].verts_m, later[3].verts_m)
    other = CropBatches(pool, net, AugmentConfig(), batch=4, iterations=5, seed=4)
    assert not torch.equal(batches[3].crops, other[3].crops)
    rows = [batches._row(k) for k in range(16)]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))  # whole passes


def test_pixel_augmentations_keep_form_and_change_pixels():
    crop = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    everything = AugmentConfig(occlude=1, blur=1, noise=1, jpeg=1, shrink=1)
    out = augment_pixels(crop.copy(), everything, np.random.default_rng(2))
    assert out.shape == crop.shape
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - crop).mean() > 1
    assert np.array_equal(out, augment_pixels(crop.copy(), everything, np.random.default_rng(2)))


def test_the_schedule_is_a_trapezoid():
    config = TrainConfig(iterations=100, warmup=10, decay=40)
    values = [schedule(i, config) for i in range(100)]
    assert values[0] == 0.1
    assert values[9:61] == [1.0] * 52
    assert values[80] == 0.5
    assert values[99] == 1 / 40
    longer = TrainConfig(iterations=200, warmup=10, decay=40)
    assert [schedule(i, longer) for i in range(61)] == values[:61]
    assert schedule(0, TrainConfig(iterations=9, warmup=0, decay=0)) == 1.0


def test_the_heat_loss_is_the_cross_entropy_with_the_four_nearest_cells():
    logits = torch.zeros(1, 21, 4, 8)
    uv = torch.full((1, 21, 2), 0.5)
    assert heat_loss(logits, uv).item() == pytest.approx(math.log(32))
    logits[..., 1:3, 3:5] = 50.0  # the cells around the middle, a quarter each
    assert heat_loss(logits, uv).item() == pytest.approx(math.log(4))
    assert heat_loss(logits, torch.full((1, 21, 2), 2.0)).item() == pytest.approx(50 + math.log(4))  # the last cell


def test_the_aligned_error_forgives_turn_place_and_size_only():
    rng = np.random.default_rng(3)
    true = torch.from_numpy(rng.normal(0, 0.05, (5, 21, 3)).astype(np.float32))
    turn = np.linalg.qr(rng.normal(size=(5, 3, 3)))[0]
    turn *= np.linalg.det(turn)[:, None, None]
    moved = 1.3 * true @ torch.from_numpy(turn.astype(np.float32)) + 0.1
    assert aligned_error(moved, true).item() < 1e-6
    assert aligned_error(true * torch.tensor([1.0, 1.0, -1.0]), true).item() > 0.01  # a mirrored hand is another hand
    bent = moved.clone()
    bent[:, 8] += 0.02
    bent.requires_grad_()
    error = aligned_error(bent, true)
    error.backward()
    closer = aligned_error(bent.detach() - 0.01 * bent.grad / bent.grad.norm(), true)
    assert closer.item() < error.item()


def test_the_heatmaps_weight_falls_to_zero():
    config = TrainConfig(iterations=8, warmup=0, decay=0, weight_heat=2.0)
    assert [loss_weights(i, config)["heat"] for i in (0, 4, 7)] == [2.0, 1.0, 0.25]
    assert loss_weights(0, config)["verts"] == loss_weights(7, config)["verts"] == config.weight_verts


@pytest.mark.parametrize("muon_lr", [0.0, 1e-3])
def test_every_parameter_is_trained_once_and_norms_biases_and_embeddings_do_not_decay(muon_lr):
    net = SimpleHandNet(NetConfig.of(NET), torch.zeros(21, 778))
    names = {id(p): n for n, p in net.named_parameters()}
    optimizers = make_optimizers(net, TrainConfig(muon_lr=muon_lr, weight_decay=0.01))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(names.values())
    free = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert all(name in free for name in names.values() if ".bn." in name or "bias" in name)
    assert {"mesh_head.pos_emb_1", "mesh_head.encoder_1.0.norm1.weight"} <= free
    assert isinstance(optimizers[0], Muon) == (muon_lr > 0)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_orthogonalised_keeps_directions_and_evens_out_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(orthogonalised(matrix, steps=6))
    assert (values.min() > 0.5, values.max() < 1.3) == (True, True)
    assert torch.cosine_similarity(orthogonalised(matrix).flatten(), (u @ vt).flatten(), dim=0) > 0.97
    kernel = nn.Parameter(matrix.view(shape[0], -1, 2, 2).clone().to(memory_format=torch.channels_last))
    kernel.grad = kernel.detach().clone()
    Muon([kernel], lr=0.1).step()
    moved = (matrix.view_as(kernel) - kernel.detach()).reshape(shape)
    assert torch.cosine_similarity(moved.flatten(), (u @ vt).flatten(), dim=0) > 0.97
    assert moved.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.25)  # as AdamW's steps are


def test_the_network_learns_a_few_crops_by_heart(pool):
    torch.manual_seed(0)
    hand = load_open_hand("right")
    net = SimpleHandNet(NetConfig.of(NET), torch.from_numpy(fit_joint_map(hand)))
    batch = CropBatches(pool, net.config, AugmentConfig(occlude=0), batch=8, iterations=1, seed=0)[0]
    config = TrainConfig(iterations=120, warmup=10, decay=60, lr=3e-3, muon_lr=5e-3, weight_aligned=5.0)
    optimizers = make_optimizers(net, config)
    x = normalise_pixels(batch.crops, "rgb_half")
    start = loss_terms(net(x), batch)
    for step in range(120):
        set_learning_rate(optimizers, schedule(step, config))
        terms = loss_terms(net(x), batch)
        net.zero_grad()
        sum(weight * terms[name] for name, weight in loss_weights(step, config).items()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert terms["joints"].item() < start["joints"].item() / 8
    assert terms["joints"].item() < 0.02  # metres, summed over three axes
    assert terms["uv"].item() < start["uv"].item() / 3


RECIPE = {
    "name": "tiny",
    "net": NET,
    "pool": {"source": SOURCE, "inputs": 4, "appearances": 2},
    "held_out": {"source": {**SOURCE, "split": "test"}, "inputs": 2, "appearances": 1, "seed": 1},
    "iterations": 6,
    "batch": 4,
    "warmup": 2,
    "decay": 3,
    "muon_lr": 1e-3,
    "weight_aligned": 5.0,
    "loaders": 0,
    "render_workers": 0,
    "checkpoint_every": 3,
}


def test_a_run_can_stop_go_on_and_be_used(tmp_path, folder, monkeypatch):
    import pam_aug.train.loop as loop

    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        for kind, seed in (("pool-train", 0), ("pool-held-out", 1)):
            source = RECIPE["pool" if seed == 0 else "held_out"]["source"]
            target = tmp_path / name / kind
            if seed == 0:
                target.symlink_to(folder)
            elif name == "broken":
                target.symlink_to(tmp_path / "whole" / kind)
            else:
                render_pool(PoolConfig(source=source, inputs=2, appearances=1, seed=1), target, 0)
    figures = run(RECIPE, tmp_path / "whole")
    assert figures["images"] == 2
    assert math.isfinite(figures["mpjpe_mm"])

    step, calls = loop._step, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "broken")
    monkeypatch.setattr(loop, "_step", step)
    assert run(RECIPE, tmp_path / "broken") == figures
    files = [(tmp_path / name / "tiny.safetensors").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]

    info = json.loads((tmp_path / "whole/tiny.json").read_text())
    assert info["training_images"] == 8
    assert info["held_out"] == figures
    assert info["hand_model_sha256"] == load_open_hand("right").sha256
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=str(tmp_path / "whole/tiny.safetensors")))
    assert estimator.requires() == []
    assert estimator.version.startswith("tiny-")

    with pytest.raises(ResumeMismatch, match="lr"):
        run(RECIPE, tmp_path / "whole", ["lr=0.1"])


def test_the_shipped_recipe_reads_and_wrong_ones_are_named(tmp_path):
    from pam_aug.config import resolve

    config = resolve(TrainConfig, load_recipe("simplehand_small"))
    assert NetConfig.of(config.net).input_px == 128
    with pytest.raises(ConfigError, match="learning_rate"):
        run({**RECIPE, "learning_rate": 1}, tmp_path)
    with pytest.raises(ConfigError, match="warmup"):
        run({**RECIPE, "warmup": 9}, tmp_path)
    with pytest.raises(ConfigError, match="depth"):
        run({**RECIPE, "net": {"depth": 3}}, tmp_path)
