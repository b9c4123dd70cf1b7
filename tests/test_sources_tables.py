"""The table source: mapping, ids, times, categories, in every format; and what it refuses."""

import gzip
import json

import polars as pl
import pytest
from refusals import refused

from recsys.errors import ConfigError
from recsys.sources import open_source

LOG = "customer,sku,bought_at,stars,note\n007,0042,100,5,x\n7,42,200,4.5,y\n007,42,150,3,\n"
MAPPING = {"user_id": "customer", "item_id": "sku", "timestamp": "bought_at", "weight": "stars"}
ITEMS = "sku,name,kind,zip,price,stock\n0042,1917,film|war,01234,7,1\n42,Up, film | ,99999,7.5,\n"


def table(folder, log="log.csv", out="data", mapping=MAPPING, **settings):
    columns = {"interactions": mapping} | settings.pop("columns", {})
    for place in ("items", "users", "images"):
        if place in settings:
            settings[place] = str(folder / settings[place])
    source = open_source({"kind": "table", "interactions": str(folder / log), "columns": columns, **settings})
    return source.prepare(folder / out)


def test_ids_are_text_as_written(files):
    files(log_csv=LOG)
    dataset = table(files.folder)
    assert dataset.interactions.collect().rows() == [
        ("007", "0042", 100, 5.0, None),
        ("7", "42", 200, 4.5, None),
        ("007", "42", 150, 3.0, None),
    ]
    assert dataset.id_type == {"user": "str", "item": "str"}
    assert dataset.name == "log" and dataset.manifest["source"] == "log.csv"


def test_integers_only_where_nothing_is_lost(files):
    files(log_csv=LOG, users_csv="customer,age\n7,30\n", plain_csv=LOG.replace("0042", "43"))
    columns = {"users": {"user_id": "customer"}}
    assert table(files.folder, ids="auto").id_type == {"user": "str", "item": "str"}
    found = table(files.folder, "plain.csv", ids="auto", users="users.csv", columns=columns)
    assert found.id_type == {"user": "str", "item": "int"}  # the log's 007 keeps users text, in both tables
    assert found.scan("users").collect().rows() == [("7", 30)]
    assert found.interactions.collect()["item_id"].to_list() == [43, 42, 42]


def test_every_format_gives_the_same_dataset(files):
    files(log_csv=LOG, log_tsv=LOG.replace(",", "\t"), semi_csv=LOG.replace(",", ";"))
    files(**{"packed_csv_gz": gzip.compress(LOG.encode())})
    frame = pl.read_csv(files.folder / "log.csv", infer_schema=False).cast(
        {"bought_at": pl.Int64, "stars": pl.Float64}
    )
    frame.write_parquet(files.folder / "log.parquet")
    frame.write_ndjson(files.folder / "log.jsonl")
    files(bare_csv=LOG.partition("\n")[2])
    bare = {"user_id": "column_1", "item_id": "column_2", "timestamp": "column_3", "weight": "column_4"}
    made = [
        table(files.folder),
        table(files.folder, "log.tsv"),
        table(files.folder, "semi.csv", separator=";"),
        table(files.folder, "packed.csv.gz"),
        table(files.folder, "log.parquet"),
        table(files.folder, "log.jsonl"),
        table(files.folder, "bare.csv", mapping=bare, header=False),
    ]
    assert len({dataset.fingerprint for dataset in made}) == 1


def test_typed_formats_under_both_settings(files):
    lines = [{"user_id": 7, "item_id": "007", "timestamp": 1}, {"user_id": 8, "item_id": "8", "timestamp": 2}]
    files(log_jsonl="".join(json.dumps(line) + "\n" for line in lines))
    assert table(files.folder, "log.jsonl", mapping={}).interactions.collect()["user_id"].to_list() == [
        "7",
        "8",
    ]
    auto = table(files.folder, "log.jsonl", mapping={}, ids="auto")
    assert auto.interactions.collect().select("user_id", "item_id").rows() == [(7, "007"), (8, "8")]


def test_json_lines_are_typed_by_all_their_rows(files):
    lines = [{"user_id": n, "item_id": 1, "timestamp": n} for n in range(500)]
    lines.append({"user_id": "007", "item_id": 1, "timestamp": 0, "weight": 0.5})
    files(log_jsonl="".join(json.dumps(line) + "\n" for line in lines))
    with refused("500 weights are NaN, infinite or null (first: row 1)", folder=files.folder):
        table(files.folder, "log.jsonl", mapping={})
    lines[-1].pop("weight")
    files(log_jsonl="".join(json.dumps(line) + "\n" for line in lines))
    users = table(files.folder, "log.jsonl", mapping={}).interactions.collect()["user_id"]
    assert users.to_list() == [*map(str, range(500)), "007"]


