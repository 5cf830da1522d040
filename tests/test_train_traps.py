"""What is broken or hard-coded in the published training code, avoided here: a test for each, named after it.

Those of the geometry (crop centre, focal lengths, flip, degrees) are in test_train_geometry.py.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from fake_mano import fake_hand
from mixed_build import write_build

from pam_aug.errors import AssetMissing, ConfigError
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand_net import NetConfig, NetOutput, SimpleHandNet, normalise_pixels
from pam_aug.hand import load_open_hand
from pam_aug.train import mixed, nets
from pam_aug.train.augment_geometry import Views
from pam_aug.train.crops import Batch
from pam_aug.train.losses import loss_terms
from pam_aug.train.mesh_labels import Targets
from pam_aug.train.mixed_config import MixedTrainConfig, read_recipe
from pam_aug.train.mixed_data import MixBatches, crop_window, derive_mix
from pam_aug.train.nets import FastViTNet, net_spec
from pam_aug.train.optim import make_optimizers, schedule

NET = {"input_px": 64, "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "dims": [32, 16, 8], "tips": "smplx"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("build"), real=6, synthetic=4)


@pytest.fixture(scope="module")
def regressor():
    return torch.from_numpy(fit_joint_map(load_open_hand("right"), "regressor"))


def batches_of(build, net=None, config=None):
    from pam_aug.mix import MixedDataset

    spec = net_spec(net or NET)
    px, scale = crop_window(spec, None if config is None else config.geometry)
    return MixBatches(MixedDataset(build, 4, crop_px=px, crop_scale=scale), spec, config, 9)


def test_trap_training_and_evaluation_take_positions_from_different_places(build, regressor):
    """There: training re-projects, evaluation reads stored positions. Here both go through one function."""
    raw = batches_of(build)[0]
    evaluation = Targets(net_spec(NET), regressor, CPU)(raw)[1]
    still = read_recipe(
        {"data": {"mix": "x"}, "net": NET, "geometry": {"turn_deg": 0, "scale": [1, 1], "shift": 0, "flip": 0}}
    )
    training = Targets(net_spec(NET), regressor, CPU)(batches_of(build, config=still)[0])[1]
    assert torch.allclose(evaluation.uv, training.uv, atol=1e-4)
    assert torch.equal(evaluation.joints_m, training.joints_m)


def test_trap_channel_order_and_normalisation_are_named():
    """There: BGR less a half, unsaid. Here the configuration says which, and a wrong name is an error."""
    crops = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    crops[..., 0] = 255  # red
    assert normalise_pixels(crops, "rgb_half")[0, :, 0, 0].tolist() == [0.5, -0.5, -0.5]
    assert normalise_pixels(crops, "legacy_bgr_half")[0, :, 0, 0].tolist() == [-0.5, -0.5, 0.5]
    assert normalise_pixels(crops, "imagenet_rgb")[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    with pytest.raises(ConfigError, match="pixels"):
        net_spec({"backbone": "fastvit_ma36", "pixels": "bgr"})


def test_trap_joints_and_vertices_that_contradict_each_other(build):
    """There: MANO's regressor on the mesh beside the dataset's kinematic joints, 4 mm apart, and other fingertips. A
    perfect mesh must have no joint loss, whichever definition is chosen."""
    hand = load_open_hand("right")
    raw = batches_of(build)[0]
    for joints, tips, bar_m in (
        ("regressor", "smplx", 1e-6),
        ("regressor", "manopth", 1e-6),
        ("kinematic_fit", "manopth", 2e-3),
    ):
        net = {**NET, "joints": joints, "tips": tips}
        joint_map = torch.from_numpy(fit_joint_map(hand, joints, tips)).float()
        batch = Targets(net_spec(net), joint_map, CPU)(raw)[1]
        found = joint_map @ batch.verts_m
        error = (found - found[:, :1] - batch.joints_m).norm(dim=-1)
        assert error.mean() < bar_m
        assert error[:, [4, 8, 12, 16, 20]].mean() < bar_m


def test_trap_a_hand_is_left_out_only_when_wrist_and_middle_base_are_both_outside(build, monkeypatch):
    batches = batches_of(build)
    raw = batches.dataset.load(batches.dataset.positions_at(0)[0])
    for joints, valid in ((0, True), (9, True), ((0, 9), False), (5, True)):
        seen = np.full((4, 21, 2), 30.0)
        seen[:, joints] = 1000.0
        monkeypatch.setattr(Views, "points", lambda _, px, seen=seen: seen)
        batches._add_views(raw, [0, 1, 2, 3])
        assert raw["valid"].tolist() == [valid] * 4


def test_trap_hands_without_labels_weigh_nothing():
    rng = torch.Generator().manual_seed(0)
    points = [torch.rand(4, k, d, generator=rng) for k, d in ((21, 2), (21, 3), (778, 3))]
    valid = torch.tensor([True, False, True, True])
    batch = Batch(torch.zeros(4, 2, 2, 3), points[0], points[1], points[2], valid, valid, valid)
    out = NetOutput(points[0] + 0.1, points[2] + 0.1, points[1] + 0.1)
    wild = NetOutput(*(t + 50.0 * (~valid)[:, None, None] for t in (out.uv, out.verts_m, out.joints_m)))
    terms, same = (loss_terms(o, batch, ("uv", "joints", "verts")) for o in (out, wild))
    assert all(torch.equal(terms[name], same[name]) for name in terms)
    assert terms["joints"].item() == pytest.approx(0.3 * 3 / 4, rel=1e-5)  # in the mean over all four, as published


def test_trap_input_size_is_not_fixed(regressor):
    """There: a 7 × 7 pool, so 224 pixels."""
    for size in (64, 96, 128):
        net = SimpleHandNet(NetConfig.of({**NET, "input_px": size}), regressor)
        assert net(torch.zeros(1, 3, size, size)).verts_m.shape == (1, 778, 3)


def test_trap_nothing_is_read_at_import(tmp_path):
    """There: MANO files and every label at import, from the working directory; LOCAL_RANK must be set."""
    code = "import pam_aug.train.mixed_config, pam_aug.train as t, sys; t.run; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": "/usr/bin"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_trap_each_hand_once_per_epoch(build):
    """There: drawn with replacement, every process on its own."""
    batches = batches_of(derive_mix(build, build / "union.json", "union"))
    keys = [key for i in range(len(batches.dataset)) for key in batches[i]["keys"]]
    assert len(keys) == len(set(keys)) == 10


def test_trap_workers_are_started_once_per_run(build, tmp_path, monkeypatch):
    """There: no workers, and a new loader every epoch."""
    made = []
    original = mixed.DataLoader
    monkeypatch.setattr(mixed, "DataLoader", lambda *a, **k: made.append(k["num_workers"]) or original(*a, **k))
    monkeypatch.setattr(nets, "fit_joint_map", lambda *_: np.full((21, 778), 1 / 778))
    run = {"data": {"mix": str(build)}, "net": NET, "iterations": 7, "batch": 4, "warmup": 0, "drops": []}
    mixed.run_mixed({**run, "loaders": 1, "cpu": True, "tensorboard": False}, tmp_path / "out")  # 12 hands an epoch
    assert made == [1]


def test_trap_joint_map_stays_on_the_device(regressor):
    """There: the regressor is sent to the GPU at every forward."""
    assert "joint_map" in dict(SimpleHandNet(NetConfig.of(NET), regressor).named_buffers())
    targets = Targets(net_spec(NET), regressor, torch.device("meta"))
    assert targets.joint_map.device.type == "meta"


class FakeBackbone(torch.nn.Module):
    """7 × 7 features of the published width and a classifier that nothing uses, as timm's FastViT has."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1216, 32, 32)
        self.head = torch.nn.Linear(1216, 4)

    def forward_features(self, x):
        return self.conv(x)


