"""Backends by short name: converters, generators and estimators, found through entry points."""

from importlib.metadata import entry_points
from typing import Any, Literal

from pam_aug.errors import ConfigError

__all__ = ["Kind", "load", "names"]

Kind = Literal["converters", "generators", "estimators"]


def names(kind: Kind) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(point.name for point in entry_points(group=f"pam_aug.{kind}"))


def load(kind: Kind, name: str) -> Any:
    """The class registered under `name`. Raises ConfigError listing the known names where there is none."""
    for point in entry_points(group=f"pam_aug.{kind}"):
        if point.name == name:
            return point.load()
    raise ConfigError(
        f"{name!r} is no known entry of {kind}: choose one of {', '.join(names(kind))}, "
        "or install the package that has it",
        name=name,
        kind=kind,
    )
