"""Retrieval: coarse to fine over nested widths."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import ModelError
from recsys.schema import Queries
from recsys.serving.forms import open_form
from recsys.serving.retrieval import CoarseToFine, coarse_pool, refined, top

ASKED = Queries.of([[3, 1, 4], [], [7] * 30])


@pytest.fixture(scope="module")
def table():
    """(queries [6, 32], items [500, 32], bias [500]); the early columns carry the most, as in a nested model."""
    rng = np.random.default_rng(0)
    falling = (1 + np.arange(32.0)) ** -0.3
    items_ID = (rng.normal(size=(500, 32)) * falling).astype(np.float32)
    queries_QD = (rng.normal(size=(6, 32)) * falling).astype(np.float32)
    return queries_QD, items_ID, rng.normal(size=500).astype(np.float32) * 0.1


def exact(queries_QD, items_ID, bias, k, scale=1.0):
    scores_QI = scale * (queries_QD @ items_ID.T) + bias
    order = np.argsort(-scores_QI, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores_QI, order, axis=1)


def test_a_pool_of_everything_is_exact(table):
    for pool in (500, 10_000):
        items_QK, scores_QK = top(*table, 20, coarse=8, pool=pool, scales=(1.3, 0.7))
        order, scores = exact(*table, 20, 0.7)
        assert (items_QK == order).all() and scores_QK.dtype == np.float32
        np.testing.assert_allclose(scores_QK, scores, rtol=1e-5, atol=1e-6)


def test_recall_grows_with_the_pool(table):
    order, _ = exact(*table, 10)
    recalls = []
    for pool in (10, 50, 150, 500):
        items_QK, scores_QK = top(*table, 10, coarse=8, pool=pool)
        found = [len(set(a) & set(b)) for a, b in zip(items_QK.tolist(), order.tolist(), strict=True)]
        recalls.append(sum(found) / 60)
        assert (np.diff(scores_QK, axis=1) <= 0).all()
    assert recalls == sorted(recalls) and recalls[0] < 0.8 < recalls[2] and recalls[3] == 1


def test_each_stage_reads_its_own_columns(table):
    """With the others gone the results stay those of all columns."""
    queries_QD, items_ID, bias_I = table
    early_ID, late_QD, late_ID = items_ID.copy(), queries_QD.copy(), items_ID.copy()
    early_ID[:, 8:] = late_QD[:, :8] = late_ID[:, :8] = np.nan
    pool = coarse_pool(queries_QD, early_ID, bias_I[None], coarse=8, size=40)
    best = np.argsort(-(queries_QD[:, :8] @ items_ID[:, :8].T + bias_I), axis=1)[:, :40]
    assert (np.sort(pool.items_QP) == np.sort(best)).all()
    dots_QP = refined(late_QD, late_ID, pool, coarse=8)
    expected = np.einsum("qd,qpd->qp", queries_QD, items_ID[pool.items_QP])
    np.testing.assert_allclose(dots_QP, expected, rtol=1e-5, atol=1e-6)


def test_equal_scores_are_listed_by_index():
    items_QK, _ = top(
        np.ones((1, 4), np.float32), np.ones((9, 4), np.float32), np.zeros(9), 5, coarse=2, pool=9
    )
    assert items_QK.tolist() == [[0, 1, 2, 3, 4]]


def test_items_kept_out_and_wrong_k(table):
    queries_QD, items_ID, bias_I = table
    bias_QI = np.tile(bias_I, (6, 1))
    best = exact(*table, 3)[0]
    np.put_along_axis(bias_QI, best, -np.inf, axis=1)
    items_QK, _ = top(queries_QD, items_ID, bias_QI, 5, coarse=8, pool=500)
    assert (items_QK == exact(queries_QD, items_ID, bias_QI, 5)[0]).all()
    for k in (0, 21):
        with pytest.raises(ModelError, match=f"k = {k}; expected 1 to 20"):
            top(queries_QD, items_ID, bias_I, k, coarse=8, pool=20)


def scaled_and_repeating(form):
    """The form with what a fitted model may have besides: a scale per width, a bias of the own history's items."""
    repeat = np.linspace(1, -1, 8, dtype=np.float32)
    return replace(form, arrays=dict(form.arrays) | {"scales": np.float32([0.5, 1.5, 2.0]), "repeat": repeat})


def test_a_program_coarse_to_fine(cases):
    program = open_form(scaled_and_repeating(cases("fmrlrec").bundle.form))
    whole = CoarseToFine(program, 8, 40)
    assert whole.widths == (32,)
    expected = program.score(ASKED)
    np.testing.assert_allclose(whole.score(ASKED), expected, rtol=1e-5, atol=1e-5)
    candidates = np.array([3, -1, 7])
    np.testing.assert_allclose(
        whole.score(ASKED, candidates), program.score(ASKED, candidates), rtol=1e-5, atol=1e-5
    )
    some = CoarseToFine(program, 8, 12)
    scores, ranked = some.score(ASKED), np.isfinite(some.score(ASKED))
    assert ranked.sum(axis=1).tolist() == [12 + 3, 12, 12 + 1], "the pool, and the history's own items"
    np.testing.assert_allclose(scores[ranked], expected[ranked], rtol=1e-5, atol=1e-5)
    items_QK, scores_QK = whole.top(ASKED, 5)
    for row, history in enumerate(([3, 1, 4], [], [7])):
        expected[row, history] = -np.inf
        assert items_QK[row].tolist() == np.argsort(-expected[row], kind="stable")[:5].tolist()
        np.testing.assert_allclose(scores_QK[row], np.sort(expected[row])[::-1][:5], rtol=1e-5, atol=1e-5)
    for wrong in (32, 9):
        with pytest.raises(ModelError, match=r"expected one of: 8, 16$"):
            CoarseToFine(program, wrong, 12)
