"""Routes for people and dashboards: the explorer page, items and users to look through, what is served."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi import Query as FromQuery

from recsys.errors import RequestError
from recsys.serving import wire
from recsys.serving.engine import RankingEngine
from recsys.serving.routes import ItemPath, Main, json_response, model_info

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_PICTURE_TYPES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"RIFF": "image/webp",
    b"GIF8": "image/gif",
}
Search = Annotated[str, FromQuery(max_length=200)]
Limit = Annotated[int, FromQuery(ge=1, le=200)]


def page_routes() -> APIRouter:
    """The explorer at /, and its files under /explorer/."""
    routes = APIRouter(include_in_schema=False)
    folder = files("recsys.serving.explorer")
    found = {
        entry.name: (entry.read_bytes(), _TYPES[entry.name.rpartition(".")[2]])
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    headers = {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

    @routes.get("/")
    async def page() -> Response:
        content, kind = found["index.html"]
        return Response(content, media_type=kind, headers=headers)

    @routes.get("/explorer/{name}")
    async def part(name: str) -> Response:
        if name not in found:
            return Response("not found", 404, media_type="text/plain")
        content, kind = found[name]
        return Response(content, media_type=kind, headers=headers)

    return routes


def browse_routes(main: Main, served: Callable[[], Sequence[tuple[str, RankingEngine]]]) -> APIRouter:
    """/v1/models, and reading /v1/items and /v1/users. served: every variant with its engine."""
    routes = APIRouter()

    @routes.get("/v1/models", summary="What is served", response_model=wire.Models)
    async def models() -> Response:
        return json_response({"models": [facts(engine, variant) for variant, engine in served()]})

    @routes.get("/v1/items", summary="Find items by title", response_model=wire.Items)
    async def items(search: Search = "", limit: Limit = 20) -> Response:
        engine = main()
        catalogue = engine.live.refresh()
        words = search.lower().split()
        found = []
        for index, title in enumerate(catalogue.lowered_titles):
            if all(word in title for word in words) or (search and search == str(catalogue.ids[index])):
                found.append(catalogue.shown(index))
                if len(found) == limit:
                    break
        return json_response({"items": found})

    @routes.get("/v1/items/{item_id:path}/image", summary="An item's picture", response_class=Response)
    async def image(item_id: ItemPath) -> Response:
        engine = main()
        data = engine.picture(engine.id_from_text("item", item_id))
        if data is None:
            raise RequestError(f"item {item_id!r} has no picture")
        kind = next((kind for head, kind in _PICTURE_TYPES.items() if data.startswith(head)), None)
        headers = {"cache-control": "max-age=3600", "x-content-type-options": "nosniff"}
        return Response(data, media_type=kind or "application/octet-stream", headers=headers)

    @routes.get("/v1/items/{item_id:path}", summary="One item", response_model=wire.Item)
    async def item(item_id: ItemPath) -> Response:
        engine = main()
        catalogue = engine.live.refresh()
        own = engine.id_from_text("item", item_id)
        if own not in catalogue.index_of:
            raise RequestError(f"item {item_id!r} is not in the catalogue")
        return json_response(catalogue.shown(catalogue.index_of[own]))

    @routes.get("/v1/users", summary="Find users", response_model=wire.Users)
    async def users(search: Search = "", limit: Limit = 20) -> Response:
        engine = main()
        found = []
        for row, user_id in enumerate(engine.users.ids):
            if search in str(user_id):
                found.append({"user_id": user_id, "events": len(engine.users.stored(row))})
                if len(found) == limit:
                    break
        return json_response({"users": found})

    @routes.get("/v1/users/{user_id:path}", summary="A user's history", response_model=wire.User)
    async def user(user_id: ItemPath) -> Response:
        engine = main()
        own = engine.id_from_text("user", user_id)
        catalogue = engine.live.refresh()
        history = [catalogue.shown(index) for index in engine.users.of(own).items.tolist()]
        return json_response({"user_id": own, "history": history})

    # The Open Inference Protocol, as far as a ranker can speak it: health and metadata.
    @routes.get("/v2", summary="Open Inference Protocol: the server")
    async def server() -> dict[str, object]:
        engine = main()
        return {"name": "recsys", "version": engine.bundle.manifest["package_version"], "extensions": []}

    @routes.get("/v2/models/{name}", summary="Open Inference Protocol: a model")
    async def metadata(name: str) -> dict[str, object]:
        engine = _of_name(served(), name)
        return {
            "name": name, "versions": [engine.bundle.id], "platform": "recsys",
            "inputs": [{"name": "candidates", "datatype": "INT64", "shape": [-1]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1]}],
        }  # fmt: skip

    @routes.get("/v2/models/{name}/ready", summary="Open Inference Protocol: a model is ready")
    async def model_ready(name: str) -> dict[str, object]:
        _of_name(served(), name)
        return {"name": name, "ready": True}

    return routes


def facts(engine: RankingEngine, variant: str) -> dict[str, object]:
    """As `wire.ModelFacts` has it."""
    encoders = engine.live.cataloguer.encoder.encoders()
    return model_info(engine, variant) | {
        "widths": list(engine.widths),
        "id_type": dict(engine.bundle.id_type),
        "items": len(engine.catalogue),
        "users": len(engine.users.ids),
        "generators": list(engine.generators),
        "ranker": engine.ranker is not None,
        "modalities": list(encoders),
        "encoders": encoders,
    }


def _of_name(served: Sequence[tuple[str, RankingEngine]], name: str) -> RankingEngine:
    for _, engine in served:
        if engine.bundle.manifest["model"] == name:
            return engine
    known = ", ".join(engine.bundle.manifest["model"] for _, engine in served)
    raise RequestError(f"no model {name!r}", expected=known)
