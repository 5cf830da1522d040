"""A FLUX.1-dev of a few thousand weights in the published layout, and a control pair that fits it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pam_aug.generate.flux.checkpoint import save_control
from pam_aug.generate.flux.controlnet import ControlPair

TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 3,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def tiny_transformer(seed: int = 0) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    return FluxTransformer2DModel(**TRANSFORMER).eval()


def tiny_control(transformer: FluxTransformer2DModel, seed: int = 1, zero: bool = False) -> ControlPair:
    torch.manual_seed(seed)
    pair = ControlPair(transformer.config).eval()
    pair.start_from(transformer)
    if not zero:
        with torch.no_grad():
            for name, parameter in pair.named_parameters():
                if "controlnet_blocks" in name or "input_hint_block.14" in name:
                    parameter.normal_(0, 0.2)
    return pair.requires_grad_(False)


def write_flux(folder: Path, zero_control: bool = False) -> tuple[Path, Path]:
    """Write the base folder and the checkpoint; returns their paths."""
    base = folder / "FLUX.1-dev"
    transformer = tiny_transformer()
    transformer.save_pretrained(base / "transformer")
    torch.manual_seed(2)
    AutoencoderKL(**VAE).save_pretrained(base / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64, hidden_size=20, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=77, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    ).save_pretrained(base / "text_encoder")  # fmt: skip
    T5EncoderModel(
        T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).save_pretrained(base / "text_encoder_2")
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "hand", "is", "trying", "to", "grasp", "something"]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    for name in ("tokenizer", "tokenizer_2"):
        fast.save_pretrained(base / name)
    control = folder / "controlnet.bin"
    save_control(tiny_control(transformer, zero=zero_control), control)
    return base, control
