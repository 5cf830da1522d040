"""One frame of the stand-in, path-traced with mitsuba, and photographed.

Mitsuba's `scalar_rgb` variant with a box filter gives the same picture for the same seed, whatever the number of
threads.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import mitsuba
import numpy as np
import simplejpeg
import torch
from jaxtyping import Float, Int

from pam_aug.geometry import rigid_matrix, transform_points
from pam_aug.hand import HandAssets, HandLayer, load_open_hand
from pam_aug.render.forearm import ForearmShape, wrist_loop
from pam_aug.render.surface import corner_normals
from pam_aug.rollouts.label import pose_hand
from pam_aug.schema import Camera

from .demo_denoise import denoise
from .demo_looks import draw_object_colours, draw_room, draw_skin, draw_table, linear
from .demo_meshes import halved, refined, vertex_normals, with_arm
from .demo_scenes import pose
from .demo_sequences import Sequence, View
from .demo_shapes import make_shape

__all__ = ["render_jpeg", "trace"]

mi: Any = mitsuba  # its stubs do not know which variant is set
mi.set_variant("scalar_rgb")

_TABLE_HALF_M = 0.9
_DEPTH = 4
NEAR_M = 0.01
_GUIDE_SPP = 2
_CREASE_DEG = 38.0
_ARM_M = 0.6  # long enough to leave the picture


class _Skin(NamedTuple):
    """A hand with its arm, ready to be posed: topology, finer topology, and colours in the rest pose."""

    loop: Int[np.ndarray, "w"]
    faces: Int[np.ndarray, "f 3"]
    fine: Int[np.ndarray, "g 3"]
    edges: tuple[Int[np.ndarray, "e 2"], ...]  # of each refinement
    colours: Float[np.ndarray, "n 3"]
    arm: ForearmShape


class _Look(NamedTuple):
    """What stays the same in a sequence."""

    skin: _Skin
    skin_bsdf: dict[str, Any]
    cloth: Float[np.ndarray, "3"]
    object_verts: Float[np.ndarray, "v 3"]
    object_normals: Float[np.ndarray, "v 3"]
    object_colours: Float[np.ndarray, "v 3"]
    object_bsdf: dict[str, Any]
    fixed: dict[str, Any]
    clutter: tuple[Any, ...]


def render_jpeg(sequence: Sequence, view: View, noise_seed: int, spp: int) -> bytes:
    """The frame as JPEG bytes; `noise_seed` draws light paths and sensor noise, `spp` is paths per pixel."""
    light = trace(sequence, view, noise_seed, spp)
    rng = np.random.default_rng(noise_seed)
    camera_rng = np.random.default_rng(sequence.look_seed + 1)  # one camera per sequence
    rgb = _photograph(light, camera_rng, rng)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=int(camera_rng.integers(82, 96)), colorspace="RGB", colorsubsampling="420"
    )


def trace(sequence: Sequence, view: View, seed: int, spp: int) -> Float[np.ndarray, "h w 3"]:
    """The frame's linear light, its grain smoothed."""
    look = _look(sequence)
    skin = look.skin
    verts, joints = pose(view.hand)
    bare, _, sleeve = with_arm(verts, joints, load_open_hand(sequence.side).f, skin.loop, skin.arm)
    skin_verts, skin_normals = refined(bare, skin.faces, skin.edges)
    T = view.T_world_obj
    scene: dict[str, Any] = dict(look.fixed)
    scene["sensor"] = _sensor(view.camera)
    scene["hand"] = _mesh("hand", skin_verts, skin.fine, skin_normals, look.skin_bsdf, skin.colours)
    if sleeve is not None:
        cloth_verts, cloth_faces = sleeve
        colour = {"type": "principled", "base_color": _rgb(look.cloth), "roughness": 0.9, "sheen": 0.6}
        scene["sleeve"] = _mesh(
            "sleeve", cloth_verts, cloth_faces, vertex_normals(cloth_verts, cloth_faces), colour, None
        )
    object_verts = transform_points(T, look.object_verts)
    order = np.arange(len(object_verts)).reshape(-1, 3)
    turned = look.object_normals @ T[:3, :3].T
    scene["object"] = _mesh("object", object_verts, order, turned, look.object_bsdf, look.object_colours)
    for i, thing in enumerate(look.clutter):
        scene[f"clutter{i}"] = thing
    loaded, seed = mi.load_dict(scene), seed % (1 << 31)
    light = np.array(mi.render(loaded, spp=spp, seed=seed), dtype=np.float64)
    # Two samples of the guides will do: mitsuba's scalar form takes five times a light path's time for one.
    aovs = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal,depth:depth"})
    guides = np.array(mi.render(loaded, integrator=aovs, spp=_GUIDE_SPP, seed=seed), dtype=np.float64)
    return denoise(light[..., :3], guides[..., -7:-4], guides[..., -4:-1], guides[..., -1])


