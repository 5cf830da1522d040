"""A build's rule in words, and what the tables of the removed can say under it."""

from pathlib import Path

import orjson

from pam_aug.config import resolve
from pam_aug.select import SelectConfig

__all__ = ["read_rule", "rule_text", "within_inputs"]

_UNITS = {"err_2d": ""}


def read_rule(folder: Path) -> SelectConfig:
    """The rule that a build's folder was selected by; the default one where it has no record."""
    path = folder / "build.json"
    if not path.is_file():
        return SelectConfig()
    tree = orjson.loads(path.read_bytes()).get("config", {}).get("select", {})
    return resolve(SelectConfig, tree, where=str(path)).resolved()


def within_inputs(rule: SelectConfig) -> bool:
    """Whether the rule takes a share of each input's own candidates."""
    return rule.resolved().scope == "input" and rule.share() > 0


def rule_text(rule: SelectConfig) -> str:
    """HTML: what goes by this rule, and how to read the shares of groups under it."""
    share, limits = float(rule.share()), rule.limits()
    parts: list[str] = []
    if share:
        whose = "of each input's candidates" if within_inputs(rule) else "of all candidates of the build"
        parts.append(f"the worst {100 * share:.3g} % {whose}, by <code>{rule.by}</code>")
    parts += [
        f"what has <code>{name}</code> above {limit:g}{_UNITS.get(name, ' mm')}" for name, limit in limits.items()
    ]
    if rule.check_side:
        parts.append("what the estimator takes for a hand of the other side")
    parts.append("what failed")
    if within_inputs(rule):
        how = (
            "A cut within each input takes the same share of every pose, object and camera by construction"
            + (": only gates and failures make a difference there. " if limits or rule.check_side else ". ")
            + "Which of them the judge finds hard is in the column “one cut”: what the same rule would remove as one "
            "cut over the whole build (<code>pam-aug select FOLDER --out NEW --set scope=build</code>)."
        )
    else:
        how = (
            "Groups are cut unequally by this rule: one of which much more goes than of the others is hard for the "
            "judge, whether its images are wrong or not, and what is kept is what the judge handles already."
        )
    return f"Rejected: {'; '.join(parts)}. {how}"
