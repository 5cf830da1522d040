"""A synthetic distribution of natural hand poses for the open hand: its mean, its principal components, its joint
ranges.

Ranges of motion are the usual clinical ones (fingers: MCP 90, PIP 105, DIP 80 degrees of flexion; thumb: MCP 55, IP
75). Poses are drawn from synergies: all fingers close together, neighbours move alike, knuckles and end joints trade
against each other, the DIP follows the PIP at about two thirds, spread fades as the hand closes, and the thumb opposes.
That few such synergies explain most of a hand's postures is the finding of Santello, Flanders and Soechting, "Postural
Hand Synergies for Tool Use", J. Neurosci. 18(23), 1998.
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from pam_aug.hand.make_open_hand.skeleton import DIGITS, Digit, joint_frame

# (flexion, abduction towards the thumb's side, twist) in degrees: lower and upper, per joint of a finger and of the
# thumb
_FINGER_RANGE = (((-20, 95), (-18, 18), (-8, 8)), ((-5, 108), (-4, 4), (-5, 5)), ((-8, 80), (-4, 4), (-4, 4)))
_THUMB_RANGE = (((-25, 40), (-30, 35), (-25, 35)), ((-15, 60), (-10, 10), (-10, 12)), ((-20, 80), (-6, 6), (-6, 6)))
_GATHER_DEG = (-1.0, 0.0, 4.0, 10.0)  # from the spread rest pose to a loose hand, index to little finger
_NOISE_DEG = 2.2  # small free motion of every angle; it sets the size of the last components


def joint_ranges() -> Float[np.ndarray, "15 3 2"]:
    """Ranges in radians of flexion, abduction and twist about `joint_axes`, in joint order."""
    rows = [np.array(_THUMB_RANGE if name == "thumb" else _FINGER_RANGE, dtype=float) for name in DIGITS]
    return np.radians(np.concatenate(rows))


def joint_axes(digits: dict[str, Digit]) -> Float[np.ndarray, "15 3 3"]:
    """Unit axes of flexion, abduction and twist of every joint, in the rest frame."""
    return np.stack([joint_frame(digits, k) for k in range(1, 16)])


def sample_poses(digits: dict[str, Digit], count: int = 6000, seed: int = 20) -> Float[np.ndarray, "n 45"]:
    """Natural poses as absolute axis-angle in the model's joint order."""
    rng = np.random.Generator(np.random.PCG64(seed))
    fingers = ("index", "middle", "ring", "little")
    close = rng.normal(0.33, 0.36, count)  # 0 open, 1 a fist
    # neighbours move alike: a random walk across the hand, centred on the middle finger
    steps = rng.normal(0, 0.10, (count, 3))
    own = np.stack([-steps[:, 0], np.zeros(count), steps[:, 1], steps[:, 1] + steps[:, 2]], axis=1)
    own[:, 0] += rng.normal(0, 0.10, count)
    trade = rng.normal(0, 16, count)  # knuckles flex while end joints extend (a flat pinch), or the reverse (a hook)
    spread = rng.normal(1, 5, count) * np.clip(1.2 - close, 0.1, 1.3)
    angles = {}
    for j, name in enumerate(fingers):
        grip = close + own[:, j]
        mcp = 2 + 52 * grip + trade + rng.normal(0, 5, count)
        pip = 12 + 66 * grip - 0.8 * trade + rng.normal(0, 7, count)
        dip = 0.58 * pip + rng.normal(0, 6, count)
        side = _GATHER_DEG[j] + spread * (1.5 - j) + rng.normal(0, 2.0, count)
        zero = np.zeros(count)
        twist = 0.15 * side
        angles[name] = [(mcp, side, twist), (pip, zero, zero), (dip, zero, zero)]
    oppose = rng.normal(0.25, 0.4, count) + 0.25 * close
    bend = rng.normal(0, 12, count)
    angles["thumb"] = [
        (
            4 + 10 * oppose + 0.3 * bend + rng.normal(0, 5, count),
            -4 - 16 * oppose + rng.normal(0, 7, count),
            14 * oppose + rng.normal(0, 3, count),
        ),
        (8 + 12 * close + 0.7 * bend + rng.normal(0, 5, count), np.zeros(count), 4 * oppose),
        (10 + 20 * close + bend + rng.normal(0, 8, count), np.zeros(count), np.zeros(count)),
    ]
    ranges, axes = joint_ranges(), joint_axes(digits)
    pose = np.zeros((count, 15, 3))
    for k in range(15):
        triple = np.stack(angles[DIGITS[k // 3]][k % 3], axis=1) + rng.normal(0, _NOISE_DEG, (count, 3))
        triple = np.clip(np.radians(triple), ranges[k, :, 0], ranges[k, :, 1])
        turn = Rotation.from_rotvec(triple[:, :1] * axes[k, 0])
        turn = (
            turn * Rotation.from_rotvec(triple[:, 1:2] * axes[k, 1]) * Rotation.from_rotvec(triple[:, 2:] * axes[k, 2])
        )
        pose[:, k] = turn.as_rotvec()
    return pose.reshape(count, 45)


def pose_statistics(digits: dict[str, Digit]) -> dict[str, np.ndarray]:
    """`hands_mean` (45), `hands_components` (45,45; orthogonal rows, one sigma long) and `joint_limits_rad`
    (15,3,2)."""
    poses = sample_poses(digits)
    mean = poses.mean(0)
    values, vectors = np.linalg.eigh(np.cov(poses.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    rows = vectors.T * np.sqrt(values)[:, None]
    # an eigenvector's sign is free: make the largest entry positive
    rows *= np.sign(rows[np.arange(45), np.abs(rows).argmax(1)])[:, None]
    limits = np.stack([np.quantile(poses, 0.002, axis=0), np.quantile(poses, 0.998, axis=0)], axis=1).reshape(15, 3, 2)
    return {"hands_mean": mean, "hands_components": rows, "joint_limits_rad": limits}
