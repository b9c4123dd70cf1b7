"""Following a registry: what is loaded when, what is remembered, what happens when the registry is away."""

import json
import os
import random
import threading
from pathlib import Path

import pytest

from recsys.errors import BundleError, ServingError
from recsys.serving import follow
from recsys.serving.follow import Follower, PointerFile, last_good


class Registry:
    """Names a folder, or raises; keeps what was loaded. refused: folders that cannot be loaded."""

    def __init__(self, folder: Path, remembered: Path | None = None):
        self.folder, self.loaded, self.refused = folder, [], set()
        self.answer: Path | Exception = self.bundle("a")
        self.follower = Follower(self.resolve, self.load, 1000, 0, remembered)

    def bundle(self, name: str, content: str = "{}") -> Path:
        """A new folder under that name, in the place of an older one."""
        made = self.folder / name
        made.mkdir(exist_ok=True)
        beside = made / ".manifest"
        beside.write_text(content)
        beside.rename(made / "manifest.json")
        return made

    def resolve(self) -> Path:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def load(self, path: Path) -> None:
        if path.name in self.refused:
            raise BundleError("the file was changed", where=path)
        self.loaded.append(path.name)

    def polls(self, count: int = 1) -> list[str]:
        """What that many rounds load."""
        before = len(self.loaded)
        for _ in range(count):
            self.follower.poll()
        return self.loaded[before:]


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path, tmp_path / "last.json")


def test_what_changed_is_loaded_once(registry):
    assert registry.polls(3) == ["a"]
    registry.answer = registry.bundle("b")
    assert registry.polls(3) == ["b"]
    registry.answer = registry.folder / "a"
    assert registry.polls(3) == ["a"], "a registry may go back"
    assert (registry.follower.polls, registry.follower.loads) == (9, 3)


def test_another_bundle_under_the_same_name_is_loaded(registry):
    assert registry.polls(2) == ["a"]
    os.utime(registry.folder / "a" / "manifest.json", (1, 1))
    assert registry.polls(2) == ["a"]
    registry.bundle("a", '{"bundle_id": "other"}')
    assert registry.polls(2) == ["a"]


def test_a_link_that_is_turned(registry):
    link = registry.folder / "current"
    link.symlink_to(registry.folder / "a")
    registry.answer = link
    assert registry.polls(2) == ["current"]
    registry.bundle("b")
    link.unlink()
    link.symlink_to(registry.folder / "b")
    assert registry.polls(2) == ["current"]


def test_a_refused_bundle_is_tried_again_and_told_once(registry, caplog):
    registry.polls()
    registry.answer = registry.bundle("b")
    registry.refused = {"b"}
    assert registry.polls(3) == []
    assert registry.follower.errors == {"load: BundleError": 3}
    assert len(caplog.records) == 1 and "the file was changed" in caplog.text
    assert last_good(registry.folder / "last.json") == registry.folder / "a"
    registry.refused = set()
    assert registry.polls(2) == ["b"]
    assert last_good(registry.folder / "last.json") == registry.folder / "b"


def test_an_absent_registry_is_told_once_each_time_it_goes(registry, caplog):
    there = registry.answer
    for _ in range(2):
        registry.answer = ConnectionError("away")
        registry.polls(3)
        registry.answer = OSError("odd")  # another kind: told too
        registry.polls(2)
        registry.answer = there
        registry.polls(1)
    assert registry.follower.errors == {"resolve: ConnectionError": 6, "resolve: OSError": 4}
    assert len(caplog.records) == 4
    assert registry.loaded == ["a"]


def test_last_good(registry, tmp_path):
    remembered = tmp_path / "last.json"
    assert last_good(remembered) is None
    registry.polls()
    assert last_good(remembered) == registry.folder / "a"
    assert json.loads(remembered.read_text()) == {"bundle": str(registry.folder / "a")}
    (registry.folder / "a").rename(registry.folder / "gone")
    assert last_good(remembered) is None
    remembered.write_text("{")
    with pytest.raises(ServingError, match=r"last\.json"):
        last_good(remembered)


def test_a_full_disk_does_not_stop_following(registry, monkeypatch):
    real = follow.write_json

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(follow, "write_json", full)
    assert registry.polls(2) == ["a"]
    assert registry.follower.errors == {"remember: ServingError": 2}
    monkeypatch.setattr(follow, "write_json", real)
    assert registry.polls() == []
    assert last_good(registry.folder / "last.json") == registry.folder / "a", "it is remembered later"


def test_a_thread_polls_and_stops(tmp_path):
    registry = Registry(tmp_path)
    loaded = threading.Event()
    follower = Follower(registry.resolve, lambda path: loaded.set(), 0.01, 0.01)
    follower.start()
    assert loaded.wait(10)
    follower.stop()
    polls = follower.polls
    assert not follower._thread.is_alive() and follower._thread.daemon
    idle = Follower(registry.resolve, registry.load, 10_000, 10_000)
    idle.start()
    idle.stop()  # at once: the test would hang for hours otherwise
    assert (idle.polls, follower.polls) == (0, polls)
    Follower(registry.resolve, registry.load, 1, 1).stop()


def test_intervals_are_jittered(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    follower = Follower(registry.resolve, registry.load, 30, 10)
    waits = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 200

    monkeypatch.setattr(follower._ended, "wait", wait)
    random.seed(1)  # as forked processes would find it
    follower._run()
    assert all(30 <= seconds <= 40 for seconds in waits)
    assert min(waits) < 32 and max(waits) > 38
    other = Follower(registry.resolve, registry.load, 30, 10)
    first, waits = waits, []
    monkeypatch.setattr(other._ended, "wait", wait)
    random.seed(1)
    other._run()
    assert waits != first
    assert follower.polls == 200


# Pointers


def test_pointer(tmp_path):
    pointer = PointerFile(tmp_path / "pointer.json")
    with pytest.raises(ServingError, match="cannot be read"):
        pointer.read()
    pointer.write(tmp_path / "sub" / ".." / "bundle")
    assert pointer.read() == tmp_path / "bundle"
    pointer.path.write_text('{"bundle": "beside"}')
    assert pointer.read() == tmp_path / "beside"
    for damaged in ("", "[]", '{"bundle": 3}', '{"bundle": ""}', "{}", '{"bundle"'):
        pointer.path.write_text(damaged)
        with pytest.raises(ServingError, match=r"pointer\.json"):
            pointer.read()
    with pytest.raises(ServingError, match="cannot be written"):
        PointerFile(tmp_path / "none" / "pointer.json").write(tmp_path)


def test_a_reader_never_sees_half_a_pointer(tmp_path):
    pointer = PointerFile(tmp_path / "pointer.json")
    folders = [tmp_path / "x", tmp_path / ("y" * 200)]
    pointer.write(folders[0])
    over, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(pointer.read())
            except ServingError as error:
                wrong.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(200):
        pointer.write(folders[number % 2])
    over.set()
    thread.join()
    assert not wrong and seen <= set(folders) and seen


def test_several_followers_swap_together(tmp_path):
    registry = Registry(tmp_path)
    pointer = PointerFile(tmp_path / "pointer.json")
    loads: list[list[Path]] = [[], [], []]
    followers = [Follower(pointer.read, one.append, 1000, 0) for one in loads]
    for name in ("a", "b"):
        pointer.write(registry.bundle(name))
        for follower in followers:
            follower.poll()
            follower.poll()
    assert loads == [[tmp_path / "a", tmp_path / "b"]] * 3
