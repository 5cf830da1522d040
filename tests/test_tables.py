"""Tables of rows: exact round trips, and one clear error for every file of another form."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pam_aug.build.failures import FailedImage, read_failures, write_failures
from pam_aug.errors import PamAugError, ShardDamaged, UnsafeInput
from pam_aug.shards import tables
from pam_aug.shards.manifest import read_candidates
from pam_aug.shards.repeats import Repeats
from pam_aug.shards.tables import arrow_schema, read_rows, write_rows, write_table


@dataclass(frozen=True, slots=True)
class Measured:
    key: str
    count: int
    good: bool
    err_mm: float = -1.0
    note: str = ""


ROWS = [Measured("a", 2**62, True, float("inf"), "é"), Measured("", -1, False)]
COLUMNS = {"key": str, "count": int, "good": bool, "err_mm": float, "note": str}


def test_rows_come_back_and_their_bytes_do_not_change(tmp_path):
    path = tmp_path / "new" / "t.parquet"
    write_rows(path, Measured, ROWS)
    assert read_rows(path, Measured, "measures") == ROWS
    first = path.read_bytes()
    write_table(path, map(asdict, ROWS), arrow_schema(COLUMNS))
    assert path.read_bytes() == first
    write_rows(path, Measured, [])
    assert read_rows(path, Measured, "measures") == []
    types = pq.read_schema(path).types
    assert types == [pa.string(), pa.int64(), pa.bool_(), pa.float64(), pa.string()]


@pytest.mark.parametrize(
    ("columns", "change", "word"),
    [
        ({**COLUMNS, "more": str}, {"more": "x"}, "column 'more' is none"),
        ({**COLUMNS, "count": float}, {"count": 1.0}, "column 'count' is of the type double"),
        ({n: t for n, t in COLUMNS.items() if n != "good"}, {}, "column 'good' is missing"),
        (COLUMNS, {"key": None}, "a value is missing"),
    ],
)
def test_another_form_is_one_error(tmp_path, columns, change, word):
    path = tmp_path / "t.parquet"
    write_table(path, [{**asdict(ROWS[0]), **change}], arrow_schema(columns))
    with pytest.raises(ShardDamaged, match=rf"t\.parquet: not a table of measures .*{word}"):
        read_rows(path, Measured, "measures")


def test_an_older_table_takes_the_defaults(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {n: t for n, t in COLUMNS.items() if n not in ("err_mm", "note")}
    write_table(path, [{"key": "a", "count": 1, "good": True}], arrow_schema(columns))
    assert read_rows(path, Measured, "measures") == [Measured("a", 1, True)]


def test_more_rows_than_a_table_has_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_rows(path, Measured, ROWS)
    monkeypatch.setattr(tables, "_MAX_ROWS", 1)
    with pytest.raises(UnsafeInput, match="2 rows is over"):
        read_rows(path, Measured, "measures")


def test_damage_gives_only_errors_of_this_library(tmp_path):
    path = tmp_path / "t.parquet"
    write_failures(path, [FailedImage(n, f"key {n}", "SourceError", "torn") for n in range(20)])
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 20)):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        for read in (read_failures, read_candidates):
            try:
                read(path)
            except PamAugError:
                refused += 1
    assert refused > 300


def test_repeated_names_are_found_across_shards():
    names = Repeats()
    assert names.found() == []
    for part in (["a", "b"], [], ["c", "a"], ["b", "b", "d"]):
        names.add(part)
    assert names.found() == [((2, 1), (0, 0)), ((3, 0), (0, 1)), ((3, 1), (0, 1))]
