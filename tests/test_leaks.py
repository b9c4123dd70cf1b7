"""Nothing of valid or test reaches what is fitted: replace every such row by a random item, and compare bytes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from contracts.cases import Case, cases, state_bytes
from contracts.worlds import graph_of
from hash_text import HashText, HashTextConfig

from recsys import fitting, graphs
from recsys.boxes import Box
from recsys.dataset import Dataset
from recsys.features.extract import extract
from recsys.fields import Categorical, Fields
from recsys.graph_config import CoOccurrenceConfig, GraphConfig, NearestConfig, PairsConfig
from recsys.registry import MODELS
from recsys.splits import Split, SplitConfig, make_split
from recsys.train import fit
from recsys.train_config import TrainConfig

PAIRS = pl.DataFrame({"item_id": [0, 1, 2, 13, 25], "other_id": [1, 2, 47, 14, 0]})
METHODS = ("leave_last_out", "global_time", "user_ratio", "random", "item_cold", "user_cold", "staged")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return planted.content(tmp_path_factory.mktemp("leaks") / "data", users=60)


@pytest.fixture(scope="module")
def table_box(dataset, tmp_path_factory) -> Box:
    """The text table as a run keeps it."""
    root = tmp_path_factory.mktemp("table")
    table, _ = extract(dataset, HashText(HashTextConfig()), "text", root / "store", progress=False)
    box = Box("features.text", "0" * 64, root, lambda box: None)
    table.save(box.folder)
    return box


def split_of(dataset: Dataset, method: str) -> Split:
    # the listed catalogue does not depend on which items the rows of later parts name; users have six rows, so
    # their last fractions are sixths
    cuts = (0.6, 0.8) if method == "user_ratio" else ()
    return make_split(dataset, SplitConfig(method=method, cuts=cuts, catalogue="listed"))


def with_other_items(dataset: Dataset, split: Split, after: int, folder: Path) -> Split:
    """The same split of a Dataset whose rows in the parts after `after` name random items of the catalogue."""
    rng = np.random.default_rng(7)
    later_N = split.part_N > after
    item_N = np.where(later_N, rng.integers(split.num_items, size=len(later_N)), split.log.item_N)
    assert (item_N != split.log.item_N).sum() > later_N.sum() / 2
    if split.config.method == "item_cold":
        # here the parts follow from the items' identity: other items in the Dataset would be other parts, so
        # the rows are replaced after the cut
        return replace(split, log=replace(split.log, item_N=item_N))
    # the log is sorted by user and time, and no user of the planted data does two things at once
    rows = dataset.interactions.collect().sort("user_id", "timestamp")
    rows = rows.with_columns(split.item_ids.gather(item_N).alias("item_id"))
    other = make_split(Dataset.from_frames(folder / "other", rows, dataset.items), split.config)
    np.testing.assert_array_equal(other.part_N, split.part_N)
    np.testing.assert_array_equal(other.log.item_N, item_N)
    return other


def fitted_bytes(split: Split, case: Case, table_box: Box, fit_parts: tuple[str, ...]) -> dict:
    """State, counts and tables after fitting as a run does, at a fixed number of epochs (validation may choose
    among epochs: that is what it is for)."""
    config = TrainConfig(epochs=2, fit_parts=fit_parts)
    job = fitting.Job(case.name, case.name, case.config, config, 0, "cpu")
    tables = {name: table_box for name in fitting.tables_of(case.config)}
    ctx = fitting.context(split, job, tables, validates=False)
    group_U = split.user_ids.to_numpy() % 4 + 1
    about = Fields({"group": Categorical(group_U, np.ones(len(group_U), bool), 5)})
    ctx = replace(ctx, tables=ctx.tables | {("user", "about"): about})
    model = case.fresh
    if model.uses_graph:
        ctx = replace(ctx, graph=graph_of(ctx.train, ctx.tables))
    fit(model, ctx, config)
    state = state_bytes(model)
    state["counts"] = ctx.train.item_counts().tobytes()
    for name in tables:
        table = ctx.tables["item", name]
        state[f"table {name}"] = table.values_EF.tobytes(), table.present_E.tobytes()
    return state


def cases_by_method() -> Iterator:
    """Every model with one method, every method with some models: a split hands all models the same kind of log. Each
    with each takes minutes: pytest -m slow."""
    for number, case in enumerate(cases()):
        for place, method in enumerate(METHODS):
            marks = () if place == number % len(METHODS) else pytest.mark.slow
            yield pytest.param(method, case, marks=marks, id=f"{method}-{case.name}")


@pytest.mark.parametrize(("method", "case"), cases_by_method())
def test_nothing_of_later_parts_reaches_fitting(method, case, dataset, table_box, tmp_path):
    split = split_of(dataset, method)
    other = with_other_items(dataset, split, 0, tmp_path)
    original = fitted_bytes(split, case, table_box, ("train",))
    assert fitted_bytes(other, case, table_box, ("train",)) == original
    # the control: a fit that includes valid is another one, so the comparison above can fail
    original = fitted_bytes(split, case, table_box, ("train", "valid"))
    assert fitted_bytes(other, case, table_box, ("train", "valid")) != original


def graph_bytes(split: Split, dataset: Dataset, table_box: Box, parts: tuple[str, ...], root: Path) -> bytes:
    """The arrays of the graph box that a run makes of these parts."""
    config = GraphConfig(
        knn=NearestConfig(neighbours=4),
        co_occurrence=CoOccurrenceConfig(neighbours=4, least=1),
        pairs=PairsConfig(),
    )
    data, split_box, box = (
        Box(name, "0" * 64, root, lambda box: None) for name in ("data", "split", "graph")
    )
    Dataset.from_frames(data.folder, dataset.interactions, dataset.items, pairs=PAIRS)
    split.save(split_box.folder)
    graphs.make_graph(box, config, parts, data, split_box, {"text": table_box})
    return (box.folder / "graph.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_later_parts_reaches_the_graph(method, dataset, table_box, tmp_path):
    split = split_of(dataset, method)
    other = with_other_items(dataset, split, 0, tmp_path)
    made = [
        graph_bytes(one, dataset, table_box, parts, tmp_path / f"{name}_{len(parts)}")
        for parts in (("train",), ("train", "valid"))
        for name, one in (("split", split), ("other", other))
    ]
    assert made[0] == made[1]
    assert made[2] != made[3]


@pytest.mark.parametrize("queries", ["user", "event"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_test_reaches_validation(method, queries, dataset, tmp_path):
    split = split_of(dataset, method)
    split = replace(split, config=split.config.model_copy(update={"queries": queries}))
    other = with_other_items(dataset, split, split.config.parts.index("valid"), tmp_path)
    asked, asked_other = split.queries("valid"), other.queries("valid")
    np.testing.assert_array_equal(asked.query_id_Q, asked_other.query_id_Q)
    np.testing.assert_array_equal(asked.queries.user_Q, asked_other.queries.user_Q)
    np.testing.assert_array_equal(asked.queries.at_Q, asked_other.queries.at_Q)
    for name in ("history", "targets"):
        ours, theirs = (
            getattr(one.queries if name == "history" else one, name) for one in (asked, asked_other)
        )
        np.testing.assert_array_equal(ours.lengths, theirs.lengths)
        np.testing.assert_array_equal(ours.flat()[1], theirs.flat()[1])
    test, test_other = split.queries("test"), other.queries("test")
    assert not np.array_equal(test.targets.flat()[1], test_other.targets.flat()[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_tests_on_train_and_valid_histories(method, dataset):
    """At test the input history is all that came before, valid included; nothing of the test part is in it."""
    split = split_of(dataset, method)
    asked = split.queries("test")
    known = split.fit_log([part for part in split.config.parts if part != "test"])
    for row, user in enumerate(asked.queries.user_Q):
        np.testing.assert_array_equal(asked.queries.history[row], known.sequences[user])


def test_methods_and_models_are_all_there():
    assert set(METHODS) == set(SplitConfig.model_fields["method"].annotation.__args__)
    assert {case.name.partition("[")[0] for case in cases()} == set(MODELS)


def test_the_planted_rows_are_unique_in_time(dataset):
    rows = dataset.interactions.select(pl.struct("user_id", "timestamp").is_duplicated().any())
    assert not rows.collect().item()
