"""A small OAKINK2 tree of our own making, in the published form; no file of the dataset is involved.

`write_tree` makes two sequences. The first has torch tensors, JPEG images and all four cameras; the second numpy
arrays, PNG images, two cameras and a folder name as browsers save it. Numbers are random, and kept in `Sequence` as
they stand in the files, for tests to compute from in their own way.
"""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from fake_mano import write_clean
from scipy.spatial.transform import Rotation

from pam_aug.hand import load_open_hand

SERIALS = {
    "104422071041": "allocentric_top",
    "104422070088": "allocentric_left",
    "104422070904": "allocentric_right",
    "104422070969": "egocentric",
}
KEY_A = "scene_01__A001/seq__0123456789abcdef0123__2023-04-27-20-38-16"
KEY_B = "scene_02__O003/seq__fedcba9876543210fedc__2023-04-12-10-22-38"
WIDTH, HEIGHT = 848, 480
PARTS = ("C12001", "O02@0015@00001", "O02@0015@00002")
TETRA = "v -0.03 0 0\nv 0.03 0 0\nv 0 0.05 0\nv 0 0.01 0.06\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 3 1 4\n"


@dataclass
class Sequence:
    """What a sequence's annotation file says, as float64 arrays by frame id."""

    key: str
    serials: tuple[str, ...]
    frame_ids: list[int]
    mocap_ids: list[int]
    K: dict[str, np.ndarray] = field(default_factory=dict)
    E: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    quats: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    tsl: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    betas: dict[str, np.ndarray] = field(default_factory=dict)
    poses: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    @property
    def token(self) -> str:
        return self.key.replace("/", "++")


def make_sequence(key: str, seed: int, serials: tuple[str, ...], frame_ids: list[int], mocap: list[int]) -> Sequence:
    """Random hands near the origin of a world with y up, cameras that look there, parts that move."""
    rng = np.random.default_rng(seed)
    s = Sequence(key, serials, frame_ids, mocap)
    frames = sorted({*frame_ids, *mocap})
    for name in SERIALS.values():
        s.K[name] = np.array([[600 + rng.normal(), 0, 420 + rng.normal()], [0, 601.0, 240.5], [0, 0, 1]])
        turn = Rotation.random(random_state=int(rng.integers(1 << 30)))
        s.E[name] = {}
        for i in frames:
            if name == "egocentric":
                turn = turn * Rotation.from_rotvec(rng.normal(scale=0.02, size=3))
            E = np.eye(4)
            E[:3, :3] = turn.as_matrix()
            E[:3, 3] = [0.02, -0.01, 0.9 + (0.001 * i if name == "egocentric" else 0.0)]
            s.E[name][i] = E
    for side in ("rh", "lh"):
        s.betas[side] = rng.normal(scale=0.7, size=10)
        s.quats[side], s.tsl[side] = {}, {}
        for i in frames:
            turns = Rotation.from_rotvec(
                np.concatenate([rng.normal(scale=1.5, size=(1, 3)), rng.normal(scale=0.3, size=(15, 3))])
            )
            quats = turns.as_quat()[:, [3, 0, 1, 2]]
            quats[::2] *= -1.0  # the same rotations, with a sign that readers must not trip over
            s.quats[side][i] = quats
            s.tsl[side][i] = rng.uniform(-0.12, 0.12, 3)
    for part in PARTS:
        s.poses[part] = {}
        for i in frames:
            T = np.eye(4)
            T[:3, :3] = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
            T[:3, 3] = rng.uniform(-0.2, 0.2, 3)
            s.poses[part][i] = T
    return s


_BODY = {"body_pose": (1, 21, 4), "world_tsl": (1, 3)}
_WHOLE_BODY = {
    **{"body_shape": (1, 300), "expr_shape": (1, 10), "jaw_pose": (1, 1, 4), "leye_pose": (1, 1, 4)},
    **{"reye_pose": (1, 1, 4), "world_rot": (1, 4), "world_tsl": (1, 3), "body_pose": (1, 21, 4)},
    **{"left_hand_pose": (1, 15, 4), "right_hand_pose": (1, 15, 4)},
}


