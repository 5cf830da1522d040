"""What SimpleHand is trained on: L1 errors of image positions, joints and vertices, the same of joints after alignment,
and the heatmaps' cross-entropy."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pam_aug.estimators.simplehand_net import NetOutput
from pam_aug.train.config import Objective
from pam_aug.train.crops import Batch

__all__ = ["TERMS", "aligned_error", "heat_loss", "loss_terms", "loss_weights"]

TERMS = ("uv", "joints", "verts", "aligned", "heat")


def loss_terms(out: NetOutput, batch: Batch, names: Sequence[str] = TERMS) -> dict[str, Tensor]:
    """The terms of `TERMS`, unweighted, each a mean over points and hands of an error summed over axes.

    `uv` is in crop units, `joints`, `verts` and `aligned` are in metres: SimpleHand's losses and one after alignment.
    A hand without a label counts as zero in the mean over hands, as in SimpleHand, so that batches and processes weigh
    alike. `heat` is zero for a network without a heatmap, and so are the terms that `names` leaves out. `aligned` and
    `heat` take every hand as labelled.
    """
    zero = out.uv.new_zeros(())
    return {
        "uv": _mean_l1(out.uv, batch.uv, batch.uv_valid),
        "joints": _mean_l1(out.joints_m, batch.joints_m, batch.joints_valid),
        "verts": _mean_l1(out.verts_m, batch.verts_m, batch.verts_valid),
        "aligned": aligned_error(out.joints_m, batch.joints_m) if "aligned" in names else zero,
        "heat": zero if out.heat is None or "heat" not in names else heat_loss(out.heat, batch.uv),
    }


def _mean_l1(found: Float[Tensor, "n k d"], true: Float[Tensor, "n k d"], valid: Tensor | None) -> Float[Tensor, ""]:
    error = (found - true).abs().sum(-1)
    return error.mean() if valid is None else (error.mean(1) * valid).mean()


def loss_weights(iteration: int, config: Objective) -> dict[str, float]:
    """Weight of each term at an iteration. The heatmaps' falls in a straight line to zero: they show the backbone where
    joints are, early; late, the places of hidden joints, which nothing shows, would be most of their gradient."""
    heat = config.weight_heat * (1.0 - iteration / config.iterations)
    values = (config.weight_uv, config.weight_joints, config.weight_verts, config.weight_aligned, heat)
    return dict(zip(TERMS, values, strict=True))


def aligned_error(found: Float[Tensor, "n k 3"], true: Float[Tensor, "n k 3"]) -> Float[Tensor, ""]:
    """Mean L1 error after the similarity that aligns each found set best: what PA-MPJPE sees, the pose without its
    turn, place and size, which would outweigh it otherwise. The alignment itself counts as constant."""
    found, true = found - found.mean(1, keepdim=True), true - true.mean(1, keepdim=True)
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(true.transpose(1, 2) @ found)
        sign = torch.ones_like(s)
        sign[:, 2] = torch.linalg.det(u @ vt).sign()
        size = (s * sign).sum(1) / found.square().sum((1, 2)).clamp(min=1e-8)
        # A size far from one belongs to a set that is no hand yet.
        turn = (u * sign[:, None]) @ vt * size.clamp(0.5, 2.0)[:, None, None]
    return (found @ turn.transpose(1, 2) - true).abs().sum(-1).mean()


def heat_loss(logits: Float[Tensor, "n 21 h w"], uv: Float[Tensor, "n 21 2"]) -> Float[Tensor, ""]:
    """Cross-entropy of heatmaps with the joint's cell, spread bilinearly over its four neighbours.

    A mean position alone hardly moves a map that is still flat: its gradient shrinks with the number of cells.
    """
    shares = []
    for axis, cells in enumerate((logits.shape[3], logits.shape[2])):
        place = (uv[..., axis, None] * cells - 0.5).clamp(0.0, cells - 1.0)
        shares.append((1.0 - (place - torch.arange(cells, device=uv.device)).abs()).clamp(min=0.0))
    target = shares[1][..., :, None] * shares[0][..., None, :]
    return -(logits.flatten(2).log_softmax(2) * target.flatten(2)).sum(2).mean()
