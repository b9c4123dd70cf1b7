"""A server with made-up answers for the explorer page: to work on the page, and to test it without a model.

`python tests/explorer_stub.py [PORT]` serves it on loopback. Standard library only.
"""

import json
import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

PAGE = Path(__file__).parents[1] / "serving" / "explorer"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Suffix -> media type of what is handed out; the folder's Python is not."""
FIRST = ["Silent", "Golden", "Broken", "Northern", "Hidden", "Paper", "Last", "Electric"]
SECOND = ["Harbour", "Orchard", "Compass", "Winter", "Machine"]
GENRES = ["Drama", "Comedy", "Sci-Fi", "Crime", "Romance"]
WIDTHS = [16, 32, 64, 128]
MODEL = {"name": "fmrlrec", "bundle_id": "3fa29c1be07d4415", "package_version": "0.1.0"}
SETTLED = "document.querySelector('.card') && !document.querySelector('[aria-busy]')"
"""JavaScript: a list is on show and no newer one is asked for."""


class Refused(Exception):
    """An answer that is problem details."""

    def __init__(self, status: int, title: str, detail: str):
        super().__init__(detail)
        self.status, self.title = status, title


class Catalogue:
    """Forty items, five users, and every request that came."""

    def __init__(self) -> None:
        self.items = {number: self._item(number) for number in range(1, 41)}
        self.items[7]["title"] = "<img src=x onerror=alert(1)> & Sons"
        self.users = {
            user: [1 + (user * 7 + 5 * step) % 40 for step in range(4 * user)] for user in range(1, 6)
        }
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.broken, self.widths = False, WIDTHS

    @staticmethod
    def _item(number: int) -> dict[str, Any]:
        title = f"{FIRST[number % 8]} {SECOND[number % 5]} ({1960 + number})"
        category = [GENRES[number % 5], GENRES[(number + 2) % 5]][: 1 + number % 2]
        image = f"/v1/items/{number}/image" if number % 4 else None
        return {"item_id": number, "title": title, "category": category, "image": image}

    def rank(self, body: dict[str, Any], extra: list[dict], ids: list[int]) -> dict[str, Any]:
        """Scores are a made-up function of history, width and item; later parts of the answer follow from them."""
        history = self.users.get(body["user_id"], []) if "user_id" in body else body["history"]
        width = body.get("width", WIDTHS[-1])
        made = {record["item_id"]: record | {"image": None} for record in extra}
        lines = []
        for item in [*ids, *made]:
            parts = {
                "fmrlrec_score": 2 * math.cos(item * (1 + len(history)) + 3 / width),
                "log_popularity": math.sin(item),
                "days_since_category": -0.4 * (item % 3),
            } | {f"minor_{n}": 0.01 * n * (-1) ** n for n in range(10)}
            shown = made.get(item) or self.items[item]
            lines.append(
                {key: shown.get(key) for key in ("item_id", "title", "category", "image")}
                | {
                    "score": sum(parts.values()),
                    "sources": [
                        {"generator": "fmrlrec", "rank": 1 + item % 50, "score": parts["fmrlrec_score"]}
                    ]
                    + (
                        [{"generator": "content_knn", "rank": item % 9 or None, "score": 0.5}]
                        if item % 3 == 0
                        else []
                    ),
                    "contributions": parts if body.get("explain") else None,
                }
            )
        lines.sort(key=lambda line: -line["score"])
        times = {"history": 0.08, "retrieve": 0.2 + width / 200, "features": 0.45, "rank": 0.9}
        return {
            "request_id": "r", "model": MODEL, "items": lines, "unknown_items": [],
            "fallback": None if history else "popular",
            "missing": {str(item): ["image"] for item in made} | ({"12": ["image"]} if 12 in ids else {}),
            "history_length": len(history), "timings_ms": times | {"total": sum(times.values())},
        }  # fmt: skip

    def recommend(self, body: dict[str, Any]) -> dict[str, Any]:
        seen = self.users.get(body["user_id"], []) if "user_id" in body else body["history"]
        wanted = set(body.get("filters", {}).get("category", []))
        ids = [
            item
            for item, line in self.items.items()
            if (not body["exclude_seen"] or item not in seen)
            and (not wanted or wanted & set(line["category"]))
        ]
        answer = self.rank(body, [], ids)
        answer["items"] = answer["items"][: body["k"]]
        return answer

    def answer(self, path: str, params: dict[str, str], body: dict[str, Any] | None) -> Any:
        """The answer to a request; bytes are an image. Raises Refused."""
        if self.broken:
            raise Refused(503, "The server is busy", "16 requests are waiting; try again in 2 s")
        text, limit = params.get("search", "").lower(), int(params.get("limit", "20"))
        if path == "/v1/models":
            return {"models": [self.model()]}
        if path == "/v1/recommend":
            return self.recommend(body)
        if path == "/v1/rank":
            return self.rank(body, body.get("items", []), body["candidates"])
        if path == "/v1/items" and body is not None:
            for record in body["items"]:
                self.items[record["item_id"]] = {"category": [], **record, "image": None}
            return {
                "added": len(body["items"]),
                "missing": {str(r["item_id"]): ["image"] for r in body["items"]},
            }
        if path == "/v1/items":
            return {"items": [i for i in self.items.values() if text in i["title"].lower()][:limit]}
        if path == "/v1/events":
            self.users[body["user_id"]].append(body["item_id"])
            return {"kept": True}
        if path == "/v1/users":
            return {
                "users": [{"user_id": u, "events": len(h)} for u, h in self.users.items() if text in str(u)]
            }
        if found := re.fullmatch(r"/v1/users/(\d+)", path):
            return {"user_id": int(found[1]), "history": [self.items[i] for i in self.users[int(found[1])]]}
        if found := re.fullmatch(r"/v1/items/(\d+)(/image|/similar|)", path):
            return self.item(int(found[1]), found[2], int(params.get("k", "10")))
        raise Refused(404, "The request cannot be taken", "Not Found")

    def item(self, item: int, part: str, k: int) -> Any:
        if item not in self.items:
            raise Refused(404, "No such item", f"item {item} is not in the catalogue")
        if part == "/image":
            return poster(item)
        if part == "/similar":
            others = [other for other in self.items if other != item][item % 7 : item % 7 + k]
            return self.rank({"history": [item]}, [], others)
        return self.items[item]

    def model(self) -> dict[str, Any]:
        return MODEL | {
            "widths": self.widths, "id_type": {"item": "int", "user": "int"}, "items": len(self.items),
            "users": len(self.users), "generators": ["fmrlrec", "content_knn"], "ranker": True,
            "modalities": ["text", "image"], "encoders": {"text": "onnx", "image": "none"},
        }  # fmt: skip


