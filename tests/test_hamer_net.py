"""HaMeR's network: the published structure, and its equations one by one in float64."""

import numpy as np
import pytest
import torch
from fake_hamer import TINY, mano_entries, random_state, table, unused_entries
from scipy.special import erf

from pam_aug.estimators.hamer_checkpoint import expected_entries, load_hamer
from pam_aug.estimators.hamer_net import HamerConfig, HamerNet, columns_to_matrix, network_input
from pam_aug.geometry import axis_angle_to_matrix
from pam_aug.hand import load_open_hand


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
