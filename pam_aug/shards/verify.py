"""Checking a folder of shards: every byte hashed again, every sample read as its schema says, every count compared.

What is in memory does not grow with the samples, but for 16 bytes of each. Shards at a URL are copied into a temporary
file, one at a time, while they are hashed.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pam_aug.errors import AssetMissing, ConfigError, PamAugError, ShardDamaged, StorageError
from pam_aug.schema import SEG_FIRST_OBJECT, SEG_FOREARM, Sample
from pam_aug.shards.atomic import TEMPORARY_PREFIX, storage_errors, write_atomic
from pam_aug.shards.card import write_card
from pam_aug.shards.files import Place, RemotePath, inside, open_bytes, place, read_whole
from pam_aug.shards.images import decode_plane
from pam_aug.shards.index import index_bytes
from pam_aug.shards.manifest import Mix, manifest_is_of, read_mix
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.repeats import Repeats
from pam_aug.shards.verify_report import Problem, Report

__all__ = ["Problem", "Report", "check_hash", "find_shards", "verify"]

_SHARD = re.compile(r"(?:(?:real|syn|mixed)-)?\d{5,}")
_CHUNK = 4 << 20


def find_shards(folder: Place | str) -> dict[Place, Sequence[Place]]:
    """The tar files that `verify` reads, by the folder within which their keys are unique.

    In a folder on a disk, or beside its `mix.json`, those in it, in `shards/` and in `rejected/`. At a URL, which
    cannot always be listed, those that `mix.json` names. One `.tar` is itself. Raises ConfigError for what is neither.
    """
    at = place(folder)
    if at.name.endswith(".tar"):
        return {at.parent: [at]}
    at = _folder_of(at)
    if isinstance(at, RemotePath):
        named: dict[Place, dict[Place, None]] = {}  # once each, though several sources may read a shard
        for path in (inside(at, shard.path) for source in read_mix(at).sources for shard in source.shards):
            named.setdefault(path.parent, {})[path] = None
        return {folder: list(shards) for folder, shards in named.items()}
    if not at.is_dir():
        raise ConfigError(f"{at}: is no folder; give a build's output or a folder of shards", path=str(at))
    return {p: _tars(p) for p in (at, at / "shards", at / "rejected") if p.is_dir()}


def verify(folder: Place | str, rebuild: bool = False, progress: Callable[[int], None] | None = None) -> Report:
    """Checks the shards of `find_shards`, and that `mix.json` and `manifest.parquet` tell of what is there.

    Every image is decoded and every label read. `rebuild` writes missing and stale `.idx` files and manifests (with
    the card) anew; without it stale ones and missing `.idx` files count as damage. `progress` is told of each shard.

    Raises ConfigError for what is no folder and no shard, and for `rebuild` at a URL; StorageError where files cannot
    be written; AssetMissing where a URL needs a package.
    """
    found = find_shards(folder)
    at = place(folder)
    alone = at.name.endswith(".tar")
    at = at.parent if alone else _folder_of(at)
    if rebuild and isinstance(at, RemotePath):
        raise ConfigError(f"{at}: files at a URL are not written anew: copy the folder to a disk", url=str(at))
    report = Report()
    for where, shards in found.items():
        _check_shards(shards, not alone and _look_around(where, report), rebuild, report, progress or (lambda _: None))
    if not alone and (isinstance(at, RemotePath) or (at / "mix.json").exists()):
        _check_mix(at, {shard for shards in found.values() for shard in shards}, rebuild, report)
    return report


def check_hash(path: Place, sha256: str, copy: BinaryIO | None = None) -> str:
    """The sha256 of a shard, which must be the committed one. Its bytes are written to `copy`, where given.

    Raises ShardDamaged for other bytes, StorageError where `copy` refuses them.
    """
    digest, offset = hashlib.sha256(), 0
    try:
        source = open_bytes(path)
        try:
            while data := source.read(offset, _CHUNK):
                digest.update(data)
                offset += len(data)
                if copy is not None:
                    with storage_errors(Path(tempfile.gettempdir())):
                        copy.write(data)
        finally:
            source.close()
    except OSError as error:
        raise ShardDamaged(f"{path}: cannot be read ({error.strerror or error})", path=str(path)) from error
    if digest.hexdigest() != sha256:
        raise ShardDamaged(f"{path}: its bytes changed since it was committed", path=str(path))
    return sha256


def _folder_of(at: Place) -> Place:
    return at.parent if at.name == "mix.json" else at


def _tars(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.tar") if not p.name.startswith(TEMPORARY_PREFIX))


def _look_around(folder: Place, report: Report) -> bool:
    """Finds temporary files, and markers and indexes without their shard. Whether the folder is one on a disk."""
    for path in sorted(folder.iterdir()) if isinstance(folder, Path) else ():
        if path.name.startswith(TEMPORARY_PREFIX):
            report.uncommitted.append(path)
        elif path.suffix in (".json", ".idx") and _SHARD.fullmatch(path.stem) and not path.with_suffix(".tar").exists():
            report.damaged.append(Problem(path, f"{path}: its shard {path.stem}.tar is missing"))
    return isinstance(folder, Path)


def _check_shards(
    shards: Sequence[Place], leftovers: bool, rebuild: bool, report: Report, progress: Callable[[int], None]
) -> None:
    """The shards of one folder, in which a key stands once; with `leftovers` they may be uncommitted."""
    all_keys, all_images = Repeats(), Repeats()
    for path in shards:
        keys: list[str] = []
        images: list[str] = []
        try:
            marker = read_marker(path)
            if marker is not None:
                keys, images = _check_shard(path, marker, rebuild, report)
            elif leftovers:
                report.uncommitted.append(path)  # type: ignore[arg-type]  # on a disk
            else:
                raise ShardDamaged(f"{path}: is missing, or has no commit marker to be checked against")
        except (StorageError, AssetMissing):
            raise
        except (PamAugError, OSError) as error:
            report.damaged.append(Problem(path, str(error)))
        all_keys.add(keys)
        all_images.add(images)
        progress(1)
    keys_of = lru_cache(maxsize=4)(lambda shard: (read_marker(shards[shard]) or {})["keys"])
    for (shard, n), (first, m) in all_keys.found():
        key = keys_of(shard)[n]
        if key == keys_of(first)[m]:
            text = f"{shards[shard]}:{key}: the key stands in {shards[first]} as well; keys are unique in a build"
            report.damaged.append(Problem(shards[shard], text))
    report.same_images += [(keys_of(shard)[n], keys_of(first)[m]) for (shard, n), (first, m) in all_images.found()]


def _check_shard(path: Place, marker: dict[str, Any], rebuild: bool, report: Report) -> tuple[list[str], list[str]]:
    """(keys, image hashes) of a shard, of a mixed one without the hashes."""
    report.shards += 1
    with ExitStack() as stack:
        at = path
        if isinstance(path, RemotePath):
            ShardReader(path, marker).close()  # its size is right, before it is copied
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="pam-aug-", suffix=".tar"))
            check_hash(path, marker["sha256"], copy)  # type: ignore[arg-type]  # a wrapper of a binary file
            copy.flush()
            at = Path(copy.name)
        else:
            check_hash(path, marker["sha256"])
        reader = stack.enter_context(ShardReader(path, marker, at))
        images = _check_content(reader, report)
        expected = index_bytes(reader.derive_rows(), reader.bytes, marker["sha256"])
        keys = reader.keys
    index = path.with_suffix(".idx")
    try:
        stale = read_whole(index) != expected
    except FileNotFoundError:
        stale = True
    if stale and rebuild and isinstance(index, Path):
        write_atomic(index, expected)
        report.rebuilt.append(index)
    elif stale:
        text = f"{index}: is missing or not of this shard; `verify --rebuild` writes it anew"
        report.damaged.append(Problem(path, text))
    return keys, images if marker["kind"] != "mixed" else []


def _check_content(reader: ShardReader, report: Report) -> list[str]:
    """The sha256 of each image, after everything in the shard was looked at."""
    marker = reader.marker
    assert marker is not None
    images, hands = [], 0
    for i, key in enumerate(reader.keys):
        sample, where = reader.sample(i), f"{reader.path}:{key}"
        shape = reader.image(i).shape[:2]
        if shape != (sample.camera.height, sample.camera.width):
            raise ShardDamaged(f"{where}: its image has another size than its camera")
        if marker["kind"] != "mixed" and sample.synthetic != (marker["kind"] != "real"):
            raise ShardDamaged(f"{where}: its label says synthetic={sample.synthetic} in a {marker['kind']!r} shard")
        _check_extras(reader, i, sample, where)
        images.append(hashlib.sha256(reader.image_bytes(i)).hexdigest())
        hands += len(sample.hands)
    told = (marker["keys"], marker["counts"]["samples"], marker["counts"].get("hands"))
    told_images = marker.get("image_sha256", images)  # markers of the first builds do not have it
    if told != (reader.keys, len(reader), hands) or told_images != images:
        path = reader.path.with_suffix(".json")
        raise ShardDamaged(f"{path}: its keys, image hashes or counts are not those of the shard")
    report.samples += len(reader)
    report.hands += hands
    return images


def _check_extras(reader: ShardReader, i: int, sample: Sample, where: str) -> None:
    for name in reader.extras(i):
        plane = decode_plane(reader.extra(i, name), np.uint16 if name == "depth.png" else np.uint8, f"{where}.{name}")
        if plane.shape != (sample.camera.height, sample.camera.width):
            raise ShardDamaged(f"{where}.{name}: has another size than the camera")
        if name == "seg.png" and np.any((plane > SEG_FOREARM) & (plane < SEG_FIRST_OBJECT)):
            raise ShardDamaged(f"{where}.{name}: holds ids that name nothing")


def _check_mix(at: Place, read: set[Place], rebuild: bool, report: Report) -> None:
    path = at / "mix.json"
    try:
        mix = read_mix(path)
        for source in mix.sources:
            for shard in source.shards:
                where = inside(at, shard.path)
                marker = read_marker(where)
                if marker is None or marker["sha256"] != shard.sha256:
                    raise ShardDamaged(f"{path}: {shard.path} is missing or another one; run the mix again")
                if where not in read:
                    report.elsewhere.append(str(where))
    except AssetMissing:
        raise
    except PamAugError as error:
        report.damaged.append(Problem(path, str(error)))
    else:
        if report.ok and isinstance(at, Path):  # a table of damaged shards cannot be judged
            _check_manifest(at, mix, rebuild, report)


def _check_manifest(folder: Path, mix: Mix, rebuild: bool, report: Report) -> None:
    path = folder / "manifest.parquet"
    if not (path.is_file() or rebuild):
        return
    try:
        if manifest_is_of(path, [inside(folder, shard.path) for source in mix.sources for shard in source.shards]):
            return
        if not rebuild:
            raise ShardDamaged(f"{path}: is not of the mix's shards; `verify --rebuild` writes it and card.md anew")
        write_card(folder, mix)
        report.rebuilt += [path, folder / "card.md"]
    except (StorageError, AssetMissing):
        raise
    except PamAugError as error:
        report.damaged.append(Problem(path, str(error)))
