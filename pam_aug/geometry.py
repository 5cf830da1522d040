"""Rotations, cameras, crops and point-set alignment.

Frames and units: metres, radians, pixels; the camera is OpenCV's (x right, y down, z forward); pixel centres stand at
integer coordinates. One implementation serves numpy arrays and torch tensors: the result is of the kind and precision
of the argument, on its device, and torch results carry gradients.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from pam_aug.errors import SchemaError

__all__ = [
    "Crop",
    "axis_angle_to_matrix",
    "crop_affine",
    "crop_intrinsics",
    "euler_to_matrix",
    "flip_intrinsics",
    "flip_points",
    "invert_rigid",
    "matrix_to_axis_angle",
    "matrix_to_quaternion",
    "pa_mpjpe_mm",
    "procrustes_align",
    "project",
    "quaternion_to_matrix",
    "resize_intrinsics",
    "resize_points",
    "rigid_matrix",
    "root_aligned_mpjpe_mm",
    "square_crop",
    "transform_points",
    "unproject",
]

ArrayT = TypeVar("ArrayT", np.ndarray, torch.Tensor)
QuaternionOrder = Literal["wxyz", "xyzw"]


def _lib(array: Any) -> Any:
    return torch if isinstance(array, torch.Tensor) else np


def _stack(parts: list[Any], shape: tuple[int, ...]) -> Any:
    lib = _lib(parts[0])
    stacked = torch.stack(parts, dim=-1) if lib is torch else np.stack(parts, axis=-1)
    return stacked.reshape(shape)


# --- rotations -----------------------------------------------------------------------------------------------------


def axis_angle_to_matrix(axis_angle: Float[ArrayT, "*b 3"]) -> Float[ArrayT, "*b 3 3"]:
    """Rotation matrices of axis-angle vectors (radians), by Rodrigues' formula.

    Exact and differentiable at zero: below 1e-3 rad the coefficients are their Taylor series.
    """
    lib = _lib(axis_angle)
    x, y, z = axis_angle[..., 0], axis_angle[..., 1], axis_angle[..., 2]
    square = x * x + y * y + z * z
    small = square < 1e-6
    # The unused branch of a `where` must stay finite as well, or its gradient is NaN.
    safe = lib.where(small, lib.ones_like(square), square)
    angle = lib.sqrt(safe)
    half_sinc = lib.sin(0.5 * angle) / angle
    a = lib.where(small, 1.0 - square / 6.0, lib.sin(angle) / angle)
    b = lib.where(small, 0.5 - square / 24.0, 2.0 * half_sinc * half_sinc)
    bx, by, bz = b * x, b * y, b * z
    ax, ay, az = a * x, a * y, a * z
    xy, xz, yz = bx * y, bx * z, by * z
    xx, yy, zz = bx * x, by * y, bz * z
    rows = [1.0 - yy - zz, xy - az, xz + ay, xy + az, 1.0 - xx - zz, yz - ax, xz - ay, yz + ax, 1.0 - xx - yy]
    return _stack(rows, (*axis_angle.shape[:-1], 3, 3))


def matrix_to_quaternion(R: Float[ArrayT, "*b 3 3"], order: QuaternionOrder = "wxyz") -> Float[ArrayT, "*b 4"]:
    """Unit quaternions with w >= 0 of rotation matrices.

    Of the four rows 4 q_i q that the matrix entries give, the one with the largest q_i is normalised, so no square root
    of a difference is taken and any angle is well conditioned (Shepperd 1978).
    """
    lib = _lib(R)
    m = [[R[..., i, j] for j in range(3)] for i in range(3)]
    d = [m[0][0], m[1][1], m[2][2]]
    a, b, c = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    e, f, g = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    rows = [
        *(1.0 + d[0] + d[1] + d[2], a, b, c),
        *(a, 1.0 + d[0] - d[1] - d[2], e, f),
        *(b, e, 1.0 - d[0] + d[1] - d[2], g),
        *(c, f, g, 1.0 - d[0] - d[1] + d[2]),
    ]
    scaled = _stack(rows, (*R.shape[:-2], 4, 4))
    diagonal = _stack([rows[0], rows[5], rows[10], rows[15]], (*R.shape[:-2], 4))
    best = diagonal.argmax(-1)[..., None, None]
    if lib is torch:
        q = torch.gather(scaled, -2, best.expand(*R.shape[:-2], 1, 4))[..., 0, :]
    else:
        q = np.take_along_axis(scaled, best, axis=-2)[..., 0, :]
    q = q / lib.sqrt((q * q).sum(-1))[..., None]
    q = lib.where(q[..., :1] < 0, -q, q)
    return q if order == "wxyz" else q[..., [1, 2, 3, 0]]


def quaternion_to_matrix(quaternion: Float[ArrayT, "*b 4"], order: QuaternionOrder = "wxyz") -> Float[ArrayT, "*b 3 3"]:
    """Rotation matrices of quaternions, which need not have unit length."""
    lib = _lib(quaternion)
    q = quaternion / lib.sqrt((quaternion * quaternion).sum(-1))[..., None]
    w, x, y, z = (q[..., i] for i in ((0, 1, 2, 3) if order == "wxyz" else (3, 0, 1, 2)))
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return _stack(rows, (*quaternion.shape[:-1], 3, 3))


def matrix_to_axis_angle(R: Float[ArrayT, "*b 3 3"]) -> Float[ArrayT, "*b 3"]:
    """Axis-angle vectors of rotation matrices, angle in [0, pi]; well conditioned at zero and at pi."""
    lib = _lib(R)
    q = matrix_to_quaternion(R)
    w, v = q[..., 0], q[..., 1:]
    square = (v * v).sum(-1)
    small = square < 1e-8
    safe = lib.where(small, lib.ones_like(square), square)
    sine = lib.sqrt(safe)
    # Where `small`, w is within 1e-8 of 1 and 2 atan(s / w) / s is this series in s.
    factor = lib.where(small, 2.0 / w * (1.0 - square / (3.0 * w * w)), 2.0 * lib.arctan2(sine, w) / sine)
    return v * factor[..., None]


def euler_to_matrix(angles: Float[ArrayT, "*b 3"]) -> Float[ArrayT, "*b 3 3"]:
    """Rotation matrices Rx(a) Ry(b) Rz(c) of intrinsic XYZ Euler angles (radians), scipy's "XYZ"."""
    lib = _lib(angles)
    sin, cos = lib.sin(angles), lib.cos(angles)
    sa, sb, sc = sin[..., 0], sin[..., 1], sin[..., 2]
    ca, cb, cc = cos[..., 0], cos[..., 1], cos[..., 2]
    rows = [
        *(cb * cc, -cb * sc, sb),
        *(ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb),
        *(sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb),
    ]
    return _stack(rows, (*angles.shape[:-1], 3, 3))


