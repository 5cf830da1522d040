"""The bundled recipes: YAML files that run as they stand."""

from importlib import resources
from pathlib import Path
from typing import Any

from pam_aug.config import read_yaml
from pam_aug.errors import ConfigError

__all__ = ["load_recipe", "recipe_names", "recipe_text"]


def recipe_names() -> list[str]:
    """The names of the bundled recipes, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A bundled recipe's text. Raises ConfigError naming the nearest recipe."""
    return _path(name).read_text(encoding="utf-8")


def load_recipe(name: str) -> dict[str, Any]:
    """A recipe as plain data: a YAML file's path where it ends in .yaml or .yml, a bundled recipe's name otherwise."""
    return read_yaml(name if name.endswith((".yaml", ".yml")) else _path(name))


def _path(name: str) -> Path:
    if name not in recipe_names():
        raise ConfigError(
            f"no bundled recipe {name!r}: choose one of {', '.join(recipe_names())}, or give the path of a YAML file",
            name=name,
        )
    return Path(str(resources.files(__name__) / f"{name}.yaml"))
