"""What lies behind a hand: a table and a wall with things on them, a blurred collage, or a studio backdrop.

Everything here is behind the labelled surfaces and gets segmentation id 0. The table receives the shadows of hand
and objects.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float

from pam_aug.render.lighting import (
    SHADOW_FILTER,
    Lamp,
    ShadowMap,
    _draw_depth,
    _lit,
    add_lamp,
    frame_towards,
    sh_basis,
    shade_samples,
)
from pam_aug.render.rasterizer import rasterize
from pam_aug.render.surface import Surface, _interpolate, corner_normals
from pam_aug.render.textures import (
    bytes_to_linear,
    draw_palette,
    draw_print,
    noise_volume,
    sample_noise,
    sample_print,
    to_linear,
)

_CONTACT_MAP = 64
_NO_OCCLUSION = np.array(
    [1.0, *[2 / 3] * 3, *[0.25] * 5], np.float32
)  # cosine lobe per degree (Ramamoorthi and Hanrahan 2001)


class Plane(NamedTuple):
    """A textured plane {p: normal . p = offset_m}; the camera is on the side of the normal."""

    normal: Float[np.ndarray, "3"]
    offset_m: float
    frame: Float[np.ndarray, "3 3"]  # two axes in the plane, then the normal
    kind: int  # 0 clouds and grain, 1 wood, 2 a print
    colours: Float[np.ndarray, "2 3"]  # linear light
    pattern: Float[np.ndarray, "4"]  # cells (or prints) per metre, contrast, grain, offset
    picture: Float[np.ndarray, "p p 3"]


def draw_up(rng: np.random.Generator, verts_m: np.ndarray, body_m: np.ndarray) -> tuple[Float[np.ndarray, "3"], float]:
    """An up direction in the camera frame and the height of a table below all vertices.

    Of a few random camera tilts, one is taken whose table comes close to the hand and objects (`body_m`), not only
    to the arm.
    """
    n = 6
    pitch = np.deg2rad(rng.uniform(5, 88, n))
    roll = rng.uniform(-np.pi, np.pi, n) if rng.random() < 0.25 else rng.normal(0, 0.2, n)
    ups = np.stack([np.cos(pitch) * np.sin(roll), -np.cos(pitch) * np.cos(roll), -np.sin(pitch)], 1)
    low = (verts_m[::3] @ ups.T).min(0)
    hover = (body_m[::3] @ ups.T).min(0) - low
    k = int(hover.argmin())
    gap = 0.004 + (rng.exponential(0.04) if rng.random() < 0.5 else 0.0)
    return ups[k], float(low[k] - gap)


def draw_plane(rng: np.random.Generator, normal: np.ndarray, offset_m: float, calm: bool) -> Plane:
    """A random texture for a plane; a `calm` one (a wall) is mostly plain."""
    kind = int(rng.choice(3, p=(0.75, 0.05, 0.2) if calm else (0.4, 0.25, 0.35)))
    if kind == 1:
        tone = np.array([0.62, 0.42, 0.26]) * rng.uniform(0.25, 1.4) * rng.uniform(0.85, 1.15, 3)
        colours = to_linear(np.clip([tone, tone * rng.uniform(0.5, 0.85)], 0.02, 0.97))
        pattern = [rng.uniform(8, 40), rng.uniform(0.4, 1.0), rng.uniform(0, 0.15), rng.uniform(0, 64)]
    else:
        colours = to_linear(draw_palette(rng, 2))
        colours[1] = colours[0] + (colours[1] - colours[0]) * rng.uniform(0, 0.7)
        cells = rng.uniform(0.8, 6.0) if kind == 2 else 10 ** rng.uniform(0.7, 2.6)
        pattern = [cells, rng.uniform(0, 1) ** 2, rng.uniform(0, 0.2) ** 1.5, rng.uniform(0, 64)]
    picture = draw_print(rng) if kind == 2 else np.zeros((1, 1, 3), np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    frame = frame_towards(np.asarray(normal, np.float64))
    spin = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return Plane(
        normal.astype(np.float32), offset_m, (spin @ frame).astype(np.float32), kind, colours.astype(np.float32),
        np.array(pattern, np.float32), picture,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _paint_plane(
    rays, normal, offset, frame, kind, colours, pattern, picture, volume, footprint, need, depth, rgb, hit
):
    """Albedo where the plane is nearer than `depth`; patterns finer than a pixel's `footprint` (metres per metre)
    fade out.
    """
    one = np.float32(1.0)
    for i in range(len(rays)):
        nd = normal[0] * rays[i, 0] + normal[1] * rays[i, 1] + normal[2] * rays[i, 2]
        if nd > np.float32(-1e-3) or not need[i]:
            continue
        t = np.float32(offset) / nd
        if t <= 0 or t >= depth[i]:
            continue
        depth[i] = t
        hit[i] = True
        x, y, z = rays[i, 0] * t, rays[i, 1] * t, rays[i, 2] * t
        u = frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z
        v = frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z
        cells = pattern[0]
        keep = one / (one + (cells * footprint * t / max(-nd, np.float32(0.05))) ** 2 * np.float32(0.6))
        grain = np.float32(0.0)
        if pattern[2] > np.float32(0.004):
            fine = np.float32(40.0)
            _, grain, _, _ = sample_noise(volume, u * fine + pattern[3], v * fine, pattern[3])
            grain *= pattern[2] * keep
        if kind == 2:
            for k in range(3):
                p = sample_print(picture, u * cells, v * cells, k)
                rgb[i, k] = max((colours[0, k] + (p - colours[0, k]) * keep) * (one + grain), np.float32(0.005))
            continue
        if kind == 1:  # boards cut along their grain: stretched rings, and a step from board to board
            board = np.floor(v * np.float32(9.0))
            e, f, _, g = sample_noise(
                volume, u * np.float32(3.0) + board * np.float32(17.3), v * cells * np.float32(1.5), pattern[3] + board
            )
            level = np.float32(0.5) + np.float32(0.5) * np.sin(e * np.float32(5.0) + g * np.float32(1.5)) * keep
            level = (
                level * pattern[1]
                + np.float32(0.25) * np.float32((board * np.float32(0.618)) % one)
                + np.float32(0.06) * f * keep
            )
        else:
            e, f, _, g = sample_noise(volume, u * cells, v * cells, pattern[3])
            level = (np.float32(0.5) + np.float32(0.35) * (e + np.float32(0.3) * f) * keep) * pattern[1]
        level = min(max(level, np.float32(0.0)), one)
        for k in range(3):
            rgb[i, k] = max(
                (colours[0, k] + (colours[1, k] - colours[0, k]) * level) * (one + grain), np.float32(0.005)
            )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _light_plane(rays, depth, on, normal, frame, contact, contact_scale, ambient, pool, out_light):
    """Environment light on a plane, darker where something stands close above it; `pool` makes it uneven."""
    size = contact.shape[0]
    half = np.float32(size / 2 - 0.5)
    for i in range(len(rays)):
        if not on[i]:
            continue
        t = depth[i]
        x, y, z = rays[i, 0] * t, rays[i, 1] * t, rays[i, 2] * t
        u = (frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z - pool[0]) * contact_scale + half
        v = (frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z - pool[1]) * contact_scale + half
        shade = np.float32(1.0)
        iu, iv = int(np.floor(u)), int(np.floor(v))
        if 0 <= iu < size - 1 and 0 <= iv < size - 1:
            fu, fv = u - np.float32(iu), v - np.float32(iv)
            top = contact[iv, iu] + (contact[iv, iu + 1] - contact[iv, iu]) * fu
            low = contact[iv + 1, iu] + (contact[iv + 1, iu + 1] - contact[iv + 1, iu]) * fu
            shade -= top + (low - top) * fv
        fade = np.float32(1.0) / (np.float32(1.0) + pool[2] * max(t - pool[3], np.float32(0.0)))
        for k in range(3):
            out_light[i, k] = ambient[k] * shade * fade


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lamp_plane(rays, depth, on, normal, towards, lamp_at, rgb, shadow, filter_width, shadowed, out_light):
    frame, origin, perspective, scale, map_depth, nearest, farthest, texel = shadow
    one = np.float32(1.0)
    lx, ly, lz, gain = towards[0], towards[1], towards[2], one
    for i in range(len(rays)):
        if not on[i]:
            continue
        t = depth[i]
        x, y, z = rays[i, 0] * t, rays[i, 1] * t, rays[i, 2] * t
        if perspective:
            lx, ly, lz = lamp_at[0] - x, lamp_at[1] - y, lamp_at[2] - z
            d2 = lx * lx + ly * ly + lz * lz
            inv = one / np.sqrt(d2)
            lx, ly, lz = lx * inv, ly * inv, lz * inv
            gain = min(lamp_at[3] * lamp_at[3] / d2, np.float32(3.0))
        cos = normal[0] * lx + normal[1] * ly + normal[2] * lz
        if cos <= 0:
            continue
        if shadowed:
            bias = np.float32(0.5 * texel)
            cos *= _lit(x, y, z, frame, origin, perspective, scale, map_depth, nearest, farthest, bias, filter_width)
        for k in range(3):
            out_light[i, k] += rgb[k] * gain * cos


def _contact_map(verts, faces, plane: Plane, ball) -> tuple[np.ndarray, float, np.ndarray]:
    """How much the table is hidden from above, on a square grid in the plane; the grid's scale and centre."""
    centre, radius = ball
    radius = 1.3 * radius
    middle = plane.frame[:2].astype(np.float64) @ centre
    origin = (centre - (centre @ plane.normal - plane.offset_m) * plane.normal).astype(np.float32)
    scale = np.float32((_CONTACT_MAP / 2 - 2) / radius)
    height = _draw_depth(verts, faces, plane.frame, origin, False, scale, _CONTACT_MAP)
    near = np.exp(-np.maximum(height, 0) / 0.03) * 0.75 + np.exp(-np.maximum(height, 0) / 0.12) * 0.2
    sigma = float(max(0.012 * scale, 0.7))
    return cv2.GaussianBlur(near.astype(np.float32), (0, 0), sigma), float(scale), middle


