"""PAM's `controlnet.bin`: read with every entry checked, and written in the same layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pam_aug.checkpoint import check_entries, read_state
from pam_aug.errors import SchemaError
from pam_aug.generate.flux.controlnet import ControlPair
from pam_aug.generate.flux.names import to_diffusers, to_original

__all__ = ["load_control", "original_state", "published_entries", "save_control"]

_NETS = ("controlnet1", "controlnet2")


def load_control(path: Path, config: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> ControlPair:
    """The control pair for a transformer of `config`, with a checkpoint's weights.

    Reads PAM's torch file or safetensors, names with or without the "module." of a resumed training. Raises
    AssetMissing, UnsafeInput, or SchemaError with the first entries that differ.
    """
    state = read_state(path, "pam-controlnet")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    advice = "Give PAM's controlnet.bin, made for this FLUX transformer."
    expected = published_entries(config)
    check_entries(state, expected, where=str(path), advice=advice)
    with torch.device("meta"):
        pair = ControlPair(config)
    ours: dict[str, Tensor] = {}
    for net in _NETS:
        part = {name.removeprefix(f"{net}."): v for name, v in state.items() if name.startswith(f"{net}.")}
        ours |= {f"{net}.{name}": value.to(dtype) for name, value in to_diffusers(part).items()}
    broken = [name for name, value in ours.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise SchemaError(f"{path}: {broken[0]} is not finite; copy or train it again", entries=broken)
    pair.load_state_dict(ours, strict=True, assign=True)
    return pair.eval().requires_grad_(False)


def published_entries(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds, by name and shape, without values: 172 entries, 1 487 615 424 numbers for FLUX.1-dev."""
    with torch.device("meta"):
        return original_state(ControlPair(config))


def original_state(pair: ControlPair) -> dict[str, Tensor]:
    """The pair's tensors under the checkpoint's names."""
    state = pair.state_dict()
    out: dict[str, Tensor] = {}
    for net in _NETS:
        part = {name.removeprefix(f"{net}."): v for name, v in state.items() if name.startswith(f"{net}.")}
        out |= {f"{net}.{name}": value for name, value in to_original(part).items()}
    return out


def save_control(pair: ControlPair, path: Path) -> None:
    """Write the pair as PAM does (a torch file), or as safetensors where the name ends so."""
    state = {name: value.detach().cpu().contiguous() for name, value in original_state(pair).items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
