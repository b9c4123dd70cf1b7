"""Which interactions count: positives, then k-core to a fixed point. Both are part of the split id."""

import re
from typing import Annotated

import polars as pl
from pydantic import Field, field_validator

from recsys import schema
from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import SplitError

_WEIGHT_RULE = re.compile(r"weight\s*>=\s*(-?\d+(?:\.\d+)?)")
_EVENT_RULE = re.compile(r"event in \[(.+)\]")


class Filtering(Config):
    """The rows of a Dataset that a split is made from."""

    positives: str = "all"
    """"all", "weight >= 4", or "event in [purchase, cart]"."""
    min_user: Annotated[int, Field(ge=1)] = 1
    """Fewest rows a user keeps; with min_item applied again and again until nothing changes (k-core)."""
    min_item: Annotated[int, Field(ge=1)] = 1
    """Fewest rows an item keeps."""

    @field_validator("positives")
    @classmethod
    def _readable(cls, rule: str) -> str:
        if rule != "all" and not _WEIGHT_RULE.fullmatch(rule) and not _EVENT_RULE.fullmatch(rule):
            raise ValueError('"all", "weight >= NUMBER" or "event in [NAME, NAME]"')
        return rule


def positive_expr(rule: str) -> pl.Expr:
    """The filter expression of a `positives` rule."""
    if rule == "all":
        return pl.lit(True)
    if match := _WEIGHT_RULE.fullmatch(rule):
        return pl.col(schema.WEIGHT) >= float(match.group(1))
    names = [name.strip().strip("'\"") for name in _EVENT_RULE.fullmatch(rule).group(1).split(",")]
    return pl.col(schema.EVENT).is_in(names)


def k_core(rows: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """Drop sparse users and items until every one left has enough rows."""
    while True:
        kept = rows.filter(
            (pl.len().over(schema.USER) >= min_user) & (pl.len().over(schema.ITEM) >= min_item)
        )
        if len(kept) == len(rows):
            return kept
        rows = kept


def filtered(dataset: Dataset, config: Filtering) -> pl.DataFrame:
    """The rows that count, in source order. Raises SplitError where none is left."""
    rows = dataset.interactions.filter(positive_expr(config.positives)).collect()
    if config.min_user > 1 or config.min_item > 1:
        rows = k_core(rows, config.min_user, config.min_item)
    if rows.is_empty():
        raise SplitError(
            "no interaction is left after filtering",
            where=dataset.path,
            expected=f"rows with positives = {config.positives!r}, {config.min_user}/{config.min_item}-core",
            fix="loosen the filter",
        )
    return rows
