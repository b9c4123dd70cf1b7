"""Fitted tables in a run: they stand on the split and on other tables, and see nothing of valid and test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest

from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.features.field_table import load_table
from recsys.features.metadata import MetadataConfig, MetadataExtractor
from recsys.pipeline import plan, run
from recsys.recipe import Recipe
from recsys.splits import Split

FEATURES = {
    "small": {"kind": "reduce", "of": "text", "dims": 4},
    "text": {"kind": "hash_text:HashText"},
    "groups": {"kind": "metadata", "columns": {"category": {"kind": "multi"}}},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return planted.content(tmp_path_factory.mktemp("fitted") / "data", users=60)


def recipe(dataset: Dataset, features: dict[str, Any], **values) -> Recipe:
    given = {
        "name": "fitted",
        "data": {"kind": "dataset", "path": str(dataset.path)},
        "features": features,
        "models": {"fmrlrec": {"tables": ["small", "groups"], "widths": [4, 8]}},
        "train": {"epochs": 2},
        "evaluate": {"ks": [5], "bootstrap": 20},
        "track": {"enabled": False},
    }
    return parse(Recipe, given | values, where="test")


def made_again(dataset: Dataset, root: Path, **values) -> set[str]:
    before = {box.folder for box in plan(recipe(dataset, FEATURES), root).boxes.values()}
    after = plan(recipe(dataset, values.pop("features", FEATURES), **values), root).boxes.values()
    return {box.name for box in after if box.folder not in before and box.name.startswith("features")}


def test_boxes_stand_on_what_they_are_fitted_on(dataset, tmp_path):
    boxes = list(plan(recipe(dataset, FEATURES), tmp_path).boxes)
    assert boxes.index("features.text") < boxes.index("features.small")  # whatever the recipe's order
    both = {"features.small", "features.groups"}
    assert made_again(dataset, tmp_path, split={"cuts": [0.7, 0.9]}) == both
    assert made_again(dataset, tmp_path, train={"epochs": 3}) == set()
    other = FEATURES | {"text": {"kind": "hash_text:HashText", "width": 8}}
    assert made_again(dataset, tmp_path, features=other) == {"features.text", "features.small"}
    other = FEATURES | {"small": FEATURES["small"] | {"whiten": True}}
    assert made_again(dataset, tmp_path, features=other) == {"features.small"}


def test_a_run_with_fitted_tables(dataset, tmp_path):
    result = run(recipe(dataset, FEATURES), tmp_path)
    split = Split.load(result.boxes["split"].folder)
    for name, width in (("small", 4), ("groups", 5)):
        table = load_table(result.boxes[f"features.{name}"].folder)
        assert table.manifest["split_id"] == split.id
        dense = table.align(split.item_ids) if name == "small" else table.align(split.item_ids).dense()
        assert dense.width == width + (name == "groups")  # presence, unseen, four groups
    assert result.selected == "fmrlrec"


def test_tables_that_stand_on_each_other_or_on_nothing(dataset, tmp_path):
    for features, message in (
        ({"a": {"kind": "reduce", "of": "b"}, "b": {"kind": "reduce", "of": "a"}}, "a -> b -> a"),
        ({"a": {"kind": "reduce", "of": "a"}}, "a -> a"),
        ({"a": {"kind": "reduce", "of": "txt"}, "text": FEATURES["text"]}, "did you mean 'text'"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(recipe(dataset, features, models={"popularity": {}}), tmp_path)


def test_valid_and_test_rows_are_out_of_reach(dataset, tmp_path):
    """Every valid and test row replaced by a random item: the fitted state stays as it was."""
    result = run(recipe(dataset, FEATURES), tmp_path)
    split = Split.load(result.boxes["split"].folder)
    rng = np.random.default_rng(0)
    items = np.where(split.part_N == 0, split.log.item_N, rng.integers(split.num_items, size=len(split.log)))
    assert (items != split.log.item_N).any()
    moved = replace(split, log=replace(split.log, item_N=items))
    extractor = MetadataExtractor(MetadataConfig(columns=FEATURES["groups"]["columns"]))
    tables = [extractor.table("groups", dataset, cut, {}) for cut in (split, moved)]
    assert tables[0].manifest["fields"] == tables[1].manifest["fields"]
    assert tables[0].frame.equals(tables[1].frame)
    # the control: rows of train do decide
    train = np.where(split.part_N == 0, 0, split.log.item_N)
    bare = replace(split, log=replace(split.log, item_N=train))
    assert extractor.table("groups", dataset, bare, {}).manifest["fields"] != tables[0].manifest["fields"]
