"""The runs of the stand-in experiment: train a setting with a seed, measure it, keep its row; never do one twice."""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
from table4_data import Data

from pam_aug import registry
from pam_aug.config import config_hash, to_dict
from pam_aug.errors import ResumeMismatch, SchemaError
from pam_aug.evaluate.evaluation import EvaluationOptions, evaluate_estimator
from pam_aug.mix import open_mix
from pam_aug.recipes import load_recipe  # type: ignore[import-not-found]  # the recipes folder, under our own name
from pam_aug.shards.atomic import write_atomic
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import read_marker
from pam_aug.train.mixed import run_mixed
from pam_aug.train.mixed_config import read_recipe

__all__ = ["RECIPE", "SETTINGS", "Setting", "run_all", "run_setting"]

RECIPE = "table4_standin"
# How fast a run goes and what it logs on the way, not what it trains.
_RUNTIME = ("threads", "loaders", "checkpoint_every", "log_every", "tensorboard", "held_out", "rows")


@dataclass(frozen=True)
class Setting:
    """A row of the table: a row of the recipe, on the kept candidates or the random ones, with changes to it."""

    name: str
    title: str
    row: str
    random: bool = False
    overrides: tuple[str, ...] = ()


SETTINGS = (
    Setting("real", "100 % real", "real"),
    Setting("generated", "generated only", "generated"),
    Setting("generated+25", "generated + 25 % real", "generated+25"),
    Setting("generated+50", "generated + 50 % real", "generated+50"),
    Setting("generated+75", "generated + 75 % real", "generated+75"),
    Setting("generated+100", "generated + 100 % real", "generated+100"),
    # Not in the published table. Without it nobody could tell what the generated half adds to half of the real one.
    Setting("real-50", "50 % real alone", "real", overrides=("data.real_fraction=0.5",)),
    Setting("random", "random 75 % of the candidates", "generated", random=True),
)


def run_all(
    data: Data,
    seeds: tuple[int, ...],
    out: Path,
    work: Path,
    overrides: tuple[str, ...] = (),
    settings: tuple[Setting, ...] = SETTINGS,
    at_once: int = 1,
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every setting with every seed, a seed after the other: its row, and whether it was done before.

    `at_once` runs go side by side and share the cores, which for a network as small as this one beats one run on all.
    """
    which = [(setting, seed) for seed in seeds for setting in settings]
    if at_once == 1:
        for setting, seed in which:
            yield run_setting(setting, seed, data, out, work, overrides)
        return
    share = (f"threads={max(1, (os.cpu_count() or 1) // at_once)}", *overrides)
    one = partial(run_setting, data=data, out=out, work=work, overrides=share)
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(one, *pair) for pair in which]
        try:
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_setting(
    setting: Setting, seed: int, data: Data, out: Path, work: Path, overrides: tuple[str, ...] = ()
) -> tuple[dict[str, Any], bool]:
    """The row of one run, from `out`/rows where it stands there, else trained in `work`, measured and written.

    The seed draws the first weights, the order, the augmentation, and which real sequences a share keeps. Raises
    ResumeMismatch where the row that is there is of other data or another recipe.
    """
    mix = data.random if setting.random else data.build
    changes = [f"row={setting.row}", f"seed={seed}", f"data.seed={seed}", f"data.mix={mix}"]
    changes += [*setting.overrides, *overrides]
    recipe = load_recipe(RECIPE)
    name = f"{setting.name}-seed{seed}"
    path = out / "rows" / f"{name}.json"
    wanted = _identity(recipe, changes, mix, data.test)
    if path.is_file():
        return _stored(path, wanted), True
    folder = work / "runs" / name
    run_mixed(recipe, folder, changes)
    weights = folder / f"{RECIPE}.safetensors"
    trained = orjson.loads(weights.with_suffix(".json").read_bytes())
    began = time.perf_counter()
    estimator = registry.load("estimators", "simplehand")
    result = evaluate_estimator(data.test, estimator(estimator.Options(weights=str(weights))), EvaluationOptions())
    row = {
        "setting": setting.name,
        "seed": seed,
        "hands": _hands(folder),
        "iterations": trained["iterations"],
        "batch": trained["batch"],
        "training_s": trained["training_s"],
        "evaluation_s": round(time.perf_counter() - began),
        "root": result.root,
        "alignment": result.alignment,
        "joints": result.joints,
        "test": asdict(result.overall),
        "identity": wanted,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, orjson.dumps(row, option=orjson.OPT_INDENT_2) + b"\n")
    return row, False


def _stored(path: Path, wanted: str) -> dict[str, Any]:
    try:
        row = orjson.loads(path.read_bytes())
        same = row["identity"] == wanted
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise SchemaError(f"{path}: is no row of this experiment ({error!r}); remove it", path=str(path)) from error
    if not same:
        raise ResumeMismatch(
            f"{path}: was measured on other data or with another recipe; take another --out, or remove the old rows",
            path=str(path),
        )
    return row


def _identity(recipe: dict[str, Any], changes: list[str], mix: Path, test: Path) -> str:
    """A hash of everything that decides a row, wherever the folders are: the configuration, and the bytes of shards."""
    config = to_dict(read_recipe(recipe, changes))
    config["data"].pop("mix")
    markers = [read_marker(path) for folder in (mix, test) for path in sorted((folder / "shards").glob("*.tar"))]
    hashes = "".join(marker["sha256"] for marker in markers if marker)
    kept = {name: value for name, value in config.items() if name not in _RUNTIME}
    return config_hash({"config": kept, "shards": hashlib.sha256(hashes.encode()).hexdigest()})


def _hands(folder: Path) -> dict[str, int]:
    """How many hands of each kind a run could read."""
    mix = read_mix(folder)
    items, _ = open_mix(mix, folder)
    return {source.name: len(found) for source, found in zip(mix.sources, items) if source.share != "0"}
