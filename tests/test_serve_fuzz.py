"""Requests drawn from the server's own description: whatever is sent, the answer is one that the description has."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.serving import wire
from recsys.serving.api import create_app
from recsys.serving.engine import RankingEngine
from recsys.serving.guard import Guard
from recsys.serving.metrics import Metrics

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
EXAMPLES = 15


@pytest.fixture(scope="module")
def schema(cases) -> Iterator[object]:
    """The description of a server that keeps running, with its guard, in this process."""
    metrics = Metrics()
    app = create_app(RankingEngine(cases("fmrlrec").bundle), metrics=metrics.render)
    guarded = Guard(app, None, wire.MAX_BODY_BYTES, 256, 5.0, metrics)
    with TestClient(guarded):  # runs the application's start and end
        yield schemathesis.openapi.from_asgi("/openapi.json", guarded)


def statuses_of(operation) -> set[int]:
    """Send requests that the description allows, and some that it does not; the statuses of the answers."""
    modes, statuses = schemathesis.GenerationMode, set()
    allowed, others = (
        operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)
    )

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(case=st.one_of(allowed, others))
    def holds(case):
        answer = case.call()
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        if answer.status_code >= 400 and case.method != "HEAD":
            assert answer.headers["content-type"] == ["application/problem+json"], answer.text
            assert answer.json()["status"] == answer.status_code

    holds()
    return statuses


def test_no_request_breaks_the_server(schema):
    """Whatever is sent, a refusal is a problem that says what it is, and never one of ours."""
    seen = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        seen[operation.label] = statuses_of(operation)
    assert {"POST /v1/rank", "POST /v1/events", "DELETE /v1/users/{user_id}"} <= set(seen)
    assert {200, 422} <= set().union(*seen.values())
