"""The perspective crop: the camera turned towards the hand, so that a crop's labels are exact anywhere in the image.

An affine crop of an off-centre hand shows it as if seen from straight ahead, while its label still says where the
camera looked. Turning the camera (a rotation R, hence a homography of the image) removes the difference; 3-D points
turn by the same R. An in-plane turn, a zoom and a shift of the crop are exact in the same way.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pam_aug.errors import SchemaError

__all__ = ["PerspectiveCrop", "perspective_crop", "upright_turn"]

ENLARGE = 1.35
"""Crop side over the box's longer side. The box is that of the joints; fingers' flesh reaches past it."""

_KNUCKLES = (5, 9, 13, 17)


@dataclass(frozen=True, slots=True, eq=False)
class PerspectiveCrop:
    """A square view of `size_px`. `R_crop_cam` turns camera points into the crop's camera, whose intrinsics are
    `K_crop_px`; `flip` says that the view (and its points, x negated) is mirrored after that."""

    R_crop_cam: Float[np.ndarray, "3 3"]
    K_px: Float[np.ndarray, "3 3"]
    K_crop_px: Float[np.ndarray, "3 3"]
    size_px: int
    flip: bool

    @property
    def homography(self) -> Float[np.ndarray, "3 3"]:
        """Image pixels to crop pixels."""
        H = self.K_crop_px @ self.R_crop_cam @ np.linalg.inv(self.K_px)
        if self.flip:
            H = np.array([[-1.0, 0.0, self.size_px - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ H
        return H / H[2, 2]

    def image(self, rgb: UInt8[np.ndarray, "h w 3"], border: int = cv2.BORDER_REPLICATE) -> UInt8[np.ndarray, "s s 3"]:
        """The view of an image, bilinear."""
        size = (self.size_px, self.size_px)
        return cv2.warpPerspective(rgb, self.homography, size, flags=cv2.INTER_LINEAR, borderMode=border)

    def points(self, points_px: Float[np.ndarray, "*b n 2"]) -> Float[np.ndarray, "*b n 2"]:
        """Image pixels in crop pixels."""
        return _apply(self.homography, points_px)

    def points_to_image(self, crop_px: Float[np.ndarray, "*b n 2"]) -> Float[np.ndarray, "*b n 2"]:
        """Crop pixels in image pixels; inverse of `points`."""
        return _apply(np.linalg.inv(self.homography), crop_px)

    def vectors(self, cam_m: Float[np.ndarray, "*b n 3"]) -> Float[np.ndarray, "*b n 3"]:
        """Camera-frame vectors (root-relative points) in the crop's, mirrored, axes."""
        turned = cam_m @ self.R_crop_cam.T
        return turned * np.array([-1.0, 1.0, 1.0]) if self.flip else turned

    def vectors_to_camera(self, crop_m: Float[np.ndarray, "*b n 3"]) -> Float[np.ndarray, "*b n 3"]:
        """Inverse of `vectors`."""
        return (crop_m * np.array([-1.0, 1.0, 1.0]) if self.flip else crop_m) @ self.R_crop_cam


def perspective_crop(
    K_px: Float[np.ndarray, "3 3"],
    box_px: Float[np.ndarray, "4"],
    size_px: int,
    *,
    flip: bool,
    enlarge: float = ENLARGE,
    shift: tuple[float, float] = (0.0, 0.0),
    turn_rad: float = 0.0,
) -> PerspectiveCrop:
    """The view that looks at a box (x0, y0, x1, y1), its longer side 1/`enlarge` of the view.

    `shift` moves the view's centre, in box sides; `turn_rad` turns it in its plane. Raises SchemaError for a box
    that is not finite or that the turned camera cannot see whole.
    """
    box = np.asarray(box_px, np.float64)
    if not np.isfinite(box).all() or not np.isfinite(K_px).all():
        raise SchemaError(f"a box {box.tolist()} or intrinsics that are not finite make no crop; leave this hand out")
    K = np.asarray(K_px, np.float64)
    side = max(float((box[2:] - box[:2]).max()), 1.0)
    centre = (box[:2] + box[2:]) / 2 + side * np.asarray(shift)
    R = _look_at(np.linalg.solve(K, np.array([*centre, 1.0])))
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    square = (box[:2] + box[2:]) / 2 + side / 2 * np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
    rays = np.linalg.solve(K, np.c_[square, np.ones(4)].T)
    seen = R @ rays
    if (seen[2] <= 1e-6).any():
        raise SchemaError(f"a box {box.tolist()} reaches behind the camera; leave this hand out")
    x, y = seen[0] / seen[2], seen[1] / seen[2]
    extent = max(np.hypot(x[1] - x[0], y[1] - y[0]), np.hypot(x[3] - x[2], y[3] - y[2]))
    focal = size_px / (enlarge * extent)
    middle = (size_px - 1) / 2
    K_crop = np.array([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])
    in_plane = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return PerspectiveCrop(in_plane @ R, K, K_crop, size_px, flip)


def upright_turn(joints_m: Float[np.ndarray, "21 3"], noise: Float[np.ndarray, "2"] | float = 0.0) -> float:
    """The turn (rad) of a crop whose axes `joints_m` are in, not mirrored, under which the wrist is below the knuckles.

    `noise` is added to the across and down parts of the unit vector from wrist to knuckles: the less of a hand is seen
    from the side, the less sure its turn is.
    """
    along = joints_m[list(_KNUCKLES)].mean(0) - joints_m[0]
    across, down = along[:2] / max(float(np.linalg.norm(along)), 1e-9) + noise
    return float(-np.pi / 2 - np.arctan2(down, across))


def _look_at(ray: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes a ray (z > 0) to the z axis; defined at the axis itself."""
    a = ray / np.linalg.norm(ray)
    cross = np.array([a[1], -a[0], 0.0])  # a × z
    skew = np.array([[0.0, -cross[2], cross[1]], [cross[2], 0.0, -cross[0]], [-cross[1], cross[0], 0.0]])
    return np.eye(3) + skew + skew @ skew / (1.0 + a[2])


def _apply(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    lifted = points @ H[:, :2].T + H[:, 2]
    return lifted[..., :2] / lifted[..., 2:]
