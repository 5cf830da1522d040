"""DexYCB (Chao et al., CVPR 2021): 582,000 real images of ten subjects who grasp YCB objects, seen by eight cameras.

Labels keep the dataset's own joints (`joint_3d`, tip set "manopth"). A hand's pose is stored as 45 PCA coefficients of
the matching side's MANO basis around MANO's mean pose; with the user's MANO files it becomes absolute axis-angle, and
without them `mano_valid` is False and the label has joints only. The left hand's defective shape directions are kept,
because the dataset was fitted with them.

The index has a few numbers per sequence and frame, so the dataset streams: order and numbering are the official ones,
subject, sequence, camera, frame. Frames without a hand (the same in all views) are left out when the source is opened,
from each sequence's `pose.npz`, and counted; `item` raises SourceError for a frame whose own files do not fit.
"""

import functools
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Float, UInt8

from pam_aug.errors import ConfigError, SourceError
from pam_aug.geometry import invert_rigid, project
from pam_aug.hand import HandAssets, Side, load_hand, mano_model_name
from pam_aug.rollouts.label import in_image
from pam_aug.rollouts.scene import Item
from pam_aug.schema import (
    SEG_FIRST_OBJECT,
    SEG_LEFT_HAND,
    SEG_RIGHT_HAND,
    Camera,
    Hand,
    Object,
    Sample,
    Source,
    make_key,
)

from .dexycb_calibration import SequenceMeta, T_world_cams, betas_of, intrinsics_px
from .dexycb_index import Frame, Index, build_index
from .dexycb_labels import HEIGHT, WIDTH, FrameLabel, read_depth_m, read_depth_png, read_frame, read_jpeg, read_seg
from .dexycb_objects import ObjectMeshes, distance_to_object_m, mesh_name
from .dexycb_splits import SERIALS, SUBJECTS
from .dgrasp import YCB_NAMES

__all__ = ["DexYCB"]

LICENCE = "CC BY-NC 4.0: DexYCB (Chao et al., CVPR 2021); object meshes: YCB Object and Model Set, CC BY 4.0"
_NO_MANO = (
    "no MANO files: labels have the dataset's joints, boxes and object poses, but no hand pose or shape (mano_valid is "
    "false), because DexYCB's pose coefficients mean nothing without MANO's basis and mean. Register at "
    "https://mano.is.tue.mpg.de and give the folder of MANO_LEFT.pkl and MANO_RIGHT.pkl as --mano-dir or $MANO_DIR"
)
# joint_2d is joint_3d under the camera's K to 3e-5 px; the wrist is transl + J0(betas) to float32.
_SAME_PIXEL = 0.1
_SAME_WRIST_M = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class _Take:
    """What all frames of a sequence that one camera saw have in common.

    `objects` are all of the sequence, the grasped one first: number in the labels, id, mesh, segmentation id.
    """

    name: str
    split: str
    group: str
    camera: Camera
    notes: tuple[str, ...]
    objects: tuple[tuple[int, str, str, int], ...]
    meshes: ObjectMeshes


