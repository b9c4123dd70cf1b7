"""A recipe with a graph, end to end: its boxes, the refit's own graph, the bundle, and a search."""

import json

import planted
import pytest

from recsys.bundle import Bundle
from recsys.config import parse
from recsys.pipeline import run
from recsys.recipe import Recipe
from recsys.tuning import tune


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    data = planted.content(tmp_path_factory.mktemp("graph") / "data", users=40).path
    values = {
        "name": "tiny-graph",
        "data": {"kind": "dataset", "path": str(data)},
        "features": {
            "text": {"kind": "hash_text:HashText"},
            "about": {"kind": "metadata", "columns": {"category": {"kind": "multi"}}},
        },
        "graph": {"knn": {"neighbours": 4}, "co_occurrence": {}, "values": {"tables": ["about"]}},
        "models": {"mmgl": {"tables": ["text", "about"], "widths": [8], "batch_size": 64, "negatives": 8}},
        "train": {"epochs": 2},
        "select": {"refit": ["train", "valid"]},
        "tune": {"mmgl": {"tokens": [1, 2]}},
        "track": {"enabled": False},
    }
    return parse(Recipe, values, where="test")


def test_a_run_with_a_graph(recipe, tmp_path):
    result = run(recipe, tmp_path)
    assert {"graph.train", "graph.train_valid", "refit.mmgl.seed0"} <= set(result.made)
    for parts in (["train"], ["train", "valid"]):
        facts = json.loads((result.boxes[f"graph.{'_'.join(parts)}"].folder / "graph.json").read_text())
        assert facts["made_of"]["parts"] == parts and set(facts["made_of"]["features"]) == {"text", "about"}
        assert facts["relations"].keys() == {"knn.text", "co_occurrence", "values.about.category"}
    # `make_bundle` has compared its scores with the model's
    assert Bundle.open(result.bundle).form.encoding.kind == "neighbour"
    assert not run(recipe, tmp_path).made


def test_a_search_reads_the_graph(recipe, tmp_path):
    (found,) = tune(recipe, tmp_path, 1)
    assert found.trials["complete"] == 1
    made = {path.name.split("-")[0] for path in (tmp_path / "boxes").iterdir()}
    assert made == {"data", "split", "features.text", "features.about", "graph.train"}
