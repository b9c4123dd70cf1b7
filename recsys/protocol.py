"""The evaluation protocol as a value, and the one grammar of metric keys."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from recsys.config import Config
from recsys.errors import EvaluationError
from recsys.files import digest

Mask = Literal["off", "train", "history", "window"]
Slice = Literal["history", "popularity", "pool", "missing", "count", "both"]


class Protocol(Config):
    """How a part is judged: cut-offs, masking, widths, slices, intervals."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (10, 20)
    """Cut-offs of every metric; the first is the headline."""
    mask: Mask = "history"
    """Items that are not ranked: off = none; train = the user's rows in the fit parts; history = the query's whole
    input history; window = its last `window` items. A query's own target is never masked, but see repeat_targets."""
    window: Annotated[int, Field(ge=1)] = 50
    """Newest history items masked under mask = "window"."""
    more_masks: tuple[Mask, ...] = ()
    """Further masks, each with the full width's metrics under its own key, e.g. test/ndcg_at_10/mask.off."""
    repeat_targets: Literal["keep", "miss"] = "keep"
    """A target that is also masked: keep = ranked all the same; miss = stays masked and counts as a miss."""
    widths: Literal["full", "all"] | tuple[int, ...] = "full"
    """Nested widths that are judged: the full one, all the model has, or these."""
    slices: tuple[Slice, ...] = ("history", "popularity", "pool", "missing")
    """Breakdowns beside the headline. count: by how often training saw the target. both: cold targets of users without
    a history."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the users behind each 95 % interval; 0 = no intervals."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resampling."""

    @field_validator("ks")
    @classmethod
    def _distinct(cls, ks):
        if not ks or len(set(ks)) != len(ks):
            raise ValueError("one or more different cut-offs")
        return ks

    @property
    def id(self) -> str:
        return digest(self.model_dump(mode="json"))


METRICS = ("ndcg", "hr", "recall", "mrr", "map")
LIST_METRICS = ("coverage", "gini", "novelty", "diversity", "cold_share")
_KEY = re.compile(
    r"(?P<part>\w+)/(?P<metric>[a-z_]+)_at_(?P<k>\d+)(?:/n(?P<candidates>\d+))?"
    r"(?:/(?!width\.)(?P<slice>[a-z]+\.[\w\-]+))?(?:/width\.(?P<width>\d+))?"
)


@dataclass(frozen=True)
class Key:
    """A metric key such as `test/ndcg_at_10/pool.cold/width.128`; MLflow accepts every one of them.

    candidates: list length of a sampled protocol (`/n20`), None for the full catalogue.
    """

    part: str
    metric: str
    k: int
    candidates: int | None = None
    slice: str | None = None
    width: int | None = None

    def __str__(self) -> str:
        pieces = [self.part, f"{self.metric}_at_{self.k}"]
        pieces += [f"n{self.candidates}"] if self.candidates is not None else []
        pieces += [self.slice] if self.slice else []
        pieces += [f"width.{self.width}"] if self.width is not None else []
        return "/".join(pieces)

    @classmethod
    def parse(cls, text: str) -> "Key":
        match = _KEY.fullmatch(text)
        if match is None:
            raise EvaluationError(
                f"metric key {text!r}", expected="part/metric_at_k[/nN][/slice.value][/width.m]"
            )
        found = match.groupdict()
        numbers = {
            name: None if found[name] is None else int(found[name]) for name in ("k", "candidates", "width")
        }
        return cls(found["part"], found["metric"], slice=found["slice"], **numbers)


def parse_metric(name: str) -> tuple[str, int]:
    """ "ndcg_at_10" to ("ndcg", 10). Raises EvaluationError for an unknown metric."""
    metric, _, k = name.partition("_at_")
    if metric not in METRICS or not k.isdigit() or int(k) < 1:
        raise EvaluationError(
            f"metric {name!r}", expected=f"{' | '.join(METRICS)} followed by _at_ and a number"
        )
    return metric, int(k)
