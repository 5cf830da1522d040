"""Every pose metric of every hand of a set at once, float64, and their means over the set or a part of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.errors import SchemaError
from pam_aug.evaluate.fscore import f_scores
from pam_aug.geometry import procrustes_align

__all__ = ["ALIGNMENTS", "Alignment", "HandScores", "Means", "mean_scores", "score_hands"]

Alignment = Literal["proper", "freihand"]
ALIGNMENTS: tuple[Alignment, ...] = ("proper", "freihand")

_LIMIT_M, _STEPS = 0.05, 100
_F_THRESHOLDS_M = (0.005, 0.015)
_ABSENT = -1.0
_ROUNDING_M = 1e-12
# 64 meshes of 778 vertices are 1.2 MB: the passes of an alignment stay in the cache.
_HANDS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class HandScores:
    """One number per hand. Distances in mm, areas and F-scores 0 to 1; NaN where a hand was not found or has no mesh.

    `mpjpe_mm`, `auc` relative to the root joint; `pa_*` after an alignment with scale, joints and vertices each on
    their own; `abs_mpjpe_mm` as the coordinates stand. `f5`, `f15` are of root-relative vertices, `pa_f5`, `pa_f15` of
    aligned ones.
    """

    mpjpe_mm: Float[np.ndarray, "n"]
    pa_mpjpe_mm: Float[np.ndarray, "n"]
    auc: Float[np.ndarray, "n"]
    pa_auc: Float[np.ndarray, "n"]
    abs_mpjpe_mm: Float[np.ndarray, "n"]
    mpvpe_mm: Float[np.ndarray, "n"]
    pa_mpvpe_mm: Float[np.ndarray, "n"]
    f5: Float[np.ndarray, "n"]
    f15: Float[np.ndarray, "n"]
    pa_f5: Float[np.ndarray, "n"]
    pa_f15: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.mpjpe_mm)


METRICS = tuple(f.name for f in fields(HandScores))


@dataclass(frozen=True, slots=True)
class Means:
    """Means over the hands that were found; `failed` ones are in no mean. -1 where no hand has the metric."""

    hands: int
    failed: int
    meshes: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    auc: float
    pa_auc: float
    abs_mpjpe_mm: float
    mpvpe_mm: float
    pa_mpvpe_mm: float
    f5: float
    f15: float
    pa_f5: float
    pa_f15: float


def score_hands(
    pred_m: Float[np.ndarray, "n 21 3"],
    gt_m: Float[np.ndarray, "n 21 3"],
    pred_verts_m: Float[np.ndarray, "n v 3"] | None = None,
    gt_verts_m: Float[np.ndarray, "n v 3"] | None = None,
    *,
    root: int = 0,
    alignment: Alignment = "proper",
    f_thresholds: bool = True,
    threads: int = 2,
) -> HandScores:
    """Scores of predicted hands against labels, metres. Rows with a non-finite number come back as NaN.

    `root` is 0 (the wrist) or any other joint. `alignment` "proper" takes rotations only (Umeyama 1991); "freihand" is
    FreiHAND's official form, which takes reflections too and forgives a mirrored hand. PCK is over 0 to 50 mm in 100
    thresholds, `<=`, its area by trapezoids; a hand's area is that of its 21 joints, and the set's is their mean.
    Distances below a picometre, which is rounding, count as 0.
    Raises SchemaError where shapes differ, there is no hand or an option is not known.
    """
    if pred_m.shape != gt_m.shape or not len(gt_m):
        raise SchemaError(f"metrics need two equal, non-empty sets of joints; got {pred_m.shape} and {gt_m.shape}")
    if (pred_verts_m is None) != (gt_verts_m is None):
        raise SchemaError("metrics of vertices need predicted and true ones")
    if alignment not in ALIGNMENTS or not 0 <= root < gt_m.shape[1]:
        raise SchemaError(f"alignment {alignment!r} (choose {', '.join(ALIGNMENTS)}), root {root} (0 to 20)")
    pred, gt = np.asarray(pred_m, np.float64), np.asarray(gt_m, np.float64)
    reflect = alignment == "freihand"
    finite = np.asarray(np.isfinite(pred).all((1, 2)) & np.isfinite(gt).all((1, 2)))
    pred, gt = (np.where(finite[:, None, None], a, np.nan) for a in (pred, gt))
    relative = _distances(pred - pred[:, root, None], gt - gt[:, root, None])
    aligned = _distances(procrustes_align(pred, gt, allow_reflection=reflect), gt)
    absent = np.full(len(gt), np.nan)
    columns = {
        "mpjpe_mm": 1000.0 * relative.mean(1),
        "pa_mpjpe_mm": 1000.0 * aligned.mean(1),
        "auc": np.where(finite, _area(relative).mean(1), np.nan),
        "pa_auc": np.where(finite, _area(aligned).mean(1), np.nan),
        "abs_mpjpe_mm": 1000.0 * _distances(pred, gt).mean(1),
    }
    if pred_verts_m is not None and gt_verts_m is not None:
        if pred_verts_m.shape != gt_verts_m.shape or len(gt_verts_m) != len(gt):
            raise SchemaError(f"vertices {pred_verts_m.shape} and {gt_verts_m.shape} of {len(gt)} hands do not pair up")
        roots = (pred[:, root], gt[:, root])
        columns |= _score_vertices(pred_verts_m, gt_verts_m, roots, reflect, f_thresholds, threads)
    return HandScores(**{name: columns.get(name, absent) for name in METRICS})


def _score_vertices(
    pred_verts_m: np.ndarray,
    gt_verts_m: np.ndarray,
    roots: tuple[np.ndarray, np.ndarray],
    reflect: bool,
    f_thresholds: bool,
    threads: int,
) -> dict[str, np.ndarray]:
    n = len(gt_verts_m)
    names = ("mpvpe_mm", "pa_mpvpe_mm", *(("f5", "f15", "pa_f5", "pa_f15") if f_thresholds else ()))
    out = {name: np.full(n, np.nan) for name in names}
    for start in range(0, n, _HANDS_AT_ONCE):
        block = slice(start, start + _HANDS_AT_ONCE)
        gt = np.asarray(gt_verts_m[block], np.float64)
        pred = np.asarray(pred_verts_m[block], np.float64)
        finite = np.isfinite(pred).all((1, 2)) & np.isfinite(gt).all((1, 2))
        finite &= np.isfinite(roots[0][block]).all(1) & np.isfinite(roots[1][block]).all(1)
        if not finite.any():
            continue
        rows = start + np.flatnonzero(finite)
        if not finite.all():
            pred, gt = pred[finite], gt[finite]
        moved = pred - (roots[0][rows] - roots[1][rows])[:, None]
        aligned = procrustes_align(pred, gt, allow_reflection=reflect)
        out["mpvpe_mm"][rows] = 1000.0 * _distances(moved, gt).mean(1)
        out["pa_mpvpe_mm"][rows] = 1000.0 * _distances(aligned, gt).mean(1)
        if f_thresholds:
            both = np.concatenate([moved, aligned])
            scores = f_scores(both, np.concatenate([gt, gt]), _F_THRESHOLDS_M, threads)
            out["f5"][rows], out["f15"][rows] = scores[: len(rows)].T
            out["pa_f5"][rows], out["pa_f15"][rows] = scores[len(rows) :].T
    return out


def mean_scores(scores: HandScores, rows: Bool[np.ndarray, "n"] | Int[np.ndarray, "m"] | None = None) -> Means:
    """Means over the hands of `rows` (all by default)."""
    kept = {name: getattr(scores, name) if rows is None else getattr(scores, name)[rows] for name in METRICS}
    found = np.isfinite(kept["mpjpe_mm"])
    means = {name: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else _ABSENT for name, v in kept.items()}
    meshes = int(np.isfinite(kept["mpvpe_mm"]).sum())
    return Means(hands=len(found), failed=int((~found).sum()), meshes=meshes, **means)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = a - b
    distance = np.sqrt(np.einsum("...k,...k->...", difference, difference))
    # PCK has a threshold at 0: what an alignment leaves of nothing must not decide whether a joint is within it.
    distance[distance < _ROUNDING_M] = 0.0
    return distance


def _area(distance_m: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Each distance's part of the area under PCK: a step function's trapezoids, summed from where the step is."""
    thresholds = np.linspace(0.0, _LIMIT_M, _STEPS)
    weights = np.zeros(_STEPS + 1)
    halves = np.diff(thresholds) / 2 / _LIMIT_M
    weights[:-2] += halves
    weights[1:-1] += halves
    tail = np.cumsum(weights[::-1])[::-1]  # tail[k]: the weight of thresholds k and above; tail[100] is 0
    return tail[np.searchsorted(thresholds, distance_m, side="left")]


def group_rows(names: Sequence[str]) -> dict[str, Int[np.ndarray, "m"]]:
    """Row numbers by name, in the order of the names' alphabet."""
    array = np.asarray(names)
    return {str(name): np.flatnonzero(array == name) for name in np.unique(array)}
