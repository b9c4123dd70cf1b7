"""Opening a source, its identity; sequence files, RecBole's atomic files, prepared Datasets; `describe`."""

import json

import planted
import polars as pl
import pytest
from refusals import refused

from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.registry import load_class
from recsys.sources import SOURCES, open_source
from recsys.sources.base import Source, find
from recsys.sources.describe import describe
from recsys.sources.obtain import movielens_100k
from recsys.sources.recbole import read_atomic


def test_every_kind_is_there():
    for kind in SOURCES:
        assert issubclass(load_class(kind, SOURCES, Source), Source)


def test_unknown_kinds_and_keys_are_refused(tmp_path):
    with refused("data.kind = 'movielense'", "did you mean 'movielens'", folder=tmp_path, error=ConfigError):
        open_source({"kind": "movielense"})
    with refused("data.kind = None", "sequences", folder=tmp_path, error=ConfigError):
        open_source({"variant": "1m"})
    with refused("data: unknown key 'varaint'", "variant", folder=tmp_path, error=ConfigError):
        open_source({"kind": "movielens", "variant": "1m", "varaint": "1m"})
    with refused("variant = '2m'", "'latest-small'", folder=tmp_path, error=ConfigError):
        open_source({"kind": "movielens", "variant": "2m"})


def test_identity_follows_settings_and_bytes_but_not_places(tmp_path):
    def identity(folder, text="user_id,item_id,timestamp\n1,2,3\n", **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "log.csv").write_text(text)
        table = {"kind": "table", "interactions": str(tmp_path / folder / "log.csv"), **settings}
        return json.dumps(open_source(table).identity(), sort_keys=True)

    known = identity("here")
    assert identity("there") == known
    assert identity("here", ids="auto") != known
    assert identity("here", text="user_id,item_id,timestamp\n1,2,4\n") != known


def test_sequences(tmp_path):
    (tmp_path / "shop.txt").write_text("7 30 10 30\n\n8 20\n")
    items = pl.DataFrame(
        {
            "item_id": [10, 20],
            "title": ["ten", None],
            "categories_json": ['[["a", "b"], ["a", "c"]]', '["d"]'],
            "keywords": ["k", None],
            "extra": [1, 2],
        }
    )
    items.write_parquet(tmp_path / "items.parquet")
    settings = {
        "kind": "sequences",
        "path": str(tmp_path / "shop.txt"),
        "items": str(tmp_path / "items.parquet"),
    }
    dataset = open_source(settings).prepare(tmp_path / "data")
    log = dataset.interactions.select("user_id", "item_id", "timestamp", "order").collect()
    assert log.rows() == [(7, 30, None, 0), (7, 10, None, 1), (7, 30, None, 2), (8, 20, None, 0)]
    assert dataset.items.select("item_id", "title", "text", "category", "extra").rows() == [
        (10, "ten", "k", ["a", "b", "c"], 1),
        (20, None, None, ["d"], 2),
        (30, None, None, None, None),
    ]
    assert not dataset.has_time and dataset.name == "shop"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("1 2 3\n4 five\n", ["line 2 is '4 five", "integers"]),
        ("", ["the file is empty"]),
        ("\n\n", ["interactions: the table is empty"]),
        ("1 2\xff\n", ["utf-8"]),
    ],
)
def test_bad_sequences(tmp_path, content, parts):
    path = tmp_path / "shop.txt"
    path.write_text(content, encoding="latin-1")
    with refused(*parts, folder=tmp_path):
        open_source({"kind": "sequences", "path": str(path)}).prepare(tmp_path / "data")


def test_bad_items_of_sequences(tmp_path):
    (tmp_path / "shop.txt").write_text("1 2\n")
    items = tmp_path / "items.parquet"
    settings = {"kind": "sequences", "path": str(tmp_path / "shop.txt"), "items": str(items)}
    pl.DataFrame({"asin": [2]}).write_parquet(items)
    with refused(f"{items}: column 'item_id' is missing", folder=tmp_path):
        open_source(settings).prepare(tmp_path / "data")
    pl.DataFrame({"item_id": [2], "categories_json": ["[a"]}).write_parquet(items)
    with refused(f"{items}: categories_json '[a' is no JSON", folder=tmp_path):
        open_source(settings).prepare(tmp_path / "data")
    items.write_text("no parquet")
    with refused(f"{items}: cannot be read", folder=tmp_path):
        open_source(settings).prepare(tmp_path / "data")
    with refused("either name or path", folder=tmp_path, error=ConfigError):
        open_source({"kind": "sequences"})


def write_atomic(folder, dataset: Dataset) -> None:
    """What RecBole would read: tokens and floats, tabs, typed headers."""
    folder.mkdir()
    log = dataset.interactions.select("user_id", "item_id", "weight", "timestamp").collect()
    log.columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    log.write_csv(folder / f"{folder.name}.inter", separator="\t")
    items = dataset.items.select("item_id", "title")
    items.columns = ["item_id:token", "name:token_seq"]
    items.write_csv(folder / f"{folder.name}.item", separator="\t", quote_style="never")


def test_atomic_round_trip(tmp_path):
    dataset = planted.order(tmp_path / "planted", users=20)
    write_atomic(tmp_path / "atomic", dataset)
    source = open_source({"kind": "recbole", "root": str(tmp_path / "atomic"), "title": "name"})
    back = source.prepare(tmp_path / "back")
    assert back.id_type == {"user": "str", "item": "str"}  # tokens are text
    numbers = back.interactions.collect().cast({"user_id": pl.Int64, "item_id": pl.Int64})
    assert numbers.equals(dataset.interactions.collect())
    titles = back.items.select(pl.col("item_id").cast(pl.Int64), "title")
    assert titles.sort("item_id").equals(dataset.items.select("item_id", "title"))


