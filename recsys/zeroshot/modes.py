"""Ways to get a ranking out of a model: one question for the whole list, or several and what they add up to."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from recsys.config import Config
from recsys.errors import ConfigError
from recsys.zeroshot.cache import CachedClient
from recsys.zeroshot.clients.base import Answer, ClientError, Usage
from recsys.zeroshot.messages import Message
from recsys.zeroshot.orders import borda, central, ranks_of, shown_orders
from recsys.zeroshot.parsing import Faults, parse_choice, parse_ranking
from recsys.zeroshot.prompts import LETTERS, Case, Prompter, labels

YES_NO = ("Yes", "No")
_AGAIN = (
    'Answer with JSON alone, of the form {{"ranking": ["{first}", ...]}}, by the labels before the items.'
)


class RankConfig(Config):
    """How the ranking is asked for."""

    mode: Literal["listwise", "letters", "pairwise", "pointwise", "elimination"] = "letters"
    """listwise: the whole list as JSON. letters: log-probabilities of the labels as the answer to "which one?".
    pairwise: two at a time, each pair in both orders, sorted by comparisons. pointwise: yes or no for each.
    elimination: the best one, then the best of the others, and so on."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Rankings a user, each with the candidates in another order (permutation self-consistency)."""
    orders: Literal["latin", "random", "fixed"] = "latin"
    """latin: rows of a balanced Latin square, so that over all rounds each candidate stands equally often in every
    place. fixed: as in the candidates file."""
    combine: Literal["borda", "central", "scores"] = "borda"
    """One ranking out of the rounds: by mean rank; with the least sum of Kendall distances; by mean log-probability
    (letters and pointwise)."""
    calibrate: bool = False
    """letters, pointwise: subtract the log-probabilities of the same question without a history."""
    depth: Annotated[int, Field(ge=1)] = 5
    """elimination: how many places are asked for one by one; the rest follows in the tail order."""
    repair: bool = True
    """listwise: ask once more where an answer names no candidate and is no refusal."""


@dataclass
class Reply:
    """One question and its answer, for people to look at. places: the candidates in the order shown."""

    messages: Sequence[Message] = field(repr=False)
    answer: Answer
    places: tuple[int, ...]
    round: int = 0


@dataclass
class Judged:
    """order: the candidates' positions, best first. ranks_RN, scores_RN: of every round by position (scores NaN where
    the mode gives none). slots_R: the place in which each round's favourite was shown;
    none where candidates are not shown together."""

    case: Case
    order: np.ndarray
    ranks_RN: np.ndarray
    scores_RN: np.ndarray
    slots_R: np.ndarray
    faults: Faults
    usage: Usage
    replies: list[Reply] = field(default_factory=list, repr=False)


class Ranker:
    """Asks a client for rankings of cases. Several threads may use one."""

    def __init__(self, client: CachedClient, prompter: Prompter, config: RankConfig, seed: int = 0):
        """Raises ConfigError where the client cannot do what the mode needs."""
        self.client, self.prompter, self.config, self.seed = client, prompter, config, seed
        if prompter.config.shows_images and not client.sees_images:
            raise ConfigError(
                f"the prompt shows pictures, and {client.name} sees none",
                fix='client.kind = "local_vision" or "openai"',
            )
        if config.calibrate and config.mode not in ("letters", "pointwise"):
            raise ConfigError(f"rank.calibrate goes with letters and pointwise, not with {config.mode}")
        if config.combine == "scores" and config.mode not in ("letters", "pointwise"):
            raise ConfigError(
                f'rank.combine = "scores" goes with letters and pointwise, not with {config.mode}'
            )

    def requests(self, candidates: int) -> int:
        """Most requests for one case."""
        many = {
            "listwise": 1 + self.config.repair,
            "letters": 1 + self.config.calibrate,
            "pointwise": candidates * (1 + self.config.calibrate),
            "pairwise": 2 * _comparisons(candidates),
            "elimination": min(self.config.depth, candidates - 1),
        }[self.config.mode]
        # a yes or no does not know in which order the others would stand
        return many * (1 if self.config.mode == "pointwise" else self.config.rounds)

    def rank(self, case: Case, orders: np.ndarray | None = None) -> Judged:
        """orders: [R, N] in place of the configured ones. Raises ConfigError for more candidates than letters."""
        size = len(case.candidates)
        if self.config.mode in ("letters", "elimination") and size > len(LETTERS):
            raise ConfigError(
                f"{size} candidates", expected=f"at most {len(LETTERS)} for mode {self.config.mode}"
            )
        if orders is None:
            rounds = 1 if self.config.mode == "pointwise" else self.config.rounds
            orders = shown_orders(size, rounds, self.config.orders, [self.seed, case.query_id])
        work = _Work(self, case)
        one: Callable[[Sequence[int], int], tuple[np.ndarray, np.ndarray]] = getattr(work, self.config.mode)
        found = [one(tuple(order.tolist()), number) for number, order in enumerate(orders)]
        ranks_RN = np.stack([ranks_of(order) for order, _ in found])
        scores_RN = np.stack([scores for _, scores in found])
        together = [] if self.config.mode == "pointwise" else zip(orders, found, strict=True)
        slots_R = np.array([list(shown).index(order[0]) for shown, (order, _) in together], np.int64)
        return Judged(
            case, self._combined(case, ranks_RN, scores_RN), ranks_RN, scores_RN, slots_R,
            work.faults, sum((reply.answer.usage for reply in work.replies), Usage()), work.replies,
        )  # fmt: skip

    def _combined(self, case: Case, ranks_RN: np.ndarray, scores_RN: np.ndarray) -> np.ndarray:
        tail_N = ranks_of(tail_order(case))
        if self.config.combine == "scores":
            return np.lexsort((tail_N, -scores_RN.mean(axis=0)))
        return (central if self.config.combine == "central" else borda)(ranks_RN, tail_N)


