"""Every error a user can meet: what happened, where, and what to do; the data behind it as attributes."""

__all__ = [
    "AssetMissing",
    "BackendError",
    "BudgetExceeded",
    "ConfigError",
    "PamAugError",
    "ResumeMismatch",
    "SchemaError",
    "SchemaNewer",
    "SchemaOlder",
    "ShardDamaged",
    "SourceError",
    "StorageError",
    "UnsafeInput",
]


class PamAugError(Exception):
    """Base of all errors raised on purpose. The message says what, where and what to do.

    Keyword arguments become attributes, so that callers need not parse the message. `exit_code` is what the
    command line returns: 2 usage or config, 3 over the failure budget, 4 damaged data.
    """

    exit_code = 2

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.data = data

    def __getattr__(self, name: str) -> object:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)


class ConfigError(PamAugError):
    """A configuration that cannot be run: unknown key, missing value, value out of range."""


class AssetMissing(PamAugError):
    """A file that the user must supply is not there: a model, a mesh, an optional package."""


class ResumeMismatch(PamAugError):
    """An output folder holds a build with a configuration that would give other pixels."""


class SchemaError(PamAugError):
    """Data that does not have the stated form."""

    exit_code = 4


class SchemaNewer(SchemaError):
    """Data of a schema version that a newer library wrote; `found` and `reads` are the two versions."""


class SchemaOlder(SchemaError):
    """Data of a schema version that an older library wrote; `found` and `reads` are the two versions."""


class SourceError(PamAugError):
    """A dataset or rollout file that cannot be read as what it claims to be."""

    exit_code = 4


class ShardDamaged(PamAugError):
    """A shard whose bytes, structure or counts differ from its commit marker."""

    exit_code = 4


class UnsafeInput(PamAugError):
    """Input refused because reading it could run code or exhaust the machine."""

    exit_code = 4


class BackendError(PamAugError):
    """A generator or estimator failed on an input it should have handled."""

    exit_code = 3


class BudgetExceeded(PamAugError):
    """More samples failed than the failure budget allows."""

    exit_code = 3


class StorageError(PamAugError):
    """The output could not be written: disk full, read-only folder, I/O error."""

    exit_code = 3
