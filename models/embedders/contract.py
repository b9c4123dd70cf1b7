"""What every item embedder is: content in, vectors out, learnt from pairs of items by the one loop.

A recommender answers queries of users, by index, from arrays in catalogue order. An embedder has neither users nor a
catalogue: it reads texts, is asked for the vectors of items that it never saw, and its result is a feature table that
recommenders take. So it is trained as they are, but has this smaller contract.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from recsys.errors import ModelError
from recsys.models.base import Learner
from recsys.models.embedders.config import PairLossConfig
from recsys.models.embedders.negatives import hard_negatives
from recsys.schema import Dense

if TYPE_CHECKING:
    from recsys.models.notellm2.language import Open

TEXT, IMAGE = "text", "image"
INPUTS = ("both", TEXT, IMAGE)
"""What an embedder may be shown of an item, for telling what it learnt from which."""


@dataclass(frozen=True)
class ItemContent:
    """Raw content of items: texts (None = none), and tables of frozen features by name, in the same order.

    A table counts as picture where its name begins with "image", else as text.
    """

    texts: Sequence[str | None]
    tables: Mapping[str, Dense]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows_R: np.ndarray) -> "ItemContent":
        tables = {name: one.take(rows_R) for name, one in self.tables.items()}
        return ItemContent([self.texts[row] for row in rows_R], tables)

    def table(self, name: str) -> Dense:
        """Raises ModelError for one that is not there."""
        if name not in self.tables:
            raise ModelError(f"no table {name!r}", expected=f"one of: {', '.join(self.tables)}")
        return self.tables[name]

    def only(self, inputs: str) -> "ItemContent":
        """With the other modality absent everywhere; "both" = as it is."""
        if inputs not in INPUTS:
            raise ModelError(f"inputs {inputs!r}", expected=f"one of: {', '.join(INPUTS)}")
        texts = [None] * len(self) if inputs == IMAGE else self.texts
        tables = {
            name: one
            if inputs in ("both", self.modality(name))
            else Dense(one.values_EF, np.zeros(len(self), bool))
            for name, one in self.tables.items()
        }
        return replace(self, texts=texts, tables=tables)

    def shuffled_images(self, seed: int) -> "ItemContent":
        """Every item with another's picture: the control of what pictures are worth."""
        order = np.random.default_rng(seed).permutation(len(self))
        tables = {
            name: one.take(order) if self.modality(name) == IMAGE else one
            for name, one in self.tables.items()
        }
        return replace(self, tables=tables)

    def has(self, modality: str) -> np.ndarray:
        """[n] bool: the items with something of it, a text or a row of one of its tables."""
        found_I = np.array([modality == TEXT and text is not None for text in self.texts], bool)
        for name, one in self.tables.items():
            if self.modality(name) == modality:
                found_I |= one.present_E
        return found_I

    @staticmethod
    def modality(table: str) -> str:
        return IMAGE if table.startswith(IMAGE) else TEXT


@dataclass(frozen=True)
class PairContext:
    """All that an embedder may see of a data set. pairs_P2: int64 rows of `content`, each pair once, of the train part.
    teacher_ID: vectors of the items, for hard negatives and distillation; a row of zeros: it has none. open_language:
    loads the language model, for embedders that read texts. The rest as in FitContext."""

    pairs_P2: np.ndarray
    content: ItemContent
    teacher_ID: np.ndarray | None = None
    open_language: "Open | None" = None
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    validate: Callable[[Any], float] | None = None


ConfigT = TypeVar("ConfigT", bound=PairLossConfig)


