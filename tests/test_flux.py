"""FLUX under PAM's control pair: sizes, schedule, exactness of batches and of zero control."""

import dataclasses
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from fake_flux import tiny_control, tiny_transformer, write_flux

from pam_aug.errors import BackendError, ConfigError, ResumeMismatch, SourceError
from pam_aug.generate.flux import generator as flux_generator
from pam_aug.generate.flux.controlnet import ControlPair, pack_tokens, token_ids, unpack_tokens
from pam_aug.generate.flux.generator import FluxGenerator, FluxOptions
from pam_aug.generate.flux.models import missing_files
from pam_aug.generate.flux.sampling import Prompt, candidate_noise, denoise
from pam_aug.generate.flux.schedule import schedule_times, shift_mu
from pam_aug.registry import load
from pam_aug.rollouts.scene import build_scene


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def options(files):
    base, control = files
    return FluxOptions(
        base=str(base), control=str(control), width=64, height=48, steps=3, dtype="float32", device="cpu", batch=6
    )


@pytest.fixture(scope="module")
def scene():
    converter = load("converters", "demo-rollouts")
    source = converter(converter.Options(count=1, size=[80, 60], grasp_share=1.0))
    return build_scene(source.item(0), source.hand_assets())


def test_the_schedule_is_pams_by_default():
    assert shift_mu(640, 480) == pytest.approx(0.459714, abs=1e-6)
    assert shift_mu(720, 480) == pytest.approx(0.460221, abs=1e-6)
    assert shift_mu(640, 480, "token_count") == pytest.approx(0.65979, abs=1e-5)
    times = schedule_times(28, shift_mu(640, 480))
    golden = [1.0, 0.97715, 0.95368, 0.92956, 0.90478, 0.87929, 0.85308, 0.82611, 0.79835, 0.76975, 0.74029,
              0.70993, 0.67861, 0.64630, 0.61295, 0.57850, 0.54290, 0.50610, 0.46803, 0.42862, 0.38780, 0.34550,
              0.30163, 0.25610, 0.20882, 0.15969, 0.10859, 0.05540, 0.0]  # fmt: skip
    assert times == pytest.approx(golden, abs=6e-6)


def test_tokens_are_packed_channel_row_column():
    maps = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = pack_tokens(maps)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert torch.equal(unpack_tokens(tokens, 4, 6), maps)
    ids = token_ids(2, 2, 3)
    assert ids.tolist() == [[0, 0, 0]] * 2 + [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]


def _denoised(pair, seeds, conditions=None, guidance=4.0):
    transformer = tiny_transformer()
    g = torch.Generator().manual_seed(5)
    prompt = Prompt(torch.randn(1, 7, 24, generator=g), torch.randn(1, 20, generator=g))
    if conditions is None:
        conditions = torch.rand(1, 12, 48, 64, generator=g) * 2 - 1
    with torch.inference_mode():
        hints = pair.hints(conditions)
    noise = candidate_noise(seeds, 64, 48)
    return denoise(transformer, pair, noise, hints, prompt, schedule_times(4, 0.46), guidance)


def test_residuals_alternate_over_the_blocks():
    """With one block's residual at zero, every second block of the transformer gets nothing."""
    pair = tiny_control(tiny_transformer())
    transformer = tiny_transformer()
    seen = []
    for i, block in enumerate(transformer.transformer_blocks):
        block.register_forward_hook(
            lambda m, a, k, out, i=i: seen.append((i, k["hidden_states"], out[1])), with_kwargs=True
        )
    g = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        hints = pair.hints(torch.rand(1, 12, 48, 64, generator=g))
        x = pack_tokens(candidate_noise([3], 64, 48))
        ids = token_ids(7, 3, 4)
        text, pooled = torch.randn(1, 7, 24, generator=g), torch.randn(1, 20, generator=g)
        one = torch.ones(1)
        residuals = pair(x, hints, text, pooled, one, 4 * one, ids)
        transformer(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=one, guidance=4 * one,
            txt_ids=ids[:7], img_ids=ids[7:], controlnet_block_samples=residuals, controlnet_blocks_repeat=True,
        )  # fmt: skip
    assert len(residuals) == 2
    for i in (0, 1):
        assert torch.allclose(seen[i + 1][1] - seen[i][2], residuals[i], atol=1e-5)


