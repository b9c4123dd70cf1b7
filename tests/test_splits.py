"""Splits by hand, and what holds for every method whatever the data."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, SplitError
from recsys.splits import Split, SplitConfig, make_split

ROWS = (
    ("ann", "a", 10), ("ann", "b", 20), ("ann", "c", 30), ("ann", "d", 40), ("ann", "e", 50),
    ("bob", "b", 15), ("bob", "c", 25), ("bob", "a", 35),
    ("cat", "d", 5), ("cat", "e", 45),
)  # fmt: skip
METHODS = ("leave_last_out", "global_time", "user_ratio", "random", "item_cold", "user_cold", "staged")


def dataset_of(folder: Path, rows=ROWS, **columns) -> Dataset:
    """rows: (user, item, time); columns: more of the interactions' columns, and `items` for the items table."""
    items = columns.pop("items", None)
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame = frame.with_columns([pl.Series(name, values) for name, values in columns.items()])
    table = None if items is None else pl.DataFrame({"item_id": items})
    return Dataset.from_frames(folder / "data", frame, table)


def questions(split: Split, part: str) -> dict[str, tuple[list[str], list[str], int]]:
    """user -> (history, targets, at) by name; "-" for a target outside the catalogue. One query a user."""
    return {user: rest for user, *rest in events(split, part)}


def events(split: Split, part: str) -> list[list]:
    """[user, history, targets, at] of every query."""
    asked, names = split.queries(part), [*split.item_ids.to_list(), "-"]
    return [
        [
            split.user_ids[int(asked.queries.user_Q[row])],
            [names[item] for item in asked.queries.history[row]],
            [names[item] for item in asked.targets[row]],
            int(asked.queries.at_Q[row]),
        ]
        for row in range(len(asked))
    ]


def rows_of(split: Split, part: str) -> set[tuple[str, str, int]]:
    log = split.fit_log([part])
    return {
        (split.user_ids[int(user)], split.item_ids[int(item)], int(time))
        for user, item, time in zip(log.user_N, log.item_N, log.time_N, strict=True)
    }


def test_leave_last_out_by_hand(tmp_path):
    split = make_split(dataset_of(tmp_path), SplitConfig(method="leave_last_out"))
    # cat has two rows, none to spare: both are train
    assert rows_of(split, "valid") == {("ann", "d", 40), ("bob", "c", 25)}
    assert rows_of(split, "test") == {("ann", "e", 50), ("bob", "a", 35)}
    assert ("cat", "e", 45) in rows_of(split, "train")
    assert questions(split, "valid") == {"ann": [["a", "b", "c"], ["d"], 40], "bob": [["b"], ["c"], 25]}
    assert questions(split, "test") == {
        "ann": [["a", "b", "c", "d"], ["e"], 50],
        "bob": [["b", "c"], ["a"], 35],
    }
    assert split.facts["rows"] == {"train": 6, "valid": 2, "test": 2}


@pytest.mark.parametrize("cuts", [(30, 45), (0.5, 0.8)])
def test_global_time_by_hand(tmp_path, cuts):
    # ten rows at 5, 10, ..., 50: half of them lie before 30, eight before 45; a row at a cut is on its far side
    split = make_split(dataset_of(tmp_path), SplitConfig(method="global_time", cuts=cuts))
    assert split.facts["cut_times"] == {"valid": 30, "test": 45}
    assert questions(split, "valid") == {"ann": [["a", "b"], ["c", "d"], 30], "bob": [["b", "c"], ["a"], 30]}
    assert questions(split, "test") == {"ann": [["a", "b", "c", "d"], ["e"], 45], "cat": [["d"], ["e"], 45]}


def test_rolling_queries_by_hand(tmp_path):
    config = SplitConfig(method="global_time", cuts=(30, 45), queries="event")
    split = make_split(dataset_of(tmp_path), config)
    assert events(split, "valid") == [
        ["ann", ["a", "b"], ["c"], 30],
        ["ann", ["a", "b", "c"], ["d"], 40],
        ["bob", ["b", "c"], ["a"], 35],
    ]
    assert events(split, "test") == [
        ["ann", ["a", "b", "c", "d"], ["e"], 50],
        ["cat", ["d"], ["e"], 45],
    ]


def test_staged_by_hand(tmp_path):
    split = make_split(dataset_of(tmp_path), SplitConfig(method="staged", cuts=(20, 30, 45)))
    assert split.config.parts == ("train", "ranker", "valid", "test")
    assert rows_of(split, "train") == {("ann", "a", 10), ("bob", "b", 15), ("cat", "d", 5)}
    assert questions(split, "ranker") == {"ann": [["a"], ["b"], 20], "bob": [["b"], ["c"], 20]}
    assert questions(split, "valid") == {"ann": [["a", "b"], ["c", "d"], 30], "bob": [["b", "c"], ["a"], 30]}
    assert questions(split, "test") == {"ann": [["a", "b", "c", "d"], ["e"], 45], "cat": [["d"], ["e"], 45]}


