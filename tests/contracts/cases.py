"""One case for every registered model: small settings, what it claims, and the flags that allow a skip."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from contracts.worlds import World, world

from recsys.config import Config, parse
from recsys.models.base import FitContext, Model
from recsys.registry import MODELS, load_class
from recsys.schema import Queries
from recsys.train import Progress, fit
from recsys.train_config import TrainConfig

LONG = 150
"""Events of the longest history that is asked: beyond any window that a case trains with."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model under contract.

    claims: planted kinds (co_occurrence, attributes, order, content) on which it must beat popularity. floor: it is the
    popularity floor itself, so it claims nothing. order_matters: two items that change places change their
    initial weights, so permuted data gives another model. train: the loop's settings for the claims.
    """

    name: str
    model: type[Model]
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    floor: bool = False
    order_matters: bool = False

    @property
    def config(self) -> Config:
        return parse(self.model.Config, self.settings, where=self.name)

    @property
    def fresh(self) -> Model:
        return self.model(self.config)

    @property
    def inductive(self) -> bool:
        return self.fresh.scores_cold_items and hasattr(self.model, "encode_items")

    def fit(self, ctx: FitContext, **train: Any) -> tuple[Model, Progress]:
        """A new model through the loop; two epochs unless `train` says otherwise."""
        model = self.fresh
        return model, fit(model, ctx, TrainConfig(**{"epochs": 2, **train}))

    @cache  # noqa: B019 - cases live as long as the process
    def fitted(self, kind: str = "hidden") -> Model:
        """Two epochs on a world: enough for every check that is not about what was learnt."""
        return self.fit(world(kind).context())[0]

    @cache  # noqa: B019
    def learnt(self, kind: str) -> tuple[Model, Progress]:
        """Fitted with the case's own loop settings."""
        return self.fit(world(kind).context(), **self.train)


def queries_of(place: World) -> Queries:
    """Real test queries, then: nothing known, one event, the same event again and again, a very long history."""
    asked = place.split.queries("test").queries.take(slice(0, 12))
    rng = np.random.default_rng(0)
    rows = [asked.history[row].tolist() for row in range(len(asked))]
    rows += [[], [3], [5] * 7, rng.integers(place.split.num_items, size=LONG).tolist()]
    users = [*asked.user_Q.tolist(), -1, -1, 0, 1]
    return Queries.of(rows, users, at=int(asked.at_Q.max()))


def score_of(model: Model, queries: Queries, **options: Any) -> np.ndarray:
    """Scores as float64 for comparing."""
    return np.asarray(model.score(queries, **options), np.float64)


def saved_and_loaded(case: Case, model: Model) -> Model:
    """The model after its state went through a file."""
    from safetensors.numpy import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: np.ascontiguousarray(value) for name, value in model.state().items()}, path)
        return case.model.from_state(case.config, load_file(path))


def state_bytes(model: Model) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in model.state().items()}


