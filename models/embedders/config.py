"""How item embedders learn from pairs."""

from typing import Annotated

from pydantic import Field, field_validator

from recsys.config import Config


class PairLossConfig(Config):
    """How embedders learn from pairs of items, whatever they are made of."""

    widths: Annotated[tuple[int, ...], Field(min_length=1)] = (32, 64, 128, 256)
    """Nested widths, ascending: the first so many values of a vector are a vector of their own. The loss is the mean
    over widths, each normalised apart. The paper has 64 alone."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Pairs of a step; the other items of the batch are the negatives."""
    log_scale: float = 3.0
    """Logarithm of what cosines are multiplied by at first; it is learnt, and held below log 100."""
    false_negative_margin: Annotated[float, Field(ge=0)] | None = 0.1
    """A negative whose cosine is above the positive's by more than this is left out; None = none is.
    Items that are paired with each other, and the same item met twice, never are negatives."""
    hard_negatives: Annotated[int, Field(ge=0)] = 0
    """Further negatives of every left item, from the ranks `hard_ranks` of the context's teacher vectors."""
    hard_ranks: tuple[int, int] = (30, 200)
    """First and last rank, from 1, that hard negatives are drawn from."""
    hard_margin: float = 0.05
    """A hard negative's teacher cosine is at most that of the pair plus this (positive-aware)."""

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths):
        if widths[0] < 1 or list(widths) != sorted(set(widths)):
            raise ValueError("positive widths, ascending")
        return widths

    @field_validator("hard_ranks")
    @classmethod
    def _range(cls, ranks):
        if not 1 <= ranks[0] <= ranks[1]:
            raise ValueError("first and last rank, from 1")
        return ranks
