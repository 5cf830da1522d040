"""The SimpleHand network (Zhou et al., CVPR 2024, "A Simple Baseline for Efficient Hand Mesh Reconstruction").

A backbone; one linear layer that predicts the 21 image positions; a deconvolved feature map sampled at those positions,
one token per joint; three stages that mix tokens and multiply them, 21→84→336→778, the last being vertices. Parameter
names and shapes are the published network's, so that its weights fit where the backbone is its own. Right hands only:
who reads a left hand mirrors it before and after.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pam_aug.errors import ConfigError

__all__ = ["NetConfig", "NetOutput", "SimpleHandNet", "fold_batch_norm", "mean_position", "normalise_pixels"]

N_JOINTS, N_VERTS = 21, 778
TOKENS = (N_JOINTS, 84, 336, N_VERTS)
_ROOTS = {"wrist": 0, "middle_mcp": 9}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetConfig:
    """Everything that a set of weights fixes; it is stored beside them.

    `pixels` names channel order and normalisation: "rgb_half" is RGB/255 - 0.5, "legacy_bgr_half" the published
    network's BGR/255 - 0.5, "imagenet_rgb" RGB with ImageNet's mean and deviation. `joints` says how joints follow from
    vertices (see `joint_map`). Vertices are relative to `root`, times `output_scale_m` metres. `mixers` are the three
    stages' token mixers; the paper finds that "identity" loses little, and over 336 tokens on a CPU attention is half
    the head's time. `uv_head` is the published "pooled" (a linear layer on the mean feature) or "heatmap" (the mean
    position under a softmax over the deconvolved map; Sun et al., ECCV 2018), which learns positions much sooner.
    `token_map` is the published "deconv" or "pyramid", which adds the maps of the two stages before the last to it
    (Lin et al., CVPR 2017). `upright` says that the network reads crops with the wrist below the knuckles.
    """

    backbone: str = "small"
    input_px: int = 128
    pixels: str = "rgb_half"
    root: str = "wrist"
    joints: str = "kinematic_fit"
    tips: str = "smplx"
    widths: tuple[int, ...] = (40, 80, 160, 320)
    depths: tuple[int, ...] = (2, 3, 4, 2)
    dims: tuple[int, ...] = (128, 64, 32)
    heads: int = 2
    mixers: tuple[str, ...] = ("attention", "attention", "attention")
    uv_head: str = "pooled"
    token_map: str = "deconv"
    deconv_stride: int = 4
    output_scale_m: float = 0.1
    upright: bool = False

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.backbone != "small":
            problems.append(f"backbone {self.backbone!r}: this version has 'small'")
        if self.pixels not in ("rgb_half", "legacy_bgr_half", "imagenet_rgb"):
            problems.append(f"pixels {self.pixels!r}: choose rgb_half, legacy_bgr_half or imagenet_rgb")
        if self.root not in _ROOTS:
            problems.append(f"root {self.root!r}: choose one of {', '.join(_ROOTS)}")
        if self.joints not in ("kinematic_fit", "regressor"):
            problems.append(f"joints {self.joints!r}: choose kinematic_fit or regressor")
        if len(self.widths) != len(self.depths) or len(self.dims) != 3:
            problems.append("widths and depths have one entry per backbone stage, dims three")
        if self.dims[0] % 4 or any(d % self.heads for d in self.dims):
            problems.append(f"dims {self.dims}: the first is a multiple of 4, all of heads={self.heads}")
        if self.uv_head not in ("pooled", "heatmap"):
            problems.append(f"uv_head {self.uv_head!r}: choose pooled or heatmap")
        if self.token_map not in ("deconv", "pyramid"):
            problems.append(f"token_map {self.token_map!r}: choose deconv or pyramid")
        if self.token_map == "pyramid" and (self.deconv_stride != 4 or len(self.widths) < 3):
            problems.append("a pyramid needs three stages or more and deconv_stride 4")
        if len(self.mixers) != 3 or not set(self.mixers) <= {"attention", "identity"}:
            problems.append(f"mixers {self.mixers}: three of attention, identity")
        if self.input_px % (2 ** (len(self.widths) + 1)):
            problems.append(f"input_px {self.input_px}: a multiple of {2 ** (len(self.widths) + 1)}")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "NetConfig":
        """The configuration of plain data, as a recipe or a weight file's .json has it. Raises ConfigError."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"net has no {', '.join(unknown)}; it has {', '.join(cls.__dataclass_fields__)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    @property
    def root_index(self) -> int:
        """Row of the root among the 21 joints."""
        return _ROOTS[self.root]


