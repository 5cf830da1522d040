"""The command line. Commands are thin; nothing heavy is imported before a command needs it."""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pam_aug.errors import ConfigError, PamAugError

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn hand-object datasets and rollouts into labelled, filtered, exactly mixed training shards.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="List, print and copy the bundled recipes.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
export_app = typer.Typer(no_args_is_help=True, help="Write a build for other estimators.", rich_markup_mode=None)
app.add_typer(export_app, name="export")

Recipe = Annotated[str, typer.Argument(help="A bundled recipe's name or a YAML file.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder. The same command on the same folder resumes.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=c. May be repeated.")]
Workers = Annotated[int, typer.Option(help="Worker processes; -1 takes all cores, 0 works in this process.")]
Inputs = Annotated[int | None, typer.Option(help="How many inputs are generated from; -1 takes all.")]
Candidates = Annotated[int | None, typer.Option(help="Candidates per input.")]
Source = Annotated[
    str | None, typer.Option(help="The source's converter; its options go through --set source.NAME=VALUE.")
]
Estimator = Annotated[
    str | None, typer.Option(help="Who judges: simplehand, hamer, …; names joined by commas judge together.")
]
Generator = Annotated[str | None, typer.Option(help="Who paints: rendered, flux, …")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


@app.command()
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
    overrides = _overrides(
        {
            "mix.ratio": ratio,
            "mix.real_fraction": real_fraction,
            "source.converter": source,
            "inputs": inputs,
            "generate.candidates": candidates,
            "generate.generator": generator,
            "real": None if real is None else {"shards": str(real)},
            "score.estimator": _judges(estimator),
        },
        set_,
    )
    _build(recipe, overrides, out, ("real", "synthetic"), workers, dry_run, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def convert(
    context: typer.Context,
    converter: Annotated[str, typer.Argument(help="The source's converter.")],
    out: Out = Path("shards"),
    crop: Annotated[str | None, typer.Option(help='"hand": a square crop per hand instead of whole images.')] = None,
    crop_size: Annotated[int | None, typer.Option(help="Width and height of a crop, pixels (256).")] = None,
    crop_enlarge: Annotated[float | None, typer.Option(help="Crop side over the joints' box (1.5).")] = None,
    depth: Annotated[bool, typer.Option("--depth", help="Write a depth map beside each image.")] = False,
    seg: Annotated[bool, typer.Option("--seg", help="Write a segmentation beside each image.")] = False,
    workers: Workers = -1,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Convert a dataset with images into shards. The converter's own options are given as --NAME VALUE."""
    options = [f"source.{option}" for option in _named_options(context.args)]
    named = {
        "source.converter": converter,
        "source.crop": crop,
        "source.crop_size": crop_size,
        "source.crop_enlarge": crop_enlarge,
        "shards.depth": depth or None,
        "shards.seg": seg or None,
    }
    overrides = [*_overrides(named, options), *(set_ or [])]
    _build(None, overrides, out, ("real",), workers, dry_run, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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

    result = screen_named(converter, _named_options(context.args), preset, set_ or [], inputs, workers)
    write_screening(out, result.rows)
    typer.echo(json.dumps({**result.as_dict(), "table": str(out)}) if as_json else f"{result.as_text()}\n{out}")


@app.command()
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
    named |= {"generate.generator": generator, "score.estimator": _judges(estimator)}
    overrides = _overrides(named, set_)
    _build(recipe, overrides, out, ("synthetic",), workers, dry_run, as_json)


@app.command("plan")
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
    named |= {"generate.generator": generator, "score.estimator": _judges(estimator)}
    config = resolve(BuildConfig, _recipes().load_recipe(recipe), _overrides(named, set_), where=f"recipe {recipe}")
    result = estimate(config, workers=workers, gpu=parse_gpu(gpu), achieved=achieved)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())
    if result.missing:
        raise typer.Exit(2)


@app.command()
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
    workers: Workers = -1,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Simulate grasps of meshes: approach, close, lift, carry, set down. Archives that `rollout-npz` reads."""
    from pam_aug.build.rollouts import RolloutJob, roll_out

    job = RolloutJob(
        tuple(meshes), str(out), seeds, first_seed, tries, scale, mass_kg, pattern=pattern, start=start, target=target
    )
    table = roll_out(job, workers, dry_run)
    typer.echo(json.dumps(table.as_dict()) if as_json else table.as_text())


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="The output folder of a build.")]) -> None:
    """Write a static HTML page: contact sheets of kept and rejected candidates, score histograms, counts."""
    from pam_aug.report.page import write_report

    typer.echo(write_report(folder))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder with shards/.")],
    rebuild: Annotated[bool, typer.Option(help="Write derived files (indexes, manifest) anew.")] = False,
    as_json: Json = False,
) -> None:
    """Re-hash every shard and check schema, counts and keys. Exit code 4 where something is damaged."""
    from pam_aug.shards.verify import verify as verify_folder

    report = verify_folder(folder, rebuild=rebuild)
    typer.echo(json.dumps(report.as_dict()) if as_json else report.as_text())
    if report.damaged:
        raise typer.Exit(4)


@app.command()
def repair(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove what stopped builds left behind: temporary files, uncommitted shards, stale work. Never a finished one."""
    from pam_aug.shards.repair import repair as repair_folder

    report = repair_folder(folder, dry_run)
    typer.echo(json.dumps(report.as_dict()) if as_json else report.as_text())


@app.command()
def migrate(
    folder: Annotated[Path, typer.Argument(help="A folder with shards that another version of this library wrote.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder; the same command resumes. The old one stays.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring shards of an older schema version to this library's, verified before and after. Says where none are."""
    from pam_aug.build.migrate import migrate as migrate_folder
    from pam_aug.build.progress import Progress

    todo = migrate_folder(folder, out, dry_run=True)
    with Progress(todo.samples, "samples") as bar:
        result = migrate_folder(folder, out, dry_run, bar.add)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@app.command()
def select(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build that kept its rejected samples.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder; the same command resumes. The build stays.")],
    preset: Annotated[
        str | None,
        typer.Option(help="default, pam, handbooster-dexycb, handbooster-ho3d; without it, the build's own rule."),
    ] = None,
    workers: Workers = -1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override the rule: gate=25, reject=1/3.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Select again with another rule from a build's candidates, without generating or scoring any."""
    from pam_aug.build.reselect import plan_reselection, reselect

    if dry_run:
        result = plan_reselection(folder, preset, set_ or [])
    else:
        result = reselect(folder, out, preset, set_ or [], workers)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@app.command()
def mix(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    ratio: Annotated[str | None, typer.Option(help='Share of real samples: "0.5", "1/3".')] = None,
    materialize: Annotated[
        Path | None, typer.Option(help="Write the mix as shards into this folder; mix.json stays as it is.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How many epochs are written.")] = 1,
    window_shards: Annotated[
        int | None, typer.Option(help="Shuffle this many shards at a time, for slow disks and URLs; 0 shuffles all.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give a build another ratio or shuffle (rewrites mix.json, copies nothing), or write its mix as shards."""
    from pam_aug import materialize as mixing
    from pam_aug.build.progress import Progress

    if materialize is not None and window_shards is None:
        todo = mixing.materialize(folder, materialize, ratio, epochs, dry_run=True)
        with Progress(todo.samples, "samples") as bar:
            result = mixing.materialize(folder, materialize, ratio, epochs, dry_run=dry_run, progress=bar.add)
    elif materialize is None and (ratio is not None or window_shards is not None):
        result = mixing.change_mix(folder, ratio, window_shards, dry_run)
    else:
        raise ConfigError("mix: give --ratio R or --window-shards N for another mix, or --materialize OUT to write it")
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A bundled training recipe's name or a YAML file.")],
    out: Out = Path("runs/train"),
    set_: Set = None,
) -> None:
    """Train an estimator, or PAM's ControlNets, from a recipe. The same command on the same folder resumes."""
    from pam_aug.train import run

    run(_recipes().load_recipe(recipe), out, overrides=set_ or [])


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A build's or conversion's folder, or a folder of shards.")],
    estimator: Annotated[str, typer.Option(help="Who is evaluated; its options go through --set NAME=VALUE.")] = (
        "simplehand"
    ),
    predictions: Annotated[Path | None, typer.Option(help="A result file that is evaluated instead.")] = None,
    form: Annotated[str, typer.Option("--format", help="Its form: freihand (.json) or dexycb.")] = "",
    part: Annotated[str, typer.Option(help="all, real or synthetic shards.")] = "all",
    root: Annotated[int, typer.Option(help="Root joint of unaligned errors: 0 the wrist, 9 the middle base.")] = 0,
    alignment: Annotated[str, typer.Option(help="proper, or freihand, which allows reflections.")] = "proper",
    limit: Annotated[int, typer.Option(help="The first hands only; -1 takes all.")] = -1,
    mano_dir: Annotated[Path | None, typer.Option(help="MANO files, where labels were made with MANO.")] = None,
    freihand: Annotated[Path | None, typer.Option(help="Write FreiHAND's pred.json here.")] = None,
    dexycb: Annotated[Path | None, typer.Option(help="Write DexYCB's result file here.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Pose errors of an estimator, or of a result file, against shards' labels, per side, object and occlusion."""
    from pam_aug import registry
    from pam_aug.build.config import open_backend
    from pam_aug.build.progress import Progress
    from pam_aug.config import resolve, to_dict
    from pam_aug.evaluate import evaluation as pose
    from pam_aug.evaluate.labels import count_hands

    options = pose.EvaluationOptions(part, limit, root, alignment, mano_dir, freihand, dexycb)
    if predictions is not None:
        result = pose.evaluate_predictions(folder, predictions, form, options)
    else:
        given = to_dict(resolve(registry.load("estimators", estimator).Options, {}, set_ or [], where="--set"))
        judge = open_backend("estimators", estimator, given, "--set")
        with Progress(count_hands(folder, part, limit), "hands") as bar:
            result = pose.evaluate_estimator(folder, judge, options, bar.add)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@export_app.command("simplehand")
def export_simplehand(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    mano_dir: Annotated[Path | None, typer.Option(help="MANO files, where labels were made with MANO.")] = None,
    as_json: Json = False,
) -> None:
    """A .jpg and a .json per hand and the list of images, as SimpleHand's training reads them. Left hands mirrored."""
    from pam_aug.export.simplehand import export_simplehand as export

    result = export(folder, out, mano_dir)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@export_app.command("coco")
def export_coco(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """Images and one JSON file of hand keypoints in COCO's format."""
    from pam_aug.export.coco import export_coco as export

    result = export(folder, out)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@export_app.command("hamer")
def export_hamer(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """HaMeR's training tars. Their labels are pickles, because HaMeR reads those; this library never does."""
    from pam_aug.export.hamer import export_hamer as export

    result = export(folder, out)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


@app.command("fetch-weights")
def fetch_weights(
    name: Annotated[str | None, typer.Argument(help="One file; without it, all.")] = None,
    as_json: Json = False,
) -> None:
    """Say where to get the files that we may not ship and where to put them, and check those that are there.

    Nothing is downloaded. Exit code 4 where a file differs from the published one, 2 where the named one is missing.
    """
    from pam_aug.estimators.weights import inspect_weights

    reports = inspect_weights([name] if name else [])
    text = "\n\n".join(report.as_text() for report in reports)
    typer.echo(json.dumps({"weights": [report.as_dict() for report in reports]}) if as_json else text)
    states = {report.state for report in reports}
    if "differs" in states or (name and "missing" in states):
        raise typer.Exit(4 if "differs" in states else 2)


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """List the bundled recipes, each with its first line."""

    rows = {name: _recipes().recipe_text(name).splitlines()[0].lstrip("# ") for name in _recipes().recipe_names()}
    typer.echo(json.dumps(rows) if as_json else "\n".join(f"{name:24} {line}" for name, line in rows.items()))


@recipes_app.command("show")
def recipes_show(name: str) -> None:
    """Print a bundled recipe."""

    typer.echo(_recipes().recipe_text(name), nl=False)


@recipes_app.command("cp")
def recipes_cp(name: str, folder: Annotated[Path, typer.Argument(help="Where to copy it.")] = Path(".")) -> None:
    """Copy a bundled recipe, to be edited and run by its path. An existing file is not overwritten."""

    path = folder / f"{name}.yaml" if folder.is_dir() else folder
    text = _recipes().recipe_text(name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file", path=str(path)) from error
    typer.echo(path)


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

    tree = _recipes().load_recipe(recipe) if recipe else {}
    config = resolve(BuildConfig, tree, overrides, where=f"recipe {recipe}" if recipe else "")
    result = plan(config, parts) if dry_run else run_build(config, out, parts, workers)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


def _named_options(arguments: list[str]) -> list[str]:
    """`--near-object-m 0.1` or `--near-object-m=0.1` as "near_object_m=0.1"; an option without a value is a switch."""
    named: list[str] = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise ConfigError(f"{name!r}: a converter's options are given as --NAME VALUE", argument=name)
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        named.append(f"{name[2:].replace('-', '_')}={value}")
    return named


def _recipes() -> Any:
    """The recipes folder, by name: it stands beside this package in the repository, where type checkers miss it."""
    return importlib.import_module("pam_aug.recipes")


def _judges(names: str | None) -> str | list[str] | None:
    return names.split(",") if names and "," in names else names


def _overrides(values: dict[str, Any], set_: list[str] | None) -> list[str]:
    named = [f"{name}={json.dumps(value)}" for name, value in values.items() if value is not None]
    return [*named, *(set_ or [])]


def main() -> None:
    """Entry point of `pam-aug`: errors of ours become one message and their exit code, an interrupt 130."""
    try:
        code = app(standalone_mode=False)
    except PamAugError as error:
        _stop(str(error), error.exit_code)
    except typer.Abort:
        _stop("aborted", 130)
    except KeyboardInterrupt:
        _stop("interrupted; the same command resumes", 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        # A usage error, by its form: some versions of typer carry their own copy of click's classes.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(error.exit_code)  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


def _stop(message: str, code: int) -> None:
    print(f"pam-aug: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
