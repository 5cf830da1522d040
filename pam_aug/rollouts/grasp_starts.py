"""Where a hand may begin to grasp an object, made from the object's surface alone.

A start opposes thumb and fingers across two surface points whose normals face away from each other (Nguyen,
"Constructing force-closure grasps", 1988: such a pair holds against any push within the friction cone). The hand may be
turned about the line between the points; turns that put it into the table or into the object are dropped. What is left
is ranked by how squarely the points oppose, how near the centre of mass is, and how many fingers find surface.
"""

import functools
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from pam_aug.rollouts.oppose import WIDTHS_M, Opposition, approach_to, oppositions
from pam_aug.rollouts.sim_hand import SimHand
from pam_aug.rollouts.sim_object import SimObject

__all__ = ["Start", "find_starts", "given_start", "open_angles", "thumb_closing"]

_PAIRS: Final = 60
_POSES: Final = 3  # of those in which the object rests, by chance: seeds differ, and a can's side counts once or twice
_ROUNDS: Final = 3  # other pairs are drawn where these gave too few starts
_TURNS: Final = 10
_CONE: Final = np.cos(np.radians(25))  # well inside skin's friction cone
_WIDTH_M: Final = (0.003, 0.105)
_OPENING_RAD: Final = {"base": 0.32, "middle": 0.12, "end": 0.05}
_TABLE_GAP_M: Final = 0.002
_CLEAR_M: Final = 0.0015
_TIP_M: Final = 0.016
_FROM_BELOW: Final = 0.3
_FOREARM_M: Final = np.array([0.06, 0.12, 0.2])
_FOREARM_RADIUS_M: Final = 0.03
_FINGER_ROW_M: Final = 0.02
_EASY_M: Final = 0.06  # wider things leave the digits less of their closing


class Start(NamedTuple):
    """A grasp to try. World: table at height 0, z up, the object at `T_world_obj`.

    `T_world_hand` takes the hand's rest frame (origin at the model's, not the wrist) to where the pads meet the points;
    `approach` is the unit direction in which the hand comes.
    """

    T_world_obj: Float[np.ndarray, "4 4"]
    T_world_hand: Float[np.ndarray, "4 4"]
    approach: Float[np.ndarray, "3"]
    open_rad: Float[np.ndarray, "n"]
    contact_rad: Float[np.ndarray, "n"]
    width_m: float
    score: float


def open_angles(hand: SimHand, contact_rad: Float[np.ndarray, "n"], share: float = 1.0) -> Float[np.ndarray, "n"]:
    """A hand shape opened: every digit turned back from where its pads would meet the object."""
    angles = contact_rad.copy()
    for name in ("index", "middle", "ring", "little"):
        rows = hand.rows(name)
        angles[rows[[0, 2, 3]]] -= share * np.array(list(_OPENING_RAD.values()))
    rows = hand.rows("thumb")
    angles[rows] -= share * 0.45 * thumb_closing(hand, contact_rad)
    return np.clip(angles, *hand.limits_rad.T)


def thumb_closing(hand: SimHand, angles_rad: Float[np.ndarray, "n"]) -> Float[np.ndarray, "5"]:
    """How the thumb's hinges turn to bring its pad straight to the fingers' pads; the largest turn is 1.

    Along the gradient (the transposed Jacobian), so torques in this proportion press along that line too.
    """
    rows = hand.rows("thumb")
    step = 1e-4
    shapes = np.repeat(angles_rad[None], len(rows) + 1, axis=0)
    shapes[np.arange(len(rows)) + 1, rows] += step
    points, _ = hand.pads(shapes)
    line = points[0, 1:3].mean(0) - points[0, 0]
    gradient = (points[1:, 0] - points[0, 0]) @ line
    return gradient / max(float(np.abs(gradient).max()), 1e-12)


def find_starts(
    hand: SimHand, thing: SimObject, rng: np.random.Generator, poses: list[Float[np.ndarray, "4 4"]], count: int
) -> list[Start]:
    """The best starts over the given object poses, best first, chance deciding among the good; none may be found.

    The same generator state gives the same starts.
    """
    kept: list[Start] = []
    for _ in range(_ROUNDS):
        pairs = _opposed(thing, rng)
        some = [poses[i] for i in rng.permutation(len(poses))[:_POSES]]
        starts = [s for T_world_obj in some for pair in pairs for s in _around(hand, thing, rng, T_world_obj, *pair)]
        starts.sort(key=lambda s: -s.score)
        for start in starts:
            if all(_unlike(start, other) for other in kept) and _free_of_object(hand, thing, start):
                kept.append(start)
            if len(kept) == count:
                return kept
    return kept