def test_zero_control_leaves_the_base_models_output_bit_equal():
    zero = tiny_control(tiny_transformer(), zero=True)
    g = torch.Generator().manual_seed(5)
    prompt = Prompt(torch.randn(1, 7, 24, generator=g), torch.randn(1, 20, generator=g))
    transformer = tiny_transformer()
    times = schedule_times(4, 0.46)
    x = pack_tokens(candidate_noise([1, 2], 64, 48))
    ids = token_ids(7, 3, 4)
    with torch.inference_mode():
        for now, then in pairwise(times):
            v = transformer(
                hidden_states=x, encoder_hidden_states=prompt.text.expand(2, -1, -1),
                pooled_projections=prompt.pooled.expand(2, -1), timestep=torch.full((2,), now),
                guidance=torch.full((2,), 4.0), txt_ids=ids[:7], img_ids=ids[7:], return_dict=False,
            )[0]  # fmt: skip
            x = x + (then - now) * v
    assert torch.equal(_denoised(zero, [1, 2]), x)
    assert not torch.allclose(_denoised(tiny_control(tiny_transformer()), [1, 2]), x, atol=1e-3)


def test_batches_of_any_size_give_the_same_candidates():
    pair = tiny_control(tiny_transformer())
    seeds = list(range(100, 130))
    whole = _denoised(pair, seeds)
    fives = torch.cat([_denoised(pair, seeds[i : i + 5]) for i in range(0, 30, 5)])
    ones = torch.cat([_denoised(pair, seeds[i : i + 1]) for i in range(0, 30, 7)])
    assert (whole - fives).abs().max() < 1e-5
    assert (whole[::7] - ones).abs().max() < 1e-5
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_each_condition_reaches_the_image():
    pair = tiny_control(tiny_transformer())
    blank = torch.full((1, 12, 48, 64), -1.0)
    base = _denoised(pair, [1], blank)
    for slot in range(4):
        lit = blank.clone()
        lit[:, 3 * slot : 3 * slot + 3, 10:30, 20:40] = 1.0
        assert (_denoised(pair, [1], lit) - base).abs().max() > 1e-4


def test_the_generator_paints_at_the_cameras_size(options, scene):
    generator = FluxGenerator(options)
    assert generator.requires() == []
    images = list(generator.generate(scene, [3, 4, 5]))
    assert [image.rgb.shape for image in images] == [(60, 80, 3)] * 3
    assert images[0].prompt == "A hand is trying to grasp something"
    again = next(FluxGenerator(dataclasses.replace(options, batch=1)).generate(scene, [4]))
    assert np.abs(again.rgb.astype(int) - images[1].rgb).max() <= 2
    assert np.abs(images[0].rgb.astype(int) - images[1].rgb).mean() > 1
    (whole,) = generator.generate(scene, [3], (64, 48))  # as painted, nothing to stretch back
    assert whole.rgb.shape == (48, 64, 3)
    drawn = list(FluxGenerator(dataclasses.replace(options, prompt="drawn")).generate(scene, [3, 4]))
    assert drawn[0].prompt != drawn[1].prompt


def test_a_batch_that_does_not_fit_is_halved(options, scene, monkeypatch):
    sizes, real = [], flux_generator.denoise

    def small(transformer, control, noise, *rest):
        sizes.append(len(noise))
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(transformer, control, noise, *rest)

    monkeypatch.setattr(flux_generator, "denoise", small)
    images = list(FluxGenerator(options).generate(scene, [1, 2, 3, 4, 5]))
    assert len(images) == 5
    assert sizes == [5, 2, 2, 1]

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flux_generator, "denoise", never)
    with pytest.raises(BackendError, match=r"one candidate does not fit .*memory_gb"):
        list(FluxGenerator(options).generate(scene, [1, 2]))


