"""Skin: where on a hand it is pale, red, creased or a nail, and the colours of one person.

All places are found from the hand model's joints and weights in its rest pose, so they hold for any hand with
MANO's interface.
"""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Int

from pam_aug.hand.assets import HandAssets
from pam_aug.hand.joints import TIP_SETS
from pam_aug.render.surface import Surface, corner_normals
from pam_aug.render.textures import draw_palette, sample_noise, to_linear

PALM, RED, CREASE, NAIL, NAIL_EDGE = range(5)

# sRGB of skin from very light to very dark; a person is a point on this line.
_TONES = np.array(
    [
        (248, 222, 206), (240, 200, 176), (226, 178, 148), (205, 150, 116),
        (174, 118, 84), (134, 86, 60), (96, 60, 43), (62, 40, 32),
    ]
)  # fmt: skip
_CHILDREN = {1: 2, 2: 3, 4: 5, 5: 6, 7: 8, 8: 9, 10: 11, 11: 12, 13: 14, 14: 15}
_TIP_OF = {15: 0, 3: 1, 6: 2, 12: 3, 9: 4}  # last joint of a finger -> thumb to little
# Lines of the palm as (along, across) from the wrist to the middle knuckle, across positive to the index side.
_PALM_LINES = (
    ((0.72, -0.46), (0.80, -0.30), (0.86, -0.10), (0.93, 0.08), (1.00, 0.14)),
    ((0.56, -0.40), (0.66, -0.15), (0.73, 0.10), (0.78, 0.34)),
    ((0.80, 0.36), (0.72, 0.18), (0.58, 0.04), (0.40, -0.03), (0.20, -0.02)),
)


def skin_marks(
    surface: Surface, part: int, assets: HandAssets, first_vertex: int
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k 5"]]:
    """Samples of the hand `part`, and how much each is palm, red, crease, nail and nail edge (0..1).

    `first_vertex` is the hand's first row among the surface's vertices.
    """
    ids = np.flatnonzero(surface.part == part)
    v = assets.v_template.astype(np.float64)
    joints = assets.rest_joints_m
    tips = v[list(TIP_SETS["smplx"][assets.side])]
    corners = surface.faces[surface.face[ids]] - first_vertex
    bary = surface.bary[ids].astype(np.float64)
    rest = np.einsum("nc,nck->nk", bary, v[corners])
    normal = _rest_normals(assets)
    n = np.einsum("nc,nck->nk", bary, normal[corners])
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    label = assets.weights.argmax(1)[corners[np.arange(len(ids)), bary.argmax(1)]]
    marks = np.zeros((len(ids), 5))
    marks[:, PALM] = np.einsum("nc,nc->n", bary, _palm_of_vertex(assets)[corners])
    for j in range(1, 16):
        on = label == j
        if not on.any():
            continue
        end = joints[_CHILDREN[j]] if j in _CHILDREN else tips[_TIP_OF[j]]
        length = np.linalg.norm(end - joints[j])
        along = (end - joints[j]) / length
        dorsal = _dorsal(assets, normal, j, along)
        across = np.cross(along, dorsal)
        p = rest[on] - joints[j]
        s, t = p @ along, p @ across
        back = n[on] @ dorsal
        palm_side = _step(-back, -0.2, 0.6)
        thumb = j >= 13
        if not (thumb and j == 13):
            for at, strength in ((0.0, 1.0), (length, 0.8 if j in _CHILDREN else 0.0)):
                line = np.exp(-(((s - at) / 0.0009) ** 2)) + 0.5 * np.exp(-(((s - at - 0.0022) / 0.0008) ** 2))
                marks[on, CREASE] += strength * 0.8 * line * palm_side
        knuckle_wrinkles = (
            np.exp(-((s / 0.005) ** 2)) * (0.5 + 0.5 * np.cos(s * 2 * np.pi / 0.0024)) * _step(back, 0.2, 0.7)
        )
        marks[on, CREASE] += (0.5 if j not in (1, 4, 7, 10, 13) else 0.15) * knuckle_wrinkles
        if j not in _CHILDREN:
            marks[on, RED] += 0.75 * _step(s / length, 0.25, 0.9) * (0.35 + 0.65 * palm_side)
            half_width = (0.0068 if thumb else 0.0055 if j != 9 else 0.0046) * (
                length / (0.030 if thumb else 0.024)
            ) ** 0.5
            a, b = (s - 0.66 * length) / (0.34 * length), t / half_width
            inside = (a**4 + b**4) ** 0.25
            marks[on, NAIL] = _step(-inside, -1.06, -0.92) * _step(back, 0.15, 0.4)
            marks[on, NAIL_EDGE] = marks[on, NAIL] * _step(a, 0.55, 0.75)
    for j in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15):  # the backs of the knuckles
        near = np.exp(-((rest - joints[j]) ** 2).sum(1) / 0.011**2)
        marks[:, RED] += 0.9 * near * (1 - marks[:, PALM])
    _add_palm_lines(marks, rest, n, label, joints)
    return ids, np.clip(marks, 0.0, 1.0).astype(np.float32)