def test_user_ratio_by_hand(tmp_path):
    split = make_split(dataset_of(tmp_path), SplitConfig(method="user_ratio", cuts=(0.5, 0.75)))
    # borders at half and three quarters, rounded up: ann 3 + 1 + 1, bob 2 + 1 + 0, cat 1 + 1 + 0
    assert questions(split, "valid") == {
        "ann": [["a", "b", "c"], ["d"], 40],
        "bob": [["b", "c"], ["a"], 35],
        "cat": [["d"], ["e"], 45],
    }
    assert questions(split, "test") == {"ann": [["a", "b", "c", "d"], ["e"], 50]}


def test_item_cold_holds_out_whole_items(tmp_path):
    config = SplitConfig(method="item_cold", holdout=0.2, warm_holdout=0.0)  # one item of five each
    split = make_split(dataset_of(tmp_path), config)
    items = {part: {item for _, item, _ in rows_of(split, part)} for part in split.config.parts}
    assert len(items["valid"]) == len(items["test"]) == 1 and len(items["train"]) == 3
    assert not items["train"] & (items["valid"] | items["test"]) and not items["valid"] & items["test"]
    assert split.num_items == 5  # the cold items are in the catalogue
    cold = {split.item_ids[int(index)] for index in np.flatnonzero(split.fit_log().item_counts() == 0)}
    assert cold == items["valid"] | items["test"]


def test_item_cold_with_a_warm_pool(tmp_path):
    rows = [(user, item, 100 * user + item) for user in range(40) for item in range(10)]
    split = make_split(dataset_of(tmp_path, rows), SplitConfig(method="item_cold", warm_holdout=0.2))
    counts_I = split.fit_log().item_counts()
    assert (counts_I == 0).sum() == 2
    for part in ("valid", "test"):
        pools_T = counts_I[split.queries(part).targets.flat()[1]] > 0
        assert pools_T.any() and not pools_T.all()  # both a cold and a warm pool of targets


def test_user_cold_by_hand(tmp_path):
    config = SplitConfig(method="user_cold", holdout=0.34, shots=1)  # one user of three each
    split = make_split(dataset_of(tmp_path), config)
    assert split.config.parts == ("train", "support", "valid", "test")
    users = {part: {user for user, _, _ in rows_of(split, part)} for part in split.config.parts}
    assert len(users["train"]) == len(users["valid"]) == len(users["test"]) == 1
    assert users["support"] == users["valid"] | users["test"]
    assert not users["train"] & users["support"]
    firsts = {"ann": ["a"], "bob": ["b"], "cat": ["d"]}
    for part in ("valid", "test"):
        (user,) = users[part]
        assert questions(split, part)[user][0] == firsts[user]  # one shot of history, then questions


def test_random_is_drawn_from_the_seed(tmp_path):
    rows = [(user, item, 100 * user + item) for user in range(50) for item in range(10)]
    dataset = dataset_of(tmp_path, rows)
    one, again, other = (
        make_split(dataset, SplitConfig(method="random", seed=seed)).part_N for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    shares = np.bincount(one, minlength=3) / len(one)
    # 500 draws: four standard deviations are 0.07
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.07)


def test_rows_that_straddle_a_cut_are_dropped(tmp_path):
    # the times of bob's rows are known within bounds only: 25 to 32 lies about the cut at 30, 35 to 40 does not;
    # an end that is not known could be anywhere
    ends = [10, 20, 30, 40, 50, 15, 32, 40, None, 45]
    dataset = dataset_of(tmp_path, timestamp_hi=ends)
    split = make_split(dataset, SplitConfig(method="global_time", cuts=(30, 45)))
    assert split.facts["straddling"] == split.facts["dropped"] == 2
    everywhere = set.union(*(rows_of(split, part) for part in split.config.parts))
    assert everywhere == set(ROWS) - {("bob", "c", 25), ("cat", "d", 5)}
    assert questions(split, "valid")["bob"] == [["b"], ["a"], 30]
    assert questions(split, "test")["cat"] == [[], ["e"], 45]


def test_repeated_targets_stand_once(tmp_path):
    rows = [*ROWS, ("ann", "e", 60), ("ann", "a", 70)]
    split = make_split(dataset_of(tmp_path, rows), SplitConfig(method="global_time", cuts=(30, 45)))
    assert questions(split, "test")["ann"] == [["a", "b", "c", "d"], ["e", "a"], 45]
    rolling = replace(split, config=split.config.model_copy(update={"queries": "event"}))
    assert [targets for user, _, targets, _ in events(rolling, "test") if user == "ann"] == [
        ["e"],
        ["e"],
        ["a"],
    ]


