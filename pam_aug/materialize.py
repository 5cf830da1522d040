"""Another ratio for a mix, and a mix written out as shards, for readers that cannot mix on reading.

`materialize` writes `mixed-00000.tar` … in exactly the order in which `MixedDataset` reads: one sample per item, which
is a hand. The image's bytes and the label stay as they are, with two exceptions, both seen in the key's last part:

* An image with several hands is one item per hand. Each sample then holds that hand only, and `--h0`, `--h1` … (its
  number in the source's label) is added to the key.
* An item that is read again, by a short source or a later epoch, needs a key of its own: its n-th reading (n ≥ 2) adds
  `x2`, `x3` …, after `--`.

So `…/000012@07` read a second time is `…/000012--x2@07`, and the left of two hands, read three times,
`…/000012--h1x3@07`. A source whose own names end like this is refused where two samples would get one key.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pam_aug.errors import ConfigError, ResumeMismatch, SchemaError, ShardDamaged
from pam_aug.mix_order import Schedule, parse_ratio
from pam_aug.mix_sources import SourceItems, open_mix
from pam_aug.schema import Sample, check_key
from pam_aug.shards.atomic import storage_errors, write_atomic
from pam_aug.shards.card import dataset_card
from pam_aug.shards.files import inside
from pam_aug.shards.manifest import Mix, read_mix, write_mix
from pam_aug.shards.reader import ShardReader, read_marker
from pam_aug.shards.verify import check_hash
from pam_aug.shards.writer import EXTRAS, ShardWriter, is_committed, shard_name

__all__ = ["Materialized", "Mixed", "change_mix", "materialize", "with_ratio"]

_SAMPLES_PER_SHARD = 1000
_OWN_KEY = re.compile(r"--(h\d+)?(x\d+)?(@\d\d)?$")


@dataclass(frozen=True, slots=True)
class Mixed:
    """A mix in numbers: what an epoch reads."""

    ratio: str
    epoch_hands: int
    reads_per_epoch: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        reads = ", ".join(f"each {name} one {times:.2f} times" for name, times in self.reads_per_epoch.items())
        return f"ratio {self.ratio}: an epoch is {self.epoch_hands} hands; it reads {reads}"


@dataclass(frozen=True, slots=True)
class Materialized(Mixed):
    """A mix that was written out: where, and how much."""

    out: str
    epochs: int
    shards: int
    samples: int

    def as_text(self) -> str:
        written = f"{self.samples} samples of {self.epochs} epochs in {self.shards} shards, {self.out}/mixed-*.tar"
        return f"{Mixed.as_text(self)}\n{written}"


def with_ratio(mix: Mix, ratio: str) -> Mix:
    """The mix with another share of real samples ("0.5", "1/3"). Raises ConfigError where it lacks a half for it."""
    share = parse_ratio(ratio)
    shares = {"real": share, "synthetic": 1 - share}
    names = [s.name for s in mix.sources]
    if not set(names) <= set(shares) or len(set(names)) != len(names):
        raise ConfigError(f"a ratio is of the sources real and synthetic; this mix has {', '.join(names)}: edit it")
    missing = [name for name, part in shares.items() if part > 0 and name not in names]
    if missing:
        raise ConfigError(f"ratio {ratio}: the mix has no {missing[0]} half, only {', '.join(names)}")
    return replace(mix, sources=tuple(replace(s, share=str(shares[s.name])) for s in mix.sources))


def change_mix(
    folder: Path, ratio: str | None = None, window_shards: int | None = None, dry_run: bool = False
) -> Mixed:
    """Rewrites the `mix.json` of a folder with another ratio or window, once that is known to be readable.

    `window_shards` W reads W shards of a source at a time, for slow disks and URLs; 0 shuffles over all of them. The
    card, where there is one, tells of the new mix.

    Raises ConfigError for a ratio that the folder's shards cannot give, ShardDamaged where they are not as mixed.
    """
    folder = Path(folder)
    mix = read_mix(folder)
    mix = mix if ratio is None else with_ratio(mix, ratio)
    mix = mix if window_shards is None else replace(mix, window_shards=window_shards)
    _check_markers(mix, folder)
    numbers = _numbers(mix, open_mix(mix, folder)[1])
    if not dry_run:
        write_mix(folder / "mix.json", mix)
        if (folder / "card.md").is_file() and (folder / "manifest.parquet").is_file():
            card = dataset_card(folder.resolve().name, mix, folder / "manifest.parquet")
            write_atomic(folder / "card.md", card.encode())
    return numbers


def materialize(
    folder: Path,
    out: Path,
    ratio: str | None = None,
    epochs: int = 1,
    samples_per_shard: int = _SAMPLES_PER_SHARD,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Materialized:
    """Writes the mix of `folder` (with another `ratio`, if given) into `out`; its `mixed.json` tells what of.

    A shard holds a fixed slice of the order, so the same call goes on where a killed one stopped. Depth and
    segmentation are written where all shards of the mix have them. `progress` is told the number of samples written.

    Raises ConfigError for arguments or a folder that holds something else, ResumeMismatch where `out` holds another
    mix, ShardDamaged for changed data, SchemaError for keys that would clash.
    """
    folder, out = Path(folder), Path(out)
    if epochs < 1 or samples_per_shard < 1:
        raise ConfigError(f"epochs {epochs}, samples per shard {samples_per_shard}: at least 1 each")
    mix = read_mix(folder)
    mix = mix if ratio is None else with_ratio(mix, ratio)
    _check_markers(mix, folder)
    sources, schedule = open_mix(mix, folder)
    total = epochs * schedule.epoch_length
    shards = -(-total // samples_per_shard)
    numbers = _numbers(mix, schedule).as_dict()
    result = Materialized(**numbers, out=str(out), epochs=epochs, shards=shards, samples=total)
    if dry_run:
        return result
    for source in mix.sources:
        for shard in source.shards:
            check_hash(inside(folder, shard.path), shard.sha256)  # or a flipped bit would be written under a new hash
    _claim(out, _identity(mix, epochs, samples_per_shard))
    extras = _common_extras(mix, folder)
    items = _named_items(sources, schedule, total)
    for number in range(shards):
        part = list(itertools.islice(items, samples_per_shard))
        path = out / shard_name("mixed", number)
        if not is_committed(path):
            with ShardWriter(path, "mixed") as shard:
                for item in part:
                    item.write(shard, extras)
        if progress is not None:
            progress(len(part))
    return result


@dataclass(frozen=True, slots=True)
class _Item:
    """One hand of the order, with the key that it is written under."""

    reader: ShardReader
    row: np.void
    key: str
    alone: bool  # the only hand of its image

    def write(self, shard: ShardWriter, extras: tuple[str, ...]) -> None:
        i = int(self.row["sample"])
        sample: Sample = self.reader.sample(i)
        if self.key != sample.key:
            hands = sample.hands if self.alone else (sample.hands[int(self.row["hand"])],)
            sample = replace(sample, key=self.key, hands=hands)
        image = self.reader.row_image_bytes(self.row)
        shard.add(sample, image, self.reader.suffix(i), {name: self.reader.extra(i, name) for name in extras})


def _named_items(sources: list[SourceItems], schedule: Schedule, total: int) -> Iterator[_Item]:
    """The items of the first `total` positions in order; names are counted over all of them."""
    readings = [np.zeros(len(s), np.int64) for s in sources]
    taken: set[str] = set()
    for begin in range(0, total, 1024):
        positions = np.arange(begin, min(begin + 1024, total))
        for s, number in zip(*(a.tolist() for a in schedule.at(positions))):
            readings[s][number] += 1
            reader, r = sources[s].find(number)
            row = reader.row(r)
            neighbours = [reader.row(n) for n in (r - 1, r + 1) if 0 <= n < reader.hands]
            alone = all(n["sample"] != row["sample"] for n in neighbours)
            tag = "" if alone else f"h{row['hand']}"
            tag += f"x{readings[s][number]}" if readings[s][number] > 1 else ""
            key = _tagged(row["key"].decode(), tag)
            if _OWN_KEY.search(key):
                if key in taken:
                    raise SchemaError(
                        f"{reader.path}: two samples would get the key {key}; rename the frames that end in --h or --x "
                        "and a number in the source, and convert it again",
                        key=key,
                    )
                taken.add(key)
            yield _Item(reader, row, key, alone)


def _tagged(key: str, tag: str) -> str:
    if not tag:
        return key
    base, at, candidate = key.partition("@")
    return check_key(f"{base}--{tag}{at}{candidate}")


def _check_markers(mix: Mix, folder: Path) -> None:
    for source in mix.sources:
        for shard in source.shards:
            path = inside(folder, shard.path)
            marker = read_marker(path)
            if marker is None or marker["sha256"] != shard.sha256:
                raise ShardDamaged(
                    f"{path}: is missing or another shard than the one in mix.json: build it again",
                    path=shard.path,
                )


def _numbers(mix: Mix, schedule: Schedule) -> Mixed:
    shares = {s.name: s.share for s in mix.sources}
    reads = {s.name: times for s, times in zip(mix.sources, schedule.reads_per_epoch)}
    return Mixed(shares.get("real", "0"), schedule.epoch_length, reads)


def _common_extras(mix: Mix, folder: Path) -> tuple[str, ...]:
    common = set(EXTRAS)
    for source in mix.sources:
        for shard in source.shards if parse_ratio(source.share) else ():
            if shard.samples:
                with ShardReader(inside(folder, shard.path)) as reader:
                    common &= set(reader.extras(0))
    return tuple(sorted(common))


def _identity(mix: Mix, epochs: int, samples_per_shard: int) -> bytes:
    sources = [
        {"name": s.name, "share": s.share, "keep": s.keep, "shards": [t.sha256 for t in s.shards]} for s in mix.sources
    ]
    order = {"sources": sources, "seed": mix.seed, "when_short": mix.when_short}
    if mix.window_shards:
        order["window_shards"] = mix.window_shards
    tree = {"epochs": epochs, "samples_per_shard": samples_per_shard, **order}
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2) + b"\n"


def _claim(out: Path, identity: bytes) -> None:
    record = out / "mixed.json"
    if record.is_file():
        if record.read_bytes() != identity:
            raise ResumeMismatch(f"{out}: holds another mix (see {record}); use a new folder", path=str(out))
        return
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    if strangers:
        raise ConfigError(f"{out}: holds {', '.join(strangers[:3])}; a mix is written into a new folder", path=str(out))
    write_atomic(record, identity)
