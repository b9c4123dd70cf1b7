"""Everything that can be wrong with Amazon's files, and how it is told."""

import json

import pytest
from amazon_files import META_2014, REVIEWS_2014, REVIEWS_2023, prepare, rows, write
from refusals import refused

from recsys.errors import ConfigError
from recsys.sources.lines import read_records


def test_lines_are_data_never_code(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "r.json").write_text(f"__import__('pathlib').Path({str(trap)!r}).touch()\n")
    with refused("r.json: line 1 is no record", folder=tmp_path):
        prepare(tmp_path, str(tmp_path / "r.json"))
    assert not trap.exists()


def test_blank_lines_and_odd_text_are_survived(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('\n{"asin": "1", "title": "a\\ud800b"}\n\n{"asin": "2", "price": NaN}\n')
    assert [number for number, _ in read_records(path)] == [2, 4]
    reviews = write(tmp_path / "r.json", [REVIEWS_2014[0] | {"asin": "1"}])
    assert rows(prepare(tmp_path, reviews, str(path)), "title", "price") == [
        ("1", "a?b", None),
        ("2", None, None),
    ]


GOOD = REVIEWS_2014[0]
BAD_LINES = {
    "half a line": ('{"reviewerID": "A1", "asi', ["line 2 is no record", "reviewerID"]),
    "a list": ("[1, 2]", ["line 2 is no record"]),
    "a line of CSV": ("A1,0001,5.0,1370000000", ["line 2 is no record", 'kind = "table"']),
    "not UTF-8": (b'{"reviewerID": "\xff"}', ["line 2 is no record"]),
    "deep nesting": ("[" * 100_000, ["line 2 is no record"]),
    "no user": (
        json.dumps({key: GOOD[key] for key in GOOD if key != "reviewerID"}),
        ["line 2 has no 'reviewerID'"],
    ),
    "no item": (json.dumps(GOOD | {"asin": None}), ["line 2 has no 'asin'"]),
    "a number as id": (json.dumps(GOOD | {"asin": 7}), ["line 2 has asin 7"]),
    "no rating": (json.dumps(GOOD | {"overall": None}), ["line 2 has no 'overall'"]),
    "a word as rating": (json.dumps(GOOD | {"overall": "five"}), ["line 2 has overall 'five'"]),
    "a rating that is NaN": (json.dumps(GOOD | {"overall": float("nan")}), ["line 2 has overall nan"]),
    "a time without end": (
        json.dumps(GOOD | {"unixReviewTime": 10**40}),
        ["line 2 has unixReviewTime 1e+40"],
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, case):
    line, parts = BAD_LINES[case]
    raw = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "reviews.json"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + raw + b"\n" + json.dumps(GOOD).encode() + b"\n")
    with refused(f"{path}: ", *parts, folder=tmp_path):
        prepare(tmp_path, str(path))


@pytest.mark.parametrize("part", ["reviews", "metadata"])
@pytest.mark.parametrize("damage", ["cut", "wrong checksum"])
def test_a_damaged_gzip_is_refused(tmp_path, part, damage):
    files = {"reviews": tmp_path / "r.json.gz", "metadata": tmp_path / "m.json.gz"}
    write(files["reviews"], REVIEWS_2014 * 500)
    write(files["metadata"], META_2014[:1] + [{"asin": f"{n}"} for n in range(500)])
    raw = bytearray(files[part].read_bytes())
    if damage == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw[-8] ^= 0xFF
    files[part].write_bytes(raw)
    with refused(
        f"{files[part]}: the gzip stream breaks off after line", "download it again", folder=tmp_path
    ):
        prepare(tmp_path, str(files["reviews"]), str(files["metadata"]))


def test_other_files_are_refused(tmp_path):
    good = write(tmp_path / "good.json", REVIEWS_2014)
    foreign = write(tmp_path / "foreign.json", [{"customer": 1, "product": 2}])
    with refused("foreign.json: line 1 has the keys customer, product", "set release", folder=tmp_path):
        prepare(tmp_path, foreign)
    with refused("good.json: line 1 has no 'user_id'", folder=tmp_path):
        prepare(tmp_path, good, release="2023")
    with refused("no such file (reviews)", tmp_path / "none.json", folder=tmp_path):
        prepare(tmp_path, str(tmp_path / "none.json"))
    (tmp_path / "empty.json").touch()
    with refused("empty.json: the file is empty (metadata)", folder=tmp_path):
        prepare(tmp_path, good, str(tmp_path / "empty.json"))
    (tmp_path / "blank.json").write_text("\n\n")
    with refused("interactions: the table is empty", folder=tmp_path):
        prepare(tmp_path, str(tmp_path / "blank.json"))
    seconds = write(tmp_path / "seconds.json", [REVIEWS_2023[0] | {"timestamp": 1_588_687_728}])
    with refused("seconds.json: line 1 has timestamp 1.58869e+09", "milliseconds", folder=tmp_path):
        prepare(tmp_path, seconds)
    late = write(tmp_path / "late.json", [GOOD | {"unixReviewTime": 1_370_000_000_000}])
    with refused("interactions: timestamp 1370000000000 in row 1", "UTC seconds", folder=tmp_path):
        prepare(tmp_path, late)
    with refused("no such folder (images)", tmp_path / "photos", folder=tmp_path):
        prepare(tmp_path, good, images=str(tmp_path / "photos"))


def test_pairs_need_metadata_that_has_them(tmp_path):
    good = write(tmp_path / "good.json", REVIEWS_2014)
    with refused("metadata as well", folder=tmp_path, error=ConfigError):
        prepare(tmp_path, good, pairs=True)
    metadata = write(tmp_path / "meta.json", [{"asin": "0001", "related": {"also_bought": ["X1"]}}])
    with refused("meta.json: no also_bought or also_viewed", "pairs = false", folder=tmp_path):
        prepare(tmp_path, good, metadata, pairs=True)
