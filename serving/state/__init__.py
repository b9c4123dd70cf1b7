"""Live state: what happened since the bundle was made, in SQLite or Redis, durable when acknowledged."""

from pathlib import Path

from recsys.serving.state.base import Event, StateStore
from recsys.serving.state.redis import RedisStore
from recsys.serving.state.sqlite import SQLiteStore

__all__ = ["Event", "RedisStore", "SQLiteStore", "StateStore", "open_state"]

_REDIS = ("redis://", "rediss://", "unix://")


def open_state(where: str | Path | None) -> StateStore:
    """The store at `where`: a redis://, rediss:// or unix:// address, else a SQLite file; None is memory only.

    Raises ServingError where it cannot be reached or used, MissingExtraError where Redis is asked for without the
    extra `redis`.
    """
    if isinstance(where, str) and where.startswith(_REDIS):
        return RedisStore(where)
    return SQLiteStore(where)
