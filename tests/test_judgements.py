"""What a prompted model thought of items, read by the ranker: by fold, of the right experiment, and worth something."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys import schema
from recsys.dataset import Dataset
from recsys.errors import DataError, SplitError
from recsys.judgements import Judgements, fingerprint
from recsys.popularity import DAY, Popularity
from recsys.ranker_config import RankerConfig
from recsys.ranking import learnt, load_ranker, save_ranker
from recsys.ranking_features import JUDGED, Asked, Items, feature_names, ranking_features
from recsys.schema import Ragged
from recsys.splits import Split, SplitConfig, make_split
from recsys.zeroshot.asking import of_items

USERS, ITEMS, FOLDS = 40, 30, 3
NAME = "letters"
CUTS = (40 * DAY, 70 * DAY, 80 * DAY)


class Blind:
    """A generator with an order of its own that says nothing."""

    widths = ()

    def score(self, queries, candidates=None, width=None):
        return np.tile(np.arange(ITEMS, dtype=np.float32), (len(queries), 1))


def worth() -> np.ndarray:
    """[I] how good items are, to everybody."""
    return np.random.default_rng(3).random(ITEMS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple:
    """People take what is worth it."""
    rng = np.random.default_rng(0)
    chance_I = worth() ** 4 / (worth() ** 4).sum()
    rows = [
        (user, int(rng.choice(ITEMS, p=chance_I)), int(rng.integers(100 * DAY)))
        for user in range(USERS)
        for _ in range(30)
    ]
    names = (schema.USER, schema.ITEM, schema.TIME)
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    folder = tmp_path_factory.mktemp("judged")
    dataset = Dataset.from_frames(
        folder / "data", pl.DataFrame(columns), pl.DataFrame({schema.ITEM: range(ITEMS)})
    )
    split = make_split(dataset, SplitConfig(method="staged", cuts=CUTS, queries="event", catalogue="listed"))
    return dataset, split


def experiment(folder, split: Split, *, part="ranker", split_id: str | None = None, guaranteed=False):
    """What `recsys zeroshot` leaves: ten items each for half of the users, ranked by what they are worth. The path."""
    rng, items = np.random.default_rng(1), np.array(split.item_ids.to_list())
    frames = []
    for query_id, user in enumerate(split.user_ids.to_list()[: USERS // 2]):
        shown = rng.permutation(ITEMS)[:10]
        rank_N = np.argsort(np.argsort(-worth()[items[shown]])) + 1.0
        frames.append(
            pl.DataFrame(
                {
                    "query_id": [query_id] * 10, schema.USER: [user] * 10, schema.ITEM: items[shown],
                    "mean_rank": rank_N, "place": rank_N.astype(int),
                }
            )
        )  # fmt: skip
    (folder / "judgements").mkdir(parents=True)
    path = folder / "judgements" / f"{NAME}.parquet"
    said = pl.concat(frames)
    said.write_parquet(path)
    of_items(said, FOLDS).write_parquet(path.with_name(f"{NAME}.items.parquet"))
    facts = {
        "split_id": split_id or split.id, "part": part, "candidates": {"target_guaranteed": guaranteed},
    }  # fmt: skip
    (folder / "zeroshot.json").write_text(json.dumps({"facts": facts}))
    return path


def test_a_user_s_own_answers_are_not_in_what_it_is_told(place, tmp_path):
    _, split = place
    path = experiment(tmp_path / "e", split)
    said, found = pl.read_parquet(path), Judgements.open(path, split)
    items, users = split.item_ids.to_list(), split.user_ids.to_list()
    for user in (-1, 0, 5, USERS - 1):
        own = None if user < 0 or user >= USERS // 2 else user % FOLDS
        for index in range(0, ITEMS, 7):
            rows = said.filter(pl.col(schema.ITEM) == items[index])
            if own is not None:
                assert said.filter(pl.col("query_id") == user)[schema.USER][0] == users[user]
                rows = rows.filter(pl.col("query_id") % FOLDS != own)
            place_, count = found.of(user)[index]
            assert count == pytest.approx(np.log1p(len(rows)), abs=1e-6)
            if len(rows):
                assert place_ == pytest.approx(((rows["mean_rank"] - 1) / 9).mean(), abs=1e-6)
            else:
                assert np.isnan(place_)


def test_the_ranker_learns_what_the_model_thought_and_keeps_it(place, tmp_path):
    dataset, split = place
    plain = RankerConfig(generators=("blind",), per_generator=ITEMS, min_leaf=20)
    judged = plain.model_copy(update={"judgements": experiment(tmp_path / "e", split)})
    without, with_ = (learnt(one, {"blind": Blind()}, split, dataset, {}) for one in (plain, judged))
    assert [name for name in with_.trees.features if name not in without.trees.features] == list(JUDGED)
    assert with_.trees.gains["judged.place"] > 0.05
    kept = tmp_path / "kept"
    kept.mkdir()
    save_ranker(with_, kept)
    again = load_ranker(kept)
    np.testing.assert_array_equal(again.items.judged, Judgements.open(judged.judgements, split).of(-1))
    nobody_asked = replace(with_.items, judged=None).take(np.arange(3))
    assert nobody_asked.judged is None and again.items.take(np.array([4, 2])).judged.shape == (2, 2)


def test_what_is_known_of_an_item_stands_in_its_row_and_of_a_new_one_nothing(place, tmp_path):
    _, split = place
    judged_I2 = Judgements.open(experiment(tmp_path / "e", split), split).of(-1)
    items = Items({}, {}, Ragged.empty(ITEMS), 0, judged_I2)
    new = Items({}, {}, Ragged.empty(2), 0)
    candidates = np.array([4, ITEMS, 9, ITEMS + 1])
    asked, scores_GC = Asked(np.array([0]), None, DAY), np.zeros((1, 4))
    found_CF = ranking_features(asked, candidates, scores_GC, Popularity(ITEMS).as_of(DAY), items, new)
    names = feature_names(("g",), (), judged=True)
    assert found_CF.shape == (4, len(names))
    rows = dict(zip(names, found_CF.T, strict=True))
    told = [judged_I2[4], (np.nan, 0), judged_I2[9], (np.nan, 0)]
    np.testing.assert_array_equal(np.stack([rows[name] for name in JUDGED], 1), np.array(told, np.float32))


def test_judgements_that_know_too_much_are_refused(place, tmp_path):
    _, split = place
    with pytest.raises(SplitError, match="part 'test'"):
        Judgements.open(experiment(tmp_path / "later", split, part="test"), split)
    with pytest.raises(SplitError):
        Judgements.open(experiment(tmp_path / "other", split, split_id="another"), split)
    with pytest.raises(DataError, match=r"candidates\.guaranteed = false"):
        Judgements.open(experiment(tmp_path / "told", split, guaranteed=True), split)
    with pytest.raises(DataError, match="no judgements"):
        fingerprint(tmp_path / "nothing" / "judgements" / "letters.parquet")


def test_the_fingerprint_follows_both_tables(place, tmp_path):
    _, split = place
    path = experiment(tmp_path / "e", split)
    before = fingerprint(path)
    assert before == fingerprint(path)
    table = path.with_name(f"{NAME}.items.parquet")
    pl.read_parquet(table).head(3).write_parquet(table)
    assert fingerprint(path) != before
