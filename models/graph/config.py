"""Settings that the graph presets share; each adds its own."""

from typing import Annotated

from pydantic import Field, field_validator

from recsys.models.pairs import PairsConfig
from recsys.models.trunk import Share


class ContentConfig(PairsConfig):
    """Settings of a model of pairs that reads content."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Item feature tables, one modality each."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    modality_dropout: Share = 0.0
    """Share of items whose content in a table is taken for missing in a training step; never all that an item has."""
    train_features: bool = False
    """The features themselves are learnt, as published for most presets; the model then scores no cold items."""
    item_bias: bool = False
    """A learnt popularity bias per item."""

    @field_validator("widths")
    @classmethod
    def _one(cls, widths):
        if len(widths) != 1:
            raise ValueError("one width: vectors made of several views do not nest")
        return widths


class GraphRecConfig(ContentConfig):
    """Settings of a model that smooths over the graph of users and items."""

    layers: Annotated[int, Field(ge=1)] = 2
    """Times that vectors are smoothed over the graph of users and items."""
    neighbours: Annotated[int, Field(ge=1)] = 10
    """Nearest items by content, per table: of a new item, and in the graph of items where there is one."""


class ItemGraphConfig(GraphRecConfig):
    """Settings of a model that has a graph of items whose content is alike, too."""

    mutual: bool = False
    """Keep an edge of the graph of items only where both are among each other's nearest."""
    in_degree: Annotated[int, Field(ge=1)] | None = None
    """Most edges into one item of that graph, the strongest: a guard against hubs; None = any number."""
