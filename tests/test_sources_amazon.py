"""Amazon's releases of 2014, 2018 and 2023, each in files made here."""

import json

import pytest
from amazon_files import (
    META_2014,
    META_2018,
    META_2023,
    REVIEWS_2014,
    REVIEWS_2018,
    REVIEWS_2023,
    prepare,
    rows,
    write,
)

from recsys.sources import open_source


@pytest.mark.parametrize("form", [json.dumps, repr], ids=["json", "literal"])
@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_2014(tmp_path, form, ending):
    """Its metadata, and some of its reviews, are Python literals."""
    reviews = write(tmp_path / f"reviews_Beauty_5{ending}", REVIEWS_2014, form)
    metadata = write(tmp_path / f"meta_Beauty{ending}", META_2014, form)
    dataset = prepare(tmp_path, reviews, metadata, pairs=True)
    assert dataset.interactions.collect().rows() == [
        ("A1", "0001", 1_370_000_000, 5.0, None),
        ("A2", "B002", 1_380_000_000, 2.0, None),
        ("A1", "B009", 1_390_000_000, 4.0, None),
    ]
    content = rows(dataset, "title", "text", "category", "brand", "price", "image_url")
    assert content == [
        (
            "0001",
            "It's a Lipstick",
            "Red & bright.",
            ["Beauty", "Makeup", "Lips", "Gifts"],
            "Glow",
            7.5,
            "http://img/1.jpg",
        ),
        ("B002", None, None, ["Beauty"], None, None, None),
        ("B003", "Nobody's", None, None, None, None, None),
        ("B009", None, None, None, None, None, None),  # reviewed, not in the metadata
    ]
    # X999 is no item, and no item is its own neighbour; ranks stay Amazon's
    assert dataset.scan("pairs").collect().rows() == [
        ("0001", "B002", 1, "also_bought"),
        ("0001", "B009", 1, "also_viewed"),
        ("B002", "0001", 1, "also_viewed"),
    ]
    assert dataset.manifest["source"] == "Amazon review data, release of 2014"
    assert dataset.name == "reviews_Beauty_5"


def test_2018(tmp_path):
    reviews = write(tmp_path / "Luxury.json.gz", REVIEWS_2018)
    dataset = prepare(tmp_path, reviews, write(tmp_path / "meta.json", META_2018), pairs=True)
    assert dataset.interactions.collect()["timestamp"].to_list() == [1_470_000_000, 1_480_000_000]
    assert rows(dataset, "title", "text", "category", "price", "image_url") == [
        ("0001", "Lipstick", "Red.\nBright.\nLasts", ["Beauty", "Makeup"], 1299.5, "http://img/large.jpg"),
        ("B002", None, None, None, None, None),  # a page's script is no title, a range is no price
    ]
    assert dataset.scan("pairs").collect().rows() == [("0001", "B002", 1, "also_bought")]
    assert dataset.manifest["source"].endswith("2018")


def test_2023(tmp_path):
    reviews = write(tmp_path / "All_Beauty.jsonl", REVIEWS_2023)
    dataset = prepare(tmp_path, reviews, write(tmp_path / "meta.jsonl.gz", META_2023))
    assert dataset.interactions.collect().rows() == [
        ("AE1", "B00P", 1_588_687_728, 4.0, None),
        ("AE2", "B00Q", 1_600_000_000, 1.0, None),
    ]
    assert rows(dataset, "title", "text", "category", "brand", "price", "image_url") == [
        ("B00P", "Serum", "Calms.\nVegan\n50 ml", ["All Beauty"], "Howard", 15.99, "http://img/main.jpg"),
        ("B00Q", None, None, ["A", "B"], None, None, None),
    ]
    assert dataset.manifest["source"].endswith("2023") and not dataset.has("pairs")


def test_reviews_alone(tmp_path):
    dataset = prepare(tmp_path, write(tmp_path / "reviews.json", REVIEWS_2014))
    assert dataset.items["item_id"].to_list() == ["0001", "B002", "B009"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_products_that_nobody_reviewed_can_go(tmp_path):
    reviews, metadata = write(tmp_path / "r.json", REVIEWS_2014), write(tmp_path / "m.json", META_2014)
    dataset = prepare(tmp_path, reviews, metadata, unreviewed=False)
    assert dataset.items["item_id"].to_list() == ["0001", "B002", "B009"]
    assert dataset.items["title"].to_list() == ["It's a Lipstick", None, None]


def test_images_are_looked_up_by_asin(tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for name in ("B002.jpg", "B009.jpg", "Z.jpg", "0001.png"):
        (images / name).touch()
    reviews, metadata = write(tmp_path / "r.json", REVIEWS_2014), write(tmp_path / "m.json", META_2014)
    dataset = prepare(tmp_path, reviews, metadata, images=str(images))
    assert rows(dataset, "image_path") == [
        ("0001", None),
        ("B002", "B002.jpg"),
        ("B003", None),
        ("B009", "B009.jpg"),
    ]
    assert dataset.media_root == images.resolve()
    alone = open_source({"kind": "amazon", "reviews": reviews, "images": str(images)})
    assert rows(alone.prepare(tmp_path / "alone"), "image_path")[0:2] == [
        ("0001", None),
        ("B002", "B002.jpg"),
    ]
    before = alone.identity()
    (images / "0001.jpg").touch()
    assert alone.identity() != before


def test_a_long_file_crosses_chunks_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.sources.amazon._CHUNK_ROWS", 7)
    reviews = [REVIEWS_2014[0] | {"asin": f"{n % 20:04d}", "unixReviewTime": n} for n in range(50)]
    metadata = [{"asin": f"{n % 20:04d}", "title": f"take {n // 20}"} for n in range(30)]
    dataset = prepare(tmp_path, write(tmp_path / "r.json", reviews), write(tmp_path / "m.json", metadata))
    assert dataset.interactions.collect()["timestamp"].to_list() == list(range(50))
    assert rows(dataset, "title") == [(f"{n:04d}", "take 0") for n in range(20)]
