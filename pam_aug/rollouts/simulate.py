"""Stage I in MuJoCo: an object's mesh in, a grasp that lifts, carries and sets it down out, as a rollout archive.

A seed draws how the object lies on the table and a list of grasps made from its surface; they are tried in turn until
one succeeds, which means that the object stays 5 cm up for half a second. All the randomness is the seed's and the
engine runs on one thread, so the same mesh, seed and engine version give the same bytes.

The engine knows right hands. A left hand's rollout is simulated in the mirror (x changes its sign: the object's parts,
what is given, and the hand), and what comes out is mirrored back; mechanics has no handedness, so nothing is lost.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import SourceError
from pam_aug.geometry import matrix_to_axis_angle, rigid_matrix
from pam_aug.hand import HandLayer, Side, load_open_hand, mirror_params
from pam_aug.rollouts.archive import RolloutArchive
from pam_aug.rollouts.convex_parts import ConvexPart, check_mesh, convex_parts
from pam_aug.rollouts.grasp_starts import Start, find_starts, given_start
from pam_aug.rollouts.label import pose_hand
from pam_aug.rollouts.scene import Mesh
from pam_aug.rollouts.sim_control import Failed, Motion, carry_out, settle
from pam_aug.rollouts.sim_hand import SimHand, make_sim_hand
from pam_aug.rollouts.sim_object import SimObject, make_sim_object
from pam_aug.rollouts.sim_scene import FPS, GRAVITY, World, load_mujoco, make_world
from pam_aug.seeds import derived_seed

__all__ = ["PARAMETERS", "TRIES", "Attempt", "GivenGrasp", "Prepared", "Rollout", "prepare", "simulate", "to_archive"]

PARAMETERS: Final = 1
"""Number of the committed parameter set; it rises when a change of code or constants changes rollouts."""

TRIES: Final = 8
"""Grasps that a seed may try."""

_MOVED_M: Final = 0.03
_TURNED: Final = 0.97
_TARGET_M: Final = 0.08
_TARGET_RAD: Final = 0.35
_MIRROR: Final = np.array([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Prepared:
    """A mesh made ready once for all its seeds: parts, compiled world, and the poses in which it comes to rest.

    For a left hand all but `mesh` is mirrored.
    """

    mesh: Mesh
    side: Side
    hand: SimHand
    thing: SimObject
    world: World
    rest_poses: tuple[Float[np.ndarray, "4 4"], ...]


@dataclass(frozen=True, eq=False)
class GivenGrasp:
    """A grasp from elsewhere: object and wrist in a world with z up and the table at 0, and an absolute hand pose."""

    T_world_obj: Float[np.ndarray, "4 4"]
    T_world_wrist: Float[np.ndarray, "4 4"]
    hand_pose: Float[np.ndarray, "45"]


@dataclass(frozen=True)
class Attempt:
    """One grasp that was tried. `reason` is "" for success, else missed, pushed, slipped, dropped or unstable."""

    reason: str
    text: str
    width_mm: float


@dataclass(frozen=True, eq=False)
class Rollout:
    """What a seed came to: the motion and its start where it succeeded, else None; every attempt, in order."""

    seed: int
    motion: Motion | None
    attempts: tuple[Attempt, ...] = field(default=())

    @property
    def success(self) -> bool:
        """Whether some grasp lifted the object and held it."""
        return self.motion is not None

    @property
    def reason(self) -> str:
        """ "" for success, else the last attempt's reason, or no_start where the mesh offers no grasp."""
        return "" if self.success else (self.attempts[-1].reason if self.attempts else "no_start")


