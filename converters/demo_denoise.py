"""Takes the grain of few light paths out of a picture, keeping what albedo, normals and depth say is an edge."""

import numba
import numpy as np
from jaxtyping import Float

__all__ = ["denoise"]

_KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def denoise(
    light: Float[np.ndarray, "h w 3"],
    albedo: Float[np.ndarray, "h w 3"],
    normal: Float[np.ndarray, "h w 3"],
    depth_m: Float[np.ndarray, "h w"],
    rounds: int = 3,
) -> Float[np.ndarray, "h w 3"]:
    """The edge-avoiding a-trous wavelet filter (Dammertz et al., HPG 2010) on the light that falls on surfaces.

    Light is divided by albedo first, so no texture is blurred. Guides may come from fewer light paths than the picture:
    where they are ragged, pixels keep to themselves.
    """
    base = np.maximum(albedo, 0.02)
    falling = np.log1p(np.minimum(light / base, 50.0)).astype(np.float32)
    # The weights say which difference counts as an edge: a third of a right angle, 4 % of depth, a third of albedo.
    guides = np.concatenate([normal * 6.0, np.log(np.maximum(depth_m, 1e-3))[..., None] * 34.0, base * 3.4], axis=2)
    guides = guides.astype(np.float32)
    for k in range(rounds):
        falling = _smooth(falling, guides, 1 << k, np.float32((2**k / 1.6) ** 2))
    return np.expm1(falling.astype(np.float64)) * base


@numba.njit(cache=True, nogil=True)
def _smooth(values, guides, step, sharp):
    h, w, _ = values.shape
    channels = guides.shape[2]
    out = np.empty_like(values)
    for y in range(h):
        for x in range(w):
            r = g = b = total = np.float32(0.0)
            for j in range(5):
                v = min(max(y + (j - 2) * step, 0), h - 1)
                for i in range(5):
                    u = min(max(x + (i - 2) * step, 0), w - 1)
                    apart = np.float32(0.0)
                    for c in range(channels):
                        d = guides[v, u, c] - guides[y, x, c]
                        apart += d * d
                    if apart > 12.0:
                        continue
                    for c in range(3):
                        d = values[v, u, c] - values[y, x, c]
                        apart += d * d * sharp
                    share = np.exp(-apart) * _KERNEL[i] * _KERNEL[j]
                    r += share * values[v, u, 0]
                    g += share * values[v, u, 1]
                    b += share * values[v, u, 2]
                    total += share
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = r / total, g / total, b / total
    return out
