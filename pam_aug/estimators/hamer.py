"""The `hamer` backend: the published HaMeR network on the user's checkpoint, with torch, numpy and cv2 alone.

Written from the paper (Pavlakos et al., CVPR 2024) and the published network's observable behaviour: crops, pixels
and camera are in its own form. It knows right hands; a left hand is shown mirrored, and mirrored back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from jaxtyping import Float

from pam_aug.checkpoint import read_state
from pam_aug.errors import AssetMissing, BackendError, ConfigError
from pam_aug.estimators.base import Estimates, HandQuery
from pam_aug.estimators.hamer_checkpoint import check_hamer, hand_of, load_hamer
from pam_aug.estimators.hamer_net import HEIGHT_PX, HamerConfig, HamerNet, network_input
from pam_aug.estimators.joint_map import JOINT_DEFINITIONS
from pam_aug.estimators.weights import WEIGHTS, file_sha256
from pam_aug.geometry import matrix_to_axis_angle
from pam_aug.hand import HandAssets, HandLayer, load_mano
from pam_aug.hand.joints import MANO16_TO_21, TIP_SETS

__all__ = ["AffineCrop", "HamerEstimator", "HamerHands", "HamerOptions", "hamer_crop"]

_FOCAL_PX = 5000.0
"""The focal length that the network's camera was trained with, for a crop of 256 pixels."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HAMER, _MANO = (next(weight for weight in WEIGHTS if weight.name == name) for name in ("hamer", "mano-right"))


