"""ROUGE-L: how much of a reference text's word order a written one keeps."""

import re

_WORD = re.compile(r"[^\W_]+")


def rouge_l(written: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (letters and digits, case folded), 0 to 1; 0 for an empty text."""
    ours, theirs = (_WORD.findall(text.casefold()) for text in (written, reference))
    if not ours or not theirs:
        return 0.0
    return 2 * common_length(ours, theirs) / (len(ours) + len(theirs))


def common_length(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time, as bits (Hyyro, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(one)) - 1
    row = whole  # a zero bit marks where the length grows
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    return len(one) - row.bit_count()
