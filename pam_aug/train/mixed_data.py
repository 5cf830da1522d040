"""Batches of a run on mixed shards: batch i is a function of the mix, the seed and i, whichever process makes it."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float
from torch.utils.data import Dataset

from pam_aug.errors import ConfigError
from pam_aug.geometry import square_crop
from pam_aug.mix import MixedDataset, open_mix, parse_ratio
from pam_aug.mix_memory import tensors_of
from pam_aug.mix_order import MAX_DENOMINATOR
from pam_aug.seeds import derived_seed
from pam_aug.shards.manifest import Mix, MixSource, collect_shards, read_mix, write_mix
from pam_aug.shards.reader import ShardReader
from pam_aug.train.augment_geometry import draw, make_views
from pam_aug.train.augment_pixels import PixelAugmentation
from pam_aug.train.domain_gap import draw_background, mix_spectrum, paste_occluder, swap_background
from pam_aug.train.mixed_config import GapConfig, GeometryConfig, MixedTrainConfig
from pam_aug.train.nets import NetSpec

__all__ = ["MixBatches", "crop_window", "derive_mix"]


def derive_mix(folder: Path, into: Path, ratio: str = "", real_fraction: str = "", seed: int = -1) -> Path:
    """Write the mix that a run reads to `into` and return it: a build's mix with another ratio or seed, the shards
    where they are. A folder of shards without a mix is read whole.

    `ratio` "union" reads every hand that is kept equally often. Raises ConfigError for a ratio the mix cannot give.
    """
    folder = Path(folder)
    root = folder if folder.is_dir() else folder.parent
    has_mix = not folder.is_dir() or (folder / "mix.json").is_file()
    mix = _absolute(read_mix(folder) if has_mix else _all_shards(folder), root)
    mix = mix if seed < 0 else replace(mix, seed=seed)
    if real_fraction:
        keep = str(parse_ratio(real_fraction))
        mix = replace(mix, sources=tuple(replace(s, keep=keep) if s.name == "real" else s for s in mix.sources))
    if ratio == "union" or not has_mix:
        sizes = [len(items) for items in open_mix(mix, root)[0]]
        share = Fraction(sizes[0], max(1, sum(sizes))).limit_denominator(MAX_DENOMINATOR)
        if len(sizes) > 2:
            raise ConfigError(f"{folder}: a union is of real and synthetic hands; this mix has {len(sizes)} sources")
        shares = [str(share), str(1 - share)]
        mix = replace(mix, sources=tuple(replace(s, share=part) for s, part in zip(mix.sources, shares)))
    elif ratio:
        mix = _with_ratio(mix, ratio, folder)
    write_mix(into, mix)
    return into


def crop_window(
    spec: NetSpec, geometry: GeometryConfig | None, crop_px: int = 0, crop_scale: float = 0.0
) -> tuple[int, float]:
    """Size and scale of the squares that the loader cuts so that no view needs more than it has, and none loses
    resolution by it; given values that are not 0 stay.

    A turned square needs the diagonal; the pixels are those of the middle of the scales.
    """
    low, high, reach, shift = 1.0, 1.0, 1.0, 0.0
    if geometry is not None:
        (low, high), shift = geometry.scale, geometry.shift
        turn = np.deg2rad(min(geometry.turn_deg, 45.0))
        reach = float(np.cos(turn) + np.sin(turn))
    # Views are cut with a turned camera, whose image of the square is a little larger at its corners.
    scale = crop_scale or 1.05 * spec.enlarge * high * reach + 2.0 * shift
    px = crop_px or 8 * int(np.ceil(spec.input_px * scale / (spec.enlarge * (low + high) / 2) / 8))
    return px, scale


class MixBatches(Dataset):
    """Batch i of a run, for i from 0: the mix's epochs one after the other, this rank's slice of each global batch.

    A batch is `MixedDataset`'s, its images augmented, and beside it `H_px` (n,3,3), `turned` (n,3,3) and `uv` (n,21,2)
    of the views that are drawn (see `augment_geometry`), `valid` (n,), and `models`, the (build folder, hand model, tip
    set) of each label. Everything that is drawn for a hand depends on the seed and its position in the order; partners
    for a spectrum or an occluder come from the same rank's part of the batch.
    """

    def __init__(self, dataset: MixedDataset, spec: NetSpec, config: MixedTrainConfig | None, iterations: int) -> None:
        self.dataset, self.spec, self.iterations = dataset, spec, iterations
        self.geometry = None if config is None else config.geometry
        self.gap = GapConfig() if config is None else config.gap
        self.pixels = None if config is None else PixelAugmentation(config.pixels)
        self.seed = 0 if config is None else config.seed
        self._models: dict[Path, list[tuple[str, str, str] | None]] = {}

    def __len__(self) -> int:
        return self.iterations

    def begin(self, iteration: int) -> int:
        """Position in the order at which an iteration's global batch begins."""
        epoch, place = divmod(iteration, len(self.dataset))
        return epoch * self.dataset.schedule.epoch_length + place * self.dataset.batch_size

    def __getitem__(self, iteration: int) -> dict[str, Any]:
        positions, end, padded = self.dataset.positions_at(self.begin(iteration))
        batch = self.dataset.load(positions)
        seeds = [derived_seed("train-hand", self.seed, int(p)) for p in positions]
        found = self.dataset.items_at(positions)
        images = batch["image"].numpy()
        if self.pixels is not None:
            self._narrow_gap(images, batch, found, seeds)
            for image, seed in zip(images, seeds):
                image[:] = self.pixels(image, seed)
        self._add_views(batch, seeds)
        batch["models"] = [self._model(reader, row) for reader, row in found]
        return {**batch, "position": end, "padded": padded}

    def _add_views(self, batch: dict[str, Any], seeds: list[int]) -> None:
        spec, left = self.spec, batch["side"].numpy() == 1
        joints_px = batch["joints_px"].numpy().astype(np.float64)
        draws = draw(self.geometry, left, seeds)
        views = make_views(batch["K_px"].numpy(), joints_px, draws, spec.input_px, spec.enlarge, spec.centre_px)
        seen = views.points(np.nan_to_num(joints_px))
        # A hand counts unless both its wrist and its middle finger's base lie outside the view, as in SimpleHand.
        inside = np.asarray(((seen >= -0.5) & (seen <= spec.input_px - 0.5)).all(axis=-1))
        uv = (seen + (spec.input_px / 2 - spec.centre_px)) / spec.input_px
        uv = np.clip(uv, -10.0, 10.0).astype(np.float32)
        valid = views.valid & (inside[:, 0] | inside[:, 9])
        batch |= tensors_of({"H_px": views.H_px, "turned": views.turned, "uv": uv, "valid": valid})

    def _narrow_gap(
        self, images: np.ndarray, batch: dict[str, Any], found: Sequence[tuple[ShardReader, int]], seeds: list[int]
    ) -> None:
        gap = self.gap
        if not (gap.spectrum or gap.background or gap.occluder):
            return
        synthetic = batch["is_synthetic"].numpy()
        real = np.flatnonzero(~synthetic)
        before = images.copy()
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng(derived_seed("train-gap", seed))
            chances = rng.random(3)
            if chances[0] < gap.background:
                kept = self._kept(*found[i])
                images[i] = swap_background(images[i], kept, draw_background(rng, gap.backgrounds, len(kept)))
            if chances[1] < gap.spectrum and synthetic[i] and len(real):
                partner = before[real[int(rng.integers(len(real)))]]
                images[i] = mix_spectrum(images[i], partner, gap.spectrum_radius)
            if chances[2] < gap.occluder:
                other = before[int(rng.integers(len(before)))]
                images[i] = paste_occluder(rng, images[i], other, batch["joints_px"][i].numpy())

    def _kept(self, reader: ShardReader, number: int) -> Float[np.ndarray, "s s"]:
        """1 on hands, forearm and objects, 0 on the background, in the loader's crop. Raises ConfigError."""
        row, size = reader.row(number), self.dataset.crop_px
        assert size is not None
        ordinal = int(row["sample"])
        if "seg.png" not in reader.extras(ordinal):
            raise ConfigError(
                f"{reader.path}: has no segmentation, which gap.background needs; build with --set shards.seg=true"
            )
        png = np.frombuffer(reader.extra(ordinal, "seg.png"), np.uint8)
        seg = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
        if seg is None or seg.shape != (row["height"], row["width"]):
            raise ConfigError(f"{reader.path}:{row['key'].decode()}: its segmentation is no image of its size")
        crop = square_crop(row["joints_px"], size, self.dataset.crop_scale)
        mask = (seg > 0).astype(np.float32)
        return cv2.warpAffine(mask, crop.affine, (size, size), flags=cv2.INTER_LINEAR)

    def _model(self, reader: ShardReader, number: int) -> tuple[str, str, str]:
        """What made a label; read from its JSON once per process."""
        known = self._models.setdefault(reader.path, [None] * reader.hands)
        model = known[number]
        if model is None:
            row = reader.row(number)
            hand = reader.sample(int(row["sample"])).hands[int(row["hand"])]
            model = known[number] = (str(reader.path.resolve().parent.parent), hand.hand_model, hand.tips)
        return model


