"""The HTTP application around an engine: routes, refusals as problem details, health. See /docs of a running server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from recsys.errors import RequestError, ServingError
from recsys.serving import wire
from recsys.serving.answers import Query
from recsys.serving.browse import browse_routes, page_routes
from recsys.serving.engine import RankingEngine
from recsys.serving.lane import Lane
from recsys.serving.routes import Choose, Told, ranking_routes, state_routes

_PROBLEM_TYPE, _DETAIL_LENGTH = "application/problem+json", 500
_REFUSALS = {
    400: "The body is not JSON that can be read",
    413: "The body is too large",
    422: "The request is not valid, or cannot be answered",
    503: "Not now: too many requests, or the state store cannot be reached",
}
_DESCRIPTION = (
    "Ranks candidate items, or the whole catalogue, for a user or a history; takes items that nobody has seen yet, "
    "with their text, attributes and pictures."
)


def create_app(
    served: RankingEngine | Callable[[], Sequence[tuple[str, RankingEngine]]],
    choose: Choose | None = None,
    *,
    told: Told = lambda *answer: None,
    counted: Callable[[Sequence[bool]], None] = lambda kept: None,
    metrics: Callable[[], tuple[bytes, str]] | None = None,
) -> FastAPI:
    """The application; ready once each kind of request has been run.

    served: an engine, or what gives every variant with its engine, the main one first. choose: which of them answers
    whom; the main one by default. told, counted: hear of answers, and of events kept or not. metrics: (text, content
    type) of /metrics, which is not there without.
    """
    variants = (lambda: [("main", served)]) if isinstance(served, RankingEngine) else served
    choose = choose or (lambda user, request_id: variants()[0])

    def main() -> RankingEngine:
        return variants()[0][1]

    ready = asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for _, engine in variants():
            warm_up(engine)
        ready.set()
        yield
        ready.clear()

    app = FastAPI(
        title="recsys", version=main().bundle.manifest["package_version"], lifespan=lifespan,
        responses=_documented(_REFUSALS), description=_DESCRIPTION,
    )  # fmt: skip
    _problems(app)
    routes, often = ranking_routes(choose, told)
    app.include_router(routes)
    app.add_middleware(Lane, questions=often, refusal=refusal)
    app.include_router(browse_routes(main, variants))
    app.include_router(state_routes(main, counted))
    app.include_router(page_routes())

    @app.get("/healthz", summary="The process is alive")
    @app.get("/v2/health/live", summary="Open Inference Protocol: alive")
    async def healthz() -> wire.Health:
        return wire.Health(status="alive")

    unready = _documented({503: "The model is not warm yet, or the state store cannot be reached"})

    @app.get("/readyz", summary="The model is loaded and warm", response_model=wire.Health, responses=unready)
    @app.get(
        "/v2/health/ready",
        summary="Open Inference Protocol: ready",
        response_model=wire.Health,
        responses=unready,
    )
    def readyz() -> wire.Health | Response:
        if not ready.is_set():
            return problem(503, "Not ready", "the model is warming up")
        engine = main()
        engine.store.ping()
        return wire.Health(status="ready", bundle_id=engine.bundle.id)

    if metrics is not None:

        @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
        async def counts() -> Response:
            text, kind = metrics()
            return Response(text, headers={"content-type": kind})

    return app


def warm_up(engine: RankingEngine) -> None:
    """One request of each kind, so that the first caller does not pay for lazy work."""
    some = engine.item_ids[:10]
    engine.rank(Query(history=some[:3]), some)
    engine.recommend(Query(history=some[:3]), 1, exclude_seen=False)


def _documented(refusals: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of refusals by status."""
    content = {_PROBLEM_TYPE: {"schema": wire.Problem.model_json_schema()}}
    return {status: {"description": text, "content": content} for status, text in refusals.items()}


def problem(status: int, title: str, detail: str) -> Response:
    """Problem details in one line, cut short where a client's own words made it long."""
    found = wire.Problem(title=title, status=status, detail=" ".join(detail.split())[:_DETAIL_LENGTH])
    headers = {"retry-after": "1"} if status == 503 else None
    return Response(json.dumps(found.model_dump()), status, headers, media_type=_PROBLEM_TYPE)


def refusal(error: Exception) -> Response:
    """Of a question that cannot be answered: by a RequestError never, by a ServingError not now."""
    if isinstance(error, RequestError):
        return problem(422, "The request cannot be answered", str(error))
    return problem(503, "The request cannot be answered now", str(error))


def _problems(app: FastAPI) -> None:
    """Every refusal is problem details in one line."""

    @app.exception_handler(RequestError)
    @app.exception_handler(ServingError)
    async def refused(request: Request, error: Exception) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return problem(422, "The request is not valid", f"{place or 'body'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        """Unknown routes and methods, and bodies that cannot be parsed."""
        return problem(error.status_code, "The request cannot be taken", str(error.detail))
