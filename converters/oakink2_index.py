"""Which images of OAKINK2 there are: found by listing folders, held as one array of frame ids per camera.

No annotation file is opened for it (they are 37 GB): 4 million images take 16 MB and the time to list their folders.
Splits go by sequence, never by frame. A sequence without annotation or images is left out and counted.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from pam_aug.errors import AssetMissing, ConfigError, SourceError

from .oakink2_program import seq_key_of

__all__ = [
    "MOCAP_PER_IMAGE",
    "SERIALS",
    "SPLITS",
    "FrameIndex",
    "Track",
    "build_index",
    "hashed_split",
    "read_list",
    "whole_clips",
]

SERIALS = {
    "allocentric_top": "104422071041",
    "allocentric_left": "104422070088",
    "allocentric_right": "104422070904",
    "egocentric": "104422070969",
}
"""The dataset's cameras. A sequence's own table (`cam_def`) decides; this one tells what to look for."""

SPLITS = ("train", "val", "test")
MOCAP_PER_IMAGE = 4  # 120 Hz motion capture, 30 images a second

_IMAGE = re.compile(r"(\d{6,9})\.(?:jpg|jpeg|png)", re.IGNORECASE)
# Shares of train and train + val, close to those of the lists that the dataset's users publish (69, 6 and 25 %).
_TRAIN, _TRAIN_AND_VAL = 0.69, 0.75
_MAX_LIST_BYTES = 16 << 20
_GET = (
    "Download data/*.tar and anno_preview/*.pkl of the sequences that you need from huggingface.co/datasets/"
    "kelvin34501/OakInk-v2 and unpack each tar under <root>/data."
)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One camera of one sequence: its image folder, the annotation file, and the frame ids that have an image."""

    seq_key: str
    serial: str
    folder: Path
    annotation: Path
    frame_ids: Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class FrameIndex:
    """All tracks by sequence and camera. `ends` are running counts, so that a number finds its frame by bisection.

    `missing_cameras` are the serials without images by sequence; `left_out` are sequences with the reason.
    """

    tracks: tuple[Track, ...]
    ends: Int[np.ndarray, " t"]
    missing_cameras: dict[str, tuple[str, ...]]
    left_out: dict[str, str]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, index: int) -> tuple[Track, int]:
        """The track of frame number `index` and the frame's position in it."""
        t = int(np.searchsorted(self.ends, index, side="right"))
        return self.tracks[t], index - (int(self.ends[t - 1]) if t else 0)


def build_index(
    root: Path,
    cameras: list[str],
    wanted: Callable[[str], bool],
    keep: Callable[[str, np.ndarray], np.ndarray],
    annotated: Callable[[Path, str], np.ndarray] | None = None,
) -> FrameIndex:
    """The images below `root/data`. `wanted` takes or leaves a sequence; `keep` thins a camera's sorted frame ids.

    `annotated` gives the frames that an annotation file has for a serial; without it, all images stay. `cameras` are
    names; empty takes every folder that holds images. Raises AssetMissing where there is nothing.
    """
    serials = [SERIALS[name] for name in cameras]
    tracks: list[Track] = []
    missing: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for seq_key, folder in _sequences(root):
        if not wanted(seq_key):
            continue
        annotation = _annotation(root, folder.name)
        if annotation is None:
            left_out[seq_key] = "no annotation file"
            continue
        found = {serial: ids for serial, ids in _cameras(folder) if len(ids) and (not serials or serial in serials)}
        absent = tuple(s for s in serials or SERIALS.values() if s not in found)
        if absent:
            missing[seq_key] = absent
        if annotated is not None:
            try:
                found = {s: np.intersect1d(ids, annotated(annotation, s)) for s, ids in found.items()}
            except SourceError as error:
                left_out[seq_key] = str(error)
                continue
        kept = {serial: keep(seq_key, ids).astype(np.int32) for serial, ids in found.items()}
        if not any(map(len, kept.values())):
            left_out[seq_key] = "no image fits frames, clip_frames and the annotation" if found else "no images"
        tracks += [Track(seq_key, s, folder / s, annotation, ids) for s, ids in kept.items() if len(ids)]
    return FrameIndex(tuple(tracks), np.cumsum([len(t.frame_ids) for t in tracks], dtype=np.int64), missing, left_out)


def whole_clips(frame_ids: np.ndarray, length: int) -> np.ndarray:
    """The frames that fill clips of `length` consecutive images; a gap starts anew, rests are left out."""
    runs = np.split(frame_ids, np.flatnonzero(np.diff(frame_ids) != MOCAP_PER_IMAGE) + 1)
    return np.concatenate([run[: len(run) // length * length] for run in runs])


def hashed_split(seq_key: str) -> str:
    """The split of a sequence by its name alone: about 69 % train, 6 % val, 25 % test."""
    share = int.from_bytes(hashlib.blake2b(seq_key.encode(), digest_size=8).digest(), "big") / 2.0**64
    return "train" if share < _TRAIN else "val" if share < _TRAIN_AND_VAL else "test"


def read_list(path: str | Path, split: str) -> frozenset[str]:
    """The sequences that a list file names: one per line, a JSON list, or a JSON object of such lists by split.

    Names may have `/`, `++` or `%2B%2B`. Raises ConfigError for a file that is none of these.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise ConfigError(f"{path}: too large to be a list of sequences", path=str(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the list of sequences cannot be read ({error})", path=str(path)) from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON ({error})", path=str(path)) from error
        if isinstance(names, dict):
            if split not in names:
                raise ConfigError(f"{path}: has no list {split!r}, only {', '.join(map(str, names))}", path=str(path))
            names = names[split]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: expected names of sequences, one per line or as a JSON list", path=str(path))
    return frozenset(seq_key_of(name) for name in names)


def _sequences(root: Path) -> Iterator[tuple[str, Path]]:
    data = root / "data"
    if not data.is_dir():
        raise AssetMissing(f"{data}: no such folder. {_GET}", path=str(data))
    folders = sorted(entry.name for entry in os.scandir(data) if entry.is_dir())
    if not folders:
        packed = "; its tar files are still packed" if any(data.glob("*.tar")) else ""
        raise AssetMissing(f"{data}: holds no sequence{packed}. {_GET}", path=str(data))
    seen: dict[str, str] = {}
    for name in folders:
        seq_key = seq_key_of(name)
        if seq_key in seen:
            raise SourceError(f"{data}: {name} and {seen[seq_key]} are the same sequence; remove one", path=str(data))
        seen[seq_key] = name
        yield seq_key, data / name


def _annotation(root: Path, name: str) -> Path | None:
    token = seq_key_of(name).replace("/", "++")
    names = (f"{token}.pkl", f"{token.replace('+', '%2B')}.pkl")
    return next((root / "anno_preview" / n for n in names if (root / "anno_preview" / n).is_file()), None)


def _cameras(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for serial in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        matches = (_IMAGE.fullmatch(entry.name) for entry in os.scandir(folder / serial))
        yield serial, np.unique(np.array([int(m[1]) for m in matches if m], np.int64))
