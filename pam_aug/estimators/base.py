"""What an estimator is: images and label boxes in, root-relative hands out. No detector is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.errors import SchemaError
from pam_aug.hand.joints import Side
from pam_aug.schema import Camera, Hand

__all__ = ["Estimates", "Estimator", "HandQuery", "tight_box"]


def tight_box(joints_px: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "4"]:
    """The min/max box (x0, y0, x1, y1) of joints, unclipped, pixels. Raises SchemaError where none is finite."""
    finite = joints_px[np.isfinite(joints_px).all(-1)]
    if not len(finite):
        raise SchemaError("no joint has a finite image position, so there is no box to crop; leave this hand out")
    return np.concatenate([finite.min(0), finite.max(0)]).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class HandQuery:
    """Where to look: the label's tight 21-joint box (x0, y0, x1, y1), its side, and the image's intrinsics.

    `tips` is the label's tip set (`hand.joints.TIP_SETS`), for estimators that take fingertips from vertices.
    """

    side: Side
    box_px: Float[np.ndarray, "4"]
    K_px: Float[np.ndarray, "3 3"]
    tips: str = "smplx"

    @classmethod
    def of(cls, hand: Hand, camera: Camera) -> "HandQuery":
        """The query of a label."""
        return cls(hand.side, tight_box(hand.joints_px), np.asarray(camera.K_px, np.float64), hand.tips)


@dataclass(frozen=True, slots=True, eq=False)
class Estimates:
    """Hands found in n images, in each image's camera axes, metres, relative to the wrist (joint 0 of `joints_m`).

    `joints_px` are image pixels. `verts_m` is None from an estimator without a mesh; `faces` are its triangles, None
    where they are the label's own. Rows where `valid` is False hold no hand: their numbers mean nothing, and `reasons`
    says why ("" for a valid row).
    """

    joints_m: Float[np.ndarray, "n 21 3"]
    joints_px: Float[np.ndarray, "n 21 2"]
    verts_m: Float[np.ndarray, "n 778 3"] | None
    valid: Bool[np.ndarray, "n"]
    reasons: tuple[str, ...]
    faces: Int[np.ndarray, "f 3"] | None = None

    def __len__(self) -> int:
        return len(self.valid)

    def row(self, i: int) -> "Estimates":
        """Estimate `i` alone."""
        verts = None if self.verts_m is None else self.verts_m[i : i + 1]
        one = slice(i, i + 1)
        return Estimates(self.joints_m[one], self.joints_px[one], verts, self.valid[one], self.reasons[one], self.faces)


@runtime_checkable
class Estimator(Protocol):
    """A hand pose estimator. `Options` is a frozen dataclass, read from the configuration's `estimator` section.

    `requires` lists the missing files or packages, with where to get them ([] means ready), and is asked before any
    work. `estimate` must give a row the same result whatever rows stand beside it in another call of the same length.

    An estimator may also have `joint_definition`: how its 21 joints follow from its hand, in words. It changes errors
    by millimetres, so an evaluation says it beside them; without it, that the definition is not known.
    """

    name: ClassVar[str]
    version: str
    Options: ClassVar[type]

    def __init__(self, options: Any = None) -> None: ...
    def requires(self) -> list[str]: ...
    def estimate(self, images: Sequence[np.ndarray], queries: Sequence[HandQuery]) -> Estimates:
        """Hands in RGB images (each (h,w,3) uint8), one query per image. Raises BackendError where it cannot run."""
        ...
