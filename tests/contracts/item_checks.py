"""Checks of items that fitting never saw."""

import numpy as np
from contracts.cases import Case, queries_of, score_of, state_bytes
from contracts.worlds import world

from recsys.fields import as_vectors
from recsys.schema import Dense


def cold_items_get_finite_scores(case: Case) -> None:
    """Finite always; told apart by their content where the model says that it scores them and a history is there."""
    model, place = case.fitted("content"), world("content")
    cold_I = place.split.fit_log().item_counts() == 0
    assert cold_I.any()
    queries = queries_of(place)
    scores = score_of(model, queries)[:, cold_I]
    assert np.isfinite(scores).all(), "a cold item's score is not finite"
    if case.fresh.scores_cold_items:
        asked = queries.history.lengths > 0
        assert (np.ptp(scores[asked], axis=1) > 0).all(), "all cold items score the same"


def content_that_is_not_asked_for_does_not_matter(case: Case) -> None:
    """Without tables in its settings a model is the same whatever the tables hold."""
    place = world("hidden")
    order = np.random.default_rng(7).permutation(place.split.num_items)
    text = place.tables["item", "text"]
    dealt = place.tables | {("item", "text"): text.take(order)}
    other = case.fit(place.context(tables=dealt))[0]
    assert state_bytes(other) == state_bytes(case.fitted()), "shuffled content reached a model without tables"


def encode_items_is_pure(case: Case) -> None:
    """New items change nothing: neither the state, nor the vectors that exist."""
    model, place = case.fitted(), world("hidden")
    state, vectors_ID = state_bytes(model), model.item_vectors().copy()
    names = [name for name in case.config.tables if ("item", name) in place.tables]
    rows = {name: as_vectors(place.tables["item", name]) for name in names}
    encoded_ND = model.encode_items(rows)
    assert state_bytes(model) == state, "encode_items changed the state"
    np.testing.assert_array_equal(model.item_vectors(), vectors_ID, "existing vectors changed")
    cold_I = place.split.fit_log().item_counts() == 0
    # an item in the catalogue that was never trained on is encoded from its content alone, as a new one is
    np.testing.assert_allclose(encoded_ND[cold_I], vectors_ID[cold_I], atol=1e-6, rtol=0)


def encode_items_one_by_one(case: Case) -> None:
    """Order and batching of new items change nothing."""
    model, table = case.fitted(), world("hidden").tables["item", "text"]

    def encode(rows) -> np.ndarray:
        return model.encode_items({"text": table.take(rows)})

    together = encode(slice(None))
    order = np.random.default_rng(5).permutation(len(together))
    np.testing.assert_allclose(encode(order), together[order], atol=1e-6, rtol=0)
    alone = np.concatenate([encode(slice(row, row + 1)) for row in range(len(together))])
    np.testing.assert_allclose(alone, together, atol=1e-6, rtol=0)


def encode_items_without_content(case: Case) -> None:
    """An absent row uses the missing vector and nothing else; a present one is another."""
    model, table = case.fitted(), world("hidden").tables["item", "text"]
    rows_NF = np.stack([np.full(table.width, np.nan), np.full(table.width, 1e6), np.zeros(table.width)])
    absent = model.encode_items({"text": Dense(rows_NF.astype(np.float32), np.zeros(3, bool))})
    assert np.isfinite(absent).all(), "an absent row gave a vector that is not finite"
    np.testing.assert_array_equal(absent, np.repeat(absent[:1], 3, axis=0))
    zeros = Dense(np.zeros((1, table.width), np.float32), np.ones(1, bool))
    assert not np.allclose(model.encode_items({"text": zeros}), absent[0]), "zeros were taken for absence"
