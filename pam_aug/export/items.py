"""What an export goes over: the hands of a build's mix, each once, and the hand models that made their labels."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float

from pam_aug.errors import AssetMissing, ConfigError, SchemaError
from pam_aug.hand import HandAssets, load_mano, load_npz, load_open_hand
from pam_aug.mix import open_mix
from pam_aug.mix_order import parse_ratio
from pam_aug.rollouts.scene import hand_vertices
from pam_aug.schema import Hand, Sample
from pam_aug.shards.atomic import storage_errors
from pam_aug.shards.images import Suffix
from pam_aug.shards.manifest import read_mix
from pam_aug.shards.reader import ShardReader

__all__ = ["HandModels", "Picture", "new_folder", "pictures", "put"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image with its labels: `sample` holds all its hands."""

    shard: Path
    sample: Sample
    image: bytes
    suffix: Suffix


def pictures(folder: Path) -> Iterator[Picture]:
    """The images of a build's mix, in the order of its shards, each once whatever the ratio.

    Sources with a share of 0 and sequences that the mix does not keep are left out. The images' checksums are checked.
    Raises ConfigError where there is no mix, ShardDamaged for changed data.
    """
    mix = read_mix(folder)
    for source, items in zip(mix.sources, open_mix(mix, Path(folder))[0]):
        before: tuple[Path, int] | None = None
        for item in range(len(items) if parse_ratio(source.share) else 0):
            reader, number = items.find(item)
            row = reader.rows[number]
            ordinal = int(row["sample"])
            if before != (reader.path, ordinal):  # the hands of an image follow each other
                before = (reader.path, ordinal)
                yield _picture(reader, ordinal, row)


def _picture(reader: ShardReader, ordinal: int, row: np.void) -> Picture:
    return Picture(reader.path, reader.sample(ordinal), reader.row_image_bytes(row), reader.suffix(ordinal))


class HandModels:
    """Vertices from labels, by the very models that made the labels.

    A build's `build.json` records the hash of every hand model. The open hand comes from the package, fitted hands from
    the build's `hands/`, MANO from `mano_dir` or `$MANO_DIR`; another file than the recorded one is refused.
    """

    def __init__(self, mano_dir: Path | None = None) -> None:
        self._mano_dir = mano_dir
        self._records: dict[Path, Mapping[str, str]] = {}
        self._models: dict[tuple[Path, str], HandAssets] = {}

    def vertices_cam_m(self, picture: Picture, hand: Hand) -> Float[np.ndarray, "778 3"]:
        """The hand's vertices in metres, camera frame, float64, in its own side's vertex order.

        Raises AssetMissing where the model's file is not there, SchemaError where it is another one.
        """
        build = picture.shard.resolve().parent.parent
        name = f"{hand.hand_model}/{hand.side}"
        if (build, name) not in self._models:
            self._models[build, name] = self._load(build, name, hand)
        alone = replace(picture.sample, hands=(hand,))
        return hand_vertices(alone, {name: self._models[build, name]})[0].verts_cam_m

    def _load(self, build: Path, name: str, hand: Hand) -> HandAssets:
        wanted = self._record(build).get(name)
        if wanted is None:
            raise SchemaError(f"{build}: a label names the hand model {name}, build.json does not", hand_model=name)
        for assets in self._candidates(build, hand):
            if assets.sha256 == wanted:
                return assets
        raise SchemaError(
            f"{build}: its labels were made with another {name} than the one found here; give the MANO files and the "
            "version of this library that built it",
            hand_model=name,
        )

    def _candidates(self, build: Path, hand: Hand) -> Iterator[HandAssets]:
        if hand.hand_model == "open_hand":
            yield load_open_hand(hand.side)
        elif hand.hand_model in ("mano", "mano_as_file"):
            mano = self._mano_dir or os.environ.get("MANO_DIR")
            if not mano:
                raise AssetMissing(
                    f"{build}: its labels were made with MANO; give its files by --mano-dir or $MANO_DIR"
                )
            for shapedirs in ("as_file", "fixed"):
                yield load_mano(mano, hand.side, left_shapedirs=shapedirs)
        else:
            path = build / "hands" / f"{hand.hand_model.removeprefix('fitted:')}.npz"
            if not path.is_file():
                raise AssetMissing(f"{path}: the fitted hand of the labels is missing; run the build again")
            yield load_npz(path)

    def _record(self, build: Path) -> Mapping[str, str]:
        if build not in self._records:
            path = build / "build.json"
            try:
                record: dict[str, Any] = orjson.loads(path.read_bytes())
                self._records[build] = dict(record["identity"]["hands"])
            except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{path}: cannot be read as a build's record ({error!r}); it names the hand models of the labels",
                    path=str(path),
                ) from error
        return self._records[build]


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
