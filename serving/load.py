"""An open-loop HTTP/1.1 client on one thread, for loads that share the machine with the server.

It keeps its connections, makes every request's bytes beforehand, and reads of an answer no more than status, length and
timings while the load is on.
"""

import asyncio
import gc
import selectors
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import orjson

from recsys.errors import ConfigError, ServingError
from recsys.serving.traffic import Traffic

LOST, NO_ANSWER = 0, -1
"""In place of an HTTP status."""
CONNECTIONS = 64
_TIMINGS = b'"timings_ms":'


@dataclass(frozen=True)
class Trace:
    """What became of every request; seconds since the start of the load.

    scheduled_N: when it was due. fired_N: when the client came to it. done_N: when the answer was there, nan where
    there was none. status_N: HTTP status, LOST or NO_ANSWER. timings: `timings_ms` of the answers that had them.
    ended: when waiting ended.
    """

    scheduled_N: np.ndarray
    fired_N: np.ndarray
    done_N: np.ndarray
    status_N: np.ndarray
    timings: Sequence[Mapping[str, float]]
    ended: float

    @cached_property
    def latency_ms(self) -> np.ndarray:
        """From the scheduled time on; a lower bound where there was no answer."""
        return 1000 * (np.where(np.isnan(self.done_N), self.ended, self.done_N) - self.scheduled_N)


class Load:
    """Calls send(number) at every scheduled time; whoever sends calls `answered` later. Runs on the loop's clock.

    finished: done once every request has been answered; whoever sends may set an exception.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, times_N: np.ndarray):
        self.loop, self.times = loop, times_N.tolist()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.fired, self.done = [np.nan] * len(times_N), [np.nan] * len(times_N)
        self.status, self.raw = [NO_ANSWER] * len(times_N), [b""] * len(times_N)
        self.open, self.next, self.origin = len(times_N), 0, 0.0

    def start(self, send: Callable[[int], None]) -> None:
        self.send, self.origin = send, self.loop.time()
        self._due()

    def now(self) -> float:
        return self.loop.time() - self.origin

    def _due(self) -> None:
        """Send all that is due, however late, and wake up for the next."""
        while self.next < len(self.times) and self.times[self.next] <= self.now():
            number = self.next
            self.next += 1
            self.fired[number] = self.now()
            self.send(number)
        if self.next < len(self.times):
            self.loop.call_at(self.origin + self.times[self.next], self._due)

    def answered(self, number: int, status: int, timings: bytes = b"") -> None:
        """timings: the JSON object, or nothing."""
        self.status[number], self.raw[number] = status, timings
        if status != LOST:
            self.done[number] = self.now()
        self.open -= 1
        if self.open == 0 and not self.finished.done():
            self.finished.set_result(None)

    def trace(self) -> Trace:
        fired_N = np.array(self.fired)
        late = np.isnan(fired_N)
        if late.any():  # only where the client itself came to a stop
            fired_N[late] = self.now()
        timings = [orjson.loads(one) for one in self.raw if one]
        return Trace(
            np.array(self.times), fired_N, np.array(self.done), np.array(self.status), timings, self.now()
        )


class Reply(NamedTuple):
    """An answer as far as a load test reads it."""

    status: int
    body: bytes
    length: int


def read_reply(buffer: bytearray) -> Reply | None:
    """The answer at the head of the buffer and its length in bytes; None while it is not whole.

    Raises ServingError for an answer that does not say how long it is.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(buffer[:end]).lower()
    place = head.find(b"\r\ncontent-length:")
    if not head.startswith(b"http/1.") or place < 0:
        raise ServingError(
            "an answer that a load test cannot read", expected="HTTP/1.1 with a content-length"
        )
    length = end + 4 + int(head[place + 17 :].split(b"\r\n", 1)[0])
    if len(buffer) < length:
        return None
    return Reply(int(head[9:12]), bytes(buffer[end + 4 : length]), length)


def timings_of(body: bytes) -> bytes:
    """The object `timings_ms` of an answer as it stands there, found without reading the rest; empty without one."""
    place = body.rfind(_TIMINGS)
    if place < 0:
        return b""
    return body[place + len(_TIMINGS) : body.index(b"}", place) + 1]


