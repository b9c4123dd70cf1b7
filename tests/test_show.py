"""What is said of a feature table: norms, neighbours and duplicates, by hand and against slow loops."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.features.duplicates import equal_content, near_equal
from recsys.features.show import neighbours, norms, parse_id
from recsys.features.table import FeatureTable

NAN = float("nan")


def table_of(values, hashes=None, ids=None, **changes) -> FeatureTable:
    """A row of NaN is absent; without hashes every content is another one."""
    values_EF = np.array(values, np.float32)
    present_E = ~np.isnan(values_EF).any(axis=1)
    hashes = hashes or [f"h{row}" for row in range(len(values_EF))]
    given = {
        "entity": "item",
        "name": "text",
        "ids": pl.Series(range(len(values_EF)) if ids is None else ids),
        "hashes_E": tuple(np.where(present_E, hashes, "").tolist()),
        "manifest": {"modality": "text", "extractor": "planted"},
        "values_EF": values_EF,
        "present_E": present_E,
    }
    return FeatureTable(**given | changes)


def test_norms_by_hand():
    found = norms(table_of([[3, 4, 1], [NAN, NAN, NAN], [0, 0, 1], [6, 8, 1], [0, 0, 1]]))
    assert (found.least, found.median) == (1, pytest.approx((1 + 26**0.5) / 2))
    assert found.greatest == pytest.approx(101**0.5)
    assert found.zero_rows.tolist() == [] and found.constant.tolist() == [2]
    found = norms(table_of([[NAN, NAN], [0, 0], [1, 0], [0, 0]]))
    assert found.zero_rows.tolist() == [1, 3] and found.constant.tolist() == [1]
    assert norms(table_of([[1, 2]])).constant.tolist() == []  # one row tells nothing of columns
    assert norms(table_of([[NAN, NAN]])) is None


def test_neighbours_by_hand():
    """A longer vector is no further away; absent rows and the row itself are left out; ties keep the row order."""
    values = [[1, 0], [10, 0], [NAN, NAN], [1, 1], [0, 5], [-1, 0], [2, 2], [0, 0]]
    found = neighbours(table_of(values, ids=list("abcdefgh")), "a", 10)
    assert [row for row, _ in found] == ["b", "d", "g", "e", "h", "f"]
    np.testing.assert_allclose([cosine for _, cosine in found], [1, 0.5**0.5, 0.5**0.5, 0, 0, -1], atol=1e-6)
    assert neighbours(table_of(values), 0, 2) == [(1, 1.0), (3, pytest.approx(0.5**0.5))]
    with pytest.raises(FeatureError, match="text: item 2 has no text"):
        neighbours(table_of(values), 2, 3)
    for stranger in (8, -1, 2**70):
        with pytest.raises(FeatureError, match="no item"):
            neighbours(table_of(values), stranger, 3)


def test_neighbours_over_several_blocks(monkeypatch):
    values = np.random.default_rng(0).standard_normal((50, 3))
    whole = neighbours(table_of(values), 20, 50)
    monkeypatch.setattr("recsys.features.show._BLOCK_ROWS", 7)
    assert [row for row, _ in neighbours(table_of(values), 20, 50)] == [row for row, _ in whole]


def test_ids_are_typed_as_the_tables(tmp_path):
    assert parse_id(table_of([[1.0]], ids=["007"]), "007") == "007"
    assert parse_id(table_of([[1.0]]), "-3") == -3
    for text in ("x", "1.5", " 1", "4_2", "", "1e3"):
        with pytest.raises(FeatureError, match="expected an integer"):
            parse_id(table_of([[1.0]]), text)


def test_equal_content_by_hand():
    hashes = ["x", "y", "x", "z", "y", "x", "q"]
    values = [[1], [2], [1], [3], [2], [1], [NAN]]
    groups = equal_content(table_of(values, hashes))
    assert groups.pairs == 4 and [rows.tolist() for rows in groups.rows] == [[0, 2, 5], [1, 4]]
    nothing = equal_content(table_of([[NAN], [NAN]]))
    assert nothing.pairs == 0 and nothing.rows == []  # two that are missing are not the same thing


def test_near_equal_by_hand():
    """Chained rows are one group; equal contents count once; rows of zeros and absent ones are near to nothing."""
    turned = [[np.cos(angle), np.sin(angle)] for angle in (0, 0.1, 0.2, 2.0, 2.1, 4.0)]
    values = [*turned, [0, 0], [0, 0], [NAN, NAN], turned[5]]
    hashes = ["a", "b", "c", "d", "e", "f", "g", "h", "", "f"]
    groups = near_equal(table_of(values, hashes), np.cos(0.15), progress=False)
    assert groups.pairs == 3 and [rows.tolist() for rows in groups.rows] == [[0, 1, 2], [3, 4]]
    assert near_equal(table_of([[NAN]]), 0.5, progress=False).rows == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_near_equal_is_what_comparing_all_pairs_gives(data):
    rows = data.draw(st.integers(1, 24))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = rng.standard_normal((rows, 2))
    values[rng.random(rows) < 0.1] = NAN
    hashes = [f"h{number}" for number in rng.integers(0, data.draw(st.sampled_from([6, 1000])), rows)]
    for name in set(hashes):  # equal contents have equal vectors
        same = [row for row, other in enumerate(hashes) if other == name]
        values[same] = values[same[0]]
    table, threshold = table_of(values, hashes), 0.97
    found = near_equal(table, threshold, block=data.draw(st.sampled_from([1, 3, 7, 100])), progress=False)
    first = [row for row in np.flatnonzero(table.present_E) if hashes.index(hashes[row]) == row]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    group = {row: {row} for row in first}
    pairs = 0
    for one, other in combinations(first, 2):
        if unit[one] @ unit[other] >= threshold:
            pairs += 1
            joined = group[one] | group[other]
            for row in joined:
                group[row] = joined
    expected = sorted(
        {tuple(sorted(rows)) for rows in group.values() if len(rows) > 1}, key=lambda g: (-len(g), g)
    )
    assert found.pairs == pairs
    assert [tuple(rows.tolist()) for rows in found.rows] == expected


def test_a_table_of_copies_needs_little_memory():
    """Thousands of nearly equal rows are millions of pairs, which are counted and not kept."""
    values = 1 + 1e-6 * np.random.default_rng(0).standard_normal((3000, 4))
    found = near_equal(table_of(values), 0.999, block=512, progress=False)
    assert found.pairs == 3000 * 2999 // 2 and len(found.rows) == 1 and len(found.rows[0]) == 3000


# On the command line


@pytest.fixture
def saved(tmp_path) -> Path:
    """Six items; 0 and 3 have the same content, 1 is next to 4, 2 is absent; a Dataset with their titles."""
    values = [[1, 0, 0], [0, 1, 0], [NAN, NAN, NAN], [1, 0, 0], [0, 1, 0.01], [0, 0, 0]]
    table_of(values, ["a", "b", "", "a", "c", "d"]).save(tmp_path / "table")
    items = pl.DataFrame({"item_id": range(6), "title": ["Alien", "Brazil", "Cube", "Alien", "[Dune]", None]})
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    Dataset.from_frames(tmp_path / "data", rows, items)
    return tmp_path / "table"


def test_show(recsys, saved):
    code, out, err = recsys("features", "show", "table", "--dataset", "data", "--item", 0, "-k", 3)
    assert (code, err) == (0, "")
    for words in (
        "5 (83.3%)",
        "planted",
        FeatureTable.load(saved).fingerprint,
        "norms: 0 least, 1 median, 1 greatest",
        "rows of zeros: 1 (first: 5)",
        "equal content: 1 pairs, 2 items in 1 groups\n  2: Alien [0]; Alien [3]",
        "cosine of 0.98 or more: 1 pairs, 2 items in 1 groups\n  2: Brazil [1]; [Dune] [4]",
        "nearest to Alien [0]",
    ):
        assert words in out
    rows = [line.split("│")[2:5] for line in out[out.index("nearest to") :].splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["3", "Alien", "1.0000"],
        ["1", "Brazil", "0.0000"],
        ["4", "[Dune]", "0.0000"],
    ]
    code, out, _ = recsys("features", "show", "table", "--near", 0)
    assert code == 0 and "  2: 0; 3" in out and "cosine" not in out and "nearest" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere",), "not a feature table"),
        (("data",), "not a feature table"),
        (("table/table.json",), "not a feature table"),
        (("table", "--item", "x"), "item id 'x'; expected an integer"),
        (("table", "--item", "77"), "no item 77"),
        (("table", "--item", "9999999999999999999"), "no item 9999999999999999999"),
        (("table", "--item", "2"), "item 2 has no text"),
        (("table", "--dataset", "table"), "no dataset.json"),
        (("table", "--dataset", "other"), "item ids are String; expected Int64"),
        (("readers", "--dataset", "data"), "titles of items"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_of_show(refused, saved, tmp_path, arguments, expected):
    rows = pl.DataFrame({"user_id": [0], "item_id": ["a"], "timestamp": [0]})
    Dataset.from_frames(tmp_path / "other", rows)
    table_of([[1.0]], entity="user").save(tmp_path / "readers")
    assert expected in refused("features", "show", *arguments)


def test_damaged_tables(refused, saved, tmp_path):
    def damaged(name: str, change) -> str:
        shutil.copytree(saved, tmp_path / name)
        change(tmp_path / name)
        return refused("features", "show", name)

    def cut(file: str):
        return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:40])

    def gone(file: str):
        return lambda folder: (folder / file).unlink()

    def header(change):
        def changed(folder: Path) -> None:
            values = json.loads((folder / "table.json").read_text())
            change(values)
            (folder / "table.json").write_text(json.dumps(values))

        return changed

    assert "table.json is damaged" in damaged("a", cut("table.json"))
    assert "table.json is damaged" in damaged("b", lambda folder: (folder / "table.json").write_text("[1]"))
    assert "values were changed" in damaged("c", cut("values.npy"))
    assert "values were changed" in damaged("d", gone("values.npy"))
    for place, change in enumerate((cut("rows.parquet"), gone("rows.parquet"))):
        assert "rows.parquet" in damaged(f"e{place}", change)
    for key in ("kind", "entity", "name", "manifest", "values", "fingerprint"):
        assert "table.json is damaged" in damaged(f"f{key}", header(lambda values: values.pop(key)))  # noqa: B023
    for place, kind in enumerate(("odd", ["dense"])):
        message = damaged(f"g{place}", header(lambda values: values.update(kind=kind)))  # noqa: B023
        assert "a table of kind" in message and "expected dense or fields" in message
