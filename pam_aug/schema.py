"""The one sample schema, for real and synthetic images: what a shard's JSON holds, and its exact round trip.

Every key is always there, of one type, never null: "", [], -1 and False mean absent. Floats are float32 and written as
the shortest text that reads back to the same float32. Units and frames: metres, radians, pixels; OpenCV camera frame.
"""

import functools
import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import orjson

from pam_aug.errors import SchemaError
from pam_aug.versions import SCHEMA_VERSION, check_version

__all__ = [
    "SCHEMA_VERSION",
    "SEG_BACKGROUND",
    "SEG_FIRST_OBJECT",
    "SEG_FOREARM",
    "SEG_LEFT_HAND",
    "SEG_RIGHT_HAND",
    "Camera",
    "Candidate",
    "Generation",
    "Hand",
    "Object",
    "Sample",
    "Score",
    "Source",
    "Verdict",
    "candidate_key",
    "check_key",
    "clean_key_part",
    "make_key",
    "sample_from_json",
    "sample_to_json",
]

SEG_BACKGROUND = 0
SEG_RIGHT_HAND = 1
SEG_LEFT_HAND = 2
SEG_FOREARM = 3
SEG_FIRST_OBJECT = 16

Side = Literal["right", "left"]


class Array:
    """Annotation marker: a float32 (or bool) array of a fixed shape; -1 in the shape means any length."""

    def __init__(self, *shape: int, dtype: type = np.float32) -> None:
        self.shape, self.dtype = shape, dtype
        self._nothing = np.zeros(0 if -1 in shape else math.prod(shape), np.float32)

    def coerce(self, value: Any, where: str) -> np.ndarray:
        try:
            array = np.asarray(value, dtype=self.dtype, order="C")  # as JSON and the index take it
        except (TypeError, ValueError) as error:
            raise SchemaError(f"{where}: not an array of numbers ({error})", field=where) from error
        if array.shape != self.shape:
            if array.size == 0 and len(self.shape) > 1:
                array = array.reshape(0, *self.shape[1:])
            if len(array.shape) != len(self.shape) or any(
                want not in (-1, got) for want, got in zip(self.shape, array.shape)
            ):
                raise SchemaError(f"{where}: shape {array.shape}, expected {self.shape}", field=where)
        if array.dtype == np.float32:
            # Nothing times a finite number is nothing, times NaN or infinity it is NaN: one product for three passes.
            quick = array.size == len(self._nothing) and np.vdot(array, self._nothing) == 0
            if not quick and not np.isfinite(array).all():
                raise SchemaError(f"{where}: holds a NaN or an infinity; absent values are -1, never NaN", field=where)
        array.setflags(write=False)
        return array


def _array(*shape: int, dtype: type = np.float32, default: Any = None) -> Any:
    marker = Array(*shape, dtype=dtype)
    if default is None:
        return field(metadata={"array": marker})
    value = marker.coerce(default, "default")  # cannot be written to, so one serves all records
    return field(default_factory=lambda: value, metadata={"array": marker})


@functools.cache
def _numeric_fields(kind: type) -> tuple[tuple[str, str, Array | None], ...]:
    """(name, name in messages, its array marker) of a record's arrays and floats, looked up once per class."""
    return tuple(
        (f.name, f"{kind.__name__}.{f.name}", f.metadata.get("array"))
        for f in fields(kind)
        if "array" in f.metadata or f.type in (float, "float")
    )


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


