"""Hands on boxes, cans and tori for `physics.py`: grasps that oppose, and touches from one side, told by meshes alone.

An opposed grasp is one of the grasp sampler's (power, pinch, tripod) whose measured contacts face each other across the
object's middle; a one-sided one is a flat hand against the object without its thumb, all of whose contacts face one
way. Nothing is simulated here, so what passes simulation later is not chosen by it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import trimesh

from pam_aug.geometry import axis_angle_to_matrix, rigid_matrix
from pam_aug.hand import HandLayer, load_open_hand
from pam_aug.rollouts.contact import hand_parts
from pam_aug.rollouts.convex_parts import ConvexPart, convex_parts
from pam_aug.rollouts.grasp import GraspKind, GraspSampler, Surface, surface_of
from pam_aug.rollouts.hand_bodies import Capsules, hand_capsules
from pam_aug.rollouts.label import pose_hand
from pam_aug.rollouts.mesh_queries import signed_distance_m

__all__ = ["SHAPES", "Body", "Sampler", "Scene", "make_body", "own_bodies"]

SHAPES: Final = ("box", "can", "torus")

_TOUCH_M: Final = 0.003
_PRESSED_M: Final = 0.0005
_PARTS_AT_LEAST: Final = {True: 3, False: 2}  # fingers and palm that touch
_SQUEEZE_M: Final = (0.002, 0.004)  # flesh gives way by millimetres in a firm grip
_DEEPEST_M: Final = 0.006  # a grasp that is deeper is spoilt, whatever it opposes
_FACING: Final = -0.7  # cosine between the normals of two contacts that hold the object between them
_ONE_WAY: Final = 0.3  # cosine of every contact's normal with their mean, at least: all from one side
_OFF_MIDDLE_M: Final = 0.015  # how far the object's middle may lie from between the two facing contacts
_TRIES: Final = 1000


@dataclass(frozen=True)
class Body:
    """An object with everything that is made of it once."""

    name: str
    verts_m: np.ndarray
    faces: np.ndarray
    parts: list[ConvexPart]
    surface: Surface


@dataclass(frozen=True)
class Scene:
    """A hand, in the frame of the object numbered `body`."""

    body: int
    capsules: Capsules
    opposed: bool


def make_body(name: str, verts_m: np.ndarray, faces: np.ndarray) -> Body:
    return Body(name, verts_m, faces, convex_parts(verts_m, faces), surface_of(verts_m, faces))


def own_bodies() -> list[Body]:
    """Boxes, cans and tori that one hand can hold: 2.4 to 6.4 cm thick, 70 to 250 g of water, named by their shape."""
    made = [("box", trimesh.creation.box(size)) for size in ((0.035, 0.05, 0.09), (0.045, 0.06, 0.08))]
    made += [("can", trimesh.creation.cylinder(r, h, sections=32)) for r, h in ((0.018, 0.08), (0.026, 0.1))]
    made += [("box", trimesh.creation.box((0.05, 0.055, 0.09))), ("can", trimesh.creation.cylinder(0.032, 0.07))]
    made += [
        ("torus", trimesh.creation.torus(major, minor, major_sections=32, minor_sections=16))
        for major, minor in ((0.03, 0.012), (0.04, 0.015))
    ]
    return [make_body(name, np.asarray(m.vertices, np.float64), np.asarray(m.faces, np.int64)) for name, m in made]


class Sampler:
    """Scenes of either kind, accepted by their measured contacts; the same number gives the same scene."""

    def __init__(self, bodies: list[Body]) -> None:
        self._bodies = bodies
        self._assets = load_open_hand("right")
        self._layer = HandLayer(self._assets, dtype=torch.float64)
        self._grasps = GraspSampler(self._assets)
        self._parts = hand_parts(self._assets)

    def scene(self, opposed: bool, number: int) -> Scene:
        """Scene `number` of a kind: shapes in turn, and of each shape's objects the first that is grasped so."""
        rng = np.random.default_rng([number, int(opposed)])
        ours = [i for i, body in enumerate(self._bodies) if body.name == SHAPES[number % len(SHAPES)]]
        for attempt in range(_TRIES):
            scene = self._attempt(rng, opposed, ours[attempt % len(ours)])
            if scene is not None:
                return scene
        raise SystemExit(f"no {'opposed' if opposed else 'one-sided'} grasp of {_TRIES} was accepted, number {number}")

    def any_grasp(self, body: int, number: int) -> Scene:
        """A grasp as the sampler makes it, its contacts not looked at."""
        capsules, _ = self._pose(np.random.default_rng([number, body, 2]), "tripod" if number % 2 else "power", body)
        return Scene(body, capsules, True)

    def _attempt(self, rng: np.random.Generator, opposed: bool, number: int) -> Scene | None:
        body = self._bodies[number]
        kinds: tuple[GraspKind, ...] = ("power", "pinch", "tripod") if opposed else ("flat",)
        capsules, verts = self._pose(rng, kinds[rng.integers(len(kinds))], number)
        if not self._is_wanted(verts, body, opposed):
            return None
        capsules = capsules.moved(_rest_in_hand(capsules, body, opposed))
        pressed = capsules.distance_m(body.surface.points_m) < -_PRESSED_M
        if opposed and not _face_each_other(body.surface.points_m[pressed], body.surface.normals[pressed], body):
            return None
        return Scene(number, capsules, opposed)

    def _pose(self, rng: np.random.Generator, kind: GraspKind, number: int) -> tuple[Capsules, np.ndarray]:
        """The hand's capsules and vertices in the object's frame."""
        grasp = self._grasps.grasp(rng, kind, self._bodies[number].surface, np.zeros(10), _SQUEEZE_M)
        pose = grasp.hand_pose.copy()
        if kind == "flat":
            pose[36:] = 0.0  # the thumb stays out of it
        verts, joints = pose_hand(self._layer, np.zeros(3), pose, np.zeros(10), np.zeros(3))
        R = grasp.T_hand_obj[:3, :3].T
        T_obj_hand = rigid_matrix(R, -R @ grasp.T_hand_obj[:3, 3])
        verts, joints = (points @ R.T + T_obj_hand[:3, 3] for points in (verts, joints))
        return hand_capsules(verts, joints, self._assets), verts

    def _is_wanted(self, verts: np.ndarray, body: Body, opposed: bool) -> bool:
        distance = signed_distance_m(verts, body.verts_m, body.faces)
        near = distance < (_PRESSED_M if opposed else _TOUCH_M)
        if len(np.unique(self._parts[near])) < _PARTS_AT_LEAST[opposed] or distance.min() < -_DEEPEST_M:
            return False
        touching = verts[near]
        _, nearest = body.surface.tree.query(touching)
        normals = body.surface.normals[nearest]
        if not opposed:
            mean = normals.mean(0)
            return bool((normals @ (mean / np.linalg.norm(mean))).min() > _ONE_WAY)
        return _face_each_other(touching, normals, body)


