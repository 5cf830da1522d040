"""The tables beside the shards: `mix.json`, `manifest.parquet`, `candidates/*.parquet` and the dataset card."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from pam_aug.errors import ConfigError, SchemaError, ShardDamaged
from pam_aug.schema import Candidate, Judgement, Sample, Verdict
from pam_aug.shards.atomic import create_temporary, fsync_folder, storage_errors, temporary_path, write_atomic
from pam_aug.shards.files import Place, place, read_whole
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.tables import arrow_schema, not_a_table, read_table, write_table
from pam_aug.shards.writer import ShardKind
from pam_aug.versions import SCHEMA_VERSION, check_version

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Mix",
    "MixShard",
    "MixSource",
    "candidate_from_row",
    "candidate_rows",
    "collect_shards",
    "manifest_is_of",
    "manifest_row",
    "manifest_table",
    "mix_from_tree",
    "read_candidates",
    "read_mix",
    "write_candidates",
    "write_manifest",
    "write_mix",
    "written_row",
]


@dataclass(frozen=True, slots=True)
class MixShard:
    """One committed shard. `path` is relative to the folder of `mix.json`, or absolute where it lies elsewhere."""

    path: str
    sha256: str
    bytes: int
    samples: int
    hands: int


@dataclass(frozen=True, slots=True)
class MixSource:
    """One source of a mix: its share of what is read ("9/10"), and the share of its sequences that is kept ("1")."""

    name: str
    share: str
    shards: tuple[MixShard, ...]
    keep: str = "1"

    @property
    def samples(self) -> int:
        return sum(s.samples for s in self.shards)

    @property
    def hands(self) -> int:
        return sum(s.hands for s in self.shards)


@dataclass(frozen=True, slots=True)
class Mix:
    """What the loader opens. The first source leads: an epoch is one pass over it. `when_short`: "repeat" or "stop".

    `window_shards` 0 shuffles over all shards of a source; W reads W shards at a time, for data that seeks slowly.
    """

    sources: tuple[MixSource, ...]
    seed: int = 0
    when_short: str = "repeat"
    window_shards: int = 0
    version: int = SCHEMA_VERSION


def write_mix(path: Path, mix: Mix) -> None:
    """Writes `mix.json` atomically."""
    write_atomic(path, orjson.dumps(asdict(mix), option=orjson.OPT_INDENT_2) + b"\n")


def read_mix(path: Place | str) -> Mix:
    """A `mix.json` or the one in a folder, by path or URL.

    Raises ConfigError where there is none, SchemaError for another content, SchemaNewer or SchemaOlder for another
    version.
    """
    path = place(path)
    path = path if path.name.endswith(".json") else path / "mix.json"
    try:
        tree = orjson.loads(read_whole(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); give a finished build's folder"
        ) from error
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"{path}: not JSON ({error})", path=str(path)) from error
    return mix_from_tree(tree, str(path))


def mix_from_tree(tree: Any, where: str) -> Mix:
    """The mix of a `mix.json`'s content. Raises as `read_mix`."""
    if not isinstance(tree, dict) or "sources" not in tree:
        raise SchemaError(f"{where}: not a mix", path=where)
    check_version(tree.get("version"), where)
    try:
        sources = [
            _checked(MixSource, {**s, "shards": tuple(_checked(MixShard, t) for t in s["shards"])})
            for s in tree["sources"]
        ]
        return _checked(Mix, {**tree, "sources": tuple(sources)})
    except (TypeError, KeyError) as error:
        raise SchemaError(f"{where}: not a mix ({error})", path=where) from error


def collect_shards(folder: Path, kind: ShardKind, relative_to: Path) -> tuple[MixShard, ...]:
    """The committed shards of a kind in `folder`, by name; uncommitted ones are left out."""
    found = []
    for path in sorted(Path(folder).glob(f"{kind}-*.tar")):
        marker = read_marker(path)
        if marker is None:
            continue
        counts = marker["counts"]
        inside = path.resolve().is_relative_to(relative_to.resolve())
        name = path.resolve().relative_to(relative_to.resolve()).as_posix() if inside else str(path.resolve())
        found.append(MixShard(name, marker["sha256"], marker["bytes"], counts["samples"], counts.get("hands", 0)))
    return tuple(found)


