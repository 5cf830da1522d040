"""A z-buffer over triangles, equal to casting one ray through each pixel centre.

For a triangle (v0, v1, v2) in the camera frame and a ray `t * d` with `d = K^-1 (u, v, 1)`, Cramer's rule gives the
barycentric weights as `w_i / (w0 + w1 + w2)` with `w0 = (v1 x v2) . d` and so on, and the depth `t = det(v0, v1,
v2) / (w0 + w1 + w2)`. Each `w_i` is affine in (u, v), so a pixel costs three multiply-adds (homogeneous
rasterization: Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997). Nothing is
divided by a vertex's z: a triangle that passes through the camera plane needs no clipping, its pixels in front of
the near plane are right and the others are refused one by one. Two triangles that share an edge get exactly
opposite `w`, so no pixel falls between them.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pam_aug.errors import SchemaError

try:
    import numba
except ImportError:  # numba lags new Python releases; the numpy path gives the same bytes, some 20 times slower
    numba = None

NEAR_M = 1e-3
"""Nothing closer to the camera plane than this is drawn."""

_CHUNK = 1 << 20  # (face, pixel) pairs tested at once by the numpy path


class Raster(NamedTuple):
    """What each pixel sees; pixel (row v, column u) has its centre at (u, v)."""

    depth_m: Float[np.ndarray, "h w"]  # z, not ray length; float32; 0 where nothing is
    face: Int[np.ndarray, "h w"]  # int32 row of `faces`; -1 where nothing is
    bary: Float[
        np.ndarray, "h w 2"
    ]  # float32, perspective-correct weights of the face's corners 1 and 2; corner 0 has the rest


def rasterize(
    verts_cam_m: Float[np.ndarray, "n 3"],
    faces: Int[np.ndarray, "m 3"],
    K_px: Float[np.ndarray, "3 3"],
    width: int,
    height: int,
    *,
    backend: Literal["auto", "numba", "numpy"] = "auto",
) -> Raster:
    """Draw a triangle soup; both sides of a face count, the nearest wins, and of equally near faces the first.

    `verts_cam_m` is in the OpenCV camera frame (x right, y down, z forward), in metres. `K_px` may be skewed and
    off-centre; its last row is (0, 0, 1). Degenerate and edge-on triangles draw nothing. Both backends give the
    same bytes; `auto` takes numba where it is installed.

    Raises SchemaError on arrays of a wrong shape, vertices that are not finite, faces that name no vertex, or a
    `K_px` without inverse.
    """
    v, f, k, k_inv = _checked(verts_cam_m, faces, K_px, width, height)
    depth = np.zeros((height, width), np.float32)
    face = np.full((height, width), -1, np.int32)
    bary = np.zeros((height, width, 2), np.float32)
    if len(f):
        if backend == "numba" and numba is None:
            raise SchemaError("rasterize(backend='numba'): numba is not installed; install it or use backend='auto'.")
        pure = backend == "numpy" or numba is None
        boxes = (_boxes_numpy if pure else _boxes_numba)(v, f, k, width, height)
        (_draw_numpy if pure else _draw_numba)(v, f, k_inv, boxes, depth, face, bary)
    return Raster(depth, face, bary)


def _checked(verts, faces, K_px, width, height):
    v = np.ascontiguousarray(verts, np.float64)
    f = np.ascontiguousarray(faces, np.int32)
    k = np.asarray(K_px, np.float64)
    if v.ndim != 2 or v.shape[1] != 3 or f.ndim != 2 or f.shape[1] != 3 or k.shape != (3, 3):
        raise SchemaError(f"rasterize: wants verts (V,3), faces (F,3), K (3,3); got {v.shape}, {f.shape}, {k.shape}.")
    if width < 1 or height < 1:
        raise SchemaError(f"rasterize: image size {width}x{height} is empty.")
    if not np.isfinite(v).all():
        raise SchemaError("rasterize: a vertex is NaN or infinite; check the pose that made it.")
    if len(f) and (f.min() < 0 or f.max() >= len(v)):
        raise SchemaError(f"rasterize: faces name vertices {f.min()}..{f.max()}, there are {len(v)}.")
    if not np.isfinite(k).all() or (k[2] != (0.0, 0.0, 1.0)).any() or abs(np.linalg.det(k)) < 1e-12:
        raise SchemaError(f"rasterize: K_px must be invertible with last row (0, 0, 1); got {k.tolist()}.")
    return v, f, k, np.linalg.inv(k)


def _boxes_scalar(v, f, k, width, height):
    """(F,4) int32 inclusive x0, x1, y0, y1 of the pixels a face can touch; empty (x1 < x0) where it can touch none."""
    boxes = np.empty((f.shape[0], 4), np.int32)
    for i in range(f.shape[0]):
        lo_u = lo_w = np.inf
        hi_u = hi_w = -np.inf
        in_front = 0
        for c in range(3):
            x, y, z = v[f[i, c], 0], v[f[i, c], 1], v[f[i, c], 2]
            if z > NEAR_M:
                in_front += 1
                u = (k[0, 0] * x + k[0, 1] * y) / z + k[0, 2]
                w = (k[1, 0] * x + k[1, 1] * y) / z + k[1, 2]
                lo_u, hi_u, lo_w, hi_w = min(lo_u, u), max(hi_u, u), min(lo_w, w), max(hi_w, w)
        if in_front == 0:
            boxes[i] = (0, -1, 0, -1)
        elif in_front < 3:  # its projection is unbounded: let every pixel test it
            boxes[i] = (0, width - 1, 0, height - 1)
        else:  # up to one pixel of slack, because the box is rounded and the test inside it is exact
            boxes[i, 0] = int(np.floor(min(max(lo_u, 0.0), float(width))))
            boxes[i, 1] = int(np.ceil(min(max(hi_u, -1.0), width - 1.0)))
            boxes[i, 2] = int(np.floor(min(max(lo_w, 0.0), float(height))))
            boxes[i, 3] = int(np.ceil(min(max(hi_w, -1.0), height - 1.0)))
    return boxes


def _boxes_numpy(v, f, k, width, height):
    """The same as `_boxes_scalar`, over arrays."""
    z = v[:, 2]
    ahead = z > NEAR_M
    safe_z = np.where(ahead, z, 1.0)
    u = ((k[0, 0] * v[:, 0] + k[0, 1] * v[:, 1]) / safe_z + k[0, 2])[f]
    w = ((k[1, 0] * v[:, 0] + k[1, 1] * v[:, 1]) / safe_z + k[1, 2])[f]
    boxes = np.empty((len(f), 4), np.int32)
    boxes[:, 0] = np.floor(np.clip(u.min(1), 0, width))
    boxes[:, 1] = np.ceil(np.clip(u.max(1), -1, width - 1))
    boxes[:, 2] = np.floor(np.clip(w.min(1), 0, height))
    boxes[:, 3] = np.ceil(np.clip(w.max(1), -1, height - 1))
    in_front = ahead[f].sum(1)
    boxes[in_front < 3] = (0, width - 1, 0, height - 1)
    boxes[in_front == 0] = (0, -1, 0, -1)
    return boxes


def _draw_scalar(v, f, k_inv, boxes, depth, face, bary):
    for i in range(f.shape[0]):
        x0, x1, y0, y1 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        if x1 < x0 or y1 < y0:
            continue
        ax, ay, az = v[f[i, 0], 0], v[f[i, 0], 1], v[f[i, 0], 2]
        bx, by, bz = v[f[i, 1], 0], v[f[i, 1], 1], v[f[i, 1], 2]
        cx, cy, cz = v[f[i, 2], 0], v[f[i, 2], 1], v[f[i, 2], 2]
        e0x, e0y, e0z = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        e1x, e1y, e1z = cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax
        e2x, e2y, e2z = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        det = ax * e0x + ay * e0y + az * e0z
        if det == 0.0:
            continue
        s = 1.0 if det > 0.0 else -1.0
        det = det * s
        p0 = (e0x * k_inv[0, 0] + e0y * k_inv[1, 0] + e0z * k_inv[2, 0]) * s
        p1 = (e1x * k_inv[0, 0] + e1y * k_inv[1, 0] + e1z * k_inv[2, 0]) * s
        p2 = (e2x * k_inv[0, 0] + e2y * k_inv[1, 0] + e2z * k_inv[2, 0]) * s
        q0 = (e0x * k_inv[0, 1] + e0y * k_inv[1, 1] + e0z * k_inv[2, 1]) * s
        q1 = (e1x * k_inv[0, 1] + e1y * k_inv[1, 1] + e1z * k_inv[2, 1]) * s
        q2 = (e2x * k_inv[0, 1] + e2y * k_inv[1, 1] + e2z * k_inv[2, 1]) * s
        r0 = (e0x * k_inv[0, 2] + e0y * k_inv[1, 2] + e0z * k_inv[2, 2]) * s
        r1 = (e1x * k_inv[0, 2] + e1y * k_inv[1, 2] + e1z * k_inv[2, 2]) * s
        r2 = (e2x * k_inv[0, 2] + e2y * k_inv[1, 2] + e2z * k_inv[2, 2]) * s
        for y in range(y0, y1 + 1):
            t0, t1, t2 = q0 * y + r0, q1 * y + r1, q2 * y + r2
            xa, xb = x0, x1
            if x1 - x0 > 12:  # a long row: jump to where the edges let it begin and end, one pixel early and late
                lo, hi = float(x0), float(x1)
                if p0 > 0.0:
                    lo = max(lo, -t0 / p0 - 1.0)
                elif p0 < 0.0:
                    hi = min(hi, -t0 / p0 + 1.0)
                if p1 > 0.0:
                    lo = max(lo, -t1 / p1 - 1.0)
                elif p1 < 0.0:
                    hi = min(hi, -t1 / p1 + 1.0)
                if p2 > 0.0:
                    lo = max(lo, -t2 / p2 - 1.0)
                elif p2 < 0.0:
                    hi = min(hi, -t2 / p2 + 1.0)
                if hi < lo:
                    continue
                xa, xb = int(np.floor(lo)), int(np.ceil(hi))
                xa, xb = max(xa, x0), min(xb, x1)
            for x in range(xa, xb + 1):
                w0, w1, w2 = p0 * x + t0, p1 * x + t1, p2 * x + t2
                if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                    total = w0 + w1 + w2
                    if total > 0.0:
                        z = det / total
                        z32 = np.float32(z)
                        if z > NEAR_M and (z32 < depth[y, x] or face[y, x] < 0):
                            depth[y, x] = z32
                            face[y, x] = i
                            bary[y, x, 0] = np.float32(w1 / total)
                            bary[y, x, 1] = np.float32(w2 / total)


def _draw_numpy(v, f, k_inv, boxes, depth, face, bary):
    """The same arithmetic in the same order as `_draw_scalar`, over arrays of (face, pixel) pairs."""
    width = depth.shape[1]
    a, b, c = v[f[:, 0]], v[f[:, 1]], v[f[:, 2]]
    e = np.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)  # (F,3 corners,3)
    det = a[:, 0] * e[:, 0, 0] + a[:, 1] * e[:, 0, 1] + a[:, 2] * e[:, 0, 2]
    s = np.where(det > 0.0, 1.0, -1.0)[:, None]
    p, q, r = ((e[..., 0] * k_inv[0, j] + e[..., 1] * k_inv[1, j] + e[..., 2] * k_inv[2, j]) * s for j in range(3))
    det = det * s[:, 0]
    wide = np.where(det != 0.0, np.maximum(boxes[:, 1] - boxes[:, 0] + 1, 0), 0).astype(np.int64)
    count = wide * np.maximum(boxes[:, 3] - boxes[:, 2] + 1, 0)
    flat_depth, flat_face, flat_bary = depth.reshape(-1), face.reshape(-1), bary.reshape(-1, 2)
    todo = np.flatnonzero(count)
    group = np.cumsum(count[todo]) // _CHUNK
    for ids in np.split(todo, np.flatnonzero(np.diff(group)) + 1):
        if len(ids) == 0:
            continue
        i = np.repeat(ids, count[ids])
        k = np.arange(len(i)) - np.repeat(np.cumsum(count[ids]) - count[ids], count[ids])
        x, y = boxes[i, 0] + k % wide[i], boxes[i, 2] + k // wide[i]
        w = p[i] * x[:, None] + (q[i] * y[:, None] + r[i])
        total = w[:, 0] + w[:, 1] + w[:, 2]
        ok = (w >= 0.0).all(1) & (total > 0.0)
        i, w, total, pix = i[ok], w[ok], total[ok], (y * width + x)[ok]
        z = det[i] / total
        z32 = z.astype(np.float32)
        ok = (z > NEAR_M) & ((z32 < flat_depth[pix]) | (flat_face[pix] < 0))
        i, w, total, pix, z32 = i[ok], w[ok], total[ok], pix[ok], z32[ok]
        order = np.lexsort((i, z32, pix))
        win = order[np.diff(pix[order], prepend=-1) != 0]
        flat_depth[pix[win]], flat_face[pix[win]] = z32[win], i[win]
        flat_bary[pix[win]] = w[win, 1:] / total[win, None]


def _cross(m, n):
    return np.stack(
        [
            m[:, 1] * n[:, 2] - m[:, 2] * n[:, 1],
            m[:, 2] * n[:, 0] - m[:, 0] * n[:, 2],
            m[:, 0] * n[:, 1] - m[:, 1] * n[:, 0],
        ],
        1,
    )


_boxes_numba = _boxes_numpy if numba is None else numba.njit(cache=True, nogil=True)(_boxes_scalar)
_draw_numba = _draw_numpy if numba is None else numba.njit(cache=True, nogil=True)(_draw_scalar)
