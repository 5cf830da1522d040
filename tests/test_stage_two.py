"""Training of stage II on a tiny random FLUX: the loss, what is drawn, the cache, exact resume, the export."""

import contextlib
import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from fake_flux import tiny_transformer
from safetensors.torch import load_file
from tiny_stage_two import SIZE, make_cache, short_texts, write_rendered, write_sure_flux
from torch import nn

from pam_aug.config import resolve
from pam_aug.errors import AssetMissing, ConfigError, ResumeMismatch
from pam_aug.generate.flux import models
from pam_aug.generate.flux.checkpoint import load_control
from pam_aug.generate.flux.controlnet import pack_tokens
from pam_aug.generate.flux.generator import FluxGenerator, FluxOptions
from pam_aug.recipes import load_recipe
from pam_aug.registry import load
from pam_aug.rollouts.scene import build_scene
from pam_aug.train import run
from pam_aug.train.stage_two import run as stage_two
from pam_aug.train.stage_two.batches import FlowBatches, draw
from pam_aug.train.stage_two.config import read_recipe
from pam_aug.train.stage_two.model import losses
from pam_aug.train.stage_two.objective import CUES, MASKING, flow_times, hide_cues, mix_noise, sampled_latents
from pam_aug.train.stage_two.run import StageTwoRun


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


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder for latents and texts that the runs of this module share."""
    return tmp_path_factory.mktemp("cache")


def recipe(flux, shards, cached, **fields) -> dict:
    return {
        "name": "tiny", "flux": {"base": str(flux)}, "data": {"shards": str(shards)}, "cache": str(cached),
        "width": SIZE[0], "height": SIZE[1], "iterations": 6, "batch": 4, "micro_batch": 2, "warmup": 2, "lr": 1e-3,
        "precision": "no", "checkpointing": False, "loaders": 0, "checkpoint_every": 3, "log_every": 2,
        "tensorboard": False, "cpu": True, **fields,
    }  # fmt: skip


class Doubling(nn.Module):
    """Stands where FLUX does: says twice what it is shown, and remembers when."""

    def __init__(self) -> None:
        super().__init__()
        self.time_text_embed, self.weight = nn.Identity(), nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.dtype = torch.float64

    def forward(self, hidden_states, timestep, guidance, controlnet_blocks_repeat, **_):
        self.seen = (timestep, guidance, controlnet_blocks_repeat)
        return (2 * hidden_states,)


def test_the_loss_is_rectified_flow_at_unshifted_times():
    rng = np.random.default_rng(0)
    mean, log_variance, posterior, noise = rng.normal(size=(4, 2, 4, 4, 6))
    points = torch.tensor([0, 750])
    raw = {
        "points": points,
        "moments": torch.from_numpy(np.concatenate([mean, log_variance], 1)),
        "posterior": torch.from_numpy(posterior),
        "noise": torch.from_numpy(noise),
        "hidden": torch.tensor([[True, False, False, False], [False] * 4]),
        "conditions": torch.ones(2, 12, 32, 48),
        "text": torch.zeros(2, 7, 5),
        "pooled": torch.zeros(2, 3),
    }
    told = {}

    def residuals(tokens, conditions, text, pooled, time, strength, ids):
        told.update(tokens=tokens, conditions=conditions, time=time, strength=strength, ids=ids)
        return [torch.zeros(2, 6, 8), torch.zeros(2, 6, 8)]

    flux = Doubling()
    found = losses(residuals, flux, raw, scaling=(0.3611, 0.1159), guidance=4.0, autocast=contextlib.nullcontext)
    t = np.array([1.0, np.float32(1 - 750 / 999)])[:, None, None, None]
    clean = 0.3611 * (mean + np.exp(0.5 * log_variance) * posterior - 0.1159)
    noisy = (1 - t) * clean + t * noise
    expected = ((2 * noisy - (noise - clean)) ** 2).mean((1, 2, 3))
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    assert told["time"].tolist() == pytest.approx([1.0, 1 - 750 / 999], abs=1e-7)
    assert told["strength"].tolist() == [4.0, 4.0]
    assert torch.equal(told["conditions"][0, :3], torch.full((3, 32, 48), -1.0))
    assert (told["conditions"][0, 3:] == 1).all()
    assert (told["conditions"][1] == 1).all()
    assert told["ids"].shape == (7 + 6, 3)
    assert torch.allclose(told["tokens"], pack_tokens(torch.from_numpy(noisy)), atol=1e-6)
    assert flux.seen[2] is True


def test_the_pieces_of_the_loss_by_hand():
    assert flow_times(torch.tensor([0, 999, 333])).tolist() == pytest.approx([1.0, 0.0, 2 / 3], abs=1e-6)
    moments = torch.tensor([1.0, np.log(4.0)], dtype=torch.float64).view(1, 2, 1, 1)
    latents = sampled_latents(moments, torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), 0.25, 1.5)
    assert latents.item() == pytest.approx(0.25 * (1.0 + 2.0 * 0.5 - 1.5))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert mix_noise(3 * one, -one, torch.tensor([0.25])).item() == 2.0
    lit = torch.zeros(1, 12, 2, 2)
    dark = hide_cues(lit, torch.tensor([[False, True, False, True]]))
    assert dark[0, :, 0, 0].tolist() == [0, 0, 0, -1, -1, -1, 0, 0, 0, -1, -1, -1]


@pytest.mark.parametrize("masking", ["official", "paper", "none"])
def test_cues_are_hidden_as_often_as_said(masking):
    moments, n = torch.zeros(2, 1, 1), 3000
    rows = [draw(3, place, moments, masking) for place in range(n)]
    hidden = torch.stack([row["hidden"] for row in rows]).double()
    shares = torch.tensor([MASKING[masking][cue] for cue in CUES], dtype=torch.float64)
    assert (hidden.mean(0) - shares).abs().max() < 4 * (0.25 * 0.75 / n) ** 0.5
    assert hidden[:, CUES.index("normal")].sum() == 0
    if masking == "paper":  # independent: both of two as often as the product says
        assert abs((hidden[:, 0] * hidden[:, 3]).mean() - 0.04) < 0.015
    points = torch.stack([row["points"] for row in rows]).double()
    assert abs(points.mean() - 499.5) < 4 * 1000 / (12 * n) ** 0.5
    assert {int(points.min() < 10), int(points.max() > 989)} == {1}


def test_shares_by_name():
    assert MASKING["official"] == {"depth": 0.2, "normal": 0.0, "keypoints": 0.05, "seg": 0.2}
    assert MASKING["paper"] == {"depth": 0.2, "normal": 0.0, "keypoints": 0.2, "seg": 0.2}


def test_a_run_trains_measures_and_exports(tmp_path, flux, shards, cached):
    """Loss on fixed times and noise falls, FLUX stays as it was, the export is what the generator loads."""
    fields = {"iterations": 16, "batch": 4, "micro_batch": 4, "lr": 8e-3, "log_every": 8, "masking": "none"}
    held_out = {"shards": str(shards), "inputs": 3, "every": 16, "steps": 1}
    tiny = StageTwoRun(read_recipe(recipe(flux, shards, cached, held_out=held_out, **fields)), tmp_path)
    before = {name: value.clone() for name, value in tiny.transformer.state_dict().items()}
    start = tiny.measure()
    tiny.train()
    figures = tiny.finish()
    assert figures["loss"] < 0.85 * start["loss"]
    assert start["loss_shuffled"] == pytest.approx(start["loss"], rel=1e-6)  # zero residuals: no condition speaks
    assert figures["loss_shuffled"] != pytest.approx(figures["loss"], rel=1e-6)
    assert (figures["inputs"], figures["candidates"], figures["failed"]) == (3, 3, 0)
    assert 0 < figures["pa_err_mm"] < figures["err_mm"] < 1000
    assert all(torch.equal(value, before[name]) for name, value in tiny.transformer.state_dict().items())
    assert (tmp_path / "held_out" / "000016.jpg").stat().st_size > 1000
    again = load_control(tmp_path / "controlnet.bin", tiny.transformer.config, torch.float32)
    trained = tiny.pair.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())
    assert again.state_dict()["controlnet2.controlnet_blocks.1.weight"].abs().max() > 0
    options = FluxOptions(
        base=str(flux), control=str(tmp_path / "tiny.safetensors"), width=64, height=48, steps=2, dtype="float32",
        device="cpu",
    )  # fmt: skip
    converter = load("converters", "demo-rollouts")
    source = converter(converter.Options(count=1, size=[80, 60], grasp_share=1.0))
    scene = build_scene(source.item(0), source.hand_assets())
    assert next(FluxGenerator(options).generate(scene, [1])).rgb.shape == (60, 80, 3)


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, flux, shards, cached):
    """A recipe, and the folder of its run from start to end."""
    config = recipe(flux, shards, cached, ema=0.9, batch=2, micro_batch=1)
    folder = tmp_path_factory.mktemp("whole")
    run(config, folder)
    return config, folder


@pytest.mark.parametrize("sharded", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, sharded):
    """Also where accelerate keeps the optimiser, as it does for DeepSpeed."""
    monkeypatch.setattr(stage_two, "_is_sharded", lambda _: sharded)
    config, done = whole
    killed = StageTwoRun(read_recipe(config), tmp_path / "killed")
    real = killed.step

    def step(iteration, passes):
        if iteration == 5:  # two after the checkpoint
            raise KeyboardInterrupt
        real(iteration, passes)

    killed.step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    run(config, tmp_path / "killed")
    for name in ("tiny.safetensors", "checkpoint.safetensors"):
        one, other = (load_file(folder / name) for folder in (done, tmp_path / "killed"))
        # The shards of a sharded optimiser lie beside the checkpoint, the whole one's in it.
        assert [key for key in one if not (sharded and key.startswith("optimizer"))] == list(other)
        assert all(torch.equal(value, one[key]) for key, value in other.items())
    assert [p.name for p in (tmp_path / "killed").glob("deepspeed-*")] == ["deepspeed-000006"] * sharded
    start = load_file(done / "tiny.safetensors")["controlnet1.img_in.weight"]
    assert not torch.equal(start, killed.transformer.x_embedder.weight)
    assert rows(done / "log.csv") == rows(tmp_path / "killed" / "log.csv")
    assert len(rows(done / "log.csv")) == 3
    with pytest.raises(ResumeMismatch, match="lr"):
        run({**config, "lr": 2e-3}, tmp_path / "killed")


def test_bf16_trains_samples_and_exports(tmp_path, flux, shards, cached):
    """FLUX and the export in bfloat16, the trained weights in float32; FLUX's embedder gets the exact time."""
    held_out = {"shards": str(shards), "inputs": 1, "steps": 1}
    fields = {"iterations": 1, "precision": "bf16", "held_out": held_out, "cache": str(tmp_path / "cache"), "batch": 2}
    tiny = StageTwoRun(read_recipe({**recipe(flux, shards, cached, **fields), "warmup": 1}), tmp_path)
    times = []
    tiny.transformer.time_text_embed.time_proj.register_forward_pre_hook(lambda _, given: times.append(given[0]))
    tiny.train()
    figures = tiny.finish()
    assert np.isfinite(figures["loss"])
    assert (figures["candidates"], figures["failed"]) == (1, 0)
    points = tiny.batches[0]["points"]
    assert torch.allclose(times[0], 1000 * flow_times(points), atol=1e-3)
    assert {v.dtype for v in tiny.pair.state_dict().values()} == {torch.float32}
    assert {v.dtype for v in tiny.transformer.state_dict().values()} == {torch.bfloat16}
    assert {v.dtype for v in load_file(tmp_path / "tiny.safetensors").values()} == {torch.bfloat16}


