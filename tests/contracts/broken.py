"""Models that are wrong in one way each: what the checks are there to catch.

A check that none of these fails would be no check.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from contracts import item_checks, learning_checks, score_checks, state_checks
from contracts.cases import Case
from contracts.worlds import world
from pydantic import ConfigDict

from recsys.models.base import FitContext
from recsys.models.baselines.itemknn import ItemKNN
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.fmrlrec import FMRLRec
from recsys.schema import Dense, Form, Queries, pick


class _Lenient(PopularityConfig):
    model_config = ConfigDict(extra="ignore")


class AcceptsAnyKey(Popularity):
    Config = _Lenient


class _Undocumented(PopularityConfig):
    strength: float = 1.0


class UndocumentedField(Popularity):
    Config = _Undocumented


class DoubleScores(Popularity):
    def score(self, queries, candidates=None, width=None):
        return super().score(queries, candidates, width).astype(np.float64)


class WritesToItsInput(Popularity):
    def fit(self, ctx: FitContext) -> None:
        super().fit(ctx)
        ctx.train.item_N.sort()


class UnseededNoise(Popularity):
    def fit(self, ctx: FitContext) -> None:
        super().fit(ctx)
        self.scores_SI = self.scores_SI + np.random.default_rng().random(self.scores_SI.shape, np.float32)


class ForgetsThePrior(ItemKNN):
    def state(self):
        return super().state() | {"prior": np.zeros_like(self.prior_I)}


class ForgetsTheMask(Popularity):
    """Adds the mean of a table's row, whether the row is there or not."""

    def fit(self, ctx: FitContext) -> None:
        super().fit(ctx)
        self.scores_SI = self.scores_SI + np.nan_to_num(ctx.item_table("text").values_EF).mean(axis=1)


class FavoursLateIndices(Popularity):
    def score(self, queries, candidates=None, width=None):
        size = self.scores_SI.shape[1]
        scores_QI = super().score(queries) + np.linspace(0, 1, size, dtype=np.float32)
        return pick(scores_QI, candidates)


class SortsCandidates(ItemKNN):
    def score(self, queries, candidates=None, width=None):
        return super().score(queries, None if candidates is None else np.sort(candidates), width)


class ScoresPadding(ItemKNN):
    def score(self, queries, candidates=None, width=None):
        scores = super().score(queries, candidates, width)
        return np.where(np.isfinite(scores), scores, 0)


class CentresTheBatch(ItemKNN):
    def score(self, queries, candidates=None, width=None):
        scores_QI = super().score(queries)
        return pick(scores_QI - scores_QI.mean(axis=0), candidates)


class _PerUser(ItemKNN):
    """Adds something of the user's own, found by the user's index."""

    last: float = 1.0

    def score(self, queries, candidates=None, width=None):
        bias_U = np.arange(world("hidden").split.num_users, dtype=np.float32)
        bias_U[-1] = self.last
        scores = super().score(queries, candidates, width)
        return (scores + bias_U[queries.user_Q][:, None]).astype(np.float32)


class TakesNobodyForTheLastUser(_PerUser):
    last = 7.0


class FailsForNobody(_PerUser):
    last = np.nan


class AcceptsAnyWidth(Popularity):
    def score(self, queries, candidates=None, width=None):
        return super().score(queries, candidates)


class IgnoresTheWidth(FMRLRec):
    def score(self, queries, candidates=None, width=None):
        super().score(queries.take(slice(0, 1)), None, width)  # refuses illegal ones
        return super().score(queries, candidates)


class UnnestedVectors(FMRLRec):
    """Normalises over the whole width, so that late values change early ones."""

    def query_vectors(self, queries, width=None):
        vectors_QD = super().query_vectors(queries, width)
        return vectors_QD / np.linalg.norm(vectors_QD, axis=1, keepdims=True)


class FormWithoutPrior(ItemKNN):
    def serving_form(self) -> Form:
        form = super().serving_form()
        return replace(form, arrays=dict(form.arrays) | {"prior": np.zeros_like(self.prior_I)})


class FormWithRoundedVectors(FMRLRec):
    def serving_form(self) -> Form:
        form = super().serving_form()
        return replace(form, item_vectors_ID=form.item_vectors_ID.astype(np.float16).astype(np.float32))


class ScoresTheWindow(FMRLRec):
    """Reads the last events of a history only, while its form reads all."""

    def query_vectors(self, queries: Queries, width=None):
        return super().query_vectors(replace(queries, history=queries.history.tail(20)), width)


class ColdItemsAreNaN(Popularity):
    def score(self, queries, candidates=None, width=None):
        scores_I = np.where(self.scores_SI[0] > 0, self.scores_SI[0], np.nan).astype(np.float32)
        return pick(np.broadcast_to(scores_I, (len(queries), len(scores_I))), candidates)