@dataclass(frozen=True, slots=True, eq=False)
class NetOutput:
    """`uv` (n,21,2): crop positions, 0 to 1 from the first to the last pixel's outer edge. `verts_m` (n,778,3) and
    `joints_m` (n,21,3): metres, crop camera's axes, relative to the root as trained (nothing enforces a zero root).
    `heat` (n,21,h,w): a heatmap head's logits."""

    uv: Tensor
    verts_m: Tensor
    joints_m: Tensor
    heat: Tensor | None = None


def normalise_pixels(crops: Tensor, pixels: str) -> Float[Tensor, "n 3 s s"]:
    """Network input from RGB crops (n,s,s,3) uint8, in the form that `NetConfig.pixels` names."""
    x = crops.permute(0, 3, 1, 2).float() / 255.0
    if pixels == "imagenet_rgb":
        mean, std = (x.new_tensor(v)[:, None, None] for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        return (x - mean) / std
    if pixels == "legacy_bgr_half":
        x = x.flip(1)
    return (x - 0.5).contiguous(memory_format=torch.channels_last)


class ConvBlock(nn.Module):
    """3×3 convolution, batch norm, identity where the shape allows, ReLU.

    Plain dense convolutions: on CPUs they train three times faster than inverted residuals of half their multiplies.
    """

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(width_out)
        self.identity = width_in == width_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        # In place: on CPUs the time of these goes into fresh memory, and no gradient needs the overwritten values.
        return (y.add_(x) if self.identity else y).relu_()


class SmallBackbone(nn.Module):
    """Stem and stages of `ConvBlock`s, each halving the resolution: every stage's map, the last one s/32 wide."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        width = max(16, widths[0] // 2)
        self.stem = ConvBlock(3, width, 2)
        self.stages = nn.ModuleList()
        for out, depth in zip(widths, depths, strict=True):
            first = ConvBlock(width, out, 2)
            self.stages.append(nn.Sequential(first, *(ConvBlock(out, out, 1) for _ in range(depth - 1))))
            width = out

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention under torch's own parameter names, by the fused kernel, without its mask handling."""

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:  # type: ignore[override]
        n, t, d = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(n, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, t, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; without heads, its MLP half only."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads:
            self.norm1 = nn.LayerNorm(dim)
            self.token_mixer = SelfAttention(dim, heads, batch_first=True)
        self.heads = heads
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.heads:
            x = x + self.token_mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenUpsample(nn.Module):
    """A linear map over the token axis, one bias per output token."""

    def __init__(self, tokens_in: int, tokens_out: int) -> None:
        super().__init__()
        self.upsample = nn.Linear(tokens_in, tokens_out)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n u d"]:
        return self.upsample(x.transpose(1, 2)).transpose(1, 2)


@functools.lru_cache(maxsize=8)
def sine_position(height: int, width: int, dim: int, device: torch.device) -> Float[Tensor, "1 dim h w"]:
    """The fixed 2-D sine encoding of DETR: y's half of the channels, then x's, positions from 1, normalised to 2π."""
    with torch.inference_mode(False):  # one that inference asked for first must serve training too
        return _sine_position(height, width, dim).to(device)


def _sine_position(height: int, width: int, dim: int) -> Tensor:
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32)
    period = 10_000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def encode(size: int) -> Tensor:
        phase = torch.arange(1, size + 1, dtype=torch.float32) / (size + 1e-6) * 2 * math.pi
        angle = phase[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)

    y, x = encode(height), encode(width)
    both = torch.cat((y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)), 2)
    return both.permute(2, 0, 1)[None].contiguous()


