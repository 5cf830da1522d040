"""One grasp carried out: approach, close until contact, squeeze, lift, hold, carry, set down, let go, retreat.

The wrist follows a moving frame through a weld, so it gives a little under load. Each hinge closes until its bone, or
one beyond it, touches; then all digits press with torques that make a wanted force at the pads. Forces act through the
hinges' springs, so the grip is an equilibrium and does not push the object out of the hand.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from pam_aug.geometry import matrix_to_quaternion, quaternion_to_matrix, rigid_matrix
from pam_aug.rollouts.grasp_starts import Start, thumb_closing
from pam_aug.rollouts.sim_hand import DIGITS, SimHand
from pam_aug.rollouts.sim_object import SimObject
from pam_aug.rollouts.sim_scene import FPS, GRAVITY, STEPS_PER_FRAME, World, load_mujoco

__all__ = ["HELD_S", "LIFTED_M", "Failed", "Motion", "carry_out", "settle"]

LIFTED_M: Final = 0.05
HELD_S: Final = 0.5
"""A grasp has succeeded when the object stays `LIFTED_M` above where it stood for `HELD_S`."""

_SUBSTEPS: Final = 4  # between two looks at the contacts; 8 ms
_RETREAT_M: Final = 0.10
_LIFT_M: Final = 0.12
_TIMES_S: Final = {"approach": 0.8, "close": 1.0, "squeeze": 0.3, "lift": 0.9, "hold": 0.7, "carry": 0.8, "lower": 0.9}
_RELEASE_S, _LEAVE_S = 0.45, 0.7
_TOUCH_N: Final = 0.15
_FINGER_SPEED: Final = (1.1, 0.0, 0.9, 0.5)  # rad/s of base, spread, middle and end
_THUMB_SPEED: Final = 1.1
_BEYOND_RAD: Final = 0.7  # how far past the shape that should touch a digit closes in search of the object
_GRIP_SHARE: Final = 2.5  # of the object's weight, on each side
_GRIP_N: Final = (5.0, 40.0)
_FINGER_ARM_M: Final = (0.07, 0.0, 0.042, 0.018)
_PUSHED_M: Final = 0.05


class Failed(Exception):
    """A grasp that did not come about; `reason` is one word, the message says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(eq=False)
class Motion:
    """What was recorded, a row per frame at `FPS`: hinge angles, wrist, object, and the force on each digit and palm.

    `force_n` (T,6) is the sum of normal forces between thumb to little finger, then palm, and the object, newtons;
    `set_down_off_m` how far from its target the object stands in the end.
    """

    angles_rad: list[np.ndarray] = field(default_factory=list)
    T_world_wrist: list[np.ndarray] = field(default_factory=list)
    T_world_obj: list[np.ndarray] = field(default_factory=list)
    force_n: list[np.ndarray] = field(default_factory=list)
    phase: list[str] = field(default_factory=list)
    set_down_off_m: float = 0.0


def settle(world: World, T_world_obj: Float[np.ndarray, "4 4"], seconds: float = 0.6) -> Float[np.ndarray, "4 4"]:
    """Where the object comes to rest when it is left at a pose, the hand far away."""
    mujoco = load_mujoco()
    data = mujoco.MjData(world.model)
    away = np.eye(4)
    away[:3, 3] = [0.0, 0.0, 1.5]
    _set(world, data, T_world_obj, away, np.zeros(len(world.hinge_qpos)))
    mujoco.mj_step(world.model, data, int(seconds * FPS * STEPS_PER_FRAME))
    return _object(world, data)


def carry_out(
    world: World,
    hand: SimHand,
    thing: SimObject,
    start: Start,
    T_world_target: Float[np.ndarray, "4 4"],
    retreat_m: float = _RETREAT_M,
) -> Motion:
    """The recorded motion of a grasp that lifts the object, brings it to `T_world_target` and lets go.

    Raises Failed with one of the reasons missed, pushed, slipped, dropped, unstable.
    """
    run = _Run(world, hand, thing, start, retreat_m)
    run.approach()
    run.close()
    run.squeeze()
    run.lift()
    run.bring(T_world_target)
    run.leave()
    off = run.motion.T_world_obj[-1][:3, 3] - T_world_target[:3, 3]
    run.motion.set_down_off_m = float(np.linalg.norm(off))
    return run.motion


