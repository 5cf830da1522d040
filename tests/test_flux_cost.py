"""The cost model of `flux` beside what it models: published modules' weights, and operations counted by torch."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, FluxTransformer2DModel
from fake_flux import TRANSFORMER, VAE, tiny_control, tiny_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from pam_aug.generate.flux.controlnet import ControlPair, token_ids
from pam_aug.generate.flux.cost import (
    ClipSizes,
    FluxSizes,
    T5Sizes,
    VaeSizes,
    candidate_flop,
    clip,
    control_pair,
    gpu_memory,
    hints,
    t5,
    transformer,
    vae_decoder,
    vae_encoder,
)
from pam_aug.generate.flux.models import DEV_TRANSFORMER, DEV_VAE

TINY = FluxSizes(**{name: TRANSFORMER[name] for name in FluxSizes.__dataclass_fields__})


def weights(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counted(run) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_weights_are_the_published_models():
    dev = FluxSizes()
    with torch.device("meta"):
        flux = FluxTransformer2DModel(**DEV_TRANSFORMER)
        pair = ControlPair(flux.config)
        vae = AutoencoderKL(**DEV_VAE)
        t5_config = T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        encoder = T5EncoderModel(t5_config)
        text = CLIPTextModel(
            CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                           num_attention_heads=12, projection_dim=768)
        )  # fmt: skip
    assert transformer(dev, 512, 1200).weights == weights(flux) == 11_901_408_320
    assert control_pair(dev, 512, 1200).weights + hints(dev, 640, 480).weights == weights(pair) == 1_487_615_424
    both = vae_decoder(VaeSizes(), 640, 480).weights + vae_encoder(VaeSizes(), 640, 480).weights
    assert both == weights(vae) == 83_819_683
    assert t5(T5Sizes()).weights == weights(encoder) == 4_762_310_656
    assert clip(ClipSizes()).weights == weights(text) == 123_060_480


def test_operations_are_those_that_torch_counts():
    flux, pair = tiny_transformer(), tiny_control(tiny_transformer())
    ids = token_ids(7, 3, 4)
    x, text, pooled, one = torch.randn(1, 12, 64), torch.randn(1, 7, 24), torch.randn(1, 20), torch.ones(1)
    conditions = torch.rand(1, 12, 48, 64)
    with torch.no_grad():
        made = pair.hints(conditions)
        residuals = pair(x, made, text, pooled, one, one, ids)

    def step() -> None:
        flux(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=one, guidance=one,
            txt_ids=ids[:7], img_ids=ids[7:], controlnet_block_samples=residuals, controlnet_blocks_repeat=True,
        )  # fmt: skip

    assert counted(step) == transformer(TINY, 7, 12).flop
    assert counted(lambda: pair(x, made, text, pooled, one, one, ids)) == control_pair(TINY, 7, 12).flop
    assert counted(lambda: pair.hints(conditions)) == hints(TINY, 64, 48).flop

    vae, sizes = AutoencoderKL(**VAE).eval(), VaeSizes(16, (8, 8, 8, 8), 1)
    assert counted(lambda: vae.decode(torch.randn(1, 16, 6, 8))) == vae_decoder(sizes, 64, 48).flop
    assert counted(lambda: vae.encode(torch.randn(1, 3, 48, 64))) == vae_encoder(sizes, 64, 48).flop

    t5_config = T5Config(
        vocab_size=64, d_model=24, d_kv=8, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    encoder = T5EncoderModel(t5_config).eval()
    tokens = torch.ones(1, 9, dtype=torch.long)
    assert counted(lambda: encoder(tokens)) == t5(T5Sizes(64, 24, 16, 2, 2, 8, 9)).flop
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=20, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = CLIPTextModel(config).eval()
    assert counted(lambda: model(tokens)) == clip(ClipSizes(64, 20, 16, 2, 9)).flop


def test_a_candidate_is_about_three_quarters_of_a_petaflop():
    dev = FluxSizes()
    assert transformer(dev, 512, 1200).flop == pytest.approx(24.2e12, rel=0.01)
    assert control_pair(dev, 512, 1200).flop == pytest.approx(1.81e12, rel=0.01)
    # 50 steps at 1024 × 1024, as another project's counter has it for the transformer alone: 3,726.9 TFLOP.
    assert 50 * transformer(dev, 512, 4096).flop == pytest.approx(3726.9e12, rel=0.01)
    assert candidate_flop(640, 480, 28) == pytest.approx(0.73e15, rel=0.01)


def test_memory_follows_what_stays_on_the_gpu():
    plain = gpu_memory(640, 480, 1)
    resident = 2 * (11_901_408_320 + 1_487_615_424 + 83_819_683)
    assert plain.denoising > resident + 1e9
    assert plain.denoising < resident + 2e9
    more = gpu_memory(640, 480, 11)
    assert more.denoising - plain.denoising == 10 * 16 * 1712 * 3072 * 2
    assert more.decoding - plain.decoding == 10 * 4 * 256 * 640 * 480 * 2
    assert plain.encoding == more.encoding < plain.peak
    kept = gpu_memory(640, 480, 1, encoders_stay=True)
    assert kept.denoising - plain.denoising == 2 * (4_762_310_656 + 123_060_480)
    assert gpu_memory(640, 480, 1, encode_again=True).encoding > plain.denoising
    assert gpu_memory(640, 480, 1, offload=True).peak < 24e9 < plain.peak
    assert gpu_memory(640, 480, 2).peak < 40e9
    assert gpu_memory(640, 480, 10, encoders_stay=True).peak < 80e9
    assert gpu_memory(640, 480, 1, value_bytes=4).denoising > 2 * plain.denoising - 2e9
