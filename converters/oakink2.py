"""OAKINK2 (Zhan et al., CVPR 2024): two hands, objects by parts, three fixed cameras and one on the head, as samples.

What differs from our labels and is undone here: extrinsics are world→camera; rotations are quaternions with w first,
absolute; a hand's translation is its wrist joint; cameras go by serial in folders and by name in tables; frame ids are
those of the 120 Hz motion capture. The world is metres with y up. The dataset gives MANO parameters and no joints, so
joints need the user's MANO files: without them hands are left out, and the wrists, which are given, go into the notes.
"""

import difflib
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from pam_aug.errors import ConfigError, SourceError
from pam_aug.geometry import transform_points
from pam_aug.hand import HandAssets, HandLayer, load_mano, mano_model_name
from pam_aug.hand.joints import SIDES, Side
from pam_aug.rollouts.scene import Item, LeftOut, Mesh
from pam_aug.schema import SEG_FIRST_OBJECT, Hand, Object, Sample, Source, make_key

from .oakink2_annotation import Annotation, read_annotation
from .oakink2_hands import PosedHand, pose_hands
from .oakink2_images import SourceImage, read_image
from .oakink2_index import SERIALS, SPLITS, Track, build_index, hashed_split, read_list, whole_clips
from .oakink2_lists import FrameLists
from .oakink2_meshes import MESH_SETS, MeshFiles, MeshFolder
from .oakink2_program import Programme, read_programme, read_task_targets, seq_key_of
from .oakink2_views import View, view_of

__all__ = ["LICENCE", "OakInk2"]

LICENCE = "CC BY-NC-SA 3.0: OAKINK2 (Zhan et al., CVPR 2024)"
_OPEN_SEQUENCES = 2
_OPEN_VIEWS = 4
_NO_MANO = (
    "oakink2: no MANO files (mano_dir or $MANO_DIR). The dataset gives MANO parameters and no joints, so the samples "
    "have images, cameras, objects and text but no hands; the wrists are in the notes. Register at "
    "https://mano.is.tue.mpg.de for MANO_LEFT.pkl and MANO_RIGHT.pkl."
)


