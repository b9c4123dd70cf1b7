"""evaluate() against the slow oracle, and its protocol by hand."""

import math
import re

import hand
import numpy as np
import oracle
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.candidates import Candidates
from recsys.errors import EvaluationError
from recsys.evaluate import Evaluation, evaluate, validation_metric
from recsys.protocol import METRICS, Key, Protocol
from recsys.schema import Dense

ITEMS = 9
KS = (1, 3, 20)
PLAIN = {"bootstrap": 0, "slices": ()}


@st.composite
def worlds(draw, targets=st.integers(-1, ITEMS - 1)):
    """A split of two to four users, some without test rows, and scores full of ties."""
    users = draw(st.integers(2, 4))
    items = st.lists(st.integers(0, ITEMS - 1), max_size=6)
    train, valid = ([draw(items) for _ in range(users)] for _ in range(2))
    test = [draw(st.lists(targets, max_size=5)) for _ in range(users)]
    test[0] = test[0] or [draw(targets)]
    train[0] = [*train[0], 0]  # never an empty train part
    score = st.sampled_from([-2.0, 0.0, 0.5, 1.0])
    scores = [[draw(score) for _ in range(ITEMS)] for _ in range(users)]
    return hand.split_of(train, valid, test, ITEMS), np.array(scores), train, valid, test


def distinct(found: list[int]) -> list[int]:
    """A repeated target stands once; two outside the catalogue are two."""
    inside = list(dict.fromkeys(item for item in found if item >= 0))
    return inside + [-1] * sum(item < 0 for item in found)


def masked(mask: str, window: int, train: list[int], valid: list[int]) -> list[int]:
    """Items that are not ranked for a test query."""
    return {"off": [], "train": train, "history": train + valid, "window": (train + valid)[-window:]}[mask]


def check_against_oracle(
    found: Evaluation, slow: dict[int, dict[str, float]], k: int, infix: str = ""
) -> None:
    per_query = {row["user"]: row for row in found.per_query.iter_rows(named=True)}
    assert set(per_query) == set(slow)
    for name in METRICS:
        key = f"test/{name}_at_{k}{infix}"
        for user, metrics in slow.items():
            assert per_query[user][key] == pytest.approx(metrics[name]), (key, user)
        assert found.value(key) == pytest.approx(np.mean([metrics[name] for metrics in slow.values()]))


@pytest.mark.parametrize("repeat", ["keep", "miss"])
@pytest.mark.parametrize("mask", ["off", "train", "history", "window"])
@settings(max_examples=40, deadline=None)
@given(worlds(), st.integers(1, 4))
def test_full_ranking_equals_the_oracle(mask, repeat, world, window):
    split, scores, train, valid, test = world
    protocol = Protocol(ks=KS, mask=mask, window=window, repeat_targets=repeat, **PLAIN)
    found = evaluate(hand.Table(scores), split, "test", protocol, progress=False)
    hidden = [masked(mask, window, *known) for known in zip(train, valid, strict=True)]
    targets = [distinct(wanted) for wanted in test]
    for k in KS:
        slow = oracle.evaluate(scores.tolist(), hidden, targets, mask=True, repeat=repeat, k=k)
        check_against_oracle(found, {user: row for user, row in enumerate(slow) if row}, k)
    asked = [user for user in range(len(test)) if test[user]]
    assert found.facts["queries"] == len(asked)
    assert found.facts["targets"] == sum(len(targets[user]) for user in asked)
    assert found.facts["targets_outside"] == sum(test[user].count(-1) for user in asked)
    repeated = [
        item for user in asked for item in targets[user] if item in train[user] + valid[user] and item >= 0
    ]
    assert found.facts["targets_repeated"] == len(repeated)
    assert found.facts["empty_histories"] == sum(not train[user] + valid[user] for user in asked)


@settings(max_examples=20, deadline=None)
@given(worlds())
def test_further_masks_are_evaluations_of_their_own(world):
    split, scores, *_ = world
    both = Protocol(ks=KS, mask="history", more_masks=("off", "train"), **PLAIN)
    found = evaluate(hand.Table(scores), split, "test", both, progress=False)
    for mask in ("off", "train"):
        alone = evaluate(
            hand.Table(scores), split, "test", Protocol(ks=KS, mask=mask, **PLAIN), progress=False
        )
        for name in METRICS:
            key = f"test/{name}_at_{KS[0]}"
            assert found.value(f"{key}/mask.{mask}") == alone.value(key)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.data())
