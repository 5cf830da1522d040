"""Distance, inside-outside and line-of-sight questions to a triangle soup, exact and compiled.

The meshes that datasets ship are rarely closed. So the nearest point is found over triangles (Ericson, "Real-Time
Collision Detection", 2005, section 5.1.5: which of a triangle's seven Voronoi regions holds the point), and its sign
comes from the generalized winding number (Jacobson, Kavan and Sorkine-Hornung, "Robust inside-outside segmentation
using generalized winding numbers", 2013), which degrades gently at holes. A triangle's solid angle is Van Oosterom and
Strackee's (1983). All loops run over triangles; the meshes here have some thousands.
"""

import numba
import numpy as np
from jaxtyping import Bool, Float, Int

from pam_aug.errors import SchemaError

__all__ = ["clear_share", "nearest_distance_m", "signed_distance_m", "winding_numbers"]

_INSIDE = 0.5


def signed_distance_m(
    points_m: Float[np.ndarray, "p 3"], verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "p"]:
    """Distance of each point to the mesh's surface in metres: positive outside, negative inside.

    Inside is where the absolute winding number passes a half, so a mesh whose faces all wind the wrong way is fine.
    """
    distance = nearest_distance_m(points_m, verts_m, faces)
    # Outside the bounding box nothing is inside, whatever a hole does to the winding number there.
    boxed = ((points_m >= verts_m.min(0)) & (points_m <= verts_m.max(0))).all(1)
    if boxed.any():
        inside = np.abs(winding_numbers(points_m[boxed], verts_m, faces)) > _INSIDE
        distance[np.flatnonzero(boxed)[inside]] *= -1.0
    return distance


def nearest_distance_m(
    points_m: Float[np.ndarray, "p 3"], verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "p"]:
    """Unsigned distance of each point to the nearest point of the mesh's triangles, in metres."""
    corners = _corners(verts_m, faces)
    middle = corners.mean(1)
    radius = np.linalg.norm(corners - middle[:, None], axis=2).max(1)
    return _nearest(np.ascontiguousarray(points_m, np.float64), corners, middle, radius)


def winding_numbers(
    points_m: Float[np.ndarray, "p 3"], verts_m: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "p"]:
    """How often the mesh winds around each point: 1 inside a closed mesh with outward faces, 0 outside."""
    return _winding(np.ascontiguousarray(points_m, np.float64), _corners(verts_m, faces))


def clear_share(
    eye_m: Float[np.ndarray, "3"],
    points_m: Float[np.ndarray, "p 3"],
    verts_m: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    flesh_m: float = 0.02,
) -> tuple[float, Bool[np.ndarray, "p"]]:
    """Which points the eye sees past the mesh, and their share.

    A joint lies inside its own finger, so what is hit within `flesh_m` before the point does not hide it.
    """
    clear = _clear(
        np.ascontiguousarray(eye_m, np.float64),
        np.ascontiguousarray(points_m, np.float64),
        _corners(verts_m, faces),
        flesh_m,
    )
    return float(clear.mean()), clear


def _corners(verts_m: np.ndarray, faces: np.ndarray) -> np.ndarray:
    if not len(faces):
        raise SchemaError("a mesh without faces has no surface; check the mesh file")
    return np.ascontiguousarray(np.asarray(verts_m, np.float64)[faces])


@numba.njit(cache=True, nogil=True)
def _dot(a0, a1, a2, b0, b1, b2):
    return a0 * b0 + a1 * b1 + a2 * b2


@numba.njit(cache=True, nogil=True)
def _square_to_triangle(p, t):
    """Squared distance of the point p (3,) to the triangle t (3,3)."""
    abx, aby, abz = t[1, 0] - t[0, 0], t[1, 1] - t[0, 1], t[1, 2] - t[0, 2]
    acx, acy, acz = t[2, 0] - t[0, 0], t[2, 1] - t[0, 1], t[2, 2] - t[0, 2]
    apx, apy, apz = p[0] - t[0, 0], p[1] - t[0, 1], p[2] - t[0, 2]
    d1 = _dot(abx, aby, abz, apx, apy, apz)
    d2 = _dot(acx, acy, acz, apx, apy, apz)
    bpx, bpy, bpz = p[0] - t[1, 0], p[1] - t[1, 1], p[2] - t[1, 2]
    d3 = _dot(abx, aby, abz, bpx, bpy, bpz)
    d4 = _dot(acx, acy, acz, bpx, bpy, bpz)
    cpx, cpy, cpz = p[0] - t[2, 0], p[1] - t[2, 1], p[2] - t[2, 2]
    d5 = _dot(abx, aby, abz, cpx, cpy, cpz)
    d6 = _dot(acx, acy, acz, cpx, cpy, cpz)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    if d1 <= 0.0 and d2 <= 0.0:
        v, w = 0.0, 0.0
    elif d3 >= 0.0 and d4 <= d3:
        v, w = 1.0, 0.0
    elif d6 >= 0.0 and d5 <= d6:
        v, w = 0.0, 1.0
    elif vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0 and d1 > d3:  # equal where the first two corners are one point
        v, w = d1 / (d1 - d3), 0.0
    elif vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0 and d2 > d6:
        v, w = 0.0, d2 / (d2 - d6)
    elif va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0 and (d4 - d3) + (d5 - d6) > 0.0:
        w = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        v = 1.0 - w
    else:
        total = va + vb + vc  # 0 by rounding alone, for corners on one line: any of them is near enough
        v, w = (vb / total, vc / total) if total > 0.0 else (0.0, 0.0)
    x, y, z = apx - v * abx - w * acx, apy - v * aby - w * acy, apz - v * abz - w * acz
    return x * x + y * y + z * z


