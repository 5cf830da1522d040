"""Light on surface samples: a soft environment with self-occlusion, and a few lights with soft shadows.

The environment is a set of nine spherical-harmonic coefficients; each sample holds how it receives them, cosine and
visibility included (Sloan, Kautz and Snyder, "Precomputed radiance transfer", 2002), from depth maps drawn once per
input. The shadows of lamps come from depth maps drawn per candidate and filtered over a box as wide as the penumbra
(Reeves, Salesin and Cook, "Rendering antialiased shadows with depth maps", 1987). Highlights follow the GGX
distribution (Walter et al. 2007). Skin lets light wrap around its shadow line and turn red there.
"""

from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float

from pam_aug.render.surface import Surface

_OCCLUSION_DIRECTIONS = 36
_OCCLUSION_MAP = 80
SHADOW_FILTER = 4  # width of the shadow filter in texels; a softer lamp gets a coarser map


class Lamp(NamedTuple):
    """A light with a shadow: directional (`distance_m` = inf) or a point at `distance_m` from the scene's centre."""

    towards: Float[np.ndarray, "3"]  # unit, from the scene's centre to the lamp
    distance_m: float
    rgb: Float[np.ndarray, "3"]  # radiance reflected by a white surface that faces it, at the scene's centre
    penumbra_m: float


class ShadowMap(NamedTuple):
    """Depth from a lamp over a square around the scene. Texel of a point q = frame @ (p - origin): (q or q/q_z)[:2]
    * scale + half.
    """

    frame: Float[np.ndarray, "3 3"]
    origin: Float[np.ndarray, "3"]
    perspective: bool
    scale: float
    depth: Float[np.ndarray, "s s"]
    nearest: Float[np.ndarray, "s s"]  # over the filter's box: what is nearer than all of it is lit, ...
    farthest: Float[np.ndarray, "s s"]  # ... what is farther than all of it is dark
    texel_m: float


def scene_ball(verts_m: Float[np.ndarray, "v 3"]) -> tuple[np.ndarray, float]:
    """Centre and radius of a ball around the vertices."""
    centre = (verts_m.min(0) + verts_m.max(0)).astype(np.float64) / 2
    return centre, float(np.linalg.norm(verts_m - centre, axis=1).max()) + 1e-4


def sphere_directions(n: int) -> Float[np.ndarray, "n 3"]:
    """n unit vectors spread evenly (a Fibonacci lattice)."""
    k = np.arange(n) + 0.5
    y = 1 - 2 * k / n
    r, phi = np.sqrt(1 - y * y), k * np.pi * (3 - np.sqrt(5))
    return np.stack([r * np.cos(phi), y, r * np.sin(phi)], 1)


def sh_basis(d: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 9"]:
    """Real spherical harmonics up to degree 2 of unit vectors."""
    x, y, z = d[:, 0], d[:, 1], d[:, 2]
    one = np.ones_like(x)
    return np.stack(
        [
            0.282095 * one, 0.488603 * y, 0.488603 * z, 0.488603 * x, 1.092548 * x * y, 1.092548 * y * z,
            0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y),
        ],
        1,
    )  # fmt: skip


