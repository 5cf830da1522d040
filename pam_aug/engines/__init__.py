"""Where units of work run. An engine knows nothing of what a unit does."""

from pam_aug.engines.local import Failure, LocalEngine

__all__ = ["Failure", "LocalEngine"]