def _absolute(mix: Mix, root: Path) -> Mix:
    def moved(source: MixSource) -> MixSource:
        return replace(source, shards=tuple(replace(s, path=str((root / s.path).resolve())) for s in source.shards))

    return replace(mix, sources=tuple(moved(s) for s in mix.sources))


def _all_shards(folder: Path) -> Mix:
    where = folder / "shards" if (folder / "shards").is_dir() else folder
    found = (("real", collect_shards(where, "real", folder)), ("synthetic", collect_shards(where, "syn", folder)))
    sources = [MixSource(name, "0", shards) for name, shards in found if sum(s.hands for s in shards)]
    if not sources:
        raise ConfigError(f"{folder}: holds neither a mix.json nor committed shards with hands; give a build's folder")
    return Mix((replace(sources[0], share="1"), *sources[1:]))


def _with_ratio(mix: Mix, ratio: str, folder: Path) -> Mix:
    share = parse_ratio(ratio)
    shares = {"real": share, "synthetic": 1 - share}
    names = [s.name for s in mix.sources]
    missing = [name for name, part in shares.items() if part > 0 and name not in names]
    if missing or not set(names) <= set(shares):
        raise ConfigError(
            f"data.ratio {ratio}: {folder} has no {missing[:1] or 'real and synthetic'} half, only {names}"
        )
    return replace(mix, sources=tuple(replace(s, share=str(shares[s.name])) for s in mix.sources))
