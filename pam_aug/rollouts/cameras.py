"""Cameras around an interaction, for sources that have none: a direction, a distance that fills the frame, a roll.

Directions are uniform on the band of the sphere that the elevations leave, about the world's up axis. The distance is
solved so that the framed points fill a drawn share of the image, so a sampled view looks like a hand crop whatever the
focal length and every framed point is in the image. A view is refused where too many joints are hidden, or where it
looks along the forearm from behind, into the wrist.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from pam_aug.errors import ConfigError
from pam_aug.rollouts.mesh_queries import clear_share
from pam_aug.schema import Camera

__all__ = ["CameraRanges", "behind_arm", "look_at", "sample_camera"]


@dataclass(frozen=True)
class CameraRanges:
    """What cameras are drawn from. Pairs are (low, high), uniform.

    `fov_deg` is the field of view across the longer image side; `fill` the share of the shorter image side that the
    framed points' box takes at its longer side; `off_centre` how far the box's centre may sit from the image's, as a
    share of what room is left; `max_hidden` the share of joints that something may stand in front of; `max_behind`
    the cosine between forearm and the line from wrist to camera, above which the camera stands behind the arm (1:
    anywhere).
    """

    width: int = 256
    height: int = 256
    fov_deg: tuple[float, float] = (25.0, 60.0)
    elevation_deg: tuple[float, float] = (5.0, 80.0)
    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    roll_deg: tuple[float, float] = (-15.0, 15.0)
    fill: tuple[float, float] = (0.35, 0.65)
    off_centre: float = 0.6
    max_hidden: float = 0.5
    max_behind: float = 0.75
    min_distance_m: float = 0.15
    tries: int = 12

    def __post_init__(self) -> None:
        pairs = ("fov_deg", "elevation_deg", "azimuth_deg", "roll_deg", "fill")
        wrong = [name for name in pairs if getattr(self, name)[0] > getattr(self, name)[1]]
        if self.fill[0] <= 0 or self.fill[1] >= 1:
            wrong.append("fill (inside 0 to 1)")
        if self.fov_deg[0] <= 0 or self.fov_deg[1] >= 150:
            wrong.append("fov_deg (inside 0 to 150)")
        if self.elevation_deg[0] < -90 or self.elevation_deg[1] > 90:
            wrong.append("elevation_deg (-90 to 90)")
        if self.tries < 1:
            wrong.append("tries (1 or more)")
        if min(self.width, self.height) < 8:
            wrong.append("width, height (8 pixels or more)")
        if wrong:
            raise ConfigError(f"camera ranges: {', '.join(wrong)} out of range; write [low, high]", fields=wrong)


def look_at(
    eye_m: Float[np.ndarray, "3"], target_m: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"], roll_rad: float = 0.0
) -> Float[np.ndarray, "4 4"]:
    """`T_world_cam` of an OpenCV camera at `eye_m` whose axis passes through `target_m`, `up` being up in the image.

    A positive roll turns the camera clockwise about its axis as seen from behind it. Looking along `up` is allowed.
    """
    forward = (target_m - eye_m) / np.linalg.norm(target_m - eye_m)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll_rad), np.sin(roll_rad)
    T = np.eye(4)
    T[:3, 0], T[:3, 1], T[:3, 2] = cos * right + sin * down, cos * down - sin * right, forward
    T[:3, 3] = eye_m
    return T


def behind_arm(camera: Camera, joints_m: Float[np.ndarray, "21 3"]) -> float:
    """The cosine between a hand's forearm and the line from its wrist to the camera; 1 looks into the open wrist."""
    forearm = joints_m[0] - joints_m[9]
    forearm = forearm / np.linalg.norm(forearm)
    away = camera.T_world_cam[:3, 3].astype(np.float64) - joints_m[0]
    return float(forearm @ away) / float(np.linalg.norm(away))


