"""Whether a frozen hand holds an object: 200 ms of rigid-body simulation, and how far the object gets.

DeepSimHO's test (Wang et al., NeurIPS 2023): the hand stands still, the object is free, an adhesive force stands for
the grip, and after 100 steps of 2 ms the object's displacement is the measure. Free fall alone is
9.8 · dt² · n (n + 1) / 2 = 0.19796 m. Its release gives the hand 1000 N, weighs the object twice and pulls one way;
with that, a flat hand against one side of a box holds it. `GRIP` asks for what a grasp is for: 10 N, one mass, gravity
along all six axes of the object, and it stops at the first that the object falls in.

An object is compiled once, in its own frame, where it stays whatever the camera does; the next grasp moves the hand's
capsules in place. The engine's contacts depend on its version, so every result names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from pam_aug.errors import AssetMissing, ConfigError, SourceError
from pam_aug.geometry import invert_rigid, transform_points
from pam_aug.rollouts.convex_parts import ConvexPart
from pam_aug.rollouts.hand_bodies import CAPSULES_PER_HAND, Capsules
from pam_aug.rollouts.object_masses import WATER_KG_M3
from pam_aug.rollouts.physics import SR_THRESHOLD_M

__all__ = [
    "DEEPSIMHO",
    "GRAVITY_M_S2",
    "GRIP",
    "PRESETS",
    "SIX_DIRECTIONS",
    "ObjectModel",
    "Preset",
    "Stability",
    "engine_version",
    "preset_named",
]

GRAVITY_M_S2: Final = 9.8
"""DeepSimHO's value, so that the theory's 0.19796 m holds to the micrometre."""

SIX_DIRECTIONS: Final = np.concatenate([-np.eye(3), np.eye(3)])
"""Gravity along the object's own axes, so that the verdict does not depend on the camera or the world."""

_STEPS: Final = 100
_STEP_S: Final = 0.002
_CONDIM: Final = 6  # sliding, torsional and rolling friction, as released


@dataclass(frozen=True, slots=True)
class Preset:
    """What a hand may do to hold. `name` and the engine's version stand in every record.

    `grip_N` is the adhesive force of each hand in newtons, `hand` what stands for it, `visual_mass` whether the whole
    mesh weighs beside its parts, `six` whether gravity pulls along the object's six axes or once, along +y.
    """

    name: str
    grip_N: float
    hand: Literal["capsules", "hulls"]
    visual_mass: bool
    six: bool


GRIP: Final = Preset("grip", grip_N=10.0, hand="capsules", visual_mass=False, six=True)
DEEPSIMHO: Final = Preset("deepsimho", grip_N=1000.0, hand="hulls", visual_mass=True, six=False)
PRESETS: Final = {preset.name: preset for preset in (GRIP, DEEPSIMHO)}

CAMERA_DOWN: Final = np.array([0.0, 1.0, 0.0])
"""DeepSimHO's gravity on DexYCB: +y of the OpenCV camera, as if no camera were tilted."""


def preset_named(name: str) -> Preset:
    """The preset of a name. Raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"{name!r} is no physics preset: choose one of {', '.join(PRESETS)}", preset=name)
    return PRESETS[name]


class Stability(NamedTuple):
    """One grasp's result. `displacements_m` has one entry per direction that was simulated, in order."""

    preset: str
    engine: str
    displacements_m: tuple[float, ...]
    contacts: int  # the engine's, at the start

    @property
    def worst_m(self) -> float:
        return max(self.displacements_m)

    @property
    def stable(self) -> bool:
        return self.worst_m <= SR_THRESHOLD_M


def engine_version() -> str:
    """ "mujoco 4.0.0", for records. Raises AssetMissing where it is not installed."""
    return f"mujoco {_mujoco().__version__}"


