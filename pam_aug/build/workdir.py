"""Finished candidates of shards that are not committed yet: what a killed build does not pay for twice.

`work/syn-00012/00007/` holds one input's candidates as `<index>-<digest>.jpg` and, once all are scored, `rows.parquet`.
The digest in the name tells a whole file from a torn one, so no fsync is needed here. The folder is safe to delete.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pam_aug.schema import Candidate
from pam_aug.shards.atomic import create_temporary, storage_errors, temporary_path
from pam_aug.shards.manifest import read_candidates, write_candidates

__all__ = ["InputWork", "drop_shard_work", "shard_work"]


def shard_work(out: Path, shard: int) -> Path:
    """The folder of a synthetic shard's unfinished work."""
    return out / "work" / f"syn-{shard:05d}"


def drop_shard_work(out: Path, shard: int) -> None:
    """Remove what a committed shard no longer needs."""
    shutil.rmtree(shard_work(out, shard), ignore_errors=True)


class InputWork:
    """The finished candidates of one input."""

    def __init__(self, out: Path, shard: int, position: int) -> None:
        self.folder = shard_work(out, shard) / f"{position:05d}"

    def images(self) -> dict[int, bytes]:
        """Candidate index → image bytes, of the files that are whole."""
        found: dict[int, bytes] = {}
        if self.folder.is_dir():
            for path in sorted(self.folder.glob("[0-9][0-9]-*.jpg")):
                try:
                    data = path.read_bytes()
                except FileNotFoundError:  # another builder of this folder committed the shard
                    continue
                if path.name == _name(int(path.name[:2]), data):
                    found[int(path.name[:2])] = data
        return found

    def put_image(self, index: int, data: bytes) -> None:
        """Keep one candidate. Raises StorageError where the disk refuses."""
        path = self.folder / _name(index, data)
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            try:
                with create_temporary(temporary) as file:
                    file.write(data)
                    file.flush()
                    os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.parquet"

    @property
    def screening_path(self) -> Path:
        """What screening measured of the input, where the build screens."""
        return self.folder / "screening.parquet"

    def is_done(self) -> bool:
        return self.rows_path.is_file()

    def rows(self) -> list[Candidate]:
        return read_candidates(self.rows_path)

    def put_rows(self, rows: Sequence[Candidate]) -> None:
        """Record the scores: from here on the input is finished."""
        with storage_errors(self.rows_path):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_candidates(self.rows_path, rows)

    def forget_rows(self) -> None:
        """Makes the input unfinished again; its images stay."""
        self.rows_path.unlink(missing_ok=True)


def _name(index: int, data: bytes) -> str:
    return f"{index:02d}-{hashlib.blake2b(data, digest_size=8).hexdigest()}.jpg"
