"""Photometric augmentation by albumentations, in the loader's workers. Nothing moves, so labels stay as they are.

Point operations (gain, brightness, contrast, gamma, gray) and noise leave every pixel in its place; blur is symmetric.
Compression and lower resolution are of the image only: they smear, and no label follows them.
"""

import os
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from pam_aug.errors import AssetMissing
from pam_aug.train.mixed_config import PixelConfig

__all__ = ["PixelAugmentation"]


class PixelAugmentation:
    """The transforms of a configuration; an image's outcome is a function of the image and its seed."""

    def __init__(self, config: PixelConfig) -> None:
        self.config = config
        self._compose: Any = None  # made where it is used: workers get the configuration only

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "_compose": None}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], seed: int) -> UInt8[np.ndarray, "h w 3"]:
        if self._compose is None:
            self._compose = _compose(self.config)
        rng = np.random.default_rng(seed)
        if rng.random() < self.config.downscale:
            image = _downscale(image, rng.uniform(0.33, 0.8))
        self._compose.set_random_seed(int(rng.integers(2**31)))
        return self._compose(image=image)["image"]


def _downscale(image: UInt8[np.ndarray, "h w 3"], share: float) -> UInt8[np.ndarray, "h w 3"]:
    """Lower resolution, by sizes: albumentations' Downscale resizes by factors, whose rounding moves pixels towards a
    corner, by 1 % of their place."""
    h, w = image.shape[:2]
    small = cv2.resize(image, (max(1, round(share * w)), max(1, round(share * h))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)


def _compose(config: PixelConfig) -> Any:
    A = import_albumentations()
    low, high = config.brightness
    transforms = [
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.6), p=config.blur),
        A.MultiplicativeNoise(multiplier=tuple(config.gain), per_channel=True, elementwise=False, p=1.0),
        A.RandomBrightnessContrast((low, high), tuple(config.contrast), brightness_by_max=True, p=1.0),
        A.RandomGamma(gamma_limit=(70, 140), p=config.gamma),
        A.ToGray(p=config.gray),
        A.GaussNoise(std_range=(0.01, 0.05), per_channel=False, p=config.noise),
        A.ImageCompression(quality_range=(25, 90), p=config.jpeg),
    ]
    return A.Compose([t for t in transforms if t.p > 0])


def import_albumentations() -> Any:
    """albumentations, without its question to its makers' server at import. Raises AssetMissing."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        text = f"training on mixed shards needs albumentations ({error}): pip install 'pam_aug[train]'"
        raise AssetMissing(text) from error
    return albumentations
