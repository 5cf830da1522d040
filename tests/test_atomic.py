"""Files that are whole or absent."""

import os

import pytest

from pam_aug.errors import StorageError
from pam_aug.shards.atomic import copy_atomic


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
