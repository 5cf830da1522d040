"""The hand to use: the bundled open hand, the user's MANO files, or a hand fitted to a given skeleton.

MANO may not be redistributed, so the package carries a hand of its own with the same interface (`open_hand.npz`).
`fit_hand` moves a hand's rest joints and fingertips onto a source's skeleton, so that a source which knows joint
offsets but no mesh still gets vertices that agree with its joints.
"""

import os
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np

from pam_aug.errors import SchemaError
from pam_aug.hand.assets import HandAssets, LeftShapedirs, assets_from_arrays, load_mano, read_npz_arrays
from pam_aug.hand.joints import MANO_PARENTS, TIP_SETS, Side

__all__ = ["fit_hand", "load_hand", "load_open_hand"]

# Thumb, index, middle, ring, little: the last joint of each finger in MANO's order.
_LAST_JOINTS: Final = (15, 3, 6, 12, 9)
_TIP_RADIUS_M: Final = 0.008  # half a fingertip


@lru_cache(maxsize=2)
def load_open_hand(side: Side) -> HandAssets:
    """The bundled hand. The left one is the right one reflected, shape directions included."""
    if side == "left":
        return load_open_hand("right").mirrored("fixed")
    with resources.as_file(resources.files("pam_aug.hand") / "open_hand.npz") as path:
        raw = read_npz_arrays(path)
    return assets_from_arrays(raw, name="open-hand-right", side="right", where="open_hand.npz")


def load_hand(side: Side, mano_dir: str | Path | None = None, *, left_shapedirs: LeftShapedirs = "fixed") -> HandAssets:
    """The user's MANO model from `mano_dir` or `$MANO_DIR` where one is given, else the bundled open hand.

    A folder that is named but holds no MANO file is an error (`AssetMissing`), not a reason to fall back.
    """
    folder = mano_dir or os.environ.get("MANO_DIR")
    return load_mano(folder, side, left_shapedirs=left_shapedirs) if folder else load_open_hand(side)


# --- fitting -------------------------------------------------------------------------------------------------------


def fit_hand(assets: HandAssets, rest_joints_m: np.ndarray, rest_tips_m: np.ndarray, name: str) -> HandAssets:
    """`assets` with its rest joints (16,3; MANO's order) and fingertips (5,3; smplx vertices) moved to targets.

    Targets are in metres, in the axes of the model's rest pose, tips thumb to little. Each bone is turned and
    stretched onto its target, its thickness following the hand's overall size, and the template, its shape and its pose
    directions are carried along by the skinning weights; the palm bends smoothly to meet the finger roots. The
    regressor's rows are re-weighted to meet the target joints. Afterwards `J_regressor @ v_template` and the tip
    vertices equal the targets, so posed joints equal the skeleton's own.

    Raises `SchemaError` for targets of a wrong shape, not finite, or with a bone of no length.
    """
    target_joints, target_tips = np.asarray(rest_joints_m, np.float64), np.asarray(rest_tips_m, np.float64)
    if target_joints.shape != (16, 3) or target_tips.shape != (5, 3):
        raise SchemaError(
            f"{name}: a skeleton needs joints (16, 3) and tips (5, 3), got {target_joints.shape}, {target_tips.shape}."
        )
    if not (np.isfinite(target_joints).all() and np.isfinite(target_tips).all()):
        raise SchemaError(f"{name}: the skeleton holds NaN or infinity.")
    template = assets.v_template.astype(np.float64)
    weights = assets.weights.astype(np.float64)
    tip_ids = list(TIP_SETS["smplx"][assets.side])
    joints, tips = assets.rest_joints_m, template[tip_ids]

    linear = _bone_maps(joints, tips, target_joints, target_tips, name)
    per_vertex = np.einsum("vk,kij->vij", weights, linear)
    offset = weights @ (target_joints - np.einsum("kij,kj->ki", linear, joints))
    warped = np.einsum("vij,vj->vi", per_vertex, template) + offset
    warped += weights[:, :1] * _bend_of_palm(template, joints, target_joints, linear[0])
    warped += _tip_correction(warped, tip_ids, target_tips)

    def carried(directions: np.ndarray) -> np.ndarray:
        return np.einsum("vij,vjk->vik", per_vertex, directions.astype(np.float64)).astype(directions.dtype)

    return replace(
        assets,
        name=name,
        v_template=warped,
        shapedirs=carried(assets.shapedirs),
        posedirs=carried(assets.posedirs),
        J_regressor=_regressor_through(assets.J_regressor.astype(np.float64), warped, target_joints, weights, name),
    )


