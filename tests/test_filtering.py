"""Which interactions count: positives, and the k-core against a slow loop."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, SplitError
from recsys.filtering import Filtering, filtered, k_core


def slow_core(rows: list[tuple[int, int]], min_user: int, min_item: int) -> list[tuple[int, int]]:
    """Take one sparse user or item out at a time until there is none."""
    while True:
        users, items = Counter(user for user, _ in rows), Counter(item for _, item in rows)
        for user, item in rows:
            if users[user] < min_user:
                rows = [row for row in rows if row[0] != user]
                break
            if items[item] < min_item:
                rows = [row for row in rows if row[1] != item]
                break
        else:
            return rows


ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, min_user=st.integers(1, 4), min_item=st.integers(1, 4))
def test_k_core_reaches_the_fixed_point(rows, min_user, min_item):
    frame = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    assert k_core(frame, min_user, min_item).rows() == slow_core(rows, min_user, min_item)


def test_one_pass_is_not_enough():
    # a chain: the last item has one row; without it the last user has one, and so on to the front
    rows = [(user, item) for user in range(6) for item in (user, user + 1)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    assert k_core(frame, 2, 2).is_empty()
    assert k_core(frame, 2, 1).rows() == rows


@pytest.fixture
def shop(tmp_path) -> Dataset:
    frame = pl.DataFrame(
        {
            "user_id": [1, 1, 2, 2, 3],
            "item_id": [10, 11, 10, 12, 10],
            "timestamp": range(5),
            "weight": [5.0, 3.5, 4.0, -1.0, 2.0],
            "event": ["buy", "view", "cart", None, "buy"],
        }
    )
    return Dataset.from_frames(tmp_path / "shop", frame)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("weight >= 4", [0, 2]),
        ("weight >= -1", [0, 1, 2, 3, 4]),
        ("weight>=3.5", [0, 1, 2]),
        ("event in [buy]", [0, 4]),
        ("event in ['buy', \"cart\"]", [0, 2, 4]),
    ],
)
def test_positives(shop, rule, kept):
    assert filtered(shop, Filtering(positives=rule))["timestamp"].to_list() == kept


def test_positives_come_before_the_core(shop):
    # all rows: item 10 has three; of the positives it has two, by users 1 and 2
    found = filtered(shop, Filtering(positives="weight >= 4", min_item=2))
    assert found["timestamp"].to_list() == [0, 2]
    with refused("no interaction is left", shop.path, "3/1-core", folder=shop.path, error=SplitError):
        filtered(shop, Filtering(positives="weight >= 4", min_user=3))


def test_an_unreadable_rule_is_refused(tmp_path):
    with refused("positives = 'weight > 4'", "weight >= NUMBER", folder=tmp_path, error=ConfigError):
        parse(Filtering, {"positives": "weight > 4"}, where="split")
