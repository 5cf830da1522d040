"""Configuration: frozen dataclasses are the schema, YAML and `--set a.b=c` are ways to fill them."""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pam_aug.errors import ConfigError

__all__ = ["config_hash", "read_yaml", "resolve", "to_dict"]

T = TypeVar("T")
_MAX_YAML_BYTES = 1 << 20


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as plain data, safely: at most 1 MB, no tags, no interpolation."""
    import yaml

    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an existing YAML file", path=str(path)
        ) from error
    if len(raw) > _MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes is no configuration (limit {_MAX_YAML_BYTES})", path=str(path))
    try:
        data = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}", path=str(path)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of names to values", path=str(path))
    return data


def resolve(schema: type[T], data: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "") -> T:
    """`data` with `overrides` ("a.b=c") on top, checked against the dataclass `schema`.

    Every unknown key, missing value ("???") and wrong type is reported at once; an unknown key names the nearest one.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree: dict[str, Any] = _copy(data)
    problems: list[str] = []
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name.strip():
            problems.append(f"--set {override}: write it as name=value")
            continue
        _assign(tree, name.strip().split("."), _scalar(text))
    problems += _unknown_keys(schema, tree, "")
    if not problems:
        problems += _missing(schema, tree, "")
    if problems:
        raise ConfigError(_message(where, problems), problems=problems)
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(tree)))
    except (OmegaConfBaseException, ConfigError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(_message(where, [f"{key}: {first}" if key else first]), problems=[first]) from error
    assert isinstance(result, schema)
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain data, for `build.json` and for hashing."""
    return asdict(config)


def config_hash(tree: Mapping[str, Any]) -> str:
    """sha256 of a configuration's canonical JSON."""
    return hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _message(where: str, problems: Sequence[str]) -> str:
    head = f"{where}: " if where else ""
    return head + ("; ".join(problems) if len(problems) < 3 else "\n  - " + "\n  - ".join(problems))


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        child = tree.get(name)
        if not isinstance(child, dict):
            child = tree[name] = {}
        tree = child
    tree[path[-1]] = value


def _section(field_type: Any) -> type | None:
    return field_type if isinstance(field_type, type) and is_dataclass(field_type) else None


def _unknown_keys(schema: type, tree: Mapping[str, Any], prefix: str) -> list[str]:
    known = {f.name: f for f in fields(schema)}  # type: ignore[arg-type]
    problems: list[str] = []
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.0)
            hint = f"did you mean {prefix}{near[0]}? " if near else ""
            problems.append(f"unknown key {prefix}{key}; {hint}(valid: {', '.join(known)})")
            continue
        section = _section(known[key].type)
        if section is not None and isinstance(value, Mapping):
            problems += _unknown_keys(section, value, f"{prefix}{key}.")
    return problems


def _missing(schema: type, tree: Mapping[str, Any], prefix: str) -> list[str]:
    problems: list[str] = []
    for f in fields(schema):  # type: ignore[arg-type]
        value = tree.get(f.name, MISSING)
        section = _section(f.type)
        required = f.default is MISSING and f.default_factory is MISSING
        if (value is MISSING and required and section is None) or value == "???":
            problems.append(f"{prefix}{f.name} is required and has no value")
        elif section is None and isinstance(value, Mapping):
            problems += [
                f"{prefix}{f.name}.{key} is required and has no value" for key, v in value.items() if v == "???"
            ]
        elif section is not None and (isinstance(value, Mapping) or (value is MISSING and required)):
            problems += _missing(section, value if isinstance(value, Mapping) else {}, f"{prefix}{f.name}.")
    return problems
