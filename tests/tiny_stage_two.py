"""A tiny FLUX and six rendered images for the tests of stage II."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_flux import write_flux

from pam_aug.generate.flux import models
from pam_aug.generate.flux.fingerprint import fingerprint
from pam_aug.generate.flux.models import TextEncoders, load_vae
from pam_aug.registry import load
from pam_aug.render.conditions import depth_png, seg_png
from pam_aug.rollouts.scene import build_scene
from pam_aug.shards.writer import ShardWriter
from pam_aug.train.stage_two.cache import Cache, claim_cache, write_parts, write_prompts
from pam_aug.train.stage_two.config import ExampleConfig
from pam_aug.train.stage_two.examples import Examples

__all__ = ["SIZE", "make_cache", "short_texts", "write_rendered", "write_sure_flux"]

SIZE = [64, 48]


@contextmanager
def short_texts() -> Iterator[None]:
    """16 tokens of text instead of 512: the image has 12, and attention sees both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_T5_TOKENS", 16)
        yield


def write_sure_flux(folder: Path) -> Path:
    """A tiny FLUX whose VAE is sure of its latents, as FLUX's own is: a random one drowns the image in its variance."""
    base = write_flux(folder)[0]
    vae = load_vae(base, torch.float32)
    with torch.no_grad():
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -20
    vae.register_to_config(scaling_factor=3.0, shift_factor=0.0)
    vae.save_pretrained(base / "vae")
    return base


def write_rendered(folder: Path) -> Path:
    """Six rendered images with their labels, depth and segmentation, in one shard."""
    converter = load("converters", "demo-rollouts")
    source = converter(converter.Options(count=6, size=[80, 60], grasp_share=1.0))
    generator = load("generators", "rendered")()
    with ShardWriter(folder / "shards" / "real-00000.tar", "real") as shard:
        for index in range(len(source)):
            item = source.item(index)
            scene = build_scene(item, source.hand_assets())
            conditions = generator.conditions(scene)
            extras = {"depth.png": depth_png(conditions.depth_m), "seg.png": seg_png(conditions.seg)}
            image = next(generator.generate(scene, [index]))
            shard.add(item.sample, image.jpeg, "jpg", extras)
    return folder


def make_cache(flux: Path, shards: Path, folder: Path, **fields: Any) -> Cache:
    """The latents and texts of those images, or of others by `ExampleConfig`'s fields."""
    examples = Examples(ExampleConfig(shards=str(shards), **fields))
    name = claim_cache({**examples.identity, "size": SIZE, "vae": fingerprint(flux, ("vae",))}, folder)
    write_parts(examples, folder, name, (64, 48), lambda: load_vae(flux, torch.float32), (0, 1))
    cache = Cache(folder, name, len(examples))
    encoders = TextEncoders(flux, torch.float32, torch.device("cpu"))
    write_prompts(cache.texts, folder, name, encoders, (0, 1))
    return cache
