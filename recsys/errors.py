"""Errors a user can cause. Each message is one line: what, where, what was expected, what to do.

The command line prints the message alone and exits with 2; any other exception is a bug (exit 1).
"""

import difflib
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class RecsysError(Exception):
    """A wrong use or bad input, told in one line."""

    def __init__(self, what: str, *, where: object = None, expected: object = None, fix: str | None = None):
        parts = [f"{where}: {what}" if where is not None else what]
        if expected is not None:
            parts.append(f"expected {expected}")
        if fix is not None:
            parts.append(fix)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class DataError(RecsysError):
    """A source or Dataset that cannot be used as it is."""


class SplitError(RecsysError):
    """A split that cannot be made, or is used with other data than it was made from."""


class FeatureError(RecsysError):
    """A feature table that is missing, does not fit, or belongs to another split."""


class ConfigError(RecsysError):
    """A recipe or option with an unknown key or an illegal value."""


class ModelError(RecsysError):
    """A model asked for something it cannot do."""


class TrainingError(RecsysError):
    """Training produced something unusable, e.g. a loss that is not finite."""


class EvaluationError(RecsysError):
    """Rankings, candidates or queries that cannot be evaluated."""


class LeakError(RecsysError):
    """Fitting saw what it must not see."""


class BundleError(RecsysError):
    """A bundle that is damaged, incomplete or from another format version."""


class RequestError(RecsysError):
    """A ranking request that cannot be answered (HTTP 422)."""


class ServingError(RecsysError):
    """A server that cannot start: an address or a state file that cannot be used."""


class LockedError(RecsysError):
    """A folder in use by another run."""


class MissingExtraError(RecsysError):
    """An optional dependency is not installed."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """`did you mean ...` for a mistyped name, or the list of legal names when none is near."""
    legal = sorted(legal)
    close = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(legal)}"


def require(module: str, extra: str, *, purpose: str) -> ModuleType:
    """Import an optional dependency, or say in one line which extra brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the dependency is there but is itself broken: that is not a missing extra
        raise MissingExtraError(
            f"{purpose} needs the package {module.split('.')[0]!r}, which is not installed",
            fix=f"pip install 'recsys[{extra}]'",
        ) from None
