"""The kNN graph of items against a plain loop over all pairs."""

import numpy as np
import pytest

from recsys import nearest as near_module
from recsys.models.graph.knn import neighbours
from recsys.nearest import nearest
from recsys.schema import Dense


def by_loop(table: Dense, items_N: np.ndarray, k: int, mutual: bool, in_degree: int | None):
    """{source: [(target, cosine), ..]} written as it is said."""
    rows = {
        int(i): table.values_EF[i].astype(np.float64) / np.linalg.norm(table.values_EF[i].astype(np.float64))
        for i in sorted(items_N)
        if table.present_E[i] and table.values_EF[i].any()
    }
    edges = {}
    for i, row in rows.items():
        found = [(-np.float32(np.round(row @ other, 7)), j) for j, other in rows.items() if j != i]
        edges[i] = [(j, -negative) for negative, j in sorted(found)[:k]]
    if mutual:
        there = {(i, j) for i, found in edges.items() for j, _ in found}
        edges = {i: [(j, c) for j, c in found if (j, i) in there] for i, found in edges.items()}
    if in_degree is not None:
        into: dict[int, list] = {}
        for i, found in edges.items():
            for j, cosine in found:
                into.setdefault(j, []).append((-cosine, i))
        kept = {(i, j) for j, found in into.items() for _, i in sorted(found)[:in_degree]}
        edges = {i: [(j, c) for j, c in found if (i, j) in kept] for i, found in edges.items()}
    return edges


@pytest.fixture(scope="module")
def table() -> Dense:
    """60 items: a hub near all, equal rows, a row of zeros, absent rows full of NaN."""
    rng = np.random.default_rng(0)
    values = rng.integers(-2, 3, size=(60, 4)).astype(np.float32)  # small whole numbers: many equal cosines
    values[7] = 0
    values[20] = values[21] = values[22]
    present = rng.random(60) > 0.2
    present[[7, 20, 21, 22]] = True
    values[~present] = np.nan
    return Dense(values, present)


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("in_degree", [None, 1, 3])
@pytest.mark.parametrize("k, block", [(1, 7), (5, 1024), (100, 13)])
def test_edges_are_those_of_the_loop(table, mutual, in_degree, k, block):
    items_N = np.random.default_rng(1).permutation(60)[:50]
    indptr, indices, cosine = neighbours(table, items_N, k, mutual=mutual, in_degree=in_degree, block=block)
    wanted = by_loop(table, items_N, k, mutual, in_degree)
    assert len(indptr) == 61 and indptr[-1] == len(indices) == len(cosine)
    for i in range(60):
        own = slice(indptr[i], indptr[i + 1])
        assert indices[own].tolist() == [j for j, _ in wanted.get(i, [])], f"item {i}"
        np.testing.assert_allclose(cosine[own], [c for _, c in wanted.get(i, [])], atol=1e-6)


def test_absent_and_zero_rows_have_no_edges(table):
    indptr, indices, _ = neighbours(table, np.arange(60), 5, mutual=False, in_degree=None)
    alone = ~table.present_E | (np.arange(60) == 7)
    assert not np.diff(indptr)[alone].any() and not np.isin(indices, np.flatnonzero(alone)).any()


def test_nobody_to_be_near():
    table = Dense(np.full((4, 2), np.nan, np.float32), np.zeros(4, bool))
    indptr, indices, cosine = neighbours(table, np.arange(4), 3, mutual=True, in_degree=2)
    assert indptr.tolist() == [0] * 5 and not len(indices) and not len(cosine)
    places, cosines = nearest(np.ones((2, 3)), np.zeros((0, 3)), 5)
    assert places.shape == cosines.shape == (2, 0)


def test_company_decides_nothing_between_equal_rows():
    rng = np.random.default_rng(2)
    rows = np.repeat(rng.normal(size=(30, 17)).astype(np.float32), 10, axis=0)
    together, _ = nearest(rows, rows, 7)
    alone = np.concatenate([nearest(rows[i : i + 1], rows, 7)[0] for i in range(len(rows))])
    np.testing.assert_array_equal(together, alone)


def test_no_more_than_a_block_of_pairs_is_held(monkeypatch):
    """Whatever the catalogue: the largest matrix has `block` rows."""
    seen, strongest = [], near_module._strongest
    monkeypatch.setattr(
        near_module, "_strongest", lambda scores, k: seen.append(scores.shape) or strongest(scores, k)
    )
    rows = np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32)
    neighbours(Dense(rows, np.ones(100, bool)), np.arange(100), 3, mutual=True, in_degree=2, block=16)
    assert seen == [(16, 100)] * 6 + [(4, 100)]


def test_an_index_finds_the_neighbours_of_many_items():
    """Nearly all of them, with their cosines; none of a row without a direction."""
    pytest.importorskip("faiss", reason="needs the extra ann")
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(20, 8))
    rows = (centres[rng.integers(20, size=3000)] + 0.3 * rng.normal(size=(3000, 8))).astype(np.float32)
    rows[7] = 0
    present = np.arange(3000) != 11
    table, items = Dense(rows, present), np.arange(3000)
    exact = neighbours(table, items, 6, mutual=False, in_degree=None)
    found = neighbours(table, items, 6, mutual=False, in_degree=None, exact_up_to=2000)
    wanted, given = (dict(zip(_pairs(one), one[2], strict=True)) for one in (exact, found))
    shared = wanted.keys() & given.keys()
    assert len(shared) > 0.97 * len(wanted) and len(given) == len(wanted)
    assert max(abs(wanted[pair] - given[pair]) for pair in shared) < 1e-5
    assert not {7, 11} & {end for pair in given for end in pair} and all(i != j for i, j in given)


def _pairs(found):
    indptr, indices, _ = found
    return list(
        zip(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)).tolist(), indices.tolist(), strict=True)
    )
