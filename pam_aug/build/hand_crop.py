"""Hand crops: one square view per hand in place of a source's whole images, whichever converter made them.

A crop is a shift and a zoom of the image, never a turn, so the camera stays a pinhole at the same place with another K:
everything given in the camera or world frame (joints, poses, translations, objects, `T_world_cam`) keeps its bits.
"""

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from pam_aug.errors import ConfigError, SchemaError, ShardDamaged, SourceError, UnsafeInput
from pam_aug.geometry import Crop, project, square_crop
from pam_aug.hand import HandAssets
from pam_aug.render.conditions import Conditions
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.label import in_image
from pam_aug.rollouts.scene import Item, build_scene
from pam_aug.schema import Camera, Hand, Sample
from pam_aug.shards.images import decode_depth_mm, decode_image

__all__ = ["AbsentHand", "CropOptions", "HandCrops", "crop_image", "hand_crop"]

_HANDS = 2  # slots of an image: schema and design allow one or two hands
_QUALITY = 95


@dataclass(frozen=True)
class CropOptions:
    """Options that every source takes beside its own. `crop` is "" (whole images) or "hand".

    `crop_size` is the crops' width and height, pixels. `crop_enlarge` is the crop's side over the longer side of the
    box of the hand's 21 `joints_px`, unclipped; what lies outside the source image is black.
    """

    crop: str = ""
    crop_size: int = 256
    crop_enlarge: float = 1.5  # fingers' flesh and the object reach past the joints

    def check(self, where: str) -> None:
        """Raises ConfigError with what is wrong."""
        if self.crop not in ("", "hand"):
            raise ConfigError(f'{where}.crop: {self.crop!r}; choose "hand", or "" for whole images', field="crop")
        if not 16 <= self.crop_size <= 4096:
            raise ConfigError(f"{where}.crop_size: {self.crop_size} is outside 16 to 4096 pixels", field="crop_size")
        if not (math.isfinite(self.crop_enlarge) and 1 <= self.crop_enlarge <= 10):
            raise ConfigError(
                f"{where}.crop_enlarge: {self.crop_enlarge} is outside 1 (the box itself) to 10", field="crop_enlarge"
            )


class AbsentHand(SourceError):
    """An image has no hand of that number: there is nothing to make, and nothing failed."""


