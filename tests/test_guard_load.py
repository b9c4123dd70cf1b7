"""The guard when there is more to do than can be done: limits, waiting, deadlines, places that come back."""

import asyncio

import pytest
from asgi import Echo, Exchange, ask, counted, guarded


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_more_than_the_limit_is_refused():
    async def run():
        app = Echo()
        guard = guarded(app, max_in_flight=3, at_once=2)
        app.gate.clear()
        held = [Exchange(guard) for _ in range(3)]
        tasks = [asyncio.create_task(one.run()) for one in held]
        await settled()
        assert len(app.scopes) == 2, "two begun, the third waits"
        extra = await Exchange(guard).run()
        extra.problem(503)
        assert extra.headers["retry-after"] == "1" and extra.taken == 0
        app.gate.set()
        await asyncio.gather(*tasks)
        assert [one.status for one in held] == [200] * 3
        assert (await Exchange(guard).run()).status == 200

    asyncio.run(run())


def test_health_and_metrics_answer_when_it_is_full():
    async def run():
        app = Echo()
        guard = guarded(app, max_in_flight=1)
        app.gate.clear()
        task = asyncio.create_task(Exchange(guard).run())
        await settled()
        app.gate, shut = asyncio.Event(), app.gate
        app.gate.set()
        for path in ("/healthz", "/v2/health/live", "/metrics"):
            assert (await Exchange(guard, path).run()).status == 200
        (await Exchange(guard).run()).problem(503)
        shut.set()
        assert (await task).status == 200

    asyncio.run(run())


def test_places_come_back_after_errors():
    class Broken:
        async def __call__(self, scope, receive, send):
            raise ZeroDivisionError

    guard = guarded(Broken(), max_in_flight=1, at_once=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            ask(guard)
    assert counted(guard) == {("other", "500"): 3}
    assert b"recsys_in_flight 0.0" in guard.metrics.render()[0]


def test_what_waited_too_long_is_not_begun():
    async def run():
        now = [100.0]
        app = Echo()
        guard = guarded(app, at_once=1, deadline_seconds=2.0, clock=lambda: now[0])
        app.gate.clear()
        first, late = Exchange(guard), Exchange(guard)
        tasks = [asyncio.create_task(one.run()) for one in (first, late)]
        await settled()
        now[0] += 2.5
        fresh = Exchange(guard)
        tasks.append(asyncio.create_task(fresh.run()))
        await settled()
        app.gate.set()
        await asyncio.gather(*tasks)
        assert "2 s" in late.problem(503) and late.headers["retry-after"] == "1"
        assert (first.status, fresh.status, len(app.scopes)) == (200, 200, 2)

    asyncio.run(run())


def test_an_application_that_holds_the_loop_does_not_hide_the_queue():
    """Ten requests come together; each takes a second of the loop: those behind are refused, not answered late."""

    async def run():
        now = [0.0]

        async def busy(scope, receive, send):
            now[0] += 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = guarded(busy, max_in_flight=6, deadline_seconds=2.5, clock=lambda: now[0])
        made = [Exchange(guard) for _ in range(10)]
        await asyncio.gather(*(one.run() for one in made))
        return [one.status for one in made]

    # three within 2.5 s, three taken in and too late, four beyond the limit
    assert asyncio.run(run()) == [200] * 3 + [503] * 7


def test_a_clock_that_goes_backwards():
    ticks = iter(range(1000, 0, -7))
    guard = guarded(Echo(), deadline_seconds=0.1, clock=lambda: float(next(ticks)))
    for _ in range(5):
        assert ask(guard).status == 200
    text = guard.metrics.render()[0].decode()
    assert 'recsys_request_seconds_sum{route="other"} 0.0' in text
