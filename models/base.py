"""The contract of every model: config, fit, score, state, serving form.

Closed-form models implement `fit`. Looped models are trained by `recsys.train.fit`, the one loop: they
implement `setup`, `batches` and `module` instead.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from recsys.config import Config
from recsys.errors import ModelError
from recsys.fields import Fields, as_vectors
from recsys.item_graph import ItemGraph
from recsys.schema import Dense, Form, Log, Queries

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FitContext:
    """All that fitting may see. There is no field for test rows, ids or frames.

    train: the interactions to learn from, as index arrays. tables: (entity, name) -> vectors or typed fields in
    catalogue order. graph: around the items, where the run has one. validate: called by the loop with the model,
    returns the monitored metric (higher is better). folder: where checkpoints lie; None = keep none.
    """

    train: Log
    tables: Mapping[tuple[str, str], Dense | Fields] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    validate: Callable[["Model"], float] | None = None
    graph: ItemGraph | None = None

    @property
    def num_items(self) -> int:
        return self.train.num_items

    @property
    def num_users(self) -> int:
        return self.train.num_users

    def item_table(self, name: str) -> Dense:
        """Vectors of the items; typed fields come as columns. Raises ModelError where the run has no such table."""
        if ("item", name) not in self.tables:
            known = ", ".join(sorted(name for entity, name in self.tables if entity == "item")) or "none"
            raise ModelError(
                f"no item feature table {name!r}", expected=f"one of: {known}", fix="add [features.*]"
            )
        return as_vectors(self.tables["item", name])


ConfigT = TypeVar("ConfigT", bound=Config)
ResultT = TypeVar("ResultT")


class Model(ABC, Generic[ConfigT]):
    """A recommender. Scores are float32, higher is better, comparable within one query only."""

    Config: ClassVar[type[Config]]
    version: ClassVar[int] = 1
    """Raised when the same config and data would give another model: fitted models of before are then redone."""
    looped: ClassVar[bool] = False
    uses_history: ClassVar[bool] = True
    uses_user_fields: ClassVar[bool] = False
    uses_context: ClassVar[bool] = False
    uses_graph: ClassVar[bool] = False
    scores_cold_items: ClassVar[bool] = False
    scores_cold_users: ClassVar[bool] = True

    def __init__(self, config: ConfigT):
        self.config = config

    @property
    def widths(self) -> tuple[int, ...]:
        """Nested widths that `score` takes, ascending; empty where the model has none."""
        return ()

    def fit(self, ctx: FitContext) -> None:
        """Closed-form fitting; looped models are fitted by `recsys.train.fit`."""
        raise ModelError(
            f"{type(self).__name__} is trained by the loop", fix="call recsys.train.fit(model, ctx, config)"
        )

    @abstractmethod
    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        """Scores of the catalogue [Q, I], of the same C candidates [C], or of each query's own [Q, C].

        Candidate -1 is padding and comes back as -inf. Raises ModelError for a width the model lacks.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that fitting found; with the config it gives the model back."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> "Model":
        """The fitted model; scores equal to those of the one that was saved."""

    @abstractmethod
    def serving_form(self) -> Form:
        """The model as arrays and a torch-free program; scores equal to 1e-5."""


class LoopContext(Protocol):
    """What the loop itself reads of a context; a model knows which context it is given, and reads the rest."""

    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def validate(self) -> Callable[[Any], float] | None: ...


class Learner(ABC):
    """What the loop trains by gradient steps. The loop owns optimiser, schedule, validation and checkpoints."""

    module: "torch.nn.Module"
    """`module(batch)` returns (loss, parts): a scalar tensor and a dict of named floats to track."""

    @abstractmethod
    def setup(self, ctx: "LoopContext") -> None:
        """Build `self.module` from the context; called once, after seeding."""

    @abstractmethod
    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, "torch.Tensor"]]:
        """The batches of one epoch for one process, the same number on every rank.

        A function of (seed, epoch, rank, world) alone, so that a resumed run sees the same batches.
        """

    @abstractmethod
    def steps_per_epoch(self, world: int = 1) -> int:
        """Length of `batches`."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups; `lr_scale` of a group multiplies the loop's learning rate.

        By default matrices decay; vectors (norms, biases, scales) and parameters marked `no_decay` do not.
        """
        learnt = [value for value in self.module.parameters() if value.requires_grad]
        decays = [value.ndim >= 2 and not getattr(value, "no_decay", False) for value in learnt]
        decay = [value for value, does in zip(learnt, decays, strict=True) if does]
        rest = [value for value, does in zip(learnt, decays, strict=True) if not does]
        return [{"params": decay}, {"params": rest, "weight_decay": 0.0}]


class LoopedModel(Learner, Model[ConfigT]):
    """A recommender that is trained by the loop."""

    looped = True

    def once(self, make: Callable[[], ResultT]) -> ResultT:
        """What `make` gives for the weights as they are: made again only where a weight has another value.

        Scoring goes batch by batch, and what it reads of the weights is the same for all of them. Values are compared
        rather than torch's counters of writes, which the fused optimiser leaves alone.
        """
        weights = list(self.module.parameters())
        kept, made = getattr(self, "_made", ([], None))
        if len(kept) != len(weights) or not all(
            old.equal(new) for old, new in zip(kept, weights, strict=True)
        ):
            made = make()
            self._made = [value.detach().clone() for value in weights], made
        return made
