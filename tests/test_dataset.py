"""The Dataset folder: what is taken, what is refused and in which words, what is left behind."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest
from refusals import refused

from recsys.dataset import Dataset

LOG = {"user_id": ["u1", "u1", "u2"], "item_id": ["007", "42", "007"], "timestamp": [10, 20, 15]}
ITEMS = {"item_id": ["007", "42"], "title": ["Seven", "Answer"]}


def log(**columns) -> pl.DataFrame:
    """The log with some columns replaced; None takes one out."""
    merged = {name: values for name, values in (LOG | columns).items() if values is not None}
    return pl.DataFrame(merged, strict=False)


def test_a_log_alone_makes_a_dataset(tmp_path):
    dataset = Dataset.from_frames(tmp_path / "data", log())
    assert dataset.manifest["counts"] == {"interactions": 3, "items": 2}
    assert dataset.id_type == {"user": "str", "item": "str"} and dataset.has_time
    assert dataset.items["item_id"].to_list() == ["007", "42"]
    found = dataset.interactions.collect()
    assert found.rows() == [
        ("u1", "007", 10, 1.0, None),
        ("u1", "42", 20, 1.0, None),
        ("u2", "007", 15, 1.0, None),
    ]
    assert found.schema["timestamp"] == pl.Int64 and found.schema["weight"] == pl.Float32


def test_all_columns_keep_their_values(tmp_path):
    frame = log(weight=[0.5, 4, 5], event=["view", "buy", None], order=[2, 0, 1], extra=[1, 2, 3])
    items = pl.DataFrame(
        {
            "item_id": ["007", "42", "108"],
            "price": [1.5, None, 2.0],
            "title": ["Seven", "  ", None],
            "category": [["a", "b"], [], None],
        }
    )
    users = pl.DataFrame({"age": [30, None], "user_id": ["u1", "u2"]})
    pairs = pl.DataFrame({"item_id": ["007", "007", "42"], "other_id": ["42", "108", "007"]})
    dataset = Dataset.from_frames(tmp_path / "data", frame, items, users, pairs)
    found = dataset.interactions.collect()
    assert found.columns == ["user_id", "item_id", "timestamp", "weight", "event", "order"]
    assert found["weight"].to_list() == [0.5, 4, 5] and found["event"].to_list() == ["view", "buy", None]
    assert found["order"].to_list() == [2, 0, 1]
    assert dataset.items.rows(named=True) == [
        dict(item_id="007", title="Seven", text=None, image_path=None, category=["a", "b"], price=1.5),
        dict(item_id="42", title=None, text=None, image_path=None, category=[], price=None),
        dict(item_id="108", title=None, text=None, image_path=None, category=None, price=2.0),
    ]
    assert dataset.scan("users").collect().rows() == [("u1", 30), ("u2", None)]
    assert dataset.scan("pairs").collect().rows() == [
        ("007", "42", 1, "related"),
        ("007", "108", 2, "related"),
        ("42", "007", 1, "related"),
    ]


@pytest.mark.parametrize("ids", [["0108775015", "42", "0108775015"], [42, 7, 42]])
def test_ids_stay_verbatim_and_typed(tmp_path, ids):
    dataset = Dataset.from_frames(tmp_path / "data", log(item_id=ids))
    assert dataset.interactions.collect()["item_id"].to_list() == ids
    assert dataset.id_type["item"] == ("str" if isinstance(ids[0], str) else "int")
    assert Dataset.open(tmp_path / "data").items["item_id"].to_list() == sorted(set(ids))


def test_a_number_is_not_its_digits(tmp_path):
    items = pl.DataFrame({"item_id": ["42"]})
    with refused("items.item_id is String", "interactions.item_id is Int64", "verbatim", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(item_id=[42, 42, 42]), items, missing_items="add")
    users = pl.DataFrame({"user_id": [1, 2]})
    with refused("interactions.user_id is String", "users.user_id is Int64", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(), users=users)
    pairs = pl.DataFrame({"item_id": [7], "other_id": [42]})
    with refused("pairs.item_id is Int64", "items.item_id is String", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(), pairs=pairs)


def test_moments_are_utc_seconds(tmp_path):
    moments = [datetime(1970, 1, 1, 0, 1), datetime(1970, 1, 2), datetime(1969, 12, 31, 23, 59, 59)]
    for kind in (pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns")):
        frame = log(timestamp=None).with_columns(timestamp=pl.Series(moments, dtype=kind))
        dataset = Dataset.from_frames(tmp_path / "data", frame)
        assert dataset.interactions.collect()["timestamp"].to_list() == [60, 86_400, -1]
    zoned = pl.Series([datetime(2024, 1, 1, 12, tzinfo=UTC)] * 3).dt.convert_time_zone("Asia/Tokyo")
    dataset = Dataset.from_frames(tmp_path / "data", log(timestamp=None).with_columns(timestamp=zoned))
    assert dataset.interactions.collect()["timestamp"].to_list() == [1_704_110_400] * 3


def test_an_order_stands_in_for_times(tmp_path):
    dataset = Dataset.from_frames(tmp_path / "data", log(timestamp=None, order=[0, 1, 0]))
    assert not dataset.has_time
    assert dataset.interactions.collect()["timestamp"].to_list() == [None] * 3
    with refused("1 timestamps", "row 2", "interactions", folder=tmp_path):
        Dataset.from_frames(tmp_path / "other", log(timestamp=None, order=[0, None, 0]))


BAD_LOGS = {
    "no user column": (log(user_id=None), ["'user_id' is missing", "found: item_id, timestamp"]),
    "no item column": (log(item_id=None), ["'item_id' is missing"]),
    "no time, no order": (log(timestamp=None), ["'timestamp' is missing"]),
    "float ids": (log(user_id=[1.0, 2.0, 3.0]), ["'user_id' has type Float64", "integers or strings"]),
    "boolean ids": (log(item_id=[True, False, True]), ["'item_id' has type Boolean"]),
    "text as time": (log(timestamp=["1", "2", "3"]), ["'timestamp' has type String", "UTC seconds"]),
    "text as weight": (log(weight=["5", "4", "3"]), ["'weight' has type String", "numbers"]),
    "float order": (log(order=[0.5, 1.0, 2.0]), ["'order' has type Float64", "integers"]),
    "lists as event": (log(event=[["a"], ["b"], []]), ["'event' has type List(String)"]),
    "no rows": (log().clear(), ["the table is empty", "at least one row"]),
    "null user": (log(user_id=["u1", None, None]), ["2 rows have no user_id", "row 2"]),
    "null item": (log(item_id=["007", "42", None]), ["1 rows have no item_id", "row 3"]),
    "null weight": (log(weight=[None, 1.0, 1.0]), ["1 weights are NaN, infinite or null", "row 1"]),
    "NaN weight": (log(weight=[1.0, float("nan"), 1.0]), ["1 weights are NaN", "row 2"]),
    "infinite weight": (log(weight=[1.0, 1.0, float("inf")]), ["1 weights are NaN, infinite", "row 3"]),
    "null time": (log(timestamp=[1, None, None]), ["2 timestamps are null", "row 2"]),
    "NaN time": (log(timestamp=[1.0, 2.0, float("nan")]), ["1 timestamps are null", "row 3"]),
    "milliseconds": (
        log(timestamp=[0, 1_577_836_800_000, 1]),
        ["timestamp 1577836800000 in row 2", "milliseconds", "UTC seconds"],
    ),
    "microseconds": (log(timestamp=[-(10**15), 0, 1]), ["timestamp -1000000000000000 in row 1"]),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_a_bad_log_is_refused(tmp_path, case):
    frame, parts = BAD_LOGS[case]
    with refused("interactions", *parts, folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", frame)


BAD_ITEMS = {
    "no id column": ({"title": ["a"]}, ["'item_id' is missing", "found: title"]),
    "repeated": ({"item_id": ["007", "42", "42"]}, ["item_id '42'", "more than one row (1 such"]),
    "null id": ({"item_id": ["007", "42", None]}, ["1 rows have no item_id"]),
    "no rows": (pl.DataFrame(schema={"item_id": pl.String}), ["the table is empty"]),
    "lists as title": ({"item_id": ["007", "42"], "title": [["a"], ["b"]]}, ["'title' has type List"]),
    "structs as category": (
        {"item_id": ["007", "42"], "category": [{"a": 1}, None]},
        ["'category' has type Struct"],
    ),
    "bytes": ({"item_id": ["007", "42"], "raw": [b"x", None]}, ["'raw' has type", "cast or drop it"]),
    "one without a row": ({"item_id": ["42"]}, ["1 item_id values", "'007'", 'missing_items="add"']),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_bad_items_are_refused(tmp_path, case):
    items, parts = BAD_ITEMS[case]
    with refused("items", *parts, folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(), items)


BAD_USERS = {
    "no id column": ({"age": [1]}, ["'user_id' is missing"]),
    "repeated": ({"user_id": ["u1", "u1", "u2", "u2"]}, ["user_id 'u1'", "(2 such ids)"]),
    "null id": ({"user_id": ["u1", None]}, ["1 rows have no user_id"]),
    "no rows": (pl.DataFrame(schema={"user_id": pl.String}), ["the table is empty"]),
}


@pytest.mark.parametrize("case", BAD_USERS)
def test_bad_users_are_refused(tmp_path, case):
    users, parts = BAD_USERS[case]
    with refused("users", *parts, folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(), users=users)


BAD_PAIRS = {
    "no second column": ({"item_id": ["007"]}, ["'other_id' is missing"]),
    "an end that is no item": (
        {"item_id": ["007"], "other_id": ["0042"]},
        ["1 values of other_id", "'0042'"],
    ),
    "a null end": ({"item_id": ["007", None], "other_id": ["42", "42"]}, ["1 values of item_id", "None"]),
    "text as rank": ({"item_id": ["007"], "other_id": ["42"], "rank": ["1"]}, ["'rank' has type String"]),
    "no rows": (pl.DataFrame(schema={"item_id": pl.String, "other_id": pl.String}), ["the table is empty"]),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_refused(tmp_path, case):
    pairs, parts = BAD_PAIRS[case]
    with refused("pairs", *parts, folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", items=ITEMS, pairs=pairs)


def test_missing_items_can_be_added_or_dropped(tmp_path):
    items = pl.DataFrame({"item_id": ["42", "900"], "title": ["Answer", "Unseen"]})
    added = Dataset.from_frames(tmp_path / "added", log(), items, missing_items="add")
    assert added.items["item_id"].to_list() == ["42", "900", "007"]
    assert added.items["title"].to_list() == ["Answer", "Unseen", None]
    assert added.manifest["counts"]["interactions"] == 3
    dropped = Dataset.from_frames(tmp_path / "dropped", log(), items, missing_items="drop")
    assert dropped.interactions.collect()["item_id"].to_list() == ["42"]
    assert dropped.manifest["counts"] == {"interactions": 1, "items": 2}
    with refused("no item_id has a row in items", "'007'", folder=tmp_path):
        Dataset.from_frames(tmp_path / "none", log(), {"item_id": ["7", "0042"]}, missing_items="drop")


def test_a_reader_that_fails_later_names_its_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,3\n1,two,4\n")
    scan = pl.scan_csv(path, schema_overrides={"item_id": pl.Int64})
    with refused(path, "two", "item_id", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", scan, origins={"interactions": path})
    with refused("interactions", "nowhere.parquet", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", pl.scan_parquet(tmp_path / "nowhere.parquet"))


def test_nothing_and_no_frame_are_refused(tmp_path):
    with refused("nothing to make a Dataset from", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", items=ITEMS)
    with refused("interactions", "cannot read a object", "Polars, pandas or Arrow", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", object())


def test_only_a_dataset_is_replaced(tmp_path):
    first = Dataset.from_frames(tmp_path / "data", log())
    with refused("rows have no user_id", folder=tmp_path):
        Dataset.from_frames(tmp_path / "data", log(user_id=["u1", None, "u2"]))
    assert Dataset.open(tmp_path / "data").fingerprint == first.fingerprint
    second = Dataset.from_frames(tmp_path / "data", log(timestamp=[1, 2, 3]))
    assert Dataset.open(tmp_path / "data").fingerprint == second.fingerprint != first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with refused(tmp_path / "thesis", "holds something else", folder=tmp_path):
        Dataset.from_frames(tmp_path / "thesis", log())
    with refused("there is a file of this name", folder=tmp_path):
        Dataset.from_frames(tmp_path / "thesis" / "chapter.txt", log())
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_what_cannot_be_opened(tmp_path):
    with refused("not a Dataset folder", tmp_path / "none", "recsys data prepare", folder=tmp_path):
        Dataset.open(tmp_path / "none")
    dataset = Dataset.from_frames(tmp_path / "data", log())
    with refused("no users table", "interactions, items", folder=tmp_path):
        dataset.scan("users")
    manifest = tmp_path / "data" / "dataset.json"
    good = json.loads(manifest.read_text())
    for text, part in (
        ("{", "damaged"),
        ("[]", "not that of a Dataset"),
        ('{"name": "x"}', "not that of a Dataset"),
        (json.dumps(good | {"schema_version": 99}), "schema version 99"),
    ):
        manifest.write_text(text)
        with refused(part, tmp_path / "data", folder=tmp_path):
            Dataset.open(tmp_path / "data")
    manifest.write_text(json.dumps(good))
    (tmp_path / "data" / "items.parquet").unlink()
    with refused("items.parquet is missing", folder=tmp_path):
        Dataset.open(tmp_path / "data")
