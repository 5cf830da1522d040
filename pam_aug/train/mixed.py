"""Training of SimpleHand on mixed shards, by one process or several: `run_mixed(recipe, out)`.

The order of hands is the mix's, whatever the number of processes and workers; what is drawn for a hand depends on the
seed and its position. A killed run goes on as if it had not been killed: the checkpoint holds the loader's position,
and nothing else is remembered between iterations.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pam_aug.config import config_hash, to_dict
from pam_aug.errors import AssetMissing, BackendError, ConfigError
from pam_aug.geometry import pa_mpjpe_mm
from pam_aug.hand import load_hand
from pam_aug.mix import MixedDataset
from pam_aug.seeds import derived_seed
from pam_aug.train.losses import TERMS, loss_terms, loss_weights
from pam_aug.train.mesh_labels import Targets
from pam_aug.train.mixed_config import HeldOutConfig, MixedTrainConfig, read_recipe
from pam_aug.train.mixed_data import MixBatches, crop_window, derive_mix
from pam_aug.train.nets import make_net, net_spec, save_weights
from pam_aug.train.optim import average_into, make_optimizers, schedule, set_learning_rate
from pam_aug.train.run_folder import Table, claim, load_checkpoint, log_values, open_board, save_checkpoint

__all__ = ["MixedRun", "run_mixed"]

# Not part of what is trained: a run may go on with other values.
_RUNTIME = ("threads", "loaders", "checkpoint_every", "tensorboard", "cpu", "rows")
_LOGGED = ("uv", "joints_mm", "verts_mm", "aligned_mm", "heat", "lr", "used", "images_per_s", "loader_share")
_MEASURED = ("hands", "root", "mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")


def run_mixed(recipe: Mapping[str, Any], out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do a training recipe into `out`, going on where an earlier run stopped; returns the held-out figures.

    Writes `<name>.safetensors` and `.json`, `checkpoint.safetensors`, `log.csv`, `held_out.csv` and, for TensorBoard,
    `tensorboard/`. Under `accelerate launch` or `torchrun` all processes call it. Raises ConfigError for a recipe that
    cannot be run, AssetMissing without the extra `train`, ResumeMismatch where `out` holds a run of another recipe.
    """
    run = MixedRun(read_recipe(recipe, overrides), Path(out))
    run.train()
    return run.finish()


