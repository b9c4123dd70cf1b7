"""The relations of the graph around items, from what fitting may see.

Both ends of every edge between items are items of the log: what validation and test add is not in the graph.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys.errors import ModelError
from recsys.fields import Categorical, Fields, MultiValued, as_vectors, node_list
from recsys.graph_config import CoOccurrenceConfig, GraphConfig, NearestConfig, ValuesConfig
from recsys.item_graph import ITEM, ItemGraph, Relation
from recsys.models.graph.knn import neighbours
from recsys.schema import Dense, Log

_BLOCK = 1024


def build_graph(
    config: GraphConfig,
    log: Log,
    tables: Mapping[str, Dense | Fields],
    pairs_3N: np.ndarray | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> ItemGraph:
    """The graph of these settings.

    tables: item tables by name, rows in catalogue order. pairs_3N: int64 rows item, other item, rank from 1; needed
    where config.pairs is set. Raises ModelError for values asked of a table that has no typed fields.
    """
    trained_I = log.item_counts() > 0
    relations: dict[str, Relation] = {}
    if config.knn is not None:
        for name in config.knn.tables:
            relations[f"knn.{name}"] = _nearest(config.knn, as_vectors(tables[name]), trained_I)
    if config.co_occurrence is not None:
        relations["co_occurrence"] = _co_occurrence(config.co_occurrence, log)
    if config.values is not None:
        for name in config.values.tables:
            relations |= _values(config.values, name, tables[name], trained_I, config.seed)
    if config.pairs is not None:
        relations["pairs"] = _pairs(pairs_3N, trained_I, config.pairs.neighbours)
    return ItemGraph(log.num_items, relations, dict(made_of or {}))


def centre(table: Dense, trained_I: np.ndarray) -> np.ndarray:
    """[F] mean row of the trained items that have one: cosines are taken around it, or features that are all positive
    would make everything alike."""
    rows_NF = table.values_EF[trained_I & table.present_E]
    return (
        rows_NF.mean(axis=0, dtype=np.float64).astype(np.float32) if len(rows_NF) else np.zeros(table.width)
    )


def _nearest(config: NearestConfig, table: Dense, trained_I: np.ndarray) -> Relation:
    centred = Dense(table.values_EF - centre(table, trained_I), table.present_E)
    indptr_I1, target_E, cosine_E = neighbours(
        centred,
        np.flatnonzero(trained_I),
        config.neighbours,
        mutual=config.mutual,
        in_degree=config.in_degree,
        exact_up_to=config.exact_up_to,
    )
    source_E = np.repeat(np.arange(len(trained_I)), np.diff(indptr_I1))
    alike_E = cosine_E > 0
    size = len(trained_I)
    return Relation.of_edges(ITEM, size, size, source_E[alike_E], target_E[alike_E], cosine_E[alike_E])


def _co_occurrence(config: CoOccurrenceConfig, log: Log) -> Relation:
    pairs_N2 = np.unique(np.stack([log.user_N, log.item_N], axis=1), axis=0)
    ones_N = np.ones(len(pairs_N2))
    taken_UI = sp.csr_matrix((ones_N, pairs_N2.T), shape=(log.num_users, log.num_items))
    taken_IU = taken_UI.T.tocsr()
    count_I, users = np.diff(taken_IU.indptr), np.count_nonzero(np.diff(taken_UI.indptr))
    edges = []
    for start in range(0, log.num_items, _BLOCK):
        common = (taken_IU[start : start + _BLOCK] @ taken_UI).tocoo()
        source_E, target_E, both_E = common.row.astype(np.int64) + start, common.col, common.data
        weight_E = _weight(config.weight, both_E, count_I[source_E], count_I[target_E], users)
        kept_E = (source_E != target_E) & (both_E >= config.least) & (weight_E > 0)
        edges.append(_first(source_E[kept_E], target_E[kept_E], weight_E[kept_E], config.neighbours))
    source_E, target_E, weight_E = (np.concatenate(part) for part in zip(*edges, strict=True))
    return Relation.of_edges(ITEM, log.num_items, log.num_items, source_E, target_E, weight_E)


def _weight(kind: str, both_E, one_E, other_E, users: int) -> np.ndarray:
    if kind == "cosine":
        return both_E / np.sqrt(one_E * other_E)
    surprise_E = -np.log(both_E / users)
    mutual_E = np.log(both_E * users / (one_E * other_E))
    # what everybody took has no surprise, and tells nothing of anything else
    return np.divide(mutual_E, surprise_E, out=np.zeros_like(mutual_E), where=surprise_E > 0)


def _values(
    config: ValuesConfig, name: str, table: Dense | Fields, trained_I: np.ndarray, seed: int
) -> dict[str, Relation]:
    if not isinstance(table, Fields):
        raise ModelError(
            f"graph.values.tables names {name!r}", expected="a table of typed fields", fix='kind = "metadata"'
        )
    found = {}
    for field_name, field in table.fields.items():
        if isinstance(field, Categorical | MultiValued):
            rows_E, codes_E = node_list(_only(field, trained_I), config.max_degree, seed)
            degree_V = np.bincount(codes_E, minlength=field.size)
            found[f"values.{name}.{field_name}"] = Relation.of_edges(
                f"{name}.{field_name}",
                field.size,
                len(trained_I),
                rows_E,
                codes_E,
                1 / np.log1p(degree_V[codes_E]),
            )
    return found


def _only(field: Categorical | MultiValued, kept_I: np.ndarray) -> Categorical | MultiValued:
    """The field with nothing in the other rows."""
    present_E = field.present_E & kept_I
    if isinstance(field, Categorical):
        return Categorical(np.where(present_E, field.codes_E, 0), present_E, field.size)
    rows, values = field.codes.flat()
    counts = np.bincount(rows[present_E[rows]], minlength=len(present_E))
    return MultiValued(type(field.codes).from_lengths(values[present_E[rows]], counts), present_E, field.size)


def _pairs(pairs_3N: np.ndarray | None, trained_I: np.ndarray, count: int) -> Relation:
    if pairs_3N is None:
        raise ModelError("graph.pairs is set, and the Dataset has no pairs", fix="leave out [graph.pairs]")
    source_N, target_N, rank_N = pairs_3N
    kept_N = trained_I[source_N] & trained_I[target_N] & (source_N != target_N)
    source_E, target_E, weight_E = source_N[kept_N], target_N[kept_N], 1 / np.maximum(rank_N[kept_N], 1)
    # the same pair of several kinds is one edge, of its lowest rank
    order = np.lexsort((-weight_E, target_E, source_E))
    source_E, target_E, weight_E = source_E[order], target_E[order], weight_E[order]
    new_E = np.ones(len(source_E), bool)
    new_E[1:] = (np.diff(source_E) != 0) | (np.diff(target_E) != 0)
    size = len(trained_I)
    return Relation.of_edges(
        ITEM, size, size, *_first(source_E[new_E], target_E[new_E], weight_E[new_E], count)
    )


def _first(
    source_E: np.ndarray, target_E: np.ndarray, weight_E: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` strongest edges of every source; equal ones by lower target."""
    order = np.lexsort((target_E, -weight_E, source_E))
    source_E, target_E, weight_E = source_E[order], target_E[order], weight_E[order]
    place_E = np.arange(len(source_E)) - np.searchsorted(source_E, source_E, side="left")
    kept_E = place_E < count
    return source_E[kept_E], target_E[kept_E], weight_E[kept_E]