def _add_palm_lines(marks, rest, n, label, joints) -> None:
    on = (label == 0) | np.isin(label, (1, 4, 7, 10, 13))
    length = np.linalg.norm(joints[4] - joints[0])
    along = (joints[4] - joints[0]) / length
    across = np.cross(along, np.array([0.0, 1.0, 0.0]))
    across *= np.sign(across @ (joints[1] - joints[7]))
    p = rest[on] - joints[0]
    ab = np.stack([p @ along / length, p @ across / length], 1)
    marks[on, PALM] *= 0.4 + 0.6 * _step(ab[:, 0], -0.05, 0.2)  # the palm's skin ends at the wrist
    inward = _step(-n[on][:, 1], 0.2, 0.6)
    for line in _PALM_LINES:
        points = np.array(line)
        best = np.full(len(ab), np.inf)
        for a, b in pairwise(points):
            t = np.clip((ab - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            best = np.minimum(best, np.linalg.norm(ab - a - t[:, None] * (b - a), axis=1))
        marks[on, CREASE] += 0.75 * np.exp(-((best / 0.013) ** 2)) * inward
    marks[on, RED] += 0.25 * np.exp(-((np.abs(ab[:, 1] - 0.35) / 0.2) ** 2)) * inward * (ab[:, 0] < 0.7)


@lru_cache(maxsize=64)
def _palm_of_vertex(assets: HandAssets) -> np.ndarray:
    """How much each vertex looks to the palm's side, by the bones that it moves with, so that no border shows."""
    normal, joints = _rest_normals(assets), assets.rest_joints_m
    tips = assets.v_template[list(TIP_SETS["smplx"][assets.side])].astype(np.float64)
    palm = assets.weights[:, 0] * _step(-normal[:, 1], -0.25, 0.6)
    for j in range(1, 16):
        end = joints[_CHILDREN[j]] if j in _CHILDREN else tips[_TIP_OF[j]]
        dorsal = _dorsal(assets, normal, j, (end - joints[j]) / np.linalg.norm(end - joints[j]))
        palm = palm + assets.weights[:, j] * _step(-(normal @ dorsal), -0.2, 0.6)
    return palm


def _dorsal(assets: HandAssets, normal: np.ndarray, joint: int, along: np.ndarray) -> np.ndarray:
    """The back side of a finger bone: where its nail looks, else up in the rest pose (the thumb half to its side)."""
    last = max(j for j in _TIP_OF if (j - 1) // 3 == (joint - 1) // 3)
    if len(assets.nail) == len(assets.v_template) and (assets.nail > 0).any():
        up = normal[(assets.nail > 0) & (assets.weights.argmax(1) == last)].mean(0)
    else:
        up = np.array([0.0, 1.0, 0.9 if joint >= 13 else 0.0])
    up = up - (up @ along) * along
    return up / np.linalg.norm(up)


@lru_cache(maxsize=64)
def _rest_normals(assets: HandAssets) -> np.ndarray:
    out = np.zeros((len(assets.v_template), 3))
    corners = corner_normals(assets.v_template, assets.f, 180.0)
    np.add.at(out, assets.f.ravel(), corners.reshape(-1, 3).astype(np.float64))
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def _step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


class Person(NamedTuple):
    """One candidate's skin."""

    tones: Float[np.ndarray, "256 3"]  # linear light, by melanin
    melanin: Float[np.ndarray, "2"]  # back of the hand, palm; 0..1
    strength: Float[np.ndarray, "6"]  # redness, creases, veins, mottling, freckles, bumps
    nail_rgb: Float[np.ndarray, "3"]
    nail_cover: float  # 0 a bare nail, 1 painted
    gloss: Float[np.ndarray, "4"]  # roughness of skin and of nails, reflectance of skin and of nails
    offset: Float[np.ndarray, "3"]  # where in the noise this person's skin lies


def draw_person(rng: np.random.Generator) -> Person:
    """A random person, melanin evenly spread over the whole human range."""
    at = np.linspace(0, len(_TONES) - 1, 256)
    tones = np.stack([np.interp(at, np.arange(len(_TONES)), _TONES[:, c]) for c in range(3)], 1)
    warm = rng.normal(0, [4.0, 3.0, 5.0])
    tones = to_linear(np.clip(tones + warm, 8, 254) / 255.0) * rng.uniform(0.85, 1.1)
    melanin = rng.uniform(0.0, 1.0)
    painted = rng.random() < 0.12
    nail = to_linear(draw_palette(rng, 1)[0]) if painted else np.array([0.72, 0.45, 0.40]) * (1 - 0.35 * melanin)
    strength = [
        rng.uniform(0.3, 1.3), rng.uniform(0.3, 1.0), rng.uniform(0, 0.6) ** 1.5, rng.uniform(0.03, 0.14),
        rng.uniform(0.2, 1) if rng.random() < 0.2 else 0.0, rng.uniform(0.02, 0.11),
    ]  # fmt: skip
    return Person(
        np.clip(tones, 0.005, 0.9).astype(np.float32),
        np.array([melanin, 0.08 + 0.45 * melanin * rng.uniform(0.7, 1.0)], np.float32),
        np.array(strength, np.float32),
        nail.astype(np.float32),
        float(rng.uniform(0.8, 1.0)) if painted else 0.0,
        np.array([rng.uniform(0.36, 0.62), rng.uniform(0.18, 0.4), rng.uniform(0.02, 0.045), 0.045], np.float32),
        rng.uniform(0, 64, 3).astype(np.float32),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def paint_skin(
    ids, tex, marks, volume, tones, melanin, strength, nail_rgb, nail_cover, gloss, offset, albedo, normal, gloss_out
):
    """Colour the samples `ids`, roughen their normals, set their gloss. `tex` are metres in the rest pose."""
    one, zero = np.float32(1.0), np.float32(0.0)
    for n in range(len(ids)):
        i = ids[n]
        x, y, z = tex[i, 0], tex[i, 1], tex[i, 2]
        m = np.float32(130.0)  # 8 mm a cell: mottling, veins
        a, _, _, e = sample_noise(volume, x * m + offset[0], y * m + offset[1], z * m + offset[2])
        m = np.float32(900.0)  # 1 mm a cell: pores, bumps, freckles
        p, g, h, q = sample_noise(volume, x * m + offset[1], y * m + offset[2], z * m + offset[0])
        palm, red, crease, nail, edge = marks[n, 0], marks[n, 1], marks[n, 2], marks[n, 3], marks[n, 4]
        vein = (
            max(one - abs(a + np.float32(0.4) * p * np.float32(0.2)) * np.float32(3.0), zero)
            * (one - palm)
            * strength[2]
        )
        freckle = max(g - np.float32(1.6), zero) * strength[4] * (one - palm)
        level = (
            melanin[0]
            + (melanin[1] - melanin[0]) * palm
            + np.float32(0.35) * strength[3] * e
            + np.float32(0.15) * freckle
        )
        level += np.float32(0.015) * g
        slot = int(min(max(level, zero), one) * np.float32(255.0))
        blood = strength[0] * (red * np.float32(0.8) + np.float32(0.25) * palm + strength[3] * np.float32(1.2) * a)
        dark = one - np.float32(0.42) * strength[1] * crease
        r = tones[slot, 0] * (one + np.float32(0.05) * blood - np.float32(0.10) * vein) * dark
        gg = (
            tones[slot, 1]
            * (one - np.float32(0.26) * blood - np.float32(0.02) * vein)
            * dark
            * (one - np.float32(0.12) * strength[1] * crease)
        )
        b = (
            tones[slot, 2]
            * (one - np.float32(0.24) * blood + np.float32(0.04) * vein)
            * dark
            * (one - np.float32(0.12) * strength[1] * crease)
        )
        if nail > zero:
            cover = nail * (np.float32(0.55) + np.float32(0.45) * nail_cover)
            tip = edge * (one - nail_cover) * np.float32(0.45)
            r = r + (nail_rgb[0] + (np.float32(0.80) - nail_rgb[0]) * tip - r) * cover
            gg = gg + (nail_rgb[1] + (np.float32(0.72) - nail_rgb[1]) * tip - gg) * cover
            b = b + (nail_rgb[2] + (np.float32(0.64) - nail_rgb[2]) * tip - b) * cover
            rim = nail * (one - nail) * np.float32(1.2)
            r, gg, b = r * (one - rim * np.float32(0.5)), gg * (one - rim), b * (one - rim)
        albedo[i, 0] = min(max(r, np.float32(0.01)), np.float32(0.9))
        albedo[i, 1] = min(max(gg, np.float32(0.01)), np.float32(0.9))
        albedo[i, 2] = min(max(b, np.float32(0.01)), np.float32(0.9))
        bump = strength[5] * (one - nail)
        nx, ny, nz = normal[i, 0] + bump * g, normal[i, 1] + bump * h, normal[i, 2] + bump * q
        inv = one / np.sqrt(nx * nx + ny * ny + nz * nz)
        normal[i, 0], normal[i, 1], normal[i, 2] = nx * inv, ny * inv, nz * inv
        gloss_out[i, 0] = gloss[0] + (gloss[1] - gloss[0]) * nail
        gloss_out[i, 1] = gloss[2] + (gloss[3] - gloss[2]) * nail
        gloss_out[i, 2] = zero
