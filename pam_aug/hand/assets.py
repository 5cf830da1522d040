"""The arrays of a hand model, and how they are read: official MANO files, cleaned copies, and our own `.npz`.

The official `MANO_{LEFT,RIGHT}.pkl` (v1.2; Romero, Tzionas and Black 2017) are Python 2 pickles that hold chumpy and
scipy objects. They are read here through an allow-list, without either package; see `pam_aug.safe_pickle`.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Int

from pam_aug.errors import AssetMissing, SchemaError, SourceError, UnsafeInput
from pam_aug.hand.joints import MANO_PARENTS, SIDES, Side
from pam_aug.safe_pickle import ALLOWED_NUMPY, AllowedState, load_pickle

__all__ = [
    "HandAssets",
    "LeftShapedirs",
    "assets_from_arrays",
    "load_mano",
    "load_npz",
    "mano_model_name",
    "read_npz_arrays",
    "save_npz",
    "wrist_cap",
]

LeftShapedirs = Literal["as_file", "fixed"]
"""What to do about the left hand's shape directions. The official left file has the right hand's, whose x should be
negated (4 mm on average for betas of one sigma). "fixed" negates it; "as_file" keeps it, as DexYCB's labels need."""

_SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "v_template": (778, 3),
    "f": (1538, 3),
    "f_cap": (14, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "parents": (16,),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "joint_limits_rad": (15, 3, 2),
    "joint_axes": (15, 3, 3),
    "joint_ranges_rad": (15, 3, 2),
    "nail": (778,),
    "palmar": (778,),
}
_INTEGER = ("f", "f_cap", "parents", "nail", "palmar")
# What a model says beyond MANO's fields; where it does not, these values mean "unknown".
_UNKNOWN: Final[dict[str, np.ndarray]] = {
    "joint_limits_rad": np.zeros((15, 3, 2)),
    "joint_axes": np.tile(np.eye(3), (15, 1, 1)),
    "joint_ranges_rad": np.zeros((15, 3, 2)),
    "nail": np.zeros(778, np.int64),
    "palmar": np.zeros(778, np.int64),
}
_MAX_BYTES = 1 << 27  # an official file has 4 MB
_GET_MANO = (
    "Register at https://mano.is.tue.mpg.de, download 'Models & Code' (mano_v1_2.zip) and pass the folder that holds "
    "MANO_LEFT.pkl and MANO_RIGHT.pkl as --mano-dir or $MANO_DIR."
)


