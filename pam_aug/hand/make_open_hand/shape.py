"""The open hand's ten shape directions: bones stretched and thickened, joints kept together.

A direction is a linear map per bone, blended over the skin by the skinning weights; the joints at a bone's end move
with it. Sizes of one standard deviation follow the spread of the matching measures among adults (coefficients of
variation of 4 to 7 %).
"""

import numpy as np
from jaxtyping import Float

from pam_aug.hand.make_open_hand.skeleton import DIGITS, PARENTS, Digit, joint_frame, rest_joints

SHAPE_MEANING = (
    "overall size (5 %)",
    "breadth of palm and wrist (5 %)",
    "thickness of palm and wrist (7 %)",
    "length of all fingers against the palm (4 %)",
    "girth of fingers and thumb (6 %)",
    "length of the palm (4 %)",
    "length of the thumb (5 %)",
    "index against ring length (2.5 %, the 2D:4D ratio)",
    "length of the little finger (5 %)",
    "taper: thicker wrist, finer fingertips (6 %)",
)


def shape_directions(
    v: Float[np.ndarray, "v 3"], weights: Float[np.ndarray, "v 16"], digits: dict[str, Digit]
) -> Float[np.ndarray, "v 3 10"]:
    """Ten shape directions, each one standard deviation at coefficient 1; see `SHAPE_MEANING`."""
    return np.stack([_deform(v, weights, digits, change) for change in _changes(digits)], axis=2)


def _changes(digits: dict[str, Digit]) -> list[list[tuple[Float[np.ndarray, "3 3"], tuple[int, ...]]]]:
    """For each direction, linear maps (less the identity) and the bones that they stretch."""
    x, y, z = np.eye(3)

    def along(names: tuple[str, ...], amount: float) -> list[tuple[Float[np.ndarray, "3 3"], tuple[int, ...]]]:
        terms = []
        for name in names:
            for step in range(3):
                k = 1 + 3 * DIGITS.index(name) + step
                bone = joint_frame(digits, k)[2]
                terms.append((amount * np.outer(bone, bone), (k,)))
        return terms

    def across(amounts: tuple[float, float, float]) -> list[tuple[Float[np.ndarray, "3 3"], tuple[int, ...]]]:
        terms = []
        for k in range(1, 16):
            bone = joint_frame(digits, k)[2]
            terms.append((amounts[(k - 1) % 3] * (np.eye(3) - np.outer(bone, bone)), (k,)))
        return terms

    everything = tuple(range(16))
    fingers = ("index", "middle", "ring", "little")
    return [
        [(0.05 * np.eye(3), everything)],
        [(0.05 * np.outer(z, z), (0,))],
        [(0.07 * np.outer(y, y), (0,)), *[(0.05 * np.outer(y, y), (k,)) for k in (1, 4, 7, 10, 13)]],
        along(fingers, 0.04),
        across((0.05, 0.06, 0.06)),
        [(0.04 * np.outer(x, x), (0,))],
        along(("thumb",), 0.05),
        along(("index",), 0.025) + along(("ring",), -0.025),
        along(("little",), 0.05),
        [(0.05 * (np.outer(y, y) + np.outer(z, z)), (0,)), *across((0.0, -0.03, -0.06))],
    ]


def _deform(
    v: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v 16"],
    digits: dict[str, Digit],
    change: list[tuple[Float[np.ndarray, "3 3"], tuple[int, ...]]],
) -> Float[np.ndarray, "v 3"]:
    """Displacements when each bone is stretched by its map and the joints stay together (linear in the maps)."""
    maps = np.zeros((16, 3, 3))
    for matrix, bones in change:
        maps[list(bones)] += matrix
    joints = rest_joints(digits)
    moved = np.zeros((16, 3))
    for k in range(1, 16):
        parent = PARENTS[k]
        moved[k] = moved[parent] + maps[parent] @ (joints[k] - joints[parent])
    per_bone = moved[None] + np.einsum("kij,vkj->vki", maps, v[:, None] - joints[None])
    return np.einsum("vk,vki->vi", weights, per_bone)
