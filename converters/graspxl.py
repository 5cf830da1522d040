"""GraspXL's recorded motions (Zhang et al., ECCV 2024), and two-hand files of the same form as ArtiGrasp writes them.

A file is a pickled dictionary in an `.npy`: `right_hand` (and `left_hand`), each `trans`, `rot`, `pose`, and one more
key, the object's id, with `trans`, `rot`, `angle`. The world's z is up and the table at 0.5 m. What differs from our
labels, and is undone here:

* `trans` is smplx's translation of MANO: the simulator's wrist minus MANO's J0 at betas 0. Our hand may be another
  model with another J0, and what the simulator fixed in the world is the wrist. So the wrist is restored first, and
  then our transl = wrist - our J0. With the user's MANO the two J0 are the same number.
* `pose` is relative to MANO's mean pose, which is added.
* raw ARCTIC objects are in millimetres beside hands in metres.

Allegro files hold a robot's 22 joint values, no hand: refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.geometry import axis_angle_to_matrix, rigid_matrix
from pam_aug.hand import HandAssets, Side
from pam_aug.rollouts.contact import Contact, hand_parts, measure_contact
from pam_aug.rollouts.scene import Item

from .graspxl_files import (
    HOW_TO_GET,
    check_turns,
    column,
    find_sequences,
    load_sequence,
    object_key,
    object_of,
    object_unit_m,
)
from .rollout_frames import FrameChoice, Frames
from .rollout_tracks import MANO_J0_M, SPLITS, Hands, HandTrack, MeshFile, ObjectTrack, Trajectory, split_of

__all__ = ["GraspXL"]

LICENCE = (
    "CC BY-NC 4.0: GraspXL's motions (Zhang et al., ECCV 2024); object meshes: Objaverse, each under its own CC licence"
)
_SIZES: Final = ("small", "medium", "large")
# ARCTIC's articulated objects turn their top part about -z of the model frame by `angle` (Fan et al., CVPR 2023).
_HINGE: Final = np.array([0.0, 0.0, -1.0])


class GraspXL:
    """GraspXL's MANO sequences as a rollout source: a sample is one frame seen by one camera."""

    name: ClassVar[str] = "graspxl"
    has_images: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """`sequences` is a folder of `.npy` files (searched below) or one file, `meshes` the folder `object_dataset`.

        `split` takes train, val or test (by object; all: everything), `objects` only those ids, `limit` the first so
        many files (-1: all). Every `stride`-th frame from `start` (below 0: from the end) is a sample; files do not say
        their rate, GraspXL's control step gives `fps` 100. `cameras` is sampled (`views` per frame), dexycb or oakink2.
        `size` [] is 256 x 256 or the rig's own. `object_unit` auto tells millimetres by the distance to the hand.
        `mesh_scale` takes mesh units to metres. `mano_dir` (or $MANO_DIR) gives the exact hand and mean pose.
        """

        sequences: str
        meshes: str
        split: str = "all"
        objects: list[str] = field(default_factory=list)
        limit: int = -1
        start: int = 0
        stride: int = 10
        fps: float = 100.0
        cameras: str = "sampled"
        views: int = 1
        size: list[int] = field(default_factory=list)
        hand_fill: list[float] = field(default_factory=lambda: [0.35, 0.65])
        max_hidden: float = 0.5
        object_unit: str = "auto"
        mesh_scale: float = 1.0
        mano_dir: str = ""
        seed: int = 0

    def __init__(self, options: Options) -> None:
        self.options = o = options
        choice = FrameChoice(o.cameras, o.views, o.start, o.stride, o.size, o.hand_fill, o.max_hidden, o.seed)
        choice.check(self.name, own_cameras=False)
        if o.split not in ("all", *SPLITS) or o.object_unit not in ("auto", "m", "mm") or not o.fps > 0:
            raise ConfigError(
                f"graspxl: split {o.split!r} is all, {', '.join(SPLITS)}; object_unit {o.object_unit!r} is auto, m or "
                f"mm; fps {o.fps} is above 0"
            )
        self._root = Path(o.sequences)
        self.files = self._chosen(find_sequences(self._root))
        self._hands = Hands(o.mano_dir)
        self._frames = Frames(self.name, len(self.files), self._read, self._hands, choice)

    def __len__(self) -> int:
        return len(self._frames)

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """MANO or the open hand, the sides that occur."""
        return self._frames.hand_assets()

    def item(self, index: int) -> Item:
        """Sample `index`: a pure function of the options and `index`."""
        return self._frames.item(index)

    def trajectory(self, number: int) -> Trajectory:
        """What file `files[number]` holds, in our conventions."""
        return self._frames.trajectory(number)

    def contacts(self, number: int, frame: int = -1) -> tuple[Contact, ...]:
        """The measured contact of each hand with the nearest part of the object, in a frame of file `files[number]`."""
        trajectory = self._frames.trajectory(number)
        frame = range(len(trajectory.times_s))[frame]
        measured: list[Contact] = []
        for hand, (verts, _) in zip(trajectory.hands, self._frames.posed(number, frame)):
            parts = hand_parts(self._hands.assets(hand.side))
            each = []
            for track in trajectory.objects:
                mesh, T = track.mesh.load(), track.T_world_obj[frame]
                each.append(measure_contact(verts, parts, mesh.vertices_m @ T[:3, :3].T + T[:3, 3], mesh.faces))
            measured.append(min(each, key=lambda c: c.nearest_mm))
        return tuple(measured)

    # -------------------------------------------------------------------------------------------------------- inside

    def _chosen(self, files: list[Path]) -> list[Path]:
        o = self.options
        if o.objects or o.split != "all":
            ids = {file: object_of(file) for file in files}
            unknown = sorted(set(o.objects) - set(ids.values()))
            if unknown:
                raise ConfigError(f"graspxl: no sequence of {unknown[0]!r} under {o.sequences}; see `objects`")
            files = [f for f in files if not o.objects or ids[f] in o.objects]
            files = [f for f in files if o.split == "all" or split_of(ids[f]) == o.split]
        if o.limit >= 0:
            files = files[: o.limit]
        if not files:
            raise ConfigError(f"graspxl: no sequence of {o.sequences} is left; relax `split`, `objects` or `limit`")
        return files

    def _read(self, number: int) -> Trajectory:
        path = self.files[number]
        data = load_sequence(path)
        object_id = object_key(path, data)
        sides: list[Side] = [side for side in ("right", "left") if f"{side}_hand" in data]
        count = len(np.atleast_1d(data[object_id].get("trans", ())))
        hands = tuple(self._hand(path, data[f"{side}_hand"], side, count) for side in sides)
        turns = column(path, data[object_id], object_id, "rot", (count, 3))
        places = column(path, data[object_id], object_id, "trans", (count, 3))
        angle = column(path, data[object_id], object_id, "angle", (count, 1))[:, 0]
        check_turns(path, object_id, turns)
        wrists = np.concatenate([h.transl + self._hands.assets(h.side).rest_joints_m[0] for h in hands])
        scale, note = object_unit_m(path, self.options.object_unit, wrists, np.tile(places, (len(hands), 1)))
        pose = rigid_matrix(axis_angle_to_matrix(turns), places * scale)
        relative = path.relative_to(self._root) if self._root.is_dir() else Path(path.name)
        return Trajectory(
            dataset="graspxl",
            subject=object_id,
            sequence="-".join(p for p in relative.with_suffix("").parts if p != object_id),
            name=relative.as_posix(),
            licence=LICENCE,
            group=object_id,
            split=split_of(object_id),
            hands=hands,
            objects=self._parts(path, object_id, pose, angle),
            up=np.array([0.0, 0.0, 1.0]),
            times_s=np.arange(count) / self.options.fps,
            notes=(f"fps: {self.options.fps:g}, not stored in the file", *note),
        )

    def _hand(self, path: Path, entry: Any, side: Side, count: int) -> HandTrack:
        name = f"{side}_hand"
        pose = column(path, entry, name, "pose", (count, 45))
        orient = column(path, entry, name, "rot", (count, 3))
        trans = column(path, entry, name, "trans", (count, 3))
        check_turns(path, name, orient)
        check_turns(path, name, pose)
        mean, said = self._hands.mean_pose(side, self.name)
        # "shape" is ARCTIC's; J0 then moves with betas, and smplx's translation does not.
        betas = column(path, entry, name, "shape", (10,)) if "shape" in entry else np.zeros(10)
        wrist = trans + np.array(MANO_J0_M[side])
        return HandTrack(
            side=side,
            global_orient=orient,
            hand_pose=pose + mean,
            betas=np.tile(betas, (count, 1)),
            transl=wrist - self._hands.assets(side).rest_joints_m[0],
            valid=np.ones(count, bool),
            pose_mean=said,
        )

    def _parts(self, path: Path, object_id: str, pose: np.ndarray, angle: np.ndarray) -> tuple[ObjectTrack, ...]:
        """The object as one rigid mesh, or, where it turns about its hinge, as a bottom and a top that turns."""
        meshes, valid = Path(self.options.meshes), np.ones(len(pose), bool)
        sizes = [s for s in _SIZES if s in path.parts] + [s for s in _SIZES if s not in path.parts]
        folders = [*(meshes / s / object_id for s in sizes), meshes / object_id, meshes]
        whole = next((f / f"{object_id}.obj" for f in folders if (f / f"{object_id}.obj").is_file()), None)
        if whole is not None and not angle.any():
            return (ObjectTrack(object_id, self._mesh(object_id, whole), pose, valid),)
        for folder in folders[:-1]:
            top, bottom = (sorted(folder.glob(f"{part}*.obj")) for part in ("top", "bottom"))
            if top and bottom:
                hinged = pose @ rigid_matrix(axis_angle_to_matrix(angle[:, None] * _HINGE), np.zeros((len(pose), 3)))
                return (
                    ObjectTrack(f"{object_id}-bottom", self._mesh(object_id, bottom[0]), pose, valid),
                    ObjectTrack(f"{object_id}-top", self._mesh(object_id, top[0]), hinged, valid),
                )
        if whole is not None:
            raise SourceError(
                f"{path}: {object_id} turns about a hinge by up to {np.abs(angle).max():.2f} rad, but its mesh is one "
                f"piece. Put top*.obj and bottom*.obj beside {whole}.",
                path=str(path),
            )
        raise AssetMissing(
            f"{path}: no mesh of {object_id} below {meshes} (looked for [small|medium|large/]<id>/<id>.obj, "
            f"and for top*.obj with bottom*.obj). {HOW_TO_GET}",
            object=object_id,
        )

    def _mesh(self, object_id: str, path: Path) -> MeshFile:
        return MeshFile(path, f"graspxl/{object_id}/{path.name}", self.options.mesh_scale)