def test_catalogues(tmp_path):
    # f is listed and never interacted with; before 20 only a, b and d occur
    dataset = dataset_of(tmp_path, items=list("fedcba"))
    config = {"method": "global_time", "cuts": (20, 30)}
    found = {
        name: make_split(dataset, SplitConfig(catalogue=name, **config))
        for name in ("interacted", "listed", "train")
    }
    assert found["interacted"].item_ids.to_list() == list("abcde")
    assert found["listed"].item_ids.to_list() == list("abcdef")
    assert found["train"].item_ids.to_list() == list("abd")
    assert {name: split.facts["catalogue"] for name, split in found.items()} == {
        "interacted": 5,
        "listed": 6,
        "train": 3,
    }


def test_targets_outside_the_catalogue_stay_apart(tmp_path):
    dataset = dataset_of(tmp_path)
    config = {"method": "global_time", "cuts": (20, 30), "catalogue": "train"}
    split = make_split(dataset, SplitConfig(**config))
    # ann goes on to c, d and e: d is in the catalogue, c and e are two misses; cat's e is one
    assert questions(split, "test")["ann"] == [["a", "b"], ["-", "d", "-"], 30]
    assert questions(split, "test")["cat"] == [["d"], ["-"], 30]
    # bob's c lies outside: it is in nobody's history
    assert questions(split, "test")["bob"] == [["b"], ["a"], 30]
    assert (split.fit_log(("train", "valid", "test")).item_N >= 0).all()
    rolling = make_split(dataset, SplitConfig(queries="event", **config))
    assert [row[:3] for row in events(rolling, "test")][:3] == [
        ["ann", ["a", "b"], ["-"]],
        ["ann", ["a", "b"], ["d"]],
        ["ann", ["a", "b", "d"], ["-"]],
    ]


def test_filters_by_hand(tmp_path):
    dataset = dataset_of(tmp_path, weight=[5, 1, 5, 5, 5, 5, 5, 5, 5, 5], event=["buy", "see"] * 5)
    config = {"method": "random", "cuts": (0.4, 0.7), "seed": 3}
    assert len(make_split(dataset, SplitConfig(positives="weight >= 4", **config)).log) == 9
    assert len(make_split(dataset, SplitConfig(positives="event in [see]", **config)).log) == 5
    # two rows an item, three a user: cat goes, then d and e have one row left, then ann and bob keep a, b, c
    core = make_split(dataset, SplitConfig(min_user=3, min_item=2, **config))
    assert core.user_ids.to_list() == ["ann", "bob"] and core.item_ids.to_list() == ["a", "b", "c"]
    with pytest.raises(SplitError, match="no interaction is left"):
        make_split(dataset, SplitConfig(min_user=9, **config))
    with pytest.raises(ConfigError, match="positives"):
        parse(SplitConfig, {"positives": "weight > 4"}, where="split")


def test_order_takes_the_place_of_time(tmp_path):
    rows = [(user, item, None) for user, item, _ in ROWS]
    dataset = dataset_of(tmp_path, rows, order=[5, 4, 3, 2, 1, 1, 2, 3, 1, 2])
    split = make_split(dataset, SplitConfig(method="leave_last_out"))
    assert questions(split, "test")["ann"] == [["e", "d", "c", "b"], ["a"], 5]
    for method in ("global_time", "staged"):
        with pytest.raises(SplitError, match="needs timestamps"):
            make_split(dataset, SplitConfig(method=method))


def test_what_cannot_be_cut_is_refused(tmp_path):
    dataset = dataset_of(tmp_path)
    with pytest.raises(SplitError, match="valid part is empty"):
        make_split(dataset, SplitConfig(method="global_time", cuts=(46, 48)))
    with pytest.raises(SplitError, match="cannot hold out"):
        make_split(dataset, SplitConfig(method="user_cold", holdout=0.6))
    with pytest.raises(SplitError, match="no part 'tset'"):
        make_split(dataset, SplitConfig(method="leave_last_out")).queries("tset")
    for wrong in (
        {"method": "global_time", "cuts": [0.9, 0.8]},
        {"method": "global_time", "cuts": [0.9]},
        {"method": "random", "cuts": [0.5, 2]},
        {"method": "leave_last_out", "cuts": [0.5, 0.6]},
    ):
        with pytest.raises(ConfigError):
            parse(SplitConfig, wrong, where="split")