def test_atomic_files_without_times_have_an_order(tmp_path):
    (tmp_path / "x.inter").write_text("uid:token\tiid:token\n007\t1\n7\t2\n")
    source = open_source(
        {"kind": "recbole", "root": str(tmp_path), "name": "x", "user": "uid", "item": "iid"}
    )
    dataset = source.prepare(tmp_path / "data")
    assert dataset.interactions.collect().select("user_id", "item_id", "weight", "order").rows() == [
        ("007", "1", 1.0, 0),
        ("7", "2", 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("user_id\titem_id:token\n1\t2\n", ["header 'user_id'", "name:type"]),
        ("user_id:tocken\titem_id:token\n1\t2\n", ["header 'user_id:tocken'", "token_seq"]),
        ("user_id:token\tother:token\n1\t2\n", ["'item_id' is missing", "found: user_id, other"]),
        ("user_id:token\titem_id:token\trating:float\n1\t2\tgood\n", ["cannot be read", "good"]),
        ("user_id:token\titem_id:token\n1\t2\t3\n", ["cannot be read"]),
        ("", ["the file is empty"]),
    ],
)
def test_bad_atomic_files(tmp_path, content, parts):
    path = tmp_path / "x.inter"
    path.write_text(content)
    with refused(f"{path}: ", *parts, folder=tmp_path):
        open_source({"kind": "recbole", "root": str(tmp_path), "name": "x"}).prepare(tmp_path / "data")


def test_sequences_in_atomic_files_stay_text(tmp_path):
    (tmp_path / "x.item").write_text('item_id:token\tclass:token_seq\tage:float\n007\t"b" c\t1.5\n')
    assert read_atomic(tmp_path / "x.item").rows() == [("007", '"b" c', 1.5)]


def test_a_prepared_dataset_is_copied_whole(tmp_path):
    dataset = planted.order(tmp_path / "first", users=10)
    source = open_source({"kind": "dataset", "path": str(dataset.path)})
    copy = source.prepare(tmp_path / "copy")
    assert copy.fingerprint == dataset.fingerprint and copy.items.equals(dataset.items)
    moved = open_source({"kind": "dataset", "path": str(copy.path)})
    assert moved.identity() == source.identity()
    with refused("not a Dataset folder", folder=tmp_path):
        open_source({"kind": "dataset", "path": str(tmp_path)}).prepare(tmp_path / "again")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with refused("holds something else", folder=tmp_path):
        source.prepare(tmp_path / "notes")


def test_files_in_the_data_folder_come_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    assert find("ml-100k", "u.data") is None
    (tmp_path / "ml-100k").mkdir()
    for name in ("u.data", "u.item", "u.user"):
        (tmp_path / "ml-100k" / name).touch()
    assert movielens_100k() == (tmp_path / "ml-100k", "GroupLens ml-100k")


def test_describe(tmp_path):
    log = pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b"],
            "item_id": [1, 1, 2, 1],
            "timestamp": [0, 86_399, 60, 120],
            "weight": [5.0, 5.0, 0.5, 5.0],
            "event": ["view", "buy", "view", None],
        }
    )
    items = pl.DataFrame(
        {
            "item_id": [1, 2, 3, 4],
            "title": ["x", "y", "z", "w"],
            "text": [None, "t", None, None],
            "category": [["c"], [], ["d"], None],
            "colour": ["red"] * 4,
        }
    )
    dataset = Dataset.from_frames(
        tmp_path / "data", log, items, name="shop", source="by hand", licence="ours"
    )
    found = dict(describe(dataset))
    assert found == {
        "name": "shop",
        "interactions": "4",
        "items": "4",
        "users with interactions": "2, 2.0 rows each",
        "items with interactions": "2, 2.0 rows each",
        "density": "75.000% of user-item pairs",
        "repeated user-item pairs": "1 rows (25.0%)",
        "time": "1970-01-01 00:00 UTC to 1970-01-01 23:59 UTC",
        "weights": "0.5: 25.0%, 5: 75.0%",
        "events": "view: 50.0%, buy: 25.0%, none: 25.0%",
        "with title": "100.0% of items, 100.0% of interactions",
        "with text": "25.0% of items, 25.0% of interactions",
        "with image_path": "0.0% of items, 0.0% of interactions",
        "with category": "50.0% of items, 75.0% of interactions",
        "further item columns": "colour",
        "ids": "item: int, user: str",
        "source": "by hand",
        "licence": "ours",
        "fingerprint": dataset.fingerprint,
    }


def test_describe_without_times_or_log(tmp_path):
    log = pl.DataFrame(
        {"user_id": [1] * 12, "item_id": range(12), "order": range(12), "weight": [w / 2 for w in range(12)]}
    )
    found = dict(describe(Dataset.from_frames(tmp_path / "log", log)))
    assert found["time"].startswith("no timestamps")
    assert found["weights"] == "12 values from 0 to 5.5, median 2.75"
    items = pl.DataFrame({"item_id": range(2000), "title": ["t"] * 1999 + [None]})
    pairs = pl.DataFrame({"item_id": [1], "other_id": [2]})
    found = dict(describe(Dataset.from_frames(tmp_path / "pairs", items=items, pairs=pairs)))
    assert found["pairs"] == "1" and "time" not in found
    assert found["with title"] == "99.9% of items"  # one is missing: not 100 %
