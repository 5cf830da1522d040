"""Training of estimators from recipes: `run(recipe, out)`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["run"]


def run(recipe: "Mapping[str, Any]", out: Path, overrides: "Sequence[str]" = ()) -> dict[str, Any]:
    """Do a training recipe into `out`; see `pam_aug.train.loop.run`. torch is imported at the call only."""
    from pam_aug.train import loop

    return loop.run(recipe, Path(out), overrides)
