"""Typed fields from metadata: fitted on train rows, unseen and missing told apart, the same for rows to come."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.features.columns import ColumnEncoder
from recsys.features.field_table import FieldTable, load_table
from recsys.features.metadata import ColumnConfig, MetadataConfig, MetadataExtractor, encode, guessed
from recsys.features.reduce import ReduceConfig, ReduceExtractor
from recsys.features.table import FeatureTable
from recsys.fields import Categorical, Fields, MultiValued, Numeric, as_vectors, node_list
from recsys.schema import Ragged
from recsys.splits import Split, SplitConfig, make_split

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e"],
        "category": [["x", "y"], ["y"], None, ["z", "x"], []],
        "brand": ["one", "two", None, "three", "one"],
        "price": [1.0, 3.0, None, 100.0, float("nan")],
        "released": [date(2020, 1, 1), date(2020, 1, 11), None, date(2021, 7, 1), date(2020, 1, 6)],
    }
)
COLUMNS = {
    "category": ColumnConfig(kind="multi"),
    "brand": ColumnConfig(kind="categorical"),
    "price": ColumnConfig(kind="numeric", scale="standard"),
    "released": ColumnConfig(kind="date", scale="standard"),
}


def world(path, items: pl.DataFrame = ITEMS) -> tuple[Dataset, Split]:
    """Users of items a, b, c in train; d and e come only later."""
    rows = [(f"u{user}", item, 100 * user + at) for user in range(3) for at, item in enumerate("abc")]
    rows += [("u0", "d", 10_000), ("u1", "e", 20_000)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    users = pl.DataFrame({"user_id": ["u0", "u1", "u2"], "city": ["Rome", "Oslo", "Rome"]})
    dataset = Dataset.from_frames(path, log, items, users)
    return dataset, make_split(dataset, SplitConfig(method="global_time", cuts=(5_000, 15_000)))


@pytest.fixture
def table(tmp_path) -> FieldTable:
    dataset, split = world(tmp_path / "data")
    extractor = MetadataExtractor(MetadataConfig(columns=COLUMNS))
    return extractor.table("metadata", dataset, split, {})


def test_fields_by_hand(table):
    """Train items are a, b, c: z, three and July are unseen; numbers are scaled by a and b alone."""
    found = {name: table.frame[name].to_list() for name in table.frame.columns}
    assert found["category"] == [[1, 2], [2], None, [0, 1], None]  # x, y known; z is not
    assert found["brand"] == [1, 2, None, 0, 1]  # "three" is unseen, which is not missing
    assert found["price"] == pytest.approx([-1, 1, None, 98, None])  # mean 2, deviation 1; NaN is missing
    assert found["released"] == pytest.approx([-1, 1, None, (547 - 5) / 5, 0])
    assert found["released.month"] == [1, 1, None, 7, 1]
    assert table.present_E.tolist() == [True, True, False, True, True]
    assert [bool(row) for row in table.hashes_E] == [True, True, False, True, True]


def test_later_items_decide_nothing(tmp_path):
    """Other content of items outside train changes their own rows and nothing that was fitted."""
    dataset, split = world(tmp_path / "data")
    others = ITEMS.with_columns(
        brand=pl.Series(["one", "two", None, "four", "five"]),
        price=pl.Series([1.0, 3.0, None, -7.0, 1e6]),
        category=pl.Series([["x", "y"], ["y"], None, ["q"], ["r"]]),
    )
    again, split_again = world(tmp_path / "again", others)
    extractor = MetadataExtractor(MetadataConfig(columns=COLUMNS))
    first, second = (
        extractor.table("m", data, cut, {}) for data, cut in ((dataset, split), (again, split_again))
    )
    assert first.manifest["fields"] == second.manifest["fields"]
    assert first.frame[:3].equals(second.frame[:3]) and not first.frame[3:].equals(second.frame[3:])
    leaky = MetadataExtractor(MetadataConfig(columns=COLUMNS, fit_on="all"))
    first, second = (
        leaky.table("m", data, cut, {}) for data, cut in ((dataset, split), (again, split_again))
    )
    assert first.manifest["fields"] != second.manifest["fields"]
    assert "split_id" not in first.manifest  # it belongs to no split, and says what it was fitted on
    assert first.manifest["fit_on"] == "all"


def test_a_table_refuses_another_split(tmp_path, table):
    dataset, _ = world(tmp_path / "data")
    other = make_split(dataset, SplitConfig(method="leave_last_out"))
    with pytest.raises(FeatureError, match="fitted under split"):
        table.check_split(other.id)


def test_saved_and_loaded(tmp_path, table):
    table.save(str(tmp_path / "table"))
    again = load_table(str(tmp_path / "table"))
    assert isinstance(again, FieldTable) and again.fingerprint == table.fingerprint
    assert again.frame.equals(table.frame)
    with pytest.raises(FeatureError, match="a table of kind 'fields'"):
        FeatureTable.load(tmp_path / "table")
    path = tmp_path / "table" / "fields.parquet"
    table.frame.with_columns(pl.col("brand") + 1).write_parquet(path)
    with pytest.raises(FeatureError, match="the values were changed"):
        load_table(tmp_path / "table")


def test_rows_to_come_are_encoded_alike(table):
    """By the manifest alone, in any order, with columns missing: as serving does with a new item."""
    rows = ITEMS[[3, 0, 2]]
    assert encode(rows, table.manifest).equals(table.frame[[3, 0, 2]])
    without = encode(rows.drop("brand", "category"), table.manifest)
    assert without["brand"].null_count() == 3 and without["category"].null_count() == 3
    assert without["price"].equals(table.frame["price"][[3, 0, 2]])


def test_aligned_fields(table):
    fields = table.align(pl.Series(["e", "nobody", "a"])).fields
    assert fields["brand"].codes_E.tolist() == [1, 0, 1]
    assert fields["brand"].present_E.tolist() == [True, False, True]
    assert fields["brand"].size == 3 and fields["category"].size == 3 and fields["released.month"].size == 13
    genres = fields["category"]
    assert [genres.codes[row].tolist() for row in range(3)] == [[], [], [1, 2]]
    assert genres.present_E.tolist() == [False, False, True]
    np.testing.assert_allclose(fields["price"].values_E, [np.nan, np.nan, -1])


def test_columns_for_models_that_take_vectors():
    fields = Fields(
        {
            "brand": Categorical(np.array([1, 0, 0]), np.array([True, True, False]), 3),
            "genre": MultiValued(Ragged.of([[1, 2], [], []]), np.array([True, False, False]), 3),
            "price": Numeric(np.array([0.5, np.nan, np.nan], np.float32), np.array([True, False, False])),
        }
    )
    dense = as_vectors(fields)
    half = 1 / np.sqrt(2)
    expected = [
        [1, 0, 1, 0, 1, 0, half, half, 1, 0.5],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],  # unseen is a value of its own
        [np.nan] * 10,
    ]
    np.testing.assert_allclose(dense.values_EF, expected, rtol=1e-6)
    assert dense.present_E.tolist() == [True, True, False]


def test_node_lists_leave_out_the_unseen_and_cap_the_hubs():
    genre = MultiValued(Ragged.of([[1], [0, 1], [1, 2], [1], []]), np.array([1, 1, 1, 1, 0], bool), 3)
    rows, codes = node_list(genre, max_degree=10)
    assert sorted(zip(rows.tolist(), codes.tolist(), strict=True)) == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1)]
    rows, codes = node_list(genre, max_degree=2)
    assert codes.tolist().count(1) == 2 and codes.tolist().count(2) == 1
    brand = Categorical(np.array([2, 0, 2, 0, 0]), np.array([1, 1, 1, 0, 0], bool), 3)
    assert [array.tolist() for array in node_list(brand, 5)] == [[0, 2], [2, 2]]


def test_rare_and_few_values():
    values = pl.Series("v", ["a"] * 3 + ["b"] * 2 + ["c"])
    for config, known in (
        (ColumnConfig(kind="categorical", min_count=2), ["a", "b"]),
        (ColumnConfig(kind="categorical", max_values=1), ["a"]),
        (ColumnConfig(kind="categorical", min_count=9), []),
    ):
        encoder = ColumnEncoder.fit("v", values, config, where="x")["v"]
        assert encoder.vocabulary == known
        assert [bool(code) for code in encoder(values)] == [value in known for value in values]


def test_hashed_columns_need_no_vocabulary():
    encoder = ColumnEncoder.fit(
        "v", pl.Series("v", ["a"]), ColumnConfig(kind="hashed", buckets=50), where="x"
    )["v"]
    codes = encoder(pl.Series("v", [f"value {n}" for n in range(2_000)] + [None]))
    assert codes.null_count() == 1 and codes.min() == 1 and codes.max() == 50 == encoder.size - 1
    counts = np.bincount(codes.drop_nulls().to_numpy())[1:]
    assert counts.min() > 10 and counts.max() < 90  # 40 each on average
    # sha256("value 0") is the same everywhere, Python's own hash is not
    assert codes[0] == encoder(pl.Series("v", ["value 0"]))[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=10),
)
def test_quantiles_keep_the_order_and_stay_within_one(fitted, asked):
    encoder = ColumnEncoder.fit("v", pl.Series("v", fitted), ColumnConfig(kind="numeric"), where="x")["v"]
    scaled = encoder(pl.Series("v", asked)).to_numpy()
    order = np.argsort(asked, kind="stable")
    assert np.all(np.diff(scaled[order]) >= -1e-6)
    assert np.all(np.abs(scaled) <= 1 + 1e-6)


def test_quantiles_are_places():
    encoder = ColumnEncoder.fit(
        "v", pl.Series("v", np.arange(1001.0)), ColumnConfig(kind="numeric"), where="x"
    )["v"]
    assert encoder(pl.Series("v", [0.0, 250.0, 500.0, 1000.0, 5000.0])).to_list() == pytest.approx(
        [-1, -0.5, 0, 1, 1], abs=1e-6
    )


def test_logarithms_tame_a_long_tail():
    values = pl.Series("v", [0.0, 9.0, 99.0, -9.0])
    encoder = ColumnEncoder.fit("v", values, ColumnConfig(kind="numeric", scale="log"), where="x")["v"]
    logs = np.log([1, 10, 100, 0.1])
    assert encoder(values).to_list() == pytest.approx((logs - logs.mean()) / logs.std(), rel=1e-5)


def test_kinds_are_guessed_by_type():
    found = guessed(
        pl.DataFrame(
            {
                "item_id": [1, 2, 3, 4],
                "title": ["a", "b", "c", "d"],
                "category": [["x"], None, None, None],
                "brand": ["one", "one", "two", "two"],
                "sku": ["q", "w", "e", "r"],  # says nothing about anything else
                "price": [1.0, 2.0, 3.0, 4.0],
                "released": [date(2020, 1, 1)] * 4,
                "empty": pl.Series([None] * 4, dtype=pl.String),
            }
        )
    )
    assert {name: config.kind for name, config in found.items()} == {
        "category": "multi",
        "brand": "categorical",
        "price": "numeric",
        "released": "date",
    }


def test_columns_that_do_not_fit_are_refused(tmp_path):
    dataset, split = world(tmp_path / "data")
    for columns, message in (
        ({"colour": {"kind": "categorical"}}, "no column 'colour'"),
        ({"brnd": {"kind": "categorical"}}, "did you mean 'brand'"),
        ({"brand": {"kind": "numeric"}}, "'brand' has type String, which cannot be numeric"),
        ({"category": {"kind": "categorical"}}, "cannot be categorical; expected multi"),
        ({"price": {"kind": "multi"}}, "cannot be multi"),
    ):
        extractor = MetadataExtractor(MetadataConfig(columns=columns))
        with pytest.raises(FeatureError, match=message) as refused:
            extractor.table("metadata", dataset, split, {})
        assert "\n" not in str(refused.value)


def test_users_have_fields_too(tmp_path):
    dataset, split = world(tmp_path / "data")
    table = MetadataExtractor(MetadataConfig(entity="user", columns={"city": {"kind": "categorical"}})).table(
        "people", dataset, split, {}
    )
    assert table.frame["city"].to_list() == [2, 1, 2]  # Oslo, Rome
    assert table.align(split.user_ids).fields["city"].size == 3


def test_hidden_rows_lose_every_field(table):
    hidden = table.hidden(0.5, seed=0)
    assert hidden.present_E.sum() == 2 and not (hidden.present_E & ~table.present_E).any()
    kept = np.flatnonzero(hidden.present_E)
    assert hidden.frame[kept].equals(table.frame[kept])


# Reduction


def dense_table(ids: list[str], seed: int = 0) -> FeatureTable:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(len(ids), 3)) @ rng.normal(size=(3, 8)) + 5).astype(np.float32)
    present = np.ones(len(ids), bool)
    present[2] = False
    values[2] = np.nan
    hashes = tuple("" if not there else f"h{row}" for row, there in enumerate(present))
    return FeatureTable("item", "image", pl.Series(ids), hashes, {"modality": "image"}, values, present)


def many(path) -> tuple[Dataset, Split, list[str]]:
    """Sixty items, the last twenty of them later than train."""
    ids = [f"i{number:02d}" for number in range(60)]
    rows = [(user, item, number) for user in range(3) for number, item in enumerate(ids)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    dataset = Dataset.from_frames(path, log)
    return dataset, make_split(dataset, SplitConfig(method="global_time", cuts=(40, 50))), ids


def test_reduction_is_fitted_on_train_items(tmp_path):
    dataset, split, ids = many(tmp_path / "data")
    source = dense_table(ids)
    extractor = ReduceExtractor(ReduceConfig(of="image", dims=3, whiten=True))
    table = extractor.table("small", dataset, split, {"image": source})
    train = np.flatnonzero(source.present_E[:40])
    covariance = np.cov(table.values_EF[train], rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(3), atol=1e-4)
    assert np.isnan(table.values_EF[2]).all() and not table.present_E[2]
    assert table.manifest["split_id"] == split.id and table.manifest["fitted_rows"] == 40
    assert table.manifest["source"] == source.manifest
    # rows outside train change themselves alone
    values = source.values_EF.copy()
    values[45:] += 100
    other = FeatureTable(
        "item", "image", source.ids, source.hashes_E, source.manifest, values, source.present_E
    )
    moved = extractor.table("small", dataset, split, {"image": other})
    np.testing.assert_array_equal(moved.values_EF[:45], table.values_EF[:45])
    assert np.abs(moved.values_EF[45:] - table.values_EF[45:]).min() > 0


def test_principal_components_keep_distances(tmp_path):
    """The rows lie in three dimensions, so that three components lose nothing; whitening would."""
    dataset, split, ids = many(tmp_path / "data")
    source = dense_table(ids)
    table = ReduceExtractor(ReduceConfig(of="image", dims=3)).table(
        "small", dataset, split, {"image": source}
    )
    there = source.present_E
    before, after = (
        np.linalg.norm(values[:, None] - values[None], axis=2)
        for values in (source.values_EF[there], table.values_EF[there])
    )
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_fields_cannot_be_reduced(tmp_path, table):
    dataset, split = world(tmp_path / "data")
    with pytest.raises(FeatureError, match="no dense table"):
        ReduceExtractor(ReduceConfig(of="metadata")).table("small", dataset, split, {"metadata": table})