def _face_each_other(points: np.ndarray, normals: np.ndarray, body: Body) -> bool:
    """Whether two contacts' normals face each other across the object's middle."""
    first, second = np.nonzero(normals @ normals.T < _FACING)
    middle = 0.5 * (points[first] + points[second]) - body.surface.middle_m
    return bool(len(first) and np.linalg.norm(middle, axis=1).min() < _OFF_MIDDLE_M)


def _rest_in_hand(hand: Capsules, body: Body, opposed: bool) -> np.ndarray:
    """How the hand moves against the object until the squared overlaps of all its sides are as small as they get.

    That is where soft fingers would let the object come to rest. A one-sided hand then goes on, or back, until it is
    `_PRESSED_M` deep, so that it does touch. Geometry only: Gauss-Newton on the object's surface points and the
    capsules' distances.
    """
    T = np.eye(4)
    points, middle = body.surface.points_m[::4], body.surface.middle_m
    for _ in range(40):
        distance, away = hand.moved(T).nearest(points)
        depth, away, arm = -distance[distance < 0], away[distance < 0], points[distance < 0] - middle
        if not len(depth):
            break
        jacobian = np.c_[away, np.cross(arm, away) / 0.05]  # a turn counts by its way at 5 cm
        weight = jacobian.T @ jacobian + 0.05 * len(depth) * np.eye(6)
        step = np.linalg.solve(weight, -jacobian.T @ depth)  # the hand gives way, the object stays
        turn = axis_angle_to_matrix(step[3:] / 0.05)
        T = rigid_matrix(turn, middle + step[:3] - turn @ middle) @ T
        if np.abs(step).max() < 1e-6:
            break
    if not opposed:
        distance, away = hand.moved(T).nearest(body.surface.points_m)
        T[:3, 3] += (distance.min() + _PRESSED_M) * away[distance.argmin()]
    return T
