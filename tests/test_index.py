"""Finding the best items without scoring all of them: the approximate index, its gate, and coarse to fine in the
engine."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, write_bundle
from recsys.errors import BundleError, ConfigError
from recsys.schema import Form
from recsys.serving import engine as engine_module
from recsys.serving import finders, index
from recsys.serving.content import NewItem
from recsys.serving.engine import Filters, Query, RankingEngine
from recsys.serving.export import export_bundle
from recsys.serving.finders import Coarse
from recsys.serving.forms import Dot

faiss = pytest.importorskip("faiss", reason="needs the extra ann")
ITEMS, WIDTH, HISTORY = 3_000, 16, [5, 17, 23]


def planted(items: int = ITEMS, spread: float = 0.3, seed: int = 0) -> Form:
    """Item vectors around forty centres; who asks is the mean of the history."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, WIDTH))
    vectors_ID = centres[rng.integers(40, size=items)] + spread * rng.standard_normal((items, WIDTH))
    bias_I = 0.1 * rng.standard_normal(items)
    arrays = {"default_D": np.zeros(WIDTH, np.float32)}
    meta = {"half_life": None, "scaling": "mean", "activation": "none"}
    return Form("dot", arrays, meta, vectors_ID.astype(np.float32), bias_I.astype(np.float32), (4, WIDTH))


def content(form: Form, kind: str) -> BundleContent:
    size = ITEMS if form.item_bias_I is None else len(form.item_bias_I)
    items = pl.DataFrame({"item_id": np.arange(size), "category": [[f"c{i % 3}"] for i in range(size)]})
    ids = {"user": "int", "item": "int"}
    flags = {"uses_history": True}
    return BundleContent(
        "planted", form, items, np.ones(size), None, ids, "split", 0, flags=flags, index=kind
    )


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("indexed") / "b", content(planted(), "always"))


def found(engine: RankingEngine, k: int = 20, **asked) -> list[tuple]:
    return [(item.item_id, item.score) for item in engine.recommend(Query(history=HISTORY), k, **asked).items]


@pytest.fixture
def exact(indexed, monkeypatch) -> RankingEngine:
    """The same bundle, every item scored."""
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "finder_of", lambda *asked: (None, None))
        return RankingEngine(indexed)


class Counting:
    """A finder that counts how often it had a pool."""

    def __init__(self, inner):
        self.inner, self.pools = inner, []

    def pool(self, *asked):
        found = self.inner.pool(*asked)
        self.pools.append(None if found is None else len(found))
        return found


@pytest.fixture
def approximate(indexed) -> RankingEngine:
    engine = RankingEngine(indexed)
    engine.stages.finder = Counting(engine.stages.finder)
    return engine


def test_the_index_says_what_it_finds(indexed):
    facts = indexed.index
    assert facts["recall"] >= index.REQUIRED and facts["items"] == ITEMS and facts["pool"] < ITEMS
    report = json.loads((indexed.path / "reports" / "index.json").read_text())
    assert report == {"shipped": True} | facts


def test_as_exact_scoring_answers(approximate, exact):
    """Scores are the model's own; what the gate asks for is found."""
    expected = found(exact, 100)
    listed = found(approximate, 100)
    (pool,) = approximate.stages.finder.pools
    assert 100 <= pool <= approximate.bundle.index["pool"] < ITEMS
    common = {item for item, _ in expected} & {item for item, _ in listed}
    assert len(common) >= 97
    scores = dict(expected)
    for item, score in listed:
        if item in scores:
            assert score == pytest.approx(scores[item], abs=1e-6)


@pytest.mark.parametrize("filters", [Filters(category=["c1"]), Filters(exclude=list(range(0, 900)))])
def test_only_what_is_allowed(approximate, exact, filters):
    listed, expected = (found(one, 50, filters=filters) for one in (approximate, exact))
    allowed = {item for item, _ in expected}
    assert approximate.stages.finder.pools[0] is not None
    assert len({item for item, _ in listed} & allowed) >= 48
    assert not {item for item, _ in listed} & set(filters.exclude)
    if filters.category:
        assert all(item % 3 == 1 for item, _ in listed)


def test_few_allowed_items_and_long_lists_are_scored_whole(approximate, exact):
    few = Filters(include=list(range(0, ITEMS, 10)))
    assert found(approximate, 20, filters=few) == found(exact, 20, filters=few)
    assert found(approximate, index.DEPTH + 1) == found(exact, index.DEPTH + 1)
    assert approximate.stages.finder.pools == [None, None]


