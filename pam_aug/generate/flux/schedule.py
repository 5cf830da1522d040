"""The times at which FLUX samples: a line from noise to image, shifted towards noise by the image's size."""

import math

import torch

__all__ = ["MU_RULES", "schedule_times", "shift_mu"]

MU_RULES = ("official", "token_count")
_MU_LINE = ((256, 0.5), (4096, 1.15))  # (sequence length, μ): FLUX's own two points


def shift_mu(width: int, height: int, rule: str = "official") -> float:
    """How far the schedule is shifted towards noise at an image size.

    "official" is what PAM's code computes, from the number of latent cells divided by 256, which is hardly a sequence
    length: 0.459714 at 640×480. "token_count" is FLUX's own meaning: 0.65979 there.
    """
    cells = (width // 8) * (height // 8)
    length = cells // 256 if rule == "official" else cells // 4
    (x0, y0), (x1, y1) = _MU_LINE
    return y0 + (length - x0) * (y1 - y0) / (x1 - x0)


def schedule_times(steps: int, mu: float) -> list[float]:
    """The steps + 1 times from 1 to 0, shifted: e^μ / (e^μ + 1/t - 1)."""
    line = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64).tolist()
    return [math.exp(mu) / (math.exp(mu) + 1.0 / t - 1.0) if t > 0 else 0.0 for t in line]