class HandCrops:
    """A source seen as hand crops. `len` counts images; crops are numbered by `slots(image)`, two per image.

    A slot whose hand is not there raises AbsentHand; of an image that cannot be read the first slot raises the source's
    error and the second AbsentHand, so that it is counted once.
    """

    def __init__(self, source: Any, options: CropOptions) -> None:
        self._source, self._options = source, options
        self.name: str = source.name
        self.has_images: bool = source.has_images
        self.has_depth: bool = getattr(source, "has_depth", False)
        self.group_starts: Sequence[int] = getattr(source, "group_starts", ())
        self._latest: tuple[int, Item] | None = None

    def __len__(self) -> int:
        return len(self._source)

    def slots(self, image: int) -> tuple[int, ...]:
        """The numbers of an image's possible crops."""
        return tuple(range(_HANDS * image, _HANDS * (image + 1)))

    @property
    def notes(self) -> tuple[str, ...]:
        """The source's own, and what the crops are."""
        o = self._options
        size = f"{o.crop_size} × {o.crop_size} pixels, {o.crop_enlarge:g} times the box of the joints, black outside"
        return (*getattr(self._source, "notes", ()), f"one crop per hand: {size} the source image")

    def has_hands(self, tries: int = 8) -> bool:
        """Whether any of the first readable images has a hand."""
        for image in range(min(tries, len(self))):
            with contextlib.suppress(SourceError, SchemaError, UnsafeInput):
                if self._source.item(image).sample.hands:
                    return True
        return False

    def hand_assets(self) -> Mapping[str, HandAssets]:
        return self._source.hand_assets()

    def item(self, slot: int) -> Item:
        """The crop of a slot's hand: that hand alone, the key ending in -l or -r. Raises AbsentHand, SourceError."""
        whole, hand, crop = self._find(slot)
        return hand_crop(whole, hand, crop)

    def conditions(self, slot: int, hands: Mapping[str, HandAssets]) -> Conditions:
        """Depth and segmentation of the crop, drawn anew at its resolution from the source's whole scene.

        The image's other hand is in them, as it is in the picture; pixels outside the source image are 0, as they are
        black in the picture.
        """
        whole, _, crop = self._find(slot)
        sample = whole.sample
        all_hands = tuple(_hand_under(crop, hand, sample.camera) for hand in sample.hands)
        seen = replace(whole, sample=replace(sample, camera=_camera_under(crop, sample.camera), hands=all_hands))
        drawn = scene_conditions(build_scene(seen, hands))
        inside = _inside(crop, sample.camera)
        return drawn._replace(depth_m=drawn.depth_m * inside, seg=drawn.seg * inside)

    def sensor_depth_png(self, slot: int) -> bytes:
        """The sensor's depth of the crop, 16-bit millimetres: each pixel has the nearest measured one's, never a mean
        of near and far; 0 where nothing was measured and outside the source image."""
        whole, _, crop = self._find(slot)
        mm = decode_depth_mm(self._source.sensor_depth_png(slot // _HANDS), whole.sample.key)
        cut = cv2.warpAffine(mm, crop.affine, (crop.size_px, crop.size_px), flags=cv2.INTER_NEAREST)
        return cv2.imencode(".png", cut)[1].tobytes()

    def _find(self, slot: int) -> tuple[Item, Hand, Crop]:
        image, number = divmod(slot, _HANDS)
        if self._latest is None or self._latest[0] != image:
            try:
                self._latest = (image, self._source.item(image))
            except (SourceError, SchemaError, UnsafeInput) as error:
                if number:
                    raise AbsentHand(f"image {image} cannot be read ({error})") from error
                raise
        whole = self._latest[1]
        if number >= len(whole.sample.hands):
            raise AbsentHand(f"{whole.sample.key}: has {len(whole.sample.hands)} hands")
        hand = whole.sample.hands[number]
        # From the joints, not from joints_px, where a joint behind the camera has a number that means nothing.
        px = project(hand.joints_cam_m.astype(np.float64), whole.sample.camera.K_px.astype(np.float64))
        try:
            return whole, hand, square_crop(px, self._options.crop_size, self._options.crop_enlarge)
        except SchemaError as error:
            raise SourceError(f"{whole.sample.key}, {hand.side} hand: {error}") from error


def hand_crop(whole: Item, hand: Hand, crop: Crop) -> Item:
    """An item's view of one of its hands: image, K, `joints_px` and `in_view` under `crop`, all else as it was.

    A joint is `in_view` where it is so in the source image and lies in the crop. The image is JPEG, quality 95, 4:4:4;
    `image_sha256` is the source image's. Raises SourceError for an image that does not decode, UnsafeInput for one of
    over 20 Mpx.
    """
    sample = whole.sample
    source = sample.source
    image = b""
    if whole.image:
        suffix = "png" if whole.image.startswith(b"\x89PNG") else "jpg"
        try:
            pixels = decode_image(whole.image, suffix, sample.key)
        except ShardDamaged as error:
            raise SourceError(f"{error}; copy the image again") from error
        if pixels.shape[:2] != (sample.camera.height, sample.camera.width):
            raise SourceError(f"{sample.key}: an image of {pixels.shape[1]} × {pixels.shape[0]}, not as its label says")
        image = simplejpeg.encode_jpeg(crop_image(pixels, crop), quality=_QUALITY, colorsubsampling="444")
        source = replace(source, image_sha256=source.image_sha256 or hashlib.sha256(whole.image).hexdigest())
    cut = f"hand crop: {crop.side_px:.2f} px wide from ({crop.x0_px:.2f}, {crop.y0_px:.2f}) of the source image"
    cropped: Sample = replace(
        sample,
        key=f"{sample.key}-{hand.side[0]}",
        camera=_camera_under(crop, sample.camera),
        hands=(_hand_under(crop, hand, sample.camera),),
        source=replace(source, notes=(*source.notes, cut)),
    )
    return Item(cropped, image, whole.meshes)


def crop_image(rgb: UInt8[np.ndarray, "h w 3"], crop: Crop) -> UInt8[np.ndarray, "s s 3"]:
    """The crop's pixels, bilinear, black outside the image; smoothed first where it makes the image smaller."""
    shrink = 1.0 / crop.scale
    if shrink > 1.0:  # the Gaussian that keeps what the coarser grid can hold, as scikit-image's `resize` chooses it
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), (shrink - 1.0) / 2), np.uint8)
    size = (crop.size_px, crop.size_px)
    return np.asarray(cv2.warpAffine(rgb, crop.affine, size, flags=cv2.INTER_LINEAR), np.uint8)


def _camera_under(crop: Crop, camera: Camera) -> Camera:
    K_px = crop.intrinsics(camera.K_px.astype(np.float64))
    return replace(camera, width=crop.size_px, height=crop.size_px, K_px=K_px)


def _hand_under(crop: Crop, hand: Hand, camera: Camera) -> Hand:
    """Joints are projected by the K that the label holds, rounded to float32, so that the two agree."""
    K_px = _camera_under(crop, camera).K_px.astype(np.float64)
    px = project(hand.joints_cam_m.astype(np.float64), K_px)
    seen = hand.in_view & in_image(px, crop.size_px, crop.size_px)
    return replace(hand, joints_px=np.nan_to_num(px, nan=-1.0), in_view=seen)


def _inside(crop: Crop, camera: Camera) -> UInt8[np.ndarray, "s s"]:
    """1 where a crop's pixel lies on the source image."""
    steps = np.arange(crop.size_px, dtype=np.float64)
    x, y = crop.points_to_image(np.stack([steps, steps], -1)).T
    across = (x >= -0.5) & (x < camera.width - 0.5)
    down = (y >= -0.5) & (y < camera.height - 0.5)
    return (down[:, None] & across[None]).astype(np.uint8)
