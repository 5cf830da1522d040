"""FLUX.1-dev under PAM's pair with random weights, at its own sizes or tiny ones: all of it takes the time of trained
weights, and none of it needs a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pam_aug.generate.flux.controlnet import ControlPair
from pam_aug.generate.flux.generator import FluxGenerator, FluxOptions
from pam_aug.generate.flux.models import DEV_TRANSFORMER, DEV_VAE
from pam_aug.generate.flux.sampling import Prompt

__all__ = ["FULL", "TINY", "ModelSizes", "RandomFlux"]


@dataclass(frozen=True)
class ModelSizes:
    """Arguments of the five models' classes."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    t5: dict[str, Any]
    clip: dict[str, Any]


FULL = ModelSizes(
    DEV_TRANSFORMER,
    DEV_VAE,
    {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
)
TINY = ModelSizes(
    {
        "num_layers": 3, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 24, "pooled_projection_dim": 20, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
    },
    DEV_VAE | {"block_out_channels": [8] * 4, "layers_per_block": 1, "norm_num_groups": 4},
    {"vocab_size": 64, "d_model": 24, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    {
        "vocab_size": 64, "hidden_size": 20, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "bos_token_id": 0, "eos_token_id": 2,
    },
)  # fmt: skip


class RandomFlux(FluxGenerator):
    """The generator `flux` on random weights of given sizes; everything else is its own."""

    def __init__(self, options: FluxOptions, sizes: ModelSizes) -> None:
        super().__init__(options)
        self.sizes = sizes

    @cached_property
    def _transformer(self) -> Any:
        made = random_module(lambda: FluxTransformer2DModel(**self.sizes.transformer), self._device, self._dtype, 1)
        if self.options.compile:
            made.compile_repeated_blocks()
        return made

    @cached_property
    def _control(self) -> Any:
        return random_module(lambda: ControlPair(self._transformer.config), self._device, self._dtype, 2)

    @cached_property
    def _vae(self) -> Any:
        return random_module(lambda: AutoencoderKL(**self.sizes.vae), self._device, self._dtype, 3)

    @cached_property
    def _encoders(self) -> Any:
        return RandomEncoders(self.sizes, self._device, self._dtype)


class RandomEncoders:
    """T5 and CLIP on random weights; a text's tokens are drawn from its letters, as many as the published ones read."""

    def __init__(self, sizes: ModelSizes, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        # As Google's v1.1: a gated MLP, which the published XXL has.
        t5 = T5Config(**sizes.t5, feed_forward_proj="gated-gelu")
        clip = CLIPTextConfig(**sizes.clip, max_position_embeddings=77)
        self._t5: Any = random_module(lambda: T5EncoderModel(t5), device, dtype, 4)
        self._clip: Any = random_module(lambda: CLIPTextModel(clip), device, dtype, 5)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        pooled = self._clip(self._tokens(texts, 77)).pooler_output.cpu()
        states = self._t5(self._tokens(texts, 512)).last_hidden_state.cpu()
        return [Prompt(states[i : i + 1], pooled[i : i + 1]) for i in range(len(texts))]

    def free(self) -> None:
        """Both stay: the peer encodes for every candidate."""

    def _tokens(self, texts: Sequence[str], count: int) -> Tensor:
        rows = [[2 + ord(text[i % len(text)]) % 32 for i in range(count)] for text in texts]
        return torch.tensor(rows, device=self._device)


def random_module(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, seed: int) -> nn.Module:
    """A module whose weights are drawn on `device` in `dtype`, without a copy elsewhere: spread by the inverse root of
    what a unit sums up, ones in norms, zeros in biases."""
    with torch.device("meta"):
        module = nn.Module.to(make(), dtype)
    module = module.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for name, buffer in module.named_buffers():
        if not name.endswith("position_ids"):
            raise SystemExit(f"{name}: a buffer that nothing fills")
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    return module
