"""Training of stage II, by one process or several: `run_stage_two(recipe, out)`.

Only the two ControlNets are trained. A killed run goes on as if it had not been killed: what a pass reads and draws is
a function of its number, so the checkpoint is weights, optimiser and the number of iterations done.
"""

import copy
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pam_aug.config import config_hash, to_dict
from pam_aug.errors import AssetMissing, BackendError, ConfigError
from pam_aug.generate.flux.checkpoint import save_control
from pam_aug.generate.flux.controlnet import ControlPair
from pam_aug.generate.flux.fingerprint import TEXT_FILES, VAE_FILES, fingerprint
from pam_aug.generate.flux.models import TextEncoders, load_vae, vae_scaling
from pam_aug.shards.atomic import TEMPORARY_PREFIX, storage_errors, write_atomic
from pam_aug.train.optim import average_into, schedule, set_learning_rate
from pam_aug.train.run_folder import Table, claim, load_checkpoint, log_values, open_board, save_checkpoint
from pam_aug.train.stage_two.batches import FlowBatches
from pam_aug.train.stage_two.cache import Cache, claim_cache, write_parts, write_prompts
from pam_aug.train.stage_two.config import StageTwoConfig, read_recipe
from pam_aug.train.stage_two.examples import Examples
from pam_aug.train.stage_two.held_out import MEASURED, HeldOut, open_estimator
from pam_aug.train.stage_two.model import DTYPES, Residuals, check_files, load_frozen, losses, new_pair

__all__ = ["StageTwoRun", "run_stage_two"]

# Not part of what is trained: a run may go on with other values.
_RUNTIME = ("threads", "loaders", "checkpoint_every", "export_every", "tensorboard", "cpu", "cache")
_LOGGED = ("loss", "norm1", "norm2", "lr", "images_per_s")


