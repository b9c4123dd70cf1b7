"""SQLite: group commit, and files that are full, locked, gone, damaged, old or new."""

import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_state import in_threads

from recsys.errors import ServingError
from recsys.serving.state import Event, SQLiteStore, tables

# Lets the file grow no further, then lets it again; answers what could be kept meanwhile.
FULL = """
import json, resource, sys, threading
from recsys.errors import ServingError
from recsys.serving.state import Event, SQLiteStore

store = SQLiteStore(sys.argv[1])
kept, refused = [], []

def add(name):
    try:
        assert store.add([Event(name, "1", '"' + "x" * 20000 + '"', 5)]) == [True]
        kept.append(name)
    except ServingError as error:
        refused.append(str(error))

def many(prefix):
    threads = [threading.Thread(target=add, args=(f"{prefix}{n}",)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

many("before")
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
many("full")
try:
    store.ping()
except ServingError as error:
    refused.append(str(error))
read = len(store.events("1"))
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
store.ping()
many("after")
print(json.dumps({"kept": kept, "refused": refused, "read": read}))
"""


def event(name: str, user: str = "1", at: int = 5) -> Event:
    return Event(name, user, "10", at)


class Gate:
    """Holds the writer thread of a store before each commit until open() is called, and counts the commits."""

    def __init__(self, store: SQLiteStore):
        self.commits, self.reached, self._opened = 0, threading.Event(), threading.Event()
        store._connection.set_trace_callback(self._trace)

    def _trace(self, statement: str) -> None:
        if statement == "COMMIT":
            self.commits += 1
            self.reached.set()
            assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()


def waiting(store: SQLiteStore, number: int) -> None:
    """Until so many writes wait for the writer thread."""
    for _ in range(3000):
        if store._writer._jobs.qsize() == number:
            return
        time.sleep(0.01)
    pytest.fail("the writes never came")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path):
    opened = SQLiteStore(path)
    yield opened
    opened.close()


def test_waiting_writes_share_one_commit(store):
    gate, answers = Gate(store), []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(store.add([event(f"{n}"), event(f"{n}!")])))
        for n in range(20)
    ]
    threads[0].start()
    assert gate.reached.wait(30)
    for thread in threads[1:]:
        thread.start()
    waiting(store, 19)
    gate.open()
    for thread in threads:
        thread.join()
    assert answers == [[True, True]] * 20 and gate.commits == 2
    assert len(store.events("1")) == 40


def test_many_threads_need_few_commits(store):
    """Each commit takes a while, as a disk does: what comes meanwhile goes with the next one."""
    commits = []

    def trace(statement: str) -> None:
        if statement == "COMMIT":
            commits.append(statement)
            time.sleep(0.02)

    store._connection.set_trace_callback(trace)
    in_threads(16, lambda n: [store.add([event(f"{n}.{step}")]) for step in range(10)])
    assert len(store.events("1")) == 160
    assert 10 <= len(commits) < 60


def test_nothing_is_acknowledged_or_seen_before_the_commit(store):
    """Readers do not wait for it."""
    gate, done = Gate(store), threading.Event()
    thread = threading.Thread(target=lambda: (store.add([event("a")]), done.set()))
    thread.start()
    assert gate.reached.wait(30)
    assert store.events("1") == store.tail("1", 0) == [] and not done.is_set()
    gate.open()
    thread.join()
    assert done.is_set() and store.events("1") == [event("a")]


def test_events_wait_for_the_disk_and_states_do_not(store):
    told: list[str] = []
    store._connection.set_trace_callback(told.append)
    store.save_state("v", "1", 0, b"state")
    store.add([event("a")])
    store.put_items({"1": b""})
    store.forget("1", 1)
    levels = [text.rpartition("=")[2] for text in told if text.startswith("PRAGMA synchronous")]
    assert levels == ["NORMAL", "FULL", "FULL", "FULL"]


def test_a_wrong_write_hurts_nobody_else(store):
    gate, answers = Gate(store), {}

    def add(name: str, at: int) -> None:
        try:
            answers[name] = store.add([event(name + "!"), event(name, at=at)])
        except Exception as error:
            answers[name] = error

    calls = [("first", 1), ("good", 2), ("wrong", 2**70), ("fine", 3)]
    threads = [threading.Thread(target=add, args=call) for call in calls]
    threads[0].start()
    assert gate.reached.wait(30)
    for thread in threads[1:]:
        thread.start()
    waiting(store, 3)
    gate.open()
    for thread in threads:
        thread.join()
    assert isinstance(answers.pop("wrong"), OverflowError)
    assert answers == {name: [True, True] for name in ("first", "good", "fine")} and gate.commits == 2
    ids = {kept.event_id for kept in store.events("1")}
    assert ids == {"first", "first!", "good", "good!", "fine", "fine!"}


def test_a_full_disk_and_then_room_again(path):
    """Nobody in the group is told that it was kept; the same store goes on afterwards."""
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sorted(told["kept"]) == sorted(f"{word}{n}" for word in ("before", "after") for n in range(8))
    assert len(told["refused"]) == 9 and told["read"] == 8
    assert all(str(path) in text and "\n" not in text for text in told["refused"])
    again = SQLiteStore(path)
    assert sorted(kept.event_id for kept in again.events("1")) == sorted(told["kept"])
    again.close()


