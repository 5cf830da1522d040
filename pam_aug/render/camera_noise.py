"""From light on the sensor to an 8-bit picture: exposure, lens, noise, tone curve, sharpening, JPEG.

Nothing here moves a pixel: blurs are symmetric and there is no distortion, so labels stay where they are.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numba
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8

_TONE_STEPS = 2048
_NOISE_TILE = 512


class CameraLook(NamedTuple):
    """One camera's rendering of light into bytes."""

    gain: Float[np.ndarray, "3"]  # white balance error times exposure relative to the target
    vignette: float  # share of light lost in the corners
    saturation: float
    blur_px: float  # sigma of the lens
    motion_px: tuple[float, float]  # length (at most 3 px) and direction in radians
    shot: float  # noise variance per light
    read: float  # noise deviation in the dark
    chroma: float  # share of the noise that differs between channels
    tile: tuple[int, int, int]  # where in the noise tile, and its turn
    tone: Float[np.ndarray, "s"]  # light's square root to bytes
    sharpen: float
    jpeg: tuple[int, str]  # quality and chroma subsampling of the camera's own file; quality 0 = none


def draw_camera(rng: np.random.Generator) -> CameraLook:
    """A random camera, from a clean studio one to a dim webcam."""
    warm, tint = rng.normal(0, 0.06), rng.normal(0, 0.025)
    gain = np.exp(np.array([warm, tint, -warm])) * np.exp(rng.normal(0, 0.25))
    noisy = rng.random() ** 1.6
    contrast, gamma = rng.uniform(-0.15, 0.45), rng.uniform(0.9, 1.12)
    x = np.linspace(0, 1, _TONE_STEPS) ** 2
    x = 1 - np.exp(-x * 1.6) if rng.random() < 0.6 else np.minimum(x * 1.25, 1)  # film-like shoulder, or a hard clip
    y = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055) ** gamma
    y = y / y[-1]
    y = y + contrast * (y * y * (3 - 2 * y) - y)
    black = rng.uniform(0, 0.04)
    tone = np.clip(black + (1 - black) * y, 0, 1) * 255
    return CameraLook(
        gain.astype(np.float32),
        float(rng.uniform(0, 0.4) * (rng.random() < 0.6)),
        0.0 if rng.random() < 0.01 else float(rng.uniform(0.65, 1.1)),
        float(rng.uniform(0, 0.75)) if rng.random() < 0.8 else float(rng.uniform(0.75, 1.5)),
        (float(rng.uniform(1, 3)) if rng.random() < 0.25 else 0.0, float(rng.uniform(0, np.pi))),
        float(10 ** (-5 + 2.3 * noisy)),
        float(10 ** (-3.6 + 1.4 * noisy)),
        float(rng.uniform(0.2, 0.8)),
        (int(rng.integers(_NOISE_TILE)), int(rng.integers(_NOISE_TILE)), int(rng.integers(2))),
        tone.astype(np.float32),
        float(rng.uniform(0, 0.7)) if rng.random() < 0.5 else 0.0,
        (int(rng.integers(60, 98)) if rng.random() < 0.75 else 0, "420" if rng.random() < 0.7 else "444"),
    )


@lru_cache(maxsize=1)
def _noise_tile() -> Float[np.ndarray, "512 512 4"]:
    """Gaussian noise of deviation 1, a little smooth as after demosaicing: three channels, and one for all colours."""
    raw = np.random.Generator(np.random.PCG64(70_841)).standard_normal((_NOISE_TILE, _NOISE_TILE, 4))
    smooth = cv2.GaussianBlur(raw, (0, 0), 0.6, borderType=cv2.BORDER_REFLECT)
    return (smooth / smooth.std((0, 1))).astype(np.float32)


def take_picture(light: Float[np.ndarray, "h w 3"], look: CameraLook, exposure: float) -> UInt8[np.ndarray, "h w 3"]:
    """Linear light to sRGB bytes; `exposure` is the factor that brings the subject to the target brightness."""
    if look.blur_px > 0.25:
        light = cv2.GaussianBlur(light, (0, 0), look.blur_px, borderType=cv2.BORDER_REPLICATE)
    if look.motion_px[0] > 0:
        light = cv2.filter2D(light, -1, _motion_kernel(*look.motion_px), borderType=cv2.BORDER_REPLICATE)
    out = np.empty(light.shape, np.uint8)
    lens = (np.float32(look.vignette), np.float32(look.saturation))
    noise = (np.float32(look.shot), np.float32(look.read), np.float32(look.chroma), look.tile, _noise_tile())
    _expose(np.ascontiguousarray(light), look.gain * np.float32(exposure), *lens, *noise, look.tone, out)
    if look.sharpen > 0:
        out = cv2.addWeighted(out, 1 + look.sharpen, cv2.GaussianBlur(out, (0, 0), 1.0), -look.sharpen, 0)
    quality, sampling = look.jpeg
    return decode_jpeg(encode_jpeg(out, quality, sampling)) if quality else out


def encode_jpeg(rgb: UInt8[np.ndarray, "h w 3"], quality: int, subsampling: str) -> bytes:
    """RGB bytes as a JPEG file."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=quality, colorspace="RGB", colorsubsampling=subsampling
    )


def decode_jpeg(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A JPEG file as RGB bytes."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def _motion_kernel(length_px: float, angle_rad: float) -> Float[np.ndarray, "5 5"]:
    """A line through the middle of a 5 by 5 kernel, symmetric, summing to 1."""
    kernel = np.zeros((5, 5), np.float32)
    for t in np.linspace(-0.5, 0.5, 17) * length_px:
        x, y = 2 + t * np.cos(angle_rad), 2 + t * np.sin(angle_rad)
        i, j = int(np.floor(x)), int(np.floor(y))
        fx, fy = x - i, y - j
        for di, dj, w in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
            if w > 0:
                kernel[min(j + dj, 4), min(i + di, 4)] += w
    kernel = kernel + kernel[::-1, ::-1]
    return kernel / kernel.sum()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _expose(light, gain, vignette, saturation, shot, read, chroma, tile_at, tile, tone, out):
    height, width = light.shape[:2]
    one, zero = np.float32(1.0), np.float32(0.0)
    cx, cy = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
    inv = one / (cx * cx + cy * cy + one)
    steps = np.float32(len(tone) - 1)
    rgb = np.empty(3, np.float32)
    own = np.sqrt(max(one - chroma * chroma, zero))
    for y in range(height):
        ty = (y + tile_at[0]) & 511
        for x in range(width):
            tx = (x + tile_at[1]) & 511
            gy, gx = (tx, ty) if tile_at[2] else (ty, tx)
            dx, dy = np.float32(x) - cx, np.float32(y) - cy
            fall = one - vignette * (dx * dx + dy * dy) * inv
            grey = zero
            for c in range(3):
                rgb[c] = max(light[y, x, c] * gain[c] * fall, zero)
                grey += rgb[c] * (
                    np.float32(0.2126) if c == 0 else np.float32(0.7152) if c == 1 else np.float32(0.0722)
                )
            for c in range(3):
                v = max(grey + (rgb[c] - grey) * saturation, zero)
                v += np.sqrt(shot * v + read * read) * (own * tile[gy, gx, 3] + chroma * tile[gy, gx, c])
                at = np.sqrt(min(max(v, zero), one)) * steps
                k = min(int(at), len(tone) - 2)
                f = at - np.float32(k)
                out[y, x, c] = np.uint8(tone[k] + (tone[k + 1] - tone[k]) * f + np.float32(0.5))
