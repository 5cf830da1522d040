"""Objects made in code: closed parametric meshes in metres, in families that a split does not share.

Training and test objects come from different families, not only from other sizes, so "unseen objects" means it. The
stand-in for real data has a third set. A shape is a pure function of its generator's state.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from pam_aug.rollouts.scene import Mesh

__all__ = ["FAMILIES", "make_shape"]

Rng = np.random.Generator
Part = tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]
_SIDES = 28


def make_shape(split: str, rng: Rng, name: str) -> Mesh:
    """An object of one of the split's families, named "demo/<family>-<name>"; its longest axis is z as a rule."""
    family = str(rng.choice(sorted(FAMILIES[split])))
    verts, faces = FAMILIES[split][family](rng)
    low, high = verts.min(0), verts.max(0)
    verts = verts - (low + high) / 2
    digest = hashlib.sha256(verts.tobytes() + faces.tobytes()).hexdigest()
    return Mesh(f"demo/{family}-{name}", np.ascontiguousarray(verts), np.ascontiguousarray(faces, np.int64), digest)


# --- building blocks -----------------------------------------------------------------------------------------------


def _rings(rings: Float[np.ndarray, "m n 3"], closed: bool = False) -> Part:
    """A tube through rings of points; its two ends are closed by fans unless the last ring meets the first."""
    m, n, _ = rings.shape
    verts = rings.reshape(-1, 3)
    i, j = np.meshgrid(np.arange(m if closed else m - 1), np.arange(n), indexing="ij")
    a, b = i * n + j, i * n + (j + 1) % n
    c, d = (i + 1) % m * n + j, (i + 1) % m * n + (j + 1) % n
    faces = np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    if not closed:
        caps = np.arange(n)
        low, high = m * n, m * n + 1
        verts = np.concatenate([verts, rings[[0, -1]].mean(1)])
        under = np.stack([np.full(n, low), (caps + 1) % n, caps], 1)
        over = np.stack([np.full(n, high), (m - 1) * n + caps, (m - 1) * n + (caps + 1) % n], 1)
        faces = np.concatenate([faces, under, over])
    return _outward(verts, faces)


def _outward(verts: np.ndarray, faces: np.ndarray) -> Part:
    a, b, c = (verts[faces[:, k]] for k in range(3))
    return verts, faces if np.einsum("fi,fi->", a, np.cross(b, c)) > 0 else faces[:, ::-1]


def _join(*parts: Part) -> Part:
    offsets = np.cumsum([0, *[len(v) for v, _ in parts[:-1]]])
    return np.concatenate([v for v, _ in parts]), np.concatenate([f + o for (_, f), o in zip(parts, offsets)])


def _circle(n: int = _SIDES) -> np.ndarray:
    angle = np.arange(n) / n * 2 * np.pi
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _revolve(radius: ArrayLike, height: ArrayLike, squash: float = 1.0) -> Part:
    """A solid of revolution about z; `squash` flattens its cross-section along y."""
    circle = _circle() * [1.0, squash]
    rings = [
        np.concatenate([circle * max(r, 1e-5), np.full((_SIDES, 1), z)], 1)
        for r, z in zip(np.asarray(radius), np.asarray(height))
    ]
    return _rings(np.stack(rings))


def _smooth(knots: ArrayLike, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(radius, height) knots as a monotone curve: shape-preserving, so a neck does not bulge."""
    from scipy.interpolate import PchipInterpolator

    r, z = np.array(knots).T
    s = np.linspace(0, 1, len(r))
    at = np.linspace(0, 1, count)
    return PchipInterpolator(s, r)(at), PchipInterpolator(s, z)(at)


def _sweep(path: np.ndarray, section: np.ndarray, scale: np.ndarray | None = None, closed: bool = False) -> Part:
    """A planar section (n,2) carried along a path (m,3) that lies near the xz plane."""
    tangent = np.gradient(path, axis=0) if not closed else np.roll(path, -1, 0) - np.roll(path, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    across = np.cross(tangent, [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(across, tangent)
    scale = np.ones(len(path)) if scale is None else scale
    offsets = section[None, :, :1] * across[:, None] + section[None, :, 1:] * up[:, None]
    return _rings(path[:, None] + offsets * scale[:, None, None], closed)


def _extrude(outline: np.ndarray, height: float, bevel: float) -> Part:
    """A star-shaped outline (n,2) as a plate of the given height along z, edges bevelled."""
    inset = outline * (1 - bevel / np.abs(outline).max())
    layers = [(inset, 0.0), (outline, bevel), (outline, height - bevel), (inset, height)]
    return _rings(np.stack([np.concatenate([o, np.full((len(o), 1), z)], 1) for o, z in layers]))


def _superellipsoid(half: ArrayLike, e1: float, e2: float) -> Part:
    """Barr's superquadric (1981): e near 0 is boxy, 1 round."""
    u = np.linspace(-np.pi / 2 * 0.985, np.pi / 2 * 0.985, 19)
    v = np.arange(_SIDES) / _SIDES * 2 * np.pi

    def power(x: np.ndarray, e: float) -> np.ndarray:
        return np.sign(x) * np.abs(x) ** e

    ring = np.stack([power(np.cos(v), e2), power(np.sin(v), e2)], 1)
    wide = power(np.cos(u), e1)
    rings = [np.concatenate([ring * w, np.full((_SIDES, 1), power(np.sin(a), e1))], 1) for w, a in zip(wide, u)]
    return _rings(np.stack(rings) * np.asarray(half))


# --- families ------------------------------------------------------------------------------------------------------


def _box(rng: Rng) -> Part:
    half = np.sort(rng.uniform([0.008, 0.02, 0.035], [0.035, 0.05, 0.09]))
    return _superellipsoid(half, rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.2))


