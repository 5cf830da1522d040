"""A small DexYCB tree of our own making, opened, copied and damaged by the tests of its converter.

Fixtures are imported under one name and asked for by another: `fake`, `copy`, `items`.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_dexycb import SERIALS, FakeDexYCB, write_dexycb

from pam_aug.config import resolve
from pam_aug.converters.dexycb import DexYCB


@pytest.fixture(scope="module", name="fake")
def written_tree(tmp_path_factory) -> FakeDexYCB:
    return write_dexycb(tmp_path_factory.mktemp("dexycb"))


@pytest.fixture(name="copy")
def copied_tree(fake, tmp_path) -> FakeDexYCB:
    """A tree that a test may damage."""
    shutil.copytree(fake.root, tmp_path / "dexycb")
    return dataclasses.replace(fake, root=tmp_path / "dexycb")


@pytest.fixture(autouse=True)
def no_mano_by_environment(monkeypatch):
    monkeypatch.delenv("MANO_DIR", raising=False)


def open_dexycb(fake: FakeDexYCB, mano: bool = True, **options) -> DexYCB:
    given = {"root": str(fake.root), "subjects": [1, 2], "sequence_table": str(fake.table), **options}
    return DexYCB(resolve(DexYCB.Options, {**given, **({"mano_dir": str(fake.mano_dir)} if mano else {})}))


@pytest.fixture(scope="module", name="items")
def all_items(fake):
    """Every item of s0/train by (sequence, serial, frame)."""
    converter = open_dexycb(fake)
    found = {}
    for i in range(len(converter)):
        item = converter.item(i)
        _, _, sequence, serial, frame = item.sample.key.split("/")
        found[sequence, serial, int(frame)] = item
    return found


def labels_path(fake: FakeDexYCB, which: int = 0, camera: int = 0, frame: int = 1) -> Path:
    s = fake.sequences[which]
    return fake.root / s.subject / s.name / SERIALS[camera] / f"labels_{frame:06d}.npz"


def rewrite(path: Path, arrays: dict) -> None:
    path.unlink()
    np.savez_compressed(path, **arrays)
