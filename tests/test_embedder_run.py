"""Every embedder through one door: a run, its table, what takes the table, and every mistake refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from embedder_case import CONFIGS, IMAGE, SPLIT, TEXT, dataset_at, recipe, unseen_at

import recsys as package
from recsys import embedder_training
from recsys.bundle import Bundle
from recsys.config import parse
from recsys.embedder_recipe import EmbedderRecipe
from recsys.embedder_run import EmbedderRun, item_content
from recsys.embedder_table import EmbedderExtractor, EmbedderTableConfig
from recsys.embedder_training import train_embedder
from recsys.errors import ConfigError, FeatureError
from recsys.features.table import FeatureTable
from recsys.pipeline import run as run_recipe
from recsys.recipe import Recipe
from recsys.serving.answers import Query
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine
from recsys.splits import SplitConfig, make_split

MODELS = list(CONFIGS)
KINDS = {"image": IMAGE, "text": TEXT}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_at(tmp_path_factory.mktemp("embedders"))


@pytest.fixture(scope="module")
def unseen(dataset, tmp_path_factory):
    return unseen_at(tmp_path_factory.mktemp("unseen") / "data", dataset)


@pytest.fixture(scope="module")
def split(dataset):
    return make_split(dataset, SplitConfig(**SPLIT))


@pytest.fixture(scope="module")
def tables(dataset, tmp_path_factory):
    return package.extract_features(dataset, KINDS, out=tmp_path_factory.mktemp("tables"), progress=False)


@pytest.fixture(scope="module")
def trained(dataset, split, tables, tmp_path_factory) -> dict:
    """Model -> (its run, the embedder as it was before it was saved)."""
    kept, fit = [], embedder_training.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            embedder_training, "fit", lambda model, *given: kept.append(model) or fit(model, *given)
        )
        folder = tmp_path_factory.mktemp("runs")
        runs = [train_embedder(dataset, recipe(name), tables, folder / name, split=split) for name in MODELS]
    return {name: pair for name, *pair in zip(MODELS, runs, kept, strict=True)}


@pytest.fixture(scope="module")
def runs(trained) -> dict[str, EmbedderRun]:
    return {name: run for name, (run, _) in trained.items()}


def table(run: EmbedderRun, dataset, split, tables, name: str = "notes", **config) -> FeatureTable:
    return EmbedderExtractor(EmbedderTableConfig(run=run.folder, **config)).table(
        name, dataset, split, tables
    )


@pytest.mark.parametrize("name", MODELS)
def test_unseen_items_have_the_vectors_of_before_saving(name, trained, unseen, tmp_path):
    run, before = trained[name]
    made = package.extract_features(unseen, KINDS, out=tmp_path, progress=False)
    template = "{title}" if before.reads_texts else None
    expected = before.encode(item_content(unseen, template, made))["joint"]
    found = table(EmbedderRun.open(run.folder), unseen, None, made)
    assert found.manifest["rows"] == "bbitb-" and found.present_E.tolist() == [True] * 5 + [False]
    np.testing.assert_allclose(found.values_EF[:5], expected[:5], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.values_EF[:5], axis=1), 1, atol=1e-5)
    # in other company they are the same
    few = package.Dataset.from_frames(
        tmp_path / "few", items=unseen.items[:2], pairs=unseen.scan("pairs"), media_root=unseen.media_root
    )
    one = package.extract_features(few, KINDS, out=tmp_path / "one", progress=False)
    fresh = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings"))
    np.testing.assert_allclose(
        table(EmbedderRun.open(fresh), few, None, one).values_EF, expected[:2], atol=1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_run_says_what_made_it(name, runs, dataset, split, tables):
    run = runs[name]
    facts, made = run.facts, table(run, dataset, split, tables)
    read = ("image",) if name == "notellm2" else ("image", "text")
    assert facts["model"] == run.name == name and run.split_id == split.id
    assert facts["features"] == {one: dict(tables[one].manifest) for one in read}
    assert run.tables == {one: KINDS[one] for one in read}
    assert ("language" in facts) == (name == "notellm2")
    assert facts["recipe"]["config"]["batch_size"] == 8 and "log_scale" in facts["recipe"]["config"]
    assert made.manifest["model"] == name and made.manifest["split_id"] == split.id
    assert made.manifest["rows"] == "bii" + "b" * 17 + "ttt-"
    assert str(run.folder) not in json.dumps(dict(made.manifest))
    image = table(run, dataset, split, tables, inputs="image")
    assert image.manifest["rows"] == "i" * 20 + "----" and image.fingerprint != made.fingerprint


def test_frozen_features_open_no_language_model(dataset, tables, tmp_path):
    """Training, opening and embedding: none of it needs transformers."""
    for name, one in tables.items():
        one.save(tmp_path / name)
    program = f"""
