"""HaMeR's network: a plain vision transformer and a one-query decoder that reads out MANO parameters.

Pavlakos et al., "Reconstructing Hands in 3D with Transformers" (CVPR 2024), on ViTPose's backbone (Xu et al., NeurIPS
2022) and the rotation form of Zhou et al. (CVPR 2019). Module names are those of the published checkpoint, so its
`backbone.*` and `mano_head.*` entries load as they stand; attention goes through torch's fused kernel.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from pam_aug.errors import ConfigError

__all__ = [
    "HEIGHT_PX",
    "WIDTH_PX",
    "HamerConfig",
    "HamerNet",
    "HamerOutput",
    "columns_to_matrix",
    "entry_dtype",
    "network_input",
]

HEIGHT_PX: Final = 256
WIDTH_PX: Final = 192
_PATCH, _PADDING = 16, 2
_ROWS = (HEIGHT_PX + 2 * _PADDING - _PATCH) // _PATCH + 1
_COLUMNS = (WIDTH_PX + 2 * _PADDING - _PATCH) // _PATCH + 1
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in 0 to 1


@dataclass(frozen=True)
class HamerConfig:
    """Sizes. The defaults are the published network's (ViT-H); others are for networks trained with other widths.

    `width`, `depth`, `heads` and `hidden` (of the MLPs) are the backbone's, the others the decoder's.
    """

    width: int = 1280
    depth: int = 32
    heads: int = 16
    hidden: int = 5120
    head_width: int = 1024
    head_depth: int = 6
    head_heads: int = 8
    head_dim: int = 64
    head_hidden: int = 1024

    def __post_init__(self) -> None:
        low = [name for name in self.__dataclass_fields__ if getattr(self, name) < 1]
        if low:
            raise ConfigError(f"{', '.join(low)}: every size of a HaMeR network is at least 1", fields=low)
        if self.width % self.heads:
            raise ConfigError(f"width {self.width}: must be a multiple of heads = {self.heads}")


class HamerOutput(NamedTuple):
    """MANO parameters of a right hand: rotations of the wrist and the 15 joints in MANO's order (absolute: no mean pose
    is to be added), shape, and a weak-perspective camera: s half crops per metre, tx and ty metres."""

    rotations: Float[Tensor, "b 16 3 3"]
    betas: Float[Tensor, "b 10"]
    camera: Float[Tensor, "b 3"]


def network_input(crops: UInt8[Tensor, "b 256 256 3"]) -> Float[Tensor, "b 3 256 192"]:
    """Square RGB crops as the network reads them: the middle 192 columns, ImageNet's mean and deviation."""
    side = (crops.shape[2] - WIDTH_PX) // 2
    x = crops[:, :, side : side + WIDTH_PX].permute(0, 3, 1, 2).float()
    mean, std = (255.0 * x.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
    return (x - mean) / std


def columns_to_matrix(six: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Rotations from their first column (three numbers, any length), then their second (Gram-Schmidt)."""
    first = functional.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    second = functional.normalize(second, dim=-1)
    return torch.stack((first, second, torch.linalg.cross(first, second, dim=-1)), -1)


# ----------------------------------------------------------------------------------------------------------- backbone


def _split_heads(x: Float[Tensor, "b t d"], heads: int) -> Float[Tensor, "b h t e"]:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Float[Tensor, "b t d"]:
    """Fused attention, scaled by the root of a head's width."""
    q, k, v = (_split_heads(x, heads) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(_attend(q, k, v, self.heads))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. Stochastic depth is the identity at inference, and has no parameters."""

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, _PATCH, _PADDING)

    def forward(self, x: Tensor) -> Float[Tensor, "b t d"]:
        return self.proj(x).flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """Crops to 16 × 12 tokens, row by row. The first row of `pos_embed` was a class token's; every token adds it."""

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, _ROWS * _COLUMNS + 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b 3 256 192"]) -> Float[Tensor, "b 192 d"]:
        x = self.patch_embed(x.to(self.pos_embed.dtype))
        x = x + (self.pos_embed[:, 1:] + self.pos_embed[:, :1])
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


# --------------------------------------------------------------------------------------------------------------- head


class QuerySelfAttention(nn.Module):
    """Self-attention of a single query: a softmax over one key is 1, so only values and the output count."""

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.inner = config.head_heads * config.head_dim
        self.to_qkv = nn.Linear(config.head_width, 3 * self.inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(self.inner, config.head_width))

    def forward(self, x: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b 1 d"]:
        return self.to_out(functional.linear(x, self.to_qkv.weight[2 * self.inner :]))


class CrossAttention(nn.Module):
    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        inner = config.head_heads * config.head_dim
        self.heads = config.head_heads
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.to_q = nn.Linear(config.head_width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, config.head_width))

    def forward(self, x: Float[Tensor, "b 1 d"], context: Float[Tensor, "b t c"]) -> Float[Tensor, "b 1 d"]:
        k, v = self.to_kv(context).to(x.dtype).chunk(2, dim=-1)
        return self.to_out(_attend(self.to_q(x), k, v, self.heads))


class FeedForward(nn.Module):
    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        first = nn.Linear(config.head_width, config.head_hidden)
        second = nn.Linear(config.head_hidden, config.head_width)
        self.net = nn.Sequential(first, nn.GELU(), nn.Identity(), second)  # the identity: training's dropout stood here

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """x + fn(norm(x), …): what else `fn` reads is not normalised."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return x + self.fn(self.norm(x), *context)


class Decoder(nn.Module):
    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        makers = (QuerySelfAttention, CrossAttention, FeedForward)
        self.layers = nn.ModuleList(
            nn.ModuleList(PreNorm(config.head_width, maker(config)) for maker in makers)
            for _ in range(config.head_depth)
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            own, cross, feed = layer  # type: ignore[misc]
            x = feed(cross(own(x), context))
        return x


class QueryDecoder(nn.Module):
    """The query is a zero embedded by a linear layer, hence its bias, plus a position."""

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.to_token_embedding = nn.Linear(1, config.head_width)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, config.head_width))
        self.transformer = Decoder(config)

    def forward(self, context: Float[Tensor, "b t c"]) -> Float[Tensor, "b d"]:
        query = self.to_token_embedding.bias + self.pos_embedding
        return self.transformer(query.expand(len(context), -1, -1), context)[:, 0]


class ManoHead(nn.Module):
    """Tokens to parameters, each read out as an offset from the mean that the checkpoint carries."""

    init_hand_pose: Tensor
    init_betas: Tensor
    init_cam: Tensor

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.transformer = QueryDecoder(config)
        self.decpose = nn.Linear(config.head_width, 96)
        self.decshape = nn.Linear(config.head_width, 10)
        self.deccam = nn.Linear(config.head_width, 3)
        self.register_buffer("init_hand_pose", torch.zeros(1, 96))
        self.register_buffer("init_betas", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.zeros(1, 3))

    def forward(self, context: Float[Tensor, "b t c"]) -> HamerOutput:
        token = self.transformer(context)
        six = (self.decpose(token) + self.init_hand_pose).unflatten(1, (16, 6))
        betas, camera = self.decshape(token) + self.init_betas, self.deccam(token) + self.init_cam
        return HamerOutput(columns_to_matrix(six), betas, camera)


def entry_dtype(name: str, backbone: torch.dtype) -> torch.dtype:
    """The type of a checkpoint's entry in the network: `backbone` in the backbone, float64 along the head's query.

    The query is one row per crop, and how a matrix product adds up depends on the number of its rows: in single
    precision a crop's estimate would move by 1e-5 mm with the crops beside it. In double precision that is 1e-13, and
    costs nothing, as the query's share of the work is 1e-4. Tokens are 192 rows per crop; their products stay single.
    """
    if name.startswith("backbone."):
        return backbone
    return torch.float32 if ".to_kv." in name else torch.float64


class HamerNet(nn.Module):
    """Normalised crops to MANO parameters. The backbone may be in half precision; for the head see `entry_dtype`."""

    def __init__(self, config: HamerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.mano_head = ManoHead(config)

    def forward(self, x: Float[Tensor, "b 3 256 192"]) -> HamerOutput:
        return self.mano_head(self.backbone(x).float())
