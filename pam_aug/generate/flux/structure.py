"""Whether files are FLUX.1-dev and PAM's checkpoint, by the names and shapes of what they hold.

No hash of them is published that we could hold them against, so a wrong value stays unseen; another model, a missing
part or a broken download does not.
"""

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from pam_aug.checkpoint import check_entries, read_headers, read_state
from pam_aug.errors import AssetMissing, SchemaError
from pam_aug.generate.flux.checkpoint import published_entries
from pam_aug.generate.flux.models import DEV_TRANSFORMER, DEV_VAE, missing_files
from pam_aug.generate.flux.names import to_original

__all__ = ["check_clip", "check_control", "check_flux", "check_t5"]

_ADVICE = "Download it again, or give the file of the published model."


def check_control(path: Path) -> None:
    """PAM's controlnet.bin for FLUX.1-dev: 172 entries. Raises SchemaError or UnsafeInput with what differs."""
    state = {name.removeprefix("module."): value for name, value in read_state(path, "pam-controlnet").items()}
    with torch.device("meta"):
        config = FluxTransformer2DModel(**DEV_TRANSFORMER).config
    check_entries(state, published_entries(config), where=str(path), advice=_ADVICE)


def check_flux(base: Path) -> None:
    """FLUX.1-dev's folder: all parts there, transformer and VAE by entry. Raises AssetMissing or SchemaError."""
    missing = missing_files(base)
    if missing:
        raise AssetMissing("; ".join(problem.partition(". ")[0] for problem in missing), missing=missing)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**DEV_TRANSFORMER).state_dict()
        vae = AutoencoderKL(**DEV_VAE).state_dict()
    if (base / "transformer/config.json").is_file():
        check_entries(_folder(base / "transformer"), transformer, where=str(base / "transformer"), advice=_ADVICE)
    else:
        path = base / "flux1-dev.safetensors"
        check_entries(read_headers([path]), to_original(transformer), where=str(path), advice=_ADVICE)
    if (base / "vae/config.json").is_file():
        check_entries(_folder(base / "vae"), vae, where=str(base / "vae"), advice=_ADVICE)
    else:
        read_headers([base / "ae.safetensors"])  # another naming; whole or not is what can be said
    check_t5(base / "text_encoder_2")
    check_clip(base / "text_encoder")


def check_t5(folder: Path) -> None:
    """T5 v1.1 XXL's encoder, by its configuration, and its files whole. Raises AssetMissing or SchemaError."""
    _check_sizes(folder, {"d_model": 4096, "num_layers": 24, "d_ff": 10240})


def check_clip(folder: Path) -> None:
    """CLIP ViT-L/14's text half, by its configuration, and its files whole. Raises AssetMissing or SchemaError."""
    _check_sizes(folder, {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072})


def _check_sizes(folder: Path, sizes: dict[str, int]) -> None:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AssetMissing(f"{path}: no such file", path=str(path)) from error
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path}: not JSON ({error}); download it again", path=str(path)) from error
    config = config.get("text_config", config) if isinstance(config, dict) else {}
    wrong = [
        f"{name} is {config.get(name)} instead of {size}" for name, size in sizes.items() if config.get(name) != size
    ]
    if wrong:
        raise SchemaError(f"{path}: another model: {', '.join(wrong)}", path=str(path))
    _folder(folder)


def _folder(folder: Path) -> dict[str, torch.Tensor]:
    """The entries of a folder's safetensors files. Raises AssetMissing where it has none, or an index names more."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"{index}: not an index of weights ({error}); download it again") from error
        absent = sorted(name for name in named if not (folder / str(name)).is_file())
        if absent:
            raise AssetMissing(f"{folder}: {', '.join(map(str, absent))} is missing", path=str(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AssetMissing(f"{folder}: holds no *.safetensors", path=str(folder))
    return read_headers(files)