import sys
from pathlib import Path
from embedder_case import recipe
import recsys
from recsys.embedder_table import EmbedderExtractor, EmbedderTableConfig
from recsys.embedder_training import train_embedder
from recsys.features.table import FeatureTable
at, data = Path({str(tmp_path)!r}), recsys.Dataset.open({str(dataset.path)!r})
tables = {{name: FeatureTable.load(at / name) for name in ("image", "text")}}
for name in ("neighbours", "frozen_head"):
    run = train_embedder(data, recipe(name, pairs={{"source": "pairs"}}), tables, at / f"run-{{name}}")
    EmbedderExtractor(EmbedderTableConfig(run=run.folder)).table("notes", data, None, tables)
print(sorted({{"transformers", "peft", "tokenizers"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_recommenders_and_the_engine_take_the_table(runs, dataset, split, tables, tmp_path):
    """Neighbours' vectors as items of a sequence, a graph and a cold-start model; a new item is one more vector."""
    values = {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "split": SPLIT,
        "features": {
            "near": {"kind": "embedder", "run": str(runs["neighbours"].folder), "of": {"image": "pictures"}},
            "pictures": IMAGE,
            "text": TEXT,
        },
        "graph": {"knn": {"tables": ["near"], "neighbours": 3}},
        "models": {
            "fmrlrec": {"tables": ["near"], "widths": [4, 8], "blocks": 1, "window": 8},
            "mmgl": {"tables": ["near"], "widths": [8], "batch_size": 16, "negatives": 4},
            "coldstart": {"tables": ["near"], "width": 8},
        },
        "train": {"epochs": 1},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    result = run_recipe(parse(Recipe, values, where="test"), tmp_path / "runs")
    assert set(package.Report.load(result.report).models) == {"fmrlrec", "mmgl", "coldstart"}
    made = FeatureTable.load(result.boxes["features.near"].folder)
    expected = table(runs["neighbours"], dataset, split, tables)
    np.testing.assert_array_equal(made.values_EF, expected.values_EF)
    engine = RankingEngine(Bundle.open(result.bundle))
    new = NewItem("new", features={"near": expected.values_EF[0].tolist()})
    ranked = engine.rank(Query(history=["i03", "i04"]), ["i05"], [new])
    assert {item.item_id for item in ranked.items} == {"i05", "new"}
    assert all(np.isfinite(item.score) for item in ranked.items)
    assert "near" not in ranked.missing.get("new", [])


def test_a_student_is_distilled_from_a_table(runs, dataset, split, tables, tmp_path):
    """Given pairs rest on no split, but the teacher's vectors do, and so does what was learnt of them."""
    teacher = table(runs["notellm2"], dataset, split, tables)
    more = {"pairs": {"source": "pairs"}, "train": {"epochs": 60, "lr": 1e-2}}
    taught = recipe("frozen_head", config={"teacher_weight": 1.0}, **more)
    student = train_embedder(dataset, taught, tables, tmp_path / "student", split=split, teacher=teacher)
    plain = train_embedder(dataset, recipe("frozen_head", **more), tables, tmp_path / "plain")
    near = []
    for run in (student, plain):
        own = table(run, dataset, split, tables)
        near.append((own.values_EF * teacher.values_EF)[:23].sum(1).mean())
    assert near[0] > 0.9 and near[0] > near[1] + 0.2
    assert student.facts["teacher"]["fingerprint"] == teacher.fingerprint
    assert student.split_id == split.id and plain.split_id is None
    other = make_split(dataset, SplitConfig(method="random"))
    with pytest.raises(FeatureError, match="under split"):
        table(student, dataset, other, tables)
    with pytest.raises(FeatureError, match="fitted under split"):  # the same without --split
        train_embedder(dataset, taught, tables, tmp_path / "other", teacher=teacher)
    with pytest.raises(ConfigError, match="neighbours learns nothing from the teacher"):
        train_embedder(
            dataset, recipe("neighbours"), tables, tmp_path / "other", split=split, teacher=teacher
        )


def test_a_run_may_read_the_table_of_another(runs, dataset, unseen, split, tables, tmp_path):
    """And go on to items of another data set, whose rows are others."""
    notes = {"kind": "embedder", "run": str(runs["neighbours"].folder)}
    made = dict(tables) | {"notes": table(runs["neighbours"], dataset, split, tables)}
    stacked = recipe("frozen_head", config={"tables": ["notes"]}, tables={"notes": notes} | KINDS)
    run = train_embedder(dataset, stacked, made, tmp_path / "run", split=split)
    assert set(run.tables) == {"notes", "image", "text"} and set(run.facts["features"]) == {"notes"}
    again = package.extract_features(
        unseen, run.tables | {"top": {"kind": "embedder", "run": run.folder}}, out=tmp_path / "tables",
        progress=False,
    )  # fmt: skip
    assert again["top"].manifest["rows"] == "ttttt-"  # what is no image table is text


@pytest.mark.parametrize("name", MODELS)
def test_a_data_set_without_pictures(name, runs, unseen, tmp_path):
    items = unseen.items.with_columns(pl.lit(None, pl.String).alias("image_path"))
    bare = package.Dataset.from_frames(tmp_path / "bare", items=items, pairs=unseen.scan("pairs"))
    asked = KINDS | {"image": IMAGE | {"required": False}}
    made = package.extract_features(bare, asked, out=tmp_path / "tables", progress=False)
    assert made["image"].width == 1
    found = table(runs[name], bare, None, made)
    assert found.manifest["rows"] == "tt-tt-"
    text = package.extract_features(unseen, KINDS, out=tmp_path / "all", progress=False)
    expected = table(runs[name], unseen, None, text, inputs="text")
    kept = found.present_E
    np.testing.assert_allclose(found.values_EF[kept], expected.values_EF[kept], atol=1e-5)


# The command line


def options(model: str, **more) -> list[str]:
    config = {f"config.{name}": json.dumps(value) for name, value in CONFIGS[model].items()}
    given = {"model": model, "pairs.source": "pairs", "train.epochs": "1"} | config | more
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def test_learning_takes_the_tables_that_are_there(recsys, dataset, tmp_path):
    """As they were made; and extraction leaves one few that was made otherwise."""
    made = {"image": IMAGE, "text": TEXT | {"width": 9}}
    package.extract_features(dataset, made, out=tmp_path / "tables", progress=False)
    where = ("--tables", "tables")
    code, out, error = recsys(
        "features", "learn", dataset.path, "--out", "run", *where, *options("neighbours")
    )
    assert code == 0, error
    assert "24 pairs, epoch 1, loss" in out
    run = EmbedderRun.open(tmp_path / "run")
    assert run.tables == made and run.facts["widths"] == {"image": 6, "text": 9}
    extract = ("features", "extract", dataset.path, "--encoder", "neighbours:run", "--out")
    assert recsys(*extract, "tables")[0] == 0
    package.extract_features(dataset, KINDS, out=tmp_path / "others", progress=False)
    assert recsys(*extract, "others")[0] == 0
    found = {
        name: FeatureTable.load(tmp_path / name / "neighbours").values_EF for name in ("tables", "others")
    }
    np.testing.assert_array_equal(found["tables"], found["others"])
    assert FeatureTable.load(tmp_path / "others" / "text").width == 7
    assert FeatureTable.load(tmp_path / "others" / "text-of-neighbours").width == 9
    assert not (tmp_path / "others" / "image-of-neighbours").exists()


def test_a_student_by_commands(recsys, dataset, runs, split, tables, tmp_path):
    split.save(tmp_path / "split")
    table(runs["notellm2"], dataset, split, tables).save(tmp_path / "teacher")
    package.extract_features(dataset, KINDS, out=tmp_path / "tables", progress=False)
    learn = ("features", "learn", dataset.path, "--out", "run", "--tables", "tables", "--split", "split")
    given = options("frozen_head", **{"config.teacher_weight": "0.8"})
    code, _, error = recsys(*learn, "--teacher", "teacher", *given)
    assert code == 0, error
    code, _, error = recsys(
        "features", "extract", dataset.path, "--encoder", "frozen_head:run", "--out", "tables"
    )
    assert code == 0, error
    made = FeatureTable.load(tmp_path / "tables" / "frozen_head")
    assert made.manifest["split_id"] == split.id and made.width == 8
    code, _, error = recsys(*learn, *given)
    assert code == 2 and "teacher_weight without teacher" in error


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("notellm2:{run}", "a run of 'neighbours'; give neighbours:"),
        ("neighbour:{run}", "expected one of notellm2:RUN, neighbours:RUN, frozen_head:RUN"),
        ("neighbours", "expected one of notellm2:RUN"),
        ("neighbours:nowhere", "no run.json"),
        ("my.words:Words:{run}", "a run of 'neighbours'"),
    ],
)
def test_a_prefix_that_is_not_the_runs(encoder, said, recsys, dataset, runs, tmp_path):
    given = encoder.format(run=runs["neighbours"].folder)
    code, _, error = recsys("features", "extract", dataset.path, "--encoder", given, "--out", tmp_path / "t")
    assert code == 2 and said in error


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "frozen_head", "language": "smollm2"}, "language for 'frozen_head', which reads no text"),
        ({"model": "neighbours", "template": "{title}"}, "template for 'neighbours', which reads no text"),
        ({"model": "neighbour"}, "unknown embedder 'neighbour'; did you mean 'neighbours'?"),
        ({"model": "recsys.models.mf:MF"}, "is not a Embedder|cannot import"),
        ({"model": "frozen_head", "config": {"hiden": [4]}}, "config: unknown key 'hiden'; did you mean 'hidden'"),
        ({"model": "notellm2", "tables": {"text": TEXT}}, "tables.text, which notellm2 does not read"),
        ({"model": "frozen_head", "config": {"tables": ["sound"]}}, "give tables.sound.kind"),
        ({"model": "frozen_head", "tables": {"text": {"kind": "txt"}}}, "tables.text.kind = 'txt'"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit(changes, said):
    with pytest.raises(ConfigError, match=said):
        parse(EmbedderRecipe, changes, where="test").filled()


def test_what_a_recipe_leaves_out():
    full = EmbedderRecipe().filled()
    assert full.tables == {"image": {"kind": "image"}} and full.language == "smollm2"
    assert (full.train.lr, full.train.schedule, full.train.epochs) == (1e-4, "cosine", 20)
    given = {"model": "frozen_head", "train": {"lr": 0.5}, "tables": {"text": {"template": "{title}"}}}
    head = parse(EmbedderRecipe, given, where="test").filled({"text": TEXT, "image": IMAGE})
    assert head.tables == {"image": IMAGE, "text": {"kind": "text", "template": "{title}"}}
    assert (head.train.lr, head.train.epochs, head.language) == (0.5, 40, None)
    assert head.filled() == head and full.filled() == full


def test_tables_that_do_not_fit(runs, dataset, split, tables, tmp_path):
    other = package.extract_features(dataset, {"text": TEXT | {"width": 8}}, out=tmp_path, progress=False)
    with pytest.raises(FeatureError, match="table 'text' is not made as the one that the run learnt with"):
        table(runs["neighbours"], dataset, split, dict(tables) | other)
    alien = make_split(dataset, SplitConfig(method="random"))
    with pytest.raises(FeatureError, match="the run was trained under split"):
        table(runs["frozen_head"], dataset, alien, tables)
    with pytest.raises(FeatureError, match="the run has no vector 'visual'"):
        table(runs["frozen_head"], dataset, split, tables, vector="visual")
    with pytest.raises(ConfigError, match="of names 'words'"):
        table(runs["frozen_head"], dataset, split, tables, of={"words": "text"})
    with pytest.raises(FeatureError, match="no table 'text'; expected all of: image, text"):
        train_embedder(dataset, recipe("neighbours"), {"image": tables["image"]}, tmp_path / "r", split=split)
    fields = package.extract_features(
        dataset, {"text": {"kind": "metadata", "fit_on": "all", "columns": {"title": {"kind": "categorical"}}}},
        out=tmp_path / "fields", progress=False,
    )  # fmt: skip
    with pytest.raises(FeatureError, match="holds typed fields"):
        train_embedder(dataset, recipe("neighbours"), dict(tables) | fields, tmp_path / "r", split=split)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1}, "a run of embedder, version 1; expected embedder, version 2; train it again"),
        ({"kind": "writer"}, "a run of writer, version 2; expected embedder, version 2$"),
        ({"model_version": 0}, "made by version 0 of 'frozen_head'; expected version 1; train it again"),
    ],
)
def test_runs_of_another_time(changes, said, runs, tmp_path):
    copied = shutil.copytree(runs["frozen_head"].folder, tmp_path / "run")
    facts = json.loads((copied / "run.json").read_text()) | changes
    (copied / "run.json").write_text(json.dumps(facts))
    with pytest.raises(FeatureError, match=said):
        EmbedderRun.open(copied)
