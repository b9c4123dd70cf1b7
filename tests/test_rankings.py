"""Lists on disk: a scorer's own lists measure as the scorer does; what does not fit is refused."""

import hand
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.candidates import Candidates
from recsys.errors import EvaluationError
from recsys.evaluate import evaluate
from recsys.protocol import Protocol
from recsys.rankings import Rankings, evaluate_rankings
from recsys.splits import Split

ITEMS = 12


def lists_of(rows: dict[int, list[str]]) -> pl.DataFrame:
    """query -> item ids, best first."""
    flat = [(query, item, place) for query, items in rows.items() for place, item in enumerate(items, 1)]
    return pl.DataFrame(flat, schema=["query_id", "item_id", "rank"], orient="row")


@pytest.fixture
def split() -> Split:
    return hand.split_of(
        train=[[0, 1], [2], [3, 4]], valid=[[2], [], [5]], test=[[5, 6], [7, -1], [0]], items=ITEMS
    )


@st.composite
def worlds(draw):
    """Scores without ties: how ties fall is the scorer's business in lists, and pessimistic in scores."""
    users = draw(st.integers(2, 4))
    rows = st.lists(st.integers(0, ITEMS - 1), max_size=4)
    train, valid = ([draw(rows) for _ in range(users)] for _ in range(2))
    test = [draw(st.lists(st.integers(-1, ITEMS - 1), min_size=1, max_size=4)) for _ in range(users)]
    scores = np.array([draw(st.permutations(range(ITEMS))) for _ in range(users)], float)
    return hand.split_of([[0, *train[0]], *train[1:]], valid, test, ITEMS), hand.Table(scores)


@pytest.mark.parametrize("repeat", ["keep", "miss"])
@pytest.mark.parametrize("mask", ["off", "train", "history", "window"])
@settings(max_examples=25, deadline=None)
@given(world=worlds(), depth=st.integers(4, ITEMS), k=st.integers(1, 4))
def test_a_scorers_lists_measure_as_the_scorer(mask, repeat, world, depth, k):
    split, scorer = world
    protocol = Protocol(
        ks=tuple({k, 4}),
        mask=mask,
        window=2,
        repeat_targets=repeat,
        slices=("history", "popularity"),
        bootstrap=0,
    )
    rankings = Rankings.from_scorer(scorer, split, "test", depth, protocol)
    assert rankings.depth <= depth
    if rankings.depth < 4:  # masking left fewer items than k: refused below
        with pytest.raises(EvaluationError, match="beyond"):
            evaluate_rankings(rankings, split, "test", protocol)
        return
    direct = evaluate(scorer, split, "test", protocol, progress=False)
    listed = evaluate_rankings(rankings, split, "test", protocol)
    assert listed.values.keys() == direct.values.keys()
    for key, entry in direct.values.items():
        assert listed.values[key] == pytest.approx(entry), key
    assert listed.facts | {"name": ""} == direct.facts | {"name": ""}


def test_truncated_lists_by_hand(split):
    # user 0: one target at 2, one absent; user 1: no list at all; user 2: the target stands first
    rankings = Rankings(lists_of({0: ["i9", "i5", "i8"], 2: ["i0"]}))
    found = evaluate_rankings(rankings, split, "test", Protocol(ks=(3,), bootstrap=0))
    assert found.per_query["test/recall_at_3"].to_list() == [0.5, 0.0, 1.0]
    assert found.per_query["test/mrr_at_3"].to_list() == [0.5, 0.0, 1.0]
    assert (found.facts["queries"], found.facts["targets"], found.facts["targets_outside"]) == (3, 5, 1)


def test_an_item_outside_the_catalogue_keeps_its_place(split):
    rankings = Rankings(lists_of({0: ["stranger", "i5", "i6"], 1: ["i7"], 2: ["i1", "i0"]}))
    found = evaluate_rankings(rankings, split, "test", Protocol(ks=(3,), bootstrap=0))
    assert found.per_query["test/mrr_at_3"].to_list() == [0.5, 1.0, 0.5]


def test_what_does_not_fit_is_refused(split):
    def refused(frame: pl.DataFrame, *, ks=(1,)) -> str:
        with pytest.raises(EvaluationError) as error:
            evaluate_rankings(Rankings(frame), split, "test", Protocol(ks=ks))
        return str(error.value)

    good = lists_of({0: ["i1", "i2"], 1: ["i3"]})
    assert "k = 3 lies beyond the lists' depth 2" in refused(good, ks=(1, 3))
    assert "'i1' stands twice" in refused(lists_of({0: ["i1", "i1"]}))
    assert "hole" in refused(good.with_columns(pl.col("rank") + 1))
    assert "'item_id' is missing" in refused(good.drop("item_id"))
    assert "query 7 is not one of the 3" in refused(lists_of({7: ["i1"]}))
    assert "item_id is Int64" in refused(good.with_columns(pl.Series("item_id", [1, 2, 3])))