class ObjectModel:
    """One object, compiled for a preset and a number of hands; hands are given anew for each grasp.

    `parts` are its convex parts and `mesh` its whole surface (weighed by `visual_mass` only), both in its frame. The
    parts weigh `mass_kg`, or `density_kg_m3` times their volume where that is negative.
    """

    def __init__(
        self,
        parts: Sequence[ConvexPart],
        preset: Preset = GRIP,
        mesh: ConvexPart | None = None,
        *,
        mass_kg: float = -1.0,
        density_kg_m3: float = WATER_KG_M3,
    ) -> None:
        if mass_kg == 0.0 or density_kg_m3 <= 0.0 or not np.isfinite([mass_kg, density_kg_m3]).all():
            raise ConfigError(f"{mass_kg} kg at {density_kg_m3} kg/m3 cannot be simulated; both must be above 0")
        if preset.visual_mass and mesh is None:
            raise ConfigError(f"preset {preset.name} weighs the whole mesh as well: give the mesh")
        self.preset = preset
        volume = sum(_volume(verts, faces) for verts, faces in parts)
        self._density = density_kg_m3 if mass_kg < 0 else mass_kg / volume
        self._parts, self._mesh = list(parts), mesh
        self._compiled: dict[int, tuple[Any, Any]] = {}

    @property
    def mass_kg(self) -> float:
        """What the engine weighs, the visual mesh included."""
        model, _ = self._with_capsules(1)
        return float(model.body_mass[1])

    def hold(
        self,
        hands: Sequence[Capsules | Sequence[ConvexPart]],
        T_frame_obj: Float[np.ndarray, "4 4"],
        directions: Float[np.ndarray, "d 3"] | None = None,
        stop: bool = True,
    ) -> Stability:
        """Simulate a grasp: `hands` stand in the frame in which `T_frame_obj` places the object.

        `directions` are unit vectors of gravity: in the object's frame for a preset with `six` (the six axes by
        default), in the given frame otherwise (+y by default). With `stop`, the first failure is the last simulated. An
        object that the engine loses counts as fallen 1 m.
        """
        T_obj_frame = invert_rigid(np.asarray(T_frame_obj, np.float64))
        if directions is None:
            directions = SIX_DIRECTIONS if self.preset.six else CAMERA_DOWN[None]
        if not self.preset.six:
            directions = directions @ T_obj_frame[:3, :3].T
        if all(isinstance(hand, Capsules) for hand in hands):
            model, data = self._with_capsules(len(hands))
            if hands:
                _place_capsules(model, [hand.moved(T_obj_frame) for hand in hands if isinstance(hand, Capsules)])
        else:
            hulls = [[(transform_points(T_obj_frame, v), f) for v, f in hand] for hand in hands]
            model, data = self._compile(hulls)
        moved: list[float] = []
        contacts = 0
        for direction in directions:
            displacement, touching = self._drop(model, data, np.asarray(direction, np.float64))
            contacts = contacts or touching
            moved.append(displacement)
            if stop and displacement > SR_THRESHOLD_M:
                break
        return Stability(self.preset.name, engine_version(), tuple(moved), contacts)

    def _drop(self, model: Any, data: Any, direction: np.ndarray) -> tuple[float, int]:
        mujoco = _mujoco()
        mujoco.mj_resetData(model, data)
        model.opt.gravity[:] = GRAVITY_M_S2 * direction
        data.ctrl[:] = self.preset.grip_N
        mujoco.mj_forward(model, data)
        contacts = int(data.ncon)
        # The release follows the mesh's origin; where that lies is the scan's accident, so others follow the mass.
        point = np.zeros(3) if self.preset.visual_mass else model.body_ipos[1]
        mujoco.mj_step(model, data, _STEPS)
        if not np.isfinite(data.qpos).all():
            return 1.0, contacts
        now = np.empty(3)
        mujoco.mju_rotVecQuat(now, point, data.qpos[3:7])
        return float(np.linalg.norm(now + data.qpos[:3] - point)), contacts

    def _with_capsules(self, hands: int) -> tuple[Any, Any]:
        if hands not in self._compiled:
            self._compiled[hands] = self._compile([None] * hands)
        return self._compiled[hands]

    def _compile(self, hands: Sequence[Sequence[ConvexPart] | None]) -> tuple[Any, Any]:
        """A model with a hand of the given hulls, or with unplaced capsules, for each entry."""
        mujoco = _mujoco()
        spec = mujoco.MjSpec()
        spec.option.timestep = _STEP_S
        # The tree over a body's geoms is made when compiling and knows nothing of capsules that are placed later. A
        # state that became NaN should stay one: resetting would report that nothing moved.
        spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE | mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        held = spec.worldbody.add_body(name="object")
        held.add_freejoint()
        for i, part in enumerate(self._parts):
            _add_mesh(spec, held, f"part{i}", part, condim=_CONDIM, density=self._density)
        if self.preset.visual_mass and self._mesh is not None:
            _add_mesh(spec, held, "visual", self._mesh, density=self._density, contype=0, conaffinity=0)
        for h, hulls in enumerate(hands):
            body = spec.worldbody.add_body(name=f"hand{h}")
            if hulls is None:
                for _ in range(CAPSULES_PER_HAND):
                    body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, size=[0.01, 0.01, 0.0])
            else:
                for i, hull in enumerate(hulls):
                    _add_mesh(spec, body, f"hand{h}_{i}", hull)
            grip = spec.add_actuator(
                name=f"grip{h}",
                trntype=mujoco.mjtTrn.mjTRN_BODY,
                target=f"hand{h}",
                ctrlrange=[0.0, max(self.preset.grip_N, 1.0)],
            )
            grip.set_to_adhesion(gain=1.0)
        try:
            model = spec.compile()
        except ValueError as error:
            raise SourceError(f"MuJoCo refuses the object: {error}; give a solid, closed mesh") from error
        return model, mujoco.MjData(model)


