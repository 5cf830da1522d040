"""F-scores of vertex sets: how much of each hand lies within a distance of the other (Knapitsch et al. 2017).

Only whether a nearest vertex is within a threshold matters, not how far it is: vertices are sorted along the axis of
the widest spread, and a search looks at the slab of the largest threshold only and ends at the first hit.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from pam_aug.errors import SchemaError

try:
    import numba
except ImportError:  # numba lags new Python releases; the k-d tree gives the same numbers, about ten times slower
    numba = None

__all__ = ["f_scores"]

_HANDS_PER_TASK = 64


def f_scores(
    pred_m: Float[np.ndarray, "n p 3"],
    gt_m: Float[np.ndarray, "n v 3"],
    thresholds_m: Sequence[float] = (0.005, 0.015),
    threads: int = 2,
) -> Float[np.ndarray, "n t"]:
    """F-score of each hand at each threshold, 0 to 1: the harmonic mean of the share of predicted vertices nearer than
    the threshold (strictly) to a true vertex, and of the share of true ones so near to a predicted one.

    As FreiHAND's evaluation: vertex sets, not surfaces. A hand with a non-finite vertex scores 0. Raises SchemaError
    for other than ascending positive thresholds or sets that do not pair up.
    """
    limits = np.asarray(thresholds_m, np.float64)
    if not len(limits) or not (limits > 0).all() or not (np.diff(limits) > 0).all():
        raise SchemaError(f"F-score thresholds {list(thresholds_m)} must be positive and ascend")
    if len(pred_m) != len(gt_m) or not pred_m.shape[1] or not gt_m.shape[1]:
        raise SchemaError(f"F-scores need two equal numbers of non-empty sets; got {pred_m.shape} and {gt_m.shape}")
    out = np.zeros((len(gt_m), len(limits)))
    count = _count_numba if numba is not None else _count_tree

    def work(start: int) -> None:
        block = slice(start, start + _HANDS_PER_TASK)
        out[block] = count(np.asarray(pred_m[block], np.float64), np.asarray(gt_m[block], np.float64), limits)

    starts = range(0, len(gt_m), _HANDS_PER_TASK)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
    else:
        for start in starts:
            work(start)
    return out


def _harmonic(precise: np.ndarray, recalled: np.ndarray) -> np.ndarray:
    both = precise + recalled
    return np.divide(2 * precise * recalled, both, out=np.zeros_like(both), where=both > 0)


def _count_tree(pred: np.ndarray, gt: np.ndarray, limits: np.ndarray) -> np.ndarray:
    out = np.zeros((len(gt), len(limits)))
    for i, (p, g) in enumerate(zip(pred, gt)):
        if np.isfinite(p).all() and np.isfinite(g).all():
            near_p = np.asarray(KDTree(g).query(p)[0])[:, None] < limits
            near_g = np.asarray(KDTree(p).query(g)[0])[:, None] < limits
            out[i] = _harmonic(near_p.mean(0), near_g.mean(0))
    return out


def _count_numba(pred: np.ndarray, gt: np.ndarray, limits: np.ndarray) -> np.ndarray:
    finite = np.isfinite(pred).all((1, 2)) & np.isfinite(gt).all((1, 2))
    out = np.zeros((len(gt), len(limits)))
    for i in np.flatnonzero(finite):
        axis = int(np.argmax(np.ptp(gt[i], axis=0)))
        order = [axis, *(k for k in range(3) if k != axis)]
        p, g = (np.ascontiguousarray(s[np.argsort(s[:, axis])][:, order].T) for s in (pred[i], gt[i]))
        near_p = _within(p, g, limits) / p.shape[1]
        near_g = _within(g, p, limits) / g.shape[1]
        out[i] = _harmonic(near_p, near_g)
    return out


def _within_plain(
    points: Float[np.ndarray, "3 p"], others: Float[np.ndarray, "3 v"], limits: Float[np.ndarray, "t"]
) -> Int[np.ndarray, "t"]:
    """How many points have another nearer than each limit. Both sets are sorted by their first coordinate."""
    n, m, t = points.shape[1], others.shape[1], len(limits)
    counts = np.zeros(t, np.int64)
    first = 0
    for i in range(n):
        x, y, z = points[0, i], points[1, i], points[2, i]
        reach = limits[t - 1]
        while first < m and others[0, first] < x - reach:
            first += 1
        # A distance is below a limit iff its square root is, compared as the definition compares it.
        best = np.inf
        j = first
        while j < m and others[0, j] - x <= reach:
            dx, dy, dz = others[0, j] - x, others[1, j] - y, others[2, j] - z
            square = dx * dx + dy * dy + dz * dz
            if square < best:
                best = square
            j += 1
        distance = np.sqrt(best)
        for k in range(t):
            if distance < limits[k]:
                counts[k] += 1
    return counts


_within: Any = numba.njit(nogil=True, cache=True)(_within_plain) if numba is not None else None