@dataclass(frozen=True)
class HamerOptions:
    """`checkpoint` is HaMeR's .ckpt or a .safetensors of its entries; "" looks where `pam-aug fetch-weights` says.

    `mano` is a MANO file or folder that replaces the hand inside the checkpoint. `precision` is the backbone's: fp32,
    bf16 or fp16; head and hand stay in full precision. `device` "auto" is the GPU where there is one. `batch` crops are
    run at a time. The crop's side is `enlarge` times the box's longer side (after 3:4 padding). `pixel_centres` is
    "hamer", the form that the network was trained in (the box's middle lands on crop position 128), or "library" (on
    127.5).
    """

    checkpoint: str = ""
    mano: str = ""
    precision: str = "fp32"
    device: str = "auto"
    batch: int = 32
    enlarge: float = 2.0
    pixel_centres: str = "hamer"
    net: HamerConfig = field(default_factory=HamerConfig)

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.precision not in _DTYPES:
            problems.append(f"precision {self.precision!r}: choose one of {', '.join(_DTYPES)}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            problems.append(f"device {self.device!r}: choose auto, cpu or cuda")
        if self.batch < 1:
            problems.append(f"batch {self.batch}: at least 1")
        if not self.enlarge > 0:
            problems.append(f"enlarge {self.enlarge}: above 0")
        if self.pixel_centres not in ("hamer", "library"):
            problems.append(f"pixel_centres {self.pixel_centres!r}: choose hamer or library")
        if problems:
            raise ConfigError("; ".join(problems), problems=problems)


@dataclass(frozen=True, slots=True, eq=False)
class AffineCrop:
    """A square of `side_px` about `centre_px` as 256 × 256 pixels; with `flip`, of the mirrored image.

    `middle_px` is the crop position of the centre. `width_px` is the image's width, that mirroring needs.
    """

    centre_px: Float[np.ndarray, "2"]
    side_px: float
    flip: bool
    width_px: int
    middle_px: float

    @property
    def affine(self) -> Float[np.ndarray, "2 3"]:
        """(Mirrored) image pixels to crop pixels."""
        scale = HEIGHT_PX / self.side_px
        x, y = self.centre_px
        x = self.width_px - 1 - x if self.flip else x
        return np.array([[scale, 0.0, self.middle_px - scale * x], [0.0, scale, self.middle_px - scale * y]])

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """The crop (256,256,3), bilinear, black outside the image."""
        source = cv2.flip(rgb, 1) if self.flip else rgb
        return cv2.warpAffine(source, self.affine, (HEIGHT_PX, HEIGHT_PX), flags=cv2.INTER_LINEAR)

    def points_to_image(self, crop_px: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b 2"]:
        """Crop pixels in image pixels."""
        affine = self.affine
        px = (crop_px - affine[:, 2]) / affine[0, 0]
        return np.stack([self.width_px - 1 - px[..., 0], px[..., 1]], -1) if self.flip else px


def hamer_crop(
    box_px: Float[np.ndarray, "4"], width_px: int, *, flip: bool, enlarge: float = 2.0, pixel_centres: str = "hamer"
) -> AffineCrop | None:
    """The crop of a box (x0, y0, x1, y1): its side is `enlarge` · max(h, 4w/3), that is, the box padded to 3:4.

    None for a box that is not finite. A box of no size counts as one pixel.
    """
    box = np.asarray(box_px, np.float64)
    if not np.isfinite(box).all():
        return None
    w, h = box[2:] - box[:2]
    side = enlarge * max(h, 4 * w / 3, 1.0)
    middle = HEIGHT_PX / 2 if pixel_centres == "hamer" else (HEIGHT_PX - 1) / 2
    return AffineCrop((box[:2] + box[2:]) / 2, float(side), flip, width_px, middle)


@dataclass(frozen=True, slots=True, eq=False)
class HamerHands:
    """All that the network says of n hands, in the terms of a label: each its own side, in its image's camera axes.

    `global_orient`, `hand_pose` (absolute, MANO's order) and `betas` are MANO parameters of the hand's own side (the
    left one with mended shape directions). `transl_cam_m` has smplx's meaning, from the weak-perspective camera and the
    true intrinsics: good to centimetres, not for measuring. `crop_camera` is the network's own (s, tx, ty), of the
    crop as it saw it. Rows where `estimates.valid` is False mean nothing.
    """

    estimates: Estimates
    global_orient: Float[np.ndarray, "n 3"]
    hand_pose: Float[np.ndarray, "n 45"]
    betas: Float[np.ndarray, "n 10"]
    transl_cam_m: Float[np.ndarray, "n 3"]
    crop_camera: Float[np.ndarray, "n 3"]


class HamerEstimator:
    """HaMeR on label boxes, in blocks of equal place: a row's result depends on its place in the call, no more.

    `requires` names missing files, and raises SchemaError or UnsafeInput for a file that is not this checkpoint. The
    published network takes 2.7 GB, 1.4 GB in half precision.
    """

    name: ClassVar[str] = "hamer"
    joint_definition: ClassVar[str] = JOINT_DEFINITIONS["kinematic"]
    Options: ClassVar[type] = HamerOptions

    def __init__(self, options: HamerOptions | None = None) -> None:
        self.options = options or HamerOptions()
        self.checkpoint = Path(self.options.checkpoint) if self.options.checkpoint else _HAMER.path

    @cached_property
    def version(self) -> str:
        """The checkpoint's hash and the precision, for provenance; with a MANO of the user's, its hash too."""
        mano = f"-mano-{self.assets.sha256[:12]}" if self.options.mano else ""
        return f"{file_sha256(self.checkpoint)[:12]}-{self.options.precision}{mano}"

    @cached_property
    def device(self) -> torch.device:
        """Where the network runs."""
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(auto if self.options.device == "auto" else self.options.device)

    def requires(self) -> list[str]:
        """The files and devices that are missing; [] where the estimator is ready."""
        missing: list[str] = []
        if not self.checkpoint.is_file():
            missing.append(_HAMER.instruction(self.checkpoint))
        else:
            check_hamer(read_state(self.checkpoint, self.name), self.options.net, where=str(self.checkpoint))
        if self.options.mano or not missing:
            try:
                self._load_assets()
            except AssetMissing as error:
                missing.append(str(error))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            missing.append("a CUDA device for torch: install a driver and a CUDA build of torch, or set device: cpu")
        return missing

    def _load_assets(self) -> HandAssets:
        if self.options.mano:
            return load_mano(self.options.mano, "right")
        where = str(self.checkpoint)
        assets = hand_of(read_state(self.checkpoint, self.name), where=where)
        if assets is not None:
            return assets
        if _MANO.path.is_file():
            return load_mano(_MANO.path, "right")
        raise AssetMissing(f"{where} has no MANO arrays in it, so this is needed: {_MANO.instruction()}")

    @cached_property
    def assets(self) -> HandAssets:
        """The right hand that the network poses."""
        return self._load_assets()

    @cached_property
    def net(self) -> HamerNet:
        """The network, loaded at the first use."""
        state = read_state(self.checkpoint, self.name)
        net = load_hamer(state, self.options.net, _DTYPES[self.options.precision], where=str(self.checkpoint))
        return net.to(self.device)

    @cached_property
    def _layer(self) -> HandLayer:
        return HandLayer(self.assets, dtype=torch.float64).to(self.device)

    def estimate(self, images: Sequence[np.ndarray], queries: Sequence[HandQuery]) -> Estimates:
        """Hands in RGB images, one query each. A box that is not finite gives a row that is not valid."""
        return self.estimate_hands(images, queries).estimates

    def estimate_hands(self, images: Sequence[np.ndarray], queries: Sequence[HandQuery]) -> HamerHands:
        """As `estimate`, with MANO parameters and cameras. Raises BackendError for images of another form."""
        if len(images) != len(queries):
            raise BackendError(f"{len(images)} images and {len(queries)} hand boxes; give one box per image")
        for image, query in zip(images, queries, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise BackendError(f"an image of {image.dtype} {image.shape}; hamer reads (h, w, 3) uint8 RGB")
            if query.tips not in TIP_SETS:
                raise BackendError(f"a label with the tip set {query.tips!r}; hamer knows {', '.join(TIP_SETS)}")
        crops = [
            hamer_crop(
                query.box_px,
                image.shape[1],
                flip=query.side == "left",
                enlarge=self.options.enlarge,
                pixel_centres=self.options.pixel_centres,
            )
            for image, query in zip(images, queries, strict=True)
        ]
        n = len(images)
        hands = HamerHands(
            Estimates(
                np.zeros((n, 21, 3)),
                np.zeros((n, 21, 2)),
                np.zeros((n, 778, 3)),
                np.array([crop is not None for crop in crops], bool),
                tuple("" if crop else "its box is not finite" for crop in crops),
                self.assets.f,
            ),
            *(np.zeros((n, k)) for k in (3, 45, 10, 3, 3)),
        )
        blank = np.zeros((HEIGHT_PX, HEIGHT_PX, 3), np.uint8)  # keeps the others' places in the block
        for start in range(0, n, self.options.batch):
            rows = range(start, min(start + self.options.batch, n))
            views = [crop.image(images[i]) if (crop := crops[i]) else blank for i in rows]
            self._estimate_block(np.stack(views), rows, crops, queries, hands)
        return hands

    def _estimate_block(
        self,
        views: np.ndarray,
        rows: range,
        crops: Sequence[AffineCrop | None],
        queries: Sequence[HandQuery],
        hands: HamerHands,
    ) -> None:
        """Run one block and write its rows of `hands`."""
        with torch.inference_mode():
            out = self.net(network_input(torch.from_numpy(views).to(self.device)))
            mesh = self._layer(out.rotations[:, 0], out.rotations[:, 1:], out.betas)
            tensors = (mesh.verts, mesh.joints16, out.rotations, out.betas, out.camera)
            verts, joints16, rotations, betas, cameras = (t.double().cpu().numpy() for t in tensors)
        axis_angles = matrix_to_axis_angle(rotations)
        for row, i in enumerate(rows):
            crop, query = crops[i], queries[i]
            if crop is None:
                continue
            tips = verts[row, list(TIP_SETS[query.tips][query.side])]
            joints = np.concatenate([joints16[row], tips])[list(MANO16_TO_21)]
            hands.estimates.joints_px[i] = crop.points_to_image(crop_points(joints, cameras[row]))
            flip = np.array([-1.0, 1.0, 1.0]) if crop.flip else np.ones(3)
            turn = flip * flip[0]  # an axis-angle vector is an axial vector
            hands.estimates.joints_m[i] = (joints - joints[0]) * flip
            assert hands.estimates.verts_m is not None
            hands.estimates.verts_m[i] = (verts[row] - joints[0]) * flip
            hands.global_orient[i] = axis_angles[row, 0] * turn
            hands.hand_pose[i] = (axis_angles[row, 1:] * turn).ravel()
            hands.betas[i] = betas[row]
            hands.crop_camera[i] = cameras[row]
            hands.transl_cam_m[i] = camera_translation(cameras[row] * [1.0, flip[0], 1.0], crop, query.K_px)


def crop_points(points_m: Float[np.ndarray, "n 3"], camera: Float[np.ndarray, "3"]) -> Float[np.ndarray, "n 2"]:
    """Crop pixels of points under a weak-perspective camera (s, tx, ty), seen with the network's own focal length."""
    s, tx, ty = camera
    moved = points_m + np.array([tx, ty, 2 * _FOCAL_PX / (HEIGHT_PX * s + 1e-9)])
    return _FOCAL_PX * moved[:, :2] / moved[:, 2:] + HEIGHT_PX / 2


def camera_translation(
    camera: Float[np.ndarray, "3"], crop: AffineCrop, K_px: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3"]:
    """Where a camera (s, tx, ty; tx already of the image's own side) puts the model, metres, for true intrinsics.

    The depth makes the hand as large in the crop as the network saw it; the crop's centre gives the direction.
    """
    s, tx, ty = camera
    z = 2 * K_px[0, 0] / (crop.side_px * s + 1e-9)
    x, y, _ = z * np.linalg.solve(np.asarray(K_px, np.float64), np.array([*crop.centre_px, 1.0]))
    return np.array([tx + x, ty + y, z])
