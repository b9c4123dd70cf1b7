"""Sequences of unequal length without padding, laid out step by step.

A packed batch sorts its rows by length, longest first, and stores all first entries, then all second
entries, and so on: step t works on the first `counts_T[t]` rows. P = sum of counts_T = tokens.
"""

from dataclasses import dataclass

import numpy as np

from recsys.schema import Ragged


@dataclass(frozen=True)
class Packed:
    """items_P: item of every token; counts_T: active rows of each step; order_B: row of the batch that
    stands at each packed row; last_B: token of the last step of each packed row (-1 for an empty row)."""

    items_P: np.ndarray
    counts_T: np.ndarray
    order_B: np.ndarray
    last_B: np.ndarray


def pack(sequences: Ragged) -> Packed:
    """Time-major layout of the rows of `sequences`."""
    lengths = sequences.lengths
    order_B = np.argsort(-lengths, kind="stable")
    lengths = lengths[order_B]
    steps = int(lengths[0]) if len(lengths) else 0
    counts_T = np.searchsorted(-lengths, -np.arange(steps), side="left")
    offsets_T = np.cumsum(counts_T) - counts_T
    rows, values = sequences.take(order_B).flat()
    within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items_P = np.empty(len(rows), np.int64)
    items_P[offsets_T[within] + rows] = values
    last_B = np.full(len(lengths), -1, np.int64)
    full = lengths > 0
    last_B[full] = offsets_T[lengths[full] - 1] + np.flatnonzero(full)
    return Packed(items_P, counts_T, order_B, last_B)


def windows(sequences: Ragged, length: int) -> Ragged:
    """Every row cut into stretches of at most `length` entries, counted from its end, so that the newest
    entries stand in a full window."""
    lengths = sequences.lengths
    pieces = np.maximum(-(-lengths // length), 1)
    rows = np.repeat(np.arange(len(sequences)), pieces)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    ends = sequences.ends[rows] - number * length
    starts = np.maximum(sequences.starts[rows], ends - length)
    keep = ends > starts
    return Ragged(sequences.values, starts[keep], ends[keep])


def thinned(sequences: Ragged, share: float, rng: np.random.Generator) -> Ragged:
    """Every row without about `share` of its entries; the last one always stays, so that no row comes out empty."""
    rows, values = sequences.flat()
    keep = rng.random(len(rows)) >= share
    lengths = sequences.lengths
    keep[(np.cumsum(lengths) - 1)[lengths > 0]] = True
    return Ragged.from_lengths(values[keep], np.bincount(rows[keep], minlength=len(sequences)))


def hidden(sequences: Ragged, share: float, rng: np.random.Generator) -> Ragged:
    """The rows with about `share` of their entries as -1; the last one is where no other is."""
    rows, values = sequences.flat()
    hide = rng.random(len(rows)) < share
    none = np.bincount(rows[hide], minlength=len(sequences)) == 0
    hide[(np.cumsum(sequences.lengths) - 1)[none & (sequences.lengths > 0)]] = True
    return Ragged.from_lengths(np.where(hide, -1, values), sequences.lengths)


def with_question(sequences: Ragged, *, first: bool) -> Ragged:
    """The rows with a -1 before their first entry or after their last."""
    values = sequences.flat()[1]
    ends = np.cumsum(sequences.lengths)
    places = ends - sequences.lengths if first else ends
    return Ragged.from_lengths(np.insert(values, places, -1), sequences.lengths + 1)