# --- rigid transforms and projection -------------------------------------------------------------------------------


def rigid_matrix(R: Float[ArrayT, "*b 3 3"], t: Float[ArrayT, "*b 3"]) -> Float[ArrayT, "*b 4 4"]:
    """The 4x4 matrix of x -> R x + t."""
    zero = t[..., 0] * 0
    rows = [part for i in range(3) for part in (R[..., i, 0], R[..., i, 1], R[..., i, 2], t[..., i])]
    return _stack([*rows, zero, zero, zero, zero + 1], (*t.shape[:-1], 4, 4))


def invert_rigid(T: Float[ArrayT, "*b 4 4"]) -> Float[ArrayT, "*b 4 4"]:
    """Inverse of a rigid transform, by transposing its rotation (`T_world_cam` to `T_cam_world`)."""
    R_inv = T[..., :3, :3].swapaxes(-1, -2)
    return rigid_matrix(R_inv, -(R_inv @ T[..., :3, 3:])[..., 0])


def transform_points(T: Float[ArrayT, "*b 4 4"], points: Float[ArrayT, "*b n 3"]) -> Float[ArrayT, "*b n 3"]:
    """Apply a rigid or affine 4x4 transform to points; `T_cam_obj` takes object points to the camera frame."""
    return points @ T[..., :3, :3].swapaxes(-1, -2) + T[..., None, :3, 3]


def project(points_cam_m: Float[ArrayT, "*b n 3"], K_px: Float[ArrayT, "*#b 3 3"]) -> Float[ArrayT, "*b n 2"]:
    """Project camera-frame points (metres) to pixels.

    Points with z <= 0 come back as NaN, so that a caller must decide what an invisible point means.
    """
    lib = _lib(points_cam_m)
    z = points_cam_m[..., 2:]
    in_front = z > 0
    if lib is np and in_front.all():  # as it nearly always is; the whole expression takes twice the time
        return (points_cam_m / z @ K_px.swapaxes(-1, -2))[..., :2]
    rays = points_cam_m / lib.where(in_front, z, lib.ones_like(z))
    px = (rays @ K_px.swapaxes(-1, -2))[..., :2]
    return lib.where(in_front, px, lib.full_like(px, float("nan")))


