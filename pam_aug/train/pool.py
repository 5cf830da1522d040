"""Rendered images with their labels, kept on disk in parts: what training draws its crops from.

A part is a fixed slice of a converter's items, made by any worker in any order, so a killed run goes on where it was
and the same configuration gives the same bytes.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from pam_aug import registry
from pam_aug.config import resolve
from pam_aug.engines.local import Failure, LocalEngine
from pam_aug.errors import ConfigError, PamAugError
from pam_aug.rollouts.scene import build_scene
from pam_aug.seeds import derived_seed
from pam_aug.train.config import PoolConfig

__all__ = ["Pool", "open_pool", "render_pool"]

_INPUTS_PER_PART = 200


@dataclass(frozen=True, eq=False)
class Pool:
    """n images of m hands. `hand` (n,) says which hand an image shows; labels are per hand, in its camera's frame.

    `verts_m` is float16 and relative to the wrist, `joints_m` absolute.
    """

    blobs: tuple[UInt8[np.ndarray, "_"], ...]
    part: Int[np.ndarray, "n"]
    start: Int[np.ndarray, "n"]
    length: Int[np.ndarray, "n"]
    hand: Int[np.ndarray, "n"]
    left: np.ndarray
    K_px: Float[np.ndarray, "m 3 3"]
    joints_m: Float[np.ndarray, "m 21 3"]
    joints_px: Float[np.ndarray, "m 21 2"]
    verts_m: Float[np.ndarray, "m 778 3"]

    def __len__(self) -> int:
        return len(self.hand)

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `index`, decoded, RGB."""
        import simplejpeg

        start = self.start[index]
        jpeg = self.blobs[self.part[index]][start : start + self.length[index]]
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")


def render_pool(config: PoolConfig, folder: Path, workers: int) -> None:
    """Make the parts that `folder` lacks, over `workers` processes; with 0, in this one."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, config.inputs, _INPUTS_PER_PART)
    todo = [start for start in starts if not _labels_path(folder, start).is_file()]
    if not todo:
        return
    waiting = sum(min(_INPUTS_PER_PART, config.inputs - start) for start in todo)
    _open_source(config)  # a wrong source is an error here, once, not in every worker
    with (
        LocalEngine(partial(_part_renderer, config, folder), workers) as engine,
        tqdm(total=config.inputs, initial=config.inputs - waiting, unit="input", disable=None) as bar,
    ):
        for done in engine.run(todo):
            if isinstance(done, Failure):
                raise done.error
            bar.update(done[1])


def open_pool(config: PoolConfig, folder: Path) -> Pool:
    """The finished pool of a folder. Raises ConfigError where parts are missing."""
    blobs: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {}
    hands = 0
    for start in range(0, config.inputs, _INPUTS_PER_PART):
        path = _labels_path(folder, start)
        if not path.is_file():
            raise ConfigError(f"{path}: this part of the pool is missing; run the training again to render it")
        with np.load(path, allow_pickle=False) as data:
            part = {name: data[name] for name in data.files}
        part["hand"] = part["hand"] + hands
        part["part"] = np.full(len(part["hand"]), len(blobs))
        hands += len(part["left"])
        for name, value in part.items():
            columns.setdefault(name, []).append(value)
        blobs.append(np.memmap(path.with_suffix(".bin"), np.uint8, "r"))
    return Pool(tuple(blobs), **{name: np.concatenate(values) for name, values in columns.items()})


def _labels_path(folder: Path, start: int) -> Path:
    return folder / f"part-{start:06d}.npz"


def _open_source(config: PoolConfig) -> Any:
    section: dict[str, Any] = {"seed": config.seed, "count": config.inputs, **config.source}
    converter = registry.load("converters", str(section.pop("converter", "")))
    return converter(resolve(converter.Options, section, where="pool.source"))


def _part_renderer(config: PoolConfig, folder: Path) -> Callable[[int], int]:
    """What a worker keeps: the source and the generator, opened once."""
    source = _open_source(config)
    return partial(_render_part, config, folder, source, registry.load("generators", config.generator)())


def _render_part(config: PoolConfig, folder: Path, source: Any, generator: Any, start: int) -> int:
    """Render the part that begins at input `start`; returns how many inputs it covers."""
    assets = source.hand_assets()
    labels: dict[str, list[Any]] = {k: [] for k in ("left", "K_px", "joints_m", "joints_px", "verts_m")}
    images: list[bytes] = []
    shows: list[int] = []
    end = min(start + _INPUTS_PER_PART, config.inputs)
    for index in range(start, end):
        try:
            item = source.item(index)
            scene = build_scene(item, assets)
            seeds = [derived_seed("pool", config.seed, item.sample.key, k) for k in range(config.appearances)]
            made = [picture.jpeg for picture in generator.generate(scene, seeds)]
        except PamAugError:
            continue  # one input that cannot be drawn is one hand fewer; parts are of fixed inputs, not of fixed hands
        for number, hand in enumerate(item.sample.hands):
            _add_label(labels, hand, item.sample.camera, scene.hands[number].verts_cam_m)
            shows += [len(labels["left"]) - 1] * len(made)
            images += made
    _write_part(_labels_path(folder, start), labels, images, shows)
    return end - start


def _add_label(labels: Mapping[str, list[Any]], hand: Any, camera: Any, verts_cam_m: np.ndarray) -> None:
    labels["left"].append(hand.side == "left")
    labels["K_px"].append(np.asarray(camera.K_px, np.float64))
    labels["joints_m"].append(np.asarray(hand.joints_cam_m, np.float32))
    labels["joints_px"].append(np.asarray(hand.joints_px, np.float32))
    labels["verts_m"].append((verts_cam_m - np.asarray(hand.joints_cam_m, np.float64)[0]).astype(np.float16))


def _write_part(path: Path, labels: Mapping[str, list[Any]], images: list[bytes], shows: list[int]) -> None:
    lengths = np.array([len(jpeg) for jpeg in images], np.int64)
    blob = path.with_suffix(".bin")
    blob.write_bytes(b"".join(images))
    temporary = path.with_suffix(".tmp.npz")
    columns: dict[str, Any] = {name: np.array(values) for name, values in labels.items()}
    columns |= {"hand": np.array(shows, np.int64), "start": np.cumsum(lengths) - lengths, "length": lengths}
    np.savez(temporary, **columns)
    os.replace(temporary, path)  # the labels come last and mark the part as whole
