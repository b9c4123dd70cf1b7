"""The second stage: counts as of a day, features of candidates, trees over them, and the bar they must pass."""

import math
import statistics

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import schema
from recsys.dataset import Dataset
from recsys.errors import ConfigError, ModelError
from recsys.models.base import FitContext
from recsys.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from recsys.models.baselines.popularity import Popularity as PopularityModel
from recsys.models.baselines.popularity import PopularityConfig
from recsys.models.ranker import fit_ranker, hidden_counts
from recsys.popularity import COLUMNS, DAY, WINDOWS, Popularity
from recsys.ranker_config import RankerConfig
from recsys.ranking import learnt, load_ranker, save_ranker
from recsys.ranking_features import AGREED, Asked, Items, UserSide, feature_names, ranking_features
from recsys.schema import Dense, Queries, Ragged
from recsys.splits import SplitConfig, make_log, make_split
from recsys.two_stage import best, union

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200 * DAY)), max_size=40)


def counted(events, num_items: int, at: int) -> np.ndarray:
    """The columns of a snapshot, counted one event at a time."""
    day, out = at // DAY, np.zeros((num_items, len(COLUMNS)))
    for item in range(num_items):
        days = [time // DAY for which, time in events if which == item and time // DAY < day]
        windows = [sum(day - window <= one for one in days) for window in WINDOWS]
        week, month = windows[1] / 7, windows[2] / 30
        age = day - min(days) if days else np.nan
        out[item] = [
            *np.log1p([*windows, len(days)]), np.log1p(week) - np.log1p(month), age, not days,
        ]  # fmt: skip
    return out


@given(EVENTS, st.integers(0, 210 * DAY))
@settings(max_examples=60, deadline=None)
def test_counts_as_of_a_day(events, at):
    """At once from a log, event by event in any order with looks between, and from stored arrays."""
    expected = counted(events, 4, at)
    items, times = (np.array([one[which] for one in events], np.int64) for which in (0, 1))
    log = make_log(np.zeros(len(events), np.int64), items, times, np.ones(len(events)), 1, 4)
    of_log, live = Popularity.of_log(log), Popularity(4)
    for number, (item, time) in enumerate(events):
        live.observe(item, time)
        if number % 3 == 0:
            live.as_of(at)
    for found in (of_log, live, Popularity.of_arrays(of_log.arrays())):
        np.testing.assert_allclose(found.as_of(at).values_IF, expected, rtol=1e-6, atol=1e-6)


def test_nothing_of_the_day_itself_or_later_counts():
    live = Popularity(2)
    live.observe(0, 5 * DAY)
    before = live.as_of(5 * DAY + 3).values_IF.copy()
    live.observe(1, 5 * DAY + 1)
    live.observe(1, 6 * DAY)
    np.testing.assert_array_equal(live.as_of(6 * DAY - 1).values_IF, before)
    live.observe(1, 4 * DAY)  # late: it was there before the day began
    assert live.as_of(5 * DAY).values_IF[1, COLUMNS.index("cold")] == 0


@given(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=1, max_size=12), st.integers(1, 14))
def test_the_best_items(scores, count):
    scores_I = np.array(scores)
    expected = [i for i in np.argsort(-scores_I, kind="stable") if scores_I[i] > -np.inf][:count]
    assert best(scores_I, count).tolist() == expected
    both = union(np.stack([scores_I, scores_I[::-1]]), count)
    mirrored = [i for i in np.argsort(-scores_I[::-1], kind="stable") if scores_I[::-1][i] > -np.inf][:count]
    assert both.tolist() == sorted({*expected, *mirrored})


def some_items() -> Items:
    """Four items: two alike, one across, one without content; categories a, b, ab, none."""
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1], [0, 0]], np.float32)
    present = np.array([True, True, True, False])
    return Items({"text": rows}, {"text": present}, Ragged.of([[0], [1], [0, 1], []]), 2)


def columns_of(features_CF: np.ndarray, generators=("g", "h")) -> dict[str, list[float]]:
    names = feature_names(generators, ("text",))
    assert features_CF.shape[1] == len(names)
    return {name: features_CF[:, column].tolist() for column, name in enumerate(names)}


