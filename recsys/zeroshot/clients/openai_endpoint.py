"""Any server that speaks chat completions: hosted, vLLM, llama.cpp, Ollama, LM Studio."""

import email.utils
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recsys.errors import ConfigError, require
from recsys.zeroshot.clients.base import Answer, Client, ClientError, Schema, Usage
from recsys.zeroshot.messages import Message

logger = logging.getLogger("recsys")
_TOP = 20
"""Most alternatives a token that servers report."""
_CEILING = 60.0


class OpenAIEndpoint(Client):
    """One model behind one base URL. The key comes from the environment and is stored nowhere.

    retries: tries beyond the first, for 429, 5xx, time-outs and lost connections alone. wait: seconds before the
    second try, doubled each time and spread at random; a Retry-After header says it better. name: for cache keys.
    """

    sees_images = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        name: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int | None = 0,
        timeout: float = 60.0,
        retries: int = 5,
        wait: float = 1.0,
        image_detail: str = "low",
        structured: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ):
        openai = require("openai", "llm", purpose="an OpenAI-compatible endpoint")
        key = os.environ.get(key_variable)
        if key is None and base_url is None:
            raise ConfigError(
                f"no key in ${key_variable}", fix="set it, or name a server with client.base_url"
            )
        self.name, self._model, self._openai = name or model, model, openai
        self._client = openai.OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=0)
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self._retries, self._wait, self._sleep = retries, wait, sleep
        self._detail, self._structured = image_detail, structured

    @property
    def sampling(self) -> Mapping[str, Any]:
        return self._sampling | {"image_detail": self._detail}

    def chat(self, messages: Sequence[Message], schema: Schema | None = None) -> Answer:
        asked: dict[str, Any] = {key: value for key, value in self._sampling.items() if value is not None}
        if schema is not None and self._structured:
            form = {"name": "answer", "schema": dict(schema), "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        reply, usage, seconds = self._ask(messages, asked)
        choice = _first(reply)
        refusal = getattr(choice.message, "refusal", None)
        finish = "length" if choice.finish_reason == "length" else "stop"
        if refusal or choice.finish_reason == "content_filter":
            finish = "refusal"
        return Answer(refusal or choice.message.content or "", usage, seconds, finish)

    def score_choices(self, messages: Sequence[Message], choices: Sequence[str]) -> Answer:
        """From the alternatives to the first token; a choice that is not among them gets the least of them, less 1."""
        asked = {key: value for key, value in self._sampling.items() if value is not None}
        asked |= {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        reply, usage, seconds = self._ask(messages, asked)
        content = getattr(_first(reply).logprobs, "content", None)
        if not content:
            raise ConfigError(
                "the server reports no log-probabilities", where=self.name, fix='rank.mode = "listwise"'
            )
        found: dict[str, float] = {}
        for entry in content[0].top_logprobs:
            token = entry.token.strip()
            found[token] = max(found.get(token, -float("inf")), entry.logprob)
        floor = min(found.values(), default=0.0) - 1.0
        return Answer("", usage, seconds, scores=tuple(found.get(choice, floor) for choice in choices))

    def _ask(self, messages: Sequence[Message], asked: Mapping[str, Any]) -> tuple[Any, Usage, float]:
        """Raises ClientError once the retries are used up, ConfigError for what no retry would change."""
        openai, retry = self._openai, 0
        body = [self._wire(message) for message in messages]
        while True:
            began = time.monotonic()
            try:
                reply = self._client.chat.completions.create(model=self._model, messages=body, **asked)
                usage = _usage(reply, messages, retry)
                return reply, usage, time.monotonic() - began
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                if retry == self._retries:
                    raise ClientError(
                        f"no answer after {retry + 1} tries ({error})", where=self.name
                    ) from error
                pause = _retry_after(error) or self._wait * 2**retry * random.uniform(0.5, 1.5)
                logger.info(
                    "    %s: %s; again in %.1f s", self.name, type(error).__name__, min(pause, _CEILING)
                )
                self._sleep(min(pause, _CEILING))
                retry += 1
            except openai.APIStatusError as error:
                raise ConfigError(
                    f"the server refuses the request ({error})", where=self.name, fix="check [client]"
                ) from error

    def _wire(self, message: Message) -> dict[str, Any]:
        if not message.pictures:
            return {"role": message.role, "content": message.text}
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                image = {"url": part.data_uri, "detail": self._detail}
                parts.append({"type": "image_url", "image_url": image})
        return {"role": message.role, "content": parts}


def _first(reply: Any) -> Any:
    if not reply.choices:
        raise ClientError("an answer without choices", where=reply.model)
    return reply.choices[0]


def _usage(reply: Any, messages: Sequence[Message], retries: int) -> Usage:
    """As the server counts; zeros where it does not."""
    told, pictures = reply.usage, sum(len(message.pictures) for message in messages)
    if told is None:
        return Usage(images=pictures, retries=retries)
    details = getattr(told, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None) or 0
    return Usage(told.prompt_tokens, told.completion_tokens, cached, pictures, retries)


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asks for: a number, or the time of a date."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
