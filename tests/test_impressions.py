"""Learning the second stage from lists that were shown, with and without an idea of what places do to clicks."""

import json

import numpy as np
import polars as pl
import pytest

from recsys import schema
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, DataError
from recsys.impressions import fingerprint, shown_lists
from recsys.models.ranker import fit_ranker
from recsys.popularity import DAY
from recsys.ranker_config import RankerConfig
from recsys.ranking import _shown_lists, learnt
from recsys.ranking_features import Items, feature_names
from recsys.schema import Ragged
from recsys.serving.exposures import ExposureLog
from recsys.splits import Split, SplitConfig, make_split

USERS, ITEMS, SIZE = 150, 60, 10
START, MIDDLE, LATER, END = (day * DAY for day in (0, 50, 80, 100))
CUTS = (MIDDLE, LATER, LATER + 5 * DAY)


def worth(user: int) -> np.ndarray:
    """[I] what items are truly worth to a user."""
    return np.random.default_rng(1000 + user).random(ITEMS)


class Knowing:
    """A generator that knows what items are worth, or one that has an order of its own, the same for all."""

    widths = ()

    def __init__(self, knows: bool):
        self.knows = knows

    def score(self, queries, candidates=None, width=None):
        rows = [worth(user) if self.knows else np.arange(ITEMS)[::-1] for user in queries.user_Q.tolist()]
        return np.array(rows, np.float32).reshape(len(queries), ITEMS)


MODELS = {"truth": Knowing(True), "shown": Knowing(False)}