def draw_room(
    rng: np.random.Generator, surface: Surface, rays: Float[np.ndarray, "p 3"], K_px: np.ndarray, up: np.ndarray,
    table_m: float, sh: np.ndarray, lamps: list[Lamp], shadows: list[ShadowMap], need: np.ndarray,
    ball: tuple[np.ndarray, float],
) -> Float[np.ndarray, "p 3"]:  # fmt: skip
    """A table with shadows, a wall behind it, and a few things; linear light per pixel, where `need` is set."""
    n = len(rays)
    volume, footprint = noise_volume(), np.float32(1.0 / np.sqrt(K_px[0, 0] * K_px[1, 1]))
    depth = np.full(n, 30.0, np.float32)
    albedo = np.empty((n, 3), np.float32)
    albedo[:] = to_linear(draw_palette(rng, 1)[0])
    light = np.full((n, 3), 0.8, np.float32)
    table = draw_plane(rng, up, table_m, calm=False)
    away = np.array([0.0, 0.0, 1.0]) - up[2] * up
    away = away / max(float(np.linalg.norm(away)), 1e-6)
    turn = rng.normal(0, 0.35)
    facing = -(np.cos(turn) * away + np.sin(turn) * np.cross(up, away))
    back = float((surface.verts_m @ facing).min()) - rng.uniform(0.1, 1.8)
    wall = draw_plane(rng, facing, back, calm=True)
    on_table, on_wall = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    _paint_plane(rays, *table, volume, footprint, need, depth, albedo, on_table)
    _paint_plane(rays, *wall, volume, footprint, need, depth, albedo, on_wall)
    on_table &= ~on_wall
    things = _draw_things(rng, surface, K_px, table, away, ball)
    contact_verts, contact_faces = surface.verts_m, surface.faces
    if things is not None:
        contact_verts = np.concatenate([contact_verts, things[0]])
        contact_faces = np.concatenate([contact_faces, things[1] + len(surface.verts_m)])
    contact, scale, middle = _contact_map(contact_verts, contact_faces, table, ball)
    for plane, on, shadowed in ((table, on_table, True), (wall, on_wall, False)):
        ambient = np.maximum(_NO_OCCLUSION * sh_basis(plane.normal[None].astype(np.float64))[0] @ sh, 0.02)
        pool = np.array([*middle, rng.uniform(0, 0.8), ball[0][2]], np.float32)
        none = np.zeros((2, 2), np.float32)
        grid = (contact, np.float32(scale)) if shadowed else (none, np.float32(0.0))
        _light_plane(rays, depth, on, plane.normal, plane.frame, *grid, ambient.astype(np.float32), pool, light)
        for lamp, shadow in zip(lamps, shadows):
            _lamp_plane(rays, depth, on, plane.normal, *lamp_arrays(lamp, ball), shadow, SHADOW_FILTER, shadowed, light)
    out = albedo * light
    if things is not None:
        _paint_things(rng, things, surface, K_px, depth, sh, lamps, shadows, ball, out)
    return out


