"""Commands on finished folders: look at them, check, repair, migrate, select again, mix."""

from pathlib import Path
from typing import Annotated

import typer

from pam_aug.cli.options import DryRun, Json, Workers, show
from pam_aug.errors import ConfigError

__all__ = ["inspect", "migrate", "mix", "repair", "select", "verify"]


def inspect(folder: Annotated[Path, typer.Argument(help="The output folder of a build.")]) -> None:
    """Write a static HTML page: contact sheets of kept and rejected candidates, score histograms, counts."""
    from pam_aug.report.page import write_report

    typer.echo(write_report(folder))


def verify(
    folder: Annotated[
        str, typer.Argument(help="A folder with shards, one .tar of it, or the URL of either (http, s3, memory).")
    ],
    rebuild: Annotated[bool, typer.Option(help="Write stale derived files (indexes, manifest, card) anew.")] = False,
    as_json: Json = False,
) -> None:
    """Re-hash every shard and check schema, counts and keys. Exit code 4 where something is damaged.

    Of a URL, the shards that its mix.json names are checked, each through a temporary file.
    """
    from pam_aug.build.progress import Progress
    from pam_aug.shards.verify import find_shards
    from pam_aug.shards.verify import verify as verify_folder

    with Progress(sum(map(len, find_shards(folder).values())), "shards") as bar:
        report = verify_folder(folder, rebuild, bar.add)
    show(report, as_json)
    if report.damaged:
        raise typer.Exit(4)


def repair(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove what stopped builds left behind: temporary files, uncommitted shards, stale work. Never a finished one."""
    from pam_aug.shards.repair import repair as repair_folder

    report = repair_folder(folder, dry_run)
    show(report, as_json)


def migrate(
    folder: Annotated[Path, typer.Argument(help="A folder with shards that another version of this library wrote.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder; the same command resumes. The old one stays.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring shards of an older schema version to this library's, verified before and after. Says where none are.

    Never in place: a migrated shard has another hash, which mixes of other folders and saved positions of a training
    refer to, and nothing is gained on the disk, because the new shards stand beside the old ones until all are whole.
    To keep the name: mv FOLDER OLD && mv NEW FOLDER.
    """
    from pam_aug.build.migrate import migrate as migrate_folder
    from pam_aug.build.progress import Progress

    todo = migrate_folder(folder, out, dry_run=True)
    with Progress(todo.samples, "samples") as bar:
        result = migrate_folder(folder, out, dry_run, bar.add)
    show(result, as_json)


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
    show(result, as_json)


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
    show(result, as_json)