def test_features_by_hand():
    scores_GC = np.array([[3.0, 1.0, 2.0], [0.0, 0.0, np.nan]])
    asked = Asked(np.array([0, 1]), np.array([2 * DAY, 3 * DAY]), 5 * DAY + 7 * 3600)
    snapshot = Popularity(4).as_of(asked.at)
    found = columns_of(ranking_features(asked, np.array([2, 3, 0]), scores_GC, snapshot, some_items()))
    close = lambda name, values: np.testing.assert_allclose(found[name], values, rtol=1e-5)  # noqa: E731
    close("g.z", [1.5**0.5, -(1.5**0.5), 0])
    close("g.rank", np.log1p([0, 2, 1]))
    close("h.z", [0, 0, np.nan])
    close("h.rank", [0, 0, np.nan])
    close("agree", [2, 2, 1])
    close("best_rank", [0, 0, np.log1p(1)])
    close("text.last", [0.8, np.nan, 0.6])
    close("text.mean", [0.4, np.nan, 0.8])
    close("text.max", [0.8, np.nan, 1])
    close("text.missing", [0, 1, 0])
    close("cold", [1, 1, 1])
    close("category_affinity", [0.5, np.nan, 0.5])
    close("repeat", [0, 0, 1])
    close("user_events", [np.log1p(2)] * 3)
    close("user_days_since", [2 + 7 / 24] * 3)
    close("user_category_entropy", [np.log(2)] * 3)
    close("hour", [7] * 3)
    close("weekday", [1] * 3)  # 1970-01-06 was a Tuesday


@given(
    st.lists(
        st.lists(st.sampled_from([math.nan, -1.0, 0.0, 0.5, 2.0]), min_size=25, max_size=25),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 25),
)
@settings(deadline=None)
def test_agreement_by_counting(rows, count):
    """More candidates than the bar of AGREED, scores that tie, generators that say nothing of some or of all."""
    scores_GC = np.array(rows)[:, :count]
    asked = Asked(np.array([0]), None, 5 * DAY)
    candidates = np.arange(count) % 4
    names = [f"g{row}" for row in range(len(rows))]
    snapshot = Popularity(4).as_of(asked.at)
    found = columns_of(ranking_features(asked, candidates, scores_GC, snapshot, some_items()), names)
    ranks = np.full(scores_GC.shape, math.nan)
    for row, scores_C in enumerate(scores_GC):
        told = [score for score in scores_C.tolist() if not math.isnan(score)]
        for place, score in enumerate(scores_C.tolist()):
            z = math.nan
            if not math.isnan(score):
                ranks[row, place] = sum(other > score for other in told)
                spread = statistics.pstdev(told)
                z = (score - statistics.fmean(told)) / spread if spread > 0 else 0
            assert found[f"g{row}.z"][place] == pytest.approx(z, abs=1e-5, nan_ok=True)
    for row, name in enumerate(names):
        np.testing.assert_allclose(found[f"{name}.rank"], np.log1p(ranks[row]), rtol=1e-6)
    assert found["agree"] == (ranks < AGREED).sum(axis=0).tolist()
    best_C = [np.log1p(min(told, default=math.nan)) for told in (c[~np.isnan(c)] for c in ranks.T)]
    np.testing.assert_allclose(found["best_rank"], best_C, rtol=1e-6)