@dataclass(frozen=True, eq=False)
class HandAssets:
    """One hand model with MANO's interface, in metres, rest pose with the wrist end towards +x for the right side.

    `f` (faces) and `f_cap` (the 14 faces that close the wrist) wind counter-clockwise seen from outside. `weights` and
    the rows of `J_regressor` sum to one. `hands_mean` and the rows of `hands_components` are axis-angle values of
    joints 1 to 15; the rows are orthogonal but not of unit length.

    What MANO's files do not say is zero for them: `joint_limits_rad`, lowest and highest value of each pose parameter;
    `joint_axes`, the rows of each joint's flexion, abduction and twist axes (the identity where unknown), and
    `joint_ranges_rad`, the ranges about them; `nail`, per vertex the finger (1 thumb to 5 little) whose nail it is on;
    `palmar`, 1 where a vertex faces the palm's side.
    """

    name: str
    side: Side
    v_template: Float[np.ndarray, "778 3"]
    f: Int[np.ndarray, "1538 3"]
    f_cap: Int[np.ndarray, "14 3"]
    shapedirs: Float[np.ndarray, "778 3 10"]
    posedirs: Float[np.ndarray, "778 3 135"]
    J_regressor: Float[np.ndarray, "16 778"]
    weights: Float[np.ndarray, "778 16"]
    parents: Int[np.ndarray, "16"]
    hands_mean: Float[np.ndarray, "45"]
    hands_components: Float[np.ndarray, "45 45"]
    joint_limits_rad: Float[np.ndarray, "15 3 2"]
    joint_axes: Float[np.ndarray, "15 3 3"]
    joint_ranges_rad: Float[np.ndarray, "15 3 2"]
    nail: Int[np.ndarray, "778"]
    palmar: Int[np.ndarray, "778"]

    @cached_property
    def sha256(self) -> str:
        """Hash of the side and of every array (type, shape, bytes); the name does not enter."""
        digest = hashlib.sha256(self.side.encode())
        for key in _SHAPES:
            array = np.ascontiguousarray(getattr(self, key)) + 0  # -0.0 and 0.0 are the same content
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{key}{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @cached_property
    def rest_joints_m(self) -> Float[np.ndarray, "16 3"]:
        """The 16 joints of the mean shape in the rest pose, in float64."""
        return self.J_regressor.astype(np.float64) @ self.v_template.astype(np.float64)

    def mirrored(self, left_shapedirs: LeftShapedirs = "fixed") -> "HandAssets":
        """The hand of the other side: this one reflected in x.

        A face keeps its index and turns its winding. `left_shapedirs="as_file"` leaves the shape directions unchanged,
        which is the defect of the official left file.
        """
        flip = np.array([-1.0, 1.0, 1.0])
        turn = np.array([1.0, -1.0, -1.0])  # an axis-angle vector is an axial vector
        pair = np.tile(np.outer(flip, flip).ravel(), 15)  # signs of R_ij under R -> M R M, M = diag(-1, 1, 1)
        limits = self.joint_limits_rad.copy()
        limits[:, 1:] = -limits[:, 1:, ::-1]
        shape_sign = flip[:, None] if left_shapedirs == "fixed" else np.ones((3, 1))
        other: Side = "left" if self.side == "right" else "right"
        reflected = {
            "v_template": self.v_template * flip,
            "shapedirs": self.shapedirs * shape_sign,
            "posedirs": self.posedirs * flip[:, None] * pair,
            "hands_mean": self.hands_mean * np.tile(turn, 15),
            "hands_components": self.hands_components * np.tile(turn, 15),
            "joint_limits_rad": limits,
            "joint_axes": self.joint_axes * turn,
        }
        reflected = {key: (value + 0.0).astype(getattr(self, key).dtype) for key, value in reflected.items()}
        name = self.name.replace(self.side, other) if self.side in self.name else f"{self.name}-{other}"
        return replace(
            self,
            name=name,
            side=other,
            f=np.ascontiguousarray(self.f[:, ::-1]),
            f_cap=np.ascontiguousarray(self.f_cap[:, ::-1]),
            **reflected,
        )


# --- checking ------------------------------------------------------------------------------------------------------


def wrist_cap(f: np.ndarray, where: str) -> np.ndarray:
    """Fourteen faces, wound outwards, that close the loop of 16 wrist vertices; a zigzag strip across the loop."""
    half_edges = {(int(a), int(b)) for t in f for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    # A border half-edge has no opposite; the cap owns the opposites, so its own loop runs the other way round.
    after = {b: a for a, b in half_edges if (b, a) not in half_edges}
    loop = [min(after, default=0)]
    while after and len(loop) <= len(after) and after.get(loop[-1], loop[0]) != loop[0]:
        loop.append(after[loop[-1]])
    if len(loop) != 16 or len(after) != 16:
        raise SchemaError(
            f"{where}: its faces leave an opening of {len(after)} edges, MANO's wrist has 16. This is not a MANO mesh."
        )
    faces, low, high = [], 0, 15
    while high - low > 1:
        faces.append((loop[low], loop[low + 1], loop[high]))
        low += 1
        if high - low > 1:
            faces.append((loop[low], loop[high - 1], loop[high]))
            high -= 1
    return np.array(faces, np.int64)


def assets_from_arrays(raw: Mapping[str, Any], *, name: str, side: Side, where: str) -> HandAssets:
    """Build a hand model from named arrays, checking each. `where` is the file that errors name.

    Raises `SchemaError` for a missing field, a wrong shape, type, tree, sum or side, or a value that is not finite.
    """
    raw = {**_UNKNOWN, **raw}
    arrays: dict[str, np.ndarray] = {}
    for key, shape in _SHAPES.items():
        if key not in raw:
            raise SchemaError(f"{where}: has no '{key}', so it is not a MANO hand model. {_GET_MANO}")
        array = np.asarray(raw[key])
        if array.shape != shape:
            raise SchemaError(f"{where}: '{key}' has shape {array.shape}, a MANO hand has {shape}. {_GET_MANO}")
        if array.dtype.kind not in ("iu" if key in _INTEGER else "f"):
            raise SchemaError(f"{where}: '{key}' has type {array.dtype}, expected numbers of another kind.")
        if key not in _INTEGER and not np.isfinite(array).all():
            raise SchemaError(f"{where}: '{key}' holds NaN or infinity. The file is damaged; copy it again.")
        arrays[key] = np.ascontiguousarray(array.astype(np.int64) if key in _INTEGER else array)
    for key in ("f", "f_cap"):
        if arrays[key].min() < 0 or arrays[key].max() >= 778:
            raise SchemaError(f"{where}: '{key}' names vertices outside 0..777. The file is damaged; copy it again.")
    if tuple(arrays["parents"].tolist()) != MANO_PARENTS:
        raise SchemaError(f"{where}: the joint tree is {arrays['parents'].tolist()}, MANO's is {list(MANO_PARENTS)}.")
    for key in ("J_regressor", "weights"):
        off = float(np.abs(arrays[key].sum(1, dtype=np.float64) - 1).max())
        if off > 1e-3:
            raise SchemaError(f"{where}: rows of '{key}' miss a sum of 1 by {off:.2g}. The file is damaged.")
    assets = HandAssets(name=name, side=side, **arrays)
    joints = assets.rest_joints_m
    reach = float(joints[1:, 0].mean() - joints[0, 0])
    if (reach > 0) != (side == "left"):
        other = "left" if side == "right" else "right"
        raise SchemaError(f"{where}: this is a {other} hand (its fingers point along {'+' if reach > 0 else '-'}x), "
                          f"a {side} hand was asked for. Check the file name.")  # fmt: skip
    return assets


# --- official files ------------------------------------------------------------------------------------------------


class _Ch(AllowedState):
    """Stands for chumpy.ch.Ch: an array `x`."""

    def array(self) -> np.ndarray:
        return np.asarray(self.state["x"])


class _Select(AllowedState):
    """Stands for chumpy.reordering.Select: elements `idxs` of the flattened `a`, in `preferred_shape`."""

    def array(self) -> np.ndarray:
        source = self.state["a"]
        values = source.array() if isinstance(source, (_Ch, _Select)) else np.asarray(source)
        picked = values.ravel()[np.asarray(self.state["idxs"])]
        return picked.reshape([int(n) for n in self.state["preferred_shape"]])


class _SparseColumns(AllowedState):
    """Stands for scipy.sparse.csc_matrix."""

    def array(self) -> np.ndarray:
        rows, columns = (int(n) for n in self.state["_shape" if "_shape" in self.state else "shape"])
        if not 0 <= rows * columns <= 1 << 24:
            raise ValueError(f"a sparse matrix of shape ({rows}, {columns})")
        dense = np.zeros((rows, columns))
        column = np.repeat(np.arange(columns), np.diff(np.asarray(self.state["indptr"], np.int64)))
        np.add.at(dense, (np.asarray(self.state["indices"]), column), np.asarray(self.state["data"]))
        return dense


_ALLOWED = {
    **ALLOWED_NUMPY,
    ("chumpy.reordering", "Select"): _Select,
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy", "Ch"): _Ch,
    ("scipy.sparse.csc", "csc_matrix"): _SparseColumns,
    ("scipy.sparse._csc", "csc_matrix"): _SparseColumns,
}


def _read_mano_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return read_npz_arrays(path)
    content = load_pickle(path, _ALLOWED, encoding="latin1", max_bytes=_MAX_BYTES)
    if not isinstance(content, dict):
        raise SchemaError(f"{path}: holds a {type(content).__name__}, not MANO's dictionary of arrays. {_GET_MANO}")
    arrays: dict[str, Any] = {}
    for key, value in content.items():
        try:
            arrays[str(key)] = value.array() if isinstance(value, (_Ch, _Select, _SparseColumns)) else value
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise SchemaError(f"{path}: '{key}' cannot be rebuilt ({error!r}). The file is damaged.") from error
    return arrays


def _find_mano(path: Path, side: Side) -> Path:
    if path.is_file():
        return path
    stem = f"MANO_{side.upper()}"
    for folder in (path, path / "mano", path / "models", path / "mano_v1_2" / "models"):
        for name in (f"{stem}.pkl", f"{stem}.npz", f"{stem}_C.pkl"):
            if (folder / name).is_file():
                return folder / name
    raise AssetMissing(f"{path}: there is no {stem}.pkl. {_GET_MANO}", path=str(path))


def _has_right_shapedirs(path: Path, left: np.ndarray) -> bool:
    """Whether a left file's shape directions are the right hand's (the known defect).

    Compared with the right-hand file beside it where there is one; without it, the file is taken for the official one.
    """
    sibling = path.with_name(path.name.replace("LEFT", "RIGHT"))
    if sibling == path or not sibling.is_file():
        return True
    right = np.asarray(_read_mano_arrays(sibling).get("shapedirs"))[..., :10]
    if right.shape != left.shape:
        return True
    mirrored = right * np.array([-1.0, 1.0, 1.0])[:, None]
    return float(np.abs(left - right).max()) < float(np.abs(left - mirrored).max())


def mano_model_name(side: Side, left_shapedirs: LeftShapedirs) -> str:
    """What a label calls the user's MANO hand: the left one as in the file is another model than the mended one."""
    return "mano_as_file" if side == "left" and left_shapedirs == "as_file" else "mano"


def load_mano(path: str | Path, side: str, *, left_shapedirs: LeftShapedirs = "fixed") -> HandAssets:
    """Read the user's own MANO model of one side from a file, or from a folder that holds `MANO_{SIDE}.pkl`.

    Takes the official pickle, a copy cleaned to plain numpy, or an `.npz` with the same fields. With
    `left_shapedirs="fixed"` the left hand's defective shape directions are mended (see `LeftShapedirs`); a file that is
    already mended is recognised by the right-hand file beside it.

    Raises `AssetMissing` (no file, and where to get it), `UnsafeInput` (a forbidden global, named), `SourceError`
    (unreadable) or `SchemaError` (not a MANO model, wrong shapes, wrong side).
    """
    if side not in SIDES:
        raise SchemaError(f"'{side}' is not a side. Use 'left' or 'right'.")
    file = _find_mano(Path(path), side)
    raw = _read_mano_arrays(file)
    if "f" in raw and np.asarray(raw["f"]).shape == (1538, 3) and "f_cap" not in raw:
        raw["f_cap"] = wrist_cap(np.asarray(raw["f"]), str(file))
    if "kintree_table" in raw and np.asarray(raw["kintree_table"]).shape == (2, 16):
        parents = np.asarray(raw["kintree_table"])[0].astype(np.int64)
        raw["parents"] = np.where(parents >= 16, -1, parents)  # the root's parent is -1 kept as an unsigned number
    if "shapedirs" in raw and np.asarray(raw["shapedirs"]).ndim == 3:
        raw["shapedirs"] = np.asarray(raw["shapedirs"])[..., :10]
    assets = assets_from_arrays(raw, name=f"mano-{side}", side=side, where=str(file))
    if side == "left" and left_shapedirs == "fixed" and _has_right_shapedirs(file, assets.shapedirs):
        sign = np.array([-1.0, 1.0, 1.0], assets.shapedirs.dtype)
        assets = replace(assets, shapedirs=assets.shapedirs * sign[:, None])
    return assets


# --- our own files -------------------------------------------------------------------------------------------------


def read_npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`; pickled ones and archives that unpack to over 128 MiB are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_BYTES:
            raise UnsafeInput(f"{path}: unpacks to {size} bytes, a hand model has a few million. Refused.")
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise AssetMissing(f"{path}: no such file.", path=str(path)) from error
    except UnsafeInput:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header parser raise a dozen kinds for damaged bytes
        raise SourceError(f"{path}: not a readable .npz of plain arrays ({error}). Copy or build it again.") from error


def save_npz(assets: HandAssets, path: str | Path) -> None:
    """Write a hand model. The same content gives the same bytes; the file appears whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for field in fields(assets):
                value = np.asarray(getattr(assets, field.name))
                member = zipfile.ZipInfo(f"{field.name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=False) as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(value).reshape(value.shape), version=(1, 0))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_npz(path: str | Path) -> HandAssets:
    """Read a hand model that `save_npz` wrote. Raises `AssetMissing`, `SourceError`, `SchemaError` or `UnsafeInput`."""
    path = Path(path)
    raw = read_npz_arrays(path)
    side = str(raw.get("side", ""))
    if side not in SIDES:
        raise SchemaError(f"{path}: has no side, so it is not a hand model of this library.")
    return assets_from_arrays(raw, name=str(raw.get("name", path.stem)), side=side, where=str(path))  # pyright: ignore[reportArgumentType]
