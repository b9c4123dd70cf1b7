"""The real data sets against the counts and coverages their READMEs state."""

import polars as pl
import pytest

from recsys import schema
from recsys.dataset import Dataset
from recsys.sources import open_source

pytestmark = pytest.mark.realdata


@pytest.fixture
def prepare(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_DATA", str(data_root))
    return lambda **table: open_source(table).prepare(tmp_path / "data")


def share_of_interactions(dataset: Dataset, column: str) -> float:
    """Of the interactions, those whose item has the content; counted with a plain join."""
    items = dataset.items.select("item_id", pl.col(column).is_not_null().alias("has"))
    return dataset.interactions.collect().join(items, on="item_id")["has"].mean()


def test_movielens_1m(prepare):
    dataset = prepare(kind="movielens", variant="1m")
    assert dataset.manifest["counts"] == {"interactions": 1_000_209, "items": 3_883, "users": 6_040}
    log = dataset.interactions.collect()
    assert log["item_id"].n_unique() == 3_706 and log["user_id"].n_unique() == 6_040
    histogram = log["weight"].value_counts().sort("weight")["count"].to_list()
    assert histogram == [56_174, 107_557, 261_197, 348_971, 226_310]
    assert dataset.items["text"].count() == 3_845 and dataset.items["image_path"].count() == 3_565
    assert (
        dataset.items.filter(pl.col("text").is_not_null() & pl.col("image_path").is_not_null()).height
        == 3_537
    )
    assert round(share_of_interactions(dataset, schema.TEXT), 3) == 0.999
    assert round(share_of_interactions(dataset, schema.IMAGE), 3) == 0.990
    assert all(
        (dataset.media_root / path).is_file() for path in dataset.items["image_path"].drop_nulls()[:50]
    )
    assert "GroupLens" in dataset.licence_text


def test_movielens_1m_as_lrurec_cuts_it(prepare):
    dataset = prepare(kind="movielens", variant="1m", rated_five=True)
    assert dataset.manifest["counts"]["interactions"] == 999_611
    assert dataset.interactions.select(pl.col("item_id").n_unique()).collect().item() == 3_416


def test_movielens_latest_small(prepare):
    dataset = prepare(kind="movielens", variant="latest-small")
    assert dataset.manifest["counts"] == {"interactions": 100_836, "items": 9_742}
    log = dataset.interactions.collect()
    assert log["item_id"].n_unique() == 9_724 and log["user_id"].n_unique() == 610
    assert log["weight"].min() == 0.5 and log["weight"].max() == 5
    assert dataset.items["text"].count() == 4_418 and dataset.items["image_path"].count() == 8_511
    assert round(share_of_interactions(dataset, schema.TEXT), 3) == 0.839
    assert round(share_of_interactions(dataset, schema.IMAGE), 3) == 0.982


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [
        ("beauty", 22_363, 12_101, 198_502),
        ("sports", 35_598, 18_357, 296_337),
        ("yelp", 30_431, 20_033, 316_354),
        ("beauty-lrurec", 52_204, 57_289, 394_908),
    ],
)
def test_sequences(prepare, name, users, items, interactions):
    dataset = prepare(kind="sequences", name=name)
    assert dataset.manifest["counts"] == {"interactions": interactions, "items": items}
    assert dataset.interactions.select(pl.col("user_id").n_unique()).collect().item() == users
    titled = {"beauty": 12_101, "yelp": 20_027}.get(name, 0)
    assert dataset.items["title"].count() == titled
    assert not dataset.has_time and dataset.media_root is None


def test_hm_items(prepare):
    dataset = prepare(kind="pairs", name="hm-items")
    assert dataset.manifest["counts"] == {"items": 9_578, "pairs": 41_183}
    assert dataset.id_type == {"item": "str"}
    assert dataset.items["item_id"].str.len_chars().unique().to_list() == [10]  # leading zeros are there
    assert dataset.items["image_path"].null_count() == 0 and dataset.items["title"].null_count() == 0
    first = dataset.items.row(0, named=True)
    assert (dataset.media_root / first["image_path"]).is_file() and first[
        "image_path"
    ] == f"{first['item_id']}.jpg"
    assert first["category"] == [first["product_group_name"], first["product_type_name"]]
    ranks = (
        dataset.scan("pairs")
        .select(pl.col("rank").min().alias("low"), pl.col("rank").max().alias("high"))
        .collect()
    )
    assert ranks.row(0) == (1, 6)
