"""Promises 1 to 4 and 17: kills, exceptions, signals, disks that refuse, and two builders at once. Quick versions."""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fakes
import pytest
import yaml
from fakes import config
from made_shards import write_shard
from processes import exit_code, fork
from test_build import tar_bytes

from pam_aug import cli
from pam_aug.build.run import run_build
from pam_aug.errors import StorageError
from pam_aug.shards.reader import read_marker
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import shard_name

pytestmark = pytest.mark.usefixtures("fakes_installed")


def kill_packing(root: Path, kills: int, shards: int = 6) -> None:
    """Kills a process that packs, at random moments; every few kills the folder is begun anew, to meet all moments."""

    def pack(folder: Path) -> None:
        for n in range(shards):
            path = folder / shard_name("real", n)
            if read_marker(path) is None:
                write_shard(path, range(10 * n, 10 * n + 8))

    pack(root / "whole")
    rng, done, begun, tries = random.Random(0), 0, 0, 0
    while done < kills:
        folder = root / f"killed-{begun}"
        folder.mkdir(exist_ok=True)
        child = fork(lambda folder=folder: pack(folder))
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        killed = exit_code(child) == -signal.SIGKILL  # or it had finished: no kill
        assert verify(folder).damaged == []
        done, tries = done + killed, tries + 1
        if tries % 10 == 0 or not killed or done == kills:
            begun += 1
            pack(folder)
            for path in sorted((root / "whole").iterdir()):
                if path.suffix != ".json":  # a marker holds the seconds that the writing took
                    assert (folder / path.name).read_bytes() == path.read_bytes()
            assert verify(folder).uncommitted == [p for p in sorted(folder.iterdir()) if p.name.startswith(".tmp-")]


def test_c5_01_a_few_kills_of_a_process_that_packs(tmp_path):
    kill_packing(tmp_path, 10)


def kill_generating(root: Path, monkeypatch: pytest.MonkeyPatch, kills: int, inputs: int) -> None:
    """Kills a build that generates; the log of the generator says what was paid for more than once."""
    settings = config(f"source.count={inputs}")
    run_build(settings, root / "clean", ("synthetic",), workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "log", root / "log")
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.02)
    rng, done = random.Random(0), 0
    while done < kills:
        child = fork(lambda: run_build(settings, root / "out", ("synthetic",), workers=0))
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        if exit_code(child) == 0:
            break
        done += 1
    run_build(settings, root / "out", ("synthetic",), workers=0)
    made = Counter((root / "log").read_text().split())
    assert len(made) == 8 * inputs
    assert sum(made.values()) - len(made) <= done
    assert done == kills
    assert tar_bytes(root / "out") == tar_bytes(root / "clean")
    assert verify(root / "out").damaged == []


def test_c5_02_a_few_kills_of_a_build_that_generates(tmp_path, monkeypatch):
    kill_generating(tmp_path, monkeypatch, kills=3, inputs=5)


def test_c5_03_a_build_stopped_at_each_candidate_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    settings = config("source.count=2", "generate.candidates=3")
    run_build(settings, tmp_path / "clean", ("synthetic",), workers=0)
    generate, left = fakes.FakeGenerator.generate, [0]

    def stopping(self, scene, seeds):
        for image in generate(self, scene, seeds):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield image

    for stop in range(6):
        out = tmp_path / str(stop)
        monkeypatch.setattr(fakes.FakeGenerator, "generate", stopping)
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            run_build(settings, out, ("synthetic",), workers=0)
        assert not [p for p in out.rglob("*") if p.suffix in (".tar", ".idx") or p.parent.name == "shards"]
        monkeypatch.setattr(fakes.FakeGenerator, "generate", generate)
        run_build(settings, out, ("synthetic",), workers=0)
        assert tar_bytes(out) == tar_bytes(tmp_path / "clean")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_c5_04_a_signal_ends_the_command_with_a_code_and_nothing_half(tmp_path, monkeypatch, number):
    out, log = tmp_path / "out", tmp_path / "log"
    log.touch()
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(fakes.CONFIG))
    monkeypatch.setattr(fakes.FakeGenerator, "log", log)
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.02)
    arguments = ["pam-aug", "build", str(tmp_path / "quick.yaml"), "--out", str(out), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    child = fork(cli.main)
    deadline = time.monotonic() + 60
    while len(log.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, number)
    assert exit_code(child) == (130 if number == signal.SIGINT else -number)
    assert verify(out).damaged == []
    assert not list((out / "shards").glob("syn-*.json"))
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.0)
    run_build(config(), out, workers=0)
    run_build(config(), tmp_path / "clean", workers=0)
    assert tar_bytes(out) == tar_bytes(tmp_path / "clean")


def test_c5_04_a_read_only_folder_is_a_storage_error():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)

        def write() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write anywhere
            write_shard(folder / "real-00000.tar", range(2))

        assert exit_code(fork(write)) == StorageError.exit_code
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)


def test_c5_17_two_builders_in_one_folder(tmp_path, monkeypatch):
    run_build(config(), tmp_path / "clean", workers=0)
    monkeypatch.setattr(fakes.FakeGenerator, "seconds", 0.002)
    children = [fork(lambda: run_build(config(), tmp_path / "out", workers=0)) for _ in range(2)]
    codes = [exit_code(child) for child in children]
    assert 0 in codes
    assert 99 not in codes
    run_build(config(), tmp_path / "out", workers=0)
    assert verify(tmp_path / "out").damaged == []
    assert tar_bytes(tmp_path / "out") == tar_bytes(tmp_path / "clean")
