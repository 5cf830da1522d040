"""The tables and the card beside the shards: exact round trips, counts, and what `verify --rebuild` makes anew."""

import hashlib
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from made_shards import make_jpeg, make_sample, messages, write_folder

from pam_aug.errors import ShardDamaged
from pam_aug.schema import Candidate, Score, Verdict
from pam_aug.shards.card import dataset_card
from pam_aug.shards.manifest import (
    manifest_table,
    read_candidates,
    read_mix,
    write_candidates,
    write_manifest,
    written_row,
)
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path)


def test_candidates_round_trip_with_infinities(tmp_path):
    rows = [
        Candidate("demo/s/q/c/1", 0, 2**62 + 1, "rendered", "simplehand", 12.5, 6.25, 0.1, 0.9),
        Candidate(
            *("demo/s/q/c/1", 1, 5, "rendered", "simplehand", math.inf, math.inf, math.inf, 0.0),
            failure="no hand",
            verdict=Verdict(False, "worst quarter"),
        ),
    ]
    path = tmp_path / "candidates" / "00012.parquet"
    write_candidates(path, rows)
    assert read_candidates(path) == rows
    first = path.read_bytes()
    write_candidates(path, rows)
    assert path.read_bytes() == first
    write_candidates(path, [])
    assert read_candidates(path) == []
    path.write_bytes(first[:-20])
    with pytest.raises(ShardDamaged, match=r"00012\.parquet"):
        read_candidates(path)
    with pytest.raises(ShardDamaged):
        read_candidates(tmp_path / "none.parquet")


def test_the_manifest_has_a_row_per_sample(folder):
    import pyarrow.parquet as pq

    shards = sorted((folder / "shards").glob("*.tar"))
    assert write_manifest(folder / "manifest.parquet", shards) == 5
    rows = pq.ParquetFile(folder / "manifest.parquet").read().to_pylist()
    assert [(r["shard"], r["index"]) for r in rows] == [("real-00000.tar", n) for n in range(3)] + [
        ("syn-00000.tar", n) for n in range(2)
    ]
    assert rows[1]["image_sha256"] == hashlib.sha256(make_jpeg(1)).hexdigest()
    assert (rows[1]["sides"], rows[1]["hands"], rows[4]["synthetic"], rows[4]["err_mm"]) == ("left,right", 2, True, -1)
    (folder / "shards" / "syn-00000.tar").write_bytes(b"")
    before = (folder / "manifest.parquet").read_bytes()
    with pytest.raises(ShardDamaged):
        write_manifest(folder / "manifest.parquet", shards)
    assert (folder / "manifest.parquet").read_bytes() == before
    assert not list(folder.glob(".tmp-*"))


def test_rows_made_while_a_shard_was_written_give_the_same_manifest(folder, tmp_path):
    shards = sorted((folder / "shards").glob("*.tar"))
    write_manifest(folder / "manifest.parquet", shards)
    errors = (0.1, 1 / 3, 1e-7, 16777217.5, 1e22, 3e38, -1.0, 12.0)
    scores = [Score("x", a, b, a, b) for a, b in pairwise(errors)]
    samples = [replace(make_sample(n), score=score) for n, score in enumerate(scores)]
    with ShardWriter(tmp_path / "new" / "real-00007.tar", "real") as shard:
        rows = []
        for n, sample in enumerate(samples):
            shard.add(sample, make_jpeg(n))
            digest = hashlib.sha256(make_jpeg(n)).hexdigest()
            rows.append(written_row(sample, "real-00007.tar", n, len(make_jpeg(n)), digest))
    new = [tmp_path / "new" / "real-00007.tar", shards[0]]
    read, known = tmp_path / "read.parquet", tmp_path / "known.parquet"
    assert write_manifest(read, new) == write_manifest(known, new, {new[0]: manifest_table(rows)}) == 10
    assert read.read_bytes() == known.read_bytes()
    assert [row["err_mm"] for row in rows][:2] == [0.1, 0.33333334]
    assert shard.sha256 == shard.marker["sha256"] == hashlib.sha256(new[0].read_bytes()).hexdigest()


def test_the_card_counts_what_the_manifest_holds(folder):
    write_manifest(folder / "manifest.parquet", sorted((folder / "shards").glob("*.tar")))
    text = dataset_card("demo-build", read_mix(folder), folder / "manifest.parquet")
    sizes = [sum(len(make_jpeg(n)) for n in range(count)) / 1e6 for count in (3, 2)]
    assert f"| of the source | demo | - | - | 32 × 32 | 3 | 6 | {sizes[0]:.1f} | - | CC0 |" in text
    assert f"| generated | demo | - | - | 32 × 32 | 2 | 2 | {sizes[1]:.1f} | - | CC0 |" in text
    assert "| syn | 1/2 | 1 | 1 | 2 | 2 |" in text
    assert "one pass over the hands of `real`" in text
    assert text == dataset_card("demo-build", read_mix(folder), folder / "manifest.parquet")


def test_the_manifest_and_card_are_rebuilt(folder):
    path, card = folder / "manifest.parquet", folder / "card.md"
    good, text = path.read_bytes(), card.read_bytes()
    few = sorted((folder / "shards").glob("*.tar"))[:1]
    for change in (
        lambda: path.write_bytes(good[:-20]),
        lambda: write_manifest(path, few),
        lambda: path.write_bytes(b""),
    ):
        change()
        assert "manifest.parquet: is not of the mix's shards" in messages(folder)
        assert verify(folder, rebuild=True).rebuilt == [path, card]
        assert (path.read_bytes(), card.read_bytes()) == (good, text)
        assert verify(folder).ok
    path.unlink()  # which somebody may have wanted
    assert verify(folder).ok
    assert verify(folder, rebuild=True).rebuilt == [path, card]
