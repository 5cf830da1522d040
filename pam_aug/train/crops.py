"""Augmented right-hand crops with exact labels, drawn from a pool."""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from pam_aug.estimators.base import tight_box
from pam_aug.estimators.crop import ENLARGE, perspective_crop, upright_turn
from pam_aug.estimators.simplehand_net import NetConfig
from pam_aug.seeds import derived_seed
from pam_aug.train.config import AugmentConfig
from pam_aug.train.pool import Pool

__all__ = ["Batch", "CropBatches", "augment_pixels", "crop_with_label"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`crops` (n,s,s,3), 0 to 255; `uv` (n,21,2) crop units; `joints_m`, `verts_m` relative to the root, crop axes.

    `uv_valid`, `joints_valid` and `verts_valid` (n,) bool say which hands have that label; None says that all have.
    """

    crops: Tensor
    uv: Tensor
    joints_m: Tensor
    verts_m: Tensor
    uv_valid: Tensor | None = None
    joints_valid: Tensor | None = None
    verts_valid: Tensor | None = None


class CropBatches(Dataset):
    """Batch i of a run, for i from 0 to `iterations` - 1: a function of the seed and i, whichever process makes it.

    Images come in keyed permutations of the pool, pass after pass.
    """

    def __init__(
        self, pool: Pool, net: NetConfig, augment: AugmentConfig, batch: int, iterations: int, seed: int
    ) -> None:
        self.pool, self.net, self.augment = pool, net, augment
        self.batch, self.iterations, self.seed = batch, iterations, seed
        self._pass: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.iterations

    def __getitem__(self, iteration: int) -> Batch:
        rng = np.random.default_rng(derived_seed("train-batch", self.seed, iteration))
        first = iteration * self.batch
        rows = [self._row(k) for k in range(first, first + self.batch)]
        made = [crop_with_label(self.pool, row, self.net, self.augment, rng) for row in rows]
        return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True)))

    def _row(self, k: int) -> int:
        number, place = divmod(k, len(self.pool))
        if self._pass is None or self._pass[0] != number:
            order = np.random.default_rng(derived_seed("train-pass", self.seed, number)).permutation(len(self.pool))
            self._pass = (number, order)
        return int(self._pass[1][place])


def crop_with_label(
    pool: Pool, row: int, net: NetConfig, augment: AugmentConfig | None, rng: np.random.Generator
) -> tuple[
    UInt8[np.ndarray, "s s 3"], Float[np.ndarray, "21 2"], Float[np.ndarray, "21 3"], Float[np.ndarray, "778 3"]
]:
    """One image as the network reads it, with its label; without `augment` the view that the estimator takes."""
    hand = pool.hand[row]
    turn, scale, shift = 0.0, 1.0, (0.0, 0.0)
    border = cv2.BORDER_REPLICATE
    if augment is not None:
        turn, scale = _turn(pool, hand, net, augment, rng), rng.uniform(augment.scale[0], augment.scale[1])
        shift = (rng.uniform(-augment.shift, augment.shift), rng.uniform(-augment.shift, augment.shift))
        border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_REFLECT_101
    view = perspective_crop(
        pool.K_px[hand], tight_box(pool.joints_px[hand]), net.input_px, flip=bool(pool.left[hand]),
        enlarge=ENLARGE * scale, shift=shift, turn_rad=turn,
    )  # fmt: skip
    crop = view.image(pool.image(row), border)
    uv = (view.points(pool.joints_px[hand].astype(np.float64)) + 0.5) / net.input_px
    wrist_m = pool.joints_m[hand, :1].astype(np.float64)
    joints = pool.joints_m[hand] - wrist_m
    verts = pool.verts_m[hand].astype(np.float64)
    root = joints[net.root_index]
    if augment is not None:
        crop = augment_pixels(crop, augment, rng)
    return (
        crop,
        uv.astype(np.float32),
        view.vectors(joints - root).astype(np.float32),
        view.vectors(verts - root).astype(np.float32),
    )


def _turn(pool: Pool, hand: int, net: NetConfig, augment: AugmentConfig, rng: np.random.Generator) -> float:
    if not net.upright or rng.random() < augment.any_turn:
        return rng.uniform(-np.pi, np.pi)
    straight = perspective_crop(pool.K_px[hand], tight_box(pool.joints_px[hand]), 1, flip=False)
    return upright_turn(straight.vectors(pool.joints_m[hand]), rng.normal(0.0, augment.turn_noise, 2))


def augment_pixels(
    crop: UInt8[np.ndarray, "s s 3"], augment: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Occluders, low resolution, blur, colour, noise and JPEG, each by its chance; positions stay."""
    size = len(crop)
    if rng.random() < augment.occlude:
        crop = _occlude(crop, rng)
    if rng.random() < augment.shrink:
        small = int(size * rng.uniform(0.33, 0.8))
        crop = cv2.resize(cv2.resize(crop, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < augment.blur:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.3, 1.6))
    crop = cv2.LUT(crop, _colour_curve(rng))
    if rng.random() < augment.noise:
        noise = rng.normal(0.0, rng.uniform(2.0, 12.0), (size, size, 1)).astype(np.float32)
        crop = np.clip(crop + noise, 0, 255).astype(np.uint8)
    if rng.random() < augment.jpeg:
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(crop), quality=int(rng.integers(25, 90)))
        crop = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    return crop


def _colour_curve(rng: np.random.Generator) -> UInt8[np.ndarray, "256 1 3"]:
    """Gamma, contrast, brightness and a gain per channel, as one look-up table."""
    level = np.linspace(0.0, 1.0, 256)[:, None] ** np.exp(rng.normal(0.0, 0.2))
    level = (level - 0.5) * rng.uniform(0.75, 1.25) + 0.5 + rng.uniform(-0.12, 0.12)
    level = level * rng.uniform(0.8, 1.2, 3)
    if rng.random() < 0.1:
        level = np.repeat(level.mean(1, keepdims=True), 3, 1)
    return np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)[:, None]


def _occlude(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One or two patches over the crop, of one colour or of the crop's own texture."""
    crop, size = crop.copy(), len(crop)
    for _ in range(int(rng.integers(1, 3))):
        w, h = (int(v) for v in rng.uniform(0.1, 0.35, 2) * size)
        x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
        if rng.random() < 0.5:
            fill = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (h, w, 3))
        else:
            u, v = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            fill = crop[v : v + h, u : u + w].copy()
        if rng.random() < 0.5:
            crop[y : y + h, x : x + w] = fill
        else:
            mask = np.zeros((h, w), np.uint8)
            cv2.ellipse(mask, (w // 2, h // 2), (w // 2, h // 2), 0, 0, 360, 1, -1)
            crop[y : y + h, x : x + w][mask > 0] = fill[mask > 0]
    return crop
