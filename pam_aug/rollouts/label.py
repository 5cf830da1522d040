"""Hand labels from model parameters: pose a hand in the world, look at it from a camera, write down what is exact."""

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.geometry import invert_rigid, project
from pam_aug.hand import HandLayer
from pam_aug.schema import Camera, Hand

__all__ = ["hand_label", "in_image", "object_pose", "pose_hand"]


def pose_hand(
    layer: HandLayer,
    global_orient: Float[np.ndarray, "3"],
    hand_pose: Float[np.ndarray, "45"],
    betas: Float[np.ndarray, "10"],
    transl: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "778 3"], Float[np.ndarray, "21 3"]]:
    """Vertices and 21 joints in metres, float64, in the frame of the given orientation and translation."""
    with torch.no_grad():
        out = layer(*(_row(a) for a in (global_orient, hand_pose, betas, transl)))
    return out.verts[0].numpy(), out.joints21[0].numpy()


def hand_label(
    layer: HandLayer,
    hand_model: str,
    global_orient: Float[np.ndarray, "3"],
    hand_pose: Float[np.ndarray, "45"],
    betas: Float[np.ndarray, "10"],
    transl: Float[np.ndarray, "3"],
    camera: Camera,
    pose_mean: str = "exact",
) -> Hand:
    """The label of a hand that is given in the world frame, as `camera` sees it.

    Parameters are rounded to float32 first and joints computed from the rounded values, so whoever poses the hand again
    from the label gets the label's joints. `layer` should be a float64 one.
    """
    R_cam_world, t_cam_world = _split(invert_rigid(np.asarray(camera.T_world_cam, np.float64)))
    orient_cam, transl_cam = layer.transform_pose(
        torch.from_numpy(R_cam_world), torch.from_numpy(t_cam_world), _row(global_orient), _row(transl), _row(betas)
    )
    numbers = [np.asarray(a, np.float32) for a in (orient_cam[0], hand_pose, betas, transl_cam[0])]
    _, joints = pose_hand(layer, *numbers)
    joints32 = joints.astype(np.float32)
    px = project(joints32.astype(np.float64), np.asarray(camera.K_px, np.float64))
    return Hand(
        side="left" if layer.side == "left" else "right",
        hand_model=hand_model,
        joints_cam_m=joints32,
        joints_px=np.nan_to_num(px, nan=-1.0),
        in_view=in_image(px, camera.width, camera.height),
        global_orient=numbers[0],
        hand_pose=numbers[1],
        betas=numbers[2],
        transl=numbers[3],
        pose_mean=pose_mean,
    )


def in_image(px: Float[np.ndarray, "n 2"], width: int, height: int) -> np.ndarray:
    """Which points lie on the image's pixels, whose centres are integers; NaN (behind the camera) is not."""
    x, y = px[..., 0], px[..., 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def object_pose(T_world_obj: Float[np.ndarray, "4 4"], camera: Camera) -> Float[np.ndarray, "4 4"]:
    """`T_cam_obj` of an object that stands at `T_world_obj`."""
    return invert_rigid(np.asarray(camera.T_world_cam, np.float64)) @ T_world_obj


def _row(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float64))[None]


def _split(T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return T[:3, :3].copy(), T[:3, 3].copy()
