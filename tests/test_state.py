"""Live state, the same in SQLite and Redis: kept when acknowledged, in the order of time, each event once."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import DURABLE, RedisServer
from state_model import OPERATION, Model

from recsys.serving.state import Event, StateStore, open_state

# Adds events START.. once a line arrives on standard input, and says after each whether it was new.
WRITER = """
import json, sys
from recsys.serving.state import Event, open_state
print("ready", flush=True)
sys.stdin.readline()
store = open_state(sys.argv[1])
for n in range(int(sys.argv[2])):
    [new] = store.add([Event(f"e{n}", '"u"', str(n), 10**6 - n)])
    print(json.dumps([n, new]), flush=True)
sys.stdin.readline()
"""


class Places:
    """Where stores of one kind are opened; new() is an empty place."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder, self.number = kind, folder, 0
        self.server = RedisServer(folder, *DURABLE) if kind == "redis" else None

    def new(self) -> str | None:
        if self.server:
            self.server.client.flushall()
            return self.server.url
        self.number += 1
        return None if self.kind == "memory" else str(self.folder / f"{self.number}.db")

    def close(self) -> None:
        if self.server:
            self.server.close()


@pytest.fixture(scope="module", params=["memory", "file", "redis"])
def places(request, tmp_path_factory) -> Iterator[Places]:
    made = Places(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.close()


@pytest.fixture
def store(places) -> Iterator[StateStore]:
    opened = open_state(places.new())
    yield opened
    opened.close()


@pytest.fixture
def shared(places) -> str:
    """An empty place that several processes can open."""
    where = places.new()
    if where is None:
        pytest.skip("memory is not shared")
    return where


def writers(where: str, processes: int, events: int) -> list[subprocess.Popen]:
    """Processes that begin at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, where, str(events)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(processes)
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    return started


def said(process: subprocess.Popen, lines: int) -> list[int]:
    """The events that were new, among the next lines."""
    answers = [json.loads(process.stdout.readline()) for _ in range(lines)]
    return [number for number, new in answers if new]


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def in_threads(number: int, work: Callable[[int], None]) -> None:
    """work(0), work(1), … at the same moment; an exception of one fails the test."""
    start, failed = threading.Barrier(number), []

    def one(index: int) -> None:
        start.wait()
        try:
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_late_events_stand_at_their_time(store):
    late, early = Event("b", "1", "10", 9), Event("a", "1", "11", 3)
    assert store.add([late]) == [True] and store.add([early, late]) == [True, False]
    assert store.events("1") == [early, late]
    [(first, one), (second, two)] = store.tail("1", 0)
    assert (one, two) == (late, early) and 0 < first < second
    assert store.tail("1", first) == [(second, early)] and store.tail("1", second) == []


def test_an_event_id_counts_once(store):
    first = Event("a", "1", "10", 5)
    assert store.add([first, first, Event("a", "2", "11", 6)]) == [True, False, False]
    assert store.add([]) == []
    assert store.events("1") == [first] and store.events("2") == []


def test_a_text_is_not_a_number(store):
    number, text = Event("a", "1", "10", 5), Event("b", '"1"', "10", 5)
    store.add([number, text])
    assert store.events("1") == [number] and store.events('"1"') == [text]


def test_forgetting(store):
    store.add([Event("a", "1", "10", 5), Event("b", "1", "11", 8), Event("c", "2", "12", 5)])
    assert store.forgotten("1") is None
    assert store.forget("1", 6) == 2 and store.forgotten("1") == 6 and store.forgotten("2") is None
    assert store.events("1") == store.tail("1", 0) == [] and len(store.events("2")) == 1
    again, at, later = Event("b", "1", "11", 8), Event("d", "1", "11", 6), Event("e", "1", "11", 7)
    assert store.add([again, at, later]) == [False, False, True]
    assert store.events("1") == [later]
    assert store.forget("1", 4) == 1 and store.forgotten("1") == 6  # the later moment stays
    assert store.forget("3", 1) == 0 and store.forgotten("3") == 1


def test_states_of_a_forgotten_user(store):
    """A worker that had read the user's events before may come to save its state only now."""
    store.add([Event("a", "1", "10", 5)])
    [(before, _)] = store.tail("1", 0)
    for version in ("v", "w"):
        store.save_state(version, "1", before, b"old")
    store.save_state("v", "2", before, b"other")
    store.forget("1", 6)
    assert store.load_state("v", "1") is None and store.load_state("w", "1") is None
    assert store.load_state("v", "2") == (before, b"other")
    store.save_state("v", "1", before, b"old")
    assert store.load_state("v", "1") is None
    store.add([Event("b", "1", "10", 7)])
    [(after, _)] = store.tail("1", 0)
    store.save_state("v", "1", after, b"new")
    assert store.load_state("v", "1") == (after, b"new")


def test_states_by_version(store):
    for version in ("v", "w", "x"):
        for user in ("1", "2"):
            store.save_state(version, user, 3, f"{version}:{user}".encode())
    store.save_state("v", "1", 4, b"\x00\xff:")
    assert store.load_state("v", "1") == (4, b"\x00\xff:") and store.load_state("w", "1") == (3, b"w:1")
    assert store.drop_states(["v", "unknown"]) == 4
    assert store.load_state("v", "2") == (3, b"v:2") and store.load_state("x", "2") is None
    assert store.drop_states([]) == 2 and store.load_state("v", "2") is None


def test_changed_items(store):
    store.put_items({"1": b"one", "2": b"two", "3": b""})
    store.remove_items(["9", "2"])  # 9 is the catalogue's
    expected = [("1", b"one"), ("3", b""), ("9", None), ("2", None)]
    first = store.items_after(0)
    assert [change[1:] for change in first] == expected
    store.put_items({"1": b"one", "3": b""})
    store.remove_items(["9", "9"])
    store.put_items({})
    assert store.items_after(0) == first, "nothing changed"
    store.put_items({"2": b"two", "1": b"uno"})
    news = store.items_after(first[-1][0])
    assert [change[1:] for change in news] == [("2", b"two"), ("1", b"uno")]
    assert store.items_after(0) == [first[1], first[2], *news] and store.items_after(news[-1][0]) == []


@settings(max_examples=80, deadline=None)
@given(operations=st.lists(st.one_of(OPERATION, st.just(("reopen",))), max_size=14))
def test_any_sequence_of_operations(places, operations):
    where, model = places.new(), Model()
    store = open_state(where)
    try:
        for operation in operations:
            if operation != ("reopen",):
                model.apply(store, operation)
            elif where is not None:
                store.close()
                store = open_state(where)
        model.check(store)
    finally:
        store.close()


def test_threads_share_a_store(store):
    new: list[int] = []
    in_threads(4, lambda _: new.append(sum(sum(store.add([Event(str(n), "1", "2", n)])) for n in range(50))))
    assert sum(new) == 50
    assert [event.time for event in store.events("1")] == list(range(50))


def test_a_store_opened_again_holds_everything(shared):
    first = open_state(shared)
    first.add([Event("a", "1", "10", 5), Event("b", "2", "10", 5)])
    first.forget("2", 9)
    first.put_items({"7": b"new"})
    numbered, items = first.tail("1", 0), first.items_after(0)
    first.close()
    again = open_state(shared)
    assert again.tail("1", 0) == numbered and again.items_after(0) == items and again.forgotten("2") == 9
    assert again.add([Event("c", "1", "10", 5), Event("a", "1", "10", 5)]) == [True, False]
    assert again.tail("1", 0)[-1][0] > numbered[-1][0]
    again.close()


def test_an_acknowledged_event_survives_a_kill(shared):
    """The process is killed in the midst of its writing: whatever it had said is there."""
    [process] = started = writers(shared, 1, 10**6)
    told = said(process, 25)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()  # communicate() would miss what readline() has buffered
    told += [json.loads(line)[0] for line in rest.splitlines(keepends=True) if line.endswith("]\n")]
    end(started)
    assert process.returncode == -signal.SIGKILL and len(told) >= 25
    store = open_state(shared)
    found = {event.event_id for event in store.events('"u"')}
    assert {f"e{n}" for n in told} <= found <= {f"e{n}" for n in range(len(told) + 1)}
    store.close()


def test_many_processes_keep_each_event_once(shared):
    """They also open the new place at the same moment."""
    started = writers(shared, 3, 25)
    new = [number for process in started for number in said(process, 25)]
    end(started)
    assert sorted(new) == list(range(25))
    store = open_state(shared)
    assert [event.item_id for event in store.events('"u"')] == [str(n) for n in reversed(range(25))]
    store.close()


def test_one_process_sees_what_another_keeps(shared):
    reader = open_state(shared)
    assert reader.events('"u"') == []
    started = writers(shared, 1, 3)
    said(started[0], 3)
    assert [event.event_id for event in reader.events('"u"')] == ["e2", "e1", "e0"]
    assert reader.add([Event("e1", '"other"', "5", 1)]) == [False]
    end(started)
    reader.close()


def test_ping_of_a_sound_store(store):
    store.add([Event("a", "1", "10", 5)])
    before = store.tail("1", 0)
    store.ping()
    assert store.tail("1", 0) == before and store.add([Event("b", "1", "10", 5)]) == [True]
