"""How fast the estimators are, and whether their scores find the candidates that show another pose than their label.

    python benchmarks/estimators.py [--quick] [--json] [--device cuda --precision bf16 --batch 64] [--weights FILE]

HaMeR runs at its published size on random weights, which take the same time as trained ones; the peer of each speed is
the same crops one at a time. `hamer_tflops` counts 125.5 GMAC per crop; its peer is one large product of matrices on
the same device, so that the ratio is the share of what arithmetic can reach there. For the recall, a generator draws 22
of an input's 30 candidates as the label says and 8 from a hand re-posed by fingers, by a turn, or by both, to a mean
joint distance; three rules then reject 8 each, so precision and recall are one number, and the peer is chance. The
default rule goes by the joints' distance from the label in space; `2d_` by that in the image (`select.by=err_2d`),
which leaves out the depth that one camera hardly sees; `odd_` by `odd_mm`, the distance from what the estimator says of
the input's other candidates. Inputs are those of benchmarks/candidates.py, which the training has not seen.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from candidates import CANDIDATES, DISTANCES_MM, open_rollouts
from rows import parser, print_rows, row

from pam_aug.estimators.base import HandQuery
from pam_aug.estimators.hamer import HamerEstimator, HamerOptions
from pam_aug.estimators.hamer_net import HamerConfig, HamerNet, entry_dtype
from pam_aug.estimators.simplehand import SimpleHandEstimator, SimpleHandOptions
from pam_aug.evaluate.perturb import KINDS, repose
from pam_aug.hand import HandAssets, HandLayer, load_open_hand
from pam_aug.rollouts.scene import Item, Scene, build_scene
from pam_aug.score import score_candidates
from pam_aug.seeds import candidate_seed
from pam_aug.select import SelectConfig, select

MISPOSED = 8
RULES = {"": SelectConfig(), "2d_": SelectConfig(by="err_2d"), "odd_": SelectConfig(by="odd_mm")}
HAMER_GMAC = 124.0 + 1.54  # backbone and head, per crop
SIZE_PX = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class RandomHamer(HamerEstimator):
    """HaMeR without a checkpoint: random weights, the same in every precision, and the open hand."""

    @cached_property
    def assets(self) -> HandAssets:
        return load_open_hand("right")

    @cached_property
    def net(self) -> HamerNet:
        backbone = PRECISIONS[self.options.precision]
        with torch.device("meta"):
            net = HamerNet(self.options.net)
        generator = torch.Generator(self.device).manual_seed(0)
        state = {}
        for name, entry in net.state_dict().items():
            value = torch.randn(entry.shape, device=self.device, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value = 1 + 0.1 * value
            elif name == "mano_head.init_hand_pose":
                value = torch.tensor([1.0, 0, 0, 0, 1, 0], device=self.device).repeat(16) + 0.2 * value
            else:
                value *= 0.5 / entry[0].numel() ** 0.5 if entry.ndim > 1 else 0.1
            state[name] = value.to(entry_dtype(name, backbone))
        net.load_state_dict(state, strict=True, assign=True)
        return net.eval().requires_grad_(False)


def noise_images(count: int) -> tuple[list[np.ndarray], list[HandQuery]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (SIZE_PX, SIZE_PX, 3), np.uint8) for _ in range(count)]
    box, K_px = np.array([70.0, 60.0, 190.0, 200.0]), np.array([[300.0, 0, 127.5], [0, 300.0, 127.5], [0, 0, 1]])
    return images, [HandQuery("right" if i % 2 else "left", box, K_px) for i in range(count)]


def crops_per_s(estimator: HamerEstimator | SimpleHandEstimator, count: int, at_once: int, repeats: int) -> list[float]:
    """Crops per second over `count` images of noise, `at_once` in a call, cropping included; one warm-up call."""
    images, queries = noise_images(count)
    estimator.estimate(images[:at_once], queries[:at_once])
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        for start in range(0, count, at_once):
            block = slice(start, start + at_once)
            estimator.estimate(images[block], queries[block])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - began))
    return rates


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10¹² operations per second of one large matrix product: the best of five, after a warm-up."""
    on_gpu = device.type == "cuda"
    side, times = (8192, 20) if on_gpu else (2048, 1)
    matrix, best = torch.randn(side, side, device=device).to(dtype), 0.0
    for attempt in range(6):
        began = time.perf_counter()
        for _ in range(times):
            torch.mm(matrix, matrix)
        if on_gpu:
            torch.cuda.synchronize()
        if attempt:
            best = max(best, 2e-12 * side**3 * times / (time.perf_counter() - began))
    return best


