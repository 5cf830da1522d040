"""DexYCB's text files: camera intrinsics, camera poses, the tag on the table, hand shapes, and what a sequence is of.

The files are YAML with Python tuples in them. Tuples of plain values are all that is read beyond safe YAML; any other
tag is refused. Camera poses go from camera to world, and the world is the master camera's frame (x right, y down, z
forward): it does not stand upright. Up comes from the tag, which lies on the table with its z axis up.
"""

import contextlib
import functools
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pam_aug.errors import SourceError, UnsafeInput
from pam_aug.geometry import rigid_matrix

from .dexycb_splits import SERIALS

__all__ = ["SequenceMeta", "T_world_cams", "betas_of", "intrinsics_px", "is_rotation", "read_meta", "read_tuple_yaml"]

_MAX_YAML_BYTES = 1 << 20
_GET_CALIBRATION = "Unpack DexYCB's calibration archive as `calibration/` beside the subjects' folders."
_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class SequenceMeta:
    """One sequence's `meta.yml`. `grasped` indexes `ycb_ids`, whose order is the order of the labels' objects."""

    frames: int
    extrinsics: str
    ycb_ids: tuple[int, ...]
    grasped: int
    side: str
    mano_calib: str


def read_tuple_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping whose only tag beyond the safe ones is `!!python/tuple` of plain values; keys become text.

    Raises SourceError for a missing or broken file, UnsafeInput for any tag that could make an object.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_YAML_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}). {_GET_CALIBRATION}", path=str(path)) from error
    if len(raw) > _MAX_YAML_BYTES:
        raise UnsafeInput(f"{path}: over {_MAX_YAML_BYTES} bytes, no such file of DexYCB is. Refused", path=str(path))
    try:
        data = yaml.load(raw, Loader=_tuple_loader())  # a SafeLoader
    except yaml.constructor.ConstructorError as error:
        raise UnsafeInput(
            f"{path}: refused, {error.problem}; DexYCB's files hold no such thing", path=str(path)
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not YAML ({error}); copy it again", path=str(path)) from error
    if not isinstance(data, dict):
        raise SourceError(f"{path}: holds a {type(data).__name__}, not names and values", path=str(path))
    return {str(key): value for key, value in data.items()}


@functools.cache
def _tuple_loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class TupleLoader(base):
        """Safe YAML, and tuples of plain values (nested ones could be made to take for ever)."""

    def make_tuple(loader: Any, node: Any) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode) or not all(isinstance(n, yaml.ScalarNode) for n in node.value):
            raise yaml.constructor.ConstructorError(None, None, "a tuple of more than plain values", node.start_mark)
        return tuple(loader.construct_sequence(node))

    TupleLoader.add_constructor("tag:yaml.org,2002:python/tuple", make_tuple)
    return TupleLoader


