"""The graph around items: relations against plain loops, torch-geometric's view of it, and the box it lies in."""

from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
import torch
from hash_text import HashText, HashTextConfig
from test_baselines import context
from torch_geometric.nn import SimpleConv

from recsys import graphs
from recsys.boxes import Box
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, ModelError
from recsys.features.extract import extract
from recsys.fields import Categorical, Fields, MultiValued, Numeric
from recsys.graph_config import CoOccurrenceConfig, GraphConfig, NearestConfig, PairsConfig, ValuesConfig
from recsys.item_graph import ItemGraph, Relation
from recsys.models.graph import build
from recsys.models.graph.build import build_graph
from recsys.models.graph.hetero import hetero_data
from recsys.schema import Dense, Ragged
from recsys.splits import Split, SplitConfig, make_split


def edges(relation: Relation) -> dict[tuple[int, int], float]:
    places = zip(relation.source_E.tolist(), relation.indices_E.tolist(), strict=True)
    return dict(zip(places, relation.weight_E.tolist(), strict=True))


def random_rows(seed: int, users: int = 30, items: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, items, rng.integers(1, 9)).tolist() for _ in range(users)]


@pytest.mark.parametrize("weight", ["pmi", "cosine"])
def test_co_occurrence_against_a_loop(weight, monkeypatch):
    monkeypatch.setattr(build, "_BLOCK", 5)  # several blocks
    rows = random_rows(0)
    ctx = context(rows, 14)
    config = CoOccurrenceConfig(neighbours=3, weight=weight, least=2)
    relation = build_graph(GraphConfig(co_occurrence=config), ctx.train, {}).relations["co_occurrence"]
    takers = {item: {user for user, row in enumerate(rows) if item in row} for item in range(14)}
    strength: dict[int, list[tuple[float, int]]] = {item: [] for item in range(14)}
    for one, other in combinations(range(14), 2):
        both, users = len(takers[one] & takers[other]), len(rows)
        if both < 2:
            continue
        a, b = len(takers[one]), len(takers[other])
        found = (
            both / (a * b) ** 0.5 if weight == "cosine" else log(both * users / (a * b)) / -log(both / users)
        )
        if found > 0:
            strength[one].append((-found, other))
            strength[other].append((-found, one))
    expected = {
        (item, other): -minus for item, found in strength.items() for minus, other in sorted(found)[:3]
    }
    assert edges(relation).keys() == expected.keys()
    assert edges(relation) == pytest.approx(expected, rel=1e-5)
    assert max(np.diff(relation.indptr_I1)) == 3


def test_what_everybody_took_tells_nothing():
    ctx = context([[0, 1], [0, 1], [0, 1]], 2)
    config = GraphConfig(co_occurrence=CoOccurrenceConfig())
    assert len(build_graph(config, ctx.train, {}).relations["co_occurrence"]) == 0


def table(seed: int, items: int) -> Dense:
    rng = np.random.default_rng(seed)
    values_EF = rng.normal(size=(items, 6)).astype(np.float32)
    present_E = rng.random(items) > 0.2
    values_EF[~present_E] = np.nan
    return Dense(values_EF, present_E)


def test_resemblance_joins_trained_items_that_have_content_and_are_alike():
    ctx, text = context(random_rows(1), 16), table(1, 16)  # items 12 to 15 are never taken
    config = GraphConfig(knn=NearestConfig(neighbours=4, mutual=False, in_degree=None))
    relation = build_graph(config, ctx.train, {"text": text}).relations["knn.text"]
    able = {item for item in range(12) if text.present_E[item]}
    centred = text.values_EF - text.values_EF[sorted(able)].mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for item in range(16):
        own = {other: weight for (source, other), weight in edges(relation).items() if source == item}
        near = sorted((other for other in able - {item}), key=lambda other: -(unit[item] @ unit[other]))[:4]
        expected = {other for other in near if unit[item] @ unit[other] > 0} if item in able else set()
        assert own.keys() == expected
        assert all(
            weight == pytest.approx(unit[item] @ unit[other], rel=1e-5) for other, weight in own.items()
        )


def about(items: int) -> Fields:
    many = MultiValued(
        Ragged.of([[1, 2] if item % 2 else [1] for item in range(items)]), np.ones(items, bool), 4
    )
    year = Numeric(np.zeros(items, np.float32), np.ones(items, bool))
    one = Categorical(np.arange(items) % 3, np.arange(items) != 4, 3)
    return Fields({"genres": many, "year": year, "maker": one})


def test_values_are_nodes_capped_and_weighted_by_their_degree():
    ctx = context([[0, 1, 2, 3, 4, 5]], 8)
    config = GraphConfig(values=ValuesConfig(tables=("about",), max_degree=4))
    found = build_graph(config, ctx.train, {"about": about(8)}).relations
    assert set(found) == {"values.about.genres", "values.about.maker"}  # numbers make no nodes
    genres, maker = found["values.about.genres"], found["values.about.maker"]
    assert (genres.kind, genres.size) == ("about.genres", 4)
    kept = edges(genres)
    # value 1 is everybody's and keeps four of six edges; value 2 that of items 1, 3, 5; items 6 and 7 are not trained
    assert sum(value == 1 for _, value in kept) == 4 and {item for item, value in kept if value == 2} == {
        1,
        3,
        5,
    }
    assert all(
        weight == pytest.approx(1 / log(1 + (4 if value == 1 else 3))) for (_, value), weight in kept.items()
    )
    assert edges(maker).keys() == {(1, 1), (2, 2), (5, 2)}  # code 0 is no value, item 4 has none
    with pytest.raises(ModelError, match="typed fields"):
        build_graph(GraphConfig(values=ValuesConfig(tables=("text",))), ctx.train, {"text": table(0, 8)})