def annotation_of(s: Sequence, *, as_torch: bool, whole_body: bool = False) -> dict[str, Any]:
    """The dictionary of a sequence's pickle; the body, which is never read, has two of its ten tensors by default."""

    def number(array: Any) -> Any:
        array = np.asarray(array, np.float32)
        return torch.from_numpy(array.copy()) if as_torch else array

    def body() -> dict[str, Any]:
        return {name: number(np.zeros(shape)) for name, shape in (_WHOLE_BODY if whole_body else _BODY).items()}

    names = [SERIALS[serial] for serial in s.serials]
    return {
        "cam_def": {serial: SERIALS[serial] for serial in s.serials},
        "cam_selection": names,
        "frame_id_list": list(s.frame_ids),
        "cam_intr": {n: {i: s.K[n].astype(np.float32) for i in s.frame_ids} for n in names},
        "cam_extr": {n: {i: s.E[n][i].astype(np.float32) for i in s.frame_ids} for n in names},
        "mocap_frame_id_list": list(s.mocap_ids),
        "obj_list": list(PARTS),
        "obj_transf": {p: {i: s.poses[p][i].astype(np.float32) for i in s.mocap_ids} for p in PARTS},
        "raw_smplx": {i: body() for i in s.mocap_ids},
        "raw_mano": {
            i: {
                key: number(value)
                for side in ("rh", "lh")
                for key, value in (
                    (f"{side}__pose_coeffs", s.quats[side][i][None]),
                    (f"{side}__tsl", s.tsl[side][i][None]),
                    (f"{side}__betas", s.betas[side][None]),
                )
            }
            for i in s.mocap_ids
        },
    }


def write_annotation(path: Path, annotation: dict[str, Any], protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(annotation, protocol))


def write_images(folder: Path, frame_ids: list[int], suffix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.name))
    pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (WIDTH, HEIGHT))
    data = cv2.imencode(f".{suffix}", pixels)[1].tobytes()
    for i in frame_ids:
        (folder / f"{i:06d}.{suffix}").write_bytes(data)


def write_programme(folder: Path, token: str, primitives: dict[str, dict[str, Any]], sentences: dict[str, str]) -> None:
    for name in ("program_info", "desc_info", "pdg"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    described = {key: {"seg_desc": text, "seg_desc_zh": ""} for key, text in sentences.items()}
    numbers = {key: i for i, key in enumerate(primitives)}
    graph = {"id_map": numbers, "v": list(numbers.values()), "e": [[i, i + 1] for i in range(len(numbers) - 1)]}
    for name, content in (("program_info", primitives), ("desc_info", described), ("pdg", graph)):
        (folder / name / f"{token}.json").write_text(json.dumps(content))


def primitive(lh: str | None, rh: str | None, part: str) -> dict[str, Any]:
    mode = "bh_main" if lh and rh else "lh_main" if lh else "rh_main"
    return {
        "primitive": lh or rh,
        "obj_list": [part],
        "interaction_mode": mode,
        "primitive_lh": lh,
        "primitive_rh": rh,
        "obj_list_lh": [part] if lh else None,
        "obj_list_rh": [part] if rh else None,
    }


def write_mano(folder: Path) -> None:
    """The bundled hand in the form of MANO's files, the left one with the official file's defect."""
    folder.mkdir(parents=True, exist_ok=True)
    right = load_open_hand("right")
    write_clean(right, folder / "MANO_RIGHT.pkl")
    write_clean(right.mirrored("as_file"), folder / "MANO_LEFT.pkl")


def write_meshes(root: Path) -> None:
    for part in PARTS:
        for mesh_set, suffix in (("raw", "obj"), ("repair", "obj")):
            folder = root / f"object_{mesh_set}" / "align_ds" / part
            folder.mkdir(parents=True)
            (folder / f"{part}.{suffix}").write_text(TETRA)


def write_tree(root: Path) -> tuple[Sequence, Sequence]:
    """The two sequences under `root`, MANO files under `root/mano`."""
    # Images at 9, 13 … 53: 21 has no image, 57 an image but no annotation, 49 no motion capture.
    a = make_sequence(KEY_A, 1, tuple(SERIALS), list(range(9, 54, 4)), [i for i in range(5, 56) if i != 49])
    write_annotation(root / "anno_preview" / f"{a.token}.pkl", annotation_of(a, as_torch=True))
    for serial in a.serials:
        write_images(root / "data" / a.token / serial, [i for i in [*a.frame_ids, 57] if i != 21], "jpg")
    b = make_sequence(KEY_B, 2, tuple(SERIALS)[:2], [100, 104, 108], list(range(90, 120)))
    saved_as = b.token.replace("+", "%2B")
    write_annotation(root / "anno_preview" / f"{saved_as}.pkl", annotation_of(b, as_torch=False))
    for serial in b.serials:
        write_images(root / "data" / saved_as / serial, b.frame_ids, "png")
    key1, key2, key3 = "((9, 20), None)", "((17, 29), (25, 37))", "(None, (41, 45))"
    write_programme(
        root / "program",
        a.token,
        {key1: primitive("hold", None, PARTS[0]), key2: primitive("pour", "pour", PARTS[1]),
         key3: primitive(None, "?(unk)", PARTS[0])},
        {key1: "Hold the bowl.", key2: "Pour the tea."},
    )  # fmt: skip
    (root / "program" / "task_target.json").write_text(json.dumps({a.key: "Make tea.", b.key: "Brush the board."}))
    write_meshes(root)
    write_mano(root / "mano")
    return a, b