def lamp_arrays(lamp: Lamp, ball: tuple[np.ndarray, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lamp as the kernels take it: direction, position with reference distance, colour."""
    distance = lamp.distance_m if np.isfinite(lamp.distance_m) else 0.0
    at = np.array([*(ball[0] + lamp.towards * distance), distance], np.float32)
    return lamp.towards.astype(np.float32), at, lamp.rgb.astype(np.float32)


@lru_cache(maxsize=1)
def _solids() -> list[tuple[np.ndarray, np.ndarray]]:
    """A box, a cylinder and a ball of unit size, standing on z = 0."""
    import trimesh

    made = [
        trimesh.creation.box(),
        trimesh.creation.cylinder(0.5, 1.0, sections=20),
        trimesh.creation.icosphere(subdivisions=2, radius=0.5),
    ]
    return [(np.asarray(m.vertices) + np.array([0, 0, 0.5]), np.asarray(m.faces, np.int32)) for m in made]


def _draw_things(rng, surface, K_px, table, away, ball):
    """A few boxes, cylinders and balls on the table that cannot come before the labelled surfaces."""
    far = float(surface.verts_m[:, 2].max())
    ys, xs = np.nonzero(surface.coverage)
    low = np.array([xs.min(), ys.min()]) - 4 if len(xs) else np.zeros(2)
    high = np.array([xs.max(), ys.max()]) + 4 if len(xs) else np.zeros(2)
    base = ball[0] - (ball[0] @ table.normal - table.offset_m) * table.normal
    side = np.cross(table.normal, away)
    verts, faces, colours, count = [], [], [], 0
    for _ in range(int(rng.integers(0, 8))):
        solid, tri = _solids()[int(rng.integers(3))]
        size = np.exp(rng.uniform(np.log(0.03), np.log(0.22), 3))
        yaw, ahead, beside = rng.uniform(0, np.pi), rng.uniform(-0.2, 0.9), rng.normal(0, 0.35)
        e1 = np.cos(yaw) * away + np.sin(yaw) * side
        frame = np.stack([e1, np.cross(table.normal, e1), table.normal])
        v = (solid * size) @ frame + base + ahead * away + beside * side
        colour = to_linear(draw_palette(rng, 1)[0])
        if v[:, 2].min() < 0.05:
            continue
        uv = v @ K_px.T
        uv = uv[:, :2] / uv[:, 2:]
        if v[:, 2].min() < far and not ((uv.max(0) < low).any() or (uv.min(0) > high).any()):
            continue
        verts.append(v.astype(np.float32))
        faces.append(tri + np.int32(count))
        colours.append(np.repeat(colour[None].astype(np.float32), len(tri), 0))
        count += len(v)
    return (np.concatenate(verts), np.concatenate(faces), np.concatenate(colours)) if verts else None


def _paint_things(rng, things, surface, K_px, depth, sh, lamps, shadows, ball, out) -> None:
    verts, faces, colours = things
    raster = rasterize(verts, faces, K_px, surface.width, surface.height)
    pixel = np.flatnonzero((raster.face.ravel() >= 0) & (raster.depth_m.ravel() < depth + 1e-3))
    if len(pixel) == 0:
        return
    face = raster.face.ravel()[pixel]
    bary = np.empty((len(pixel), 3), np.float32)
    bary[:, 1:] = raster.bary.reshape(-1, 2)[pixel]
    bary[:, 0] = 1 - bary[:, 1] - bary[:, 2]
    pos, normal = _interpolate(face, bary, verts, faces, corner_normals(verts, faces))
    albedo = colours[face]
    gloss = np.empty((len(pixel), 3), np.float32)
    gloss[:] = (rng.uniform(0.2, 0.9), 0.04, 0.0)
    soft = np.zeros(len(pixel), np.float32)
    radiance = np.empty((len(pixel), 3), np.float32)
    transfer = (sh_basis(normal) * _NO_OCCLUSION).astype(np.float32)
    shade_samples(pos, normal, albedo, gloss, soft, transfer, sh, radiance)
    for lamp, shadow in zip(lamps, shadows):
        add_lamp(pos, normal, albedo, gloss, soft, *lamp_arrays(lamp, ball), shadow, SHADOW_FILTER, radiance)
    out[pixel] = radiance


def draw_collage(rng: np.random.Generator, width: int, height: int) -> Float[np.ndarray, "p 3"]:
    """Blurred shapes and light spots over soft colour patches, as a room far out of focus looks."""
    n = int(rng.integers(2, 9))
    coarse = rng.uniform(0.02, 1, (n, n, 1)) * rng.uniform(0.5, 1, 3) + rng.normal(0, rng.uniform(0, 0.15), (n, n, 3))
    coarse *= rng.uniform(0.25, 1)
    image = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    image = (image * 255).astype(np.uint8)
    colours = (draw_palette(rng, 8) * 255).astype(int).tolist()
    extent = np.array([width, height])
    for _ in range(int(rng.integers(4, 40))):
        colour = colours[int(rng.integers(8))]
        at = rng.uniform(-0.1, 1.1, 2) * extent
        size = np.exp(rng.uniform(np.log(0.02), np.log(0.5), 2)) * width
        if rng.random() < 0.3:
            axes = tuple(int(v) for v in np.maximum(size / 2, 1))
            cv2.ellipse(
                image, (int(at[0]), int(at[1])), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA
            )
        else:
            turn = cv2.boxPoints(
                (
                    (float(at[0]), float(at[1])),
                    (float(size[0]), float(size[1])),
                    float(rng.choice([0, 90, rng.uniform(0, 90)])),
                )
            )
            cv2.fillConvexPoly(image, turn.astype(np.int32), colour, cv2.LINE_AA)
    blur = float(np.exp(rng.uniform(np.log(0.6), np.log(0.04 * width))))
    image = cv2.GaussianBlur(image, (0, 0), blur)
    return bytes_to_linear(image).reshape(-1, 3) * np.float32(rng.uniform(0.4, 1.3))


def draw_backdrop(rng: np.random.Generator, width: int, height: int) -> Float[np.ndarray, "p 3"]:
    """A plain backdrop: one colour, a soft gradient, faint clouds."""
    colours = to_linear(draw_palette(rng, 2)).astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(max(width, height)) - np.float32(0.5)
    t = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y
    t = np.clip(np.float32(0.5) + t * np.float32(rng.uniform(0.2, 1.2)), 0, 1)
    cloud = cv2.resize(rng.standard_normal((6, 6)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    t = np.clip(t + cloud * np.float32(rng.uniform(0, 0.15)), 0, 1)[..., None]
    out = colours[0] * (1 - t) + colours[1] * t
    return out.reshape(-1, 3)
