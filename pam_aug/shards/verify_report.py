"""What `verify` found, as data and as text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pam_aug.errors import ShardDamaged
from pam_aug.shards.files import Place

__all__ = ["Problem", "Report"]

_MOST_LINES = 20  # of same images, which may be as many as there are samples


@dataclass(frozen=True, slots=True)
class Problem:
    """A damaged file and what is wrong with it."""

    path: Place
    message: str


@dataclass(slots=True)
class Report:
    """What `verify` found. `uncommitted` are leftovers of stopped builds: no damage, a resumed build replaces them.

    `same_images` lists (key, first key) of samples whose image bytes stand in the folder twice: no damage, worth a
    look; in a mix that was written out they do so on purpose and are not listed. `elsewhere` are shards of the mix
    that lie in other folders: their markers were compared, their bytes were not read.
    """

    shards: int = 0
    samples: int = 0
    hands: int = 0
    damaged: list[Problem] = field(default_factory=list)
    uncommitted: list[Path] = field(default_factory=list)
    rebuilt: list[Path] = field(default_factory=list)
    same_images: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "shards": self.shards,
            "samples": self.samples,
            "hands": self.hands,
            "damaged": [{"path": str(p.path), "message": p.message} for p in self.damaged],
            "uncommitted": [str(p) for p in self.uncommitted],
            "rebuilt": [str(p) for p in self.rebuilt],
            "same_images": [list(pair) for pair in self.same_images],
            "elsewhere": self.elsewhere,
        }

    def as_text(self) -> str:
        """What a person reads: counts, then every damaged file, then what is worth a look."""
        lines = [
            f"{self.shards} shards, {self.samples} samples, {self.hands} hands: " + ("whole" if self.ok else "DAMAGED")
        ]
        lines += [f"damaged      {p.message}" for p in self.damaged]
        lines += [
            f"uncommitted  {path} (left by a stopped build; the same build command replaces it)"
            for path in self.uncommitted
        ]
        lines += [f"rebuilt      {path}" for path in self.rebuilt]
        lines += [f"same image   {key} and {first}" for key, first in self.same_images[:_MOST_LINES]]
        if len(self.same_images) > _MOST_LINES:
            lines.append(f"same image   and {len(self.same_images) - _MOST_LINES} more, which --json lists")
        folders = sorted({name.rpartition("/")[0] for name in self.elsewhere})
        lines += [f"not read     shards of the mix in {folder}: verify that folder as well" for folder in folders]
        return "\n".join(lines)

    def raise_if_damaged(self) -> None:
        """Raises ShardDamaged that names every damaged file."""
        if self.damaged:
            lines = "\n  ".join(p.message for p in self.damaged)
            raise ShardDamaged(
                f"{len(self.damaged)} damaged:\n  {lines}\nDelete a damaged shard's .tar and .json and run the build "
                "again: it makes that shard anew",
                damaged=list(self.damaged),
            )
