"""The objective of PAM's stage II, as its official code has it: rectified flow at unshifted times, hidden cues.

x_t = (1 - t)·clean + t·noise, and the model says noise - clean; the loss is the plain mean square. t is one of 1000
points from 1 to 0, all as likely, for each image by itself. (The paper gives no form of its own; its schedule's shift
belongs to sampling only. A foreground weight stands in the code and is not called.)
"""

from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["CUES", "MASKING", "TIME_POINTS", "flow_loss", "flow_times", "hide_cues", "mix_noise", "sampled_latents"]

CUES = ("depth", "normal", "keypoints", "seg")
"""The slots of the condition tensor, three channels each, in the ControlNets' order."""

MASKING = MappingProxyType(
    {
        "official": MappingProxyType({"depth": 0.2, "normal": 0.0, "keypoints": 0.05, "seg": 0.2}),
        "paper": MappingProxyType({"depth": 0.2, "normal": 0.0, "keypoints": 0.2, "seg": 0.2}),
        "none": MappingProxyType({"depth": 0.0, "normal": 0.0, "keypoints": 0.0, "seg": 0.0}),
    }
)
"""How often a cue is hidden, independently of the others: the code's shares, and the paper's 0.2 for every cue. Normals
are never drawn and always -1, as in PAM's training script."""

TIME_POINTS = 1000


def flow_times(points: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Times, float32, of points 0 to 999: from 1 (noise) down to 0."""
    return torch.linspace(1.0, 0.0, TIME_POINTS)[points]


def sampled_latents(
    moments: Float[Tensor, "n 2*c h w"], noise: Float[Tensor, "n c h w"], scale: float, shift: float
) -> Float[Tensor, "n c h w"]:
    """Latents as FLUX has them, a sample of the posterior whose mean and log variance are `moments`."""
    mean, log_variance = moments.chunk(2, dim=1)
    return scale * (mean + torch.exp(0.5 * log_variance) * noise - shift)


def mix_noise(
    clean: Float[Tensor, "n c h w"], noise: Float[Tensor, "n c h w"], time: Float[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """The straight line between both at `time`: clean at 0, noise at 1."""
    t = time.view(-1, 1, 1, 1)
    return (1 - t) * clean + t * noise


def flow_loss(velocity: Float[Tensor, "n t k"], target: Float[Tensor, "n t k"]) -> Float[Tensor, "n"]:
    """Mean square error of each image, float32 at least; `target` is noise minus clean latents in the same layout."""
    wide = torch.promote_types(velocity.dtype, torch.float32)
    return (velocity.to(wide) - target.to(wide)).square().mean(dim=(1, 2))


def hide_cues(conditions: Float[Tensor, "n 12 h w"], hidden: Bool[Tensor, "n 4"]) -> Float[Tensor, "n 12 h w"]:
    """The conditions with the `hidden` ones of `CUES` at -1, which is what black and absent are."""
    channels = hidden.repeat_interleave(3, dim=1)[:, :, None, None]
    return torch.where(channels, torch.full_like(conditions, -1.0), conditions)
