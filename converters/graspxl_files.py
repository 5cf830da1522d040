"""The files of GraspXL's form: found, read through the allow-list, and checked column by column."""

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from pam_aug.errors import SourceError
from pam_aug.safe_pickle import load_npy_object

__all__ = ["HOW_TO_GET", "check_turns", "column", "find_sequences", "load_sequence", "object_key", "object_of",
           "object_unit_m"]  # fmt: skip

HOW_TO_GET: Final = "Get mano_dataset and object_dataset from GraspXL's project page (github.com/zdchan/GraspXL)."
_NEAR_M: Final = 0.4  # a wrist comes this close to the object's origin at some time


def find_sequences(root: Path) -> list[Path]:
    """The sequence files at `root`; robot hands' are left out beside MANO's, and refused alone."""
    if not root.exists():
        raise SourceError(f"{root}: no such file or folder of sequences. {HOW_TO_GET}", path=str(root))
    files = sorted(root.rglob("*.npy")) if root.is_dir() else [root]
    robots = [f for f in files if f.name.startswith(("allegro", "leap", "shadow"))]
    ours = [f for f in files if f not in set(robots)]
    if robots and not ours:
        raise SourceError(
            f"{robots[0]}: motions of a robot hand, which no hand pose can express. Take mano_dataset. {HOW_TO_GET}",
            path=str(root),
        )
    if robots:
        warnings.warn(
            f"graspxl: {len(robots)} files of robot hands left out; no hand pose expresses them", stacklevel=3
        )
    if not ours:
        raise SourceError(f"{root}: holds no .npy sequence. {HOW_TO_GET}", path=str(root))
    return ours


def load_sequence(path: Path) -> dict[str, Any]:
    """The tracks of a file by name."""
    data = load_npy_object(path)
    if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
        raise SourceError(f"{path}: should hold a dictionary of tracks by name. {HOW_TO_GET}", path=str(path))
    return data


def object_of(path: Path) -> str:
    """A file's object id; its folder's name, as GraspXL has it, where the file cannot be read."""
    try:
        return object_key(path, load_sequence(path))
    except SourceError:
        return path.parent.name


def object_key(path: Path, data: dict[str, Any]) -> str:
    """The key that is no hand's. Raises SourceError where there is not exactly one, or no hand, or a robot's."""
    objects = [str(key) for key in data if not str(key).endswith("_hand")]
    hands = [str(key) for key in data if str(key).endswith("_hand")]
    if len(objects) != 1 or not hands or set(hands) - {"right_hand", "left_hand"}:
        raise SourceError(
            f"{path}: keys {', '.join(map(str, data))}; expected right_hand, left_hand or both, and one object",
            path=str(path),
        )
    for hand in hands:
        if np.shape(data[hand].get("pose"))[-1:] in ((22,), (16,)):
            raise SourceError(
                f"{path}: {hand} has {np.shape(data[hand]['pose'])[-1]} joint values, a robot hand's (Allegro), which "
                f"no hand pose can express. Take mano_dataset. {HOW_TO_GET}",
                path=str(path),
            )
    return objects[0]


def column(path: Path, entry: dict[str, Any], track: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A track's column in float64. Raises SourceError for another shape, and for NaN, naming the first row."""
    value = entry.get(name)
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in "fiu":
        got = getattr(value, "shape", "missing")
        raise SourceError(f"{path}: {track}.{name} should be {shape}, is {got}. {HOW_TO_GET}", path=str(path))
    if not np.isfinite(value).all():
        frame = int(np.argwhere(~np.isfinite(value))[0][0])
        raise SourceError(f"{path}: {track}.{name} is not finite from row {frame}; copy the file again", path=str(path))
    return value.astype(np.float64)


def check_turns(path: Path, track: str, turns: np.ndarray) -> None:
    """Raise SourceError for axis-angle values of over two pi."""
    largest = float(np.linalg.norm(turns.reshape(-1, 3), axis=1).max(initial=0.0))
    if largest > 2 * np.pi + 1e-3:
        raise SourceError(f"{path}: {track} turns by {largest:.1f} rad, over 2 pi: are these degrees?", path=str(path))


def object_unit_m(path: Path, unit: str, wrists_m: np.ndarray, places: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Metres per unit of the object's positions, told by the distance to the wrist, and a note where it is not 1."""
    nearest = {s: float(np.linalg.norm(wrists_m - places * s, axis=1).min(initial=np.inf)) for s in (1.0, 0.001)}
    wanted = {"m": [1.0], "mm": [0.001], "auto": [1.0, 0.001]}[unit]
    for scale in wanted:
        if nearest[scale] <= _NEAR_M:
            return scale, () if scale == 1.0 else ("object positions read as millimetres",)
    raise SourceError(
        f"{path}: the wrist never comes within {_NEAR_M} m of the object ({nearest[wanted[0]]:.3g} m at best, "
        f"{nearest[0.001]:.3g} m were the object in millimetres). Units, or another translation?",
        path=str(path),
    )
