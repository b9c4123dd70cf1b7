"""From what a model wrote to a full ranking, with every fault counted."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher

from recsys.zeroshot.clients.base import Answer

_LIKE = 0.9
_NUMBERING = re.compile(r"^\s*(?:[-*•]\s+|\(?\d+\s*[.):]\s+)")
_LABEL = re.compile(r"^\W*([A-Za-z]|\d+)(?=[\W]|$)")
_REFUSAL = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:'|no)t|won't)|as an ai\b|unable to (?:help|assist))",
    re.I,
)


@dataclass(frozen=True)
class Faults:
    """Counts over answers. invalid: no JSON of the asked form. missing, duplicate: candidates left out, or named again.
    foreign: entries that are no candidate; history: those of them that the user had before. refused, truncated, failed
    (no answer at all): answers. repaired: second tries that asked for the form once more."""

    answers: int = 0
    invalid: int = 0
    missing: int = 0
    duplicate: int = 0
    foreign: int = 0
    history: int = 0
    refused: int = 0
    truncated: int = 0
    failed: int = 0
    repaired: int = 0

    def __add__(self, other: "Faults") -> "Faults":
        return Faults(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Parsed:
    """order: all positions, best first; the last ones by the tail order where the model left them out."""

    order: tuple[int, ...]
    faults: Faults

    @property
    def usable(self) -> bool:
        """The model named at least one candidate."""
        return self.faults.missing < len(self.order)


def parse_ranking(
    answer: Answer,
    names: Sequence[str],
    titles: Sequence[str],
    tail: Sequence[int],
    history: Sequence[str] = (),
) -> Parsed:
    """names, titles: of the candidates as they were shown. tail: all positions, the order of what is left out.

    An entry is a label, else a title: the same, the same but for case, or nearly the same (ratio from .9 on).
    """
    entries, valid = _entries(answer.text)
    by_label = {name.casefold(): place for place, name in enumerate(names)}
    by_title = {title.casefold(): place for place, title in enumerate(titles)}
    seen_before = {title.casefold() for title in history}
    found: list[int] = []
    duplicate = foreign = before = 0
    for entry in entries:
        place = _place(entry, by_label, by_title)
        if place is None:
            foreign += 1
            before += entry.casefold() in seen_before
        elif place in found:
            duplicate += 1
        else:
            found.append(place)
    refused = answer.finish == "refusal" or (not found and bool(_REFUSAL.search(answer.text)))
    missing = len(names) - len(found)
    if refused:  # the words of a refusal are no items
        foreign = before = 0
    faults = Faults(
        1, int(not valid), missing, duplicate, foreign, before, int(refused), int(answer.finish == "length")
    )
    return Parsed((*found, *(place for place in tail if place not in found)), faults)


def parse_choice(
    answer: Answer, names: Sequence[str], titles: Sequence[str] = ()
) -> tuple[int | None, Faults]:
    """The position of the one choice that was named, None where none was."""
    titles = titles or names
    parsed = parse_ranking(answer, names, titles, range(len(names)))
    place = parsed.order[0] if parsed.usable else None
    faults = parsed.faults
    return place, Faults(
        1, faults.invalid, int(place is None), 0, faults.foreign, 0, faults.refused, faults.truncated
    )


def _entries(text: str) -> tuple[list[str], bool]:
    """What stands in the list, and whether it was JSON."""
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    if start >= 0:
        try:
            value, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            return re.findall(r'"([^"\n]+)"', text[start:].replace('"ranking"', "")), False
        if isinstance(value, dict):
            value = value.get("ranking", value.get("choice", next(iter(value.values()), [])))
        values = value if isinstance(value, list) else [value]
        return [str(entry).strip() for entry in values if isinstance(entry, str | int)], True
    return [stripped for line in text.splitlines() if (stripped := _NUMBERING.sub("", line).strip())], False


def _place(entry: str, by_label: dict[str, int], by_title: dict[str, int]) -> int | None:
    folded = entry.casefold().strip(" .'\"`*")
    for table in (by_label, by_title):
        if folded in table:
            return table[folded]
    label = _LABEL.match(entry)
    if (
        label is not None
        and label[1].casefold() in by_label
        and entry[label.end(1) : label.end(1) + 1] in ".):"
    ):
        return by_label[label[1].casefold()]
    ratios = {title: SequenceMatcher(None, folded, title).ratio() for title in by_title}
    best = max(ratios, key=ratios.__getitem__, default=None)
    return by_title[best] if best is not None and ratios[best] >= _LIKE else None