def test_recomputing_blocks_changes_no_gradient(tmp_path, flux, shards, cached):
    ends = []
    for on in (True, False):
        config = recipe(flux, shards, cached, iterations=2, batch=2, micro_batch=1, checkpointing=on)
        run(config, tmp_path / str(on))
        ends.append(load_file(tmp_path / str(on) / "tiny.safetensors"))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, flux, shards, monkeypatch):
    """Two processes on the CPU, each with half of every batch: the losses and figures of one process."""
    monkeypatch.setattr(models, "_T5_TOKENS", 512)  # as the other processes have it
    held_out = {"shards": str(shards), "inputs": 3, "every": 3, "candidates": 1, "steps": 1}
    config = recipe(flux, shards, tmp_path / "cache1", iterations=3, micro_batch=1, log_every=1, held_out=held_out)
    run(config, tmp_path / "1")
    (tmp_path / "tiny.yaml").write_text(json.dumps({**config, "cache": str(tmp_path / "cache2")}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "-m", "pam_aug.train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "2")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "2" / "tiny.json").read_text())["processes"] == 2
    for table in ("log.csv", "held_out.csv"):
        one, two = (rows(tmp_path / str(n) / table) for n in (1, 2))
        assert len(one) == (3 if table == "log.csv" else 1)
        for a, b in zip(one, two, strict=True):
            assert {k: float(v) for k, v in a.items()} == pytest.approx({k: float(v) for k, v in b.items()}, rel=1e-3)


def test_passes_are_the_same_for_any_number_of_processes(tmp_path, flux, shards, cached):
    config = read_recipe(recipe(flux, shards, cached))
    cache = make_cache(flux, shards, tmp_path / "cache")
    alone = FlowBatches(cache, config)
    halves = [FlowBatches(cache, config, rank, 2) for rank in (0, 1)]
    assert (alone.accumulation, halves[0].accumulation) == (2, 1)
    for iteration in range(4):  # over two passes of the six examples
        whole = [alone[2 * iteration], alone[2 * iteration + 1]]
        parts = [half[iteration] for half in halves]
        for name in ("examples", "noise", "points", "hidden", "conditions"):
            assert torch.equal(torch.cat([p[name] for p in whole]), torch.cat([p[name] for p in parts]))
    seen = torch.cat([alone[i]["examples"] for i in range(3)]).tolist()
    assert sorted(seen) == list(range(6))
    noise = torch.stack([alone[i]["noise"] for i in range(6)]).flatten(0, 1)
    assert len({float(n.sum()) for n in noise}) == 12  # another draw at every place


def test_what_cannot_be_run_is_said_before_any_work(tmp_path, flux, shards, cached):
    config = recipe(flux, shards, cached)
    for fields, message in (
        ({"masking": "half"}, "masking 'half'"),
        ({"width": 100}, "multiples of 16"),
        ({"batch": 5}, "does not divide"),
        ({"flux": {"base": str(flux), "stem": "torch"}}, r"flux\.stem 'torch'"),
        ({"held_out": {"mu": "1"}}, r"held_out\.mu '1': choose official or token_count"),
        ({"data": {}}, "give source"),
        ({"data": {"source": {"converter": "demo-rollouts"}}}, "no images to train on"),
        ({"data": {"shards": str(tmp_path)}}, "no committed shard"),
        ({"learning_rate": 1}, "learning_rate"),
    ):
        with pytest.raises(ConfigError, match=message):
            run({**config, **fields}, tmp_path / "out")
    with pytest.raises(AssetMissing, match="transformer"):
        run({**config, "flux": {"base": str(tmp_path)}}, tmp_path / "out2")
    held_out = {"shards": str(shards), "estimator": "hamer"}
    with pytest.raises(AssetMissing, match="hamer"):
        run({**config, "held_out": held_out}, tmp_path / "out3")


@pytest.mark.parametrize("name", ["pam_stage2_dexycb", "pam_stage2_oakink2"])
def test_the_recipes_have_the_published_settings(name):
    places = [f"{part}.source.{field}=x" for part in ("data", "held_out") for field in ("root", "mano_dir")]
    config = read_recipe(load_recipe(name), ["flux.base=x", *places])
    assert (config.iterations, config.batch, config.lr, config.guidance) == (8000, 32, 1e-4, 4.0)
    assert (config.width, config.height, config.masking, config.precision) == (640, 480, "official", "bf16")
    assert config.data.look == config.held_out.look == config.data.source["converter"]
    for part in (config.data, config.held_out):
        section = dict(part.source)
        resolve(load("converters", section.pop("converter")).Options, section)
    assert config.data.source["split"] != config.held_out.source["split"]
    with pytest.raises(ConfigError, match=r"flux\.base is required"):
        read_recipe(load_recipe(name), places)


def test_start_from_flux_is_seeded(tmp_path, flux, shards, cached, monkeypatch):
    def started(n, seed, **fields):
        config = {**recipe(flux, shards, cached, seed=seed), **fields}
        return StageTwoRun(read_recipe(config), tmp_path / str(n)).pair

    pairs = [started(0, 0)]
    for name in ("load_vae", "TextEncoders.encode"):  # neither is loaded where nothing is left to be made
        monkeypatch.setattr(f"pam_aug.train.stage_two.run.{name}", None)
    pairs += [started(1, 0), started(2, 1)]
    states = [pair.state_dict() for pair in pairs]
    name = "controlnet1.pos_embed_input.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    own = tiny_transformer().state_dict()["transformer_blocks.1.attn.to_q.weight"]
    assert torch.equal(states[2]["controlnet2.transformer_blocks.1.attn.to_q.weight"], own)

    pixels = torch.full((3, 6, 48, 64), -1.0)
    pixels[1:] += 2.0 * (torch.rand(2, 6, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.8)
    through = []
    for pair in (pairs[0], started(3, 0, flux={"base": str(flux), "stem": "he"})):
        stem = pair.controlnet2.input_hint_block
        maps = nn.Sequential(*list(stem)[:-1])(pixels)
        through.append((maps[1:] - maps[0]).std().item())
        assert stem[-1].weight.abs().max() == 0
    assert through[0] < 1e-3 < 0.1 < through[1] < 2
