"""Graph recommenders: vectors of users and items from several views of them, fused, and a loss of pairs.

A preset says what its `views` are, how it fuses them (`fuse`), and what it learns beside the ranking (`auxiliary`).
Everything else is shared: content maps with missing modalities, smoothing over users and items, the graph of items,
the loss switch, and cold items. Departures common to all presets: features stay frozen and are whitened; neighbours are
found by cosine of centred principal dimensions among the trained items alone, an item not being its own; rows of the
item graph sum to one, rather than being scaled by both ends, since a new item has a row and no column; decay is the
loop's (decoupled).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from recsys.errors import ModelError
from recsys.item_encoding import ItemEncoding, Kind
from recsys.models.base import FitContext
from recsys.models.graph.config import ContentConfig
from recsys.models.graph.content import Content, ContentMaps
from recsys.models.graph.propagation import Edges, row_means
from recsys.models.objective import Columns
from recsys.models.pairs import PairsModel, PairsModule
from recsys.models.vectors import Vectors
from recsys.near import Neighbourhood
from recsys.schema import Dense, Form, Log

_ENCODING = "encoding."
Views = Any
"""What a preset makes of users and items before they are fused; its own affair."""


@dataclass(frozen=True)
class Step:
    """A batch: users and items of its pairs, the columns that its loss scores, and the fused vectors."""

    user_P: torch.Tensor
    item_P: torch.Tensor
    columns: Columns
    users_UD: torch.Tensor
    items_ID: torch.Tensor


class GraphModule(PairsModule):
    """weighted: edges of the item graph, and a new item's neighbours, count by cosine; else all alike."""

    weighted: ClassVar[bool] = True

    def __init__(self, config: ContentConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log)
        self.known = content
        self.content = ContentMaps(
            content, self.content_widths(), config.modality_dropout, config.train_features
        )

    @property
    def ranking_weight(self) -> float:
        return 1.0

    def content_widths(self) -> dict[str, int]:
        """Of what the content maps give."""
        return dict.fromkeys(self.known, self.config.widths[-1])

    def ids(self) -> torch.Tensor:
        """[I, D]; zeros for items without a training row."""
        return self.items * self.trained_I[:, None]

    def views(self) -> Views:
        raise NotImplementedError

    def fuse(self, views: Views) -> tuple[torch.Tensor, torch.Tensor]:
        """[U, D] and [I, D]."""
        raise NotImplementedError

    def auxiliary(self, views: Views, step: Step) -> dict[str, torch.Tensor]:
        """Named losses beside the ranking, weighted."""
        return {}

    def begin(self, epoch: int, rng: np.random.Generator) -> None:
        """What changes from epoch to epoch: of the epoch, the generator and the weights at its first call alone."""

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fuse(self.views())

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        views = self.views()
        users_UD, items_ID = self.fuse(views)
        columns = self.objective.columns(batch["item_P"])
        step = Step(batch["user_P"], batch["item_P"], columns, users_UD, items_ID)
        loss, parts = self.ranking(step, items_ID) if self.ranking_weight else (0.0, {})
        loss = self.ranking_weight * loss
        for name, extra in self.auxiliary(views, step).items():
            loss, parts = loss + extra, parts | {name: extra.item()}
        return loss, parts

    def ranking(self, step: Step, items_ID: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of the batch with these item vectors."""
        rows_N = step.columns.rows_N
        scores = self.objective.scores(step.users_UD[step.user_P], items_ID[rows_N], self.bias()[rows_N])
        return self.objective(scores, step.columns)

    def item_edges(self, name: str) -> Edges:
        """Edges of the item graph by one table, each item's values of sum one."""
        config = self.config
        source_E, target_E, cosine_E = self.known[name].nearest(
            config.neighbours, mutual=config.mutual, in_degree=config.in_degree
        )
        return row_means((source_E, target_E, cosine_E if self.weighted else np.ones_like(cosine_E)))

    def near(self, values_ID: np.ndarray, weights: Mapping[str, float] | None = None) -> Neighbourhood:
        """A new item's neighbours by every table, and what they stand for: their rows of values_ID."""
        weights = weights or dict.fromkeys(self.known, 1.0)
        tables = {name: table.keys(weight=weights[name]) for name, table in self.known.items()}
        trained = next(iter(self.known.values())).trained
        return Neighbourhood(tables, values_ID[trained], self.config.neighbours, self.weighted)

    def encoding(self, items_ID: np.ndarray) -> ItemEncoding:
        """How items that were never trained on get their vectors; items_ID: those of the catalogue.

        Unless a preset has a way of its own: the mean of the trained items whose content is nearest.
        """
        return ItemEncoding("sum", {}, near=(self.near(items_ID),))


def info_nce(a_ND: torch.Tensor, b_ND: torch.Tensor, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log of the softmax of cosine / temperature, each row of a against all of b, mean over the rows named, each once:
    public code takes a row that occurs again in a batch for its own negative."""
    rows = rows.unique()
    a_RD, b_RD = F.normalize(a_ND[rows], dim=1), F.normalize(b_ND[rows], dim=1)
    return F.cross_entropy(a_RD @ b_RD.T / temperature, torch.arange(len(rows), device=rows.device))


ConfigT = TypeVar("ConfigT", bound=ContentConfig)


class GraphRec(PairsModel[ConfigT]):
    """A preset as a model. Items never trained on get vectors from their content, in the catalogue too."""

    Module: ClassVar[type[GraphModule]]
    own: ClassVar[Kind] = "sum"
    """How a new item's own content enters (see `ItemEncoding`)."""
    loaded_encoding: ItemEncoding | None

    @property
    def scores_cold_items(self) -> bool:
        return not self.config.train_features

    def setup(self, ctx: FitContext) -> None:
        counts_I = ctx.train.item_counts()
        tables = {name: ctx.item_table(name) for name in self.config.tables}
        content = {name: Content.of(table, counts_I, self.config.whiten) for name, table in tables.items()}
        self.module = self.Module(self.config, ctx.train, content)
        self.known_U, self.sequences = np.diff(ctx.train.indptr_U1) > 0, ctx.train.sequences
        self.cold = np.flatnonzero(counts_I == 0)
        self.cold_rows = {name: table.take(self.cold) for name, table in tables.items()}
        self.take_pairs(ctx)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        self.module.begin(epoch, np.random.default_rng([self.seed, epoch, 1]))
        yield from super().batches(epoch, rank, world)

    @property
    def fitted(self) -> tuple[Vectors, ItemEncoding | None]:
        return (
            self.once(self._made_of_weights)
            if hasattr(self, "module")
            else (self.loaded, self.loaded_encoding)
        )

    def _made_of_weights(self) -> tuple[Vectors, ItemEncoding | None]:
        found = self.learnt()
        return found, self.module.encoding(found.items_ID) if self.scores_cold_items else None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        users_UD, items_ID = super().arrays()
        if self.scores_cold_items:
            items_ID = items_ID.copy()
            items_ID[self.cold] = self.module.encoding(items_ID).vectors(self.cold_rows)
        return users_UD, items_ID

    @property
    def vectors(self) -> Vectors:
        return self.fitted[0]

    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of unseen items from their content; each row depends on its own content alone.

        Raises ModelError where features were learnt: those of new items never were.
        """
        encoding = self.fitted[1]
        if encoding is None:
            raise ModelError(
                "this model learnt features item by item", fix="fit it with train_features = false"
            )
        return encoding.vectors(feature_rows)

    def serving_form(self) -> Form:
        return replace(super().serving_form(), encoding=self.fitted[1])

    def state(self) -> dict[str, np.ndarray]:
        encoding = self.fitted[1]
        arrays = {} if encoding is None else encoding.arrays()
        return super().state() | {f"{_ENCODING}{name}": value for name, value in arrays.items()}

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> Self:
        model = super().from_state(config, state)
        arrays = {
            name.removeprefix(_ENCODING): value for name, value in state.items() if name.startswith(_ENCODING)
        }
        tables = [name for name in config.tables if f"{name}.map" in arrays]
        model.loaded_encoding = (
            ItemEncoding.of({"kind": cls.own, "tables": tables}, arrays) if arrays else None
        )
        return model
