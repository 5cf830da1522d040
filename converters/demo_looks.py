"""How the stand-in's world looks: skins, object and table textures, rooms. All linear RGB, all drawn from a seed.

Nothing here is shared with the bundled generator's appearance: an estimator trained on the one meets the other as it
would meet another camera in another room.
"""

import numpy as np
from jaxtyping import Float

from pam_aug.hand import TIP_SETS, HandAssets

__all__ = ["draw_object_colours", "draw_room", "draw_skin", "draw_table", "linear", "waves"]

Rng = np.random.Generator
# sRGB of skin along a line from light to dark, picked by eye.
_SKIN = np.array([[231, 188, 165], [214, 164, 134], [190, 136, 104], [150, 101, 74], [104, 68, 50], [70, 46, 37]]) / 255


def linear(srgb: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """sRGB in 0..1 as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def waves(points: Float[np.ndarray, "n d"], rng: Rng, per_unit: float, octaves: int = 3) -> Float[np.ndarray, "n"]:
    """Smooth noise of unit size around zero: random cosines, each octave twice as fine and half as strong."""
    total = np.zeros(len(points))
    for octave in range(octaves):
        directions = rng.normal(0, per_unit * 2 * np.pi * 2**octave / np.sqrt(points.shape[1]), (7, points.shape[1]))
        phases = rng.uniform(0, 2 * np.pi, 7)
        total += 0.5**octave * np.cos(points @ directions.T + phases).sum(1) / np.sqrt(7 / 2)
    return total


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def draw_skin(
    rng: Rng, assets: HandAssets, rest_m: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"], nail: np.ndarray
) -> Float[np.ndarray, "n 3"]:
    """Colours of one person's hand and arm at points of the rest pose; `nail` (n,) is 1 on fingernails."""
    at = rng.uniform(0, len(_SKIN) - 1)
    base = np.stack([np.interp(at, np.arange(len(_SKIN)), _SKIN[:, c]) for c in range(3)])
    base = np.clip(base * (1 + rng.normal(0, 0.04, 3)), 0.02, 0.95)
    palm = _step(-normals[:, 1], 0.0, 0.7)
    lighter = base + (np.array([0.86, 0.66, 0.57]) - base) * (0.15 + 0.09 * at)
    colour = base + palm[:, None] * (lighter - base)

    tips = assets.v_template[list(TIP_SETS["smplx"][assets.side])].astype(np.float64)
    joints = assets.rest_joints_m[1:]
    to_tip = np.linalg.norm(rest_m[:, None] - tips, axis=2).min(1)
    to_joint = np.linalg.norm(rest_m[:, None] - joints, axis=2).min(1)
    flush = rng.uniform(0.2, 1.0) * np.exp(-((to_tip / 0.016) ** 2))
    flush += rng.uniform(0.1, 0.8) * np.exp(-((to_joint / 0.012) ** 2)) * (1 - palm)
    flush += 0.25 * np.maximum(waves(rest_m, rng, 30.0), 0) * palm
    colour = colour * (1 - flush[:, None] * np.array([0.02, 0.16, 0.13]))
    # Wrinkles over the knuckles run across the fingers; veins and hair are left to the noise.
    wrinkle = np.sin(rest_m[:, 0] * rng.uniform(2200, 3200)) * np.exp(-((to_joint / 0.008) ** 2)) * (1 - palm)
    mottle = 0.028 * waves(rest_m, rng, 60.0) + 0.02 * waves(rest_m, rng, 300.0, 2) + 0.05 * wrinkle
    colour = colour * (1 + mottle[:, None])
    spots = _step(waves(rest_m, rng, 220.0, 1), 1.9, 2.3) * rng.choice([0.0, 0.0, 0.2])
    colour = colour * (1 - spots[:, None] * (1 - palm[:, None]))
    polish = rng.random() < 0.2
    nail_colour = rng.uniform(0.05, 0.9, 3) if polish else base * 0.75 + np.array([0.25, 0.19, 0.17])
    colour = colour + nail[:, None] * (nail_colour - colour)
    return linear(np.clip(colour, 0.01, 0.97))


def _tint(rng: Rng) -> np.ndarray:
    """A colour: strong, pale or nearly grey."""
    value, saturation = rng.uniform(0.12, 0.95), rng.choice([0.08, 0.45, 0.9]) * rng.uniform(0.6, 1.0)
    hue = rng.uniform(0, 1)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return linear(value * (1 - saturation * (1 - wheel)))


def draw_object_colours(rng: Rng, points_m: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """A painted, printed or natural object's colours at points of its own frame."""
    one, two, three = _tint(rng), _tint(rng), _tint(rng)
    low, high = points_m.min(0), points_m.max(0)
    unit = (points_m - low) / np.maximum(high - low, 1e-6)
    turn = np.arctan2(points_m[:, 1], points_m[:, 0])
    kind = rng.choice(["plain", "bands", "label", "marble", "checks", "spots", "grain"])
    if kind == "bands":
        share = _step(np.sin(unit[:, 2] * rng.uniform(8, 40) + rng.uniform(0, 6)), -0.1, 0.1)
    elif kind == "label":
        inside = _step(unit[:, 2], 0.2, 0.22) * (1 - _step(unit[:, 2], 0.7, 0.72))
        text = (np.sin(unit[:, 2] * 90) > 0.2) & (waves(np.stack([turn, unit[:, 2]], 1), rng, 2.5, 2) > 0.2)
        share = inside * (1 - 0.85 * text)
    elif kind == "marble":
        share = _step(np.sin(unit @ rng.normal(0, 8, 3) + 2.5 * waves(unit, rng, 0.8)), -0.6, 0.9)
    elif kind == "checks":
        share = ((np.floor(unit * rng.integers(3, 9))).sum(1) % 2).astype(float)
    elif kind == "spots":
        share = _step(waves(unit, rng, 2.0, 1), 0.5, 0.8)
    elif kind == "grain":
        share = 0.5 + 0.4 * np.sin(unit[:, 0] * 30 + 4 * waves(unit * [1, 1, 0.2], rng, 1.0))
    else:
        share = np.zeros(len(points_m))
    colour = one + share[:, None] * (two - one)
    if rng.random() < 0.4:  # a cap, a base or a rim of another colour
        cut = rng.uniform(0.75, 0.92)
        colour = np.where(unit[:, 2:] > cut, three, colour)
    wear = 1 + 0.06 * waves(points_m, rng, 40.0)
    return np.clip(colour * wear[:, None], 0.01, 0.95)


def draw_table(rng: Rng, size: int = 384) -> Float[np.ndarray, "s s 3"]:
    """A table's surface, about a metre across."""
    y, x = np.mgrid[0:size, 0:size].reshape(2, -1) / size
    at = np.stack([x, y], 1)
    kind = rng.choice(["wood", "cloth", "tiles", "stone", "paper", "plain"], p=[0.3, 0.2, 0.12, 0.18, 0.08, 0.12])
    one, two = _tint(rng), _tint(rng)
    if kind == "wood":
        one = linear(np.array([0.62, 0.42, 0.26]) * rng.uniform(0.5, 1.35) * (1 + rng.normal(0, 0.06, 3)))
        rings = waves(at * [1, 7], rng, 0.9) + 0.25 * waves(at * [2, 60], rng, 1.0, 2)
        planks = np.floor(y * rng.integers(3, 9))
        shade = 1 + 0.22 * rings + 0.12 * np.sin(planks * 7.7) - 0.5 * (np.abs(y * 6 % 1 - 0.5) > 0.495)
        colour = one * shade[:, None]
    elif kind == "cloth":
        weave = np.sin(x * size * 1.3) * np.sin(y * size * 1.3)
        stripes = _step(np.sin(x * rng.uniform(20, 90)), 0, 0.2) * rng.choice([0, 1])
        stripes = stripes + _step(np.sin(y * rng.uniform(20, 90)), 0, 0.2) * rng.choice([0, 1])
        colour = (one + (stripes / 2)[:, None] * (two - one)) * (1 + 0.12 * weave + 0.1 * waves(at, rng, 3.0))[:, None]
    elif kind == "tiles":
        n = rng.integers(5, 14)
        joint = (np.abs(x * n % 1 - 0.5) > 0.47) | (np.abs(y * n % 1 - 0.5) > 0.47)
        each = np.sin(np.floor(x * n) * 12.9 + np.floor(y * n) * 78.2) * 0.1
        colour = np.where(joint[:, None], 0.35 * two, one * (1 + each)[:, None])
    elif kind == "stone":
        grains = waves(at, rng, 3.0) * 0.2 + 0.25 * (waves(at, rng, 60.0, 2) > 1.2)
        colour = one * (1 + grains)[:, None]
    elif kind == "paper":
        lines = (np.abs(y * 40 % 1 - 0.5) > 0.44) | ((np.sin(y * 251.3) > 0.3) & (waves(at, rng, 30.0, 1) > 0.9))
        colour = np.where(lines[:, None], 0.25, 0.75) * np.ones(3)
    else:
        colour = one * (1 + 0.05 * waves(at, rng, 4.0))[:, None]
    return np.clip(colour, 0.01, 0.9).reshape(size, size, 3)


def draw_room(rng: Rng, height: int = 64) -> Float[np.ndarray, "h w 3"]:
    """A room as an environment map, latitude by longitude: walls, furniture as blocks, windows and lamps."""
    width = 2 * height
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = y / height, x / width
    wall, floor = _tint(rng) * 0.6 + 0.25, _tint(rng) * 0.4
    room = wall + _step(y, 0.52, 0.56)[..., None] * (floor - wall)
    room += (_step(0.25 - y, 0.0, 0.05)[..., None]) * (np.full(3, 0.75) - room)
    for _ in range(rng.integers(4, 14)):
        x0, w = rng.uniform(0, 1), rng.uniform(0.03, 0.2)
        y0, h = rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.25)
        inside = (np.abs((x - x0 + 0.5) % 1 - 0.5) < w / 2) & (y > y0) & (y < y0 + h)
        room[inside] = _tint(rng) * rng.uniform(0.3, 1.0)
    room *= rng.uniform(0.25, 1.0)
    warm = rng.uniform(-1, 1)
    for _ in range(rng.integers(1, 4)):
        x0, w, y0, h = rng.uniform(0, 1), rng.uniform(0.03, 0.14), rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.2)
        inside = (np.abs((x - x0 + 0.5) % 1 - 0.5) < w / 2) & (np.abs(y - y0) < h / 2)
        room[inside] = rng.uniform(3, 14) * np.array([1 + 0.15 * warm, 1.0, 1 - 0.2 * warm])
    import cv2

    blur = float(rng.uniform(0.5, 1.6))
    return np.maximum(cv2.GaussianBlur(room, (0, 0), blur), 0.0)