def test_items_and_users_keep_their_columns(files):
    files(log_csv=LOG, items_csv=ITEMS, users_csv="customer,zip,age\n007,02138,30\n7,10001,\n")
    columns = {
        "items": {"item_id": "sku", "title": "name", "category": "kind"},
        "users": {"user_id": "customer"},
    }
    dataset = table(
        files.folder,
        items="items.csv",
        users="users.csv",
        columns=columns,
        category_separator="|",
        licence="ours",
    )
    assert dataset.items.drop("text", "image_path").rows(named=True) == [
        dict(item_id="0042", title="1917", category=["film", "war"], zip="01234", price=7.0, stock=1),
        dict(item_id="42", title="Up", category=["film"], zip="99999", price=7.5, stock=None),
    ]
    users = dataset.scan("users").collect()
    assert users.rows(named=True) == [
        dict(user_id="007", zip="02138", age=30),
        dict(user_id="7", zip="10001", age=None),
    ]
    assert dataset.manifest["licence"] == "ours"


def test_a_mapped_column_takes_the_place_of_one_with_our_name(files):
    files(log_csv="user_id,customer,item_id,timestamp\nwrong,right,1,5\n")
    dataset = table(files.folder, mapping={"user_id": "customer"})
    assert dataset.interactions.collect()["user_id"].to_list() == ["right"]


@pytest.mark.parametrize(
    ("unit", "first", "second"),
    [
        ("s", "1588687728", "-1"),
        ("ms", "1588687728923", "-1"),
        ("us", "1588687728923456", "-1"),
        ("ns", "1588687728999999999", "-1"),
    ],
)
def test_units_of_time(files, unit, first, second):
    files(log_csv=f"user_id,item_id,timestamp\n1,2,{first}\n1,2,{second}\n")
    dataset = table(files.folder, mapping={}, time_unit=unit)
    assert dataset.interactions.collect()["timestamp"].to_list() == [1_588_687_728, -1]
    typed = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 2], "timestamp": [int(first), int(second)]})
    typed.write_parquet(files.folder / "log.parquet")
    assert table(files.folder, "log.parquet", mapping={}, time_unit=unit).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2020-05-05T14:08:48", 1_588_687_728),
        ("2020-05-05 14:08:48.923", 1_588_687_728),
        ("2020-05-05T14:08:48Z", 1_588_687_728),
        ("2020-05-05T16:08:48+02:00", 1_588_687_728),
        ("2020-05-05", 1_588_636_800),
        ("1588687728.9", 1_588_687_728),
        ("1.588687728e9", 1_588_687_728),
    ],
)
def test_moments_in_text(files, written, seconds):
    files(log_csv=f"user_id,item_id,timestamp\n1,2,{written}\n")
    assert table(files.folder, mapping={}).interactions.collect()["timestamp"].to_list() == [seconds]


def test_moments_in_parquet(files):
    frame = pl.DataFrame({"user_id": [1], "item_id": [2]}).with_columns(
        timestamp=pl.datetime(2020, 5, 5, 14, 8, 48)
    )
    frame.write_parquet(files.folder / "log.parquet")
    dataset = table(files.folder, "log.parquet", mapping={}, time_unit="ms")  # a unit is for numbers
    assert dataset.interactions.collect()["timestamp"].to_list() == [1_588_687_728]


def test_an_order_in_place_of_times(files):
    files(log_csv="user_id,item_id,order\n1,2,1\n1,3,0\n")
    dataset = table(files.folder, mapping={})
    assert dataset.interactions.collect()["order"].to_list() == [1, 0] and not dataset.has_time


def test_missing_items(files):
    files(log_csv=LOG, items_csv="item_id,title\n42,Up\n")
    with refused("1 item_id values", "'0042'", folder=files.folder):
        table(files.folder, items="items.csv")
    added = table(files.folder, items="items.csv", missing_items="add")
    assert added.items.select("item_id", "title").rows() == [("42", "Up"), ("0042", None)]
    assert (
        table(files.folder, items="items.csv", missing_items="drop").manifest["counts"]["interactions"] == 2
    )


