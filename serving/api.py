"""The HTTP server: /v1/rank, /v1/recommend, /v1/events, /v1/items/{id}/similar, health."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi import Path as FromPath
from fastapi import Query as FromQuery
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from recsys.bundle import Bundle
from recsys.errors import RequestError
from recsys.serving import wire
from recsys.serving.engine import Filters, Query, Ranked, RankingEngine
from recsys.serving.state import StateStore

_PROBLEMS = {status: {"model": wire.Problem} for status in (413, 422)}


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
        title="recsys", version=manifest["package_version"], lifespan=lifespan, responses=_PROBLEMS,
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

    @app.get("/v1/items/{item_id}/similar", summary="Items like this one")
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
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="The model is loaded and warm", responses={503: {"model": wire.Problem}})
    async def readyz(response: Response) -> dict[str, str]:
        if not ready.is_set():
            response.status_code = 503
        return {"status": "ready" if ready.is_set() else "warming up", "bundle_id": engine.bundle.id}

    return app


def id_from_text(engine: RankingEngine, entity: str, text: str) -> int | str:
    """An id of a path or command line, typed as the bundle's ids are. Raises RequestError for "abc" where
    ids are integers."""
    if engine.bundle.id_type[entity] == "str":
        return text
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"{entity}_id {text!r}", expected="an integer") from None


def warm_up(engine: RankingEngine) -> None:
    """One request of each kind, so that the first caller does not pay for lazy work."""
    some = engine.item_ids[:10]
    engine.rank(Query(history=some[:3]), some)
    engine.recommend(Query(history=some[:3]), 1, exclude_seen=False)


def _problem(status: int, title: str, detail: str) -> JSONResponse:
    body = wire.Problem(title=title, status=status, detail=detail).model_dump()
    return JSONResponse(body, status, media_type="application/problem+json")


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

    @app.middleware("http")
    async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "content-length" not in request.headers and request.method == "POST"
        if chunked or not length.isdigit() or int(length) > wire.MAX_BODY_BYTES:
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
) -> None:
    """Open the bundle and serve it until interrupted.

    state: SQLite file of live events (memory only where None). clock: "now", or "data" to start at the bundle's last
    event, for demonstrations on old data. Raises BundleError for a bad bundle.
    """
    import uvicorn

    opened = Bundle.open(bundle)
    offset = 0.0 if clock == "now" else opened.manifest["last_event"] - time.time()
    engine = RankingEngine(opened, StateStore(state), clock=lambda: time.time() + offset)
    uvicorn.run(create_app(engine), host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)
