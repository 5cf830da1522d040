"""Hand shapes that put the thumb's pad across from the fingers' pads, for every width that a hand spans.

Searched once on grids of hinge angles: finger shapes (all fingers alike, bent more at the base or more at the middle)
against thumb shapes. A pair is as good as its pads face each other along the line between them. What a start of a
grasp needs of it: where the middle of the opening is in the hand, the line along which it closes, and the line along
which the hand approaches, which has the palm behind it.
"""

import functools
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from pam_aug.rollouts.sim_hand import SimHand

__all__ = ["WIDTHS_M", "Opposition", "approach_to", "oppositions"]

WIDTHS_M: Final = np.arange(0.004, 0.1141, 0.01)
"""The widths for which there are hand shapes, metres."""

_PER_WIDTH: Final = 4
_WIDTH_SLACK_M: Final = 0.005
_ROOM_M: Final = 0.055
_FINGER_BASE: Final = np.linspace(-0.05, 1.3, 10)
_FINGER_MIDDLE: Final = np.linspace(0.2, 1.4, 9)
_FINGERS: Final = ("index", "middle", "ring", "little")
# Of the opposing middle: how much the pads of index, middle, ring and little count.
_SHARES: Final = np.array([0.4, 0.4, 0.2, 0.0])


class Opposition(NamedTuple):
    """A hand shape whose thumb opposes its fingers across `width_m`; points and directions in the rest frame.

    `key` is its place in `oppositions`. `closing` points from the thumb's pad to the fingers', `approach` is how the
    hand comes to the object (across `closing`), `quality` up to 0.9 how squarely the pads face each other, less for a
    shape that people do not make.
    """

    key: tuple[int, int]
    angles_rad: Float[np.ndarray, "n"]
    width_m: float
    middle_m: Float[np.ndarray, "3"]
    closing: Float[np.ndarray, "3"]
    approach: Float[np.ndarray, "3"]
    quality: float


@functools.lru_cache(maxsize=4)
def oppositions(hand: SimHand) -> tuple[tuple[Opposition, ...], ...]:
    """For each of `WIDTHS_M` some hand shapes, best first and unlike each other."""
    fingers = _finger_shapes(hand)
    thumbs = _thumb_shapes(hand)
    pads_f, normals_f = hand.pads(fingers)
    pads_t, normals_t = hand.pads(thumbs)
    finger_at = np.einsum("k,bki->bi", _SHARES, pads_f[:, 1:])
    finger_way = np.einsum("k,bki->bi", _SHARES, normals_f[:, 1:])
    thumb_at, thumb_way = pads_t[:, 0], normals_t[:, 0]
    across = finger_at[:, None] - thumb_at[None]
    width = np.linalg.norm(across, axis=2)
    line = across / np.maximum(width, 1e-9)[..., None]
    facing_t = np.einsum("fti,ti->ft", line, thumb_way)
    facing_f = -np.einsum("fti,fi->ft", line, finger_way)
    squarely = np.minimum(facing_t, facing_f)
    # A hand that is bent about alike in all its joints is neither a hook nor a duck's bill: people's grasps are so.
    base, middle = (fingers[:, hand.rows("middle")[i]] for i in (0, 2))
    unnatural = 0.25 * np.abs(base - middle) + 0.3 * np.maximum(middle - 0.9, 0.0)
    # Room between opening and palm, which is towards -y: without it the object meets the palm before the pads.
    height = 0.5 * (finger_at[:, None, 1] + thumb_at[None, :, 1])
    cramped = 12.0 * np.maximum(height + _ROOM_M, 0.0)
    quality = np.minimum(squarely, 0.9) - unnatural[:, None] - cramped
    return tuple(
        tuple(_pick(hand, fingers, thumbs, finger_at, thumb_at, width, quality, float(wanted), row))
        for row, wanted in enumerate(WIDTHS_M)
    )


def approach_to(
    hand: SimHand, middle_m: Float[np.ndarray, "3"], closing: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "3"]:
    """The unit direction, across `closing`, in which the palm has `middle_m` before it (rest frame)."""
    palm = 0.6 * hand.joints_m[[1, 4, 10, 7]].mean(0) + 0.4 * hand.joints_m[0]
    approach = middle_m - palm
    approach = approach - closing * (closing @ approach)
    return approach / np.linalg.norm(approach)


def _pick(hand, fingers, thumbs, finger_at, thumb_at, width, quality, wanted, row) -> list[Opposition]:
    score = np.where(np.abs(width - wanted) < _WIDTH_SLACK_M, quality - 20 * np.abs(width - wanted), -np.inf)
    found: list[Opposition] = []
    for _ in range(_PER_WIDTH):
        f, t = np.unravel_index(int(score.argmax()), score.shape)
        if not np.isfinite(score[f, t]):
            break
        angles = fingers[f].copy()
        angles[hand.rows("thumb")] = thumbs[t, hand.rows("thumb")]
        closing = (finger_at[f] - thumb_at[t]) / width[f, t]
        middle = 0.5 * (finger_at[f] + thumb_at[t])
        approach = approach_to(hand, middle, closing)
        found.append(
            Opposition((row, len(found)), angles, float(width[f, t]), middle, closing, approach, float(quality[f, t]))
        )
        near = np.abs(fingers - fingers[f]).max(1) < 0.3
        score[near] = -np.inf
    return found


def _finger_shapes(hand: SimHand) -> np.ndarray:
    base, middle = (a.ravel() for a in np.meshgrid(_FINGER_BASE, _FINGER_MIDDLE, indexing="ij"))
    shapes = np.zeros((len(base), len(hand.dofs)))
    for name in _FINGERS:
        rows = hand.rows(name)
        shapes[:, rows[0]], shapes[:, rows[2]], shapes[:, rows[3]] = base, middle, 0.55 * middle
    return np.clip(shapes, *hand.limits_rad.T)


def _thumb_shapes(hand: SimHand) -> np.ndarray:
    rows = hand.rows("thumb")
    limits = hand.limits_rad[rows]
    steps = (5, 5, 3, 3, 3)
    grids = [np.linspace(low + 0.02, high - 0.1 * (high - low), n) for (low, high), n in zip(limits, steps)]
    grids[3], grids[4] = np.linspace(-0.1, 0.6, 3), np.linspace(-0.1, 0.6, 3)  # past that the thumb is a hook
    mesh = np.stack([a.ravel() for a in np.meshgrid(*grids, indexing="ij")], axis=1)
    shapes = np.zeros((len(mesh), len(hand.dofs)))
    shapes[:, rows] = np.clip(mesh, *limits.T)
    return shapes
