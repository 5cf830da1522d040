"""Training from recipes, of estimators and of stage II: `run(recipe, out)`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pam_aug.errors import AssetMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["run"]


def run(recipe: "Mapping[str, Any]", out: Path, overrides: "Sequence[str]" = ()) -> dict[str, Any]:
    """Do a training recipe into `out`: PAM's ControlNets where it has a `flux` section (`stage_two.run_stage_two`), an
    estimator on mixed shards where it has a `data` section (`mixed.run_mixed`), else an estimator on a pool that it
    renders (`loop.run`). torch is imported at the call only. Raises AssetMissing where a package is not installed."""
    if "flux" in recipe:
        try:
            from pam_aug.train.stage_two.run import run_stage_two
        except ModuleNotFoundError as error:
            if error.name not in ("diffusers", "transformers"):
                raise
            message = f"training stage II needs {error.name}: pip install 'pam_aug[diffusion]'"
            raise AssetMissing(message, package=error.name) from error
        return run_stage_two(recipe, Path(out), overrides)
    if "data" in recipe:
        from pam_aug.train.mixed import run_mixed

        return run_mixed(recipe, Path(out), overrides)
    from pam_aug.train import loop

    return loop.run(recipe, Path(out), overrides)
