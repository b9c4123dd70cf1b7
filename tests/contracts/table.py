"""The checks that every model meets, and the declared flag that excuses one."""

from collections.abc import Callable

from contracts import item_checks, learning_checks, score_checks, state_checks
from contracts.cases import Case

Excuse = Callable[[Case], str | None]


def never(case: Case) -> None:
    return None


def closed_form(case: Case) -> str | None:
    return None if case.model.looped else "closed form"


def one_width(case: Case) -> str | None:
    return None if case.fresh.widths else "has one width"


def not_inductive(case: Case) -> str | None:
    return None if case.inductive else "cannot encode new items"


def uses_content(case: Case) -> str | None:
    return "uses content" if getattr(case.config, "tables", ()) else None


def order_matters(case: Case) -> str | None:
    return "initial weights follow the index" if case.order_matters else None


def unclaimed(kind: str) -> Excuse:
    def excuse(case: Case) -> str | None:
        return None if kind in case.claims else "the floor itself" if case.floor else f"claims no {kind}"

    return excuse


CHECKS: dict[Callable[[Case], None], Excuse] = {
    state_checks.config_round_trips: never,
    state_checks.every_field_is_documented: never,
    state_checks.fits_from_context: never,
    state_checks.same_seed_same_state: never,
    state_checks.state_gives_the_model_back: never,
    state_checks.absent_rows_do_not_matter: never,
    state_checks.permuted_items_permute_scores: order_matters,
    score_checks.candidates_are_columns: never,
    score_checks.batching_changes_nothing: never,
    score_checks.unknown_users_are_scored: never,
    score_checks.illegal_widths_are_refused: never,
    score_checks.widths_are_nested: one_width,
    score_checks.serving_form_scores_equal: never,
    score_checks.scores_survive_a_bundle: never,
    item_checks.cold_items_get_finite_scores: never,
    item_checks.content_that_is_not_asked_for_does_not_matter: uses_content,
    item_checks.encode_items_is_pure: not_inductive,
    item_checks.encode_items_one_by_one: not_inductive,
    item_checks.encode_items_without_content: not_inductive,
    learning_checks.loss_falls: closed_form,
    learning_checks.beats_popularity_on_co_occurrence: unclaimed("co_occurrence"),
    learning_checks.beats_popularity_on_attributes: unclaimed("attributes"),
    learning_checks.beats_popularity_on_order: unclaimed("order"),
    learning_checks.beats_popularity_on_cold_content: unclaimed("content"),
    learning_checks.shuffled_labels_teach_nothing: never,
}
