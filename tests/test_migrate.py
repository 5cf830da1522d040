"""Schema versions: data of another one is refused by name, and older data come to this one whole, byte for byte.

No version before 1 was ever released. Version 0 here is made for these tests, and really differs: the labels have
joints in millimetres under another name, the candidates errors in metres, the mix its shares under another name.
"""

import hashlib
import io
import os
import shutil
import signal
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from made_shards import make_sample, write_shard

from pam_aug import cli, registry, versions
from pam_aug.build.config import BuildConfig
from pam_aug.build.migrate import migrate
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, SchemaNewer, SchemaOlder, ShardDamaged
from pam_aug.mix import MixedDataset
from pam_aug.schema import sample_from_json, sample_to_json
from pam_aug.shards.manifest import read_candidates, read_mix
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter, marker_path
from pam_aug.versions import SCHEMA_VERSION, Step, check_version, steps_from, upgrade


def to_metres(label: dict[str, Any]) -> dict[str, Any]:
    hands = []
    for hand in label["hands"]:
        metres = (np.array(hand["joints_mm"]) * 1e-3).tolist()
        hands.append({**{n: v for n, v in hand.items() if n != "joints_mm"}, "joints_cam_m": metres})
    return {**label, "hands": hands}


def to_millimetres(row: dict[str, Any]) -> dict[str, Any]:
    return {**{n: v for n, v in row.items() if n != "err_m"}, "err_mm": row["err_m"] * 1e3}


def to_shares(mix: dict[str, Any]) -> dict[str, Any]:
    sources = [{**{n: v for n, v in s.items() if n != "ratio"}, "share": s["ratio"]} for s in mix["sources"]]
    return {**mix, "sources": sources}


STEP = Step(to_metres, to_millimetres, to_shares)


def downgrade(folder: Path) -> None:
    """Writes a folder of version 1 as version 0, every hash made right again."""
    hashes = {}
    for path in sorted(folder.rglob("*.tar")):
        marker, data = read_marker(path), io.BytesIO()
        assert marker is not None
        with ShardReader(path) as reader, tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for i, key in enumerate(reader.keys):
                label = orjson.loads(reader.label_bytes(i)) | {"schema_version": 0}
                for hand in label["hands"]:
                    hand["joints_mm"] = (np.array(hand.pop("joints_cam_m")) * 1e3).tolist()
                members = {reader.suffix(i): reader.image_bytes(i), "json": orjson.dumps(label)}
                members |= {name: reader.extra(i, name) for name in reader.extras(i)}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        path.write_bytes(data.getvalue())
        digest = hashlib.sha256(data.getvalue()).hexdigest()
        hashes[marker["sha256"]] = digest
        marker |= {"schema_version": 0, "sha256": digest, "bytes": len(data.getvalue())}
        marker_path(path).write_bytes(orjson.dumps(marker))
        path.with_suffix(".idx").unlink()
    for path in folder.glob("candidates/*"):
        table = pq.read_table(path)
        metres = [row["err_mm"] * 1e-3 for row in table.to_pylist()]
        table = table.drop_columns(["err_mm"]).append_column("err_m", [metres])
        pq.write_table(table.replace_schema_metadata({"schema_version": "0"}), path)
    tree = orjson.loads((folder / "mix.json").read_bytes())
    for source in tree["sources"]:
        source["ratio"] = source.pop("share")
        for shard in source["shards"]:
            shard["sha256"] = hashes[shard["sha256"]]
    (folder / "mix.json").write_bytes(orjson.dumps(tree | {"version": 0}))
    record = orjson.loads((folder / "build.json").read_bytes())
    record["identity"]["schema_version"] = 0
    (folder / "build.json").write_bytes(orjson.dumps(record))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pam-aug", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), *capsys.readouterr()


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> tuple[Path, Path]:
    """A build of this version, and the same one as version 0 with a leftover and a file of its owner in it."""
    root = tmp_path_factory.mktemp("builds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", registry.load)
        fakes.install()
        config = resolve(BuildConfig, fakes.CONFIG, ["source.count=3", "shards.depth=true"])
        run_build(config, root / "new", workers=0)
    shutil.copytree(root / "new", root / "old")
    downgrade(root / "old")
    (root / "old" / "notes.txt").write_text("by hand")
    (root / "old" / "shards" / ".tmp-real-00009.tar-1-ab").write_text("half")
    return root / "new", root / "old"


@pytest.fixture
def step(monkeypatch) -> None:
    monkeypatch.setitem(versions.STEPS, 0, STEP)