_SMALL = {"widths": [4, 8, 16], "blocks": 1, "window": 20, "dropout": 0.1}
_TINY = {"widths": [16], "blocks": 1, "ffn_multiple": 1, "state": 4, "window": 20, "dropout": 0.1}
_PAIRS = {"widths": [16], "batch_size": 64}
_TOWER = {"width": 16, "hidden": 32, "batch_size": 64, "whiten": 16, "negatives": 40}
_TAUGHT = {"teacher_rounds": 4, "teacher_regularisation": 1.0}
_COLD = {"width": 17, "hidden": 8, "batch_size": 16, "whiten": 16}
_LONGER = {"epochs": 25, "lr": 1e-2}
_GRAPH = {"widths": [16], "batch_size": 256}
_SOON = {"epochs": 15, "lr": 3e-2}
_TAUGHT_CASE = {
    "settings": _TOWER | _TAUGHT,
    "train": _LONGER,
    "claims": ("co_occurrence", "content"),
    "order_matters": True,
}
_DECLARED: dict[str, tuple[dict[str, Any], ...]] = {
    "popularity": (
        {"floor": True},
        {
            "variant": "by segment",
            "settings": {"tables": ["about"]},
            "claims": ("attributes",),
        },
    ),
    "itemknn": ({"claims": ("co_occurrence",)},),
    "rp3beta": ({"claims": ("co_occurrence",)},),
    "content_knn": ({"claims": ("content",)},),
    "ease": ({"claims": ("co_occurrence",), "settings": {"regularisation": 10.0}},),
    "autorec": (
        {
            "settings": {"widths": [8, 16], "batch_size": 8},
            "train": _LONGER,
            "claims": ("co_occurrence",),
            "order_matters": True,
        },
    ),
    "deepfm": (
        {
            "settings": {"tables": ["about", "text"], "width": 8, "hidden": [16], "batch_size": 64},
            "train": _LONGER,
            "claims": ("attributes", "content"),
            "order_matters": True,
        },
        {
            "variant": "ids",
            "settings": {"width": 8, "hidden": [16, 8], "batch_size": 64},
            "train": _LONGER,
            "claims": ("co_occurrence",),
            "order_matters": True,
        },
    ),
    "lightgbm": (
        {
            "settings": {"tables": ["about", "text"], "rounds": 30, "learning_rate": 0.2, "min_leaf": 5},
            "claims": ("attributes", "content"),
            "order_matters": True,
        },
    ),
    "mf": (
        {"settings": _PAIRS, "train": _LONGER, "claims": ("co_occurrence",), "order_matters": True},
        {
            "variant": "sampled",
            "settings": _PAIRS | {"widths": [4, 8], "loss": "sampled", "negatives": 20},
            "train": _LONGER,
            "claims": ("co_occurrence",),
            "order_matters": True,
        },
        {
            "variant": "folded in",
            "settings": _PAIRS | {"fold_in": 1.0},
            "train": _LONGER,
            "claims": ("co_occurrence",),
            "order_matters": True,
        },
    ),
    "lightgcn": (
        {"settings": _PAIRS, "train": _LONGER, "claims": ("co_occurrence",), "order_matters": True},
    ),
    "mmgl": tuple(
        {
            "variant": variant,
            "settings": _GRAPH | {"tables": ["text"], "fanout": 5, "negatives": 20} | own,
            "train": _SOON,
            "claims": claims,
            "order_matters": True,
        }
        for variant, claims, own in (
            (None, ("co_occurrence", "content"), {}),
            (
                "propagated",
                ("co_occurrence", "content"),
                {"head": "propagation", "encoder": "sa_hop", "position": "gnn"},
            ),
            (
                "cached",
                ("content",),
                {"mode": "cached", "refresh": 3, "encoder": "pool", "id_vectors": False},
            ),
        )
    ),
    **{
        name: ({"settings": _GRAPH | own, "train": _SOON, "claims": ("content",), "order_matters": True},)
        for name, own in {
            "vbpr": {},
            "mmgcn": {"layers": 1},
            "lattice": {"mutual": True},
            "freedom": {"edge_share": 0.5, "in_degree": 20},
            "bm3": {},
            "mgcn": {"modality_dropout": 0.2},
            "lgmrec": {},
            "smore": {"layers": 2},
            "pgl": {},
        }.items()
    },
    "dropoutnet": (
        {
            "settings": _TOWER | _TAUGHT | {"tables": ["text", "about"], "batch_size": 32},
            "train": {"epochs": 25, "lr": 1e-2},
            "claims": ("co_occurrence", "content"),
            "order_matters": True,
        },
    ),
    "clcrec": (
        {
            "settings": _TOWER,
            "train": {"epochs": 25, "lr": 1e-2, "weight_decay": 0.3},
            "claims": ("co_occurrence", "content"),
            "order_matters": True,
        },
    ),
    "marec": ({"settings": {"regularisation": 10.0}, "claims": ("co_occurrence", "content")},),
    "heater": (_TAUGHT_CASE,),
    "aldi": (_TAUGHT_CASE,),
    "semco": ({"settings": _TOWER, "train": _LONGER, "claims": ("content",), "order_matters": True},),
    "coldstart": (
        {
            "settings": _COLD | {"tables": ["text", "about"], "linear": {"width": 8}},
            "train": _LONGER,
            "claims": ("attributes", "content"),
            "order_matters": True,
        },
        {
            "variant": "off",
            "settings": _COLD
            | {
                "tables": ["text"],
                "selection": False,
                "fusion": False,
                "contrastive": [],
                "causal": True,
                "context": True,
                "half_life": 3.0,
                "loss": "sampled",
                "negatives": 20,
            },
            "train": _LONGER,
            "claims": ("content",),
            "order_matters": True,
        },
    ),
    "fmrlrec": (
        {
            "settings": _SMALL | {"tables": ["text"]},
            "train": _LONGER,
            "claims": ("order", "content"),
            "order_matters": True,
        },
        {
            "variant": "ids",
            "settings": _SMALL | {"blocks": 2, "ffn_multiple": 2, "item_bias": False},
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
        {
            "variant": "switches",
            "settings": _SMALL
            | {
                "tables": ["text"],
                "norm": "pre",
                "input_norm": False,
                "modality_dropout": 0.2,
                "distil": 0.5,
                "width_weights": "inverse",
                "width_temperature": True,
                "repeat_bias": True,
            },
            "train": _LONGER | {"ema": 0.9},
            "claims": ("order", "content"),
            "order_matters": True,
        },
        {
            "variant": "sampled",
            "settings": _SMALL
            | {"tables": ["text"], "loss": "sampled", "negatives": 20, "repeat_bias": True, "distil": 0.5},
            "train": _LONGER,
            "claims": ("order", "content"),
            "order_matters": True,
        },
        {
            "variant": "in batch",
            "settings": _SMALL | {"loss": "in_batch"},
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
        {
            "variant": "gbce",
            "settings": _SMALL
            | {
                "widths": [16],
                "loss": "gbce",
                "negatives": 20,
                "negative_power": 0.5,
                "id_dropout": 0.0,
                "batch_size": 8,
            },
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
        {
            "variant": "directau",
            "settings": _SMALL | {"loss": "directau", "item_bias": False},
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
    ),
    "mamba4rec": (
        {"settings": _TINY, "train": _LONGER, "claims": ("order",), "order_matters": True},
        {
            "variant": "mamba2",
            "settings": _TINY | {"trunk": "mamba2", "tables": ["text"], "repeat_bias": True},
            "train": _LONGER,
            "claims": ("order", "content"),
            "order_matters": True,
        },
    ),
    "sasrec": (
        {
            "settings": _TINY | {"heads": 2, "negatives": 20},
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
        {
            "variant": "bce",
            "settings": _TINY | {"loss": "bce", "negatives": 1},
            "train": {"epochs": 40, "lr": 1e-2},
            "claims": ("order",),
            "order_matters": True,
        },
        {
            "variant": "as published",
            "settings": _TINY
            | {
                "loss": "bce",
                "negatives": 1,
                "heads": 2,
                "norm": "post",
                "positions": "input",
                "ffn": "gelu",
                "ffn_multiple": 4,
            },
            "train": {"epochs": 40, "lr": 1e-2},
            "claims": ("order",),
            "order_matters": True,
        },
    ),
    "bert4rec": (
        {
            "settings": _TINY | {"heads": 2},
            "train": {"epochs": 120, "lr": 1e-2},  # each epoch asks for a fifth of the items
            "claims": ("order",),
            "order_matters": True,
        },
    ),
    "gru4rec": (
        {"settings": _TINY, "train": _LONGER, "claims": ("order",), "order_matters": True},
        {
            "variant": "bpr",
            "settings": _TINY | {"loss": "bpr", "negatives": 5, "repeat_bias": True},
            "train": _LONGER,
            "claims": ("order",),
            "order_matters": True,
        },
    ),
}
"""Registered name -> its cases; `variant` tells several of one model apart."""


def cases() -> list[Case]:
    """All cases in the registry's order; KeyError for a registered model without one."""
    found = []
    for name in MODELS:
        model = load_class(name, MODELS, Model)
        for declared in _DECLARED[name]:
            declared = dict(declared)
            variant = declared.pop("variant", None)
            found.append(Case(f"{name}[{variant}]" if variant else name, model, **declared))
    return found