def test_the_id_covers_every_setting_and_the_data(tmp_path):
    changes = {
        "method": "staged", "cuts": (0.5, 0.6), "holdout": 0.2, "warm_holdout": 0.2, "shots": 1, "queries": "event",
        "catalogue": "listed", "seed": 1, "positives": "weight >= 1", "min_user": 2, "min_item": 2,
    }  # fmt: skip
    assert set(changes) == set(SplitConfig.model_fields)
    dataset = dataset_of(tmp_path)
    base = make_split(dataset, SplitConfig(method="global_time"))
    ids = {base.id}
    ids |= {
        replace(base, config=base.config.model_copy(update={key: value})).id for key, value in changes.items()
    }
    assert len(ids) == 1 + len(changes)
    other = dataset_of(tmp_path / "other", [*ROWS[:-1], ("cat", "a", 45)])
    assert make_split(other, base.config).id not in ids
    # the same rows elsewhere are the same data
    same = dataset_of(tmp_path / "same")
    assert make_split(same, base.config).id == base.id
    base.check(same)
    with pytest.raises(SplitError, match="another dataset"):
        base.check(other)
    with pytest.raises(SplitError, match="not the one"):
        base.check_id(make_split(other, base.config).id)


@pytest.mark.parametrize("catalogue", ["interacted", "train"])
def test_a_saved_split_comes_back(tmp_path, catalogue):
    split = make_split(
        dataset_of(tmp_path), SplitConfig(method="global_time", cuts=(20, 30), catalogue=catalogue)
    )
    split.save(str(tmp_path / "split"))
    loaded = Split.load(str(tmp_path / "split"))
    assert (loaded.id, loaded.config, loaded.facts) == (split.id, split.config, split.facts)
    for part in split.config.parts:
        assert rows_of(loaded, part) == rows_of(split, part)
        assert events(loaded, part) == events(split, part)
    with pytest.raises(SplitError, match="not a split folder"):
        Split.load(tmp_path / "data")


@st.composite
def tables(draw):
    """20 to 60 rows of a few users and items, times with ties, some repeats."""
    size = draw(st.integers(20, 60))
    numbers = [draw(st.lists(st.integers(0, top), min_size=size, max_size=size)) for top in (4, 7, 30)]
    return list(zip(*numbers, strict=True))


@pytest.mark.parametrize("queries", ["user", "event"])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, deadline=None)
@given(rows=tables(), catalogue=st.sampled_from(["interacted", "train"]), seed=st.integers(0, 3))
def test_properties(method, queries, rows, catalogue, seed):
    config = SplitConfig(
        method=method, queries=queries, catalogue=catalogue, seed=seed, holdout=0.25, shots=2
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            split = make_split(dataset_of(Path(folder), rows), config)
        except SplitError:
            assume(False)
    log, part_N, parts = split.log, split.part_N, split.config.parts
    # every row has one part; the log is in order of users and, within them, of time
    assert len(part_N) == len(rows) and part_N.min() >= 0 and part_N.max() < len(parts)
    keys = list(zip(log.user_N, log.time_N, strict=True))
    assert keys == sorted(keys)
    inside_N = log.item_N >= 0
    assert sum(len(split.fit_log([part])) for part in parts) == inside_N.sum()
    if method in ("global_time", "staged"):
        for code in range(1, len(parts)):
            if (part_N == code).any() and (part_N < code).any():
                assert log.time_N[part_N < code].max() < log.time_N[part_N == code].min()
    if method in ("leave_last_out", "user_ratio", "user_cold"):
        assert (np.diff(part_N)[np.diff(log.user_N) == 0] >= 0).all()  # within a user, parts never go back
    for part in parts[1:]:
        _check_queries(split, part, rolling=queries == "event")


def _check_queries(split: Split, part: str, *, rolling: bool) -> None:
    """Against a slow loop over the log."""
    log, code = split.log, split.config.parts.index(part)
    asked = split.queries(part)
    rows_of_part = [row for row in range(len(log)) if split.part_N[row] == code]
    wanted = []
    if rolling:
        for row in rows_of_part:
            user = log.user_N[row]
            before = [
                log.item_N[other]
                for other in range(row)
                if log.user_N[other] == user and split.part_N[other] <= code and log.item_N[other] >= 0
            ]
            wanted.append((user, before, [max(log.item_N[row], -1)]))
    else:
        for user in sorted({int(log.user_N[row]) for row in rows_of_part}):
            own = [row for row in range(len(log)) if log.user_N[row] == user]
            before = [log.item_N[row] for row in own if split.part_N[row] < code and log.item_N[row] >= 0]
            targets = list(dict.fromkeys(log.item_N[row] for row in own if split.part_N[row] == code))
            wanted.append((user, before, [max(item, -1) for item in targets]))
    assert len(asked) == len(wanted)
    assert len(set(asked.query_id_Q.tolist())) == len(wanted)
    for row, (user, before, targets) in enumerate(wanted):
        assert asked.queries.user_Q[row] == user
        assert asked.queries.history[row].tolist() == before
        assert asked.targets[row].tolist() == targets
