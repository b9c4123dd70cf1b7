"""Texts written for items that have none: marked, repeatable, and never made from what is hidden."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from writer_case import folder

import recsys
from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.rouge import common_length, rouge_l
from recsys.written_text import (
    WriterRecipe,
    WriterRun,
    fill_text,
    hide_text,
    train_writer,
    writer_content,
)

pytest.importorskip("peft", reason="the extra `llm` is not installed")

FEATURES = {
    "image": {"kind": "hash_text:HashText", "template": "{title} {category}"},
    "text": {"kind": "hash_text:HashText", "template": "{title} {text}"},
}
HIDDEN = pl.Series([3, 7, 11])
NOTHING = 15
"""An item without a text from the start."""


def recipe(**changes) -> WriterRecipe:
    settings = {
        "language": str(folder()),
        "template": "w1 {title} w2 {category}",
        "ending": " w3",
        "config": {"neighbours": 2, "tokens": 1, "lora_rank": 2, "max_text_tokens": 4},
        "train": {"epochs": 1, "lr": 1e-2},
    }
    return WriterRecipe.model_validate(settings | changes)


def dataset(path, hidden_words: str = "w50 w51") -> Dataset:
    count = 18
    rng = np.random.default_rng(1)
    texts = [f"w{rng.integers(90)} w{rng.integers(90)} w{rng.integers(90)}" for _ in range(count)]
    for item in HIDDEN:
        texts[item] = hidden_words
    texts[NOTHING] = None
    items = pl.DataFrame(
        {
            "item_id": range(count),
            "title": [f"w{number}" for number in range(count)],
            "text": texts,
            "category": [[f"w{100 + number % 3}"] for number in range(count)],
        }
    )
    log = pl.DataFrame({"user_id": [0, 0, 1], "item_id": [0, 3, 5], "timestamp": [1, 2, 3]})
    return Dataset.from_frames(path, interactions=log, items=items)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(Dataset with hidden texts, its tables, a writer's run)."""
    root = tmp_path_factory.mktemp("written")
    hidden = hide_text(dataset(root / "whole"), HIDDEN, root / "hidden")
    tables = recsys.extract_features(hidden, FEATURES, out=root / "features", progress=False)
    return hidden, tables, train_writer(hidden, recipe(), tables, root / "run")


def test_hidden_texts_enter_neither_prompt_nor_graph(made, tmp_path):
    hidden, tables, run = made
    other = hide_text(dataset(tmp_path / "other", "w60 w61 w62"), HIDDEN, tmp_path / "hidden")
    assert other.fingerprint == hidden.fingerprint  # nothing of them is left
    content = writer_content(hidden, recipe(), tables)
    assert [content.texts[item] for item in (*HIDDEN, NOTHING)] == [None] * 4
    assert len(content.known) == 18 - 4 == run.facts["learnt_from"]
    assert content.prompts[3] == "w1 w3 w2 w100 w3"
    assert not any(text in prompt for prompt in content.prompts for text in ("w50", "w51"))
    assert not np.isin(content.neighbours_IN, [*HIDDEN, NOTHING]).any()
    # known texts stay out of prompts and of the choice of neighbours just the same
    items = hidden.items.with_columns(text=pl.when(pl.col("text").is_not_null()).then(pl.lit("w70")))
    changed = Dataset.from_frames(tmp_path / "changed", interactions=hidden.interactions, items=items)
    again = writer_content(
        changed, recipe(), recsys.extract_features(changed, FEATURES, out=tmp_path / "f", progress=False)
    )
    assert again.prompts == content.prompts
    assert np.array_equal(again.neighbours_IN, content.neighbours_IN)


def test_what_is_made_of_the_column_is_refused(made):
    hidden, tables, _ = made
    with pytest.raises(FeatureError, match="the template tells 'text'"):
        writer_content(hidden, recipe(template="{title} {text}"), tables)
    with pytest.raises(FeatureError, match="'text' is made of 'text'"):
        writer_content(hidden, recipe(nearest=["text"]), tables)
    with pytest.raises(FeatureError, match="'text' is made of 'text'"):
        writer_content(hidden, recipe(config={"own": ["text"]}), tables)
    nested = replace(tables["image"], manifest={"kind": "reduce", "source": dict(tables["text"].manifest)})
    with pytest.raises(FeatureError, match="'image' is made of 'text'"):
        writer_content(hidden, recipe(), tables | {"image": nested})
    with pytest.raises(FeatureError, match="no column 'plot'"):
        writer_content(hidden, recipe(column="plot"), tables)
    with pytest.raises(FeatureError, match="no feature table 'image'"):
        writer_content(hidden, recipe(), {"text": tables["text"]})


