"""What a server's latency and capacity are: schedules of arrivals, percentiles, the rate at which it gives way.

Arrivals are open-loop: a request leaves at its scheduled time whatever became of the earlier ones, and its latency
counts from that time. A client that waits for an answer before it sends the next request would stop asking while the
server stalls, and would see one slow answer where users saw many.
"""

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from recsys.errors import ConfigError, ServingError
from recsys.serving.load import LOST, NO_ANSWER, Trace, fire
from recsys.serving.traffic import Traffic

Arrivals = Literal["poisson", "fixed"]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
LOWEST_RATE, MAX_RATE, MAX_REQUESTS = 1.0, 100_000.0, 2_000_000
_HELD_SHARE = 0.95
_PRECISION = 1.1
"""The search ends where the lowest rate that was too high is at most this many times the highest that held."""
_ATTEMPTS = 2
"""A rate is too high once it has failed this often: other work on the machine must not decide."""
WARM_UP = 30
"""Requests that are sent before those that count."""


def arrivals(rate: float, seconds: float, seed: int, kind: Arrivals = "poisson") -> np.ndarray:
    """[N] send times in seconds, ascending from 0 on: N = rate * seconds, so that the rate asked for is the rate sent.

    poisson: a Poisson process given its count, which is N uniform draws, sorted. fixed: equal gaps.
    Raises ConfigError for a rate or length that cannot be measured.
    """
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(f"a rate of {rate:g} requests/s", expected=f"above 0, at most {MAX_RATE:g}")
    if not 0 < seconds <= 86_400:
        raise ConfigError(f"{seconds:g} seconds", expected="above 0, at most a day")
    if kind not in get_args(Arrivals):
        raise ConfigError(f"arrivals {kind!r}", expected=" or ".join(get_args(Arrivals)))
    count = round(rate * seconds)
    if not 1 <= count <= MAX_REQUESTS:
        raise ConfigError(
            f"{rate:g} requests/s for {seconds:g} s are {count:,} requests", expected=f"1 to {MAX_REQUESTS:,}"
        )
    if kind == "fixed":
        return np.arange(count) / rate
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, count))


def percentiles(values: np.ndarray) -> dict[str, float]:
    """QUANTILES by nearest rank: the smallest value that a share q of all values does not exceed."""
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))


@dataclass(frozen=True)
class Result:
    """A measurement. asked, achieved: requests/s, the latter of good answers, until the last one had come.

    latency_ms: percentiles from the scheduled time to the answer; a request without one counts with all the time it was
    waited for. late_ms: percentiles of how late the client itself sent; where they come near the latency, the client
    was the bottleneck. errors: what went wrong -> how often. stages_ms: stage of `timings_ms` -> percentiles.
    """

    asked: float
    achieved: float
    requests: int
    seconds: float
    latency_ms: Mapping[str, float]
    late_ms: Mapping[str, float]
    errors: Mapping[str, int]
    stages_ms: Mapping[str, Mapping[str, float]]

    def holds(self, limit_ms: float) -> bool:
        """The server keeps up: no error, at least 95 % of the rate asked for, p99 within the limit."""
        kept_up = self.achieved >= _HELD_SHARE * self.asked and self.latency_ms["p99"] <= limit_ms
        return kept_up and not self.errors


def summarise(trace: Trace, asked: float, seconds: float) -> Result:
    """The result of a trace whose requests were scheduled over that many seconds."""
    good_N = (trace.status_N >= 200) & (trace.status_N < 300)
    last = float(np.max(trace.done_N, where=~np.isnan(trace.done_N), initial=seconds))
    words = {LOST: "connection lost", NO_ANSWER: "no answer"}
    errors = Counter(words.get(code, f"HTTP {code}") for code in trace.status_N[~good_N].tolist())
    stages: dict[str, list[float]] = {}
    for timings in trace.timings:
        for name, milliseconds in timings.items():
            stages.setdefault(name, []).append(milliseconds)
    return Result(
        asked=asked,
        achieved=int(good_N.sum()) / last,
        requests=len(good_N),
        seconds=seconds,
        latency_ms=percentiles(trace.latency_ms),
        late_ms=percentiles(1000 * (trace.fired_N - trace.scheduled_N)),
        errors=dict(errors),
        stages_ms={name: percentiles(np.array(values)) for name, values in stages.items()},
    )


@dataclass(frozen=True)
class Saturation:
    """rate: the highest asked for that held, in requests/s; 0 where not even the lowest did. steps: every measurement
    in turn. limit_ms: what p99 was allowed."""

    rate: float
    limit_ms: float
    steps: list[Result]


def saturation(
    measure: Callable[[float], Result],
    start: float,
    limit_ms: float,
    bounds: tuple[float, float] = (LOWEST_RATE, MAX_RATE),
) -> Saturation:
    """Double the rate until it no longer holds (or halve it until it does), then bisect by ratio.

    bounds: the lowest and highest rate that are tried, besides start.
    """
    lowest, highest = bounds
    steps: list[Result] = []

    def held(rate: float) -> bool:
        for _ in range(_ATTEMPTS):
            steps.append(measure(rate))
            if steps[-1].holds(limit_ms):
                return True
        return False

    low, high = 0.0, start
    while held(high):
        low = high
        if high >= highest:
            return Saturation(low, limit_ms, steps)
        high = min(2 * high, highest)
    while low == 0:
        if high <= lowest:
            return Saturation(0.0, limit_ms, steps)
        rate = max(high / 2, lowest)
        low, high = (rate, high) if held(rate) else (0.0, rate)
    while high / low > _PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if held(middle) else (low, middle)
    return Saturation(low, limit_ms, steps)


@dataclass(frozen=True)
class Measurement:
    """One way of asking a server; called with a rate it measures, with `trace` it gives what became of every request.

    traffic_of(count) makes at least so many requests. Each measurement begins with WARM_UP requests that do not count.
    """

    url: str
    traffic_of: Callable[[int], Traffic]
    seconds: float
    seed: int = 0
    kind: Arrivals = "poisson"

    @property
    def bounds(self) -> tuple[float, float]:
        """Rates of which that many seconds hold a request at least, and not too many."""
        return max(LOWEST_RATE, 1 / self.seconds), min(MAX_RATE, MAX_REQUESTS / self.seconds)

    def trace(self, rate: float) -> Trace:
        """Raises ServingError where the server cannot be reached or refuses the first request."""
        times_N = arrivals(rate, self.seconds, self.seed, self.kind)
        traffic = self.traffic_of(WARM_UP + len(times_N))
        probe(self.url, traffic)
        # one after the other: it overloads nobody, and lets what an overload has left behind drain
        fire(self.url, traffic, np.zeros(WARM_UP), connections=1, patience=30)
        return fire(self.url, traffic, times_N, first=WARM_UP)

    def __call__(self, rate: float) -> Result:
        return summarise(self.trace(rate), rate, self.seconds)


def probe(url: str, traffic: Traffic) -> None:
    """Send one request; raises ServingError with the server's own words where it is refused."""
    where = url.rstrip("/") + traffic.path
    request = urllib.request.Request(where, traffic.bodies[0], {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return
    except urllib.error.HTTPError as error:
        words = error.read(500).decode(errors="replace")
        raise ServingError(f"refuses a request: {error.code} {words}", where=where) from None
    except OSError as error:
        raise ServingError(f"cannot be reached ({error})", where=where) from None
