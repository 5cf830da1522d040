"""The version of the data format: one number for all that a folder holds, and the steps from older versions to it.

The number stands in labels, commit markers, `mix.json`, `build.json` and the tables of candidates. What holds them does
not change between versions: shards are USTAR files of `<key>.<suffix>` members, and a marker's `schema_version`,
`kind`, `sha256`, `bytes`, `counts` and `keys` mean the same in all of them. So an older folder can be checked against
its own hashes before its content is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pam_aug.errors import SchemaError, SchemaNewer, SchemaOlder

__all__ = ["SCHEMA_VERSION", "STEPS", "Change", "Step", "check_version", "steps_from", "upgrade"]

SCHEMA_VERSION = 1

Change = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """What changes from a version to the next one, on plain JSON data; the version numbers are kept by `upgrade`.

    `sample` takes a label, `candidate` a row of a table of candidates, `mix` a `mix.json`. A step gives every field
    that the next version has and drops none that it has a place for. What is not given stays as it is.
    """

    sample: Change = dict
    candidate: Change = dict
    mix: Change = dict


STEPS: dict[int, Step] = {}
"""By the version that a step starts from. Version 1 is the first that was released, so there is none yet: a change of
the format adds its step here, and `pam-aug migrate` and the messages below know of it."""

_VERSION_KEY = {"sample": "schema_version", "candidate": "", "mix": "version"}


def check_version(found: Any, where: str) -> None:
    """Raises SchemaNewer or SchemaOlder, which say what to do, unless `found` is the version of this library.

    SchemaError where it is no version at all. `where` names the file, or what of it has the version.
    """
    if type(found) is not int:
        raise SchemaError(f"{where}: names no schema version ({found!r})", found=found)
    if found > SCHEMA_VERSION:
        raise SchemaNewer(
            f"{where}: schema version {found}, this library reads version {SCHEMA_VERSION}. A newer pam_aug wrote it: "
            "upgrade the library (pip install --upgrade pam_aug)",
            found=found,
            reads=SCHEMA_VERSION,
        )
    if found < SCHEMA_VERSION:
        way = (
            "bring its folder to this version with `pam-aug migrate FOLDER --out NEW`"
            if _leads_here(found)
            else "no migration from that version is known: build it anew, or read it with the library that wrote it"
        )
        raise SchemaOlder(
            f"{where}: schema version {found}, this library reads version {SCHEMA_VERSION}. An older pam_aug wrote it: "
            f"{way}",
            found=found,
            reads=SCHEMA_VERSION,
        )


def steps_from(found: Any, where: str) -> tuple[Step, ...]:
    """The steps from version `found` to this library's, none for its own. Raises as `check_version` where none lead."""
    if type(found) is not int or found >= SCHEMA_VERSION or not _leads_here(found):
        check_version(found, where)
    return tuple(STEPS[version] for version in range(found, SCHEMA_VERSION))


def upgrade(
    tree: dict[str, Any], steps: Sequence[Step], kind: Literal["sample", "candidate", "mix"], where: str
) -> dict[str, Any]:
    """`tree` after all `steps`, with this library's version in it. Raises SchemaError for data without the old form."""
    try:
        for step in steps:
            tree = getattr(step, kind)(tree)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SchemaError(f"{where}: has not the form of its version ({error!r})") from error
    return {**tree, _VERSION_KEY[kind]: SCHEMA_VERSION} if _VERSION_KEY[kind] else tree


def _leads_here(found: int) -> bool:
    return all(version in STEPS for version in range(found, SCHEMA_VERSION))
