"""Settings of the second stage, apart from it so that a recipe is read without LightGBM."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from recsys.config import Config


class RankerConfig(Config):
    """Generators and the trees that rank what they find; learnt on the part `ranker` of a staged split."""

    generators: Annotated[tuple[str, ...], Field(min_length=1)]
    """Models of the recipe that candidates come from, the fits of the first seed."""
    per_generator: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Best unseen items that each generator hands on."""
    queries: Annotated[int, Field(ge=1)] = 20_000
    """Most questions of the ranker part whose candidates are learnt from; of more, so many are drawn."""
    tables: tuple[str, ...] = ()
    """Item feature tables whose likeness to the recent history becomes features."""
    dims: Annotated[int, Field(ge=1)] = 32
    """Most principal dimensions kept of each table."""
    trees: Annotated[int, Field(ge=1)] = 60
    """Boosting rounds."""
    leaves: Annotated[int, Field(ge=2)] = 16
    """Most leaves of a tree."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """What each tree counts."""
    min_leaf: Annotated[int, Field(ge=1)] = 50
    """Least candidates in a leaf."""
    truncation: Annotated[int, Field(ge=1)] = 20
    """Pairs within the best so many of a list make gradients; slightly more than is served."""
    popularity_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of training candidates whose counts are hidden, so that an item without any is not taken for a bad one."""
    impressions: Path | None = None
    """Folder of an exposure log: the lists that were shown during the ranker part are learnt from, in place of lists
    that are made for its questions."""
    attribution_hours: Annotated[float, Field(gt=0)] = 24.0
    """impressions: what somebody takes of a list within so many hours is an answer to it."""
    position_bias: Annotated[float, Field(ge=0)] | None = None
    """impressions: learn what a place in the list does to being taken, apart from the ranking, with this
    regularisation; None = an item that stood high is taken for a better one."""
    judgements: Path | None = None
    """What a prompted model thought of items, as features: FOLDER/judgements/NAME.parquet of an experiment of `recsys
    zeroshot` over the part "ranker" of the same split, with candidates.guaranteed = false."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the trees and of what is hidden."""
    required_lift: float = 0.0
    """The ranker is shipped where the lower bound of its lift in NDCG@10 over the best generator, on the valid part, is
    above this."""

    @model_validator(mode="after")
    def _shown(self):
        if self.position_bias is not None and self.impressions is None:
            raise ValueError("position_bias without impressions: lists that nobody saw have no places")
        return self

    @field_validator("generators", "tables")
    @classmethod
    def _once(cls, names):
        if len(set(names)) != len(names):
            raise ValueError("each name once")
        return names