@given(st.lists(st.integers(0, 3), max_size=14), st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(deadline=None)
def test_what_is_known_of_the_user_can_be_made_before(history, candidates):
    """With new items too; and the counts of history and categories by hand."""
    new = Items(
        {"text": np.eye(2, dtype=np.float32)}, {"text": np.array([True, True])}, Ragged.of([[1, 9], []]), 10
    )
    asked = Asked(np.array(history, np.int64), None, 5 * DAY)
    candidates_C = np.array(sorted(candidates))
    given_ = asked, candidates_C, np.zeros((1, len(candidates))), Popularity(4).as_of(asked.at), some_items()
    made = UserSide.of(asked.history, some_items())
    found_CF = ranking_features(*given_, new, made)
    np.testing.assert_array_equal(found_CF, ranking_features(*given_, new))
    found = columns_of(found_CF, ("g",))
    assert found["repeat"] == [float(item in history) for item in candidates_C.tolist()]
    shares = dict.fromkeys(range(10), 0.0)
    categories = [[0], [1], [0, 1], [], [1, 9], []]
    for item in history:
        for code in categories[item]:
            shares[code] += 1 / len(categories[item])
    whole = sum(shares.values())
    for place, item in enumerate(candidates_C.tolist()):
        told = [shares[code] / whole for code in categories[item]] if whole else []
        expected = statistics.fmean(told) if told else math.nan
        assert found["category_affinity"][place] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_new_item_is_told_by_its_content_alone():
    new = Items({"text": np.array([[1, 0]], np.float32)}, {"text": np.array([True])}, Ragged.of([[1]]), 2)
    asked = Asked(np.array([0]), None, 5 * DAY)
    live = Popularity(4)
    live.observe(3, DAY)
    scores_GC = np.array([[1.0, np.nan, 0.0], [1.0, 2.0, 0.0]])
    rows = ranking_features(asked, np.array([3, 4, 0]), scores_GC, live.as_of(asked.at), some_items(), new)
    found = columns_of(rows)
    assert found["text.last"][1:] == [1, 1] and np.isnan(found["text.last"][0])
    assert found["cold"] == [0, 1, 1] and found["popular_ever"][1] == 0
    assert found["category_affinity"][1:] == [0, 1]
    assert np.isnan(found["g.z"][1]) and found["h.rank"][1] == 0
    assert np.isnan(found["user_days_since"]).all()


@given(st.permutations(range(4)), st.integers(0, 2**31))
@settings(deadline=None)
def test_the_order_of_candidates_changes_nothing(order, seed):
    rng = np.random.default_rng(seed)
    scores_GC = rng.integers(3, size=(2, 4)).astype(float)
    asked = Asked(rng.integers(4, size=3), np.arange(3) * DAY, 9 * DAY)
    live = Popularity(4)
    live.observe(1, DAY)
    one = ranking_features(asked, np.arange(4), scores_GC, live.as_of(asked.at), some_items())
    other = ranking_features(asked, np.array(order), scores_GC[:, order], live.as_of(asked.at), some_items())
    np.testing.assert_array_equal(one[list(order)], other)


def test_hidden_counts_hide_rows_whole_and_leave_the_given_rows_alone():
    names = feature_names(("g",), ())
    given_NF = np.ones((400, len(names)), np.float32)
    config = RankerConfig(generators=("g",), popularity_dropout=0.25)
    hidden = hidden_counts(given_NF, names, config)
    assert (given_NF == 1).all()
    gone = np.isnan(hidden[:, names.index("cold")])
    assert 60 < gone.sum() < 140
    assert np.isnan(hidden[gone][:, [names.index(name) for name in COLUMNS]]).all()
    assert not np.isnan(hidden[~gone]).any() and not np.isnan(hidden[:, names.index("g.z")]).any()


def test_nothing_to_learn_from():
    with pytest.raises(ModelError, match="nothing to learn"):
        fit_ranker(
            RankerConfig(generators=("g",)), np.zeros((0, 3)), np.zeros(0), np.zeros(0, int), ["a", "b", "c"]
        )


def fashions(folder, *, planted: bool, users: int = 120, days: int = 100, items: int = 40) -> Dataset:
    """Everybody takes, most of the time, one of the four items that are in fashion, and fashion changes every ten days:
    yesterday's counts say what no generator fitted once can. Not planted: the days are shuffled."""
    rng = np.random.default_rng(7)
    rows = []
    for day in range(days):
        hot = np.random.default_rng(day // 10).permutation(items)[:4]
        for user in rng.choice(users, 30, replace=False):
            item = rng.choice(hot) if rng.random() < 0.7 else rng.integers(items)
            rows.append((int(user), int(item), day * DAY + int(rng.integers(DAY))))
    times = np.array([row[2] for row in rows])
    if not planted:
        times = rng.permutation(times)
    frame = pl.DataFrame(
        {
            schema.USER: [row[0] for row in rows],
            schema.ITEM: [row[1] for row in rows],
            schema.TIME: times,
        }
    )
    catalogue = pl.DataFrame(
        {schema.ITEM: range(items), schema.TITLE: ["x"] * items, schema.CATEGORY: [["a"]] * items}
    )
    return Dataset.from_frames(folder, frame, catalogue)


def line(tmp_path, *, planted: bool):
    dataset = fashions(tmp_path / "data", planted=planted)
    split = make_split(dataset, SplitConfig(method="staged", queries="event"))
    context = FitContext(split.fit_log())
    models = {"itemknn": ItemKNN(ItemKNNConfig()), "popularity": PopularityModel(PopularityConfig())}
    for model in models.values():
        model.fit(context)
    # a table of noise, with holes
    rng = np.random.default_rng(1)
    present = rng.random(split.num_items) < 0.8
    values = np.where(present[:, None], rng.normal(size=(split.num_items, 6)), np.nan).astype(np.float32)
    config = RankerConfig(generators=tuple(models), per_generator=25, tables=("noise",), dims=4, min_leaf=20)
    return config, models, split, dataset, {"noise": Dense(values, present)}


def test_a_signal_that_only_recent_counts_hold_is_found_and_shipped(tmp_path):
    ranker = learnt(*line(tmp_path, planted=True))
    facts = ranker.facts
    assert facts["shipped"] and facts["lift"]["low"] > 0.1
    assert facts["against"] in facts["generators"] and facts["ranker"] > max(facts["generators"].values())
    assert next(iter(facts["gains"])) in ("popular_1d", "popular_7d", "trend")
    assert 0.5 < facts["recall"] < 1


def test_where_there_is_no_signal_nothing_is_shipped(tmp_path):
    facts = learnt(*line(tmp_path, planted=False)).facts
    assert not facts["shipped"] and facts["lift"]["low"] <= 0


def test_a_ranker_comes_back_as_it_was_kept(tmp_path):
    config, models, split, dataset, tables = line(tmp_path, planted=True)
    ranker = learnt(config, models, split, dataset, tables)
    (tmp_path / "kept").mkdir()
    save_ranker(ranker, tmp_path / "kept")
    again = load_ranker(tmp_path / "kept")
    queries = split.queries("valid").take(slice(0, 20)).queries
    popularity = Popularity.of_log(split.fit_log(("train", "ranker", "valid")))
    first, second = (one.scorer(models, popularity).score(queries) for one in (ranker, again))
    np.testing.assert_array_equal(first, second)
    assert again.facts == ranker.facts


def test_scores_put_candidates_first_and_the_rest_in_the_first_generators_order(tmp_path):
    config, models, split, dataset, tables = line(tmp_path, planted=True)
    ranker = learnt(config.model_copy(update={"per_generator": 5}), models, split, dataset, tables)
    queries = split.queries("valid").take(slice(0, 8)).queries
    scores_QI = ranker.scorer(models, Popularity.of_log(split.fit_log())).score(queries)
    alone_GQI = np.stack([models[name].score(queries) for name in config.generators])
    for row in range(len(queries)):
        seen = queries.history[row]
        masked = alone_GQI[:, row].copy()
        masked[:, seen] = -np.inf
        candidates = union(masked, 5)
        rest = np.setdiff1d(np.arange(split.num_items), candidates)
        assert scores_QI[row, candidates].min() > scores_QI[row, rest].max()
        by_first = np.argsort(-alone_GQI[0, row, rest], kind="stable")
        np.testing.assert_array_equal(np.argsort(-scores_QI[row, rest], kind="stable"), by_first)
    picked = ranker.scorer(models, Popularity.of_log(split.fit_log())).score(queries, np.array([3, -1, 0]))
    np.testing.assert_array_equal(picked[:, [0, 2]], scores_QI[:, [3, 0]])
    assert (picked[:, 1] == -np.inf).all()


def test_a_ranker_needs_a_part_of_its_own(tmp_path):
    config, models, _, dataset, tables = line(tmp_path, planted=True)
    split = make_split(dataset, SplitConfig(method="global_time"))
    with pytest.raises(ConfigError, match="staged"):
        learnt(config, models, split, dataset, tables)


def test_later_rows_reach_neither_lists_nor_trees(tmp_path):
    """The trees are the same when every row after the ranker part is another."""
    config, models, split, dataset, tables = line(tmp_path, planted=True)
    text = learnt(config, models, split, dataset, tables).trees.text
    later = split.part_N >= 2
    rng = np.random.default_rng(3)
    items = split.log.item_N.copy()
    items[later] = rng.integers(split.num_items, size=int(later.sum()))
    log = make_log(
        split.log.user_N, items, split.log.time_N, split.log.weight_N, split.num_users, split.num_items
    )
    changed = type(split)(
        split.config,
        split.dataset_fingerprint,
        split.user_ids,
        split.item_ids,
        log,
        split.part_N,
        split.facts,
    )
    assert learnt(config, models, changed, dataset, tables).trees.text == text


def test_queries_carry_the_times_of_their_history(tmp_path):
    _, _, split, _, _ = line(tmp_path, planted=True)
    asked = split.queries("valid").queries
    for row in range(0, len(asked), 97):
        user, at = asked.user_Q[row], asked.at_Q[row]
        mine = (split.log.user_N == user) & (split.log.time_N < at)
        assert asked.times[row].tolist() == split.log.time_N[mine].tolist()
        assert asked.history[row].tolist() == split.log.item_N[mine].tolist()
    assert isinstance(Queries.of([[1]]).times, type(None))
