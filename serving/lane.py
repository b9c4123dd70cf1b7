"""A short way to the answer for the questions that come most: FastAPI's routing, dependencies and reading of JSON take
longer than the rest of the plumbing together.

Only a body that is valid as it stands goes this way. Anything else goes on to the application, which says what is wrong
with it, so that there is one place that refuses.
"""

import contextlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send

from recsys.errors import RequestError, ServingError

Scope = MutableMapping[str, Any]


@dataclass(frozen=True)
class Question:
    """POST path with a JSON body; answer(body, scope) may raise RequestError or ServingError."""

    path: str
    body: type[BaseModel]
    answer: Callable[[Any, Scope], Awaitable[Response]]


class Lane:
    """ASGI middleware. It sets scope["route"] as the application would, for who counts by route."""

    def __init__(self, app: ASGIApp, questions: Sequence[Question], refusal: Callable[[Exception], Response]):
        """refusal: what is answered to a RequestError or ServingError."""
        self.app, self._refusal = app, refusal
        self._questions = {question.path: question for question in questions}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        question = self._questions.get(scope["path"]) if scope["type"] == "http" else None
        if question is None or scope["method"] != "POST" or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        came = [await receive()]
        while came[-1]["type"] == "http.request" and came[-1].get("more_body", False):
            came.append(await receive())
        body = None
        if came[-1]["type"] == "http.request":  # all of it is here
            with contextlib.suppress(ValidationError):
                body = question.body.model_validate_json(b"".join(part.get("body", b"") for part in came))
        if body is None:
            await self.app(scope, replayed(came, receive), send)
            return
        scope["route"] = question
        try:
            response = await question.answer(body, scope)
        except (RequestError, ServingError) as error:
            response = self._refusal(error)
        await response(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    """Named so in the plainest way."""
    return [value for name, value in scope["headers"] if name == b"content-type"] == [b"application/json"]


def replayed(came: Sequence[Message], receive: Receive) -> Receive:
    """What came already, then what the client does next."""
    waiting = iter(came)

    async def again() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return again
