"""Small samples, images and shards for tests, each a function of a number."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from pam_aug.schema import Camera, Hand, Sample, Source, make_key
from pam_aug.shards.card import write_card
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_mix, write_mix
from pam_aug.shards.verify import verify
from pam_aug.shards.writer import ShardWriter

SIZE = 32


def make_sample(
    number: int, *, synthetic: bool = False, hands: int = 1, size: int = SIZE, sequence: str = "take"
) -> Sample:
    rng = np.random.default_rng(number)
    sides = ("right", "left")
    key = make_key("demo", "s1", sequence, "cam0", f"{number:06d}") + ("@03" if synthetic else "")
    return Sample(
        key=key,
        camera=Camera(size, size, np.array([[50, 0, size / 2], [0, 50, size / 2], [0, 0, 1]]), np.eye(4)),
        hands=tuple(
            Hand(
                sides[(number + h) % 2],
                "open_hand",
                rng.normal(0, 0.1, (21, 3)) + np.array([0, 0, 0.6]),
                rng.uniform(4, size - 5, (21, 2)),
                np.ones(21, bool),
                hand_pose=rng.normal(0, 0.3, 45),
                betas=rng.normal(0, 1, 10),
            )
            for h in range(hands)
        ),
        objects=(),
        source=Source("demo", f"frame {number}", "CC0", "test"),
        synthetic=synthetic,
    )


def make_jpeg(number: int, size: int = SIZE) -> bytes:
    image = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(cv2.resize(image, (size, size)), quality=90)


def write_shard(path: Path, numbers: range, *, synthetic: bool = False, hands: int = 1, size: int = SIZE) -> Path:
    with ShardWriter(path, "syn" if synthetic else "real") as shard:
        for n in numbers:
            shard.add(make_sample(n, synthetic=synthetic, hands=hands, size=size), make_jpeg(n, size))
    return path


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_folder(folder: Path) -> Path:
    """A shard of each kind, mixed, with its manifest and card."""
    write_shard(folder / "shards" / "real-00000.tar", range(3), hands=2)
    write_shard(folder / "shards" / "syn-00000.tar", range(2), synthetic=True)
    sources = [MixSource(name, "1/2", collect_shards(folder / "shards", name, folder)) for name in ("real", "syn")]
    write_mix(folder / "mix.json", Mix(tuple(sources)))
    write_card(folder, read_mix(folder))
    return folder


def messages(folder: Path) -> str:
    """All that `verify` finds damaged."""
    return "\n".join(p.message for p in verify(folder).damaged)