def test_missing_texts_are_filled_and_named(made, tmp_path):
    hidden, tables, run = made
    filled = fill_text(hidden, run, tables, tmp_path / "filled")
    facts = json.loads((filled.path / "written.json").read_text())
    assert facts["column"] == "text"
    assert facts["by"]["weights"] == run.facts["weights"]
    assert facts["items"] == [3, 7, 11, NOTHING]
    before, after = hidden.items["text"].to_list(), filled.items["text"].to_list()
    for item, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new if item in facts["items"] else new == old
    assert filled.items.drop("text").equals(hidden.items.drop("text"))
    assert filled.interactions.collect().equals(hidden.interactions.collect())
    assert WriterRun.open(run.folder).write(hidden, tables) == run.write(hidden, tables)


def test_a_table_of_own_and_written_texts(made, tmp_path):
    hidden, tables, run = made
    from text_models import save_bert

    encoder = save_bert(tmp_path / "bert")
    asked = {
        "kind": "written_text",
        "run": str(run.folder),
        "text": {"encoder": encoder, "template": "{text}"},
    }
    filled = fill_text(hidden, run, tables, tmp_path / "filled")
    found = recsys.extract_features(hidden, FEATURES | {"words": asked}, out=tmp_path / "f", progress=False)[
        "words"
    ]
    direct = {"kind": "text", "encoder": encoder, "template": "{text}"}
    wanted = recsys.extract_features(filled, {"words": direct}, out=tmp_path / "d", progress=False)["words"]
    np.testing.assert_allclose(found.values_EF, wanted.values_EF, atol=1e-6)
    letters = found.manifest["rows"]
    assert [item for item, letter in enumerate(letters) if letter == "w"] == [3, 7, 11, NOTHING]
    assert set(letters) == {"o", "w"}
    assert found.manifest["written_by"]["weights"] == run.facts["weights"]
    with pytest.raises(FeatureError, match="leaves out 'text'"):
        bad = asked | {"text": {"encoder": encoder, "template": "{title}"}}
        recsys.extract_features(hidden, FEATURES | {"words": bad}, out=tmp_path / "b", progress=False)


def test_commands(made, tmp_path):
    from typer.testing import CliRunner

    from recsys.cli.write import write_app

    hidden, _, run = made
    tables = str(run.folder.parent / "features")
    settings = ["config.neighbours=2", "config.tokens=1", "config.lora_rank=2", "config.max_text_tokens=4"]
    settings += [f"language={folder()}", "train.epochs=1", "train.lr=1e-2"]
    settings += ["template=w1 {title} w2 {category}", 'ending=" w3"']
    options = [word for one in settings for word in ("--set", one)]
    trained = tmp_path / "run"
    asked = ["train", str(hidden.path), "--out", str(trained), "--tables", tables, *options]
    found = CliRunner().invoke(write_app, asked, catch_exceptions=False)
    assert "14 texts; loss a token" in found.stdout
    again = WriterRun.open(trained)
    assert again.facts["recipe"]["template"] == run.facts["recipe"]["template"]
    assert [one["loss"] for one in again.facts["training"]] == [one["loss"] for one in run.facts["training"]]
    asked = ["fill", str(hidden.path), str(trained), "--out", str(tmp_path / "filled"), "--tables", tables]
    found = CliRunner().invoke(write_app, asked, catch_exceptions=False)
    assert "4 texts written, 0 items still have none" in found.stdout
    assert f"3: {Dataset.open(tmp_path / 'filled').items['text'][3]}" in found.stdout
    with pytest.raises(FeatureError, match="not a feature table"):
        asked = [
            "fill",
            str(hidden.path),
            str(trained),
            "--out",
            str(tmp_path / "x"),
            "--tables",
            str(tmp_path),
        ]
        CliRunner().invoke(write_app, asked, catch_exceptions=False)


def test_a_run_is_checked(made, tmp_path):
    hidden, _, run = made
    other = FEATURES | {"image": FEATURES["image"] | {"width": 8}}
    found = recsys.extract_features(hidden, other, out=tmp_path / "f", progress=False)
    with pytest.raises(FeatureError, match="'image' is not made as"):
        run.write(hidden, found)
    with pytest.raises(FeatureError, match="not a run of a writer"):
        WriterRun.open(tmp_path)
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "run.json").write_text((run.folder / "run.json").read_text())
    (copy / "weights.safetensors").write_bytes(b"0")
    with pytest.raises(FeatureError, match="missing or were changed"):
        _ = WriterRun.open(copy).writer


def slow_length(one, other):
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    for row, a in enumerate(one):
        for column, b in enumerate(other):
            table[row + 1, column + 1] = (
                table[row, column] + 1 if a == b else max(table[row, column + 1], table[row + 1, column])
            )
    return table[-1, -1]


def test_the_longest_common_subsequence_is_that_of_the_table():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(0, 90, size=2)
        one, other = ([f"w{word}" for word in rng.integers(6, size=length)] for length in lengths)
        assert common_length(one, other) == slow_length(one, other)


def test_rouge_by_hand():
    assert rouge_l("The cat sat.", "the CAT sat") == 1
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75
    assert rouge_l("the gunman kill police", "police kill the gunman") == 0.5
    assert rouge_l("a b", "a b c d e f") == pytest.approx(2 * 2 / 8)
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("...", "...") == 0