# --- what stays the same -------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _look(sequence: Sequence) -> _Look:
    rng = np.random.default_rng(sequence.look_seed)
    assets = load_open_hand(sequence.side)
    person = np.random.default_rng(sequence.skin_seed)
    skin = _skin(assets, sequence, person, rng)
    skin_bsdf = {
        "type": "principled",
        "roughness": float(person.uniform(0.38, 0.6)),
        "specular": float(person.uniform(0.35, 0.55)),
        "sheen": 0.2,
    }
    verts, faces = sequence.mesh.vertices_m, sequence.mesh.faces
    for _ in range(3):
        if len(faces) * 4 > 14000:
            break
        verts, faces, _ = halved(verts, faces)
    metal = float(rng.random() < 0.15)
    object_bsdf = {
        "type": "principled",
        "roughness": float(rng.uniform(0.12, 0.8)),
        "specular": float(rng.uniform(0.3, 0.7)),
        "metallic": metal,
        "clearcoat": float(rng.random() < 0.3),
    }
    ground_bsdf = {
        "type": "principled",
        "base_color": {
            "type": "bitmap",
            "bitmap": mi.Bitmap(draw_table(rng).astype(np.float32)),
            "raw": True,
            "to_uv": mi.ScalarTransform4f().scale(float(rng.uniform(0.8, 2.0))),
        },
        "roughness": float(rng.uniform(0.3, 0.9)),
    }
    turn = mi.ScalarTransform4f().rotate([0, 0, 1], float(rng.uniform(0, 360)))
    place = sequence.objects_world[0][:2, 3]
    shift = mi.ScalarTransform4f().translate([float(place[0]), float(place[1]), 0.0])
    lamp_at = [float(v) for v in (*rng.uniform(-1.2, 1.2, 2), rng.uniform(0.8, 1.8))]
    warm = rng.uniform(-0.25, 0.25)
    lamp = rng.uniform(2.0, 14.0) * np.array([1 + warm, 1.0, 1 - warm])
    lamp_size = float(rng.uniform(0.06, 0.35))
    fixed: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": _DEPTH},
        "room": {
            "type": "envmap",
            "bitmap": mi.Bitmap(draw_room(rng).astype(np.float32)),
            "scale": float(rng.uniform(0.35, 1.0)),
            # The map's up is +y, the world's +z.
            "to_world": turn @ mi.ScalarTransform4f().rotate([1, 0, 0], 90),
        },
        "table": {
            "type": "rectangle",
            "to_world": shift @ turn @ mi.ScalarTransform4f().scale(_TABLE_HALF_M),
            "bsdf": {"type": "twosided", "bsdf": ground_bsdf},
        },
        "lamp": {
            "type": "sphere",
            "center": [a + b for a, b in zip(lamp_at, (*place, 0.0))],
            "radius": lamp_size,
            "emitter": {"type": "area", "radiance": _rgb(lamp / (lamp_size / 0.15) ** 2)},
        },
    }
    return _Look(
        skin=skin,
        skin_bsdf=skin_bsdf,
        cloth=linear(rng.uniform(0.05, 0.85, 3)),
        object_verts=verts[faces].reshape(-1, 3),
        object_normals=corner_normals(verts, faces, _CREASE_DEG).reshape(-1, 3),
        object_colours=draw_object_colours(rng, verts)[faces].reshape(-1, 3),
        object_bsdf=object_bsdf,
        fixed=fixed,
        clutter=tuple(_clutter(rng, sequence)),
    )


def _skin(assets: HandAssets, sequence: Sequence, person: np.random.Generator, rng: np.random.Generator) -> _Skin:
    shaped = assets.v_template.astype(np.float64) + assets.shapedirs.astype(np.float64) @ sequence.hands[0].betas
    layer = HandLayer(assets, dtype=torch.float64)
    _, joints = pose_hand(layer, np.zeros(3), np.zeros(45), sequence.hands[0].betas, np.zeros(3))
    loop = wrist_loop(assets.f)
    sleeve = float(rng.uniform(0.02, 0.25)) if rng.random() < 0.65 else _ARM_M
    arm = ForearmShape(
        _ARM_M, (0.0, 0.0), float(person.uniform(0.4, 0.8)), sleeve, float(rng.uniform(0.003, 0.012)), (3, 1)
    )
    rest, faces, _ = with_arm(shaped, joints, assets.f, loop, arm)
    nail = np.zeros(len(rest))
    nail[: len(assets.nail)] = assets.nail > 0
    edges: list[np.ndarray] = []
    fine = faces
    points, marks = rest, nail[:, None]
    for _ in range(2):
        both, fine, edge = halved(np.concatenate([points, marks], 1), fine)
        points, marks = both[:, :3], both[:, 3:]
        edges.append(edge)
    colours = draw_skin(person, assets, points, vertex_normals(points, fine), _soft(marks[:, 0]))
    bend = (float(rng.normal(0, 0.15)), float(rng.normal(0, 0.2)))
    return _Skin(loop, faces, fine, tuple(edges), colours, arm._replace(bend_rad=bend))


def _soft(nail: np.ndarray) -> np.ndarray:
    return np.clip(nail * 1.6 - 0.3, 0, 1)


