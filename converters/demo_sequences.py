"""Short recordings that never happened: a hand reaches for an object, takes it and lifts it, in front of one camera."""

from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pam_aug.geometry import axis_angle_to_matrix, invert_rigid, transform_points
from pam_aug.hand import Side
from pam_aug.rollouts.cameras import CameraRanges, sample_camera
from pam_aug.rollouts.scene import Mesh
from pam_aug.schema import Camera, Hand, Object
from pam_aug.seeds import derived_seed

from .demo_scenes import (
    Interaction,
    PosedHand,
    above_table,
    describe,
    free_pose,
    make_interaction,
    place,
    pose,
)

__all__ = ["SUBJECTS", "Sequence", "View", "make_sequence"]

SUBJECTS = 12
_TABLE_CLEARANCE_M = 0.002


class View(NamedTuple):
    """One frame: the world it shows and its labels."""

    hand: PosedHand
    T_world_obj: Float[np.ndarray, "4 4"]
    camera: Camera
    label: Hand
    objects: tuple[Object, ...]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One hand, object, room and camera. `look_seed` draws what does not move: skin, materials, lights, clutter."""

    subject: int
    side: Side
    mesh: Mesh
    look_seed: int
    skin_seed: int
    hands: tuple[PosedHand, ...]
    objects_world: tuple[np.ndarray, ...]
    cameras: tuple[Camera, ...]
    interactions: tuple[Interaction, ...]

    def view(self, frame: int) -> View:
        """Frame `frame` of the recording."""
        hand, camera = self.hands[frame], self.cameras[frame]
        label, objects = describe(self.interactions[frame], hand, camera)
        return View(hand, self.objects_world[frame], camera, label, objects)


def make_sequence(seed: int, number: int, frames: int, width: int, height: int) -> Sequence:
    """Recording `number`: a pure function of its arguments."""
    rng = np.random.default_rng(derived_seed("demo-real", seed, number))
    subject = int(rng.integers(SUBJECTS))
    skin_seed = derived_seed("demo-real", seed, "subject", subject)
    # Flatter than the generator's normal distribution: few average hands, more small and large ones.
    betas = np.random.default_rng(skin_seed).uniform(-1.9, 1.9, 10)
    side: Side = "left" if rng.random() < 0.4 else "right"
    taken = make_interaction(rng, "real", f"{seed}-{number:05d}", side, True, betas)
    assert taken.mesh is not None  # a held object is always there
    turn = above_table(rng, side)
    still = place(taken, turn, np.zeros(3))
    T_world_obj = still.T_world_rest @ taken.T_hand_obj
    lowest = min(transform_points(T_world_obj, taken.mesh.vertices_m)[:, 2].min(), pose(still)[0][:, 2].min())
    ground = np.array([0, 0, _TABLE_CLEARANCE_M - lowest])
    T_world_obj[:3, 3] += ground

    gesture = rng.random() < 0.2
    paths = _gesture(rng, taken, turn, ground, frames) if gesture else _reach_and_lift(rng, taken, turn, ground, frames)
    hands: list[PosedHand] = []
    objects: list[np.ndarray] = []
    interactions: list[Interaction] = []
    for wrist, rotation, angles, carried in paths:
        hand = place(taken._replace(hand_pose=angles), rotation, wrist)
        world = hand.T_world_rest @ taken.T_hand_obj if carried else T_world_obj
        hands.append(hand)
        objects.append(world)
        relative = invert_rigid(hand.T_world_rest) @ world
        interactions.append(taken._replace(hand_pose=angles, T_hand_obj=relative))
    cameras = _cameras(rng, taken.mesh, hands, objects, width, height)
    look_seed = derived_seed("demo-real", seed, number, "look")
    return Sequence(
        subject, side, taken.mesh, look_seed, skin_seed, tuple(hands), tuple(objects), cameras, tuple(interactions)
    )


def _smooth(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _reach_and_lift(rng, taken: Interaction, turn, ground, frames: int):
    """Wrist, rotation, finger angles, and whether the object moves along: reach until 0.45, close, lift from 0.6."""
    before = free_pose(rng, taken.side) * 0.5
    back = turn @ np.array([0.0, rng.uniform(0.03, 0.1), 0.0]) + np.array([0, 0, rng.uniform(0.01, 0.05)])
    sideways = rng.normal(0, 0.02, 3) * [1, 1, 0]
    lift = np.array([*rng.normal(0, 0.03, 2), rng.uniform(0.03, 0.15)])
    spin = rng.normal(0, 0.25, 3)
    start = rng.uniform(0.0, 0.3)
    for t in start + (1 - start) * np.linspace(0, 1, frames):
        near, closed, up = _smooth(t / 0.45), _smooth((t - 0.2) / 0.35), _smooth((t - 0.6) / 0.4)
        wrist = ground + (1 - near) * (back + sideways) + up * lift
        rotation = axis_angle_to_matrix(up * spin) @ turn
        yield wrist, rotation, before + closed * (taken.hand_pose - before), t >= 0.58


def _gesture(rng, taken: Interaction, turn, ground, frames: int):
    """A free hand beside the object, moving from one pose to another."""
    first, last = free_pose(rng, taken.side), free_pose(rng, taken.side)
    beside = np.array([*rng.normal(0, 0.08, 2), rng.uniform(0.06, 0.2)])
    spin = rng.normal(0, 0.5, 3)
    for t in _smooth(np.linspace(0, 1, frames)):
        yield (
            ground + beside + t * spin * 0.05,
            axis_angle_to_matrix(t * spin) @ turn,
            first + t * (last - first),
            False,
        )


def _cameras(
    rng: np.random.Generator,
    mesh: Mesh,
    hands: ListOf[PosedHand],
    objects: ListOf[np.ndarray],
    width: int,
    height: int,
) -> tuple[Camera, ...]:
    """A hand-held camera that has the whole recording in view, and trembles."""
    meshes = [pose(hand) for hand in hands]
    middle = len(hands) // 2
    from pam_aug.hand import load_open_hand

    faces = load_open_hand(hands[0].side).f
    world = transform_points(objects[middle], mesh.vertices_m)
    blockers = (
        np.concatenate([meshes[middle][0], world]),
        np.concatenate([faces, mesh.faces + len(meshes[middle][0])]),
    )
    ranges = CameraRanges(
        width=width,
        height=height,
        fov_deg=(35.0, 70.0),
        elevation_deg=(12.0, 75.0),
        roll_deg=(-12.0, 12.0),
        fill=(0.55, 0.88),
        max_hidden=0.55,
        max_behind=0.6,
    )
    framed = np.concatenate([v[::4] for v, _ in meshes])
    first, _ = sample_camera(rng, framed, meshes[middle][1], ranges, blockers=blockers)
    drift, tremble = rng.normal(0, 0.012, (2, 3)), rng.normal(0, 0.0012, (len(hands), 2, 3))
    cameras: list[Camera] = []
    for t, shake in zip(np.linspace(-0.5, 0.5, len(hands)), tremble):
        T = np.array(first.T_world_cam, np.float64)
        T[:3, :3] = T[:3, :3] @ axis_angle_to_matrix(drift[1] * t + shake[1])
        T[:3, 3] += drift[0] * t + shake[0]
        T[2, 3] = max(T[2, 3], 0.03)  # above the table
        cameras.append(Camera(width, height, first.K_px, T))
    return tuple(cameras)
