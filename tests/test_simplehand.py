"""The SimpleHand network, its crops and the estimator on top of them. Weights are random: form is tested, not skill."""

import hashlib

import numpy as np
import pytest
import torch

from pam_aug import registry
from pam_aug.errors import AssetMissing, BackendError, ConfigError, SchemaError
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.estimators.crop import perspective_crop, upright_turn
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand import (
    BUNDLED_TURN_WEIGHTS,
    BUNDLED_WEIGHTS,
    SimpleHandEstimator,
    SimpleHandOptions,
    load_net,
    read_info,
    save_net,
)
from pam_aug.estimators.simplehand_net import (
    NetConfig,
    NetOutput,
    SimpleHandNet,
    fold_batch_norm,
    mean_position,
    normalise_pixels,
)
from pam_aug.geometry import flip_intrinsics, pa_mpjpe_mm, project, root_aligned_mpjpe_mm
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.hand.joints import TIP_SETS, TIPS_21
from pam_aug.rollouts.scene import build_scene

TINY_FIELDS = {"input_px": 64, "widths": [16, 16, 24, 32], "depths": [1, 1, 1, 1], "dims": [32, 16, 8], "heads": 2}
TINY = NetConfig.of(TINY_FIELDS)
K = np.array([[300.0, 2.0, 150], [0, 290, 90], [0, 0, 1]])
BOX = np.array([180.0, 60, 260, 130])


def tiny_net(seed=0) -> SimpleHandNet:
    torch.manual_seed(seed)
    return SimpleHandNet(TINY, torch.from_numpy(fit_joint_map(load_open_hand("right"))))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "tiny.safetensors"
    net = tiny_net()
    with torch.no_grad():  # running statistics and weights far from their initial values
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
        net(torch.randn(16, 3, 64, 64))
    save_net(net, path, {"recipe": "test"})
    return path


@pytest.fixture(scope="module")
def estimator(weights):
    return SimpleHandEstimator(SimpleHandOptions(weights=str(weights)))


# ------------------------------------------------------------------------------------------------------------ network


def test_shapes_and_published_names():
    net = tiny_net()
    out = net(torch.rand(2, 3, 64, 64))
    assert out.uv.shape == (2, 21, 2)
    assert out.verts_m.shape == (2, 778, 3)
    assert out.joints_m.shape == (2, 21, 3)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert shapes["keypoints_2d_head.weight"] == (42, 32)
    assert shapes["mesh_head.deconv.0.weight"] == (32, 32, 4, 4)
    assert shapes["mesh_head.pos_emb_1"] == (1, 21, 32)
    assert shapes["mesh_head.pos_emb_3"] == (1, 336, 16)
    assert shapes["mesh_head.proj_2.weight"] == (16, 32)
    assert shapes["mesh_head.encoder_2.0.token_mixer.in_proj_weight"] == (48, 16)
    assert shapes["mesh_head.encoder_3.0.mlp.fc1.weight"] == (32, 8)
    assert shapes["mesh_head.upsample_3.upsample.weight"] == (778, 336)
    assert shapes["mesh_head.pred_final.weight"] == (3, 8)
    heads = [k for k in shapes if not k.startswith("backbone.") and k != "joint_map"]
    assert len(heads) == 61  # as in the published checkpoint


def test_the_published_width_has_the_published_size():
    net = SimpleHandNet(NetConfig(dims=(256, 128, 64), widths=(16, 16, 16, 1216)), torch.zeros(21, 778))
    head = sum(p.numel() for p in net.mesh_head.parameters())
    assert head == pytest.approx(6.49e6, rel=0.001)
    assert sum(p.numel() for p in net.keypoints_2d_head.parameters()) == 51_114


def test_the_heatmap_head_takes_the_mean_cell():
    logits = torch.zeros(1, 21, 4, 8)
    logits[0, :, 3, 2] = 100.0
    assert mean_position(logits)[0, 5].tolist() == pytest.approx([2.5 / 8, 3.5 / 4])
    logits[0, :, 3, 5] = 100.0
    assert mean_position(logits)[0, 5].tolist() == pytest.approx([4 / 8, 3.5 / 4])


