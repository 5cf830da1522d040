"""The demo's interactions: a hand of either side, its shape and pose, and an object that it holds or is near."""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.geometry import axis_angle_to_matrix, matrix_to_axis_angle, rigid_matrix, transform_points
from pam_aug.hand import HandAssets, HandLayer, Side, load_open_hand, mirror_params
from pam_aug.rollouts.cameras import CameraRanges, sample_camera
from pam_aug.rollouts.grasp import FREE_KINDS, GRASP_KINDS, GraspSampler, surface_of
from pam_aug.rollouts.label import hand_label, object_pose, pose_hand
from pam_aug.rollouts.scene import Mesh
from pam_aug.schema import SEG_FIRST_OBJECT, Camera, Hand, Object

from .demo_shapes import make_shape

__all__ = [
    "HAND_MODEL",
    "Interaction",
    "PosedHand",
    "above_table",
    "demo_hands",
    "describe",
    "free_pose",
    "make_interaction",
    "observe",
    "place",
    "pose",
    "random_rotation",
]

HAND_MODEL: Final = "open_hand"
_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


class Interaction(NamedTuple):
    """A hand and an object in the hand's own rest frame, wrist joint at J0, no global rotation."""

    side: Side
    kind: str
    hand_pose: Float[np.ndarray, "45"]
    betas: Float[np.ndarray, "10"]
    mesh: Mesh | None
    T_hand_obj: Float[np.ndarray, "4 4"]


class PosedHand(NamedTuple):
    """A hand's parameters in the world (z up, metres)."""

    side: Side
    global_orient: Float[np.ndarray, "3"]
    hand_pose: Float[np.ndarray, "45"]
    betas: Float[np.ndarray, "10"]
    transl: Float[np.ndarray, "3"]
    T_world_rest: Float[np.ndarray, "4 4"]  # rest frame to world


@lru_cache(maxsize=2)
def _layer(side: Side) -> HandLayer:
    return HandLayer(load_open_hand(side), dtype=torch.float64)


@lru_cache(maxsize=1)
def _sampler() -> GraspSampler:
    return GraspSampler(load_open_hand("right"))


def demo_hands() -> dict[str, HandAssets]:
    """Both bundled hands, by the names that labels use."""
    return {f"{HAND_MODEL}/{side}": load_open_hand(side) for side in ("right", "left")}


def make_interaction(
    rng: np.random.Generator, shapes: str, name: str, side: Side, held: bool, betas: Float[np.ndarray, "10"]
) -> Interaction:
    """A hand with a new object of the split `shapes` that it holds; else the object is near, or there is none."""
    mesh = make_shape(shapes, rng, name)
    # Grasps are made with a right hand; a left one is its reflection, so it grasps the object's reflection here.
    flip = side == "left"
    verts = mesh.vertices_m * [-1.0, 1.0, 1.0] if flip else mesh.vertices_m
    surface = surface_of(verts, mesh.faces[:, ::-1] if flip else mesh.faces)
    thin = np.sort(surface.extent_m)[0] < 0.045
    chances = np.array([0.35, 0.3, 0.25, 0.1] if thin else [0.75, 0.08, 0.07, 0.1])
    kind = str(rng.choice(GRASP_KINDS, p=chances))
    pose, T = _sampler().grasp(rng, kind, surface, betas)  # type: ignore[arg-type]
    if not held:
        held_kind = kind
        kind = str(rng.choice(FREE_KINDS, p=[0.35, 0.3, 0.1, 0.1, 0.15]))
        pose = _sampler().free_pose(rng, kind)  # type: ignore[arg-type]
        # Somewhere in front of the palm or the fingertips, clear of both, or out of the picture.
        away = np.array([rng.uniform(-1.0, 0.2), rng.uniform(-1.2, -0.4), rng.uniform(-0.6, 0.6)])
        turn = rigid_matrix(random_rotation(rng), np.zeros(3))
        T = rigid_matrix(np.eye(3), T[:3, 3] + away * rng.uniform(0.07, 0.16)) @ turn
        kind = f"{kind}-near-{held_kind}" if rng.random() < 0.7 else f"{kind}-alone"
    if flip:
        pose, T = _mirrored(pose), _MIRROR @ T @ _MIRROR
    return Interaction(side, kind, pose, betas, None if kind.endswith("-alone") else mesh, T)


