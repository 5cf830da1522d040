"""Which candidates are kept. Pure: candidates in, verdicts out, nothing drawn at random.

Of n candidates, failed ones included, three things go: what failed, what an absolute gate refuses, and the worst
ceil(share · n) (8 of 30 for a quarter). Failed candidates count as the worst, so they use up the share first. Equal
errors are ranked by candidate index, then by input key. A candidate that stands alone has no rank: only failure and
the gate can remove it, or `ceil` would leave an input with one candidate nothing at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pam_aug.errors import ConfigError
from pam_aug.schema import Candidate, Verdict

__all__ = ["PRESETS", "SelectConfig", "select"]

_ERRORS = ("err_mm", "pa_err_mm", "err_2d")
_SCOPES = ("input", "build")


@dataclass(frozen=True)
class SelectConfig:
    """The rule. `reject` is the share that goes, as text ("0.25", "1/4") or a number, 0 ≤ share < 1; `gate` refuses an
    error above it, in `by`'s own unit, and is off at -1; `scope` ranks within an "input" or over the whole "build"."""

    reject: str = "0.25"
    gate: float = -1.0
    by: str = "err_mm"
    scope: str = "input"

    def __post_init__(self) -> None:
        if self.by not in _ERRORS:
            raise ConfigError(f"select.by {self.by!r}: choose one of {', '.join(_ERRORS)}", by=self.by)
        if self.scope not in _SCOPES:
            raise ConfigError(f"select.scope {self.scope!r}: choose one of {', '.join(_SCOPES)}", scope=self.scope)
        if math.isnan(self.gate):
            raise ConfigError("select.gate is NaN; give a number, or -1 for no gate", gate=self.gate)
        self.share()

    def share(self) -> Fraction:
        """The rejected share, exactly as written: 0.1 of 30 is 3, where floating point would make 4 of it."""
        try:
            share = Fraction(str(self.reject))
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"select.reject {self.reject!r} is no share; write it as 0.25 or 1/4", reject=self.reject
            ) from error
        if not 0 <= share < 1:
            raise ConfigError(f"select.reject {self.reject}: a share is at least 0 and below 1", reject=self.reject)
        return share


PRESETS = {"default": SelectConfig(), "pam": SelectConfig(scope="build")}
"""`default` ranks the candidates of one input; `pam` ranks over everything generated, as the paper does."""


def select(candidates: Sequence[Candidate], config: SelectConfig | None = None) -> list[Verdict]:
    """One verdict per candidate, in the order given. See the module's text for the rule."""
    config = config or SelectConfig()
    groups: dict[str, list[int]] = {}
    for position, candidate in enumerate(candidates):
        groups.setdefault(candidate.input_key if config.scope == "input" else "", []).append(position)
    verdicts = [Verdict(kept=True)] * len(candidates)
    for positions in groups.values():
        for position, verdict in zip(positions, _judge([candidates[p] for p in positions], config), strict=True):
            verdicts[position] = verdict
    return verdicts


def _error(candidate: Candidate, by: str) -> float:
    """The ranked error; anything that is no error (NaN, below zero) ranks with the failures."""
    value = {"err_mm": candidate.err_mm, "pa_err_mm": candidate.pa_err_mm, "err_2d": candidate.err_2d}[by]
    return value if value >= 0 and not candidate.failure else math.inf


def _judge(group: list[Candidate], config: SelectConfig) -> list[Verdict]:
    n = len(group)
    errors = [_error(c, config.by) for c in group]
    order = sorted(range(n), key=lambda i: (errors[i], group[i].index, group[i].input_key))
    kept_ranks = n - math.ceil(config.share() * n) if n > 1 else n
    unit = "" if config.by == "err_2d" else " mm"
    digits = 3 if config.by == "err_2d" else 1
    verdicts = [Verdict(kept=True)] * n
    for rank, i in enumerate(order, start=1):
        error = f"{errors[i]:.{digits}f}{unit}"
        if math.isinf(errors[i]):
            verdicts[i] = Verdict(kept=False, reason=f"failed: {group[i].failure or 'no finite error'}")
        elif 0 <= config.gate < errors[i]:
            verdicts[i] = Verdict(kept=False, reason=f"gate: {error} > {config.gate:g}{unit}")
        elif rank > kept_ranks:
            verdicts[i] = Verdict(kept=False, reason=f"rank {rank} of {n}: {error}")
    return verdicts