class Embedder(Learner, Generic[ConfigT]):
    """Item content to vectors. Subclasses fill in `tables`, `setup` (calling this one's), `rows`, `encode` and the
    state."""

    Config: ClassVar[type[PairLossConfig]]
    version: ClassVar[int] = 1
    """Raised when the same config and state would give other vectors: runs of before are then refused."""
    reads_texts: ClassVar[bool] = False
    """Texts, too, and not tables alone, through a language model that is opened for it."""
    loop: ClassVar[Mapping[str, Any]] = {}
    """Settings of the loop that it learns well with, where a recipe leaves them out."""

    def __init__(self, config: ConfigT):
        self.config = config

    @property
    @abstractmethod
    def tables(self) -> tuple[str, ...]:
        """Feature tables that it reads, by the names that it knows them under."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of what `encode` gives."""
        return ("joint",)

    @property
    def takes_teacher(self) -> bool:
        """It learns from the context's teacher vectors."""
        return self.config.hard_negatives > 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Nested widths of a vector, ascending."""
        return self.config.widths

    def setup(self, ctx: PairContext) -> None:
        """Raises ModelError where there is nothing to learn from, or hard negatives have no teacher."""
        if len(ctx.pairs_P2) < 2:
            raise ModelError(f"{len(ctx.pairs_P2)} pairs to learn from", expected="at least 2")
        if self.config.hard_negatives and ctx.teacher_ID is None:
            raise ModelError(
                "hard_negatives without teacher vectors", fix="give a table of vectors as the teacher"
            )
        self._pairs_P2, self._content, self._seed = ctx.pairs_P2, ctx.content, ctx.seed
        size = len(ctx.content)
        both = np.concatenate([ctx.pairs_P2, ctx.pairs_P2[:, ::-1]]).astype(np.int64)
        self._codes = np.unique(both[:, 0] * size + both[:, 1])
        self._hard_PH = None
        if self.config.hard_negatives:
            self._hard_PH = hard_negatives(ctx.teacher_ID, ctx.pairs_P2, self._codes, self.config)

    def steps_per_epoch(self, world: int = 1) -> int:
        return max(len(self._pairs_P2) // (self._batch_pairs(world) * world), 1)

    def _batch_pairs(self, world: int) -> int:
        return min(self.config.batch_size, len(self._pairs_P2) // world)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Pairs in a new order each epoch; those that do not fill a batch wait for another epoch. Every process has
        the negatives of its own batch."""
        order_P = np.random.default_rng([self._seed, epoch]).permutation(len(self._pairs_P2))
        rng = np.random.default_rng([self._seed, epoch, rank, 1])
        size = self._batch_pairs(world)
        for step in range(self.steps_per_epoch(world)):
            start = (step * world + rank) * size
            yield self._batch(order_P[start : start + size], rng)

    def _batch(self, chosen_B: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        left_B, right_B = self._pairs_P2[chosen_B].T
        further = [] if self._hard_PH is None else [_without_padding(self._hard_PH[chosen_B])]
        items_R = np.concatenate([left_B, right_B, *further])
        return self.training_rows(items_R, rng) | {
            "allied": torch.from_numpy(self.allied(items_R)),
            "pairs": torch.tensor(len(chosen_B)),
            "items": torch.from_numpy(items_R),
        }

    def training_rows(self, items_R: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """`rows` of these items of the context."""
        return self.rows(self._content.take(items_R), rng)

    def allied(self, items_R: np.ndarray) -> np.ndarray:
        """[R, R] bool: the same item, or a pair that is known."""
        codes_RR = items_R[:, None] * len(self._content) + items_R[None]
        at_RR = np.searchsorted(self._codes, codes_RR).clip(max=len(self._codes) - 1)
        return (self._codes[at_RR] == codes_RR) | (items_R[:, None] == items_R[None])

    @abstractmethod
    def rows(self, content: ItemContent, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """Tensors with a row for each item. rng: in training, for what is dropped at random."""

    @abstractmethod
    def encode(self, content: ItemContent, batch_size: int = 64) -> dict[str, np.ndarray]:
        """name of `vectors` -> float32 [n, D], of length 1. Order and batching of the items change nothing to 1e-5."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that was learnt; with the config, and the language model of one that reads texts, it gives the
        embedder back."""

    @classmethod
    @abstractmethod
    def from_state(
        cls, config: ConfigT, state: Mapping[str, np.ndarray], open_language: "Open | None" = None
    ) -> Self:
        """The embedder on the CPU, vectors equal to those before. open_language: as in PairContext, of the very model
        that it was trained with."""


def _without_padding(hard_BH: np.ndarray) -> np.ndarray:
    return np.unique(hard_BH[hard_BH >= 0])


def unit(vectors_ED: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float32."""
    norms_E1 = np.linalg.norm(vectors_ED, axis=1, keepdims=True)
    return (vectors_ED / np.maximum(norms_E1, 1e-12)).astype(np.float32)


def standard(values_EF: np.ndarray, present_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What standardises features: their mean, and one over the standard deviation; 0 where nothing varies."""
    if not present_E.any():
        return np.zeros(values_EF.shape[1], np.float32), np.zeros(values_EF.shape[1], np.float32)
    mean_F, deviation_F = values_EF[present_E].mean(0), values_EF[present_E].std(0)
    scale_F = np.where(deviation_F > 1e-6, 1 / np.maximum(deviation_F, 1e-6), 0)
    return mean_F.astype(np.float32), scale_F.astype(np.float32)
