"""Workers on one socket, in real processes: killed, replaced, drained, given up."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recsys.serving.threads import VARIABLES

SCRIPT = Path(__file__).with_name("supervised.py")
PATIENCE = 30.0


def until(found: Callable[[], object], what: str) -> object:
    """The first true answer; time only bounds how long a failing test takes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


class Supervised:
    """The script in a process; `folder` is where its workers leave their notes."""

    def __init__(self, folder: Path, *arguments: object):
        self.folder = folder
        kind, workers, *rest = arguments
        command = [sys.executable, str(SCRIPT), kind, str(workers), str(folder), *map(str, rest)]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command,
            env=buffered,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = int(self.process.stdout.readline())

    def started(self) -> list[tuple[int, int, str]]:
        """(pid, number, metrics folder) of every worker that ever began."""
        path = self.folder / "started"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), int(number), where) for pid, number, where in map(str.split, lines)]

    def workers(self, count: int) -> dict[int, int]:
        """pid -> number of the first `count` workers, once as many have begun."""
        until(lambda: len(self.started()) >= count, f"{count} workers")
        return {pid: number for pid, number, _ in self.started()[:count]}

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(self) -> int:
        """The pid of the worker that answered; 0 where it was killed with the connection in hand."""
        with self.connect() as connection:
            words = read_all(connection).split()
        return int(words[0]) if words else 0

    def reading(self) -> float:
        """What the worker that answered says beside its pid."""
        with self.connect() as connection:
            return float(read_all(connection).split()[1])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) after a signal to the supervisor alone."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """The same, once it ends by itself."""
        code = self.process.wait(PATIENCE)
        # not by communicate(), which passes over what the pipe's reader has taken in already
        return code, self.process.stdout.read(), self.process.stderr.read()


def read_all(connection: socket.socket) -> str:
    parts = []
    while part := connection.recv(100):
        parts.append(part)
    return b"".join(parts).decode()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def supervised(tmp_path) -> Iterator[Callable[..., Supervised]]:
    made = []

    def start(*arguments: object) -> Supervised:
        made.append(Supervised(tmp_path, *arguments))
        return made[-1]

    yield start
    for one in made:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        one.process.stdout.close()
        one.process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_answer_and_end(supervised, number):
    server = supervised("echo", 2)
    workers = server.workers(2)
    assert sorted(workers.values()) == [0, 1]
    assert {server.ask() for _ in range(20)} <= set(workers)
    folders = {where for _, _, where in server.started()}
    (folder,) = folders
    assert Path(folder).is_dir()
    code, out, err = server.end(number)
    assert (code, out, err) == (0, "once", "")
    assert not any(map(alive, workers))
    assert not Path(folder).exists()


def test_a_killed_worker_is_replaced(supervised):
    server = supervised("echo", 2)
    first = server.workers(2)
    killed = next(iter(first))
    os.kill(killed, signal.SIGKILL)
    later = server.workers(3)
    (new,) = set(later) - set(first)
    assert later[new] == first[killed]
    until(lambda: server.ask() == new, "an answer by the new worker")
    assert {server.ask() for _ in range(20)} <= set(later) - {killed}
    code, _, err = server.end()
    assert code == 0
    assert f"worker {first[killed]} was killed by signal 9" in err
    assert len(server.started()) == 3


def test_a_dead_workers_requests_are_in_flight_no_more(supervised):
    server = supervised("counting", 2)
    first = server.workers(2)
    until(lambda: server.reading() == 2, "both counted")
    os.kill(next(iter(first)), signal.SIGKILL)
    later = server.workers(3)
    new = max(set(later) - set(first))
    until(lambda: server.ask() == new, "an answer by the new worker")
    assert server.reading() == 2
    assert server.end()[0] == 0


def test_requests_in_hand_are_answered(supervised):
    server = supervised("slow", 2)
    server.workers(2)
    held = [server.connect(), server.connect()]
    for connection in held:
        assert connection.recv(5) == b"held "
    server.process.send_signal(signal.SIGTERM)
    assert server.process.poll() is None
    (server.folder / "free").touch()
    answers = [int(read_all(connection).split()[0]) for connection in held]
    assert set(answers) == set(server.workers(2))
    code, _, _ = server.end()
    assert code == 0
    assert {path.name for path in server.folder.glob("drained-*")} == {f"drained-{pid}" for pid in answers}
    for connection in held:
        connection.close()


def test_a_deaf_worker_is_killed(supervised):
    server = supervised("deaf", 2, 0.2)
    workers = server.workers(2)
    assert server.ask() in workers
    code, _, _ = server.end()
    assert code == 0
    assert not any(map(alive, workers))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dying", "ended with exit code 7"),
        ("refusing", "ended with exit code 2"),
        (
            "raced",
            "was killed by signal 15",
        ),  # a signal that a worker's own handlers were too late for is not lost
    ],
)
def test_a_worker_that_cannot_start_ends_all(supervised, kind, words):
    server = supervised(kind, 1)
    code, out, err = server.ended()
    assert (code, out) == (2, "once"), "what a child inherits in its buffers is not written again"
    assert len(server.started()) == (0 if kind == "raced" else 5)
    last = err.splitlines()[-1]
    assert f"worker 0 {words}, 5 times within 10 s" in last
    assert err.count("this worker will not") == (5 if kind == "refusing" else 0)
    assert "Traceback" not in err
    assert not any(Path(where).exists() for _, _, where in server.started())


def test_workers_do_not_outlive_a_killed_supervisor(supervised):
    server = supervised("echo", 2)
    workers = server.workers(2)
    server.process.kill()
    server.process.wait()
    until(lambda: not any(map(alive, workers)), "an end of the workers")


# Threads

PINNED = """
import os, sys
from recsys.serving.threads import VARIABLES, pin_threads
{before}
said = pin_threads({arguments})
print(said, *(os.environ[name] for name in VARIABLES))
"""


def pinned(arguments: str, before: str = "", **env: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PINNED.format(before=before, arguments=arguments)],
        env=clean | env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_threads_are_pinned():
    assert pinned("3") == ["True", *["3"] * 5]
    assert pinned("3", OMP_NUM_THREADS="8") == ["True", *["3"] * 5]


@pytest.mark.parametrize("module", ["numpy", "polars"])
def test_too_late_is_told(module):
    assert pinned("1", before=f"import {module}")[0] == "False"