def _add_mesh(spec: Any, body: Any, name: str, part: ConvexPart, **geom: Any) -> None:
    verts, faces = part
    spec.add_mesh(name=name, uservert=np.ravel(verts).tolist(), userface=np.ravel(faces).tolist())
    body.add_geom(type=_mujoco().mjtGeom.mjGEOM_MESH, meshname=name, **geom)


def _place_capsules(model: Any, hands: Sequence[Capsules]) -> None:
    """The hands' capsules, in the object's frame, put in place of those of the last grasp."""
    starts, ends = (np.concatenate([hand[i] for hand in hands]) for i in (0, 1))
    radii = np.concatenate([hand.radii_m for hand in hands])
    half = np.linalg.norm(ends - starts, axis=1) / 2.0
    axis = (ends - starts) / np.maximum(2.0 * half, 1e-12)[:, None]
    # The shortest turn from z to the axis, as a quaternion with w first; any turn by pi where the axis is -z.
    quat = np.stack([1.0 + axis[:, 2], -axis[:, 1], axis[:, 0], np.zeros(len(axis))], axis=1)
    length = np.linalg.norm(quat, axis=1)
    quat = np.where((length > 1e-6)[:, None], quat / np.maximum(length, 1e-12)[:, None], [0.0, 1.0, 0.0, 0.0])
    last = slice(model.ngeom - len(half), model.ngeom)
    model.geom_sameframe[last] = 0  # compiled at their body's origin, which the engine would go on to assume
    model.geom_pos[last] = (starts + ends) / 2.0
    model.geom_quat[last] = quat
    model.geom_size[last] = np.stack([radii, half, np.zeros_like(half)], axis=1)
    model.geom_rbound[last] = radii + half
    model.geom_aabb[last] = np.c_[np.zeros((len(half), 3)), radii, radii, radii + half]


def _volume(verts: np.ndarray, faces: np.ndarray) -> float:
    """Enclosed volume of a closed mesh, by the divergence theorem about its middle."""
    corners = (verts - verts.mean(0))[faces]
    return abs(float(np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum())) / 6.0


def _mujoco() -> Any:
    try:
        import mujoco
    except ImportError as error:
        raise AssetMissing(
            "physics is simulated by MuJoCo, which is not installed: pip install 'pam_aug[sim]'", package="mujoco"
        ) from error
    return mujoco
