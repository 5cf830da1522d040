"""D-Grasp's grasp labels (Christen et al., CVPR 2022): 376 grasps of 20 YCB objects that it took from DexYCB.

The files are joblib pickles. They hold a skeleton's angles, its 21 joints and the object's pose, in a world whose z is
up; no hand mesh, no camera, no trajectory. The skeleton's bone offsets are solved from the angles and the joints, and a
hand is fitted to them. What differs from our labels, and is undone here: intrinsic XYZ Euler angles, absolute, in the
finger order index, middle, ring, little, thumb; a position that is the wrist itself; quaternions with w first.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import ConfigError, SourceError
from pam_aug.geometry import euler_to_matrix, matrix_to_axis_angle, quaternion_to_matrix, rigid_matrix, transform_points
from pam_aug.hand import HandAssets, HandLayer, fit_hand, load_hand, load_open_hand
from pam_aug.rollouts.cameras import CameraRanges, sample_camera
from pam_aug.rollouts.contact import Contact, hand_parts, measure_contact
from pam_aug.rollouts.label import hand_label, object_pose, pose_hand
from pam_aug.rollouts.scene import Item, Mesh
from pam_aug.safe_pickle import load_joblib_pickle
from pam_aug.schema import SEG_FIRST_OBJECT, Object, Sample, Source, make_key
from pam_aug.seeds import derived_seed

from .rollout_tracks import MeshFile

__all__ = ["YCB_NAMES", "DGrasp", "Grasp", "Skeleton", "read_grasps", "solve_skeleton"]

# DexYCB's numbering, 1 to 21; the released labels have no grasp of 19.
YCB_NAMES: dict[int, str] = {
    1: "002_master_chef_can",
    2: "003_cracker_box",
    3: "004_sugar_box",
    4: "005_tomato_soup_can",
    5: "006_mustard_bottle",
    6: "007_tuna_fish_can",
    7: "008_pudding_box",
    8: "009_gelatin_box",
    9: "010_potted_meat_can",
    10: "011_banana",
    11: "019_pitcher_base",
    12: "021_bleach_cleanser",
    13: "024_bowl",
    14: "025_mug",
    15: "035_power_drill",
    16: "036_wood_block",
    17: "037_scissors",
    18: "040_large_marker",
    19: "051_large_clamp",
    20: "052_extra_large_clamp",
    21: "061_foam_brick",
}

LICENCE = (
    "CC BY-NC 4.0: D-Grasp's labels, derived from DexYCB (Chao et al., CVPR 2021); "
    "object meshes: YCB Object and Model Set, CC BY 4.0"
)
_GET_LABELS = (
    "Get dexycb_train_labels.pkl or dexycb_test_labels.pkl from the D-Grasp repository (github.com/christsa/dgrasp)."
)
_COLUMNS = {"final_qpos": 51, "final_ee": 63, "final_ee_rel": 63, "final_obj_pos": 7}
# File order is index, middle, ring, little, thumb. Rows of those five, in MANO's finger order and in our tip order.
_TO_MANO = (0, 1, 3, 2, 4)
_TO_TIPS = (4, 0, 1, 2, 3)
_SAME_SKELETON_M = 1e-5
_REACH_M = (0.05, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Grasp:
    """One row of the file in our conventions: metres, world z up, MANO's joint order, absolute rotations."""

    ycb_id: int
    row: int
    wrist_m: Float[np.ndarray, "3"]
    rotations: Float[np.ndarray, "16 3 3"]
    joints_m: Float[np.ndarray, "21 3"]
    joints_obj_m: Float[np.ndarray, "21 3"]
    T_world_obj: Float[np.ndarray, "4 4"]

    @property
    def object_name(self) -> str:
        return YCB_NAMES[self.ycb_id]


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Bone offsets at rest relative to the wrist, MANO's joint order, and what no single skeleton explains."""

    joints_m: Float[np.ndarray, "16 3"]
    tips_m: Float[np.ndarray, "5 3"]  # thumb to little
    residual_m: float


