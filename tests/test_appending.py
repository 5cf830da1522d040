"""Appending past the page cache: the same bytes and hash wherever blocks end, and no failed write goes unnoticed."""

import errno
import hashlib
import os
import random
import threading
from pathlib import Path

import pytest

from pam_aug.shards import appending
from pam_aug.shards.appending import Appender

BUFFER = appending._BUFFER_BYTES


def append_and_finish(appender: Appender) -> None:
    for _ in range(3):
        appender.append(bytes(BUFFER))
    appender.finish()


def append_all(path: Path, parts: list[bytes]) -> Appender:
    with open(path, "xb", 0) as file:
        appender = Appender(file.fileno())
        for part in parts:
            appender.append(part, b"")
        appender.finish()
    return appender


def check(path: Path, parts: list[bytes]) -> None:
    wanted = b"".join(parts)
    appender = append_all(path, parts)
    assert path.read_bytes() == wanted
    assert (appender.bytes, appender.sha256) == (len(wanted), hashlib.sha256(wanted).hexdigest())


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [4096], [BUFFER], [BUFFER - 1, 1, 1], [3 * BUFFER + 17], [512, 9_000_000]]
)
def test_blocks_may_end_anywhere(tmp_path, sizes):
    check(tmp_path / "x", [random.Random(size).randbytes(size) for size in sizes])


def test_many_parts_of_random_sizes(tmp_path):
    rng = random.Random(0)
    check(tmp_path / "x", [rng.randbytes(int(10 ** rng.uniform(0, 5.5))) for _ in range(300)])


def test_writes_that_are_cut_short_go_on(tmp_path, monkeypatch):
    write, rng = os.write, random.Random(1)
    monkeypatch.setattr(os, "write", lambda d, data: write(d, data[: rng.randint(1, len(data))]))
    check(tmp_path / "x", [rng.randbytes(100_000) for _ in range(40)])


@pytest.mark.parametrize("refused_at", ["opening", "writing"])
def test_a_file_system_without_direct_writing(tmp_path, monkeypatch, refused_at):
    write, refused = os.write, []

    def no_direct(descriptor: int, data: memoryview) -> int:
        if not refused:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    def no_flag(*_) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    if refused_at == "opening":
        monkeypatch.setattr(appending.fcntl, "fcntl", lambda d, c, *flags: no_flag() if flags else 0)
    else:
        monkeypatch.setattr(appending, "_set_direct", lambda _, on: on)
        monkeypatch.setattr(os, "write", no_direct)
    check(tmp_path / "x", [random.Random(2).randbytes(30_000) for _ in range(300)])
    assert bool(refused) == (refused_at == "writing")


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_failed_write_is_told_from_then_on(tmp_path, monkeypatch, fails_at):
    write, calls, threads = os.write, [], threading.active_count()

    def full(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with open(tmp_path / "x", "xb", 0) as file:
        appender = Appender(file.fileno())
        with pytest.raises(OSError, match="No space"):
            append_and_finish(appender)
        for last in (lambda: appender.append(bytes(BUFFER)), appender.finish):
            with pytest.raises(OSError, match="No space"):
                last()
        appender.close()
    assert len(calls) == fails_at + 1  # nothing was written after the one that failed
    assert threading.active_count() == threads