def poster(item: int) -> bytes:
    """A picture of its own for every item."""
    hue, x, y = item * 47 % 360, 40 + item * 13 % 220, 60 + item * 29 % 160
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 300"><defs><linearGradient id="g" x2="1" y2="1">'
        f'<stop stop-color="hsl({hue},45%,62%)"/><stop offset="1" stop-color="hsl({hue + 60},50%,28%)"/>'
        '</linearGradient></defs><rect width="300" height="300" fill="url(#g)"/>'
        f'<circle cx="{x}" cy="{y}" r="{40 + item % 5 * 14}" fill="hsl({hue + 180},60%,80%)" opacity=".75"/>'
        f'<path d="M0 300 L{x} {y + 60} L300 300Z" fill="hsl({hue + 20},40%,16%)" opacity=".6"/></svg>'
    ).encode()


def handler(catalogue: Catalogue) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def reply(self, body: dict[str, Any] | None) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            file = PAGE / ("index.html" if path == "/" else path.removeprefix("/explorer/"))
            if file.parent == PAGE and file.suffix in TYPES and file.is_file():
                return self.send(200, TYPES[file.suffix], file.read_bytes())
            if body is not None:
                catalogue.requests.append((path, body))
            try:
                answer = catalogue.answer(path, dict(parse_qsl(parts.query)), body)
            except Refused as refused:
                problem = {"title": refused.title, "status": refused.status, "detail": str(refused)}
                return self.send(refused.status, "application/problem+json", json.dumps(problem).encode())
            if isinstance(answer, bytes):
                return self.send(200, "image/svg+xml", answer)
            return self.send(200, "application/json", json.dumps(answer).encode())

        def send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.send_header("content-security-policy", POLICY)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            """Quiet."""

    return Handler


class Server(ThreadingHTTPServer):
    """Takes a page's pictures all at once: the standard queue of five resets the others."""

    request_queue_size = 128


@contextmanager
def serving(catalogue: Catalogue, port: int = 0) -> Iterator[str]:
    """The catalogue and the page on loopback; gives the address."""
    server = Server(("127.0.0.1", port), handler(catalogue))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with serving(Catalogue(), int(sys.argv[1]) if len(sys.argv) > 1 else 8000) as address:
        print(f"on {address}", flush=True)
        threading.Event().wait()
