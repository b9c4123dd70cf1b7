"""Live state in Redis: several machines share it. One server or a replica set, not a cluster.

An acknowledged event survives a crash of Redis where it runs with `appendonly yes` and either is 7.2 or later, or has
`appendfsync always`. Replication is asynchronous: a failover may lose the last events.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from recsys.errors import ServingError, require
from recsys.serving.state import scripts
from recsys.serving.state.base import Event, StateStore

_SECONDS, _SYNC_MS, _CHUNK = 10.0, 5000, 1000

logger = logging.getLogger("recsys")


class RedisStore(StateStore):
    """State under the keys "recsys:..." of the database that the address names: redis://host:port/db, rediss://
    (TLS) or unix://path?db=0.

    Warns once where the server may lose what it acknowledged. Raises ServingError where it cannot be reached,
    MissingExtraError without the package `redis`.
    """

    def __init__(self, url: str):
        redis = require("redis", "redis", purpose="keeping live state in Redis")
        self._where = re.sub("//.*@", "//", url.partition("?")[0])  # without a password
        self._error, self._refusal = redis.RedisError, redis.ResponseError
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
                # a second try of add() would say "kept before" of an event that the first one kept
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            )
        except ValueError as error:
            raise ServingError(
                f"this is no address of Redis ({error})", where=self._where, fix="give redis://HOST:PORT/DB"
            ) from None
        with self._reaching():
            self._waits = self._inspect()

    def _inspect(self) -> bool:
        """Whether a write can and must wait for the disk; a warning where nothing makes it durable."""
        info = self._client.info()
        major, minor = (int(part) for part in str(info["redis_version"]).split(".")[:2])
        waits = bool(info["aof_enabled"]) and (major, minor) >= (7, 2)
        if not waits and not (info["aof_enabled"] and self._always()):
            logger.warning(
                "%s: a crash of this Redis may lose acknowledged events; run it with appendonly yes and "
                "appendfsync always",
                self._where,
            )
        if info.get("maxmemory") and str(info["maxmemory_policy"]).startswith("allkeys"):
            logger.warning(
                "%s: this Redis throws events away when its memory is full; run it with maxmemory-policy noeviction",
                self._where,
            )
        return waits

    def _always(self) -> bool:
        """Whether Redis waits for the disk itself; False where it does not let us know."""
        try:
            return self._client.config_get("appendfsync").get("appendfsync") == "always"
        except self._refusal:
            return False

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise ServingError(
                f"live state cannot be read or written ({error})", where=self._where, fix="look after Redis"
            ) from None

    def _run(self, script: str, *values: Any) -> Any:
        with self._reaching():
            return self._client.eval(script, 0, *values)

    def _durably(self, script: str, *values: Any) -> Any:
        """As _run; on the server's disk when this returns, where the server can say so."""
        if not self._waits:
            return self._run(script, *values)
        with self._reaching(), self._client.pipeline(transaction=False) as both:  # WAITAOF is per connection
            both.eval(script, 0, *values)
            both.execute_command("WAITAOF", 1, 0, _SYNC_MS)
            answer, synced = both.execute()
        if int(synced[0]) < 1:
            raise ServingError(
                f"Redis did not write to its disk within {_SYNC_MS // 1000} s",
                where=self._where,
                fix="free its disk",
            )
        return answer

    def add(self, events: Sequence[Event]) -> list[bool]:
        values: list[str | int] = []
        for event in events:
            body = json.dumps([event.event_id, event.item_id, event.time])
            values += [event.event_id, event.user_id, event.time, body]
        return [kept == 1 for kept in self._durably(scripts.ADD, *values)]

    def events(self, user_id: str) -> list[Event]:
        found = [event for _, event in self.tail(user_id, 0)]
        return sorted(found, key=lambda event: (event.time, event.event_id))

    def tail(self, user_id: str, after: int) -> list[tuple[int, Event]]:
        with self._reaching():
            found = self._client.zrangebyscore(f"recsys:events:{user_id}", f"({after}", "+inf")
        numbered = []
        for member in found:
            sequence, _, body = member.partition(b":")
            numbered.append((int(sequence), _event(user_id, body)))
        return numbered

    def recent(self, after: int) -> list[tuple[int, Event]]:
        with self._reaching():
            found = self._client.zrangebyscore("recsys:recent", f"({after}", "+inf")
        numbered = []
        for member in found:
            sequence, size, rest = member.split(b":", 2)
            user_id, body = rest[: int(size)].decode(), rest[int(size) :]
            numbered.append((int(sequence), _event(user_id, body)))
        return numbered

    def forget(self, user_id: str, at: int) -> int:
        return self._durably(scripts.FORGET, user_id, at)

    def forgotten(self, user_id: str) -> int | None:
        with self._reaching():
            at = self._client.hget("recsys:forgotten", user_id)
        return None if at is None else int(at)

    def save_state(self, version: str, user_id: str, after: int, state: bytes) -> None:
        self._run(scripts.SAVE, version, user_id, after, state)

    def load_state(self, version: str, user_id: str) -> tuple[int, bytes] | None:
        with self._reaching():
            found = self._client.hget(f"recsys:states:{version}", user_id)
        if found is None:
            return None
        after, _, state = found.partition(b":")
        return int(after), state

    def drop_states(self, keep: Sequence[str]) -> int:
        return self._run(scripts.DROP, *keep)

    def put_items(self, records: Mapping[str, bytes]) -> None:
        self._change([(item_id, b"+" + content) for item_id, content in records.items()])

    def remove_items(self, item_ids: Sequence[str]) -> None:
        self._change([(item_id, b"-") for item_id in item_ids])

    def _change(self, rows: list[tuple[str, bytes]]) -> None:
        """In pieces, so that other requests come between them."""
        for start in range(0, len(rows), _CHUNK):
            values = [value for row in rows[start : start + _CHUNK] for value in row]
            self._durably(scripts.CHANGE, *values)

    def items_after(self, after: int) -> list[tuple[int, str, bytes | None]]:
        newest: dict[str, tuple[int, str, bytes | None]] = {}
        while True:
            found = self._run(scripts.CHANGED, after, _CHUNK)
            for sequence, item, value in zip(found[::3], found[1::3], found[2::3], strict=True):
                after, item_id = int(sequence), item.decode()
                newest.pop(item_id, None)  # changed again between two pieces: its place is the later one
                newest[item_id] = after, item_id, value[1:] if value[:1] == b"+" else None
            if len(found) < 3 * _CHUNK:
                return list(newest.values())

    def ping(self) -> None:
        self._durably(scripts.TOUCH)

    def close(self) -> None:
        self._client.close()


def _event(user_id: str, body: bytes) -> Event:
    event_id, item_id, time = json.loads(body)
    return Event(event_id, user_id, item_id, time)
