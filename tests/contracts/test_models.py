"""Every registered model meets every check, and every check is failed by a model that is broken."""

from collections.abc import Callable

import pytest
from contracts.broken import BROKEN
from contracts.cases import Case, cases
from contracts.table import CHECKS

from recsys.registry import MODELS

Check = Callable[[Case], None]


def test_every_registered_model_has_a_case():
    assert {case.name.partition("[")[0] for case in cases()} == set(MODELS)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_case_claims_something_or_is_the_floor(case: Case):
    assert case.floor != bool(case.claims)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_contract(case: Case, check: Check, record_property):
    record_property("cell", (case.name, check.__name__))
    if reason := CHECKS[check](case):
        pytest.skip(reason)
    check(case)


def test_every_check_has_a_broken_model():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize(
    ("check", "case"),
    [(check, case) for check, found in BROKEN.items() for case in found],
    ids=lambda value: value.name if isinstance(value, Case) else value.__name__,
)
def test_a_broken_model_fails(check: Check, case: Case):
    assert CHECKS[check](case) is None, "the broken model is excused"
    with pytest.raises(AssertionError):
        check(case)
