"""The generic rollout archive: one `.npz` of plain arrays that any simulator can write, every convention stated in it.

T frames, H hands, O objects, C cameras. Nothing is guessed: the file says its units, up axis, rotation form, finger
order, what its translation means and whether its rotations are absolute. Positions are in `length_unit`;
`object_scale` takes mesh units to metres. No pickles. From a simulator's arrays:

>>> import numpy as np
>>> from pam_aug.rollouts.archive import RolloutArchive, read_archive, write_archive
>>> T = 2
>>> wrist = np.array([[[0.0, 0.0, 0.70]], [[0.0, 0.0, 0.75]]])     # (T, 1 hand, 3): the simulator's wrist body
>>> cup = np.tile(np.eye(4), (T, 1, 1, 1))                         # (T, 1 object, 4, 4): model to world
>>> cup[:, 0, :3, 3] = wrist[:, 0] - [0.0, 0.0, 0.12]
>>> rollout = RolloutArchive(
...     source="my simulator 1.0", licence="CC BY 4.0", provenance='{"policy": "grasp-7", "seed": 3}',
...     fps=50.0, length_unit="m", up_axis="z", gravity=np.array([0.0, 0.0, -9.81]),
...     hand_side=("right",), hand_rot_repr="quat_wxyz", hand_flat_mean=True, hand_finger_order="mano", hand_pca=0,
...     hand_transl_type="wrist", hand_transl=wrist,
...     hand_global_orient=np.tile([1.0, 0, 0, 0], (T, 1, 1)),     # (T, 1, 4)
...     hand_pose=np.tile([1.0, 0, 0, 0], (T, 1, 15, 1)),          # (T, 1, 15, 4)
...     hand_betas=np.zeros((1, 10)), hand_valid=np.ones((T, 1), bool),
...     object_id=("cup",), object_mesh=("cup.obj",), object_scale=np.ones(1), object_pose=cup)
>>> write_archive("rollout.npz", rollout)
>>> read_archive("rollout.npz").hand_rot_repr
'quat_wxyz'

`pam_aug.rollouts.archive_checks` is what reading and writing demand of the values.
"""

import difflib
import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from pam_aug.errors import SourceError, UnsafeInput
from pam_aug.rollouts.archive_checks import check_archive

__all__ = ["SCHEMA", "SCHEMA_VERSION", "RolloutArchive", "read_archive", "write_archive"]

SCHEMA: Final = "pam_aug.rollout"
SCHEMA_VERSION: Final = 1
_MAX_BYTES: Final = 2 << 30

_TEXT_LISTS: Final = ("hand_side", "object_id", "object_mesh", "cam_name")


@dataclass(frozen=True, eq=False, kw_only=True)
class RolloutArchive:
    """The archive's fields, as stored. Fields without a default must be given; None and "" mean absent.

    `fps` or `timestamps` (T,), seconds: exactly one. `up_axis` is x, y or z, or one of them with a minus. `gravity`
    is in m/s^2, zero where there is none.

    `hand_rot_repr` is axis_angle, quat_wxyz, quat_xyzw, matrix or euler_XYZ (intrinsic); a rotation is (3,), (4,) or
    (3,3) accordingly: `hand_global_orient` (T,H,...), `hand_pose` (T,H,15,...), or (T,H,45) where a rotation is (3,).
    With `hand_pca` n > 0 `hand_pose` is (T,H,n) MANO coefficients. `hand_flat_mean` True: rotations are absolute;
    False: MANO's mean pose is still to be added. `hand_finger_order` is mano (index, middle, little, ring, thumb) or
    the five fingers joined by dashes, base to tip in each. `hand_transl_type` is wrist (the wrist joint) or mano_transl
    (smplx: the wrist is transl + J0(betas)). `hand_betas` (H,10) or (T,H,10). `hand_joints3d` (T,H,21,3), thumb to
    little, are only compared with.

    `object_mesh` is a path relative to the archive, `object_pose` (T,O,4,4) takes the model to the world.
    `cam_T_world_cam` (C,4,4) or (T,C,4,4) takes an OpenCV camera to the world; `cam_size` is (C, width and height).
    `table_height` is in `length_unit` along the up axis. `split` and `group_id` decide splits where they are given.
    """

    source: str
    licence: str
    provenance: str  # JSON: simulator, policy, seed
    length_unit: str
    up_axis: str
    gravity: np.ndarray
    hand_side: tuple[str, ...]
    hand_rot_repr: str
    hand_flat_mean: bool
    hand_finger_order: str
    hand_pca: int
    hand_transl_type: str
    hand_global_orient: np.ndarray
    hand_pose: np.ndarray
    hand_transl: np.ndarray
    hand_betas: np.ndarray
    hand_valid: np.ndarray
    object_id: tuple[str, ...]
    object_mesh: tuple[str, ...]
    object_scale: np.ndarray
    object_pose: np.ndarray
    fps: float | None = None
    timestamps: np.ndarray | None = None
    world_frame: str = ""
    hand_joints3d: np.ndarray | None = None
    object_valid: np.ndarray | None = None
    object_angle: np.ndarray | None = None
    table_height: float | None = None
    cam_K: np.ndarray | None = None
    cam_size: np.ndarray | None = None
    cam_T_world_cam: np.ndarray | None = None
    cam_name: tuple[str, ...] = ()
    cam_distortion: np.ndarray | None = None
    contact: np.ndarray | None = None
    contact_force: np.ndarray | None = None
    success: bool | None = None
    text: str = ""
    split: str = ""
    group_id: str = ""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.hand_global_orient)

    @property
    def unit_m(self) -> float:
        """Metres per `length_unit`."""
        return 0.001 if self.length_unit == "mm" else 1.0

    @property
    def times_s(self) -> np.ndarray:
        """(T,) seconds."""
        if self.timestamps is not None:
            return np.asarray(self.timestamps, np.float64)
        return np.arange(self.frames) / (self.fps or 1.0)