@numba.njit(cache=True, nogil=True)
def _nearest(points, corners, middle, radius):
    out = np.empty(points.shape[0])
    hint = (
        0  # neighbouring points mostly share their nearest triangle: starting there makes the sphere test refuse more
    )
    for i in range(points.shape[0]):
        p = points[i]
        best = _square_to_triangle(p, corners[hint])
        reach = np.sqrt(best)
        for j in range(corners.shape[0]):
            x, y, z = p[0] - middle[j, 0], p[1] - middle[j, 1], p[2] - middle[j, 2]
            limit = reach + radius[j]
            if x * x + y * y + z * z < limit * limit:
                square = _square_to_triangle(p, corners[j])
                if square < best:
                    best, hint = square, j
                    reach = np.sqrt(best)
        out[i] = reach
    return out


@numba.njit(cache=True, nogil=True)
def _winding(points, corners):
    out = np.empty(points.shape[0])
    for i in range(points.shape[0]):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        total = 0.0
        for j in range(corners.shape[0]):
            t = corners[j]
            ax, ay, az = t[0, 0] - px, t[0, 1] - py, t[0, 2] - pz
            bx, by, bz = t[1, 0] - px, t[1, 1] - py, t[1, 2] - pz
            cx, cy, cz = t[2, 0] - px, t[2, 1] - py, t[2, 2] - pz
            a, b, c = np.sqrt(ax * ax + ay * ay + az * az), np.sqrt(bx * bx + by * by + bz * bz), 0.0
            c = np.sqrt(cx * cx + cy * cy + cz * cz)
            det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
            low = (
                a * b * c
                + _dot(ax, ay, az, bx, by, bz) * c
                + _dot(bx, by, bz, cx, cy, cz) * a
                + _dot(cx, cy, cz, ax, ay, az) * b
            )
            total += np.arctan2(det, low)
        out[i] = total / (2.0 * np.pi)  # each arctan is half a solid angle
    return out


@numba.njit(cache=True, nogil=True)
def _clear(eye, points, corners, flesh):
    clear = np.ones(points.shape[0], np.bool_)
    for i in range(points.shape[0]):
        dx, dy, dz = points[i, 0] - eye[0], points[i, 1] - eye[1], points[i, 2] - eye[2]
        far = np.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx / far, dy / far, dz / far
        for j in range(
            corners.shape[0]
        ):  # Moeller and Trumbore, "Fast, minimum storage ray-triangle intersection", 1997
            t = corners[j]
            e1x, e1y, e1z = t[1, 0] - t[0, 0], t[1, 1] - t[0, 1], t[1, 2] - t[0, 2]
            e2x, e2y, e2z = t[2, 0] - t[0, 0], t[2, 1] - t[0, 1], t[2, 2] - t[0, 2]
            hx, hy, hz = dy * e2z - dz * e2y, dz * e2x - dx * e2z, dx * e2y - dy * e2x
            det = _dot(e1x, e1y, e1z, hx, hy, hz)
            if det == 0.0:
                continue
            sx, sy, sz = eye[0] - t[0, 0], eye[1] - t[0, 1], eye[2] - t[0, 2]
            u = _dot(sx, sy, sz, hx, hy, hz) / det
            if u < 0.0 or u > 1.0:
                continue
            qx, qy, qz = sy * e1z - sz * e1y, sz * e1x - sx * e1z, sx * e1y - sy * e1x
            v = _dot(dx, dy, dz, qx, qy, qz) / det
            if v < 0.0 or u + v > 1.0:
                continue
            hit = _dot(e2x, e2y, e2z, qx, qy, qz) / det
            if 0.0 < hit < far - flesh:
                clear[i] = False
                break
    return clear
