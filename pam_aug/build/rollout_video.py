"""A rollout as a short film, to be looked at: hand and object on their table from one camera that stands still.

Plain shading of exact geometry, no generator: what enters what and what hangs in the air should be plain to see.
"""

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from pam_aug import registry
from pam_aug.errors import BackendError
from pam_aug.geometry import invert_rigid, transform_points
from pam_aug.hand import HandLayer
from pam_aug.render.conditions import Part, merge_parts
from pam_aug.render.rasterizer import rasterize
from pam_aug.rollouts.cameras import CameraRanges, sample_camera
from pam_aug.rollouts.label import pose_hand
from pam_aug.schema import SEG_FIRST_OBJECT, Camera
from pam_aug.shards.atomic import TEMPORARY_PREFIX

__all__ = ["film"]

_WIDTH, _HEIGHT = 480, 360
_FINER: Final = 2  # pixels drawn for one of the film's, along an edge
_FPS: Final = 15.0
_LOOK: Final = CameraRanges(
    width=_WIDTH * _FINER,
    height=_HEIGHT * _FINER,
    fov_deg=(40.0, 40.0),
    elevation_deg=(15.0, 35.0),
    roll_deg=(0.0, 0.0),
    fill=(0.85, 0.85),
    off_centre=0.0,
    max_hidden=0.4,
    max_behind=0.3,
    tries=24,
)
_SKIN, _THING, _BACK = np.array([224, 172, 138.0]), np.array([86, 132, 196.0]), np.array([236, 238, 242.0])
_TILES: Final = np.array([[206, 208, 212.0], [190, 192, 198.0]])
_TILE_M: Final = 0.05
_LAMP: Final = np.array([0.4, -0.8, -0.45])  # where light comes from, camera frame: above, from the right
_AMBIENT: Final = 0.42


