"""What a line of Amazon's review data means, in the releases of 2014, 2018 and 2023."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

Record = Mapping[str, Any]

REVIEW = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "weight": pl.Float64}
ITEM = {
    "item_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "category": pl.List(pl.String),
    "brand": pl.String,
    "price": pl.Float64,
    "image_url": pl.String,
}
PAIR = {"item_id": pl.String, "other_id": pl.String, "rank": pl.Int64, "kind": pl.String}

_MILLISECONDS = 100_000_000_000  # as milliseconds this is March 1973, as seconds the year 5138
_LARGEST = 1 << 53
_PRICE = re.compile(r"\$?\s*(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


@dataclass(frozen=True)
class Release:
    """Where a release keeps the ids, and its unit of time. Everything else is told by its key alone."""

    user: str
    item: tuple[str, ...]
    rating: str
    time: str
    milliseconds: bool


RELEASES = {
    "2014": Release("reviewerID", ("asin",), "overall", "unixReviewTime", False),
    "2018": Release("reviewerID", ("asin",), "overall", "unixReviewTime", False),
    "2023": Release("user_id", ("parent_asin", "asin"), "rating", "timestamp", True),
}
_ONLY_2018 = {
    *("verified", "vote", "style", "image"),
    *("category", "feature", "also_buy", "also_view", "imageURL", "imageURLHighRes", "main_cat", "rank"),
}


class Malformed(ValueError):
    """A record without what it must have; the caller knows its file and line."""


def release_of(record: Record) -> str:
    """The release a file is from, told by the keys of one of its records."""
    if "parent_asin" in record or ("user_id" in record and "rating" in record):
        return "2023"
    if "asin" not in record:
        keys = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise Malformed(
            f"has the keys {keys}: this is no release of Amazon's reviews (2014 and 2018 have asin, 2023 parent_asin)"
        )
    return "2018" if _ONLY_2018 & record.keys() else "2014"


def review(record: Record, release: Release) -> tuple[str, str, int, float]:
    """(user_id, item_id, UTC seconds, rating)."""
    user, item = _id(record, (release.user,)), _id(record, release.item)
    time, rating = _number(record, release.time), _number(record, release.rating)
    if release.milliseconds:
        if abs(time) < _MILLISECONDS:
            raise Malformed(f"has {release.time} {time:g}, which is no time in milliseconds")
        time //= 1000
    return user, item, int(time), float(rating)


def item(record: Record, release: Release) -> tuple:
    """A row of ITEM. Content that is missing or malformed becomes null; an item without id is an error."""
    title = _joined(record.get("title"))
    if title is not None and "getTime" in title:
        title = None  # the page's script in place of its title: the known damage of the 2018 release
    return (
        _id(record, release.item),
        title,
        _joined(record.get("description"), record.get("features"), record.get("feature")),
        _category(record),
        _joined(record.get("brand")) or _joined(record.get("store")),
        _price(record.get("price")),
        _image_url(record),
    )


def pairs(record: Record, release: Release) -> Iterator[tuple[str, str, int, str]]:
    """Rows of PAIR: what others viewed or bought, in Amazon's order."""
    own = _id(record, release.item)
    related = record.get("related")
    related = related if isinstance(related, dict) else {}
    for kind, *sources in (
        ("also_bought", related.get("also_bought"), record.get("also_buy")),
        ("also_viewed", related.get("also_viewed"), record.get("also_view")),
    ):
        others = next((source for source in sources if isinstance(source, list)), [])
        for rank, other in enumerate(others, start=1):
            if isinstance(other, str) and other != own:
                yield own, other, rank, kind


def _id(record: Record, keys: tuple[str, ...]) -> str:
    for key in keys:
        value = record.get(key)
        if isinstance(value, str) and value and value.isprintable():
            return value
        if value is not None:
            raise Malformed(f"has {key} {value!r}, which is no id")
    raise Malformed(f"has no {keys[0]!r}")


def _number(record: Record, key: str) -> float | int:
    value = record.get(key)
    if value is None:
        raise Malformed(f"has no {key!r}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise Malformed(f"has {key} {value!r}, which is no number")
    return value


def _joined(*values: Any) -> str | None:
    """Texts and lists of texts as paragraphs."""
    parts = []
    for value in values:
        entries = value if isinstance(value, list) else [value]
        parts += [entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()]
    text = "\n".join(parts)
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are no text
    return text or None


def _category(record: Record) -> list[str] | None:
    """The distinct names on an item's category paths (2014: several paths; later: one), else its main category."""
    found = record.get("categories") or record.get("category") or []
    if isinstance(found, str):
        found = [found]
    names = [name for path in found for name in (path if isinstance(path, list) else [path])]
    distinct = list(dict.fromkeys(name for name in map(_joined, names) if name is not None))
    main = _joined(record.get("main_category"))
    return distinct or ([main] if main is not None else None)


def _price(value: Any) -> float | None:
    """A single price; ranges ("$5 - $9", "from 5") and scraped markup are no price."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < _LARGEST else None
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match.group().lstrip("$").strip().replace(",", "")) if match else None


def _image_url(record: Record) -> str | None:
    """The main image in the best size there is."""
    images = [entry for entry in _list(record.get("images")) if isinstance(entry, dict)]
    images.sort(key=lambda entry: entry.get("variant") != "MAIN")
    candidates = [entry.get(size) for entry in images[:1] for size in ("hi_res", "large", "thumb")]
    candidates.append(record.get("imUrl"))
    for key in ("imageURLHighRes", "imageURL", "image"):
        candidates += _list(record.get(key))[:1]
    return next(filter(None, map(_joined, candidates)), None)


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]