def hamer_rows(options: HamerOptions, count: int, repeats: int) -> list[dict[str, Any]]:
    estimator = RandomHamer(options)
    alone = float(np.median(crops_per_s(estimator, max(count // 4, 1), 1, repeats)))
    together = crops_per_s(estimator, count, min(count, options.batch), repeats)
    where = f"{estimator.device.type}, {options.precision}, blocks of {min(count, options.batch)}"
    rows = [row("hamer_crops_per_s", together, f"1/s, {where}", "one at a time", alone)]
    if options.net == HamerConfig():
        reached = [2e-3 * HAMER_GMAC * rate for rate in together]
        ceiling = product_tflops(estimator.device, PRECISIONS[options.precision])
        rows.append(row("hamer_tflops", reached, f"TFLOP/s, {where}", "one large matrix product", ceiling))
    if estimator.device.type == "cuda":
        rows.append(row("hamer_memory_gb", torch.cuda.max_memory_allocated() / 1e9, "GB, peak of tensors"))
    return rows


def precision_rows(options: HamerOptions, count: int) -> list[dict[str, Any]]:
    """How far a backbone in half precision moves the vertices of the same random network."""
    images, queries = noise_images(count)
    verts = {}
    for precision in ("fp32", "fp16", "bf16"):
        found = RandomHamer(replace(options, precision=precision)).estimate(images, queries)
        verts[precision] = np.asarray(found.verts_m)
    unit = f"mm, the vertex that moves most, {count} crops"
    moved = {name: 1000 * np.linalg.norm(v - verts["fp32"], axis=-1).max() for name, v in verts.items()}
    return [row(f"hamer_{name}_mm", float(moved[name]), unit, spread=0.0) for name in ("fp16", "bf16")]


def simplehand_rows(weights: str, repeats: int) -> list[dict[str, Any]]:
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=weights))
    alone = float(np.median(crops_per_s(estimator, CANDIDATES, 1, repeats)))
    together = crops_per_s(estimator, CANDIDATES, CANDIDATES, repeats)
    return [row("simplehand_crops_per_s", together, f"1/s, cpu, blocks of {CANDIDATES}", "one at a time", alone)]


def misposed_images(
    item: Item, source: Any, generator: Any, seeds: Sequence[int], layers: dict[str, HandLayer], distance_mm: float
) -> Iterator[np.ndarray]:
    """Images of hands that stand `distance_mm` from the label, another pose for each seed."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        (hand,), camera = item.sample.hands, item.sample.camera
        wrong = repose(hand, camera, layers[hand.side], distance_mm, KINDS[int(rng.integers(len(KINDS)))], rng)
        sample = replace(item.sample, hands=(wrong,))
        scene = build_scene(replace(item, sample=sample), source.hand_assets())
        yield next(iter(generator.generate(scene, [seed]))).rgb


def rejection(
    estimator: SimpleHandEstimator, inputs: int, distances_mm: Sequence[float], say: Callable[[str], None]
) -> dict[tuple[str, float], list[float]]:
    """Per rule, distance and input, the share of its 8 mis-posed candidates among the 8 that the rule rejects."""
    source, generator = open_rollouts(inputs)
    layers = {side: HandLayer(load_open_hand(side), dtype=torch.float64) for side in ("right", "left")}
    recall: dict[tuple[str, float], list[float]] = {(rule, d): [] for rule in RULES for d in distances_mm}
    for index in range(inputs):
        item = source.item(index)
        scene: Scene = build_scene(item, source.hand_assets())
        key = item.sample.key
        seeds = [candidate_seed(2, key, i) for i in range(CANDIDATES)]
        bad = np.random.default_rng(seeds[0]).choice(CANDIDATES, MISPOSED, replace=False)
        right = [made.rgb for made in generator.generate(scene, [s for i, s in enumerate(seeds) if i not in bad])]
        for distance in distances_mm:
            wrong = misposed_images(item, source, generator, [seeds[i] for i in sorted(bad)], layers, distance)
            rest = iter(right)
            images = [next(wrong) if i in bad else next(rest) for i in range(CANDIDATES)]
            rows = score_candidates(item.sample, images, seeds, estimator=estimator, generator="misposing")
            for rule, config in RULES.items():
                gone = {row.index for row, verdict in zip(rows, select(rows, config)) if not verdict.kept}
                if len(gone) != MISPOSED:
                    raise SystemExit(f"{key}: the rule rejects {len(gone)} of {CANDIDATES}, not {MISPOSED}")
                recall[rule, distance].append(len(gone & set(bad.tolist())) / MISPOSED)
        say(f"{index + 1}/{inputs} inputs")
    return recall


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cpu", help="where HaMeR runs: cpu, cuda, cuda:1")
    options.add_argument("--precision", default="fp32", help="of HaMeR's backbone: fp32, bf16, fp16")
    options.add_argument("--batch", type=int, default=32, help="HaMeR's crops per block")
    options.add_argument("--weights", default="", help="other SimpleHand weights than the bundled ones")
    options.add_argument("--narrow", action="store_true", help="a tiny HaMeR, to try the script: no speed of HaMeR's")
    options.add_argument("--inputs", type=int, default=0, help="inputs of the recall (16 quick, else 100)")
    arguments = options.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    cv2.setNumThreads(0)
    quick = arguments.quick
    sizes = HamerConfig(64, 2, 4, 64, 32, 2, 2, 16, 32) if arguments.narrow else HamerConfig()
    hamer = HamerOptions(device=arguments.device, precision=arguments.precision, batch=arguments.batch, net=sizes)
    on_cpu = arguments.device == "cpu"
    count = (8 if quick else 32) if on_cpu else 8 * arguments.batch
    rows = hamer_rows(hamer, count, 1 if quick and on_cpu else 3)
    if not quick:
        rows += precision_rows(hamer, 2 if on_cpu else arguments.batch)
    rows += simplehand_rows(arguments.weights, 3 if quick else 9)
    estimator = SimpleHandEstimator(SimpleHandOptions(weights=arguments.weights))
    inputs = arguments.inputs or (16 if quick else 100)
    say = (lambda text: None) if arguments.json else (lambda text: print(text, end="\r", flush=True))
    for (rule, distance), values in rejection(estimator, inputs, DISTANCES_MM, say).items():
        spread = float(np.std(values) / np.sqrt(len(values)))
        unit = f"share of 8 of {CANDIDATES}, {inputs} inputs; precision is the same"
        name = f"{rule}rejection_recall_{distance:g}mm"
        rows.append(row(name, float(np.mean(values)), unit, "chance", MISPOSED / CANDIDATES, spread))
    print_rows(rows, arguments.json, ("pam_aug", "torch", "numpy", "opencv-python-headless"))


if __name__ == "__main__":
    main()
