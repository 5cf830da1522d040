"""What a build is made of: the configuration's schema, and what of it decides the pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pam_aug import registry
from pam_aug.build.hand_crop import CropOptions, HandCrops
from pam_aug.config import resolve, to_dict
from pam_aug.errors import AssetMissing, ConfigError
from pam_aug.mix_order import parse_ratio
from pam_aug.rollouts.screening import ScreenConfig
from pam_aug.score import COMBINE_RULES, combined_name
from pam_aug.select import SelectConfig

__all__ = [
    "BuildConfig",
    "GenerateConfig",
    "MixConfig",
    "ScoreConfig",
    "ScreenSection",
    "ShardsConfig",
    "check",
    "open_backend",
    "open_converter",
    "open_judges",
    "pixel_fields",
]


@dataclass(frozen=True)
class GenerateConfig:
    generator: str = "rendered"
    candidates: int = 30  # per input, as the PAM paper samples them
    run_seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # the generator's own


@dataclass(frozen=True)
class ScoreConfig:
    """Who judges: an estimator's name and its options, or a list of names that judge together, and options by name."""

    estimator: Any = "simplehand"
    options: dict[str, Any] = field(default_factory=dict)
    combine: str = "mean"  # how several estimators' errors become one: "mean" or "worst"; recorded where there are

    def judges(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and options of each estimator, in order. Raises ConfigError for what names none."""
        if isinstance(self.estimator, str):
            return [(self.estimator, self.options)]
        names = self.estimator
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"score.estimator: {names!r}; give a name, or a list of names that judge together")
        if len(set(names)) != len(names):
            raise ConfigError(f"score.estimator: {names!r} names an estimator twice")
        strangers = sorted(set(self.options) - set(names))
        if strangers:
            raise ConfigError(
                f"score.options.{strangers[0]}: where several estimators judge, options are given by estimator: "
                + ", ".join(f"score.options.{name}" for name in names)
            )
        return [(name, self.options.get(name) or {}) for name in names]

    @property
    def name(self) -> str:
        """What the candidates table calls the judge."""
        return combined_name([name for name, _ in self.judges()], self.combine)


@dataclass(frozen=True)
class ShardsConfig:
    inputs_per_shard: int = 8  # synthetic shards: whatever is kept of a fixed slice of inputs
    samples_per_shard: int = 256  # real shards
    depth: bool = False  # <key>.depth.png, 16-bit millimetres
    depth_from: str = "drawn"  # from the label, or "sensor": the real images' own, copied from the dataset
    seg: bool = False  # <key>.seg.png, 8-bit ids
    keep_rejected: bool = True

    @property
    def sensor_depth(self) -> bool:
        """Whether real images get the depth that the dataset measured."""
        return self.depth and self.depth_from == "sensor"


@dataclass(frozen=True)
class MixConfig:
    ratio: str = "0.5"  # share of real hands in what an estimator reads
    real_fraction: str = "1"  # share of the real sequences that is kept at all
    seed: int = 0
    when_short: str = "repeat"  # too few synthetic samples: "repeat" them or "stop" the epoch


@dataclass(frozen=True)
class ScreenSection(ScreenConfig):
    """With `on`, an input that the limits refuse is left out before anything is generated from it."""

    on: bool = False


@dataclass(frozen=True)
class BuildConfig:
    """A build. `source` and `real` name a converter and hold that converter's own options and CropOptions.

    `real` may instead be `{shards: DIR}` (shards converted before). Empty, it is the source's own images where it has
    any, and the rendered stand-in where it has none.
    """

    schema: int = 1
    source: dict[str, Any] = field(default_factory=lambda: {"converter": "demo-rollouts"})
    inputs: int = -1  # how many of the source's inputs are generated from, evenly spread; -1 takes all
    real: dict[str, Any] = field(default_factory=dict)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    screen: ScreenSection = field(default_factory=ScreenSection)
    mix: MixConfig = field(default_factory=MixConfig)
    stop_after_failures: int = 100  # images in a row, in one worker, that end a build; 0 never does


# They may change between two runs on one folder.
_NOT_PIXELS = ("mix", "stop_after_failures")


def pixel_fields(config: BuildConfig) -> dict[str, Any]:
    """The part of a configuration that decides which bytes the shards hold."""
    tree = to_dict(config) | {"select": config.select.rule()}
    if len(config.score.judges()) == 1:
        del tree["score"]["combine"]
    if config.shards.depth_from == "drawn":  # what builds did before there was a choice
        del tree["shards"]["depth_from"]
    del tree["screen"]["cache"]
    if not config.screen.on:
        del tree["screen"]
    return {f.name: tree[f.name] for f in fields(config) if f.name in tree and f.name not in _NOT_PIXELS}


def open_converter(section: Mapping[str, Any], where: str) -> Any:
    """The converter that a `source` or `real` section names, opened with its options checked.

    A section with `crop: hand` is opened as HandCrops of that converter.
    """
    options = dict(section)
    crop = resolve(
        CropOptions, {f.name: options.pop(f.name) for f in fields(CropOptions) if f.name in options}, where=where
    )
    crop.check(where)
    if not crop.crop and crop != CropOptions():
        raise ConfigError(f"{where}: crop_size and crop_enlarge mean nothing without crop: hand", field=where)
    name = options.pop("converter", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}.converter: name one of {', '.join(registry.names('converters'))}", field=where)
    converter = registry.load("converters", name)
    source = converter(resolve(converter.Options, options, where=f"{where} ({name})"))
    return HandCrops(source, crop) if crop.crop else source


def open_backend(
    kind: registry.Kind, name: str, options: Mapping[str, Any], where: str, missing: list[str] | None = None
) -> Any:
    """The generator or estimator of a name, with its options checked and everything it needs at hand.

    Raises AssetMissing with the whole list of missing files and packages before any work starts; where a list is given
    as `missing`, they are added to it instead.
    """
    backend = registry.load(kind, name)
    made = backend(resolve(backend.Options, options, where=where))
    needs = made.requires()
    if needs and missing is None:
        raise AssetMissing("\n  - ".join([f"{name} cannot run here, it needs:", *needs]), missing=needs)
    if missing is not None:
        missing += [f"{name} needs {need}" for need in needs]
    return made


def open_judges(score: ScoreConfig, missing: list[str] | None = None) -> list[Any]:
    """The estimators that judge, as `open_backend` opens each."""
    judges = score.judges()
    where = "score.options" if len(judges) == 1 else "score.options.{}"
    return [open_backend("estimators", name, options, where.format(name), missing) for name, options in judges]


def check(config: BuildConfig) -> None:
    """Values that the types do not rule out. Raises ConfigError with all problems."""
    problems: list[str] = []
    if config.schema != 1:
        problems.append(f"schema: {config.schema} is not known, this library reads 1")
    if not 1 <= config.generate.candidates <= 100:
        problems.append(
            f"generate.candidates: {config.generate.candidates} is outside 1 to 100 (a key ends in two digits)"
        )
    if config.inputs == 0 or config.inputs < -1:
        problems.append(f"inputs: {config.inputs}; give a positive number, or -1 for all")
    if config.stop_after_failures < 0:
        problems.append(f"stop_after_failures: {config.stop_after_failures}; give a positive number, or 0 for no stop")
    for name in ("inputs_per_shard", "samples_per_shard"):
        if getattr(config.shards, name) < 1:
            problems.append(f"shards.{name}: must be at least 1")
    if config.shards.depth_from not in ("drawn", "sensor"):
        problems.append(f"shards.depth_from (--depth): {config.shards.depth_from!r}; choose drawn or sensor")
    elif config.shards.depth_from == "sensor" and not config.shards.depth:
        problems.append("shards.depth_from: sensor means nothing without shards.depth: true")
    if config.mix.when_short not in ("repeat", "stop"):
        problems.append(f'mix.when_short: {config.mix.when_short!r} is neither "repeat" nor "stop"')
    if config.score.combine not in COMBINE_RULES:
        problems.append(f"score.combine: {config.score.combine!r}; choose one of {', '.join(COMBINE_RULES)}")
    for name in ("ratio", "real_fraction"):
        try:
            parse_ratio(getattr(config.mix, name))
        except ConfigError as error:
            problems.append(f"mix.{name}: {error}")
    if problems:
        raise ConfigError("\n  - ".join(["the configuration cannot be run:", *problems]), problems=problems)