def sample_camera(
    rng: np.random.Generator,
    frame_m: Float[np.ndarray, "n 3"],
    joints_m: Float[np.ndarray, "21 3"],
    ranges: CameraRanges,
    up: Float[np.ndarray, "3"] | None = None,
    blockers: tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]] | None = None,
) -> tuple[Camera, float]:
    """A camera that sees all of `frame_m`, and the share of `joints_m` hidden from it. World frame, metres.

    `blockers` (vertices, faces) hide joints; without them nothing does. Of `ranges.tries` draws the first that is not
    refused is taken, else the one least behind the arm with the fewest hidden. The result depends on the
    arguments and the state of `rng` only. `up` is +z unless given.
    """
    up = np.array([0.0, 0.0, 1.0]) if up is None else np.asarray(up, np.float64) / np.linalg.norm(up)
    best: tuple[float, float, Camera] | None = None
    for _ in range(ranges.tries):
        camera = _draw(rng, frame_m, ranges, up)
        eye = camera.T_world_cam[:3, 3].astype(np.float64)
        excess = max(behind_arm(camera, joints_m) - ranges.max_behind, 0.0)
        if best is not None and excess > best[0]:
            continue
        hidden = 0.0 if blockers is None else 1.0 - clear_share(eye, joints_m, *blockers)[0]
        if best is None or (excess, hidden) < best[:2]:
            best = (excess, hidden, camera)
        if excess == 0.0 and hidden <= ranges.max_hidden:
            break
    assert best is not None  # the ranges ask for one try at least
    return best[2], best[1]


def _draw(rng: np.random.Generator, frame_m: np.ndarray, ranges: CameraRanges, up: np.ndarray) -> Camera:
    low, high = np.sin(np.radians(ranges.elevation_deg))
    z = rng.uniform(low, high)  # uniform in height is uniform on the sphere (Archimedes)
    azimuth = np.radians(rng.uniform(*ranges.azimuth_deg))
    side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    side /= np.linalg.norm(side)
    around = np.cos(azimuth) * side + np.sin(azimuth) * np.cross(up, side)
    direction = z * up + np.sqrt(max(1.0 - z * z, 0.0)) * around
    roll = np.radians(rng.uniform(*ranges.roll_deg))
    focal = 0.5 * max(ranges.width, ranges.height) / np.tan(0.5 * np.radians(rng.uniform(*ranges.fov_deg)))
    size = rng.uniform(*ranges.fill) * min(ranges.width, ranges.height)
    shift = rng.uniform(-1.0, 1.0, 2) * ranges.off_centre

    K = np.array([[focal, 0, (ranges.width - 1) / 2], [0, focal, (ranges.height - 1) / 2], [0, 0, 1.0]])
    target = 0.5 * (frame_m.min(0) + frame_m.max(0))
    reach = np.linalg.norm(frame_m - target, axis=1).max()
    nearest = max(ranges.min_distance_m, 1.5 * reach)
    distance = max(nearest, focal * 2 * reach / size)
    limit = np.array([ranges.width, ranges.height]) - 1.0
    slide = np.zeros(2)
    T = np.eye(4)
    # Distance sets the box's size, a slide in the camera's own plane its place; each changes the other a little.
    for step in range(7):
        T = look_at(target + distance * direction, target, up, roll)
        T[:3, 3] += T[:3, :2] @ slide
        px = _pixels(frame_m, T, K)
        low, high = px.min(0), px.max(0)
        wanted = K[:2, 2] + shift * np.maximum(limit - (high - low), 0.0) / 2
        slide = slide + (0.5 * (low + high) - wanted) * distance / focal
        if step < 6:
            distance = max(nearest, distance * float((high - low).max()) / size)
    for _ in range(3):  # what still sticks out of the image is pulled back in
        px = _pixels(frame_m, T, K)
        over = np.maximum(px.max(0) - (limit - 1.0), 0.0) - np.maximum(1.0 - px.min(0), 0.0)
        T[:3, 3] += T[:3, :2] @ over * distance / focal
    return Camera(ranges.width, ranges.height, K, T)


def _pixels(points_m: np.ndarray, T_world_cam: np.ndarray, K_px: np.ndarray) -> np.ndarray:
    cam = (points_m - T_world_cam[:3, 3]) @ T_world_cam[:3, :3]
    return (cam @ K_px.T)[:, :2] / cam[:, 2:]
