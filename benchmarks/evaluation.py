"""All pose metrics of a FreiHAND-sized test set beside a loop over its hands.

    python benchmarks/evaluation.py [--quick] [--json] [--threads N]

3,960 hands of the bundled open hand in random poses; predictions are other poses, shapes and sizes some millimetres
away. The loop computes each hand on its own with numpy and SciPy (`orthogonal_procrustes`, a k-d tree), as published
evaluation scripts do; it is timed on a part of the hands and scaled, since its time grows with their number. Both give
the same numbers, which the last row says.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import parser, print_rows, row
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree

from pam_aug.evaluate.fscore import f_scores
from pam_aug.evaluate.hand_set import HandScores, score_hands
from pam_aug.hand import HandLayer, load_open_hand

HANDS = 3960  # FreiHAND's evaluation set
Sets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_sets(hands: int, seed: int = 0) -> Sets:
    """Predicted joints, true joints, predicted vertices, true vertices; metres, float64."""
    rng = np.random.default_rng(seed)
    layer = HandLayer(load_open_hand("right"), dtype=torch.float64)
    orient, pose = rng.normal(0, 1, (hands, 3)), rng.normal(0, 0.3, (hands, 45))
    betas, transl = rng.normal(0, 1, (hands, 10)), rng.normal((0, 0, 0.7), 0.1, (hands, 3))
    moves = (rng.normal(0, s, a.shape) for s, a in ((0.06, orient), (0.12, pose), (0.5, betas), (0.02, transl)))
    sets = []
    for given in ([a + m for a, m in zip((orient, pose, betas, transl), moves)], [orient, pose, betas, transl]):
        joints, verts = np.zeros((hands, 21, 3)), np.zeros((hands, 778, 3))
        for start in range(0, hands, 128):
            part = slice(start, start + 128)
            with torch.no_grad():
                out = layer(*(torch.from_numpy(np.ascontiguousarray(a[part])) for a in given))
            joints[part], verts[part] = out.joints21.numpy(), out.verts.numpy()
        sets.append((joints, verts))
    (pred, pred_verts), (gt, gt_verts) = sets
    return pred, gt, pred_verts, gt_verts


def align(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """One set under its best similarity, a proper rotation."""
    p_mean, g_mean = pred.mean(0), gt.mean(0)
    p, g = pred - p_mean, gt - g_mean
    p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
    p, g = p / p_norm, g / g_norm
    R, scale = orthogonal_procrustes(g, p)
    if np.linalg.det(R) < 0:
        U, s, Vt = np.linalg.svd(p.T @ g)
        U[:, 2] *= -1
        R, scale = (U @ Vt).T, s[0] + s[1] - s[2]
    return p @ R.T * scale * g_norm + g_mean


def auc(errors_m: np.ndarray) -> float:
    thresholds = np.linspace(0, 0.05, 100)
    pck = np.array([(errors_m <= t).mean() for t in thresholds])
    return float(np.trapezoid(pck, thresholds) / 0.05)


def loop_joints(pred: np.ndarray, gt: np.ndarray) -> list[dict[str, float]]:
    rows = []
    for p, g in zip(pred, gt):
        relative = np.linalg.norm((p - p[0]) - (g - g[0]), axis=1)
        aligned = np.linalg.norm(align(p, g) - g, axis=1)
        scores = {"mpjpe_mm": 1000 * relative.mean(), "pa_mpjpe_mm": 1000 * aligned.mean()}
        rows.append(scores | {"auc": auc(relative), "pa_auc": auc(aligned)})
    return rows


def loop_f(pred: np.ndarray, gt: np.ndarray) -> list[float]:
    to_gt, to_pred = cKDTree(gt).query(pred)[0], cKDTree(pred).query(gt)[0]
    scores = []
    for limit in (0.005, 0.015):
        precision, recall = float(np.mean(to_gt < limit)), float(np.mean(to_pred < limit))
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return scores


def loop_all(sets: Sets) -> list[dict[str, float]]:
    pred, gt, pred_verts, gt_verts = sets
    rows = loop_joints(pred, gt)
    for r, p, g, pv, gv in zip(rows, pred, gt, pred_verts, gt_verts):
        moved, aligned = pv - p[0] + g[0], align(pv, gv)
        r["mpvpe_mm"] = 1000 * float(np.linalg.norm(moved - gv, axis=1).mean())
        r["pa_mpvpe_mm"] = 1000 * float(np.linalg.norm(aligned - gv, axis=1).mean())
        (r["f5"], r["f15"]), (r["pa_f5"], r["pa_f15"]) = loop_f(moved, gv), loop_f(aligned, gv)
    return rows


def seconds(work: Callable[[], Any], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def measure(quick: bool, threads: int) -> list[dict[str, Any]]:
    rounds, part, part_joints = (3, 60, 400) if quick else (7, 400, HANDS)
    sets = make_sets(HANDS)
    pred, gt, pred_verts, gt_verts = sets
    f_scores(pred_verts[:2], gt_verts[:2])  # compiled once per machine
    everything = seconds(lambda: score_hands(*sets, threads=threads), rounds)
    joints = seconds(lambda: score_hands(pred, gt), rounds)
    aligned = seconds(lambda: score_hands(*sets, f_thresholds=False), rounds)
    few: Sets = tuple(a[:part] for a in sets)  # type: ignore[assignment]
    start = time.perf_counter()
    peer_rows = loop_all(few)
    loop_s = (time.perf_counter() - start) / part
    loop_joints_s = min(seconds(lambda: loop_joints(pred[:part_joints], gt[:part_joints]), 1 if quick else 3))
    ours = score_hands(*few, threads=threads)
    return [
        row("eval_hands_per_s", [HANDS / s for s in everything], "hands/s", "per-sample loop", 1 / loop_s),
        row(
            "eval_joints_hands_per_s",
            [HANDS / s for s in joints],
            "hands/s",
            "per-sample loop",
            part_joints / loop_joints_s,
        ),
        row("eval_3960_hands_s", everything, "s"),
        row("eval_3960_pa_joints_and_vertices_s", aligned, "s"),
        row("eval_max_abs_diff", _difference(ours, peer_rows), "mm, or a share"),
    ]


def _difference(ours: HandScores, loop: list[dict[str, float]]) -> float:
    return max(float(np.abs(getattr(ours, name) - np.array([r[name] for r in loop])).max()) for name in loop[0])


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="threads of the F-scores (default 2)")
    options = arguments.parse_args()
    print_rows(measure(options.quick, options.threads), options.json, ("pam_aug", "numpy", "scipy", "torch"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
