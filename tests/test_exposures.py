"""The log of what was shown: complete, in order, by process and day, and never in the way of an answer."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from recsys.errors import ServingError
from recsys.serving import exposures
from recsys.serving.exposures import ExposureLog

NOON = 1_800_000_000.0
"""15 January 2027, 08:00 UTC."""
DAY = 86_400.0
ITEMS, SCORES = ["b", 7, "ü"], [2.5, None, -1.0]


def lines(folder: Path) -> dict[str, list[dict]]:
    """File name -> its lines."""
    return {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in folder.iterdir()
    }


def named(day: str) -> str:
    return f"exposures-{day}-{os.getpid()}.jsonl"


@pytest.fixture
def clock() -> list[float]:
    return [NOON]


@pytest.fixture
def log(tmp_path, clock):
    """Written when a test says so, not by its thread."""
    made = ExposureLog(tmp_path / "log", every=10_000, clock=lambda: clock[0])
    yield made
    made.close()


def add(log: ExposureLog, *names: str) -> None:
    for name in names:
        log.add(name, "main", "bundle", None, ITEMS[:1], SCORES[:1])


def names(folder: Path) -> dict[str, list[str]]:
    return {name: [line["request_id"] for line in found] for name, found in lines(folder).items()}


def test_a_line(log):
    log.add("r1", "b", "bundle", "user-9", ITEMS, SCORES)
    log.add("r2", "main", "bundle", None, [], [])
    assert lines(log.folder) == {}, "nothing touches the disk before it is time"
    log.flush()
    assert lines(log.folder)[named("2027-01-15")] == [
        {
            "request_id": "r1", "variant": "b", "bundle_id": "bundle", "user": "user-9", "items": ["b", 7, "ü"],
            "positions": [1, 2, 3], "scores": [2.5, None, -1.0], "time": NOON,
        },
        {
            "request_id": "r2", "variant": "main", "bundle_id": "bundle", "user": None, "items": [],
            "positions": [], "scores": [], "time": NOON,
        },
    ]  # fmt: skip
    assert (log.written, log.lost) == (2, 0)


def test_a_file_a_day_even_when_the_clock_goes_back(log, clock):
    add(log, "1")
    clock[0] = NOON + DAY
    add(log, "2", "3")
    clock[0] = NOON - 60
    add(log, "4")
    log.flush()
    add(log, "5")
    log.flush()
    assert names(log.folder) == {named("2027-01-15"): ["1", "4", "5"], named("2027-01-16"): ["2", "3"]}


def test_the_thread_writes_and_close_writes_the_rest(tmp_path):
    log = ExposureLog(tmp_path, every=0.01)
    add(log, "1")
    waiting = threading.Event()
    while not log.written:
        waiting.wait(0.01)
    log.close()
    assert not log._thread.is_alive()
    late = ExposureLog(tmp_path, every=10_000)
    add(late, "2", "3")
    late.close()
    ((_, found),) = names(tmp_path).items()
    assert found == ["1", "2", "3"]


def test_by_default_a_line_waits_a_second_at_most(tmp_path):
    log = ExposureLog(tmp_path)
    assert log._every <= 1.0
    log.close()


def test_many_threads(log):
    def work(number: int) -> None:
        for index in range(200):
            add(log, f"{number}-{index}")
            if index % 50 == 0:
                log.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    ((_, found),) = names(log.folder).items()
    assert sorted(found) == sorted(f"{number}-{index}" for number in range(4) for index in range(200))
    for number in range(4):
        own = [name for name in found if name.startswith(f"{number}-")]
        assert own == [f"{number}-{index}" for index in range(200)]


def test_a_full_disk_loses_whole_lines_and_is_told_once(log, monkeypatch, caplog):
    add(log, "before")
    log.flush()
    full = [True]
    real = exposures._write_all

    def write(stream, content: bytes) -> None:
        if full[0]:
            stream.write(content[:9])  # a part fits
            raise OSError(errno.ENOSPC, "No space left on device")
        real(stream, content)

    monkeypatch.setattr(exposures, "_write_all", write)
    add(log, "lost-1", "lost-2")
    log.flush()
    add(log, "lost-3")
    log.flush()
    assert (log.written, log.lost) == (1, 3)
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    full[0] = False
    add(log, "after")
    log.flush()
    assert names(log.folder) == {named("2027-01-15"): ["before", "after"]}


def test_a_folder_that_goes_away(log, caplog):
    add(log, "1")
    log.folder.rmdir()
    log.flush()
    assert (log.written, log.lost) == (0, 1) and len(caplog.records) == 1
    log.folder.mkdir()
    add(log, "2")
    log.flush()
    assert log.written == 1


def test_the_memory_is_bounded(log, monkeypatch):
    monkeypatch.setattr(exposures, "MAX_WAITING", 5)
    add(log, *map(str, range(8)))
    assert log.lost == 3
    log.flush()
    add(log, "8")
    log.flush()
    ((_, found),) = names(log.folder).items()
    assert found == ["0", "1", "2", "3", "4", "8"]


def test_half_a_line_of_a_killed_process_stands_alone(log):
    path = log.folder / named("2027-01-15")
    path.write_bytes(b'{"request_id": "x"}\n{"requ')
    add(log, "1")
    log.flush()
    first, torn, last = path.read_text().splitlines()
    assert (json.loads(first)["request_id"], torn) == ("x", '{"requ')
    assert json.loads(last)["request_id"] == "1"


def test_a_write_that_takes_a_part_goes_on():
    taken = []

    class Slow:
        def write(self, view) -> int:
            taken.append(bytes(view[:3]))
            return len(taken[-1])

    exposures._write_all(Slow(), b"abcdefgh")
    assert taken == [b"abc", b"def", b"gh"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match="cannot be made"):
        ExposureLog(tmp_path / "file" / "log")
