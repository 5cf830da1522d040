"""What a training run of stage II is made of. A recipe is a YAML file of these fields with a `flux` section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pam_aug.config import resolve
from pam_aug.errors import ConfigError
from pam_aug.generate.flux.looks import LOOKS
from pam_aug.generate.flux.prompts import OFFICIAL_PROMPT
from pam_aug.generate.flux.schedule import MU_RULES
from pam_aug.train.stage_two.objective import MASKING

__all__ = ["ExampleConfig", "FluxConfig", "HeldOutConfig", "StageTwoConfig", "read_recipe"]


@dataclass(frozen=True)
class FluxConfig:
    """`base` is the folder of FLUX.1-dev. `control` is a controlnet.bin to go on from; "" starts both ControlNets from
    FLUX's own embedders and first two blocks, as PAM does.

    `stem` is how the convolutions that read the condition images start there: "official" as torch draws them, "he" so
    that they keep the pixels' variation, which the official draw lets through to some ten-thousandths
    (`controlnet.HintEncoder.widen`)."""

    base: str = "???"
    control: str = ""
    stem: str = "official"


@dataclass(frozen=True)
class ExampleConfig:
    """Images with labels: of a converter that has images (`source`, as in a build), or of a folder of shards.

    Shards need `depth.png` and `seg.png` (`pam-aug convert --depth drawn --seg`); `part` is real, synthetic or all of
    them. `inputs` evenly spread examples are used, -1 all. `look` is how the condition images are drawn. Captions:
    `captions` is a list or folder as the generator `flux` reads it; else a generated image's own prompt; else `prompt`,
    where "label" stands for the text of the label (OAKINK2's programme).
    """

    source: dict[str, Any] = field(default_factory=dict)
    shards: str = ""
    part: str = "real"
    inputs: int = -1
    look: str = "dexycb"
    prompt: str = OFFICIAL_PROMPT
    captions: str = ""


@dataclass(frozen=True)
class HeldOutConfig(ExampleConfig):
    """The examples that are only measured on, every so many iterations and at the end; without `source` and `shards`
    nothing is measured.

    `candidates` images are sampled of each input in `steps` steps and scored by `estimator` (a registered name, such as
    hamer; `options` are its own); 0 measures the loss alone. `mu` is the sampling schedule's shift.
    """

    inputs: int = 32
    every: int = 500
    candidates: int = 1
    steps: int = 28
    mu: str = "official"
    estimator: str = "simplehand"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageTwoConfig:
    """One run. Defaults are the paper's (8 GPUs of 4 images, 8000 steps, 1e-4) where it states them, else the x-flux
    template's that PAM's code is made from.

    `batch` counts over all processes and accumulated passes, `micro_batch` is what one process reads in one pass.
    `masking` is how often each cue is hidden: "official" as the code has it, "paper", or "none". `cache` is where
    latents, texts and condition images are kept ("" is the run's own folder): runs of the same data share it.
    `checkpointing` recomputes FLUX's blocks in the backward pass. `precision` "bf16" has FLUX and the text encoders in
    bfloat16 and the ControlNets in float32 under autocast; "no" is float32 throughout. `export_every` writes the
    ControlNets every so many iterations, 0 at the end only.
    """

    schema: int = 1
    name: str = "pam_stage2"
    seed: int = 0
    flux: FluxConfig = field(default_factory=FluxConfig)
    data: ExampleConfig = field(default_factory=ExampleConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    cache: str = ""
    width: int = 640
    height: int = 480
    masking: str = "official"
    guidance: float = 4.0
    iterations: int = 8000
    batch: int = 32
    micro_batch: int = 1
    lr: float = 1.0e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1.0e-8
    weight_decay: float = 0.01
    warmup: int = 10
    decay: int = 0
    ema: float = 0.0
    clip_norm: float = 1.0
    precision: str = "bf16"
    checkpointing: bool = True
    cpu: bool = False
    threads: int = 1
    loaders: int = 4
    checkpoint_every: int = 500
    export_every: int = 0
    log_every: int = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        positive = ("iterations", "batch", "micro_batch", "threads", "checkpoint_every", "log_every")
        problems = [f"{name}: must be at least 1" for name in positive if getattr(self, name) < 1]
        if self.schema != 1:
            problems.append(f"schema: {self.schema} is not known, this library reads 1")
        if self.width % 16 or self.height % 16 or min(self.width, self.height) < 16:
            problems.append(f"{self.width}x{self.height}: FLUX paints multiples of 16")
        if self.masking not in MASKING:
            problems.append(f"masking {self.masking!r}: choose one of {', '.join(MASKING)}")
        if self.flux.stem not in ("official", "he"):
            problems.append(f"flux.stem {self.flux.stem!r}: choose official or he")
        if self.precision not in ("no", "bf16"):
            problems.append(f"precision {self.precision!r}: choose bf16 or no")
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.iterations:
            problems.append(f"warmup {self.warmup} and decay {self.decay} do not fit {self.iterations} iterations")
        if self.lr <= 0 or self.clip_norm <= 0:
            problems.append(f"lr {self.lr}, clip_norm {self.clip_norm}: above 0")
        if not 0 <= self.ema < 1:
            problems.append(f"ema: {self.ema} is no decay; 0 turns averaging off")
        for name, part in (("data", self.data), ("held_out", self.held_out)):
            problems += [f"{name}.{problem}" for problem in _problems(part)]
        if not (self.data.source or self.data.shards):
            problems.append("data: give source (a converter and its options) or shards (a folder)")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)


def read_recipe(recipe: Mapping[str, Any], overrides: Sequence[str] = ()) -> StageTwoConfig:
    """The configuration of a recipe. Raises ConfigError with every problem it finds."""
    return resolve(StageTwoConfig, recipe, overrides, where="training recipe")


def _problems(part: ExampleConfig) -> list[str]:
    problems = []
    if part.source and part.shards:
        problems.append("source: give it or shards, not both")
    if part.part not in ("real", "synthetic", "all"):
        problems.append(f"part {part.part!r}: choose real, synthetic or all")
    if part.look not in LOOKS:
        problems.append(f"look {part.look!r}: choose {' or '.join(LOOKS)}")
    if part.inputs == 0 or part.inputs < -1:
        problems.append(f"inputs {part.inputs}: a positive number, or -1 for all")
    if isinstance(part, HeldOutConfig):
        if min(part.every, part.steps) < 1 or part.candidates < 0:
            problems.append("every and steps are 1 or more, candidates 0 or more")
        if part.mu not in MU_RULES:
            problems.append(f"mu {part.mu!r}: choose {' or '.join(MU_RULES)}")
    return problems
