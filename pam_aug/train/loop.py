"""Training of SimpleHand: a pool is rendered, crops are drawn from it, the averaged weights are kept and measured."""

import copy
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pam_aug.config import config_hash, resolve, to_dict
from pam_aug.errors import BackendError
from pam_aug.estimators.base import HandQuery, tight_box
from pam_aug.estimators.joint_map import fit_joint_map
from pam_aug.estimators.simplehand import SimpleHandEstimator, SimpleHandOptions, save_net
from pam_aug.estimators.simplehand_net import NetConfig, SimpleHandNet, normalise_pixels
from pam_aug.geometry import pa_mpjpe_mm, root_aligned_mpjpe_mm
from pam_aug.hand import load_open_hand
from pam_aug.hand.joints import Side
from pam_aug.train.config import PoolConfig, TrainConfig
from pam_aug.train.crops import Batch, CropBatches
from pam_aug.train.losses import TERMS, loss_terms, loss_weights
from pam_aug.train.optim import average_into, make_optimizers, schedule, set_learning_rate
from pam_aug.train.pool import Pool, open_pool, render_pool
from pam_aug.train.run_folder import claim

__all__ = ["held_out_errors", "run", "train_net"]

# Not part of what is trained: a run may go on with other values.
_RUNTIME = ("threads", "loaders", "render_workers", "checkpoint_every")


