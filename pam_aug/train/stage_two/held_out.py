"""Measuring stage II on held-out inputs: the loss, whether the conditions carry it, and sampled images' score."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from pam_aug import registry
from pam_aug.config import resolve
from pam_aug.errors import AssetMissing
from pam_aug.generate.flux.controlnet import ControlPair, unpack_tokens
from pam_aug.generate.flux.looks import stretch_back
from pam_aug.generate.flux.models import decode_latents, load_vae
from pam_aug.generate.flux.sampling import candidate_noise, denoise
from pam_aug.generate.flux.schedule import schedule_times, shift_mu
from pam_aug.score import score_candidates
from pam_aug.seeds import derived_seed
from pam_aug.train.stage_two.batches import draw
from pam_aug.train.stage_two.cache import Cache, Cached
from pam_aug.train.stage_two.config import StageTwoConfig
from pam_aug.train.stage_two.model import Residuals, losses

__all__ = ["MEASURED", "HeldOut", "open_estimator"]

MEASURED = ("inputs", "loss", "loss_shuffled", "candidates", "failed", "err_mm", "pa_err_mm", "err_2d")
_POINTS = (125, 375, 625, 875)  # t = 0.87, 0.62, 0.37, 0.12
_SHOWN = 8
_WIDTH_PX = 160


def open_estimator(config: StageTwoConfig) -> Any:
    """Who scores the sampled images. Raises ConfigError for an unknown name, AssetMissing where it lacks files."""
    held_out = config.held_out
    kind = registry.load("estimators", held_out.estimator)
    estimator = kind(resolve(kind.Options, held_out.options, where="held_out.options"))
    missing = estimator.requires()
    if missing:
        raise AssetMissing("\n  - ".join([f"{held_out.estimator} lacks files:", *missing]), missing=missing)
    return estimator


class HeldOut:
    """The held-out inputs of a run. `share` (rank, world) is the part of them that this process measures."""

    def __init__(
        self, cache: Cache, config: StageTwoConfig, scaling: tuple[float, float], share: tuple[int, int]
    ) -> None:
        self._cache, self._config, self._scaling = cache, config, scaling
        self._mine = range(len(cache))[share[0] :: share[1]]
        self._estimator = open_estimator(config) if config.held_out.candidates else None
        self._vae: Any = None

    def totals(
        self, pair: ControlPair, transformer: Any, autocast: Callable[[], Any], pictures: Path | None = None
    ) -> np.ndarray:
        """Sums over this process's inputs, for `figures`. Writes the first inputs' samples as a JPEG to `pictures`:
        label image, condition images, candidates."""
        sums = np.zeros(len(MEASURED))
        rows: list[np.ndarray] = []
        for index in self._mine:
            cached = self._cache[index]
            own, shuffled = self._losses(index, pair, transformer, autocast)
            sums[:3] += (1, own, shuffled)
            if self._estimator is None:
                continue
            images = self._sampled(cached, pair, transformer, autocast)
            sums[3] += len(images)
            if cached.sample.hands:
                sums[4:] += _score(cached, images, self._estimator, self._config)
            if pictures is not None and len(rows) < _SHOWN:
                rows.append(_row(cached, images))
        if pictures is not None and rows:
            pictures.parent.mkdir(exist_ok=True)
            width = min(row.shape[1] for row in rows)
            cv2.imwrite(str(pictures), np.concatenate([row[:, :width] for row in rows])[..., ::-1])
        return sums

    def figures(self, sums: np.ndarray) -> dict[str, Any]:
        """Means from the sums of all processes. `loss_shuffled` is the loss under another input's conditions: where it
        is no higher, the conditions control nothing yet."""
        inputs, candidates, failed = int(sums[0]), int(sums[3]), int(sums[4])
        out: dict[str, Any] = {"inputs": inputs, "loss": float(f"{sums[1] / inputs:.6g}")}
        if len(self._cache) > 1:
            out["loss_shuffled"] = float(f"{sums[2] / inputs:.6g}")
        if candidates:
            out |= {"candidates": candidates, "failed": failed}
            scored = max(candidates - failed, 1)
            out |= {name: float(f"{value / scored:.6g}") for name, value in zip(MEASURED[5:], sums[5:], strict=True)}
        return out

    @torch.no_grad()
    def _losses(
        self, index: int, pair: ControlPair, transformer: Any, autocast: Callable[[], Any]
    ) -> tuple[float, float]:
        """Of one input at fixed times and noise, under its own conditions and under the next input's."""
        config, cached = self._config, self._cache[index]
        prompt = self._cache.prompt(cached.prompt)
        found = []
        for other in (cached, self._cache[(index + 1) % len(self._cache)]):
            conditions, total = other.conditions(config.width, config.height), 0.0
            for number, point in enumerate(_POINTS):
                drawn = draw(derived_seed("held-out", cached.sample.key), number, cached.moments, "none")
                raw = {name: value[None] for name, value in drawn.items()}
                raw |= {"points": torch.tensor([point]), "moments": cached.moments[None], "conditions": conditions}
                raw |= {"text": prompt.text, "pooled": prompt.pooled}
                total += float(
                    losses(
                        Residuals(pair), transformer, raw, scaling=self._scaling, guidance=config.guidance,
                        autocast=autocast,
                    )
                )  # fmt: skip
            found.append(total / len(_POINTS))
        return found[0], found[1]

    @torch.inference_mode()
    def _sampled(
        self, cached: Cached, pair: ControlPair, transformer: Any, autocast: Callable[[], Any]
    ) -> list[np.ndarray]:
        """Candidates at the camera's size; their seeds are the input's, the same at every measure."""
        config, held_out, device = self._config, self._config.held_out, transformer.device
        if self._vae is None:
            vae: Any = load_vae(Path(config.flux.base), transformer.dtype)
            self._vae = vae.to(device)
        prompt = self._cache.prompt(cached.prompt)
        prompt = type(prompt)(*(getattr(prompt, n).to(device, transformer.dtype) for n in ("text", "pooled")))
        seeds = [derived_seed("held-out", cached.sample.key, k) for k in range(held_out.candidates)]
        noise = candidate_noise(seeds, config.width, config.height, self._vae.config["latent_channels"])
        times = schedule_times(held_out.steps, shift_mu(config.width, config.height, held_out.mu))
        camera = cached.sample.camera
        with autocast():
            hints = pair.hints(cached.conditions(config.width, config.height).to(device))
            tokens = denoise(transformer, pair, noise, hints, prompt, times, config.guidance)
        pixels: Tensor = decode_latents(self._vae, unpack_tokens(tokens, noise.shape[2], noise.shape[3]))
        return [stretch_back(rgb, camera.width, camera.height) for rgb in pixels.numpy()]


def _score(cached: Cached, images: Sequence[np.ndarray], estimator: Any, config: StageTwoConfig) -> np.ndarray:
    """(failed, and the sums of the three errors over the others)."""
    rows = score_candidates(cached.sample, images, list(range(len(images))), estimator=estimator, generator="flux")
    good = [row for row in rows if not row.failure and math.isfinite(row.err_mm)]
    sums = [sum(getattr(row, name) for row in good) for name in ("err_mm", "pa_err_mm", "err_2d")]
    return np.array([len(rows) - len(good), *sums])


def _row(cached: Cached, images: Sequence[np.ndarray]) -> np.ndarray:
    """Condition images and candidates side by side, small."""
    height = round(_WIDTH_PX * images[0].shape[0] / images[0].shape[1])
    shown = [*cached.images.values(), *images[:4]]
    return np.concatenate([cv2.resize(np.asarray(i), (_WIDTH_PX, height), interpolation=3) for i in shown], axis=1)
