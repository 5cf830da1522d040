"""Which candidates are kept. Pure: candidates in, verdicts out, nothing drawn at random.

Of n candidates, failed ones included, three things go: what failed, what an absolute gate refuses, and the worst
ceil(share · n) (8 of 30 for a quarter).

* Failed candidates, NaN among them, count as the worst, so they use up the share first; where all fail, none is kept.
* Equal errors are ranked by candidate index, then by input key.
* A candidate that stands alone has no rank: only failure and a gate can remove it, or `ceil` would leave an input with
  one candidate nothing at all.
* An error on a gate passes it. An error that was not measured (an estimator without a mesh, a label of another hand
  model) does not pass a gate on it, and the reason says so.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

from pam_aug.errors import ConfigError
from pam_aug.schema import Candidate, Verdict

__all__ = ["ERRORS", "PRESETS", "Preset", "SelectConfig", "select"]

ERRORS: Final = ("err_mm", "pa_err_mm", "err_2d", "vert_err_mm", "pa_vert_err_mm", "odd_mm")
"""The errors of a candidate that a rule can rank by and gate.

`err_mm` holds the depth, of which one image says little and an estimator errs most. `err_2d` leaves it out, and so
finds more of the candidates that show another pose, but none that differs along the line of sight alone. Both are
against the label. `odd_mm` is against the input's other candidates, most of which must be right: beside it goes a gate
on one of the others, for inputs whose candidates are wrong alike.
"""

_SCOPES = ("input", "build")
_RULE = ("reject", "gate", "by", "scope")


@dataclass(frozen=True)
class SelectConfig:
    """The rule: a preset, and what is written beside it, which wins.

    `reject` is the share that goes, as text ("0.25", "1/4") or a number, 0 ≤ share < 1; `gate` refuses an error above
    it, in `by`'s own unit, and is off at -1; `gates` are such gates by error, any of `ERRORS`; `scope` ranks within an
    "input" or over the whole "build"; `check_side` refuses what the estimator sees as a hand of the other side. An
    empty `reject` or `scope`, and a gate that is not named, are the preset's: `resolved` fills them in.
    """

    preset: str = "default"
    reject: str = ""
    gate: float = -1.0
    by: str = "err_mm"
    scope: str = ""
    gates: dict[str, float] = field(default_factory=dict[str, float])
    check_side: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"select.preset {self.preset!r}: choose one of {', '.join(PRESETS)}", preset=self.preset)
        if self.by not in ERRORS:
            raise ConfigError(f"select.by {self.by!r}: choose one of {', '.join(ERRORS)}", by=self.by)
        if self.scope not in ("", *_SCOPES):
            raise ConfigError(f"select.scope {self.scope!r}: choose one of {', '.join(_SCOPES)}", scope=self.scope)
        if math.isnan(self.gate):
            raise ConfigError("select.gate is NaN; give a number, or -1 for no gate", gate=self.gate)
        for name, limit in self.gates.items():
            if name not in ERRORS:
                near = difflib.get_close_matches(str(name), ERRORS, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"select.gates.{name}: no such error; did you mean {near}? (valid: {', '.join(ERRORS)})", gate=name
                )
            if math.isnan(limit):
                raise ConfigError(f"select.gates.{name} is NaN; give a number, or -1 for no gate", gate=name)
        if self.reject != "":
            self.share()

    def resolved(self) -> "SelectConfig":
        """The rule with nothing left to the preset."""
        preset = PRESETS[self.preset]
        return replace(
            self,
            reject=preset.reject if self.reject == "" else self.reject,
            scope=self.scope or preset.scope,
            gates={**preset.gates, **self.gates},
        )

    def share(self) -> Fraction:
        """The rejected share, exactly as written: 0.1 of 30 is 3, where floating point would make 4 of it."""
        try:
            share = Fraction(str(self.reject or self.resolved().reject))
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"select.reject {self.reject!r} is no share; write it as 0.25 or 1/4", reject=self.reject
            ) from error
        if not 0 <= share < 1:
            raise ConfigError(f"select.reject {self.reject}: a share is at least 0 and below 1", reject=self.reject)
        return share

    def limits(self) -> dict[str, float]:
        """Every gate that is on: error → limit. `gate` and a gate of the same error: the lower one counts."""
        gates = {name: limit for name, limit in self.resolved().gates.items() if limit >= 0}
        if self.gate >= 0:
            gates[self.by] = min(self.gate, gates.get(self.by, math.inf))
        return {name: gates[name] for name in ERRORS if name in gates}

    def rule(self) -> dict[str, Any]:
        """What decides, as plain data: not the preset's name, and nothing that is off beyond the four basic fields."""
        resolved = self.resolved()
        gates = {name: resolved.gates[name] for name in ERRORS if resolved.gates.get(name, -1.0) >= 0}
        extra = {"gates": gates, "check_side": self.check_side}
        return {n: getattr(resolved, n) for n in _RULE} | {n: value for n, value in extra.items() if value}


