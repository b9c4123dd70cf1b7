"""The one protocol that all back ends speak."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recsys.errors import RecsysError
from recsys.zeroshot.messages import Message

Schema = Mapping[str, Any]


class ClientError(RecsysError):
    """A request that had no answer after all retries, or an answer that is none."""


@dataclass(frozen=True)
class Usage:
    """What a request cost: tokens of the prompt (those the provider had in its cache among them), of the answer,
    pictures sent, and tries beyond the first."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    images: int = 0
    retries: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Answer:
    """text: as the model wrote it. scores: log-probabilities of the choices, where those were asked for. seconds:
    of the request that was paid. finish: stop | length | refusal. recorded: it comes from the cache."""

    text: str = ""
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    finish: str = "stop"
    scores: tuple[float, ...] | None = None
    recorded: bool = False


class Client(ABC):
    """A back end. name: the model's own name, the same with every provider, for cache keys and prices."""

    name: str
    sees_images: bool = False
    scores_choices: bool = False
    """score_choices is exact, and not a guess from a written answer."""

    @property
    def sampling(self) -> Mapping[str, Any]:
        """What decides an answer besides the messages; part of the cache key."""
        return {}

    @abstractmethod
    def chat(self, messages: Sequence[Message], schema: Schema | None = None) -> Answer:
        """The model's reply; schema: JSON schema that the text should fulfil. Raises ClientError where there is
        none after all retries."""

    @abstractmethod
    def score_choices(self, messages: Sequence[Message], choices: Sequence[str]) -> Answer:
        """`scores` of the choices as the whole of the reply, in their order."""
