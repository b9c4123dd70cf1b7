"""Live state: events observed since the bundle was made, durable when acknowledged."""

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import ServingError

_ATTEMPTS = 100

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
    event_id TEXT PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id, time);
"""


@dataclass(frozen=True)
class Event:
    """One thing a user did. Ids are JSON texts, so that 42 and "42" stay apart; time is UTC seconds."""

    event_id: str
    user_id: str
    item_id: str
    time: int


class StateStore:
    """Events in SQLite, kept by ids and not by index, so that they outlive a change of bundle.

    path: a file shared by worker processes, or None for memory only. Raises ServingError for a file that cannot
    be used.
    """

    def __init__(self, path: str | Path | None = None):
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path,
                check_same_thread=False,
                isolation_level=None,
                timeout=10,
            )
            self._set_up()
        except sqlite3.Error as error:
            raise ServingError(
                f"cannot keep live events here ({error})", where=path, fix="give another --state FILE"
            ) from None

    def _set_up(self) -> None:
        """Tables and journal. Where two processes switch a new file to WAL at once, SQLite refuses one of them
        without waiting."""
        for attempt in range(_ATTEMPTS):
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(0.05)
        self._connection.execute("PRAGMA synchronous=FULL")  # an acknowledged event survives a power cut
        self._connection.executescript(_TABLES)

    def add(self, event: Event) -> bool:
        """Keep the event; False where its event_id is known already. On disk when this returns."""
        with self._lock:
            row = (event.event_id, event.user_id, event.item_id, event.time)
            return (
                self._connection.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", row).rowcount
                == 1
            )

    def events(self, user_id: str) -> list[Event]:
        """A user's events in time order; equal times in the order of their event ids."""
        query = (
            "SELECT event_id, user_id, item_id, time FROM events WHERE user_id = ? ORDER BY time, event_id"
        )
        with self._lock:
            return [Event(*row) for row in self._connection.execute(query, (user_id,))]

    def close(self) -> None:
        with self._lock:
            self._connection.close()
