"""A small OAKINK2 tree of our own making (the fixture `tree`), opened and copied by the tests of its converter."""

import shutil
from pathlib import Path

import pytest
from fake_oakink2 import write_tree

from pam_aug.config import resolve
from pam_aug.converters.oakink2 import OakInk2


@pytest.fixture(scope="module", name="tree")
def written_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("oakink2")
    return root, *write_tree(root)


def open_oakink2(root: Path, **options) -> OakInk2:
    given = {"root": str(root), "mano_dir": str(root / "mano"), **options}
    return OakInk2(resolve(OakInk2.Options, given))


def by_name(source: OakInk2) -> dict[tuple[str, int], int]:
    """Item numbers by (serial, frame) of all sequences."""
    return {
        (t.serial, int(i)): int(source.index.ends[n]) - len(t.frame_ids) + k
        for n, t in enumerate(source.index.tracks)
        for k, i in enumerate(t.frame_ids)
    }


def copy_tree(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "tree"))
