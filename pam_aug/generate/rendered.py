"""The bundled generator: shaded renders under random light, skin, materials, background and camera.

It needs no weights and no GPU. Its labels are exact, because nothing but appearance changes between candidates:
what a filter removes here are hard images, not wrong ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pam_aug.generate.base import GeneratedImage
from pam_aug.geometry import resize_intrinsics
from pam_aug.render.appearance import prepare, shade
from pam_aug.render.camera_noise import decode_jpeg, encode_jpeg
from pam_aug.render.conditions import Conditions
from pam_aug.render.pieces import scene_conditions, scene_pieces
from pam_aug.rollouts.scene import Scene

__all__ = ["RenderedGenerator"]


@dataclass(frozen=True)
class RenderedOptions:
    """The bundled generator has nothing to set: everything that varies is drawn from the candidate's seed."""


class RenderedGenerator:
    """Shaded renders; the same bytes for the same scene and seed, whatever the worker, the batch or the order."""

    name: ClassVar[str] = "rendered"
    version: ClassVar[str] = "1"
    Options: ClassVar[type] = RenderedOptions

    def __init__(self, options: RenderedOptions | None = None) -> None:
        self.options = options or RenderedOptions()

    def requires(self) -> list[str]:
        """Nothing: it runs on the base installation."""
        return []

    def conditions(self, scene: Scene) -> Conditions:
        """Depth and segmentation of everything that is drawn, what stands in front of the hand included."""
        return scene_conditions(scene, occluders=True)

    def generate(
        self, scene: Scene, seeds: Sequence[int], size: tuple[int, int] | None = None
    ) -> Iterator[GeneratedImage]:
        """One image per seed; the geometry is drawn once for all of them. See `Generator.generate`."""
        camera = scene.sample.camera
        width, height = size or (camera.width, camera.height)
        K_px = camera.K_px.astype(np.float64)
        if (width, height) != (camera.width, camera.height):
            K_px = resize_intrinsics(K_px, width / camera.width, height / camera.height)
        prepared = prepare(scene_pieces(scene), K_px, width, height)
        for seed in seeds:
            rgb = shade(prepared, seed)
            quality = 90 + seed % 7  # the file itself must not be what limits the picture
            jpeg = encode_jpeg(rgb, quality, "444" if seed % 2 else "420")
            yield GeneratedImage(decode_jpeg(jpeg), jpeg)
