"""A forearm that continues the open wrist of a hand mesh, so that no picture shows a hand cut off at the wrist.

A hand model says nothing about the arm behind it. The tube built here starts at the hand's own wrist vertices, bit
for bit, so that hand and forearm share their edge and no pixel falls between them. Its labels are its own
(segmentation id 3), and a sleeve may cover its far part.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pam_aug.errors import SchemaError

_RING_STEPS_M = (0.005, 0.012, 0.021, 0.033, 0.048, 0.066, 0.09)  # close to the wrist, where the cross-section changes
_FAR_RINGS = 6


class ForearmShape(NamedTuple):
    """How a forearm continues; lengths in metres. Fractions are of the wrist's half-width."""

    length_m: float
    bend_rad: tuple[float, float]  # about the wrist's two cross axes, reached at the far end
    widening: float  # half-width gained at the far end
    sleeve_from_m: float  # where a sleeve begins; at or over `length_m` there is none
    sleeve_gap_m: float  # how far the cloth stands off the skin
    folds: tuple[float, float]  # number of folds along the sleeve, their phase


class Tube(NamedTuple):
    """A forearm's mesh. `faces` of the skin first, then the sleeve's; `is_cloth` tells them apart."""

    verts_m: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    is_cloth: np.ndarray


def draw_forearm_shape(rng: np.random.Generator) -> ForearmShape:
    """A believable arm; half of them wear a sleeve."""
    length = float(rng.uniform(0.22, 0.27))
    bend = (float(rng.normal(0, 0.16)), float(rng.normal(0, 0.25)))
    widening = float(rng.uniform(0.25, 0.5))
    sleeve = float(rng.uniform(0.01, 0.14)) if rng.random() < 0.5 else length
    folds = (float(rng.uniform(4, 11)), float(rng.uniform(0, 2 * np.pi)))
    return ForearmShape(length, bend, widening, sleeve, float(rng.uniform(0.003, 0.009)), folds)


def wrist_loop(faces: Int[np.ndarray, "m 3"]) -> Int[np.ndarray, "n"]:
    """The vertices around a mesh's only hole, in the order in which the faces at the hole run past them.

    Raises SchemaError where the mesh is closed or has more than one hole.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    have = {(int(a), int(b)) for a, b in edges}
    after = {a: b for a, b in have if (b, a) not in have}
    loop = [min(after)] if after else []
    while loop and after[loop[-1]] != loop[0] and len(loop) <= len(after):
        loop.append(after[loop[-1]])
    if len(loop) < 3 or len(loop) != len(after):
        raise SchemaError(f"wrist_loop: wants a hand mesh with one hole at the wrist; found {len(after)} open edges.")
    return np.array(loop, np.int64)


def build_forearm(
    verts_m: Float[np.ndarray, "v 3"],
    loop: Int[np.ndarray, "n"],
    wrist_m: Float[np.ndarray, "3"],
    middle_knuckle_m: Float[np.ndarray, "3"],
    shape: ForearmShape,
) -> Tube:
    """The forearm of a posed hand, in the hand's frame; its first `len(loop)` vertices are the hand's wrist vertices.

    It leaves the wrist along the line from the middle knuckle through the wrist joint and bends by `shape.bend_rad`
    on its way. Vertex and face counts and their order depend on `shape` only, so the tube on the rest pose (with no
    bend) gives the texture coordinates of the tube on a posed hand.
    """
    ring0 = verts_m[loop].astype(np.float64)
    centre = ring0.mean(0)
    axis = _unit(wrist_m - middle_knuckle_m)
    offset = ring0 - centre
    flat = offset - np.outer(offset @ axis, axis)
    _, axes = np.linalg.eigh(flat.T @ flat)
    wide = axes[:, 2]
    # The eigenvector's sign is arbitrary: tie it to the loop's first vertex, which is the same in rest and pose.
    wide = wide if wide @ flat[0] >= 0 else -wide
    wide = _unit(wide - (wide @ axis) * axis)
    deep = np.cross(axis, wide)
    a, b = flat @ wide, flat @ deep
    r_wide, r_deep = np.abs(a).max(), np.abs(b).max()
    angle = np.arctan2(b / r_deep, a / r_wide)

    far = np.linspace(_RING_STEPS_M[-1], shape.length_m, _FAR_RINGS + 1)[1:]
    stations = np.concatenate([_RING_STEPS_M, far])

    def ring(s: float, gap: float) -> np.ndarray:
        bend = shape.bend_rad[0] * wide + shape.bend_rad[1] * deep
        middle = centre + s * axis + 0.5 * s * s / shape.length_m * bend
        along = _unit(axis + s / shape.length_m * bend)
        e1 = _unit(wide - (wide @ along) * along)
        e2 = np.cross(along, e1)
        t = s / shape.length_m
        grow = shape.widening * t * t * (3 - 2 * t)
        ra, rb = r_wide * (1 + grow) + gap, r_deep + (0.85 * r_wide * (1 + grow) - r_deep) * t + gap
        m = np.clip(s / 0.05, 0, 1)
        m = m * m * (3 - 2 * m)
        ca, cb = (1 - m) * a + m * ra * np.cos(angle), (1 - m) * b + m * rb * np.sin(angle)
        return middle + np.outer(ca, e1) + np.outer(cb, e2) + (1 - m) * np.outer(offset @ axis, axis)

    n = len(loop)
    rings = [ring0, *(ring(s, 0.0) for s in stations)]
    skin_faces = _tube_faces(n, len(rings), 0)
    end = len(rings) * n
    cap = np.array([(end - n + (i + 1) % n, end - n + i, end) for i in range(n)], np.int64)
    verts = [*rings, rings[-1].mean(0, keepdims=True)]
    if shape.sleeve_from_m >= shape.length_m:
        return Tube(np.concatenate(verts), np.concatenate([skin_faces, cap]), np.zeros(len(skin_faces) + n, bool))
    start, gap = shape.sleeve_from_m, shape.sleeve_gap_m
    cloth = [
        ring(start + 0.004, -0.001),
        ring(start + 0.001, 0.4 * gap),
        ring(start, gap),
        ring(start + 0.003, 1.1 * gap),
    ]
    for s in np.linspace(start + 0.012, shape.length_m + 0.002, 14):
        fold = 1.0 + 0.35 * np.sin(shape.folds[0] * 2 * np.pi * s / shape.length_m + shape.folds[1] + 0.7 * angle)
        cloth.append(ring(s, 1.0) - ring(s, 0.0))
        cloth[-1] = ring(s, 0.0) + cloth[-1] * (gap * fold)[:, None]
    cloth_faces = _tube_faces(n, len(cloth), end + 1)
    faces = np.concatenate([skin_faces, cap, cloth_faces])
    return Tube(np.concatenate([*verts, *cloth]), faces, np.arange(len(faces)) >= len(skin_faces) + n)


def _tube_faces(n: int, rings: int, first: int) -> np.ndarray:
    """Faces between consecutive rings of n vertices, wound against the loop that they continue."""
    i = np.arange(n)
    j = (i + 1) % n
    faces = []
    for k in range(rings - 1):
        o, p = first + k * n, first + (k + 1) * n
        faces += [np.stack([o + j, o + i, p + i], 1), np.stack([o + j, p + i, p + j], 1)]
    return np.concatenate(faces)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)
