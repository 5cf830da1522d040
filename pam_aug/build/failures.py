"""What fails in a build: how much of it in a row ends the build, and the table of real images that failed.

Candidates that failed are rows of `candidates/`. A real image that failed has no row there, so its reason is kept in
`failures/real-00012.parquet`, beside the shard that lacks it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pam_aug.errors import BudgetExceeded
from pam_aug.shards.atomic import storage_errors
from pam_aug.shards.tables import read_rows, write_rows

__all__ = ["FailedImage", "Streak", "count_failures", "read_failures", "write_failures"]


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A real image that is in no shard: its number in the source, its key where it was read so far, and why."""

    index: int
    key: str
    error: str
    reason: str


@dataclass(slots=True)
class Streak:
    """The failures since the last image that worked, in one worker; `limit` of them raise BudgetExceeded, 0 never.

    What wholly failed meanwhile is told with the error, so that it can be tried again once the cause is removed:
    `inputs` as (shard, position), `shards` as the numbers of real shards.
    """

    limit: int
    count: int = 0
    inputs: list[tuple[int, int]] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)

    def ended(self) -> None:
        """An image worked."""
        self.count = 0
        self.inputs.clear()
        self.shards.clear()

    def add(self, reason: str, images: int = 1) -> None:
        """`images` failed. Raises BudgetExceeded where that makes too many."""
        self.count += images
        if self.limit and self.count >= self.limit:
            raise BudgetExceeded(
                f"stopped, because {self.count} images in a row failed, the last one with: {reason}\nWhat is finished "
                "is kept. Remove the cause and run the same command again: it goes on, and tries these again. Where "
                f"the source is really broken in so many places, set stop_after_failures (now {self.limit}) higher, "
                "or to 0 to never stop",
                inputs=tuple(self.inputs),
                shards=tuple(self.shards),
                reason=reason,
            )


def write_failures(path: Path, rows: Sequence[FailedImage]) -> None:
    """The table of a shard's failed images; none is written where none failed. Raises StorageError."""
    if rows:
        write_rows(path, FailedImage, rows)
    else:
        with storage_errors(path):
            path.unlink(missing_ok=True)  # of an earlier try at this shard


def read_failures(path: Path) -> list[FailedImage]:
    """The rows that `write_failures` wrote. Raises ShardDamaged for a file of another content."""
    return read_rows(path, FailedImage, "failures")


def count_failures(paths: Sequence[Path]) -> str:
    """What failed in these tables, in one line: "3 real images failed: 2 SourceError, 1 ShardDamaged"; "" for none."""
    kinds = Counter(row.error for path in paths for row in read_failures(path))
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{kinds.total()} real images failed: {listed}; the reasons are in failures/" if kinds else ""