class _Run:
    def __init__(self, world: World, hand: SimHand, thing: SimObject, start: Start, retreat_m: float) -> None:
        self.mujoco = load_mujoco()
        self.world, self.hand, self.thing, self.start = world, hand, thing, start
        self.data: Any = self.mujoco.MjData(world.model)
        self.retreat_m = retreat_m
        self.motion = Motion()
        # The engine's wrist body stands at the wrist joint; starts speak of the model's origin.
        self.wrist = start.T_world_hand.copy()
        self.wrist[:3, 3] += start.T_world_hand[:3, :3] @ hand.joints_m[0]
        before = self.wrist.copy()
        before[:3, 3] -= retreat_m * start.approach
        self.target = start.open_rad.copy()
        self.forces = np.zeros(6)
        self.touched = np.zeros(16, bool)
        self.count = 0
        self.phase = "approach"
        _set(world, self.data, start.T_world_obj, before, start.open_rad)
        self.first_height = float(self._centre()[2])

    # --- phases ----------------------------------------------------------------------------------------------------

    def approach(self) -> None:
        """Come in a straight line; stop where the palm meets the object."""
        begin, end = self._mocap(), self.wrist
        for share in _ticks(_TIMES_S["approach"]):
            if self.forces[5] > _TOUCH_N:
                break
            self._move(begin, end, share)
            self._step()
        self._check_pushed("the approaching hand")

    def close(self) -> None:
        """Close each hinge until its bone or one beyond it touches."""
        self.phase = "close"
        tick = _SUBSTEPS / (FPS * STEPS_PER_FRAME)
        speed = np.zeros(len(self.hand.dofs))
        for name in DIGITS[1:]:
            speed[self.hand.rows(name)] = _FINGER_SPEED
        thumb = self.hand.rows("thumb")
        speed[thumb] = _THUMB_SPEED * thumb_closing(self.hand, self.start.contact_rad)
        limits = self.hand.limits_rad
        furthest = self.start.contact_rad + _BEYOND_RAD * np.sign(speed)
        blocked = np.zeros(len(speed), bool)
        touching = np.zeros(5, bool)
        for _ in _ticks(_TIMES_S["close"]):
            for i, dof in enumerate(self.hand.dofs):
                if not blocked[i] and self.touched[dof.joint : _last(dof.joint) + 1].any():
                    blocked[i] = True
                    self.target[i] = self._angles()[i]
            for d in range(5):
                touching[d] |= bool(self.forces[d] > _TOUCH_N)
            go = ~blocked & (np.abs(self.target - self.start.open_rad) <= np.abs(furthest - self.start.open_rad))
            self.target = np.clip(self.target + np.where(go, speed * tick, 0.0), *limits.T)
            self._step()
            if not go.any() or (touching[0] and touching[1:4].all()):
                break
        self._check_pushed("the closing fingers")
        if not (touching[0] or touching[5:].any()) or not touching[1:].any():
            missing = "thumb" if touching[1:].any() else "fingers"
            raise Failed("missed", f"the {missing} met nothing when the hand closed")

    def squeeze(self) -> None:
        """Press from both sides with a force that the object's weight decides."""
        self.phase = "squeeze"
        grip = float(np.clip(_GRIP_SHARE * self.thing.mass_kg * GRAVITY, *_GRIP_N))
        press = self._press(grip)
        begin = self._angles()
        for share in _ticks(_TIMES_S["squeeze"]):
            # A digit may be pressed past its limit: the limit is where the hinge stops, not where the muscle does.
            self.target = begin + share * press
            self._step()
        if self.forces[0] < _TOUCH_N or self.forces[1:5].max() < _TOUCH_N:
            raise Failed("missed", "thumb and fingers do not press on opposite sides")

    def lift(self) -> None:
        """Straight up, then hold; the object must stay lifted for `HELD_S`."""
        self.phase = "lift"
        begin = self._mocap()
        end = begin.copy()
        end[2, 3] += _LIFT_M
        for share in _ticks(_TIMES_S["lift"]):
            self._move(begin, end, share)
            self._step()
            if self._mocap()[2, 3] - begin[2, 3] > LIFTED_M and self._rise() < 0.01:
                raise Failed("slipped", "the object stayed behind when the hand rose")
        self.phase = "hold"
        for _ in _ticks(_TIMES_S["hold"]):
            self._step()
            if self._rise() < LIFTED_M:
                raise Failed("dropped", f"the object sank to {self._rise() * 100:.1f} cm before {HELD_S} s had passed")

    def bring(self, T_world_target: np.ndarray) -> None:
        """Carry the object over its target, then lower it until the table bears it."""
        self.phase = "carry"
        above = T_world_target.copy()
        above[2, 3] += _LIFT_M
        begin = self._mocap()
        end = above @ np.linalg.inv(_object(self.world, self.data)) @ begin
        for share in _ticks(_TIMES_S["carry"]):
            self._move(begin, end, share)
            self._step()
            if self._rise() < 0.5 * LIFTED_M:
                raise Failed("dropped", "the object fell while it was carried")
        self.phase = "lower"
        begin = self._mocap()
        end = begin.copy()
        end[2, 3] += T_world_target[2, 3] - _object(self.world, self.data)[2, 3] - 0.002
        for share in _ticks(_TIMES_S["lower"]):
            if share > 0.6 and self._borne():
                break
            self._move(begin, end, share)
            self._step()

    def leave(self) -> None:
        """Open, and go back the way that the hand came."""
        self.phase = "release"
        begin = self._angles()
        for share in _ticks(_RELEASE_S):
            self.target = begin + share * (self.start.open_rad - begin)
            self._step()
        self.phase = "leave"
        here = self._mocap()
        # Up first where the hand came from below the horizontal: the way back follows the hand's own approach.
        turn = here[:3, :3] @ self.wrist[:3, :3].T
        end = here.copy()
        end[:3, 3] -= self.retreat_m * (turn @ self.start.approach)
        for share in _ticks(_LEAVE_S):
            self._move(here, end, share)
            self._step()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _press(self, grip: float) -> np.ndarray:
        """Target offsets, radians, whose spring torques press with `grip` newtons on each side."""
        angles = self._angles()
        torque = np.zeros(len(angles))
        active = [d for d in range(1, 5) if self.forces[d] > _TOUCH_N] or [1, 2]
        for d in active:
            torque[self.hand.rows(DIGITS[d])] = np.array(_FINGER_ARM_M) * grip / len(active)
        rows = self.hand.rows("thumb")
        way = thumb_closing(self.hand, angles)
        shapes = np.stack([angles, angles])
        shapes[1, rows] += 1e-4 * way
        points, _ = self.hand.pads(shapes)
        line = points[0, active].mean(0) - points[0, 0]
        line = line / max(float(np.linalg.norm(line)), 1e-9)
        # way is the gradient scaled to largest 1: its true size is the pad's travel along the line over |way|^2.
        arm = float((points[1, 0] - points[0, 0]) @ line) / 1e-4 / float(way @ way)
        torque[rows] = grip * arm * way
        return torque / self.world.stiffness

    def _step(self) -> None:
        data, model = self.data, self.world.model
        data.ctrl[:] = self.target
        for _ in range(_SUBSTEPS):
            if self.count % STEPS_PER_FRAME == 0:
                self._record()
            self.mujoco.mj_step(model, data)
            self.count += 1
        if not np.isfinite(data.qpos).all() or np.abs(data.qvel[self.world.object_dofs]).max() > 50.0:
            raise Failed("unstable", "the simulation became unstable")
        self._feel()

    def _feel(self) -> None:
        data, world = self.data, self.world
        self.forces = np.zeros(6)
        self.touched = np.zeros(16, bool)
        if not data.ncon:
            return
        geoms = np.asarray(data.contact.geom)
        rows = np.asarray(data.contact.efc_address)
        digits = world.digit_of_geom[geoms]
        ours = (digits >= 0).any(1) & np.isin(geoms, list(world.object_geoms)).any(1) & (rows >= 0)
        if not ours.any():
            return
        force = np.asarray(data.efc_force)[rows[ours]]
        np.add.at(self.forces, digits[ours].max(1), force)
        self.touched[world.link_of_geom[geoms[ours]].max(1)[force > 0.5 * _TOUCH_N]] = True

    def _borne(self) -> bool:
        """Whether the table carries the object."""
        geoms = np.asarray(self.data.contact.geom)
        return bool(
            len(geoms)
            and ((geoms == self.world.table_geom).any(1) & np.isin(geoms, list(self.world.object_geoms)).any(1)).any()
        )

    def _record(self) -> None:
        data, world, motion = self.data, self.world, self.motion
        motion.angles_rad.append(self._angles())
        motion.T_world_wrist.append(_pose(data.qpos[world.hand_qpos]))
        motion.T_world_obj.append(_object(world, data))
        motion.force_n.append(self.forces.copy())
        motion.phase.append(self.phase)

    def _angles(self) -> np.ndarray:
        return np.array(self.data.qpos[self.world.hinge_qpos])

    def _mocap(self) -> np.ndarray:
        return rigid_matrix(quaternion_to_matrix(np.array(self.data.mocap_quat[0])), np.array(self.data.mocap_pos[0]))

    def _move(self, begin: np.ndarray, end: np.ndarray, share: float) -> None:
        """The wrist's frame a share of the way between two, at rest at both ends (least jerk: Flash and Hogan 1985)."""
        s = share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
        a, b = matrix_to_quaternion(begin[:3, :3]), matrix_to_quaternion(end[:3, :3])
        b = b if a @ b >= 0 else -b
        half = np.arccos(np.clip(a @ b, -1.0, 1.0))
        q = a + s * (b - a) if half < 1e-6 else (np.sin((1 - s) * half) * a + np.sin(s * half) * b) / np.sin(half)
        self.data.mocap_pos[0] = begin[:3, 3] + s * (end[:3, 3] - begin[:3, 3])
        self.data.mocap_quat[0] = q / np.linalg.norm(q)

    def _centre(self) -> np.ndarray:
        T = _object(self.world, self.data)
        return T[:3, :3] @ self.thing.centre_m + T[:3, 3]

    def _rise(self) -> float:
        return float(self._centre()[2]) - self.first_height

    def _check_pushed(self, what: str) -> None:
        T = self.start.T_world_obj
        moved = np.linalg.norm(self._centre() - (T[:3, :3] @ self.thing.centre_m + T[:3, 3]))
        if moved > _PUSHED_M:
            raise Failed("pushed", f"{what} pushed the object {moved * 100:.0f} cm away")


