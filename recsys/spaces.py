"""Where `recsys tune` looks: ranges and choices of settings, by registered model, unless a recipe says otherwise."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from recsys.config import Config
from recsys.errors import ConfigError


class Range(Config):
    """From low to high, both included; whole numbers where both are."""

    low: int | float
    """Smallest value."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Even in the logarithm."""

    @model_validator(mode="after")
    def _ordered(self):
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low < high, and above 0 where log = true")
        return self


Choice = Annotated[list[Any], Field(min_length=2)]
Space = Mapping[str, Range | Choice]
_SPACE: TypeAdapter[dict[str, Range | Choice]] = TypeAdapter(dict[str, Range | Choice])

_LOOP = {"train.lr": {"low": 3e-4, "high": 1e-2, "log": True}, "train.weight_decay": [0.0, 0.01, 0.1, 0.3]}
_PAIRS = _LOOP | {
    "widths": [[32], [64], [128]],
    "loss": ["bpr", "sampled"],
    "negatives": [1, 16, 256],
}
_SEQUENCE = _LOOP | {"dropout": {"low": 0.1, "high": 0.6}, "blocks": [1, 2], "batch_size": [32, 64, 128]}
_SPACES: dict[str, Mapping[str, Any]] = {
    "popularity": {"window_days": {"low": 1.0, "high": 730.0, "log": True}},
    "itemknn": {"neighbours": {"low": 10, "high": 1000, "log": True}, "shrink": {"low": 0.0, "high": 200.0}},
    "rp3beta": {
        "alpha": {"low": 0.3, "high": 2.0},
        "beta": {"low": 0.0, "high": 1.2},
        "neighbours": {"low": 10, "high": 1000, "log": True},
    },
    "content_knn": {
        "dims": [32, 64, 128, 256],
        "whiten": [False, True],
        "half_life": {"low": 0.5, "high": 100.0, "log": True},
    },
    "ease": {"regularisation": {"low": 1.0, "high": 5000.0, "log": True}},
    "mf": _PAIRS,
    "lightgcn": _PAIRS | {"layers": [1, 2, 3, 4]},
    "autorec": _LOOP | {"widths": [[64], [128], [256]], "dropout": {"low": 0.0, "high": 0.8}},
    "deepfm": _LOOP | {"width": [8, 16, 32], "dropout": {"low": 0.0, "high": 0.5}, "negatives": [1, 4, 16]},
    "lightgbm": {
        "learning_rate": {"low": 0.02, "high": 0.3, "log": True},
        "leaves": {"low": 7, "high": 127, "log": True},
        "min_leaf": {"low": 5, "high": 500, "log": True},
        "rounds": {"low": 30, "high": 300, "log": True},
    },
    "fmrlrec": _SEQUENCE,
    "mamba4rec": _SEQUENCE,
    "sasrec": _SEQUENCE | {"negatives": [64, 256, 1024]},
    "bert4rec": _SEQUENCE | {"mask_share": {"low": 0.1, "high": 0.7}},
    "gru4rec": _SEQUENCE,
}


def space_of(kind: str, own: Mapping[str, Any] | None, where: str) -> Space:
    """The recipe's own space for a model, or the one that stands here.

    Raises ConfigError for one that cannot be read, or where there is neither.
    """
    found = own or _SPACES.get(kind)
    if not found:
        raise ConfigError(f"no search space for {kind!r}", where=where, fix=f"add one under [tune.{where}]")
    try:
        return _SPACE.validate_python(dict(found))
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        raise ConfigError(
            f"tune.{where}.{key} = {found[key]!r}",
            expected="{ low = .., high = .. }, or a list of two or more values",
        ) from None
