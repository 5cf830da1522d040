"""What a training run on mixed shards is made of. A recipe is a YAML file of these fields with a `data` section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pam_aug.config import resolve
from pam_aug.errors import ConfigError
from pam_aug.mix_order import parse_ratio

__all__ = [
    "DataConfig",
    "GapConfig",
    "GeometryConfig",
    "HeldOutConfig",
    "MixedTrainConfig",
    "PixelConfig",
    "read_recipe",
]


@dataclass(frozen=True)
class DataConfig:
    """`mix` is a build's folder (or a `mix.json`), read in its exact order.

    `ratio` is the share of real hands that is read: "" leaves the mix's own, "union" reads every hand equally often,
    "1" is only real. `real_fraction` keeps that share of the real sequences. `seed` draws the order and those sequences
    anew (-1: the mix's own). Hands are cut out as squares of `crop_px`,
    `crop_scale` times as wide as their box; 0 takes what the augmentation can show at most. `mano_dir` holds the MANO
    files where the labels' hands are MANO's; without them such hands are trained on joints alone.
    """

    mix: str = "???"
    ratio: str = ""
    real_fraction: str = ""
    seed: int = -1
    crop_px: int = 0
    crop_scale: float = 0.0
    mano_dir: str = ""


@dataclass(frozen=True)
class HeldOutConfig:
    """The folder that is only measured on ("" measures nothing), every so many iterations and at the end.

    `hands` limits how many of them are read (0: all).
    """

    mix: str = ""
    every: int = 5000
    hands: int = 0


@dataclass(frozen=True)
class GeometryConfig:
    """Ranges of the views that are drawn; SimpleHand's are the defaults. All of them are exact: see `draw_views`.

    `turn_deg` turns the view in its plane by up to so many degrees both ways, `scale` multiplies its side, `shift`
    moves its centre by up to that share of the box's side both ways, `flip` is the chance that a hand is shown
    mirrored. Without a flip every hand is shown as a right one.
    """

    turn_deg: float = 180.0
    scale: list[float] = field(default_factory=lambda: [0.8, 1.2])  # 1.0 to 1.5 times the box, about 1.25
    shift: float = 0.1
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 0.05)
        if not 0 <= self.turn_deg <= 180 or not 0 <= self.shift <= 1 or not 0 <= self.flip <= 1:
            raise ConfigError("geometry: turn_deg lies in [0, 180], shift and flip in [0, 1]")


@dataclass(frozen=True)
class PixelConfig:
    """Photometric augmentation; the first three are SimpleHand's and always applied, the rest are chances."""

    gain: list[float] = field(default_factory=lambda: [0.6, 1.4])  # per channel
    brightness: list[float] = field(default_factory=lambda: [-0.4, 0.1])  # of the full range, added
    contrast: list[float] = field(default_factory=lambda: [-0.2, 0.2])  # 1 + this, times
    gamma: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    downscale: float = 0.0

    def __post_init__(self) -> None:
        _check_range("gain", self.gain, 0.0)
        _check_range("brightness", self.brightness, -1.0)
        _check_range("contrast", self.contrast, -1.0)
        _check_chances(self, ("gamma", "gray", "blur", "noise", "jpeg", "downscale"))


@dataclass(frozen=True)
class GapConfig:
    """Chances of what narrows the gap between synthetic and real images.

    `spectrum`: a synthetic image takes the low frequencies' amplitude of a real one of its batch, up to
    `spectrum_radius` of the image's side. `background`: what is neither hand nor object, by the sample's `seg.png`, is
    replaced by a picture of the folder `backgrounds`, or by a drawn one where that is "". `occluder`: a piece of
    another image of the batch is laid over the hand.
    """

    spectrum: float = 0.0
    spectrum_radius: float = 0.02
    background: float = 0.0
    backgrounds: str = ""
    occluder: float = 0.0

    def __post_init__(self) -> None:
        _check_chances(self, ("spectrum", "background", "occluder"))
        if not 0 < self.spectrum_radius < 0.5:
            raise ConfigError(f"gap.spectrum_radius {self.spectrum_radius}: lies in (0, 0.5), 0.01 to 0.09 is usual")


@dataclass(frozen=True)
class MixedTrainConfig:
    """One run on mixed shards, counted in iterations: more data never means more training. Defaults are SimpleHand's
    (Zhou et al., CVPR 2024): 256 hands an iteration, 51,200 iterations, AdamW.

    `net` is `NetConfig`'s fields, or `FastViTConfig`'s where its `backbone` is "fastvit_ma36". `batch` counts over all
    processes. The learning rate rises over `warmup` iterations, is divided by ten at each of `drops`, and falls to zero
    over the last `decay`. `ema` averages weights (0: it does not). `precision` is "no", "fp16" (GPU only) or "bf16".
    `cpu` keeps a run off the GPU. `rows` names variants of `data`; `row` chooses one.
    """

    schema: int = 1
    name: str = "simplehand_mixed"
    seed: int = 0
    net: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    rows: dict[str, Any] = field(default_factory=dict)
    row: str = ""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    augment: bool = True  # False: the view that estimators take, as it is
    iterations: int = 51_200
    batch: int = 256
    lr: float = 5.0e-4
    muon_lr: float = 0.0
    weight_decay: float = 1.0e-2
    warmup: int = 1280
    drops: list[int] = field(default_factory=lambda: [25_600])
    decay: int = 0
    ema: float = 0.0
    clip_norm: float = 1.0
    weight_uv: float = 1.0
    weight_joints: float = 10.0
    weight_verts: float = 10.0
    weight_aligned: float = 0.0
    weight_heat: float = 0.0
    precision: str = "no"
    cpu: bool = False
    threads: int = 1
    loaders: int = 1
    checkpoint_every: int = 1000
    log_every: int = 100
    tensorboard: bool = True

    def __post_init__(self) -> None:
        positive = ("iterations", "batch", "threads", "checkpoint_every", "log_every")
        problems = [f"{name}: must be at least 1" for name in positive if getattr(self, name) < 1]
        if self.schema != 1:
            problems.append(f"schema: {self.schema} is not known, this library reads 1")
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.iterations:
            problems.append(f"warmup {self.warmup} and decay {self.decay} do not fit {self.iterations} iterations")
        if self.lr <= 0 or self.muon_lr < 0:
            problems.append(f"lr {self.lr}, muon_lr {self.muon_lr}: the first is above 0, the second 0 or more")
        if not 0 <= self.ema < 1:
            problems.append(f"ema: {self.ema} is no decay; 0 turns averaging off")
        if self.precision not in ("no", "fp16", "bf16"):
            problems.append(f"precision {self.precision!r}: choose no, fp16 or bf16")
        if self.precision == "fp16" and self.cpu:
            problems.append("precision fp16 needs a GPU; on a CPU choose bf16 or no")
        if self.row and self.row not in self.rows:
            problems.append(f"row {self.row!r}: choose one of {', '.join(self.rows) or 'none, the recipe has no rows'}")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)


