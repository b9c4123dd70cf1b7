"""From a Dataset to a learnt feature table and on: the run, its cache, refusals, the command line, a recipe."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from embedder_case import IMAGE, SPLIT, dataset_at, recipe
from notellm2_case import folder as llama

import recsys as package
from recsys.config import parse
from recsys.embedder_recipe import EmbedderRecipe
from recsys.embedder_run import EmbedderRun
from recsys.embedder_table import EmbedderExtractor, EmbedderTableConfig
from recsys.embedder_training import train_embedder
from recsys.errors import ConfigError, FeatureError, ModelError
from recsys.features.table import FeatureTable
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.pipeline import run as run_recipe
from recsys.recipe import Recipe
from recsys.splits import SplitConfig, make_split


def learnt(**pairs) -> EmbedderRecipe:
    return recipe("notellm2", pairs=pairs)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_at(tmp_path_factory.mktemp("notes"))


@pytest.fixture(scope="module")
def split(dataset):
    return make_split(dataset, SplitConfig(**SPLIT))


@pytest.fixture(scope="module")
def source(dataset, tmp_path_factory):
    return package.extract_features(dataset, {"image": IMAGE}, out=tmp_path_factory.mktemp("tables"))["image"]


@pytest.fixture(scope="module")
def run(dataset, split, source, tmp_path_factory) -> EmbedderRun:
    return train_embedder(
        dataset, learnt(), {"image": source}, tmp_path_factory.mktemp("runs") / "run", split=split
    )


def table(run: EmbedderRun, dataset, split, source, name: str = "notes", **config) -> FeatureTable:
    maker = EmbedderExtractor(EmbedderTableConfig(run=run.folder, **config))
    return maker.table(name, dataset, split, {"image": source})


def test_the_table_says_what_made_it(run, dataset, split, source, tmp_path):
    made = table(run, dataset, split, source)
    manifest = made.manifest
    assert manifest["split_id"] == split.id
    assert manifest["language"]["weights"] == run.facts["language"]["weights"]
    assert manifest["features"] == {"image": dict(source.manifest)}
    assert manifest["weights"] == run.facts["weights"]
    assert manifest["pairs"] == run.facts["pairs"]["fingerprint"]
    assert manifest["rows"] == "bii" + "b" * 17 + "ttt-"
    assert made.present_E.tolist() == [True] * 23 + [False]
    np.testing.assert_allclose(np.linalg.norm(made.values_EF[:23], axis=1), 1, atol=1e-5)
    made.save(tmp_path / "notes")
    assert FeatureTable.load(tmp_path / "notes").fingerprint == made.fingerprint
    assert {path.name for path in run.folder.iterdir()} >= {"run.json", "weights.safetensors"}
    assert not [
        path for path in run.folder.parent.iterdir() if path.name.startswith(".")
    ]  # checkpoints are gone


def test_another_split_is_refused(run, dataset, source):
    other = make_split(dataset, SplitConfig(method="random"))
    with pytest.raises(FeatureError, match="under split"):
        table(run, dataset, other, source)
    made = table(run, dataset, None, source)
    with pytest.raises(FeatureError, match="fitted under split"):
        made.check_split(other.id)


def test_other_features_are_refused(run, dataset, split, tmp_path):
    other = package.extract_features(dataset, {"image": IMAGE | {"kind": "hash_text:HashText"}}, out=tmp_path)
    with pytest.raises(FeatureError, match="not made as the one that the run learnt with"):
        table(run, dataset, split, other["image"])


def test_hard_negatives_come_from_a_teacher_of_the_same_split(run, dataset, split, source, tmp_path):
    mined = recipe("notellm2", config={"hard_negatives": 2, "hard_ranks": [1, 20]})
    teacher, tables = table(run, dataset, split, source), {"image": source}
    made = train_embedder(dataset, mined, tables, tmp_path / "run", split=split, teacher=teacher)
    assert made.facts["teacher"]["fingerprint"] == teacher.fingerprint
    assert made.facts["weights"] != run.facts["weights"]
    with pytest.raises(ModelError, match="without teacher"):
        train_embedder(dataset, mined, tables, tmp_path / "other", split=split)
    with pytest.raises(ConfigError, match="notellm2 learns nothing from the teacher 'notes'"):
        train_embedder(dataset, learnt(), tables, tmp_path / "other", split=split, teacher=teacher)
    alien = make_split(dataset, SplitConfig(method="random"))
    with pytest.raises(FeatureError, match="fitted under split"):
        train_embedder(dataset, mined, tables, tmp_path / "other", split=alien, teacher=teacher)


def test_given_pairs_rest_on_no_split(dataset, source, tmp_path):
    given = learnt(source="pairs", kinds=["also_bought"])
    made = train_embedder(dataset, given, {"image": source}, tmp_path / "run")
    assert made.split_id is None and made.facts["pairs"]["count"] == 24
    assert "split_id" not in table(made, dataset, None, source).manifest


def test_equal_content_is_encoded_once(run, dataset, source, split, monkeypatch, tmp_path):
    copied = EmbedderRun.open(
        shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))
    )
    asked = []
    encode = NoteLLM2.encode
    monkeypatch.setattr(
        NoteLLM2,
        "encode",
        lambda self, content, size: asked.append(len(content)) or encode(self, content, size),
    )
    first = table(copied, dataset, split, source)
    assert sum(asked) == 23
    again = table(copied, dataset, split, source)
    assert sum(asked) == 23 and again.fingerprint == first.fingerprint
    items = dataset.items.with_columns(
        pl.when(pl.col("item_id") == "i05").then(pl.lit("w9 w9")).otherwise("title").alias("title")
    )
    changed = package.Dataset.from_frames(
        tmp_path / "changed", items=items, pairs=dataset.scan("pairs"), media_root=dataset.media_root
    )
    other = table(copied, changed, None, source)
    assert sum(asked) == 24  # the one row that changed
    same = np.delete(np.arange(23), 5)
    assert np.array_equal(other.values_EF[same], first.values_EF[same])
    assert not np.allclose(other.values_EF[5], first.values_EF[5], atol=1e-4)


def test_inputs_vectors_and_widths(run, dataset, split, source):
    both, image = (table(run, dataset, split, source, inputs=inputs) for inputs in ("both", "image"))
    assert image.manifest["rows"] == "i" * 20 + "----"
    assert np.array_equal(both.present_E & (np.arange(24) < 20), image.present_E)
    narrow = table(run, dataset, split, source, width=4)
    expected = both.values_EF[:23, :4] / np.linalg.norm(both.values_EF[:23, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(narrow.values_EF[:23], expected, atol=1e-6)
    visual = table(run, dataset, split, source, vector="visual")
    assert not np.allclose(visual.values_EF[:20], both.values_EF[:20], atol=1e-3)
    with pytest.raises(FeatureError, match="width 5"):
        table(run, dataset, split, source, width=5)


def test_a_damaged_run_is_refused(run, dataset, split, source, tmp_path):
    def copied(name: str):
        return EmbedderRun.open(
            shutil.copytree(run.folder, tmp_path / name, ignore=shutil.ignore_patterns("embed*"))
        )

    with pytest.raises(FeatureError, match=r"no run\.json"):
        EmbedderRun.open(tmp_path)
    damaged = copied("weights")
    with open(damaged.folder / "weights.safetensors", "ab") as handle:
        handle.write(b"x")
    with pytest.raises(FeatureError, match="missing or were changed"):
        table(damaged, dataset, split, source)
    other = copied("language")
    facts = json.loads((other.folder / "run.json").read_text())
    facts["language"]["weights"] = "0" * 64
    (other.folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(FeatureError, match="not the weights that the run was trained on"):
        table(EmbedderRun.open(other.folder), dataset, split, source)


def test_the_command_line_learns_and_extracts(recsys, dataset, split, tmp_path):
    split.save(tmp_path / "split")
    given = {
        "language": f'"{llama()}"', "template": '"{title}"', "tables.image": '{kind = "hash_file:HashFile", width = 6}',
        "config.widths": "[4, 8]", "config.tune": '"last"', "train.epochs": "1", "parts.test": "0.2",
        "parts.valid": "0.4",
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    data, tables = str(dataset.path), str(tmp_path / "tables")
    code, out, error = recsys(
        "features", "learn", data, "--out", "run", "--split", "split", "--tables", tables, *options
    )
    assert code == 0, error
    assert "pairs, epoch 1, loss" in out and "recall@10 of validation partners" in out
    again = ("features", "learn", data, "--out", "run", "--split", "split", "--tables", tables, *options)
    code, _, error = recsys(*again, "--set", "parts.valid=0.01")
    assert code == 2 and "no validation pair" in error
    code, out, error = recsys("features", "extract", data, "--encoder", "notellm2:run", "--out", tables)
    assert code == 0, error
    made = FeatureTable.load(tmp_path / "tables" / "notellm2")
    assert made.width == 8 and made.manifest["split_id"] == split.id
    for wrong, said in (("notellm2", "expected one of notellm2:RUN, "), ("notellm2:tables", "no run.json")):
        code, _, error = recsys("features", "extract", data, "--encoder", wrong, "--out", tables)
        assert code == 2 and said in error
    code, _, error = recsys("features", "learn", data, "--out", "run", *options)
    assert code == 2 and "expected a split" in error


def test_a_recipe_takes_the_table(run, dataset, split, source, tmp_path):
    values = {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "split": SPLIT,
        "features": {"notes": {"kind": "embedder", "run": str(run.folder)}, "image": IMAGE},
        "models": {"content_knn": {"tables": ["notes"]}},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    result = run_recipe(parse(Recipe, values, where="test"), tmp_path / "runs")
    assert "content_knn" in package.Report.load(result.report).models
    found = [FeatureTable.load(path.parent) for path in (tmp_path / "runs").rglob("table.json")]
    (made,) = [one for one in found if one.name == "notes"]
    assert made.fingerprint == table(run, dataset, split, source).fingerprint
    with pytest.raises(ConfigError, match=r"features\.notes"):
        alone = {name: value for name, value in values["features"].items() if name == "notes"}
        run_recipe(parse(Recipe, values | {"features": alone}, where="test"), tmp_path / "runs")
