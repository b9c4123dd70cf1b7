"""Clients that read the prompt and answer by a rule: for tests, dry plumbing, and floors that go the whole way."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from recsys.zeroshot.clients.base import Answer, Client, Schema, Usage
from recsys.zeroshot.messages import Message
from recsys.zeroshot.prompts import CANDIDATES, HISTORY

Taste = Callable[[Sequence[str], str], float]
"""(titles of the history, title of a candidate) -> how much it is liked."""
_LINE = re.compile(r"^(?:([A-Z]|\d+)\.|-) (.+)$", re.MULTILINE)


class Mock(Client):
    """Finds history and candidates in the prompt and answers in the form that is asked for.

    taste: what it likes. slot_bias: added to the first slot's score, falling to 0 at the last, so that a preference
    for slots can be planted.
    """

    sees_images = True
    scores_choices = True

    def __init__(self, taste: Taste, name: str = "mock", slot_bias: float = 0.0):
        self.name, self._taste, self._slot_bias = name, taste, slot_bias

    def chat(self, messages: Sequence[Message], schema: Schema | None = None) -> Answer:
        labels, scores = self._scored(messages)
        order = sorted(range(len(labels)), key=lambda place: -scores[place])
        wanted = (schema or {}).get("properties", {})
        if "choice" in wanted:
            legal = wanted["choice"]["enum"]
            if set(legal) == {"Yes", "No"}:
                text = json.dumps({"choice": "Yes" if scores[0] > 0 else "No"})
            else:
                text = json.dumps({"choice": labels[order[0]]})
        else:
            text = json.dumps({"ranking": [labels[place] for place in order]})
        return Answer(text, _usage(messages, text))

    def score_choices(self, messages: Sequence[Message], choices: Sequence[str]) -> Answer:
        labels, scores = self._scored(messages)
        if set(choices) == {"Yes", "No"}:
            odds = {"Yes": scores[0], "No": 0.0}
        else:
            odds = dict(zip(labels, scores, strict=True))
        values = [odds[choice] for choice in choices]
        top = max(values)
        total = top + math.log(sum(math.exp(value - top) for value in values))
        return Answer("", _usage(messages, " "), scores=tuple(value - total for value in values))

    def _scored(self, messages: Sequence[Message]) -> tuple[list[str], list[float]]:
        history, candidates = read_prompt(messages)
        last = max(len(candidates) - 1, 1)
        return [label for label, _ in candidates], [
            self._taste(history, title) + self._slot_bias * (1 - place / last)
            for place, (_, title) in enumerate(candidates)
        ]


def read_prompt(messages: Sequence[Message]) -> tuple[list[str], list[tuple[str, str]]]:
    """Titles of the history, and (label, title) of the candidates, as a prompt shows them."""
    text = messages[-1].text
    before, _, after = text.rpartition(CANDIDATES)
    history = [line[1] for line in _LINE.findall(before.rpartition(HISTORY)[2])] if HISTORY in before else []
    return history, [(label or "", title) for label, title in _LINE.findall(after)]


def popularity_taste(counts: Mapping[str, int]) -> Taste:
    """Likes what training saw often."""
    return lambda history, title: math.log1p(counts.get(title, 0))


def overlap_taste() -> Taste:
    """Likes what shares words of four letters or more with the history."""

    def words(text: str) -> set[str]:
        return {word for word in re.findall(r"\w+", text.casefold()) if len(word) > 3 and not word.isdigit()}

    def taste(history: Sequence[str], title: str) -> float:
        seen = set().union(*map(words, history)) if history else set()
        return 3.0 * len(words(title) & seen) / max(len(words(title)), 1)

    return taste


def random_taste(seed: int = 0) -> Taste:
    """Likes by a hash of history and title: noise that repeats."""

    def taste(history: Sequence[str], title: str) -> float:
        found = hashlib.sha256(json.dumps([seed, list(history), title]).encode()).digest()
        return int.from_bytes(found[:4]) / 2**32

    return taste


def oracle_taste(answers: Mapping[tuple[str, ...], set[str]]) -> Taste:
    """Knows what everybody took: answers by the titles of the history as the prompt shows them."""
    return lambda history, title: 5.0 if title in answers.get(tuple(history), ()) else 0.0


def _usage(messages: Sequence[Message], text: str) -> Usage:
    written = sum(len(message.text) for message in messages)
    pictures = sum(len(message.pictures) for message in messages)
    return Usage(written // 4, max(len(text) // 4, 1), images=pictures)