class DexYCB:
    """DexYCB's frames that have a hand label, of one split of one setup."""

    name: ClassVar[str] = "dexycb"
    has_images: ClassVar[bool] = True
    has_depth: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """`root` holds the subjects' folders and `calibration/`. `setup` s0 to s3, `split` train, val or test.

        A partial download: `subjects` keeps subject numbers (1 to 10, [] all), `sequence_table` gives the positions of
        sequences where a subject's folder is not complete. `mano_dir` (or $MANO_DIR) has the user's MANO files.

        Filters, applied in this order. `sides`: "both", "right" or "left" labelled hand. `stride` n: frames whose
        number is divisible by n. `near_object_m` d > 0: frames where one of the 21 joints is at most d metres from a
        vertex of the grasped object's mesh and that object's pose is known (needs `models/`, and reads one view's
        labels when the source is opened). `frames` n: the first n images, -1 all.
        """

        root: str
        setup: str = "s0"
        split: str = "train"
        subjects: list[int] = field(default_factory=list)
        sequence_table: str = ""
        mano_dir: str = ""
        sides: str = "both"
        stride: int = 1
        near_object_m: float = -1.0
        frames: int = -1

    def __init__(self, options: Options) -> None:
        self.options = options
        self.root = Path(options.root)
        self._root = str(self.root)
        if options.sides not in ("both", "right", "left"):
            raise ConfigError(f"dexycb: sides = {options.sides!r}; choose both, right or left", sides=options.sides)
        if options.stride < 1 or not (options.near_object_m > 0 or options.near_object_m == -1):
            raise ConfigError("dexycb: stride is 1 or more, near_object_m is metres above 0 (or -1: no filter)")
        if options.frames < -1 or options.frames == 0 or not set(options.subjects) <= set(range(1, 11)):
            raise ConfigError("dexycb: frames is 1 or more (or -1: all), subjects are numbers from 1 to 10")
        near = self._is_near if options.near_object_m > 0 else None
        self.index: Index = build_index(
            self.root,
            options.setup,
            options.split,
            subjects=options.subjects,
            sequence_table=options.sequence_table,
            side=options.sides,
            stride=options.stride,
            keep=near,
        )
        self._length = len(self.index) if options.frames == -1 else min(options.frames, len(self.index))
        if not self._length:
            raise ConfigError(
                f"dexycb: no frame of {options.setup}/{options.split} is left; relax sides, near_object_m or subjects"
            )
        self._K_px = {serial: intrinsics_px(self.root, serial) for serial in SERIALS}
        metas = self.index.metas
        self._take = functools.lru_cache(maxsize=64)(self._look)
        self._T_world = {name: T_world_cams(self.root, name) for name in sorted({m.extrinsics for m in metas})}
        self._hands: dict[str, HandAssets] = {}
        self._shapes: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        if options.mano_dir or os.environ.get("MANO_DIR"):
            for side in sorted({m.side for m in metas}):
                self._hands[side] = load_hand(cast(Side, side), options.mano_dir or None, left_shapedirs="as_file")
            for side, calibration in sorted({(m.side, m.mano_calib) for m in metas}):
                self._shapes[side, calibration] = self._shape(side, calibration)

    def __len__(self) -> int:
        return self._length

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before converting: frames kept and left out, and what is missing."""
        counts = self.index.counts
        kept = f"{self.options.setup}/{self.options.split}: {len(self)} images to convert of {counts['images']}"
        left_out = [f"{n} {reason}" for reason, n in counts.items() if reason != "images" and n]
        notes = (f"{kept}; left out: {', '.join(left_out) or 'none'}",)
        return notes if self._hands else (*notes, _NO_MANO)

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """The user's MANO hands of the split's sides, left shape directions as in the file; none without MANO."""
        return {f"{mano_model_name(assets.side, 'as_file')}/{side}": assets for side, assets in self._hands.items()}

    def item(self, index: int) -> Item:
        """Image `index` of the split, its bytes as they are. Raises SourceError for a frame that does not fit."""
        frame = self._frame(index)
        meta, path = frame.meta, self._path(frame, "labels_{:06d}.npz")
        label = read_frame(path, len(meta.ycb_ids))
        if label is None:
            raise SourceError(
                f"{path}: has no hand, and pose.npz of its sequence says it has; copy both", path=str(path)
            )
        image = read_jpeg(self._path(frame, "color_{:06d}.jpg"))
        digest = hashlib.sha256(image).hexdigest()
        serial, subject = SERIALS[frame.camera], SUBJECTS[frame.subject]
        take = self._take(frame.subject, frame.position, frame.sequence, frame.camera, meta)
        number = f"{frame.number:06d}"
        sample = Sample(
            key=make_key("dexycb", subject, frame.sequence, serial, number),
            camera=take.camera,
            hands=(self._hand(path, frame, label, self._K_px[serial]),),
            objects=tuple(
                Object(id, mesh, seg_id, label.T_cam_obj[i], bool(label.object_valid[i]))
                for i, id, mesh, seg_id in take.objects
            ),
            source=Source(
                dataset="dexycb",
                name=f"{take.name}/color_{number}.jpg",
                licence=LICENCE,
                converter=self.name,
                split=take.split,
                group=take.group,
                image_sha256=digest,
                notes=self._provenance(frame, take.notes),
            ),
        )
        return Item(sample, image, take.meshes, image_sha256=digest)

    def depth_m(self, index: int) -> Float[np.ndarray, "480 640"]:
        """The sensor's depth (z) at the pixels of image `index`, metres; 0 where nothing was measured."""
        return read_depth_m(self._path(self._frame(index), "aligned_depth_to_color_{:06d}.png"))

    def sensor_depth_png(self, index: int) -> bytes:
        """The file of the sensor's depth of image `index`, its bytes as they are: millimetres, 0 and 65535 where
        nothing was measured. Raises SourceError where it is no whole 640x480 image of 16 bits."""
        return read_depth_png(self._path(self._frame(index), "aligned_depth_to_color_{:06d}.png"))

    def seg(self, index: int) -> UInt8[np.ndarray, "480 640"]:
        """Segmentation of image `index` in this library's ids, objects as in the sample's labels."""
        frame = self._frame(index)
        ids = np.zeros(256, np.uint8)
        ids[1:22] = SEG_FIRST_OBJECT + np.arange(21)
        ids[255] = SEG_RIGHT_HAND if frame.meta.side == "right" else SEG_LEFT_HAND
        return ids[read_seg(self._path(frame, "labels_{:06d}.npz"))]

    def sample_index(self, index: int) -> int:
        """The number of image `index` in the official split, frames without a hand counted: for result files.

        Raises ConfigError where the split is not complete, because the number is then unknown.
        """
        number = self._frame(index).sample_index
        if number < 0:
            raise ConfigError("dexycb: sample numbers need the complete split (no subjects, no sequence_table)")
        return number

    # --- labels ------------------------------------------------------------------------------------------------------

    def _hand(self, path: str, frame: Frame, label: FrameLabel, K_px: np.ndarray) -> Hand:
        side, joints = cast(Side, frame.meta.side), label.joints_cam_m
        px = project(joints, K_px)
        off = float(np.abs(px - label.joints_px).max())
        if off > _SAME_PIXEL:
            raise SourceError(
                f"{path}: joint_2d is {off:.2f} px from joint_3d under camera {SERIALS[frame.camera]}'s intrinsics; "
                "the label or calibration/intrinsics is of another camera",
                path=str(path),
            )
        given = {
            "side": side,
            "joints_cam_m": joints,
            "joints_px": px,
            "in_view": in_image(px, WIDTH, HEIGHT),
            "tips": "manopth",
        }
        if side not in self._hands:
            return Hand(hand_model="", mano_valid=False, **given)
        assets, (betas, J0) = self._hands[side], self._shapes[side, frame.meta.mano_calib]
        orient, coeffs, transl = label.pose_m[:3], label.pose_m[3:48], label.pose_m[48:]
        off = math.dist(transl + J0, joints[0])
        if off > _SAME_WRIST_M:
            raise SourceError(
                f"{path}: the wrist of the MANO parameters is {off * 1e3:.1f} mm from the dataset's; the MANO files "
                "are not the official v1.2, or mano.yml is not this subject's",
                path=str(path),
                off_m=off,
            )
        pose = coeffs @ assets.hands_components + assets.hands_mean
        return Hand(
            hand_model=mano_model_name(side, "as_file"),
            global_orient=orient,
            hand_pose=pose,
            betas=betas,
            transl=transl,
            **given,
        )

    def _look(self, subject_index: int, position: int, sequence: str, camera: int, meta: SequenceMeta) -> "_Take":
        subject, serial, poses = SUBJECTS[subject_index], SERIALS[camera], self._T_world[meta.extrinsics]
        up = (invert_rigid(poses[serial]) @ poses["apriltag"])[:3, 2]
        order = [meta.grasped, *(i for i in range(len(meta.ycb_ids)) if i != meta.grasped)]
        ids = [meta.ycb_ids[i] for i in order]
        meshes = tuple(mesh_name(i) for i in ids)
        return _Take(
            name=f"{subject}/{sequence}/{serial}",
            split=f"{self.options.setup}/{self.options.split}",
            group=f"dexycb/{subject}/{sequence}",
            camera=Camera(WIDTH, HEIGHT, self._K_px[serial], poses[serial]),
            notes=(
                f"grasped: {YCB_NAMES[ids[0]]}",
                "up in the camera frame, from the tag: " + " ".join(f"{v:.5f}" for v in up),
                "25 fps nominal, the source has no timestamps",
                "joints: the dataset's joint_3d",
                f"sequence position {position} of its subject's 100",
            ),
            objects=tuple(
                (i, YCB_NAMES[id], mesh, SEG_FIRST_OBJECT + id - 1) for i, id, mesh in zip(order, ids, meshes)
            ),
            meshes=ObjectMeshes(self.root, meshes),
        )

    def _provenance(self, frame: Frame, shared: tuple[str, ...]) -> tuple[str, ...]:
        notes = [*shared]
        if frame.sample_index >= 0:
            notes.append(f"sample {frame.sample_index} of the official split")
        if frame.meta.side == "left" and self._hands:
            notes.append("left shape directions as in the file")
        return tuple(notes)

    def _shape(self, side: str, calibration: str) -> tuple[np.ndarray, np.ndarray]:
        """betas (10) and J0(betas) (3, metres) of a subject's hand."""
        betas, assets = betas_of(self.root, calibration), self._hands[side]
        shaped = assets.v_template.astype(np.float64) + assets.shapedirs.astype(np.float64) @ betas
        return betas, assets.J_regressor[0].astype(np.float64) @ shaped

    def _is_near(self, frame: Frame) -> bool:
        """Whether a joint is within `near_object_m` of a vertex of the grasped object; True where unreadable.

        A frame that cannot be read here is kept, so that `item` reports it.
        """
        try:
            label = read_frame(self._path(frame, "labels_{:06d}.npz"), len(frame.meta.ycb_ids))
        except SourceError:
            return True
        if label is None:
            return True
        if not label.object_valid[frame.meta.grasped]:
            return False
        near = distance_to_object_m(
            self.root, frame.meta.ycb_ids[frame.meta.grasped], label.joints_cam_m, label.T_cam_obj[frame.meta.grasped]
        )
        return near <= self.options.near_object_m

    def _frame(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise SourceError(f"dexycb: item {index} of {len(self)}", index=index)
        return self.index[index]

    def _path(self, frame: Frame, name: str) -> str:
        """As text: three paths per image are looked at once each, and making a Path takes longer than opening it."""
        folder = f"{self._root}/{SUBJECTS[frame.subject]}/{frame.sequence}/{SERIALS[frame.camera]}"
        return f"{folder}/{name.format(frame.number)}"