def given_start(
    hand: SimHand,
    T_world_obj: Float[np.ndarray, "4 4"],
    T_world_wrist: Float[np.ndarray, "4 4"],
    hand_pose: Float[np.ndarray, "45"],
) -> Start:
    """The start of a grasp that is given: the hand comes, open, along the line from palm to finger pads."""
    contact = hand.angles_rad(hand_pose)
    T = T_world_wrist.copy()
    T[:3, 3] -= T[:3, :3] @ hand.joints_m[0]
    pads, _ = hand.pads(contact[None])
    across = pads[0, 1:3].mean(0) - pads[0, 0]
    width = float(np.linalg.norm(across))
    approach = approach_to(hand, 0.5 * (pads[0, 1:3].mean(0) + pads[0, 0]), across / max(width, 1e-9))
    return Start(T_world_obj, T, T[:3, :3] @ approach, open_angles(hand, contact), contact, width, 0.0)


def _unlike(a: Start, b: Start) -> bool:
    """Whether two starts differ by more than 2 cm or 30 degrees: as many tries as possible are new ones."""
    moved = float(np.linalg.norm(a.T_world_hand[:3, 3] - b.T_world_hand[:3, 3]))
    turned = 0.5 * (float(np.trace(a.T_world_hand[:3, :3].T @ b.T_world_hand[:3, :3])) - 1.0)
    return moved > 0.02 or turned < np.cos(np.radians(30)) or not np.allclose(a.T_world_obj, b.T_world_obj)


