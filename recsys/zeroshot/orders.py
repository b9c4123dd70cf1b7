"""Orders in which candidates are shown, and one ranking out of several."""

from collections.abc import Sequence

import numpy as np

_EXACT = 10
"""Longest list whose central ranking is searched exactly: the table has 2^n rows."""


def williams(size: int) -> np.ndarray:
    """[size, size] Latin square, balanced for neighbours where size is even (Williams, 1949): row r is an order;
    over all rows every item stands once in every place, and follows every other once."""
    first = np.zeros(size, np.int64)
    first[1::2] = np.arange(1, size // 2 + 1)
    first[2::2] = size - np.arange(1, (size - 1) // 2 + 1)
    return (first + np.arange(size)[:, None]) % size


def shown_orders(size: int, rounds: int, kind: str, seed: Sequence[int]) -> np.ndarray:
    """[rounds, size] orders. latin: rows of a Latin square over a random naming of the items, evenly apart; beyond
    `size` rounds a new square begins. random: independent. fixed: as the candidates stand."""
    rng = np.random.default_rng(list(seed))
    if kind == "fixed":
        return np.tile(np.arange(size), (rounds, 1))
    if kind == "random":
        return np.stack([rng.permutation(size) for _ in range(rounds)])
    orders: list[np.ndarray] = []
    while len(orders) < rounds:
        count = min(rounds - len(orders), size)
        rows = np.arange(count) * size // count
        orders += list(rng.permutation(size)[williams(size)[rows]])
    return np.stack(orders)


def ranks_of(order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rank from 1 of every item of an order."""
    ranks = np.empty(len(order), np.int64)
    ranks[np.asarray(order)] = np.arange(1, len(order) + 1)
    return ranks


def borda(ranks_RN: np.ndarray, tail_N: np.ndarray | None = None) -> np.ndarray:
    """Items by their mean rank; equal ones by their rank in `tail_N`, else by number."""
    tail_N = np.arange(ranks_RN.shape[1]) if tail_N is None else tail_N
    return np.lexsort((tail_N, ranks_RN.mean(axis=0)))


def central(ranks_RN: np.ndarray, tail_N: np.ndarray | None = None) -> np.ndarray:
    """The ranking with the least sum of Kendall distances to all (permutation self-consistency, arXiv 2310.07712).

    Exact up to ten items; beyond, Borda's order is improved by moving single items until none helps.
    """
    before_NN = (ranks_RN[:, :, None] < ranks_RN[:, None, :]).sum(axis=0)
    costs_NN = before_NN.T  # costs[i, j]: rankings that disagree with i before j
    start = borda(ranks_RN, tail_N)
    return _exact(costs_NN, start) if len(start) <= _EXACT else _moved(costs_NN, start)


def _exact(costs_NN: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Best orders of all subsets, smallest first; among equally good ones that nearest the start in its ties."""
    size = len(start)
    costs = costs_NN[np.ix_(start, start)]
    best, last = np.full(1 << size, np.inf), np.zeros(1 << size, np.int64)
    best[0] = 0
    bits = 1 << np.arange(size)
    for subset in range(1, 1 << size):
        inside = np.flatnonzero(subset & bits)
        # the item put last comes after all others of the subset; of equal ones the latest of the start
        values = [best[subset ^ (1 << j)] + costs[inside, j].sum() - costs[j, j] for j in inside]
        place = len(values) - 1 - int(np.argmin(values[::-1]))
        best[subset], last[subset] = values[place], inside[place]
    order, subset = [], (1 << size) - 1
    while subset:
        order.append(last[subset])
        subset ^= 1 << int(last[subset])
    return start[np.array(order[::-1], np.int64)]


def _moved(costs_NN: np.ndarray, start: np.ndarray) -> np.ndarray:
    order, improved = start.tolist(), True
    while improved:
        improved = False
        for item in list(order):
            at, rest = order.index(item), [other for other in order if other != item]
            # cost of the item at place p: those before it should be before, those after it after
            ahead, behind = costs_NN[rest, item], costs_NN[item, rest]
            total = np.concatenate([[0], np.cumsum(ahead)]) + np.concatenate(
                [np.cumsum(behind[::-1])[::-1], [0]]
            )
            best = int(np.argmin(total))
            if total[best] < total[at]:
                rest.insert(best, item)
                order, improved = rest, True
    return np.array(order)