def read_meta(path: Path) -> SequenceMeta:
    """A sequence's `meta.yml`. Raises SourceError naming the field that does not fit."""
    data = read_tuple_yaml(path)

    def one(name: str, kind: type) -> Any:
        value = data.get(name)
        if type(value) is not kind:
            raise _wrong(path, name, value)
        return value

    def several(name: str, kind: type) -> tuple[Any, ...]:
        values = data.get(name)
        if not isinstance(values, list | tuple) or not values or any(type(v) is not kind for v in values):
            raise _wrong(path, name, values)
        return tuple(values)

    sides, calibrations, ids = several("mano_sides", str), several("mano_calib", str), several("ycb_ids", int)
    meta = SequenceMeta(
        frames=one("num_frames", int),
        extrinsics=one("extrinsics", str),
        ycb_ids=ids,
        grasped=one("ycb_grasp_ind", int),
        side=sides[0],
        mano_calib=calibrations[0],
    )
    wrong = {
        "num_frames": not 0 < meta.frames < 10000,
        "extrinsics": not _is_folder_name(meta.extrinsics),
        "ycb_ids": not all(1 <= i <= 21 for i in ids) or len(set(ids)) != len(ids),
        "ycb_grasp_ind": not 0 <= meta.grasped < len(ids),
        "mano_sides": len(sides) != 1 or meta.side not in ("right", "left"),
        "mano_calib": len(calibrations) != 1 or not _is_folder_name(meta.mano_calib),
        "serials": sorted(several("serials", str)) != sorted(SERIALS),
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        raise _wrong(path, name, data[name])
    return meta


def _wrong(path: Path, name: str, value: Any) -> SourceError:
    return SourceError(
        f"{path}: {name} = {reprlib.repr(value)} is nothing that DexYCB has there; copy the file again", path=str(path)
    )


def intrinsics_px(root: Path, serial: str) -> Float[np.ndarray, "3 3"]:
    """K of a camera's 640x480 colour images; it holds for the depth images too, which are aligned to them.

    No distortion is known, so none is applied.
    """
    path = root / "calibration" / "intrinsics" / f"{serial}_640x480.yml"
    color = read_tuple_yaml(path).get("color")
    if not isinstance(color, Mapping):
        raise SourceError(f"{path}: has no `color` intrinsics", path=str(path))
    fx, fy, cx, cy = _numbers(path, "color", [color.get(name) for name in ("fx", "fy", "ppx", "ppy")], 4)
    if min(fx, fy) <= 0:
        raise SourceError(f"{path}: focal lengths {fx}, {fy} are not positive", path=str(path))
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def T_world_cams(root: Path, calibration: str) -> dict[str, Float[np.ndarray, "4 4"]]:
    """Camera serial → `T_world_cam` of a calibration, and "apriltag" → tag to world."""
    path = root / "calibration" / f"extrinsics_{calibration}" / "extrinsics.yml"
    given = read_tuple_yaml(path).get("extrinsics")
    if not isinstance(given, Mapping):
        raise SourceError(f"{path}: has no `extrinsics`", path=str(path))
    poses: dict[str, np.ndarray] = {}
    for name, values in given.items():
        rows = _numbers(path, str(name), values, 12).reshape(3, 4)
        if not is_rotation(rows[:, :3]):
            raise SourceError(f"{path}: the pose of {name} is not a rotation and a translation", path=str(path))
        poses[str(name)] = rigid_matrix(rows[:, :3], rows[:, 3])
    missing = [name for name in (*SERIALS, "apriltag") if name not in poses]
    if missing:
        raise SourceError(f"{path}: has no pose of {', '.join(missing)}; copy it again", path=str(path))
    return poses


def betas_of(root: Path, mano_calib: str) -> Float[np.ndarray, "10"]:
    """The shape of a subject's hand. The one value serves both sides, with the defect of the left model file."""
    path = root / "calibration" / f"mano_{mano_calib}" / "mano.yml"
    return _numbers(path, "betas", read_tuple_yaml(path).get("betas"), 10)


def is_rotation(R: Float[np.ndarray, "*b 3 3"]) -> bool:
    """Whether all matrices are proper rotations, within what four decimals leave."""
    # Number by number: for the few matrices of a frame that takes a third of the time of arrays.
    for (a, b, c), (d, e, f), (g, h, i) in R.reshape(-1, 3, 3).tolist():
        lengths = abs(a * a + b * b + c * c - 1), abs(d * d + e * e + f * f - 1), abs(g * g + h * h + i * i - 1)
        angles = abs(a * d + b * e + c * f), abs(a * g + b * h + c * i), abs(d * g + e * h + f * i)
        volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        if not (max(*lengths, *angles) < _ROTATION_TOLERANCE and volume > 0):
            return False
    return True


def _numbers(path: Path, name: str, values: Any, count: int) -> np.ndarray:
    if isinstance(values, list | tuple) and len(values) == count and all(type(v) in (int, float) for v in values):
        with contextlib.suppress(OverflowError):  # a whole number beyond floats is no calibration either
            numbers = np.array([float(v) for v in values])
            if np.isfinite(numbers).all():
                return numbers
    raise SourceError(f"{path}: {name} should be {count} finite numbers", path=str(path))


def _is_folder_name(text: str) -> bool:
    """Names in meta files become paths: nothing that leaves the calibration folder."""
    return bool(text) and all(c.isalnum() or c in "_-" for c in text)
