"""The promises of the store: nothing is encoded twice, nothing half-written is believed, however a run ended."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hash_file import BAD, HashFile, HashFileConfig
from hash_text import UNREADABLE, HashText, HashTextConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from recsys.dataset import Dataset
from recsys.errors import FeatureError, LockedError
from recsys.features import store as stores
from recsys.features.extract import extract
from recsys.features.makers import extract_features
from recsys.features.store import Store
from recsys.files import locked

TITLES = [f"title {number}" for number in range(30)]
TWO = {"words": {"kind": "hash_text:HashText"}, "lengths": {"kind": "hash_text:LengthText"}}


def dataset_of(folder: Path, titles: list[str | None] = TITLES, **columns) -> Dataset:
    items = pl.DataFrame(
        {"item_id": range(len(titles)), "title": titles, **columns}, schema_overrides={"title": pl.String}
    )
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    return Dataset.from_frames(folder, rows, items, media_root=folder.parent)


def extracted(dataset: Dataset, store: Path, extractor=None, **options):
    HashText.encoded.clear()
    HashFile.encoded.clear()
    extractor = extractor or HashText(HashTextConfig())
    return extract(dataset, extractor, "words", store, progress=False, **options)


def chunks(store: Path) -> list[Path]:
    return sorted(store.glob("*/*.safetensors"))


# Content


def test_a_changed_picture_is_encoded_alone(tmp_path):
    names = [f"{number}.jpg" for number in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    dataset = dataset_of(tmp_path / "data", TITLES[:20], image_path=names)
    extractor = HashFile(HashFileConfig())
    before, _ = extracted(dataset, tmp_path / "store", extractor)
    os.utime(tmp_path / "3.jpg")  # a newer date changes nothing
    (tmp_path / "7.jpg").write_bytes(b"another picture")
    (tmp_path / "8.jpg").rename(tmp_path / "moved.jpg")  # another name, the same picture
    names[8] = "moved.jpg"
    dataset = dataset_of(tmp_path / "data", TITLES[:20], image_path=names)
    after, summary = extracted(dataset, tmp_path / "store", extractor)
    assert HashFile.encoded == ["7.jpg"] and summary.encoded == 1
    changed = (before.values_EF != after.values_EF).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [7]
    assert before.fingerprint != after.fingerprint


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "gone.jpg"]
    for name, data in zip(names, (b"x", BAD + b"1", b"y", BAD + b"2"), strict=False):
        (tmp_path / name).write_bytes(data)
    dataset = dataset_of(tmp_path / "data", TITLES[:5], image_path=names)
    read = Path.read_bytes

    def refuses(path: Path) -> bytes:
        if path.name == "c.jpg":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuses)
    table, summary = extracted(dataset, tmp_path / "store", HashFile(HashFileConfig()))
    assert table.present_E.tolist() == [True, False, False, False, False]
    assert (summary.rows, summary.present, summary.missing, summary.unreadable) == (5, 1, 1, 3)
    assert [words.partition(":")[0] for words in summary.offenders] == ["1", "2", "3"]
    assert "b.jpg" in summary.offenders[0] and "c.jpg: Permission denied" in summary.offenders[1]


def test_the_template_is_part_of_the_key(tmp_path):
    """The same texts by another template are other vectors: an encoder may be told about the template."""
    dataset = dataset_of(tmp_path / "data", category=[["a"]] * 30)
    first, _ = extracted(dataset, tmp_path / "store")
    _, summary = extracted(
        dataset, tmp_path / "store", HashText(HashTextConfig(template="{title}{category}"))
    )
    assert summary.encoded == 30 and len(list((tmp_path / "store").iterdir())) == 2
    again, summary = extracted(dataset, tmp_path / "store")
    assert summary.encoded == 0 and again.fingerprint == first.fingerprint


def test_what_was_unreadable_is_tried_again(tmp_path, monkeypatch):
    """In a chunk of its own, so that the other chunks stay what they were."""
    titles = [
        f"{UNREADABLE} {number}" if number in (3, 12, 13) else f"title {number}" for number in range(30)
    ]
    dataset = dataset_of(tmp_path / "data", titles)
    _, summary = extracted(dataset, tmp_path / "store")
    assert (summary.encoded, summary.unreadable) == (27, 3)
    before = chunks(tmp_path / "store")
    _, summary = extracted(dataset, tmp_path / "store")
    assert (summary.encoded, summary.unreadable, HashText.encoded) == (0, 3, [])
    assert len(summary.offenders) == 3 and chunks(tmp_path / "store") == before
    monkeypatch.setattr("hash_text.UNREADABLE", "nothing is")
    table, summary = extracted(dataset, tmp_path / "store")
    assert (summary.encoded, summary.unreadable) == (3, 0) and table.present_E.all()
    _, summary = extracted(dataset, tmp_path / "store")
    assert (summary.encoded, summary.unreadable) == (0, 0)


def test_an_empty_catalogue(tmp_path):
    dataset = dataset_of(tmp_path / "data")
    dataset.items.clear().write_parquet(dataset.path / "items.parquet")  # no source makes one
    dataset = Dataset.open(dataset.path)
    with pytest.raises(FeatureError, match="no item has this modality"):
        extracted(dataset, tmp_path / "store")
    table, summary = extracted(dataset, tmp_path / "store", HashText(HashTextConfig(required=False)))
    assert table.values_EF.shape == (0, 1) and summary.rows == 0
    table.save(tmp_path / "table")
    assert type(table).load(tmp_path / "table").fingerprint == table.fingerprint


def test_a_modality_that_nobody_has(tmp_path):
    """The table does not depend on what else the store holds."""
    config = HashTextConfig(required=False)
    bare, _ = extracted(dataset_of(tmp_path / "bare", [None, " "]), tmp_path / "store", HashText(config))
    extracted(dataset_of(tmp_path / "data"), tmp_path / "store")
    again, _ = extracted(dataset_of(tmp_path / "bare", [None, " "]), tmp_path / "store", HashText(config))
    bad = dataset_of(tmp_path / "bad", [f"{UNREADABLE} a", UNREADABLE])
    with pytest.raises(FeatureError, match="no item has this modality"):
        extracted(bad, tmp_path / "store")
    unread, summary = extracted(bad, tmp_path / "store", HashText(config))
    assert summary.unreadable == 2
    for table in (bare, again, unread):
        assert not table.present_E.any() and table.values_EF.shape == (2, 1)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (lambda n: np.full((n, 16), np.nan), "NaN or infinity for 'title 0'"),
        (lambda n: np.full((n, 16), 1e300), "NaN or infinity"),
        (lambda n: np.zeros((n + 1, 16)), "array"),
        (lambda n: np.zeros(n), "array"),
    ],
)
def test_wrong_vectors_do_not_get_into_the_store(tmp_path, monkeypatch, vectors, words):
    dataset = dataset_of(tmp_path / "data")
    with monkeypatch.context() as patch, np.errstate(over="ignore"):
        patch.setattr(HashText, "encode", lambda self, contents: vectors(len(contents)))
        with pytest.raises(FeatureError, match=words):
            extracted(dataset, tmp_path / "store")
    assert not chunks(tmp_path / "store")
    assert extracted(dataset, tmp_path / "store")[1].encoded == 30


def test_another_width_under_the_same_key(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path / "data", TITLES[:9])
    monkeypatch.setattr(HashText, "encode", lambda self, contents: np.ones((len(contents), len(contents))))
    with pytest.raises(FeatureError, match="vectors of width 1; expected 8"):
        extracted(dataset, tmp_path / "store")


# Chunks on disk


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    changed = {
        "cut in half": data[: len(data) // 2],
        "cut in the header": data[:20],
        "one byte short": data[:-1],
        "empty": b"",
        "garbage": b"\xff" * 300,
        "one bit": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
        "another file": save({"other": np.zeros((2, 2), np.float32)}),
        "another header": save({"vectors": np.zeros((2, 16), np.float32)}, {"header": "[]"}),
        "too few names": save(
            {"vectors": np.zeros((2, 16), np.float32)},
            {"header": json.dumps({"format": 1, "contents": ["a"], "unreadable": {}, "sha256": ""})},
        ),
        "another width": save(
            {"vectors": np.zeros((1, 3), np.float32)},
            {"header": json.dumps({"format": 1, "contents": ["a"], "unreadable": {}, "sha256": ""})},
        ),
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize(
    "how",
    [
        "cut in half", "cut in the header", "one byte short", "empty", "garbage", "one bit", "another file",
        "another header", "too few names", "another width",
    ],
)  # fmt: skip
def test_a_damaged_chunk_is_named_and_made_again(tmp_path, caplog, how):
    dataset = dataset_of(tmp_path / "data")
    whole, _ = extracted(dataset, tmp_path / "store")
    held = [path.read_bytes() for path in chunks(tmp_path / "store")]
    victim = chunks(tmp_path / "store")[-1]
    damage(victim, how)
    table, summary = extracted(dataset, tmp_path / "store")
    assert str(victim) in caplog.text and "is damaged" in caplog.text
    assert 0 < summary.encoded == len(HashText.encoded) <= HashText.chunk_rows
    assert table.fingerprint == whole.fingerprint and table.values_EF.tobytes() == whole.values_EF.tobytes()
    assert [path.read_bytes() for path in chunks(tmp_path / "store")] == held


def test_a_disk_that_gives_back_other_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_vectors", lambda path: path.unlink())
    with pytest.raises(FeatureError, match="does not come back"):
        extracted(dataset_of(tmp_path / "data"), tmp_path / "store")


def test_what_a_killed_extraction_was_writing_goes(tmp_path):
    dataset = dataset_of(tmp_path / "data")
    extracted(dataset, tmp_path / "store")
    leftover = chunks(tmp_path / "store")[0].parent / ".0a1b.safetensors.x1y2z3"
    leftover.write_bytes(b"half")
    extracted(dataset, tmp_path / "store")
    assert not leftover.exists()


def test_only_the_chunks_that_are_wanted_are_read(tmp_path, monkeypatch):
    extracted(dataset_of(tmp_path / "data"), tmp_path / "store")
    read: list[Path] = []
    vectors = stores._vectors
    monkeypatch.setattr(stores, "_vectors", lambda path: read.append(path) or vectors(path))
    table, _ = extracted(dataset_of(tmp_path / "few", ["title 29", "title 1", None]), tmp_path / "store")
    assert len(read) == len(set(read)) == 2 and len(chunks(tmp_path / "store")) == 4
    assert table.present_E.tolist() == [True, True, False] and HashText.encoded == []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_reading_by_hand(tmp_path_factory, data):
    """Contents in any number of chunks, some of them in several, asked for in any order, repeated or missing."""
    folder = tmp_path_factory.mktemp("store")
    names = st.lists(st.integers(0, 12), max_size=6, unique=True)
    expected: dict[str, np.ndarray] = {}
    kept = Store(folder)
    for part in data.draw(st.lists(names, max_size=4)):
        made = [str(number) for number in part]
        vectors = np.array([[int(name), -1, 2] for name in made], np.float32).reshape(len(made), 3)
        kept.commit(made, vectors, {}, where="test")
        expected |= dict(zip(made, vectors, strict=True))
    asked = [str(number) for number in data.draw(st.lists(st.integers(0, 14), max_size=20))]
    for opened in (kept, Store(folder)):
        values_EF, present_E = opened.read(asked)
        assert present_E.tolist() == [name in expected for name in asked] and len(opened) >= len(expected)
        for name, row in zip(asked, values_EF, strict=True):
            np.testing.assert_array_equal(row, expected.get(name, np.full(values_EF.shape[1], np.nan)))


def test_two_at_once(tmp_path):
    dataset = dataset_of(tmp_path / "data")
    key = HashText(HashTextConfig()).key()[:16]
    with locked(tmp_path / "store" / key), pytest.raises(LockedError, match="in use by process"):
        extracted(dataset, tmp_path / "store")
    assert extracted(dataset, tmp_path / "store")[1].encoded == 30


# Killed


class Driver:
    """Extracts in processes of its own, killed at given points."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dataset = dataset_of(folder / "data", [f"title {number}" for number in range(60)])
        tests = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, f"{tests}/extract_driver.py", str(folder)],
            env=dict(os.environ) | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, out: Path, kill: int | None) -> None:
        entry = {"data": str(self.dataset.path), "out": str(out), "features": TWO, "kill": kill}
        self.process.stdin.write(json.dumps(entry) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def drive(self, out: Path, kill: int | None) -> dict:
        self.ask(out, kill)
        return self.answer()


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Driver]:
    made = Driver(tmp_path_factory.mktemp("killed"))
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)


