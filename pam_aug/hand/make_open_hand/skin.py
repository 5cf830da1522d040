"""Skinning of the open hand: weights, joint regressor and pose correctives.

Everything is computed from the rest mesh and the skeleton; nothing is learnt from scans or from another hand model.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from pam_aug.hand.make_open_hand.skeleton import DIGITS, PARENTS, Digit, joint_frame

# half lengths of the zones over which skin follows from one bone to the next
_BEND_MM = {"base": 11.0, "mid": 11.0, "end": 9.0, "thumb": 12.5}
_KNUCKLE_LIFT = 0.0025  # how far the skin over a knuckle rises at a right angle, metres


def _smoothstep(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _adjacency(faces: Int[np.ndarray, "f 3"], count: int) -> Float[np.ndarray, "v v"]:
    """Row-normalised neighbour averaging."""
    matrix = np.zeros((count, count))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        matrix[faces[:, i], faces[:, j]] = matrix[faces[:, j], faces[:, i]] = 1
    return matrix / matrix.sum(1, keepdims=True)


def skin_weights(
    v: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], owner: list[str], digits: dict[str, Digit]
) -> Float[np.ndarray, "v 16"]:
    """At most four weights per vertex, rows sum to 1.

    Along a digit the weight passes from bone to bone by a smooth step centred on the joint (distal of it on the palmar
    side of the knuckles, where the crease is); across the palm it is shared between neighbouring rays, and fades into
    the wrist's share.
    """
    n = len(v)
    local = {name: d.to_local(v) for name, d in digits.items()}
    fingers = [name for name in DIGITS if name != "thumb"]
    # membership of the palm's vertices in the four rays, by lateral distance; a finger's own vertices belong to it
    # alone
    width = 0.0095
    distance = np.stack([np.abs(local[name][:, 1]) for name in fingers], axis=1)
    member = np.exp(-((distance / width) ** 2) * 1.4)
    member /= np.maximum(member.sum(1, keepdims=True), 1e-9)
    for k, name in enumerate(fingers):
        member[[o == name for o in owner]] = np.eye(4)[k]
    weights = np.zeros((n, 16))
    for k, name in enumerate(fingers):
        first = 1 + 3 * DIGITS.index(name)
        d, (u, _, b) = digits[name], local[name].T
        zone = np.array([_BEND_MM["base"], _BEND_MM["mid"], _BEND_MM["end"]]) * 1e-3
        # the palmar crease of the knuckle lies about half a finger's thickness beyond the joint
        shift = np.stack([np.clip(-b, -0.008, 0.016) * 0.55, -0.0 * b, -0.0 * b])
        past = [_smoothstep((u - d.joint_u[j] - shift[j]) / (2 * zone[j]) + 0.5) for j in range(3)]
        weights[:, first] = member[:, k] * past[0] * (1 - past[1])
        weights[:, first + 1] = member[:, k] * past[0] * past[1] * (1 - past[2])
        weights[:, first + 2] = member[:, k] * past[0] * past[1] * past[2]
    thumb, (u, a, b) = digits["thumb"], local["thumb"].T
    share = _thumb_share(v, faces, owner, digits, local)
    radial = np.hypot(a, b - np.interp(u, thumb.joint_u, thumb.joint_b))
    bend = [_smoothstep((u - thumb.joint_u[j]) / (2e-3 * _BEND_MM["thumb"]) + 0.5) * share for j in (1, 2)]
    bend = [x * _smoothstep((0.026 - radial) / 0.012) for x in bend]
    thumb_weights = np.stack([share - bend[0], bend[0] - bend[1], bend[1]], axis=1)
    weights *= (1 - share)[:, None]
    weights[:, 13:] = thumb_weights
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    return _finish_weights(weights, faces, owner)


def _thumb_share(
    v: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    owner: list[str],
    digits: dict[str, Digit],
    local: dict[str, Float[np.ndarray, "v 3"]],
) -> Float[np.ndarray, "v"]:
    """How much of each vertex follows the thumb's bones: 1 on the free thumb, 0 beyond the ball and the web.

    In between the share is the smoothest one that meets both (least bending on the mesh): the thumb swings so far that
    a narrower blend would fold the web.
    """
    own = np.array([o == "thumb" for o in owner])
    # in the web the free thumb begins later than on its outer side
    inwards = digits["thumb"].to_local(digits["index"].points[:1])[0, 1:]
    lean = np.clip(local["thumb"][:, 1:] @ inwards / np.linalg.norm(inwards) / 0.010, -1, 1)
    fixed_one = own & (local["thumb"][:, 0] > 0.036 + 0.012 * lean)
    ulnar = local["middle"][:, 1] < np.where(local["middle"][:, 2] > 0, 0.010, -0.002)
    far = ulnar | (v[:, 0] > 0.086) | (local["index"][:, 0] > 0.004)
    far |= np.array([o not in ("all", "thumb") for o in owner])
    free = ~(fixed_one | (far & ~own))
    step = _adjacency(faces, len(v)) - np.eye(len(v))
    bending = step.T @ step
    share = fixed_one.astype(float)
    share[free] = np.linalg.solve(bending[np.ix_(free, free)], -bending[np.ix_(free, ~free)] @ share[~free])
    return np.clip(share, 0, 1)


def _finish_weights(
    weights: Float[np.ndarray, "v 16"], faces: Int[np.ndarray, "f 3"], owner: list[str]
) -> Float[np.ndarray, "v 16"]:
    """Smooth over the palm, keep the four largest, normalise."""
    mean = _adjacency(faces, len(weights))
    soft = np.array([0.5 if o == "all" else 0.0 for o in owner])[:, None]
    for _ in range(4):
        weights = weights + soft * (mean @ weights - weights)
    floor = np.sort(weights, axis=1)[:, -4][:, None]
    weights = np.where((weights >= floor) & (weights > 2e-3), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def joint_regressor(
    v: Float[np.ndarray, "v 3"], weights: Float[np.ndarray, "v 16"], joints: Float[np.ndarray, "16 3"]
) -> Float[np.ndarray, "16 v"]:
    """Non-negative local averages of skin vertices that give the joints (ridge-regularised NNLS; rows sum to 1).

    A joint is taken from vertices that follow its own bone or its parent, so that a change of shape carries it along.
    """
    out = np.zeros((16, len(v)))
    for k in range(16):
        parent = max(PARENTS[k], 0)
        distance = np.linalg.norm(v - joints[k], axis=1)
        follows = weights[:, k] + weights[:, parent] if k else weights[:, 0]
        reach = np.sort(distance[follows > 0.5])[15] * 1.35
        near = np.flatnonzero((distance < reach) & (follows > 0.5))
        ridge = 2e-3
        system = np.vstack(
            [(v[near] - joints[k]).T * 1e3, np.full((1, len(near)), 1e2), np.eye(len(near)) * ridge * 1e3]
        )
        target = np.concatenate([np.zeros(3), [1e2], np.full(len(near), ridge * 1e3 / len(near))])
        row, _ = nnls(system, target)
        out[k, near] = row / row.sum()
    return out


def _subtree(k: int) -> list[int]:
    members = [k]
    for child in range(k + 1, 16):
        if PARENTS[child] in members:
            members.append(child)
    return members


def _ancestors(k: int) -> list[int]:
    chain = []
    while PARENTS[k] >= 0:
        k = int(PARENTS[k])
        chain.append(k)
    return chain


def pose_correctives(
    v: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v 16"],
    digits: dict[str, Digit],
    joints: Float[np.ndarray, "16 3"],
) -> Float[np.ndarray, "v 3 135"]:
    """Rest-pose offsets, linear in R_k - I, that keep a bent joint from losing its volume (ridge least squares per
    joint).

    The goal for one turned joint is spherical skinning (each vertex turns about the joint by its share of the angle, as
    dual quaternions do: Kavan et al., "Geometric Skinning with Approximate Dual Quaternion Blending", TOG 2008) plus a
    soft bulge beside the crease.
    """
    out = np.zeros((len(v), 3, 135))
    for k in range(1, 16):
        share = weights[:, _subtree(k)].sum(1)
        near = np.flatnonzero((share > 1e-4) & (share < 1 - 1e-4))
        # only the blend with the bones that carry this joint is its own; skin shared with a neighbour mostly moves
        # along
        carried = weights[:, _ancestors(k)].sum(1)[near] / (1 - share[near])
        frame = joint_frame(digits, k)
        base, w = joints[k], share[near, None]
        arm = v[near] - base
        level = arm @ frame[2]
        palmar = -digits[DIGITS[(k - 1) // 3]].axes[2]
        palmar = palmar - frame[2] * (palmar @ frame[2])
        under = np.clip(arm @ palmar, 0, None)
        if k in (1, 4, 7, 10):
            across = arm @ frame[0]
            lift = _KNUCKLE_LIFT * np.exp(-((level / 0.008) ** 2) - (across / 0.006) ** 2) * (arm @ palmar < -0.004)
        else:
            lift = np.zeros(len(near))
        samples, offsets = [], []
        for turn, weight in _sample_turns(k, frame):
            matrix, vector = turn.as_matrix(), turn.as_rotvec()
            shared = Rotation.from_rotvec(w * vector)
            # flesh under the bend swells away from the bone; the knuckle's bone shows on its back
            bent = 1 - np.cos(max(float(vector @ frame[0]), 0.0))
            bulge = 0.08 * bent * under * np.exp(-(((np.abs(level) - 0.008) / 0.006) ** 2)) - bent * lift
            goal = base + shared.apply(arm + bulge[:, None] * palmar)
            blend = (1 - w[:, :, None]) * np.eye(3) + w[:, :, None] * matrix
            # invert this joint's linear blend to find where the rest vertex should have been
            rest = base + np.linalg.solve(blend, (goal - base)[:, :, None])[:, :, 0]
            samples.append((matrix - np.eye(3)).ravel() * weight)
            offsets.append((rest - v[near]) * carried[:, None] * weight)
        a, y = np.array(samples), np.array(offsets).reshape(len(samples), -1)
        solution = np.linalg.solve(a.T @ a + 0.02 * np.eye(9), a.T @ y)
        out[near, :, 9 * (k - 1) : 9 * k] = solution.reshape(9, len(near), 3).transpose(1, 2, 0)
    return out


def _sample_turns(k: int, frame: Float[np.ndarray, "3 3"]) -> list[tuple[Rotation, float]]:
    """Turns of one joint over its range with their weights in the fit."""
    if k == 13:  # the thumb's saddle joint swings and turns rather than folds
        grid = ((-30, 0, 30, 50), (-50, -25, 0, 25, 50), (-50, -25, 0, 25, 50))
    elif (k - 1) % 3 == 0:
        grid = ((-20, 20, 45, 70, 90, 105), (-20, 0, 20), (-12, 0, 12))
    else:
        grid = ((-20, 20, 45, 70, 90, 105), (-6, 0, 6), (-12, 0, 12))
    turns = []
    for flexion in grid[0]:
        for abduction in grid[1]:
            for twist in grid[2]:
                vector = (
                    np.radians(flexion) * frame[0] + np.radians(abduction) * frame[1] + np.radians(twist) * frame[2]
                )
                turns.append((Rotation.from_rotvec(vector), 1.0 if twist == 0 and abduction == 0 else 0.35))
    return turns