def test_a_pyramid_has_the_map_of_its_deconvolution_and_gives_heat():
    config = NetConfig.of({**TINY_FIELDS, "uv_head": "heatmap", "token_map": "pyramid"})
    net = SimpleHandNet(config, torch.zeros(21, 778)).eval()
    x = torch.rand(2, 3, 64, 64)
    out = net(x)
    assert out.heat.shape == (2, 21, 8, 8)
    assert torch.allclose(mean_position(out.heat), out.uv)
    assert torch.allclose(fold_batch_norm(net)(x).verts_m, out.verts_m, atol=1e-6)


def test_joints_are_the_map_of_the_vertices():
    net = tiny_net().eval()
    out = net(torch.rand(1, 3, 64, 64))
    assert torch.allclose(out.joints_m, net.joint_map @ out.verts_m)


def test_folding_batch_norm_changes_nothing(weights):
    x = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        plain, folded = load_net(weights)(x), fold_batch_norm(load_net(weights))(x)
    assert torch.allclose(plain.verts_m, folded.verts_m, atol=1e-6)
    assert torch.allclose(plain.uv, folded.uv, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fold_batch_norm(load_net(weights)).modules())


def test_pixel_forms():
    crop = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    crop[..., 0] = 255
    assert normalise_pixels(crop, "rgb_half")[0, :, 0, 0].tolist() == [0.5, -0.5, -0.5]
    assert normalise_pixels(crop, "legacy_bgr_half")[0, :, 0, 0].tolist() == [-0.5, -0.5, 0.5]
    red = normalise_pixels(crop, "imagenet_rgb")[0, 0, 0, 0]
    assert red.item() == pytest.approx((1 - 0.485) / 0.229)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: "x"} for name in ("backbone", "pixels", "root", "joints", "uv_head", "token_map")),
        {"token_map": "pyramid", "deconv_stride": 2},
        {"mixers": ("attention", "conv", "identity")},
        {"input_px": 100},
        {"dims": (30, 16, 8)},
        {"depths": (1,)},
    ],
)
def test_networks_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(ConfigError):
        NetConfig(**wrong)


def test_the_fitted_map_meets_the_kinematic_joints_where_the_regressor_does_not():
    assets = load_open_hand("right")
    rng = np.random.default_rng(5)
    pose = assets.hands_mean + rng.normal(0, 1, (50, 45)) @ assets.hands_components
    out = HandLayer(assets, torch.float64)(
        torch.from_numpy(rng.normal(0, 1, (50, 3))),
        torch.from_numpy(pose.astype(np.float64)),
        torch.from_numpy(rng.normal(0, 1, (50, 10))),
    )
    verts, joints = out.verts.numpy(), out.joints21.numpy()
    fitted = fit_joint_map(assets)
    assert np.allclose(fitted.sum(1), 1)
    error = np.linalg.norm(fitted @ verts - joints, axis=-1).mean(0)
    assert error.max() < 0.0006
    stock = np.linalg.norm(fit_joint_map(assets, "regressor") @ verts - joints, axis=-1).mean()
    assert stock > 4 * error.mean()


# -------------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [0.0, 2.0])
def test_crop_points_agree_with_turned_points(flip, turn):
    crop = perspective_crop(K, BOX, 64, flip=flip, shift=(0.1, -0.2), turn_rad=turn)
    cam = np.random.default_rng(0).normal(0, 0.05, (21, 3)) + np.array([0.2, 0.02, 0.7])
    px = project(cam, K)
    assert crop.points(px) == pytest.approx(project(crop.vectors(cam), crop.K_crop_px), abs=1e-9)
    assert crop.points_to_image(crop.points(px)) == pytest.approx(px, abs=1e-9)
    assert crop.vectors_to_camera(crop.vectors(cam)) == pytest.approx(cam, abs=1e-12)


