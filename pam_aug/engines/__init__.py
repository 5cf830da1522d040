"""Where units of work run. An engine knows nothing of what a unit does."""

from pam_aug.engines.local import Failure, run_local

__all__ = ["Failure", "run_local"]