def run_stage_two(recipe: Mapping[str, Any], out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do a training recipe into `out`, going on where an earlier run stopped; returns the held-out figures.

    Writes `controlnet.bin` in PAM's layout, `<name>.safetensors` and `.json`, `checkpoint.safetensors`, `log.csv`,
    `held_out.csv`, pictures in `held_out/` and, for TensorBoard, `tensorboard/`. Under `accelerate launch` all
    processes call it. Raises ConfigError for a recipe that cannot be run, AssetMissing where models or packages are
    not there, ResumeMismatch where `out` or the cache belong to another run.
    """
    run = StageTwoRun(read_recipe(recipe, overrides), Path(out))
    run.train()
    return run.finish()


class StageTwoRun:
    """A run and what it holds between iterations: FLUX, the pair, its optimiser and average, tables."""

    def __init__(self, config: StageTwoConfig, out: Path) -> None:
        self.config, self.out = config, out
        check_files(config)
        examples = Examples(config.data)
        measured = Examples(config.held_out) if config.held_out.source or config.held_out.shards else None
        if measured is not None and config.held_out.candidates:
            open_estimator(config)  # what it lacks is told before any work
        self.accelerator = _accelerator(config)
        self.main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        self.share = self.accelerator.process_index, self.accelerator.num_processes
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads)
        if self.main:
            out.mkdir(parents=True, exist_ok=True)
            claim(_trained(config), out)
        self.accelerator.wait_for_everyone()
        base = Path(config.flux.base)
        self.scaling = vae_scaling(base)
        encoders = TextEncoders(base, DTYPES[config.precision], self.device)

        @functools.cache
        def vae() -> Any:  # once, where a cache lacks latents
            model: Any = load_vae(base, torch.float32)
            return model.to(self.device)

        self.cache = self._cached(examples, "data", vae, encoders)
        self.held_out = None
        if measured is not None:
            self.held_out = HeldOut(self._cached(measured, "held-out", vae, encoders), config, self.scaling, self.share)
        encoders.free()
        del vae
        self.transformer = load_frozen(config, self.device)
        self.pair = new_pair(config, self.transformer).to(self.device)
        self.averaged = copy.deepcopy(self.pair).requires_grad_(False) if config.ema else None
        optimizer: Any = torch.optim.AdamW(
            self.pair.parameters(), config.lr, (config.beta1, config.beta2), config.epsilon, config.weight_decay,
            fused=True,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.optimizer = optimizer
        self.parallel, self.prepared = self.accelerator.prepare(Residuals(self.pair), optimizer)
        self.sharded = _is_sharded(self.accelerator)
        self.batches = FlowBatches(self.cache, config, *self.share)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.done, self.seconds = self._restore()
        self.figures: dict[str, Any] = {}

    def train(self) -> None:
        """All iterations that are not done. Raises BackendError where the loss is not finite."""
        config = self.config
        log = Table(self.out / "log.csv", _LOGGED, self.done) if self.main else None
        held_out = Table(self.out / "held_out.csv", MEASURED, self.done) if self.main else None
        board = open_board(self.out / "tensorboard", self.done) if self.main and config.tensorboard else None
        bar = tqdm(total=config.iterations, initial=self.done, unit="iteration", disable=None if self.main else True)
        began = last_log = time.perf_counter()
        count = self.done % config.log_every
        passes = self._loader(range(self.done * self.batches.accumulation, len(self.batches)))
        while self.done < config.iterations:
            self.step(self.done, passes)
            self.done += 1
            count += 1
            bar.update()
            last = self.done == config.iterations
            if self.done % config.log_every == 0 or last:
                now = time.perf_counter()
                rate = round(config.batch * count / (now - last_log), 3)
                values = {**self._means(count), "images_per_s": rate}
                log_values(log, board, "train", self.done, values)
                bar.set_postfix_str(f"loss {values['loss']:.4f}")
                self.sums.zero_()
                last_log, count = now, 0
            if self.held_out is not None and (self.done % config.held_out.every == 0 or last):
                self.figures = self.measure()
                log_values(held_out, board, "held_out", self.done, self.figures)
                last_log = time.perf_counter()
            if self.done % config.checkpoint_every == 0 or last:
                self._save(self.seconds + time.perf_counter() - began)
            if self.main and config.export_every and self.done % config.export_every == 0:
                self._export(self.out / f"{config.name}-{self.done:06d}.safetensors")
        self.seconds += time.perf_counter() - began
        bar.close()
        if board is not None:
            board.close()

    def step(self, iteration: int, passes: Iterator[dict[str, Tensor]]) -> None:
        """One update from the passes that it accumulates."""
        config = self.config
        set_learning_rate([self.optimizer], schedule(iteration, config))  # type: ignore[arg-type]
        seen = torch.zeros(3, dtype=torch.float64, device=self.device)
        for _ in range(self.batches.accumulation):
            raw = next(passes)
            with self.accelerator.accumulate(self.parallel):
                loss = losses(
                    self.parallel, self.transformer, raw, scaling=self.scaling, guidance=config.guidance,
                    autocast=self.accelerator.autocast,
                ).mean()  # fmt: skip
                self.accelerator.backward(loss)
                seen[0] += loss.detach().double() / self.batches.accumulation
                if self.accelerator.sync_gradients:
                    for at, net in enumerate((self.pair.controlnet1, self.pair.controlnet2), 1):
                        norm = self.accelerator.clip_grad_norm_(net.parameters(), config.clip_norm)
                        seen[at] += 0.0 if norm is None else norm
                self.prepared.step()
                self.prepared.zero_grad(set_to_none=True)
        if self.averaged is not None:
            average_into(self.averaged, self.pair, min(config.ema, (1 + iteration) / (10 + iteration)))
        self.sums += self.accelerator.reduce(seen, "mean")

    def measure(self) -> dict[str, Any]:
        """The held-out figures of the weights that would be exported now."""
        assert self.held_out is not None
        pair = self.pair if self.averaged is None else self.averaged
        pictures = self.out / "held_out" / f"{self.done:06d}.jpg" if self.main else None
        sums = self.held_out.totals(pair, self.transformer, self.accelerator.autocast, pictures)
        if self.share[1] > 1:
            sums = self.accelerator.reduce(torch.from_numpy(sums).to(self.device), "sum").cpu().numpy()
        return self.held_out.figures(np.asarray(sums))

    def finish(self) -> dict[str, Any]:
        """Write the ControlNets and what they are; returns the held-out figures."""
        config = self.config
        if self.held_out is not None and not self.figures:  # a finished run that is started again
            self.figures = self.measure()
        info = {
            "recipe": config.name,
            "seed": config.seed,
            "iterations": config.iterations,
            "batch": config.batch,
            "masking": config.masking,
            "examples": len(self.cache),
            "left_out": len(self.cache.skipped),
            "averaged": self.averaged is not None,
            "training_s": round(self.seconds),
            "processes": self.share[1],
            "recipe_sha256": config_hash(_trained(config)),
            "held_out": self.figures,
        }
        if self.main:
            self._export(self.out / f"{config.name}.safetensors")
            self._export(self.out / "controlnet.bin")
            text = json.dumps(info, indent=2) + "\n"
            write_atomic(self.out / f"{config.name}.json", text.encode())
        self.accelerator.wait_for_everyone()
        return self.figures

    def _cached(self, examples: Examples, name: str, vae: Callable[[], Any], encoders: TextEncoders) -> Cache:
        """The cache of some examples, made where it is not there: every process makes its share."""
        config, base = self.config, Path(self.config.flux.base)
        folder = (Path(config.cache) if config.cache else self.out / "cache") / name
        identity = {
            **examples.identity,
            "size": [config.width, config.height],
            "vae": fingerprint(base, VAE_FILES),
            "text_encoders": fingerprint(base, TEXT_FILES),
            "text_dtype": str(DTYPES[config.precision]),
        }
        if self.main:
            claim_cache(identity, folder)
        self.accelerator.wait_for_everyone()
        made = claim_cache(identity, folder)
        write_parts(examples, folder, made, (config.width, config.height), vae, self.share)
        self.accelerator.wait_for_everyone()
        cache = Cache(folder, made, len(examples))
        write_prompts(cache.texts, folder, made, encoders, self.share)
        self.accelerator.wait_for_everyone()
        return cache

    def _loader(self, todo: range) -> Iterator[dict[str, Tensor]]:
        workers = min(self.config.loaders, len(todo))
        pinned = self.device.type == "cuda"
        return iter(DataLoader(self.batches, batch_size=None, sampler=todo, num_workers=workers, pin_memory=pinned))

    def _means(self, count: int) -> dict[str, float]:
        values = self.sums.cpu().numpy() / count
        if not np.isfinite(values).all():
            raise BackendError(
                f"the loss is not finite at iteration {self.done}; lower lr ({self.config.lr})", iteration=self.done
            )
        lr = self.config.lr * schedule(self.done - 1, self.config)  # type: ignore[arg-type]
        return {name: float(f"{v:.6g}") for name, v in zip(_LOGGED[:4], (*values.tolist(), lr), strict=True)}

    def _export(self, path: Path) -> None:
        """The pair as it would be used, in FLUX's own type: what the generator loads."""
        pair, dtype = self.pair if self.averaged is None else self.averaged, DTYPES[self.config.precision]
        with torch.device("meta"):
            plain = ControlPair(self.transformer.config)
        plain.load_state_dict({k: v.detach().cpu().to(dtype) for k, v in pair.state_dict().items()}, assign=True)
        partial = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")  # whose ending says the form
        with storage_errors(path):
            save_control(plain, partial)
            os.replace(partial, path)

    def _save(self, seconds: float) -> None:
        """The checkpoint; of DeepSpeed, whose optimiser lies in parts on all processes, with a folder of its own."""
        state, optimizers = {"done": self.done, "seconds": seconds}, [self.prepared]
        if self.sharded:
            self.accelerator.save_state(str(self._parts(self.done)))
            optimizers = []
        if not self.main:
            return
        save_checkpoint(self.out / "checkpoint.safetensors", self._nets(), optimizers, state, self.sums)
        for folder in self.out.glob("deepspeed-*"):
            if folder != self._parts(self.done):
                shutil.rmtree(folder)

    def _restore(self) -> tuple[int, float]:
        path = self.out / "checkpoint.safetensors"
        if not path.is_file():
            return 0, 0.0
        state, sums = load_checkpoint(path, self._nets(), [] if self.sharded else [self.optimizer])
        if self.sharded:
            self.accelerator.load_state(str(self._parts(state["done"])))
        self.sums.copy_(sums)
        return state["done"], state["seconds"]

    def _parts(self, done: int) -> Path:
        return self.out / f"deepspeed-{done:06d}"

    def _nets(self) -> dict[str, torch.nn.Module]:
        return {"pair": self.pair, **({} if self.averaged is None else {"averaged": self.averaged})}


def _is_sharded(accelerator: Any) -> bool:
    return accelerator.distributed_type.value == "DEEPSPEED"


def _trained(config: StageTwoConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in _RUNTIME}


def _accelerator(config: StageTwoConfig) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise AssetMissing(f"training stage II needs {error.name}: pip install 'pam_aug[diffusion]'") from error
    AcceleratorState._reset_state()  # a process may do several runs, each with its own precision
    # The last block's text stream ends in nothing, as in PAM's: those parameters get no gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    made = Accelerator(cpu=config.cpu, mixed_precision=config.precision, kwargs_handlers=[ddp])
    together = config.micro_batch * made.num_processes
    if config.batch % together:
        raise ConfigError(f"batch {config.batch} does not divide by micro_batch x processes ({together})")
    made.gradient_accumulation_steps = config.batch // together
    if made.state.deepspeed_plugin is not None:  # it counts passes itself, and finds no loader to ask
        settings = made.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = config.micro_batch
        settings["gradient_accumulation_steps"] = config.batch // together
    return made
