"""Live state: on disk when acknowledged, in the order of time, each event once, whichever process tells it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import ServingError
from recsys.serving.state import Event, StateStore

# Adds events START.. to a store once a line arrives on standard input; says which of them were new, then waits.
WRITER = """
import json, sys
from recsys.serving.state import Event, StateStore
print("ready", flush=True)
sys.stdin.readline()
store = StateStore(sys.argv[1])
new = [n for n in range(int(sys.argv[2])) if store.add(Event(f"e{n}", '"u"', str(n), 1000 - n))]
print(json.dumps(new), flush=True)
sys.stdin.readline()
"""


def writers(path: Path, processes: int, events: int) -> list[subprocess.Popen]:
    """Processes that begin at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(events)],
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


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_reopened_file_holds_the_events(tmp_path):
    path = tmp_path / "state.db"
    store = StateStore(path)
    events = [Event("a", "1", "10", 5), Event("b", "1", "11", 6), Event("c", '"1"', "12", 7)]
    assert all(store.add(event) for event in events)
    store.close()
    again = StateStore(path)
    assert again.events("1") == events[:2]
    assert again.events('"1"') == events[2:]  # the text "1" is not the number 1
    assert again.events("2") == []
    assert not again.add(events[0])


def test_an_acknowledged_event_survives_a_kill(tmp_path):
    """The process is killed while its store is open: nothing was left in a buffer."""
    path = tmp_path / "state.db"
    [process] = started = writers(path, 1, 20)
    assert json.loads(process.stdout.readline()) == list(range(20))
    os.kill(process.pid, signal.SIGKILL)
    end(started)
    assert process.returncode == -signal.SIGKILL
    assert {event.event_id for event in StateStore(path).events('"u"')} == {f"e{n}" for n in range(20)}


def test_many_processes_keep_each_event_once(tmp_path):
    """They also make the file at the same moment."""
    path = tmp_path / "state.db"
    started = writers(path, 4, 25)
    new = [json.loads(process.stdout.readline()) for process in started]
    end(started)
    assert sorted(number for numbers in new for number in numbers) == list(range(25))
    found = StateStore(path).events('"u"')
    assert [event.time for event in found] == list(range(976, 1001))


def test_a_new_file_opened_by_many_at_once(tmp_path):
    """SQLite now and then refuses one of them at once instead of waiting for the others."""
    for number in range(60):
        start, stores, failed = threading.Barrier(6), [], []

        def work(number=number, start=start, stores=stores, failed=failed) -> None:
            start.wait()
            try:
                stores.append(StateStore(tmp_path / f"{number}.db"))
            except ServingError as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
        assert not failed


def test_one_process_sees_what_another_keeps(tmp_path):
    path = tmp_path / "state.db"
    reader = StateStore(path)
    assert reader.events('"u"') == []
    started = writers(path, 1, 3)
    started[0].stdout.readline()
    assert [event.event_id for event in reader.events('"u"')] == ["e2", "e1", "e0"]
    assert not reader.add(Event("e1", '"other"', "5", 1))
    end(started)


def test_memory_stores_are_apart():
    first, second = StateStore(), StateStore()
    first.add(Event("a", "1", "10", 5))
    assert second.events("1") == [] and second.add(Event("a", "1", "10", 5))


EVENTS = st.lists(
    st.builds(
        Event,
        event_id=st.text("abc\x00ä'\"", min_size=1, max_size=2),
        user_id=st.sampled_from(["1", "2", '"1"']),
        item_id=st.integers(0, 5).map(str),
        time=st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_events_stand_by_time_then_id_and_once(events):
    store = StateStore()
    kept: dict[str, Event] = {}
    for event in events:
        assert store.add(event) == (event.event_id not in kept)
        kept.setdefault(event.event_id, event)
    for user in ("1", "2", '"1"'):
        own = [event for event in kept.values() if event.user_id == user]
        expected = sorted(own, key=lambda event: (event.time, event.event_id.encode()))
        assert store.events(user) == expected
    store.close()


def test_threads_share_a_store():
    store = StateStore()
    new: list[int] = []

    def work() -> None:
        new.append(sum(store.add(Event(str(number), "1", "2", number)) for number in range(100)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 100 and len(store.events("1")) == 100


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)
    (tmp_path / "folder").mkdir()
    for path in ("text.db", "folder", "absent/state.db", "text.db/state.db"):
        with pytest.raises(ServingError, match="cannot keep live events here") as error:
            StateStore(tmp_path / path)
        assert path in str(error.value) and "\n" not in str(error.value)