def film(archive: Path, video: Path) -> int:
    """Write the archive's trajectory as an mp4 of 480 x 360 at up to 15 frames per second; how many frames it has.

    The whole file appears at once. Raises SourceError for an archive that cannot be read, BackendError where OpenCV
    cannot write mp4.
    """
    converter: Any = registry.load("converters", "rollout-npz")
    source = converter(converter.Options(archives=str(archive), stride=1))
    trajectory, assets = source.trajectory(0), source.hand_assets()
    layers = {name.rpartition("/")[2]: HandLayer(each, dtype=torch.float64) for name, each in assets.items()}
    rate = (len(trajectory.times_s) - 1) / max(float(trajectory.times_s[-1] - trajectory.times_s[0]), 1e-9)
    step = max(1, round(rate / _FPS))
    frames = range(0, len(trajectory.times_s), step)
    meshes = [track.mesh.load() for track in trajectory.objects]
    posed = [
        [
            pose_hand(layers[h.side], h.global_orient[f], h.hand_pose[f], h.betas[f], h.transl[f])
            for h in trajectory.hands
        ]
        for f in frames
    ]
    placed = [
        [transform_points(track.T_world_obj[f], mesh.vertices_m) for track, mesh in zip(trajectory.objects, meshes)]
        for f in frames
    ]
    hand_faces = [np.concatenate([layers[h.side].assets.f, layers[h.side].assets.f_cap]) for h in trajectory.hands]
    table = min(float((verts @ trajectory.up).min()) for verts in placed[0]) if meshes else None
    camera = _camera(posed, placed, [mesh.faces for mesh in meshes], trajectory.up)
    temporary = video.with_name(f"{TEMPORARY_PREFIX}{video.name}")  # OpenCV goes by the suffix
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate / step, (_WIDTH, _HEIGHT))
    if not writer.isOpened():
        raise BackendError(f"{video}: this OpenCV cannot write mp4 files there; check the folder, or leave --video out")
    first = [verts @ trajectory.up for verts in placed[0]]
    stage = _Stage(camera, trajectory.up, table)
    for f, hands, things in zip(frames, posed, placed):
        picture = stage.picture(
            [(verts, faces, 1) for (verts, _), faces in zip(hands, hand_faces)]
            + [(verts, mesh.faces, SEG_FIRST_OBJECT) for verts, mesh in zip(things, meshes)]
        )
        rise = max((float((v @ trajectory.up - a).mean()) for v, a in zip(things, first)), default=0.0)
        text = f"{trajectory.times_s[f]:.2f} s   {rise * 100:+.1f} cm"
        cv2.putText(picture, text, (8, _HEIGHT - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
        writer.write(picture)
    writer.release()
    temporary.replace(video)
    return len(frames)


def _camera(posed: list[Any], placed: list[Any], faces: list[np.ndarray], up: np.ndarray) -> Camera:
    """A camera that sees all of the motion, and most of the first hand's joints half way through it."""
    middle = len(posed) // 2
    every = [verts for hands in posed[::8] for verts, _ in hands]
    every += [verts for things in placed[::8] for verts in things]
    starts = np.cumsum([0, *(len(verts) for verts in placed[middle])])
    blockers = None
    if faces:
        joined = np.concatenate([f + start for f, start in zip(faces, starts)])
        blockers = (np.concatenate(placed[middle]), joined.astype(np.int64))
    rng = np.random.default_rng(0)
    return sample_camera(rng, np.concatenate(every), posed[middle][0][1], _LOOK, up, blockers)[0]


class _Stage:
    """What does not change over a film: the camera's rays, and the table behind the solids."""

    def __init__(self, camera: Camera, up: np.ndarray, table: float | None) -> None:
        self.camera, self.K_px = camera, camera.K_px.astype(np.float64)
        T_world_cam = camera.T_world_cam.astype(np.float64)
        self.T_cam_world = invert_rigid(T_world_cam)
        u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        self.rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(self.K_px).T
        self.back = _table(self.rays, T_world_cam, up, table).astype(np.float32)

    def picture(self, solids: list[tuple[np.ndarray, np.ndarray, int]]) -> UInt8[np.ndarray, "h w 3"]:
        """One frame, BGR: solids (world vertices, faces, segmentation id) under the lamp."""
        parts = [Part(transform_points(self.T_cam_world, verts), faces, seg) for verts, faces, seg in solids]
        verts, faces, of_face = merge_parts(parts)
        raster = rasterize(verts, faces, self.K_px, self.camera.width, self.camera.height)
        image, hit = self.back.copy(), raster.face >= 0
        face = raster.face[hit]
        skin = (np.array([part.seg_id for part in parts]) < SEG_FIRST_OBJECT)[of_face[face]]
        normals = _normals(verts, faces, face, raster.bary[hit].astype(np.float64), skin)
        normals *= -np.sign(np.einsum("pi,pi->p", normals, self.rays[hit]))[:, None]  # both sides of a face count
        light = np.clip(normals @ (_LAMP / np.linalg.norm(_LAMP)), 0.0, 1.0)
        colour = np.where(skin[:, None], _SKIN, _THING)
        image[hit] = colour * (_AMBIENT + (1.0 - _AMBIENT) * light)[:, None]
        small = cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(np.clip(small, 0, 255).astype(np.uint8)[..., ::-1])


def _normals(
    verts: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    face: Int[np.ndarray, "p"],
    bary: Float[np.ndarray, "p 2"],
    smooth: Bool[np.ndarray, "p"],
) -> Float[np.ndarray, "p 3"]:
    """Unit normals of pixels: interpolated between corners where `smooth` (skin), the face's own elsewhere."""
    corners = verts[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    at = np.zeros_like(verts)
    for k in range(3):
        np.add.at(at, faces[:, k], flat)
    normals = flat[face]
    weights = np.concatenate([1.0 - bary.sum(1, keepdims=True), bary], axis=1)
    normals[smooth] = np.einsum("pk,pki->pi", weights[smooth], at[faces[face[smooth]]])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _table(rays: np.ndarray, T_world_cam: np.ndarray, up: np.ndarray, height: float | None) -> np.ndarray:
    """What lies behind the solids: tiles of 5 cm at `height` along `up`, fading into the background with distance."""
    image = np.broadcast_to(_BACK, rays.shape).copy()
    if height is None:
        return image
    turned = rays @ T_world_cam[:3, :3].T
    down = turned @ up
    with np.errstate(divide="ignore", invalid="ignore"):
        far = (height - T_world_cam[:3, 3] @ up) / down
    seen = np.isfinite(far) & (far > 0)
    points = T_world_cam[:3, 3] + far[seen][:, None] * turned[seen]
    side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    side /= np.linalg.norm(side)
    place = np.floor(np.stack([points @ side, points @ np.cross(up, side)], axis=1) / _TILE_M).astype(np.int64)
    fade = np.clip(1.6 - far[seen], 0.0, 1.0)[:, None]
    image[seen] = fade * _TILES[place.sum(1) % 2] + (1.0 - fade) * _BACK
    return image
