"""Prompts: versioned templates that turn a case (a history, candidates) into messages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from recsys.config import Config
from recsys.errors import ConfigError, nearest
from recsys.zeroshot.messages import Message, Picture, contact_sheet
from recsys.zeroshot.shelf import Shelf
from recsys.zeroshot.wording import DOMAINS, Wording

HISTORY, CANDIDATES = "History, oldest first:\n", "Candidates:\n"
View = Literal["title", "caption", "title_caption", "image", "title_image", "contact_sheet"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Template:
    """Sentences of a version, with {one}, {many}, {did}, {do}, {n} and {items} to be filled in."""

    system: str
    opening: str
    nothing: str
    recency: str
    icl: str
    profile: str
    example: str
    base: str
    sheet: str
    listwise: str
    letter: str
    pair: str
    yes_no: str


TEMPLATES = {
    "1": Template(
        system="You recommend {many}. Answer exactly in the form that is asked for and explain nothing.",
        opening="I have {did} these {many}.\n",
        nothing="Nothing is known of what I have {did}.\n",
        recency="The {one} I {did} last is: {items}.\n",
        icl="If somebody had asked you before what I would {do} next, the right answer would have been: {items}. "
        "Now that I have {did} it, I want another recommendation.\n",
        profile="What I {do} most: {items}.\n",
        example="Somebody like me {did}: {items}\n",
        base="Another recommender, which has seen many users, orders the candidates so, best first: {items}.\n",
        sheet="The pictures of all of them are in one, each under its label.\n",
        listwise="Rank all {n} candidates by how likely I am to {do} them next. Answer with JSON of the form "
        '{{"ranking": ["{first}", "{second}", ...]}}, best first, every label once.',
        letter="Which of the candidates will I {do} next? Answer with its label alone.",
        pair="Which of the two candidates will I rather {do} next? Answer with its label alone.",
        yes_no="Will I {do} this candidate next? Answer Yes or No.",
    )
}
"""Version -> template. A version is never changed: what differs gets a new one, for recorded answers rest on it."""


class PromptConfig(Config):
    """What the model is shown, and how it is told."""

    version: str = "1"
    """Version of the template."""
    strategy: Literal["sequential", "recency", "icl"] = "sequential"
    """sequential: the history in order. recency: also names its last item. icl: the last item stands as the answer to
    an earlier question (in-context learning; LLMRank, arXiv 2305.08845)."""
    history: View = "title"
    """How items of the history are shown."""
    candidates: View = "title"
    """How candidates are shown. contact_sheet: one picture of all, and their titles."""
    length: Annotated[int, Field(ge=0)] = 10
    """Newest items of the history that are shown."""
    base_order: bool = False
    """Tell the order of the base ranker, candidates.base."""
    profile: bool = False
    """Tell the categories that the whole history has most of."""
    examples: Annotated[int, Field(ge=0)] = 0
    """Similar users of the train part, each with its history and what came after."""
    domain: str = "general"
    """Whose words are used: movies, books, music, games, news, art, fashion, beauty, sports, food, places, general."""
    image_side: Annotated[int, Field(ge=16, le=1024)] = 224
    """Longest side of a picture in pixels; of each place of a contact sheet, half of it."""

    @property
    def template(self) -> Template:
        if self.version not in TEMPLATES:
            raise ConfigError(f"prompt.version = {self.version!r}", fix=nearest(self.version, TEMPLATES))
        return TEMPLATES[self.version]

    @property
    def wording(self) -> Wording:
        if self.domain not in DOMAINS:
            raise ConfigError(f"prompt.domain = {self.domain!r}", fix=nearest(self.domain, DOMAINS))
        return DOMAINS[self.domain]

    @property
    def shows_images(self) -> bool:
        return any(
            view in ("image", "title_image", "contact_sheet") for view in (self.history, self.candidates)
        )


@dataclass(frozen=True)
class Example:
    """Another user: items of the history, and the one that came next."""

    history: tuple[int, ...]
    taken: int


@dataclass(frozen=True)
class Case:
    """One question. All items are catalogue indices. history: oldest first, as long as it is known. base: the
    candidates' places, best first by the base ranker. The right answer is not in it."""

    query_id: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]
    base: tuple[int, ...] | None = None
    examples: tuple[Example, ...] = ()

    def without_history(self) -> "Case":
        """The content-free question: what the model prefers whoever asks."""
        return replace(self, history=(), examples=())


