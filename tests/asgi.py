"""An ASGI server's part played by hand: requests in pieces, answers kept, the application's end of it recorded."""

import asyncio
import json

from prometheus_client.parser import text_string_to_metric_families

from recsys.serving.guard import Guard
from recsys.serving.keys import KeyRing
from recsys.serving.metrics import Metrics


class Echo:
    """Answers with the body it got; waits for `gate` first where it is shut. scopes: of the requests it saw."""

    def __init__(self):
        self.scopes, self.bodies = [], []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        await self.gate.wait()
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": message["body"]})


class Exchange:
    """One request put to an ASGI application: parts of the body in, the answer out."""

    def __init__(
        self, app, path="/v1/rank", *, parts=(b"{}",), client=("10.0.0.9", 5), stall=None, **headers
    ):
        """stall: number of parts after which nothing more comes. headers: x_api_key for x-api-key."""
        self.parts, self.stall, self.messages, self.taken = list(parts), stall, [], 0
        names = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": names, "client": client}
        self.app = app

    async def receive(self):
        if self.taken == self.stall:
            await asyncio.Event().wait()
        if self.taken == len(self.parts):
            return {"type": "http.disconnect"}
        part = self.parts[self.taken]
        self.taken += 1
        more = self.taken < len(self.parts) or self.stall is not None
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(self, message):
        self.messages.append(message)

    async def run(self):
        await self.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    def problem(self, status):
        """The detail of a refusal that is told as it should be."""
        assert self.status == status
        assert self.headers["content-type"] == "application/problem+json"
        assert int(self.headers["content-length"]) == len(self.body)
        assert self.headers["x-request-id"]
        told = json.loads(self.body)
        assert set(told) == {"type", "title", "status", "detail"} and told["status"] == status
        return told["detail"]


def guarded(app, keys=None, **options):
    settings = {"max_body": 1000, "max_in_flight": 8, "deadline_seconds": 5.0} | options
    return Guard(app, None if keys is None else KeyRing(keys), metrics=Metrics(), **settings)


def ask(guard, *arguments, **options) -> Exchange:
    return asyncio.run(Exchange(guard, *arguments, **options).run())


def counted(guard) -> dict[tuple, float]:
    """(route, status) -> requests."""
    families = text_string_to_metric_families(guard.metrics.render()[0].decode())
    samples = [one for family in families for one in family.samples if one.name == "recsys_requests_total"]
    return {(one.labels["route"], one.labels["status"]): one.value for one in samples}
