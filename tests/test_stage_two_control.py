"""That training teaches obedience: a tiny FLUX paints hands anywhere, a pair that stage II trains on it puts them where
the keypoints are.

Hands are bright on a dark ground, so that a painted hand is read off by brightness. Depth and segmentation are left
empty: keypoints alone tell where the hand is. None of the measured poses, views and hands is among those trained on.
"""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

import fake_flux
from torch import nn
from torch.nn import functional

from pam_aug.generate.flux import models
from pam_aug.generate.flux.checkpoint import load_control
from pam_aug.generate.flux.controlnet import pack_tokens, token_ids, unpack_tokens
from pam_aug.generate.flux.models import TextEncoders, decode_latents, load_transformer
from pam_aug.generate.flux.sampling import Prompt, candidate_noise, denoise, predict_velocity
from pam_aug.generate.flux.schedule import schedule_times, shift_mu
from pam_aug.registry import load
from pam_aug.render.conditions import depth_png, seg_png
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import build_scene
from pam_aug.schema import SEG_LEFT_HAND, SEG_RIGHT_HAND
from pam_aug.shards.reader import ShardReader
from pam_aug.shards.writer import ShardWriter
from pam_aug.train.stage_two import run as stage_two
from pam_aug.train.stage_two.config import read_recipe
from pam_aug.train.stage_two.objective import flow_loss, flow_times, mix_noise
from pam_aug.train.stage_two.run import StageTwoRun

SIDE = 48  # painted: 9 tokens
TRAINED, MEASURED = 200, 24
BASE_STEPS, ITERATIONS = 800, 500


class Brightness(nn.Module):
    """In the VAE's place: 16 channels that are an image's brightness at half its size, so that tiny nets see shapes."""

    config = {"latent_channels": 16, "scaling_factor": 1.0, "shift_factor": 0.0}  # noqa: RUF012
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, pixels):
        mean = functional.pixel_unshuffle(functional.avg_pool2d(pixels.mean(1, keepdim=True), 2), 4)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=torch.full_like(mean, -20.0)))

    def decode(self, latents, return_dict=False):
        grey = functional.interpolate(functional.pixel_shuffle(latents, 4), scale_factor=2.0)
        return (grey.expand(-1, 3, -1, -1),)


def write_hands(folder, seed, count):
    """A shard of hands; returns their masks at the painted size."""
    converter = load("converters", "demo-rollouts")
    source = converter(converter.Options(count=count, seed=seed, size=[128, 128], grasp_share=0.0, fill=[0.5, 0.8]))
    rng, masks = np.random.default_rng(seed), []
    with ShardWriter(folder / "shards" / "real-00000.tar", "real") as shard:
        for index in range(count):
            item = source.item(index)
            conditions = scene_conditions(build_scene(item, source.hand_assets()))
            hand = np.isin(conditions.seg, [SEG_RIGHT_HAND, SEG_LEFT_HAND])
            assert hand.any()
            rgb = np.where(hand[..., None], rng.integers(190, 250), rng.integers(10, 70)).astype(np.uint8)
            empty = {
                "depth.png": depth_png(np.zeros_like(conditions.depth_m)),
                "seg.png": seg_png(np.zeros_like(conditions.seg)),
            }
            jpeg = simplejpeg.encode_jpeg(np.repeat(rgb, 3, 2), quality=95, colorsubsampling="444")
            shard.add(item.sample, jpeg, "jpg", empty)
            masks.append(cv2.resize(hand.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) > 0.5)
    return np.stack(masks)