def _opposed(thing: SimObject, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Pairs of surface points, model frame, that face away from each other within a hand's span; best first."""
    points, normals = thing.surface.points_m, thing.surface.normals
    pick = rng.permutation(len(points))[:700]
    points, normals = points[pick], normals[pick]
    across = points[None] - points[:, None]
    width = np.linalg.norm(across, axis=2)
    line = across / np.maximum(width, 1e-9)[..., None]
    facing = np.minimum(-np.einsum("abi,ai->ab", line, normals), np.einsum("abi,bi->ab", line, normals))
    good = (facing > _CONE) & (width > _WIDTH_M[0]) & (width < _WIDTH_M[1])
    first, second = np.nonzero(np.triu(good, 1))
    if not len(first):
        return []
    # Near the centre of mass a lifted object does not swing; chance keeps the seeds from all doing the same.
    middle = 0.5 * (points[first] + points[second])
    off = np.linalg.norm(np.cross(middle - thing.centre_m, line[first, second]), axis=1)
    value = facing[first, second] - 2.5 * off - 1.5 * np.abs(width[first, second] - 0.04) + rng.gumbel(0, 0.1, len(off))
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    taken = np.zeros((0, 3))
    for i in np.argsort(-value):
        if len(taken) and np.linalg.norm(taken - middle[i], axis=1).min() < 0.006:
            continue
        taken = np.vstack([taken, middle[i]])
        pairs.append((points[first[i]], points[second[i]], float(facing[first[i], second[i]])))
        if len(pairs) == _PAIRS:
            break
    return pairs


def _around(
    hand: SimHand,
    thing: SimObject,
    rng: np.random.Generator,
    T_world_obj: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    squarely: float,
) -> list[Start]:
    """Starts on one pair: both ways round, turned about the line, off the table."""
    a, b = (T_world_obj[:3, :3] @ p + T_world_obj[:3, 3] for p in (a, b))
    middle, width = 0.5 * (a + b), float(np.linalg.norm(b - a))
    closing = np.repeat(np.array([b - a, a - b]) / width, _TURNS, axis=0)
    side = np.cross(closing, np.eye(3)[int(np.abs(closing[0]).argmin())])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    angle = rng.uniform(0, 2 * np.pi / _TURNS) + np.tile(np.arange(_TURNS), 2) * (2 * np.pi / _TURNS)
    approach = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * np.cross(closing, side)
    chance = rng.gumbel(0, 0.06, len(angle))
    table = oppositions(hand)[int(np.abs(WIDTHS_M - width).argmin())]
    shape = table[int(rng.integers(len(table)))]
    theirs = np.stack([closing, approach, np.cross(closing, approach)], axis=2)
    ours = np.stack([shape.closing, shape.approach, np.cross(shape.closing, shape.approach)], axis=1)
    R = theirs @ ours.T
    place = middle - R @ shape.middle_m
    # What lies flat is taken nearer to the fingertips than their pads: the hand stays up as much as the table asks.
    short = _TABLE_GAP_M - _lowest(hand, shape, R, place)
    place = place + np.clip(short, 0.0, _TIP_M)[:, None] * np.array([0.0, 0.0, 1.0])
    off_table = (approach[:, 2] < _FROM_BELOW) & (short <= _TIP_M)
    centre = T_world_obj[:3, :3] @ thing.centre_m + T_world_obj[:3, 3]
    torque = float(np.linalg.norm(np.cross(centre - middle, closing[0])))
    found: list[Start] = []
    for i in np.flatnonzero(off_table):
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = R[i], place[i]
        row = np.cross(closing[i], approach[i])
        score = (
            squarely
            + 0.5 * shape.quality
            - 4.0 * torque
            - 3.0 * max(0.0, width - _EASY_M)
            + float(chance[i])
            - 10.0 * max(0.0, float(short[i]))
        )
        score += 0.25 * _fingers_find(thing, T_world_obj, middle + 0.5 * width * closing[i], row)
        found.append(
            Start(T_world_obj, T, approach[i], _shapes(hand, shape.key).open_rad, shape.angles_rad, width, score)
        )
    return found


class _Shapes(NamedTuple):
    """A hand shape, open and closed: hinge angles, and the ends and radii of its capsules in the rest frame."""

    open_rad: np.ndarray
    open_ends_m: np.ndarray
    closed_ends_m: np.ndarray
    radii_m: np.ndarray


@functools.lru_cache(maxsize=256)
def _shapes(hand: SimHand, key: tuple[int, int]) -> _Shapes:
    closed = oppositions(hand)[key[0]][key[1]].angles_rad
    opened = open_angles(hand, closed)
    ends, radii = hand.skin(opened)
    return _Shapes(opened, ends, hand.skin(closed)[0], radii)


def _lowest(hand: SimHand, shape: Opposition, R: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The height of the lowest point of hand (open and closed) and forearm, for hands that stand at `R`, `place`."""
    shapes = _shapes(hand, shape.key)
    ends = np.concatenate([shapes.open_ends_m, shapes.closed_ends_m]).reshape(-1, 3)
    radii = np.tile(np.repeat(shapes.radii_m, 2), 2)
    arm = hand.joints_m[0] + np.array([1.0, 0.0, 0.0]) * _FOREARM_M[:, None]
    points = np.concatenate([ends, arm])
    thick = np.concatenate([radii, np.full(len(arm), _FOREARM_RADIUS_M)])
    return (R[:, 2] @ points.T + place[:, 2:] - thick).min(1)


def _free_of_object(hand: SimHand, thing: SimObject, start: Start) -> bool:
    """Whether the open hand, where it will close, stays off the object."""
    ends, radii = hand.skin(start.open_rad)
    share = np.linspace(0, 1, 5)[:, None]
    points = (ends[:, None, 0] * (1 - share) + ends[:, None, 1] * share).reshape(-1, 3)
    world = points @ start.T_world_hand[:3, :3].T + start.T_world_hand[:3, 3]
    local = (world - start.T_world_obj[:3, 3]) @ start.T_world_obj[:3, :3]
    return bool((thing.surface.distance_m(local) - np.repeat(radii, len(share))).min() > _CLEAR_M)


def _fingers_find(thing: SimObject, T_world_obj: np.ndarray, at: np.ndarray, row: np.ndarray) -> float:
    """The share of index, middle and ring, spread along `row`, that would find surface where the fingers press."""
    places = at + np.array([-1.0, 0.0, 1.0])[:, None] * _FINGER_ROW_M * row
    local = (places - T_world_obj[:3, 3]) @ T_world_obj[:3, :3]
    return float((np.abs(thing.surface.distance_m(local)) < 0.008).mean())
