"""What a candidate of the generator `flux` costs, and whether it depends on what shares its batch.

    python benchmarks/flux_candidates.py [--quick] [--json] [--device cuda]

On the CPU a tiny model of random weights: the largest difference between latents of 30 candidates made one by one, by
fives and all at once, and the seconds from a scene to 30 candidates that are painted, encoded, scored and selected.

On a GPU also FLUX.1-dev under PAM's two ControlNets at its own size, with random weights, which take the time of
trained ones: 640 × 480, 28 steps, bfloat16. `s_per_candidate_b6` is sampling and decoding of six candidates at once,
by six; `input_of_30_s` everything that one input takes. The peer is a loop that does what PAM's released script does:
one seed at a time, the prompt and an unused second one encoded for each, hints at every step, float32 arithmetic. There
the weights are bfloat16 and cast at each use; here they are float32 from the start, which is in its favour. The share
is of the dense bfloat16 peak in `pam_aug.build.plan.GPUS`, operations as counted in `pam_aug.generate.flux.cost`; the
peer of memory is what `pam-aug plan` says.
"""

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from flux_models import FULL, TINY, ModelSizes, RandomFlux
from rows import parser, print_rows, row
from torch import Tensor

from pam_aug import registry
from pam_aug.build.plan import GPUS, Gpu
from pam_aug.estimators.simplehand import SimpleHandEstimator
from pam_aug.generate.flux import cost
from pam_aug.generate.flux.controlnet import token_ids, unpack_tokens
from pam_aug.generate.flux.generator import FluxOptions
from pam_aug.generate.flux.looks import condition_images, condition_tensor
from pam_aug.generate.flux.models import decode_latents
from pam_aug.generate.flux.sampling import Prompt, candidate_noise, denoise
from pam_aug.generate.flux.schedule import schedule_times, shift_mu
from pam_aug.rollouts.scene import Scene, build_scene
from pam_aug.score import score_candidates
from pam_aug.select import select

CANDIDATES = 30
BATCHES = (1, 2, 4, 6, 10, 15, 30)
PEER = "one seed at a time, float32, text for each"


