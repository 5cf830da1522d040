"""What a run keeps in its folder: its configuration, tables of what it logged, and checkpoints of tensors alone."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pam_aug.errors import AssetMissing, ResumeMismatch, SchemaError, StorageError
from pam_aug.shards.atomic import fsync_folder, storage_errors, temporary_path

__all__ = ["Table", "claim", "load_checkpoint", "log_values", "open_board", "save_checkpoint", "write_tensors"]


def claim(fields: Mapping[str, Any], out: Path) -> None:
    """Write a run's configuration into a new folder, or check that an old one holds the same. Raises ResumeMismatch."""
    path, mine = out / "train.json", json.loads(json.dumps(fields))
    if not path.is_file():
        path.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(name for name in mine if mine[name] != theirs.get(name))
    if changed:
        raise ResumeMismatch(
            f"{out}: holds a training run with another {', '.join(changed)}; take another folder, or the old values",
            fields=changed,
        )


class Table:
    """A CSV file with a row per logged iteration. Opened at iteration `done`, it forgets what a killed run wrote after
    its last checkpoint, so that rows never repeat."""

    def __init__(self, path: Path, columns: Sequence[str], done: int) -> None:
        self.path, self.columns = path, ("iteration", *columns)
        kept = []
        if path.is_file() and done:
            with open(path, newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["iteration"]) <= done]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Append a row; values that the table has no column for are left out."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", restval="")
            writer.writerow({"iteration": iteration, **values})


def open_board(folder: Path, done: int) -> Any:
    """TensorBoard's writer, without what a killed run wrote after iteration `done`. Raises AssetMissing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise AssetMissing(
            f"TensorBoard is not installed ({error}): pip install 'pam_aug[train]', or --set tensorboard=false"
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


def log_values(table: Table | None, board: Any, group: str, iteration: int, values: Mapping[str, Any]) -> None:
    """A row of the table, and the numbers among it on the board, where there are such."""
    if table is not None:
        table.add(iteration, values)
    if board is not None:
        for name, value in values.items():
            if isinstance(value, float):
                board.add_scalar(f"{group}/{name}", value, iteration)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all, written from the tensors' own memory. Give `header` one entry at most:
    the order of several is not fixed, and equal content is to be equal bytes. Raises StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = temporary_path(path)
    with storage_errors(path):
        try:
            save_file(dict(tensors), temporary, dict(header))
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, SafetensorError):  # it reports a full disk as its own
                raise StorageError(
                    f"{path}: cannot be written ({error}); free space and run again", path=str(path)
                ) from error
            raise
        fsync_folder(path.parent)


def save_checkpoint(
    path: Path, nets: Mapping[str, nn.Module], optimizers: Sequence[Any], state: Mapping[str, Any], sums: Tensor
) -> None:
    """Everything that a run goes on from, as one safetensors file, whole or not at all.

    `state` (iteration, position of the loader, ...) is plain data and stands as JSON in the file's header.
    """
    tensors = {f"{name}/{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}/{index}/{key}": value for key, value in entry.items()}
    tensors["sums"] = sums
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(path, plain, {"state": json.dumps(state)})


def load_checkpoint(
    path: Path, nets: Mapping[str, nn.Module], optimizers: Sequence[Any]
) -> tuple[dict[str, Any], Tensor]:
    """Put a checkpoint back into networks and optimisers; returns its state and sums. Raises SchemaError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(metadata["state"])
        for name, net in nets.items():
            part = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
            net.load_state_dict(part)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise SchemaError(
            f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]}); remove it to start anew",
            path=str(path),
        ) from error
    for number, optimizer in enumerate(optimizers):
        _load_optimizer(optimizer, f"optimizer{number}/", tensors)
    return state, tensors["sums"]


def _load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    content = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        index, key = name.removeprefix(prefix).split("/")
        value, parameter = tensors[name], parameters[int(index)]
        # In the parameter's own memory layout: a fused update walks both as they lie in memory.
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**content, "state": entries})
