"""Do labels lie where they say? Re-projected joints against the drawn scene, pixel by pixel."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.hand.joints import JOINTS21_TO_MANO16, MANO_PARENTS, TIPS_21
from pam_aug.render.conditions import Conditions
from pam_aug.render.rasterizer import rasterize
from pam_aug.rollouts.mesh_queries import signed_distance_m
from pam_aug.rollouts.scene import HandMesh, Scene
from pam_aug.schema import SEG_FOREARM, SEG_LEFT_HAND, SEG_RIGHT_HAND

__all__ = ["LabelCheck", "check_labels"]

_SLACK_M = 0.003  # a tip's joint lies on the skin itself, and a pixel's ray passes up to half a pixel beside it
_SAME_SURFACE_M = 1e-4
_STEPS = 6


class LabelCheck(NamedTuple):
    """Counts over the joints inside an image.

    `on_scene`: a pixel within the tolerance shows a hand, a forearm, or something in front of the joint. `visible`: the
    joint's own pixel shows the skin of the bones that meet there. `depth_true`: visible, and between that skin and the
    joint there is nothing but this hand, so that the depth map is off by no more than the hand's thickness.
    """

    inside: int
    on_scene: int
    visible: int
    depth_true: int

    def plus(self, other: "LabelCheck") -> "LabelCheck":
        return LabelCheck(*(a + b for a, b in zip(self, other)))


def check_labels(scene: Scene, drawn: Conditions, tolerance_px: int = 1) -> LabelCheck:
    """Compare the joints of a scene's labels with the depth and segmentation of an image of it."""
    height, width = drawn.seg.shape
    K_px = scene.sample.camera.K_px.astype(np.float64)
    total = LabelCheck(0, 0, 0, 0)
    for hand, mesh in zip(scene.sample.hands, scene.hands):
        near_skin = _own_skin(mesh, K_px, drawn)
        for joint, ((u, v), z) in enumerate(zip(np.rint(hand.joints_px).astype(int), hand.joints_cam_m[:, 2])):
            if not (0 <= u < width and 0 <= v < height):
                continue
            window = (
                slice(max(v - tolerance_px, 0), v + tolerance_px + 1),
                slice(max(u - tolerance_px, 0), u + tolerance_px + 1),
            )
            seg, depth = drawn.seg[window], drawn.depth_m[window]
            flesh = np.isin(seg, (SEG_RIGHT_HAND, SEG_LEFT_HAND, SEG_FOREARM))
            in_front = (seg > 0) & (depth < z)
            visible = bool(near_skin[joint, v, u])
            skin_z = float(drawn.depth_m[v, u])
            total = total.plus(
                LabelCheck(
                    inside=1,
                    on_scene=int((flesh | in_front).any()),
                    visible=int(visible),
                    depth_true=int(visible and _is_flesh_between(mesh, K_px, (u, v), skin_z, float(z))),
                )
            )
    return total


def _is_flesh_between(
    mesh: HandMesh, K_px: Float[np.ndarray, "3 3"], pixel: tuple[int, int], skin_z_m: float, joint_z_m: float
) -> bool:
    """Whether a pixel's ray stays inside the closed hand from the skin that it shows to a joint's depth."""
    if joint_z_m - skin_z_m < _SLACK_M:
        return bool(joint_z_m - skin_z_m > -_SLACK_M)
    ray = np.linalg.solve(K_px, np.array([*pixel, 1.0]))
    depths = np.linspace(skin_z_m + _SLACK_M / 4, joint_z_m - _SLACK_M / 4, _STEPS)
    faces = np.concatenate([mesh.assets.f, mesh.assets.f_cap])
    return bool((signed_distance_m(depths[:, None] * ray, mesh.verts_cam_m, faces) < _SLACK_M / 2).all())


def _own_skin(mesh: HandMesh, K_px: Float[np.ndarray, "3 3"], drawn: Conditions) -> Bool[np.ndarray, "21 h w"]:
    """Per joint, the pixels that show the skin of the bones that meet in it."""
    height, width = drawn.seg.shape
    raster = rasterize(mesh.verts_cam_m, mesh.assets.f, K_px, width, height)
    shown = (raster.face >= 0) & (np.abs(raster.depth_m - drawn.depth_m) < _SAME_SURFACE_M)
    bone_of_face = mesh.assets.weights[mesh.assets.f].sum(1).argmax(1)
    bone = np.where(shown, bone_of_face[raster.face], -1)
    return np.stack([np.isin(bone, bones) for bones in _bones_at_joints()])


def _bones_at_joints() -> list[Int[np.ndarray, "n"]]:
    """For each of the 21 joints, the kinematic joints whose segments touch it: its own, its parent's; a tip's last."""
    bones: list[np.ndarray] = [np.empty(0, int)] * 21
    for bone, joint in enumerate(JOINTS21_TO_MANO16):
        bones[joint] = np.array([bone, max(MANO_PARENTS[bone], 0)])
    for tip in TIPS_21:
        bones[tip] = bones[tip - 1][:1]
    return bones