def test_images_that_do_not_fit_are_decoded_in_parts_of_what_was_painted(options, scene, monkeypatch):
    whole = [image.rgb for image in FluxGenerator(options).generate(scene, [1, 2, 3, 4, 5])]
    painted, decoded, paint, decode = [], [], flux_generator.denoise, flux_generator.decode_latents

    def counted(transformer, control, noise, *rest):
        painted.append(len(noise))
        return paint(transformer, control, noise, *rest)

    def small(vae, latents):
        decoded.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(vae, latents)

    monkeypatch.setattr(flux_generator, "denoise", counted)
    monkeypatch.setattr(flux_generator, "decode_latents", small)
    parts = [image.rgb for image in FluxGenerator(options).generate(scene, [1, 2, 3, 4, 5])]
    assert (painted, decoded) == ([5], [5, 3, 2, 1, 2])
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(whole, parts, strict=True)) <= 2

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flux_generator, "decode_latents", never)
    with pytest.raises(BackendError, match=r"one image's decoding does not fit .*memory_gb"):
        list(FluxGenerator(options).generate(scene, [1, 2]))


def test_what_is_missing_is_said_before_any_work(tmp_path, files):
    problems = FluxGenerator(FluxOptions(base=str(tmp_path), control=str(tmp_path / "no.bin"))).requires()
    assert len(problems) == 7
    assert "transformer/config.json or flux1-dev.safetensors" in problems[0]
    assert all("accept its licence" in problem and "huggingface.co" in problem for problem in problems[:-1])  # gated
    assert "controlnet.bin" in problems[-1]
    assert missing_files(files[0]) == []
    assert len(FluxGenerator().requires()) == 2
    with pytest.raises(ConfigError, match="multiples of 16"):
        FluxOptions(width=500)
    with pytest.raises(ConfigError, match="memory_gb"):
        FluxOptions(memory_gb=12)
    chosen = {gb: FluxOptions(memory_gb=gb, batch=3).resolved() for gb in (0, 24, 40, 80)}
    assert {gb: o.batch for gb, o in chosen.items()} == {0: 3, 24: 1, 40: 2, 80: 10}
    assert [gb for gb, o in chosen.items() if o.offload and o.vae_tiling] == [24]
    assert [gb for gb, o in chosen.items() if not o.keep_text_encoders] == [24, 40]
    assert chosen[24].memory_gb == 0


def test_encoders_are_freed_and_options_reach_the_models(options, scene, monkeypatch):
    """Text encoders stay only where other texts follow; tiling and compilation are asked of the models themselves."""
    encoded, real = [], flux_generator.TextEncoders.encode

    def encode(self, texts):
        encoded.append(texts)
        return real(self, texts)

    monkeypatch.setattr(flux_generator.TextEncoders, "encode", encode)
    for fields, stay in (
        ({}, False),
        ({"prompt": "drawn"}, True),
        ({"prompt": "drawn", "keep_text_encoders": False}, False),
    ):
        encoded.clear()
        generator = FluxGenerator(dataclasses.replace(options, steps=1, **fields))
        for _ in range(2):  # the same input twice: a text is encoded once
            list(generator.generate(scene, [3, 4]))
        assert (generator._encoders._loaded is not None) is stay
        assert [len(texts) for texts in encoded] == [2 if fields else 1]
    asked = []
    monkeypatch.setattr(type(tiny_transformer()), "compile_repeated_blocks", lambda self: asked.append("compiled"))
    tiled = FluxGenerator(dataclasses.replace(options, steps=1, vae_tiling=True, compile=True))
    next(tiled.generate(scene, [3]))
    assert asked == ["compiled"]
    assert tiled._vae.use_tiling
    assert not FluxGenerator(options)._vae.use_tiling


