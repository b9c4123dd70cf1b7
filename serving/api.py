"""The HTTP server: /v1/rank, /v1/recommend, /v1/events, /v1/items/{id}/similar, health."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi import Path as FromPath
from fastapi import Query as FromQuery
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from recsys.bundle import Bundle
from recsys.errors import RequestError, ServingError
from recsys.serving import wire
from recsys.serving.engine import Filters, Query, Ranked, RankingEngine
from recsys.serving.state import StateStore

_PROBLEM_TYPE, _DETAIL_LENGTH = "application/problem+json", 500
_REFUSALS = {
    400: "The body is not JSON that can be read",
    413: "The body is too large",
    422: "The request is not valid, or cannot be answered",
}


def create_app(engine: RankingEngine) -> FastAPI:
    """The application around an engine; ready once a request of each kind has been run."""
    ready = asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warm_up(engine)
        ready.set()
        yield
        ready.clear()

    manifest = engine.bundle.manifest
    info = wire.ModelInfo(
        name=manifest["model"], bundle_id=engine.bundle.id, package_version=manifest["package_version"]
    )
    app = FastAPI(
        title="recsys", version=manifest["package_version"], lifespan=lifespan, responses=_documented(_REFUSALS),
        description="Ranks candidate items, or the whole catalogue, for a user or a history.",
    )  # fmt: skip
    _problems(app)

    def answer(asked: wire.Asked, ranked: Ranked, started: float) -> wire.Answer:
        return wire.Answer(
            request_id=asked.request_id or uuid.uuid4().hex,
            model=info,
            items=[wire.Line(item_id=i.item_id, score=i.score, title=i.title) for i in ranked.items],
            fallback=ranked.fallback,
            unknown_items=list(ranked.unknown_items),
            history_length=ranked.history_length,
            timings_ms={"rank": 1000 * (time.perf_counter() - started)},
        )

    # Plain functions: FastAPI runs them in its bounded thread pool, so that a long one never blocks the loop.
    @app.post("/v1/rank", summary="Rank given candidates")
    def rank(body: wire.RankBody) -> wire.Answer:
        started = time.perf_counter()
        ranked = engine.rank(Query(body.user_id, body.history, body.width), body.candidates)
        return answer(body, ranked, started)

    @app.post("/v1/recommend", summary="Recommend from the catalogue")
    def recommend(body: wire.RecommendBody) -> wire.Answer:
        started = time.perf_counter()
        filters = Filters(body.filters.include, body.filters.exclude, body.filters.category)
        query = Query(body.user_id, body.history, body.width)
        return answer(body, engine.recommend(query, body.k, filters, exclude_seen=body.exclude_seen), started)

    @app.get("/v1/items/{item_id:path}/similar", summary="Items like this one")  # an id may hold a slash
    def similar(
        item_id: Annotated[str, FromPath(max_length=200)],
        k: Annotated[int, FromQuery(ge=1, le=wire.MAX_K)] = 10,
    ) -> wire.Answer:
        started = time.perf_counter()
        return answer(wire.Asked(), engine.similar(id_from_text(engine, "item", item_id), k), started)

    @app.post("/v1/events", summary="Tell what a user did")
    def events(body: wire.EventBody) -> wire.EventAnswer:
        kept = engine.observe(body.event_id, body.user_id, body.item_id, body.timestamp)
        return wire.EventAnswer(kept=kept)

    @app.get("/healthz", summary="The process is alive")
    async def healthz() -> wire.Health:
        return wire.Health(status="alive")

    @app.get(
        "/readyz",
        summary="The model is loaded and warm",
        response_model=wire.Health,
        responses=_documented({503: "The model is not warm yet"}),
    )
    async def readyz() -> wire.Health | Response:
        if not ready.is_set():
            return _problem(503, "Not ready", "the model is warming up")
        return wire.Health(status="ready", bundle_id=engine.bundle.id)

    return app


def id_from_text(engine: RankingEngine, entity: str, text: str) -> int | str:
    """An id of a path or command line, typed as the bundle's ids are. Raises RequestError for "abc" where
    ids are integers."""
    if engine.bundle.id_type[entity] == "str":
        return text
    if not re.fullmatch(r"-?[0-9]{1,19}", text):  # int() would also take " 4_2 "
        raise RequestError(f"{entity}_id {text!r}", expected="an integer")
    return int(text)


def warm_up(engine: RankingEngine) -> None:
    """One request of each kind, so that the first caller does not pay for lazy work."""
    some = engine.item_ids[:10]
    engine.rank(Query(history=some[:3]), some)
    engine.recommend(Query(history=some[:3]), 1, exclude_seen=False)


def _documented(refusals: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of refusals by status."""
    content = {_PROBLEM_TYPE: {"schema": wire.Problem.model_json_schema()}}
    return {status: {"description": text, "content": content} for status, text in refusals.items()}


def _problem(status: int, title: str, detail: str) -> Response:
    """Problem details in one line, cut short where a client's own words made it long."""
    problem = wire.Problem(title=title, status=status, detail=" ".join(detail.split())[:_DETAIL_LENGTH])
    return Response(json.dumps(problem.model_dump()), status, media_type=_PROBLEM_TYPE)


def _problems(app: FastAPI) -> None:
    """Every refusal is problem details in one line; a body too large is refused before it is read."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _problem(422, "The request cannot be answered", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _problem(422, "The request is not valid", f"{place or 'body'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        """Unknown routes and methods, and bodies that cannot be parsed."""
        return _problem(error.status_code, "The request cannot be taken", str(error.detail))

    @app.middleware("http")
    async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "content-length" not in request.headers and request.method == "POST"
        if chunked or not re.fullmatch("[0-9]{1,10}", length) or int(length) > wire.MAX_BODY_BYTES:
            detail = f"send a content-length of at most {wire.MAX_BODY_BYTES} bytes"
            return _problem(413, "The body is too large", detail)
        return await call_next(request)


def serve(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    state: str | Path | None = None,
    clock: str = "now",
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Open the bundle and serve it until interrupted; SIGTERM lets running answers finish and ends with exit code 0.

    port 0: any free one. state: SQLite file of live events (memory only where None). clock: "now", or "data" to
    start at the bundle's last event, for demonstrations on old data. listening(url) is called once the port is
    ours. Raises BundleError for a bad bundle, ServingError for an address that cannot be had.
    """
    import uvicorn

    opened = Bundle.open(bundle)
    offset = 0.0 if clock == "now" else opened.manifest["last_event"] - time.time()
    store = StateStore(state)
    engine = RankingEngine(opened, store, clock=lambda: time.time() + offset)
    config = uvicorn.Config(create_app(engine), log_level="warning", timeout_graceful_shutdown=10)
    with contextlib.closing(store), _listen(host, port) as listener:
        listening(f"http://{_shown(host)}:{listener.getsockname()[1]}")
        # uvicorn raises a caught signal again once it has shut down, which would end us with "killed"
        previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, previous)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: uvicorn would log a failure to bind and exit as if it were a bug."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            f"cannot listen ({reason})", where=f"{host}:{port}", fix="give another --port"
        ) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