def test_given_pairs_by_rank():
    ctx = context([[0, 1, 2, 3]], 6)
    pairs_3N = np.array([[0, 0, 0, 0, 1, 2, 5], [1, 2, 3, 1, 5, 2, 0], [3, 2, 1, 5, 1, 1, 1]])
    config = GraphConfig(pairs=PairsConfig(neighbours=2))
    found = edges(build_graph(config, ctx.train, {}, pairs_3N).relations["pairs"])
    # 0-1 twice counts by its better rank and comes third; 5 is not trained; an item is no neighbour of its own
    assert found == pytest.approx({(0, 3): 1.0, (0, 2): 0.5})
    with pytest.raises(ModelError, match="no pairs"):
        build_graph(config, ctx.train, {})


def whole() -> ItemGraph:
    ctx, tables = context(random_rows(2), 14), {"text": table(2, 14), "about": about(14)}
    config = GraphConfig(
        knn=NearestConfig(), co_occurrence=CoOccurrenceConfig(), values=ValuesConfig(tables=("about",))
    )
    return build_graph(config, ctx.train, tables, made_of={"split": "x", "features": {"text": "y"}})


def test_a_graph_comes_back_from_its_arrays():
    graph = whole()
    again = ItemGraph.of(graph.facts(), graph.arrays())
    assert again.facts() == graph.facts()
    for name, relation in graph.relations.items():
        assert edges(again.relations[name]) == edges(relation) and len(relation)


def test_the_strongest_of_every_row():
    relation = Relation.of_edges(
        "item",
        9,
        3,
        np.array([2, 0, 2, 2, 2]),
        np.array([7, 1, 3, 4, 2]),
        np.array([0.5, 0.1, 0.9, 0.5, 0.2]),
    )
    nodes_IN, weights_IN = relation.strongest(3)
    assert nodes_IN.tolist() == [[1, -1, -1], [-1, -1, -1], [3, 4, 7]]  # equal weights: lower index first
    np.testing.assert_allclose(weights_IN, [[0.1, 0, 0], [0, 0, 0], [0.9, 0.5, 0.5]], rtol=1e-6)


def test_torch_geometric_reads_the_same_graph():
    """Its own operator passes messages from neighbours to items, as a loop over the edges does."""
    graph = whole()
    data = hetero_data(graph)
    assert data["about.genres"].num_nodes == 4 and data["item"].num_nodes == 14
    assert len(data.edge_types) == len(graph.relations)
    for name, relation in graph.relations.items():
        store = data[relation.kind, name, "item"]
        x_ND = torch.randn(relation.size, 3, generator=torch.Generator().manual_seed(0))
        given = SimpleConv(aggr="sum")((x_ND, torch.zeros(14, 3)), store.edge_index, store.edge_weight)
        expected = torch.zeros(14, 3)
        for (item, node), weight in edges(relation).items():
            expected[item] += weight * x_ND[node]
        torch.testing.assert_close(given, expected)
    assert data.validate()


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> dict[str, Box]:
    """A Dataset with pairs, its split and text table as a run keeps them."""
    root = tmp_path_factory.mktemp("graph")
    made = {name: Box(name, "0" * 64, root, lambda box: None) for name in ("data", "split", "text", "graph")}
    source = planted.content(root / "source", users=20)
    pairs = pl.DataFrame({"item_id": [0, 1, 12], "other_id": [1, 2, 13], "kind": ["also", "also", "seldom"]})
    dataset = Dataset.from_frames(made["data"].folder, source.interactions, source.items, pairs=pairs)
    make_split(dataset, SplitConfig(catalogue="listed")).save(made["split"].folder)
    found, _ = extract(dataset, HashText(HashTextConfig()), "text", root / "store", progress=False)
    found.save(made["text"].folder)
    return made


def made_graph(boxes: dict[str, Box], **relations) -> None:
    config = GraphConfig(**relations)
    used = {"text": boxes["text"]} if config.knn else {}
    graphs.make_graph(boxes["graph"], config, ("train",), boxes["data"], boxes["split"], used)


def test_a_box_says_what_it_was_made_of_and_refuses_another_table(boxes, tmp_path: Path):
    made_graph(boxes, knn=NearestConfig(), pairs=PairsConfig(kinds=("also",)))
    split = Split.load(boxes["split"].folder)
    graph = graphs.load_graph(boxes["graph"].folder, split, {"text": boxes["text"]})
    assert graph.made_of["split"] == split.id and graph.made_of["parts"] == ["train"]
    assert edges(graph.relations["pairs"]) == {(0, 1): 1.0, (1, 2): 1.0}
    other = Box("text", "1" * 64, tmp_path, lambda box: None)
    dataset = Dataset.open(boxes["data"].folder)
    changed, _ = extract(
        dataset, HashText(HashTextConfig(width=8)), "text", tmp_path / "store", progress=False
    )
    changed.save(other.folder)
    with pytest.raises(FeatureError, match="another table 'text'"):
        graphs.load_graph(boxes["graph"].folder, split, {"text": other})
    with pytest.raises(FeatureError, match="another split"):
        graphs.load_graph(boxes["graph"].folder, make_split(dataset, SplitConfig(method="random")), {})


def test_a_kind_of_pairs_that_is_not_there_is_refused(boxes):
    with pytest.raises(ConfigError, match="'alsi'; did you mean 'also'"):
        made_graph(boxes, pairs=PairsConfig(kinds=("alsi",)))
