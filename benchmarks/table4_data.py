"""The data of the stand-in experiment: real, test and generated parts, the filter's control, and that none overlap."""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pam_aug.build.config import BuildConfig
from pam_aug.build.layout import build_file, candidates_path, rejected_path, shards_folder
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError
from pam_aug.recipes import load_recipe, recipe_names  # type: ignore[import-not-found]  # the recipes folder
from pam_aug.schema import Sample
from pam_aug.seeds import derived_seed
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_candidates, write_mix
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.writer import ShardWriter, is_committed
from pam_aug.train.config import TrainConfig

__all__ = [
    "FULL",
    "QUICK",
    "SEEDS",
    "Data",
    "Found",
    "Sizes",
    "check_found",
    "check_sections",
    "draw_random",
    "judge_sections",
    "make_data",
    "sections",
]

SEEDS = {"real": 41, "test": 42, "generated": 43}
"""The sources' seeds. A seed of `demo-real` is another twelve people, and everything else is drawn from it, too."""


@dataclass(frozen=True)
class Sizes:
    """How many images: `real` and `test` ones in sequences of `frames`, `inputs` rollouts of `candidates` each."""

    real: int
    test: int
    frames: int
    inputs: int
    candidates: int
    image_px: int
    spp: int


# The published proportion: PAM generated 207,000 images beside DexYCB's 407,000. Of 4 candidates the filter keeps 3.
FULL = Sizes(real=2400, test=800, frames=8, inputs=408, candidates=4, image_px=192, spp=9)
QUICK = Sizes(real=8, test=4, frames=2, inputs=3, candidates=4, image_px=64, spp=2)


@dataclass(frozen=True)
class Data:
    """Folders that training and evaluation read: the build (real and kept candidates), the random share, the test."""

    build: Path
    random: Path
    test: Path


@dataclass
class Found:
    """What the samples of a part show: keys, object meshes and hand shapes."""

    keys: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    hands: set[bytes] = field(default_factory=set)

    def add(self, sample: Sample) -> None:
        self.keys.add(sample.key)
        self.objects |= {thing.mesh for thing in sample.objects}
        self.hands |= {np.asarray(hand.betas, np.float32).tobytes() for hand in sample.hands}


def sections(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """The converter section of each part, as a build's configuration has it.

    The generated part's cameras look from above a table, as the stand-in's do; a user would choose them so.
    """
    size = [sizes.image_px, sizes.image_px]
    traced = {"converter": "demo-real", "frames": sizes.frames, "size": size, "spp": sizes.spp}
    rollouts = {"converter": "demo-rollouts", "split": "test", "views": "table", "size": size, "fill": [0.4, 0.65]}
    return {
        "real": {**traced, "count": sizes.real, "seed": SEEDS["real"]},
        "test": {**traced, "count": sizes.test, "seed": SEEDS["test"]},
        "generated": {**rollouts, "count": sizes.inputs, "seed": SEEDS["generated"]},
    }


def judge_sections() -> dict[str, dict[str, Any]]:
    """What the bundled estimator's recipes render: to train on, and to be measured on."""
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in recipe_names() if name.startswith("simplehand_")):
        config = resolve(TrainConfig, load_recipe(name), where=f"recipe {name}")
        for part, pool in (("pool", config.pool), ("held_out", config.held_out)):
            found[f"{name}: {part}"] = {**pool.source, "count": pool.inputs, "seed": pool.seed}
    return found


def check_sections(parts: dict[str, dict[str, Any]], judge: dict[str, dict[str, Any]]) -> None:
    """Raises ConfigError where two parts, or a part and the judge's renders, are drawn from one source, split and seed:
    then they would show the same scenes."""

    def drawn_from(section: dict[str, Any]) -> tuple[str, str, int]:
        return section["converter"], section.get("split", ""), section["seed"]

    pairs = [*combinations(parts.items(), 2), *((part, other) for part in parts.items() for other in judge.items())]
    for (name, section), (other, theirs) in pairs:
        if drawn_from(section) == drawn_from(theirs):
            raise ConfigError(f"{name} and {other} are both drawn from {drawn_from(section)}; give one another seed")


