"""Redis: what survives its crash, what it does when it is away or full, and what it is told at the start."""

import logging
import sys

import pytest
from redis_server import DURABLE, RedisServer
from test_state import end, said, writers

from recsys.errors import MissingExtraError, ServingError
from recsys.serving.state import Event, open_state
from recsys.serving.state import redis as redis_state


def event(name: str, user: str = "1", at: int = 5) -> Event:
    return Event(name, user, "10", at)


@pytest.fixture
def server(tmp_path):
    made = RedisServer(tmp_path, *DURABLE)
    yield made
    made.close()


@pytest.fixture
def store(server):
    opened = open_state(server.url)
    yield opened
    opened.close()


def test_acknowledged_events_survive_a_crash_of_redis(server):
    """It is killed in the midst of the writing."""
    [process] = started = writers(server.url, 1, 10**6)
    told = said(process, 30)
    server.kill()
    rest = process.stdout.read()
    told += [n for n in range(30, 30 + rest.count("true"))]
    end(started)
    server.start()
    store = open_state(server.url)
    found = {kept.event_id for kept in store.events('"u"')}
    assert {f"e{n}" for n in told} <= found <= {f"e{n}" for n in range(len(told) + 1)}
    store.close()


def test_it_comes_back_by_itself(server, store):
    store.add([event("a")])
    store.put_items({"7": b"new"})
    store.forget("2", 9)
    numbered = store.tail("1", 0)
    server.kill()
    calls = (
        lambda: store.add([event("b")]), lambda: store.events("1"), lambda: store.tail("1", 0), store.ping,
        lambda: store.forget("1", 1), lambda: store.forgotten("1"), lambda: store.items_after(0),
        lambda: store.save_state("v", "1", 1, b""), lambda: store.load_state("v", "1"),
        lambda: store.drop_states([]), lambda: store.put_items({"1": b""}), lambda: store.remove_items(["1"]),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ServingError, match=f"^{server.url}: live state cannot be read or written"):
            call()
    server.start()
    assert store.tail("1", 0) == numbered and store.forgotten("2") == 9 and len(store.items_after(0)) == 1
    assert store.add([event("a"), event("b")]) == [False, True]


def test_a_connection_cut_while_idle(server, store):
    store.add([event("a")])
    server.process.terminate()
    server.process.wait()
    server.start()
    assert store.add([event("a"), event("b")]) == [False, True]


def test_full_memory(server, store):
    store.add([event("a")])
    server.client.config_set("maxmemory", 1)
    for write in (lambda: store.add([event("b"), event("c")]), store.ping):
        with pytest.raises(ServingError, match="maxmemory"):
            write()
    assert store.events("1") == [event("a")]
    server.client.config_set("maxmemory", 0)
    assert store.add([event("b"), event("c")]) == [True, True]


def test_an_answer_that_does_not_come(server, monkeypatch):
    """It is not asked for a second time, which would call the event one kept before."""
    monkeypatch.setattr(redis_state, "_SECONDS", 0.2)
    store = open_state(server.url)
    server.client.client_pause(600, all=False)
    with pytest.raises(ServingError, match="Timeout"):
        store.add([event("a")])
    server.client.client_unpause()
    store.add([event("a")])
    assert store.events("1") == [event("a")]
    store.close()


def test_dropped_states_leave_no_keys(server, store):
    for version in ("v", "w"):
        store.save_state(version, "1", 1, b"")
    store.drop_states(["w"])
    assert server.client.smembers("recsys:versions") == {b"w"}
    assert server.client.keys("recsys:states:*") == [b"recsys:states:w"]


def test_many_items_come_in_pieces(store, monkeypatch):
    monkeypatch.setattr(redis_state, "_CHUNK", 3)
    for number in (0, 1, 2, 3, 6, 8):
        store.put_items({str(n): b"%d" % n for n in range(number)})
        assert [change[1:] for change in store.items_after(0)] == [(str(n), b"%d" % n) for n in range(number)]


def test_an_item_changed_between_two_pieces(store, monkeypatch):
    monkeypatch.setattr(redis_state, "_CHUNK", 2)
    store.put_items({"1": b"", "2": b"", "3": b""})
    run = store._run

    def between(*values):
        found = run(*values)
        monkeypatch.setattr(store, "_run", run)
        store.put_items({"1": b"again"})
        return found

    monkeypatch.setattr(store, "_run", between)
    found = store.items_after(0)
    assert [change[1:] for change in found] == [("2", b""), ("3", b""), ("1", b"again")]
    assert found == store.items_after(0)


