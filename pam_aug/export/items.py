"""What an export goes over: the hands of a build's mix, each once, and the hand models that made their labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pam_aug.errors import ConfigError
from pam_aug.mix_order import parse_ratio
from pam_aug.mix_sources import open_mix
from pam_aug.rollouts.scene import hand_vertices
from pam_aug.schema import Hand, Sample
from pam_aug.shards.atomic import storage_errors
from pam_aug.shards.hand_models import BuildHands
from pam_aug.shards.images import Suffix
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import ShardReader

__all__ = ["HandModels", "Picture", "hands_in", "new_folder", "pictures", "put"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image with its labels: `sample` holds all its hands."""

    shard: Path
    sample: Sample
    image: bytes
    suffix: Suffix


def hands_in(folder: Path) -> int:
    """How many hands an export of this build goes over. Raises as `pictures`."""
    mix = read_mix(folder)
    return sum(len(items) for s, items in zip(mix.sources, open_mix(mix, Path(folder))[0]) if parse_ratio(s.share))


def pictures(folder: Path, progress: Callable[[int], None] | None = None) -> Iterator[Picture]:
    """The images of a build's mix, in the order of its shards, each once whatever the ratio.

    Sources with a share of 0 and sequences that the mix does not keep are left out. The images' checksums are checked.
    `progress` is told the number of hands gone over. Raises ConfigError where there is no mix, ShardDamaged for changed
    data.
    """
    mix = read_mix(folder)
    for source, items in zip(mix.sources, open_mix(mix, Path(folder))[0]):
        before: tuple[Path, int] | None = None
        for item in range(len(items) if parse_ratio(source.share) else 0):
            reader, number = items.find(item)
            row = reader.row(number)
            ordinal = int(row["sample"])
            if before != (reader.path, ordinal):  # the hands of an image follow each other
                before = (reader.path, ordinal)
                yield _picture(reader, ordinal, row)
            if progress is not None:
                progress(1)


def _picture(reader: ShardReader, ordinal: int, row: np.void) -> Picture:
    return Picture(reader.path, reader.sample(ordinal), reader.row_image_bytes(row), reader.suffix(ordinal))


class HandModels:
    """Vertices from labels, by the very models that made the labels (see `BuildHands`)."""

    def __init__(self, mano_dir: Path | None = None) -> None:
        self._hands = BuildHands(mano_dir)

    def vertices_cam_m(self, picture: Picture, hand: Hand) -> Float[np.ndarray, "778 3"]:
        """The hand's vertices in metres, camera frame, float64, in its own side's vertex order.

        Raises AssetMissing where the model's file is not there, SchemaError where it is another one.
        """
        assets = self._hands.assets(picture.shard.resolve().parent.parent, hand.hand_model, hand.side)
        alone = replace(picture.sample, hands=(hand,))
        return hand_vertices(alone, {f"{hand.hand_model}/{hand.side}": assets})[0].verts_cam_m


def new_folder(out: Path) -> Path:
    """`out` as an absolute path, made. Raises ConfigError where it holds anything: an export is written whole."""
    out = Path(out).absolute()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in out.iterdir())
    if strangers:
        raise ConfigError(f"{out}: holds {', '.join(strangers[:3])}; an export is written into a new folder")
    return out


def put(path: Path, data: bytes) -> None:
    """Writes one of an export's many files; the list of them, written last, is what makes the export whole."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
