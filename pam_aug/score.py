"""Scores: how far an estimator's hand is from the label, per candidate image.

An estimate is compared with the label over 21 joints, wrist on wrist (the paper's measure), after Procrustes alignment
(FreiHAND's, with proper rotations only), in the image, and as a silhouette; over the vertices, too, where both meshes
have the same triangles. A candidate's score is its worst hand's. Where several estimators judge, each scores alone and
`combine_scores` joins them.

An error against the label holds the estimator's own error on that pose, which all candidates of an input share and
which hides the candidates that show another pose. `odd_mm` leaves it out: it is the distance from what the estimator
says of the input's candidates in the middle. It says nothing of an input all of whose candidates are wrong alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.errors import ConfigError, SchemaError
from pam_aug.estimators.base import Estimates, Estimator, HandQuery, tight_box
from pam_aug.geometry import pa_mpjpe_mm, root_aligned_mpjpe_mm
from pam_aug.render.rasterizer import rasterize
from pam_aug.rollouts.scene import HandMesh
from pam_aug.schema import Camera, Candidate, Hand, Judgement, Sample, Score

__all__ = [
    "COMBINE_RULES",
    "HandErrors",
    "combine_scores",
    "combined_name",
    "hand_errors",
    "looks_mirrored",
    "oddness_mm",
    "score_candidates",
    "score_of",
    "silhouette_iou",
]

COMBINE_RULES: Final = ("mean", "worst")
"""How several estimators' errors become one: their mean, or the largest (the smallest overlap)."""

_FAILED: Final[dict[str, Any]] = {
    **dict.fromkeys(("err_mm", "pa_err_mm", "err_2d", "odd_mm"), math.inf),
    **dict.fromkeys(("mask_iou", "vert_err_mm", "pa_vert_err_mm"), -1.0),
}
"""A candidate's numbers, and what they are where nothing could be scored."""
_NUMBERS: Final = tuple(_FAILED)

_SILHOUETTE_PX = 64
_MIRRORED_MM = 5.0  # below it a hand is so flat, or so well met, that its mirror image says nothing


@dataclass(frozen=True, slots=True, eq=False)
class HandErrors:
    """Errors of n estimates of one label; +inf (and mask_iou -1) where there is no estimate, with the reason.

    `err_2d` is the mean pixel error over max(w, h) of the label's box. `odd_mm` is from the median estimate, see
    `oddness_mm`. `mask_iou` and the vertices' errors are -1 where nothing was compared. `side_agrees` is False where an
    estimate `looks_mirrored`.
    """

    err_mm: Float[np.ndarray, "n"]
    pa_err_mm: Float[np.ndarray, "n"]
    err_2d: Float[np.ndarray, "n"]
    odd_mm: Float[np.ndarray, "n"]
    mask_iou: Float[np.ndarray, "n"]
    vert_err_mm: Float[np.ndarray, "n"]
    pa_vert_err_mm: Float[np.ndarray, "n"]
    side_agrees: Bool[np.ndarray, "n"]
    failures: tuple[str, ...]


def hand_errors(
    estimates: Estimates, hand: Hand, camera: Camera | None = None, mesh: HandMesh | None = None
) -> HandErrors:
    """Errors of `estimates`, each made from another image of the same label.

    Silhouettes are compared where `camera`, the label's `mesh` and the estimates' vertices are all there; vertices
    where both meshes have the same triangles, in whatever order and winding: else vertex i of both is not one place.
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
    iou, vert, pa_vert = (np.full(len(estimates), -1.0) for _ in range(3))
    if mesh is not None and estimates.verts_m is not None:
        if camera is not None:
            K_px = np.asarray(camera.K_px, np.float64)
            iou = silhouette_iou(estimates.verts_m, usable, mesh, K_px, box, estimates.faces)
        if estimates.faces is None or same_triangles(estimates.faces, mesh.assets.f):
            vert, pa_vert = _vertex_errors_mm(estimates.verts_m, mesh)
            vert, pa_vert = (np.where(usable, e, math.inf) for e in (vert, pa_vert))
    agrees = ~(usable & looks_mirrored(estimates.joints_m, joints))
    err, pa, err_2d = (np.where(usable, e, math.inf) for e in (err, pa, err_2d))
    odd = np.full(len(estimates), math.inf)
    odd[usable] = oddness_mm(estimates.joints_m[usable])
    return HandErrors(err, pa, err_2d, odd, iou, vert, pa_vert, agrees, tuple(failures))


def oddness_mm(joints_m: Float[np.ndarray, "n 21 3"]) -> Float[np.ndarray, "n"]:
    """Mean distance of each estimate's joints from the median of all n, coordinate by coordinate, wrist on wrist."""
    relative = np.asarray(joints_m, np.float64) - joints_m[:, :1]
    if not len(relative):
        return np.zeros(0)
    return 1000.0 * np.linalg.norm(relative - np.median(relative, axis=0), axis=-1).mean(-1)


def _vertex_errors_mm(verts_m: Float[np.ndarray, "n 778 3"], mesh: HandMesh) -> tuple[np.ndarray, np.ndarray]:
    """Mean vertex distances, wrist joint on wrist joint and after Procrustes alignment."""
    label = mesh.verts_cam_m - mesh.joints_cam_m[0]
    wrist_aligned = 1000.0 * np.linalg.norm(verts_m - label, axis=-1).mean(-1)
    return wrist_aligned, np.asarray(pa_mpjpe_mm(verts_m, label[None]))


def same_triangles(a: Int[np.ndarray, "f 3"], b: Int[np.ndarray, "f 3"]) -> bool:
    """Whether two meshes join the same vertices, whatever the order and winding of their triangles."""
    if a is b:
        return True
    a, b = (np.unique(np.sort(np.asarray(f, np.int64), axis=1), axis=0) for f in (a, b))
    return np.array_equal(a, b)