def _ticks(seconds: float) -> np.ndarray:
    """Shares 0 to 1 of a phase, one per look at the contacts."""
    return np.linspace(0.0, 1.0, max(2, round(seconds * FPS * STEPS_PER_FRAME / _SUBSTEPS)))


def _last(joint: int) -> int:
    """The last joint of the digit that has this one."""
    return joint + 2 - (joint - 1) % 3


def _set(world: World, data: Any, T_world_obj: np.ndarray, T_world_wrist: np.ndarray, angles_rad: np.ndarray) -> None:
    mujoco = load_mujoco()
    data.qpos[world.object_qpos] = _qpos(T_world_obj)
    data.qpos[world.hand_qpos] = _qpos(T_world_wrist)
    data.mocap_pos[0], data.mocap_quat[0] = T_world_wrist[:3, 3], matrix_to_quaternion(T_world_wrist[:3, :3])
    data.qpos[world.hinge_qpos] = angles_rad
    data.ctrl[:] = angles_rad
    mujoco.mj_forward(world.model, data)


def _qpos(T: np.ndarray) -> np.ndarray:
    return np.concatenate([T[:3, 3], matrix_to_quaternion(T[:3, :3])])


def _pose(qpos: np.ndarray) -> np.ndarray:
    q = np.array(qpos[3:7])
    return rigid_matrix(quaternion_to_matrix(q / np.linalg.norm(q)), np.array(qpos[:3]))


def _object(world: World, data: Any) -> np.ndarray:
    return _pose(data.qpos[world.object_qpos])