class Bench(RandomFlux):
    """One scene's input, prepared once, and the two ways through it."""

    def prepare(self, scene: Scene) -> None:
        o = self.options
        self.text = o.prompt
        images = condition_images(scene, self.conditions(scene), o.look)
        self.pixels = condition_tensor(images, o.width, o.height)
        self._encode([self.text])
        self.hints = self._hints(self.pixels)
        self.times = schedule_times(o.steps, shift_mu(o.width, o.height, o.mu))

    def paint(self, seeds: Sequence[int]) -> Tensor | None:
        """Ours: a batch of candidates as the generator makes it; None where it does not fit."""
        return self._paint(seeds, [self.text] * len(seeds), self.hints)

    def latents(self, seeds: Sequence[int], batch: int) -> Tensor:
        """Packed latents of all seeds, `batch` at a time."""
        o = self.options
        held = self._prompts[self.text]
        prompt = Prompt(held.text.to(self._device), held.pooled.to(self._device))
        parts = []
        for start in range(0, len(seeds), batch):
            noise = candidate_noise(seeds[start : start + batch], o.width, o.height)
            made = denoise(self._transformer, self._control, noise, self.hints, prompt, self.times, o.guidance)
            parts.append(made.cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def paint_officially(self, seed: int) -> Tensor:
        """The peer: one candidate, nothing shared with the one before."""
        o = self.options
        prompt, _ = (self._encoders.encode([text])[0] for text in (self.text, self.text))
        noise = candidate_noise([seed], o.width, o.height).to(self._device)
        x, pixels = noise, self.pixels.to(self._device)
        height, width = noise.shape[2], noise.shape[3]
        text, pooled = (value.to(self._device).float() for value in (prompt.text, prompt.pooled))
        ids = token_ids(text.shape[1], height // 2, width // 2).to(self._device)
        strength = torch.full((1,), o.guidance, device=self._device)
        x = x.view(1, -1, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, -1, 4 * noise.shape[1])
        for now, then in pairwise(self.times):
            moment = torch.full((1,), now, device=self._device)
            hints = self._control.hints(pixels)
            residuals = self._control(x, hints, text, pooled, moment, strength, ids)
            velocity = self._transformer(
                hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=moment,
                guidance=strength, txt_ids=ids[: text.shape[1]], img_ids=ids[text.shape[1] :],
                controlnet_block_samples=residuals, controlnet_blocks_repeat=True, return_dict=False,
            )[0]  # fmt: skip
            x = x + (then - now) * velocity
        return decode_latents(self._vae, unpack_tokens(x, height, width))

    def to_float32(self) -> None:
        """For the peer. Text stays in bfloat16 there, too."""
        for module in (self._transformer, self._control, self._vae):
            torch.nn.Module.float(module)


def demo_scene(width: int, height: int) -> Scene:
    converter = registry.load("converters", "demo-rollouts")
    source = converter(converter.Options(count=1, size=[width, height], grasp_share=1.0))
    return build_scene(source.item(0), source.hand_assets())


def tiny_rows(repeats: int) -> list[dict[str, Any]]:
    """On the CPU, in float32."""
    scene = demo_scene(64, 48)
    bench = Bench(FluxOptions(width=64, height=48, steps=28, dtype="float32", device="cpu", batch=10), TINY)
    bench.prepare(scene)
    seeds = list(range(100, 100 + CANDIDATES))
    ones, fives, whole = (bench.latents(seeds, batch) for batch in (1, 5, CANDIDATES))
    apart = max(float((a - b).abs().max()) for a, b in ((ones, fives), (fives, whole), (ones, whole)))
    between = float((whole[1:] - whole[:-1]).abs().mean())
    unit = f"latents of {CANDIDATES} candidates by 1, 5 and {CANDIDATES}"
    rows = [row("batch_max_abs_diff", apart, unit, "mean between candidates", between)]
    judge = SimpleHandEstimator()
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        images = [made.rgb for made in bench.generate(scene, seeds)]
        rated = score_candidates(scene.sample, images, seeds, estimator=judge, generator="flux", meshes=scene.hands)
        kept = sum(verdict.kept for verdict in select(rated))
        seconds.append(time.perf_counter() - began)
    unit = f"s, tiny model, 28 steps: {CANDIDATES} painted, scored, {kept} kept"
    return [*rows, row("end_to_end_s", seconds[1:], unit)]


def full_rows(
    sizes: ModelSizes, options: FluxOptions, batches: Sequence[int], gpu: Gpu | None, repeats: int, budget_s: float
) -> list[dict[str, Any]]:
    """The sweep over batches, one whole input at the quickest of them, and the peer. Where a batch does not fit, or
    `budget_s` is spent, the sweep stops."""
    started = time.perf_counter()
    scene = demo_scene(options.width, options.height)
    bench = Bench(options, sizes)
    bench.prepare(scene)
    device = torch.device(options.device)
    flop = cost.candidate_flop(options.width, options.height, options.steps)
    seconds: dict[int, list[float]] = {}
    peaks: dict[int, float] = {}
    for batch in batches:
        seeds = list(range(batch))
        if bench.paint(seeds) is None:  # the first of a shape picks its kernels
            print(f"batch {batch} does not fit", file=sys.stderr)
            break
        reset_peak(device)
        for _ in range(repeats if batch < 10 else 1):
            took = timed(device, lambda seeds=seeds: bench.paint(seeds))
            seconds.setdefault(batch, []).append(took / batch)
        peaks[batch] = peak_gb(device)
        if time.perf_counter() - started > budget_s:
            print(f"the sweep stopped after batch {batch}: {budget_s:.0f} s are spent", file=sys.stderr)
            break
    if not seconds:
        raise SystemExit("one candidate alone does not fit this GPU")
    best = min(seconds, key=lambda batch: min(seconds[batch]))
    quickest = Bench(FluxOptions(**{**vars(options), "batch": best}), sizes)
    quickest.__dict__.update({name: bench.__dict__[name] for name in ("_transformer", "_control", "_vae", "_encoders")})
    seeds = list(range(CANDIDATES))
    whole_s = timed(device, lambda: list(quickest.generate(scene, seeds)))
    bench.to_float32()
    bench.paint_officially(0)
    official = [timed(device, lambda seed=seed: bench.paint_officially(seed)) for seed in range(1, 1 + repeats)]
    theirs = sorted(official)[len(official) // 2]
    what = f"{options.width}x{options.height}, {options.steps} steps, {options.dtype}"
    rows = [row(f"s_per_candidate_b{b}", s, f"s, {what}", PEER, theirs) for b, s in seconds.items()]
    rows.append(row("s_per_candidate", seconds[best], f"s, batch {best}, the quickest", PEER, theirs))
    unit = f"s for {CANDIDATES} candidates, conditions, text and JPEG included, batch {best}"
    rows.append(row("input_of_30_s", whole_s, unit, PEER, CANDIDATES * theirs))
    for batch, peak in peaks.items():
        planned = cost.gpu_memory(options.width, options.height, batch, encoders_stay=True).peak / 1e9
        rows.append(row(f"peak_memory_gb_b{batch}", peak, "GB, text encoders included", "pam-aug plan", planned))
    if gpu is not None:
        for batch, s in seconds.items():
            rate = [flop / one / 1e12 / gpu.bf16_tflops for one in s]
            rows.append(row(f"bf16_share_b{batch}", rate, f"of {gpu.bf16_tflops:g} TFLOP/s ({gpu.name})"))
    return rows


def timed(device: torch.device, work: Any) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def named_gpu(device: torch.device) -> Gpu | None:
    """The preset that the GPU's own name holds."""
    name = torch.cuda.get_device_name(device).lower()
    return next((gpu for gpu in GPUS.values() if gpu.name in name), None)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    options.add_argument("--compile", action="store_true", help="torch.compile on the transformer's blocks")
    arguments = options.parse_args()
    quick = arguments.quick
    rows = tiny_rows(1 if quick else 5)
    if arguments.device != "cpu":
        device = torch.device(arguments.device)
        full = FluxOptions(device=arguments.device, compile=arguments.compile)
        batches = (1, 6, 30) if quick else BATCHES
        rows += full_rows(FULL, full, batches, named_gpu(device), 1 if quick else 3, 60.0 if quick else 300.0)
    print_rows(rows, arguments.json, ("pam_aug", "torch", "diffusers", "transformers", "numpy"))


if __name__ == "__main__":
    main()