def prepare(
    mesh: Mesh,
    mass_kg: float | None = None,
    cache_dir: str | None = None,
    *,
    side: Side = "right",
    betas: Float[np.ndarray, "10"] | None = None,
) -> Prepared:
    """Split, weigh, compile and settle an object, for a hand of a side and shape (the mean shape by default).

    Raises SourceError for a mesh that cannot be simulated (no volume, wrong unit, too many faces), naming what to do;
    AssetMissing where MuJoCo or CoACD is missing.
    """
    load_mujoco()
    if mass_kg is not None and not 0.001 <= mass_kg <= 20.0:
        raise SourceError(f"{mesh.name}: a mass of {mass_kg:g} kg; give kilograms between 0.001 and 20")
    try:
        check_mesh(mesh.vertices_m, mesh.faces)
        parts = convex_parts(mesh.vertices_m, mesh.faces, cache_dir)
        thing = make_sim_object(parts if side == "right" else [_mirrored_part(p) for p in parts], mass_kg)
    except SourceError as error:
        raise SourceError(f"{mesh.name}: {error}", mesh=mesh.name) from error
    hand = make_sim_hand(load_open_hand("right"), betas)
    world = make_world(hand, thing)
    poses = []
    for pose in thing.rest_poses:
        settled = settle(world, pose.T_world_obj)
        moved = float(np.linalg.norm(settled[:3, 3] - pose.T_world_obj[:3, 3]))
        if moved < _MOVED_M and settled[2, :3] @ pose.T_world_obj[2, :3] > _TURNED:
            poses.append(settled)
    if not poses:  # it rolls: it is grasped where it first touches the table
        poses.append(thing.rest_poses[0].T_world_obj)
    return Prepared(mesh, side, hand, thing, world, tuple(poses))


def simulate(
    ready: Prepared,
    seed: int,
    *,
    tries: int = TRIES,
    grasp: GivenGrasp | None = None,
    T_world_target: Float[np.ndarray, "4 4"] | None = None,
) -> Rollout:
    """Try grasps until one lifts the object, holds it and brings it to its target.

    A given `grasp` is the only one tried. Without a target the object is set down within 8 cm of where it stood.
    """
    left = ready.side == "left"
    rng = np.random.default_rng(derived_seed("rollout", ready.mesh.sha256, seed, *(("left",) if left else ())))
    if left and grasp is not None:
        pose = _mirrored_turns(grasp.hand_pose)
        grasp = GivenGrasp(_mirrored(grasp.T_world_obj), _mirrored(grasp.T_world_wrist), pose)
    if left and T_world_target is not None:
        T_world_target = _mirrored(T_world_target)
    if grasp is None:
        poses = [_turned(pose, rng.uniform(0, 2 * np.pi)) for pose in ready.rest_poses]
        starts: Sequence[Start] = find_starts(ready.hand, ready.thing, rng, poses, tries)
    else:
        starts = [given_start(ready.hand, grasp.T_world_obj, grasp.T_world_wrist, grasp.hand_pose)]
    attempts: list[Attempt] = []
    for start in starts:
        target = T_world_target if T_world_target is not None else _near(ready, start.T_world_obj, rng)
        try:
            motion = carry_out(ready.world, ready.hand, ready.thing, start, target)
        except Failed as failure:
            attempts.append(Attempt(failure.reason, str(failure), start.width_m * 1e3))
            continue
        attempts.append(Attempt("", "", start.width_m * 1e3))
        return Rollout(seed, motion, tuple(attempts))
    return Rollout(seed, None, tuple(attempts))


