"""Scores of a video clip: what the errors of its frames say together. Pure; one clip and one hand at a time.

A frame whose label has no hand (NaN joints) is left out. A frame in which the estimator lost the hand fails the clip,
as it fails an image: the errors are +inf. Of several hands the worst counts (`worst_clip`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pam_aug.errors import SchemaError
from pam_aug.geometry import root_aligned_mpjpe_mm

__all__ = ["ClipErrors", "clip_errors", "jitter_mm", "worst_clip"]


@dataclass(frozen=True, slots=True)
class ClipErrors:
    """Errors of one clip's estimates, mm.

    `err_mm` is the mean over frames of the wrist-aligned error, by which clips are ranked; `worst_err_mm` the largest,
    at frame `worst_frame` (-1 where the label has no hand at all); `jitter_mm` see there. `frames` were scored, in
    `failed` of them the hand was lost.
    """

    err_mm: float
    worst_err_mm: float
    worst_frame: int
    jitter_mm: float
    frames: int
    failed: int


def clip_errors(estimate_m: Float[np.ndarray, "t 21 3"], label_m: Float[np.ndarray, "t 21 3"]) -> ClipErrors:
    """Errors of a clip of t frames, estimate and label in camera axes; NaN rows mean "no hand".

    Equal worst frames: the first. Raises SchemaError where the lengths differ.
    """
    estimate, label = np.asarray(estimate_m, np.float64), np.asarray(label_m, np.float64)
    if estimate.shape != label.shape:
        raise SchemaError(f"a clip of {len(estimate)} estimated and {len(label)} labelled frames cannot be scored")
    labelled = np.isfinite(label).all((1, 2))
    found = np.isfinite(estimate).all((1, 2))
    if not labelled.any():
        return ClipErrors(math.inf, math.inf, -1, math.inf, 0, 0)
    err = np.where(found, root_aligned_mpjpe_mm(np.nan_to_num(estimate), np.nan_to_num(label)), math.inf)
    frames = np.flatnonzero(labelled)
    worst = int(frames[np.argmax(err[frames])])
    failed = int(np.count_nonzero(labelled & ~found))
    jitter = math.inf if failed else jitter_mm(estimate, label)
    return ClipErrors(float(err[frames].mean()), float(err[worst]), worst, jitter, len(frames), failed)


def jitter_mm(estimate_m: Float[np.ndarray, "t 21 3"], label_m: Float[np.ndarray, "t 21 3"]) -> float:
    """Mean distance of the second differences of wrist-relative joints, estimate to label, in mm per frame squared.

    The acceleration error of Kanazawa et al. (CVPR 2019), over the 20 joints beside the wrist: a steady offset counts
    nothing, and so does the label's own motion. Frames next to one without a hand are left out; 0 where no three
    frames stand together.
    """
    relative = [np.asarray(x, np.float64) - np.asarray(x, np.float64)[:, :1] for x in (estimate_m, label_m)]
    bend = [x[2:] - 2.0 * x[1:-1] + x[:-2] for x in relative]
    distance = 1000.0 * np.linalg.norm(bend[0] - bend[1], axis=-1)[:, 1:].mean(-1)
    distance = distance[np.isfinite(distance)]
    return float(distance.mean()) if len(distance) else 0.0


def worst_clip(hands: Sequence[ClipErrors]) -> ClipErrors:
    """The clip's score: that of its worst hand by mean error, hands without a labelled frame aside; ties: the first.

    Raises SchemaError where no hand was scored in any frame.
    """
    scored = [hand for hand in hands if hand.frames]
    if not scored:
        raise SchemaError("no frame of this clip has a labelled hand; leave the clip out")
    return max(scored, key=lambda hand: hand.err_mm)