_FIELDS: Final = {f.name: f for f in fields(RolloutArchive)}
_REQUIRED: Final = [name for name, f in _FIELDS.items() if f.default is MISSING]


def write_archive(path: str | Path, archive: RolloutArchive) -> None:
    """Check an archive and write it; it appears whole or not at all, and the same content gives the same bytes.

    Raises SourceError with every named failure, before anything is written.
    """
    path = Path(path)
    check_archive(archive, str(path))
    arrays = {"schema": np.array(SCHEMA), "schema_version": np.array(SCHEMA_VERSION)}
    for name in _FIELDS:
        value = getattr(archive, name)
        if value is not None and not (isinstance(value, str | tuple) and not value and name not in _REQUIRED):
            arrays[name] = np.asarray(value) if not isinstance(value, tuple) else np.array(value, np.str_)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
            for name, value in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, value, allow_pickle=False)
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                member.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(member, buffer.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_archive(path: str | Path) -> RolloutArchive:
    """Read and check an archive.

    Raises SourceError for a file that is no such archive, of another major version, with unknown or missing fields, or
    that fails checks (each named); UnsafeInput for pickles and for archives that unpack to over 2 GB.
    """
    path = Path(path)
    raw = _read_arrays(path)
    if "schema" not in raw or str(raw["schema"]) != SCHEMA:
        raise SourceError(f"{path}: schema is {str(raw.get('schema', 'missing'))!r}, not {SCHEMA!r}. {_SEE}")
    version = _number(path, "schema_version", raw.get("schema_version", np.array(-1)))
    if int(version) != SCHEMA_VERSION:
        raise SourceError(f"{path}: schema_version {version}, this library reads {SCHEMA_VERSION}. {_SEE}")
    values = {name: value for name, value in raw.items() if name not in ("schema", "schema_version")}
    _check_names(path, values)
    archive = RolloutArchive(**{name: _typed(path, name, value) for name, value in values.items()})
    check_archive(archive, str(path))
    return archive


_SEE: Final = "Write it with pam_aug.rollouts.archive.write_archive."


def _check_names(path: Path, values: Mapping[str, Any]) -> None:
    problems = []
    for name in values:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.0)[0]
            problems.append(f"unknown field {name}; did you mean {near}?")
    problems += [f"{name} is missing" for name in _REQUIRED if name not in values]
    if problems:
        raise SourceError(f"{path}: " + "; ".join(problems) + f". {_SEE}", problems=problems)


def _typed(path: Path, name: str, value: np.ndarray) -> Any:
    kind = str(_FIELDS[name].type)
    if name in _TEXT_LISTS:
        if value.ndim != 1 or (value.size and value.dtype.kind != "U"):
            raise SourceError(f"{path}: {name} should be a list of texts, is {value.dtype} {value.shape}. {_SEE}")
        return tuple(str(v) for v in value)
    if kind == str(str):
        if value.ndim or value.dtype.kind != "U":
            raise SourceError(f"{path}: {name} should be a text, is {value.dtype} {value.shape}. {_SEE}")
        return str(value)
    if "ndarray" in kind:
        if value.dtype.kind not in "biuf":
            raise SourceError(f"{path}: {name} should hold numbers, is {value.dtype}. {_SEE}")
        return value
    number = _number(path, name, value)
    if "bool" in kind:
        if value.dtype != np.bool_:
            raise SourceError(f"{path}: {name} should be True or False, is {value.dtype}. {_SEE}")
        return bool(number)
    if kind == str(int):
        if value.dtype.kind not in "iu":
            raise SourceError(f"{path}: {name} should be a whole number, is {value.dtype}. {_SEE}")
        return int(number)
    return float(number)


def _number(path: Path, name: str, value: np.ndarray) -> Any:
    if value.ndim or value.dtype.kind not in "biuf":
        raise SourceError(f"{path}: {name} should be one number, is {value.dtype} {value.shape}. {_SEE}")
    return value.item()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(item.file_size for item in file.infolist())
        if size > _MAX_BYTES:
            raise UnsafeInput(f"{path}: unpacks to {size} bytes, over {_MAX_BYTES}. Split the rollout.")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such rollout archive. Check the path.", path=str(path)) from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UnsafeInput(f"{path}: holds pickled objects; nothing of them was run. {_SEE}") from error
        raise SourceError(f"{path}: not a readable .npz ({error}). {_SEE}") from error
    except UnsafeInput:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise a dozen kinds for damaged bytes
        raise SourceError(f"{path}: not a readable .npz ({error}). {_SEE}") from error