@dataclass(frozen=True)
class Preset:
    """A named rule: the share that goes, what it is taken over, and gates by error."""

    reject: str = "0.25"
    scope: str = "input"
    gates: Mapping[str, float] = field(default_factory=dict[str, float])


def _handbooster(wrist_aligned_mm: float, aligned_mm: float) -> Preset:
    """Gates on joints and vertices, wrist on wrist and after Procrustes alignment; no share."""
    gates = {
        **dict.fromkeys(("err_mm", "vert_err_mm"), wrist_aligned_mm),
        **dict.fromkeys(("pa_err_mm", "pa_vert_err_mm"), aligned_mm),
    }
    return Preset(reject="0", gates=gates)


PRESETS: Final = {
    "default": Preset(),
    "pam": Preset(scope="build"),
    "handbooster-dexycb": _handbooster(25.0, 10.0),
    "handbooster-ho3d": _handbooster(50.0, 20.0),
}
"""`default`: the worst quarter of each input's candidates. `pam`: the worst quarter of everything generated, as the PAM
paper does. `handbooster-…`: HandBooster's image filter (CVPR 2024), four absolute gates, looser for HO3D."""


def select(candidates: Sequence[Candidate], config: SelectConfig | None = None) -> list[Verdict]:
    """One verdict per candidate, in the order given. See the module's text for the rule."""
    config = (config or SelectConfig()).resolved()
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
    value = getattr(candidate, by)
    return value if value >= 0 and not candidate.failure else math.inf


def _judge(group: list[Candidate], config: SelectConfig) -> list[Verdict]:
    n = len(group)
    errors = [_error(c, config.by) for c in group]
    order = sorted(range(n), key=lambda i: (errors[i], group[i].index, group[i].input_key))
    kept_ranks = n - math.ceil(config.share() * n) if n > 1 else n
    verdicts = [Verdict(kept=True)] * n
    for rank, i in enumerate(order, start=1):
        if math.isinf(errors[i]):
            reason = f"failed: {group[i].failure or 'no finite error'}"
        elif refusal := _refusal(group[i], config):
            reason = refusal
        elif rank > kept_ranks:
            reason = f"rank {rank} of {n}: {_text(config.by, errors[i])}"
        else:
            continue
        verdicts[i] = Verdict(kept=False, reason=reason)
    return verdicts


def _refusal(candidate: Candidate, config: SelectConfig) -> str:
    """Why an absolute rule refuses a candidate that has an error; "" where none does."""
    if config.check_side and not candidate.side_agrees:
        return "side: its mirror image fits the label better"
    for name, limit in config.limits().items():
        error = getattr(candidate, name)
        named = "" if name == config.by else f"{name} "
        if not error >= 0:
            return f"gate: {name} was not measured"
        if error > limit:
            return f"gate: {named}{_text(name, error)} > {limit:g}{_unit(name)}"
    return ""


def _unit(by: str) -> str:
    return "" if by == "err_2d" else " mm"


def _text(by: str, error: float) -> str:
    return f"{error:.{3 if by == 'err_2d' else 1}f}{_unit(by)}"
