"""HaMeR's network, checkpoint, crops and estimator. Weights are random and narrow: form is tested, not skill."""

import math
import pickle
import sys
from dataclasses import asdict, replace

import fakes
import numpy as np
import pytest
import torch
import yaml
from fake_mano import fake_hand, write_official
from safetensors.torch import save_file
from scipy.special import erf

from pam_aug import cli, registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.checkpoint import read_state
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing, BackendError, ConfigError, SchemaError, UnsafeInput
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.estimators.hamer import (
    AffineCrop,
    HamerEstimator,
    HamerOptions,
    camera_translation,
    crop_points,
    hamer_crop,
)
from pam_aug.estimators.hamer_checkpoint import expected_entries, hand_of, load_hamer
from pam_aug.estimators.hamer_net import HamerConfig, HamerNet, columns_to_matrix, network_input
from pam_aug.geometry import axis_angle_to_matrix, flip_intrinsics, project
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.hand.joints import MANO16_TO_21, TIP_SETS
from pam_aug.report.summary import read_all_candidates
from pam_aug.score import hand_errors

TINY = HamerConfig(
    width=32, depth=2, heads=4, hidden=48, head_width=24, head_depth=2, head_heads=2, head_dim=8, head_hidden=20
)
K = np.array([[300.0, 0, 150], [0, 300, 90], [0, 0, 1]])
BOX = np.array([180.0, 60, 260, 130])


def table(c: HamerConfig) -> dict[str, tuple[int, ...]]:
    """The published checkpoint's entries, one by one, as its file lists them."""
    inner = c.head_heads * c.head_dim
    rows: dict[str, tuple[int, ...]] = {
        "backbone.pos_embed": (1, 193, c.width),
        "backbone.patch_embed.proj.weight": (c.width, 3, 16, 16),
        "backbone.patch_embed.proj.bias": (c.width,),
        "backbone.last_norm.weight": (c.width,),
        "backbone.last_norm.bias": (c.width,),
        "mano_head.init_hand_pose": (1, 96),
        "mano_head.init_betas": (1, 10),
        "mano_head.init_cam": (1, 3),
        "mano_head.transformer.to_token_embedding.weight": (c.head_width, 1),
        "mano_head.transformer.to_token_embedding.bias": (c.head_width,),
        "mano_head.transformer.pos_embedding": (1, 1, c.head_width),
    }

    def linear(name: str, to: int, of: int) -> None:
        rows[f"{name}.weight"] = (to, of)
        rows[f"{name}.bias"] = (to,)

    for i in range(c.depth):
        block = f"backbone.blocks.{i}"
        for norm in ("norm1", "norm2"):
            rows |= {f"{block}.{norm}.{kind}": (c.width,) for kind in ("weight", "bias")}
        linear(f"{block}.attn.qkv", 3 * c.width, c.width)
        linear(f"{block}.attn.proj", c.width, c.width)
        linear(f"{block}.mlp.fc1", c.hidden, c.width)
        linear(f"{block}.mlp.fc2", c.width, c.hidden)
    for i in range(c.head_depth):
        layer = f"mano_head.transformer.transformer.layers.{i}"
        for j in range(3):
            rows |= {f"{layer}.{j}.norm.{kind}": (c.head_width,) for kind in ("weight", "bias")}
        rows[f"{layer}.0.fn.to_qkv.weight"] = (3 * inner, c.head_width)
        linear(f"{layer}.0.fn.to_out.0", c.head_width, inner)
        rows[f"{layer}.1.fn.to_kv.weight"] = (2 * inner, c.width)
        rows[f"{layer}.1.fn.to_q.weight"] = (inner, c.head_width)
        linear(f"{layer}.1.fn.to_out.0", c.head_width, inner)
        linear(f"{layer}.2.fn.net.0", c.head_hidden, c.head_width)
        linear(f"{layer}.2.fn.net.3", c.head_width, c.head_hidden)
    for name, size in (("decpose", 96), ("decshape", 10), ("deccam", 3)):
        linear(f"mano_head.{name}", size, c.head_width)
    return rows


