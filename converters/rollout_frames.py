"""From a trajectory in a world frame to samples: choose frames, put cameras, write labels.

One sample is one frame seen by one camera. Everything is a pure function of the options and the item's number. A
sampled camera looks for a view that shows the hand; a rig's camera stands where it stands, so a view of it that does
not is left out, with the reason.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import ConfigError, SourceError
from pam_aug.geometry import axis_angle_to_matrix, transform_points
from pam_aug.hand import HandAssets, Side
from pam_aug.rollouts.cameras import CameraRanges, behind_arm, sample_camera
from pam_aug.rollouts.label import hand_label, in_image, object_pose, pose_hand
from pam_aug.rollouts.mesh_queries import clear_share
from pam_aug.rollouts.rigs import RIGS, rig_cameras
from pam_aug.rollouts.scene import Item, LeftOut, Mesh
from pam_aug.schema import SEG_FIRST_OBJECT, Camera, Hand, Object, Sample, Source, make_key
from pam_aug.seeds import derived_seed

from .rollout_tracks import Hands, HandTrack, Trajectory

__all__ = ["FrameChoice", "Frames"]

_OUT_OF_VIEW = "no hand in view"
_INTO_WRIST = "seen along the forearm, into the wrist"
_HIDDEN = "the hand is hidden"


@dataclass(frozen=True)
class FrameChoice:
    """Which frames and cameras become samples.

    `cameras`: "sampled" (`views` of them per frame), "archive" (the source's own), or the name of a fixed rig. `start`
    below 0 counts from the end. `size` [] is 256 x 256 for sampled cameras, the rig's own otherwise.
    """

    cameras: str
    views: int
    start: int
    stride: int
    size: Sequence[int]
    hand_fill: Sequence[float]
    max_hidden: float
    seed: int

    def check(self, source: str, own_cameras: bool) -> None:
        """Raise ConfigError for a value that cannot be used."""
        known = ["sampled", *RIGS, *(["archive"] if own_cameras else [])]
        if self.cameras not in known:
            near = difflib.get_close_matches(self.cameras, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{source}: cameras {self.cameras!r} is none of {', '.join(known)}; did you mean {near!r}?"
            )
        if self.views < 1 or self.stride < 1 or len(self.size) not in (0, 2) or len(self.hand_fill) != 2:
            raise ConfigError(
                f"{source}: views and stride are 1 or more, size is [width, height] or [], hand_fill is [low, high]"
            )
        if self.cameras == "archive" and self.size:
            raise ConfigError(f"{source}: the archive's cameras have their own size; leave `size` out")
        if self.cameras in RIGS:
            rig_cameras(self.cameras, np.zeros(3), np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), self.image_size)
        elif self.cameras == "sampled":
            self.ranges()

    @property
    def image_size(self) -> tuple[int, int] | None:
        return (self.size[0], self.size[1]) if self.size else None

    def ranges(self) -> CameraRanges:
        width, height = self.image_size or (256, 256)
        fill = (self.hand_fill[0], self.hand_fill[1])
        return CameraRanges(width=width, height=height, fill=fill, max_hidden=self.max_hidden)

    def frames(self, count: int) -> range:
        start = max(self.start + count, 0) if self.start < 0 else self.start
        return range(start, count, self.stride)


class Frames:
    """Random access to the samples of `count` trajectories, which `load` reads one at a time.

    A trajectory that cannot be used counts as one item, which raises its error: one bad file is a row with a reason.
    Where none can be used the first error is raised at once.
    """

    def __init__(
        self, source: str, count: int, load: Callable[[int], Trajectory], hands: Hands, choice: FrameChoice
    ) -> None:
        self._source, self._hands, self._choice = source, hands, choice
        self._load = functools.lru_cache(maxsize=4)(load)
        self._rows: list[tuple[int, int, int]] = []  # trajectory, frame, camera
        self._errors: dict[int, SourceError] = {}
        self.sides: set[Side] = set()
        keys: dict[tuple[str, str], int] = {}
        for number in range(count):
            try:
                trajectory = self._load(number)
                pair = (trajectory.subject, trajectory.sequence)
                if pair in keys:
                    raise ConfigError(f"{source}: two trajectories are called {'/'.join(pair)}; convert them apart")
                keys[pair] = number
                rows = [(number, frame, camera) for frame, camera in self._seen(trajectory)]
                if not rows:
                    raise SourceError(f"{trajectory.name}: no chosen frame has a valid hand in view of a camera")
            except SourceError as error:
                self._errors[number] = error
                rows = [(number, -1, -1)]
            else:
                self.sides |= {hand.side for hand in trajectory.hands}
            self._rows += rows
        if self._errors and len(self._errors) == count:
            raise next(iter(self._errors.values()))

    def __len__(self) -> int:
        return len(self._rows)

    def hand_assets(self) -> Mapping[str, HandAssets]:
        """Every hand model that the labels name, as "<hand_model>/<side>"."""
        return {f"{self._hands.model}/{side}": self._hands.assets(side) for side in sorted(self.sides)}

    def item(self, index: int) -> Item:
        """Sample `index`: a pure function of the options and `index`.

        Raises LeftOut for a rig's view that shows no hand well: out of the image, seen along its forearm from behind,
        or with more than `max_hidden` of its joints hidden.
        """
        if not 0 <= index < len(self):
            raise SourceError(f"{self._source}: item {index} of {len(self)}", index=index)
        number, frame, view = self._rows[index]
        if number in self._errors:
            raise self._errors[number]
        trajectory = self._load(number)
        tracks = [hand for hand in trajectory.hands if hand.valid[frame]]
        posed = [self._pose(hand, frame) for hand in tracks]
        meshes = {o.mesh.name: o.mesh.load() for o in trajectory.objects}
        name = self._view_name(trajectory, view)
        key = make_key(trajectory.dataset, trajectory.subject, trajectory.sequence, name, f"{frame:06d}")
        camera, hidden = self._camera(trajectory, key, frame, view, posed, tracks, meshes)
        sample = Sample(
            key=key,
            camera=camera,
            hands=tuple(self._label(hand, frame, camera) for hand in tracks),
            objects=tuple(
                Object(
                    o.id,
                    o.mesh.name,
                    SEG_FIRST_OBJECT + i,
                    object_pose(o.T_world_obj[frame], camera),
                    bool(o.valid[frame]),
                )
                for i, o in enumerate(trajectory.objects)
            ),
            source=Source(
                dataset=trajectory.dataset,
                name=f"{trajectory.name}:{frame}",
                licence=trajectory.licence,
                converter=self._source,
                split=trajectory.split,
                group=trajectory.group,
                notes=(
                    *trajectory.notes,
                    f"time_s: {trajectory.times_s[frame]:.4f}",
                    "camera of the source" if self._choice.cameras == "archive" else f"camera: {self._choice.cameras}",
                    f"joints hidden: {round(hidden * 21 * len(tracks))} of {21 * len(tracks)}",
                ),
            ),
            text=trajectory.text,
        )
        return Item(sample, b"", meshes)

    def posed(self, number: int, frame: int) -> list[tuple[Float[np.ndarray, "778 3"], Float[np.ndarray, "21 3"]]]:
        """Vertices and joints, world, metres, of the valid hands of a trajectory's frame."""
        return [self._pose(hand, frame) for hand in self._load(number).hands if hand.valid[frame]]

    def trajectory(self, number: int) -> Trajectory:
        """Trajectory `number`, as the source counts them."""
        return self._load(number)

    # -------------------------------------------------------------------------------------------------------- inside

    def _pose(self, hand: HandTrack, frame: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = (hand.global_orient[frame], hand.hand_pose[frame], hand.betas[frame], hand.transl[frame])
        return pose_hand(self._hands.layer(hand.side), *numbers)

    def _label(self, hand: HandTrack, frame: int, camera: Camera) -> Hand:
        return hand_label(
            self._hands.layer(hand.side),
            self._hands.model,
            hand.global_orient[frame],
            hand.hand_pose[frame],
            hand.betas[frame],
            hand.transl[frame],
            camera=camera,
            pose_mean=hand.pose_mean,
        )

    def _camera(
        self,
        trajectory: Trajectory,
        key: str,
        frame: int,
        view: int,
        posed: list[tuple[np.ndarray, np.ndarray]],
        tracks: list[HandTrack],
        meshes: Mapping[str, Mesh],
    ) -> tuple[Camera, float]:
        parts = [(verts, self._hands.assets(hand.side).f) for (verts, _), hand in zip(posed, tracks)]
        parts += [
            (transform_points(o.T_world_obj[frame], meshes[o.mesh.name].vertices_m), meshes[o.mesh.name].faces)
            for o in trajectory.objects
            if o.valid[frame]
        ]
        starts = np.cumsum([0, *(len(verts) for verts, _ in parts)])
        blockers = (
            np.concatenate([verts for verts, _ in parts]),
            np.concatenate([faces + start for (_, faces), start in zip(parts, starts)]).astype(np.int64),
        )
        joints = np.concatenate([j for _, j in posed])
        if self._choice.cameras == "sampled":
            rng = np.random.default_rng(derived_seed(self._choice.seed, key, "camera"))
            framed = np.concatenate([verts for verts, _ in posed])
            # Of two hands the first is the one that a camera must not stand behind.
            camera, _ = sample_camera(rng, framed, posed[0][1], self._choice.ranges(), trajectory.up, blockers)
        else:
            camera = self._fixed(trajectory, frame)[view]
        clear, seen = clear_share(np.asarray(camera.T_world_cam[:3, 3], np.float64), joints, *blockers)
        if self._choice.cameras in RIGS:
            self._refuse(key, camera, [j for _, j in posed], 1.0 - seen.reshape(-1, 21).mean(1))
        return camera, 1.0 - clear

    def _refuse(self, key: str, camera: Camera, joints: list[np.ndarray], hidden: np.ndarray) -> None:
        """Raise LeftOut where a camera shows no hand well; a hand that fails at several points counts by the first."""
        reasons: list[str] = []
        for j, share in zip(joints, hidden):
            behind = behind_arm(camera, j)
            if not _sees(camera, j[[0, 9]]):
                reasons.append(_OUT_OF_VIEW)
            elif behind > CameraRanges().max_behind:
                reasons.append(_INTO_WRIST)
            elif share > self._choice.max_hidden:
                reasons.append(_HIDDEN)
            else:
                return
        raise LeftOut(f"{key}: {reasons[0]} ({', '.join(f'{s:.0%}' for s in hidden)} hidden)", reason=reasons[0])

    def _view_name(self, trajectory: Trajectory, view: int) -> str:
        if self._choice.cameras == "sampled":
            return f"view-{view:02d}"
        if self._choice.cameras == "archive":
            return trajectory.cameras[view][0]
        return f"{self._choice.cameras}-{RIGS[self._choice.cameras].views[view].name}"

    def _fixed(self, trajectory: Trajectory, frame: int) -> tuple[Camera, ...]:
        """Cameras that do not depend on the hand's pose in this frame: the source's own, or a rig.

        A rig stands still over a trajectory, about the middle of the chosen frames' wrists and objects; the person is
        where the hands come from.
        """
        if self._choice.cameras == "archive":
            return tuple(camera(frame) for _, camera in trajectory.cameras)
        frames = list(self._choice.frames(len(trajectory.times_s)))
        wrists = np.concatenate([self._wrists(hand)[frames][hand.valid[frames]] for hand in trajectory.hands])
        places = [o.T_world_obj[frames, :3, 3][o.valid[frames]] for o in trajectory.objects]
        points = np.concatenate([wrists, *places])
        anchor = 0.5 * (points.min(0) + points.max(0))
        backward = np.concatenate(
            [
                self._wrists(h)[frames][h.valid[frames]] - self._palms(h)[frames][h.valid[frames]]
                for h in trajectory.hands
            ]
        ).mean(0)
        return rig_cameras(self._choice.cameras, anchor, trajectory.up, backward, self._choice.image_size)

    def _wrists(self, hand: HandTrack) -> Float[np.ndarray, "t 3"]:
        layer = self._hands.layer(hand.side)
        return layer.wrist_from_transl(torch.from_numpy(hand.transl), torch.from_numpy(hand.betas)).numpy()

    def _palms(self, hand: HandTrack) -> Float[np.ndarray, "t 3"]:
        """Where the middle finger starts: the rest-pose offset turned with the wrist."""
        rest = self._hands.assets(hand.side).rest_joints_m
        return self._wrists(hand) + axis_angle_to_matrix(hand.global_orient) @ (rest[4] - rest[0])

    def _seen(self, trajectory: Trajectory) -> list[tuple[int, int]]:
        """(frame, camera) pairs: a source's own camera counts where it sees a hand's wrist and knuckles.

        All of a rig's do, so that those which do not see it are told and counted; none where no camera sees any.
        """
        frames = [f for f in self._choice.frames(len(trajectory.times_s)) if any(h.valid[f] for h in trajectory.hands)]
        if not frames:
            return []
        if self._choice.cameras == "sampled":
            return [(frame, view) for frame in frames for view in range(self._choice.views)]
        ends = [(h, np.stack([self._wrists(h), self._palms(h)], 1)) for h in trajectory.hands]
        rig = self._fixed(trajectory, frames[0]) if self._choice.cameras != "archive" else ()
        pairs: list[tuple[int, int]] = []
        for frame in frames:
            for view, camera in enumerate(rig or self._fixed(trajectory, frame)):
                if any(h.valid[frame] and _sees(camera, points[frame]) for h, points in ends):
                    pairs.append((frame, view))
        if rig and pairs:
            return [(frame, view) for frame in frames for view in range(len(rig))]
        return pairs


def _sees(camera: Camera, points_m: np.ndarray) -> bool:
    T, K = np.asarray(camera.T_world_cam, np.float64), np.asarray(camera.K_px, np.float64)
    cam = (points_m - T[:3, 3]) @ T[:3, :3]
    px = (cam @ K.T)[:, :2] / np.where(cam[:, 2:] > 0, cam[:, 2:], np.nan)
    return bool(in_image(px, camera.width, camera.height).all())
