"""Options that several commands share, and how the command line becomes configuration."""

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pam_aug.errors import ConfigError

__all__ = [
    "Candidates",
    "DryRun",
    "Estimator",
    "Generator",
    "Inputs",
    "Json",
    "Out",
    "Recipe",
    "Set",
    "Source",
    "Workers",
    "judges",
    "named_options",
    "numbers",
    "overrides_of",
    "recipe_folder",
    "show",
]

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


def named_options(arguments: list[str]) -> list[str]:
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


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers joined by commas, as an option gives them. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: numbers joined by commas are wanted", option=option) from error


def recipe_folder() -> Any:
    """The recipes folder, by name: it stands beside this package in the repository, where type checkers miss it."""
    return importlib.import_module("pam_aug.recipes")


def judges(names: str | None) -> str | list[str] | None:
    return names.split(",") if names and "," in names else names


def overrides_of(values: dict[str, Any], set_: list[str] | None) -> list[str]:
    named = [f"{name}={json.dumps(value)}" for name, value in values.items() if value is not None]
    return [*named, *(set_ or [])]


def show(result: Any, as_json: bool) -> None:
    """Print what a command found: one JSON object, or its text."""
    typer.echo(json.dumps(result.as_dict()) if as_json else result.as_text())
