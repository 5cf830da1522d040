"""Where a build keeps what: the paths inside an output folder."""

from pathlib import Path

__all__ = [
    "build_file",
    "candidates_path",
    "failures_folder",
    "failures_path",
    "hands_folder",
    "rejected_path",
    "report_folder",
    "screening_path",
    "shards_folder",
]


def build_file(out: Path) -> Path:
    """The resolved configuration and versions; written first."""
    return out / "build.json"


def shards_folder(out: Path) -> Path:
    return out / "shards"


def candidates_path(out: Path, shard: int) -> Path:
    """Every candidate of a synthetic shard's inputs, kept or rejected."""
    return out / "candidates" / f"{shard:05d}.parquet"


def failures_folder(out: Path) -> Path:
    return out / "failures"


def failures_path(out: Path, shard: int) -> Path:
    """Why images of the source are not in a real shard; there where any failed."""
    return failures_folder(out) / f"real-{shard:05d}.parquet"


def screening_path(out: Path, shard: int) -> Path:
    """What screening measured of a synthetic shard's inputs, refused ones included; where a build screens."""
    return out / "screening" / f"{shard:05d}.parquet"


def rejected_path(out: Path, shard: int) -> Path:
    """The rejected candidates' samples; no reader of training data opens this folder."""
    return out / "rejected" / f"{shard:05d}.tar"


def hands_folder(out: Path) -> Path:
    """Hand models that were fitted to a source's own skeleton."""
    return out / "hands"


def report_folder(out: Path) -> Path:
    return out / "report"
