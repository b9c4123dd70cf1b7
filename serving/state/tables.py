"""The tables of a SQLite state file, and how a file is opened."""

import sqlite3
import time
from pathlib import Path

from recsys.errors import ServingError

BUSY_SECONDS = 10.0
"""How long a writer waits for another process's transaction."""
_ATTEMPTS = 100
_VERSION = 2
_TABLES = (
    # AUTOINCREMENT: the number of a deleted row is not given again
    """CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL UNIQUE, user_id TEXT NOT NULL, item_id TEXT NOT NULL, time INTEGER NOT NULL
    )""",
    "CREATE INDEX events_of_user ON events (user_id)",  # and by sequence, as in every index of SQLite
    "CREATE TABLE spent (event_id TEXT PRIMARY KEY) WITHOUT ROWID",
    """CREATE TABLE forgotten (
        user_id TEXT PRIMARY KEY, at INTEGER NOT NULL, after INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE states (
        user_id TEXT NOT NULL, version TEXT NOT NULL, after INTEGER NOT NULL, state BLOB NOT NULL,
        PRIMARY KEY (user_id, version)
    )""",
    """CREATE TABLE items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, content BLOB
    )""",
)


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection without implicit transactions that any one thread at a time may use; None is memory."""
    where = ":memory:" if path is None else path
    return sqlite3.connect(where, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)


def opened(path: Path | None) -> sqlite3.Connection:
    """A connection to a file with a write-ahead log and our tables. Raises ServingError for one of a later version."""
    connection = connect(path)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    _write_ahead(connection)
    # a forgotten user's bytes are overwritten, not just unlinked
    connection.execute("PRAGMA secure_delete=ON")
    if _version(connection) == _VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _make(connection, path)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def touch(connection: sqlite3.Connection) -> None:
    """A write that changes nothing: fails where the file takes none."""
    connection.execute(f"PRAGMA user_version={_VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Where two processes switch a new file at once, SQLite refuses one of them without waiting."""
    for attempt in range(_ATTEMPTS):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(0.05)


def _make(connection: sqlite3.Connection, path: Path | None) -> None:
    """The tables, unless another process was first; the events of a file of version 0.1 move into them."""
    version = _version(connection)
    if version == _VERSION:
        return
    if version > _VERSION:
        raise ServingError(
            f"live state of version {version}",
            where=path,
            expected=f"at most {_VERSION}",
            fix="install a later recsys",
        )
    old = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'events'").fetchone()
    if old:
        connection.execute("ALTER TABLE events RENAME TO old_events")
    for table in _TABLES:
        connection.execute(table)
    if old:
        connection.execute(
            "INSERT INTO events (event_id, user_id, item_id, time) "
            "SELECT event_id, user_id, item_id, time FROM old_events ORDER BY time, event_id"
        )
        connection.execute("DROP TABLE old_events")
    touch(connection)
