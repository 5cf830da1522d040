"""Bringing a folder of an older schema version to this library's: into a new folder, the old one stays as it is.

What has a form of its own is read as its version says, taken through the steps of `pam_aug.versions`, checked against
this version's schema and written by the same code as a new build's: labels and their shards, tables of candidates (also
those of unfinished work), `mix.json`, `build.json`. Images, depth and segmentation keep their bytes. Derived files are
made again, everything else is copied. `migrated.json` in the new folder says what each shard was made from; it is
written first and `build.json` last, so no build goes on in a half migrated folder, and the same command resumes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from pam_aug import __version__
from pam_aug.build.layout import build_file
from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.schema import sample_from_json
from pam_aug.shards.atomic import TEMPORARY_PREFIX, copy_atomic, storage_errors, write_atomic
from pam_aug.shards.card import write_card
from pam_aug.shards.manifest import (
    MixShard,
    candidate_from_row,
    candidate_rows,
    mix_from_tree,
    write_candidates,
    write_mix,
)
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import check_hash, verify
from pam_aug.shards.writer import ShardWriter, is_committed
from pam_aug.versions import SCHEMA_VERSION, steps_from, upgrade

__all__ = ["Migration", "migrate"]

_RECORD = "migrated.json"
_SHARD_PLACES = (".", "shards", "rejected")
_DERIVED = ("mix.json", "build.json", "manifest.parquet", "card.md")


@dataclass(frozen=True, slots=True)
class Migration:
    """What `migrate` found and did. `versions` counts files by the version they had; `left` were not taken along."""

    folder: str
    out: str
    version: int
    versions: dict[int, int]
    shards: int
    samples: int
    written: bool
    left: tuple[str, ...]

    @property
    def needed(self) -> bool:
        """Whether anything is of another version than this library's."""
        return set(self.versions) != {self.version}

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "versions": {str(n): count for n, count in self.versions.items()}}

    def as_text(self) -> str:
        if not self.needed:
            return (
                f"{self.folder}: all of schema version {self.version}, which this library reads; nothing is to be done"
            )
        found = ", ".join(f"{count} of version {n}" for n, count in sorted(self.versions.items()))
        lines = [f"{self.shards} shards with {self.samples} samples; files by version: {found}"]
        lines += [f"left out: {name}" for name in self.left]
        done = f"{self.out} is of version {self.version} and verified; {self.folder} stays as it was"
        return "\n".join([*lines, done if self.written else "nothing was written (dry run)"])


@dataclass(slots=True)
class _Found:
    """The content of a folder; names are relative to it."""

    shards: dict[str, dict[str, Any]] = field(default_factory=dict)  # their commit markers
    tables: dict[str, int] = field(default_factory=dict)  # the versions of the tables of candidates
    mix: dict[str, Any] | None = None
    record: dict[str, Any] | None = None
    others: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def versions(self) -> Counter[Any]:
        """How many files have which version."""
        found = Counter(marker["schema_version"] for marker in self.shards.values())
        found.update(self.tables.values())
        found.update([] if self.mix is None else [self.mix.get("version")])
        return found


def migrate(folder: Path, out: Path, dry_run: bool = False, progress: Callable[[int], None] | None = None) -> Migration:
    """Writes the build, conversion or folder of shards in `folder` into `out`, in this library's schema version.

    Nothing is written where all is of this version already. Every shard is checked against its marker before, and the
    whole new folder by `verify` after. `progress` is told the number of samples written.

    Raises SchemaNewer and SchemaOlder for versions that no step leads from, ShardDamaged for changed files, SchemaError
    for labels without their version's form, ConfigError for folders that do not fit, ResumeMismatch where `out` was
    begun from something else.
    """
    folder, out = Path(folder), Path(out)
    found = _look(folder)
    _leave_out_other_folders_mix(folder, found)
    versions = found.versions()
    for version in versions:
        steps_from(version, str(folder))
    result = Migration(
        str(folder),
        str(out),
        SCHEMA_VERSION,
        dict(versions),
        len(found.shards),
        sum(marker["counts"]["samples"] for marker in found.shards.values()),
        not dry_run,
        tuple(found.left),
    )
    if dry_run or not result.needed:
        return result
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{out}: lies in the folder that is migrated; --out names a new folder", path=str(out))
    _claim(folder, out, found)
    for name, marker in found.shards.items():
        _migrate_shard(folder / name, out / name, marker)
        if progress is not None:
            progress(marker["counts"]["samples"])
    for name in found.tables:
        _migrate_table(folder / name, out / name)
    for name in found.others:
        if not (out / name).is_file():
            copy_atomic(folder / name, out / name)
    verify(out).raise_if_damaged()
    if found.mix is not None:
        _write_mix(folder, out, found)
    if found.record is not None:
        record = {**found.record, "identity": {**found.record["identity"], "schema_version": SCHEMA_VERSION}}
        write_atomic(build_file(out), orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
    return result


def _look(folder: Path) -> _Found:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; give a build's output or a folder of shards", path=str(folder))
    found = _Found()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, place = path.relative_to(folder).as_posix(), path.parent.relative_to(folder).as_posix()
        tar = path.with_suffix(".tar")
        if path.name.startswith(TEMPORARY_PREFIX):
            found.left.append(f"{name}, which a stopped build left")
        elif path.suffix == ".tar" and place in _SHARD_PLACES:
            marker = read_marker(path, any_version=True)
            if marker is None:
                found.left.append(f"{name}, which is not committed")
            else:
                found.shards[name] = marker
        elif path.suffix in (".json", ".idx") and place in _SHARD_PLACES and tar.is_file():
            continue  # the marker and the index of a shard
        elif (place == "candidates" and path.suffix == ".parquet") or (
            name.startswith("work/") and path.stem == "rows"
        ):
            found.tables[name] = candidate_rows(path)[0]
        elif name == "mix.json":
            found.mix = _tree(path.read_bytes(), str(path))
        elif name == "build.json":
            found.record = _tree(path.read_bytes(), str(path))
            if not isinstance(found.record.get("identity"), dict):
                raise SchemaError(f"{path}: is no build's record", path=str(path))
        elif name not in _DERIVED:
            found.others.append(name)
    if not found.shards:
        raise ConfigError(f"{folder}: holds no shard; give a build's output or a folder of shards", path=str(folder))
    return found


def _tree(data: bytes, where: str) -> dict[str, Any]:
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"{where}: not JSON ({error})", path=where) from error
    if not isinstance(tree, dict):
        raise SchemaError(f"{where}: is no JSON object", path=where)
    return tree


