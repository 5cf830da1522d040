"""Procedural textures: a periodic noise volume, random prints, palettes, and the surfaces of objects and cloth."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float, UInt8

VOLUME = 64
PRINT = 160
_GLYPHS = "ABCDEFGHIJKLMNOPRSTUVWXYZ0123456789aeiou+%&"


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 to linear light."""
    s = np.asarray(srgb, np.float64)
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


_LINEAR_OF_BYTE = to_linear(np.arange(256) / 255.0).astype(np.float32)


def bytes_to_linear(image: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """sRGB bytes to linear light, float32."""
    return np.asarray(cv2.LUT(image, _LINEAR_OF_BYTE))


@lru_cache(maxsize=1)
def noise_volume() -> Float[np.ndarray, "64 64 64 4"]:
    """Periodic noise, mean 0 and deviation 1; channels: broad clouds, medium grain, fine grain, other clouds."""
    rng = np.random.Generator(np.random.PCG64(20_177))
    k = np.fft.fftfreq(VOLUME) * VOLUME
    r = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(VOLUME)[None, None] ** 2 * VOLUME**2)
    r[0, 0, 0] = 1.0
    out = np.empty((VOLUME,) * 3 + (4,), np.float32)
    for channel, (power, low, high) in enumerate(((1.9, 1.5, 40), (1.0, 6, 40), (0.3, 14, 40), (1.9, 1.5, 40))):
        spectrum = np.fft.rfftn(rng.standard_normal((VOLUME,) * 3)) * r**-power * ((r >= low) & (r <= high))
        field = np.fft.irfftn(spectrum, s=(VOLUME,) * 3, axes=(0, 1, 2))
        out[..., channel] = field / field.std()
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def sample_noise(volume, x, y, z):
    """The four channels at a point in cells, trilinear; returns a tuple."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    tx, ty, tz = np.float32(x - fx), np.float32(y - fy), np.float32(z - fz)
    x0, y0, z0 = int(fx) & 63, int(fy) & 63, int(fz) & 63
    x1, y1, z1 = (x0 + 1) & 63, (y0 + 1) & 63, (z0 + 1) & 63
    a = b = c = d = np.float32(0.0)
    one = np.float32(1.0)
    for n in range(8):
        i, wx = (x1, tx) if n & 1 else (x0, one - tx)
        j, wy = (y1, ty) if n & 2 else (y0, one - ty)
        k, wz = (z1, tz) if n & 4 else (z0, one - tz)
        w = wx * wy * wz
        a += w * volume[i, j, k, 0]
        b += w * volume[i, j, k, 1]
        c += w * volume[i, j, k, 2]
        d += w * volume[i, j, k, 3]
    return a, b, c, d


@numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def sample_print(image, u, v, c):
    """Channel c of a picture that repeats every 1 in u and v, bilinear."""
    h, w = image.shape[0], image.shape[1]
    x, y = u * w - np.float32(0.5), v * h - np.float32(0.5)
    fx, fy = np.floor(x), np.floor(y)
    tx, ty = np.float32(x - fx), np.float32(y - fy)
    x0, y0 = int(fx) % w, int(fy) % h
    x1, y1 = (x0 + 1) % w, (y0 + 1) % h
    top = image[y0, x0, c] * (np.float32(1.0) - tx) + image[y0, x1, c] * tx
    low = image[y1, x0, c] * (np.float32(1.0) - tx) + image[y1, x1, c] * tx
    return top * (np.float32(1.0) - ty) + low * ty


def draw_palette(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 3"]:
    """n sRGB colours (0..1) that people would put beside each other: near hues or a contrast, some greys."""
    hue, spread = rng.uniform(0, 180), rng.choice([8.0, 30.0, 90.0])
    hues = (hue + rng.normal(0, spread, n)) % 180
    sat = np.clip(rng.normal(rng.uniform(0, 13) ** 2, 35, n), 0, 240)
    val = np.clip(rng.normal(rng.uniform(90, 225), 50, n), 15, 250)
    grey = rng.random(n) < 0.2
    sat[grey] = rng.uniform(0, 25)
    hsv = np.stack([hues, sat, val], 1).astype(np.uint8)[None]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] / 255.0


def draw_print(rng: np.random.Generator) -> Float[np.ndarray, "160 160 3"]:
    """A random printed pattern, linear light: packaging with bands, blocks and lettering, cloth patterns, or stains."""
    colours = (draw_palette(rng, 6) * 255).astype(int).tolist()
    image = np.empty((PRINT, PRINT, 3), np.uint8)
    image[:] = colours[0]
    kind = rng.choice(["plain", "package", "package", "stripes", "checks", "dots", "patches"])
    if kind == "package":
        _draw_package(image, colours, rng)
    elif kind == "stripes":
        edges = np.sort(rng.integers(0, PRINT, int(rng.integers(2, 12)) * 2)).tolist()
        for k, (a, b) in enumerate(zip(edges[::2], edges[1::2])):
            image[:, a:b] = colours[1 + k % 3]
        image = np.ascontiguousarray(image.transpose(1, 0, 2)) if rng.random() < 0.5 else image
    elif kind == "checks":
        n = int(rng.choice([2, 4, 6, 8, 12, 16]))
        k = np.arange(PRINT) * n // PRINT % 2
        image[(k[:, None] ^ k[None]) == 1] = colours[1]
        if rng.random() < 0.5:
            image[k == 1] = (image[k == 1].astype(int) + colours[2]) // 2
    elif kind == "dots":
        n, r = int(rng.integers(2, 8)), float(rng.uniform(0.15, 0.45))
        for k in range(n * n):
            at = (int((k % n + 0.5) * PRINT / n), int((k // n + 0.5) * PRINT / n))
            cv2.circle(image, at, int(r * PRINT / n), colours[1 + k % 2], -1, cv2.LINE_AA)
    elif kind == "patches":
        for _ in range(int(rng.integers(4, 20))):
            points = rng.integers(-20, PRINT + 20, (int(rng.integers(3, 7)), 2)).astype(np.int32)
            cv2.fillPoly(image, [points], colours[int(rng.integers(6))], cv2.LINE_AA)
    return bytes_to_linear(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.6))))


def _draw_package(image: UInt8[np.ndarray, "h w 3"], colours: list[list[int]], rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        y, h = int(rng.integers(0, PRINT)), int(rng.integers(8, 70))
        cv2.rectangle(image, (0, y), (PRINT, y + h), colours[int(rng.integers(1, 4))], -1)
    for _ in range(int(rng.integers(0, 5))):
        at = tuple(int(v) for v in rng.integers(0, PRINT, 2))
        axes = tuple(int(v) for v in rng.integers(6, 50, 2))
        turn = float(rng.uniform(0, 180)) if rng.random() < 0.3 else 0.0
        cv2.ellipse(image, at, axes, turn, 0, 360, colours[int(rng.integers(1, 6))], -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(1, 6))):
        text = "".join(_GLYPHS[int(i)] for i in rng.integers(0, len(_GLYPHS), int(rng.integers(2, 9))))
        at = (int(rng.integers(-10, PRINT - 40)), int(rng.integers(15, PRINT)))
        font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX]))
        size = float(rng.uniform(0.4, 2.2))
        cv2.putText(image, text, at, font, size, colours[int(rng.integers(1, 6))], max(1, int(size * 2)), cv2.LINE_AA)
    x, y = (int(v) for v in rng.integers(0, PRINT - 30, 2))
    for k in range(int(rng.integers(0, 9))):  # small print
        cv2.line(image, (x, y + 5 * k), (x + int(rng.integers(15, 60)), y + 5 * k), colours[5], 1)


class Material(NamedTuple):
    """How an object or a cloth looks for one candidate."""

    picture: Float[np.ndarray, "p p 3"]  # linear light
    mapping: int  # 0 around the long axis, 1 by the sides of its box
    repeat: Float[np.ndarray, "4"]  # repeats in u and v, offsets in u and v
    noise: Float[np.ndarray, "4"]  # cells per metre; share of clouds, grain and fine grain in the colour
    bump: float  # how strongly grain turns the normal
    gloss: Float[np.ndarray, "3"]  # roughness, reflectance facing the surface, metalness


def draw_material(rng: np.random.Generator, cloth: bool) -> Material:
    """A random material; a cloth is rough and mostly plain."""
    if rng.random() < (0.6 if cloth else 0.3):
        picture = np.empty((4, 4, 3), np.float32)
        picture[:] = to_linear(draw_palette(rng, 1)[0])
    else:
        picture = draw_print(rng)
    repeats = rng.integers(3, 9, 2) if cloth else rng.integers(1, 4, 2)
    repeat = np.array([*repeats, rng.random(), rng.random()], np.float32)
    if cloth:
        noise = np.array([rng.uniform(300, 900), 0.08, 0.10, rng.uniform(0.02, 0.15)], np.float32)
        return Material(
            picture, 0, repeat, noise, float(rng.uniform(0.05, 0.25)), np.array([0.9, 0.02, 0.0], np.float32)
        )
    amounts = rng.uniform(0, 1, 3) ** 3 * (0.25, 0.15, 0.12)
    noise = np.array([rng.uniform(100, 900), *amounts], np.float32)
    metal = rng.random() < 0.1
    rough = rng.uniform(0.15, 0.5) if metal else rng.uniform(0.12, 0.95)
    gloss = np.array([rough, 0.6 if metal else rng.uniform(0.02, 0.06), 0.85 if metal else 0.0], np.float32)
    return Material(picture, int(rng.random() < 0.5), repeat, noise, float(rng.uniform(0, 0.12) ** 1.2), gloss)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def paint_material(ids, tex, uv, volume, picture, mapping, repeat, noise, bump, gloss, albedo, normal, gloss_out):
    """Colour the samples `ids`: `tex` are their metres in the object's frame, `uv` (N,4) the two mappings'
    coordinates.
    """
    cells = noise[0]
    for n in range(len(ids)):
        i = ids[n]
        a, b, c, _ = sample_noise(volume, tex[i, 0] * cells, tex[i, 1] * cells, tex[i, 2] * cells)
        u = uv[i, 2 * mapping] * repeat[0] + repeat[2]
        v = uv[i, 2 * mapping + 1] * repeat[1] + repeat[3]
        gain = max(np.float32(1.0) + noise[1] * a + noise[2] * b + noise[3] * c, np.float32(0.1))
        for k in range(3):
            albedo[i, k] = min(max(sample_print(picture, u, v, k) * gain, np.float32(0.01)), np.float32(0.92))
            gloss_out[i, k] = gloss[k]
        x, y, z = normal[i, 0] + bump * b, normal[i, 1] + bump * c, normal[i, 2] + bump * a
        inv = np.float32(1.0) / np.sqrt(x * x + y * y + z * z)
        normal[i, 0], normal[i, 1], normal[i, 2] = x * inv, y * inv, z * inv


def object_uv(
    rest_m: Float[np.ndarray, "n 3"], rest_normal: Float[np.ndarray, "n 3"], low_high_m: np.ndarray
) -> Float[np.ndarray, "n 4"]:
    """Two ways to wrap a print around an object: around its longest axis, and by the sides of its bounding box."""
    size = np.maximum(low_high_m[1] - low_high_m[0], 1e-6)
    axis = int(size.argmax())
    i, j = (k for k in range(3) if k != axis)
    unit = (rest_m - low_high_m[0]) / size  # 0..1
    out = np.empty((len(rest_m), 4), np.float32)
    out[:, 0] = np.arctan2(unit[:, j] - 0.5, unit[:, i] - 0.5) / (2 * np.pi)
    out[:, 1] = unit[:, axis]
    cap = np.abs(rest_normal[:, axis]) > 0.8  # a lid
    out[cap, 0], out[cap, 1] = unit[cap, i] * 0.5, unit[cap, j] * 0.5
    side = np.abs(rest_normal).argmax(1)
    metres = (rest_m - low_high_m[0]) / size.max()
    out[:, 2] = np.where(side == 0, metres[:, 1], metres[:, 0]) + 0.37 * side
    out[:, 3] = np.where(side == 2, metres[:, 1], metres[:, 2])
    return out
