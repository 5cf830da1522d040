"""The generic rollout archive (`pam_aug.rollouts.archive`) as a source: any simulator's trajectories.

Each file's flags say how to get to our labels, so nothing is guessed here. Beside the checks of the archive's own
values, four need a hand model or the meshes and are made on opening: bone_lengths and flags (joints that the file gives
against those of our hand), hand_near_object, and table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np

from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.hand import HandAssets
from pam_aug.rollouts.archive import RolloutArchive, read_archive
from pam_aug.rollouts.scene import Item
from pam_aug.schema import Camera, clean_key_part

from .rollout_decode import hand_track
from .rollout_frames import FrameChoice, Frames
from .rollout_ingest import check_joints, check_places
from .rollout_tracks import SPLITS, Hands, MeshFile, ObjectTrack, Trajectory, split_of

__all__ = ["RolloutNpz"]


class RolloutNpz:
    """Rollout archives: a sample is one frame seen by one camera."""

    name: ClassVar[str] = "rollout-npz"
    has_images: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """`archives` is a folder of `.npz` files (searched below) or one file; mesh paths are relative to each file.

        `split` takes train, val or test: what the file says, else a hash of its group, else of its first object's id.
        `cameras` is archive (the file's own), sampled (`views` per frame), dexycb or oakink2; `size` [] is 256 x 256
        or the rig's own. Every `stride`-th frame from `start` (below 0: from the end) is a sample.
        `mano_dir` (or $MANO_DIR) gives the exact hand and mean pose, and is needed for PCA coefficients.
        """

        archives: str
        split: str = "all"
        limit: int = -1
        start: int = 0
        stride: int = 10
        cameras: str = "sampled"
        views: int = 1
        size: list[int] = field(default_factory=list)
        hand_fill: list[float] = field(default_factory=lambda: [0.35, 0.65])
        max_hidden: float = 0.5
        mano_dir: str = ""
        seed: int = 0

    def __init__(self, options: Options) -> None:
        self.options = o = options
        choice = FrameChoice(o.cameras, o.views, o.start, o.stride, o.size, o.hand_fill, o.max_hidden, o.seed)
        choice.check(self.name, own_cameras=True)
        if o.split not in ("all", *SPLITS):
            raise ConfigError(f"rollout-npz: split {o.split!r} is none of all, {', '.join(SPLITS)}")
        self._root = Path(o.archives)
        if not self._root.exists():
            raise SourceError(f"{self._root}: no such archive or folder of archives. Check the path.")
        files = sorted(self._root.rglob("*.npz")) if self._root.is_dir() else [self._root]
        if o.split != "all":
            files = [f for f in files if _split_of_file(f) in (o.split, "")]
        self.files = files[: o.limit] if o.limit >= 0 else files
        if not self.files:
            raise ConfigError(f"rollout-npz: no archive of {o.archives} is left; relax `split` or `limit`")
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

    # -------------------------------------------------------------------------------------------------------- inside

    def _read(self, number: int) -> Trajectory:
        path = self.files[number]
        archive = read_archive(path)
        if self.options.cameras == "archive" and archive.cam_K is None:
            raise SourceError(f"{path}: has no cameras; set `cameras` to sampled or a rig", path=str(path))
        hands = tuple(hand_track(path, archive, h, self._hands, self.name) for h in range(len(archive.hand_side)))
        placed = np.ones(archive.object_pose.shape[:2], bool) if archive.object_valid is None else archive.object_valid
        poses = np.asarray(archive.object_pose, np.float64).copy()
        poses[..., :3, 3] *= archive.unit_m
        objects = tuple(
            ObjectTrack(o, _mesh(path, archive, i), poses[:, i], placed[:, i]) for i, o in enumerate(archive.object_id)
        )
        up = np.eye(3)["xyz".index(archive.up_axis[-1])] * (-1.0 if archive.up_axis[0] == "-" else 1.0)
        failures = check_joints(archive, hands, self._hands) + check_places(archive, hands, objects, up, self._hands)
        if failures:
            lines = "".join(f"\n  - {name}: {text}" for name, text in failures)
            raise SourceError(f"{path}: fails checks on opening:{lines}", failures=[name for name, _ in failures])
        relative = path.relative_to(self._root) if self._root.is_dir() else Path(path.name)
        return Trajectory(
            dataset="rollout",
            subject=archive.object_id[0] if archive.object_id else "no-object",
            sequence="-".join(relative.with_suffix("").parts),
            name=relative.as_posix(),
            licence=archive.licence,
            group=_group(archive),
            split=_split(archive),
            hands=hands,
            objects=objects,
            up=up,
            times_s=archive.times_s,
            notes=(
                f"made by: {archive.source}",
                f"archive sha256: {sha256(path.read_bytes()).hexdigest()}",
                *(() if archive.success is None else (f"success: {archive.success}",)),
            ),
            text=archive.text,
            cameras=_cameras(archive),
        )


def _mesh(path: Path, a: RolloutArchive, i: int) -> MeshFile:
    file = path.parent / a.object_mesh[i]
    if not file.is_file():
        raise AssetMissing(f"{path}: its mesh {a.object_mesh[i]} is not at {file}; put it there", path=str(file))
    scale = float(a.object_scale[i])
    # One file at two scales is two meshes.
    return MeshFile(file, a.object_mesh[i] if scale == 1.0 else f"{a.object_mesh[i]} * {scale:g}", scale)


def _cameras(a: RolloutArchive) -> tuple[tuple[str, Callable[[int], Camera]], ...]:
    if a.cam_K is None or a.cam_size is None or a.cam_T_world_cam is None:
        return ()
    names = a.cam_name or tuple(f"cam-{c:02d}" for c in range(len(a.cam_K)))
    poses = np.asarray(a.cam_T_world_cam, np.float64).copy()
    poses[..., :3, 3] *= a.unit_m
    size, K = np.asarray(a.cam_size), np.asarray(a.cam_K, np.float64)

    def at(c: int) -> Callable[[int], Camera]:
        def camera(frame: int) -> Camera:
            return Camera(int(size[c, 0]), int(size[c, 1]), K[c], poses[c] if poses.ndim == 3 else poses[frame, c])

        return camera

    return tuple((clean_key_part(name), at(c)) for c, name in enumerate(names))


def _group(a: RolloutArchive) -> str:
    return a.group_id or (a.object_id[0] if a.object_id else "")


def _split(a: RolloutArchive) -> str:
    return a.split or split_of(_group(a))


def _split_of_file(path: Path) -> str:
    """A file's split; "" where it cannot be read, so that it is reported and not passed over."""
    try:
        return _split(read_archive(path))
    except SourceError:
        return ""
