"""One sequence's `anno_preview` pickle: cameras, hands and objects of its image frames, as compact arrays.

The file holds every motion-capture frame (120 Hz) of two hands, a body and all objects as a hundred thousand small
tensors. Only the frames that have images (30 Hz) are kept, in our units and the world frame; dictionaries are read by
frame id, never by position: ids start anywhere and step by four.
"""

import hashlib
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.errors import SourceError
from pam_aug.geometry import matrix_to_axis_angle, quaternion_to_matrix
from pam_aug.hand.joints import SIDES, Side
from pam_aug.rollouts.scene import LeftOut

from .oakink2_tensors import load_tensor_pickle, stack_arrays, to_array

__all__ = ["Annotation", "CameraTrack", "HandTrack", "ObjectTrack", "read_annotation"]

_PREFIX: Mapping[Side, str] = {"left": "lh", "right": "rh"}
_KEYS = {
    "cam_def": dict,
    "frame_id_list": (list, tuple, np.ndarray),
    "mocap_frame_id_list": (list, tuple, np.ndarray),
    "cam_intr": dict,
    "cam_extr": dict,
    "obj_list": (list, tuple),
    "obj_transf": dict,
    "raw_mano": dict,
}
_PART_ID = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_@.-]{0,63}")
_RIGID_TOLERANCE = 1e-3
_COPY_AGAIN = "Download it again from the dataset's page."