def unproject(
    points_px: Float[ArrayT, "*b n 2"], z_m: Float[ArrayT, "*b n"], K_px: Float[ArrayT, "*#b 3 3"]
) -> Float[ArrayT, "*b n 3"]:
    """Camera-frame points (metres) at pixels `points_px` with depth `z_m` (along z, not along the ray)."""
    fx, skew, cx = K_px[..., 0, 0, None], K_px[..., 0, 1, None], K_px[..., 0, 2, None]
    fy, cy = K_px[..., 1, 1, None], K_px[..., 1, 2, None]
    y = (points_px[..., 1] - cy) / fy
    x = (points_px[..., 0] - cx - skew * y) / fx
    return _stack([x * z_m, y * z_m, z_m], (*points_px.shape[:-1], 3))


# --- image-plane transforms ----------------------------------------------------------------------------------------


def _affine_intrinsics(affine: np.ndarray, K_px: Any) -> Any:
    lift = np.eye(3)
    lift[:2] = affine
    if isinstance(K_px, torch.Tensor):
        return torch.as_tensor(lift, dtype=K_px.dtype, device=K_px.device) @ K_px
    return lift.astype(K_px.dtype) @ K_px


def flip_points(points_px: Float[ArrayT, "*b 2"], width: int) -> Float[ArrayT, "*b 2"]:
    """Points of the horizontally mirrored image: u' = W - 1 - u."""
    return _stack([width - 1 - points_px[..., 0], points_px[..., 1]], tuple(points_px.shape))


def flip_intrinsics(K_px: Float[ArrayT, "*b 3 3"], width: int) -> Float[ArrayT, "*b 3 3"]:
    """Intrinsics for the mirrored image *and* the mirrored scene (camera x negated): cx' = W - 1 - cx."""
    image = _affine_intrinsics(np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]]), K_px)
    sign = np.array([-1.0, 1.0, 1.0])
    return image * (torch.as_tensor(sign).to(image) if isinstance(image, torch.Tensor) else sign.astype(image.dtype))


def resize_points(points_px: Float[ArrayT, "*b 2"], scale_x: float, scale_y: float) -> Float[ArrayT, "*b 2"]:
    """Points of the resized image: u' = (u + 0.5) s - 0.5."""
    u = (points_px[..., 0] + 0.5) * scale_x - 0.5
    v = (points_px[..., 1] + 0.5) * scale_y - 0.5
    return _stack([u, v], tuple(points_px.shape))


def resize_intrinsics(K_px: Float[ArrayT, "*b 3 3"], scale_x: float, scale_y: float) -> Float[ArrayT, "*b 3 3"]:
    """Intrinsics of the resized image."""
    return _affine_intrinsics(
        np.array([[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5]]), K_px
    )


def crop_affine(x0_px: float, y0_px: float, scale: float) -> Float[np.ndarray, "2 3"]:
    """The 2x3 map from source to crop pixels, u' = (u - x0 + 0.5) s - 0.5: cut at pixel (x0, y0), then resize by s.

    It is `cv2.warpAffine`'s matrix as it stands (without `WARP_INVERSE_MAP`).
    """
    return np.array([[scale, 0.0, (0.5 - x0_px) * scale - 0.5], [0.0, scale, (0.5 - y0_px) * scale - 0.5]])


def crop_intrinsics(K_px: Float[ArrayT, "*b 3 3"], x0_px: float, y0_px: float, scale: float) -> Float[ArrayT, "*b 3 3"]:
    """Intrinsics of the crop that `crop_affine` makes."""
    return _affine_intrinsics(crop_affine(x0_px, y0_px, scale), K_px)


@dataclass(frozen=True)
class Crop:
    """A square of the image, `side_px` wide with its first pixel at (`x0_px`, `y0_px`), resized to `size_px`."""

    x0_px: float
    y0_px: float
    side_px: float
    size_px: int

    @property
    def scale(self) -> float:
        """Crop pixels per image pixel."""
        return self.size_px / self.side_px

    @property
    def affine(self) -> Float[np.ndarray, "2 3"]:
        """Matrix for `cv2.warpAffine(image, crop.affine, (size_px, size_px))`."""
        return crop_affine(self.x0_px, self.y0_px, self.scale)

    def points(self, points_px: Float[ArrayT, "*b 2"]) -> Float[ArrayT, "*b 2"]:
        """Image points in crop pixels."""
        u = (points_px[..., 0] - self.x0_px + 0.5) * self.scale - 0.5
        v = (points_px[..., 1] - self.y0_px + 0.5) * self.scale - 0.5
        return _stack([u, v], tuple(points_px.shape))

    def points_to_image(self, crop_px: Float[ArrayT, "*b 2"]) -> Float[ArrayT, "*b 2"]:
        """Crop points in image pixels; inverse of `points`."""
        u = (crop_px[..., 0] + 0.5) / self.scale - 0.5 + self.x0_px
        v = (crop_px[..., 1] + 0.5) / self.scale - 0.5 + self.y0_px
        return _stack([u, v], tuple(crop_px.shape))

    def intrinsics(self, K_px: Float[ArrayT, "*b 3 3"]) -> Float[ArrayT, "*b 3 3"]:
        """Intrinsics of the crop."""
        return crop_intrinsics(K_px, self.x0_px, self.y0_px, self.scale)