def _claim(folder: Path, out: Path, found: _Found) -> None:
    """Writes `migrated.json`, or finds the same one there."""
    shards = {n: {"schema_version": m["schema_version"], "sha256": m["sha256"]} for n, m in found.shards.items()}
    before = _tree((folder / _RECORD).read_bytes(), _RECORD) if _RECORD in found.others else {}
    record = {"schema_version": SCHEMA_VERSION, "library": __version__, "shards": shards, "before": before}
    if _RECORD in found.others:  # an earlier migration's, which stands in this one's as `before`
        found.others.remove(_RECORD)
    path, data = out / _RECORD, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n"
    if path.is_file():
        if path.read_bytes() != data:
            raise ResumeMismatch(
                f"{out}: was begun from other shards, or by another version of this library (see {path}); use a new "
                "folder",
                path=str(out),
            )
        return
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if strangers:
        raise ConfigError(f"{out}: holds {', '.join(strangers[:3])}; --out names a new folder", path=str(out))
    write_atomic(path, data)


def _migrate_shard(old: Path, new: Path, marker: dict[str, Any]) -> None:
    """The same samples in a new shard; its images are those of the old one, by hash. Committed ones are not redone."""
    if not is_committed(new):
        check_hash(old, marker["sha256"])  # or a flipped bit would be written under a new hash
        steps = steps_from(marker["schema_version"], str(old))
        with ShardReader(old, marker) as reader, ShardWriter(new, marker["kind"]) as shard:
            for i, key in enumerate(reader.keys):
                where = f"{old}:{key}.json"
                tree = _tree(reader.label_bytes(i), where)
                if tree.get("schema_version") != marker["schema_version"]:
                    raise ShardDamaged(f"{where}: is not of its shard's schema version", path=str(old))
                sample = sample_from_json(orjson.dumps(upgrade(tree, steps, "sample", where)))
                extras = {name: reader.extra(i, name) for name in reader.extras(i)}
                shard.add(sample, reader.image_bytes(i), reader.suffix(i), extras)
            for name, count in marker["counts"].items():
                if name not in ("samples", "hands"):
                    shard.count(name, count)
    made = read_marker(new) or {}
    same = [made["counts"][n] == c for n, c in marker["counts"].items() if n != "hands"]
    images = marker.get("image_sha256", made["image_sha256"])
    if not all(same) or made["image_sha256"] != images or len(made["keys"]) != len(marker["keys"]):
        raise ShardDamaged(f"{new}: is not the migrated {old}: remove {new.parent} and migrate again", path=str(new))


def _migrate_table(old: Path, new: Path) -> None:
    version, rows = candidate_rows(old)
    steps = steps_from(version, str(old))
    with storage_errors(new):
        new.parent.mkdir(parents=True, exist_ok=True)
    write_candidates(new, [candidate_from_row(upgrade(row, steps, "candidate", str(old)), str(old)) for row in rows])


def _leave_out_other_folders_mix(folder: Path, found: _Found) -> None:
    """A mix of shards that lie elsewhere, and are of another version, cannot be written here."""
    for path in () if found.mix is None else _shard_paths(found.mix):
        marker = None if path in found.shards else read_marker(folder / path, any_version=True)
        if marker is not None and marker["schema_version"] != SCHEMA_VERSION:
            found.left.append(f"mix.json, which names {path}, of another folder: migrate that one too, and mix anew")
            found.mix = None
            return


def _shard_paths(mix: dict[str, Any]) -> list[str]:
    try:
        return [str(shard["path"]) for source in mix["sources"] for shard in source["shards"]]
    except (KeyError, TypeError) as error:
        raise SchemaError(f"mix.json: is no mix ({error!r})") from error


def _write_mix(folder: Path, out: Path, found: _Found) -> None:
    """The same mix of the new shards, and the manifest and card that are derived from it, where there were any."""
    path = folder / "mix.json"
    assert found.mix is not None
    steps = steps_from(found.mix.get("version"), str(path))
    mix = mix_from_tree(upgrade(found.mix, steps, "mix", str(path)), str(path))

    def migrated(shard: MixShard) -> MixShard:
        if shard.path not in found.shards:
            return shard
        if shard.sha256 != found.shards[shard.path]["sha256"]:
            raise ShardDamaged(f"{path}: {shard.path} is another shard than the one in it; mix again first")
        marker = read_marker(out / shard.path)
        assert marker is not None  # written and verified before
        return replace(shard, sha256=marker["sha256"], bytes=marker["bytes"], hands=marker["counts"]["hands"])

    mix = replace(mix, sources=tuple(replace(s, shards=tuple(map(migrated, s.shards))) for s in mix.sources))
    write_mix(out / "mix.json", mix)
    if (folder / "manifest.parquet").is_file():
        write_card(out, mix)
