"""Commands that train and evaluate estimators, and say where their weights come from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pam_aug.cli.options import Json, Out, Set, recipe_folder, show

__all__ = ["evaluate", "fetch_weights", "train"]


def train(
    recipe: Annotated[str, typer.Argument(help="A bundled training recipe's name or a YAML file.")],
    out: Out = Path("runs/train"),
    set_: Set = None,
) -> None:
    """Train an estimator, or PAM's ControlNets, from a recipe. The same command on the same folder resumes."""
    from pam_aug.train import run

    run(recipe_folder().load_recipe(recipe), out, overrides=set_ or [])


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
    show(result, as_json)


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
