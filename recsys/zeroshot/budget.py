"""What an experiment may spend, what it spent, and what it would: requests, tokens, money."""

import math
import threading
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from recsys.config import Config
from recsys.errors import ConfigError, RecsysError
from recsys.zeroshot.clients.base import Answer, Usage
from recsys.zeroshot.messages import Message

_CHARACTERS, _IMAGE = 3.0, 85
"""For estimates: characters a token, and tokens of a small picture."""


class BudgetError(RecsysError):
    """A request that would go beyond what may be spent."""


class BudgetConfig(Config):
    """What may be spent in one run; answers from the cache cost nothing. None = no limit."""

    requests: Annotated[int, Field(ge=0)] | None = None
    """Most requests."""
    tokens: Annotated[int, Field(ge=0)] | None = None
    """Most tokens, of prompts and answers together."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """Most money, in the price file's currency."""
    prices: str | None = None
    """A price file; None = the one that comes with the package: copy and edit it."""


@dataclass(frozen=True)
class Price:
    """Of a million tokens. known: the price file names the model."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0
    currency: str = "USD"
    known: bool = False

    def of(self, usage: Usage) -> float:
        fresh = usage.prompt - usage.cached
        return (fresh * self.prompt + usage.cached * self.cached + usage.completion * self.completion) / 1e6


def read_price(model: str, path: str | None) -> Price:
    """The model's price; free and not `known` where the file does not name it. Raises ConfigError for a bad file."""
    try:
        if path is None:
            text = (resources.files("recsys.zeroshot.experiments") / "prices.toml").read_text(
                encoding="utf-8"
            )
        else:
            text = Path(path).read_text(encoding="utf-8")
        found = tomllib.loads(text)
        entry = found.get("models", {}).get(model)
        if entry is None:
            return Price(currency=found.get("currency", "USD"))
        cached = entry.get("cached", entry["prompt"])
        return Price(entry["prompt"], cached, entry["completion"], found.get("currency", "USD"), known=True)
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cannot be read as prices ({error})", where=path, expected="[models.NAME] prompt, completion"
        ) from None


def estimate(messages: Sequence[Message]) -> int:
    """Tokens of a prompt, roughly: characters and pictures counted."""
    written = sum(len(message.text) for message in messages)
    pictures = sum(len(message.pictures) for message in messages)
    return math.ceil(written / _CHARACTERS) + _IMAGE * pictures


@dataclass
class Meter:
    """Counts what is spent, and refuses what would go beyond the budget. Shared by threads.

    answer_tokens: reserved for an answer until its usage is known.
    """

    budget: BudgetConfig = field(default_factory=BudgetConfig)
    price: Price = field(default_factory=Price)
    answer_tokens: int = 0
    requests: int = 0
    recorded: int = 0
    usage: Usage = field(default_factory=Usage)
    recorded_usage: Usage = field(default_factory=Usage)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self):
        self._lock, self._held, self._largest = threading.Lock(), {}, Usage()

    def reserve(self, messages: Sequence[Message], *, writes: bool = True) -> object:
        """A place for one request. writes: an answer of some length is asked for, not scores. Raises BudgetError where
        it might not fit."""
        with (
            self._lock
        ):  # an estimate may be short: nothing is expected to be smaller than the largest so far
            prompt = max(estimate(messages), self._largest.prompt)
            need = Usage(prompt, max(self.answer_tokens, self._largest.completion) if writes else 1)
            whole = sum(self._held.values(), self.usage + need)
            spent = {
                "requests": self.requests + len(self._held) + 1,
                "tokens": whole.prompt + whole.completion,
                "cost": self.price.of(whole),
            }
            for name, value in spent.items():
                limit = getattr(self.budget, name)
                if limit is not None and value > limit:
                    raise BudgetError(
                        f"budget.{name} = {limit} is spent after {self.requests} requests, "
                        f"{self.usage.prompt + self.usage.completion} tokens",
                        fix="answers are kept: raise it and run again, nothing is paid twice",
                    )
            held = object()
            self._held[held] = need
            return held

    def release(self, held: object) -> None:
        with self._lock:
            self._held.pop(held)

    def paid(self, held: object, answer: Answer) -> None:
        with self._lock:
            self._held.pop(held)
            self.requests += 1
            self.usage += answer.usage
            self._largest = Usage(
                max(self._largest.prompt, answer.usage.prompt),
                max(self._largest.completion, answer.usage.completion),
            )
            self.seconds.append(answer.seconds)

    def replayed(self, answer: Answer) -> None:
        with self._lock:
            self.recorded += 1
            self.recorded_usage += answer.usage
            self.seconds.append(answer.seconds)

    def facts(self) -> dict[str, Any]:
        """Of the whole experiment, recorded answers included, and of what this run paid itself."""
        whole = self.usage + self.recorded_usage
        p50, p95 = np.percentile(self.seconds, [50, 95]).tolist() if self.seconds else (0.0, 0.0)
        return {
            "requests": self.requests + self.recorded,
            "paid_requests": self.requests,
            **{f"{name}_tokens": getattr(whole, name) for name in ("prompt", "cached", "completion")},
            "images": whole.images,
            "retries": whole.retries,
            "latency_p50": p50,
            "latency_p95": p95,
            "cost": self.price.of(whole),
            "paid_cost": self.price.of(self.usage),
            "currency": self.price.currency,
            "price_known": self.price.known,
        }