class HeatmapHead(nn.Module):
    """One map of logits per joint (n,21,h,w), over the cells of the token map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, N_JOINTS, 1)

    def forward(self, grid_map: Float[Tensor, "n d h w"]) -> Float[Tensor, "n 21 h w"]:
        return self.conv(grid_map).float()


def mean_position(logits: Float[Tensor, "n 21 h w"]) -> Float[Tensor, "n 21 2"]:
    """The mean position (x, y) under a softmax over the cells; cell i of s is at (i + 1/2) / s."""
    weight = logits.flatten(2).softmax(2).unflatten(2, logits.shape[2:])
    return torch.stack((_mean_cell(weight.sum(2)), _mean_cell(weight.sum(3))), 2)


def _mean_cell(weight: Float[Tensor, "n 21 s"]) -> Float[Tensor, "n 21"]:
    size = weight.shape[2]
    return weight @ ((torch.arange(size, device=weight.device) + 0.5) / size)


class Laterals(nn.Module):
    """What a pyramid adds to the deconvolved map: the maps of the two stages before the last, which see detail."""

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(widths[-3], dim, 1, bias=False)
        self.middle = nn.Conv2d(widths[-2], dim, 1, bias=False)
        self.smooth = ConvBlock(dim, dim, 1)

    def forward(self, deconv: nn.Sequential, maps: Sequence[Tensor]) -> Float[Tensor, "n d h w"]:
        total = deconv[0](maps[-1]) + functional.interpolate(self.middle(maps[-2]), scale_factor=2.0)
        return self.smooth(deconv[1:](total + self.fine(maps[-3])))


class MeshHead(nn.Module):
    """Tokens at the predicted joints, mixed and multiplied to 778 vertices."""

    def __init__(self, width: int, config: NetConfig) -> None:
        super().__init__()
        dims, stride = config.dims, config.deconv_stride
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(width, dims[0], stride, stride, bias=False), nn.BatchNorm2d(dims[0]), nn.ReLU()
        )
        widths_in = (dims[0], *dims[:2])
        for k in range(3):
            embedding = torch.empty(1, TOKENS[k], widths_in[k])
            nn.init.trunc_normal_(embedding, std=0.02)
            self.register_parameter(f"pos_emb_{k + 1}", nn.Parameter(embedding))
            self.add_module(f"proj_{k + 1}", nn.Linear(widths_in[k], dims[k]))
            heads = config.heads if config.mixers[k] == "attention" else 0
            self.add_module(f"encoder_{k + 1}", nn.Sequential(EncoderBlock(dims[k], heads)))
            self.add_module(f"upsample_{k + 1}", TokenUpsample(TOKENS[k], TOKENS[k + 1]))
        self.pred_final = nn.Linear(dims[2], 3)

    def forward(self, grid_map: Float[Tensor, "n d h w"], uv: Float[Tensor, "n 21 2"]) -> Float[Tensor, "n 778 3"]:
        _, dim, height, width = grid_map.shape
        grid_map = grid_map.float() + sine_position(height, width, dim, grid_map.device)
        grid = (2.0 * (uv - 0.5)).clamp(-1.0, 1.0)[:, :, None]
        tokens = functional.grid_sample(grid_map, grid, align_corners=True)[..., 0].transpose(1, 2)
        for k in (1, 2, 3):
            tokens = getattr(self, f"proj_{k}")(tokens + getattr(self, f"pos_emb_{k}"))
            tokens = getattr(self, f"upsample_{k}")(getattr(self, f"encoder_{k}")(tokens))
        with torch.autocast(tokens.device.type, enabled=False):  # bfloat16 would round vertices to half a millimetre
            return self.pred_final(tokens.float())


class SimpleHandNet(nn.Module):
    """Crops to image positions, vertices and joints. `joint_map` (21,778) is a buffer: joints = joint_map @ verts."""

    joint_map: Tensor

    def __init__(self, config: NetConfig, joint_map: Float[Tensor, "21 778"]) -> None:
        super().__init__()
        self.config = config
        self.backbone = SmallBackbone(config.widths, config.depths)
        self.keypoints_2d_head: nn.Linear | HeatmapHead
        if config.uv_head == "pooled":
            self.keypoints_2d_head = nn.Linear(config.widths[-1], 2 * N_JOINTS)
            nn.init.constant_(self.keypoints_2d_head.bias, 0.5)
        else:
            self.keypoints_2d_head = HeatmapHead(config.dims[0])
        self.mesh_head = MeshHead(config.widths[-1], config)
        self.laterals = Laterals(config.widths, config.dims[0]) if config.token_map == "pyramid" else None
        self.register_buffer("joint_map", joint_map.float())

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> NetOutput:
        maps = self.backbone(x)
        deconv, heat = self.mesh_head.deconv, None
        grid_map = deconv(maps[-1]) if self.laterals is None else self.laterals(deconv, maps)
        if isinstance(self.keypoints_2d_head, HeatmapHead):
            heat = self.keypoints_2d_head(grid_map)
            uv = mean_position(heat)
        else:
            uv = self.keypoints_2d_head(maps[-1].mean((2, 3))).float().view(-1, N_JOINTS, 2)
        verts = self.mesh_head(grid_map, uv) * self.config.output_scale_m
        with torch.autocast(verts.device.type, enabled=False):
            return NetOutput(uv, verts, self.joint_map @ verts, heat)


def fold_batch_norm(net: SimpleHandNet) -> SimpleHandNet:
    """The same function for inference with every batch norm inside its convolution; changes and returns `net`."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net.eval()
    for block in net.modules():
        if isinstance(block, ConvBlock) and isinstance(block.bn, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()  # type: ignore[assignment]
    deconv, norm = net.mesh_head.deconv[0], net.mesh_head.deconv[1]
    if net.laterals is None and isinstance(norm, nn.BatchNorm2d):
        net.mesh_head.deconv[0] = fuse_conv_bn_eval(deconv, norm, transpose=True)  # type: ignore[type-var]
        net.mesh_head.deconv[1] = nn.Identity()
    return net
