"""A server on loopback that speaks chat completions: it answers by a rule, and misbehaves as it is told."""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recsys.zeroshot.clients.mock import Mock, overlap_taste
from recsys.zeroshot.messages import Message

FAULTS = ("ok", "limit", "down", "slow", "garbage", "duplicates", "refusal", "cut", "ok", "ok")
"""What happens to a prompt that is seen for the first time, by its turn."""


class Stub:
    """faults: turn of a new prompt -> what happens to it. What has been answered (by prompt), and what came."""

    def __init__(self, fault: Callable[[int], str] = lambda turn: "ok", pause: float = 0.0):
        self.fault, self.pause = fault, pause
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.faults: Counter[str] = Counter()
        self._turns: dict[str, int] = {}
        self._lock = threading.Lock()
        self._model = Mock(overlap_taste())

    def reply(self, body: dict) -> tuple[int, dict, dict]:
        """(status, headers, JSON)."""
        prompt = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self._lock:
            self.bodies.append(body)
            first = prompt not in self._turns
            turn = self._turns.setdefault(prompt, len(self._turns))
            fault = self.fault(turn) if first or self.fault(turn) not in ("limit", "down") else "ok"
            self.faults[fault] += 1
        if fault == "limit":
            return 429, {"retry-after": "0.01"}, {"error": {"message": "too many requests"}}
        if fault == "down":
            return 503, {}, {"error": {"message": "overloaded"}}
        if fault == "slow":
            time.sleep(0.05)
        time.sleep(self.pause)
        with self._lock:
            self.answered[prompt] += 1
        return 200, {}, self._completion(body, fault)

    def _completion(self, body: dict, fault: str) -> dict:
        messages = [Message(one["role"], (_text(one["content"]),)) for one in body["messages"]]
        message, finish, logprobs = {"role": "assistant"}, "stop", None
        if body.get("logprobs"):
            names = [
                line.split(".")[0] for line in messages[-1].text.rpartition("Candidates:\n")[2].splitlines()
            ]
            names = [name for name in names if len(name) == 1]
            scores = self._model.score_choices(messages, names).scores
            top = [{"token": n, "logprob": s, "bytes": None} for n, s in zip(names, scores, strict=True)]
            content = [{"token": "A", "logprob": 0.0, "bytes": None, "top_logprobs": top}]
            logprobs, message["content"] = {"content": content, "refusal": None}, "A"
        else:
            schema = body["response_format"]["json_schema"]["schema"]
            text = self._model.chat([one for one in messages if one.role == "user"][:1], schema).text
            if fault == "garbage":
                text = "Well, all of them are good, it depends on the mood."
            elif fault == "duplicates":
                ranking = json.loads(text)["ranking"]
                text = json.dumps({"ranking": [ranking[0], *ranking[:-1]]})
            elif fault == "cut":
                text, finish = text[: len(text) // 2], "length"
            elif fault == "refusal":
                message["refusal"] = text = "I cannot help with that."
            message["content"] = text
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [choice], "usage": usage}  # fmt: skip


def _text(content: str | list) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "(picture)" for part in content)


@contextlib.contextmanager
def stubbed(stub: Stub) -> Iterator[str]:
    """The base URL of a server that answers with `stub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, answer = stub.reply(body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {
                **headers,
                "content-type": "application/json",
                "content-length": len(content),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