def run(recipe: Mapping[str, Any], out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do a training recipe into `out`, going on where an earlier run stopped; returns the measured figures.

    Writes `<name>.safetensors` and `<name>.json`. Raises ConfigError for a recipe that cannot be run, ResumeMismatch
    where `out` holds a run of another recipe.
    """
    config = resolve(TrainConfig, recipe, overrides, where="training recipe")
    net_config = NetConfig.of(config.net)
    out.mkdir(parents=True, exist_ok=True)
    claim(_pixels(config), out)
    pool = _pool(config, config.pool, out / "pool-train")
    hand = load_open_hand("right")
    torch.manual_seed(config.seed)
    net = SimpleHandNet(net_config, torch.from_numpy(fit_joint_map(hand, net_config.joints, net_config.tips)))  # type: ignore[arg-type]
    averaged, seconds = train_net(config, net, pool, out)
    held_out = _pool(config, config.held_out, out / "pool-held-out")
    info: dict[str, Any] = {
        "recipe": config.name,
        "seed": config.seed,
        "iterations": config.iterations,
        "batch": config.batch,
        "training_images": len(pool),
        "training_s": round(seconds),
        "hand_model": hand.name,
        "hand_model_sha256": hand.sha256,
        "recipe_sha256": config_hash(_pixels(config)),
    }
    weights = out / f"{config.name}.safetensors"
    save_net(averaged, weights, info)
    info["held_out"] = held_out_errors(SimpleHandEstimator(SimpleHandOptions(weights=str(weights))), held_out)
    save_net(averaged, weights, info)  # the same bytes; the figures are those of the stored weights
    return info["held_out"]


def train_net(config: TrainConfig, net: SimpleHandNet, pool: Pool, out: Path) -> tuple[SimpleHandNet, float]:
    """Train `net` from a pool; returns the averaged network, in evaluation mode, and the seconds that it took.

    `out/checkpoint.pt` is written every `checkpoint_every` iterations and read at the start; `out/log.jsonl` gets a
    line every 100 iterations. Raises BackendError where the loss is not finite.
    """
    torch.set_num_threads(config.threads)
    net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(net).requires_grad_(False)
    optimizers = make_optimizers(net, config)
    done, seconds = _restore(out / "checkpoint.pt", net, averaged, optimizers)
    sums, count, began = np.zeros(len(TERMS)), 0, time.perf_counter()
    bar = tqdm(total=config.iterations, initial=done, unit="iteration", disable=None)
    for i, batch in zip(range(done, config.iterations), _batches(config, net.config, pool, done), strict=True):
        set_learning_rate(optimizers, schedule(i, config))
        sums += _step(config, net, optimizers, batch, loss_weights(i, config))
        count += 1
        average_into(averaged, net, min(config.ema, (1 + i) / (10 + i)))
        bar.update()
        last = i + 1 == config.iterations
        if (i + 1) % 100 == 0 or last:
            mean: dict[str, float] = dict(zip(TERMS, (sums / count).tolist(), strict=True))
            if not np.isfinite(sums).all():
                raise BackendError(f"the loss is not finite at iteration {i + 1}; lower lr ({config.lr})", iteration=i)
            spent = seconds + time.perf_counter() - began
            _log(out / "log.jsonl", i + 1, mean, spent)
            bar.set_postfix_str(f"joints {1e3 * mean['joints']:.1f} mm")
            sums, count = np.zeros(len(TERMS)), 0
        if (i + 1) % config.checkpoint_every == 0 or last:
            _save(out / "checkpoint.pt", i + 1, seconds + time.perf_counter() - began, net, averaged, optimizers)
    bar.close()
    return averaged.eval(), seconds + time.perf_counter() - began


def held_out_errors(estimator: SimpleHandEstimator, pool: Pool, block: int = 30) -> dict[str, Any]:
    """Errors (mm) over all images of a pool, as a build's scores have them: joints relative to the network's root."""
    config, root_mm, pa_mm = estimator.net.config, [], []
    for first in range(0, len(pool), block):
        rows = range(first, min(first + block, len(pool)))
        hands = pool.hand[rows]
        queries = [_query(pool, hand, config.tips) for hand in hands]
        found = estimator.estimate([pool.image(row) for row in rows], queries).joints_m
        labels = pool.joints_m[hands].astype(np.float64)
        root_mm.append(root_aligned_mpjpe_mm(found, labels, config.root_index))
        pa_mm.append(pa_mpjpe_mm(found, labels))
    return {
        "images": len(pool),
        "root": config.root,
        "mpjpe_mm": round(float(np.concatenate(root_mm).mean()), 3),
        "pa_mpjpe_mm": round(float(np.concatenate(pa_mm).mean()), 3),
    }


def _query(pool: Pool, hand: int, tips: str) -> HandQuery:
    side: Side = "left" if pool.left[hand] else "right"
    return HandQuery(side, tight_box(pool.joints_px[hand]), pool.K_px[hand], tips)


def _step(
    config: TrainConfig,
    net: SimpleHandNet,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    weights: Mapping[str, float],
) -> list[float]:
    """One update; returns the terms of the loss, unweighted."""
    x = normalise_pixels(batch.crops, net.config.pixels)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
        out = net(x)
    terms = loss_terms(out, batch)
    net.zero_grad(set_to_none=True)
    torch.stack([weights[name] * terms[name] for name in TERMS]).sum().backward()
    nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return [terms[name].item() for name in TERMS]


def _log(path: Path, iteration: int, mean: Mapping[str, float], spent_s: float) -> None:
    mm = {f"{name}_mm": 1e3 * mean[name] for name in ("joints", "verts", "aligned")}
    line = {"iteration": iteration, "uv": mean["uv"], **mm, "heat": mean["heat"], "s": round(spent_s, 1)}
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _batches(config: TrainConfig, net: NetConfig, pool: Pool, done: int) -> Iterator[Batch]:
    batches = CropBatches(pool, net, config.augment, config.batch, config.iterations, config.seed)
    todo = range(done, config.iterations)
    return iter(DataLoader(batches, batch_size=None, sampler=todo, num_workers=config.loaders))


def _pool(config: TrainConfig, section: PoolConfig, folder: Path) -> Pool:
    render_pool(section, folder, config.render_workers)
    return open_pool(section, folder)


def _pixels(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name not in _RUNTIME}


def _save(
    path: Path,
    done: int,
    seconds: float,
    net: nn.Module,
    averaged: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    state = {"done": done, "seconds": seconds, "net": net.state_dict(), "averaged": averaged.state_dict()}
    temporary = path.with_suffix(".tmp")
    torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, temporary)
    os.replace(temporary, path)


def _restore(
    path: Path, net: nn.Module, averaged: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    net.load_state_dict(state["net"])
    averaged.load_state_dict(state["averaged"])
    for optimizer, value in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(value)
    return state["done"], state["seconds"]
