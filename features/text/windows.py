"""Texts of any length to vectors: cut into windows, sorted by length into batches, averaged, put back in order."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from recsys.errors import FeatureError
from recsys.features.base import UnreadableContent
from recsys.features.text.base import TextEncoder

_PIECE_CHARACTERS = 32
"""A window begins and ends between words; a longer word may be cut after so many characters."""
_PIECE = re.compile(rf"\s*\S{{1,{_PIECE_CHARACTERS}}}")


@dataclass(frozen=True)
class Cut:
    """How long texts are read: `windows` windows of the encoder's limit that share `overlap` tokens."""

    windows: int = 1
    overlap: int = 0


def encode_texts(
    encoder: TextEncoder, texts: Sequence[str], batch_size: int, cut: Cut = Cut()
) -> tuple[np.ndarray, int]:
    """([n, F] float32 as the encoder gives them, number of texts that were not read to their end).

    With one window a longer text is cut off by the encoder itself. With more, its vector is the mean of its windows'
    vectors, weighted by their tokens. Batches hold windows of similar length, longest first, so that little is padded
    and too large a batch fails at once. Raises UnreadableContent for texts without a token.
    """
    room = encoder.limit - encoder.special
    if room <= cut.overlap:
        raise FeatureError(
            f"{encoder.limit:.0f} tokens leave {room:.0f} for the text itself",
            expected=f"more than the overlap of {cut.overlap}" if cut.overlap else "at least 1",
            fix="raise max_tokens, lower overlap or shorten the instruction",
        )
    most = _readable(room, cut)
    heads = [text if len(text) <= most else text[: int(most)] for text in texts]
    counts = encoder.count(heads)
    unknown = [row for row, count in enumerate(counts) if not count]
    if unknown:
        raise UnreadableContent(
            unknown, f"{texts[unknown[0]][:80]!r}: the encoder knows none of its characters"
        )
    windows: list[str] = []
    owners: list[int] = []
    lengths: list[int] = []
    unread = 0
    for row, (text, count) in enumerate(zip(heads, counts, strict=True)):
        if count <= room or cut.windows == 1:
            found, whole = [(text, int(min(count, room)))], count <= room
        else:
            found, whole = _windows(encoder, text, int(room), cut)
        windows += [window for window, _ in found]
        lengths += [length for _, length in found]
        owners += [row] * len(found)
        unread += not (whole and len(text) == len(texts[row]))
    order = sorted(range(len(windows)), key=lambda window: -lengths[window])
    made = [
        encoder.vectors([windows[window] for window in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]
    vectors = np.concatenate(made).astype(np.float64)
    weights = np.array([lengths[window] for window in order], float)
    owner = np.array([owners[window] for window in order])
    sums, totals = np.zeros((len(texts), vectors.shape[1])), np.zeros(len(texts))
    np.add.at(sums, owner, vectors * weights[:, None])
    np.add.at(totals, owner, weights)
    return (sums / totals[:, None]).astype(np.float32), unread


def pieces(text: str) -> list[str]:
    """Words with the white space before them, long ones in several pieces; together they are the text."""
    return _PIECE.findall(text)


def spans(costs: Sequence[int], room: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of windows over pieces that cost so many tokens: at most `room` tokens each, and each beginning
    with the last pieces of the one before, at most `overlap` tokens of them. A piece larger than the room stands alone.
    """
    start = 0
    while True:
        stop, total = start + 1, costs[start]
        while stop < len(costs) and total + costs[stop] <= room:
            total += costs[stop]
            stop += 1
        yield start, stop
        if stop == len(costs):
            return
        shared, start = 0, stop
        while shared + costs[start - 1] <= overlap and total - shared - costs[start - 1] > 0:
            start -= 1
            shared += costs[start]
        while start < stop and shared + costs[stop] > room:  # or the window would hold nothing new
            shared -= costs[start]
            start += 1


def _windows(encoder: TextEncoder, text: str, room: int, cut: Cut) -> tuple[list[tuple[str, int]], bool]:
    """Windows with their tokens, and whether they reach the end of the text."""
    parts = pieces(text)
    distinct = list(dict.fromkeys(parts))
    cost_of = dict(zip(distinct, encoder.count(distinct), strict=True))
    costs = [cost_of[part] for part in parts]
    kept = list(islice(spans(costs, room, cut.overlap), cut.windows))
    found = [
        ("".join(parts[start:stop]).strip(), max(1, min(room, sum(costs[start:stop]))))
        for start, stop in kept
    ]
    return found, kept[-1][1] == len(parts)


def _readable(room: float, cut: Cut) -> float:
    """Characters that are looked at. Tokens are shorter than a piece, so that what lies behind cannot get into the
    windows; a text of any size then takes no more memory and time than one of this size."""
    return room * cut.windows * _PIECE_CHARACTERS
