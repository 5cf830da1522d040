"""The models of stage II's training: FLUX, frozen, and the control pair on it, and what both say together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pam_aug.errors import AssetMissing
from pam_aug.generate.flux.checkpoint import load_control
from pam_aug.generate.flux.controlnet import ControlPair, pack_tokens, token_ids
from pam_aug.generate.flux.models import load_transformer, missing_files
from pam_aug.generate.flux.sampling import predict_velocity
from pam_aug.train.stage_two.config import StageTwoConfig
from pam_aug.train.stage_two.objective import flow_loss, flow_times, hide_cues, mix_noise, sampled_latents

__all__ = ["DTYPES", "Residuals", "check_files", "load_frozen", "losses", "new_pair"]

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
"""What FLUX and the text encoders are kept in, by precision."""


class Residuals(nn.Module):
    """The control pair from its condition images on, in one call: what several processes train together."""

    def __init__(self, pair: ControlPair) -> None:
        super().__init__()
        self.pair = pair

    def forward(
        self, tokens: Tensor, conditions: Tensor, text: Tensor, pooled: Tensor, time: Tensor, strength: Tensor,
        ids: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        hints = self.pair.hints(conditions)
        return self.pair(tokens, hints, text, pooled, time, strength, ids)


def check_files(config: StageTwoConfig) -> None:
    """Raises AssetMissing with every file that a run lacks, before any work."""
    missing = [line.replace("generate.options.base", "flux.base") for line in missing_files(Path(config.flux.base))]
    if config.flux.control and not Path(config.flux.control).is_file():
        missing.append(f"{config.flux.control}: no such file; give a controlnet.bin, or leave flux.control empty")
    if missing:
        raise AssetMissing("\n  - ".join(["stage II lacks files:", *missing]), missing=missing)


def load_frozen(config: StageTwoConfig, device: torch.device) -> Any:
    """FLUX's transformer, which no step changes."""
    transformer: Any = load_transformer(Path(config.flux.base), DTYPES[config.precision])
    transformer = transformer.to(device).requires_grad_(False)
    if config.checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def new_pair(config: StageTwoConfig, transformer: Any) -> ControlPair:
    """The pair that training starts from, float32 on the CPU: from a checkpoint, or from FLUX and the seed."""
    if config.flux.control:
        pair = load_control(Path(config.flux.control), transformer.config, torch.float32)
    else:
        torch.manual_seed(config.seed)
        pair = ControlPair(transformer.config)
        pair.start_from(transformer)
        if config.flux.stem == "he":
            for net in (pair.controlnet1, pair.controlnet2):
                net.input_hint_block.widen()
    return pair.train().requires_grad_(True)


def losses(
    residuals_of: Any,
    transformer: Any,
    raw: Mapping[str, Tensor],
    *,
    scaling: tuple[float, float],
    guidance: float,
    autocast: Any,
) -> Float[Tensor, "n"]:
    """The loss of each image of a pass (`batches.FlowBatches`).

    `residuals_of` is `Residuals`, wrapped or not; `scaling` the VAE's factor and shift. `autocast` makes the context in
    which the pair runs; FLUX itself runs in its own type, as when it samples.
    """
    device = next(transformer.parameters()).device
    at = {name: value.to(device, non_blocking=True) for name, value in raw.items()}
    clean = sampled_latents(at["moments"], at["posterior"], *scaling)
    time = flow_times(raw["points"]).to(device)
    tokens = pack_tokens(mix_noise(clean, at["noise"], time))
    target = pack_tokens(at["noise"] - clean)
    ids = token_ids(at["text"].shape[1], clean.shape[2] // 2, clean.shape[3] // 2).to(device)
    strength = torch.full_like(time, guidance)
    conditions = hide_cues(at["conditions"], at["hidden"])
    dtype = transformer.dtype
    text, pooled = at["text"].to(dtype), at["pooled"].to(dtype)
    with autocast():
        residuals = residuals_of(tokens, conditions, text, pooled, time, strength, ids)
    residuals = [residual.to(dtype) for residual in residuals]
    velocity = predict_velocity(transformer, tokens.to(dtype), residuals, text, pooled, time, strength, ids)
    return flow_loss(velocity, target)