def tail_order(case: Case) -> tuple[int, ...]:
    """Where a model leaves candidates out: the base ranker's order, else that of the candidates file."""
    return case.base if case.base is not None else tuple(range(len(case.candidates)))


@dataclass
class _Work:
    """The questions about one case."""

    ranker: Ranker
    case: Case
    faults: Faults = field(default_factory=Faults)
    replies: list[Reply] = field(default_factory=list)

    def listwise(self, places: Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
        names = labels(len(places))
        messages = self._prompter.listwise(self.case, places)
        answer = self._chat(messages, _ranking_schema(names), places, number)
        if answer is None:
            return self._nothing()
        parsed = self._parsed(answer, names, places)
        if not parsed.usable and not parsed.faults.refused and self.ranker.config.repair:
            again = Message("user", (_AGAIN.format(first=names[0]),))
            more = [*messages, Message("assistant", (answer.text,)), again]
            second = self._chat(more, _ranking_schema(names), places, number, repair=True)
            self.faults += Faults(repaired=1)
            if second is not None:
                self.faults += Faults(1, invalid=parsed.faults.invalid, foreign=parsed.faults.foreign)
                parsed = self._parsed(second, names, places)
        self.faults += parsed.faults
        order = np.array([places[slot] for slot in parsed.order])
        return order, np.full(len(places), np.nan)

    def letters(self, places: Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
        names = labels(len(places))
        scores = self._scores(self._prompter.letter(self.case, places), names, places, number)
        if scores is None:
            return self._nothing()
        if self.ranker.config.calibrate:
            empty = self._prompter.letter(self.case.without_history(), places)
            prior = self._scores(empty, names, places, number)
            scores = scores if prior is None else scores - prior
        found = np.empty(len(places))
        found[list(places)] = scores
        return self._by_score(found), found

    def pointwise(self, places: Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
        odds = np.array([self._odds(self.case, place, number) for place in range(len(places))])
        if self.ranker.config.calibrate:
            empty = self.case.without_history()
            odds -= np.array([self._odds(empty, place, number) for place in range(len(places))])
        return self._by_score(odds), odds

    def pairwise(self, places: Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
        """Merge sort; a pair is asked in both orders, so that a preferred slot cancels out."""
        known: dict[tuple[int, int], float] = {}

        def better(a: int, b: int) -> float:
            if (a, b) not in known:
                known[a, b] = self._lead(a, b, number) - self._lead(b, a, number)
                known[b, a] = -known[a, b]
            return known[a, b] or float(self._tail_N[b] - self._tail_N[a])

        order = sorted(places, key=functools.cmp_to_key(lambda a, b: -1 if better(a, b) > 0 else 1))
        return np.array(order), np.full(len(places), np.nan)

    def elimination(self, places: Sequence[int], number: int) -> tuple[np.ndarray, np.ndarray]:
        left: list[int] = list(places)
        order: list[int] = []
        while len(left) > 1 and len(order) < self.ranker.config.depth:
            slot = self._choice(self._prompter.letter(self.case, left), labels(len(left)), left, number)
            order.append(left.pop(slot) if slot is not None else self._first_by_tail(left))
        rest = sorted(left, key=lambda place: self._tail_N[place])
        return np.array([*order, *rest]), np.full(len(places), np.nan)

    # What they are made of

    @property
    def _prompter(self) -> Prompter:
        return self.ranker.prompter

    @property
    def _titles(self) -> Sequence[str]:
        return self._prompter.shelf.titles

    @functools.cached_property
    def _tail_N(self) -> np.ndarray:
        return ranks_of(tail_order(self.case))

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """The ranking of a question that had no answer."""
        return np.array(tail_order(self.case)), np.full(len(self.case.candidates), np.nan)

    def _by_score(self, scores_N: np.ndarray) -> np.ndarray:
        return np.lexsort((self._tail_N, -scores_N))

    def _first_by_tail(self, left: list[int]) -> int:
        return left.pop(int(np.argmin([self._tail_N[place] for place in left])))

    def _parsed(self, answer: Answer, names: Sequence[str], places: Sequence[int]) -> Any:
        shown = [self._titles[self.case.candidates[place]] for place in places]
        tail = np.argsort([self._tail_N[place] for place in places]).tolist()
        return parse_ranking(answer, names, shown, tail, [self._titles[item] for item in self.case.history])

    def _odds(self, case: Case, place: int, number: int) -> float:
        """log P(Yes) - log P(No)."""
        messages = self._prompter.yes_no(case, place)
        if self.ranker.client.scores_choices:
            scores = self._scores(messages, YES_NO, [place], number)
            return 0.0 if scores is None else float(scores[0] - scores[1])
        slot = self._choice(messages, YES_NO, [place], number)
        return {0: 1.0, 1: -1.0}.get(slot, 0.0) if slot is not None else 0.0

    def _lead(self, a: int, b: int, number: int) -> float:
        """How far a, shown first, is preferred to b."""
        messages, names = self._prompter.pair(self.case, [a, b]), labels(2)
        if self.ranker.client.scores_choices:
            scores = self._scores(messages, names, [a, b], number)
            return 0.0 if scores is None else float(scores[0] - scores[1])
        slot = self._choice(messages, names, [a, b], number)
        return 0.0 if slot is None else 1.0 - 2.0 * slot

    def _choice(
        self, messages: Sequence[Message], names: Sequence[str], places: Sequence[int], number: int
    ) -> int | None:
        """The slot of the one that the model names, or finds likeliest."""
        if self.ranker.client.scores_choices:
            scores = self._scores(messages, names, places, number)
            return None if scores is None else int(np.argmax(scores))
        answer = self._chat(messages, _choice_schema(names), places, number)
        if answer is None:
            return None
        shown = [self._titles[self.case.candidates[place]] for place in places]
        slot, faults = parse_choice(answer, names, shown if len(places) == len(names) else names)
        self.faults += faults
        return slot

    def _scores(
        self, messages: Sequence[Message], names: Sequence[str], places: Sequence[int], number: int
    ) -> np.ndarray | None:
        try:
            answer = self.ranker.client.score_choices(messages, names, **self._tag(number))
        except ClientError:
            self.faults += Faults(1, failed=1)
            return None
        self.faults += Faults(1)
        self.replies.append(Reply(messages, answer, tuple(places), number))
        return np.array(answer.scores)

    def _chat(
        self,
        messages: Sequence[Message],
        schema: dict,
        places: Sequence[int],
        number: int,
        repair: bool = False,
    ) -> Answer | None:
        try:
            answer = self.ranker.client.chat(messages, schema, **self._tag(number, repair))
        except ClientError:
            self.faults += Faults(1, missing=len(places), failed=1)
            return None
        self.replies.append(Reply(messages, answer, tuple(places), number))
        return answer

    def _tag(self, number: int, repair: bool = False) -> dict[str, Any]:
        found = {"template": self._prompter.config.version, "seed": self.ranker.seed, "round": number}
        return found | ({"repair": True} if repair else {})


def _ranking_schema(names: Sequence[str]) -> dict[str, Any]:
    entries = {
        "type": "array", "items": {"type": "string", "enum": list(names)},
        "minItems": len(names), "maxItems": len(names), "uniqueItems": True,
    }  # fmt: skip
    return _object("ranking", entries)


def _choice_schema(names: Sequence[str]) -> dict[str, Any]:
    return _object("choice", {"type": "string", "enum": list(names)})


def _object(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


def _comparisons(size: int) -> int:
    """Most comparisons of a binary-insertion or merge sort of so many."""
    return sum(max(int(np.ceil(np.log2(number))), 1) for number in range(2, size + 1))
