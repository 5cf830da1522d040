"""Fixed camera rigs for sources that have no cameras: views like DexYCB's eight and like OAKINK2's four.

They are *like* those data sets in count, image size, field of view and in how the cameras stand about the table, so
that a model meets the framing of its target data. The positions are round numbers of our own: neither data set's
calibration enters (DexYCB: Chao et al., CVPR 2021; OAKINK2: Zhan et al., CVPR 2024). OAKINK2's fourth camera is
worn on the head and moves; here it stands where a head would be.
"""

import difflib
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pam_aug.errors import ConfigError
from pam_aug.geometry import resize_intrinsics
from pam_aug.rollouts.cameras import look_at
from pam_aug.schema import Camera

__all__ = ["RIGS", "Rig", "View", "rig_cameras"]


@dataclass(frozen=True)
class View:
    """A camera that looks at the rig's anchor: where it stands about it, and its own intrinsics.

    Azimuth is counted about the up axis, 0 towards the person whose hands are seen. `centre_px` is the principal
    point's offset from the middle of the image, which real cameras have too.
    """

    name: str
    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    focal_px: float
    centre_px: tuple[float, float] = (0.0, 0.0)
    roll_deg: float = 0.0


@dataclass(frozen=True)
class Rig:
    """Views that share an image size."""

    name: str
    width: int
    height: int
    views: tuple[View, ...]


RIGS: Final[dict[str, Rig]] = {
    "dexycb": Rig(
        "dexycb",
        640,
        480,
        (
            View("cam-0", 180.0, 25.0, 0.85, 616.0, (-6.0, 5.0)),
            View("cam-1", 135.0, 40.0, 0.95, 614.0, (4.0, -3.0), 3.0),
            View("cam-2", 90.0, 25.0, 0.90, 612.0, (-5.0, 2.0), -2.0),
            View("cam-3", 50.0, 55.0, 1.00, 617.0, (2.0, 6.0)),
            View("cam-4", 0.0, 70.0, 1.05, 613.0, (-7.0, 1.0)),
            View("cam-5", -50.0, 55.0, 1.00, 613.0, (-3.0, 5.0)),
            View("cam-6", -90.0, 25.0, 0.90, 615.0, (3.0, -4.0), 2.0),
            View("cam-7", -135.0, 40.0, 0.95, 618.0, (-4.0, 3.0), -3.0),
        ),
    ),
    "oakink2": Rig(
        "oakink2",
        848,
        480,
        (
            View("allocentric_top", 180.0, 75.0, 1.10, 606.0),
            View("allocentric_left", 110.0, 35.0, 1.05, 606.0),
            View("allocentric_right", -110.0, 35.0, 1.05, 606.0),
            View("egocentric", 0.0, 50.0, 0.65, 606.0),
        ),
    ),
}
"""The rigs by name."""


def rig_cameras(
    name: str,
    anchor_m: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"],
    toward_person: Float[np.ndarray, "3"],
    size: tuple[int, int] | None = None,
) -> tuple[Camera, ...]:
    """The cameras of a rig around `anchor_m` (world, metres), in the rig's order.

    `up` is the world's up axis; `toward_person` points from the anchor to the person, only its level part counts (any
    level direction is taken where it has none). `size` (width, height) resizes the images by one factor. Raises
    ConfigError for an unknown rig, naming the nearest, and for a size of another shape than the rig's.
    """
    if name not in RIGS:
        near = difflib.get_close_matches(name, RIGS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no camera rig {name!r}; did you mean {near!r}? (known: {', '.join(RIGS)})", rig=name)
    rig = RIGS[name]
    width, height = size or (rig.width, rig.height)
    if width * rig.height != height * rig.width:
        raise ConfigError(
            f"the rig {name!r} has images of {rig.width} x {rig.height}: {width} x {height} would distort them; "
            "give a size of the same shape, or none",
            rig=name,
        )
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    front = np.asarray(toward_person, np.float64) - (toward_person @ up) * up
    if np.linalg.norm(front) < 1e-9:
        front = np.eye(3)[np.abs(up).argmin()] - up[np.abs(up).argmin()] * up
    front /= np.linalg.norm(front)
    across = np.cross(up, front)
    return tuple(_camera(v, rig, width, height, anchor_m, up, front, across) for v in rig.views)


def _camera(
    view: View,
    rig: Rig,
    width: int,
    height: int,
    anchor_m: np.ndarray,
    up: np.ndarray,
    front: np.ndarray,
    across: np.ndarray,
) -> Camera:
    azimuth, elevation = np.radians(view.azimuth_deg), np.radians(view.elevation_deg)
    level = np.cos(azimuth) * front + np.sin(azimuth) * across
    eye = anchor_m + view.distance_m * (np.cos(elevation) * level + np.sin(elevation) * up)
    centre = np.array([rig.width - 1, rig.height - 1]) / 2 + view.centre_px
    K = np.array([[view.focal_px, 0.0, centre[0]], [0.0, view.focal_px, centre[1]], [0.0, 0.0, 1.0]])
    K = resize_intrinsics(K, width / rig.width, height / rig.height)
    return Camera(width, height, K, look_at(eye, anchor_m, up, float(np.radians(view.roll_deg))))
