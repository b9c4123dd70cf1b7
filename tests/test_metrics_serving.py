"""What the server counts, in one process and added up over several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.errors import ServingError
from recsys.serving.metrics import FOLDER, Metrics


def samples(metrics: Metrics) -> dict[tuple, float]:
    """(name, label values in the order of their names) -> value."""
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return parsed(text.decode())


def parsed(text: str) -> dict[tuple, float]:
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_requests():
    metrics = Metrics()
    metrics.observe("/v1/rank", 200, 0.0015)
    metrics.observe("/v1/rank", 200, 0.3, fallback="popular")
    metrics.observe("/v1/rank", 422, 2.0)
    metrics.observe("/healthz", 200, 0.0001)
    found = samples(metrics)
    assert {key[1:]: value for key, value in found.items() if key[0] == "recsys_requests_total"} == {
        ("none", "/v1/rank", "200"): 1,
        ("popular", "/v1/rank", "200"): 1,
        ("none", "/v1/rank", "422"): 1,
        ("none", "/healthz", "200"): 1,
    }
    buckets = {
        key[1]: value
        for key, value in found.items()
        if key[0] == "recsys_request_seconds_bucket" and key[2] == "/v1/rank"
    }
    assert buckets == {
        **dict.fromkeys(["0.001"], 0),
        **dict.fromkeys(["0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"], 1),
        **dict.fromkeys(["0.5", "1.0"], 2),
        "+Inf": 3,
    }
    assert found["recsys_request_seconds_sum", "/v1/rank"] == pytest.approx(2.3015)


def test_answers():
    metrics = Metrics()
    timings = {"history": 3.0, "retrieve": 30.0, "total": 33.0}
    metrics.observe("/v1/rank", 200, 0.1, timings=timings, candidates=200, cold=3)
    metrics.observe("/v1/rank", 200, 0.1, candidates=0, empty=True)
    metrics.observe("/v1/events", 200, 0.1)
    found = samples(metrics)
    stages = {key[2]: value for key, value in found.items() if key[0] == "recsys_stage_seconds_sum"}
    assert stages == pytest.approx({"history": 0.003, "retrieve": 0.03})
    assert found["recsys_candidates_count",] == 2 and found["recsys_candidates_sum",] == 200
    assert (found["recsys_candidates_bucket", "100.0"], found["recsys_candidates_bucket", "200.0"]) == (1, 2)
    assert (found["recsys_empty_total",], found["recsys_cold_items_total",]) == (1, 3)


def test_events_swaps_and_flight():
    metrics = Metrics()
    metrics.event(True)
    metrics.event(True, 4)
    metrics.event(False)
    metrics.swap("loaded")
    metrics.swap("failed")
    metrics.swap("failed")
    metrics.entered()
    metrics.entered()
    metrics.left()
    found = samples(metrics)
    assert (found["recsys_events_total", "true"], found["recsys_events_total", "false"]) == (5, 1)
    assert (found["recsys_swaps_total", "loaded"], found["recsys_swaps_total", "failed"]) == (1, 2)
    assert found["recsys_in_flight",] == 1


def test_one_bundle_is_shown_with_its_age():
    now = [1000.0]
    metrics = Metrics(clock=lambda: now[0])
    assert not [key for key in samples(metrics) if key[0] == "recsys_bundle_info"]
    for bundle_id in ("a", "b", "c", "b"):
        metrics.serving(bundle_id, "ease", 900.0)
        shown = {key: value for key, value in samples(metrics).items() if key[0] == "recsys_bundle_info"}
        assert shown == {("recsys_bundle_info", bundle_id, "ease"): 1}
    assert samples(metrics)["recsys_bundle_age_seconds",] == 100
    now[0] = 1060.0
    assert samples(metrics)["recsys_bundle_age_seconds",] == 160
    now[0] = 10.0
    assert samples(metrics)["recsys_bundle_age_seconds",] == 0, "a clock that was put back"


def test_registries_are_private():
    one, two = Metrics(), Metrics()
    one.swap("loaded")
    assert ("recsys_swaps_total", "loaded") not in samples(two)


def test_a_folder_named_too_late_is_told(monkeypatch, tmp_path):
    Metrics()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(ServingError, match="after prometheus_client was loaded"):
        Metrics()


def test_the_library_is_loaded_late():
    program = "import sys, recsys.serving.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


TOGETHER = """
import os, sys
from recsys.serving.metrics import Metrics

now = float(sys.argv[1])

def worker(number):
    metrics = Metrics(clock=lambda: now)
    for _ in range(number):
        metrics.entered()
        metrics.observe("/v1/rank", 200, 0.015, timings={"rank": 7.0}, candidates=30)
    metrics.serving("old", "ease", now - 70)
    metrics.serving("new", "ease", now - 50)
    metrics.render()
    if number == 3:
        os.kill(os.getpid(), 9)

pids = []
for number in (1, 2, 3):
    pid = os.fork()
    if pid == 0:
        worker(number)
        os._exit(0)
    os.waitpid(pid, 0)
    pids.append(pid)

from prometheus_client.multiprocess import mark_process_dead
mark_process_dead(pids[-1])
text, kind = Metrics(clock=lambda: now).render()
sys.stdout.write(text.decode())
"""


def test_processes_are_added_up(tmp_path):
    """The one that was killed too; its requests in flight are no more."""
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, "5000"],
        env=os.environ | {FOLDER: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = parsed(done.stdout)
    assert found["recsys_requests_total", "none", "/v1/rank", "200"] == 6
    assert found["recsys_request_seconds_count", "/v1/rank"] == 6
    assert found["recsys_request_seconds_bucket", "0.01", "/v1/rank"] == 0
    assert found["recsys_request_seconds_bucket", "0.02", "/v1/rank"] == 6
    assert found["recsys_stage_seconds_sum", "/v1/rank", "rank"] == pytest.approx(0.042)
    assert found["recsys_candidates_sum",] == 180
    assert found["recsys_in_flight",] == 3
    assert found["recsys_bundle_info", "new", "ease"] == 1
    assert ("recsys_bundle_info", "old", "ease") not in found
    assert found["recsys_bundle_age_seconds",] == 50
    assert len(list(Path(tmp_path).glob("counter_*.db"))) == 3 + 1  # the parent's own, with nothing in it