def _checked(kind: type, tree: dict[str, Any]) -> Any:
    value = kind(**tree)
    for f in fields(kind):
        wanted = f.type if isinstance(f.type, type) else tuple
        if type(getattr(value, f.name)) is not wanted:
            raise TypeError(f"{kind.__name__}.{f.name} is a {type(getattr(value, f.name)).__name__}")
    return value


# ---------------------------------------------------------------------------------------------------------- tables


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """One row per candidate, kept or not, with its score, reason and seed; +inf errors stay +inf. Atomic.

    The column `judgements` is there where several estimators judged together.
    """
    columns: dict[str, Any] = dict(_CANDIDATE_COLUMNS)
    if any(c.judgements for c in candidates):
        columns[_JUDGEMENTS] = _judgements_type()
    rows = [{**asdict(c), **asdict(c.verdict)} for c in candidates]
    schema = arrow_schema(columns, {_VERSION: str(SCHEMA_VERSION)})
    write_table(path, [{name: row[name] for name in columns} for row in rows], schema)


def read_candidates(path: Path) -> list[Candidate]:
    """The rows that `write_candidates` wrote. Columns that were not written take the fields' defaults.

    Raises ShardDamaged for a file of another content, SchemaNewer or SchemaOlder for another version.
    """
    version, rows = candidate_rows(path)
    check_version(version, str(path))
    return [candidate_from_row(row, str(path)) for row in rows]


def candidate_rows(path: Path) -> tuple[int, list[dict[str, Any]]]:
    """(schema version, rows as they are) of a table of candidates. Raises ShardDamaged for another content."""
    schema, rows = read_table(path, _CANDIDATES)
    try:
        return int((schema.metadata or {}).get(_VERSION, b"1")), rows  # the first tables did not say their version
    except ValueError as error:
        raise not_a_table(path, _CANDIDATES, error) from error


def candidate_from_row(row: dict[str, Any], where: str) -> Candidate:
    """The candidate of a row of the table in the file `where`. Raises ShardDamaged for another content."""
    try:
        named = {name: row[name] for name in _CANDIDATE_COLUMNS if name in row}
        return Candidate(
            verdict=Verdict(kept=named.pop("kept"), reason=named.pop("reason")),
            judgements=tuple(Judgement(**judgement) for judgement in row.get(_JUDGEMENTS) or ()),
            **named,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise not_a_table(where, _CANDIDATES, error) from error


def write_manifest(path: Path, shards: Iterable[Place], known: "Mapping[Place, pa.Table | None] | None" = None) -> int:
    """`manifest.parquet`: one row per sample, in the order of the shards. Returns the number of rows.

    `known` has tables of shards that need not be read (`manifest_table`); of the others one is in memory at a time.
    `image_sha256` is of the image in the shard; errors are -1 where none was scored.
    """
    import pyarrow.parquet as pq

    path, total = Path(path), 0
    schema = arrow_schema(_MANIFEST_COLUMNS)
    temporary = temporary_path(path)
    with storage_errors(path):
        try:
            with create_temporary(temporary) as file, pq.ParquetWriter(file, schema) as writer:
                for shard in shards:
                    table = (known or {}).get(shard)
                    table = manifest_table(_manifest_rows(shard)) if table is None else table
                    total += len(table)
                    if len(table):
                        writer.write_table(table)
                writer.close()
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)
    return total


