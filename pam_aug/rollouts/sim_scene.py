"""The simulated world: a table, an object of convex parts, and the hand, as one MuJoCo model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pam_aug.errors import AssetMissing
from pam_aug.hand import MANO_PARENTS
from pam_aug.rollouts.sim_hand import Capsule, SimHand
from pam_aug.rollouts.sim_object import SimObject

__all__ = ["FPS", "GRAVITY", "STEPS_PER_FRAME", "World", "load_mujoco", "make_world"]

GRAVITY: Final = 9.81
FPS: Final = 30
STEPS_PER_FRAME: Final = 16
_TIMESTEP_S: Final = 1.0 / (FPS * STEPS_PER_FRAME)

# Skin on most things; torsion as a fingertip's contact patch of about 1 cm resists it.
_FRICTION: Final = "1.0 0.008 0.0002"
_TABLE_FRICTION: Final = "0.6 0.005 0.0002"
# Per hinge from base to tip: stiffness N m/rad and the most a muscle gives, N m.
_STIFFNESS: Final = {"thumb": (6.0, 6.0, 6.0, 4.0, 2.5), "finger": (5.0, 5.0, 3.0, 1.6)}
_STRENGTH: Final = {"thumb": (3.5, 3.5, 3.5, 2.5, 1.5), "finger": (2.5, 2.5, 1.6, 0.8)}
_PALM_KG, _LINK_KG = 0.45, 0.025

# Collision classes: hand 1, object 2, table 4, thumb against fingers 8.
_HAND: Final = 'contype="1" conaffinity="6"'
_THUMB: Final = 'contype="9" conaffinity="6"'
_FINGER: Final = 'contype="1" conaffinity="14"'


@dataclass(frozen=True, eq=False)
class World:
    """A compiled model and where things are in it.

    `digit_of_geom` is 0 to 4 for a digit's capsules, 5 the palm's, -1 what is no hand; `link_of_geom` the MANO joint.
    """

    model: Any
    object_body: int
    hand_body: int
    object_qpos: slice
    object_dofs: slice
    hand_qpos: slice
    hinge_qpos: np.ndarray
    stiffness: np.ndarray
    object_geoms: frozenset[int]
    table_geom: int
    digit_of_geom: np.ndarray
    link_of_geom: np.ndarray


def load_mujoco() -> Any:
    """The engine. Raises AssetMissing, with what to install, where it is not."""
    try:
        import mujoco
    except ImportError as error:
        raise AssetMissing("simulation needs MuJoCo: pip install 'pam_aug[sim]'", package="mujoco") from error
    return mujoco


def make_world(hand: SimHand, thing: SimObject) -> World:
    """The compiled world of a hand and an object."""
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string(_xml(hand, thing))

    def geom(name: str) -> int:
        return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name)

    digit = np.full(model.ngeom, -1)
    link = np.full(model.ngeom, -1)
    for i, capsule in enumerate(hand.capsules):
        digit[geom(f"skin{i}")], link[geom(f"skin{i}")] = capsule.digit, capsule.joint
    hinges = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, f"hinge{i}") for i in range(len(hand.dofs))]
    return World(
        model=model,
        object_body=mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "object"),
        hand_body=mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "joint0"),
        object_qpos=slice(0, 7),
        object_dofs=slice(0, 6),
        hand_qpos=slice(7, 14),
        hinge_qpos=np.array(model.jnt_qposadr[hinges]),
        stiffness=np.array([kp for kp, _ in _drives(hand)]),
        object_geoms=frozenset(geom(f"part{i}") for i in range(len(thing.parts))),
        table_geom=geom("table"),
        digit_of_geom=digit,
        link_of_geom=link,
    )


def _xml(hand: SimHand, thing: SimObject) -> str:
    density = thing.mass_kg / _volume(thing)
    meshes = "".join(
        f'<mesh name="part{i}" vertex="{_text(verts.ravel())}"/>' for i, (verts, _) in enumerate(thing.parts)
    )
    parts = "".join(
        f'<geom name="part{i}" type="mesh" mesh="part{i}" density="{density!r}" contype="2" conaffinity="5" '
        f'friction="{_FRICTION}" condim="4"/>'
        for i in range(len(thing.parts))
    )
    actuators = "".join(
        f'<position joint="hinge{i}" kp="{kp}" kv="{0.05 * kp}" forcerange="-{strength} {strength}" ctrlrange="-4 4"/>'
        for i, (kp, strength) in enumerate(_drives(hand))
    )
    return f"""
