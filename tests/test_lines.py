"""An answer's lines as columns: the items and the JSON made of them are those of a list made line by line."""

import math

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, write_bundle
from recsys.schema import Form
from recsys.serving import wire
from recsys.serving.answering import Candidates, best_first, with_drawn
from recsys.serving.answers import Lines, RankedItem, Source
from recsys.serving.catalogue import Catalogue, catalogue_of
from recsys.serving.content import NewItem
from recsys.serving.routes import lines_json

NEW = [NewItem("n0", title='a "quoted" title'), NewItem(7)]
SOURCES = [(), (Source("a", 1, 0.5),), (Source("a", 2, math.nan), Source("b", 1, -1.5))]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    items = pl.DataFrame(
        {
            "item_id": ["x", "y/z", "ü", "w"],
            "title": ["one", None, 'th"ree', ""],
            "category": [["c", "d"], [], None, ["e"]],
        }
    )
    form = Form("item_item", {"dense": np.zeros((4, 4), np.float32), "prior": np.zeros(4, np.float32)})
    types = {"user": "int", "item": "str"}
    content = BundleContent("m", form, items, np.ones(4, np.int64), None, types, "split", 0)
    path = tmp_path_factory.mktemp("lines") / "b"
    write_bundle(path, content)
    return catalogue_of(Bundle.open(path), {})


LINE = st.tuples(
    st.integers(0, 5),
    st.floats(width=32) | st.just(math.nan),
    st.sampled_from(SOURCES),
    st.none() | st.dictionaries(st.sampled_from("fg"), st.floats(-2, 2), max_size=2),
)


@given(st.lists(LINE, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_items_ids_and_json_line_by_line(catalogue, made, with_sources, with_whys):
    slow = []
    for index, score, sources, why in made:
        told = None if math.isnan(score) else score
        sources, why = sources if with_sources else (), why if with_whys else None
        if index < 4:
            slow.append(RankedItem(catalogue.ids[index], told, catalogue.titles[index], index, sources, why))
        else:
            slow.append(RankedItem(NEW[index - 4].item_id, told, NEW[index - 4].title, -1, sources, why))
    columns = np.array([line[0] for line in made], np.int64)
    scores = np.array([line[1] for line in made], np.float32)
    lines = Lines(
        catalogue,
        columns,
        scores,
        NEW,
        [line[2] for line in made] if with_sources else None,
        [line[3] for line in made] if with_whys else None,
    )
    assert list(lines) == slow and lines == slow and len(lines) == len(slow)
    assert lines.ids == [item.item_id for item in slow] and lines.told == [item.score for item in slow]
    assert lines[1:4] == slow[1:4] and lines[::-1] == slow[::-1]
    if slow:
        assert lines[-1] == slow[-1]
    with pytest.raises(IndexError):
        lines[len(slow)]
    found = orjson.loads(lines_json(lines))
    for entry, item in zip(found, slow, strict=True):
        wire.Line.model_validate(entry, strict=True)
        shown = {"item_id": item.item_id, "title": item.title, "category": None, "image": None}
        expected = (catalogue.shown(item.index) if item.index >= 0 else shown) | {
            "score": item.score,
            "sources": [source._asdict() for source in item.sources],
            "contributions": item.contributions,
        }
        assert entry == orjson.loads(orjson.dumps(expected))


def test_other_lines_are_other_lines(catalogue):
    lines = Lines(catalogue, np.array([0, 1]), np.array([2.0, 1.0]))
    assert lines == Lines(catalogue, np.array([0, 1]), np.array([2.0, 1.0]))
    assert lines != Lines(catalogue, np.array([1, 0]), np.array([2.0, 1.0])) and lines != lines[:1]


def test_items_drawn_for_exploration_come_last(catalogue):
    """Whether the lines above them have sources and reasons or not."""
    plain = Lines(catalogue, np.array([0, 1]), np.array([2.0, 1.0], np.float32))
    told = Lines(catalogue, plain.columns, plain.scores, (), SOURCES[:2], [{"f": 1.0}, {"f": 2.0}])
    drawn = [RankedItem(catalogue.ids[3], None, "", 3, (Source("explore", None, None),))]
    for lines in (plain, told):
        assert with_drawn(lines, np.array([3])) == [*lines, *drawn]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, -math.inf, math.nan]), min_size=1, max_size=9),
    st.integers(0, 99),
)
def test_best_first_ties_by_index_and_nothing_to_say_last(scores, seed):
    columns = np.random.default_rng(seed).permutation(20)[: len(scores)]
    found = Candidates(columns, np.zeros((1, len(scores)), np.float32))
    rank = [(math.inf if math.isnan(s) else -s, int(c)) for s, c in zip(scores, columns, strict=True)]
    expected = sorted(range(len(scores)), key=rank.__getitem__)
    assert best_first(found, np.array(scores, np.float32)).tolist() == expected
