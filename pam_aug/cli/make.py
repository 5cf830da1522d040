"""Commands that make data: build, generate, convert, screen, rollout, and what a build would take."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pam_aug.cli.options import (
    Candidates,
    DryRun,
    Estimator,
    Generator,
    Inputs,
    Json,
    Out,
    Recipe,
    Set,
    Source,
    Workers,
    judges,
    named_options,
    numbers,
    overrides_of,
    recipe_folder,
    show,
)

__all__ = ["build", "convert", "generate", "plan_build", "rollout", "screen"]


def build(
    recipe: Recipe = "demo",
    out: Out = Path("out"),
    ratio: Annotated[str | None, typer.Option(help='Share of real samples in the mix: "0.5", "1/3".')] = None,
    source: Source = None,
    inputs: Inputs = None,
    candidates: Candidates = None,
    real: Annotated[
        Path | None, typer.Option(help="Folder of converted real shards, where the source has no images.")
    ] = None,
    real_fraction: Annotated[str | None, typer.Option(help="Share of the real sequences that is kept.")] = None,
    generator: Generator = None,
    estimator: Estimator = None,
    workers: Workers = -1,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Generate, score, select, pack and mix: shards that train an estimator, and a report."""
    overrides = overrides_of(
        {
            "mix.ratio": ratio,
            "mix.real_fraction": real_fraction,
            "source.converter": source,
            "inputs": inputs,
            "generate.candidates": candidates,
            "generate.generator": generator,
            "real": None if real is None else {"shards": str(real)},
            "score.estimator": judges(estimator),
        },
        set_,
    )
    _build(recipe, overrides, out, ("real", "synthetic"), workers, dry_run, as_json)


def convert(
    context: typer.Context,
    converter: Annotated[str, typer.Argument(help="The source's converter.")],
    out: Out = Path("shards"),
    crop: Annotated[str | None, typer.Option(help='"hand": a square crop per hand instead of whole images.')] = None,
    crop_size: Annotated[int | None, typer.Option(help="Width and height of a crop, pixels (256).")] = None,
    crop_enlarge: Annotated[float | None, typer.Option(help="Crop side over the joints' box (1.5).")] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="[drawn|sensor]",
            help="Write depth beside each image: drawn from its label, or the dataset's own as it was measured.",
        ),
    ] = None,
    seg: Annotated[bool, typer.Option("--seg", help="Write a segmentation beside each image.")] = False,
    workers: Workers = -1,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Convert a dataset with images into shards. The converter's own options are given as --NAME VALUE."""
    options = [f"source.{option}" for option in named_options(context.args)]
    named = {
        "source.converter": converter,
        "source.crop": crop,
        "source.crop_size": crop_size,
        "source.crop_enlarge": crop_enlarge,
        "shards.depth": None if depth is None else True,
        "shards.depth_from": depth,
        "shards.seg": seg or None,
    }
    overrides = [*overrides_of(named, options), *(set_ or [])]
    _build(None, overrides, out, ("real",), workers, dry_run, as_json)


