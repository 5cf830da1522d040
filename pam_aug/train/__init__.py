"""Training of estimators from recipes: `run(recipe, out)`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["run"]


def run(recipe: "Mapping[str, Any]", out: Path, overrides: "Sequence[str]" = ()) -> dict[str, Any]:
    """Do a training recipe into `out`: on mixed shards where it has a `data` section (`mixed.run_mixed`), else on a
    pool that it renders (`loop.run`). torch is imported at the call only."""
    if "data" in recipe:
        from pam_aug.train.mixed import run_mixed

        return run_mixed(recipe, Path(out), overrides)
    from pam_aug.train import loop

    return loop.run(recipe, Path(out), overrides)