def _clutter(rng: np.random.Generator, sequence: Sequence) -> list[Any]:
    """Things on the table behind the interaction, as the first camera sees it; they are no labelled objects."""
    eye = sequence.cameras[0].T_world_cam[:3, 3].astype(np.float64)
    middle = np.mean([T[:3, 3] for T in sequence.objects_world], axis=0)
    away = (middle - eye)[:2] / max(float(np.linalg.norm((middle - eye)[:2])), 1e-6)
    things: list[Any] = []
    for i in range(int(rng.integers(0, 5))):
        mesh = make_shape("real", rng, f"clutter-{i}")
        angle = rng.normal(0, 0.8)
        cos, sin = np.cos(angle), np.sin(angle)
        direction = np.array([cos * away[0] - sin * away[1], sin * away[0] + cos * away[1]])
        at = middle[:2] + direction * rng.uniform(0.24, 0.6)
        R = np.diag([1.0, 1, 1])
        spin = rng.uniform(0, 2 * np.pi)
        R[:2, :2] = [[np.cos(spin), -np.sin(spin)], [np.sin(spin), np.cos(spin)]]
        verts = mesh.vertices_m * rng.uniform(0.8, 1.6)
        world = transform_points(rigid_matrix(R, np.array([*at, -verts[:, 2].min() + 0.001])), verts)
        corners = world[mesh.faces].reshape(-1, 3)
        colours = draw_object_colours(rng, verts)[mesh.faces].reshape(-1, 3)
        bsdf = {"type": "principled", "roughness": float(rng.uniform(0.2, 0.9))}
        order = np.arange(len(corners)).reshape(-1, 3)
        normals = corner_normals(world, mesh.faces, _CREASE_DEG).reshape(-1, 3)
        things.append(_mesh(f"clutter{i}", corners, order, normals, bsdf, colours))
    return things


def _mesh(name: str, verts, faces, normals, bsdf: dict[str, Any], colours: np.ndarray | None) -> Any:
    if colours is not None:
        bsdf = {**bsdf, "base_color": {"type": "mesh_attribute", "name": "vertex_color"}}
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "bsdf": bsdf})
    mesh = mi.Mesh(name, len(verts), len(faces), props=properties, has_vertex_normals=True)
    if colours is not None:
        mesh.add_attribute("vertex_color", 3, np.ascontiguousarray(colours, np.float32).ravel())
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = np.ascontiguousarray(verts, np.float32).ravel()
    parameters["vertex_normals"] = np.ascontiguousarray(normals, np.float32).ravel()
    parameters["faces"] = np.ascontiguousarray(faces, np.uint32).ravel()
    parameters.update()
    return mesh


# --- the camera ----------------------------------------------------------------------------------------------------


def _sensor(camera: Camera) -> dict[str, Any]:
    """Our pinhole as mitsuba's, which looks along +z with x to the left and y up, pixel centres at halves."""
    T = camera.T_world_cam.astype(np.float64) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    focal = float(camera.K_px[0, 0])
    return {
        "type": "perspective",
        "fov": float(np.degrees(2 * np.arctan(0.5 * camera.width / focal))),
        "fov_axis": "x",
        "near_clip": NEAR_M,
        "far_clip": 50.0,
        "principal_point_offset_x": float((camera.width / 2 - 0.5 - camera.K_px[0, 2]) / camera.width),
        "principal_point_offset_y": float((camera.height / 2 - 0.5 - camera.K_px[1, 2]) / camera.height),
        "to_world": mi.ScalarTransform4f(T),
        "sampler": {"type": "multijitter"},
        "film": {
            "type": "hdrfilm",
            "width": camera.width,
            "height": camera.height,
            "rfilter": {"type": "box"},
            "pixel_format": "rgb",
        },
    }


def _rgb(values: np.ndarray) -> dict[str, Any]:
    return {"type": "rgb", "value": [float(v) for v in values]}


def _photograph(light: np.ndarray, camera_rng: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Exposure, lens, sensor and tone curve: linear light to sRGB bytes."""
    exposure = camera_rng.uniform(0.13, 0.3)
    white = 1 + camera_rng.normal(0, 0.05, 3)
    blur, grain = camera_rng.uniform(0.25, 0.75), camera_rng.uniform(0.004, 0.02)
    contrast, corner = camera_rng.uniform(0.9, 1.15), camera_rng.uniform(0.0, 0.25)
    # Metered in the middle, by the log mean, as a camera would; fireflies are clipped before.
    h, w = light.shape[:2]
    centre = light[h // 5 : h - h // 5, w // 5 : w - w // 5].mean(2)
    key = np.exp(np.log(np.maximum(centre, 1e-4)).mean())
    x = np.minimum(light / key * exposure, 4.0) * white
    y, u = np.mgrid[0:h, 0:w]
    radius = ((y / h - 0.5) ** 2 + (u / w - 0.5) ** 2) * 2
    x *= 1 - corner * radius[..., None]
    x = cv2.GaussianBlur(x, (0, 0), blur)
    x = x + rng.normal(0, 1, x.shape) * grain * np.sqrt(np.maximum(x, 0.0) + 0.02)
    x = np.maximum(x, 0)
    x = x * (1 + x / 4) / (1 + x)  # Reinhard's curve with its white at 2
    x = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055)
    x = (x - 0.45) * contrast + 0.45
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
