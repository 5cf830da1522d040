"""Optimisers: Muon for the matrices inside the network, AdamW for the rest, and the learning rate over a run."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pam_aug.train.config import Objective

__all__ = ["Muon", "average_into", "make_optimizers", "orthogonalised", "schedule", "set_learning_rate"]

# The first convolution and the last layers: their outputs have a scale of their own.
_EDGES = ("stem", "keypoints_2d_head", "pred_final")


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix (Jordan et al. 2024, "Muon: an optimizer for
    hidden layers in neural networks"), scaled to AdamW's usual size of step (Liu et al. 2025, arXiv:2502.16982), so
    that its learning rates are of AdamW's order. A convolution is the matrix (out, in · kernel), which torch.optim.Muon
    does not take.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients, with Nesterov's momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                mean = state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
                update = parameter.grad.lerp(mean, group["momentum"]).reshape(len(parameter), -1)
                size = 0.2 * max(update.shape) ** 0.5
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalised(update).view(parameter.shape), alpha=-group["lr"] * size)


def orthogonalised(matrix: Float[Tensor, "a b"], steps: int = 5) -> Float[Tensor, "a b"]:
    """U Vᵀ of the matrix's singular value decomposition, roughly: singular values end between 0.7 and 1.2.

    Newton–Schulz iterations of Jordan's quintic polynomial, in bfloat16, on the smaller side's Gram matrix.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def make_optimizers(net: nn.Module, config: Objective) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices and kernels (none with `muon_lr` 0), then AdamW for what remains; in AdamW's part
    biases, norms and position embeddings do not decay."""
    inner, decayed, free = [], [], []
    for name, parameter in net.named_parameters():
        if parameter.ndim < 2 or "pos_emb" in name:
            free.append(parameter)
        elif config.muon_lr and not any(edge in name for edge in _EDGES):
            inner.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizers: list[Any] = [torch.optim.AdamW(groups, lr=config.lr, fused=True)]
    if inner:
        optimizers.insert(0, Muon(inner, lr=config.muon_lr, weight_decay=config.weight_decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def average_into(averaged: nn.Module, net: nn.Module, decay: float) -> None:
    """Move `averaged` towards `net` by 1 - `decay`. Running statistics are averaged like weights: they must belong to
    the weights beside them."""
    kept, new = averaged.state_dict(), net.state_dict()
    names = [name for name, value in kept.items() if value.is_floating_point()]
    for name in names:
        kept[name].lerp_(new[name], 1.0 - decay)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]


def schedule(iteration: int, config: Objective, drops: Iterable[int] = ()) -> float:
    """Share of the peak learning rate: a linear rise, a plateau divided by ten at each of `drops`, and a linear fall to
    zero at the end.

    Unlike a cosine's, the plateau's iterations do not depend on how long the run is.
    """
    rise = (iteration + 1) / config.warmup if config.warmup else 1.0
    fall = (config.iterations - iteration) / config.decay if config.decay else 1.0
    return min(1.0, rise, fall) * 0.1 ** sum(iteration >= drop for drop in drops)
