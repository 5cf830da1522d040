"""Files that are whole or absent."""

import os
import stat
from pathlib import Path

import pytest
from test_shards import write_shard

from pam_aug.errors import StorageError
from pam_aug.shards.atomic import TEMPORARY_PREFIX, copy_atomic, fsync_together, remove_temporary, staged


@pytest.mark.parametrize("link", [False, True])
def test_a_copy_replaces_what_stood_there_and_leaves_nothing_else(tmp_path, link):
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    old.write_bytes(b"whole")
    new.parent.mkdir()
    new.write_bytes(b"a leftover")
    copy_atomic(old, new, link=link)
    assert new.read_bytes() == b"whole"
    assert os.path.samefile(old, new) == link
    assert [p.name for p in new.parent.iterdir()] == ["new"]


def test_where_links_are_refused_the_bytes_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"whole")
    monkeypatch.setattr(os, "link", refuse)
    copy_atomic(old, new, link=True)
    assert new.read_bytes() == b"whole"
    assert not os.path.samefile(old, new)


def test_a_source_that_is_not_there_is_named_and_nothing_stays(tmp_path):
    with pytest.raises(StorageError, match="new"):
        copy_atomic(tmp_path / "old", tmp_path / "new", link=True)
    assert not list(tmp_path.iterdir())


def test_a_staged_file_is_there_once_it_was_renamed_and_gone_otherwise(tmp_path):
    with staged(tmp_path / "kept", b"one") as file, staged(tmp_path / "dropped", b"two") as other:
        assert all(p.name.startswith(TEMPORARY_PREFIX) for p in tmp_path.iterdir())
        assert remove_temporary(Path(other.name)) is False  # held by its writer
        fsync_together(file, other)
        os.replace(file.name, tmp_path / "kept")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("kept", b"one")]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_file_that_does_not_reach_the_disk_fails_them_all(tmp_path, monkeypatch, failing):
    files = [open(tmp_path / str(n), "wb") for n in range(3)]  # noqa: SIM115
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        if descriptor == files[failing].fileno():
            raise OSError(5, "Input/output error")
        real(descriptor)
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        fsync_together(*files)
    assert sorted(synced) == sorted(f.fileno() for f in files if f is not files[failing])
    for file in files:
        file.close()


def test_the_marker_is_named_after_everything_else_is_on_the_disk(tmp_path, monkeypatch):
    """The order of a commit."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        steps.append("fsync " + ("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"))

    def renamed(old, new) -> None:
        replace(old, new)
        steps.append(f"rename {Path(new).suffix}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    path = write_shard(tmp_path / "real-00000.tar", range(20))
    assert steps == ["fsync file"] * 3 + ["rename .tar", "rename .idx", "fsync folder", "rename .json", "fsync folder"]
    monkeypatch.undo()
    assert write_shard(tmp_path / "other" / "real-00000.tar", range(20)).read_bytes() == path.read_bytes()