def test_pages_run_out(store):
    """As on a full disk, but found in the midst of a transaction and not at its end."""
    [pages] = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages + 4}")
    large = [Event(f"{n}", "1", "x" * 1000, 5) for n in range(100)]
    with pytest.raises(ServingError, match=r"state\.db.*full"):
        store.add(large)
    assert store.events("1") == [] and store.add([event("a")]) == [True]
    store._connection.execute("PRAGMA max_page_count=100000")
    assert store.add(large) == [True] * 100


def test_a_locked_file(path, monkeypatch):
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.1)
    store, other = SQLiteStore(path), sqlite3.connect(path, isolation_level=None)
    store.add([event("a")])
    other.execute("BEGIN IMMEDIATE")
    for write in (lambda: store.add([event("b")]), lambda: store.forget("1", 1), store.ping):
        with pytest.raises(ServingError, match=r"state\.db.*locked"):
            write()
    assert store.events("1") == [event("a")]
    other.execute("ROLLBACK")
    other.close()
    assert store.add([event("b")]) == [True]
    store.close()


def test_a_commit_that_is_refused(path, monkeypatch):
    """Without a write-ahead log, as on a network drive, a reader elsewhere can hold up a commit for too long."""
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.1)
    store, reader, refused = SQLiteStore(path), sqlite3.connect(path, isolation_level=None), []
    assert store._connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()
    gate = Gate(store)

    def add(name: str) -> None:
        with pytest.raises(ServingError, match=r"state\.db.*locked"):
            store.add([event(name)])
        refused.append(name)

    threads = [threading.Thread(target=add, args=(name,)) for name in "abcd"]
    threads[0].start()
    assert gate.reached.wait(30)
    for thread in threads[1:]:
        thread.start()
    waiting(store, 3)
    gate.open()
    for thread in threads:
        thread.join()
    assert sorted(refused) == list("abcd") and gate.commits == 2
    reader.close()
    assert store.events("1") == [] and store.add([event("a"), event("b")]) == [True, True]
    store.close()


def test_a_file_that_is_gone(path, store):
    """SQLite itself would write on into the deleted file, and tell that all is well."""
    store.add([event("a")])
    aside = path.with_name("aside.db")
    path.rename(aside)
    for call in (lambda: store.add([event("b")]), lambda: store.events("1"), store.ping):
        with pytest.raises(ServingError, match=r"state\.db: the file of live state is gone"):
            call()
    path.write_bytes(b"")
    with pytest.raises(ServingError, match="another file has taken its place"):
        store.add([event("c")])
    aside.replace(path)
    store.ping()
    assert store.add([event("a"), event("d")]) == [False, True]


def test_a_damaged_file(path):
    store = SQLiteStore(path)
    store.add([Event(f"{n}", "1", "x" * 500, n) for n in range(200)])
    store.close()
    with path.open("r+b") as file:  # the header and the schema are left: it opens
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    store = SQLiteStore(path)
    with pytest.raises(ServingError, match=r"state\.db.*malformed"):
        store.events("1")
    with pytest.raises(ServingError, match=r"state\.db.*malformed"):
        store.add([event("a")])
    store.close()


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)
    (tmp_path / "folder").mkdir()
    for path in ("text.db", "folder", "absent/state.db", "text.db/state.db"):
        with pytest.raises(ServingError, match="cannot keep live events here") as error:
            SQLiteStore(tmp_path / path)
        assert path in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_version_0_1(path):
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE events (event_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, "
        "time INTEGER NOT NULL) WITHOUT ROWID"
    )
    old.execute("CREATE INDEX events_by_user ON events (user_id, time)")
    old.execute("INSERT INTO events VALUES ('a', '1', '10', 9), ('b', '1', '11', 3), ('c', '2', '12', 5)")
    old.commit()
    old.close()
    store = SQLiteStore(path)
    expected = [Event("b", "1", "11", 3), Event("a", "1", "10", 9)]
    assert store.events("1") == expected and [kept for _, kept in store.tail("1", 0)] == expected
    assert store.add([event("c"), event("d")]) == [False, True]
    store.close()


def test_a_file_of_a_later_version(path):
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version=3")
    later.close()
    with pytest.raises(ServingError, match=r"state\.db: live state of version 3; expected at most 2"):
        SQLiteStore(path)


def test_a_forgotten_user_leaves_no_bytes(path):
    store = SQLiteStore(path)
    store.add([Event("a", "1", '"a secret visit"', 5)])
    store.save_state("v", "1", 1, b"a secret state")
    store.close()
    assert b"a secret" in path.read_bytes()
    store = SQLiteStore(path)
    store.forget("1", 6)
    store.close()
    assert b"a secret" not in path.read_bytes()


def test_a_new_file_opened_by_many_at_once(tmp_path):
    """SQLite now and then refuses one of them at once instead of waiting for the others."""
    for number in range(40):
        stores: list[SQLiteStore] = []
        in_threads(6, lambda _, stores=stores, n=number: stores.append(SQLiteStore(tmp_path / f"{n}.db")))
        assert len(stores) == 6
        for store in stores:
            store.close()


def test_memory_stores_are_apart():
    first, second = SQLiteStore(), SQLiteStore()
    first.add([event("a")])
    assert second.events("1") == [] and second.add([event("a")]) == [True]


def test_a_closed_store_says_so(path):
    for store in (SQLiteStore(path), SQLiteStore()):
        store.add([event(str(store._path))])
        store.close()
        store.close()
        for call in (lambda store=store: store.add([event("b")]), lambda store=store: store.events("1")):
            with pytest.raises(ServingError, match="closed"):
                call()


def test_a_dropped_store_ends_its_thread():
    store = SQLiteStore()
    thread = store._writer._thread
    store.add([event("a")])
    assert thread.is_alive()
    del store
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
