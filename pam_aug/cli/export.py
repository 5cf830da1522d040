"""`pam-aug export`: a build in the formats of other estimators."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pam_aug.cli.options import Json, show

__all__ = ["export_coco", "export_hamer", "export_simplehand"]

Build = Annotated[Path, typer.Argument(help="The output folder of a build.")]
NewFolder = Annotated[Path, typer.Option("--out", help="A new folder.")]


def _progress(folder: Path) -> Any:
    from pam_aug.build.progress import Progress
    from pam_aug.export.items import hands_in

    return Progress(hands_in(folder), "hands")


def export_simplehand(
    folder: Build,
    out: NewFolder,
    mano_dir: Annotated[Path | None, typer.Option(help="MANO files, where labels were made with MANO.")] = None,
    as_json: Json = False,
) -> None:
    """A .jpg and a .json per hand and the list of images, as SimpleHand's training reads them. Left hands mirrored."""
    from pam_aug.export.simplehand import export_simplehand as export

    with _progress(folder) as bar:
        result = export(folder, out, mano_dir, bar.add)
    show(result, as_json)


def export_coco(
    folder: Build,
    out: NewFolder,
    as_json: Json = False,
) -> None:
    """Images and one JSON file of hand keypoints in COCO's format."""
    from pam_aug.export.coco import export_coco as export

    with _progress(folder) as bar:
        result = export(folder, out, bar.add)
    show(result, as_json)


def export_hamer(
    folder: Build,
    out: NewFolder,
    as_json: Json = False,
) -> None:
    """HaMeR's training tars. Their labels are pickles, because HaMeR reads those; this library never does."""
    from pam_aug.export.hamer import export_hamer as export

    with _progress(folder) as bar:
        result = export(folder, out, bar.add)
    show(result, as_json)
