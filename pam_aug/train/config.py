"""What a training run is made of. A recipe is a YAML file of these fields."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from pam_aug.errors import ConfigError

__all__ = ["AugmentConfig", "Objective", "PoolConfig", "TrainConfig"]


class Objective(Protocol):
    """What losses and optimisers read of a run's configuration, whatever its data are."""

    @property
    def iterations(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def decay(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def muon_lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def weight_uv(self) -> float: ...
    @property
    def weight_joints(self) -> float: ...
    @property
    def weight_verts(self) -> float: ...
    @property
    def weight_aligned(self) -> float: ...
    @property
    def weight_heat(self) -> float: ...


def _train_source() -> dict[str, Any]:
    return {"converter": "demo-rollouts", "split": "train", "size": [192, 192], "fill": [0.4, 0.65]}


def _test_source() -> dict[str, Any]:
    return {"converter": "demo-rollouts", "split": "test"}


@dataclass(frozen=True)
class PoolConfig:
    """Images to train on or to measure with: `inputs` items of `source`, each drawn `appearances` times."""

    source: dict[str, Any] = field(default_factory=_train_source)
    inputs: int = 16_000
    appearances: int = 4
    generator: str = "rendered"
    seed: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """Chances and ranges of the augmentations; all are drawn per crop.

    Turns are uniform over the circle. A network for upright crops has them upright, but for a share `any_turn`, with
    normal noise of deviation `turn_noise` in the direction (see `upright_turn`): as well as they will be found.
    """

    any_turn: float = 0.04
    turn_noise: float = 0.15
    scale: list[float] = field(default_factory=lambda: [0.85, 1.2])  # times the crop's side
    shift: float = 0.08  # of the box's side, both ways
    occlude: float = 0.1
    blur: float = 0.1
    noise: float = 0.1
    jpeg: float = 0.1
    shrink: float = 0.1  # to a third at worst, and back


@dataclass(frozen=True)
class TrainConfig:
    """One run. It is counted in iterations, so that more data never means more training.

    `lr` is AdamW's learning rate, `muon_lr` Muon's for the network's inner matrices (0: AdamW has those too). Both rise
    over `warmup` iterations and fall to zero over the last `decay`; `weight_heat` falls over the whole run. The weights
    kept are averaged with decay `ema`. `threads` are torch's; `loaders` and `render_workers` the processes that make
    crops and images (0: this one). The images made from `held_out` are only measured on.
    """

    schema: int = 1
    name: str = "simplehand_small"
    seed: int = 0
    net: dict[str, Any] = field(default_factory=dict)
    pool: PoolConfig = field(default_factory=PoolConfig)
    held_out: PoolConfig = field(
        default_factory=lambda: PoolConfig(source=_test_source(), inputs=2000, appearances=1, seed=1)
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    iterations: int = 10_000
    batch: int = 64
    lr: float = 1.0e-3
    muon_lr: float = 0.0
    weight_decay: float = 1.0e-2
    warmup: int = 500
    decay: int = 3000
    ema: float = 0.999
    clip_norm: float = 1.0
    weight_uv: float = 1.0
    weight_joints: float = 10.0
    weight_verts: float = 10.0
    weight_aligned: float = 0.0
    weight_heat: float = 2.0
    bfloat16: bool = True
    threads: int = 1
    loaders: int = 1
    render_workers: int = 2
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        positive = ("iterations", "batch", "threads", "checkpoint_every")
        problems = [f"{name}: must be at least 1" for name in positive if getattr(self, name) < 1]
        if self.schema != 1:
            problems.append(f"schema: {self.schema} is not known, this library reads 1")
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.iterations:
            problems.append(f"warmup {self.warmup} and decay {self.decay} do not fit {self.iterations} iterations")
        if self.lr <= 0 or self.muon_lr < 0:
            problems.append(f"lr {self.lr}, muon_lr {self.muon_lr}: the first is above 0, the second 0 or more")
        if not 0 <= self.ema < 1:
            problems.append(f"ema: {self.ema} is no decay; 0 turns averaging off")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)
