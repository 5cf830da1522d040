"""Pose metrics over a set of hands: root-aligned and Procrustes errors, PCK and its area, separability of two sets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pam_aug.errors import SchemaError
from pam_aug.geometry import pa_mpjpe_mm, procrustes_align, root_aligned_mpjpe_mm

__all__ = ["PoseMetrics", "best_constant_pose", "pck_auc", "pose_metrics", "separability"]


@dataclass(frozen=True, slots=True)
class PoseMetrics:
    """Means over hands, mm. `auc` is the area under PCK from 0 to 50 mm of root-aligned joints, `pa_auc` of aligned."""

    hands: int
    root: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    auc: float
    pa_auc: float
    mpvpe_mm: float = -1.0
    pa_mpvpe_mm: float = -1.0


def pose_metrics(
    pred_m: Float[np.ndarray, "n 21 3"],
    gt_m: Float[np.ndarray, "n 21 3"],
    *,
    root: int = 0,
    pred_verts_m: Float[np.ndarray, "n 778 3"] | None = None,
    gt_verts_m: Float[np.ndarray, "n 778 3"] | None = None,
    allow_reflection: bool = False,
) -> PoseMetrics:
    """Metrics of predicted joints (and vertices, aligned on their own) against labels, in metres, any common frame.

    `root` (0 the wrist, 9 the middle finger's base) is printed with every result because papers differ.
    `allow_reflection` is FreiHAND's official alignment, which forgives a mirrored hand. Vertices are compared relative
    to the same root joint. Raises SchemaError where shapes differ or there is no hand.
    """
    if pred_m.shape != gt_m.shape or not len(gt_m):
        raise SchemaError(f"metrics need two equal, non-empty sets of joints; got {pred_m.shape} and {gt_m.shape}")
    distance = np.linalg.norm((pred_m - pred_m[:, root, None]) - (gt_m - gt_m[:, root, None]), axis=-1)
    aligned = procrustes_align(pred_m, gt_m, allow_reflection=allow_reflection)
    verts, pa_verts = -1.0, -1.0
    if pred_verts_m is not None and gt_verts_m is not None:
        moved = (pred_verts_m - pred_m[:, root, None]) - (gt_verts_m - gt_m[:, root, None])
        verts = 1000.0 * float(np.linalg.norm(moved, axis=-1).mean())
        pa_verts = float(pa_mpjpe_mm(pred_verts_m, gt_verts_m, allow_reflection=allow_reflection).mean())
    return PoseMetrics(
        hands=len(gt_m),
        root=root,
        mpjpe_mm=float(root_aligned_mpjpe_mm(pred_m, gt_m, root).mean()),
        pa_mpjpe_mm=float(pa_mpjpe_mm(pred_m, gt_m, allow_reflection=allow_reflection).mean()),
        auc=pck_auc(distance),
        pa_auc=pck_auc(np.linalg.norm(aligned - gt_m, axis=-1)),
        mpvpe_mm=verts,
        pa_mpvpe_mm=pa_verts,
    )


def pck_auc(distance_m: Float[np.ndarray, "n k"], limit_m: float = 0.05, steps: int = 100) -> float:
    """Area under the share of joints within a threshold, thresholds 0 to `limit_m`, over the range: 0 to 1.

    Trapezoids over `steps` points, `<=`, per joint and then averaged (Zimmermann et al. 2019, FreiHAND).
    """
    thresholds = np.linspace(0.0, limit_m, steps)
    pck = (distance_m[None] <= thresholds[:, None, None]).mean(1)
    area = ((pck[1:] + pck[:-1]) / 2 * np.diff(thresholds)[:, None]).sum(0) / limit_m
    return float(area.mean())


def best_constant_pose(gt_m: Float[np.ndarray, "n 21 3"], iterations: int = 10) -> Float[np.ndarray, "21 3"]:
    """The one pose with about the least mean Procrustes error over a set: the generalised Procrustes mean.

    What an estimator that ignores its image can reach; an estimator's error means something below this one's.
    """
    centred = gt_m - gt_m.mean(1, keepdims=True)
    mean = centred[0]
    for _ in range(iterations):
        mean = procrustes_align(centred, np.broadcast_to(mean, centred.shape)).mean(0)
        mean = mean * (np.linalg.norm(centred, axis=(1, 2)).mean() / np.linalg.norm(mean))
    return mean


def separability(true_errors: Float[np.ndarray, "n"], wrong_errors: Float[np.ndarray, "m"]) -> float:
    """The chance that a wrong label has a larger error than a right one, ties counted half: the ROC area, 0 to 1."""
    if not len(true_errors) or not len(wrong_errors):
        raise SchemaError("separability compares two non-empty sets of errors")
    ranked = np.sort(true_errors)
    below = np.searchsorted(ranked, wrong_errors, "left")
    ties = np.searchsorted(ranked, wrong_errors, "right") - below
    return float((below + 0.5 * ties).mean() / len(ranked))