def test_the_box_fills_its_share_of_the_crop():
    crop = perspective_crop(K, BOX, 64, flip=False, enlarge=1.25)
    middle = (BOX[:2] + BOX[2:]) / 2
    assert crop.points(middle[None])[0] == pytest.approx([31.5, 31.5], abs=1e-9)
    across, down = (crop.points(middle + 40 * np.array([[-1, 0], [1, 0]])[:, ::step]) for step in (1, -1))
    lengths = [np.linalg.norm(ends[1] - ends[0]) for ends in (across, down)]
    assert max(lengths) == pytest.approx(64 / 1.25)
    assert min(lengths) > 0.9 * max(lengths)  # seen off the axis, and fx is not fy


def test_a_crop_on_the_principal_point_is_finite_and_straight():
    box = np.array([130.0, 70, 170, 110])
    crop = perspective_crop(K, box, 64, flip=False)
    assert crop.R_crop_cam == pytest.approx(np.eye(3), abs=1e-12)


def test_boxes_that_make_no_crop_are_refused():
    with pytest.raises(SchemaError):
        perspective_crop(K, np.array([np.nan, 0, 1, 1]), 64, flip=False)
    with pytest.raises(SchemaError):
        perspective_crop(K, np.array([-1e6, 0, 1e3, 1]), 64, flip=False)


# ---------------------------------------------------------------------------------------------------------- estimator


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (180, 300, 3), np.uint8) for _ in range(n)]


def test_estimates_have_their_form(estimator):
    assert isinstance(estimator, Estimator)
    assert estimator.requires() == []
    assert estimator.version.startswith("test-")
    found = estimator.estimate(images(3), [HandQuery("right", BOX, K)] * 3)
    assert found.valid.all()
    assert found.joints_m.shape == (3, 21, 3)
    assert found.verts_m.shape == (3, 778, 3)
    assert np.abs(found.joints_m[:, 0]).max() == 0
    assert np.ptp(found.joints_m, axis=0).max() > 0  # the image matters


def test_a_mirrored_image_of_the_other_hand_gives_the_mirrored_estimate(estimator):
    image = images(1)[0]
    mirrored_box = np.array([299 - BOX[2], BOX[1], 299 - BOX[0], BOX[3]])
    right = estimator.estimate([image], [HandQuery("right", BOX, K)])
    mirrored = np.ascontiguousarray(image[:, ::-1])
    left = estimator.estimate([mirrored], [HandQuery("left", mirrored_box, flip_intrinsics(K, 300))])
    # The two crops differ by the image warp's rounding only.
    assert left.joints_m * [-1, 1, 1] == pytest.approx(right.joints_m, abs=2e-4)
    assert left.verts_m * [-1, 1, 1] == pytest.approx(right.verts_m, abs=2e-4)
    assert 299 - left.joints_px[..., 0] == pytest.approx(right.joints_px[..., 0], abs=0.3)


def test_several_views_are_averaged_and_do_not_depend_on_the_images_turn(weights):
    image = images(1)[0][:, :180].copy()
    K_mid = np.array([[300.0, 0.0, 89.5], [0.0, 300.0, 89.5], [0.0, 0.0, 1.0]])
    box = np.array([60.0, 70.0, 110.0, 120.0])
    upside = np.ascontiguousarray(image[::-1, ::-1])
    turned_box = np.array([179 - box[2], 179 - box[3], 179 - box[0], 179 - box[1]])
    two = SimpleHandEstimator(SimpleHandOptions(weights=str(weights), views=2))
    one = SimpleHandEstimator(SimpleHandOptions(weights=str(weights), views=1))
    queries = HandQuery("right", box, K_mid), HandQuery("right", turned_box, K_mid)
    both = [e.estimate([image, upside], queries).joints_m for e in (two, one)]
    back = np.array([-1.0, -1.0, 1.0])
    assert both[0][1] * back == pytest.approx(both[0][0], abs=2e-4)  # the same two views
    assert both[0][0] == pytest.approx((both[1][0] + both[1][1] * back) / 2, abs=2e-4)
    assert two.version != one.version
    with pytest.raises(ConfigError, match="views"):
        SimpleHandOptions(views=0)


