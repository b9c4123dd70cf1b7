"""What the server counts, for Prometheus: in one process, or added up over processes that share a folder."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recsys.errors import ServingError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder which processes share; set before prometheus_client is loaded."""
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CANDIDATES = (1, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_INFO = "recsys_bundle_info"


class Metrics:
    """The server's metrics in a registry of their own. Safe to call from several threads; make it after forking.

    Every label has few values: give routes as templates (/v1/items/{item_id}/similar), never as paths.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        """Raises ServingError where prometheus_client was loaded before the shared folder was named: it would then
        count for this process alone."""
        # not with the module: the library looks at the environment once, when it is loaded
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

        self._shared = os.environ.get(FOLDER)
        if self._shared and not values.ValueClass._multiprocess:
            raise ServingError(f"{FOLDER} was set after prometheus_client was loaded", where=self._shared)
        self._clock = clock
        self._registry = own = CollectorRegistry()
        self._children: dict[tuple, Any] = {}
        self._served: tuple[str, str, float] | None = None
        self._requests = Counter("recsys_requests", "Answers.", ("route", "status", "fallback"), registry=own)
        self._request_seconds = Histogram(
            "recsys_request_seconds", "From a request's headers to its answer.", ("route",), buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "recsys_stage_seconds", "Within an answer.", ("route", "stage"), buckets=_SECONDS, registry=own
        )
        self._candidates = Histogram(
            "recsys_candidates", "Items ranked for an answer.", buckets=_CANDIDATES, registry=own
        )
        self._empty = Counter("recsys_empty", "Ranked lists without an item.", registry=own)
        self._cold = Counter("recsys_cold_items", "Items answered that nobody had taken.", registry=own)
        self._events = Counter("recsys_events", "Events, by whether they were new.", ("kept",), registry=own)
        self._swaps = Counter("recsys_swaps", "Changes of the bundle.", ("result",), registry=own)
        self._in_flight = Gauge(
            "recsys_in_flight", "Requests not answered yet.", registry=own, multiprocess_mode="livesum"
        )
        self._info = Gauge(
            _INFO, "1 for the bundle that answers.", ("bundle_id", "model"), registry=own,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self._age = Gauge(
            "recsys_bundle_age_seconds", "Since the last event that the bundle was made from.", registry=own,
            multiprocess_mode="mostrecent",
        )  # fmt: skip

    def observe(
        self,
        route: str,
        status: int,
        seconds: float,
        *,
        fallback: str | None = None,
        timings: Mapping[str, float] | None = None,
        candidates: int | None = None,
        empty: bool = False,
        cold: int = 0,
    ) -> None:
        """One answer. timings: stage -> milliseconds, as `Ranked` has them; its "total" is not a stage. candidates:
        items ranked; None where nothing was. empty: a list without an item. cold: items without interactions in it."""
        self._child(self._requests, route, str(status), fallback or "none").inc()
        self._child(self._request_seconds, route).observe(max(0.0, seconds))
        if timings is not None:
            for stage, milliseconds in timings.items():
                if stage != "total":
                    self._child(self._stage_seconds, route, stage).observe(milliseconds / 1000)
        if candidates is not None:
            self._candidates.observe(candidates)
        if empty:
            self._empty.inc()
        if cold:
            self._cold.inc(cold)

    def event(self, kept: bool, count: int = 1) -> None:
        """Events taken; kept is false for those known before."""
        self._child(self._events, "true" if kept else "false").inc(count)

    def swap(self, result: str) -> None:
        """A change of bundle, as `Rollout` tells it."""
        self._child(self._swaps, result).inc()

    def entered(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def left(self) -> None:
        """A request that had come is through."""
        self._in_flight.dec()

    def serving(self, bundle_id: str, model: str, last_event: float) -> None:
        """The bundle that answers from now on. last_event: UTC seconds, by the clock."""
        if self._served is not None:
            self._info.labels(*self._served[:2]).set(0)
        self._served = bundle_id, model, last_event
        self._info.labels(bundle_id, model).set(1)

    def render(self) -> tuple[bytes, str]:
        """(text, content type) of all processes together."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        if self._served is not None:
            self._age.set(max(0.0, self._clock() - self._served[2]))
        registry = CollectorRegistry()
        registry.register(_Shown(self._registry if not self._shared else _together(self._shared)))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _child(self, metric: Any, *labels: str) -> Any:
        """`metric.labels(...)`, which takes longer than counting does."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class _Shown:
    """A collector without the bundles that answer no more: a shared folder cannot drop a label once it was used."""

    def __init__(self, source: Any):
        self._source = source

    def collect(self) -> Iterator[Any]:
        for metric in self._source.collect():
            if metric.name == _INFO:
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


def _together(folder: str) -> Any:
    from prometheus_client.multiprocess import MultiProcessCollector

    return MultiProcessCollector(None, folder)