@dataclass(frozen=True, slots=True, eq=False)
class CameraTrack:
    """A camera at every frame; constant for the allocentric ones, moving for the egocentric one."""

    K_px: Float[np.ndarray, "n 3 3"]
    T_cam_world: Float[np.ndarray, "n 4 4"]
    valid: Bool[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class HandTrack:
    """A hand at every frame. `axis_angle` is absolute, wrist first, in MANO's joint order; `wrist_world_m` is `tsl`."""

    axis_angle: Float[np.ndarray, "n 16 3"]
    wrist_world_m: Float[np.ndarray, "n 3"]
    betas: Float[np.ndarray, "n 10"]
    valid: Bool[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectTrack:
    """A rigid part at every frame; the parts of an articulated object are objects of their own."""

    T_world_obj: Float[np.ndarray, "n 4 4"]
    valid: Bool[np.ndarray, " n"]


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """The image frames of a sequence. Rows of all tracks follow `frame_ids`, which are motion-capture ids, sorted.

    `problems` says, by (part, frame id), why a row of a track is not valid; `absent` are those of them that the file
    does not have at all.
    """

    path: Path
    sha256: str
    frame_ids: Int[np.ndarray, " n"]
    camera_names: Mapping[str, str]
    cameras: Mapping[str, CameraTrack]
    hands: Mapping[Side, HandTrack]
    objects: Mapping[str, ObjectTrack]
    problems: Mapping[tuple[str, int], str]
    absent: Set[tuple[str, int]]

    def row(self, frame_id: int) -> int:
        """The row of a frame. Raises LeftOut for an image whose frame is not annotated."""
        row = int(np.searchsorted(self.frame_ids, frame_id))
        if row == len(self.frame_ids) or self.frame_ids[row] != frame_id:
            message = f"{self.path}: frame {frame_id} is not among the annotated frames"
            raise LeftOut(message, reason="the frame is not annotated", frame=frame_id)
        return row


def read_annotation(path: str | Path) -> Annotation:
    """The annotation file of a sequence, without running anything in it.

    A frame that lacks a part, or whose numbers make no sense, is marked so, for that part only. Raises SourceError for
    a file that is damaged or is no annotation, UnsafeInput for a pickle that holds anything but arrays and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path}: there is no such annotation file. {_COPY_AGAIN}", path=str(path))
    data = load_tensor_pickle(path)
    _check_form(path, data)
    unsafe = [name for name in data["obj_list"] if not isinstance(name, str) or not _PART_ID.fullmatch(name)]
    if unsafe:  # part ids become folder names
        raise SourceError(f"{path}: {unsafe[0]!r} is no object id. {_COPY_AGAIN}", path=str(path))
    annotated = np.intersect1d(_ids(path, data, "frame_id_list"), _ids(path, data, "mocap_frame_id_list"))
    reader = _Reader(path, [int(i) for i in annotated])
    cameras = {
        str(name): reader.camera(str(name), data["cam_intr"].get(name), data["cam_extr"].get(name))
        for name in data["cam_def"].values()
    }
    hands: dict[Side, HandTrack] = {side: reader.hand(side, data["raw_mano"]) for side in SIDES}
    objects = {name: reader.object(name, data["obj_transf"].get(name)) for name in data["obj_list"]}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Annotation(
        path=path,
        sha256=digest,
        frame_ids=annotated,
        camera_names={str(serial): str(name) for serial, name in data["cam_def"].items()},
        cameras=cameras,
        hands=hands,
        objects=objects,
        problems=reader.problems,
        absent=reader.absent,
    )


def _check_form(path: Path, data: Any) -> None:
    if not isinstance(data, dict):
        raise SourceError(f"{path}: holds a {type(data).__name__}, not an annotation. {_COPY_AGAIN}", path=str(path))
    wrong = [name for name, kinds in _KEYS.items() if not isinstance(data.get(name), kinds)]
    if wrong:
        raise SourceError(
            f"{path}: {', '.join(wrong)} missing or of another type, so it is no OAKINK2 annotation. {_COPY_AGAIN}",
            path=str(path),
            keys=wrong,
        )


def _ids(path: Path, data: dict[str, Any], name: str) -> np.ndarray:
    try:
        ids = np.asarray([int(i) for i in data[name]], np.int64)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"{path}: {name} is not a list of frame ids ({error}). {_COPY_AGAIN}", path=str(path)
        ) from None
    return ids


class _Absent(SourceError):
    """The file has no entry."""


class _Reader:
    """Turns dictionaries by frame id into tracks, noting for each part and frame what is wrong with it.

    A part whose frames are all in order is read at once. Only where something is wrong are frames taken one by one.
    """

    def __init__(self, path: Path, frames: list[int]) -> None:
        self._path, self._frames = path, frames
        self.problems: dict[tuple[str, int], str] = {}
        self.absent: set[tuple[str, int]] = set()

    def camera(self, name: str, intrinsics: Any, extrinsics: Any) -> CameraTrack:
        n = len(self._frames)
        K, T = self._all(intrinsics, (3, 3)), self._all(extrinsics, (4, 4))
        if K is not None and T is not None and _are_pinholes(K) and _are_rigid(T):
            return CameraTrack(K, T, np.ones(n, bool))
        K, T, valid = np.tile(np.eye(3), (n, 1, 1)), np.tile(np.eye(4), (n, 1, 1)), np.zeros(n, bool)
        for row, frame in enumerate(self._frames):
            where = f"{self._path}: camera {name}, frame {frame}"
            try:
                K[row] = to_array(_at(intrinsics, frame, where), (3, 3), f"{where}, intrinsics")
                if not _are_pinholes(K[row]):
                    raise SourceError(f"{where}: the intrinsics are no pinhole camera's")
                T[row] = _rigid(_at(extrinsics, frame, where), f"{where}, extrinsics")
                valid[row] = True
            except SourceError as error:
                self._note(name, frame, error)
        return CameraTrack(K, T, valid)

    def hand(self, side: Side, by_frame: Mapping[Any, Any]) -> HandTrack:
        n, prefix = len(self._frames), _PREFIX[side]
        entries = [by_frame.get(frame) for frame in self._frames]
        turns, at, shape = (
            stack_arrays([e.get(f"{prefix}__{name}") if isinstance(e, dict) else None for e in entries], size)
            for name, size in (("pose_coeffs", (1, 16, 4)), ("tsl", (1, 3)), ("betas", (1, 10)))
        )
        if turns is not None and at is not None and shape is not None and _are_unit(turns):
            return HandTrack(_axis_angles(turns[:, 0]), at[:, 0], shape[:, 0], np.ones(n, bool))
        quaternions, wrist, betas = np.zeros((n, 16, 4)), np.zeros((n, 3)), np.zeros((n, 10))
        quaternions[..., 0] = 1.0
        valid = np.zeros(n, bool)
        for row, frame in enumerate(self._frames):
            where = f"{self._path}: {side} hand, frame {frame}"
            try:
                entry = _at(by_frame, frame, where)
                turns = to_array(_at(entry, f"{prefix}__pose_coeffs", where), (1, 16, 4), f"{where}, pose_coeffs")[0]
                if not _are_unit(turns):
                    raise SourceError(f"{where}: pose_coeffs are not unit quaternions")
                at = to_array(_at(entry, f"{prefix}__tsl", where), (1, 3), f"{where}, tsl")[0]
                shape = to_array(_at(entry, f"{prefix}__betas", where), (1, 10), f"{where}, betas")[0]
            except SourceError as error:
                self._note(side, frame, error)
                continue
            quaternions[row], wrist[row], betas[row], valid[row] = turns, at, shape, True
        return HandTrack(_axis_angles(quaternions), wrist, betas, valid)

    def object(self, name: str, by_frame: Any) -> ObjectTrack:
        n = len(self._frames)
        T = self._all(by_frame, (4, 4))
        if T is not None and _are_rigid(T):
            return ObjectTrack(T, np.ones(n, bool))
        T, valid = np.tile(np.eye(4), (n, 1, 1)), np.zeros(n, bool)
        for row, frame in enumerate(self._frames):
            where = f"{self._path}: object {name}, frame {frame}"
            try:
                T[row] = _rigid(_at(by_frame, frame, where), where)
                valid[row] = True
            except SourceError as error:
                self._note(name, frame, error)
        return ObjectTrack(T, valid)

    def _all(self, by_frame: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        if not isinstance(by_frame, dict):
            return None
        return stack_arrays([by_frame.get(frame) for frame in self._frames], shape)

    def _note(self, part: str, frame: int, error: SourceError) -> None:
        self.problems[part, frame] = str(error)
        if isinstance(error, _Absent):
            self.absent.add((part, frame))


def _at(entries: Any, key: Any, where: str) -> Any:
    if not isinstance(entries, dict) or key not in entries:
        raise _Absent(f"{where}: not annotated ({key} is missing)")
    return entries[key]


def _axis_angles(quaternions: np.ndarray) -> np.ndarray:
    return matrix_to_axis_angle(quaternion_to_matrix(quaternions, "wxyz"))


def _are_unit(quaternions: np.ndarray) -> bool:
    return bool(np.abs(np.linalg.norm(quaternions, axis=-1) - 1.0).max(initial=0.0) <= 0.05)


def _are_pinholes(K: np.ndarray) -> bool:
    return bool((K[..., 0, 0] > 0).all() and (K[..., 1, 1] > 0).all() and (K[..., 2, :] == [0, 0, 1]).all())


def _are_rigid(T: np.ndarray) -> bool:
    R = T[..., :3, :3]
    off = np.abs(R @ R.swapaxes(-1, -2) - np.eye(3)).max(initial=0.0)
    return bool(off <= _RIGID_TOLERANCE and (np.linalg.det(R) >= 0).all() and (T[..., 3, :] == [0, 0, 0, 1]).all())


def _rigid(value: Any, where: str) -> np.ndarray:
    T = to_array(value, (4, 4), where)
    if not _are_rigid(T):
        raise SourceError(f"{where}: not a rigid transform")
    return T