def test_trap_no_parameter_waits_for_a_gradient(regressor):
    """There: the backbone's unused classifier, for which DDP has to look for unused parameters at every step."""
    torch.manual_seed(0)
    net = FastViTNet(FakeBackbone(), regressor)
    out = net(torch.randn(1, 3, 224, 224))
    (out.uv.sum() + out.joints_m.sum()).backward()
    waiting = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert waiting == []
    assert "joint_map" not in net.state_dict()  # the published names only
    assert net.state_dict().keys() >= {"backbone.head.weight", "mesh_head.pred_final.bias", "keypoints_2d_head.weight"}


def test_trap_released_form_is_read_by_the_released_estimator(regressor):
    """The same crop as `simplehand-fastvit` takes: 224 pixels, 1.25 times the box, the axis at 112, u / 224."""
    from pam_aug.estimators.base import tight_box
    from pam_aug.estimators.simplehand_fastvit import published_crop
    from pam_aug.train.augment_geometry import draw, make_views

    spec = net_spec({"backbone": "fastvit_ma36"})
    px = np.random.default_rng(0).uniform(40, 90, (1, 21, 2))
    K = np.array([[[300.0, 0, 80], [0, 300, 60], [0, 0, 1]]])
    views = make_views(K, px, draw(None, np.array([True]), [0]), spec.input_px, spec.enlarge, spec.centre_px)
    crop = published_crop(K[0], tight_box(px[0]), flip=False)
    mirrored = 224.0 - crop.points(px[0])[:, 0]
    assert views.points(px)[0, :, 0] == pytest.approx(mirrored, abs=1e-6)
    assert (spec.input_px, spec.root_index) == (224, 9)


