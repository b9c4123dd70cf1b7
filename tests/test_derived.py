"""New items by raw content through tables that stand on others: a learnt embedder, a reduction, one on the other."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from embedder_case import CONFIGS, IMAGE, SPLIT, TEXT, dataset_at, recipe

import recsys as package
from recsys.bundle import Bundle
from recsys.config import parse
from recsys.embedder_training import train_embedder
from recsys.errors import BundleError, FeatureError, RequestError
from recsys.features.reduce import ReduceConfig, ReduceExtractor
from recsys.features.table import FeatureTable
from recsys.pipeline import run as run_recipe
from recsys.recipe import Recipe
from recsys.serving import derived
from recsys.serving.answers import Query
from recsys.serving.content import ContentEncoder, NewItem
from recsys.serving.engine import RankingEngine
from recsys.serving.export import export_bundle
from recsys.splits import SplitConfig, make_split

MODELS = list(CONFIGS)
RAW = {"pictures": IMAGE, "text": TEXT}


@dataclass(frozen=True)
class Case:
    """tables: as the run made them. away: where the embedder's run lay."""

    bundle: Bundle
    tables: dict[str, FeatureTable]
    dataset: package.Dataset
    away: Path

    def raw(self, row: int) -> NewItem:
        """An item of the catalogue, as one that nobody has seen."""
        found = self.dataset.items.row(row, named=True)
        picture = found["image_path"]
        image = None if picture is None else (self.dataset.media_root / picture).read_bytes()
        return NewItem(f"new {row}", title=found["title"], image=image)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_at(tmp_path_factory.mktemp("derived"))


@pytest.fixture(scope="module", params=MODELS)
def case(request, dataset, tmp_path_factory) -> Case:
    """A model of a learnt table, of its reduction and of one of the texts; the folder of the run is gone since."""
    folder = tmp_path_factory.mktemp("case")
    split = make_split(dataset, SplitConfig(**SPLIT))
    read = package.extract_features(
        dataset, {"image": IMAGE, "text": TEXT}, out=folder / "tables", progress=False
    )
    run = train_embedder(dataset, recipe(request.param), read, folder / "embedder", split=split)
    near = {"kind": "embedder", "run": str(run.folder), "of": {"image": "pictures"}, "width": 4}
    values = {
        "name": "derived",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "split": SPLIT,
        "features": {
            "small": {"kind": "reduce", "of": "near", "dims": 3},
            "near": near,
            "white": {"kind": "reduce", "of": "text", "dims": 4, "whiten": True},
            **RAW,
        },
        "models": {"content_knn": {"tables": ["near", "small", "white"]}},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    result = run_recipe(parse(Recipe, values, where="test"), folder / "runs")
    shutil.rmtree(run.folder)
    tables = {name: FeatureTable.load(result.boxes[f"features.{name}"].folder) for name in values["features"]}
    return Case(Bundle.open(result.bundle), tables, dataset, run.folder)


def test_raw_content_gives_the_rows_and_scores_of_the_catalogue(case):
    new = [case.raw(row) for row in range(24)]
    rows = ContentEncoder(case.bundle).rows(new)
    ids = case.dataset.items["item_id"]
    assert list(rows) == ["small", "near", "white", "pictures", "text"]
    for name, table in case.tables.items():
        expected = table.align(ids)
        np.testing.assert_array_equal(rows[name].present_E, expected.present_E)
        np.testing.assert_allclose(rows[name].values_EF, expected.values_EF, atol=1e-4)
    engine = RankingEngine(case.bundle)
    ranked = engine.rank(Query(history=["i03", "i04"]), ids.to_list(), new)
    scores = {item.item_id: item.score for item in ranked.items}
    bias_I, own = (
        engine.bundle.form.item_bias_I,
        engine.catalogue.index_of,
    )  # what came of being taken is no content
    for row, item_id in enumerate(ids):
        assert scores[f"new {row}"] == pytest.approx(scores[item_id] - bias_I[own[item_id]], abs=1e-4)
    assert ranked.missing["new 1"] == ["white", "text"] and "new 5" not in ranked.missing
    assert set(ranked.missing["new 23"]) == set(rows)  # it has neither text nor picture


def test_what_is_sent_is_taken(case):
    """A vector of the table, or of one below, wins over content; what it lacks comes of the rest."""
    other = case.tables["near"].values_EF[7]
    text = case.tables["text"].values_EF[6].tolist()
    new = [
        NewItem("a", title="w1 w2", features={"near": other.tolist()}),
        NewItem("b", image=case.raw(6).image, title=None, features={"text": text}),
        NewItem("c", title="w1 w2"),
    ]
    rows = ContentEncoder(case.bundle).rows(new)
    np.testing.assert_array_equal(rows["near"].values_EF[0], other)
    np.testing.assert_allclose(rows["small"].values_EF[0], case.tables["small"].values_EF[7], atol=1e-5)
    np.testing.assert_allclose(rows["white"].values_EF[1], case.tables["white"].values_EF[6], atol=1e-5)
    assert rows["near"].present_E.all() and rows["pictures"].present_E.tolist() == [False, True, False]
    with pytest.raises(RequestError, match=r"features\.near of 5 values"):
        ContentEncoder(case.bundle).rows([NewItem("d", features={"near": [0.0] * 5})])


def test_the_bundle_names_no_folder_of_the_run(case):
    told = [path for path in case.bundle.path.rglob("*") if path.suffix == ".json"]
    told = [path for path in told if path.parent.name != "reports"]
    assert {path.name for path in told} == {"manifest.json", "run.json"}
    assert not any(str(case.away) in path.read_text() for path in told)


def test_an_export_carries_the_chain(case, tmp_path):
    out = export_bundle(case.bundle, tmp_path / "out", None)
    assert out.encoder_files == case.bundle.encoder_files and len(out.encoder_files) == 4
    new = [case.raw(5)]
    found, expected = (ContentEncoder(one).rows(new) for one in (out, case.bundle))
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name].values_EF, rows.values_EF)