class OakInk2:
    """OAKINK2's images, by sequence, camera and frame."""

    name: ClassVar[str] = "oakink2"
    has_images: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """`root` holds `data`, `anno_preview`, `program` and `object_raw` or `object_repair`.

        `split` "train", "val", "test" or "all", by sequence: from `split_list` (a list of sequences, see `read_list`)
        where one is given, else by a hash of the sequence's name. `sequences` and `cameras` (names) keep only those.
        `frames` "active" keeps the frames at which the programme has a hand at work. `clip_frames` (49 in the PAM
        paper) keeps whole clips of consecutive images only, in order; `every` n keeps each n-th image instead.
        `meshes` names the set of object meshes, "raw" or "repair". `keep_png` copies PNG images instead of encoding
        them as JPEG (quality 95, 4:4:4). `mano_dir` (or $MANO_DIR) has the MANO files that joints need.
        `frame_lists` is a file (.npz) that is made where it is not there: with it, images without annotation are left
        out from the start, at one or two seconds per sequence once; without it, they are left out, and counted, when
        their turn comes.
        """

        root: str
        split: str = "all"
        split_list: str = ""
        sequences: list[str] = field(default_factory=list)
        cameras: list[str] = field(default_factory=list)
        frames: str = "all"
        clip_frames: int = 0
        every: int = 1
        meshes: str = "raw"
        keep_png: bool = False
        mano_dir: str = ""
        frame_lists: str = ""

    def __init__(self, options: Options) -> None:
        _check(options)
        self.options = options
        self._root = Path(options.root)
        listed = read_list(options.split_list, options.split) if options.split_list else None
        chosen = {seq_key_of(s) for s in options.sequences}

        def wanted(seq_key: str) -> bool:
            if chosen and seq_key not in chosen:
                return False
            if listed is not None:
                return seq_key in listed
            return options.split == "all" or hashed_split(seq_key) == options.split

        self._tasks = read_task_targets(self._root / "program")
        self._programmes: OrderedDict[str, Programme] = OrderedDict()
        self._open: OrderedDict[Path, tuple[Annotation, Mapping[Side, PosedHand]]] = OrderedDict()
        self._views: OrderedDict[tuple[Path, str, int, int], View] = OrderedDict()
        self._meshes = MeshFolder(self._root, options.meshes)
        lists = FrameLists(options.frame_lists) if options.frame_lists else None
        annotated = lists.annotated if lists else None
        self.index = build_index(self._root, options.cameras, wanted, self._kept, annotated)
        if lists:
            lists.save()
        if not len(self.index):
            raise ConfigError(
                f"{self._root}: no image is left of {options.split!r}; relax split, split_list, sequences, cameras, "
                f"frames or clip_frames (sequences left out: {len(self.index.left_out)})",
                left_out=self.index.left_out,
            )
        self._assets = self._hands()
        self._layers: dict[Side, HandLayer] = {
            side: HandLayer(assets, dtype=torch.float64) for side, assets in self._assets.items()
        }
        self._warn()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def group_starts(self) -> np.ndarray:
        """The images with which a new sequence begins: its annotation takes a second or two to read, and one worker
        that does the sequence reads it once."""
        tracks = self.index.tracks
        starts = np.array([0, *self.index.ends[:-1]])
        return starts[[n == 0 or t.annotation != tracks[n - 1].annotation for n, t in enumerate(tracks)]]

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """The user's MANO, the left one with its shape directions as in the file; empty without MANO files."""
        return {f"{mano_model_name(side, 'as_file')}/{side}": assets for side, assets in self._assets.items()}

    def item(self, index: int) -> Item:
        """Image `index`. Raises LeftOut for a frame without annotation, SourceError where something is damaged."""
        if not 0 <= index < len(self):
            raise SourceError(f"oakink2: item {index} of {len(self)}", index=index)
        track, position = self.index.find(index)
        frame = int(track.frame_ids[position])
        annotation, posed = self._sequence(track.annotation)
        row = annotation.row(frame)
        image = read_image(track.folder, frame, self.options.keep_png)
        name = _camera_name(annotation, track, row, frame, image)
        view = self._view(annotation, posed, name, image)
        hands, hand_notes = self._hand_labels(annotation, view, row, frame)
        programme = self._programme(track.seq_key)
        objects, meshes = self._objects(annotation, view, row)
        scene, _, sequence = track.seq_key.partition("/")
        sample = Sample(
            key=make_key("oakink2", scene, sequence or "sequence", name, f"{frame:06d}"),
            camera=view.camera(row),
            hands=hands,
            objects=objects,
            source=Source(
                dataset="oakink2",
                name=f"{track.seq_key}/{track.serial}/{frame:06d}",
                licence=LICENCE,
                converter=self.name,
                split="" if self.options.split == "all" else self.options.split,
                group=track.seq_key,
                image_sha256=image.sha256,
                notes=(
                    *hand_notes,
                    *programme.notes(frame),
                    *self._clip_note(position),
                    f"annotation sha256: {annotation.sha256}",
                ),
            ),
            text=programme.text(frame),
        )
        return Item(sample, image.data, meshes, "" if image.encoded else image.sha256)

    # ---------------------------------------------------------------------------------------------------------- opening

    def _hands(self) -> dict[Side, HandAssets]:
        folder = self.options.mano_dir or os.environ.get("MANO_DIR")
        # The dataset was fitted with the official left file as it is, its defective shape directions included.
        return {side: load_mano(folder, side, left_shapedirs="as_file") for side in SIDES} if folder else {}

    def _kept(self, seq_key: str, frame_ids: np.ndarray) -> np.ndarray:
        if self.options.frames == "active":
            programme = self._programme(seq_key)
            spans = [span for p in programme.primitives for span in p.intervals.values()]
            at_work = np.zeros(len(frame_ids), bool)
            for start, end in spans:
                at_work |= (frame_ids >= start) & (frame_ids < end)
            frame_ids = frame_ids[at_work]
        if self.options.clip_frames:
            return whole_clips(frame_ids, self.options.clip_frames)
        return frame_ids[:: self.options.every]

    def _warn(self) -> None:
        missing, left_out = self.index.missing_cameras, self.index.left_out
        if missing:
            first = next(iter(missing))
            names = {serial: name for name, serial in SERIALS.items()}
            which = ", ".join(names.get(s, s) for s in missing[first])
            warnings.warn(
                f"oakink2: {len(missing)} sequences have no images of some cameras (first: {first}, {which})",
                stacklevel=3,
            )
        if left_out:
            first, why = next(iter(left_out.items()))
            warnings.warn(f"oakink2: {len(left_out)} sequences are left out (first: {first}, {why})", stacklevel=3)
        if not self._assets:
            warnings.warn(_NO_MANO, stacklevel=3)

    # ------------------------------------------------------------------------------------------------- a frame's parts

    def _sequence(self, path: Path) -> tuple[Annotation, Mapping[Side, PosedHand]]:
        if path not in self._open:
            while len(self._open) >= _OPEN_SEQUENCES:
                self._open.popitem(last=False)
            annotation = read_annotation(path)
            self._open[path] = annotation, pose_hands(annotation.hands, self._layers)
        return self._open[path]

    def _programme(self, seq_key: str) -> Programme:
        if seq_key not in self._programmes:
            while len(self._programmes) >= _OPEN_SEQUENCES:
                self._programmes.popitem(last=False)
            self._programmes[seq_key] = read_programme(self._root / "program", seq_key, self._tasks.get(seq_key, ""))
        return self._programmes[seq_key]

    def _view(self, annotation: Annotation, posed: Mapping[Side, PosedHand], name: str, image: SourceImage) -> View:
        key = (annotation.path, name, image.width, image.height)
        if key not in self._views:
            while len(self._views) >= _OPEN_VIEWS:
                self._views.popitem(last=False)
            self._views[key] = view_of(annotation, posed, name, image.width, image.height)
        return self._views[key]

    def _hand_labels(
        self, annotation: Annotation, view: View, row: int, frame: int
    ) -> tuple[tuple[Hand, ...], tuple[str, ...]]:
        """The hands that can be labelled, and notes on the others.

        Raises LeftOut where the frame has no hand, SourceError where none of those that it has is usable.
        """
        hands: list[Hand] = []
        notes: list[str] = []
        for side, track in annotation.hands.items():
            if not track.valid[row]:
                reason = annotation.problems[side, frame].removeprefix(f"{annotation.path}: ")
                notes.append(f"left out: {reason}")
                continue
            if side not in view.hands:
                x, y, z = transform_points(view.T_cam_world[row], track.wrist_world_m[row][None])[0]
                notes.append(f"{side} hand left out: no MANO files; wrist_cam_m: {x:.6f} {y:.6f} {z:.6f}")
                continue
            hands.append(view.hands[side].label(row))
        if not any(track.valid[row] for track in annotation.hands.values()):
            message = f"no hand can be used: {'; '.join(annotation.problems[side, frame] for side in SIDES)}"
            if all((side, frame) in annotation.absent for side in SIDES):
                raise LeftOut(message, reason="no hand is annotated", frame=frame)
            raise SourceError(message, frame=frame)
        return tuple(hands), tuple(notes)

    def _objects(self, annotation: Annotation, view: View, row: int) -> tuple[tuple[Object, ...], Mapping[str, Mesh]]:
        paths: dict[str, Path] = {}
        objects: list[Object] = []
        for number, (object_id, track) in enumerate(annotation.objects.items()):
            name, path = self._meshes.find(object_id)
            paths[name] = path
            valid = bool(track.valid[row])
            pose = view.T_cam_obj[object_id][row] if valid else np.eye(4)
            objects.append(Object(object_id, name, SEG_FIRST_OBJECT + number, pose, valid))
        return tuple(objects), MeshFiles(paths)

    def _clip_note(self, position: int) -> tuple[str, ...]:
        length = self.options.clip_frames
        return (f"clip: {position // length}, frame {position % length} of {length}",) if length else ()


