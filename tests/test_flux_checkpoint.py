"""FLUX's and the pair's weights: the published entries, names that go both ways, files of both forms, wrong ones."""

import pytest
import torch

pytest.importorskip("diffusers")

from fake_flux import TRANSFORMER, VAE, tiny_control, tiny_transformer, write_flux

from pam_aug.errors import SchemaError, UnsafeInput
from pam_aug.generate.flux.checkpoint import load_control, original_state, published_entries, save_control
from pam_aug.generate.flux.models import DEV_TRANSFORMER, load_transformer, load_vae
from pam_aug.generate.flux.names import to_diffusers, to_original


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_flux(tmp_path_factory.mktemp("flux"))


def test_the_checkpoint_has_the_published_entries():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        config = FluxTransformer2DModel(**DEV_TRANSFORMER).config
    entries = published_entries(config)
    assert len(entries) == 172
    assert sum(value.numel() for value in entries.values()) == 1_487_615_424
    shapes = {name: tuple(value.shape) for name, value in entries.items()}
    for net in ("controlnet1", "controlnet2"):
        assert shapes[f"{net}.input_hint_block.0.weight"] == (16, 6, 3, 3)
        assert shapes[f"{net}.input_hint_block.14.bias"] == (16,)
        assert shapes[f"{net}.double_blocks.1.txt_attn.qkv.weight"] == (9216, 3072)
        assert shapes[f"{net}.double_blocks.0.img_attn.norm.query_norm.scale"] == (128,)
        assert shapes[f"{net}.double_blocks.0.img_mod.lin.weight"] == (18432, 3072)
        assert shapes[f"{net}.txt_in.weight"] == (3072, 4096)
        assert shapes[f"{net}.pos_embed_input.weight"] == (3072, 64)


def test_the_base_models_names_go_both_ways():
    with torch.device("meta"):
        from diffusers import FluxTransformer2DModel

        full = FluxTransformer2DModel(**DEV_TRANSFORMER).state_dict()
    original = to_original(full)
    assert len(original) == 780  # the released flux1-dev file's
    assert tuple(original["single_blocks.37.linear1.weight"].shape) == (21504, 3072)
    assert tuple(original["final_layer.adaLN_modulation.1.weight"].shape) == (6144, 3072)
    assert {name: v.shape for name, v in to_diffusers(original).items()} == {name: v.shape for name, v in full.items()}
    state = tiny_transformer().state_dict()
    back = to_diffusers(to_original(state))
    assert all(torch.equal(back[name], value) for name, value in state.items())
    half = len(state["norm_out.linear.bias"]) // 2  # shift before scale there, scale before shift here
    assert torch.equal(
        to_original(state)["final_layer.adaLN_modulation.1.bias"][:half], state["norm_out.linear.bias"][half:]
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_checkpoint_round_trips(tmp_path, prefix, suffix):
    pair = tiny_control(tiny_transformer())
    path = tmp_path / f"controlnet{suffix}"
    save_control(pair, path)
    if prefix and suffix == ".bin":
        torch.save({prefix + name: value for name, value in original_state(pair).items()}, path)
    again = load_control(path, pair.config, torch.float32)
    assert all(torch.equal(value, pair.state_dict()[name]) for name, value in again.state_dict().items())


def test_wrong_checkpoints_are_refused(tmp_path, files):
    config = tiny_transformer().config
    state = original_state(tiny_control(tiny_transformer()))
    path = tmp_path / "controlnet.bin"
    torch.save({name: value for name, value in state.items() if "txt_in" not in name}, path)
    with pytest.raises(SchemaError, match=r"4 entries differ:\s+- controlnet1\.txt_in\.weight is missing"):
        load_control(path, config)
    torch.save({**state, "controlnet1.img_in.bias": torch.full((32,), float("nan"))}, path)
    with pytest.raises(SchemaError, match=r"controlnet1\.x_embedder\.bias is not finite"):
        load_control(path, config)
    torch.save({**state, "extra": print}, path)
    with pytest.raises(UnsafeInput):
        load_control(path, config)
    path.write_bytes(files[1].read_bytes()[:5000])
    with pytest.raises(SchemaError, match="torch archive"):
        load_control(path, config)


def test_the_original_files_load_like_the_folder(tmp_path, files):
    from safetensors.torch import save_file

    base, _ = files
    transformer = load_transformer(base, torch.float32)
    save_file(
        {k: v.contiguous() for k, v in to_original(transformer.state_dict()).items()},
        tmp_path / "flux1-dev.safetensors",
    )
    again = load_transformer(tmp_path, torch.float32, TRANSFORMER)
    assert all(torch.equal(v, transformer.state_dict()[k]) for k, v in again.state_dict().items())
    with pytest.raises(SchemaError, match="entries differ"):
        load_transformer(tmp_path, torch.float32)  # FLUX.1-dev's own sizes

    vae = load_vae(base, torch.float32)
    save_file(_ldm_names(vae.state_dict()), tmp_path / "ae.safetensors")
    other = load_vae(tmp_path, torch.float32, VAE)
    z = torch.randn(1, 16, 6, 8)
    with torch.inference_mode():
        assert torch.equal(vae.decode(z).sample, other.decode(z).sample)


def _ldm_names(state):
    """The original release's names of a VAE of one layer per block."""
    out = {}
    for name, value in state.items():
        for old, new in (
            ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
            ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("resnets", "block"), ("down_blocks", "down"),
        ):  # fmt: skip
            name = name.replace(old, new)
        if "up_blocks" in name:
            head, number, tail = (
                name.partition("up_blocks.")[0],
                name.split("up_blocks.")[1][0],
                name.split("up_blocks.")[1][1:],
            )
            name = f"{head}up.{3 - int(number)}{tail}"
        linear = ".attn_1." in name and value.ndim == 2
        out[name] = (value[:, :, None, None] if linear else value).clone()
    return out
