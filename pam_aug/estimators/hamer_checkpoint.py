"""HaMeR's checkpoint file: read without running anything in it, checked entry by entry, and put into the network.

A checkpoint (`hamer.ckpt`) is a torch archive with one `state_dict`: the backbone, the head, MANO's right hand as smplx
keeps it, and a discriminator that only training needs. A `.safetensors` file with the same entries is read as well.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pam_aug.errors import AssetMissing, SchemaError, UnsafeInput
from pam_aug.estimators.hamer_net import HamerConfig, HamerNet
from pam_aug.hand.assets import HandAssets, assets_from_arrays, wrist_cap

__all__ = ["check_entries", "expected_entries", "hand_of", "load_hamer", "read_state"]

_USED = ("backbone.", "mano_head.")
_MANO = {
    "v_template": "v_template",
    "f": "faces_tensor",
    "shapedirs": "shapedirs",
    "posedirs": "posedirs",
    "J_regressor": "J_regressor",
    "weights": "lbs_weights",
    "parents": "parents",
    "hands_mean": "hand_mean",
    "hands_components": "hand_components",
}
_MANO_SHAPES = {
    "mano.v_template": (778, 3),
    "mano.shapedirs": (778, 3, 10),
    "mano.posedirs": (135, 2334),
    "mano.J_regressor": (16, 778),
    "mano.lbs_weights": (778, 16),
    "mano.faces_tensor": (1538, 3),
    "mano.parents": (16,),
    "mano.hand_mean": (45,),
    "mano.hand_components": (6, 45),
}
_SHOWN = 5


def expected_entries(config: HamerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the entries that the network takes from a checkpoint: 503 at the published depths."""
    with torch.device("meta"):
        net = HamerNet(config)
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, mapped into memory and not yet read.

    Raises AssetMissing (no file), UnsafeInput (it holds more than tensors) or SchemaError (no checkpoint, truncated).
    """
    if not path.is_file():
        raise AssetMissing(f"{path}: no such file; `pam-aug fetch-weights hamer` says where to get it", path=str(path))
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = f"holds a {type(content).__name__}"
        if isinstance(content, Mapping):
            found = f"has the entries {', '.join(map(str, list(content)[:_SHOWN]))}"
        raise SchemaError(f"{path}: {found}, a HaMeR checkpoint has a 'state_dict' of tensors", path=str(path))
    return {str(name): value for name, value in state.items()}


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), str(error))
        raise UnsafeInput(
            f"{path}: holds more than tensors ({reason[:200].strip()}), so it was not read. The published file has "
            "tensors only; get it again with `pam-aug fetch-weights hamer`",
            path=str(path),
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise SchemaError(
            f"{path}: not a whole torch archive ({str(error).splitlines()[0][:200] if str(error) else error!r}); "
            "copy or download it again and check it with `pam-aug fetch-weights hamer`",
            path=str(path),
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SchemaError(f"{path}: not a whole safetensors file ({error}); copy it again", path=str(path)) from error


def _differences(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What differs, in the expected order, then what is too much under the network's own prefixes."""
    found = [
        f"{name} is missing (expected {shape})"
        if name not in state
        else f"{name} is {tuple(state[name].shape)} of {state[name].dtype}, expected floats {shape}"
        for name, shape in expected.items()
        if name not in state or tuple(state[name].shape) != shape or not state[name].is_floating_point()
    ]
    return found + [f"{name} is unknown" for name in state if name.startswith(_USED) and name not in expected]


def check_entries(state: Mapping[str, Tensor], config: HamerConfig, *, where: str) -> None:
    """Refuse a checkpoint of another network. Raises SchemaError with the first differences; `where` is its file."""
    wrong = _differences(state, expected_entries(config))
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        head = f"{where}: not the network that was expected, {len(wrong)} entries differ:"
        lines = "\n  - ".join([head, *wrong[:_SHOWN], *more])
        raise SchemaError(f"{lines}\nGive HaMeR's own checkpoint, or this one's sizes as `net`.", differences=wrong)


def load_hamer(
    state: Mapping[str, Tensor], config: HamerConfig, dtype: torch.dtype = torch.float32, *, where: str
) -> HamerNet:
    """The network with a checkpoint's weights, the backbone in `dtype`, in evaluation mode.

    Tensors that keep their type are not copied. Entries outside the network (discriminator, MANO) are left alone.
    Raises SchemaError as `check_entries` does.
    """
    check_entries(state, config, where=where)
    with torch.device("meta"):
        net = HamerNet(config)
    kept = {name: dtype if name.startswith("backbone.") else torch.float32 for name in net.state_dict()}
    net.load_state_dict({name: state[name].to(kind) for name, kind in kept.items()}, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def hand_of(state: Mapping[str, Tensor], *, where: str) -> HandAssets | None:
    """MANO's right hand as a checkpoint carries it; None where it carries none.

    A checkpoint keeps six pose components; the other rows are zero (the network gives rotations, and needs none).
    Raises SchemaError where some of its arrays are missing or differ.
    """
    if not any(name.startswith("mano.") for name in state):
        return None
    wrong = [
        f"{name} is {tuple(state[name].shape) if name in state else 'missing'}, expected {shape}"
        for name, shape in _MANO_SHAPES.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    if wrong:
        raise SchemaError(f"{where}: its MANO arrays differ: {'; '.join(wrong[:_SHOWN])}", differences=wrong)
    tensors = {ours: state[f"mano.{theirs}"] for ours, theirs in _MANO.items()}
    raw = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
    raw["posedirs"] = raw["posedirs"].T.reshape(778, 3, 135)
    raw["hands_components"] = np.concatenate([raw["hands_components"], np.zeros((39, 45), np.float32)])
    raw["f_cap"] = wrist_cap(raw["f"], where)
    return assets_from_arrays(raw, name="mano-right", side="right", where=where)