def unused_entries() -> dict[str, torch.Tensor]:
    """What the published file carries beside the network and MANO: the discriminator and a flag."""
    sizes = {"D_conv1": (32, 9, 1, 1), "D_conv2": (32, 32, 1, 1), "betas_fc1": (10, 10), "betas_fc2": (5, 10)}
    sizes |= {f"pose_out.{i}": (1, 32) for i in range(15)} | {"betas_out": (1, 5)}
    sizes |= {"D_alljoints_fc1": (8, 480), "D_alljoints_fc2": (8, 8), "D_alljoints_out": (1, 8)}
    entries = {f"discriminator.{name}.weight": torch.zeros(shape) for name, shape in sizes.items()}
    entries |= {f"discriminator.{name}.bias": torch.zeros(shape[0]) for name, shape in sizes.items()}
    return {**entries, "initialized": torch.tensor(True)}


def mano_entries(assets) -> dict[str, torch.Tensor]:
    """A right hand as smplx keeps it."""

    def floats(array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    return {
        "mano.v_template": floats(assets.v_template),
        "mano.shapedirs": floats(assets.shapedirs),
        "mano.posedirs": floats(np.asarray(assets.posedirs).reshape(2334, 135).T),
        "mano.J_regressor": floats(assets.J_regressor),
        "mano.lbs_weights": floats(assets.weights),
        "mano.faces_tensor": torch.from_numpy(assets.f.astype(np.int64)),
        "mano.parents": torch.from_numpy(np.asarray(assets.parents, np.int64)),
        "mano.hand_components": floats(assets.hands_components[:6]),
        "mano.hand_mean": floats(assets.hands_mean),
        "mano.pose_mean": torch.zeros(48),
        "mano.vertex_joint_selector.extra_joints_idxs": torch.tensor(TIP_SETS["smplx"]["right"]),
        "mano.extra_joints_idxs": torch.tensor(TIP_SETS["smplx"]["right"]),
        "mano.joint_map": torch.tensor(MANO16_TO_21),
    }


def random_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Narrow random weights whose hands are near a mean pose, in the form of the published file."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in table(TINY).items():
        value = torch.randn(shape, generator=generator)
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        state[name] = 1 + 0.1 * value if "norm" in name and name.endswith("weight") else value / math.sqrt(4 * fan)
    state["backbone.patch_embed.proj.weight"] *= 4
    for name in ("decpose", "decshape", "deccam"):
        state[f"mano_head.{name}.weight"] *= 0.1
        state[f"mano_head.{name}.bias"] *= 0.1
    rest = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(16)
    state["mano_head.init_hand_pose"] = (rest + 0.2 * torch.randn(96, generator=generator))[None]
    state["mano_head.init_cam"] = torch.tensor([[9.0, 0.01, -0.02]])
    return {**state, **mano_entries(load_open_hand("right")), **unused_entries()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("hamer") / "hamer.ckpt"
    torch.save({"state_dict": random_state()}, path)
    return path


@pytest.fixture(scope="module")
def estimator(checkpoint):
    return HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu"))


# ------------------------------------------------------------------------------------------------------------ network


def test_the_published_structure():
    config = HamerConfig()
    entries = {name: tuple(value.shape) for name, value in expected_entries(config).items()}
    assert entries == table(config)
    assert len(entries) == 503
    assert sum(name.startswith("backbone.") for name in entries) == 389
    assert len(entries) + len(mano_entries(load_open_hand("right"))) + len(unused_entries()) == 563
    with torch.device("meta"):
        net = HamerNet(config)
    assert round(sum(p.numel() for p in net.backbone.parameters()) / 1e6, 3) == 630.912
    assert round(sum(p.numel() for p in net.mano_head.parameters()) / 1e6, 2) == 39.50
    assert net.backbone(torch.empty(2, 3, 256, 192, device="meta")).shape == (2, 192, 1280)
    assert net.backbone.blocks[0].norm1.eps == net.backbone.last_norm.eps == 1e-6
    assert net.mano_head.transformer.transformer.layers[0][0].norm.eps == 1e-5


def slow_network(state: dict[str, torch.Tensor], x: np.ndarray, c: HamerConfig) -> dict[str, np.ndarray]:
    """The network's equations for one crop, in float64 numpy, head by head, with nothing left out."""
    p = {name: value.double().numpy() for name, value in state.items()}

    def norm(x: np.ndarray, name: str, eps: float) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + erf(x / np.sqrt(2)))

    def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
        size = q.shape[1] // heads
        out = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            weight = np.exp(q[:, part] @ k[:, part].T * size**-0.5)
            out.append(weight / weight.sum(1, keepdims=True) @ v[:, part])
        return np.concatenate(out, 1)

    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    kernel, bias = p["backbone.patch_embed.proj.weight"], p["backbone.patch_embed.proj.bias"]
    pos = p["backbone.pos_embed"][0]
    tokens = np.stack(
        [
            np.einsum("ocij,cij->o", kernel, padded[:, 16 * r : 16 * r + 16, 16 * s : 16 * s + 16]) + bias
            for r in range(16)
            for s in range(12)
        ]
    )
    t = tokens + pos[1:] + pos[0]
    for i in range(c.depth):
        name = f"backbone.blocks.{i}"
        q, k, v = np.split(linear(norm(t, f"{name}.norm1", 1e-6), f"{name}.attn.qkv"), 3, 1)
        t = t + linear(attention(q, k, v, c.heads), f"{name}.attn.proj")
        t = t + linear(gelu(linear(norm(t, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    context = norm(t, "backbone.last_norm", 1e-6)

    head = "mano_head.transformer"
    y = linear(np.zeros((1, 1)), f"{head}.to_token_embedding") + p[f"{head}.pos_embedding"][0]
    for i in range(c.head_depth):
        name = f"{head}.transformer.layers.{i}"
        q, k, v = np.split(linear(norm(y, f"{name}.0.norm", 1e-5), f"{name}.0.fn.to_qkv"), 3, 1)
        y = y + linear(attention(q, k, v, c.head_heads), f"{name}.0.fn.to_out.0")
        q = linear(norm(y, f"{name}.1.norm", 1e-5), f"{name}.1.fn.to_q")
        k, v = np.split(linear(context, f"{name}.1.fn.to_kv"), 2, 1)
        y = y + linear(attention(q, k, v, c.head_heads), f"{name}.1.fn.to_out.0")
        y = y + linear(gelu(linear(norm(y, f"{name}.2.norm", 1e-5), f"{name}.2.fn.net.0")), f"{name}.2.fn.net.3")
    six = (linear(y, "mano_head.decpose") + p["mano_head.init_hand_pose"]).reshape(16, 2, 3)
    rotations = np.zeros((16, 3, 3))
    for j, (a, b) in enumerate(six):
        first = a / np.linalg.norm(a)
        second = b - (first @ b) * first
        second /= np.linalg.norm(second)
        rotations[j] = np.array([first, second, np.cross(first, second)]).T
    betas, camera = (linear(y, f"mano_head.{n}") + p[f"mano_head.{m}"] for n, m in READOUTS)
    return {"context": context, "rotations": rotations, "betas": betas[0], "camera": camera[0]}


READOUTS = (("decshape", "init_betas"), ("deccam", "init_cam"))


def test_the_network_against_its_equations():
    state = random_state(1)
    net = load_hamer(state, TINY, where="here").double()
    x = torch.randn(2, 3, 256, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        context = net.backbone(x)
        out = net.mano_head(context)
    for i in range(2):
        slow = slow_network(state, x[i].numpy(), TINY)
        assert context[i].numpy() == pytest.approx(slow["context"], abs=1e-10)
        for name in ("rotations", "betas", "camera"):
            assert getattr(out, name)[i].numpy() == pytest.approx(slow[name], abs=1e-10), name
    assert (out.rotations[0] - out.rotations[1]).abs().max() > 1e-3  # the image matters


def test_rotations_are_read_column_by_column():
    R = axis_angle_to_matrix(torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64))
    six = torch.cat([2.5 * R[:, 0], 0.4 * R[:, 1] + 3.0 * R[:, 0]])
    assert torch.allclose(columns_to_matrix(six), R, atol=1e-12)


def test_pixels_are_the_middle_columns_less_imagenets_mean():
    crops = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    crops[0, 7, 32] = torch.tensor([255, 100, 0], dtype=torch.uint8)
    crops[0, 7, 31] = 77  # outside
    x = network_input(crops)
    assert x.shape == (1, 3, 256, 192)
    expected = [(255 - 255 * 0.485) / (255 * 0.229), (100 - 255 * 0.456) / (255 * 0.224), -0.406 / 0.225]
    assert x[0, :, 7, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(x[0, :, 7, 1], x[0, :, 0, 0])


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_round_trips(checkpoint, tmp_path):
    saved = random_state()
    net = load_hamer(read_state(checkpoint, "hamer"), TINY, where="here")
    assert set(net.state_dict()) == set(table(TINY))
    for name, value in net.state_dict().items():
        assert torch.equal(value.float(), saved[name]), name  # wider in places, never rounded
    path = tmp_path / "hamer.safetensors"
    save_file({name: value for name, value in saved.items() if not name.startswith("discriminator.")}, path)
    again = load_hamer(read_state(path, "hamer"), TINY, where="here")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_checkpoints_own_hand_is_the_hand_it_was_made_of(checkpoint):
    ours = load_open_hand("right")
    hand = hand_of(read_state(checkpoint, "hamer"), where="here")
    assert hand is not None
    for name in ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "weights", "parents", "hands_mean"):
        assert np.array_equal(getattr(hand, name), np.asarray(getattr(ours, name))), name
    assert {tuple(sorted(t)) for t in hand.f_cap.tolist()}  # closed: every border edge is used up
    edges = [tuple(sorted((int(t[a]), int(t[b])))) for t in [*hand.f, *hand.f_cap] for a, b in ((0, 1), (1, 2), (2, 0))]
    assert all(edges.count(edge) == 2 for edge in set(edges[-42:]))


def test_other_networks_are_refused_with_the_first_differences(checkpoint):
    state = read_state(checkpoint, "hamer")
    with pytest.raises(SchemaError, match=r"backbone.pos_embed is \(1, 193, 32\).*expected \(1, 193, 1280\)"):
        load_hamer(state, HamerConfig(), where="x")
    del state["mano_head.deccam.bias"]
    state["backbone.blocks.0.ls1.gamma"] = torch.ones(32)
    with pytest.raises(SchemaError) as caught:
        load_hamer(state, TINY, where="x.ckpt")
    assert "x.ckpt" in str(caught.value)
    assert "2 entries differ" in str(caught.value)
    assert "mano_head.deccam.bias is missing (expected (3,))" in str(caught.value)
    assert "backbone.blocks.0.ls1.gamma is unknown" in str(caught.value)


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_hostile_and_damaged_files_are_refused(checkpoint, tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"x": Hostile()}}, bad)
    with pytest.raises(UnsafeInput, match="more than tensors"):
        read_state(bad, "hamer")
    assert "this must not run" not in capsys.readouterr().out
    bad.write_bytes(pickle.dumps({"state_dict": Hostile()}))
    with pytest.raises((UnsafeInput, SchemaError)):
        read_state(bad, "hamer")
    assert "this must not run" not in capsys.readouterr().out
    whole = checkpoint.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30]):
        bad.write_bytes(damaged)
        with pytest.raises(SchemaError, match="copy or download"):
            read_state(bad, "hamer")
    torch.save([1, 2], bad)
    with pytest.raises(SchemaError, match="holds a list"):
        read_state(bad, "hamer")
    torch.save({"model": 1, "epoch": 3}, bad)
    with pytest.raises(SchemaError, match="has the entries model, epoch"):
        read_state(bad, "hamer")
    (tmp_path / "bad.safetensors").write_bytes(whole[:100])
    with pytest.raises(SchemaError):
        read_state(tmp_path / "bad.safetensors", "hamer")
    with pytest.raises(AssetMissing):
        read_state(tmp_path / "none.ckpt", "hamer")


# -------------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize(("box", "side"), [((10, 20, 70, 140), 240.0), ((10, 20, 100, 80), 240.0), ((5, 5, 5, 5), 2.0)])
def test_the_crop_pads_the_box_to_three_by_four_and_doubles_it(box, side):
    crop = hamer_crop(np.array(box, float), 300, flip=False)
    assert crop.side_px == side
    scale = 256 / side
    at = crop.affine @ [13.0, 47.0, 1.0]
    expected = [128 + (13 - (box[0] + box[2]) / 2) * scale, 128 + (47 - (box[1] + box[3]) / 2) * scale]
    assert at.tolist() == pytest.approx(expected)
    ours = hamer_crop(np.array(box, float), 300, flip=False, pixel_centres="library")
    assert (ours.affine @ [13.0, 47.0, 1.0]).tolist() == pytest.approx([e - 0.5 for e in expected])


def test_crop_pixels_come_from_where_the_crop_says():
    rgb = np.zeros((180, 300, 3), np.uint8)
    rgb[..., 0] = np.minimum(np.arange(300), 255)
    rgb[..., 1] = np.arange(180)[:, None]
    for flip in (False, True):
        crop = hamer_crop(np.array([90.0, 50, 138, 114]), 300, flip=flip)  # 128 pixels, doubled
        view = crop.image(rgb).astype(float)
        for spot in ((20.0, 100.0), (100.0, 30.0), (201.0, 177.0)):
            found = crop.points_to_image(np.array([spot]))[0]
            assert view[int(spot[1]), int(spot[0]), :2] == pytest.approx(found, abs=0.51)
    outside = hamer_crop(np.array([-60.0, -60, -20, -20]), 300, flip=False).image(rgb + 9)
    assert outside[0, 0].tolist() == [0, 0, 0]


def test_the_camera_by_hand():
    points = np.array([[0.01, -0.02, 0.03], [-0.05, 0.0, 0.0]])
    s, tx, ty = 8.0, 0.02, -0.01
    z = 2 * 5000 / (256 * s + 1e-9)
    by_hand = [[((5000 / 256) * (x + tx) / (d + z) + 0.5) * 256, ((5000 / 256) * (y + ty) / (d + z) + 0.5) * 256]
               for x, y, d in points]  # fmt: skip
    assert crop_points(points, np.array([s, tx, ty])) == pytest.approx(np.array(by_hand), abs=1e-12)
    crop = AffineCrop(np.array([210.0, 70.0]), 160.0, False, 300, 128.0)
    t = camera_translation(np.array([s, tx, ty]), crop, K)
    assert t[2] == pytest.approx(2 * 300 / (160 * s), rel=1e-9)
    assert t[:2] == pytest.approx([tx + 2 * (210 - 150) / (160 * s), ty + 2 * (70 - 90) / (160 * s)], rel=1e-9)
    # A point at the camera's own depth lands where the crop's camera puts it.
    flat = np.array([[0.01, -0.02, 0.0]])
    assert project(flat + t, K) == pytest.approx(crop.points_to_image(crop_points(flat, np.array([s, tx, ty]))))


# ---------------------------------------------------------------------------------------------------------- estimator


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return [np.kron(rng.integers(0, 255, (18, 30, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(n)]


def test_estimates_have_their_form(estimator):
    assert isinstance(estimator, Estimator)
    assert estimator.requires() == []
    assert estimator.version.endswith("-fp32")
    hands = estimator.estimate_hands(images(3), [HandQuery("right", BOX, K)] * 3)
    found = hands.estimates
    assert found.valid.all()
    assert np.abs(found.joints_m[:, 0]).max() == 0
    assert np.ptp(found.joints_m, axis=0).max() > 1e-4  # the image matters
    assert np.abs(found.joints_m).max() < 0.4


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tips", sorted(TIP_SETS))
def test_the_parameters_make_the_reported_hand(estimator, side, tips):
    """Posing that side's hand model with the reported label gives the reported joints, and projects onto them."""
    # The camera that the network believes in: its focal length, looking straight at the box.
    focal = 5000 * hamer_crop(BOX, 300, flip=False).side_px / 256
    K_own = np.array([[focal, 0, 220], [0, focal, 95], [0, 0, 1]])
    hands = estimator.estimate_hands(images(2), [HandQuery(side, BOX, K_own, tips)] * 2)
    layer = HandLayer(load_open_hand(side), torch.float64, tips=tips)
    label = (torch.from_numpy(a) for a in (hands.global_orient, hands.hand_pose, hands.betas, hands.transl_cam_m))
    out = layer(*label)
    joints = out.joints21.numpy()
    assert hands.estimates.joints_m == pytest.approx(joints - joints[:, :1], abs=1e-6)
    assert hands.estimates.verts_m == pytest.approx(out.verts.numpy() - joints[:, :1], abs=1e-6)
    assert project(joints, K_own) == pytest.approx(hands.estimates.joints_px, abs=1e-3)


def test_a_mirrored_image_of_the_other_hand_gives_the_mirrored_estimate(estimator):
    image = images(1)[0]
    mirrored_box = np.array([299 - BOX[2], BOX[1], 299 - BOX[0], BOX[3]])
    right = estimator.estimate_hands([image], [HandQuery("right", BOX, K)])
    mirrored = np.ascontiguousarray(image[:, ::-1])
    left = estimator.estimate_hands([mirrored], [HandQuery("left", mirrored_box, flip_intrinsics(K, 300))])
    flip = np.array([-1.0, 1, 1])
    assert left.estimates.joints_m * flip == pytest.approx(right.estimates.joints_m, abs=1e-5)
    assert left.estimates.verts_m * flip == pytest.approx(right.estimates.verts_m, abs=1e-5)
    assert left.transl_cam_m * flip == pytest.approx(right.transl_cam_m, abs=1e-5)
    assert left.global_orient * [1, -1, -1] == pytest.approx(right.global_orient, abs=1e-5)
    px = left.estimates.joints_px
    assert np.stack([299 - px[..., 0], px[..., 1]], -1) == pytest.approx(right.estimates.joints_px, abs=1e-3)


def test_batched_and_one_at_a_time_agree(estimator, checkpoint):
    pictures = images(5)
    queries = [HandQuery("right", BOX + i, K) for i in range(5)]
    together = estimator.estimate(pictures, queries)
    blocks = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu", batch=2))
    in_blocks = blocks.estimate(pictures, queries)
    alone = np.concatenate([estimator.estimate([p], [q]).joints_m for p, q in zip(pictures, queries, strict=True)])
    for found in (together, in_blocks):
        assert np.abs(found.joints_m - alone).max() < 1e-8  # metres: 1e-5 mm
    hand = replace(fakes.label(1, "x").hands[0], joints_px=np.linspace(BOX[:2], BOX[2:], 21))
    scores = [hand_errors(found, hand).err_mm for found in (together, in_blocks)]
    apart = [hand_errors(estimator.estimate([p], [q]), hand).err_mm[0] for p, q in zip(pictures, queries, strict=True)]
    assert np.abs(np.array(scores) - apart).max() < 1e-5
    assert np.ptp(apart) > 1e-3  # the image matters
    again = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu")).estimate(pictures, queries)
    assert np.array_equal(together.verts_m, again.verts_m)


def test_a_half_precision_backbone_stays_within_a_millimetre(estimator, checkpoint):
    queries = [HandQuery("left", BOX, K)] * 2
    exact = estimator.estimate(images(2), queries)
    for precision in ("fp16", "bf16"):
        options = HamerOptions(checkpoint=str(checkpoint), net=TINY, device="cpu", precision=precision)
        half = HamerEstimator(options)
        assert half.net.backbone.pos_embed.dtype != torch.float32
        assert half.net.mano_head.decpose.weight.dtype == torch.float64
        distance = np.linalg.norm(half.estimate(images(2), queries).verts_m - exact.verts_m, axis=-1).max()
        assert 0 < distance < (1e-3 if precision == "fp16" else 4e-3)


def test_a_hopeless_box_is_a_row_and_moves_no_other(estimator):
    query, lost = HandQuery("right", BOX, K), HandQuery("right", np.full(4, np.nan), K)
    found = estimator.estimate(images(3), [query, lost, query])
    assert found.valid.tolist() == [True, False, True]
    assert "not finite" in found.reasons[1]
    assert np.array_equal(found.verts_m[2], estimator.estimate(images(3), [query] * 3).verts_m[2])
    assert len(estimator.estimate([], [])) == 0


def test_wrong_images_and_options_are_refused(estimator):
    with pytest.raises(BackendError):
        estimator.estimate(images(2), [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError):
        estimator.estimate([np.zeros((9, 9), np.uint8)], [HandQuery("right", BOX, K)])
    with pytest.raises(BackendError, match="tip set 'other'"):
        estimator.estimate(images(1), [HandQuery("right", BOX, K, "other")])
    for wrong in ({"precision": "fp8"}, {"device": "tpu"}, {"batch": 0}, {"enlarge": 0.0}, {"pixel_centres": "x"}):
        with pytest.raises(ConfigError):
            HamerOptions(**wrong)
    for sizes in ({"width": 30}, {"depth": 0}):
        with pytest.raises(ConfigError):
            HamerConfig(**sizes)


def test_missing_files_are_named_before_work(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("PAM_AUG_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("MANO_DIR", raising=False)
    (missing,) = HamerEstimator().requires()
    for part in (str(tmp_path / "hamer.ckpt"), "2,689.5 MB", "MIT", "huggingface.co"):
        assert part in missing
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in random_state().items() if name in table(TINY)}, bare)
    (missing,) = HamerEstimator(HamerOptions(checkpoint=str(bare), net=TINY)).requires()
    assert "MANO_RIGHT.pkl" in missing
    assert "Max Planck" in missing
    (tmp_path / "mano").mkdir()
    official = write_official(fake_hand(), tmp_path / "mano" / "MANO_RIGHT.pkl")
    assert HamerEstimator(HamerOptions(checkpoint=str(bare), net=TINY)).requires() == []
    users = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, mano=str(official.parent)))
    assert users.requires() == []
    assert np.allclose(users.assets.v_template, fake_hand().v_template)
    assert "-mano-" in users.version
    lost = HamerEstimator(HamerOptions(checkpoint=str(checkpoint), net=TINY, mano=str(tmp_path / "no")))
    assert "MANO_RIGHT.pkl" in lost.requires()[0]
    with pytest.raises(SchemaError, match="entries differ"):
        HamerEstimator(HamerOptions(checkpoint=str(checkpoint))).requires()


def test_a_build_is_judged_by_it(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    options = {"checkpoint": str(checkpoint), "net": asdict(TINY), "device": "cpu"}
    tree = {**fakes.CONFIG, "score": {"estimator": "hamer", "options": options}}
    config = resolve(BuildConfig, tree, ["source.count=1", "real.count=1", "generate.candidates=4"])
    run_build(config, tmp_path / "out", workers=0)
    rows = read_all_candidates(tmp_path / "out")
    assert [row.estimator for row in rows] == ["hamer"] * 4
    assert all(math.isfinite(row.err_mm) and 0 <= row.mask_iou <= 1 for row in rows)
    assert len({row.err_mm for row in rows}) == 4
    lost = resolve(BuildConfig, tree, ["score.options.checkpoint=/nowhere/hamer.ckpt"])
    with pytest.raises(AssetMissing, match="HaMeR's published checkpoint"):
        run_build(lost, tmp_path / "lost", workers=0)


@pytest.mark.parametrize("judges", ["hamer", "hamer,fake"])
def test_the_command_line_names_it(monkeypatch, checkpoint, tmp_path, judges):
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    options = {"checkpoint": str(checkpoint), "net": asdict(TINY), "device": "cpu"}
    tree = {**fakes.CONFIG, "score": {"options": {"hamer": options} if "," in judges else options}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    arguments = ["build", str(tmp_path / "tiny.yaml"), "--out", str(out), "--estimator", judges, "--workers", "0"]
    arguments += ["--candidates", "4", "--set", "source.count=1", "--set", "real.count=1"]
    monkeypatch.setattr(sys, "argv", ["pam-aug", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    rows = read_all_candidates(out)
    assert {row.estimator for row in rows} == {judges if "," not in judges else f"mean({judges})"}
    assert all(math.isfinite(row.err_mm) and row.vert_err_mm > 0 for row in rows)
    assert [len(row.judgements) for row in rows] == [2 if "," in judges else 0] * 4


def test_the_registry_knows_it_and_a_recipe_can_set_it():
    assert registry.load("estimators", "hamer") is HamerEstimator
    options = resolve(HamerOptions, {"net": {"width": 64}, "precision": "bf16"}, where="score.options")
    assert options.net == HamerConfig(width=64)
    assert options.precision == "bf16"