def manifest_table(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """The part of a manifest with these rows of one shard, from `manifest_row` or `written_row`."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), arrow_schema(_MANIFEST_COLUMNS))


def manifest_row(
    label: Mapping[str, Any], shard: str, index: int, image_bytes: int, image_sha256: str
) -> dict[str, Any]:
    """The manifest's row of sample `index` of the tar `shard`, from its label as JSON gives it.

    Raises KeyError or TypeError where the label is not of the schema.
    """
    source, made, score, hands = label["source"], label["generation"], label["score"], label["hands"]
    return {
        **{"key": label["key"], "shard": shard, "index": index, "synthetic": label["synthetic"]},
        **{n: source[n] for n in _OF_SOURCE},
        **{"image_sha256": image_sha256, "image_bytes": image_bytes},
        **{"width": label["camera"]["width"], "height": label["camera"]["height"]},
        **{"hands": len(hands), "sides": ",".join(hand["side"] for hand in hands)},
        **{n: made[n] for n in _OF_GENERATION},
        **{n: score[n] for n in _OF_SCORE},
    }


def written_row(sample: Sample, shard: str, index: int, image_bytes: int, image_sha256: str) -> dict[str, Any]:
    """`manifest_row` of a sample that was just written, whose label need not be parsed."""
    source, made = sample.source, sample.generation
    score = {"estimator": sample.score.estimator, **{n: _as_read(getattr(sample.score, n)) for n in _OF_SCORE[1:]}}
    label = {
        **{"key": sample.key, "synthetic": sample.synthetic, "score": score},
        "source": {n: getattr(source, n) for n in _OF_SOURCE},
        "generation": {n: getattr(made, n) for n in _OF_GENERATION},
        "camera": {"width": sample.camera.width, "height": sample.camera.height},
        "hands": [{"side": hand.side} for hand in sample.hands],
    }
    return manifest_row(label, shard, index, image_bytes, image_sha256)


def _as_read(value: float) -> float:
    """A label's float as its JSON reads: the double of the shortest text of its float32."""
    return value if value == -1 else float(str(np.float32(value)))


def manifest_is_of(path: Path, shards: Iterable[Place]) -> bool:
    """Whether the file is what `write_manifest` writes of these shards; a shard at a time. Raises as the reader does
    where a shard is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(_MANIFEST_COLUMNS)
    try:
        with pq.ParquetFile(path) as file:
            groups = iter(range(file.num_row_groups))
            if not file.schema_arrow.equals(schema):
                return False
            for rows in map(_manifest_rows, shards):
                group = next(groups, None) if rows else None
                if rows and (group is None or file.metadata.row_group(group).num_rows != len(rows)):
                    return False
                if group is not None and not file.read_row_group(group).equals(pa.Table.from_pylist(rows, schema)):
                    return False
            return next(groups, None) is None
    except (pa.ArrowException, OSError, ValueError):
        return False


_CANDIDATES = "candidates"
_CANDIDATE_COLUMNS: dict[str, type] = {
    **{"input_key": str, "index": int, "seed": int, "generator": str, "estimator": str},
    **{"err_mm": float, "pa_err_mm": float, "err_2d": float, "mask_iou": float, "failure": str},
    **{"vert_err_mm": float, "pa_vert_err_mm": float, "odd_mm": float, "side_agrees": bool},
    **{"kept": bool, "reason": str},
}
_JUDGEMENTS = "judgements"
_VERSION = b"schema_version"
_OF_SOURCE = ("dataset", "name", "split", "group", "licence")
_OF_GENERATION = ("generator", "input_key", "candidate", "seed")
_OF_SCORE = ("estimator", "err_mm", "pa_err_mm", "err_2d", "mask_iou")
_MANIFEST_COLUMNS: dict[str, type] = {
    **{"key": str, "shard": str, "index": int, "synthetic": bool, "dataset": str, "name": str, "split": str},
    **{"group": str, "licence": str, "image_sha256": str, "image_bytes": int, "width": int, "height": int},
    **{"hands": int, "sides": str, "generator": str, "input_key": str, "candidate": int, "seed": int},
    **{"estimator": str, "err_mm": float, "pa_err_mm": float, "err_2d": float, "mask_iou": float},
}


def _judgements_type() -> Any:
    import pyarrow as pa

    return pa.list_(pa.struct(list(arrow_schema({f.name: f.type for f in fields(Judgement)}))))


def _manifest_rows(path: Place) -> list[dict[str, Any]]:
    rows = []
    with ShardReader(path) as reader:
        hashes = (reader.marker or {}).get("image_sha256", [])  # markers of the first version do not have it
        for i in range(len(reader)):
            try:
                label = reader.label(i)
                digest = hashes[i] if i < len(hashes) else hashlib.sha256(reader.image_bytes(i)).hexdigest()
                rows.append(manifest_row(label, path.name, i, reader.image_size_bytes(i), digest))
            except (KeyError, TypeError, orjson.JSONDecodeError) as error:
                raise ShardDamaged(f"{path}: the label of sample {i} is not of the schema ({error})") from error
    return rows