def _camera_name(annotation: Annotation, track: Track, row: int, frame: int, image: SourceImage) -> str:
    """The camera's name, by the sequence's own table. Raises SourceError where a frame has no use of it."""
    name = annotation.camera_names.get(track.serial)
    if name is None:
        raise SourceError(f"{annotation.path}: its cam_def has no camera of serial {track.serial}", frame=frame)
    poses = annotation.cameras[name]
    if not poses.valid[row]:
        if (name, frame) in annotation.absent:
            raise LeftOut(annotation.problems[name, frame], reason="the camera's pose is not annotated", frame=frame)
        raise SourceError(annotation.problems[name, frame], frame=frame)
    K = poses.K_px[row]
    if not (0 < K[0, 2] < image.width and 0 < K[1, 2] < image.height):
        raise SourceError(
            f"{track.folder}: images of {image.width} × {image.height} do not fit the intrinsics, whose principal "
            f"point is ({K[0, 2]:.1f}, {K[1, 2]:.1f}); use the images as they were published",
            frame=frame,
        )
    return name


def _check(options: OakInk2.Options) -> None:
    problems: list[str] = []
    for label, value, known in (
        ("split", options.split, (*SPLITS, "all")),
        ("frames", options.frames, ("all", "active")),
        ("meshes", options.meshes, MESH_SETS),
        *(("cameras", camera, tuple(SERIALS)) for camera in options.cameras),
    ):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
            problems.append(f"{label}: {value!r} is none of {', '.join(known)}; did you mean {near!r}?")
    if options.clip_frames < 0 or options.every < 1:
        problems.append("clip_frames is 0 or more, every is 1 or more")
    if options.clip_frames and options.every > 1:
        problems.append("clip_frames takes consecutive images: it cannot be joined with every")
    if problems:
        raise ConfigError("\n  - ".join(["oakink2 cannot be opened:", *problems]), problems=problems)