# ----------------------------------------------------------------------------------------------------------- versions


def test_other_versions_are_refused_and_say_what_to_do(monkeypatch):
    check_version(SCHEMA_VERSION, "here")
    with pytest.raises(SchemaNewer, match=r"here: schema version 2, .*upgrade the library") as newer:
        check_version(2, "here")
    assert (newer.value.found, newer.value.reads, newer.value.exit_code) == (2, 1, 4)
    with pytest.raises(SchemaOlder, match="no migration from that version is known"):
        check_version(0, "here")
    monkeypatch.setitem(versions.STEPS, 0, STEP)
    with pytest.raises(SchemaOlder, match="pam-aug migrate FOLDER --out NEW"):
        check_version(0, "here")
    for wrong in (None, "1", True, 1.0):
        with pytest.raises(SchemaError, match="no schema version"):
            check_version(wrong, "here")


def test_steps_lead_from_version_to_version(monkeypatch):
    assert steps_from(SCHEMA_VERSION, "") == ()
    for unknown, error in ((0, SchemaOlder), (2, SchemaNewer), (None, SchemaError)):
        with pytest.raises(error):
            steps_from(unknown, "")
    monkeypatch.setattr(versions, "SCHEMA_VERSION", 3)
    for start in (1, 2):
        monkeypatch.setitem(versions.STEPS, start, Step(lambda tree, n=start: {**tree, f"step{n}": len(tree)}))
    assert len(steps_from(2, "")) == 1
    found = upgrade({"schema_version": 1}, steps_from(1, ""), "sample", "")
    assert found == {"schema_version": 3, "step1": 1, "step2": 2}
    with pytest.raises(SchemaOlder):
        steps_from(0, "")


def test_every_reader_of_another_version_says_so(tmp_path, builds):
    _, old = builds
    newer = orjson.dumps(orjson.loads(sample_to_json(make_sample(0))) | {"schema_version": 2})
    with pytest.raises(SchemaNewer):
        sample_from_json(newer)
    for read, path in (
        (read_marker, old / "shards" / "real-00000.tar"),
        (ShardReader, old / "shards" / "real-00000.tar"),
        (read_candidates, old / "candidates" / "00000.parquet"),
        (read_mix, old),
    ):
        with pytest.raises(SchemaOlder, match=path.stem):
            read(path)
    path = write_shard(tmp_path / "real-00000.tar", range(1))
    marker = orjson.loads(marker_path(path).read_bytes())
    marker_path(path).write_bytes(orjson.dumps(marker | {"schema_version": 7}))
    with pytest.raises(SchemaNewer, match="version 7"):
        read_marker(path)
    path = old / "shards" / "real-00000.tar"
    with pytest.raises(SchemaOlder, match=r"000000\.json") as caught:
        ShardReader(path, read_marker(path, any_version=True)).sample(0)
    assert caught.value.found == 0


# ---------------------------------------------------------------------------------------------------------- migration


def test_a_migrated_build_is_the_build_that_this_version_makes(tmp_path, builds, step):
    new, old = builds
    before = hashes(old)
    done: list[int] = []
    result = migrate(old, tmp_path / "out", progress=done.append)
    assert hashes(old) == before
    assert result.versions == {0: len(list(old.rglob("*.tar"))) + len(list(old.glob("candidates/*"))) + 1}
    assert sum(done) == result.samples
    assert result.left == ("shards/.tmp-real-00009.tar-1-ab, which a stopped build left",)
    wanted, found = hashes(new), hashes(tmp_path / "out")
    same = [n for n in wanted if n.endswith((".tar", ".idx", "t.parquet", "mix.json")) or n.startswith("report/")]
    assert {n: found[n] for n in same} == {n: wanted[n] for n in same}
    for path in (new / "candidates").iterdir():
        rows, wanted_rows = (read_candidates(root / "candidates" / path.name) for root in (tmp_path / "out", new))
        assert [row.err_mm for row in rows] == pytest.approx([row.err_mm for row in wanted_rows], rel=1e-15)
        assert [replace(row, err_mm=0.0) for row in rows] == [replace(row, err_mm=0.0) for row in wanted_rows]
    assert set(found) == set(wanted) | {"migrated.json", "notes.txt"}
    assert verify(tmp_path / "out").ok
    assert len(MixedDataset(tmp_path / "out", 1)) == len(MixedDataset(new, 1))
    record = orjson.loads((tmp_path / "out" / "migrated.json").read_bytes())
    old_marker = read_marker(old / "shards" / "syn-00001.tar", any_version=True)
    assert old_marker is not None
    assert record["shards"]["shards/syn-00001.tar"] == {"schema_version": 0, "sha256": old_marker["sha256"]}
    counts = read_marker(tmp_path / "out" / "shards" / "syn-00001.tar")
    assert counts is not None
    assert counts["counts"] == old_marker["counts"]


