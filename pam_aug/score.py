"""Scores: how far an estimator's hand is from the label, per candidate image.

An estimate is compared with the label over 21 joints, wrist on wrist (the paper's measure), after Procrustes alignment
(FreiHAND's, with proper rotations only), in the image, and as a silhouette. A candidate's score is its worst hand's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pam_aug.errors import SchemaError
from pam_aug.estimators.base import Estimates, Estimator, HandQuery, tight_box
from pam_aug.geometry import pa_mpjpe_mm, root_aligned_mpjpe_mm
from pam_aug.render.rasterizer import rasterize
from pam_aug.rollouts.scene import HandMesh
from pam_aug.schema import Camera, Candidate, Hand, Sample, Score

__all__ = ["HandErrors", "hand_errors", "score_candidates", "score_of", "silhouette_iou"]

_SILHOUETTE_PX = 64


@dataclass(frozen=True, slots=True, eq=False)
class HandErrors:
    """Errors of n estimates of one label; +inf (and mask_iou -1) where there is no estimate, with the reason.

    `err_2d` is the mean pixel error over max(w, h) of the label's box. `mask_iou` is -1 where nothing was compared.
    """

    err_mm: Float[np.ndarray, "n"]
    pa_err_mm: Float[np.ndarray, "n"]
    err_2d: Float[np.ndarray, "n"]
    mask_iou: Float[np.ndarray, "n"]
    failures: tuple[str, ...]


def hand_errors(
    estimates: Estimates, hand: Hand, camera: Camera | None = None, mesh: HandMesh | None = None
) -> HandErrors:
    """Errors of `estimates`, each made from another image of the same label.

    The silhouettes are compared where `camera`, the label's `mesh` and the estimates' vertices are all there.
    """
    joints = np.asarray(hand.joints_cam_m, np.float64)
    err = root_aligned_mpjpe_mm(estimates.joints_m, joints[None])
    pa = pa_mpjpe_mm(estimates.joints_m, joints[None])
    box = tight_box(hand.joints_px)
    side = max(float((box[2:] - box[:2]).max()), 1.0)
    seen = np.isfinite(hand.joints_px).all(-1)
    distance = np.linalg.norm(estimates.joints_px[:, seen] - hand.joints_px[None, seen], axis=-1)
    err_2d = distance.mean(-1) / side
    failures = list(estimates.reasons)
    finite = np.isfinite(err) & np.isfinite(pa) & np.isfinite(err_2d)
    for i, reason in enumerate(failures):
        if not estimates.valid[i]:
            failures[i] = reason or "no hand found"
        elif not finite[i]:
            failures[i] = "the estimate is not finite"
    usable = estimates.valid & finite
    iou = np.full(len(estimates), -1.0)
    if mesh is not None and camera is not None and estimates.verts_m is not None:
        iou = silhouette_iou(estimates.verts_m, usable, mesh, np.asarray(camera.K_px, np.float64), box)
    err, pa, err_2d = (np.where(usable, e, math.inf) for e in (err, pa, err_2d))
    return HandErrors(err, pa, err_2d, iou, tuple(failures))


def silhouette_iou(
    verts_m: Float[np.ndarray, "n 778 3"],
    usable: Bool[np.ndarray, "n"],
    mesh: HandMesh,
    K_px: Float[np.ndarray, "3 3"],
    box_px: Float[np.ndarray, "4"],
) -> Float[np.ndarray, "n"]:
    """Overlap of the estimated and the label's silhouette, both whole (nothing occludes them), wrist on wrist.

    Drawn over the label's box with a margin of a quarter, 64 pixels wide. -1 where not `usable`.
    """
    faces = np.concatenate([mesh.assets.f, mesh.assets.f_cap]).astype(np.int32)
    side = 1.5 * max(float((box_px[2:] - box_px[:2]).max()), 1.0)
    low = (box_px[:2] + box_px[2:]) / 2 - side / 2
    scale = _SILHOUETTE_PX / side
    x0, y0 = -0.5 - scale * (low - 0.5)
    to_view = np.array([[scale, 0, x0], [0, scale, y0], [0, 0, 1]])
    K_view = to_view @ K_px

    def silhouette(verts: np.ndarray) -> np.ndarray:
        return rasterize(verts, faces, K_view, _SILHOUETTE_PX, _SILHOUETTE_PX).face >= 0

    label = silhouette(mesh.verts_cam_m)
    iou = np.full(len(verts_m), -1.0)
    for i in np.flatnonzero(usable):
        estimate = silhouette(verts_m[i].astype(np.float64) + mesh.joints_cam_m[0])
        union = np.count_nonzero(label | estimate)
        iou[i] = np.count_nonzero(label & estimate) / union if union else 0.0
    return iou


def score_candidates(
    sample: Sample,
    images: Sequence[np.ndarray | None],
    seeds: Sequence[int],
    *,
    estimator: Estimator,
    generator: str,
    meshes: Sequence[HandMesh] = (),
    failures: Mapping[int, str] | None = None,
) -> list[Candidate]:
    """Rows of one input's candidates, all kept as yet, in index order.

    `images[i]` is candidate i (RGB uint8), or None where its generation failed, for the reason in `failures[i]`. The
    estimator sees all images of a hand in one call, so that a score does not depend on what ran beside this input.
    `meshes` are the sample's hands posed, in its order; without them no silhouettes are compared. Raises SchemaError
    where the counts differ or the sample has no hand.
    """
    if len(seeds) != len(images) or (meshes and len(meshes) != len(sample.hands)) or not sample.hands:
        raise SchemaError(
            f"{sample.key}: {len(images)} images, {len(seeds)} seeds, {len(sample.hands)} hands and {len(meshes)} "
            "meshes cannot be scored together",
            key=sample.key,
        )
    made = [i for i, image in enumerate(images) if image is not None]
    n = len(images)
    worst = {name: np.full(n, -1.0) for name in ("err_mm", "pa_err_mm", "err_2d", "mask_iou")}
    reasons = ["" if image is not None else (failures or {}).get(i, "no image") for i, image in enumerate(images)]
    shown = [image for image in images if image is not None]
    for k, hand in enumerate(sample.hands):
        if not made:
            break
        query = HandQuery.of(hand, sample.camera)
        estimates = estimator.estimate(shown, [query] * len(shown))
        errors = hand_errors(estimates, hand, sample.camera, meshes[k] if meshes else None)
        for row, i in enumerate(made):
            if errors.err_mm[row] > worst["err_mm"][i]:
                for name, column in worst.items():
                    column[i] = getattr(errors, name)[row]
            if errors.failures[row] and not reasons[i]:
                reasons[i] = f"{hand.side} hand: {errors.failures[row]}"
    failed = [bool(reason) for reason in reasons]
    return [
        Candidate(
            input_key=sample.key,
            index=i,
            seed=seeds[i],
            generator=generator,
            estimator=estimator.name,
            err_mm=math.inf if failed[i] else float(worst["err_mm"][i]),
            pa_err_mm=math.inf if failed[i] else float(worst["pa_err_mm"][i]),
            err_2d=math.inf if failed[i] else float(worst["err_2d"][i]),
            mask_iou=-1.0 if failed[i] else float(worst["mask_iou"][i]),
            failure=reasons[i],
        )
        for i in range(n)
    ]


def score_of(candidate: Candidate) -> Score:
    """The candidate's score as a sample's label carries it: infinities become -1, which means not scored."""

    def finite(value: float) -> float:
        return value if math.isfinite(value) else -1.0

    return Score(
        estimator=candidate.estimator,
        err_mm=finite(candidate.err_mm),
        pa_err_mm=finite(candidate.pa_err_mm),
        err_2d=finite(candidate.err_2d),
        mask_iou=candidate.mask_iou,
    )