class ColdItemsAreOne(FMRLRec):
    """Says that it scores cold items, and gives them all the same vector."""

    def item_table(self):
        vectors_ID, bias_I = super().item_table()
        cold_I = self.module.items.trained_I.numpy() == 0
        return np.where(cold_I[:, None], np.float32(0), vectors_ID), np.where(cold_I, np.float32(0), bias_I)


class LearnsFromNewItems(FMRLRec):
    def encode_items(self, feature_rows):
        with torch.no_grad():
            self.module.items.projections["text"].weight.add_(0.01)
        return super().encode_items(feature_rows)


class NormalisesTheBatch(FMRLRec):
    def encode_items(self, feature_rows):
        vectors_ND = super().encode_items(feature_rows)
        return vectors_ND - vectors_ND.mean(axis=0)


class ZeroForAbsent(FMRLRec):
    def encode_items(self, feature_rows):
        filled = {
            name: Dense(np.where(dense.present_E[:, None], dense.values_EF, 0), np.ones_like(dense.present_E))
            for name, dense in feature_rows.items()
        }
        return super().encode_items(filled)


class NeverSteps(FMRLRec):
    """Its weights are out of the optimiser's reach."""

    def param_groups(self):
        return [{"params": [torch.nn.Parameter(torch.zeros(1))]}]


class KnowsTheAnswers(ItemKNN):
    """Whatever it is given to learn from, it looks at the test rows."""

    def fit(self, ctx: FitContext) -> None:
        split = world("order").split
        super().fit(replace(ctx, train=split.fit_log(split.config.parts)))


def _popularity(model: type[Popularity]) -> Case:
    return Case(model.__name__, model, floor=True)


def _itemknn(model: type[ItemKNN]) -> Case:
    return Case(model.__name__, model, claims=("co_occurrence",))


def _fmrlrec(model: type[FMRLRec], *claims: str) -> Case:
    settings = {"widths": [4, 8, 16], "blocks": 1, "tables": ["text"], "window": 20}
    return Case(model.__name__, model, settings, claims=claims or ("order",))


def _pretender(kind: str) -> Case:
    return Case(f"Popularity that claims {kind}", Popularity, claims=(kind,))


BROKEN: dict[Callable[[Case], None], tuple[Case, ...]] = {
    state_checks.config_round_trips: (_popularity(AcceptsAnyKey),),
    state_checks.every_field_is_documented: (_popularity(UndocumentedField),),
    state_checks.fits_from_context: (
        _popularity(DoubleScores),
        _popularity(WritesToItsInput),
        _popularity(ColdItemsAreNaN),
    ),
    state_checks.same_seed_same_state: (_popularity(UnseededNoise),),
    state_checks.state_gives_the_model_back: (_itemknn(ForgetsThePrior),),
    state_checks.absent_rows_do_not_matter: (_popularity(ForgetsTheMask),),
    state_checks.permuted_items_permute_scores: (_popularity(FavoursLateIndices),),
    score_checks.candidates_are_columns: (_itemknn(SortsCandidates), _itemknn(ScoresPadding)),
    score_checks.batching_changes_nothing: (_itemknn(CentresTheBatch),),
    score_checks.unknown_users_are_scored: (_itemknn(TakesNobodyForTheLastUser), _itemknn(FailsForNobody)),
    score_checks.illegal_widths_are_refused: (_popularity(AcceptsAnyWidth),),
    score_checks.widths_are_nested: (_fmrlrec(IgnoresTheWidth), _fmrlrec(UnnestedVectors)),
    score_checks.scores_survive_a_bundle: (_itemknn(FormWithoutPrior),),
    score_checks.serving_form_scores_equal: (
        _itemknn(FormWithoutPrior),
        _fmrlrec(FormWithRoundedVectors),
        _fmrlrec(ScoresTheWindow),
    ),
    item_checks.cold_items_get_finite_scores: (_popularity(ColdItemsAreNaN), _fmrlrec(ColdItemsAreOne)),
    item_checks.content_that_is_not_asked_for_does_not_matter: (_popularity(ForgetsTheMask),),
    item_checks.encode_items_is_pure: (_fmrlrec(LearnsFromNewItems), _fmrlrec(ZeroForAbsent)),
    item_checks.encode_items_one_by_one: (_fmrlrec(NormalisesTheBatch),),
    item_checks.encode_items_without_content: (_fmrlrec(ZeroForAbsent),),
    learning_checks.loss_falls: (_fmrlrec(NeverSteps),),
    learning_checks.beats_popularity_on_co_occurrence: (_pretender("co_occurrence"),),
    learning_checks.beats_popularity_on_attributes: (_pretender("attributes"),),
    learning_checks.beats_popularity_on_order: (_pretender("order"),),
    learning_checks.beats_popularity_on_cold_content: (_pretender("content"),),
    learning_checks.shuffled_labels_teach_nothing: (_itemknn(KnowsTheAnswers),),
}
