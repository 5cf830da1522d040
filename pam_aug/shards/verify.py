"""Checking a folder of shards: every byte hashed again, every sample read as its schema says, every count compared."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import ConfigError, PamAugError, ShardDamaged
from pam_aug.schema import SEG_FIRST_OBJECT, SEG_FOREARM, Sample
from pam_aug.shards.atomic import TEMPORARY_PREFIX, write_atomic
from pam_aug.shards.files import local_folder
from pam_aug.shards.images import decode_plane
from pam_aug.shards.index import index_bytes
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.writer import index_path, marker_path

__all__ = ["Problem", "Report", "check_hash", "verify"]

_SHARD = re.compile(r"(?:(?:real|syn|mixed)-)?\d{5,}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A damaged file and what is wrong with it."""

    path: Path
    message: str


@dataclass(slots=True)
class Report:
    """What `verify` found. `uncommitted` are leftovers of stopped builds: no damage, a resumed build replaces them.

    `same_images` lists (key, first key) of samples whose image bytes stand in the folder twice: no damage, worth a look
    """

    shards: int = 0
    samples: int = 0
    hands: int = 0
    damaged: list[Problem] = field(default_factory=list)
    uncommitted: list[Path] = field(default_factory=list)
    rebuilt: list[Path] = field(default_factory=list)
    same_images: list[tuple[str, str]] = field(default_factory=list)

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
        lines += [f"same image   {key} and {first}" for key, first in self.same_images]
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


def verify(folder: Path, rebuild: bool = False, progress: Callable[[Path], None] | None = None) -> Report:
    """Checks all shards in `folder`, its `shards/` and its `rejected/`, and that `mix.json` names what is there.

    Every image is decoded and every label read. `rebuild` writes missing or stale `.idx` files anew; without it they
    count as damage. `progress` is told of each shard before it is read. Raises ConfigError for what is no folder
    on a disk.
    """
    folder = local_folder(folder, "verify")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; give a build's output or a folder of shards", path=str(folder))
    report = Report()
    for place in (folder, folder / "shards", folder / "rejected"):
        keys: dict[str, Path] = {}
        images: dict[bytes, str] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.name.startswith(TEMPORARY_PREFIX):
                report.uncommitted.append(path)
            elif path.suffix == ".tar":
                if progress is not None:
                    progress(path)
                _check_shard(path, rebuild, report, keys, images)
            elif (
                path.suffix in (".json", ".idx")
                and _SHARD.fullmatch(path.stem)
                and not path.with_suffix(".tar").exists()
            ):
                report.damaged.append(Problem(path, f"{path}: its shard {path.stem}.tar is missing"))
    if (folder / "mix.json").exists():
        _check_mix(folder, report)
    return report


def check_hash(path: Path, sha256: str) -> str:
    """The sha256 of a shard, which must be the committed one. Raises ShardDamaged where it is not."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.strerror})", path=str(path)) from error
    if digest != sha256:
        raise ShardDamaged(f"{path}: its bytes changed since it was committed", path=str(path))
    return digest


def _check_shard(path: Path, rebuild: bool, report: Report, keys: dict[str, Path], images: dict[bytes, str]) -> None:
    try:
        marker = read_marker(path)
        if marker is None:
            report.uncommitted.append(path)
            return
        report.shards += 1
        digest = check_hash(path, marker["sha256"])
        with ShardReader(path) as reader:
            _check_content(reader, report, keys, images)
            expected = index_bytes(reader.derive_rows(), reader.bytes, digest)
        index = index_path(path)
        if not index.is_file() or index.read_bytes() != expected:
            if not rebuild:
                raise ShardDamaged(f"{index}: is missing or not of this shard; `--rebuild` writes it anew")
            write_atomic(index, expected)
            report.rebuilt.append(index)
    except (PamAugError, OSError) as error:
        report.damaged.append(Problem(path, str(error)))


def _check_content(reader: ShardReader, report: Report, keys: dict[str, Path], images: dict[bytes, str]) -> None:
    marker = reader.marker
    assert marker is not None
    hands = 0
    for i, key in enumerate(reader.keys):
        sample, where = reader.sample(i), f"{reader.path}:{key}"
        shape = reader.image(i).shape[:2]
        if shape != (sample.camera.height, sample.camera.width):
            raise ShardDamaged(f"{where}: its image has another size than its camera")
        if marker["kind"] != "mixed" and sample.synthetic != (marker["kind"] != "real"):
            raise ShardDamaged(f"{where}: its label says synthetic={sample.synthetic} in a {marker['kind']!r} shard")
        _check_extras(reader, i, sample, where)
        if key in keys:
            raise ShardDamaged(f"{where}: the key stands in {keys[key]} as well; keys are unique in a build")
        keys[key] = reader.path
        image = hashlib.sha256(reader.image_bytes(i)).digest()
        if image in images:
            report.same_images.append((key, images[image]))
        images.setdefault(image, key)
        hands += len(sample.hands)
    counts = marker["counts"]
    if marker["keys"] != reader.keys or (counts["samples"], counts.get("hands")) != (len(reader), hands):
        raise ShardDamaged(f"{marker_path(reader.path)}: its keys or counts are not those of the shard")
    report.samples += len(reader)
    report.hands += hands


def _check_extras(reader: ShardReader, i: int, sample: Sample, where: str) -> None:
    for name in reader.extras(i):
        plane = decode_plane(reader.extra(i, name), np.uint16 if name == "depth.png" else np.uint8, f"{where}.{name}")
        if plane.shape != (sample.camera.height, sample.camera.width):
            raise ShardDamaged(f"{where}.{name}: has another size than the camera")
        if name == "seg.png" and np.any((plane > SEG_FOREARM) & (plane < SEG_FIRST_OBJECT)):
            raise ShardDamaged(f"{where}.{name}: holds ids that name nothing")


def _check_mix(folder: Path, report: Report) -> None:
    path = folder / "mix.json"
    try:
        for source in read_mix(path).sources:
            for shard in source.shards:
                marker = read_marker(folder / shard.path)
                if marker is None or marker["sha256"] != shard.sha256:
                    raise ShardDamaged(f"{path}: {shard.path} is missing or another one; run the mix again")
    except PamAugError as error:
        report.damaged.append(Problem(path, str(error)))
