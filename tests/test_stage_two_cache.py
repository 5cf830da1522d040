"""The cache of stage II: what it holds, and for which inputs it is used again."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

import fakes
from tiny_stage_two import make_cache, short_texts, write_rendered, write_sure_flux
from torch import nn

from pam_aug.errors import BudgetExceeded, ResumeMismatch
from pam_aug.generate.flux.fingerprint import fingerprint
from pam_aug.generate.flux.looks import condition_images
from pam_aug.generate.flux.models import load_vae
from pam_aug.render.pieces import scene_conditions
from pam_aug.rollouts.scene import build_scene
from pam_aug.shards.images import decode_image
from pam_aug.shards.reader import ShardReader
from pam_aug.train.stage_two.config import ExampleConfig
from pam_aug.train.stage_two.examples import Examples


@pytest.fixture(scope="module", autouse=True)
def few_tokens():
    with short_texts():
        yield


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return write_sure_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_rendered(tmp_path_factory.mktemp("rendered"))


def test_the_cache_holds_what_flux_says(tmp_path, flux, shards):
    cache = make_cache(flux, shards, tmp_path / "one")
    reader = ShardReader(shards / "shards" / "real-00000.tar")
    entry = cache[4]
    assert (len(cache), entry.sample) == (6, reader.sample(4))
    rgb = torch.from_numpy(reader.image(4).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    rgb = nn.functional.interpolate(rgb, (48, 64), mode="bilinear", antialias=True)
    with torch.no_grad():
        posterior = load_vae(flux, torch.float32).encode(rgb).latent_dist
    assert torch.equal(entry.moments, torch.cat([posterior.mean, posterior.logvar], 1)[0])
    tensor = entry.conditions(64, 48)
    assert tensor.shape == (1, 12, 48, 64)
    assert (tensor[:, 3:6] == -1).all()  # no normals
    assert all((tensor[:, 3 * slot : 3 * slot + 3] > -1).any() for slot in (0, 2, 3))
    assert entry.prompt == "A hand is trying to grasp something"
    assert cache.prompt(entry.prompt).text.shape == (1, 16, 24)
    make_cache(flux, shards, tmp_path / "two")  # the same bytes
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 3
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


@pytest.mark.usefixtures("fakes_installed")
def test_a_converters_images_get_the_conditions_of_their_scene():
    section = {"converter": "fake-real", "count": 2}
    examples = Examples(ExampleConfig(source=section, inputs=1, look="oakink2"))
    assert (len(examples), examples.identity["items"]) == (1, 2)
    example = examples.example(0)
    source = fakes.FakeReal(fakes.SourceOptions(count=2))
    item = source.item(0)
    scene = build_scene(item, source.hand_assets())
    expected = condition_images(scene, scene_conditions(scene), "oakink2")
    assert example.sample == item.sample
    assert np.array_equal(example.rgb, decode_image(item.image, "jpg", "image"))
    assert all(np.array_equal(example.images[name], expected[name]) and expected[name].any() for name in expected)


def test_captions_and_examples_that_cannot_be_made(tmp_path, flux, shards):
    keys = ShardReader(shards / "shards" / "real-00000.tar").keys
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({key: f"hand {n}" for n, key in enumerate(keys)}))
    cache = make_cache(flux, shards, tmp_path / "all", captions=str(captions))
    assert [cache[i].prompt for i in range(6)] == [f"hand {n}" for n in range(6)]
    assert len(cache.texts) == 6
    captions.write_text(json.dumps({keys[0]: "hand 0"}))
    with pytest.raises(ResumeMismatch, match="captions"):
        make_cache(flux, shards, tmp_path / "all", captions=str(captions))
    with pytest.raises(BudgetExceeded, match=r"5 of 6 examples .* has no caption"):
        make_cache(flux, shards, tmp_path / "few", captions=str(captions))
    with pytest.raises(BudgetExceeded, match="its label has no text"):
        make_cache(flux, shards, tmp_path / "label", prompt="label")


def test_a_cache_is_used_again_and_never_for_other_inputs(tmp_path, flux, shards):
    make_cache(flux, shards, tmp_path / "cache")
    part = tmp_path / "cache" / "part-000000.safetensors"
    made = part.stat().st_mtime_ns
    make_cache(flux, shards, tmp_path / "cache")
    assert part.stat().st_mtime_ns == made
    for fields, name in (({"prompt": "another"}, "prompt"), ({"inputs": 3}, "inputs"), ({"look": "oakink2"}, "look")):
        with pytest.raises(ResumeMismatch, match=rf"other inputs \({name}\)"):
            make_cache(flux, shards, tmp_path / "cache", **fields)
    make_cache(flux, shards, tmp_path / "other", prompt="another")
    shutil.copy(tmp_path / "other" / part.name, part)
    with pytest.raises(ResumeMismatch, match=r"part-000000\.safetensors: belongs to a cache of other inputs"):
        make_cache(flux, shards, tmp_path / "cache")
    weights = flux / "vae" / "diffusion_pytorch_model.safetensors"
    before = fingerprint(flux, ("vae",))
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert fingerprint(flux, ("vae",)) != before
    finally:
        weights.write_bytes(data)