def tables(out: Path) -> dict[str, bytes]:
    """Every byte of the tables, but for how long it took."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for name in TWO
        for path in (out / name).iterdir()
        if path.name != "summary.json"
    }


@pytest.fixture(scope="module")
def whole(driver) -> tuple[dict[str, bytes], int]:
    answer = driver.drive(driver.folder / "whole", None)
    assert answer["status"] == 0
    return tables(driver.folder / "whole"), answer["count"]


def check(driver: Driver, whole, kills: list[int], label: str) -> None:
    for kill in kills:
        out = driver.folder / f"{label}{kill}"
        assert driver.drive(out, kill)["status"] == -9
        kept = sum(len(Store(path)) for path in (out / "_store").glob("*") if path.is_dir())
        assert driver.drive(out, None)["status"] == 0
        assert tables(out) == whole[0], f"the tables differ after a kill at write {kill}"
        found = [json.loads((out / name / "summary.json").read_text()) for name in TWO]
        assert sum(summary["encoded"] for summary in found) == 120 - kept, f"after a kill at write {kill}"
        left = [path for path in out.rglob(".*") if path.name != ".lock"]
        assert not left, f"a kill at write {kill} leaves {left}"


def points(count: int, wanted: int, seed: int) -> list[int]:
    """Seeded points, one in each of equal stretches."""
    rng = np.random.default_rng(seed)
    return [int(rng.integers(a, b)) for a, b in pairwise(np.linspace(1, count + 1, wanted + 1).astype(int))]


def test_killed_at_six_points(driver, whole):
    assert whole[1] > 50
    check(driver, whole, points(whole[1], 6, seed=2), "few")


@pytest.mark.slow
def test_killed_at_every_write(driver, whole):
    check(driver, whole, list(range(1, whole[1] + 1)), "every")


def test_two_processes_at_once(driver, whole):
    """Whoever comes second is refused, or finds the work done; the tables are whole."""
    out = driver.folder / "race"
    driver.ask(out, None)
    refused = 0
    try:
        extract_features(driver.dataset, TWO, out=out, progress=False)
    except LockedError:
        refused = 1
    ended = driver.answer()["status"]
    assert (ended, refused) in ((0, 0), (0, 1), (1, 0))
    assert tables(out) == whole[0]
