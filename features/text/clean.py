"""What is taken out of a text before it counts as content."""

import html
import re
import unicodedata

_TAG = re.compile(r"<!--[^<>]*-->|</?[A-Za-z][^<>]*>")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]+")
"""Control characters, lone halves of surrogate pairs (no text that can be stored), byte order marks, no characters."""


def clean_text(text: str, *, markup: bool = False) -> str | None:
    """Every run of white space and control characters as one space; None where nothing visible is left.

    markup: take the text as HTML: tags become spaces, entities the characters that they stand for.
    """
    if markup:
        text = html.unescape(_TAG.sub(" ", text))
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if any(unicodedata.category(character)[0] not in "CZ" for character in text) else None
