"""A real `recsys serve` for tests: bundles whose scores are known, its processes one by one, requests to it."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.bundle_writing import BundleContent, write_bundle
from recsys.schema import Form
from recsys.serving.process import started

ITEMS, HISTORY = [5, 3, 9, 1, 7, 2], [3, 9]
_Found = TypeVar("_Found")


def weighted(path: Path, factor: float, text_ids: bool = False) -> str:
    """A bundle that scores item number i with factor * (i + 1) after any history; its id."""
    size = len(ITEMS)
    prior = factor * np.arange(1, size + 1, dtype=np.float32)
    form = Form("item_item", {"dense": np.zeros((size, size), np.float32), "prior": prior})
    ids = pl.DataFrame({"item_id": [str(item) for item in ITEMS] if text_ids else ITEMS})
    types = {"user": "int", "item": "str" if text_ids else "int"}
    content = BundleContent("weighted", form, ids, np.ones(size, np.int64), None, types, "split", 0)
    return write_bundle(path, content).id


def scored(factor: float) -> dict[int, float]:
    """The scores of `weighted`."""
    return {item: factor * (number + 1) for number, item in enumerate(ITEMS)}


def serve_command(bundle: Path, *options: object) -> list[str]:
    """The command that serves on a free port, with the options given."""
    return [str(Path(sys.executable).with_name("recsys")), "serve", str(bundle), *map(str, options)]


def until(found: Callable[[], _Found], seconds: float = 60) -> _Found:
    """What `found` gives once it is true; AssertionError where it never is."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {found}"
        time.sleep(0.02)
    return answer


def workers_of(pid: int) -> list[int]:
    """The worker processes of a supervisor, oldest first. Skips the test where the system has no /proc."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("processes are looked up in /proc")
    return [int(child) for child in children.read_text().split()]


@contextlib.contextmanager
def halted(*pids: int) -> Iterator[None]:
    """The processes take nothing in for the length of the block."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            until(lambda pid=pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Running:
    """A server: its address, that of its admin plane, and its (first) process."""

    url: str
    admin: str
    pid: int

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> httpx.Response:
        """GET, or POST where there is a body, over a connection of its own. headers: x_api_key for x-api-key."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        base = self.admin if path.startswith("/admin") else self.url
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as client:
            return client.request(
                method or ("GET" if body is None else "POST"), path, json=body, headers=named
            )

    def on_each(self, asked: Callable[[], _Found]) -> list[_Found]:
        """What every worker answers, the others being halted: whoever is not halted takes the connection."""
        pids, answers = workers_of(self.pid), []
        for pid in pids:
            with halted(*(other for other in pids if other != pid)):
                answers.append(asked())
        return answers

    def counted(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that bear these labels."""
        families = text_string_to_metric_families(self.ask("/metrics").text)
        samples = [one for family in families for one in family.samples if one.name == name]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


@contextlib.contextmanager
def running(bundle: Path, *options: object) -> Iterator[Running]:
    """Serve the bundle on free ports of loopback until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = free.getsockname()[1]
    command = serve_command(bundle, "--port", 0, "--admin-port", admin, "--threads", 1, *options)
    with started(command) as server:
        yield Running(server.url, f"http://127.0.0.1:{admin}", server.pid)


def told_problem(answer: httpx.Response, status: int) -> str:
    """The detail of a refusal that is told as it should be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    return answer.json()["detail"]