@pytest.mark.parametrize("flip", [False, True])
def test_an_upright_crop_has_the_wrist_below_the_knuckles(flip):
    rng = np.random.default_rng(3)
    for _ in range(20):
        joints = rng.normal(size=(21, 3)) * 0.05 + [0.1, -0.05, 0.6]
        px = project(joints, K)
        box = np.concatenate([px.min(0), px.max(0)])
        straight = perspective_crop(K, box, 64, flip=False)
        turn = upright_turn(straight.vectors(joints))
        seen = perspective_crop(K, box, 64, flip=flip, turn_rad=turn).vectors(joints)
        along = seen[[5, 9, 13, 17]].mean(0) - seen[0]
        assert along[0] == pytest.approx(0, abs=1e-12)
        assert along[1] < 0  # y is down


def upright_weights(folder):
    path = folder / "upright.safetensors"
    net = SimpleHandNet(NetConfig.of({**TINY_FIELDS, "upright": True}), tiny_net().joint_map)
    save_net(net, path, {"recipe": "up"})
    return path


class Says(torch.nn.Module):
    """A network that gives every crop the same hand and keeps the crops."""

    def __init__(self, joints_m, config=TINY):
        super().__init__()
        self.config, self.joints_m, self.seen = config, torch.as_tensor(joints_m, dtype=torch.float32), []

    def forward(self, x):
        self.seen += list(x)
        n = len(x)
        return NetOutput(torch.full((n, 21, 2), 0.5), torch.zeros(n, 778, 3), self.joints_m.expand(n, 21, 3))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_second_look_is_upright_and_the_answer_is_turned_back(tmp_path, side):
    path = upright_weights(tmp_path)
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=str(path), views=1))
    lying = np.zeros((21, 3))
    lying[1:, 0] = 0.1  # knuckles to the right of the wrist
    up = np.zeros((21, 3))
    up[1:, 1] = -0.1
    estimator.turn_net, estimator.net = Says(lying), Says(up)
    K_mid = np.array([[300.0, 0.0, 89.5], [0.0, 300.0, 89.5], [0.0, 0.0, 1.0]])
    image = images(1)[0][:180, :180].copy()
    found = estimator.estimate([image], [HandQuery(side, np.array([60.0, 60.0, 119.0, 119.0]), K_mid, "smplx")])
    first, second = estimator.turn_net.seen[0], estimator.net.seen[0]
    # What was at the right of the first view is at the top of the second.
    assert second == pytest.approx(torch.rot90(first, 1, (1, 2)), abs=0.02)
    mirror = -1 if side == "left" else 1
    assert found.joints_m[0, 9] == pytest.approx([0.1 * mirror, 0, 0], abs=1e-6)


def test_views_of_an_upright_network_stay_near_upright(tmp_path):
    path = upright_weights(tmp_path)
    one, three = (SimpleHandEstimator(SimpleHandOptions(weights=str(path), views=v)) for v in (1, 3))
    assert one._turns(0.3) == [0.3]
    assert three._turns(0.3) == pytest.approx([0.3 - np.pi / 12, 0.3, 0.3 + np.pi / 12])
    hashes = [read_info(p)["weights_sha256"][:12] for p in (path, BUNDLED_TURN_WEIGHTS)]
    assert three.version == f"up-{hashes[0]}-{hashes[1]}-3"
    lost = SimpleHandEstimator(SimpleHandOptions(weights=str(path), turn_weights=str(tmp_path / "none.safetensors")))
    assert len(lost.requires()) == 2
    assert all("simplehand_turn" in line for line in lost.requires())


@pytest.mark.parametrize("side", ["right", "left"])
def test_fingertips_are_the_labels_own_vertices(estimator, side):
    found = {tips: estimator.estimate(images(2), [HandQuery(side, BOX, K, tips)] * 2) for tips in TIP_SETS}
    for tips, sets in TIP_SETS.items():
        assert found[tips].joints_m[:, TIPS_21] == pytest.approx(found[tips].verts_m[:, sets[side]], abs=1e-9)
        rest = [j for j in range(21) if j not in TIPS_21]
        assert np.array_equal(found[tips].joints_m[:, rest], found["smplx"].joints_m[:, rest])
    with pytest.raises(BackendError, match="tip set 'other'"):
        estimator.estimate(images(1), [HandQuery(side, BOX, K, "other")])


