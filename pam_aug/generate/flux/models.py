"""FLUX.1-dev from the user's disk: a diffusers folder, or the original release's two files beside text encoders.

    FLUX.1-dev/  transformer/ | flux1-dev.safetensors
                 vae/         | ae.safetensors
                 text_encoder/ tokenizer/       CLIP
                 text_encoder_2/ tokenizer_2/   T5

Nothing is downloaded: every load is from these files only.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from pam_aug.checkpoint import check_entries, read_state
from pam_aug.errors import AssetMissing, SchemaError
from pam_aug.generate.flux.names import to_diffusers
from pam_aug.generate.flux.sampling import Prompt

__all__ = [
    "DEV_TRANSFORMER",
    "DEV_VAE",
    "TextEncoders",
    "decode_latents",
    "load_transformer",
    "load_vae",
    "missing_files",
    "vae_scaling",
]

_ADVICE = (
    "FLUX.1-dev: accept its licence (non-commercial) on https://huggingface.co/black-forest-labs/FLUX.1-dev, download "
    "the repository's folder and give it as generate.options.base"
)
_TRANSFORMER, _VAE = "flux1-dev.safetensors", "ae.safetensors"
# What the original single files do not say: the published model's sizes.
DEV_TRANSFORMER: dict[str, Any] = {"guidance_embeds": True}
DEV_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_T5_TOKENS, _CLIP_TOKENS = 512, 77


def missing_files(base: Path) -> list[str]:
    """What `base` lacks to be FLUX.1-dev, one sentence each."""
    if not base.is_dir():
        return [f"{base}: no such folder. {_ADVICE}"]
    needs = [
        (("transformer/config.json", _TRANSFORMER), "the transformer"),
        (("vae/config.json", _VAE), "the image decoder"),
        (("text_encoder/config.json",), "CLIP's text encoder"),
        (("text_encoder_2/config.json",), "T5's encoder"),
        (("tokenizer",), "CLIP's tokenizer"),
        (("tokenizer_2",), "T5's tokenizer"),
    ]
    return [
        f"{base}: {what} is missing ({' or '.join(names)}). {_ADVICE}"
        for names, what in needs
        if not any((base / name).exists() for name in names)
    ]


def load_transformer(
    base: Path, dtype: torch.dtype, sizes: Mapping[str, Any] = DEV_TRANSFORMER
) -> FluxTransformer2DModel:
    """The transformer in `dtype`, on the CPU; `sizes` are for the original file, which does not say them.

    Raises AssetMissing or SchemaError.
    """
    if (base / "transformer/config.json").is_file():
        model = _from_folder(FluxTransformer2DModel, base / "transformer", dtype)
    else:
        path = base / _TRANSFORMER
        state = to_diffusers(read_state(path, "flux"))
        with torch.device("meta"):
            model = FluxTransformer2DModel(**sizes)
        check_entries(state, model.state_dict(), where=str(path), advice=_ADVICE)
        model.load_state_dict({name: value.to(dtype) for name, value in state.items()}, strict=True, assign=True)
    if not model.config["guidance_embeds"]:
        raise SchemaError(
            f"{base}: this FLUX takes no guidance (schnell?); PAM's ControlNets were trained on FLUX.1-dev"
        )
    return model.eval().requires_grad_(False)


def load_vae(base: Path, dtype: torch.dtype, sizes: Mapping[str, Any] = DEV_VAE) -> AutoencoderKL:
    """The VAE in `dtype`, on the CPU; `sizes` as for `load_transformer`. Raises AssetMissing or SchemaError."""
    if (base / "vae/config.json").is_file():
        return _from_folder(AutoencoderKL, base / "vae", dtype).eval().requires_grad_(False)
    path = base / _VAE
    read_state(path, "flux")  # names what is wrong with a damaged file, before diffusers reads it
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **sizes}))
        vae = AutoencoderKL.from_single_file(str(path), config=folder, torch_dtype=dtype, local_files_only=True)
    return vae.eval().requires_grad_(False)


def vae_scaling(base: Path, sizes: Mapping[str, Any] = DEV_VAE) -> tuple[float, float]:
    """Factor and shift of the VAE's latents, (z - shift) · factor, without its weights. Raises SchemaError."""
    path = base / "vae/config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else sizes
        return float(found["scaling_factor"]), float(found["shift_factor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: scaling_factor and shift_factor cannot be read ({error!r}); download it again", path=str(path)
        ) from error


class TextEncoders:
    """CLIP and T5, loaded when first asked and gone after `free`."""

    def __init__(self, base: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._base, self._dtype, self._device = base, dtype, device
        self._loaded: tuple[Any, Any, Any, Any] | None = None

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        """Each text as FLUX reads it, on the CPU: T5's last states, padded to 512 tokens without a mask, and CLIP's
        pooled state of 77 tokens."""
        clip, clip_tokens, t5, t5_tokens = self._models()
        ids = clip_tokens(
            list(texts), padding="max_length", truncation=True, max_length=_CLIP_TOKENS, return_tensors="pt"
        ).input_ids
        pooled = clip(ids.to(self._device)).pooler_output.to(self._dtype).cpu()
        ids = t5_tokens(
            list(texts), padding="max_length", truncation=True, max_length=_T5_TOKENS, return_tensors="pt"
        ).input_ids
        states = t5(ids.to(self._device)).last_hidden_state.to(self._dtype).cpu()
        return [Prompt(states[i : i + 1], pooled[i : i + 1]) for i in range(len(texts))]

    def free(self) -> None:
        """Give back the encoders' memory (about 10 GB in bfloat16)."""
        self._loaded = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _models(self) -> tuple[Any, Any, Any, Any]:
        if self._loaded is None:
            from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

            def model(kind: Any, name: str) -> Any:
                return _from_folder(kind, self._base / name, self._dtype).to(self._device).eval()

            def tokens(name: str) -> Any:
                return AutoTokenizer.from_pretrained(self._base / name, local_files_only=True)

            self._loaded = (
                model(CLIPTextModel, "text_encoder"),
                tokens("tokenizer"),
                model(T5EncoderModel, "text_encoder_2"),
                tokens("tokenizer_2"),
            )
        return self._loaded


@torch.inference_mode()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (n,16,h,w), as FLUX has them, to images (n,8h,8w,3) uint8 on the CPU, in that order in memory."""
    z = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"] + vae.config["shift_factor"]
    images = vae.decode(z, return_dict=False)[0].float()
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _from_folder(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        return kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except FileNotFoundError as error:
        raise AssetMissing(f"{folder}: {error}. {_ADVICE}", path=str(folder)) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else repr(error)
        raise SchemaError(f"{folder}: cannot be loaded ({reason}); download it again", path=str(folder)) from error
