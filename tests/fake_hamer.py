"""A narrow HaMeR with random weights in the form of the published checkpoint, and images for it."""

import math
from pathlib import Path

import numpy as np
import torch

from pam_aug.estimators.hamer_net import HamerConfig
from pam_aug.hand import load_open_hand
from pam_aug.hand.joints import MANO16_TO_21, TIP_SETS

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


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """The random network as the published file is laid out."""
    torch.save({"state_dict": random_state(seed)}, path)
    return path


def images(n: int, seed: int = 0) -> list[np.ndarray]:
    """Images of 300 × 180 pixels, of coloured squares."""
    rng = np.random.default_rng(seed)
    return [np.kron(rng.integers(0, 255, (18, 30, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(n)]
