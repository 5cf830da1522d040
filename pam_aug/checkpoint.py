"""Checkpoint files of other projects: where they lie, read without running anything in them, compared by entry."""

import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pam_aug.errors import AssetMissing, SchemaError, UnsafeInput

__all__ = ["check_entries", "read_headers", "read_state", "weights_dir"]

_SHOWN = 5
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weights_dir() -> Path:
    """The folder of weight files: `$PAM_AUG_WEIGHTS`, else `~/.cache/pam_aug/weights`."""
    return Path(os.environ.get("PAM_AUG_WEIGHTS") or Path.home() / ".cache" / "pam_aug" / "weights")


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """What safetensors files hold together, by name and shape, without values; nothing but headers is read.

    Raises SchemaError for a file that is none, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    entry = file.get_slice(name)
                    dtype = _FLOATS.get(entry.get_dtype(), torch.int64)
                    found[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
        except (SafetensorError, OSError, ValueError) as error:
            raise SchemaError(
                f"{path}: not a whole safetensors file ({error}); download it again", path=str(path)
            ) from error
    return found


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, mapped into memory and not yet read. `name` is its name among the weights.

    Reads torch archives (with or without a `state_dict` inside) and safetensors. Raises AssetMissing (no file),
    UnsafeInput (it holds more than tensors) or SchemaError (no checkpoint, truncated).
    """
    if not path.is_file():
        raise AssetMissing(f"{path}: no such file; `pam-aug fetch-weights {name}` says where to get it", path=str(path))
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, name)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        found = f"holds a {type(content).__name__}"
        if isinstance(content, Mapping):
            found = f"has the entries {', '.join(map(str, list(content)[:_SHOWN]))}"
        raise SchemaError(f"{path}: {found}, the checkpoint of {name} has a 'state_dict' of tensors", path=str(path))
    return {str(key): value for key, value in state.items()}


def _read_torch(path: Path, name: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "class" in line), str(error))
        raise UnsafeInput(
            f"{path}: holds more than tensors ({reason[:200].strip()}), so it was not read. The published file has "
            f"tensors only; get it again, see `pam-aug fetch-weights {name}`",
            path=str(path),
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise SchemaError(
            f"{path}: not a whole torch archive ({reason}); copy or download it again and check it with "
            f"`pam-aug fetch-weights {name}`",
            path=str(path),
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SchemaError(f"{path}: not a whole safetensors file ({error}); copy it again", path=str(path)) from error


def check_entries(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    prefixes: tuple[str, ...] = ("",),
    where: str,
    advice: str,
) -> None:
    """Refuse a checkpoint of another network: names, shapes and kinds of number must be those of `expected`.

    Entries outside `prefixes` are not looked at. Raises SchemaError with the first differences; `where` is the file
    that it names.
    """
    wrong = [
        f"{name} is missing (expected {tuple(value.shape)})"
        if name not in state
        else f"{name} is {tuple(state[name].shape)} of {state[name].dtype}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name not in state
        or state[name].shape != value.shape
        or state[name].is_floating_point() != value.is_floating_point()
    ]
    wrong += [f"{name} is unknown" for name in state if name.startswith(prefixes) and name not in expected]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        head = f"{where}: not the network that was expected, {len(wrong)} entries differ:"
        lines = "\n  - ".join([head, *wrong[:_SHOWN], *more])
        raise SchemaError(f"{lines}\n{advice}", differences=wrong)
