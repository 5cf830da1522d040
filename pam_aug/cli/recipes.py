"""`pam-aug recipes`: list, print and copy the bundled recipes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pam_aug.cli.options import Json, recipe_folder
from pam_aug.errors import ConfigError

__all__ = ["recipes_cp", "recipes_ls", "recipes_show"]


def recipes_ls(as_json: Json = False) -> None:
    """List the bundled recipes, each with its first line."""
    folder = recipe_folder()
    rows = {name: folder.recipe_text(name).splitlines()[0].lstrip("# ") for name in folder.recipe_names()}
    typer.echo(json.dumps(rows) if as_json else "\n".join(f"{name:24} {line}" for name, line in rows.items()))


def recipes_show(name: str) -> None:
    """Print a bundled recipe."""
    typer.echo(recipe_folder().recipe_text(name), nl=False)


def recipes_cp(name: str, folder: Annotated[Path, typer.Argument(help="Where to copy it.")] = Path(".")) -> None:
    """Copy a bundled recipe, to be edited and run by its path. An existing file is not overwritten."""
    path = folder / f"{name}.yaml" if folder.is_dir() else folder
    text = recipe_folder().recipe_text(name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file", path=str(path)) from error
    typer.echo(path)
