"""What a build will take, before it runs: counts, bytes, seconds, memory, each with what it rests on.

Counts are the build's own plan. For generators that run here, seconds and bytes are scaled from a trial of a few inputs
on this machine; for `flux` they come from its layers (`generate.flux.cost`) and a GPU's published rate.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from pam_aug.build.config import BuildConfig, open_backend, open_judges
from pam_aug.build.run import Plan, default_workers, plan
from pam_aug.build.trial import NOISE, Trial, run_trial
from pam_aug.errors import ConfigError
from pam_aug.generate.flux import cost

__all__ = ["ACHIEVED", "GPUS", "Estimate", "Figure", "Gpu", "estimate", "parse_gpu"]

ACHIEVED: Final = 0.5
"""Share of a GPU's dense peak that FLUX is taken to reach: an assumption. Published runs of FLUX.1-dev at 1024 × 1024
on an H100 reach 0.58 with torch.compile; small images and eager code reach less."""

_PAINTED_BYTES_PER_PIXEL = 0.6  # of a photograph as JPEG q95 4:4:4: an assumption, the range is about 0.3 to 1.2
_HOST_TO_GPU_BYTES_S = 20e9  # what PCIe 4.0 × 16 carries in practice
_TAR_END_BYTES = 6144  # of a shard: two empty blocks, and half a record on average


class Gpu(NamedTuple):
    """A GPU's published dense peaks, without sparsity, and its memory. 0 where it is not known."""

    name: str
    bf16_tflops: float
    fp32_tflops: float = 0.0
    memory_gb: float = 0.0


