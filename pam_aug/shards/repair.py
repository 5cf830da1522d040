"""Removing what stopped builds left behind, and nothing else: temporary files, uncommitted shards, stale work.

Three kinds of leftovers exist. A *temporary file* that no process holds a lock on. A *shard without its marker*: its
`.tar` and `.idx` under a shard's own name in `shards/` or `rejected/`; it is looked at under the lock that writers hold
from rename to marker, so a shard that is just being committed is waited for. *Stale work*: `work/syn-00012/` of a
synthetic shard that is committed. Work of shards that are not committed is kept, because a resumed build uses it.

A build may run on the folder meanwhile. Where the file system keeps locks between machines (local disks, NFS 4), its
files are seen to be in use; elsewhere a builder on another machine can lose a temporary file, which ends it with a
StorageError and no damage: the same command resumes.
"""

import errno
import fcntl
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pam_aug.errors import ConfigError, StorageError
from pam_aug.shards.atomic import TEMPORARY_PREFIX, remove_temporary, storage_errors
from pam_aug.shards.writer import index_path, is_committed, marker_path

__all__ = ["Leftover", "Repair", "repair"]

_SHARD_NAMES = {"shards": re.compile(r"(real|syn)-\d{5,}\.tar"), "rejected": re.compile(r"\d{5,}\.tar")}
_WRITTEN = ("shards", "rejected", "candidates", "screening", "failures", "report")
_STALE_WORK = re.compile(r"syn-\d{5,}")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder, by its path inside the build, and why it is a leftover."""

    path: str
    reason: str


@dataclass(slots=True)
class Repair:
    """What `repair` removed (or would remove), and the temporary files that it left because they are in use."""

    dry_run: bool
    removed: list[Leftover] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        removed = [{"path": r.path, "reason": r.reason} for r in self.removed]
        return {"dry_run": self.dry_run, "removed": removed, "in_use": self.in_use}

    def as_text(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        lines = [f"{verb} {r.path}: {r.reason}" for r in self.removed]
        lines += [f"left {path}: a running build writes it" for path in self.in_use]
        return "\n".join([*lines, f"{verb} {len(self.removed)} leftovers; committed shards were not touched"])


def repair(folder: Path, dry_run: bool = False) -> Repair:
    """Removes the leftovers of stopped builds from a build's folder; with `dry_run` only lists them.

    What is removed depends on the folder and its locks alone, never on ages. Raises ConfigError for a folder without
    `build.json` (somebody else's tar files have no markers either), StorageError where a file cannot be removed.
    """
    folder = Path(folder)
    if not (folder / "build.json").is_file():
        raise ConfigError(
            f"{folder}: holds no build.json, so it is no build's folder and nothing in it is touched; "
            "give the --out folder of a build",
            path=str(folder),
        )
    report = Repair(dry_run)
    for name, pattern in _SHARD_NAMES.items():
        _uncommitted_shards(folder, folder / name, pattern, report)
    _stale_work(folder, report)
    _temporary_files(folder, report)
    return report


def _uncommitted_shards(folder: Path, place: Path, pattern: re.Pattern[str], report: Repair) -> None:
    if not place.is_dir():
        return
    with storage_errors(place):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for path in sorted(place.glob("*.tar")):
                if not pattern.fullmatch(path.name) or marker_path(path).exists():
                    continue
                # The index goes first: a tar alone is a leftover, an index alone would be damage.
                for part in (index_path(path), path):
                    if part.exists():
                        _remove(folder, part, "its shard has no commit marker", report)
        finally:
            os.close(descriptor)


def _stale_work(folder: Path, report: Repair) -> None:
    work = folder / "work"
    for path in sorted(work.iterdir()) if work.is_dir() else ():
        if _STALE_WORK.fullmatch(path.name) and is_committed(folder / "shards" / f"{path.name}.tar"):
            _remove(folder, path, "the shard that this work was for is committed", report)


def _temporary_files(folder: Path, report: Repair) -> None:
    places = [folder, *(folder / name for name in _WRITTEN)]
    found = [path for place in places for path in place.glob(f"{TEMPORARY_PREFIX}*")]
    for place, _, names in os.walk(folder / "work"):  # rglob fails on folders that a running build removes meanwhile
        found += [Path(place, name) for name in names if name.startswith(TEMPORARY_PREFIX)]
    for path in sorted(found):
        if path.is_symlink() or not path.is_file() or any(path.is_relative_to(folder / r.path) for r in report.removed):
            continue
        removed = remove_temporary(path, report.dry_run)
        if removed is False:
            report.in_use.append(str(path.relative_to(folder)))
        elif removed:
            report.removed.append(Leftover(str(path.relative_to(folder)), "a temporary file that nobody writes"))


def _remove(folder: Path, path: Path, reason: str, report: Repair) -> None:
    if not report.dry_run:
        try:
            with storage_errors(path):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except StorageError as error:
            if error.data["errno"] != errno.ENOENT:
                raise
            return  # a running build was quicker: it renamed or removed it itself
    report.removed.append(Leftover(str(path.relative_to(folder)), reason))
