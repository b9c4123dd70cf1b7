"""After ranking: less of the same, and now and then something nobody would have guessed."""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def mmr(order: np.ndarray, scores: np.ndarray, rows_ND: np.ndarray, k: int, weight: float) -> np.ndarray:
    """The first k places of `order` by maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).

    Place after place the item with the highest weight * relevance - (1 - weight) * (cosine with the nearest item chosen
    so far). order: positions, best first. scores: in that order, scaled here to 0 to 1. rows_ND: content or model
    vectors in that order. weight = 1 changes nothing.
    """
    spread = scores.max() - scores.min()
    relevance_N = (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))
    rows_ND = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)
    nearest_N, left_N, chosen = np.zeros(len(order)), np.ones(len(order), bool), []
    for _ in range(min(k, len(order))):
        values_N = np.where(left_N, weight * relevance_N - (1 - weight) * nearest_N, -np.inf)
        place = int(values_N.argmax())
        chosen.append(place)
        left_N[place] = False
        cosine_N = rows_ND @ rows_ND[place]
        nearest_N = cosine_N if len(chosen) == 1 else np.maximum(nearest_N, cosine_N)
    return order[chosen]


def capped(order: np.ndarray, categories: Sequence[Sequence[str]], k: int, cap: int) -> np.ndarray:
    """The first k places with at most `cap` items of any one category; where too few are left, the best of the others
    fill up. order: indices into `categories`, best first."""
    counts: Counter[str] = Counter()
    taken, put_off = [], []
    for index in order.tolist():
        if len(taken) == k:
            break
        names = categories[index]
        if any(counts[name] >= cap for name in names):
            put_off.append(index)
        else:
            counts.update(names)
            taken.append(index)
    return np.array((taken + put_off)[:k], np.int64)


def explored(order: np.ndarray, eligible: np.ndarray, slots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(order with its last `slots` places given to eligible items that it lacks, drawn evenly; which places are such).

    The draw depends on the seed alone, so that a request can be repeated.
    """
    others = np.setdiff1d(eligible, order)
    slots = min(slots, len(others), len(order))
    drawn_N = np.zeros(len(order), bool)
    if slots == 0:
        return order, drawn_N
    order = order.copy()
    order[len(order) - slots :] = np.random.default_rng(seed).choice(others, slots, replace=False)
    drawn_N[len(order) - slots :] = True
    return order, drawn_N
