"""Answers by content: what was paid for once is never asked again, and a run can be repeated without a model."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from recsys.errors import RecsysError
from recsys.files import digest
from recsys.zeroshot.budget import Meter
from recsys.zeroshot.clients.base import Answer, Client, Schema, Usage
from recsys.zeroshot.messages import Message, canonical

Mode = Literal["off", "read-write", "record", "replay"]


class Answers:
    """An append-only file of answers, one JSON line each: key -> answer. Safe under threads, processes and kills.

    A line goes out in one write; one that a kill cut short is left out when the file is read, and counted.
    """

    def __init__(self, path: Path):
        self.path, self.damaged = path, 0
        self._lock = threading.Lock()
        self._found: dict[str, Mapping[str, Any]] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Answer | None:
        with self._lock:
            entry = self._found.get(key)
        if entry is None:
            return None
        scores = entry["scores"]
        return Answer(
            entry["text"], Usage(**entry["usage"]), entry["seconds"], entry["finish"],
            None if scores is None else tuple(scores), recorded=True,
        )  # fmt: skip

    def sampling(self, model: str) -> Mapping[str, Any]:
        """Of the newest answer by this model; empty where there is none."""
        found = [entry["sampling"] for entry in self._found.values() if entry["model"] == model]
        return found[-1] if found else {}

    def put(self, key: str, answer: Answer, facts: Mapping[str, Any]) -> None:
        entry = {"key": key, **facts, **asdict(answer), "at": round(time.time())}
        del entry["recorded"]
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":  # a kill cut the last line short
                    line = b"\n" + line
                os.write(handle, line)
            finally:
                os.close(handle)
            self._found[key] = entry

    def _read(self) -> None:
        for line in self.path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                self._found[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                self.damaged += 1


class CachedClient(Client):
    """A client behind its answers and its meter.

    mode: off = always ask, keep nothing; read-write; record = always ask, keep; replay = never ask, and a missing
    answer is an error. client None goes with replay alone. Two threads that ask the same at once pay once.
    """

    def __init__(
        self,
        client: Client | None,
        answers: Answers,
        meter: Meter,
        mode: Mode = "read-write",
        *,
        name: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ):
        """name, sampling: of the model whose answers are replayed, where there is no client."""
        self._client, self._answers, self.meter, self._mode = client, answers, meter, mode
        self.name = client.name if client is not None else name or ""
        self._sampling = dict(client.sampling if client is not None else sampling or {})
        self.sees_images = True if client is None else client.sees_images
        self.scores_choices = True if client is None else client.scores_choices
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    @property
    def sampling(self) -> Mapping[str, Any]:
        return self._sampling

    def chat(self, messages: Sequence[Message], schema: Schema | None = None, **tag: Any) -> Answer:
        """tag: what tells equal prompts apart: template version, seed, round."""
        key = self.key(messages, {"schema": schema}, tag)
        return self._answer(key, messages, tag, lambda client: client.chat(messages, schema), writes=True)

    def score_choices(self, messages: Sequence[Message], choices: Sequence[str], **tag: Any) -> Answer:
        key = self.key(messages, {"choices": list(choices)}, tag)
        return self._answer(
            key, messages, tag, lambda client: client.score_choices(messages, choices), writes=False
        )

    def key(self, messages: Sequence[Message], asked: Mapping[str, Any], tag: Mapping[str, Any]) -> str:
        """The provider is not in it, nor are addresses and keys; pictures are by their hashes."""
        return digest(
            {
                "model": self.name,
                "messages": canonical(messages),
                "sampling": self._sampling,
                "tag": dict(tag),
            }
            | dict(asked)
        )

    def _answer(
        self,
        key: str,
        messages: Sequence[Message],
        tag: Mapping[str, Any],
        ask: Callable[[Client], Answer],
        *,
        writes: bool,
    ) -> Answer:
        with self._lock:
            turn = self._asking.setdefault(key, threading.Lock())
        with turn:
            if self._mode in ("read-write", "replay"):
                known = self._answers.get(key)
                if known is not None:
                    self.meter.replayed(known)
                    return known
            if self._mode == "replay" or self._client is None:
                raise RecsysError(
                    "this answer was not recorded",
                    where=self._answers.path,
                    expected=f"key {key[:12]} among {len(self._answers)}",
                    fix='the experiment has changed: record it again with --set client.cache="read-write"',
                )
            held = self.meter.reserve(messages, writes=writes)
            try:
                answer = ask(self._client)
            except BaseException:
                self.meter.release(held)
                raise
            if self._mode != "off":
                self._answers.put(
                    key, answer, {"model": self.name, "sampling": self._sampling, "tag": dict(tag)}
                )
            self.meter.paid(held, answer)
            return replace(answer, recorded=False)