def read_recipe(recipe: Mapping[str, Any], overrides: Sequence[str] = ()) -> MixedTrainConfig:
    """The configuration of a recipe, its row applied to `data`. Raises ConfigError with every problem it finds.

    A row gives the defaults, so an override of `data.ratio` still wins over it.
    """
    config = resolve(MixedTrainConfig, recipe, overrides, where="training recipe")
    if config.row:
        section = {**dict(recipe.get("data", {})), **config.rows[config.row]}
        config = resolve(MixedTrainConfig, {**recipe, "data": section}, overrides, where=f"row {config.row}")
    for name, value in (("ratio", config.data.ratio), ("real_fraction", config.data.real_fraction)):
        if value not in ("", "union"):
            parse_ratio(value)
        elif value == "union" and name != "ratio":
            raise ConfigError("data.real_fraction: a share in (0, 1]; 'union' is a ratio")
    return config


def _check_range(name: str, values: Sequence[float], low: float) -> None:
    if len(values) != 2 or not low <= values[0] <= values[1]:
        raise ConfigError(f"{name} {list(values)}: two rising numbers, the first at least {low}")


def _check_chances(config: Any, names: Sequence[str]) -> None:
    wrong = [f"{name} {getattr(config, name)}" for name in names if not 0 <= getattr(config, name) <= 1]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: chances lie in [0, 1]")
