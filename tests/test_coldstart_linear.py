"""The closed-form half of the cold-start model: EASE by another way, content for new items, the same in service."""

import numpy as np
import torch
from contracts.cases import queries_of
from contracts.worlds import world

from recsys.models.baselines.neighbourhood import binary_matrix
from recsys.models.coldstart.linear import spectral
from recsys.models.coldstart.model import ColdStart, ColdStartConfig
from recsys.schema import Dense
from recsys.serving.forms import open_form

SMALL = {"width": 9, "hidden": 8, "whiten": 16, "tables": ("text",)}


def untrained(place, **linear) -> ColdStart:
    torch.manual_seed(0)
    model = ColdStart(ColdStartConfig(**SMALL, linear=linear or None))
    model.setup(place.context())
    return model


def test_spectral_vectors_are_ease_where_nothing_was_seen():
    """At full rank, up to a factor of each item: for items outside a user's history, whose diagonal EASE leaves out."""
    log, strength = world("content").split.fit_log(), 3.0
    x = binary_matrix(log).toarray().astype(float)
    known = x.any(axis=0)
    inverse = np.linalg.inv(x.T @ x + strength * np.eye(x.shape[1]))
    weights = np.eye(x.shape[1]) - inverse / np.diag(inverse)
    items = spectral(log, min(x.shape) - 1, strength)
    assert not items[~known].any()
    factor = 1 / (1 - np.square(items).sum(axis=1))
    unseen = (x == 0) & known
    np.testing.assert_allclose((x @ items @ items.T * factor)[unseen], (x @ weights)[unseen], atol=1e-5)
    np.testing.assert_allclose(
        spectral(log, 3, strength), items[:, :3], atol=1e-6
    )  # fewer are the first of more


def test_scores_of_both_halves_are_added():
    place = world("content")
    queries = queries_of(place)
    alone, both = untrained(place), untrained(place, weight=3.0, width=5, regularisation=2.0)
    vectors_IL = both.module.linear.items_IL
    rows, items = queries.history.flat()
    sums_QL = np.zeros((len(queries), 5))
    np.add.at(sums_QL, rows, vectors_IL[items])
    np.testing.assert_allclose(
        both.score(queries), alone.score(queries) + 3.0 * sums_QL @ vectors_IL.T, atol=1e-4
    )
    assert np.ptp(sums_QL @ vectors_IL.T) > 0.1
    assert both.widths == (14,)
    program = open_form(both.serving_form())
    np.testing.assert_allclose(program.score(queries), both.score(queries), atol=1e-5)
    again = ColdStart.from_state(both.config, both.state())
    np.testing.assert_allclose(again.score(queries), both.score(queries), atol=1e-6)


def test_new_items_have_what_their_content_says():
    """Also where the catalogue lists them, and more so for items of few rows."""
    place = world("content")
    counts_I = place.split.fit_log().item_counts()
    text = place.tables["item", "text"]
    model = untrained(place, width=5, regularisation=2.0, content_regularisation=1.0)
    told_ID = model.encode_items({"text": text})
    own_ID = model.item_vectors()
    linear = slice(8, 13)
    cold = counts_I == 0
    assert cold.any() and np.abs(told_ID[cold][:, linear]).max() > 0.05
    np.testing.assert_allclose(own_ID[cold][:, linear], told_ID[cold][:, linear], atol=1e-5)
    far_I = np.linalg.norm(own_ID[:, linear] - told_ID[:, linear], axis=1)[~cold]
    much = untrained(place, width=5, regularisation=2.0, content_regularisation=1.0, half=1e6)
    near_I = np.linalg.norm(much.item_vectors()[:, linear] - told_ID[:, linear], axis=1)[~cold]
    assert near_I.max() < 1e-3 < far_I.max()


def test_an_item_without_content_keeps_its_own_vector():
    place = world("content")
    text = place.tables["item", "text"]
    present_I = text.present_E.copy()
    warm = int(np.argmax(place.split.fit_log().item_counts()))
    present_I[warm] = False
    hidden = Dense(np.where(present_I[:, None], text.values_EF, np.nan).astype(np.float32), present_I)
    model = ColdStart(ColdStartConfig(**SMALL, linear={"width": 5, "regularisation": 2.0}))
    model.setup(place.context(tables=place.tables | {("item", "text"): hidden}))
    own = spectral(place.split.fit_log(), 5, 2.0)[warm]
    assert np.abs(own).max() > 0.05
    np.testing.assert_allclose(model.module.linear.items_IL[warm], own, atol=1e-6)
