"""The fingerprint follows the values and nothing else."""

from datetime import date, datetime

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.fingerprint import parquet_fingerprint

FRAME = pl.DataFrame(
    {
        "number": [1, None, 3, 0] * 5,
        "real": [0.5, None, -0.25, 0.0] * 5,
        "text": ["ab", None, "", "c"] * 5,
        "flag": [True, None, False, True] * 5,
        "list": [["a", "b"], None, [], [None]] * 5,
        "nested": [[{"a": 1, "b": "x"}], None, [], [{"a": None, "b": "y"}]] * 5,
        "day": [date(2020, 1, 1), None, date(2020, 1, 2), date(1969, 1, 1)] * 5,
        "moment": [datetime(2020, 1, 1, 5), None, datetime(2020, 1, 2), datetime(1969, 1, 1)] * 5,
    }
)


def of(frame: pl.DataFrame, folder, **options) -> str:
    path = folder / "table.parquet"
    frame.write_parquet(path, **options)
    return parquet_fingerprint(path)


def test_how_the_file_is_written_leaves_no_trace(tmp_path):
    known = of(FRAME, tmp_path)
    assert of(FRAME, tmp_path, row_group_size=3) == known
    assert of(FRAME, tmp_path, compression="uncompressed") == known
    assert of(FRAME, tmp_path, compression="gzip", statistics=False) == known
    pieces = pl.concat([FRAME[:3], FRAME[3:4], FRAME[4:]], rechunk=False)
    assert of(pieces, tmp_path) == known
    assert of(FRAME.select(reversed(FRAME.columns)), tmp_path) == known
    narrow = FRAME.cast({"number": pl.Int8, "text": pl.Categorical})
    assert of(narrow, tmp_path) == known
    path = tmp_path / "arrow.parquet"
    pq.write_table(FRAME.to_arrow(), path, row_group_size=7, use_dictionary=False, compression="snappy")
    assert [parquet_fingerprint(path, batch_rows=rows) for rows in (1, 2, 19)] == [known] * 3


@pytest.mark.parametrize("column", FRAME.columns)
def test_every_value_and_every_null_counts(tmp_path, column):
    values, kind = FRAME[column].to_list(), FRAME.schema[column]
    variants = {repr(values): values}
    for row in range(16, 20):  # the last four rows, each in turn with the value of another row
        for other in (values[row - 3], values[row - 2]):
            variant = [*values[:row], other, *values[row + 1 :]]
            variants[repr(variant)] = variant
    frames = [FRAME.with_columns(pl.Series(column, variant, kind)) for variant in variants.values()]
    found = {of(frame, tmp_path) for frame in frames}
    assert len(found) == len(frames) >= 6
    assert of(FRAME.rename({column: "renamed"}), tmp_path) not in found
    assert of(FRAME.drop(column), tmp_path) not in found


def test_rows_count_in_their_order(tmp_path):
    assert of(FRAME[:4], tmp_path) != of(FRAME[:4].reverse(), tmp_path)
    assert of(FRAME[:4], tmp_path) != of(FRAME[:8], tmp_path)


def test_types_that_look_alike_differ(tmp_path):
    alike = ([1, 2], ["1", "2"], [1.0, 2.0], [[1], [2]], [True, False])
    assert len({of(pl.DataFrame({"x": values}), tmp_path) for values in alike}) == len(alike)


def test_where_one_value_ends_and_the_next_begins(tmp_path):
    for one, two in ((["ab", "c"], ["a", "bc"]), ([["a", "b"], ["c"]], [["a"], ["b", "c"]])):
        assert of(pl.DataFrame({"x": one}), tmp_path) != of(pl.DataFrame({"x": two}), tmp_path)


def test_the_unit_of_a_moment_leaves_no_trace(tmp_path):
    log = pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]})
    moment = pl.Series([datetime(2020, 1, 1, 5)])
    made = set()
    for unit in ("ms", "us", "ns"):
        items = pl.DataFrame({"item_id": [2], "since": moment.dt.cast_time_unit(unit)})
        made.add(Dataset.from_frames(tmp_path / unit, log, items).fingerprint)
    assert len(made) == 1


TEXTS = st.lists(st.one_of(st.none(), st.text("ab", max_size=2)), min_size=1, max_size=3)
LISTS = st.lists(
    st.one_of(st.none(), st.lists(st.sampled_from(["", "a", None]), max_size=2)), min_size=1, max_size=3
)


@settings(max_examples=150, deadline=None)
@given(first=TEXTS, second=TEXTS, first_list=LISTS, second_list=LISTS)
def test_equal_fingerprints_mean_equal_values(tmp_path_factory, first, second, first_list, second_list):
    folder = tmp_path_factory.getbasetemp()
    for one, two, kind in ((first, second, pl.String), (first_list, second_list, pl.List(pl.String))):
        prints = [of(pl.DataFrame({"x": pl.Series(values, dtype=kind)}), folder) for values in (one, two)]
        assert (prints[0] == prints[1]) == (one == two)


def test_polars_pandas_and_arrow_give_one_dataset(tmp_path):
    log = pl.DataFrame(
        {
            "user_id": ["a", "b", "a"],
            "item_id": [3, 1, 2],
            "timestamp": [datetime(2020, 1, 1), datetime(2020, 1, 2), datetime(2020, 1, 3)],
            "weight": [1.0, 4.5, 2.0],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3],
            "title": ["one", None, "three"],
            "category": [["x", "y"], None, []],
            "price": [1.5, None, 0.0],
            "since": [datetime(2020, 1, 1), None, datetime(2021, 1, 1)],
        }
    )
    forms = {
        "eager": (log, items),
        "lazy": (log.lazy(), items.lazy()),
        "arrow": (log.to_arrow(), items.to_arrow()),
        "pandas": (log.to_pandas(), items.to_pandas()),
        "pandas with an index": (log.to_pandas().set_axis([7, 8, 9]), items.to_pandas().set_axis([3, 2, 1])),
        "dicts": (log.to_dict(as_series=False), items.to_dict(as_series=False)),
    }
    made = {form: Dataset.from_frames(tmp_path / form, *frames) for form, frames in forms.items()}
    assert {dataset.fingerprint for dataset in made.values()} == {made["eager"].fingerprint}
    moved = Dataset.from_frames(
        tmp_path / "moved", log.with_columns(weight=pl.Series([1.0, 4.5, 2.5])), items
    )
    assert moved.fingerprint != made["eager"].fingerprint
    assert made["pandas"].items["category"].to_list() == [["x", "y"], None, []]
