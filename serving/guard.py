"""What a request must pass before the application sees it: a key, a size, a depth, a free place, in time.

Plain ASGI, a few microseconds a request. Refusals are problem details (RFC 9457).
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np

from recsys.serving.keys import KeyRing
from recsys.serving.lane import replayed
from recsys.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_DEPTH = 32
_HEALTH = frozenset({"/healthz", "/readyz"})
_HEALTH_PREFIX, _METRICS = "/v2/health/", "/metrics"
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for"})
_VISIBLE = bytes(range(0x21, 0x7F))
_AGAIN, _CLOSE = (b"retry-after", b"1"), (b"connection", b"close")
_LEFT = 499
"""Counted, never sent: the client was gone before its body had come."""

_BRACKETS = bytes(0x01 if byte in b"[{" else 0xFF if byte in b"]}" else 0 for byte in range(256))
"""+1 for an opening bracket, -1 (as int8) for a closing one."""
_OTHERS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class _Refused(Exception):
    """What the client is told instead of an answer."""

    def __init__(self, status: int, title: str, detail: str, *headers: tuple[bytes, bytes]):
        super().__init__(title)
        self.status, self.headers = status, headers
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        self.body = json.dumps(problem).encode()

    async def tell(self, send: Send) -> None:
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Guard:
    """ASGI middleware around everything; it also counts requests, by the route that the application found.

    Sets scope["state"]["request_id"] (the header x-request-id of 1 to 200 visible ASCII characters, else a new one)
    and the same header of the answer. What the application puts into scope["state"]["observed"] is handed to
    `Metrics.observe` by name. Health is answered without a key and however busy the server is; /metrics without a key
    on loopback only.
    """

    def __init__(
        self,
        app: App,
        keys: KeyRing | None,
        max_body: int,
        max_in_flight: int,
        deadline_seconds: float,
        metrics: Metrics,
        *,
        at_once: int = 40,
        body_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """max_body: bytes. max_in_flight: requests taken in, those that wait among them; at_once: those begun (40 is
        how many plain functions Starlette runs). deadline_seconds: longest wait between a request's last byte and its
        beginning. body_seconds: for a body to come. keys None: everybody may ask."""
        self.app, self.keys, self.metrics = app, keys, metrics
        self.max_body, self.max_in_flight = max_body, max_in_flight
        self.deadline, self.body_seconds, self._clock = deadline_seconds, body_seconds, clock
        self._begun = asyncio.Semaphore(at_once)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # a websocket: no route has one, and none may come in past the keys
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = self._clock()
        named = key = length = b""
        forwarded = False
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                named = value
            elif name == b"x-api-key":
                key = value
            elif name == b"content-length":
                length = value
            elif name in _FORWARDED:
                forwarded = True
        if not 1 <= len(named) <= 200 or named.translate(None, _VISIBLE):
            named = os.urandom(16).hex().encode()
        # a dictionary of its own: the server may hand every request the same one
        state = scope["state"] = {**scope.get("state", {}), "request_id": named.decode()}
        status, route = 500, "other"

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", named)]
            await send(message)

        self.metrics.entered()
        try:
            path = scope["path"]
            if path in _HEALTH or path.startswith(_HEALTH_PREFIX):
                await self.app(scope, receive, answer)
            else:
                local = path == _METRICS and not forwarded and _on_loopback(scope)
                if self.keys is not None and not local and not self.keys.holds(key):
                    raise _Refused(
                        401, "A key is needed", "send a valid X-API-Key", (b"www-authenticate", b"ApiKey")
                    )
                if path == _METRICS:  # wanted most when the server is full
                    await self.app(scope, receive, answer)
                elif not await self._admitted(scope, receive, answer, length):
                    status = _LEFT
        except _Refused as refused:
            route = "guard"
            await refused.tell(answer)
        finally:
            self.metrics.left()
            found = getattr(scope.get("route"), "path", route)
            self.metrics.observe(found, status, self._clock() - arrived, **state.get("observed", {}))

    async def _admitted(self, scope: Scope, receive: Receive, answer: Send, length: bytes) -> bool:
        """Read the body, wait for a place, run the application. False where the client left before that."""
        if self._in_flight >= self.max_in_flight:
            raise _Refused(503, "The server is full", f"{self.max_in_flight} requests are in flight", _AGAIN)
        self._in_flight += 1
        try:
            body = await self._body(receive, length)
            if body is None:
                return False
            _check_json(body)
            ready = self._clock()
            # Requests that came together are all taken in before the first is begun: one that the application
            # answers without leaving the event loop would otherwise hide how many wait behind it, and how long.
            await asyncio.sleep(0)
            async with self._begun:
                if self._clock() - ready > self.deadline:
                    raise _Refused(
                        503, "The request waited too long", f"not begun within {self.deadline:g} s", _AGAIN
                    )
                whole = {"type": "http.request", "body": body, "more_body": False}
                await self.app(scope, replayed([whole], receive), answer)
            return True
        finally:
            self._in_flight -= 1

    async def _body(self, receive: Receive, length: bytes) -> bytes | None:
        """All of the body; None where the client left."""
        if length and not (length.isdigit() and len(length) <= 18 and int(length) <= self.max_body):
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.max_body:  # a body in chunks names no length
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise _Refused(
                408, "The body is too slow", f"send it within {self.body_seconds:g} s", _CLOSE
            ) from None

    def _too_large(self) -> _Refused:
        return _Refused(
            413, "The body is too large", f"send a content-length of at most {self.max_body} bytes", _CLOSE
        )


def _check_json(body: bytes) -> None:
    """Refuse what a parser may choke on; whether it is JSON at all, the parser tells."""
    if (
        b"\0" in body
    ):  # in UTF-16 or UTF-32, which JSON between machines is not, brackets could hide from `depth`
        raise _Refused(400, "The body is not JSON that can be read", "expected UTF-8")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and depth(body) > MAX_DEPTH:
        raise _Refused(400, "The body is nested too deeply", f"expected at most {MAX_DEPTH} levels")


def depth(body: bytes) -> int:
    """The deepest nesting of brackets outside strings, as far as the bytes are JSON in UTF-8."""
    # escapes go first, pairs of backslashes before quotes, so that what is left of a quote begins or ends a string
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(bare.split(b'"')[::2]).translate(_BRACKETS, _OTHERS)
    if not brackets:
        return 0
    return max(0, int(np.cumsum(np.frombuffer(brackets, np.int8), dtype=np.int64).max()))


def _on_loopback(scope: Scope) -> bool:
    host = (scope.get("client") or ("",))[0]
    return host.removeprefix("::ffff:").startswith("127.") or host == "::1"