def test_a_key_of_another_kind_is_told(server, store):
    server.client.set("recsys:events:1", "mine")
    with pytest.raises(ServingError, match="WRONGTYPE"):
        store.events("1")


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (DURABLE, []),
        ((), ["appendfsync always"]),
        (("--appendonly", "yes"), ["appendfsync always"]),
        ((*DURABLE, "--rename-command", "CONFIG", ""), ["appendfsync always"]),
        ((*DURABLE, "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"), ["noeviction"]),
        ((*DURABLE, "--maxmemory", "1gb", "--maxmemory-policy", "noeviction"), []),
    ],
)
def test_a_server_that_may_lose_events_is_named_once(options, warned, tmp_path, caplog):
    server = RedisServer(tmp_path, *options)
    try:
        with caplog.at_level(logging.WARNING, "recsys"):
            store = open_state(server.url)
            for number in range(3):
                store.add([event(str(number))])
            store.close()
        assert len(caplog.messages) == len(warned)
        assert all(
            part in text and server.url in text for part, text in zip(warned, caplog.messages, strict=True)
        )
    finally:
        server.close()


def test_a_later_redis_is_waited_for(tmp_path, monkeypatch, caplog):
    """Stood in for by this server: LRANGE takes WAITAOF's name, so that the list "1" is what WAITAOF answers."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--rename-command", "LRANGE", "WAITAOF")
    info = server.redis.Redis.info
    monkeypatch.setattr(
        server.redis.Redis, "info", lambda self, *args: info(self, *args) | {"redis_version": "7.2.4"}
    )
    try:
        store = open_state(server.url)
        server.client.rpush("1", 1, 0)
        with server.client.monitor() as monitor:
            writes = (
                lambda: store.add([event("a")]), lambda: store.add([event("a")]), lambda: store.forget("1", 9),
                lambda: store.put_items({"1": b""}), lambda: store.remove_items(["1"]), store.ping,
            )  # fmt: skip
            for write in writes:
                write()
                told = [monitor.next_command()]
                while "WAITAOF" not in told[-1]["command"]:
                    told.append(monitor.next_command())
                direct = [entry for entry in told if entry["client_type"] != "lua"]
                assert [entry["command"].split()[0] for entry in direct] == ["EVAL", "WAITAOF"]
                assert direct[0]["client_port"] == direct[1]["client_port"], (
                    "it waits for its own writes only"
                )
                changes = [entry["command"].split()[0] for entry in told if entry["client_type"] == "lua"]
                assert changes[0] == "INCRBY", "without a write of its own it would not wait"
        server.client.lset("1", 0, 0)
        with pytest.raises(ServingError, match="did not write to its disk within 5 s"):
            store.add([event("b")])
        store.save_state("v", "2", 1, b"")  # a cache does not wait
        server.client.lset("1", 0, 1)
        assert store.add([event("c", "2")]) == [True] and not caplog.messages
        store.close()
    finally:
        server.close()


def test_an_address_without_redis(server):
    server.kill()
    with pytest.raises(ServingError, match="live state cannot be read or written") as error:
        open_state(f"redis://me:secret@127.0.0.1:{server.port}/0?client_name=secret")
    assert "secret" not in str(error.value) and str(server.port) in str(error.value)
    with pytest.raises(ServingError, match="this is no address of Redis"):
        open_state("redis://127.0.0.1:port/0")


def test_a_password_and_a_socket(tmp_path):
    server = RedisServer(tmp_path, "--unixsocket", "redis.sock")
    try:
        server.client.config_set("requirepass", "secret")
        socket = tmp_path / "redis.sock"
        with pytest.raises(ServingError, match=r"redis\.sock.*authenticat"):
            open_state(f"unix://{socket}?db=1")
        by_socket = open_state(f"unix://:secret@{socket}?db=1")
        by_port = open_state(f"redis://:secret@127.0.0.1:{server.port}/1")
        assert by_socket.add([event("a")]) == [True] and by_port.events("1") == [event("a")]
        by_socket.close()
        by_port.close()
    finally:
        server.close()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'recsys\[redis\]'"):
        open_state("redis://127.0.0.1:1/0")
