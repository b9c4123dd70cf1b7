"""The graph of items whose content is alike: each item's nearest by cosine, found block by block, or by an index."""

import numpy as np

from recsys.graph_config import EXACT_UP_TO
from recsys.nearest import nearest
from recsys.nearest_index import nearest_by_index
from recsys.schema import Dense


def neighbours(
    table: Dense,
    items_N: np.ndarray,
    k: int,
    *,
    mutual: bool,
    in_degree: int | None,
    block: int = 1024,
    exact_up_to: int = EXACT_UP_TO,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indptr_I1, indices_E, cosine_E): the k nearest of every item among the others, in CSR form over the catalogue.

    Only items of items_N whose row is present, and is not all zeros, have edges or are met by one. An item's own are
    ordered by falling cosine, equal ones by lower index. mutual: keep i -> j only where j -> i is there too. in_degree:
    then, edges kept into one item, the strongest, equal ones by lower source; None = all. exact_up_to: of more items
    than this, neighbours are looked up in an index (see `nearest_by_index`).
    """
    present = np.unique(items_N[table.present_E[items_N]])
    rows_NF = table.values_EF[present]
    if len(present) > exact_up_to:
        places_NK, cosine_NK = nearest_by_index(rows_NF, k)
    else:
        places_NK, cosine_NK = nearest(rows_NF, rows_NF, k, own_Q=np.arange(len(present)), block=block)
    there_NK = places_NK >= 0
    source_E = np.repeat(present, there_NK.sum(axis=1))
    target_E, cosine_E = present[places_NK[there_NK]], cosine_NK[there_NK]
    if mutual:
        size = len(table.present_E)
        keep_E = np.isin(source_E * size + target_E, target_E * size + source_E)
        source_E, target_E, cosine_E = source_E[keep_E], target_E[keep_E], cosine_E[keep_E]
    if in_degree is not None:
        keep_E = _rank_within(target_E, cosine_E, source_E) < in_degree
        source_E, target_E, cosine_E = source_E[keep_E], target_E[keep_E], cosine_E[keep_E]
    indptr_I1 = np.searchsorted(source_E, np.arange(len(table.present_E) + 1))
    return indptr_I1, target_E, cosine_E


def _rank_within(group_E: np.ndarray, value_E: np.ndarray, tie_E: np.ndarray) -> np.ndarray:
    """Place of each edge in its group by falling value, then by lower tie, from 0."""
    order = np.lexsort((tie_E, -value_E, group_E))
    counts = np.bincount(group_E)
    starts = np.cumsum(counts) - counts
    rank_E = np.empty(len(group_E), np.int64)
    rank_E[order] = np.arange(len(group_E)) - starts[group_E[order]]
    return rank_E