class _Connection(asyncio.Protocol):
    """A kept connection with at most one request under way."""

    def __init__(self, pool: "_Pool"):
        self.pool, self.buffer, self.number = pool, bytearray(), -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.pool.made(self)

    def ask(self, number: int) -> None:
        self.number = number
        self.transport.write(self.pool.bytes_of(number))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        try:
            reply = read_reply(self.buffer)
        except ServingError as error:
            self.pool.fail(error)
            return
        if reply is not None:
            number, self.number = self.number, -1
            del self.buffer[: reply.length]
            self.pool.load.answered(number, reply.status, timings_of(reply.body))
            self.pool.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.lost(self)


class _Pool:
    """Connections to one server. Idle ones take turns, so that none lies idle until the server closes it."""

    def __init__(self, load: Load, address: tuple[str, int], requests: list[bytes], first: int):
        self.load, self.address, self.requests, self.first = load, address, requests, first
        self.all: set[_Connection] = set()
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[int] = deque()
        self.opening: set[asyncio.Task] = set()
        self.closed = False

    async def connect(self) -> None:
        await self.load.loop.create_connection(lambda: _Connection(self), *self.address)

    def bytes_of(self, number: int) -> bytes:
        return self.requests[(self.first + number) % len(self.requests)]

    def made(self, connection: _Connection) -> None:
        self.all.add(connection)
        self.free(connection)

    def send(self, number: int) -> None:
        if self.idle:
            self.idle.popleft().ask(number)
        else:
            self.waiting.append(number)

    def free(self, connection: _Connection) -> None:
        if self.waiting:
            connection.ask(self.waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        if self.closed:
            return
        self.all.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.number >= 0:
            self.load.answered(connection.number, LOST)
        task = self.load.loop.create_task(self.connect())
        self.opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task) -> None:
        self.opening.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(ServingError(f"the server went away ({error})", where="{}:{}".format(*self.address)))

    def fail(self, error: Exception) -> None:
        if not self.load.finished.done():
            self.load.finished.set_exception(error)

    def close(self) -> None:
        self.closed = True
        for task in self.opening:
            task.cancel()
        for connection in self.all:
            connection.transport.abort()


def fire(
    url: str,
    traffic: Traffic,
    times_N: np.ndarray,
    *,
    first: int = 0,
    connections: int = CONNECTIONS,
    patience: float = 5.0,
) -> Trace:
    """Send the traffic, from body number `first` on, at these times (seconds, ascending) and wait for the answers,
    `patience` seconds at most after the last was due.

    connections: at most; a request that finds all of them busy waits, and its latency goes on counting.
    Raises ConfigError for a URL that is not http, ServingError for a server that cannot be reached, or goes away.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"URL {url!r}", expected="http://HOST:PORT")
    address = (parts.hostname, parts.port or 80)
    target = f"{parts.path.rstrip('/')}{traffic.path}"
    requests = [_request(target, parts.netloc, body) for body in traffic.bodies]
    # epoll counts in whole milliseconds, select in microseconds: requests would leave up to a millisecond late
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    load = Load(loop, times_N)
    pool = _Pool(load, address, requests, first)
    # no more than are used before the server closes them as idle
    rate = len(times_N) / max(float(times_N[-1]), 1e-9)
    connections = int(min(max(rate, 4), connections, len(times_N)))
    gc.collect()
    gc.disable()  # a collection in the client would count as the server's latency
    try:
        return loop.run_until_complete(_fire(load, pool, connections, patience))
    finally:
        gc.enable()
        loop.close()


async def _fire(load: Load, pool: _Pool, connections: int, patience: float) -> Trace:
    try:
        for _ in range(connections):
            await pool.connect()
        load.start(pool.send)
        await asyncio.wait([load.finished], timeout=load.times[-1] + patience)
        if load.finished.done():
            load.finished.result()  # raises what made an end of the load
        return load.trace()
    except OSError as error:
        raise ServingError(
            f"cannot be reached ({error.strerror or error})", where="http://{}:{}".format(*pool.address)
        ) from None
    finally:
        pool.close()
        await asyncio.sleep(0)  # the loop lets go of the sockets


def _request(target: str, host: str, body: bytes) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