<mujoco model="grasp">
  <compiler angle="radian" autolimits="true" balanceinertia="true"/>
  <option timestep="{_TIMESTEP_S!r}" gravity="0 0 -{GRAVITY}" integrator="implicitfast" cone="elliptic" impratio="10"
    iterations="30" noslip_iterations="3"/>
  <size memory="64M"/>
  <default>
    <geom solref="0.008 1" solimp="0.95 0.99 0.001 0.5 2"/>
    <joint damping="0.03" armature="0.0008"/>
  </default>
  <asset>{meshes}</asset>
  <worldbody>
    <geom name="table" type="plane" size="2 2 0.1" contype="4" conaffinity="3" friction="{_TABLE_FRICTION}"
      condim="6"/>
    <body name="target" mocap="true"/>
    <body name="object"><freejoint/>{parts}</body>
    {_body(hand, 0)}
  </worldbody>
  <equality><weld body1="target" body2="joint0" solref="0.012 1" solimp="0.98 0.995 0.001 0.5 2"/></equality>
  <actuator>{actuators}</actuator>
</mujoco>"""


def _volume(thing: SimObject) -> float:
    return float(sum(np.einsum("fi,fi->", v[f[:, 0]], np.cross(v[f[:, 1]], v[f[:, 2]])) for v, f in thing.parts) / 6.0)


def _body(hand: SimHand, k: int) -> str:
    """The body of MANO joint k with all that hangs on it; its origin is the joint, its axes the rest frame's."""
    parent = MANO_PARENTS[k]
    at = hand.joints_m[k] - hand.joints_m[parent] if k else np.zeros(3)
    hinges = "".join(
        f'<joint name="hinge{i}" axis="{_text(d.axis)}" range="{d.low_rad!r} {d.high_rad!r}"/>'
        for i, d in enumerate(hand.dofs)
        if d.joint == k
    )
    mine = [(i, c) for i, c in enumerate(hand.capsules) if c.joint == k]
    mass = (_LINK_KG if k else _PALM_KG) / len(mine)
    skin = "".join(_capsule(i, c, hand.joints_m[k], mass) for i, c in mine)
    inner = "".join(_body(hand, child) for child in range(1, 16) if MANO_PARENTS[child] == k)
    joint = "<freejoint/>" if k == 0 else hinges
    return f'<body name="joint{k}" pos="{_text(at)}" gravcomp="1">{joint}{skin}{inner}</body>'


def _capsule(i: int, c: Capsule, origin: np.ndarray, mass: float) -> str:
    # The thumb's first bone and the palm would jam against fingers that bend over them: skin gives way there.
    kind = _HAND if c.digit == 5 or c.joint == 13 else _THUMB if c.digit == 0 else _FINGER
    ends = np.concatenate([c.start_m - origin, c.end_m - origin])
    return (
        f'<geom name="skin{i}" type="capsule" fromto="{_text(ends)}" size="{c.radius_m!r}" mass="{mass!r}" {kind} '
        f'friction="{_FRICTION}" condim="4"/>'
    )


def _drives(hand: SimHand) -> list[tuple[float, float]]:
    drives = []
    for name_row, dof in enumerate(hand.dofs):
        kind = "thumb" if dof.digit == 0 else "finger"
        place = [i for i, d in enumerate(hand.dofs) if d.digit == dof.digit].index(name_row)
        drives.append((_STIFFNESS[kind][place], _STRENGTH[kind][place]))
    return drives


def _text(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in values)