def test_a_build_goes_on_in_the_migrated_folder(tmp_path, builds, step, monkeypatch):
    new, old = builds
    migrate(old, tmp_path / "out")
    (tmp_path / "out" / "shards" / "syn-00001.json").unlink()
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    run_build(resolve(BuildConfig, fakes.CONFIG, ["source.count=3", "shards.depth=true"]), tmp_path / "out", workers=0)
    path = Path("shards") / "syn-00001.tar"
    assert (tmp_path / "out" / path).read_bytes() == (new / path).read_bytes()


def test_a_stopped_migration_goes_on_and_no_build_does_in_it(tmp_path, builds, step, monkeypatch):
    new, old = builds
    add, left = ShardWriter.add, [9]

    def stopping(self, *arguments, **named):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        add(self, *arguments, **named)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            migrate(old, out)
    committed = hashes(out)
    assert any(name.endswith(".tar") for name in committed)
    assert not (out / "build.json").exists()
    assert not (out / "mix.json").exists()
    migrate(old, out)
    assert {n: hashes(out)[n] for n in committed} == committed
    assert (out / "mix.json").read_bytes() == (new / "mix.json").read_bytes()
    migrate(old, out)  # and again, with nothing left to do


def test_a_migration_killed_at_random_moments_ends_as_one_that_was_not(tmp_path, builds, step):
    new, old = builds
    out, rng, kills = tmp_path / "out", np.random.default_rng(0), 0
    while kills < 8:
        child = os.fork()
        if not child:
            migrate(old, out)
            os._exit(0)
        time.sleep(float(rng.uniform(0, 0.1)))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        kills += 1
        if out.is_dir():
            assert verify(out).ok
    migrate(old, out)
    wanted, found = hashes(new), hashes(out)
    tars = [name for name in wanted if name.endswith((".tar", ".idx", "mix.json"))]
    assert {name: found[name] for name in tars} == {name: wanted[name] for name in tars}
    assert kills


def test_what_cannot_be_migrated_is_refused(tmp_path, builds, step, monkeypatch):
    _, old = builds
    with pytest.raises(ConfigError, match="lies in the folder"):
        migrate(old, old / "inside")
    with pytest.raises(ConfigError, match="no folder"):
        migrate(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="no shard"):
        migrate(tmp_path / "mine", tmp_path / "out")
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="thesis"):
        migrate(old, tmp_path / "mine")
    damaged = tmp_path / "damaged"
    shutil.copytree(old, damaged)
    path = damaged / "rejected" / "00000.tar"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ShardDamaged, match="bytes changed"):
        migrate(damaged, tmp_path / "out")
    assert not (tmp_path / "out" / "rejected").exists() or not list((tmp_path / "out" / "rejected").glob("*.json"))
    shutil.copyfile(old / "rejected" / "00000.tar", path)
    (damaged / "shards" / "real-00001.json").unlink()
    with pytest.raises(ResumeMismatch, match="other shards"):
        migrate(damaged, tmp_path / "out")
    monkeypatch.setitem(versions.STEPS, 0, Step(lambda label: {**label, "hands": label["nothing"]}))
    with pytest.raises(SchemaError, match="has not the form of its version"):
        migrate(old, tmp_path / "third")


def test_the_command(tmp_path, builds, monkeypatch, capsys):
    new, old = builds
    out = str(tmp_path / "out")
    code, text, _ = run(monkeypatch, capsys, "migrate", str(new), "--out", out)
    assert (code, "nothing is to be done" in text) == (0, True)
    code, _, error = run(monkeypatch, capsys, "migrate", str(old), "--out", out)
    assert (code, "no migration from that version is known" in error) == (4, True)
    monkeypatch.setitem(versions.STEPS, 0, STEP)
    code, text, _ = run(monkeypatch, capsys, "migrate", str(old), "--out", out, "--dry-run")
    assert (code, "nothing was written" in text) == (0, True)
    assert not Path(out).exists()
    code, text, _ = run(monkeypatch, capsys, "migrate", str(old), "--out", out, "--json")
    assert code == 0
    assert orjson.loads(text)["written"]
    code, _, _ = run(monkeypatch, capsys, "verify", out)
    assert code == 0
