"""A scene's meshes as they are drawn: hands and their forearms, objects, now and then something in front."""

from functools import lru_cache

import numpy as np

from pam_aug.hand.assets import HandAssets
from pam_aug.render.appearance import Piece
from pam_aug.render.conditions import Conditions, Part, render_conditions
from pam_aug.render.forearm import build_forearm, draw_forearm_shape, wrist_loop
from pam_aug.rollouts.scene import HandMesh, Scene
from pam_aug.schema import SEG_FOREARM, SEG_LEFT_HAND, SEG_RIGHT_HAND
from pam_aug.seeds import derived_seed

SEG_OCCLUDER = 200
"""Segmentation id of things that stand in front of the scene and belong to no label."""

_OCCLUDER_SHARE = 0.05


def scene_pieces(scene: Scene, *, occluders: bool = True) -> list[Piece]:
    """The pieces of a scene.

    Arms and occluders are not in the label: they are drawn from the sample's key, so that every candidate,
    condition map and rerun of an input has the same ones.
    """
    key = scene.sample.key
    pieces: list[Piece] = []
    for hand in scene.hands:
        seg = SEG_RIGHT_HAND if hand.side == "right" else SEG_LEFT_HAND
        pieces.append(Piece(Part(hand.verts_cam_m, hand.assets.f, seg), hand.assets.v_template, "hand", hand.assets))
        pieces += _arm_pieces(hand, derived_seed("forearm", key, hand.side))
    for o in scene.objects:
        pieces.append(Piece(Part(o.verts_cam_m, o.mesh.faces, o.seg_id), o.mesh.vertices_m, "object"))
    rng = np.random.Generator(np.random.PCG64(derived_seed("occluder", key)))
    if occluders and scene.hands and rng.random() < _OCCLUDER_SHARE:
        pieces.append(_occluder(scene, rng))
    return pieces


def scene_conditions(scene: Scene, *, occluders: bool = False) -> Conditions:
    """The condition images of a scene, forearms included."""
    camera = scene.sample.camera
    parts = [piece.part for piece in scene_pieces(scene, occluders=occluders)]
    hands = [(hand.joints_px, hand.joints_cam_m[:, 2]) for hand in scene.sample.hands]
    return render_conditions(parts, hands, camera.K_px.astype(np.float64), camera.width, camera.height)


@lru_cache(maxsize=64)
def _loop_of(assets: HandAssets) -> np.ndarray:
    return wrist_loop(assets.f)


def _arm_pieces(hand: HandMesh, seed: int) -> list[Piece]:
    rng = np.random.Generator(np.random.PCG64(seed))
    shape, rest_joints, assets = draw_forearm_shape(rng), hand.assets.rest_joints_m, hand.assets
    loop = _loop_of(assets)
    tube = build_forearm(hand.verts_cam_m, loop, hand.joints_cam_m[0], hand.joints_cam_m[9], shape)
    straight = shape._replace(bend_rad=(0.0, 0.0))
    rest = build_forearm(assets.v_template, loop, rest_joints[0], rest_joints[4], straight)
    pieces = [Piece(Part(tube.verts_m, tube.faces[~tube.is_cloth], SEG_FOREARM), rest.verts_m, "arm")]
    if tube.is_cloth.any():
        first = int(tube.faces[tube.is_cloth].min())
        faces = tube.faces[tube.is_cloth] - first
        pieces.append(Piece(Part(tube.verts_m[first:], faces, SEG_FOREARM), rest.verts_m[first:], "cloth"))
    return pieces


def _occluder(scene: Scene, rng: np.random.Generator) -> Piece:
    """A bar or slab between the camera and the rim of a hand."""
    import trimesh

    joints = scene.hands[int(rng.integers(len(scene.hands)))].joints_cam_m
    middle = joints.mean(0)
    reach = float(np.linalg.norm(joints - middle, axis=1).max())
    near = middle * rng.uniform(0.45, 0.8)
    aside = rng.normal(0, 1, 3) * (1, 1, 0)
    aside *= reach * rng.uniform(0.6, 1.0) * near[2] / middle[2] / max(float(np.linalg.norm(aside)), 1e-6)
    size = np.exp(rng.uniform(np.log(0.008), np.log(0.035), 3)) * (rng.uniform(2, 8), 1, 1)
    box = trimesh.creation.box(size)
    turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
    rest = np.asarray(box.vertices)
    return Piece(Part(rest @ turn.T + near + aside, np.asarray(box.faces), SEG_OCCLUDER), rest, "object")