@pytest.mark.parametrize("file", ["near/run.json", "near/weights.safetensors", "white/whitening.safetensors"])
def test_a_changed_file_is_refused(case, file, tmp_path):
    copied = shutil.copytree(case.bundle.path, tmp_path / "bundle")
    path = copied / "encoders" / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{file}: the file was changed"):
        Bundle.open(copied)
    path.unlink()
    with pytest.raises(BundleError, match=f"{file}: the file is missing"):
        Bundle.open(copied)


def test_what_encodes_each_table(case, monkeypatch):
    """Without torch nothing makes the learnt vectors, and so nothing their reduction."""
    encoder = ContentEncoder(case.bundle)
    raw = {"white": "own", "pictures": "own", "text": "own"}
    assert encoder.encoders() == {"small": "torch", "near": "torch"} | raw
    monkeypatch.setattr(derived, "has_torch", lambda: False)
    assert encoder.encoders() == {"small": "none", "near": "none"} | raw
    new = [case.raw(5)]
    assert encoder.missing(new, encoder.rows(new)) == {"new 5": ["small", "near"]}


def test_an_own_extractor_that_was_fitted_is_no_reader(case):
    manifest = json.loads(json.dumps(case.bundle.manifest))
    content = manifest["content"]
    assert content["text"]["raw"] and not content["near"]["raw"] and not content["white"]["raw"]
    fitted = {"settings": {"kind": "somebodys.words:Words"}, "raw": False}
    content["words"] = content["near"] | fitted | {"made_of": None}
    encoder = ContentEncoder(Bundle(case.bundle.path, manifest))
    assert encoder.encoders()["words"] == "none"
    assert not encoder.rows([case.raw(5)])["words"].present_E.any()


def test_a_reduction_needs_no_torch(case):
    item = case.raw(6)
    program = f"""
import sys
sys.modules["torch"] = None
from recsys.bundle import Bundle
from recsys.serving.content import ContentEncoder, NewItem
encoder = ContentEncoder(Bundle.open({str(case.bundle.path)!r}))
(row,) = encoder.rows([NewItem("n", title={item.title!r})])["white"].values_EF
print(encoder.encoders()["white"], *row.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    reader, *row = done.stdout.split()
    assert reader == "own"
    np.testing.assert_allclose(np.array(row, float), case.tables["white"].values_EF[6], atol=1e-5)


def test_a_bundle_of_before_goes_without(case, tmp_path):
    """It says nothing of what tables are made of."""
    manifest = json.loads(json.dumps(case.bundle.manifest))
    for table in manifest["content"].values():
        del table["made_of"]
    encoder = ContentEncoder(Bundle(case.bundle.path, manifest))
    raw = {"pictures": "own", "text": "own"}
    assert encoder.encoders() == {"small": "none", "near": "none", "white": "none"} | raw
    assert encoder.rows([case.raw(5)])["text"].present_E.all()


def test_a_reduction_that_does_not_come_again(dataset, tmp_path):
    split = make_split(dataset, SplitConfig(**SPLIT))
    read = package.extract_features(dataset, {"text": TEXT}, out=tmp_path, progress=False)
    maker = ReduceExtractor(ReduceConfig(of="text", dims=3))
    table = maker.table("white", dataset, split, read)
    assert maker.served(table, split, read.get).tables == {"of": "text"}
    other = ReduceExtractor(ReduceConfig(of="text", dims=3, whiten=True))
    with pytest.raises(
        FeatureError, match=r"features\.white: fitted again it is not the reduction that made"
    ):
        other.served(table, split, read.get)


def test_a_run_on_the_vectors_of_another(dataset, tmp_path):
    """The upper one's facts name no folder of the lower one's, and both are carried."""
    split = make_split(dataset, SplitConfig(**SPLIT))
    read = package.extract_features(dataset, RAW, out=tmp_path / "tables", progress=False)
    lower = train_embedder(
        dataset, recipe("frozen_head", config={"tables": ["text"]}, tables={"text": TEXT}), read,
        tmp_path / "lower", split=split,
    )  # fmt: skip
    notes = {"kind": "embedder", "run": str(lower.folder)}
    made = package.extract_features(
        dataset, RAW | {"notes": notes}, out=tmp_path / "made", split=split, progress=False
    )
    stacked = recipe("frozen_head", config={"tables": ["notes"]}, tables={"notes": notes, "text": TEXT})
    upper = train_embedder(dataset, stacked, made, tmp_path / "upper", split=split)
    features = {"top": {"kind": "embedder", "run": str(upper.folder)}, "notes": notes, "text": TEXT}
    values = {
        "name": "stacked",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "split": SPLIT,
        "features": features,
        "models": {"content_knn": {"tables": ["top"]}},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    result = run_recipe(parse(Recipe, values, where="test"), tmp_path / "runs")
    for run in (lower, upper):
        shutil.rmtree(run.folder)
    bundle = Bundle.open(result.bundle)
    assert not any(str(tmp_path) in data.decode("latin-1") for data in bundle.encoder_files.values())
    expected = FeatureTable.load(result.boxes["features.top"].folder).align(pl.Series(["i05"]))
    title = dataset.items.filter(item_id="i05")["title"].item()
    row = ContentEncoder(bundle).rows([NewItem("n", title=title)])["top"].values_EF
    np.testing.assert_allclose(row, expected.values_EF, atol=1e-4)
