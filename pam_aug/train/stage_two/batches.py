"""What each pass of training reads: a function of its number alone, for any number of processes and workers.

Examples come in an endless chain of permutations, one per pass over the data. Everything that is drawn for a place in
that chain (time, noise, the posterior's sample, hidden cues) comes from the seed and the place.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pam_aug.seeds import derived_seed
from pam_aug.train.stage_two.cache import Cache
from pam_aug.train.stage_two.config import StageTwoConfig
from pam_aug.train.stage_two.objective import CUES, MASKING, TIME_POINTS

__all__ = ["FlowBatches", "draw"]


class FlowBatches(Dataset[dict[str, Tensor]]):
    """Passes of one process by number: pass n belongs to iteration n // `accumulation`.

    A pass has `points` (n,) of `objective.flow_times`, `moments` (n,k,h,w), `posterior` and `noise` (n,c,h,w), `hidden`
    (n,4) of `objective.CUES`, `conditions` (n,12,H,W) with nothing hidden yet, `text`, `pooled`, `examples` (n,).
    """

    def __init__(self, cache: Cache, config: StageTwoConfig, rank: int = 0, world: int = 1) -> None:
        self._cache, self._config, self._rank, self._world = cache, config, rank, world
        self.accumulation = config.batch // (config.micro_batch * world)

    def __len__(self) -> int:
        return self._config.iterations * self.accumulation

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        config = self._config
        first = (n * self._world + self._rank) * config.micro_batch
        rows = [self._row(place) for place in range(first, first + config.micro_batch)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, place: int) -> dict[str, Tensor]:
        config = self._config
        turn, at = divmod(place, len(self._cache))
        index = int(_order(config.seed, len(self._cache), turn)[at])
        cached = self._cache[index]
        prompt = self._cache.prompt(cached.prompt)
        return {
            "examples": torch.tensor(index),
            "moments": cached.moments,
            "conditions": cached.conditions(config.width, config.height)[0],
            "text": prompt.text[0],
            "pooled": prompt.pooled[0],
            **draw(config.seed, place, cached.moments, config.masking),
        }


def draw(seed: int, place: int, moments: Tensor, masking: str) -> dict[str, Tensor]:
    """What chance decides at a place of the chain; always drawn on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed("stage-two", seed, place))
    shares = torch.tensor([MASKING[masking][cue] for cue in CUES])
    shape = (moments.shape[0] // 2, *moments.shape[1:])
    return {
        "hidden": torch.rand(len(CUES), generator=generator) < shares,
        "points": torch.randint(TIME_POINTS, (), generator=generator),
        "posterior": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
    }


@lru_cache(maxsize=4)
def _order(seed: int, count: int, turn: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(derived_seed("stage-two-order", seed, turn)))
    return rng.permutation(count)
