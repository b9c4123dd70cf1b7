"""Live state in SQLite: one file for several processes of a machine, or memory."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.errors import ServingError
from recsys.serving.state import tables
from recsys.serving.state.base import Event, StateStore
from recsys.serving.state.writer import Work, Writer

_ADD = """
INSERT OR IGNORE INTO events (event_id, user_id, item_id, time) SELECT ?1, ?2, ?3, ?4
WHERE NOT EXISTS (SELECT 1 FROM forgotten WHERE user_id = ?2 AND at >= ?4)
AND NOT EXISTS (SELECT 1 FROM spent WHERE event_id = ?1)
"""
_FORGET = """
INSERT INTO forgotten (user_id, at, after) VALUES (?1, ?2, coalesce(
    (SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0))
ON CONFLICT (user_id) DO UPDATE SET at = max(at, excluded.at), after = excluded.after
"""
_SAVE = """
INSERT OR REPLACE INTO states (user_id, version, after, state) SELECT ?1, ?2, ?3, ?4
WHERE NOT EXISTS (SELECT 1 FROM forgotten WHERE user_id = ?1 AND after >= ?3)
"""
_CHANGE = """
INSERT OR REPLACE INTO items (item_id, content) SELECT ?1, ?2
WHERE NOT EXISTS (SELECT 1 FROM items WHERE item_id = ?1 AND content IS ?2)
"""


class _File:
    """A state file, and whether it is still the one that was opened: SQLite writes on into a deleted file."""

    def __init__(self, path: Path):
        self.path = path
        self._opened = self._identity()

    def _identity(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino

    def check(self) -> None:
        try:
            if self._identity() == self._opened:
                return
            reason = "another file has taken its place"
        except OSError as error:
            reason = error.strerror or str(error)
        raise ServingError(
            f"the file of live state is gone ({reason})", where=self.path, fix="put it back, or start again"
        )


class SQLiteStore(StateStore):
    """State in a SQLite file, shared by worker processes, or in memory only where path is None.

    Each writer commits to disk with the others that wait at that moment; readers never wait for writers. Raises
    ServingError for a file that cannot be used.
    """

    def __init__(self, path: str | Path | None = None):
        self._path = None if path is None else Path(path)
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            self._connection = tables.opened(self._path)
            self._check = (lambda: None) if self._path is None else _File(self._path).check
        except (sqlite3.Error, OSError) as error:
            raise ServingError(
                f"cannot keep live events here ({error})", where=path, fix="give another --state FILE"
            ) from None
        self._writer = Writer(self._connection, self._check)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """SQLite's errors as ours, with the file's name."""
        try:
            yield
        except sqlite3.Error as error:
            raise ServingError(
                f"live state cannot be read or written ({error})",
                where=self._path,
                fix="free its disk, or let go of the file",
            ) from None

    def _write(self, work: Work[Any], *, durable: bool = True) -> Any:
        with self._telling():
            return self._writer.run(work, durable=durable)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread alone; in memory the only one there is, between two commits."""
        if self._closed:
            raise ServingError("this store is closed", where=self._path, fix="open it again")
        if self._path is None:
            with self._writer.lock:
                yield self._connection
            return
        self._check()
        connection = self._reader()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return tables.connect(self._path)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._telling(), self._reading() as connection:
            return connection.execute(query, values).fetchall()

    def add(self, events: Sequence[Event]) -> list[bool]:
        rows = [(event.event_id, event.user_id, event.item_id, event.time) for event in events]
        return self._write(lambda connection: [connection.execute(_ADD, row).rowcount == 1 for row in rows])

    def events(self, user_id: str) -> list[Event]:
        query = (
            "SELECT event_id, user_id, item_id, time FROM events WHERE user_id = ? ORDER BY time, event_id"
        )
        return [Event(*row) for row in self._rows(query, user_id)]

    def tail(self, user_id: str, after: int) -> list[tuple[int, Event]]:
        query = (
            "SELECT sequence, event_id, user_id, item_id, time FROM events "
            "WHERE user_id = ? AND sequence > ? ORDER BY sequence"
        )
        return [(sequence, Event(*row)) for sequence, *row in self._rows(query, user_id, after)]

    def recent(self, after: int) -> list[tuple[int, Event]]:
        query = "SELECT sequence, event_id, user_id, item_id, time FROM events WHERE sequence > ? ORDER BY sequence"
        return [(sequence, Event(*row)) for sequence, *row in self._rows(query, after)]

    def forget(self, user_id: str, at: int) -> int:
        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_FORGET, (user_id, at))
            connection.execute("DELETE FROM states WHERE user_id = ?", (user_id,))
            connection.execute("INSERT INTO spent SELECT event_id FROM events WHERE user_id = ?", (user_id,))
            return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount

        return self._write(work)

    def forgotten(self, user_id: str) -> int | None:
        found = self._rows("SELECT at FROM forgotten WHERE user_id = ?", user_id)
        return found[0][0] if found else None

    def save_state(self, version: str, user_id: str, after: int, state: bytes) -> None:
        row = (user_id, version, after, state)
        self._write(lambda connection: connection.execute(_SAVE, row), durable=False)

    def load_state(self, version: str, user_id: str) -> tuple[int, bytes] | None:
        query = "SELECT after, state FROM states WHERE user_id = ? AND version = ?"
        found = self._rows(query, user_id, version)
        return found[0] if found else None

    def drop_states(self, keep: Sequence[str]) -> int:
        query = f"DELETE FROM states WHERE version NOT IN ({', '.join('?' * len(keep))})"
        return self._write(lambda connection: connection.execute(query, tuple(keep)).rowcount, durable=False)

    def put_items(self, records: Mapping[str, bytes]) -> None:
        rows = list(records.items())
        self._write(lambda connection: connection.executemany(_CHANGE, rows).rowcount)

    def remove_items(self, item_ids: Sequence[str]) -> None:
        rows = [(item_id, None) for item_id in item_ids]
        self._write(lambda connection: connection.executemany(_CHANGE, rows).rowcount)

    def items_after(self, after: int) -> list[tuple[int, str, bytes | None]]:
        return self._rows(
            "SELECT sequence, item_id, content FROM items WHERE sequence > ? ORDER BY sequence", after
        )

    def ping(self) -> None:
        self._write(tables.touch, durable=False)

    def close(self) -> None:
        self._writer.close()
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._connection.close()