class MixedRun:
    """A run and what it holds between iterations: networks, optimisers, tables, the place in the order."""

    def __init__(self, config: MixedTrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.spec = net_spec(config.net)
        self.accelerator = _accelerator(config)
        self.main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        if config.batch % self.accelerator.num_processes:
            raise ConfigError(f"batch {config.batch} does not divide by {self.accelerator.num_processes} processes")
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads)
        if self.main:
            out.mkdir(parents=True, exist_ok=True)
            claim(_trained(config), out)
            data = config.data
            derive_mix(Path(data.mix), out / "mix.json", data.ratio, data.real_fraction, data.seed)
            if config.held_out.mix:
                derive_mix(Path(config.held_out.mix), out / "held-out.json", "union")
        self.accelerator.wait_for_everyone()
        torch.manual_seed(config.seed)
        self.hand = load_hand("right", config.data.mano_dir or None)
        net = make_net(config.net, self.hand)
        net.train().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.targets = Targets(self.spec, net.joint_map, self.device, config.data.mano_dir)
        self.net, self.optimizers = net, make_optimizers(net, config)
        self.averaged = copy.deepcopy(net).requires_grad_(False) if config.ema else None
        self.parallel, *self.prepared = self.accelerator.prepare(net, *self.optimizers)
        self.dataset = self._dataset(out / "mix.json", config.batch, augmented=config.augment, last="pad")
        self.batches = MixBatches(self.dataset, self.spec, config if config.augment else None, config.iterations)
        self.sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64, device=self.device)
        self.done, self.seconds = self._restore()
        self.figures: dict[str, Any] = {}

    def train(self) -> None:
        """All iterations that are not done. Raises BackendError where the loss is not finite."""
        config = self.config
        log = Table(self.out / "log.csv", _LOGGED, self.done) if self.main else None
        held_out = Table(self.out / "held_out.csv", _MEASURED, self.done) if self.main else None
        board = open_board(self.out / "tensorboard", self.done) if self.main and config.tensorboard else None
        bar = tqdm(total=config.iterations, initial=self.done, unit="iteration", disable=None if self.main else True)
        began = last_log = time.perf_counter()
        waited, count = 0.0, self.done % config.log_every
        batches = self._loader(self.batches, range(self.done, config.iterations))
        while self.done < config.iterations:
            asked = time.perf_counter()
            raw = next(batches)
            waited += time.perf_counter() - asked
            self.step(self.done, raw)
            self.done += 1
            count += 1
            bar.update()
            last = self.done == config.iterations
            if self.done % config.log_every == 0 or last:
                values = self._means(count)
                now = time.perf_counter()
                values["images_per_s"] = round(config.batch * count / (now - last_log), 2)
                values["loader_share"] = round(waited / (now - last_log), 4)
                log_values(log, board, "train", self.done, values)
                bar.set_postfix_str(f"joints {values['joints_mm']:.1f} mm")
                self.sums.zero_()
                last_log, waited, count = now, 0.0, 0
            if config.held_out.mix and (self.done % config.held_out.every == 0 or last):
                self.figures = self.measure(config.held_out)
                log_values(held_out, board, "held_out", self.done, self.figures)
                last_log = time.perf_counter()
            if self.main and (self.done % config.checkpoint_every == 0 or last):
                self._save(raw, self.seconds + time.perf_counter() - began)
        self.seconds += time.perf_counter() - began
        bar.close()
        if board is not None:
            board.close()

    def step(self, iteration: int, raw: dict[str, Any]) -> None:
        """One update from a raw batch."""
        config = self.config
        # Whatever a network draws (dropout, stochastic depth) is a function of the iteration and the process.
        torch.manual_seed(derived_seed("train-step", config.seed, iteration, self.accelerator.process_index))
        set_learning_rate(self.optimizers, schedule(iteration, config, config.drops))
        weights = {name: weight for name, weight in loss_weights(iteration, config).items() if weight > 0}
        x, batch = self.targets(raw)
        self.parallel.train()
        with self.accelerator.autocast():
            out = self.parallel(x)
        terms = loss_terms(out, batch, tuple(weights))
        for optimizer in self.prepared:
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(torch.stack([weight * terms[name] for name, weight in weights.items()]).sum())
        self.accelerator.clip_grad_norm_(self.net.parameters(), config.clip_norm)
        for optimizer in self.prepared:
            optimizer.step()
        if self.averaged is not None:
            average_into(self.averaged, self.net, min(config.ema, (1 + iteration) / (10 + iteration)))
        used = raw["valid"].double().mean().to(self.device)
        self.sums += torch.stack([*(terms[name].detach().double() for name in TERMS), used])

    def measure(self, held_out: HeldOutConfig) -> dict[str, Any]:
        """Mean errors (mm) over the held-out hands, joints relative to the network's root, in the views that estimators
        take; vertices over the hands that have them. Every process measures its share."""
        dataset = self._dataset(self.out / "held-out.json", self.config.batch, augmented=False, last="short")
        net = self.averaged if self.averaged is not None else self.net
        hands = min(held_out.hands or dataset.schedule.epoch_length, dataset.schedule.epoch_length)
        batches = MixBatches(dataset, self.spec, None, math.ceil(hands / dataset.batch_size))
        totals, root = np.zeros(6), self.spec.root_index
        net.eval()
        for raw in self._loader(batches, range(len(batches))):
            with torch.no_grad(), self.accelerator.autocast():
                x, batch = self.targets(raw)
                out = net(x)
            assert batch.joints_valid is not None
            assert batch.verts_valid is not None
            for keep, found, true, at in (
                (batch.joints_valid, out.joints_m, batch.joints_m, 0),
                (batch.verts_valid, out.verts_m, batch.verts_m, 3),
            ):
                mine, label = (points[keep].double().cpu().numpy() for points in (found, true))
                if not len(mine):
                    continue
                # Both in the view's axes and relative to the root's joint: turning one of them alone means nothing.
                root_m = out.joints_m[keep, root, None].double().cpu().numpy()
                errors_mm = 1e3 * np.linalg.norm(mine - root_m - label, axis=-1).mean(-1)
                totals[at : at + 3] += [len(mine), errors_mm.sum(), pa_mpjpe_mm(mine, label).sum()]
        net.train()
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(torch.from_numpy(totals).to(self.device), "sum").cpu().numpy()
        n, m = max(totals[0], 1.0), max(totals[3], 1.0)
        mean_mm = [round(float(value), 3) for value in (totals[1] / n, totals[2] / n, totals[4] / m, totals[5] / m)]
        figures: dict[str, Any] = {"hands": int(totals[0]), "root": "wrist" if root == 0 else "middle_mcp"}
        figures |= {"mpjpe_mm": mean_mm[0], "pa_mpjpe_mm": mean_mm[1]}
        if totals[3]:
            figures |= {"mpvpe_mm": mean_mm[2], "pa_mpvpe_mm": mean_mm[3]}
        return figures

    def finish(self) -> dict[str, Any]:
        """Write the weights and what they are; returns the held-out figures."""
        config = self.config
        if config.held_out.mix and not self.figures:  # a finished run that is started again
            self.figures = self.measure(config.held_out)
        info = {
            "recipe": config.name,
            "row": config.row,
            "seed": config.seed,
            "iterations": config.iterations,
            "batch": config.batch,
            "epoch_hands": self.dataset.schedule.epoch_length,
            "training_s": round(self.seconds),
            "processes": self.accelerator.num_processes,
            "hand_model": self.hand.name,
            "hand_model_sha256": self.hand.sha256,
            "recipe_sha256": config_hash(_trained(config)),
            "held_out": self.figures,
        }
        if self.main:
            net = self.averaged if self.averaged is not None else self.net
            save_weights(net, config.net, self.out / f"{config.name}.safetensors", info)
        self.accelerator.wait_for_everyone()
        return self.figures

    def _dataset(self, mix: Path, batch: int, augmented: bool, last: Any) -> MixedDataset:
        data = self.config.data
        given = (data.crop_px, data.crop_scale) if augmented else (0, 0.0)
        px, scale = crop_window(self.spec, self.config.geometry if augmented else None, *given)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return MixedDataset(mix, batch, crop_px=px, crop_scale=scale, last=last, rank=rank, world=world)

    def _loader(self, batches: MixBatches, todo: range) -> Iterator[dict[str, Any]]:
        workers = min(self.config.loaders, len(todo))
        pinned = self.device.type == "cuda"
        return iter(DataLoader(batches, batch_size=None, sampler=todo, num_workers=workers, pin_memory=pinned))

    def _means(self, count: int) -> dict[str, Any]:
        values = self.sums.cpu().numpy() / count
        if not np.isfinite(values).all():
            raise BackendError(
                f"the loss is not finite at iteration {self.done}; lower lr ({self.config.lr})", iteration=self.done
            )
        mean = dict(zip((*TERMS, "used"), values.tolist(), strict=True))
        mm = {f"{name}_mm": 1e3 * mean.pop(name) for name in ("joints", "verts", "aligned")}
        lr = self.config.lr * schedule(self.done - 1, self.config, self.config.drops)
        return {name: float(f"{value:.6g}") for name, value in {**mean, **mm, "lr": lr}.items()}

    def _save(self, raw: dict[str, Any], seconds: float) -> None:
        scaler = self.accelerator.scaler
        state = {
            "done": self.done,
            "seconds": seconds,
            "loader": self.dataset.state_dict(raw),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }
        save_checkpoint(self.out / "checkpoint.safetensors", self._nets(), self.prepared, state, self.sums)

    def _restore(self) -> tuple[int, float]:
        path = self.out / "checkpoint.safetensors"
        if not path.is_file():
            return 0, 0.0
        state, sums = load_checkpoint(path, self._nets(), self.optimizers)
        self.dataset.load_state_dict(state["loader"])  # refuses another order: other shards, ratio or seed
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.sums.copy_(sums)
        return state["done"], state["seconds"]

    def _nets(self) -> dict[str, torch.nn.Module]:
        return {"net": self.net, **({} if self.averaged is None else {"averaged": self.averaged})}


def _trained(config: MixedTrainConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in _RUNTIME}


def _accelerator(config: MixedTrainConfig) -> Any:
    try:
        import kornia  # noqa: F401  # used on every batch: missing, it is told before any work
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise AssetMissing(f"training on mixed shards needs {error.name}: pip install 'pam_aug[train]'") from error
    AcceleratorState._reset_state()  # a process may do several runs, each with its own precision
    made = Accelerator(cpu=config.cpu, mixed_precision=config.precision)
    if config.precision == "fp16" and made.device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; on a CPU choose bf16 or no")
    return made