def _cylinder(rng: Rng) -> Part:
    r, h, edge = rng.uniform(0.012, 0.042), rng.uniform(0.06, 0.2), rng.uniform(0.001, 0.005)
    return _revolve([r - edge, r, r, r - edge], [0, edge, h - edge, h])


def _ball(rng: Rng) -> Part:
    half = rng.uniform(0.02, 0.045) * rng.uniform(0.75, 1.25, 3)
    return _superellipsoid(half, rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1))


def _bottle(rng: Rng) -> Part:
    r, h = rng.uniform(0.022, 0.04), rng.uniform(0.13, 0.23)
    neck, shoulder = r * rng.uniform(0.3, 0.55), h * rng.uniform(0.6, 0.75)
    knots = [(r * 0.9, 0), (r, 0.006), (r * rng.uniform(0.85, 1), shoulder * 0.5), (r, shoulder)]
    knots += [(neck, shoulder + 0.45 * (h - shoulder)), (neck, h * 0.985), (neck * 1.15, h)]
    return _revolve(*_smooth(knots, 24), squash=rng.uniform(0.65, 1.0))


def _mug(rng: Rng) -> Part:
    r, h, wall = rng.uniform(0.033, 0.045), rng.uniform(0.08, 0.11), 0.004
    flare = rng.uniform(0.9, 1.1)
    profile = [(r * 0.9, 0), (r, 0.004), (r * flare, h), (r * flare - wall, h), (r - wall, 0.008), (0.001, 0.007)]
    body = _revolve(*np.array(profile).T)
    angle = np.linspace(-1.35, 1.35, 12)
    out, tall = rng.uniform(0.026, 0.034), h * rng.uniform(0.28, 0.36)
    path = np.stack([r * 0.93 + out * np.cos(angle), np.zeros(12), h / 2 + tall * np.sin(angle)], 1)
    return _join(body, _sweep(path, _circle(10) * rng.uniform(0.004, 0.007)))


def _blob(rng: Rng) -> Part:
    verts, faces = _superellipsoid([1, 1, 1], 1, 1)
    direction = verts / np.linalg.norm(verts, axis=1, keepdims=True)
    radius = np.ones(len(verts))
    for _ in range(5):
        axis, phase = rng.normal(size=3) * 1.6, rng.uniform(0, 2 * np.pi)
        radius += rng.uniform(0.03, 0.11) * np.sin(direction @ axis * 1.6 + phase)
    return direction * radius[:, None] * rng.uniform(0.025, 0.042) * rng.uniform(0.8, 1.25, 3), faces


def _capsule(rng: Rng) -> Part:
    r, h = rng.uniform(0.006, 0.02), rng.uniform(0.09, 0.18)
    a = np.linspace(0.1, np.pi / 2, 6)
    low = [(r * np.sin(x), r - r * np.cos(x)) for x in a]
    taper = rng.uniform(0.6, 1.0)
    high = [(taper * r * np.sin(x), h + r * np.cos(x)) for x in a[::-1]]
    return _revolve(*np.array(low + high).T)


def _ring(rng: Rng) -> Part:
    angle = np.arange(28) / 28 * 2 * np.pi
    big, small = rng.uniform(0.03, 0.06), rng.uniform(0.007, 0.016)
    path = big * np.stack([np.cos(angle), np.zeros(28), np.sin(angle) * rng.uniform(0.8, 1.2)], 1)
    return _sweep(path, _circle(14) * small * [1, rng.uniform(0.7, 1.4)], closed=True)


def _cone(rng: Rng) -> Part:
    r, h = rng.uniform(0.028, 0.045), rng.uniform(0.07, 0.15)
    tip = rng.uniform(0.1, 0.4)
    return _revolve([r * 0.95, r, r * tip, r * tip * 0.6], [0, 0.004, h, h + 0.003])


def _bowl(rng: Rng) -> Part:
    r, h, wall = rng.uniform(0.05, 0.075), rng.uniform(0.035, 0.06), 0.004
    a = np.linspace(0.35, np.pi / 2, 9)
    outer = [(r * np.sin(x), h - h * np.cos(x)) for x in a]
    inner = [((r - wall) * np.sin(x), h + 0.002 - (h - wall) * np.cos(x)) for x in a[::-1]]
    return _revolve(*np.array([*outer, *inner, (0.001, inner[-1][1])]).T)