def test_estimates_repeat_bit_for_bit_and_in_blocks(estimator, weights):
    pictures, queries = images(33), [HandQuery("right", BOX, K)] * 33
    first = estimator.estimate(pictures, queries)
    again = SimpleHandEstimator(SimpleHandOptions(weights=str(weights))).estimate(pictures, queries)
    assert np.array_equal(first.verts_m, again.verts_m)
    assert np.array_equal(first.joints_px, again.joints_px)
    block = estimator.estimate(pictures[:30], queries[:30])
    assert np.array_equal(first.joints_m[:30], block.joints_m)


def test_a_hopeless_box_is_a_row_not_a_crash(estimator):
    queries = [HandQuery("right", BOX, K), HandQuery("right", np.array([np.nan] * 4), K)]
    found = estimator.estimate(images(2), queries)
    assert found.valid.tolist() == [True, False]
    assert "not finite" in found.reasons[1]


def test_wrong_images_are_refused(estimator):
    with pytest.raises(BackendError):
        estimator.estimate(images(2), [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError):
        estimator.estimate([np.zeros((9, 9), np.uint8)], [HandQuery("right", BOX, K)])


def test_missing_and_damaged_weights_are_named(tmp_path, weights):
    lost = SimpleHandEstimator(SimpleHandOptions(weights=str(tmp_path / "no.safetensors")))
    assert len(lost.requires()) == 2
    with pytest.raises(AssetMissing):
        lost.estimate(images(1), [HandQuery("right", BOX, K)])
    damaged = tmp_path / "bad.safetensors"
    damaged.write_bytes(weights.read_bytes()[:1000])
    damaged.with_suffix(".json").write_text(weights.with_suffix(".json").read_text())
    with pytest.raises(SchemaError):
        load_net(damaged)
    damaged.with_suffix(".json").write_text('{"recipe": "x"}')
    with pytest.raises(ConfigError):
        load_net(damaged)


def test_saved_weights_come_back_to_half_precision(tmp_path):
    net = tiny_net(3).eval()
    path = tmp_path / "w.safetensors"
    save_net(net, path, {"recipe": "r"})
    back = load_net(path)
    assert back.config == TINY
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(back.state_dict()[name], value, rtol=1e-3, atol=1e-6), name


def test_the_registry_knows_it():
    assert registry.load("estimators", "simplehand") is SimpleHandEstimator


# ------------------------------------------------------------------------------------------------- bundled weights


def test_bundled_weights_are_small_and_of_the_bundled_hand():
    estimator = SimpleHandEstimator()
    assert estimator.requires() == []
    assert BUNDLED_WEIGHTS.stat().st_size <= 10_000_000
    info = read_info(BUNDLED_WEIGHTS)
    assert hashlib.sha256(BUNDLED_WEIGHTS.read_bytes()).hexdigest() == info["weights_sha256"]
    hand = load_open_hand("right")
    assert info["hand_model_sha256"] == hand.sha256
    assert load_net(BUNDLED_WEIGHTS).joint_map.numpy() == pytest.approx(fit_joint_map(hand), abs=1e-5)


def test_bundled_weights_find_hands_that_training_has_not_seen():
    converter = registry.load("converters", "demo-rollouts")
    source = converter(converter.Options(count=24, split="test", seed=77))
    generator, estimator = registry.load("generators", "rendered")(), SimpleHandEstimator()
    found, labels = [], []
    for index in range(24):
        item = source.item(index)
        hand = item.sample.hands[0]
        image = next(iter(generator.generate(build_scene(item, source.hand_assets()), [index]))).rgb
        mirror = np.array([-1.0 if hand.side == "left" else 1.0, 1.0, 1.0])
        found.append(estimator.estimate([image], [HandQuery.of(hand, item.sample.camera)]).joints_m[0] * mirror)
        labels.append(hand.joints_cam_m * mirror)
    pred, gt = np.stack(found), np.stack(labels)
    constant = pa_mpjpe_mm(np.broadcast_to(pred.mean(0), gt.shape), gt).mean()
    assert pa_mpjpe_mm(pred, gt).mean() < 0.8 * constant
    assert root_aligned_mpjpe_mm(pred, gt).mean() < 30
