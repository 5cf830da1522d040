"""Sampling of FLUX under the control pair: a candidate's noise, Euler steps over a batch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from pam_aug.generate.flux.controlnet import ControlPair, pack_tokens, token_ids

__all__ = ["Prompt", "candidate_noise", "denoise", "predict_velocity"]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt as FLUX reads it: T5's states `text` (1,s,e) and CLIP's pooled state `pooled` (1,p)."""

    text: Tensor
    pooled: Tensor


def candidate_noise(seeds: Sequence[int], width: int, height: int, channels: int = 16) -> Float[Tensor, "n c h w"]:
    """Starting noise, float32, one generator per seed and always drawn on the CPU: a candidate's noise depends on
    neither the device nor on what shares its batch."""
    shape = (1, channels, 2 * math.ceil(height / 16), 2 * math.ceil(width / 16))
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def denoise(
    transformer: FluxTransformer2DModel,
    control: ControlPair,
    noise: Float[Tensor, "n c h w"],
    hints: tuple[Tensor, Tensor],
    prompt: Prompt,
    times: Sequence[float],
    guidance: float = 4.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Float[Tensor, "n t k"]:
    """Packed latents of a batch of candidates of one input, float32.

    `hints` are the pair's, for the one input. The state is float32 throughout; only the networks' inputs are cast to
    their own type. No classifier-free guidance: FLUX.1-dev has its guidance as an input.
    """
    device, dtype = transformer.device, transformer.dtype
    x = pack_tokens(noise).to(device)
    n = len(x)
    text, pooled = prompt.text.expand(n, -1, -1), prompt.pooled.expand(n, -1)
    ids = token_ids(text.shape[1], noise.shape[2] // 2, noise.shape[3] // 2).to(device)
    strength = torch.full((n,), guidance, device=device)
    for now, then in pairwise(times):
        time = torch.full((n,), now, device=device)
        tokens = x.to(dtype)
        residuals = control(tokens, hints, text, pooled, time, strength, ids, weights)
        velocity = predict_velocity(transformer, tokens, residuals, text, pooled, time, strength, ids)
        x = x + (then - now) * velocity.float()
    return x


def predict_velocity(
    transformer: FluxTransformer2DModel,
    tokens: Float[Tensor, "n t k"],
    residuals: Sequence[Float[Tensor, "n t d"]],
    text: Float[Tensor, "n s e"],
    pooled: Float[Tensor, "n p"],
    time: Float[Tensor, "n"],
    guidance: Float[Tensor, "n"],
    ids: Float[Tensor, "k 3"],
) -> Float[Tensor, "n t k"]:
    """What FLUX says at `time` (float32, 1 is noise) under the control pair's residuals: noise minus clean latents."""
    words = text.shape[1]
    with _exact_time(transformer, time):
        return transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=time,
            guidance=guidance,
            txt_ids=ids[:words],
            img_ids=ids[words:],
            controlnet_block_samples=residuals,
            controlnet_blocks_repeat=True,
            return_dict=False,
        )[0]


@contextmanager
def _exact_time(transformer: FluxTransformer2DModel, time: Float[Tensor, "n"]) -> Iterator[None]:
    """Hand the transformer's embedder the time itself: diffusers rounds it to the weights' type first, which in
    bfloat16 moves it by up to two thousandths; PAM's code computes in float32."""

    def replace(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (1000 * time, *arguments[1:])

    handle = transformer.time_text_embed.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
