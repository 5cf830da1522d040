"""The hand models that made a build's labels, found again by the hashes in its `build.json`."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from pam_aug.errors import AssetMissing, ConfigError, SchemaError
from pam_aug.hand import HandAssets, load_mano, load_npz, load_open_hand
from pam_aug.hand.assets import Side

__all__ = ["BuildHands"]


class BuildHands:
    """Hand models by build, name and side, each loaded once.

    The open hand comes from the package, fitted hands from the build's `hands/`, MANO from `mano_dir` or `$MANO_DIR`;
    another file than the recorded one is refused.
    """

    def __init__(self, mano_dir: Path | None = None) -> None:
        self._mano_dir = mano_dir
        self._records: dict[Path, Mapping[str, str]] = {}
        self._models: dict[tuple[Path, str], HandAssets] = {}

    def assets(self, build: Path, hand_model: str, side: Side) -> HandAssets:
        """The model `hand_model` of a side, as the labels in the folder `build` name it.

        Raises AssetMissing where its file is not there, SchemaError where it is another one, ConfigError where the
        folder has no record.
        """
        name = f"{hand_model}/{side}"
        if (build, name) not in self._models:
            self._models[build, name] = self._load(build, name, hand_model, side)
        return self._models[build, name]

    def _load(self, build: Path, name: str, hand_model: str, side: Side) -> HandAssets:
        wanted = self._record(build).get(name)
        if wanted is None:
            raise SchemaError(f"{build}: a label names the hand model {name}, build.json does not", hand_model=name)
        for assets in self._candidates(build, hand_model, side):
            if assets.sha256 == wanted:
                return assets
        raise SchemaError(
            f"{build}: its labels were made with another {name} than the one found here; give the MANO files and the "
            "version of this library that built it",
            hand_model=name,
        )

    def _candidates(self, build: Path, hand_model: str, side: Side) -> Iterator[HandAssets]:
        if hand_model == "open_hand":
            yield load_open_hand(side)
        elif hand_model in ("mano", "mano_as_file"):
            mano = self._mano_dir or os.environ.get("MANO_DIR")
            if not mano:
                raise AssetMissing(
                    f"{build}: its labels were made with MANO; give its files by --mano-dir or $MANO_DIR"
                )
            for shapedirs in ("as_file", "fixed"):
                yield load_mano(mano, side, left_shapedirs=shapedirs)
        else:
            path = build / "hands" / f"{hand_model.removeprefix('fitted:')}.npz"
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