def labels(count: int) -> list[str]:
    """Letters where they are enough (one token each), numbers beyond."""
    return list(LETTERS[:count]) if count <= len(LETTERS) else [str(number) for number in range(1, count + 1)]


class Prompter:
    """Makes messages of cases; every kind of question shares the part about the user."""

    def __init__(self, config: PromptConfig, shelf: Shelf):
        self.config, self.shelf = config, shelf
        self._template, self._words = config.template, config.wording

    def listwise(self, case: Case, places: Sequence[int]) -> list[Message]:
        """places: the candidates' positions in the order in which they are shown, as below."""
        names = labels(len(places))
        ask = self._say(self._template.listwise, n=len(places), first=names[-1], second=names[0])
        return self._messages(case, places, ask)

    def letter(self, case: Case, places: Sequence[int]) -> list[Message]:
        return self._messages(case, places, self._say(self._template.letter))

    def pair(self, case: Case, places: Sequence[int]) -> list[Message]:
        return self._messages(case, places, self._say(self._template.pair))

    def yes_no(self, case: Case, place: int) -> list[Message]:
        return self._messages(case, [place], self._say(self._template.yes_no))

    def _messages(self, case: Case, places: Sequence[int], ask: str) -> list[Message]:
        names = labels(len(places))
        items = [case.candidates[place] for place in places]
        parts = [*self._user(case), CANDIDATES, *self._lines(names, items, self.config.candidates)]
        if self.config.base_order and case.base is not None and len(places) > 1:
            label_of = dict(zip(places, names, strict=True))
            order = ", ".join(label_of[place] for place in case.base if place in label_of)
            parts.append(self._say(self._template.base, items=order))
        system = Message("system", (self._say(self._template.system),))
        return [system, Message("user", joined([*parts, ask]))]

    def _user(self, case: Case) -> list[str | Picture]:
        parts: list[str | Picture] = []
        for example in case.examples:
            titles = "; ".join(self.shelf.titles[item] for item in example.history)
            both = f"{titles}; and then: {self.shelf.titles[example.taken]}"
            parts.append(self._say(self._template.example, items=both))
        shown = case.history[max(len(case.history) - self.config.length, 0) :]
        last: tuple[int, ...] = ()
        if self.config.strategy == "icl" and len(shown) > 1:
            shown, last = shown[:-1], shown[-1:]
        if not shown:
            return [*parts, self._say(self._template.nothing)]
        names = [str(number) for number in range(1, len(shown) + 1)]
        parts += [self._say(self._template.opening), HISTORY, *self._lines(names, shown, self.config.history)]
        if last:
            parts.append(self._say(self._template.icl, items=self.shelf.titles[last[0]]))
        elif self.config.strategy == "recency":
            parts.append(self._say(self._template.recency, items=self.shelf.titles[shown[-1]]))
        if self.config.profile and (profile := self.shelf.profile(case.history)):
            parts.append(self._say(self._template.profile, items=profile))
        return parts

    def _lines(self, names: Sequence[str], items: Sequence[int], view: View) -> list[str | Picture]:
        parts: list[str | Picture] = []
        if view == "contact_sheet":
            side = self.config.image_side // 2
            pictures = [
                (name, self.shelf.picture(item, side)) for name, item in zip(names, items, strict=True)
            ]
            parts += [self._say(self._template.sheet), contact_sheet(pictures, side), "\n"]
        for name, item in zip(names, items, strict=True):
            title, caption = self.shelf.titles[item], self.shelf.captions[item]
            text = {"caption": caption or title, "image": ""}.get(view, title)
            if view == "title_caption" and caption:
                text = f"{title} - {caption}"
            parts.append(f"{name}. {text}")
            if view in ("image", "title_image"):
                parts.append(self.shelf.picture(item, self.config.image_side) or "(no picture)")
            parts.append("\n")
        return parts

    def _say(self, sentence: str, **values: object) -> str:
        return sentence.format(**vars(self._words), **values)


def joined(parts: Sequence[str | Picture]) -> tuple[str | Picture, ...]:
    """Neighbouring texts as one."""
    found: list[str | Picture] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)
