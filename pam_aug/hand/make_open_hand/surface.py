"""The skin of the open hand as an implicit surface: elliptic tubes and muscle masses, smoothly joined.

A tube's field is zero on a superelliptic section whose half axes follow smooth profiles, with ellipsoidal ends; away
from the surface it grows roughly like a distance, which is all that blending and projection need. Half axes are from
the breadths and depths at the joints in Greiner (1991, see the skeleton module) and from looking at hands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from pam_aug.hand.make_open_hand.skeleton import WRIST, Digit

Numbers = Sequence[float | int]

Field = Callable[[Float[np.ndarray, "n 3"]], Float[np.ndarray, "n"]]


@dataclass(frozen=True)
class Tube:
    """A generalised cylinder: `profile(u)` gives lateral, dorsal, palmar half axes and the centre's height (metres)."""

    origin: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    profile: Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "n 4"]]
    start: tuple[float, float]  # u where the near end starts to round, and the length of that rounding
    end: tuple[float, float]
    power: float = 2.2

    def __call__(self, points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        u, a, b = ((points_m - self.origin) @ self.axes.T).T
        lateral, dorsal, palmar, centre = self.profile(u).T
        b = b - centre
        depth = np.where(b > 0, dorsal, palmar)
        over = np.maximum(u - self.end[0], 0) / self.end[1] + np.maximum(self.start[0] - u, 0) / self.start[1]
        p = self.power
        section = ((np.abs(a) / lateral) ** p + (np.abs(b) / depth) ** p) ** (1 / p)
        rho = np.sqrt(section**2 + over**2)
        return (rho - 1) * np.sqrt(lateral * depth)


def profile_from(
    u_mm: Numbers, lateral: Numbers, dorsal: Numbers, palmar: Numbers, centre: Numbers
) -> Callable[[Float[np.ndarray, "n"]], Float[np.ndarray, "n 4"]]:
    """Monotone cubic profiles through knots given in millimetres, constant beyond the ends; the result is in metres."""
    knots = np.array(u_mm) * 1e-3
    curve = PchipInterpolator(knots, np.stack([lateral, dorsal, palmar, centre], axis=1) * 1e-3)
    return lambda u: curve(np.clip(u, knots[0], knots[-1]))


def smooth_min(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"], k: float) -> Float[np.ndarray, "n"]:
    """Quadratic smooth minimum; `k` is the width in metres over which two fields blend."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4


def ellipsoid(centre: Numbers, along: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"], half_mm: Numbers) -> Tube:
    """An ellipsoid as a tube of no length; `half_mm` are its half axes along, across and up."""
    along = along / np.linalg.norm(along)
    up = up - along * (along @ up)
    up /= np.linalg.norm(up)
    axes = np.stack([along, np.cross(along, up), up])
    profile = profile_from([-1, 1], [half_mm[1]] * 2, [half_mm[2]] * 2, [half_mm[2]] * 2, [0, 0])
    return Tube(np.array(centre), axes, profile, (0.0, half_mm[0] * 1e-3), (0.0, half_mm[0] * 1e-3), 2.0)


# Half breadths in mm at: base, mid proximal, PIP, mid middle, DIP, nail; then thickness as dorsal and palmar half
# depths.
_BREADTH = {
    "index": (10.0, 9.5, 9.9, 8.8, 8.6, 8.1),
    "middle": (10.1, 9.7, 10.1, 9.0, 8.7, 8.3),
    "ring": (9.7, 9.2, 9.6, 8.5, 8.3, 7.9),
    "little": (8.8, 8.1, 8.5, 7.4, 7.3, 6.9),
}
_DORSAL = (8.7, 7.6, 8.9, 6.9, 7.0, 5.6)
_PALMAR = (10.4, 9.9, 8.1, 9.0, 6.9, 8.1)


def finger_tube(digit: Digit) -> Tube:
    """The tube of a finger from inside the knuckle to the tip."""
    breadth = np.array(_BREADTH[digit.name])
    scale = breadth.mean() / np.mean(_BREADTH["index"])
    _, pip, dip, tip = digit.joint_u * 1e3
    u = [0.0, 0.45 * pip, pip - 8, pip, pip + 8, 0.55 * dip + 0.45 * pip, dip - 5, dip, dip + 0.45 * (tip - dip), tip]

    def spread(values: Float[np.ndarray, "6"]) -> list[float]:
        base, prox, at_pip, mid, at_dip, nail = values
        near = 0.55 * at_pip + 0.45 * prox
        return [
            base,
            base * 0.35 + prox * 0.65,
            near,
            at_pip,
            0.5 * (at_pip + mid),
            mid,
            0.5 * (mid + at_dip),
            at_dip,
            nail,
            nail,
        ]

    heights = PchipInterpolator(digit.joint_u * 1e3, digit.joint_b * 1e3)(u)
    profile = profile_from(
        u, spread(breadth), spread(np.array(_DORSAL) * scale), spread(np.array(_PALMAR) * scale), list(heights)
    )
    cap = 11.5e-3 * scale
    return Tube(digit.points[0], digit.axes, profile, (0.004, 0.010), (digit.joint_u[3] - cap, cap), 2.25)


def thumb_tube(digit: Digit) -> Tube:
    """The tube of the thumb from its saddle joint to the tip."""
    _, mcp, ip, tip = digit.joint_u * 1e3
    u = [0, 0.5 * mcp, mcp - 8, mcp, mcp + 9, 0.5 * (mcp + ip), ip - 6, ip, ip + 11, tip]
    heights = PchipInterpolator(digit.joint_u * 1e3, digit.joint_b * 1e3)(u)
    profile = profile_from(
        u,
        [11.5, 11.5, 11.5, 11.6, 10.8, 9.9, 10.4, 10.7, 10.6, 9.6],
        [8.5, 9.0, 9.6, 10.2, 8.8, 8.2, 8.6, 8.8, 7.0, 6.2],
        [12.0, 13.0, 12.0, 11.0, 10.4, 9.6, 9.4, 9.2, 9.6, 8.6],
        list(heights),
    )
    cap = 12.0e-3
    return Tube(digit.points[0], digit.axes, profile, (0.004, 0.014), (digit.joint_u[3] - cap, cap), 2.2)


def palm_field(digits: dict[str, Digit]) -> Field:
    """Metacarpals, carpus, wrist, the balls of thumb and little finger, and the skin between thumb and index."""
    tubes: list[tuple[Tube, float]] = []
    knuckles: list[Tube] = []  # the heads of the metacarpals, and between them the valleys on the back of the hand
    half_mm = {"index": 12.2, "middle": 12.0, "ring": 11.4, "little": 11.2}
    palmar_mm = {"index": 15.3, "middle": 15.8, "ring": 15.2, "little": 13.2}
    beyond_mm = {
        "index": 20.0,
        "middle": 21.0,
        "ring": 19.0,
        "little": 13.0,
    }  # how far past the joint the palm's pad reaches
    root_z = {"index": 0.0190, "middle": 0.0075, "ring": -0.0040, "little": -0.0140}
    up = np.array([0.0, 1.0, 0.0])
    for name, half in half_mm.items():
        base = digits[name].points[0]
        origin = np.array([0.079, 0.0055, root_z[name]])
        along = base - origin
        length = float(np.linalg.norm(along)) * 1e3
        along = along / np.linalg.norm(along)
        # the tube's own roll follows the finger's: that is the transverse arch of the palm
        dorsal = digits[name].axes[2] - along * (along @ digits[name].axes[2])
        dorsal /= np.linalg.norm(dorsal)
        axes = np.stack([along, np.cross(along, dorsal), dorsal])
        reach = beyond_mm[name]
        u = [0, 0.5 * length, length - 12, length - 2, length + 0.45 * reach, length + reach]
        pad = palmar_mm[name]
        profile = profile_from(
            u,
            [11, 10.5, half - 0.6, half - 1.0, half - 1.2, half - 1.9],
            [9.5, 8.6, 8.2, 8.0, 7.6, 7.0],
            [14, 12.0, pad - 2.0, pad - 0.5, pad, pad - 3.5],
            [0, 0, 0, 0, 0, -0.5],
        )
        knuckles.append(ellipsoid(list(base + 0.0022 * dorsal), along, dorsal, [11.0, 7.5, 8.2]))
        tubes.append(
            (Tube(origin, axes, profile, (0.0, 0.016), ((length + 0.4 * reach) * 1e-3, 0.8 * reach * 1e-3), 2.2), 0.007)
        )
    wrist_axes = np.stack([np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), up])
    wrist_profile = profile_from(
        [-30, -12, 0, 18, 40],
        [29, 29.5, 28.3, 27.6, 28],
        [13, 14.5, 16.3, 17.5, 18],
        [16, 18.0, 19, 19.5, 20],
        [-1, -2, -2.5, -2.8, -3],
    )
    wrist = Tube(np.array([WRIST[0], 0.0045, 0.0045]), wrist_axes, wrist_profile, (-0.018, 0.030), (0.060, 0.030), 2.3)
    thumb = digits["thumb"]
    thenar_along = thumb.points[1] - thumb.points[0] + np.array([-0.006, 0.0, 0.0])
    thenar = ellipsoid([0.0565, -0.0130, 0.0330], thenar_along, up, [32, 18, 14.5])
    hypothenar = ellipsoid([0.0600, -0.0085, -0.0215], np.array([-1.0, 0.0, -0.16]), up, [38, 13.5, 15.5])
    web = ellipsoid([0.0345, -0.0045, 0.0385], np.array([-0.75, 0.25, -0.30]), up, [22, 15.5, 8.0])
    tubes += [(hypothenar, 0.012), (thenar, 0.012), (web, 0.012), (wrist, 0.022)]
    tubes += [(knuckle, 0.004) for knuckle in knuckles]

    def field(points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        value = tubes[0][0](points_m)
        for tube, blend in tubes[1:]:
            value = smooth_min(value, tube(points_m), blend)
        return value

    return field


def hand_fields(digits: dict[str, Digit]) -> dict[str, Field]:
    """Fields by name: one per digit (the palm joined with that digit alone), and `all`.

    A digit's own field lets its vertices be projected without feeling the neighbouring fingers.
    """
    palm = palm_field(digits)
    tubes = {name: thumb_tube(d) if name == "thumb" else finger_tube(d) for name, d in digits.items()}

    def digit_field(name: str) -> Field:
        blend = 0.024 if name == "thumb" else 0.008
        return lambda p: smooth_min(palm(p), tubes[name](p), blend)

    fields = {name: digit_field(name) for name in digits}

    def whole(points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        value = palm(points_m)
        joined = [smooth_min(value, tubes[n](points_m), 0.024 if n == "thumb" else 0.008) for n in digits]
        total = joined[0]
        for other in joined[1:]:
            total = smooth_min(total, other, 0.005)
        return total

    return {**fields, "all": whole}


def field_gradient(field: Field, points_m: Float[np.ndarray, "n 3"], step: float = 1e-4) -> Float[np.ndarray, "n 3"]:
    """Central differences of a field."""
    n = len(points_m)
    offsets = np.repeat(np.eye(3) * step, n, axis=0)
    tiled = np.tile(points_m, (3, 1))
    return ((field(tiled + offsets) - field(tiled - offsets)) / (2 * step)).reshape(3, n).T