def test_trap_evaluation_turns_prediction_and_label_alike(build, tmp_path, monkeypatch):
    """There: predictions are turned back and labels are not, so only aligned errors mean anything. A network that says
    the label must have no error before alignment."""
    monkeypatch.setattr(nets, "fit_joint_map", lambda *_: np.full((21, 778), 1 / 778))
    recipe = {"data": {"mix": str(build)}, "net": NET, "iterations": 1, "batch": 4, "warmup": 0, "cpu": True,
              "held_out": {"mix": str(build)}, "loaders": 0, "tensorboard": False}  # fmt: skip
    run = mixed.MixedRun(read_recipe(recipe), tmp_path / "out")
    said: list[Batch] = []
    targets = run.targets

    def remember(raw):
        x, batch = targets(raw)
        said.append(batch)
        return x, batch

    run.targets = remember
    run.net.forward = lambda x: NetOutput(said[-1].uv, said[-1].verts_m + 0.02, said[-1].joints_m + 0.02)
    figures = run.measure(run.config.held_out)
    assert figures["hands"] == 10
    assert max(figures[name] for name in ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")) < 0.01


def test_trap_weight_decay_and_schedule_are_the_published(regressor):
    config = MixedTrainConfig()
    assert [schedule(i, config, config.drops) for i in (0, 639, 1279, 25_599)] == [1 / 1280, 0.5, 1.0, 1.0]
    assert schedule(25_600, config, config.drops) == schedule(51_199, config, config.drops) == pytest.approx(0.1)
    (adam,) = make_optimizers(SimpleHandNet(NetConfig.of(NET), regressor), config)
    assert [group["weight_decay"] for group in adam.param_groups] == [1e-2, 0.0]
    assert all(p.ndim > 1 for p in adam.param_groups[0]["params"])


def test_trap_missing_packages_are_named(monkeypatch):
    """There: imports of packages that its requirements do not list."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(AssetMissing, match="backbones"):
        nets.make_net({"backbone": "fastvit_ma36"}, fake_hand())
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(AssetMissing, match="train"):
        mixed._accelerator(MixedTrainConfig())
