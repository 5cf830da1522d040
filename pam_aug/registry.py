"""Backends by short name: converters, generators and estimators, found through entry points."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pam_aug.errors import AssetMissing, ConfigError

__all__ = ["Kind", "load", "names"]

Kind = Literal["converters", "generators", "estimators"]

# Which extra brings a package that the base installation lacks.
_EXTRAS = {
    "diffusers": "diffusion",
    "transformers": "diffusion",
    "mitsuba": "rgb",
    "mujoco": "sim",
    "timm": "backbones",
}


def names(kind: Kind) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(point.name for point in entry_points(group=f"pam_aug.{kind}"))


def load(kind: Kind, name: str) -> Any:
    """The class registered under `name`. Raises ConfigError listing the known names where there is none,
    AssetMissing where a package that it needs is not installed."""
    for point in entry_points(group=f"pam_aug.{kind}"):
        if point.name == name:
            return _load(point, name)
    raise ConfigError(
        f"{name!r} is no known entry of {kind}: choose one of {', '.join(names(kind))}, "
        "or install the package that has it",
        name=name,
        kind=kind,
    )


def _load(point: EntryPoint, name: str) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "pam_aug"):
            raise
        extra = _EXTRAS.get(package)
        install = f"pip install 'pam_aug[{extra}]'" if extra else f"install {package}"
        raise AssetMissing(
            f"{name!r} needs the package {package}, which is not installed: {install}", package=package
        ) from error
