"""What the camera sees of a scene's surfaces, as a flat list of shading samples.

Geometry is drawn once per input and shaded many times. An inner pixel gets one sample at its centre; a pixel in
which meshes or depths meet gets the four samples of a grid twice as fine, each with a quarter of the weight, so
that outlines are smooth and nothing moves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Int

from pam_aug.render.conditions import Part, merge_parts, segment
from pam_aug.render.rasterizer import rasterize
from pam_aug.schema import SEG_FIRST_OBJECT

_CREASE_DEG = 50.0  # faces of objects that meet at a sharper angle keep their edge
_SKIN_CREASE_DEG = 110.0


class Surface(NamedTuple):
    """Shading samples of one view, and its condition maps. All floats are float32, metres, camera frame."""

    width: int
    height: int
    depth_m: Float[np.ndarray, "h w"]
    seg: np.ndarray  # (h, w) uint8
    coverage: Float[np.ndarray, "h w"]  # share of a pixel that samples cover
    pixel: Int[np.ndarray, "n"]  # row * width + column
    weight: Float[np.ndarray, "n"]
    face: Int[np.ndarray, "n"]
    part: Int[np.ndarray, "n"]
    bary: Float[np.ndarray, "n 3"]
    pos_m: Float[np.ndarray, "n 3"]
    normal: Float[np.ndarray, "n 3"]  # unit, smooth inside a mesh, turned to the camera
    verts_m: Float[np.ndarray, "v 3"]  # the merged mesh
    faces: Int[np.ndarray, "f 3"]
    part_of_face: Int[np.ndarray, "f"]


def see_surface(parts: Sequence[Part], K_px: Float[np.ndarray, "3 3"], width: int, height: int) -> Surface:
    """Draw the parts at one and at two samples per pixel side, and list the samples to shade."""
    verts, faces, which = merge_parts(parts)
    raster = rasterize(verts, faces, K_px, width, height)
    fine_k = np.asarray(K_px, np.float64) * 2.0
    fine_k[:2, 2] += 0.5  # pixel centres at integers: u' = 2u + 0.5
    fine_k[2] = (0.0, 0.0, 1.0)
    fine = rasterize(verts, faces, fine_k, 2 * width, 2 * height)
    step = np.float32(6.0 / min(K_px[0, 0], K_px[1, 1]))  # depth per depth that one pixel of a slanted surface spans
    which_plus = np.append(which, np.int32(-1))
    none_i, none_f = np.empty(0, np.int32), np.empty(0, np.float32)
    n = _list_samples(raster, fine, which_plus, step, none_i, none_f, none_i, np.empty((0, 3), np.float32))
    pixel, weight, face = np.empty(n, np.int32), np.empty(n, np.float32), np.empty(n, np.int32)
    bary = np.empty((n, 3), np.float32)
    _list_samples(raster, fine, which_plus, step, pixel, weight, face, bary)
    skin = np.array([p.seg_id < SEG_FIRST_OBJECT for p in parts], bool)
    crease = np.where(skin[which], _SKIN_CREASE_DEG, _CREASE_DEG)
    normals = corner_normals(verts, faces, crease)
    v32 = verts.astype(np.float32)
    pos, normal = _interpolate(face, bary, v32, faces, normals)
    coverage = np.bincount(pixel, weight, width * height).astype(np.float32).reshape(height, width)
    return Surface(
        width, height, raster.depth_m, segment(raster, which, parts), coverage, pixel, weight, face, which[face], bary,
        pos, normal, v32, faces, which,
    )  # fmt: skip


def corner_normals(
    verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], crease_deg: float | np.ndarray = _CREASE_DEG
) -> Float[np.ndarray, "f 3 3"]:
    """Unit normals per face corner: area-weighted means over the faces around the corner's place, edges sharper
    than `crease_deg` (a number or one per face) kept.

    Vertices at equal places count as one, so texture seams and the joint of hand and forearm do not show.
    """
    if len(faces) == 0:
        return np.zeros((0, 3, 3), np.float32)
    key = np.ascontiguousarray(verts_m, np.float64).view([("", np.float64)] * 3).ravel()
    _, place = np.unique(key, return_inverse=True)
    corner_place = place[faces].ravel()
    order = np.argsort(corner_place, kind="stable")
    start = np.searchsorted(corner_place[order], np.arange(place.max() + 2))
    p = verts_m[faces]
    cross = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    area = np.linalg.norm(cross, axis=1)
    unit = cross / np.maximum(area, 1e-30)[:, None]
    limit = np.zeros(len(faces)) + np.cos(np.deg2rad(crease_deg))
    return _mean_normals(corner_place, order // 3, start, unit, area, limit)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mean_normals(corner_place, faces_at, start, unit, area, limit):
    out = np.empty((len(unit), 3, 3), np.float32)
    for f in range(len(unit)):
        for c in range(3):
            x = y = z = 0.0
            place = corner_place[3 * f + c]
            for k in range(start[place], start[place + 1]):
                g = faces_at[k]
                if unit[f, 0] * unit[g, 0] + unit[f, 1] * unit[g, 1] + unit[f, 2] * unit[g, 2] > limit[f]:
                    x += unit[g, 0] * area[g]
                    y += unit[g, 1] * area[g]
                    z += unit[g, 2] * area[g]
            length = np.sqrt(x * x + y * y + z * z)
            if length > 0.0:
                out[f, c, 0], out[f, c, 1], out[f, c, 2] = x / length, y / length, z / length
            else:
                out[f, c, 0], out[f, c, 1], out[f, c, 2] = 0.0, 0.0, -1.0
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _list_samples(raster, fine, part_of_face, step, pixel, weight, face, bary):
    """Fill the arrays where they have room, and count the samples either way."""
    height, width = raster.depth_m.shape
    store = len(pixel) > 0
    n = 0
    for y in range(height):
        for x in range(width):
            f0 = fine.face[2 * y, 2 * x]
            part = part_of_face[f0]
            inner = part >= 0 and part_of_face[raster.face[y, x]] == part
            lo = hi = fine.depth_m[2 * y, 2 * x]
            any_seen = False
            for k in range(4):
                f = fine.face[2 * y + k // 2, 2 * x + k % 2]
                d = fine.depth_m[2 * y + k // 2, 2 * x + k % 2]
                any_seen |= f >= 0
                inner &= part_of_face[f] == part
                lo, hi = min(lo, d), max(hi, d)
            if not any_seen:
                continue
            if inner and hi - lo < step * lo:
                if store:
                    pixel[n], weight[n], face[n] = y * width + x, 1.0, raster.face[y, x]
                    bary[n, 1], bary[n, 2] = raster.bary[y, x, 0], raster.bary[y, x, 1]
                    bary[n, 0] = np.float32(1.0) - bary[n, 1] - bary[n, 2]
                n += 1
                continue
            for k in range(4):
                yy, xx = 2 * y + k // 2, 2 * x + k % 2
                if fine.face[yy, xx] >= 0:
                    if store:
                        pixel[n], weight[n], face[n] = y * width + x, 0.25, fine.face[yy, xx]
                        bary[n, 1], bary[n, 2] = fine.bary[yy, xx, 0], fine.bary[yy, xx, 1]
                        bary[n, 0] = np.float32(1.0) - bary[n, 1] - bary[n, 2]
                    n += 1
    return n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(face, bary, verts, faces, normals):
    n = len(face)
    pos, normal = np.zeros((n, 3), np.float32), np.zeros((n, 3), np.float32)
    for i in range(n):
        f = face[i]
        for c in range(3):
            b = bary[i, c]
            for k in range(3):
                pos[i, k] += b * verts[faces[f, c], k]
                normal[i, k] += b * normals[f, c, k]
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = verts[i1, 0] - verts[i0, 0], verts[i1, 1] - verts[i0, 1], verts[i1, 2] - verts[i0, 2]
        bx, by, bz = verts[i2, 0] - verts[i0, 0], verts[i2, 1] - verts[i0, 1], verts[i2, 2] - verts[i0, 2]
        away = (ay * bz - az * by) * pos[i, 0] + (az * bx - ax * bz) * pos[i, 1] + (ax * by - ay * bx) * pos[i, 2]
        length = np.sqrt(normal[i, 0] ** 2 + normal[i, 1] ** 2 + normal[i, 2] ** 2) + np.float32(1e-12)
        s = np.float32(-1.0 if away > 0.0 else 1.0) / length  # the inside of an open mesh is seen from behind
        for k in range(3):
            normal[i, k] *= s
    return pos, normal


def interpolate(surface: Surface, values: Float[np.ndarray, "v c"]) -> Float[np.ndarray, "n c"]:
    """A quantity given at the merged mesh's vertices, at the samples; float32."""
    return _interpolate_values(surface.face, surface.bary, surface.faces, np.ascontiguousarray(values, np.float32))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _interpolate_values(face, bary, faces, values):
    out = np.zeros((len(face), values.shape[1]), np.float32)
    for i in range(len(face)):
        for c in range(3):
            v = faces[face[i], c]
            for k in range(values.shape[1]):
                out[i, k] += bary[i, c] * values[v, k]
    return out