def free_pose(rng: np.random.Generator, side: Side) -> Float[np.ndarray, "45"]:
    """A pose of either hand that holds nothing."""
    right = _sampler().free_pose(rng, str(rng.choice(FREE_KINDS)))  # type: ignore[arg-type]
    return right if side == "right" else _mirrored(right)


def _mirrored(pose: np.ndarray) -> np.ndarray:
    return mirror_params(torch.zeros(1, 3), torch.from_numpy(pose)[None], torch.zeros(1, 3))[1][0].numpy()


def above_table(rng: np.random.Generator, side: Side) -> Float[np.ndarray, "3 3"]:
    """A rotation from the rest frame (palm to -y, fingers to -x, the left hand's to +x) to a hand over a table."""
    sign = 1.0 if side == "right" else -1.0
    turns = (
        (0.0, 0.0, rng.uniform(-np.pi, np.pi)),  # any way round
        (0.0, -sign * rng.uniform(-0.15, 0.9), 0.0),  # fingertips dip
        (sign * rng.normal(0.2, 0.5), 0.0, 0.0),  # the forearm's own turn
        (np.pi / 2, 0.0, 0.0),  # palm from -y to -z
    )
    return np.linalg.multi_dot([axis_angle_to_matrix(np.array(t)) for t in turns])


def random_rotation(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Uniform over all rotations (Shoemake 1992)."""
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    angle = 2 * np.arccos(np.clip(w, -1, 1))
    axis = np.array([x, y, z]) / max(np.sqrt(1 - w * w), 1e-12)
    return axis_angle_to_matrix(axis * angle)


def place(
    interaction: Interaction, R_world_rest: Float[np.ndarray, "3 3"], wrist_m: Float[np.ndarray, "3"]
) -> PosedHand:
    """The hand in the world: its rest frame turned by `R_world_rest` about the wrist, which stands at `wrist_m`."""
    layer = _layer(interaction.side)
    J0 = layer.rest_joints(torch.from_numpy(interaction.betas)[None])[0, 0].numpy()
    return PosedHand(
        side=interaction.side,
        global_orient=matrix_to_axis_angle(R_world_rest),
        hand_pose=interaction.hand_pose,
        betas=interaction.betas,
        transl=wrist_m - J0,
        T_world_rest=rigid_matrix(R_world_rest, wrist_m - R_world_rest @ J0),
    )


def pose(hand: PosedHand) -> tuple[Float[np.ndarray, "778 3"], Float[np.ndarray, "21 3"]]:
    """World vertices and joints of a placed hand."""
    return pose_hand(_layer(hand.side), hand.global_orient, hand.hand_pose, hand.betas, hand.transl)


def observe(
    rng: np.random.Generator, interaction: Interaction, hand: PosedHand, ranges: CameraRanges
) -> tuple[Camera, Hand, tuple[Object, ...], float]:
    """A sampled camera and what it sees: the hand's label, the object's, and the share of joints hidden."""
    verts, joints = pose(hand)
    T_world_obj = hand.T_world_rest @ interaction.T_hand_obj
    blockers = (verts, load_open_hand(hand.side).f)
    if interaction.mesh is not None:
        world = transform_points(T_world_obj, interaction.mesh.vertices_m)
        blockers = (
            np.concatenate([verts, world]),
            np.concatenate([blockers[1], interaction.mesh.faces + len(verts)]),
        )
    camera, hidden = sample_camera(rng, verts, joints, ranges, blockers=blockers)
    label, objects = describe(interaction, hand, camera)
    return camera, label, objects, hidden


def describe(interaction: Interaction, hand: PosedHand, camera: Camera) -> tuple[Hand, tuple[Object, ...]]:
    """The labels of a placed interaction in `camera`."""
    label = hand_label(
        _layer(hand.side), HAND_MODEL, hand.global_orient, hand.hand_pose, hand.betas, hand.transl, camera
    )
    if interaction.mesh is None:
        return label, ()
    name = interaction.mesh.name
    T_cam_obj = object_pose(hand.T_world_rest @ interaction.T_hand_obj, camera)
    return label, (Object(name.removeprefix("demo/"), name, SEG_FIRST_OBJECT, T_cam_obj),)