def frame_towards(direction: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rows of a rotation whose third axis is the unit `direction`."""
    helper = np.eye(3)[int(np.abs(direction).argmin())]
    x = np.cross(helper, direction)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(direction, x), direction])


def shadow_map(
    surface: Surface, towards: np.ndarray, distance_m: float, size: int, ball: tuple[np.ndarray, float], width: int
) -> ShadowMap:
    """The depth map of the surface's meshes from a lamp, to be read with a filter `width` texels wide."""
    centre, radius = ball
    frame = frame_towards(-np.asarray(towards, np.float64))
    perspective = bool(np.isfinite(distance_m))
    distance = max(distance_m, 1.3 * radius) if perspective else 0.0
    origin = centre + np.asarray(towards) * distance
    half = np.tan(np.arcsin(radius / distance)) if perspective else radius
    scale = (size / 2 - 2) / half
    depth = _draw_depth(
        surface.verts_m, surface.faces, frame.astype(np.float32), origin.astype(np.float32), perspective,
        np.float32(scale), size,
    )  # fmt: skip
    box, anchor = np.ones((width + 1, width + 1), np.uint8), (0, 0)
    nearest, farthest = cv2.erode(depth, box, anchor=anchor), cv2.dilate(depth, box, anchor=anchor)
    box, anchor = np.ones((width + 1, width + 1), np.uint8), (0, 0)
    nearest, farthest = cv2.erode(depth, box, anchor=anchor), cv2.dilate(depth, box, anchor=anchor)
    turn, start = frame.astype(np.float32), origin.astype(np.float32)
    return ShadowMap(turn, start, perspective, scale, depth, nearest, farthest, 2 * radius / size)


def lamp_shadow(surface: Surface, lamp: Lamp, ball: tuple[np.ndarray, float]) -> ShadowMap:
    """A shadow map as coarse as the lamp's penumbra asks for."""
    size = int(np.clip(2 * ball[1] * SHADOW_FILTER / lamp.penumbra_m, 48, 320))
    return shadow_map(surface, lamp.towards, lamp.distance_m, size, ball, SHADOW_FILTER)


def light_transfer(surface: Surface) -> Float[np.ndarray, "n 9"]:
    """How each sample reflects environment light, per spherical-harmonic coefficient: a white sample reflects
    `transfer @ sh`.

    Row i holds (1/pi) * sum over directions of visibility * max(0, cos) * Y * solid angle.
    """
    out = np.zeros((len(surface.pixel), 9), np.float32)
    directions = sphere_directions(_OCCLUSION_DIRECTIONS)
    basis = (sh_basis(directions) * (4.0 / _OCCLUSION_DIRECTIONS)).astype(np.float32)
    ball = scene_ball(surface.verts_m)
    for direction, row in zip(directions, basis):
        m = shadow_map(surface, direction, np.inf, _OCCLUSION_MAP, ball, 2)
        _add_transfer(surface.pos_m, surface.normal, direction.astype(np.float32), row, *m, out)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw_depth(verts, faces, frame, origin, perspective, scale, size):
    """Nearest depth per texel: z, or -1/z in perspective, which is affine in the picture either way."""
    q = np.empty((len(verts), 3), np.float32)
    half = np.float32(size / 2 - 0.5)
    for i in range(len(verts)):
        x, y, z = verts[i, 0] - origin[0], verts[i, 1] - origin[1], verts[i, 2] - origin[2]
        a = frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z
        b = frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z
        c = frame[2, 0] * x + frame[2, 1] * y + frame[2, 2] * z
        if perspective:
            c = max(c, np.float32(1e-3))
            a, b, c = a / c, b / c, -np.float32(1.0) / c
        q[i, 0], q[i, 1], q[i, 2] = a * scale + half, b * scale + half, c
    depth = np.full((size, size), np.float32(1e9), np.float32)
    zero = np.float32(0.0)
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, bx, by, cx, cy = q[i, 0], q[i, 1], q[j, 0], q[j, 1], q[k, 0], q[k, 1]
        det = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if det == zero:
            continue
        x0, x1 = max(int(np.ceil(min(ax, bx, cx))), 0), min(int(np.floor(max(ax, bx, cx))), size - 1)
        y0, y1 = max(int(np.ceil(min(ay, by, cy))), 0), min(int(np.floor(max(ay, by, cy))), size - 1)
        if x1 < x0 or y1 < y0:
            continue
        inv = np.float32(1.0) / det
        ux, uy = (cy - ay) * inv, -(cx - ax) * inv
        vx, vy = -(by - ay) * inv, (bx - ax) * inv
        az, dz_u, dz_v = q[i, 2], q[j, 2] - q[i, 2], q[k, 2] - q[i, 2]
        for y in range(y0, y1 + 1):
            dy = np.float32(y) - ay
            for x in range(x0, x1 + 1):
                dx = np.float32(x) - ax
                u, v = ux * dx + uy * dy, vx * dx + vy * dy
                if u >= zero and v >= zero and u + v <= np.float32(1.0):
                    z = az + u * dz_u + v * dz_v
                    if z < depth[y, x]:
                        depth[y, x] = z
    return depth


@numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _lit(px, py, pz, frame, origin, perspective, scale, depth, nearest, farthest, bias, width):
    """Share of a `width` x `width` texel box around a point from which the lamp is seen; smooth in the point."""
    size = depth.shape[0]
    half = np.float32(size / 2 - 0.5)
    x, y, z = px - origin[0], py - origin[1], pz - origin[2]
    a = frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z
    b = frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z
    c = frame[2, 0] * x + frame[2, 1] * y + frame[2, 2] * z - bias
    if perspective:
        c = max(c, np.float32(1e-3))
        a, b, c = a / c, b / c, -np.float32(1.0) / c
    u = a * np.float32(scale) + half - np.float32(0.5 * (width - 1))
    v = b * np.float32(scale) + half - np.float32(0.5 * (width - 1))
    iu, iv = int(np.floor(u)), int(np.floor(v))
    if iu < 0 or iv < 0 or iu + width >= size or iv + width >= size:
        return np.float32(1.0)
    if c <= nearest[iv, iu]:
        return np.float32(1.0)
    if c > farthest[iv, iu]:
        return np.float32(0.0)
    fu, fv = u - np.float32(iu), v - np.float32(iv)
    total = np.float32(0.0)
    for r in range(width + 1):
        row = np.float32(0.0)
        for s in range(1, width):
            if depth[iv + r, iu + s] >= c:
                row += np.float32(1.0)
        if depth[iv + r, iu] >= c:
            row += np.float32(1.0) - fu
        if depth[iv + r, iu + width] >= c:
            row += fu
        if r == 0:
            row *= np.float32(1.0) - fv
        elif r == width:
            row *= fv
        total += row
    return total / np.float32(width * width)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_transfer(
    pos, normal, direction, basis, frame, origin, perspective, scale, depth, nearest, farthest, texel, out
):
    offset, bias = np.float32(1.2 * texel), np.float32(0.4 * texel)
    for i in range(len(pos)):
        cos = normal[i, 0] * direction[0] + normal[i, 1] * direction[1] + normal[i, 2] * direction[2]
        if cos <= np.float32(0.0):
            continue
        px, py, pz = (
            pos[i, 0] + offset * normal[i, 0],
            pos[i, 1] + offset * normal[i, 1],
            pos[i, 2] + offset * normal[i, 2],
        )
        seen = _lit(px, py, pz, frame, origin, perspective, scale, depth, nearest, farthest, bias, 2)
        if seen > np.float32(0.0):
            for k in range(9):
                out[i, k] += seen * cos * basis[k]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def shade_samples(pos, normal, albedo, gloss, soft, transfer, sh, out):
    """Environment light: radiance = albedo * (transfer @ sh), plus a blurred reflection by Fresnel's share.

    `gloss` (N,3) is roughness, reflectance facing the surface, and metalness; `soft` (N,) how skin-like a sample
    is. Occluded places get some of their own colour back, as light between equal surfaces does.
    """
    one, two = np.float32(1.0), np.float32(2.0)
    basis = np.full(9, np.float32(0.282095), np.float32)
    for i in range(len(pos)):
        open_sky = min(transfer[i, 0] * np.float32(3.545), one)  # sqrt(4 pi): 1 where nothing hides the half space
        to_eye = -one / np.sqrt(pos[i, 0] * pos[i, 0] + pos[i, 1] * pos[i, 1] + pos[i, 2] * pos[i, 2])
        vx, vy, vz = pos[i, 0] * to_eye, pos[i, 1] * to_eye, pos[i, 2] * to_eye
        nx, ny, nz = normal[i, 0], normal[i, 1], normal[i, 2]
        nv = max(nx * vx + ny * vy + nz * vz, np.float32(0.0))
        rx, ry, rz = two * nv * nx - vx, two * nv * ny - vy, two * nv * nz - vz
        rough, f0, metal = gloss[i, 0], gloss[i, 1], gloss[i, 2]
        fresnel = f0 + (max(one - rough, f0) - f0) * (one - nv) ** 5
        basis[1], basis[2], basis[3] = np.float32(0.488603) * ry, np.float32(0.488603) * rz, np.float32(0.488603) * rx
        basis[4], basis[5] = np.float32(1.092548) * rx * ry, np.float32(1.092548) * ry * rz
        basis[6] = np.float32(0.315392) * (np.float32(3.0) * rz * rz - one)
        basis[7], basis[8] = np.float32(1.092548) * rx * rz, np.float32(0.546274) * (rx * rx - ry * ry)
        for c in range(3):
            e = np.float32(0.0)
            m = np.float32(0.0)
            for k in range(9):
                e += transfer[i, k] * sh[k, c]
                m += basis[k] * sh[k, c]
            e, m = max(e, np.float32(0.0)), max(m, np.float32(0.0))
            a = albedo[i, c]
            bounce = one + (one - open_sky) * a * (np.float32(0.6) + np.float32(0.5) * soft[i])
            tint = one - metal + metal * a
            out[i, c] = a * (one - metal) * e * bounce + fresnel * tint * m * open_sky


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_lamp(pos, normal, albedo, gloss, soft, towards, lamp_at, rgb, shadow, filter_width, out):
    """Add one lamp's diffuse light and highlight. `lamp_at` is (x, y, z, reference distance); distance 0 means
    directional.
    """
    frame, origin, perspective, scale, depth, nearest, farthest, texel = shadow
    zero, one = np.float32(0.0), np.float32(1.0)
    lx, ly, lz, gain = towards[0], towards[1], towards[2], one
    offset, bias = np.float32(1.5 * texel), np.float32(0.5 * texel)
    for i in range(len(pos)):
        px, py, pz = pos[i, 0], pos[i, 1], pos[i, 2]
        if perspective:
            lx, ly, lz = lamp_at[0] - px, lamp_at[1] - py, lamp_at[2] - pz
            d2 = lx * lx + ly * ly + lz * lz
            inv = one / np.sqrt(d2)
            lx, ly, lz = lx * inv, ly * inv, lz * inv
            gain = min(lamp_at[3] * lamp_at[3] / d2, np.float32(4.0))
        nx, ny, nz = normal[i, 0], normal[i, 1], normal[i, 2]
        cos = nx * lx + ny * ly + nz * lz
        wrap = np.float32(0.28) * soft[i]
        if cos <= -wrap:
            continue
        seen = _lit(
            px + offset * nx,
            py + offset * ny,
            pz + offset * nz,
            frame,
            origin,
            perspective,
            scale,
            depth,
            nearest,
            farthest,
            bias,
            filter_width,
        )
        if seen <= zero:
            continue
        to_eye = -one / np.sqrt(px * px + py * py + pz * pz)
        vx, vy, vz = px * to_eye, py * to_eye, pz * to_eye
        nv = max(nx * vx + ny * vy + nz * vz, np.float32(0.05))
        rough, f0, metal = gloss[i, 0], gloss[i, 1], gloss[i, 2]
        spec = zero
        if cos > zero:
            hx, hy, hz = lx + vx, ly + vy, lz + vz
            inv = one / max(np.sqrt(hx * hx + hy * hy + hz * hz), np.float32(1e-6))
            nh = max((nx * hx + ny * hy + nz * hz) * inv, zero)
            vh = max((vx * hx + vy * hy + vz * hz) * inv, zero)
            a2 = max(rough * rough, np.float32(0.02)) ** 2
            b = nh * nh * (a2 - one) + one
            k = (rough + one) ** 2 * np.float32(0.125)
            mask = (nv * (one - k) + k) * (cos * (one - k) + k)
            fresnel = f0 + (one - f0) * (one - vh) ** 5
            spec = min(fresnel * a2 / (b * b * np.float32(4.0) * mask) * cos, np.float32(8.0)) * seen
        # Skin: the red part of the light reaches farthest past the shadow line.
        sharp = max(cos, zero) * seen
        for c in range(3):
            reach = wrap * (one if c == 0 else (np.float32(0.45) if c == 1 else np.float32(0.25)))
            diffuse = max((cos + reach) / (one + reach), zero)
            s = seen + np.float32(0.45) * soft[i] * seen * (one - seen) if c == 0 else seen
            a = albedo[i, c]
            tint = one - metal + metal * a
            lit = sharp if soft[i] == zero else diffuse * s
            out[i, c] += rgb[c] * gain * (a * (one - metal) * lit + tint * spec)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def gather_pixels(pixel, weight, radiance, out):
    """Add the samples to their pixels, in order; `out` is (pixels, 3)."""
    for i in range(len(pixel)):
        for c in range(3):
            out[pixel[i], c] += weight[i] * radiance[i, c]