@dataclass(frozen=True, slots=True, eq=False)
class _Record:
    """Rounds numbers to float32 on construction, so that what is held is what is written; equality is exact."""

    def __post_init__(self) -> None:
        for name, where, array in _numeric_fields(type(self)):
            value = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, array.coerce(value, where))
            else:
                if not math.isfinite(value):
                    raise SchemaError(f"{where}: {value} is not a finite number; absent is -1", field=where)
                object.__setattr__(self, name, float(np.float32(value)))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name))
            if "array" in f.metadata
            else getattr(self, f.name) == getattr(other, f.name)
            for f in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class Camera(_Record):
    """Pinhole camera. `K_px` (3,3); `T_world_cam` (4,4) camera→world."""

    width: int
    height: int
    K_px: np.ndarray = _array(3, 3)
    T_world_cam: np.ndarray = _array(4, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Hand(_Record):
    """One hand's label in the camera frame.

    `hand_pose` is absolute axis-angle (the mean pose is already added) in MANO's joint order; `transl` has smplx's
    meaning (wrist = transl + J0(betas)). 21 joints: wrist, thumb, index, middle, ring, little, base to tip.
    `mano_valid` is False where a source gives joints only. `hand_model` is "open_hand", "mano",
    "mano_as_file" (a left one whose shape directions are kept as the official file has them) or "fitted:<sha256>".
    """

    side: Side
    hand_model: str
    joints_cam_m: np.ndarray = _array(21, 3)
    joints_px: np.ndarray = _array(21, 2)
    in_view: np.ndarray = _array(21, dtype=np.bool_)
    global_orient: np.ndarray = _array(3, default=np.zeros(3))
    hand_pose: np.ndarray = _array(45, default=np.zeros(45))
    betas: np.ndarray = _array(10, default=np.zeros(10))
    transl: np.ndarray = _array(3, default=np.zeros(3))
    mano_valid: bool = True
    tips: str = "smplx"
    pose_mean: str = "exact"


@dataclass(frozen=True, slots=True, eq=False)
class Object(_Record):
    """One object: `T_cam_obj` (4,4) model→camera; `mesh` is the mesh's name in its source, never an absolute path."""

    id: str
    mesh: str
    seg_id: int
    T_cam_obj: np.ndarray = _array(4, 4)
    valid: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Source(_Record):
    """Where a label came from. `name` is the source's own name of the frame; `group` keeps splits leak-free."""

    dataset: str
    name: str
    licence: str
    converter: str
    split: str = ""
    group: str = ""
    image_sha256: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Generation(_Record):
    """How a synthetic image was made; all absent ("" and -1) for a real one."""

    generator: str = ""
    version: str = ""
    input_key: str = ""
    candidate: int = -1
    seed: int = -1
    prompt: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Score(_Record):
    """An estimator's error against the label: the worst hand's. -1 where nothing was scored.

    `err_mm` wrist-aligned MPJPE over 21 joints, `pa_err_mm` after Procrustes alignment, `err_2d` mean pixel error over
    max(w, h) of the label's box, `mask_iou` hand-mask IoU.
    """

    estimator: str = ""
    err_mm: float = -1.0
    pa_err_mm: float = -1.0
    err_2d: float = -1.0
    mask_iou: float = -1.0


_NOT_GENERATED, _NOT_SCORED = Generation(), Score()  # nobody can change them, so all real samples share them


@dataclass(frozen=True, slots=True, eq=False)
class Sample(_Record):
    """One image's labels and provenance."""

    key: str
    camera: Camera
    hands: tuple[Hand, ...]
    objects: tuple[Object, ...]
    source: Source
    synthetic: bool = False
    generation: Generation = field(default_factory=lambda: _NOT_GENERATED)
    score: Score = field(default_factory=lambda: _NOT_SCORED)
    text: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_key(self.key)
        _Record.__post_init__(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What selection decided on a candidate. `reason` is "" for a kept one."""

    kept: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one of several estimators found on a candidate; the same fields as the candidate's own."""

    estimator: str
    err_mm: float
    pa_err_mm: float
    err_2d: float
    mask_iou: float
    vert_err_mm: float
    pa_vert_err_mm: float
    side_agrees: bool
    failure: str
    odd_mm: float = -1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the candidates table: every generated image, kept or rejected.

    Errors are +inf where nothing could be scored, with the cause in `failure`. `vert_err_mm` (wrist on wrist) and
    `pa_vert_err_mm` are over the mesh's vertices, -1 where the meshes cannot be compared. `side_agrees` is False where
    the estimate's mirror image fits the label better. `odd_mm` is the distance from the median estimate of the input's
    candidates, -1 in tables that were written before it was measured. Where several estimators judge together,
    `judgements` holds what each found, and the errors are the combined ones; it is empty where one judged alone.
    """

    input_key: str
    index: int
    seed: int
    generator: str
    estimator: str
    err_mm: float
    pa_err_mm: float
    err_2d: float
    mask_iou: float
    failure: str = ""
    verdict: Verdict = field(default_factory=lambda: Verdict(kept=True))
    vert_err_mm: float = -1.0
    pa_vert_err_mm: float = -1.0
    side_agrees: bool = True
    judgements: tuple[Judgement, ...] = ()
    odd_mm: float = -1.0

    @property
    def key(self) -> str:
        return candidate_key(self.input_key, self.index)


# ------------------------------------------------------------------------------------------------------------ keys

_KEY = re.compile(r"(?:[a-z0-9_-]{1,80}/){4}[a-z0-9_-]{1,80}(?:@\d\d)?")
_MAX_KEY_BYTES = 180


@functools.lru_cache(maxsize=4096)  # a dataset has few names and numbers, which come again with every image
def clean_key_part(text: str) -> str:
    """`text` as a key part: lower case, every character outside [a-z0-9_-] becomes "-", at most 80 bytes."""
    part = re.sub(r"[^a-z0-9_-]", "-", text.lower())
    if not 0 < len(part) <= 80:
        raise SchemaError(f"{text!r}: a key part has 1 to 80 characters", part=text)
    return part


def make_key(dataset: str, subject: str, sequence: str, camera: str, frame: str) -> str:
    """The key of a sample, `dataset/subject/sequence/camera/frame`, from the source's own names."""
    return check_key("/".join(clean_key_part(p) for p in (dataset, subject, sequence, camera, frame)))


def candidate_key(input_key: str, index: int) -> str:
    """The key of candidate `index` (0 to 99) of an input: `<input_key>@07`."""
    if not 0 <= index <= 99:
        raise SchemaError(f"{input_key}: candidate index {index} is outside 0 to 99", index=index)
    return check_key(f"{input_key}@{index:02d}")


def check_key(key: str) -> str:
    """`key` itself when it follows the rules (five clean parts, optional "@07" end, at most 180 bytes)."""
    if not _KEY.fullmatch(key) or len(key) > _MAX_KEY_BYTES:
        raise SchemaError(
            f"{key!r} is not a sample key: dataset/subject/sequence/camera/frame in [a-z0-9_-], "
            f"at most {_MAX_KEY_BYTES} bytes, optionally ending in @07",
            key=key,
        )
    return key


# ---------------------------------------------------------------------------------------------------- to/from JSON


def sample_to_json(sample: Sample) -> bytes:
    """The sample as JSON bytes, keys in the schema's order, floats as the shortest text of their float32."""
    # orjson writes records and their arrays by itself, but Python's floats as float64: a score is all that has such.
    score = sample.score
    scored = {n: np.float32(v) if type(v) is float else v for n in _field_names(Score) for v in (getattr(score, n),)}
    tree = {name: scored if name == "score" else getattr(sample, name) for name in _field_names(Sample)}
    return orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)


def sample_from_json(data: bytes) -> Sample:
    """The sample of `sample_to_json`'s bytes, bit for bit.

    Raises SchemaError naming the field that does not fit, SchemaNewer and SchemaOlder for another version.
    """
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"not JSON: {error}") from error
    check_version(tree.get("schema_version") if isinstance(tree, dict) else None, "the label")
    return _typed(Sample, tree, "Sample")


_HINTS: dict[type, dict[str, Any]] = {}


def _typed(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        assert isinstance(hint, type)
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: expected an object, got {type(value).__name__}", field=where)
        hints = _HINTS.setdefault(hint, get_type_hints(hint))
        names = [f.name for f in fields(hint)]
        if list(value) != names and set(value) != set(names):
            wrong = sorted(set(value) ^ set(names))
            raise SchemaError(f"{where}: unknown or missing keys {wrong}", field=where, keys=wrong)
        return hint(**{n: _typed(hints[n], value[n], f"{where}.{n}") for n in names})
    if hint is np.ndarray:
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise SchemaError(f"{where}: expected a list, got {type(value).__name__}", field=where)
        return tuple(_typed(get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise SchemaError(f"{where}: {value!r} is none of {get_args(hint)}", field=where)
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(np.float32(value))
    if type(value) is not hint:
        raise SchemaError(f"{where}: expected {hint.__name__}, got {type(value).__name__}", field=where)
    return value
