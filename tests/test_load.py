"""The load test's client over a real socket, and the processes it starts."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import ConfigError, ServingError
from recsys.serving.bench import probe
from recsys.serving.load import LOST, NO_ANSWER, fire, read_reply, timings_of
from recsys.serving.process import resident_mb, started
from recsys.serving.traffic import Traffic


def test_reading_an_answer_piece_by_piece():
    whole = b"HTTP/1.1 422 X\r\nA: b\r\nContent-Length: 5\r\n\r\nhello"
    for cut in range(len(whole)):
        assert read_reply(bytearray(whole[:cut])) is None
    assert read_reply(bytearray(whole + b"HTTP")) == (422, b"hello", len(whole))
    with pytest.raises(ServingError, match="content-length"):
        read_reply(bytearray(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"))


def test_timings_are_found_in_the_body():
    title = json.dumps({"items": [{"title": 'about "timings_ms":{"x":1}'}], "timings_ms": {"a": 1.5}})
    assert json.loads(timings_of(title.replace(": ", ":").encode())) == {"a": 1.5}
    assert json.loads(timings_of(b'{"timings_ms": {"a": 1.5, "b": 2}, "more": {}}')) == {"a": 1.5, "b": 2}
    assert timings_of(b'{"kept":true}') == b""


class Answers(BaseHTTPRequestHandler):
    """n -> 200 with its stages; 3 -> 503; 5 -> the connection is cut; 11 takes 5 ms."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        number = json.loads(self.rfile.read(int(self.headers["content-length"])))["n"]
        self.server.seen.append(number)
        if number == 11:
            time.sleep(0.005)
        if number == 5:
            self.close_connection = True
            return
        body = json.dumps({"pad": "x" * 100_000 * (number == 7), "timings_ms": {"rank": number}}).encode()
        self.send_response(503 if number == 3 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None:
        """Not into the test's output."""


class Patient(ThreadingHTTPServer):
    """Takes many connections at once: a full queue would cost a second."""

    request_queue_size = 128


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    with Patient(("127.0.0.1", 0), Answers) as made:
        made.seen, made.daemon_threads = [], True
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{made.server_address[1]}", made.seen
        made.shutdown()
        thread.join()


def bodies(*numbers: int) -> Traffic:
    return Traffic("/v1/rank", [json.dumps({"n": number}).encode() for number in numbers])


def test_every_request_is_sent_once_and_accounted_for(server):
    url, seen = server
    trace = fire(url, bodies(*range(10)), np.arange(20) / 1000, first=2)
    sent = [(2 + number) % 10 for number in range(20)]
    assert sorted(seen) == sorted(sent)
    assert trace.status_N.tolist() == [{3: 503, 5: LOST}.get(number, 200) for number in sent]
    assert np.isnan(trace.done_N).tolist() == [number == 5 for number in sent]
    assert sorted(entry["rank"] for entry in trace.timings) == sorted(n for n in sent if n != 5)
    assert (trace.fired_N >= trace.scheduled_N).all()
    assert (np.delete(trace.done_N - trace.fired_N, np.flatnonzero(trace.status_N == LOST)) > 0).all()


def test_waiting_for_a_connection_counts(server):
    """20 at once over one connection, each at least 5 ms of work: the n-th waits for all before it."""
    trace = fire(server[0], bodies(11), np.zeros(20), connections=1)
    assert (trace.status_N == 200).all()
    assert (np.sort(trace.latency_ms) >= 5 * np.arange(1, 21)).all()


def test_servers_that_are_not_there(server):
    url, _ = server
    with pytest.raises(ServingError, match="503"):
        probe(url, bodies(3))
    probe(url, bodies(1))
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        fire("https://127.0.0.1:1", bodies(1), np.zeros(1))
    for ask in (
        lambda: fire("http://127.0.0.1:1", bodies(1), np.zeros(1)),
        lambda: probe("http://127.0.0.1:1", bodies(1)),
    ):
        with pytest.raises(ServingError, match="cannot be reached"):
            ask()


def test_a_server_that_goes_away():
    """It reads a request, and is gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def serve() -> None:
        taken, _ = listener.accept()
        taken.recv(1000)
        listener.close()
        taken.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ServingError, match="went away"):
        fire(url, bodies(1), np.zeros(5), connections=1)
    thread.join()


def test_no_answer_is_waited_for_longer_than_said():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        trace = fire(url, bodies(1), np.zeros(3), connections=1, patience=0.1)
    assert trace.status_N.tolist() == [NO_ANSWER] * 3 and np.isnan(trace.done_N).all()
    assert (trace.latency_ms >= 100).all()


WITH_A_CHILD = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
print(f"child {child.pid} on http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
"""


def test_nothing_outlives_a_server():
    with started([sys.executable, "-c", WITH_A_CHILD], ready="/ready") as server:
        assert server.start_seconds > 0
        alone = resident_mb(server.pid)
        children = [
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent(path) == server.pid
        ]
        if alone is not None:  # there is /proc
            assert len(children) == 1 and 0 < resident_mb(children[0]) < alone
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    for child in children:
        deadline = time.monotonic() + 30  # a killed process may still be on its way out
        while parent(Path(f"/proc/{child}/stat")) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def parent(stat: Path) -> int | None:
    """Of a running process; None of one that has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state, number = stat.read_text().rpartition(")")[2].split()[:2]
        return None if state == "Z" else int(number)
    return None


def test_a_server_that_does_not_come_up():
    command = [sys.executable, "-c", "import sys; print('first'); sys.exit('no such bundle')"]
    with pytest.raises(ServingError, match="exit code 1: no such bundle"), started(command):
        pass
    listening = WITH_A_CHILD.replace('"/ready"', '"/never"')
    early = started([sys.executable, "-c", listening], ready="/ready", patience=0.5)
    with pytest.raises(ServingError, match="not ready in time"), early:
        pass