def screen(
    context: typer.Context,
    converter: Annotated[str, typer.Argument(help="The source's converter.")],
    out: Annotated[Path, typer.Option("--out", help="The table, a row per input.")] = Path("screening.parquet"),
    preset: Annotated[str, typer.Option(help="grip, deepsimho, or none: nothing is simulated.")] = "grip",
    inputs: Annotated[int, typer.Option(help="How many inputs, evenly spread; -1 takes all.")] = -1,
    workers: Workers = -1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a limit: max_penetration_mm=5.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a source's contact, penetration and stability. The converter's own options are given as --NAME VALUE."""
    from pam_aug.build.screen import screen_named, write_screening

    result = screen_named(converter, named_options(context.args), preset, set_ or [], inputs, workers)
    write_screening(out, result.rows)
    typer.echo(json.dumps({**result.as_dict(), "table": str(out)}) if as_json else f"{result.as_text()}\n{out}")


def generate(
    recipe: Recipe = "demo",
    out: Out = Path("out"),
    source: Source = None,
    inputs: Inputs = None,
    candidates: Candidates = None,
    generator: Generator = None,
    estimator: Estimator = None,
    workers: Workers = -1,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Generate, score, select and pack the synthetic half only."""
    named: dict[str, Any] = {"source.converter": source, "inputs": inputs, "generate.candidates": candidates}
    named |= {"generate.generator": generator, "score.estimator": judges(estimator)}
    overrides = overrides_of(named, set_)
    _build(recipe, overrides, out, ("synthetic",), workers, dry_run, as_json)


def plan_build(
    recipe: Recipe = "demo",
    source: Source = None,
    inputs: Inputs = None,
    candidates: Candidates = None,
    generator: Generator = None,
    estimator: Estimator = None,
    workers: Workers = -1,
    gpu: Annotated[str, typer.Option(help="For flux: h100, h200, a100, l40s, 4090, or dense bf16 TFLOP/s.")] = "h100",
    achieved: Annotated[float, typer.Option(help="Share of that rate which is reached; an assumption.")] = 0.5,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print what a build will take: images, bytes, seconds, memory, and what each figure rests on; a short trial runs.

    Exit code 2 where files are missing that the build needs; the plan is printed all the same.
    """
    from pam_aug.build.config import BuildConfig
    from pam_aug.build.plan import estimate, parse_gpu
    from pam_aug.config import resolve

    named: dict[str, Any] = {"source.converter": source, "inputs": inputs, "generate.candidates": candidates}
    named |= {"generate.generator": generator, "score.estimator": judges(estimator)}
    tree = recipe_folder().load_recipe(recipe)
    config = resolve(BuildConfig, tree, overrides_of(named, set_), where=f"recipe {recipe}")
    result = estimate(config, workers=workers, gpu=parse_gpu(gpu), achieved=achieved)
    show(result, as_json)
    if result.missing:
        raise typer.Exit(2)


def rollout(
    meshes: Annotated[list[str], typer.Option("--meshes", "--mesh", help="A mesh file or a folder. May be repeated.")],
    out: Out = Path("rollouts"),
    seeds: Annotated[int, typer.Option(help="Rollouts per object.")] = 1,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    tries: Annotated[int, typer.Option(help="Grasps that a seed may try.")] = 8,
    scale: Annotated[float, typer.Option(help="Takes mesh units to metres: 0.001 for millimetres.")] = 1.0,
    mass_kg: Annotated[float, typer.Option(help="Mass of every object; below 0: from its volume.")] = -1.0,
    pattern: Annotated[str, typer.Option(help="Which files of a folder are meshes.")] = "**/*",
    start: Annotated[str, typer.Option(help="JSON with T_world_obj, T_world_wrist and hand_pose to grasp with.")] = "",
    target: Annotated[str, typer.Option(help="JSON with T_world_obj where the object is to be set down.")] = "",
    side: Annotated[str, typer.Option(help="right or left hand.")] = "right",
    betas: Annotated[str, typer.Option(help='The hand\'s shape, up to 10 values: "1.5,-0.5".')] = "",
    shape_spread: Annotated[float, typer.Option(help="Spread of shapes that seeds draw; 0: always the same.")] = 0.0,
    video: Annotated[bool, typer.Option("--video", help="Film every success: SEED.mp4 beside its archive.")] = False,
    workers: Workers = -1,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Simulate grasps of meshes: approach, close, lift, carry, set down. Archives that `rollout-npz` reads."""
    from pam_aug.build.rollouts import RolloutJob, roll_out

    job = RolloutJob(
        tuple(meshes), str(out), seeds, first_seed, tries, scale, mass_kg, pattern=pattern, start=start, target=target,
        side=side, betas=numbers(betas, "--betas"), shape_spread=shape_spread, video=video,
    )  # fmt: skip
    table = roll_out(job, workers, dry_run)
    show(table, as_json)


def _build(
    recipe: str | None,
    overrides: list[str],
    out: Path,
    parts: tuple[str, ...],
    workers: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    from pam_aug.build.config import BuildConfig
    from pam_aug.build.run import plan, run_build
    from pam_aug.config import resolve

    tree = recipe_folder().load_recipe(recipe) if recipe else {}
    config = resolve(BuildConfig, tree, overrides, where=f"recipe {recipe}" if recipe else "")
    result = plan(config, parts) if dry_run else run_build(config, out, parts, workers)
    show(result, as_json)
