"""`pam-aug export`: a build in the formats of other estimators."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pam_aug.cli.options import Json

__all__ = ["export_coco", "export_hamer", "export_simplehand"]


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


def export_coco(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """Images and one JSON file of hand keypoints in COCO's format."""
    from pam_aug.export.coco import export_coco as export

    result = export(folder, out)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())


def export_hamer(
    folder: Annotated[Path, typer.Argument(help="The output folder of a build.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    as_json: Json = False,
) -> None:
    """HaMeR's training tars. Their labels are pickles, because HaMeR reads those; this library never does."""
    from pam_aug.export.hamer import export_hamer as export

    result = export(folder, out)
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())