def test_candidate_lists_equal_the_oracle(world, data):
    """Lists of unequal length, with or without the targets, in any order; items off the list cannot be ranked."""
    split, scores, _, _, test = world
    rows = []
    for user in (user for user in range(len(test)) if test[user]):
        shown = data.draw(st.permutations(range(ITEMS)))[: data.draw(st.integers(3, ITEMS))]
        rows += [(user, f"i{item}", place) for place, item in enumerate(shown, start=1)]
    frame = pl.DataFrame(rows, schema=["query_id", "item_id", "position"], orient="row")
    candidates = Candidates.of(frame.sample(fraction=1, shuffle=True, seed=0), split, "test")
    found = evaluate(
        hand.Table(scores), split, "test", Protocol(ks=(1, 3), mask="off", **PLAIN),
        candidates=candidates, progress=False,
    )  # fmt: skip
    inside = np.full_like(scores, -math.inf)
    for user, item, _ in rows:
        inside[user, int(item[1:])] = scores[user, int(item[1:])]
    targets = [distinct(wanted) for wanted in test]
    for k in (1, 3):
        slow = oracle.evaluate(inside.tolist(), [[]] * len(test), targets, mask=False, repeat="keep", k=k)
        wanted = {user: row for user, row in enumerate(slow) if row}
        check_against_oracle(found, wanted, k, f"/n{candidates.length}")


@settings(max_examples=30, deadline=None)
@given(worlds(), st.sampled_from(["off", "history"]))
def test_pools_rank_within_themselves(world, mask):
    """pool.cold: only items without a train row are candidates and targets; the others drop out of both."""
    split, scores, train, valid, test = world
    protocol = Protocol(ks=(3,), mask=mask, bootstrap=0, slices=("pool",))
    found = evaluate(hand.Table(scores), split, "test", protocol, progress=False)
    seen = {item for row in train for item in row}
    for pool, inside in {"cold": set(range(ITEMS)) - seen, "warm": seen}.items():
        within = np.where([item in inside for item in range(ITEMS)], scores, -math.inf)
        targets = [[item for item in distinct(wanted) if item in inside] for wanted in test]
        hidden = [masked(mask, 1, *known) for known in zip(train, valid, strict=True)]
        slow = oracle.evaluate(within.tolist(), hidden, targets, mask=True, repeat="keep", k=3)
        rows = [row for row in slow if row]
        key = f"test/ndcg_at_3/pool.{pool}"
        if rows and len(seen) < ITEMS:
            assert found.value(key) == pytest.approx(np.mean([row["ndcg"] for row in rows]))
            assert found.values[key]["n"] == len(rows)
        else:
            assert key not in found.values


def test_slices_by_hand():
    # counts of items 0..4 in train: 4, 2, 1, 1, 0; a third of the eight rows lies in item 0, the next in 1
    split = hand.split_of(
        train=[[0, 0, 0, 0, 1], [1, 2], [3], []],
        valid=[[], [], [], []],
        test=[[1], [0, 4], [2], [3]],
        items=5,
    )
    text = Dense(np.full((5, 2), np.nan, np.float32), np.zeros(5, bool))
    text.values_EF[[0, 1]], text.present_E[[0, 1]] = [[1, 0], [0, 1]], True
    # everybody is shown 0, 1, 2, 3, 4 in this order: ranks are 2 | 1, 5 | 3 | 4
    scores = np.tile([5.0, 4, 3, 2, 1], (4, 1))
    protocol = Protocol(ks=(5,), mask="off", bootstrap=0)
    found = evaluate(hand.Table(scores), split, "test", protocol, tables={"text": text}, progress=False)

    def mrr(label: str) -> float:
        return found.value(f"test/mrr_at_5/{label}")

    assert found.value("test/mrr_at_5") == pytest.approx((1 / 2 + 1 + 1 / 3 + 1 / 4) / 4)
    assert mrr("history.0") == pytest.approx(1 / 4)  # user 3
    assert mrr("history.1-4") == pytest.approx((1 + 1 / 3) / 2)  # users 1 and 2
    assert mrr("history.5-19") == pytest.approx(1 / 2)  # user 0
    assert found.facts["empty_slices"] == ["history.20-up"]
    assert mrr("popularity.head") == 1.0  # item 0, of user 1
    assert mrr("popularity.mid") == pytest.approx(1 / 2)  # item 1, of user 0
    assert mrr("popularity.tail") == pytest.approx((1 / 5 + 1 / 3 + 1 / 4) / 3)  # items 4, 2 and 3
    assert mrr("missing.text") == pytest.approx((1 / 5 + 1 / 3 + 1 / 4) / 3)
    assert mrr("pool.cold") == 1.0  # item 4 alone
    assert mrr("pool.warm") == pytest.approx((1 / 2 + 1 + 1 / 3 + 1 / 4) / 4)
    assert found.value("test/coverage_at_5") == 1.0
    assert found.value("test/cold_share_at_5") == pytest.approx(1 / 5)