def looks_mirrored(joints_m: Float[np.ndarray, "n 21 3"], label_m: Float[np.ndarray, "21 3"]) -> Bool[np.ndarray, "n"]:
    """Whether an estimate shows a hand of the other side: its mirror image, aligned, has under half of its error.

    Only where the estimate's own aligned error is 5 mm or more: a flat hand is nearly its own mirror image.
    """
    own = np.asarray(pa_mpjpe_mm(joints_m, label_m[None]))
    mirrored = np.asarray(pa_mpjpe_mm(joints_m * np.array([-1.0, 1.0, 1.0]), label_m[None]))
    return (own >= _MIRRORED_MM) & (mirrored < 0.5 * own)


def silhouette_iou(
    verts_m: Float[np.ndarray, "n 778 3"],
    usable: Bool[np.ndarray, "n"],
    mesh: HandMesh,
    K_px: Float[np.ndarray, "3 3"],
    box_px: Float[np.ndarray, "4"],
    faces: Int[np.ndarray, "f 3"] | None = None,
) -> Float[np.ndarray, "n"]:
    """Overlap of the estimated and the label's silhouette, both whole (nothing occludes them), wrist on wrist.

    Drawn over the label's box with a margin of a quarter, 64 pixels wide. `faces` are the estimates' triangles, None
    for the label's. -1 where not `usable`.
    """
    whole = np.concatenate([mesh.assets.f, mesh.assets.f_cap]).astype(np.int32)
    own = whole if faces is None or same_triangles(faces, mesh.assets.f) else np.asarray(faces, np.int32)
    side = 1.5 * max(float((box_px[2:] - box_px[:2]).max()), 1.0)
    low = (box_px[:2] + box_px[2:]) / 2 - side / 2
    scale = _SILHOUETTE_PX / side
    x0, y0 = -0.5 - scale * (low - 0.5)
    to_view = np.array([[scale, 0, x0], [0, scale, y0], [0, 0, 1]])
    K_view = to_view @ K_px

    def silhouette(verts: np.ndarray, triangles: np.ndarray) -> np.ndarray:
        return rasterize(verts, triangles, K_view, _SILHOUETTE_PX, _SILHOUETTE_PX).face >= 0

    label = silhouette(mesh.verts_cam_m, whole)
    iou = np.full(len(verts_m), -1.0)
    for i in np.flatnonzero(usable):
        estimate = silhouette(verts_m[i].astype(np.float64) + mesh.joints_cam_m[0], own)
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
    worst = {name: np.full(n, -1.0) for name in _NUMBERS}
    agrees = np.ones(n, bool)
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
                for name in _NUMBERS:
                    if name != "odd_mm":
                        worst[name][i] = getattr(errors, name)[row]
            worst["odd_mm"][i] = max(worst["odd_mm"][i], errors.odd_mm[row])  # the odder hand's, whichever errs more
            agrees[i] &= errors.side_agrees[row]
            if errors.failures[row] and not reasons[i]:
                reasons[i] = f"{hand.side} hand: {errors.failures[row]}"
    for i, reason in enumerate(reasons):
        if reason:
            for name, column in worst.items():
                column[i] = _FAILED[name]
    return [
        Candidate(
            input_key=sample.key,
            index=i,
            seed=seeds[i],
            generator=generator,
            estimator=estimator.name,
            failure=reasons[i],
            side_agrees=bool(agrees[i]),
            **{name: float(column[i]) for name, column in worst.items()},  # type: ignore[arg-type]
        )
        for i in range(n)
    ]


def combined_name(names: Sequence[str], rule: str) -> str:
    """What several judges are called together: "mean(hamer,simplehand)"; one alone keeps its name."""
    return names[0] if len(names) == 1 else f"{rule}({','.join(names)})"


def combine_scores(judged: Sequence[Sequence[Candidate]], rule: str) -> list[Candidate]:
    """One input's candidates as several estimators scored them, joined by "mean" or "worst"; one's alone unchanged.

    Every error is combined for itself over the estimators that measured it (-1 where none did); `worst` of the overlap
    is the smallest. A candidate that one of them could not score has failed. What each found is kept in `judgements`.
    Raises ConfigError for another rule, SchemaError where the rows are not of the same candidates.
    """
    if rule not in COMBINE_RULES:
        raise ConfigError(f"score.combine {rule!r}: choose one of {', '.join(COMBINE_RULES)}", rule=rule)
    if len({tuple((c.input_key, c.index, c.seed) for c in rows) for rows in judged}) != 1:
        raise SchemaError("the estimators scored different candidates; score the same images with each")
    if len(judged) == 1:
        return list(judged[0])
    return [_combined(rows, rule) for rows in zip(*judged, strict=True)]


def _combined(rows: Sequence[Candidate], rule: str) -> Candidate:
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        measured = [value for row in rows if (value := getattr(row, name)) != -1.0]
        worst = min if name == "mask_iou" else max
        mean = sum(measured) / len(measured) if measured else -1.0
        numbers[name] = mean if rule == "mean" or not measured else worst(measured)
    failure = next((f"{row.estimator}: {row.failure}" for row in rows if row.failure), "")
    if len({row.failure for row in rows}) == 1:  # the image itself is missing: every estimator says the same
        failure = rows[0].failure
    return replace(
        rows[0],
        estimator=combined_name([row.estimator for row in rows], rule),
        failure=failure,
        side_agrees=all(row.side_agrees for row in rows),
        judgements=tuple(Judgement(**{f.name: getattr(row, f.name) for f in fields(Judgement)}) for row in rows),
        **(_FAILED if failure else numbers),
    )


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
