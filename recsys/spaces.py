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
_CONTENT = _PAIRS | {"widths": [[64], [128]], "modality_dropout": [0.0, 0.2]}
_GRAPH = _CONTENT | {"layers": [1, 2, 3], "neighbours": [5, 10, 20]}
_FROZEN = _GRAPH | {"edge_share": [0.2, 0.5, 1.0], "mutual": [False, True]}
_CONTRAST = {"low": 1e-3, "high": 0.3, "log": True}
_SEQUENCE = _LOOP | {"dropout": {"low": 0.1, "high": 0.6}, "blocks": [1, 2], "batch_size": [32, 64, 128]}
_COLD_TOWER = _LOOP | {"hidden": [128, 256], "whiten": [64, 128, 256], "negatives": [256, 1024]}
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
    "mmgl": _LOOP
    | {
        "widths": [[64], [128]],
        "loss": ["bpr", "sampled"],
        "negatives": [16, 256],
        "head": ["dot", "propagation"],
        "encoder": ["pool", "ca"],
        "id_dropout": {"low": 0.0, "high": 0.7},
    },
    "vbpr": _CONTENT,
    "mmgcn": _GRAPH,
    "lattice": _GRAPH | {"raw_share": {"low": 0.5, "high": 1.0}, "mutual": [False, True]},
    "freedom": _FROZEN | {"content_weight": {"low": 1e-4, "high": 0.3, "log": True}},
    "bm3": _LOOP
    | {
        "widths": [[64], [128]],
        "layers": [1, 2, 3],
        "neighbours": [5, 10, 20],
        "dropout": [0.1, 0.3, 0.5],
        "content_weight": [0.5, 1.0, 2.0, 4.0],
        "modality_dropout": [0.0, 0.2],
    },
    "mgcn": _GRAPH | {"contrast_weight": _CONTRAST, "mutual": [False, True]},
    "lgmrec": _GRAPH
    | {
        "hyperedges": [4, 16, 64],
        "hyper_layers": [1, 2],
        "hyper_weight": {"low": 0.1, "high": 1.0},
        "dropout": [0.2, 0.5, 0.8],
    },
    "smore": _GRAPH | {"contrast_weight": _CONTRAST, "dropout": [0.0, 0.1, 0.3], "mutual": [False, True]},
    "pgl": _FROZEN | {"contrast_weight": _CONTRAST, "dropout": [0.05, 0.1, 0.2]},
    "autorec": _LOOP | {"widths": [[64], [128], [256]], "dropout": {"low": 0.0, "high": 0.8}},
    "deepfm": _LOOP | {"width": [8, 16, 32], "dropout": {"low": 0.0, "high": 0.5}, "negatives": [1, 4, 16]},
    "lightgbm": {
        "learning_rate": {"low": 0.02, "high": 0.3, "log": True},
        "leaves": {"low": 7, "high": 127, "log": True},
        "min_leaf": {"low": 5, "high": 500, "log": True},
        "rounds": {"low": 30, "high": 300, "log": True},
    },
    **{name: _COLD_TOWER for name in ("clcrec", "dropoutnet", "heater", "aldi", "semco")},
    "marec": {
        "regularisation": {"low": 1.0, "high": 5000.0, "log": True},
        "alignment": {"low": 0.03, "high": 30.0, "log": True},
        "sharpness": {"low": 1.0, "high": 12.0},
    },
    "coldstart": _LOOP
    | {
        "contrast_weight": [0.0, 0.05, 0.1, 0.3, 1.0],
        "temperature": [0.05, 0.1, 0.2, 0.5],
        "modality_dropout": {"low": 0.1, "high": 0.5},
        "id_dropout": {"low": 0.1, "high": 0.6},
        "dropout": {"low": 0.0, "high": 0.5},
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
