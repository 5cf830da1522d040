"""What makes synthetic images look more like real ones, and both less alike to a network that counts on looks.

* Spectrum mix: a synthetic image takes the amplitude of a real one's low frequencies, its own phase stays (Yang and
  Soatto, "FDA: Fourier Domain Adaptation", CVPR 2020). Colour cast, contrast and soft light change, places do not.
* Background swap: what is neither hand nor object, by the sample's segmentation, becomes another picture.
* Occluder paste: a piece of another image of the batch with a smooth outline comes before the hand.

None of them moves a pixel of the hand, so labels stay exact; an occluder hides joints, whose labels remain true.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pam_aug.errors import ConfigError
from pam_aug.render.backgrounds import draw_backdrop, draw_collage

__all__ = ["draw_background", "mix_spectrum", "paste_occluder", "swap_background"]

_PICTURES = (".jpg", ".jpeg", ".png")


def mix_spectrum(
    image: UInt8[np.ndarray, "h w 3"], real: UInt8[np.ndarray, "h w 3"], radius: float
) -> UInt8[np.ndarray, "h w 3"]:
    """`image` with the amplitude of `real` at frequencies up to `radius` times the side (at least the mean), in each
    direction and channel."""
    h, w = image.shape[:2]
    mine, theirs = (np.fft.rfft2(x.astype(np.float32), axes=(0, 1)) for x in (image, real))
    rows, columns = int(radius * h), int(radius * w)
    low = np.r_[0 : rows + 1, h - rows : h] if rows else np.array([0])
    part = np.ix_(low, np.arange(columns + 1))
    size = np.abs(mine[part])
    phase = np.where(size > 1e-6, mine[part] / np.maximum(size, 1e-6), 1.0)
    mine[part] = np.abs(theirs[part]) * phase
    mixed = np.fft.irfft2(mine, s=(h, w), axes=(0, 1))
    return np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)


def swap_background(
    image: UInt8[np.ndarray, "h w 3"], kept: Float[np.ndarray, "h w"], background: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """`image` where `kept` is one, `background` where it is zero, blended between."""
    share = kept[..., None].astype(np.float32)
    return np.rint(share * image + (1.0 - share) * background).astype(np.uint8)


def draw_background(rng: np.random.Generator, folder: str, size_px: int) -> UInt8[np.ndarray, "s s 3"]:
    """A square of one of the folder's pictures, or a drawn one where `folder` is "". Raises ConfigError for a folder
    without pictures."""
    if not folder:
        drawn = draw_collage if rng.random() < 0.7 else draw_backdrop
        light = drawn(rng, size_px, size_px).reshape(size_px, size_px, 3)
        return np.rint(255.0 * np.clip(light * rng.uniform(0.3, 1.2), 0.0, 1.0) ** (1 / 2.2)).astype(np.uint8)
    pictures = _pictures(folder)
    path = pictures[int(rng.integers(len(pictures)))]
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ConfigError(f"{path}: is no picture that can be read; take it out of gap.backgrounds", path=str(path))
    side = int(min(picture.shape[:2]) * rng.uniform(0.5, 1.0))
    y, x = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
    part = picture[y : y + side, x : x + side, ::-1]
    return cv2.resize(np.ascontiguousarray(part), (size_px, size_px), interpolation=cv2.INTER_AREA)


def paste_occluder(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "h w 3"],
    other: UInt8[np.ndarray, "h w 3"],
    joints_px: Float[np.ndarray, "21 2"],
) -> UInt8[np.ndarray, "h w 3"]:
    """A blob of `other`'s pixels over a random joint's surroundings, 15 to 45 % of the hand's box wide."""
    h, w = image.shape[:2]
    low, high = joints_px.min(0), joints_px.max(0)
    radius = float((high - low).max()) * rng.uniform(0.075, 0.225)
    centre = joints_px[int(rng.integers(21))] + rng.normal(0.0, 0.5 * radius, 2)
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))
    outline = centre + radius * np.clip(1.0 + waves, 0.4, 1.8)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.rint(np.clip(outline, -4 * w, 4 * w)).astype(np.int32)], 255)
    share = cv2.GaussianBlur(mask, (0, 0), 0.7).astype(np.float32) / 255.0
    dy, dx = int(rng.integers(h)), int(rng.integers(w))
    return swap_background(image, 1.0 - share, np.roll(other, (dy, dx), (0, 1)))


@cache
def _pictures(folder: str) -> tuple[Path, ...]:
    found = tuple(sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _PICTURES))
    if not found:
        raise ConfigError(f"gap.backgrounds {folder}: holds no .jpg or .png picture; give a folder of pictures")
    return found
