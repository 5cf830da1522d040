"""Shared test set-up: one thread per library, real sample files by environment variable."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import fakes  # noqa: E402
import pytest  # noqa: E402
import reliability_index  # noqa: E402
import torch  # noqa: E402

from pam_aug import registry  # noqa: E402

torch.set_num_threads(1)
cv2.setNumThreads(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sample files; the test is skipped where $PAM_AUG_REAL_DATA is not set."""
    root = os.environ.get("PAM_AUG_REAL_DATA")
    if not root:
        pytest.skip("PAM_AUG_REAL_DATA is not set")
    return Path(root)


@pytest.fixture
def fakes_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of `fakes.py` beside the registered ones, in one test."""
    monkeypatch.setattr(registry, "load", registry.load)
    fakes.install()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Lets `pytest -k c5_05` find the tests of promise 5 under the names that they have in their own files."""
    item.extra_keyword_matches.update(reliability_index.numbers_of(item.name))
