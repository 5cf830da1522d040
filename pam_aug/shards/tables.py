"""Tables beside the shards: rows of one form as Parquet files, written whole, and read with their form checked."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pam_aug.errors import ShardDamaged, UnsafeInput
from pam_aug.shards.atomic import storage_errors, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["arrow_schema", "not_a_table", "read_rows", "read_table", "write_rows", "write_table"]

Row = TypeVar("Row")
_ARROW: dict[Any, str] = {str: "string", int: "int64", float: "float64", bool: "bool"}
_MAX_ROWS = 1 << 22
"""The most rows of a table that is read whole: 4 million. A file of any size can claim any number of equal ones."""


def arrow_schema(columns: Mapping[str, Any], metadata: Mapping[bytes, str] | None = None) -> "pa.Schema":
    """Columns by name and type: str, int (64 bits), float (64 bits), bool, or an Arrow type."""
    import pyarrow as pa

    return pa.schema([(name, _ARROW.get(kind, kind)) for name, kind in columns.items()], metadata=metadata)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: "pa.Schema") -> None:
    """Writes the rows as one Parquet file, atomically; missing folders are made. Raises StorageError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer)
    with storage_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def read_table(path: Path, what: str) -> "tuple[pa.Schema, list[dict[str, Any]]]":
    """The schema and the rows of a Parquet file. `what` are its rows, for messages ("candidates").

    Raises ShardDamaged for another content, UnsafeInput for more rows than a table of ours has.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > _MAX_ROWS:
                raise UnsafeInput(f"{path}: {file.metadata.num_rows} rows is over the limit of {_MAX_ROWS}")
            return file.schema_arrow, file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise not_a_table(path, what, error) from error


def write_rows(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Rows of the flat dataclass `kind` as a table with a column per field. Raises StorageError."""
    columns = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    write_table(path, (asdict(row) for row in rows), arrow_schema(columns))  # type: ignore[call-overload]


def read_rows(path: Path, kind: type[Row], what: str) -> list[Row]:
    """The rows that `write_rows` wrote. Columns that an older table lacks take the fields' defaults.

    Raises ShardDamaged where a column is unknown, of another type, empty in places, or missing without a default.
    """
    schema, rows = read_table(path, what)
    wanted = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name, found in zip(schema.names, schema.types):
        if name not in wanted:
            raise not_a_table(path, what, f"the column {name!r} is none of theirs")
        if str(found).replace("double", "float64") != _ARROW[wanted[name].type]:
            raise not_a_table(path, what, f"the column {name!r} is of the type {found}")
    for name, field in wanted.items():
        if name not in schema.names and field.default is MISSING and field.default_factory is MISSING:
            raise not_a_table(path, what, f"the column {name!r} is missing")
    if any(value is None for row in rows for value in row.values()):
        raise not_a_table(path, what, "a value is missing")
    return [kind(**row) for row in rows]


def not_a_table(path: Path | str, what: str, why: object) -> ShardDamaged:
    """The error of all tables, to be raised."""
    return ShardDamaged(f"{path}: not a table of {what} ({why})", path=str(path))
