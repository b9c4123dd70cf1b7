"""The routes that rank, and those that tell the server what happened: HTTP in, engine, JSON out.

Answers are written by hand and by orjson: a list of 200 through a model's validation costs more than ranking it. The
tests hold them to `recsys.serving.wire`.
"""

import base64
import uuid
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi import Path as FromPath
from fastapi import Query as FromQuery

from recsys.errors import RequestError
from recsys.serving import wire
from recsys.serving.answers import Filters, Lines, Query, Ranked, Spread
from recsys.serving.catalogue import open_for_score
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine
from recsys.serving.lane import Question

Id = int | str
Choose = Callable[[Id | None, str], tuple[str, RankingEngine]]
"""What answers a user (None: nobody in particular) under a request id: the name of a variant and its engine."""
Ask = Callable[[RankingEngine], Ranked]
Told = Callable[[str, str, RankingEngine, Id | None, Ask, Ranked], None]
"""Hears of every answer: request id, variant, engine, user, the question, the answer."""
Main = Callable[[], RankingEngine]
Scope = MutableMapping[str, Any]
ItemPath = Annotated[str, FromPath(max_length=200)]


def json_response(content: object) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def ranking_routes(choose: Choose, told: Told) -> tuple[APIRouter, Sequence[Question]]:
    """/v1/rank, /v1/recommend, their batches, /v1/similar; and the first two for the short way."""
    routes = APIRouter()

    def answered(body: wire.Asked, scope: Scope, ask: Ask) -> dict[str, Any]:
        request_id = body.request_id or id_of(scope)
        variant, engine = choose(body.user_id, request_id)
        found = ask(engine)
        told(request_id, variant, engine, body.user_id, ask, found)
        original = engine.catalogue.original
        scope.setdefault("state", {})["observed"] = {
            "fallback": found.fallback,
            "timings": found.timings,
            "candidates": len(found.items),
            "empty": not found.items,
            "cold": int(np.count_nonzero(found.items.columns >= original)),
        }
        return answer(request_id, variant, engine, found)

    def ranked(body: wire.RankBody, scope: Scope) -> dict[str, Any]:
        query, new = query_of(body), [new_item(item) for item in body.items]
        ask = partial(
            RankingEngine.rank, query=query, candidates=body.candidates, new=new, explain=body.explain
        )
        return answered(body, scope, ask)

    def recommended(body: wire.RecommendBody, scope: Scope) -> dict[str, Any]:
        spread = None
        if body.mmr is not None or body.category_cap is not None or body.explore:
            spread = Spread(body.mmr, body.category_cap, body.explore, body.request_id or "")
        ask = partial(
            RankingEngine.recommend,
            query=query_of(body),
            k=body.k,
            filters=Filters(body.filters.include, body.filters.exclude, body.filters.category),
            exclude_seen=body.exclude_seen,
            explain=body.explain,
            spread=spread,
        )
        return answered(body, scope, ask)

    # A question takes a millisecond or two: it is answered on the loop, where a thread's hand-over would cost as much.
    # New items may have to be encoded, and a batch is long: those go to the thread pool.
    async def to_rank(body: wire.RankBody, scope: Scope) -> Response:
        return json_response(await run_sync(ranked, body, scope) if body.items else ranked(body, scope))

    async def to_recommend(body: wire.RecommendBody, scope: Scope) -> Response:
        return json_response(recommended(body, scope))

    @routes.post("/v1/rank", summary="Rank candidates, new items among them", response_model=wire.Answer)
    async def rank(body: wire.RankBody, request: Request) -> Response:
        return await to_rank(body, request.scope)

    @routes.post("/v1/recommend", summary="Recommend from the catalogue", response_model=wire.Answer)
    async def recommend(body: wire.RecommendBody, request: Request) -> Response:
        return await to_recommend(body, request.scope)

    @routes.post("/v1/rank/batch", summary="Several rankings", response_model=wire.Answers)
    async def rank_batch(body: wire.RankBatch) -> Response:
        return json_response({"answers": await run_sync(lambda: [ranked(one, {}) for one in body.requests])})

    @routes.post("/v1/recommend/batch", summary="Several recommendations", response_model=wire.Answers)
    async def recommend_batch(body: wire.RecommendBatch) -> Response:
        found = await run_sync(lambda: [recommended(one, {}) for one in body.requests])
        return json_response({"answers": found})

    @routes.post("/v1/similar", summary="Items like a known or a new one", response_model=wire.Answer)
    async def similar_to(body: wire.SimilarBody, request: Request) -> Response:
        request_id = id_of(request.scope)
        variant, engine = choose(None, request_id)
        if body.item is None:
            found = engine.similar(body.item_id, body.k)
        else:
            found = await run_sync(engine.similar_to_new, new_item(body.item), body.k)
        return json_response(answer(request_id, variant, engine, found))

    @routes.get("/v1/items/{item_id:path}/similar", summary="Items like this one", response_model=wire.Answer)
    async def similar(
        request: Request, item_id: ItemPath, k: Annotated[int, FromQuery(ge=1, le=wire.MAX_K)] = 10
    ) -> Response:
        request_id = id_of(request.scope)
        variant, engine = choose(None, request_id)
        found = engine.similar(engine.id_from_text("item", item_id), k)
        return json_response(answer(request_id, variant, engine, found))

    return routes, (
        Question("/v1/rank", wire.RankBody, to_rank),
        Question("/v1/recommend", wire.RecommendBody, to_recommend),
    )


