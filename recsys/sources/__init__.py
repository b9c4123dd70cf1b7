"""Sources: files of the field's common formats to Datasets."""

from collections.abc import Mapping
from typing import Any

from recsys.config import parse
from recsys.errors import ConfigError, nearest
from recsys.registry import load_class
from recsys.sources.base import Source

SOURCES = {
    "movielens": "recsys.sources.movielens:MovieLens",
    "amazon": "recsys.sources.amazon:Amazon",
    "sequences": "recsys.sources.sequences:Sequences",
    "pairs": "recsys.sources.pairs:Pairs",
    "recbole": "recsys.sources.recbole:RecBole",
    "table": "recsys.sources.tabular:Tabular",
    "dataset": "recsys.sources.prepared:Prepared",
}


def open_source(table: Mapping[str, Any]) -> Source:
    """A source from a recipe's [data] table, e.g. `{kind = "movielens", variant = "100k"}`.

    Raises ConfigError for an unknown kind or key.
    """
    settings = dict(table)
    kind = settings.pop("kind", None)
    if kind not in SOURCES and ":" not in str(kind):
        raise ConfigError(f"data.kind = {kind!r}", fix=nearest(str(kind), SOURCES))
    return parse(load_class(kind, SOURCES, Source), settings, where="data")
