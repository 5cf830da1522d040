"""Can an estimator tell a wrong label from a right one? Labels are re-posed by a known distance and scored again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import SchemaError
from pam_aug.estimators.base import Estimator, HandQuery
from pam_aug.evaluate.metrics import separability
from pam_aug.geometry import axis_angle_to_matrix, matrix_to_axis_angle, project, root_aligned_mpjpe_mm
from pam_aug.hand import HandLayer
from pam_aug.schema import Camera, Hand
from pam_aug.score import hand_errors

__all__ = ["Shown", "label_separability", "repose"]

Kind = Literal["fingers", "global", "both"]
KINDS: tuple[Kind, ...] = ("fingers", "global", "both")

_DRAWS, _FARTHEST = 50, 3.0

Shown = tuple[Hand, Camera, Sequence[np.ndarray]]
"""A label, its camera, and images that show it: the candidates of one input."""


def repose(
    hand: Hand, camera: Camera, layer: HandLayer, distance_mm: float, kind: Kind, rng: np.random.Generator
) -> Hand:
    """The label of a hand whose fingers bend otherwise, or that is turned about its wrist, or both.

    Its joints lie `distance_mm` from the label's on average, wrist on wrist. Two to five fingers move, mostly in
    flexion. `layer` is the label's hand model in float64. Raises SchemaError where no such pose is found.
    """
    for _ in range(_DRAWS):
        turn, bend = _direction(kind, rng)
        low, high = 0.0, 0.05
        while high < _FARTHEST and _distance(hand, _posed(hand, camera, layer, high * turn, high * bend)) < distance_mm:
            low, high = high, 2.0 * high
        if high < _FARTHEST:
            break
    else:
        raise SchemaError(f"no pose of this hand lies {distance_mm} mm away by {kind}; ask for a smaller distance")
    for _ in range(18):
        middle = 0.5 * (low + high)
        near = _distance(hand, _posed(hand, camera, layer, middle * turn, middle * bend)) < distance_mm
        low, high = (middle, high) if near else (low, middle)
    return _posed(hand, camera, layer, high * turn, high * bend)


def _direction(kind: Kind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A turn (3,) and finger bends (5,3,3) of about one radian, the bends mostly about the flexion axis."""
    turn = rng.normal(0.0, 1.0, 3) * {"fingers": 0.0, "global": 1.0, "both": 0.35}[kind]
    bend = np.zeros((5, 3, 3))
    if kind != "global":
        fingers = rng.choice(5, size=int(rng.integers(2, 6)), replace=False)
        bend[fingers] = rng.normal(0.0, 1.0, (len(fingers), 3, 3)) * [0.15, 0.25, 1.0]
    return turn, bend


def _distance(a: Hand, b: Hand) -> float:
    return float(root_aligned_mpjpe_mm(a.joints_cam_m, b.joints_cam_m))


def _posed(hand: Hand, camera: Camera, layer: HandLayer, turn: np.ndarray, bend: np.ndarray) -> Hand:
    orient = axis_angle_to_matrix(turn) @ axis_angle_to_matrix(np.asarray(hand.global_orient, np.float64))
    numbers = (matrix_to_axis_angle(orient), hand.hand_pose + bend.ravel(), hand.betas, hand.transl)
    with torch.no_grad():
        out = layer(*(torch.from_numpy(np.array(a, np.float64))[None] for a in numbers))
    joints = out.joints21[0].numpy()
    px = project(joints, np.asarray(camera.K_px, np.float64))
    return replace(
        hand,
        global_orient=numbers[0],
        hand_pose=numbers[1],
        joints_cam_m=joints,
        joints_px=np.nan_to_num(px, nan=-1.0),
    )


def label_separability(
    estimator: Estimator,
    inputs: Iterable[Shown],
    layers: Mapping[str, HandLayer],
    distances_mm: Sequence[float],
    *,
    seed: int = 0,
    labels_per_image: int = 1,
) -> dict[float, Float[np.ndarray, "i"]]:
    """Per distance, one area per input: the chance that a candidate whose label is wrong has a larger error (mm).

    The candidates of an input are its images under their true label and, each, under `labels_per_image` labels re-posed
    at random; every label makes its own crop, as in a build. `layers` are the hand models by side.
    """
    rng = np.random.default_rng(seed)
    areas: dict[float, list[float]] = {d: [] for d in distances_mm}
    for hand, camera, images in inputs:
        right = _errors(estimator, images, [hand] * len(images), camera)
        shown = [image for image in images for _ in range(labels_per_image)]
        for distance in distances_mm:
            kinds: list[Kind] = [KINDS[int(k)] for k in rng.integers(0, len(KINDS), len(shown))]
            wrong = [repose(hand, camera, layers[hand.side], distance, kind, rng) for kind in kinds]
            areas[distance].append(separability(right, _errors(estimator, shown, wrong, camera)))
    return {d: np.array(values) for d, values in areas.items()}


def _errors(
    estimator: Estimator, images: Sequence[np.ndarray], hands: Sequence[Hand], camera: Camera
) -> Float[np.ndarray, "n"]:
    found = estimator.estimate(images, [HandQuery.of(hand, camera) for hand in hands])
    return np.array([hand_errors(found.row(i), hand).err_mm[0] for i, hand in enumerate(hands)])