def _prism(rng: Rng) -> Part:
    n = int(rng.integers(3, 8))
    at = np.arange(n) / n * 2 * np.pi
    outline = np.repeat(np.stack([np.cos(at), np.sin(at)], 1), 2, 0)
    outline = (0.985 * outline + 0.015 * np.roll(outline, 1, 0)) * rng.uniform(0.018, 0.035)
    return _extrude(outline, rng.uniform(0.06, 0.17), 0.0015)


def _tool(rng: Rng) -> Part:
    length, r = rng.uniform(0.12, 0.18), rng.uniform(0.008, 0.013)
    handle = _revolve(*_smooth([(r * 0.8, 0), (r * 1.2, length * 0.1), (r, length * 0.4), (r * 0.75, length)], 14))
    half = np.array([rng.uniform(0.03, 0.05), rng.uniform(0.011, 0.017), rng.uniform(0.011, 0.017)])
    verts, faces = _superellipsoid(half, 0.3, 0.3)
    return _join(handle, (verts + np.array([rng.uniform(-0.01, 0.01), 0, length]), faces))


def _goblet(rng: Rng) -> Part:
    r, h, foot = rng.uniform(0.028, 0.038), rng.uniform(0.14, 0.2), rng.uniform(0.026, 0.034)
    knots = [(foot, 0), (foot, 0.004), (0.006, 0.015), (0.005, h * 0.45), (r, h * 0.66), (r * 0.85, h)]
    return _revolve(*_smooth(knots, 26))


def _jar(rng: Rng) -> Part:
    r, h = rng.uniform(0.028, 0.042), rng.uniform(0.07, 0.12)
    body = _revolve(*_smooth([(r * 0.9, 0), (r, 0.008), (r, h * 0.75), (r * 0.78, h * 0.86), (r * 0.78, h * 0.9)], 16))
    lid = _revolve([r * 0.86, r * 0.88, r * 0.88, r * 0.8], [h * 0.87, h * 0.89, h * 1.02, h * 1.04])
    return _join(body, lid)


def _banana(rng: Rng) -> Part:
    bend, length = rng.uniform(0.6, 1.3), rng.uniform(0.13, 0.19)
    angle = np.linspace(-bend / 2, bend / 2, 16)
    path = length / bend * np.stack([np.cos(angle), np.zeros(16), np.sin(angle)], 1)
    taper = np.interp(np.linspace(0, 1, 16), [0, 0.12, 0.3, 0.75, 0.92, 1], [0.35, 0.6, 1, 1, 0.6, 0.25])
    return _sweep(path, _circle(int(rng.integers(5, 8))) * rng.uniform(0.015, 0.021), taper)


def _dumbbell(rng: Rng) -> Part:
    length, r, big = rng.uniform(0.12, 0.16), rng.uniform(0.009, 0.015), rng.uniform(0.022, 0.034)
    t = length * rng.uniform(0.15, 0.24)
    knots_r = [big * 0.85, big, big, big * 0.85, r, r, big * 0.85, big, big, big * 0.85]
    knots_z = [
        0,
        0.003,
        t - 0.003,
        t,
        t + 0.001,
        length - t - 0.001,
        length - t,
        length - t + 0.003,
        length - 0.003,
        length,
    ]
    return _revolve(knots_r, knots_z)


def _remote(rng: Rng) -> Part:
    half = np.array([rng.uniform(0.018, 0.025), rng.uniform(0.006, 0.01), rng.uniform(0.06, 0.085)])
    verts, faces = _superellipsoid(half, 0.25, 0.35)
    verts = verts * np.stack([1 - 1.5 * verts[:, 2], np.ones(len(verts)), np.ones(len(verts))], 1)
    knob, knob_faces = _superellipsoid([0.007, 0.004, 0.007], 0.7, 0.7)
    return _join((verts, faces), (knob + np.array([0, half[1], half[2] * rng.uniform(0.1, 0.6)]), knob_faces))


def _star(rng: Rng) -> Part:
    n = int(rng.integers(4, 7))
    angle = np.arange(4 * n) / (4 * n) * 2 * np.pi
    radius = rng.uniform(0.025, 0.04) * (1 + rng.uniform(0.12, 0.28) * np.cos(n * angle))
    return _extrude(radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), rng.uniform(0.025, 0.06), 0.002)


FAMILIES: Final[dict[str, dict[str, Callable[[Rng], Part]]]] = {
    "train": {
        "box": _box, "cylinder": _cylinder, "ball": _ball, "bottle": _bottle, "mug": _mug, "blob": _blob,
        "capsule": _capsule,
    },
    "test": {"ring": _ring, "cone": _cone, "bowl": _bowl, "prism": _prism, "tool": _tool},
    "real": {
        "goblet": _goblet, "jar": _jar, "banana": _banana, "dumbbell": _dumbbell, "remote": _remote, "star": _star,
    },
}  # fmt: skip