def test_widths():
    split = hand.split_of([[0], [1]], [[1], [0]], [[2], [2]], 4)
    first, last = np.tile([0.0, 0, 1, 2], (2, 1)), np.tile([0.0, 0, 2, 1], (2, 1))
    scorer = hand.Table(last, {2: first, 8: last})

    def keys(widths) -> set[str]:
        found = evaluate(scorer, split, "test", Protocol(ks=(1,), widths=widths, **PLAIN), progress=False)
        return {key: found.value(key) for key in found.values if key.startswith("test/hr")}

    assert keys("full") == {"test/hr_at_1": 1.0}
    assert keys("all") == keys((2,)) == {"test/hr_at_1": 1.0, "test/hr_at_1/width.2": 0.0}
    with pytest.raises(EvaluationError, match="width 4"):
        keys((4,))
    assert validation_metric(scorer, split, "test", "hr_at_1", width=2) == 0.0


def test_the_validation_metric_is_that_of_the_evaluation():
    rng = np.random.default_rng(0)
    split = hand.split_of(*[[rng.integers(30, size=4).tolist() for _ in range(40)] for _ in range(3)], 30)
    scorer = hand.Table(rng.random((40, 30)))
    for mask in ("off", "train", "history", "window"):
        protocol = Protocol(ks=(7,), mask=mask, window=2, **PLAIN)
        found = evaluate(scorer, split, "valid", protocol, progress=False)
        measured = validation_metric(scorer, split, "valid", "map_at_7", mask, window=2)
        assert measured == pytest.approx(found.value("valid/map_at_7"))
    some = validation_metric(scorer, split, "valid", "map_at_7", max_queries=10)
    assert some == validation_metric(scorer, split, "valid", "map_at_7", max_queries=10)
    assert some != validation_metric(scorer, split, "valid", "map_at_7")
    with pytest.raises(EvaluationError, match="ndgc_at_10"):
        validation_metric(scorer, split, "valid", "ndgc_at_10")


def test_more_queries_than_a_batch():
    """Batches leave no trace: 600 users are more than two of them."""
    rng = np.random.default_rng(1)
    train, test = rng.integers(20, size=(600, 3)).tolist(), rng.integers(20, size=(600, 2)).tolist()
    scores = rng.random((600, 20))
    split = hand.split_of(train, [[]] * 600, test, 20)
    found = evaluate(hand.Table(scores), split, "test", Protocol(ks=(5,), **PLAIN), progress=False)
    slow = oracle.evaluate(
        scores.tolist(), train, [distinct(row) for row in test], mask=True, repeat="keep", k=5
    )
    check_against_oracle(found, dict(enumerate(slow)), 5)


def test_nan_scores_are_refused():
    split = hand.split_of([[0], [1]], [[], []], [[2], [2]], 4)
    scores = np.zeros((2, 4))
    scores[1, 3] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        evaluate(hand.Table(scores), split, "test", Protocol(ks=(1,)), progress=False)


def test_an_evaluation_comes_back(tmp_path):
    split = hand.split_of([[0], [1]], [[], []], [[2], [3]], 4)
    found = evaluate(hand.Table(np.eye(2, 4)), split, "test", Protocol(ks=(2,), bootstrap=20), name="eye")
    found.save(tmp_path / "evaluation")
    loaded = Evaluation.load(tmp_path / "evaluation")
    assert (loaded.values, loaded.facts, loaded.name) == (found.values, found.facts, "eye")
    assert loaded.per_query.equals(found.per_query)
    with pytest.raises(EvaluationError, match="no metric"):
        loaded.value("test/ndcg_at_3")


@given(
    st.builds(
        Key,
        part=st.sampled_from(["valid", "test"]),
        metric=st.sampled_from([*METRICS, "coverage", "cold_share"]),
        k=st.integers(1, 500),
        candidates=st.none() | st.integers(1, 200),
        slice=st.sampled_from([None, "pool.cold", "history.1-4", "history.20-up", "missing.text_2"]),
        width=st.none() | st.integers(2, 512),
    )
)
def test_keys_round_trip_and_suit_mlflow(key):
    assert Key.parse(str(key)) == key
    assert re.fullmatch(r"[\w\-. :/]+", str(key))  # what MLflow lets a metric name hold
    assert not str(key).startswith("/") and "//" not in str(key) and ".." not in str(key)


def test_every_key_of_an_evaluation_follows_the_grammar():
    split = hand.split_of([[0, 0], [1]], [[], []], [[2], [3]], 5)
    scorer = hand.Table(np.eye(2, 5), {2: np.eye(2, 5), 4: np.eye(2, 5)})
    table = {"text": Dense(np.ones((5, 1), np.float32), np.array([1, 1, 1, 0, 1], bool))}
    found = evaluate(scorer, split, "test", Protocol(ks=(1, 2), widths="all"), tables=table, progress=False)
    assert all(str(Key.parse(key)) == key for key in found.values)
    assert {Key.parse(key).slice for key in found.values} >= {None, "pool.cold", "missing.text"}
    for wrong in ("ndcg_at_10", "test/ndcg", "test/ndcg_at_10/width.8/pool.cold", "test/ndcg@10"):
        with pytest.raises(EvaluationError, match="metric key"):
            Key.parse(wrong)
