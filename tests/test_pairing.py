"""Pairs by co-occurrence against hand and slow counts, given pairs, and the split by item."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys
from recsys.errors import DataError, SplitError
from recsys.pairing import PairingConfig, PairSplitConfig, co_occurrence, make_pairs, split_pairs, targets_of
from recsys.splits import make_log

DAY = 86_400


def log_of(sequences, times=None):
    users = np.concatenate([np.full(len(items), user) for user, items in enumerate(sequences)])
    items = np.concatenate([np.array(items, np.int64) for items in sequences])
    time = (
        np.concatenate([np.arange(len(items)) for items in sequences])
        if times is None
        else np.concatenate(times)
    )
    return make_log(
        users.astype(np.int64), items, time.astype(np.int64), np.ones(len(items)), len(sequences), 100
    )


def scores(log, **config) -> dict[tuple[int, int], float]:
    found, score = co_occurrence(log, PairingConfig(**{"top": None} | config))
    return {(int(a), int(b)): float(s) for (a, b), s in zip(found, score, strict=True)}


def test_three_users_of_2_10_and_4_items_make_085():
    """The hand example: 1/2 + 1/10 + 1/4; a user of 50 items adds 0.02."""
    three = [[0, 1], [0, 1, *range(10, 18)], [0, 1, 20, 21]]
    assert scores(log_of(three))[0, 1] == pytest.approx(0.85)
    assert scores(log_of([*three, [0, 1, *range(30, 78)]]))[0, 1] == pytest.approx(0.87)
    assert (1, 0) not in scores(log_of(three))
    both = scores(log_of(three), directed=False)
    assert both[1, 0] == both[0, 1] == pytest.approx(0.85)


def test_bounds_and_the_best_of_each_item():
    log = log_of([[0, 1], [0, 1], [0, 2], [0, 3, 4]])  # 0 -> 1: 1.0, 0 -> 2: 0.5, 0 -> 3, 4: 1/3
    assert scores(log, upper=0.9).keys() == {(0, 2), (0, 3), (0, 4), (3, 4)}
    assert scores(log, lower=0.4).keys() == {(0, 1), (0, 2)}
    assert list(scores(log, top=3)) == [(0, 1), (0, 2), (0, 3), (3, 4)]  # of equal ones the lower index


def test_the_window_is_the_last_days():
    log = log_of([[0, 1, 2], [3, 4]], [np.array([0, 9, 10]) * DAY, np.array([5, 6]) * DAY])
    assert scores(log, days=3).keys() == {(1, 2)}
    assert scores(log, days=3)[1, 2] == 0.5  # N_u counts what lies in the window
    assert (3, 4) in scores(log, days=7)


def slow(sequences, span, directed):
    found: dict[tuple[int, int], float] = {}
    for items in sequences:
        distinct = list(dict.fromkeys(items))
        for first, left in enumerate(distinct):
            for right in distinct[first + 1 : first + 1 + span]:
                for pair in ((left, right),) if directed else ((left, right), (right, left)):
                    found[pair] = found.get(pair, 0) + 1 / len(distinct)
    return found


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
)
def test_co_occurrence_is_what_a_loop_counts(sequences, span, directed):
    assert scores(log_of(sequences), span=span, directed=directed) == pytest.approx(
        slow(sequences, span, directed)
    )


@pytest.fixture
def dataset(tmp_path):
    rows = [
        (f"u{user}", f"i{item:02d}", 100 * item + user) for user in range(8) for item in range(user, user + 6)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    names = [f"i{item:02d}" for item in range(15)]
    items = pl.DataFrame({"item_id": names[::-1], "title": names[::-1], "colour": [n % 5 for n in range(15)]})
    kinds = ["also_viewed", "also_bought"]
    given_ = pl.DataFrame(
        [(names[a], names[(a + step) % 15], step, kinds[step % 2]) for a in range(15) for step in (1, 2, 3, 4)],
        schema=["item_id", "other_id", "rank", "kind"], orient="row",
    )  # fmt: skip
    return recsys.Dataset.from_frames(tmp_path / "data", frame, items, pairs=given_)


def test_only_train_rows_make_pairs(dataset, tmp_path):
    split = recsys.make_split(dataset, recsys.SplitConfig(method="leave_last_out"))
    pairs = make_pairs(dataset, PairingConfig(), split)
    assert pairs.split_id == split.id
    held = set()
    for part in ("valid", "test"):
        asked = split.queries(part)
        for user, target in zip(asked.queries.user_Q, asked.targets.values, strict=True):
            held.add((split.user_ids[int(user)], split.item_ids[int(target)]))
    rows = dataset.interactions.collect()
    train = [
        [i for u, i in zip(rows["user_id"], rows["item_id"], strict=True) if u == user and (u, i) not in held]
        for user in rows["user_id"].unique().sort()
    ]
    expected = slow(train, 20, True)
    names = dataset.items["item_id"].to_list()
    found = {(names[a], names[b]): s for (a, b), s in zip(pairs.pairs_P2, pairs.score_P, strict=True)}
    assert found == pytest.approx(expected)
    with pytest.raises(SplitError, match="expected a split"):
        make_pairs(dataset, PairingConfig())


def test_given_pairs_by_kind_and_rank(dataset):
    pairs = make_pairs(dataset, PairingConfig(source="pairs", kinds=("also_viewed",), top=1))
    names = dataset.items["item_id"].to_list()
    assert pairs.split_id is None and len(pairs) == 15
    assert all((int(names[b][1:]) - int(names[a][1:])) % 15 == 2 for a, b in pairs.pairs_P2)
    assert set(pairs.score_P) == {0.5}
    assert len(make_pairs(dataset, PairingConfig(source="pairs", top=None))) == 60
    with pytest.raises(DataError, match="also_viewed"):
        make_pairs(dataset, PairingConfig(source="pairs", kinds=("also_view",)))
    with pytest.raises(ValueError, match="days for source"):
        PairingConfig(source="pairs", days=3)


def test_the_fingerprint_names_pairs_and_settings(dataset):
    one, again, other = (
        make_pairs(dataset, PairingConfig(source="pairs", top=top)).fingerprint for top in (2, 2, 3)
    )
    assert one == again != other


def test_a_split_by_group_keeps_items_apart(dataset):
    pairs = make_pairs(dataset, PairingConfig(source="pairs", top=None))
    split = split_pairs(dataset, pairs, PairSplitConfig(group="colour", test=0.4, valid=0.2))
    colours = dataset.items["colour"].to_numpy()
    assert [len(set(colours[split.part_I == part])) for part in range(3)] == [2, 1, 2]
    for part, found in enumerate((split.train, split.valid, split.test)):
        assert (split.part_I[found.pairs_P2] == part).all()
        left, right = found.pairs_P2.T
        assert (colours[left] != colours[right]).all()
        assert found.split_id is None and found.made_of["pair_split_id"] == split.id
    assert split_pairs(dataset, pairs, PairSplitConfig(group="colour", seed=1)).id != split.id
    with pytest.raises(DataError, match="colour"):
        split_pairs(dataset, pairs, PairSplitConfig(group="color"))


def test_partners_from_either_side():
    queries, targets = targets_of(np.array([[3, 1], [1, 3], [3, 2]]))
    assert queries.tolist() == [1, 2, 3]
    assert [found.tolist() for found in targets] == [[3], [3], [1, 2]]