def state_routes(main: Main, counted: Callable[[Sequence[bool]], None]) -> APIRouter:
    """/v1/events, /v1/items, /v1/users: what happened, and what is there."""
    routes = APIRouter()

    def keep(events: Sequence[wire.EventBody]) -> list[bool]:
        engine = main()
        kept = engine.observe_all([(e.event_id, e.user_id, e.item_id, e.timestamp) for e in events])
        counted(kept)
        return kept

    # A thread each: events of several requests then reach the disk together.
    @routes.post("/v1/events", summary="Tell what a user did")
    def event(body: wire.EventBody) -> wire.EventAnswer:
        return wire.EventAnswer(kept=keep([body])[0])

    @routes.post("/v1/events/batch", summary="Several events: all are kept, or none")
    def events(body: wire.EventsBody) -> wire.EventsAnswer:
        return wire.EventsAnswer(kept=keep(body.events))

    @routes.post("/v1/items", summary="Add items, or replace them")
    def add_items(body: wire.ItemsBody) -> wire.ItemsAnswer:
        engine = main()
        missing = engine.add_items([new_item(item) for item in body.items])
        return wire.ItemsAnswer(added=len(body.items), missing=named(missing))

    @routes.delete("/v1/items/{item_id:path}", summary="Take an item out of all answers")
    def remove_item(item_id: ItemPath) -> wire.Removed:
        engine = main()
        engine.remove_items([engine.id_from_text("item", item_id)])
        return wire.Removed(removed=1)

    @routes.delete("/v1/users/{user_id:path}", summary="Forget a user")
    def forget(user_id: Annotated[str, FromPath(max_length=200)]) -> wire.Removed:
        engine = main()
        return wire.Removed(removed=engine.forget_user(engine.id_from_text("user", user_id)))

    return routes


def query_of(body: wire.Asked) -> Query:
    return Query(body.user_id, body.history, body.width, body.at, body.user_fields)


def new_item(body: wire.ItemBody) -> NewItem:
    """Raises RequestError for a picture that is not base64."""
    image = None
    if body.image is not None:
        try:
            image = base64.b64decode(body.image, validate=True)
        except ValueError as error:
            raise RequestError(f"image is not base64 ({error})", where=f"item {body.item_id!r}") from None
    return NewItem(body.item_id, body.title, body.text, body.category, body.attributes, image, body.features)


def id_of(scope: Scope) -> str:
    """The id that the guard gave the request; one of its own where there is no guard."""
    return scope.get("state", {}).get("request_id") or uuid.uuid4().hex


def answer(request_id: str, variant: str, engine: RankingEngine, ranked: Ranked) -> dict[str, Any]:
    """As `wire.Answer` has it; the items are JSON already, as most of it was made before."""
    return {
        "request_id": request_id,
        "model": model_info(engine, variant),
        "items": orjson.Fragment(lines_json(ranked.items)),
        "fallback": ranked.fallback,
        "unknown_items": list(ranked.unknown_items),
        "missing": named(ranked.missing),
        "history_length": ranked.history_length,
        "timings_ms": dict(ranked.timings),
    }


def lines_json(lines: Lines) -> bytes:
    """A list of `wire.Line`."""
    if not lines:
        return b"[]"
    heads, size = lines.catalogue.heads, len(lines.catalogue)
    if lines.new:
        began = [heads([i])[0] if i < size else _head_of_new(lines.new[i - size]) for i in lines.indices]
    else:
        began = heads(lines.indices)
    scores_N = lines.scores.astype(np.float64, copy=False)  # NaN becomes null
    scores = orjson.dumps(scores_N, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    return b"[" + b",".join(map(b"".join, zip(began, scores, _tails(lines), strict=True))) + b"]"


def _head_of_new(item: NewItem) -> bytes:
    return open_for_score({"item_id": item.item_id, "title": item.title, "category": None, "image": None})


def _tails(lines: Lines) -> Sequence[bytes]:
    """What follows each score."""
    count = len(lines)
    if lines.sources is None and lines.contributions is None:
        return [b',"sources":[],"contributions":null}'] * count
    found = [[s._asdict() for s in sources] for sources in lines.sources or [()] * count]
    whys = lines.contributions or [None] * count
    return [
        b"," + orjson.dumps({"sources": sources, "contributions": why})[1:]
        for sources, why in zip(found, whys, strict=True)
    ]


def model_info(engine: RankingEngine, variant: str) -> dict[str, str]:
    manifest = engine.bundle.manifest
    return {
        "name": manifest["model"],
        "bundle_id": engine.bundle.id,
        "package_version": manifest["package_version"],
        "variant": variant,
    }


def named(missing: Mapping[Id, Sequence[str]]) -> dict[str, list[str]]:
    """JSON has text for keys."""
    return {str(item_id): list(tables) for item_id, tables in missing.items()}