def read_grasps(path: str | Path) -> tuple[Grasp, ...]:
    """All grasps of a label file, by object id and row.

    Raises SourceError for a file that is damaged or is no label file, UnsafeInput for a pickle that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"{path}: no such label file. {_GET_LABELS}", path=str(path))
    data = load_joblib_pickle(path)
    if not isinstance(data, dict) or not data:
        raise SourceError(f"{path}: holds a {type(data).__name__}, not labels by object. {_GET_LABELS}", path=str(path))
    grasps: list[Grasp] = []
    for key in sorted(data, key=str):
        grasps += _object_grasps(path, key, data[key])
    return tuple(sorted(grasps, key=lambda g: (g.ycb_id, g.row)))


def _object_grasps(path: Path, key: Any, entry: Any) -> list[Grasp]:
    where = f"{path}, object {key}"
    if not isinstance(key, int | np.integer) or int(key) not in YCB_NAMES:
        raise SourceError(f"{where}: objects are YCB ids 1 to 21 in DexYCB's order. {_GET_LABELS}", path=str(path))
    columns: dict[str, np.ndarray] = {}
    for name, width in _COLUMNS.items():
        values = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(values, np.ndarray) or values.ndim != 2 or values.shape[1] != width:
            got = getattr(values, "shape", type(values).__name__)
            raise SourceError(f"{where}: {name} should be (grasps, {width}), is {got}. {_GET_LABELS}", path=str(path))
        columns[name] = values.astype(np.float64)
    if len({len(v) for v in columns.values()}) != 1 or not all(np.isfinite(v).all() for v in columns.values()):
        raise SourceError(f"{where}: rows are missing or not finite; copy the file again", path=str(path))

    rotations = euler_to_matrix(columns["final_qpos"][:, 3:].reshape(-1, 16, 3))
    fingers = rotations[:, 1:].reshape(-1, 5, 3, 3, 3)[:, _TO_MANO].reshape(-1, 15, 3, 3)
    rotations = np.concatenate([rotations[:, :1], fingers], axis=1)
    place = rigid_matrix(quaternion_to_matrix(columns["final_obj_pos"][:, 3:], "wxyz"), columns["final_obj_pos"][:, :3])
    return [
        Grasp(
            ycb_id=int(key),
            row=i,
            wrist_m=columns["final_qpos"][i, :3],
            rotations=rotations[i],
            joints_m=_in_our_order(columns["final_ee"][i]),
            joints_obj_m=_in_our_order(columns["final_ee_rel"][i]),
            T_world_obj=place[i],
        )
        for i in range(len(rotations))
    ]


def _in_our_order(flat: np.ndarray) -> np.ndarray:
    """(63,) wrist, index, middle, ring, little, thumb as (21,3) wrist, thumb, index, middle, ring, little."""
    joints = flat.reshape(21, 3)
    return np.concatenate([joints[:1], joints[1:].reshape(5, 4, 3)[list(_TO_TIPS)].reshape(20, 3)])


def solve_skeleton(grasps: tuple[Grasp, ...]) -> Skeleton:
    """Bone offsets that explain the joints of all grasps in the least-squares sense.

    A bone from joint p to c has joints_c - joints_p = R_p o, R_p the product of rotations up to p. R_p is orthogonal,
    so the least-squares o is the mean of R_p^T (joints_c - joints_p) over grasps.
    """
    rotations = np.stack([g.rotations for g in grasps])
    joints = np.stack([g.joints_m for g in grasps])
    rest, tips, residual = np.zeros((16, 3)), np.zeros((5, 3)), float(np.abs(joints[:, 0] - _wrists(grasps)).max())
    for finger, our_finger in enumerate((1, 2, 4, 3, 0)):  # MANO's finger order, and where each stands among the 21
        turn, at, start = rotations[:, 0], np.zeros(3), joints[:, 0]
        for k in range(4):
            end = joints[:, 1 + 4 * our_finger + k]
            offsets = np.einsum("nij,ni->nj", turn, end - start)
            offset = offsets.mean(0)
            residual = max(residual, float(np.abs(offsets - offset).max()))
            at, start = at + offset, end
            if k == 3:
                tips[our_finger] = at
            else:
                joint = 1 + 3 * finger + k
                rest[joint] = at
                turn = turn @ rotations[:, joint]
    return Skeleton(rest, tips, residual)


def _wrists(grasps: tuple[Grasp, ...]) -> np.ndarray:
    return np.stack([g.wrist_m for g in grasps])


class DGrasp:
    """D-Grasp's label file as a rollout source: a grasp is seen from `views` sampled cameras."""

    name: ClassVar[str] = "dgrasp"
    has_images: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """`labels` is the label file, `meshes` the folder of `<ycb>/textured_meshlab.obj`.

        `grasps` keeps the first so many (-1: all), `objects` those on the named YCB objects. `hand_fill` is the share
        of the image that the hand takes. `mano_dir` (or $MANO_DIR) puts the user's MANO in place of the fitted hand.
        """

        labels: str
        meshes: str
        grasps: int = -1
        views: int = 1
        objects: list[str] = field(default_factory=list)
        size: list[int] = field(default_factory=lambda: [256, 256])
        hand_fill: list[float] = field(default_factory=lambda: [0.35, 0.65])
        max_hidden: float = 0.5
        mano_dir: str = ""
        seed: int = 0

    def __init__(self, options: Options) -> None:
        if options.views < 1 or len(options.size) != 2 or len(options.hand_fill) != 2:
            raise ConfigError("dgrasp: views is 1 or more, size is [width, height], hand_fill is [low, high]")
        self.options = options
        every = read_grasps(options.labels)
        self.skeleton = solve_skeleton(every)
        if self.skeleton.residual_m > _SAME_SKELETON_M:
            raise SourceError(
                f"{options.labels}: joints and angles disagree by {self.skeleton.residual_m * 1e3:.3f} mm, so they are "
                f"not D-Grasp's skeleton. {_GET_LABELS}",
                residual_m=self.skeleton.residual_m,
            )
        reach = float(np.linalg.norm(self.skeleton.tips_m, axis=1).max())
        if not _REACH_M[0] < reach < _REACH_M[1]:
            raise SourceError(
                f"{options.labels}: its hand is {reach:.3g} m long from wrist to fingertips; are its positions in "
                f"metres? {_GET_LABELS}",
                reach_m=reach,
            )
        self.grasps = self._chosen(every)
        self.split = next((s for s in ("train", "test") if f"_{s}_" in Path(options.labels).name), "")
        for ycb in sorted({g.object_name for g in self.grasps}):
            self._mesh(ycb)  # a missing mesh should stop the run before any work starts
        self._ranges = CameraRanges(
            width=options.size[0],
            height=options.size[1],
            fill=(options.hand_fill[0], options.hand_fill[1]),
            max_hidden=options.max_hidden,
        )
        self._assets, self._hand_model = self._hand()
        self._layer = HandLayer(self._assets, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.grasps) * self.options.views

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """The one right hand that all grasps share."""
        return {f"{self._hand_model}/right": self._assets}

    def item(self, index: int) -> Item:
        """View `index % views` of grasp `index // views`; a pure function of the options and `index`."""
        if not 0 <= index < len(self):
            raise SourceError(f"dgrasp: item {index} of {len(self)}", index=index)
        grasp, view = self.grasps[index // self.options.views], index % self.options.views
        mesh = self._mesh(grasp.object_name)
        verts, joints, numbers = self._posed(grasp)
        key = make_key("dgrasp", grasp.object_name, f"grasp-{grasp.row:03d}", f"view-{view:02d}", "000000")
        object_world = transform_points(grasp.T_world_obj, mesh.vertices_m)
        blockers = (
            np.concatenate([verts, object_world]),
            np.concatenate([self._assets.f, mesh.faces + len(verts)]).astype(np.int64),
        )
        rng = np.random.default_rng(derived_seed(self.options.seed, key, "camera"))
        camera, hidden = sample_camera(rng, verts, joints, self._ranges, blockers=blockers)
        sample = Sample(
            key=key,
            camera=camera,
            hands=(hand_label(self._layer, self._hand_model, *numbers, camera=camera),),
            objects=(Object(grasp.object_name, mesh.name, SEG_FIRST_OBJECT, object_pose(grasp.T_world_obj, camera)),),
            source=Source(
                dataset="dgrasp",
                name=f"{Path(self.options.labels).name}:{grasp.ycb_id}/{grasp.row}",
                licence=LICENCE,
                converter=self.name,
                split=self.split,
                group=grasp.object_name,
                notes=("camera sampled, the source has none", f"joints hidden: {round(hidden * 21)} of 21"),
            ),
        )
        return Item(sample, b"", {mesh.name: mesh})

    @cached_property
    def contacts(self) -> tuple[Contact, ...]:
        """The measured contact of every chosen grasp; `pam_aug.rollouts.contact.summarize` averages it."""
        parts = hand_parts(self._assets)
        measured: list[Contact] = []
        for grasp in self.grasps:
            mesh = self._mesh(grasp.object_name)
            object_world = transform_points(grasp.T_world_obj, mesh.vertices_m)
            measured.append(measure_contact(self._posed(grasp)[0], parts, object_world, mesh.faces))
        return tuple(measured)

    def posed(self, grasp: Grasp) -> tuple[Float[np.ndarray, "778 3"], Float[np.ndarray, "21 3"]]:
        """Vertices and 21 joints of a grasp in the source's world, metres."""
        verts, joints, _ = self._posed(grasp)
        return verts, joints

    def _posed(self, grasp: Grasp) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        turns = matrix_to_axis_angle(grasp.rotations)
        transl = grasp.wrist_m - self._assets.rest_joints_m[0]
        numbers = (turns[0], turns[1:].reshape(45), np.zeros(10), transl)
        return *pose_hand(self._layer, *numbers), numbers

    def _hand(self) -> tuple[HandAssets, str]:
        if self.options.mano_dir or os.environ.get("MANO_DIR"):
            return load_hand("right", self.options.mano_dir or None), "mano"
        base = load_open_hand("right")
        wrist = base.rest_joints_m[0]
        fitted = fit_hand(base, self.skeleton.joints_m + wrist, self.skeleton.tips_m + wrist, "dgrasp-right")
        return fitted, f"fitted:{fitted.sha256}"

    def _mesh(self, ycb: str) -> Mesh:
        path = Path(self.options.meshes) / ycb / "textured_meshlab.obj"
        return MeshFile(path, f"ycb/{ycb}/textured_meshlab.obj").load()

    def _chosen(self, grasps: tuple[Grasp, ...]) -> tuple[Grasp, ...]:
        for wanted in self.options.objects:
            if wanted not in YCB_NAMES.values():
                near = difflib.get_close_matches(wanted, YCB_NAMES.values(), n=1, cutoff=0.0)[0]
                raise ConfigError(f"dgrasp: unknown object {wanted!r}; did you mean {near!r}?", object=wanted)
        if self.options.objects:
            grasps = tuple(g for g in grasps if g.object_name in self.options.objects)
        if self.options.grasps >= 0:
            grasps = grasps[: self.options.grasps]
        if not grasps:
            raise ConfigError(f"dgrasp: no grasp of {self.options.labels} is left; relax `objects` or `grasps`")
        return grasps
