"""Checks of scoring: candidates, batches, unknown users, widths, serving form."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from contracts.cases import Case, queries_of, score_of
from contracts.worlds import world
from serving_case import content_of

from recsys.bundle import Bundle
from recsys.bundle_writing import write_bundle
from recsys.errors import ModelError
from recsys.models.base import Model
from recsys.schema import Queries
from recsys.serving.engine import Query, RankingEngine
from recsys.serving.forms import Program, open_form


def candidate_lists(queries: Queries, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """[C] in no order, and [Q, C] with padding at several places."""
    rng = np.random.default_rng(2)
    shared_C = rng.permutation(num_items)[:9]
    own_QC = np.stack([rng.permutation(num_items)[:9] for _ in range(len(queries))])
    own_QC[::2, 4:] = -1
    own_QC[1, 0] = -1
    return shared_C, own_QC


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float, what: str) -> None:
    """Equal where infinite, and within tolerance of the largest score elsewhere."""
    assert ours.shape == theirs.shape, f"{what}: shapes {ours.shape} and {theirs.shape}"
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs), what)
    finite = np.isfinite(ours)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite], what)
    scale = max(np.abs(ours[finite]).max(initial=0), 1.0)
    np.testing.assert_allclose(theirs[finite], ours[finite], atol=tolerance * scale, rtol=0, err_msg=what)


def candidates_are_columns(case: Case) -> None:
    """Scores of candidates are columns of the full scores in the order asked; -1 gives -inf."""
    model, place = case.fitted(), world("hidden")
    queries = queries_of(place)
    shared_C, own_QC = candidate_lists(queries, place.split.num_items)
    for width in model.widths or (None,):
        full_QI = score_of(model, queries, width=width)
        shared = score_of(model, queries, candidates=shared_C, width=width)
        close(full_QI[:, shared_C], shared, 1e-6, f"candidates [C] at width {width}")
        wanted = np.where(own_QC < 0, -np.inf, np.take_along_axis(full_QI, np.maximum(own_QC, 0), axis=1))
        own = score_of(model, queries, candidates=own_QC, width=width)
        close(wanted, own, 1e-6, f"candidates [Q, C] at width {width}")


def batching_changes_nothing(case: Case) -> None:
    """Alone, in another order or together: a query's scores do not depend on its company."""
    model, queries = case.fitted(), queries_of(world("hidden"))
    together = score_of(model, queries)
    alone = np.concatenate([score_of(model, queries.take(slice(q, q + 1))) for q in range(len(queries))])
    close(together, alone, 1e-6, "one query at a time")
    order = np.random.default_rng(3).permutation(len(queries))
    close(together[order], score_of(model, queries.take(order)), 1e-6, "queries in another order")


def unknown_users_are_scored(case: Case) -> None:
    """User -1 is nobody: finite scores, the same whoever is asked beside, and never those of the last user."""
    model, place = case.fitted("order"), world("order")  # here every user has a training row
    queries = queries_of(place)
    unknown = replace(queries, user_Q=np.full(len(queries), -1))
    scores = score_of(model, unknown)
    assert np.isfinite(scores).all(), "an unknown user's score is not finite"
    if not case.fresh.uses_user_fields:
        last = replace(queries, user_Q=np.full(len(queries), place.split.num_users - 1))
        first = replace(queries, user_Q=np.zeros(len(queries), np.int64))
        if not np.array_equal(score_of(model, first), score_of(model, last)):  # users differ: -1 is neither
            assert not np.array_equal(scores, score_of(model, last)), "user -1 was taken for the last user"


def illegal_widths_are_refused(case: Case) -> None:
    model, queries = case.fitted(), queries_of(world("hidden"))
    for scorer in (model, open_form(model.serving_form())):
        assert scorer.widths == model.widths, "the form has other widths"
        for width in (0, max(model.widths, default=16) + 1):
            try:
                scorer.score(queries, width=width)
            except ModelError as error:
                assert str(width) in str(error), f"the width is not named: {error}"
            else:
                raise AssertionError(f"{type(scorer).__name__} accepted width {width}")


def widths_are_nested(case: Case) -> None:
    """Ascending prefixes: the model cut to width m, in vectors and as a form, scores as the full one at m."""
    model, queries = case.fitted(), queries_of(world("hidden"))
    widths = model.widths
    assert list(widths) == sorted(set(widths)), f"widths {widths} do not ascend"
    np.testing.assert_array_equal(score_of(model, queries), score_of(model, queries, width=widths[-1]))
    items_ID, queries_QD = model.item_vectors(), model.query_vectors(queries)
    scale = getattr(model, "scale", lambda width: 1.0)
    bias_QI = score_of(model, queries) - scale(widths[-1]) * (queries_QD @ items_ID.T)
    form = model.serving_form()
    for width in widths:
        np.testing.assert_array_equal(model.item_vectors(width), items_ID[:, :width])
        close(queries_QD[:, :width], model.query_vectors(queries, width), 1e-6, f"vectors at width {width}")
        scores = score_of(model, queries, width=width)
        dots_QI = queries_QD[:, :width] @ items_ID[:, :width].T
        close(scale(width) * dots_QI + bias_QI, scores, 1e-5, f"width {width}")
        cut = replace(
            form,
            item_vectors_ID=form.item_vectors_ID[:, :width].copy(),
            widths=tuple(w for w in widths if w <= width),
        )
        close(scores, score_of(open_form(cut), queries), 1e-5, f"the form cut to width {width}")


def serving_form_scores_equal(case: Case) -> None:
    """Every width, the catalogue and candidate lists, empty and very long histories."""
    model, place = case.fitted(), world("hidden")
    queries = queries_of(place)
    program = open_form(model.serving_form())
    assert program.uses_history == case.fresh.uses_history, "form and model disagree on using histories"
    for candidates in (None, *candidate_lists(queries, place.split.num_items)):
        for width in model.widths or (None,):
            _equal(model, program, queries, candidates, width)


def scores_survive_a_bundle(case: Case) -> None:
    """Written to files, verified, opened: the program scores as the model does, and the engine answers anybody."""
    model, place = case.fitted("order"), world("order")
    queries = queries_of(place)
    items = place.split.item_ids.to_frame("item_id").with_columns(title=pl.lit("a title"))
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "bundle", content_of(case.name, model, place.split, items))
        opened = Bundle.open(bundle.path)
        for width in model.widths or (None,):
            found = np.asarray(opened.scorer().score(queries, None, width), np.float64)
            close(found, score_of(model, queries, width=width), 1e-5, f"from a bundle at width {width}")
        engine = RankingEngine(opened)
        known, item = place.split.user_ids[3], place.split.item_ids[5]
        for query in (Query(user_id=known), Query(user_id=10**9), Query(history=(item,)), Query()):
            assert len(engine.recommend(query, 5).items) == 5, f"no list for {query}"


def _equal(model: Model, program: Program, queries: Queries, candidates, width: int | None) -> None:
    scores = program.score(queries, candidates, width)
    assert scores.dtype == np.float32, f"the form's scores are {scores.dtype}"
    shape = None if candidates is None else np.shape(candidates)
    close(
        score_of(model, queries, candidates=candidates, width=width),
        scores.astype(np.float64),
        1e-5,
        f"form at width {width}, candidates {shape}",
    )