def test_images(files):
    (files.folder / "photos").mkdir()
    (files.folder / "photos" / "0042.jpg").touch()
    files(log_csv=LOG, items_csv="item_id\n42\n", named_csv="item_id,image_path\n42,a/b.png\n0042,\n")
    alone = table(files.folder, images="photos")
    assert alone.items.select("item_id", "image_path").rows() == [("0042", "0042.jpg"), ("42", None)]
    added = table(files.folder, items="items.csv", images="photos", missing_items="add")
    assert added.items.select("item_id", "image_path").rows() == [("42", None), ("0042", "0042.jpg")]
    named = table(files.folder, items="named.csv", images="photos")
    assert named.items["image_path"].to_list() == ["a/b.png", None]
    assert named.media_root == (files.folder / "photos").resolve()


HEAD = "user_id,item_id,timestamp,weight\n"
BAD = {
    "no such column": (
        "customer,sku\n1,2\n",
        {"user_id": "custmer"},
        ["'custmer' (for user_id)", "did you mean 'customer'"],
    ),
    "no user column": (
        "customer,item_id,timestamp\n1,2,3\n",
        {},
        ["'user_id' is missing", "found: customer"],
    ),
    "no time column": ("user_id,item_id\n1,2\n", {}, ["'timestamp' is missing"]),
    "empty": ("", {}, ["the file is empty (interactions)"]),
    "a word as weight": (HEAD + "1,2,3,4\n1,2,3,good\n", {}, ["good", "weight"]),
    "a word as time": (HEAD + "1,2,yesterday,4\n", {}, ["timestamp is 'yesterday'", "ISO 8601"]),
    "a day first": (HEAD + "1,2,31/05/2024,4\n", {}, ["timestamp is '31/05/2024'"]),
    "a field too many": (HEAD + "1,2,3,4\n1,2,3,4,5\n", {}, ["cannot be read"]),
    "latin-1": (HEAD.encode() + b"caf\xe9,2,3,4\n", {}, ["utf-8"]),
    "cut gzip": (gzip.compress((HEAD + "1,2,3,4\n" * 50_000).encode())[:300], {}, ["cannot be read"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named(files, case):
    content, mapping, parts = BAD[case]
    name = "log.csv.gz" if "gzip" in case else "log.csv"
    (files.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(f"{files.folder / name}: ", *parts, folder=files.folder):
        table(files.folder, name, mapping=mapping)


BAD_ROWS = {
    "no rows": ("", ["the table is empty"]),
    "no user": ("1,2,3,4\n,2,3,4\n", ["1 rows have no user_id", "row 2"]),
    "a field too few": ("1,2,3,4\n1,2\n", ["weights are NaN, infinite or null", "row 2"]),
    "NaN": ("1,2,3,NaN\n", ["weights are NaN"]),
    "one broken time": ("1,2,3,4\n1,2,soon,4\n", ["1 timestamps are null or unreadable", "row 2"]),
    "times of two kinds": ("1,2,2020-01-01,4\n1,2,1588687728,4\n", ["1 timestamps are null", "row 2"]),
    "milliseconds": ("1,2,1588687728923,4\n", ["timestamp 1588687728923 in row 1", 'time_unit = "ms"']),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(files, case):
    rows, parts = BAD_ROWS[case]
    files(log_csv=HEAD + rows)
    with refused("interactions: ", *parts, folder=files.folder):
        table(files.folder, mapping={})


def test_other_mistakes(files):
    files(log_csv=LOG, log_xlsx="PK", fake_parquet="no parquet at all", users_csv="name\nx\n")
    files(broken_jsonl='{"user_id": 1\n')
    folder = files.folder
    with refused("log.xlsx: unknown kind of file '.xlsx'", ".csv", ".parquet", folder=folder):
        table(folder, "log.xlsx")
    for name in ("fake.parquet", "broken.jsonl"):
        with refused(f"{folder / name}: cannot be read", folder=folder):
            table(folder, name)
    with refused("users.csv: column 'user_id' is missing", folder=folder):
        table(folder, users="users.csv")
    with refused("no such file (items)", folder=folder):
        table(folder, items="none.csv")
    with refused("'rating' is none", "user_id", folder=folder, error=ConfigError):
        table(folder, mapping={"rating": "stars"})
    with refused("unknown key 'seperator'", "did you mean 'separator'", folder=folder, error=ConfigError):
        open_source({"kind": "table", "interactions": "log.csv", "seperator": ";"})
    pl.DataFrame({"user_id": [1.0], "item_id": [2], "timestamp": [3]}).write_parquet(folder / "float.parquet")
    with refused("float.parquet: column 'user_id' has type Float64", folder=folder):
        table(folder, "float.parquet", mapping={})
