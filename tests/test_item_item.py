"""The item-item program by column: what it says of a few candidates is what it says of them among all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.schema import Form, Queries
from recsys.serving import forms
from recsys.serving.forms import ItemItem


def random_form(rng: np.random.Generator, size: int, share: float) -> tuple[Form, np.ndarray]:
    """(the form, W as a dense matrix)."""
    dense = rng.standard_normal((size, size)).astype(np.float32) * (rng.random((size, size)) < share)
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    arrays = {
        "indptr": indptr,
        "indices": columns.astype(np.int32),
        "data": dense[rows, columns],
        "prior": rng.standard_normal(size).astype(np.float32),
    }
    return Form("item_item", arrays), dense


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.6, 1.0]))
@settings(max_examples=60, deadline=None)
def test_by_row_and_by_column(seed, size, share):
    rng = np.random.default_rng(seed)
    form, dense = random_form(rng, size, share)
    history = rng.integers(size, size=rng.integers(0, 9))
    candidates = rng.permutation(size)[: rng.integers(1, size + 1)]
    slow = [form.arrays["prior"][j] + sum(dense[i, j] for i in set(history.tolist())) for j in range(size)]
    program, asked = ItemItem(form), Queries.of([history])
    np.testing.assert_allclose(program.score(asked)[0], slow, rtol=1e-5, atol=1e-5)
    found = program.score(asked, candidates)
    assert found.dtype == np.float32 and found.shape == (1, len(candidates))
    np.testing.assert_allclose(found[0], np.array(slow)[candidates], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copied, there", [(4_000_000, True), (10, False)])
def test_a_second_copy_only_where_it_is_small(monkeypatch, copied, there):
    monkeypatch.setattr(forms, "_COPIED", copied)
    form, dense = random_form(np.random.default_rng(0), 8, 1.0)
    assert (ItemItem(form)._columns is not None) == there
    np.testing.assert_allclose(
        ItemItem(form).score(Queries.of([[2, 2, 5]]), np.array([1, 7]))[0],
        form.arrays["prior"][[1, 7]] + dense[[2, 5]].sum(axis=0)[[1, 7]],
        rtol=1e-5,
    )


def test_one_item_that_all_speak_to_is_no_reason_to_pad_the_others():
    dense = np.zeros((40, 40), np.float32)
    dense[:, 0] = 1
    arrays = {"indptr": np.arange(41), "indices": np.zeros(40, np.int32), "data": np.ones(40, np.float32)}
    program = ItemItem(Form("item_item", arrays | {"prior": np.zeros(40, np.float32)}))
    assert program._columns is None
    assert program.score(Queries.of([[3, 4]]), np.array([0, 1])).tolist() == [[2, 0]]


def test_padding_among_candidates():
    form, _ = random_form(np.random.default_rng(0), 8, 1.0)
    found = ItemItem(form).score(Queries.of([[2]]), np.array([3, -1]))[0]
    assert found[1] == -np.inf and np.isfinite(found[0])
