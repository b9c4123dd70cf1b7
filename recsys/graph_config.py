"""Settings of the graph around items: which relations it holds."""

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import Config

Count = Annotated[int, Field(ge=1)]
EXACT_UP_TO = 200_000


class NearestConfig(Config):
    """What resembles an item, by the cosine of its row in a feature table, around the mean row of the fitted items; one
    relation a table."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Item feature tables."""
    neighbours: Count = 10
    """Most neighbours of an item."""
    mutual: bool = True
    """Keep a neighbour only where the item is among that one's neighbours too."""
    in_degree: Count | None = 50
    """Most items that one item is a neighbour of, the nearest; None = any number."""
    exact_up_to: Count = EXACT_UP_TO
    """Items up to which all are compared with all; of more, neighbours are looked up in an index (extra `ann`), which
    is made to find at least 98 % of them."""


class CoOccurrenceConfig(Config):
    """What the same users took."""

    neighbours: Count = 10
    """Most neighbours of an item, the strongest."""
    weight: Literal["pmi", "cosine"] = "pmi"
    """pmi: pointwise mutual information over users, scaled to at most 1 (divided by -log of the joint share). cosine:
    of the columns of the user-item matrix."""
    least: Count = 2
    """Least users in common."""


class ValuesConfig(Config):
    """The values of an item's typed fields as nodes; one relation a field, weighted by 1 / log(1 + items that have the
    value)."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("metadata",)
    """Item tables of typed fields; numeric fields make no nodes."""
    max_degree: Count = 1000
    """Most edges kept of one value, drawn at random."""


class PairsConfig(Config):
    """Pairs of items that the Dataset gives, weighted by 1 / rank."""

    kinds: tuple[str, ...] = ()
    """Kinds of pairs; none = all."""
    neighbours: Count = 10
    """Most neighbours of an item, those of lowest rank."""


class GraphConfig(Config):
    """The graph around items, made of what the fitted parts hold; a relation without settings is not made."""

    knn: NearestConfig | None = None
    """Relations knn.TABLE."""
    co_occurrence: CoOccurrenceConfig | None = None
    """Relation co_occurrence."""
    values: ValuesConfig | None = None
    """Relations values.TABLE.FIELD."""
    pairs: PairsConfig | None = None
    """Relation pairs."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw among the edges of a value."""

    @property
    def tables(self) -> tuple[str, ...]:
        """All feature tables it reads."""
        parts = (part.tables for part in (self.knn, self.values) if part is not None)
        return tuple(dict.fromkeys(name for tables in parts for name in tables))