def test_an_item_added_since_is_found(indexed, tmp_path):
    """The index does not know it; it is in every pool."""
    from recsys.item_encoding import ItemEncoding, TableMap

    table = TableMap(np.zeros(2, np.float32), np.ones((2, WIDTH), np.float32), np.zeros(WIDTH, np.float32))
    form = replace(planted(), encoding=ItemEncoding("sum", {"text": table}))
    facts = {"text": {"settings": {"kind": "text"}, "width": 2, "fields": None}}
    bundle = write_bundle(tmp_path / "b", replace(content(form, "always"), content=facts))
    engine = RankingEngine(bundle)
    query_D = form.item_vectors_ID[HISTORY].mean(axis=0)
    sign = float(np.sign(query_D.sum()))
    engine.add_items([NewItem(99_999, features={"text": [50 * sign, 50 * sign]})])
    assert found(engine, 5)[0][0] == 99_999


def test_an_index_that_finds_too_little_is_refused(tmp_path, monkeypatch):
    """Points without structure: product codes of two values each tell little of sixteen dimensions."""
    monkeypatch.setattr(index, "_POOLS", (1,))
    loose = planted(spread=5.0)
    with pytest.raises(BundleError, match=r"expected at least 0\.98"):
        write_bundle(tmp_path / "must", content(loose, "always"))
    assert not (tmp_path / "must").exists()
    monkeypatch.setattr(index, "EXACT_UP_TO", 10)
    bundle = write_bundle(tmp_path / "may", content(loose, "auto"))
    assert bundle.index is None
    report = json.loads((bundle.path / "reports" / "index.json").read_text())
    assert report["shipped"] is False and "0.98" in report["why"]


def test_recall_is_that_of_a_slow_count():
    pools, lists = np.array([[1, 2, 3, -1], [4, 5, 6, 7]]), np.array([[3, 9], [7, 4]])
    slow = np.mean(
        [len(set(p) & set(k)) / len(k) for p, k in zip(pools.tolist(), lists.tolist(), strict=True)]
    )
    assert index._recall(pools, lists) == slow == 0.75


def test_small_catalogues_and_wishes(tmp_path, monkeypatch):
    assert write_bundle(tmp_path / "auto", content(planted(), "auto")).index is None
    monkeypatch.setattr(index, "EXACT_UP_TO", 10)
    assert write_bundle(tmp_path / "none", content(planted(), "none")).index is None
    dense = np.zeros((ITEMS, ITEMS), np.float32)
    item_item = Form("item_item", {"dense": dense, "prior": dense[0]})
    with pytest.raises(BundleError, match="no item vectors to index"):
        write_bundle(tmp_path / "wrong", content(item_item, "always"))


def test_without_faiss_every_item_is_scored(indexed, exact, monkeypatch, caplog):
    monkeypatch.setattr(finders, "find_spec", lambda name: None)
    engine = RankingEngine(indexed)
    assert engine.stages.finder is None and "recsys[ann]" in caplog.text
    assert found(engine) == found(exact)


def test_an_export_is_indexed_anew(indexed, tmp_path):
    narrow = export_bundle(indexed, tmp_path / "narrow", 4)
    assert narrow.index["items"] == ITEMS and narrow.form.widths == (4,)
    assert len(found(RankingEngine(narrow))) == 20


# Coarse to fine


def test_coarse_to_fine_in_the_engine(cases):
    case = cases("fmrlrec")
    whole, full = RankingEngine(case.bundle), RankingEngine(case.bundle, coarse=(8, len(case.item_ids)))
    some = RankingEngine(case.bundle, coarse=(8, 12))
    query = Query(history=case.item_ids[:3])
    lists = [[(i.item_id, i.score) for i in one.recommend(query, 5).items] for one in (whole, full, some)]
    assert [item for item, _ in lists[0]] == [item for item, _ in lists[1]]
    scores = {item.item_id: item.score for item in whole.rank(query, case.item_ids).items}
    assert all(score == pytest.approx(scores[item], abs=1e-5) for item, score in lists[2])
    narrow = [one.recommend(Query(history=case.item_ids[:3], width=8), 5).items for one in (whole, some)]
    assert narrow[0] == narrow[1]  # a narrower width is asked for: every item is scored at that width


def test_a_pool_is_of_allowed_items_only():
    form = planted()
    rng = np.random.default_rng(1)
    allowed_I = rng.random(ITEMS) < 0.5
    pool = Coarse(Dot(form), 4, 200).pool(
        Dot(form), rng.standard_normal(WIDTH).astype(np.float32), allowed_I, 10
    )
    assert len(pool) == 200 and allowed_I[pool].all() and (np.diff(pool) > 0).all()
    assert Coarse(Dot(form), 4, 200).pool(Dot(form), np.ones(WIDTH, np.float32), allowed_I, 201) is None


def test_wrong_coarse_widths(cases):
    with pytest.raises(ConfigError, match="coarse retrieval"):
        RankingEngine(cases("fmrlrec").bundle, coarse=(32, 10))
    with pytest.raises(ConfigError, match="no item vectors"):
        RankingEngine(cases("ease").bundle, coarse=(8, 10))
