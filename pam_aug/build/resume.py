"""`build.json`: what a folder was built with, and whether a run may go on in it."""

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import orjson
import torch

from pam_aug import __version__
from pam_aug.build.layout import build_file
from pam_aug.errors import ConfigError, ResumeMismatch
from pam_aug.shards.atomic import storage_errors, write_atomic

__all__ = ["claim_folder", "first_difference"]


def claim_folder(out: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Take `out` for a build, or go on in it. Returns whether it was begun before.

    `identity` is what decides the bytes of the shards (fields and versions); `config` is the whole configuration.
    Raises ResumeMismatch naming the first field that differs, ConfigError for a folder that holds something else.
    """
    path = build_file(out)
    if path.is_file():
        try:
            before = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise ConfigError(
                f"{path}: not readable JSON ({error}); use a new output folder", path=str(path)
            ) from error
        difference = first_difference(before.get("identity", {}), orjson.loads(orjson.dumps(identity)))
        if difference:
            field, was, now = difference
            raise ResumeMismatch(
                f"{out}: was built with {field} = {was!r}, this run has {now!r}, which would give other shards. "
                "Use a new output folder, or remove this one to start again.",
                field=field,
                was=was,
                now=now,
            )
        return True
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if strangers:
        raise ConfigError(
            f"{out}: holds {', '.join(strangers[:3])} but no build.json, so it is no build's folder; "
            "choose another --out",
            path=str(out),
        )
    versions = {
        "pam_aug": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    record = {"identity": identity, "config": config, "versions": versions, "command": sys.argv[1:]}
    write_atomic(path, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    return False


def first_difference(was: Any, now: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first field, by name, in which two plain trees differ: (dotted name, value before, value now)."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(set(was) | set(now)):
            below = f"{field}.{name}" if field else str(name)
            difference = first_difference(was.get(name), now.get(name), below)
            if difference:
                return difference
        return None
    return None if was == now and type(was) is type(now) else (field, was, now)
