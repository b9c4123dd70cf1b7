"""`recsys bench serve`: what counts as latency, when a server gives way, what is sent. The clock is virtual."""

import asyncio
import json
import selectors
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from serving_case import content_of

from recsys.bundle_writing import write_bundle
from recsys.errors import ConfigError, ServingError
from recsys.serving import traffic
from recsys.serving.bench import (
    Measurement,
    Result,
    Saturation,
    arrivals,
    percentiles,
    saturation,
    summarise,
)
from recsys.serving.load import LOST, NO_ANSWER, Load, Trace
from recsys.serving.process import started
from recsys.serving.traffic import draw


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose waiting takes no time and moves its clock."""

    def __init__(self):
        self.clock = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.clock


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop):
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list:
        assert timeout is not None, "nothing will ever happen"
        self.loop.clock += timeout
        return []


def open_loop(times_N: np.ndarray, service: Callable[[int], float]) -> Trace:
    """A server that answers one request after the other, each after `service` seconds of work."""
    loop = VirtualLoop()
    load, free_at = Load(loop, times_N), 0.0

    def send(number: int) -> None:
        nonlocal free_at
        free_at = max(free_at, loop.time()) + service(number)
        loop.call_at(free_at, load.answered, number, 200, b'{"work":%g}' % (1000 * service(number)))

    async def run() -> None:
        load.start(send)
        await load.finished

    loop.run_until_complete(run())
    loop.close()
    return load.trace()


# Latency


def test_a_stall_is_charged_to_everybody_who_waited():
    """100 requests/s of 1 ms each; the 50th stalls for a second."""
    times_N = arrivals(100, 2, 0, "fixed")
    trace = open_loop(times_N, lambda number: 1.0 if number == 50 else 0.001)
    slow = trace.latency_ms > 100
    # whoever came at 0.5 + t waits 1 s less t, and 1 ms for each of those before; the 0.9 s hold 90 of them, and more
    assert 90 <= slow.sum() <= 102
    closed = [
        1.0 if number == 50 else 0.001 for number in range(len(times_N))
    ]  # a client that waits for each answer
    assert sum(seconds > 0.1 for seconds in closed) == 1
    result = summarise(trace, 100, 2)
    assert result.latency_ms["p90"] > 500 and percentiles(1000 * np.array(closed))["p99"] == pytest.approx(1)
    expected, free_at = [], 0.0
    for number, due in enumerate(times_N):
        free_at = max(free_at, due) + (1.0 if number == 50 else 0.001)
        expected.append(1000 * (free_at - due))
    assert trace.latency_ms == pytest.approx(expected, abs=1e-3)


def test_a_known_share_is_slow():
    """Every tenth takes 40 ms, one at a time at 5 requests/s: nobody waits for another."""
    trace = open_loop(arrivals(5, 40, 0, "fixed"), lambda number: 0.040 if number % 10 == 0 else 0.002)
    result = summarise(trace, 5, 40)
    assert result.latency_ms == pytest.approx({"p50": 2, "p90": 2, "p95": 40, "p99": 40, "max": 40}, abs=1e-3)
    assert result.stages_ms["work"]["p95"] == 40
    assert result.late_ms["max"] == pytest.approx(0, abs=1e-3)
    assert (result.requests, result.errors) == (200, {}) and result.achieved == pytest.approx(5)


def test_percentiles_by_nearest_rank():
    values = np.array([5, 1, 4, 2, 3], float)
    assert percentiles(values) == {"p50": 3, "p90": 5, "p95": 5, "p99": 5, "max": 5}
    hundred = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    assert percentiles(hundred) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


def test_what_is_not_answered_counts_with_the_time_it_was_waited_for():
    trace = Trace(
        scheduled_N=np.array([0.0, 1.0, 2.0, 3.0]),
        fired_N=np.array([0.0, 1.0, 2.5, 3.0]),
        done_N=np.array([0.1, 1.2, np.nan, 6.0]),
        status_N=np.array([200, 503, NO_ANSWER, 200]),
        timings=[{"rank": 3.0}, {"rank": 5.0, "other": 1.0}],
        ended=9.0,
    )
    result = summarise(trace, 1.0, 4.0)
    assert trace.latency_ms == pytest.approx([100, 200, 7000, 3000])
    assert result.errors == {"HTTP 503": 1, "no answer": 1}
    assert result.achieved == pytest.approx(2 / 6)  # two good answers, the last after 6 s
    assert result.late_ms["max"] == pytest.approx(500)
    assert result.stages_ms["rank"]["max"] == 5 and result.stages_ms["other"]["p50"] == 1
    lost = summarise(Trace(*(np.zeros(1),) * 2, np.array([np.nan]), np.array([LOST]), [], 1.0), 1, 1)
    assert lost.errors == {"connection lost": 1} and lost.achieved == 0


# Schedules


def test_poisson_arrivals():
    times_N = arrivals(200, 50, seed=3)
    assert np.array_equal(times_N, arrivals(200, 50, seed=3))
    assert not np.array_equal(times_N, arrivals(200, 50, seed=4))
    assert len(times_N) == 10_000 and (np.diff(times_N) >= 0).all() and times_N[0] >= 0 and times_N[-1] < 50
    gaps = np.diff(times_N)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: deviation = mean
    counts = np.histogram(times_N, 500, (0, 50))[0]  # of a tenth of a second each
    assert counts.var() == pytest.approx(counts.mean(), rel=0.2)  # Poisson: variance = mean


def test_fixed_arrivals():
    assert arrivals(4, 1, 0, "fixed").tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e6])
def test_wrong_rates(rate):
    with pytest.raises(ConfigError, match="rate"):
        arrivals(rate, 1, 0)


@pytest.mark.parametrize(("rate", "seconds"), [(1, 0), (1, float("nan")), (0.1, 1), (1e5, 1e4)])
def test_wrong_lengths(rate, seconds):
    with pytest.raises(ConfigError):
        arrivals(rate, seconds, 0)
    with pytest.raises(ConfigError, match="poisson or fixed"):
        arrivals(1, 1, 0, "bursts")


# Saturation


def result(asked: float, achieved: float, p99: float, errors: dict | None = None) -> Result:
    latency = {"p50": p99 / 2, "p90": p99, "p95": p99, "p99": p99, "max": p99}
    return Result(asked, achieved, 100, 1.0, latency, latency, errors or {}, {})


def server_of(capacity: float, measured: list[float]) -> Callable[[float], Result]:
    def measure(rate: float) -> Result:
        measured.append(rate)
        return result(rate, min(rate, capacity), 10.0 if rate <= capacity else 1000.0)

    return measure


@pytest.mark.parametrize("start", [1, 50, 900, 1000, 1001, 30_000])
def test_saturation_finds_the_capacity(start):
    measured: list[float] = []
    found = saturation(server_of(1000, measured), start, limit_ms=100)
    assert 1000 / 1.1 <= found.rate <= 1000
    assert [step.asked for step in found.steps] == measured and found.rate in measured
    assert all(
        measured.count(rate) == (1 if rate <= 1000 else 2) for rate in measured
    )  # a failure is tried again


def test_saturation_doubles_then_bisects():
    measured: list[float] = []
    saturation(server_of(500, measured), 100, limit_ms=100)
    assert measured[:5] == [100, 200, 400, 800, 800]
    assert measured[5] == pytest.approx((400 * 800) ** 0.5)


def test_saturation_at_the_bounds():
    assert saturation(server_of(0.1, []), 64, 100).rate == 0
    assert saturation(server_of(1e9, []), 60_000, 100).rate == 100_000
    assert saturation(server_of(1e9, []), 10, 100, (1, 30)).rate == 30
    assert saturation(server_of(3, []), 10, 100, (5, 30)).rate == 0


def test_one_bad_moment_does_not_decide():
    bad = iter([False, True] + [False] * 100)

    def measure(rate: float) -> Result:
        return result(rate, rate, 1000.0 if rate > 300 or next(bad) else 1.0)

    assert 300 / 1.1 <= saturation(measure, 100, 100).rate <= 300


def test_what_holds():
    assert result(100, 95, 20).holds(20)
    assert not result(100, 94.9, 20).holds(20)
    assert not result(100, 100, 20.1).holds(20)
    assert not result(100, 100, 20, {"HTTP 500": 1}).holds(20)


def test_bounds_of_a_measurement():
    assert Measurement("", draw, 0.25).bounds == (4, 100_000)
    assert Measurement("", draw, 40).bounds == (1, 50_000)


# What is sent


def test_rank_requests(cases):
    case = cases("ease")
    drawn = draw(case.bundle, "rank", 50, candidates=7, seed=1)
    assert drawn == draw(case.bundle, "rank", 50, candidates=7, seed=1)
    assert drawn != draw(case.bundle, "rank", 50, candidates=7, seed=2)
    assert drawn.path == "/v1/rank" and len(drawn.bodies) == 50
    bodies = [json.loads(body) for body in drawn.bodies]
    assert {len(set(body["candidates"])) for body in bodies} == {7}
    assert {item for body in bodies for item in body["candidates"]} == set(case.item_ids)
    assert len({body["user_id"] for body in bodies}) > 20 and {body["user_id"] for body in bodies} <= set(
        case.user_ids
    )


def test_events_are_new_and_typed(text_case):
    first, second = (draw(text_case.bundle, "events", 30, seed=1) for _ in range(2))
    events = [json.loads(body) for body in (*first.bodies, *second.bodies)]
    assert len({event["event_id"] for event in events}) == 60
    assert all(event["user_id"].startswith("u") and len(event["item_id"]) == 4 for event in events)
    assert [event["item_id"] for event in events[:30]] == [event["item_id"] for event in events[30:]]


def test_routes_that_read_send_bodies_again(cases, monkeypatch):
    monkeypatch.setattr(traffic, "_DISTINCT", 5)
    assert len(draw(cases("ease").bundle, "recommend", 30).bodies) == 5
    assert len(draw(cases("ease").bundle, "events", 30).bodies) == 30


def test_a_bundle_without_users(cases, tmp_path):
    case = cases("ease")
    content = content_of("ease", case.model, case.split, case.bundle.items, keep=0)
    bundle = write_bundle(tmp_path / "alone", content)
    asked = json.loads(draw(bundle, "recommend", 1).bodies[0])
    assert set(asked) == {"history", "k"} and set(asked["history"]) <= set(case.item_ids)
    assert isinstance(json.loads(draw(bundle, "events", 1).bodies[0])["user_id"], int)


def test_what_cannot_be_drawn(cases):
    bundle = cases("ease").bundle
    with pytest.raises(ConfigError, match="rank, recommend, events"):
        draw(bundle, "similar", 1)
    with pytest.raises(ConfigError, match="1 to 40"):
        draw(bundle, "rank", 1, candidates=41)


# The command


def test_bench_serve_from_end_to_end(cases, tmp_path, monkeypatch, capsys):
    """The real server, started and measured; the search is replaced by one step of it."""
    from recsys.present import bench

    def one_step(measure, start, limit_ms, bounds):
        assert bounds == (2.5, 100_000)
        return Saturation(2 * start, limit_ms, [measure(2 * start)])

    monkeypatch.setattr(bench, "saturation", one_step)
    asked = bench.Asked("rank", 25, 0.4, "fixed", 5, 0, True, 100)
    bench.serve(cases("fmrlrec").path, asked, None, 1, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "serve.json").read_text())
    assert report["bundle_id"] == cases("fmrlrec").bundle.id
    assert report["result"]["requests"] == 10 and report["result"]["errors"] == {}
    assert report["result"]["stages_ms"] and report["server"]["start_seconds"] > 0
    assert [step["requests"] for step in report["saturation"]["steps"]] == [20]
    for name in ("serve.svg", "saturation.svg"):
        words = (tmp_path / "out" / name).read_text()
        assert ElementTree.fromstring(words).tag == "{http://www.w3.org/2000/svg}svg" and "nan" not in words
    shown = capsys.readouterr().out
    assert "10 requests, no error" in shown and "saturation: 50 requests/s" in shown


def test_a_url_must_serve_this_bundle(cases, tmp_path):
    from recsys.present import bench

    asked = bench.Asked("rank", 25, 0.4, "fixed", 5, 0, False, 100)
    with started(bench.serve_command(cases("ease").path)) as server:
        with pytest.raises(ServingError, match="serves bundle"):
            bench.serve(cases("fmrlrec").path, asked, server.url, 1, None)
        bench.serve(cases("ease").path, asked, server.url + "/", 1, tmp_path)
    assert json.loads((tmp_path / "serve.json").read_text())["server"] is None
    with pytest.raises(ServingError, match="no recsys server is ready"):
        bench.serve(cases("ease").path, asked, server.url, 1, None)
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        bench.serve(cases("ease").path, asked, "localhost:8000", 1, None)


def test_help(recsys):
    code, shown, _ = recsys("bench", "serve", "--help")
    assert code == 0
    for option in (
        "--url",
        "--rate",
        "--seconds",
        "--route",
        "--candidates",
        "--saturation",
        "--seed",
        "--out",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--rate", "0"), "a rate of 0"),
        (("--rate", "-5"), "a rate of -5"),
        (("--rate", "nan"), "a rate of nan"),
        (("--seconds", "0"), "0 seconds"),
        (("--arrivals", "bursts"), "poisson or fixed"),
        (("--route", "similar"), "rank, recommend, events"),
        (("--candidates", "41"), "1 to 40"),
        (("--candidates", "5", "--route", "events"), "--candidates with --route events"),
        (("--workers", "2", "--url", "http://127.0.0.1:1"), "--workers 2"),
        (("--workers", "0"), "--workers 0"),
        (("--limit", "5"), "with --saturation"),
        (("--limit", "0", "--saturation"), "milliseconds above 0"),
        (("--candidates", "5", "--url", "ftp://x"), "http://HOST:PORT"),
    ],
)
def test_wrong_use(refused, cases, arguments, expected):
    small = () if "--candidates" in arguments else ("--candidates", "5")
    given = arguments if "--route" in arguments else (*arguments, *small)
    assert expected in refused("bench", "serve", cases("ease").path, *given)
