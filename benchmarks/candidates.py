"""The bundled generator and estimator: candidates per second, the estimator's error, and whether it finds wrong labels.

    python benchmarks/candidates.py [--quick] [--json] [--real] [--weights FILE]

Errors are on inputs that the training has not seen: objects of other families, other hands, poses and seeds, all view
directions under any roll, both sides, 65 % of the hands holding their object; one image per input, 256 × 256. The peer
of the error is the best constant pose of the same set, which an estimator reaches without looking. Wrong labels are
re-posed by fingers, by a turn of the whole hand, or by both, to a mean joint distance; the area is that between right
and wrong labels among the candidates of one input, averaged over inputs. `--real` repeats both on path-traced images of
the stand-in dataset (needs the rgb extra), where an input has one image and five wrong labels.
"""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
import torch
from rows import parser, print_rows, row

from pam_aug import registry
from pam_aug.estimators.base import HandQuery
from pam_aug.estimators.simplehand import SimpleHandEstimator, SimpleHandOptions
from pam_aug.evaluate.metrics import best_constant_pose, pose_metrics
from pam_aug.evaluate.perturb import Shown, label_separability
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.scene import build_scene
from pam_aug.score import score_candidates
from pam_aug.seeds import candidate_seed

CANDIDATES = 30
CLOSE = (0.6, 0.75)  # of the frame's width: the hand's box covers about 30 to 55 % of it
DISTANCES_MM = (10.0, 15.0, 20.0, 30.0)


def rollouts(count: int, candidates: int) -> Iterator[Shown]:
    """Held-out inputs with their candidates' images."""
    source, generator = open_rollouts(count)
    for index in range(count):
        item = source.item(index)
        scene = build_scene(item, source.hand_assets())
        seeds = [candidate_seed(1, item.sample.key, k) for k in range(candidates)]
        images = [made.rgb for made in generator.generate(scene, seeds)]
        yield item.sample.hands[0], item.sample.camera, images


def open_rollouts(count: int, fill: tuple[float, float] = (0.3, 0.6)) -> tuple[Any, Any]:
    converter = registry.load("converters", "demo-rollouts")
    options = converter.Options(count=count, split="test", seed=1, fill=list(fill))
    return converter(options), registry.load("generators", "rendered")()


def stand_in(count: int) -> Iterator[Shown]:
    """Path-traced images, one per input."""
    converter = registry.load("converters", "demo-real")
    source = converter(converter.Options(count=count, frames=2, seed=5))
    for index in range(count):
        item = source.item(index)
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(item.image, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        yield item.sample.hands[0], item.sample.camera, [image]


def error_rows(estimator: SimpleHandEstimator, inputs: list[Shown], prefix: str) -> list[dict[str, Any]]:
    """Wrist-aligned and Procrustes errors beside the best constant pose's, and the areas under PCK."""
    found, labels = [], []
    for hand, camera, images in inputs:
        mirror = np.array([-1.0, 1.0, 1.0]) if hand.side == "left" else np.ones(3)
        query = HandQuery.of(hand, camera)
        found.append(estimator.estimate(images[:1], [query]).joints_m[0] * mirror)
        labels.append((hand.joints_cam_m - hand.joints_cam_m[0]).astype(np.float64) * mirror)
    pred, gt = np.stack(found), np.stack(labels)
    ours = pose_metrics(pred, gt)
    peer = pose_metrics(np.broadcast_to(best_constant_pose(gt), gt.shape), gt)
    unit = f"mm, {len(gt)} images"
    constant = ("best constant pose", peer.pa_mpjpe_mm)
    return [
        row(f"{prefix}pa_mpjpe_mm", ours.pa_mpjpe_mm, unit, *constant),
        row(f"{prefix}mpjpe_mm", ours.mpjpe_mm, f"{unit}, wrist on wrist"),
        row(f"{prefix}pck_auc_0_50mm", ours.auc, "share"),
        row(f"{prefix}pa_pck_auc_0_50mm", ours.pa_auc, "share"),
    ]


def separability_rows(
    estimator: SimpleHandEstimator, inputs: list[Shown], prefix: str, labels_per_image: int
) -> list[dict[str, Any]]:
    layers = {side: HandLayer(load_open_hand(side), dtype=torch.float64) for side in ("right", "left")}
    areas = label_separability(estimator, inputs, layers, DISTANCES_MM, labels_per_image=labels_per_image)
    return [
        row(f"{prefix}auc_{d:g}mm", float(a.mean()), f"area, {len(a)} inputs", spread=float(a.std() / np.sqrt(len(a))))
        for d, a in areas.items()
    ]


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def score_inputs(weights: str, first: int, count: int) -> float:
    """Seconds to generate, encode, decode and score all candidates of `count` inputs, models and kernels warm."""
    source, generator = open_rollouts(first + count + 1, CLOSE)
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=weights))
    began = 0.0
    for index in (first + count, *range(first, first + count)):  # one input to warm up on
        item = source.item(index)
        scene = build_scene(item, source.hand_assets())
        seeds = [candidate_seed(0, item.sample.key, k) for k in range(CANDIDATES)]
        images = [made.rgb for made in generator.generate(scene, seeds)]
        score_candidates(item.sample, images, seeds, estimator=estimator, generator="rendered", meshes=scene.hands)
        began = began or time.perf_counter()
    return time.perf_counter() - began


def speed_row(weights: str, inputs: int, processes: int = 2) -> dict[str, Any]:
    """Candidates per second over processes that work side by side, one core each."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        parts = [pool.submit(score_inputs, weights, p * (inputs + 1), inputs) for p in range(processes)]
        rates = [inputs * CANDIDATES / part.result() for part in parts]
    return row(
        "candidates_per_s",
        sum(rates),
        f"1/s, {processes} processes, 256x256, hand 60 to 75 % of the width",
        spread=statistics.stdev(rates),
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--real", action="store_true", help="also on path-traced images")
    options.add_argument("--weights", default="", help="other weights than the bundled ones")
    options.add_argument("--skip-speed", action="store_true", help="leave candidates_per_s out")
    arguments = options.parse_args()
    quick = arguments.quick
    _one_thread()
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=arguments.weights))
    rows = [] if arguments.skip_speed else [speed_row(arguments.weights, 4 if quick else 12)]
    rows += error_rows(estimator, list(rollouts(150 if quick else 2000, 1)), "estimator_")
    rows += separability_rows(estimator, list(rollouts(12 if quick else 60, 10)), "perturbation_", 1)
    if arguments.real:
        inputs = list(stand_in(20 if quick else 120))
        rows += error_rows(estimator, inputs, "stand_in_") + separability_rows(estimator, inputs, "stand_in_", 5)
    print_rows(rows, arguments.json, ("pam_aug", "torch", "numpy", "opencv-python-headless"))


if __name__ == "__main__":
    main()
