"""Settings of a split, apart from it so that a recipe is read without touching data."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from recsys.filtering import Filtering

Fraction = Annotated[float, Field(gt=0, lt=1)]


class SplitConfig(Filtering):
    """How a Dataset becomes parts. Later parts are never seen by `fit`."""

    method: Literal[
        "leave_last_out", "global_time", "user_ratio", "random", "item_cold", "user_cold", "staged"
    ] = "global_time"
    """leave_last_out: a user's last row is test, the one before valid. global_time: everything after a moment
    (natural cold items and users). user_ratio: the last fractions of each user. random: rows at random.
    item_cold: whole items held out by identity. user_cold: whole users held out, their first `shots` rows given.
    staged: train | ranker | valid | test at three moments, for a ranker on top of generators."""
    cuts: tuple[float | int, ...] = ()
    """Where later parts begin, ascending: shares of rows in (0, 1), or UTC seconds (integers). Two for
    global_time, user_ratio and random (default 0.8, 0.9), three for staged (default 0.7, 0.8, 0.9)."""
    holdout: Fraction = 0.1
    """Share of items (item_cold) or users (user_cold) held out for valid, and as many again for test."""
    warm_holdout: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """item_cold only: share of the remaining rows held out for valid, and as many for test, at random: they
    make the warm pool."""
    shots: Annotated[int, Field(ge=0)] = 3
    """user_cold only: rows of a held-out user that stand in the input history."""
    queries: Literal["user", "event"] = "user"
    """user: one query per user and part. event: one per held-out row (rolling; its history includes
    the user's earlier rows of the same part)."""
    catalogue: Literal["interacted", "listed", "train"] = "interacted"
    """Items that are ranked: interacted = with an interaction after filtering; listed = every row of the items
    table; train = seen in train (a target outside is a miss and is counted)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of random, item_cold and user_cold."""

    @field_validator("cuts")
    @classmethod
    def _ascending(cls, cuts):
        if any(later <= earlier for earlier, later in pairwise(cuts)):
            raise ValueError("cuts ascending")
        return cuts

    @model_validator(mode="after")
    def _count(self):
        wanted = {"global_time": 2, "user_ratio": 2, "random": 2, "staged": 3}.get(self.method, 0)
        if self.cuts and len(self.cuts) != wanted:
            raise ValueError(f"{wanted} cuts for method {self.method}")
        if self.method in ("user_ratio", "random") and any(cut >= 1 for cut in self.cuts):
            raise ValueError("cuts as shares in (0, 1) for this method")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        extra = {"staged": "ranker", "user_cold": "support"}.get(self.method)
        return ("train", extra, "valid", "test") if extra else ("train", "valid", "test")
