"""Which frames of a sequence are annotated, per camera, kept in a file of the user's so that it is found out once.

Image folders do not tell whether a frame is annotated, and reading that from 37 GB of annotation files takes a second
or two per sequence. With such a file the index holds exactly the frames that have an image and an annotation; without
it, an image that lacks one is found when its turn comes, and is left out then.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from pam_aug.errors import SourceError, UnsafeInput

from .oakink2_tensors import load_tensor_pickle

__all__ = ["FrameLists"]

_MAX_BYTES = 1 << 30


class FrameLists:
    """Annotated frame ids by annotation file and camera serial; a file that changed is read again."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._known = _load(self._path)
        self._changed = False
        self._bar: tqdm | None = None

    def annotated(self, annotation: Path, serial: str) -> Int[np.ndarray, " n"]:
        """The frames that have hands and this camera's pose. Raises SourceError or UnsafeInput for a bad file."""
        status = annotation.stat()
        stamp = np.array([status.st_size, status.st_mtime_ns], np.int64)
        name = annotation.stem
        if not np.array_equal(self._known.get(f"{name}|stamp", ()), stamp):
            if self._bar is None:
                self._bar = tqdm(desc="frame lists", unit=" sequences", disable=None)
            for old in [key for key in self._known if key.startswith(f"{name}|")]:
                del self._known[old]
            for camera, ids in _read(annotation).items():
                self._known[f"{name}|{camera}"] = ids
            self._known[f"{name}|stamp"] = stamp
            self._changed = True
            self._bar.update()
        return self._known.get(f"{name}|{serial}", np.zeros(0, np.int64))

    def save(self) -> None:
        """Write what was found out, whole or not at all. Raises SourceError where the file cannot be written."""
        if self._bar is not None:
            self._bar.close()
        if not self._changed:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez(file, **self._known)  # type: ignore[arg-type]
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SourceError(f"{self._path}: cannot be written ({error.strerror})", path=str(self._path)) from error
        self._changed = False


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise UnsafeInput(f"{path}: over {_MAX_BYTES >> 30} GB is no table of frames", path=str(path))
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key], np.int64) for key in archive.files}
    except Exception as error:  # zip files break in many ways
        raise SourceError(f"{path}: not a table of frames ({error}); remove it", path=str(path)) from error


def _read(annotation: Path) -> dict[str, np.ndarray]:
    data = load_tensor_pickle(annotation)
    try:
        ids = np.intersect1d(data["frame_id_list"], data["mocap_frame_id_list"]).astype(np.int64)
        posed = [i for i in ids.tolist() if i in data["raw_mano"]]
        return {
            str(serial): np.array([i for i in posed if i in K and i in E], np.int64)
            for serial, name in data["cam_def"].items()
            for K, E in [(data["cam_intr"].get(name, ()), data["cam_extr"].get(name, ()))]
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SourceError(
            f"{annotation}: no OAKINK2 annotation ({type(error).__name__}: {error})", path=str(annotation)
        ) from error