def world(folder) -> Split:
    """Lists stand in the order of `shown`; what is taken is worth it and was looked at, and few look below the top."""
    rng = np.random.default_rng(0)
    rows = [
        (int(rng.integers(USERS)), int(rng.integers(ITEMS)), int(rng.integers(START, MIDDLE)))
        for _ in range(3000)
    ]
    now = [0.0]
    log = ExposureLog(folder / "shown", every=3600, clock=lambda: now[0])
    for number, at in enumerate(np.sort(rng.integers(MIDDLE, LATER, 2500)).tolist()):
        user = int(rng.integers(USERS))
        items = np.sort(rng.choice(ITEMS, SIZE, replace=False)).tolist()
        now[0] = float(at)
        key = None if number % 50 == 0 else json.dumps(user)
        log.add(f"r{number}", "main", "b", key, items, [0.0] * len(items))
        looks = rng.random(SIZE) < 1 / (1 + np.arange(SIZE)) ** 1.5
        rows += [
            (user, item, at + 60)
            for item, seen in zip(items, looks, strict=True)
            if seen and rng.random() < worth(user)[item] ** 2
        ]
    log.close()
    rows += [
        (int(rng.integers(USERS)), int(rng.integers(ITEMS)), int(rng.integers(LATER, END)))
        for _ in range(800)
    ]
    columns = dict(
        zip((schema.USER, schema.ITEM, schema.TIME), map(list, zip(*rows, strict=True)), strict=True)
    )
    dataset = Dataset.from_frames(
        folder / "data", pl.DataFrame(columns), pl.DataFrame({schema.ITEM: range(ITEMS)})
    )
    return make_split(dataset, SplitConfig(method="staged", cuts=CUTS, queries="event", catalogue="listed"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("impressions")
    return folder, world(folder)


def config(folder, **more) -> RankerConfig:
    return RankerConfig(generators=tuple(MODELS), impressions=folder / "shown", min_leaf=20, **more)


def nothing_known() -> Items:
    return Items({}, {}, Ragged.empty(ITEMS), 0)


def test_lists_by_a_slow_reading(place):
    """Histories end before the list, answers lie within the hours after it, strangers and nobody are left out."""
    folder, split = place
    shown = shown_lists(folder / "shown", split, 24)
    log = split.fit_log(("train", "ranker"))
    events = list(zip(log.user_N.tolist(), log.item_N.tolist(), log.time_N.tolist(), strict=True))
    lines = [json.loads(line) for path in sorted((folder / "shown").glob("*.jsonl")) for line in path.open()]
    moments = split.fit_log(("ranker",)).time_N
    lines = [
        line for line in lines if line["user"] is not None and moments.min() <= line["time"] <= moments.max()
    ]
    assert len(shown) == len(lines) and 2300 < len(shown) < 2500
    user_of = {user: row for row, user in enumerate(split.user_ids.to_list())}
    assert split.item_ids.to_list() == list(range(ITEMS))
    lines.sort(key=lambda line: (int(line["time"]), user_of[json.loads(line["user"])]))
    for row in range(0, len(shown), 97):
        start = int(shown.items.starts[row])
        user, at = user_of[json.loads(lines[row]["user"])], int(lines[row]["time"])
        assert shown.items[row].tolist() == lines[row]["items"]
        before = [item for u, item, time in events if u == user and time < at]
        assert sorted(shown.queries.history[row].tolist()) == sorted(before)
        after = {item for u, item, time in events if u == user and at <= time <= at + DAY}
        expected = [item in after for item in lines[row]["items"]]
        assert shown.taken_N[start : start + SIZE].tolist() == expected
    assert shown.places_N[:SIZE].tolist() == list(range(SIZE))


def test_places_explain_what_they_did(place):
    """Without an idea of places, standing high is taken for being worth it."""
    folder, split = place
    agreement = {}
    for bias in (None, 0.0):
        settings = config(folder, position_bias=bias)
        lists = _shown_lists(settings, MODELS, split, lambda user: nothing_known())
        names = feature_names(settings.generators, ())
        trees = fit_ranker(settings, lists.features_NF, lists.labels_N, lists.group_Q, names, lists.places_N)
        scores_N = trees.score(lists.features_NF)
        ends = np.cumsum(lists.group_Q)
        truth_N = lists.features_NF[:, names.index("truth.rank")]
        agreement[bias] = np.mean(
            [
                np.corrcoef(scores_N[end - size : end], -truth_N[end - size : end])[0, 1]
                for size, end in zip(lists.group_Q, ends, strict=True)
            ]
        )
    assert agreement[0.0] > agreement[None] + 0.1, agreement


def test_a_ranker_is_learnt_and_judged(place):
    folder, split = place
    dataset = Dataset.open(folder / "data")
    facts = learnt(config(folder, position_bias=0.0), MODELS, split, dataset, {}).facts
    assert facts["recall"] is None and facts["queries"] > 2300 and facts["lists"] < facts["queries"]


def test_another_log_is_another_ranker(place, tmp_path):
    folder, _ = place
    (tmp_path / "exposures-2026-01-01-1.jsonl").write_text("{}\n")
    assert fingerprint(folder / "shown") == fingerprint(folder / "shown") != fingerprint(tmp_path)


def test_mistakes(place, tmp_path):
    folder, split = place
    with pytest.raises(DataError, match="no exposure log"):
        shown_lists(tmp_path, split, 1)
    (tmp_path / "exposures-2026-01-01-1.jsonl").write_text('{"time": 1, "user": "7"}\n')
    with pytest.raises(DataError, match=r"exposures-2026-01-01-1.jsonl:1"):
        shown_lists(tmp_path, split, 1)
    with pytest.raises(ConfigError, match="position_bias without impressions"):
        parse(RankerConfig, {"generators": ["a"], "position_bias": 0.1}, where="ranker")
    (tmp_path / "exposures-2026-01-01-1.jsonl").write_text(
        json.dumps({"time": LATER - 1, "user": "0", "items": [0, 1]}) + "\n"
    )
    settings = config(folder).model_copy(update={"impressions": tmp_path, "attribution_hours": 1e-9})
    with pytest.raises(DataError, match="none with an answer"):
        _shown_lists(settings, MODELS, split, lambda user: nothing_known())