def train_base(base, folder):
    """FLUX itself, which knows hands but not where to put them: rectified flow on all images and their mirrors."""
    with ShardReader(folder / "shards" / "real-00000.tar") as reader:
        images = np.stack([reader.image(i) for i in range(len(reader))])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    pixels = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    clean = Brightness().encode(torch.cat([pixels, pixels.flip(3), pixels.flip(2), pixels.flip(2, 3)])).latent_dist.mean
    transformer = load_transformer(base, torch.float32).requires_grad_(True).train()
    told = TextEncoders(base, torch.float32, torch.device("cpu")).encode(["A hand is trying to grasp something"])[0]
    n, generator = 32, torch.Generator().manual_seed(0)
    text, pooled = told.text.clone().expand(n, -1, -1), told.pooled.clone().expand(n, -1)
    ids, strength = token_ids(text.shape[1], SIDE // 16, SIDE // 16), torch.full((n,), 4.0)
    optimizer = torch.optim.AdamW(transformer.parameters(), 2e-3, fused=True)
    for step in range(BASE_STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50, 3 * (BASE_STEPS - step) / BASE_STEPS)
        batch = clean[torch.randint(len(clean), (n,), generator=generator)]
        noise = torch.randn(batch.shape, generator=generator)
        time = flow_times(torch.randint(1000, (n,), generator=generator))
        noisy = pack_tokens(mix_noise(batch, noise, time))
        velocity = predict_velocity(transformer, noisy, None, text, pooled, time, strength, ids)  # type: ignore[arg-type]
        flow_loss(velocity, pack_tokens(noise - batch)).mean().backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    transformer.eval().save_pretrained(base / "transformer")


def overlap(painted, masks):
    """Intersection over union of each painted image's bright pixels with the mask beside it."""
    hands = painted[..., 0] > 127
    return (hands & masks).sum((1, 2)) / (hands | masks).sum((1, 2))


def train_and_paint(folder, seed):
    """Figures of the run, the masks, and what is painted under each one's keypoints and under the next one's."""
    masks = {name: write_hands(folder / name, n, count) for n, (name, count) in
             enumerate((("train", TRAINED), ("test", MEASURED)), 1)}  # fmt: skip
    base, _ = fake_flux.write_flux(folder)
    path = base / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 1.0, "shift_factor": 0.0}))
    train_base(base, folder / "train")
    recipe = {
        "name": "tiny", "seed": seed, "flux": {"base": str(base), "stem": "he"},
        "data": {"shards": str(folder / "train")},
        "held_out": {"shards": str(folder / "test"), "candidates": 0, "every": ITERATIONS},
        "width": SIDE, "height": SIDE, "iterations": ITERATIONS, "batch": 16, "micro_batch": 16, "lr": 2e-3,
        "warmup": 20, "decay": ITERATIONS // 3, "weight_decay": 0.0, "masking": "none", "precision": "no",
        "checkpointing": False, "loaders": 0, "checkpoint_every": ITERATIONS, "tensorboard": False, "cpu": True,
    }  # fmt: skip
    trained = StageTwoRun(read_recipe(recipe), folder / "run")
    trained.train()
    figures = trained.finish()
    pair = load_control(folder / "run/controlnet.bin", trained.transformer.config, torch.float32)
    assert trained.held_out is not None
    cache = trained.held_out._cache
    conditions = torch.cat([cache[i].conditions(SIDE, SIDE) for i in range(MEASURED)])
    assert [bool((slot > -1).any()) for slot in conditions.split(3, 1)] == [False, False, True, False]
    noise = candidate_noise(range(MEASURED), SIDE, SIDE)
    prompt = cache.prompt(cache[0].prompt)

    def painted(conditions):
        with torch.inference_mode():
            hints = pair.hints(conditions)
        times = schedule_times(12, shift_mu(SIDE, SIDE))
        tokens = denoise(trained.transformer, pair, noise, hints, Prompt(prompt.text, prompt.pooled), times)
        return decode_latents(Brightness(), unpack_tokens(tokens, SIDE // 8, SIDE // 8)).numpy()  # type: ignore[arg-type]

    return figures, masks["test"], painted(conditions), painted(conditions.roll(-1, 0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_keypoints_say_where_the_hand_is(tmp_path, monkeypatch):
    """About two minutes on one core.

    Three seeds of the pair gave an overlap of 0.57 to 0.58 under own keypoints and of 0.28 to 0.29 under another
    pose's, as two true masks have it (0.30); the standard error of a mean difference is 0.02. With the official stem it
    is 0.28 under both: that many iterations do not find the conditions at all.
    """
    monkeypatch.setattr(models, "_T5_TOKENS", 8)
    monkeypatch.setattr(stage_two, "load_vae", lambda *_: Brightness())
    monkeypatch.setitem(fake_flux.TRANSFORMER, "num_attention_heads", 4)
    figures, masks, own, shuffled = train_and_paint(tmp_path, seed=0)
    obeyed, strayed = overlap(own, masks), overlap(shuffled, masks)
    assert obeyed.mean() > 0.45
    assert strayed.mean() < 0.37
    assert (obeyed > strayed).sum() > 0.8 * MEASURED
    assert overlap(shuffled, np.roll(masks, -1, 0)).mean() > 0.45  # they are another pose's hands, not bad ones
    assert figures["loss_shuffled"] > 1.3 * figures["loss"]
