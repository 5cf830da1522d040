"""Repair: leftovers go, everything committed stays, and what a running build uses is left alone."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest

from pam_aug import registry
from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve
from pam_aug.errors import ConfigError
from pam_aug.shards.atomic import create_temporary, temporary_path
from pam_aug.shards.repair import repair
from pam_aug.shards.verify import verify


@pytest.fixture
def build(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()
    run_build(resolve(BuildConfig, fakes.CONFIG), tmp_path / "out", workers=0)
    return tmp_path / "out"


def files(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def leave(out: Path) -> list[str]:
    """The leftovers of stopped builds; their names, folders as they are removed."""
    left = [
        temporary_path(out / "mix.json"),
        temporary_path(out / "candidates" / "00001.parquet"),
        temporary_path(out / "rejected" / "00001.tar"),
        temporary_path(out / "work" / "syn-00007" / "00000" / "03-0011223344556677.jpg"),
        out / "shards" / "syn-00009.tar",
        out / "shards" / "syn-00009.idx",
        out / "rejected" / "00009.tar",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"part of a file")
    stale = out / "work" / "syn-00001" / "00000"
    stale.mkdir(parents=True)
    temporary_path(stale / "rows.parquet").write_bytes(b"x")
    return sorted([*(str(p.relative_to(out)) for p in left), "work/syn-00001"])


def test_leftovers_go_and_nothing_else(build):
    before = files(build)
    wanted = leave(build)
    kept = build / "work" / "syn-00007" / "00000" / "04-0011223344556677.jpg"  # of a shard that is not committed
    kept.write_bytes(b"paid for")
    (build / "shards" / "somebody-elses.tar").write_bytes(b"not ours")
    with_leftovers = files(build)
    report = repair(build, dry_run=True)
    assert sorted(r.path for r in report.removed) == wanted
    assert files(build) == with_leftovers
    report = repair(build)
    assert sorted(r.path for r in report.removed) == wanted
    others = {str(kept.relative_to(build)), "shards/somebody-elses.tar"}
    assert {n: h for n, h in files(build).items() if n not in others} == before
    assert others <= set(files(build))
    assert repair(build).removed == []


def test_a_build_goes_on_after_repair_as_if_nothing_had_been(build):
    before = {n: h for n, h in files(build).items() if n.endswith(".tar")}
    (build / "shards" / "syn-00001.json").unlink()  # killed between the shard and its marker
    (build / "shards" / "real-00000.json").unlink()
    removed = [r.path for r in repair(build).removed]
    assert removed == [f"shards/{name}.{s}" for name in ("real-00000", "syn-00001") for s in ("idx", "tar")]
    assert verify(build).uncommitted == []
    run_build(resolve(BuildConfig, fakes.CONFIG), build, workers=0)
    assert {n: h for n, h in files(build).items() if n.endswith(".tar")} == before
    assert verify(build).damaged == []


def test_a_file_that_is_being_written_is_left(build):
    path = temporary_path(build / "shards" / "syn-00009.tar")
    with create_temporary(path) as file:
        file.write(b"half")
        report = repair(build)
        assert (report.removed, report.in_use) == ([], [f"shards/{path.name}"])
        assert path.exists()
    assert [r.path for r in repair(build).removed] == [f"shards/{path.name}"]
    assert not path.exists()


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "real-00000.tar").write_bytes(b"somebody's years of work")
    with pytest.raises(ConfigError, match=r"no build\.json"):
        repair(tmp_path)
    assert (tmp_path / "shards" / "real-00000.tar").exists()


def test_a_running_build_is_not_disturbed(build, tmp_path):
    script = Path(__file__).with_name("build_with_fakes.py")
    out, repairs = tmp_path / "live", 0
    process = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    while process.poll() is None:
        if (out / "build.json").is_file():
            repair(out)
            repairs += 1
        time.sleep(0.002)
    assert process.wait() == 0
    assert repairs > 10
    assert tars(out) == tars(build)
    assert verify(out).damaged == []


def tars(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in files(out).items() if name.endswith(".tar")}
