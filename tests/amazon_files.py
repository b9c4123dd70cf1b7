"""Records of Amazon's three releases, and the files they come in."""

import gzip
import json

from recsys.sources import open_source

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "0001", "helpful": [0, 1], "overall": 5.0, "unixReviewTime": 1_370_000_000},
    {"reviewerID": "A2", "asin": "B002", "helpful": [0, 0], "overall": 2.0, "unixReviewTime": 1_380_000_000},
    {"reviewerID": "A1", "asin": "B009", "helpful": [0, 0], "overall": 4.0, "unixReviewTime": 1_390_000_000},
]
META_2014 = [
    {
        "asin": "0001",
        "title": "It's a Lipstick",
        "description": "Red & bright.",
        "brand": "Glow",
        "categories": [["Beauty", "Makeup", "Lips"], ["Beauty", "Gifts"]],
        "price": 7.5,
        "imUrl": "http://img/1.jpg",
        "related": {"also_bought": ["B002", "X999", "0001"], "also_viewed": ["B009"]},
    },
    {"asin": "B002", "categories": [["Beauty"]], "related": {"also_viewed": ["0001", "B002"]}},
    {"asin": "B003", "title": "Nobody's"},
]
REVIEWS_2018 = [
    {"reviewerID": "A1", "asin": "0001", "verified": True, "overall": 5.0, "unixReviewTime": 1_470_000_000},
    {"reviewerID": "A2", "asin": "B002", "verified": False, "overall": 1.0, "unixReviewTime": 1_480_000_000},
]
META_2018 = [
    {
        "asin": "0001",
        "title": " Lipstick ",
        "description": ["Red.", "", "Bright."],
        "feature": ["Lasts"],
        "brand": "Glow",
        "category": ["Beauty", "Makeup", "Beauty"],
        "price": "$1,299.50",
        "imageURL": ["http://img/small.jpg"],
        "imageURLHighRes": ["http://img/large.jpg"],
        "also_buy": ["B002"],
        "also_view": [],
    },
    {
        "asin": "B002",
        "title": "var aPageStart = (new Date()).getTime();",
        "description": [],
        "price": "$5.00 - $9.00",
    },
    {"asin": "0001", "title": "The same again"},
]
REVIEWS_2023 = [
    {"user_id": "AE1", "asin": "B00V", "parent_asin": "B00P", "rating": 4.0, "timestamp": 1_588_687_728_923},
    {"user_id": "AE2", "asin": "B00Q", "parent_asin": "B00Q", "rating": 1.0, "timestamp": 1_600_000_000_000},
]
META_2023 = [
    {
        "parent_asin": "B00P",
        "title": "Serum",
        "main_category": "All Beauty",
        "description": ["Calms."],
        "features": ["Vegan", "50 ml"],
        "categories": [],
        "store": "Howard",
        "price": 15.99,
        "images": [
            {"variant": "PT01", "hi_res": "http://img/side.jpg", "large": "l", "thumb": "t"},
            {"variant": "MAIN", "hi_res": None, "large": "http://img/main.jpg", "thumb": "t"},
        ],
    },
    {
        "parent_asin": "B00Q",
        "title": None,
        "description": [],
        "features": [],
        "categories": ["A", "B"],
        "price": "—",
    },
]


def write(path, records, form=json.dumps):
    text = "".join(form(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def prepare(folder, reviews, metadata=None, **settings):
    if metadata is not None:
        settings["metadata"] = metadata
    return open_source({"kind": "amazon", "reviews": reviews, **settings}).prepare(folder / "data")


def rows(dataset, *columns):
    return dataset.items.select("item_id", *columns).rows()