def square_crop(joints_px: Float[np.ndarray, "n 2"], size_px: int, enlarge: float = 1.25) -> Crop:
    """The square crop around joints: tight min/max box, unclipped, longer side times `enlarge`, same centre.

    The box centre falls on the crop's centre (size - 1) / 2. NaN joints are left out; the side is at least one pixel.
    Raises `SchemaError` when no joint is finite.
    """
    finite = joints_px[np.isfinite(joints_px).all(-1)]
    if not len(finite):
        raise SchemaError("No joint projects into the camera, so there is no box to crop. Skip this hand.")
    low, high = finite.min(0).astype(np.float64), finite.max(0).astype(np.float64)
    side = max(float((high - low).max()) * enlarge, 1.0)
    x0, y0 = (low + high) / 2 - (side - 1) / 2
    return Crop(float(x0), float(y0), side, size_px)


# --- alignment and errors ------------------------------------------------------------------------------------------


def procrustes_align(
    pred: Float[np.ndarray, "*#b n 3"], gt: Float[np.ndarray, "*#b n 3"], *, allow_reflection: bool = False
) -> Float[np.ndarray, "*b n 3"]:
    """`pred` under the similarity (scale, rotation, translation) that brings it closest to `gt` in least squares.

    Closed form by the SVD of the 3x3 covariance (Umeyama 1991). The rotation is proper unless `allow_reflection`, which
    is FreiHAND's official evaluation: there an exactly mirrored hand has no error. Sets with a non-finite value come
    back as NaN; a `pred` without extent comes back at the centroid of `gt`.
    """
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
    valid = np.asarray(np.isfinite(pred).all(axis=(-1, -2)) & np.isfinite(gt).all(axis=(-1, -2)))
    p = np.where(valid[..., None, None], pred, 0.0)
    g = np.where(valid[..., None, None], gt, 0.0)
    p_mean, g_mean = p.mean(-2, keepdims=True), g.mean(-2, keepdims=True)
    p, g = p - p_mean, g - g_mean
    U, s, Vt = np.linalg.svd(p.swapaxes(-1, -2) @ g)
    if not allow_reflection:
        sign = np.where(np.linalg.det(U) * np.linalg.det(Vt) < 0, -1.0, 1.0)
        s = np.concatenate([s[..., :2], s[..., 2:] * sign[..., None]], axis=-1)
        Vt = np.concatenate([Vt[..., :2, :], Vt[..., 2:, :] * sign[..., None, None]], axis=-2)
    extent = (p * p).sum((-1, -2))
    scale = np.divide(s.sum(-1), extent, out=np.zeros_like(extent), where=extent > 0)
    aligned = scale[..., None, None] * (p @ (U @ Vt)) + g_mean
    return np.where(valid[..., None, None], aligned, np.nan)


def _mean_distance_mm(a_m: np.ndarray, b_m: np.ndarray) -> np.ndarray:
    return np.asarray(1000.0 * np.sqrt(((a_m - b_m) ** 2).sum(-1)).mean(-1))


def root_aligned_mpjpe_mm(
    pred_m: Float[np.ndarray, "*#b n 3"], gt_m: Float[np.ndarray, "*#b n 3"], root: int = 0
) -> Float[np.ndarray, "*b"]:
    """Mean joint distance (mm) after both sets are moved to put joint `root` (the wrist) at the origin."""
    pred, gt = np.asarray(pred_m, np.float64), np.asarray(gt_m, np.float64)
    return _mean_distance_mm(pred - pred[..., root : root + 1, :], gt - gt[..., root : root + 1, :])


def pa_mpjpe_mm(
    pred_m: Float[np.ndarray, "*#b n 3"], gt_m: Float[np.ndarray, "*#b n 3"], *, allow_reflection: bool = False
) -> Float[np.ndarray, "*b"]:
    """Mean joint distance (mm) after `procrustes_align`."""
    return _mean_distance_mm(
        procrustes_align(pred_m, gt_m, allow_reflection=allow_reflection), np.asarray(gt_m, np.float64)
    )