GPUS: Final = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989.4, 66.9, 80),  # SXM5
        Gpu("h200", 989.4, 66.9, 141),
        Gpu("a100", 312.0, 19.5, 80),
        Gpu("l40s", 362.0, 91.6, 48),
        Gpu("4090", 165.2, 82.6, 24),  # float32 accumulation
    )
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a plan. `basis` says where it is from: counted, a rule, a trial, a model, an assumption."""

    name: str
    value: float
    basis: str
    at_most: bool = False

    def as_text(self) -> str:
        value = f"{self.value:,.0f}" if self.value == int(self.value) or self.value >= 1000 else f"{self.value:,.3g}"
        return f"{self.name.replace('_', ' '):24} {'at most ' if self.at_most else ''}{value:>12}   {self.basis}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A plan's figures, what is missing before the build can run (as `build` names it), and notes."""

    figures: tuple[Figure, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> float:
        return next(figure.value for figure in self.figures if figure.name == name)

    def as_dict(self) -> dict[str, Any]:
        return {
            "figures": {figure.name: asdict(figure) for figure in self.figures},
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        lines = [figure.as_text() for figure in self.figures]
        lines += [f"note: {note}" for note in self.notes]
        if self.missing:
            lines.append("\n  - ".join(["this build cannot run here yet:", *self.missing]))
        return "\n".join([*lines, "nothing was written"])


def parse_gpu(text: str) -> Gpu:
    """A preset by name, or a bfloat16 rate in TFLOP/s. Raises ConfigError."""
    if text.lower() in GPUS:
        return GPUS[text.lower()]
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < math.inf:
        raise ConfigError(f"--gpu {text}: name one of {', '.join(GPUS)}, or give its dense bfloat16 TFLOP/s", gpu=text)
    return Gpu(f"{rate:g} TFLOP/s", rate)


def estimate(
    config: BuildConfig,
    parts: Sequence[str] = ("real", "synthetic"),
    workers: int = -1,
    gpu: Gpu = GPUS["h100"],
    achieved: float = ACHIEVED,
    trial_inputs: int = 2,
    trial_candidates: int = 4,
) -> Estimate:
    """Plan a build, try a few inputs, and scale. Raises what `plan` raises, but for missing weights, which it lists."""
    if not 0 < achieved <= 1:
        raise ConfigError(f"--achieved {achieved}: a share of the peak is above 0 and at most 1")
    missing: list[str] = []
    todo = plan(config, parts, missing)
    notes = list(todo.notes)
    generator, stand_ins = _stand_ins(config, todo, notes)
    is_flux = bool(todo.synthetic_shards) and config.generate.generator == "flux"
    painter = NOISE if is_flux or (generator is not None and generator.requires()) else None
    trial = run_trial(todo, trial_inputs, trial_candidates, painter, stand_ins)
    if trial.problem:
        notes.append(f"trial: {trial.problem}; time and bytes of the synthetic half are unknown")
    figures = _counts(config, todo)
    figures += _bytes(config, todo, trial, trial.image_pixels if painter else 0.0)
    processes = max(1, workers if workers >= 0 else default_workers(config, parts))
    if is_flux and generator is not None:
        if processes > 1:
            notes.append(f"each of {processes} workers loads its own FLUX onto the same GPU: give --workers 1")
        figures += _flux(generator.options, todo, trial, gpu, achieved, notes)
    elif painter is not None:
        notes.append(f"seconds are without those of {config.generate.generator}, which cannot run here")
    figures += _seconds(todo, trial, processes, next((f.value for f in figures if f.name == "gpu_s"), 0.0))
    return Estimate(tuple(figures), tuple(missing), tuple(notes))


def _stand_ins(config: BuildConfig, todo: Plan, notes: list[str]) -> tuple[Any, list[Any]]:
    """The generator, opened whether or not it can run; and judges in place of those that cannot."""
    if not todo.synthetic_shards:
        return None, []
    ignored: list[str] = []
    generate = config.generate
    generator = open_backend("generators", generate.generator, generate.options, "generate.options", ignored)
    judges = open_judges(config.score, ignored)
    able = [judge for judge in judges if not judge.requires()]
    if len(able) == len(judges):
        return generator, []
    notes.append(f"scoring is timed with {able[0].name if able else 'simplehand'} alone: the other files are missing")
    return generator, able or [open_backend("estimators", "simplehand", {}, "score.options")]


def _counts(config: BuildConfig, todo: Plan) -> list[Figure]:
    n, inputs = config.generate.candidates, todo.inputs
    rule = config.select.resolved()
    share = rule.share()
    group = n if rule.scope == "input" else inputs * n
    gone = math.ceil(share * group) if group > 1 else 0
    kept = (inputs if rule.scope == "input" else 1) * (group - gone)
    each = "of each input's" if rule.scope == "input" else "of all"
    limits = ", ".join(f"{name} > {limit:g}" for name, limit in rule.limits().items())
    more = f"; gates on top ({limits})" if limits else ""
    real = sum(map(len, todo.real_shards))
    counted = [Figure("inputs", inputs, "counted"), Figure("candidates", inputs * n, "counted")]
    counted.append(Figure("images_kept", kept, f"rule: {gone} {each} {group} go; failures on top{more}", at_most=True))
    return [*(counted if todo.synthetic_shards else []), Figure("real_images", real, "counted", at_most=True)]


def _bytes(config: BuildConfig, todo: Plan, trial: Trial, painted_pixels: float) -> list[Figure]:
    """Sizes of finished shards, MB of 10⁶ bytes."""
    figures = []
    if todo.synthetic_shards and trial.candidates:
        image, basis = trial.image_bytes, f"estimate: a trial of {trial.candidates} candidates"
        if painted_pixels:
            image = painted_pixels * _PAINTED_BYTES_PER_PIXEL
            basis = (
                f"estimate: images of {_PAINTED_BYTES_PER_PIXEL} byte per pixel (an assumption), labels from a trial"
            )
        total = todo.inputs * config.generate.candidates
        kept = _counts(config, todo)[2].value
        ends = _TAR_END_BYTES * len(todo.synthetic_shards)
        each = image + trial.label_bytes
        figures.append(Figure("synthetic_shards_mb", (kept * each + ends) / 1e6, basis))
        if config.shards.keep_rejected:
            figures.append(Figure("rejected_mb", ((total - kept) * each + ends) / 1e6, basis))
    if trial.real_images:
        images = sum(map(len, todo.real_shards))
        size = (images * trial.real_bytes + _TAR_END_BYTES * len(todo.real_shards)) / 1e6
        figures.append(Figure("real_shards_mb", size, f"estimate: a trial of {trial.real_images} images"))
    return figures


def _flux(options: Any, todo: Plan, trial: Trial, gpu: Gpu, achieved: float, notes: list[str]) -> list[Figure]:
    """Seconds and memory on the GPU from FLUX's layers."""
    n = todo.config.generate.candidates
    width, height, batch = options.width, options.height, min(options.batch, n)
    value_bytes = 4 if options.dtype == "float32" else 2
    rate = gpu.fp32_tflops or gpu.bf16_tflops if value_bytes == 4 else gpu.bf16_tflops
    drawn, captioned = options.prompt == "drawn", bool(options.captions)
    prompts = todo.inputs if captioned else todo.inputs * n if drawn else 1
    flop = cost.candidate_flop(width, height, options.steps)
    once = prompts * (cost.t5(cost.T5Sizes()).flop + cost.clip(cost.ClipSizes()).flop)
    once += todo.inputs * cost.hints(cost.FluxSizes(), width, height).flop
    per_second = rate * 1e12 * achieved
    candidate_s = flop / per_second
    if options.offload:
        moved = value_bytes * cost.transformer(cost.FluxSizes(), 1, 1).weights
        candidate_s += options.steps * moved / _HOST_TO_GPU_BYTES_S / batch
        notes.append(f"offload moves the transformer once per step: {_HOST_TO_GPU_BYTES_S / 1e9:g} GB/s are assumed")
    if value_bytes == 4 and not gpu.fp32_tflops:
        notes.append("float32 is planned at the rate given, which is taken as its own")
    varies = drawn or captioned
    memory = cost.gpu_memory(
        width, height, batch, value_bytes, prompts=n if drawn and not captioned else 1,
        encoders_stay=varies and options.keep_text_encoders, encode_again=varies, offload=options.offload,
    )  # fmt: skip
    if gpu.memory_gb and memory.peak > gpu.memory_gb * 1e9:
        notes.append(
            f"{memory.peak / 1e9:.0f} GB do not fit {gpu.name}'s {gpu.memory_gb:g} GB: set generate.options.memory_gb"
        )
    model = f"{options.dtype}, {width}x{height}, {options.steps} steps, batch {batch}"
    speed = f"estimate: {rate:g} TFLOP/s of {gpu.name} × {achieved:g} reached (an assumption)"
    figures = [
        Figure("tflop_per_candidate", flop / 1e12, f"counted from FLUX.1-dev's layers: {model}"),
        Figure("s_per_candidate", candidate_s, speed),
        Figure("gpu_s", todo.inputs * n * candidate_s + once / per_second, f"{speed}, one GPU"),
    ]
    for phase in ("encoding", "denoising", "decoding"):
        basis = "estimate: weights on the GPU, and the widest point of the blocks"
        figures.append(Figure(f"gpu_gb_{phase}", getattr(memory, phase) / 1e9, basis))
    return [*figures, Figure("gpu_gb_peak", memory.peak / 1e9, f"estimate: the largest of the three; {model}")]


def _seconds(todo: Plan, trial: Trial, processes: int, gpu_s: float) -> list[Figure]:
    """Wall time, on a machine as busy as during the trial, and the host's memory.

    Starting up (seconds per worker) and reading the models are not in it.
    """
    total = todo.inputs * todo.config.generate.candidates
    synthetic_s, real_s = total * trial.candidate_s, sum(map(len, todo.real_shards)) * trial.real_s
    figures = []
    if not trial.problem:
        parts = [f"{synthetic_s:.3g} s of candidates"] if trial.candidates else []
        parts += [f"{real_s:.3g} s of real images"] if trial.real_images else []
        parts += [f"{gpu_s:.3g} s of painting"] if gpu_s else []
        basis = f"estimate: {', '.join(parts) or 'nothing to do'}; workers: {processes}; start-up is not in it"
        figures.append(Figure("wall_s", (synthetic_s + real_s) / processes + gpu_s, basis))
    loaded = 2 * cost.transformer(cost.FluxSizes(), 1, 1).weights if gpu_s else 0
    each = trial.peak_bytes + loaded
    basis = f"estimate: {trial.peak_bytes / 1e9:.2g} GB in the trial; workers: {processes}"
    basis += ", FLUX's transformer on its way to the GPU" if loaded else ""
    return [*figures, Figure("host_gb", processes * each / 1e9, basis)]