def _bone_maps(
    joints: np.ndarray, tips: np.ndarray, target_joints: np.ndarray, target_tips: np.ndarray, name: str
) -> np.ndarray:
    """(16,3,3): per joint, the linear map of the flesh around its bone."""
    ends = {MANO_PARENTS[k]: k for k in range(1, 16) if MANO_PARENTS[k] != 0}
    source = np.zeros((16, 3))
    target = np.zeros((16, 3))
    for k in range(1, 16):
        if k in ends:
            source[k], target[k] = joints[ends[k]] - joints[k], target_joints[ends[k]] - target_joints[k]
        else:
            finger = _LAST_JOINTS.index(k)
            source[k], target[k] = tips[finger] - joints[k], target_tips[finger] - target_joints[k]
    roots = [k for k in range(1, 16) if MANO_PARENTS[k] == 0]
    palm, target_palm = joints[roots] - joints[0], target_joints[roots] - target_joints[0]
    old, new = np.linalg.norm(source[1:], axis=1), np.linalg.norm(target[1:], axis=1)
    shortest = min(old.min(), new.min(), np.linalg.norm(target_palm, axis=1).min())
    if shortest < 1e-4:
        raise SchemaError(f"{name}: a bone of the skeleton is {shortest * 1000:.3f} mm long. Are the units metres?")
    size = float(new.sum() / old.sum())

    maps = np.empty((16, 3, 3))
    # The palm's five rays nearly span a plane: least squares held to the scaled rotation that fits them best.
    U, _, Vt = np.linalg.svd(target_palm.T @ palm)
    rigid = size * (U @ np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))]) @ Vt)
    hold = 0.1 * float((palm**2).sum()) * np.eye(3)
    maps[0] = np.linalg.solve((palm.T @ palm + hold).T, (target_palm.T @ palm + rigid @ hold).T).T
    for k in range(1, 16):
        along = source[k] / old[k - 1]
        lengthwise = np.outer(along, along)
        stretch = size * (np.eye(3) - lengthwise) + new[k - 1] / old[k - 1] * lengthwise
        maps[k] = _shortest_turn(along, target[k] / new[k - 1]) @ stretch
    return maps


def _shortest_turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation about a x b that takes unit vector a to unit vector b; for opposite ones, any half turn."""
    c = float(a @ b)
    if c < -1 + 1e-9:
        axis = np.cross(a, np.eye(3)[int(np.abs(a).argmin())])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    v = np.cross(a, b)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + c)


def _bend_of_palm(
    template: np.ndarray, joints: np.ndarray, target_joints: np.ndarray, palm_map: np.ndarray
) -> np.ndarray:
    """(778,3): what the palm's linear map leaves at the wrist and the finger roots, spread smoothly over space.

    Interpolation with the kernel |r|, biharmonic in three dimensions: through every value, with the least bending.
    """
    fixed = [k for k in range(16) if MANO_PARENTS[k] <= 0]
    centres = joints[fixed]
    left_over = target_joints[fixed] - target_joints[0] - (centres - joints[0]) @ palm_map.T
    n = len(fixed)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = np.linalg.norm(centres[:, None] - centres, axis=-1)
    system[n, n] = 0.0
    weights = np.linalg.solve(system, np.concatenate([left_over, np.zeros((1, 3))]))
    return np.linalg.norm(template[:, None] - centres, axis=-1) @ weights[:n] + weights[n]


def _tip_correction(verts: np.ndarray, tip_ids: list[int], target_tips: np.ndarray) -> np.ndarray:
    """(778,3): bumps about the fingertips that bring the tip vertices to their targets.

    Little is left to do where a tip vertex moves with its last bone alone.
    """
    square = ((verts[:, None] - verts[tip_ids]) ** 2).sum(-1)
    bumps = np.exp(-square / (2 * _TIP_RADIUS_M**2))
    return bumps @ np.linalg.solve(bumps[tip_ids], target_tips - verts[tip_ids])


def _regressor_through(
    regressor: np.ndarray, verts: np.ndarray, targets: np.ndarray, skinning: np.ndarray, name: str
) -> np.ndarray:
    """The regressor nearest to `regressor`, in relative entropy, that takes `verts` to `targets`.

    It has the form r_v exp(l . v) / sum: rows stay local, positive and of sum 1 (Jaynes 1957). The multipliers l come
    from Newton steps on a convex function, which has a minimum where the target lies inside the hull of the vertices.
    """
    rows = np.empty_like(regressor)
    for k, target in enumerate(targets):
        # A row whose own vertices do not surround the target also takes in some of the flesh about the joint.
        for share in (0.0, 0.05, 0.5):
            base = (1 - share) * np.maximum(regressor[k], 0.0) + share * skinning[:, k] / skinning[:, k].sum()
            row = _tilted(base / base.sum(), verts - target)
            if row is not None:
                break
        else:
            raise SchemaError(
                f"{name}: joint {k} of the skeleton lies outside the flesh around it. Are its axes right?"
            )
        rows[k] = row
    return rows


def _tilted(row: np.ndarray, offsets: np.ndarray) -> np.ndarray | None:
    """`row` times exp(l . offset), normalised, with mean offset zero; None where no l does that."""
    used = np.flatnonzero(row)
    x = offsets[used] / 0.01  # centimetres: multipliers near one
    log_row = np.log(row[used])

    def log_sum(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = log_row + x @ multipliers
        peak = exponent.max()
        weights = np.exp(exponent - peak)
        return float(peak + np.log(weights.sum())), weights / weights.sum()

    multipliers = np.zeros(3)
    value, weights = log_sum(multipliers)
    for _ in range(60):
        mean = weights @ x
        if np.abs(mean).max() < 1e-11:
            tilted = np.zeros_like(row)
            tilted[used] = weights
            return tilted
        curvature = (x * weights[:, None]).T @ x - np.outer(mean, mean)
        step = np.linalg.solve(curvature + 1e-12 * np.eye(3), mean)
        for _ in range(30):
            trial, trial_weights = log_sum(multipliers - step)
            if trial <= value + 1e-13:
                break
            step = step / 2
        multipliers, value, weights = multipliers - step, trial, trial_weights
        if np.abs(multipliers).max() > 1e3:
            return None
    return None