def test_captions_are_the_prompts(tmp_path, options, scene):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({scene.sample.key: "a hand lifts a thing"}))
    told = FluxGenerator(dataclasses.replace(options, captions=str(captions), prompt="drawn"))
    assert told.requires() == []
    assert [image.prompt for image in told.generate(scene, [3, 4])] == ["a hand lifts a thing"] * 2
    captions.write_text('{"another": "input"}')
    refusing = FluxGenerator(told.options)
    with pytest.raises(SourceError, match="missing_caption=prompt"):
        next(refusing.generate(scene, [3]))
    assert "skin" in FluxGenerator(dataclasses.replace(told.options, missing_caption="prompt")).prompt(scene, 3)
    captions.write_text("[]")
    with pytest.raises(SourceError, match="expected"):
        FluxGenerator(told.options).requires()
    captions.unlink()
    assert FluxGenerator(told.options).requires() == [
        f"{captions}: the captions are missing (generate.options.captions)"
    ]
    with pytest.raises(ConfigError, match="missing_caption 'skip'"):
        FluxOptions(missing_caption="skip")


def test_start_from_copies_the_transformers_first_blocks():
    transformer = tiny_transformer()
    pair = ControlPair(transformer.config)
    pair.start_from(transformer)
    for net in (pair.controlnet1, pair.controlnet2):
        assert torch.equal(
            net.transformer_blocks[1].attn.to_q.weight, transformer.transformer_blocks[1].attn.to_q.weight
        )
        assert torch.equal(net.x_embedder.bias, transformer.x_embedder.bias)
        assert net.controlnet_blocks[0].weight.abs().max() == 0
        assert net.pos_embed_input.weight.abs().max() > 0


def test_a_build_with_flux_from_end_to_end(tmp_path, files, options, monkeypatch):
    from pam_aug.build.config import BuildConfig
    from pam_aug.build.run import run_build
    from pam_aug.config import resolve
    from pam_aug.shards.reader import ShardReader

    base, control = (tmp_path / path.name for path in files)
    shutil.copytree(files[0], base)
    shutil.copy(files[1], control)
    chosen = {name: getattr(options, name) for name in ("width", "height", "steps")}
    chosen |= {"base": str(base), "control": str(control)}
    source = load("converters", "demo-rollouts")
    key = source(source.Options(size=[64, 48])).item(0).sample.key
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({key.rpartition("/")[0]: "a hand at work"}))
    recipe = {
        "source": {"converter": "demo-rollouts", "size": [64, 48]},
        "inputs": 1,
        "generate": {
            "generator": "flux",
            "options": {**chosen, "captions": str(captions), "dtype": "float32", "device": "cpu"},
        },
        "mix": {"ratio": "0"},
    }
    result = run_build(resolve(BuildConfig, recipe), tmp_path / "out", ["synthetic"], workers=0)
    assert (result.summary.candidates, result.summary.kept, result.summary.rejected) == (30, 22, 8)
    shard = ShardReader(tmp_path / "out/shards/syn-00000.tar")
    assert len(shard) == 22
    assert {shard.sample(i).generation.prompt for i in range(22)} == {"a hand at work"}

    paint, painted = FluxGenerator._paint, []

    def killed(self, seeds, *rest):
        if len(painted) == 18:
            raise KeyboardInterrupt
        painted.extend(seeds)
        return paint(self, seeds, *rest)

    monkeypatch.setattr(FluxGenerator, "_paint", killed)
    with pytest.raises(KeyboardInterrupt):
        run_build(resolve(BuildConfig, recipe), tmp_path / "killed", ["synthetic"], workers=0)
    monkeypatch.setattr(FluxGenerator, "_paint", lambda self, s, *rest: painted.extend(s) or paint(self, s, *rest))
    run_build(resolve(BuildConfig, recipe), tmp_path / "killed", ["synthetic"], workers=0)
    assert len(painted) == len(set(painted)) == 30  # nothing twice
    whole, resumed = (tmp_path / name / "shards/syn-00000.tar" for name in ("out", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()

    def again():
        return run_build(resolve(BuildConfig, recipe), tmp_path / "out", ["synthetic"], workers=0)

    assert again().summary == result.summary
    for path, name in ((captions, "captions"), (control, "control"), (base / "vae/config.json", "base")):
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(ResumeMismatch, match=rf"generator_files\.{name} ="):
            again()
        path.write_bytes(before)
    assert again().summary == result.summary