def to_archive(ready: Prepared, rollout: Rollout, object_mesh: str, scale: float = 1.0) -> RolloutArchive:
    """A successful rollout as an archive: exact labels of the open hand, forces on digits and palm, how it was made.

    `object_mesh` is the mesh file's path relative to the archive, `scale` takes its units to metres.
    """
    motion = rollout.motion
    if motion is None:
        raise SourceError(f"{ready.mesh.name}, seed {rollout.seed}: failed ({rollout.reason}), so it has no motion")
    hand, right = ready.hand, ready.side == "right"
    wrist, object_pose = np.stack(motion.T_world_wrist), np.stack(motion.T_world_obj)
    pose = hand.hand_pose(np.stack(motion.angles_rad))
    if not right:
        wrist, object_pose, pose = _mirrored(wrist), _mirrored(object_pose), _mirrored_turns(pose)
    orient = matrix_to_axis_angle(wrist[:, :3, :3])
    layer = HandLayer(hand.assets if right else load_open_hand("left"), dtype=torch.float64)
    betas = hand.betas
    first = hand.joints_m[0] if right else hand.joints_m[0] * _MIRROR[:3]
    joints = [pose_hand(layer, o, p, betas, w - first)[1] for o, p, w in zip(orient, pose, wrist[:, :3, 3])]
    force = np.stack(motion.force_n)
    frames = len(pose)
    return RolloutArchive(
        source=f"pam_aug simulation, MuJoCo {_version()}",
        licence="as the mesh's",
        provenance=json.dumps(_provenance(ready, rollout), sort_keys=True),
        fps=float(FPS),
        length_unit="m",
        up_axis="z",
        gravity=np.array([0.0, 0.0, -GRAVITY]),
        table_height=0.0,
        hand_side=(ready.side,),
        hand_rot_repr="axis_angle",
        hand_flat_mean=True,
        hand_finger_order="mano",
        hand_pca=0,
        hand_transl_type="wrist",
        hand_global_orient=orient[:, None],
        hand_pose=pose[:, None],
        hand_transl=wrist[:, None, :3, 3],
        hand_betas=betas[None],
        hand_valid=np.ones((frames, 1), bool),
        hand_joints3d=np.stack(joints)[:, None],
        object_id=(ready.mesh.name,),
        object_mesh=(object_mesh,),
        object_scale=np.array([scale]),
        object_pose=object_pose[:, None],
        contact=(force > 0.0)[:, None],
        contact_force=force[:, None],
        success=True,
        group_id=ready.mesh.name,
    )


def _provenance(ready: Prepared, rollout: Rollout) -> dict[str, Any]:
    phases = rollout.motion.phase if rollout.motion else []
    off_mm = 1e3 * rollout.motion.set_down_off_m if rollout.motion else -1.0
    return {
        "simulator": f"MuJoCo {_version()}",
        "policy": "opposed grasp, lift, carry, set down",
        "parameters": PARAMETERS,
        "seed": rollout.seed,
        "mesh_sha256": ready.mesh.sha256,
        "mass_kg": ready.thing.mass_kg,
        "parts": len(ready.thing.parts),
        "attempts": [a.reason or "success" for a in rollout.attempts],
        "grasp_width_mm": round(rollout.attempts[-1].width_mm, 3) if rollout.attempts else -1.0,
        "set_down_off_mm": round(off_mm, 3),
        "phase_first_frame": {name: phases.index(name) for name in dict.fromkeys(phases)},
    }


def _version() -> str:
    return str(load_mujoco().__version__)


def _turned(T_world_obj: np.ndarray, angle: float) -> np.ndarray:
    """A pose turned about the vertical through the world's origin, over which the object's centre of mass stands."""
    turn = rigid_matrix(_about_z(angle), np.zeros(3))
    return turn @ T_world_obj


def _near(ready: Prepared, T_world_obj: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A place on the table near by: moved by up to `_TARGET_M`, turned a little about the centre of mass."""
    centre = T_world_obj[:3, :3] @ ready.thing.centre_m + T_world_obj[:3, 3]
    turn = _about_z(rng.uniform(-_TARGET_RAD, _TARGET_RAD))
    way, far = rng.uniform(0, 2 * np.pi), _TARGET_M * np.sqrt(rng.uniform())
    moved = centre + far * np.array([np.cos(way), np.sin(way), 0.0])
    return rigid_matrix(turn @ T_world_obj[:3, :3], moved + turn @ (T_world_obj[:3, 3] - centre))


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _mirrored(T: Float[np.ndarray, "*b 4 4"]) -> Float[np.ndarray, "*b 4 4"]:
    """The pose in a world and a body that are both mirrored in x."""
    return T * (_MIRROR[:, None] * _MIRROR)


def _mirrored_turns(pose: Float[np.ndarray, "*b 45"]) -> Float[np.ndarray, "*b 45"]:
    """The pose of the mirrored hand."""
    rows = torch.from_numpy(np.ascontiguousarray(pose).reshape(-1, 45))
    nothing = torch.zeros(len(rows), 3, dtype=rows.dtype)
    return mirror_params(nothing, rows, nothing)[1].numpy().reshape(pose.shape)


def _mirrored_part(part: ConvexPart) -> ConvexPart:
    verts, faces = part
    return verts * _MIRROR[:3], np.ascontiguousarray(faces[:, ::-1])