def test_rankings_come_back(split, tmp_path):
    rankings = Rankings(lists_of({0: ["i1", "i2"], 1: ["i3"]}))
    rankings.save(tmp_path / "rankings.parquet")
    assert Rankings.load(tmp_path / "rankings.parquet").frame.equals(rankings.frame)


@pytest.mark.parametrize("by_popularity", [False, True])
@pytest.mark.parametrize("guaranteed", [True, False])
def test_sampled_candidates(split, guaranteed, by_popularity, tmp_path):
    found = Candidates.sample(split, "test", 6, guaranteed=guaranteed, by_popularity=by_popularity)
    again = Candidates.sample(split, "test", 6, guaranteed=guaranteed, by_popularity=by_popularity)
    assert found.frame.equals(again.frame)
    assert not found.frame.equals(Candidates.sample(split, "test", 6, seed=1, guaranteed=guaranteed).frame)
    asked = split.queries("test")
    lists_QC = found.rows(asked.query_id_Q)
    for row, shown in enumerate(lists_QC.tolist()):
        assert len(set(shown)) == 6 and min(shown) >= 0
        assert not set(shown) & set(asked.queries.history[row].tolist())
        if guaranteed:
            assert {item for item in asked.targets[row].tolist() if item >= 0} <= set(shown)
    assert found.facts["target_guaranteed"] == guaranteed
    found.save(tmp_path / "candidates")
    loaded = Candidates.load(tmp_path / "candidates", split)
    assert loaded.facts == found.facts and loaded.frame.equals(found.frame)


def test_targets_come_into_a_sample_by_chance_only():
    """Without a guarantee a target is drawn as any other item: six of the ten that are not history."""
    users = 400
    split = hand.split_of([[0, 1]] * users, [[]] * users, [[5]] * users, ITEMS)
    found = Candidates.sample(split, "test", 6, guaranteed=False)
    share = (found.rows(split.queries("test").query_id_Q) == 5).any(axis=1).mean()
    assert abs(share - 0.6) < 4 * np.sqrt(0.6 * 0.4 / users)
    # and the place of a guaranteed one says nothing
    sure = Candidates.sample(split, "test", 6, guaranteed=True)
    places = np.nonzero(sure.rows(split.queries("test").query_id_Q) == 5)[1]
    assert abs(places.mean() - 2.5) < 4 * np.sqrt(35 / 12 / users)


def test_candidates_belong_to_one_split_and_part(split, tmp_path):
    scorer, protocol = hand.Table(np.zeros((3, ITEMS))), Protocol(ks=(2,), bootstrap=0)
    found = Candidates.sample(split, "test", 6)
    other = hand.split_of([[0, 1], [2], [3, 4]], [[2], [], [5]], [[5, 6], [7, -1], [0]], ITEMS, name="other")
    for wrong in ({"split": other, "part": "test"}, {"split": split, "part": "valid"}):
        with pytest.raises(EvaluationError, match="another split or part"):
            evaluate(scorer, **wrong, protocol=protocol, candidates=found, progress=False)
    found.save(tmp_path / "candidates")
    with pytest.raises(EvaluationError, match="another split"):
        Candidates.load(tmp_path / "candidates", other)
    with pytest.raises(EvaluationError, match="k = 7 lies beyond"):
        evaluate(scorer, split, "test", Protocol(ks=(7,)), candidates=found, progress=False)
    with pytest.raises(EvaluationError, match="10 candidates from 12 items"):
        Candidates.sample(split, "test", 10)
    keys = evaluate(scorer, split, "test", protocol, candidates=found, progress=False).values
    assert all("/n6" in key for key in keys)


def test_candidate_lists_are_checked(split):
    frame = lists_of({0: ["i1", "i2"], 1: ["i3"]}).rename({"rank": "position"})
    wrong = {
        "stands twice": lists_of({0: ["i1", "i1"]}).rename({"rank": "position"}),
        "hole": frame.with_columns(pl.col("position") + 1),
        "outside the catalogue": lists_of({0: ["stranger"]}).rename({"rank": "position"}),
        "not one of the 3": lists_of({9: ["i1"]}).rename({"rank": "position"}),
        "is missing": frame.drop("position"),
    }
    for message, lists in wrong.items():
        with pytest.raises(EvaluationError, match=message):
            Candidates.of(lists, split, "test")
