"""Result files that the datasets' own evaluations read: FreiHAND's `pred.json` and DexYCB's hand pose results.

FreiHAND: one JSON list of two lists, joints (N,21,3) and vertices (N,778,3), metres, in the order of the images.
DexYCB: a line per image, its number in the official split and 63 coordinates in millimetres, separated by commas; every
image that has a labelled hand must be there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from jaxtyping import Float

from pam_aug.errors import ConfigError, SchemaError
from pam_aug.shards.atomic import write_atomic

__all__ = ["FORMATS", "Predictions", "read_predictions", "write_dexycb", "write_freihand"]

FORMATS = ("freihand", "dexycb")
_MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predicted hands in metres. `sample_index` is None where rows follow the order of the labels."""

    joints_m: Float[np.ndarray, "n 21 3"]
    verts_m: Float[np.ndarray, "n 778 3"] | None
    sample_index: np.ndarray | None

    def rows_for(self, sample_index: Sequence[int], where: str) -> np.ndarray:
        """The row of each label. Raises SchemaError where a label has none, or counts differ."""
        if self.sample_index is None:
            if len(self.joints_m) != len(sample_index):
                raise SchemaError(
                    f"{where}: {len(self.joints_m)} hands for {len(sample_index)} labelled ones; it must hold one per "
                    "label, in the labels' order",
                    hands=len(self.joints_m),
                    labels=len(sample_index),
                )
            return np.arange(len(sample_index))
        rows = {int(number): row for row, number in enumerate(self.sample_index)}
        unknown = sum(number < 0 for number in sample_index)
        if unknown:
            raise SchemaError(
                f"{where}: {unknown} labels have no number in DexYCB's official split; convert a complete split"
            )
        missing = [number for number in sample_index if number not in rows]
        if missing:
            raise SchemaError(
                f"{where}: {len(missing)} labelled images are not in it, the first is number {missing[0]}; every image "
                "with a hand must be there",
                missing=missing,
            )
        return np.array([rows[number] for number in sample_index])


def write_freihand(
    path: Path, joints_m: Float[np.ndarray, "n 21 3"], verts_m: Float[np.ndarray, "n 778 3"], names: Sequence[str]
) -> None:
    """Write `pred.json`, and beside it `<path>.names.json`, the hands' names in the same order.

    A hand that was not found (NaN) is written as zeros, because every image must have one.
    """
    lists = [np.ascontiguousarray(np.nan_to_num(a, nan=0.0), np.float64) for a in (joints_m, verts_m)]
    write_atomic(Path(path), orjson.dumps(lists, option=orjson.OPT_SERIALIZE_NUMPY))
    write_atomic(Path(f"{path}.names.json"), orjson.dumps(list(names)))


def write_dexycb(path: Path, joints_m: Float[np.ndarray, "n 21 3"], sample_index: Sequence[int]) -> None:
    """Write DexYCB's result file, numbers as the shortest text that reads back the same, ascending.

    A hand that was not found (NaN) is written as zeros. Raises ConfigError for a label without a number in the official
    split, or two hands with one number.
    """
    if any(number < 0 for number in sample_index):
        raise ConfigError(
            f"{path}: a hand has no number in DexYCB's official split, so no result file can be written; evaluate "
            "shards converted from a complete split of DexYCB"
        )
    if len(set(sample_index)) != len(sample_index):
        raise ConfigError(f"{path}: two hands have one number in the official split; evaluate one split at a time")
    order = np.argsort(sample_index)
    mm = 1000.0 * np.nan_to_num(np.asarray(joints_m, np.float64), nan=0.0).reshape(-1, 63)
    lines = [",".join([str(int(sample_index[i])), *map(repr, mm[i].tolist())]) for i in order]
    write_atomic(Path(path), ("\n".join(lines) + "\n").encode())


def read_predictions(path: Path, form: str = "") -> Predictions:
    """A result file; `form` is "freihand" or "dexycb", by default after the ending (.json is FreiHAND's).

    Raises ConfigError where it cannot be read, SchemaError for another content, NaN included.
    """
    path = Path(path)
    form = form or ("freihand" if path.suffix.lower() == ".json" else "dexycb")
    if form not in FORMATS:
        raise ConfigError(f"format {form!r}: choose one of {', '.join(FORMATS)}", form=form)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: over {_MAX_BYTES >> 30} GB is no result file", path=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a result file", path=str(path)) from error
    return _read_freihand(data, path) if form == "freihand" else _read_dexycb(data, path)


def _read_freihand(data: bytes, path: Path) -> Predictions:
    try:
        tree = orjson.loads(data)
        joints = np.array(tree[0], np.float64)
        verts = np.array(tree[1], np.float64) if len(tree[1]) else None
    except (orjson.JSONDecodeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise SchemaError(f"{path}: not a list of joints and a list of vertices ({error})", path=str(path)) from error
    shapes_fit = joints.ndim == 3 and joints.shape[1:] == (21, 3)
    if verts is not None:
        shapes_fit &= verts.shape == (len(joints), 778, 3)
    if len(tree) != 2 or not shapes_fit:
        shape = None if verts is None else verts.shape
        raise SchemaError(f"{path}: joints {joints.shape}, vertices {shape}; needs (N,21,3), (N,778,3)", path=str(path))
    if not np.isfinite(joints).all() or not (verts is None or np.isfinite(verts).all()):
        raise SchemaError(f"{path}: holds numbers that are not finite", path=str(path))
    return Predictions(joints, verts, None)


def _read_dexycb(data: bytes, path: Path) -> Predictions:
    numbers: list[int] = []
    rows: list[list[float]] = []
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path}: not a text of numbers ({error})", path=str(path)) from error
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split(",")
        try:
            if len(parts) != 64:
                raise ValueError(f"{len(parts)} fields")
            number, row = int(parts[0]), [float(part) for part in parts[1:]]
            if number < 0 or not all(map(math.isfinite, row)):
                raise ValueError("a number below 0 or not finite")
        except ValueError as error:
            raise SchemaError(
                f"{path}, line {at}: {error}; a line is an image's number and 63 coordinates, separated by commas",
                path=str(path),
                line=at,
            ) from error
        numbers.append(number)
        rows.append(row)
    if len(set(numbers)) != len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise SchemaError(f"{path}: image {twice} is in it twice", path=str(path), number=twice)
    return Predictions(np.array(rows).reshape(-1, 21, 3) / 1000.0, None, np.array(numbers, np.int64))
