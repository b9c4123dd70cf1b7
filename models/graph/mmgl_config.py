"""Settings of the neighbour encoder as a recommender."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recsys.models.graph.encoder import EncoderConfig
from recsys.models.objective import Loss
from recsys.models.pairs import PairsConfig
from recsys.models.trunk import Share


class MMGLConfig(PairsConfig, EncoderConfig):
    """Settings of the neighbour encoder as a recommender."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Item feature tables, one modality each; relations of the graph that stand on another table are not read."""
    relations: tuple[str, ...] | None = None
    """Relations of the graph that are read, by name; None = all, [] = none: own content alone."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    head: Literal["dot", "propagation"] = "dot"
    """dot: a user's vector meets the item vectors themselves. propagation: both are smoothed over the graph of users
    and items first, as in LightGCN."""
    layers: Annotated[int, Field(ge=1)] = 2
    """propagation: times that vectors are smoothed."""
    users: Literal["learnt", "history"] = "learnt"
    """dot: what a known user asks with. learnt: a vector of its own. history: that, and a learnt multiple of the mean
    vector of the items it took, in training without the one asked for; unknown users then ask as training has seen."""
    user_dropout: Share = 0.5
    """users = "history": share of pairs whose user's own vector is zero in a training step."""
    mode: Literal["full", "sampled", "cached"] = "full"
    """How a step reads neighbours; it encodes the items it scores, all of them where they are propagated. full: the
    strongest of each relation, up to `fanout`. sampled: drawn at random where there are more. cached: as full, with
    their content as it was some steps ago, held constant."""
    refresh: Annotated[int, Field(ge=1)] = 100
    """cached: steps after which the content of all items is encoded anew."""
    id_vectors: bool = True
    """Add a gated vector of its own to each trained item."""
    id_dropout: Share = 0.5
    """Share of items whose own vector is zero in a training step."""
    edge_dropout: Share = 0.4
    """Share of items whose neighbours by users' behaviour (co-occurrence, pairs) are all left out in a training step: a
    new item has none."""
    modality_dropout: Share = 0.2
    """Share of items whose content in a table is taken for missing in a training step; never all that an item has."""
    batch_size: Annotated[int, Field(ge=1)] = 4096
    """Pairs a step."""
    loss: Loss = "sampled"
    """The kind of ranking loss (see `ObjectiveConfig`)."""
    negatives: Annotated[int, Field(ge=1)] = 256
    """sampled, gbce: items drawn a step, the same for all its pairs. bce, bpr: items drawn for each pair."""

    @field_validator("widths")
    @classmethod
    def _one(cls, widths):
        if len(widths) != 1:
            raise ValueError("one width: the vectors are normalised as a whole")
        return widths

    @model_validator(mode="after")
    def _together(self):
        if self.widths[-1] % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide the width {self.widths[-1]}")
        if self.users == "history" and self.head == "propagation":
            raise ValueError('users = "history": propagation makes users of their items already')
        return self
