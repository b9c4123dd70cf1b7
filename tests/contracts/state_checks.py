"""Checks of configuration, fitting and state. A check raises AssertionError where the contract is broken."""

import json
from dataclasses import replace

import numpy as np
from contracts.cases import Case, queries_of, saved_and_loaded, score_of, state_bytes
from contracts.worlds import world

from recsys.config import parse
from recsys.errors import ConfigError


def config_round_trips(case: Case) -> None:
    config = case.config
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert parse(case.model.Config, stored, where="stored") == config, "another config came back"
    try:
        parse(case.model.Config, stored | {"no_such_key": 1}, where="stored")
    except ConfigError as error:
        assert "no_such_key" in str(error), f"the unknown key is not named: {error}"
    else:
        raise AssertionError("an unknown key was accepted")


def every_field_is_documented(case: Case) -> None:
    for name, field in case.model.Config.model_fields.items():
        assert field.description and field.description.strip(), f"{name} has no description"
        assert not field.is_required(), f"{name} has no default"


def fits_from_context(case: Case) -> None:
    """Index arrays in, a finite state and finite float32 scores out; the input stays as it was."""
    place = world("hidden")
    ctx = place.context()
    before = [
        array.copy() for array in (ctx.train.item_N, ctx.train.user_N, ctx.item_table("text").values_EF)
    ]
    model = case.fit(ctx)[0]
    after = [ctx.train.item_N, ctx.train.user_N, ctx.item_table("text").values_EF]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new, "fitting changed its input")
    for name, value in model.state().items():
        assert isinstance(value, np.ndarray), f"{name} is a {type(value).__name__}, not an array"
        assert value.dtype.kind in "fiub" and np.isfinite(value).all(), f"{name} is not finite"
    queries = queries_of(place)
    scores = model.score(queries)
    assert scores.dtype == np.float32, f"scores are {scores.dtype}"
    assert scores.shape == (len(queries), place.split.num_items), f"scores have shape {scores.shape}"
    assert np.isfinite(scores).all(), "a score of the catalogue is not finite"


def same_seed_same_state(case: Case) -> None:
    again = case.fit(world("hidden").context())[0]
    assert state_bytes(again) == state_bytes(case.fitted()), "the same seed gave another state"


def state_gives_the_model_back(case: Case) -> None:
    model = case.fitted()
    loaded = saved_and_loaded(case, model)
    assert state_bytes(loaded) == state_bytes(model), "the state of the loaded model differs"
    queries = queries_of(world("hidden"))
    for width in model.widths or (None,):
        ours, theirs = (score_of(one, queries, width=width) for one in (model, loaded))
        np.testing.assert_array_equal(ours, theirs, f"scores at width {width}")


def absent_rows_do_not_matter(case: Case) -> None:
    """Whatever bytes stand in an absent row of a table: the same state, the same scores."""
    place = world("hidden")
    table = place.tables["item", "text"]
    assert not table.present_E.all()
    garbage = table.values_EF.copy()
    garbage[~table.present_E] = np.linspace(-1e6, 1e6, garbage[~table.present_E].size).reshape(
        -1, table.width
    )
    filled = place.tables | {("item", "text"): replace(table, values_EF=garbage)}
    other = case.fit(place.context(tables=filled))[0]
    assert state_bytes(other) == state_bytes(case.fitted()), "bytes of an absent row reached the state"
    queries = queries_of(place)
    np.testing.assert_array_equal(score_of(other, queries), score_of(case.fitted(), queries))


def permuted_items_permute_scores(case: Case) -> None:
    """An item's index is a name: other indices, the same scores under them."""
    place = world("hidden")
    new_index_I = np.random.default_rng(1).permutation(place.split.num_items)
    log = place.split.fit_log()
    moved = replace(log, item_N=new_index_I[log.item_N])
    table, old_index_I = place.tables["item", "text"], np.argsort(new_index_I)
    tables = place.tables | {
        ("item", "text"): table.take(old_index_I),
        ("item", "about"): place.tables["item", "about"].take(old_index_I),
    }
    model = case.fit(place.context(log=moved, tables=tables))[0]
    queries = queries_of(place)
    renamed = replace(queries, history=replace(queries.history, values=new_index_I[queries.history.values]))
    ours, theirs = score_of(case.fitted(), queries), score_of(model, renamed)[:, new_index_I]
    # sums are taken in another order, hence not bit for bit
    np.testing.assert_allclose(theirs, ours, atol=1e-6 * max(np.abs(ours).max(), 1), rtol=0)