def check_found(parts: dict[str, Found]) -> None:
    """Raises ConfigError where two parts share a key, an object or a hand's shape."""
    for (name, found), (other, theirs) in combinations(parts.items(), 2):
        for what in ("keys", "objects", "hands"):
            shared = getattr(found, what) & getattr(theirs, what)
            if shared:
                raise ConfigError(f"{name} and {other} share {len(shared)} {what}; they must not: give other seeds")


def make_data(sizes: Sizes, folder: Path, workers: int) -> Data:
    """The experiment's data in `folder`, made once: the same call goes on where a killed one stopped, or finds them.

    Raises ConfigError where parts overlap, ResumeMismatch where the folder holds data of other sizes.
    """
    parts = sections(sizes)
    check_sections(parts, judge_sections())
    data = Data(folder / "build", folder / "random", folder / "test")
    demo = load_recipe("demo")
    shards = {"inputs_per_shard": 24, "samples_per_shard": 8 * sizes.frames}
    generate = {**demo["generate"], "candidates": sizes.candidates}
    tree = {**demo, "source": parts["generated"], "real": parts["real"], "generate": generate, "shards": shards}
    run_build(resolve(BuildConfig, tree, where="the experiment's build"), data.build, workers=workers)
    test = resolve(BuildConfig, {"source": parts["test"], "shards": shards}, where="the experiment's test part")
    run_build(test, data.test, ("real",), workers)
    draw_random(data.build, data.random)
    check_found({"real": _read(data.build, "real"), "generated": _read(data.build, "syn"),
                 "test": _read(data.test, "real")})  # fmt: skip
    return data


def draw_random(build: Path, out: Path) -> None:
    """The control of the filter: of each input as many candidates as the filter kept, drawn at random from all.

    Raises ResumeMismatch where `out` was drawn from another build.
    """
    sources = [shard.sha256 for shard in collect_shards(shards_folder(build), "syn", build)]
    hands = orjson.loads(build_file(build).read_bytes())["identity"]["hands"]
    record = {"identity": {"hands": hands}, "drawn_from": sources}
    if build_file(out).is_file() and orjson.loads(build_file(out).read_bytes()) != record:
        raise ResumeMismatch(f"{out}: was drawn from other candidates than those of {build}; remove it", path=str(out))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(build_file(out), orjson.dumps(record) + b"\n")
    for path in sorted(shards_folder(build).glob("syn-*.tar")):
        target = shards_folder(out) / path.name
        if not is_committed(target):
            _draw_shard(build, path, target)
    write_mix(out / "mix.json", Mix((MixSource("synthetic", "1", collect_shards(shards_folder(out), "syn", out)),)))


def _draw_shard(build: Path, path: Path, target: Path) -> None:
    number = int(path.stem.removeprefix("syn-"))
    inputs: dict[str, list[Any]] = {}
    for row in read_candidates(candidates_path(build, number)):
        inputs.setdefault(row.input_key, []).append(row)
    with (
        ShardReader(path) as kept,
        ShardReader(rejected_path(build, number)) as rejected,
        ShardWriter(target, "syn") as shard,
    ):
        places = {key: (reader, i) for reader in (kept, rejected) for i, key in enumerate(reader.keys)}
        for key, rows in inputs.items():
            there = sorted(row.key for row in rows if row.key in places)
            count = sum(row.verdict.kept for row in rows)
            if count > len(there):
                raise SchemaError(f"{build}: the candidates of {key} are not all there; build with keep_rejected")
            rng = np.random.default_rng(derived_seed("table4-random", key))
            for chosen in sorted(rng.permutation(len(there))[:count]):
                reader, i = places[there[chosen]]
                shard.add(reader.sample(i), reader.image_bytes(i), reader.suffix(i))


def _read(folder: Path, kind: str) -> Found:
    found = Found()
    for path in sorted(shards_folder(folder).glob(f"{kind}-*.tar")):
        with ShardReader(path) as reader:
            for i in range(len(reader)):
                found.add(reader.sample(i))
    return found
