"""Shaded pictures of labelled geometry: prepared once per input, shaded once per seed.

`prepare` draws the geometry and all that depends on nothing else (visibility, texture coordinates, skin marks).
`shade` is a pure function of what was prepared and a seed: it draws a person, materials, light, background and
camera, and moves no pixel of the geometry.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from pam_aug.hand.assets import HandAssets
from pam_aug.render import backgrounds, lighting
from pam_aug.render.camera_noise import draw_camera, take_picture
from pam_aug.render.conditions import Part
from pam_aug.render.lighting import Lamp
from pam_aug.render.skin import PALM, draw_person, paint_skin, skin_marks
from pam_aug.render.surface import Surface, corner_normals, interpolate, see_surface
from pam_aug.render.textures import draw_material, noise_volume, object_uv, paint_material

_SOFT = {"hand": 1.0, "arm": 1.0, "cloth": 0.0, "object": 0.0}


class Piece(NamedTuple):
    """One mesh to shade: where it is, where its texture lies, and what it is made of."""

    part: Part
    rest_m: Float[np.ndarray, "v 3"]  # texture coordinates: the rest pose of a hand or arm, the object's own frame
    look: Literal["hand", "arm", "cloth", "object"]
    assets: HandAssets | None = None  # the model of a hand


class Group(NamedTuple):
    """Samples that share a material."""

    look: str
    ids: Int[np.ndarray, "k"]
    marks: Float[np.ndarray, "k 5"]


class Prepared(NamedTuple):
    """All of one input that does not change with the seed."""

    K_px: Float[np.ndarray, "3 3"]
    surface: Surface
    groups: tuple[Group, ...]
    tex_m: Float[np.ndarray, "n 3"]
    uv: Float[np.ndarray, "n 4"]
    soft: Float[np.ndarray, "n"]
    transfer: Float[np.ndarray, "n 9"]
    ball: tuple[np.ndarray, float]
    body_m: Float[np.ndarray, "b 3"]  # vertices of hands and objects, without arms
    rays: Float[np.ndarray, "p 3"]


def prepare(pieces: Sequence[Piece], K_px: Float[np.ndarray, "3 3"], width: int, height: int) -> Prepared:
    """Draw the pieces and gather what shading needs. `K_px` as in `rasterize`."""
    K_px = np.asarray(K_px, np.float64)
    surface = see_surface([p.part for p in pieces], K_px, width, height)
    tex = interpolate(surface, np.concatenate([p.rest_m for p in pieces]))
    n = len(surface.pixel)
    uv, soft = np.zeros((n, 4), np.float32), np.zeros(n, np.float32)
    groups: list[Group] = []
    first = 0
    for number, piece in enumerate(pieces):
        if piece.look == "hand" and piece.assets is not None:
            ids, marks = skin_marks(surface, number, piece.assets, first)
        else:
            ids = np.flatnonzero(surface.part == number)
            marks = np.zeros((len(ids), 5), np.float32)
            normal = _rest_normal(surface, ids, piece, first)
            if piece.look == "arm":
                marks[:, PALM] = 0.4 * np.clip(0.5 - normal[:, 1], 0, 1)
            else:
                uv[ids] = object_uv(tex[ids], normal, np.stack([piece.rest_m.min(0), piece.rest_m.max(0)]))
        soft[ids] = _SOFT[piece.look]
        groups.append(Group(piece.look, ids.astype(np.int32), marks))
        first += len(piece.part.verts_cam_m)
    body = [p.part.verts_cam_m for p in pieces if p.look in ("hand", "object")]
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([u.ravel(), v.ravel(), np.ones(width * height)], 1) @ np.linalg.inv(K_px).T
    return Prepared(
        K_px, surface, tuple(groups), tex, uv, soft,
        lighting.light_transfer(surface), lighting.scene_ball(surface.verts_m),
        np.concatenate(body).astype(np.float32) if body else surface.verts_m, np.ascontiguousarray(rays, np.float32),
    )  # fmt: skip


def _rest_normal(surface: Surface, ids: np.ndarray, piece: Piece, first: int) -> Float[np.ndarray, "k 3"]:
    corner = corner_normals(np.asarray(piece.rest_m, np.float64), np.asarray(piece.part.faces))
    start = int(np.searchsorted(surface.part_of_face, surface.part[ids[0]])) if len(ids) else 0
    normal = np.einsum("nc,nck->nk", surface.bary[ids], corner[surface.face[ids] - start])
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)


def shade(prepared: Prepared, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """One picture (sRGB bytes): the same bytes for the same prepared input and seed, in any process."""
    rng = np.random.Generator(np.random.PCG64(seed))
    surface = prepared.surface
    width, height = surface.width, surface.height
    up, table_m = backgrounds.draw_up(rng, surface.verts_m, prepared.body_m)
    sh, lamps = draw_light(rng, up)
    shadows = [lighting.lamp_shadow(surface, lamp, prepared.ball) for lamp in lamps]
    foreground = _shade_surface(prepared, rng, sh, lamps, shadows)
    style = rng.random()
    blur_px = float(rng.uniform(0.4, 0.012 * width + 0.4)) if rng.random() < 0.5 else 0.0  # is the background in focus?
    if style < 0.65:
        reach = 2 * int(np.ceil(4 * blur_px)) + 1
        need = cv2.blur((surface.coverage < 1).astype(np.float32), (reach, reach)).ravel() > 0
        back = backgrounds.draw_room(
            rng, surface, prepared.rays, prepared.K_px, up, table_m, sh, lamps, shadows, need, prepared.ball
        )
    elif style < 0.88:
        back = backgrounds.draw_collage(rng, width, height) * np.float32(_brightness(sh, lamps))
    else:
        back = backgrounds.draw_backdrop(rng, width, height) * np.float32(_brightness(sh, lamps))
    back = back.reshape(height, width, 3)
    if blur_px > 0:
        back = cv2.GaussianBlur(back, (0, 0), blur_px, borderType=cv2.BORDER_REPLICATE)
    light = foreground + back * np.maximum(1 - surface.coverage, 0)[..., None]
    covered = float(surface.coverage.sum())
    subject = float(foreground.sum()) / (3 * covered) if covered > 0 else float(light.mean())
    look = draw_camera(rng)
    target = float(np.exp(rng.normal(np.log(0.2), 0.27)))
    # Half way between a fixed exposure (dark skin stays dark) and one that levels the subject.
    exposure = target / np.sqrt(max(subject, 1e-4) * 0.35 * _brightness(sh, lamps))
    return take_picture(light, look, float(exposure))


def _brightness(sh: np.ndarray, lamps: Sequence[Lamp]) -> float:
    """About the light that a white surface reflects in this environment."""
    return float(max(0.282095 * sh[0].mean(), 0.02) + 0.5 * sum(lamp.rgb.mean() for lamp in lamps))


def draw_light(rng: np.random.Generator, up: Float[np.ndarray, "3"]) -> tuple[Float[np.ndarray, "9 3"], list[Lamp]]:
    """Random environment light (nine coefficients per colour, float32) and one to three lamps above the horizon."""
    directions = lighting.sphere_directions(64)
    height = directions @ up
    sky, ground = _light_colour(rng), _light_colour(rng) * rng.uniform(0.15, 0.6)
    t = np.clip(0.5 + height * rng.uniform(0.4, 2.0), 0, 1)[:, None]
    radiance = ground * (1 - t) + sky * t
    for _ in range(int(rng.integers(0, 4))):  # windows, bright walls
        towards = _direction_above(rng, up)
        radiance += (
            np.exp(rng.uniform(1, 8) * (directions @ towards - 1))[:, None] * _light_colour(rng) * rng.uniform(0.5, 4)
        )
    sh = lighting.sh_basis(directions).T @ radiance * (4 * np.pi / len(directions))
    sh *= rng.uniform(0.35, 1.0)
    lamps = []
    for k in range(int(rng.choice([1, 2, 3], p=[0.55, 0.33, 0.12]))):
        distance = float(rng.uniform(0.5, 2.0)) if rng.random() < 0.4 else np.inf
        strength = rng.uniform(0.25, 2.0) * (1.0 if k == 0 else 0.5)
        penumbra = float(np.exp(rng.uniform(np.log(0.008), np.log(0.05))))
        lamps.append(Lamp(_direction_above(rng, up), distance, _light_colour(rng) * strength, penumbra))
    return sh.astype(np.float32), lamps


def _direction_above(rng: np.random.Generator, up: np.ndarray) -> Float[np.ndarray, "3"]:
    d = rng.normal(0, 1, 3) + 0.6 * up - np.array([0, 0, 0.4])  # rather above and on the camera's side
    d /= np.linalg.norm(d)
    if d @ up < 0.1:
        d = d + (0.2 - d @ up) * up
        d /= np.linalg.norm(d)
    return d


def _light_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """The tint of daylight to candle light, mean about 1."""
    warm = rng.normal(0.04, 0.13)
    return np.array([1 + warm, 1 + rng.normal(0, 0.03), 1 - warm]).clip(0.3, 1.7)


def _shade_surface(prepared: Prepared, rng, sh, lamps, shadows) -> Float[np.ndarray, "h w 3"]:
    surface, volume = prepared.surface, noise_volume()
    n = len(surface.pixel)
    albedo, gloss = np.empty((n, 3), np.float32), np.empty((n, 3), np.float32)
    normal = surface.normal.copy()
    person = draw_person(rng)
    for group in prepared.groups:
        if group.look in ("hand", "arm"):
            paint_skin(group.ids, prepared.tex_m, group.marks, volume, *person, albedo, normal, gloss)
        else:
            material = draw_material(rng, group.look == "cloth")
            paint_material(group.ids, prepared.tex_m, prepared.uv, volume, *material, albedo, normal, gloss)
    radiance = np.empty((n, 3), np.float32)
    lighting.shade_samples(surface.pos_m, normal, albedo, gloss, prepared.soft, prepared.transfer, sh, radiance)
    for lamp, shadow in zip(lamps, shadows):
        arrays = backgrounds.lamp_arrays(lamp, prepared.ball)
        lighting.add_lamp(
            surface.pos_m, normal, albedo, gloss, prepared.soft, *arrays, shadow, lighting.SHADOW_FILTER, radiance
        )
    out = np.zeros((surface.height * surface.width, 3), np.float32)
    lighting.gather_pixels(surface.pixel, surface.weight, radiance, out)
    return out.reshape(surface.height, surface.width, 3)
