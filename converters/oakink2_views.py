"""A sequence as one camera sees it, all frames at once: computed frame by frame it would take ten times as long."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pam_aug.geometry import invert_rigid, matrix_to_axis_angle, project, transform_points
from pam_aug.hand import mano_model_name
from pam_aug.hand.joints import Side
from pam_aug.rollouts.label import in_image
from pam_aug.schema import Camera, Hand

from .oakink2_annotation import Annotation
from .oakink2_hands import PosedHand

__all__ = ["SeenHand", "View", "view_of"]


@dataclass(frozen=True, slots=True, eq=False)
class SeenHand:
    """One side's hand at every frame, in the camera frame. What holds in any frame is in `posed`."""

    posed: PosedHand
    joints_cam_m: Float[np.ndarray, "n 21 3"]
    joints_px: Float[np.ndarray, "n 21 2"]
    in_view: Bool[np.ndarray, "n 21"]
    global_orient: Float[np.ndarray, "n 3"]
    transl: Float[np.ndarray, "n 3"]

    def label(self, row: int) -> Hand:
        """The label at a row of the sequence's frames."""
        side = self.posed.side
        return Hand(
            side=side,
            hand_model=mano_model_name(side, "as_file"),
            joints_cam_m=self.joints_cam_m[row],
            joints_px=self.joints_px[row],
            in_view=self.in_view[row],
            global_orient=self.global_orient[row],
            hand_pose=self.posed.hand_pose[row],
            betas=self.posed.betas[row],
            transl=self.transl[row],
        )


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One camera at every frame of a sequence, and what it sees; rows that the annotation calls invalid mean nothing.

    `T_cam_world` inverts `T_world_cam` as the label rounds it.
    """

    width: int
    height: int
    K_px: Float[np.ndarray, "n 3 3"]
    T_world_cam: Float[np.ndarray, "n 4 4"]
    T_cam_world: Float[np.ndarray, "n 4 4"]
    hands: Mapping[Side, SeenHand]
    T_cam_obj: Mapping[str, Float[np.ndarray, "n 4 4"]]

    def camera(self, row: int) -> Camera:
        return Camera(self.width, self.height, self.K_px[row], self.T_world_cam[row])


def view_of(annotation: Annotation, posed: Mapping[Side, PosedHand], name: str, width: int, height: int) -> View:
    """A sequence as its camera `name` sees it in images of that size (pixels)."""
    poses = annotation.cameras[name]
    K_px = poses.K_px.astype(np.float32)
    T_world_cam = invert_rigid(poses.T_cam_world).astype(np.float32)
    T_cam_world = invert_rigid(T_world_cam.astype(np.float64))
    return View(
        width=width,
        height=height,
        K_px=K_px,
        T_world_cam=T_world_cam,
        T_cam_world=T_cam_world,
        hands={side: _seen(hand, T_cam_world, K_px, width, height) for side, hand in posed.items()},
        T_cam_obj={part: T_cam_world @ track.T_world_obj for part, track in annotation.objects.items()},
    )


def _seen(posed: PosedHand, T_cam_world: np.ndarray, K_px: np.ndarray, width: int, height: int) -> SeenHand:
    joints = transform_points(T_cam_world, posed.joints_world_m).astype(np.float32)
    px = project(joints.astype(np.float64), K_px.astype(np.float64))
    return SeenHand(
        posed=posed,
        joints_cam_m=joints,
        joints_px=np.nan_to_num(px, nan=-1.0),
        in_view=in_image(px, width, height),
        global_orient=matrix_to_axis_angle(T_cam_world[:, :3, :3] @ posed.R_world_wrist),
        transl=joints[:, 0] - posed.root_m,
    )
