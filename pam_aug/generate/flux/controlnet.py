"""PAM's two ControlNets on FLUX's first double blocks (official code 2026; the paper describes another structure).

Each reads six channels of condition pixels, never encoded by the VAE: depth and normals, keypoints and segmentation.
Their summed residuals are added to the image stream after every double block of FLUX, the two of them in turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings
from diffusers.models.transformers.transformer_flux import FluxPosEmbed, FluxTransformer2DModel, FluxTransformerBlock
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CONDITIONS", "ControlNet", "ControlPair", "HintEncoder", "pack_tokens", "token_ids", "unpack_tokens"]

CONDITIONS = ("depth", "normal", "keypoints", "seg")
"""Slots of the condition tensor, three channels each, in [-1, 1]: the first two feed one ControlNet, the others the
second. An absent condition is -1 everywhere, as black is."""

_BLOCKS = 2
_HINT_CHANNELS = 16


class HintEncoder(nn.Sequential):
    """Eight 3×3 convolutions from condition pixels to a map an eighth as wide; the last one starts at zero."""

    def __init__(self, channels: int = 6, width: int = _HINT_CHANNELS) -> None:
        layers: list[nn.Module] = []
        for i, stride in enumerate((1, 1, 2, 1, 2, 1, 2, 1)):
            layers += [nn.Conv2d(channels if i == 0 else width, width, 3, stride, 1), nn.SiLU()]
        super().__init__(*layers[:-1])
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)

    def widen(self) -> None:
        """Draw all convolutions but the last anew so that they keep the pixels' variation (He et al. 2015, biases
        zero). torch's own draw, which PAM's code trains from, lets a few ten-thousandths of it through: where training
        is short, the conditions are then never found."""
        for layer in list(self)[:-1]:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class ControlNet(nn.Module):
    """One of the two. Sizes are those of the FLUX transformer's `config`; modules are diffusers' and named alike, so
    that a transformer's first blocks and embedders load into it by name."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
        width, tokens = heads * head_dim, config["in_channels"]
        self.x_embedder = nn.Linear(tokens, width)
        self.context_embedder = nn.Linear(config["joint_attention_dim"], width)
        self.time_text_embed = CombinedTimestepGuidanceTextProjEmbeddings(width, config["pooled_projection_dim"])
        self.transformer_blocks = nn.ModuleList(FluxTransformerBlock(width, heads, head_dim) for _ in range(_BLOCKS))
        self.input_hint_block = HintEncoder(width=tokens // 4)
        self.pos_embed_input = nn.Linear(tokens, width)
        self.controlnet_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(_BLOCKS))
        for parameter in self.controlnet_blocks.parameters():
            nn.init.zeros_(parameter)

    def hint(self, pixels: Float[Tensor, "n 6 h w"]) -> Float[Tensor, "n t d"]:
        """What the conditions add to the image tokens. It holds for every step and candidate of an input."""
        return self.pos_embed_input(pack_tokens(self.input_hint_block(pixels)))

    def forward(
        self,
        tokens: Float[Tensor, "n t c"],
        hint: Float[Tensor, "m t d"],
        text: Float[Tensor, "n s e"],
        pooled: Float[Tensor, "n p"],
        time: Float[Tensor, "n"],
        guidance: Float[Tensor, "n"],
        rotary: tuple[Tensor, Tensor],
    ) -> list[Float[Tensor, "n t d"]]:
        """The residuals of the two blocks. `time` and `guidance` as FLUX's embedders take them: float32, times 1000."""
        x = self.x_embedder(tokens) + hint
        temb = self.time_text_embed(time, guidance, pooled)
        context = self.context_embedder(text)
        residuals = []
        for block, out in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            context, x = block(hidden_states=x, encoder_hidden_states=context, temb=temb, image_rotary_emb=rotary)
            residuals.append(out(x))
        return residuals


class ControlPair(nn.Module):
    """Both ControlNets; residual l is the weighted sum of theirs."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.controlnet1 = ControlNet(config)
        self.controlnet2 = ControlNet(config)
        self.rotary = FluxPosEmbed(theta=10_000, axes_dim=list(config["axes_dims_rope"]))
        self.config = {name: config[name] for name in _SIZES}

    def hints(self, conditions: Float[Tensor, "n 12 h w"]) -> tuple[Tensor, Tensor]:
        """Hint tokens of both, from the slots of `CONDITIONS`."""
        return self.controlnet1.hint(conditions[:, :6]), self.controlnet2.hint(conditions[:, 6:])

    def forward(
        self,
        tokens: Float[Tensor, "n t c"],
        hints: tuple[Tensor, Tensor],
        text: Float[Tensor, "n s e"],
        pooled: Float[Tensor, "n p"],
        time: Float[Tensor, "n"],
        guidance: Float[Tensor, "n"],
        ids: Float[Tensor, "k 3"],
        weights: Sequence[float] = (1.0, 1.0),
    ) -> list[Float[Tensor, "n t d"]]:
        """Two residuals, for FLUX's double blocks 0, 2, 4, … and 1, 3, 5, … (`controlnet_blocks_repeat`). `time` runs
        from 1 (noise) to 0; `ids` are those of text and image tokens together."""
        arguments = (text, pooled, 1000 * time, 1000 * guidance, self.rotary(ids))
        first = self.controlnet1(tokens, hints[0], *arguments)
        second = self.controlnet2(tokens, hints[1], *arguments)
        return [weights[0] * a + weights[1] * b for a, b in zip(first, second, strict=True)]

    def start_from(self, transformer: FluxTransformer2DModel) -> None:
        """Copy the transformer's embedders and first two blocks into both: how PAM's training starts."""
        state = transformer.state_dict()
        for net in (self.controlnet1, self.controlnet2):
            net.load_state_dict({name: state[name] for name in net.state_dict() if name in state}, strict=False)


_SIZES = (
    "in_channels",
    "num_attention_heads",
    "attention_head_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "axes_dims_rope",
)


def pack_tokens(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t k"]:
    """2×2 cells as one token of 4·c values: channels first, then row and column within the cell."""
    n, c, h, w = maps.shape
    cells = maps.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, (h // 2) * (w // 2), 4 * c)


def unpack_tokens(tokens: Float[Tensor, "n t k"], height: int, width: int) -> Float[Tensor, "n c h w"]:
    """The inverse of `pack_tokens`, for maps of `height` × `width` cells before packing."""
    n, _, k = tokens.shape
    cells = tokens.view(n, height // 2, width // 2, k // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(n, k // 4, height, width)


def token_ids(text_length: int, height: int, width: int) -> Float[Tensor, "k 3"]:
    """Positions of all tokens, text first: zero for text, (0, row, column) for the `height` × `width` image tokens."""
    ids = torch.zeros(text_length + height * width, 3)
    ids[text_length:, 1] = torch.arange(height).repeat_interleave(width)
    ids[text_length:, 2] = torch.arange(width).repeat(height)
    return ids
