"""Orders of candidates and one ranking out of several."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.zeroshot.orders import borda, central, ranks_of, shown_orders, williams


@pytest.mark.parametrize("size", [2, 3, 5, 8, 20, 21])
def test_every_item_stands_once_in_every_place(size):
    square = williams(size)
    for lines in (square, square.T):
        assert all(sorted(line) == list(range(size)) for line in lines.tolist())


@pytest.mark.parametrize("size", [2, 4, 8, 20])
def test_every_item_follows_every_other_once(size):
    followers = {pair for row in williams(size).tolist() for pair in itertools.pairwise(row)}
    assert len(followers) == size * (size - 1)


@pytest.mark.parametrize(("size", "rounds"), [(20, 20), (20, 5), (20, 3), (7, 4), (6, 15)])
def test_rounds_of_a_latin_square_are_balanced(size, rounds):
    orders = shown_orders(size, rounds, "latin", [0, 1])
    counts = np.zeros((size, size), int)
    for order in orders:
        counts[order, np.arange(size)] += 1
    assert counts.max() - counts.min() <= 1 or (rounds > size and counts.max() <= -(-rounds // size))


def test_orders_differ_between_rounds_and_users_and_repeat_by_seed():
    mine, again = shown_orders(20, 3, "latin", [0, 1]), shown_orders(20, 3, "latin", [0, 1])
    other = shown_orders(20, 3, "latin", [0, 2])
    assert (mine == again).all()
    assert len({tuple(order) for order in [*mine.tolist(), *other.tolist()]}) == 6
    assert len({tuple(order) for order in shown_orders(20, 3, "random", [0, 1]).tolist()}) == 3
    assert (shown_orders(4, 2, "fixed", [0]) == [[0, 1, 2, 3]] * 2).all()


def test_borda_breaks_ties_by_the_tail():
    ranks = np.array([[1, 2, 3], [2, 1, 3]])
    assert borda(ranks).tolist() == [0, 1, 2]
    assert borda(ranks, np.array([2, 1, 3])).tolist() == [1, 0, 2]


def kendall_distance(a, b) -> int:
    """Pairs that two rankings order differently, one by one."""
    a, b = ranks_of(a), ranks_of(b)
    pairs = itertools.combinations(range(len(a)), 2)
    return sum((a[i] < a[j]) != (b[i] < b[j]) for i, j in pairs)


def cost(order, ranks_RN) -> int:
    return sum(kendall_distance(order, np.argsort(ranks)) for ranks in ranks_RN)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_central_ranking_is_the_best_of_all(size, rounds, seed):
    rng = np.random.default_rng(seed)
    ranks = np.stack([ranks_of(rng.permutation(size)) for _ in range(rounds)])
    best = min(cost(order, ranks) for order in itertools.permutations(range(size)))
    assert cost(central(ranks), ranks) == best


@settings(deadline=None, max_examples=20)
@given(st.integers(11, 20), st.integers(2, 6), st.integers(0, 10_000))
def test_long_central_rankings_are_orders_and_no_worse_than_borda(size, rounds, seed):
    rng = np.random.default_rng(seed)
    ranks = np.stack([ranks_of(rng.permutation(size)) for _ in range(rounds)])
    found = central(ranks)
    assert sorted(found.tolist()) == list(range(size))
    assert cost(found, ranks) <= cost(borda(ranks), ranks)


def test_unanimous_rounds_are_kept():
    order = np.array([3, 1, 0, 2, 11, 4, 5, 6, 7, 8, 9, 10])
    assert central(np.stack([ranks_of(order)] * 3)).tolist() == order.tolist()
