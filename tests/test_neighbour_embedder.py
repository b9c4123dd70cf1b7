"""The neighbour encoder as an embedder of pairs: who its neighbours are, and what it learns from them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.item_retrieval import RetrievalTask, by_cosine, per_query
from recsys.models.embedders.contract import ItemContent, PairContext
from recsys.models.embedders.neighbours import NeighbourEmbedder, NeighbourEmbedderConfig
from recsys.pairing import targets_of
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

SMALL = {"widths": (16,), "fanout": 3, "heads": 2, "batch_size": 32, "whiten": 8}


def items(count: int, seed: int = 0) -> tuple[ItemContent, np.ndarray]:
    """(content, kind): picture and text are the kind's own direction each, with noise; a fifth lacks its picture."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(5)
    kind_I = rng.integers(6, size=count)
    tables = {}
    for name in ("image", "text"):
        rows_IF = fixed.normal(size=(6, 12))[kind_I] + 0.4 * rng.normal(size=(count, 12))
        tables[name] = Dense(rows_IF.astype(np.float32), np.ones(count, bool))
    tables["image"].present_E[rng.random(count) < 0.2] = False
    return ItemContent([None] * count, tables), kind_I


def pairs_of(kind_I: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Each item of an even kind goes with items of the next kind, which look nothing like it."""
    rng = np.random.default_rng(seed)
    left_P = rng.choice(np.flatnonzero(kind_I % 2 == 0), count)
    right_P = [rng.choice(np.flatnonzero(kind_I == kind_I[left] + 1)) for left in left_P]
    return np.unique(np.stack([left_P, np.array(right_P)], 1), axis=0)


def built(count: int = 80, **config) -> tuple[NeighbourEmbedder, ItemContent, np.ndarray]:
    content, kind_I = items(count)
    model = NeighbourEmbedder(NeighbourEmbedderConfig(**SMALL | config))
    torch.manual_seed(0)
    pairs_P2 = pairs_of(kind_I, 60)
    model.setup(PairContext(pairs_P2, content))
    return model, content, pairs_P2


def slow_neighbours(model: NeighbourEmbedder, content: ItemContent, item: int, pairs_P2: np.ndarray):
    """By table, ({known item: cosine} of the nearest, {partner: sum of cosines}), found one by one."""
    known = np.unique(pairs_P2)
    found = []
    for name in model.config.tables:
        table = content.tables[name]
        if not table.present_E[item]:
            found.append(({}, {}))
            continue
        rows_IK = model.whitenings[name](table.values_EF, table.present_E).astype(np.float64)
        cosines = {
            place: rows_IK[item]
            @ rows_IK[other]
            / np.linalg.norm(rows_IK[item])
            / np.linalg.norm(rows_IK[other])
            for place, other in enumerate(known)
            if table.present_E[other]
        }
        most = sorted(cosines, key=lambda place: -cosines[place])[: model.config.fanout + 1]
        near = {place: cosines[place] for place in most if cosines[place] > 0 and known[place] != item}
        partners: dict[int, float] = {}
        for place, cosine in near.items():
            for left, right in pairs_P2:
                for one, other in ((left, right), (right, left)):
                    if one == known[place] and other != item:
                        there = int(np.searchsorted(known, other))
                        partners[there] = partners.get(there, 0.0) + cosine
        found.append((near, partners))
    return found


def test_neighbours_are_the_nearest_known_items_and_what_those_go_with():
    model, content, pairs_P2 = built()
    nodes_RN, weights_RN = model.neighbours(model._whitened(content))
    fanout = model.config.fanout
    for item in range(len(content)):
        slow = slow_neighbours(model, content, item, pairs_P2)
        for table, (near, partners) in enumerate(slow):
            for relation, wanted in enumerate((near, partners)):
                start = (2 * table + relation) * fanout
                nodes = nodes_RN[item, start : start + fanout]
                weights = weights_RN[item, start : start + fanout]
                best = sorted(wanted.values(), reverse=True)[:fanout]
                np.testing.assert_allclose(weights[nodes >= 0], best, atol=1e-5)
                for node, weight in zip(nodes[nodes >= 0], weights[nodes >= 0], strict=True):
                    assert wanted[int(node)] == pytest.approx(weight, abs=1e-5)
                assert (weights[nodes < 0] == 0).all()


def test_an_item_is_read_alike_whether_it_was_known_or_not():
    """Its own pairs, and itself, are not among what it reads."""
    content, kind_I = items(80)
    pairs_P2 = pairs_of(kind_I, 60)
    item = int(pairs_P2[0, 0])
    model = NeighbourEmbedder(NeighbourEmbedderConfig(**SMALL))
    model.setup(PairContext(pairs_P2, content))
    known = np.unique(pairs_P2)
    own = model._whitened(content)
    nodes_RN, _ = model.neighbours(own)
    assert known[nodes_RN[item][nodes_RN[item] >= 0]].tolist().count(item) == 0
    moved = {
        name: (rows[item : item + 1] + 0.05, there[item : item + 1]) for name, (rows, there) in own.items()
    }
    # a copy that differs a little is a stranger, and the item itself is its nearest
    text_N = model.neighbours(moved)[0][0, 2 * model.config.fanout :]
    assert known[text_N[0]] == item


def test_what_is_missing_has_no_neighbours():
    model, content, _ = built()
    found = model.neighbours(model._whitened(content.only("text")))[0]
    half = found.shape[1] // 2
    assert (found[:, :half] == -1).all() and (found[:, half:] >= 0).any()


def test_training_reads_what_encoding_reads_and_what_is_dropped_takes_its_neighbours_along():
    model, content, _ = built(modality_dropout=0.5)
    some = np.array([3, 1, 7, 20, 3])
    whole, rng = model.rows(content.take(some)), np.random.default_rng(0)
    drawn = model.training_rows(some, rng)
    half = whole["nodes"].shape[1] // 2
    gone = {name: whole[f"present_{name}"] & ~drawn[f"present_{name}"] for name in model.config.tables}
    assert any(one.any() for one in gone.values())
    for place, name in enumerate(model.config.tables):
        own = slice(place * half, (place + 1) * half)
        assert (drawn["nodes"][gone[name], own] == -1).all() and (
            drawn["weights"][gone[name], own] == 0
        ).all()
        assert torch.equal(drawn["nodes"][~gone[name], own], whole["nodes"][~gone[name], own])
    assert (drawn["present_image"] | drawn["present_text"]).all()


@pytest.mark.parametrize("encoder", ["pool", "sa", "ca"])
def test_order_batching_and_disk_change_nothing(encoder):
    model, content, _ = built(encoder=encoder)
    whole = model.encode(content)["joint"]
    order = np.random.default_rng(0).permutation(len(content))
    np.testing.assert_allclose(
        model.encode(content.take(order), batch_size=7)["joint"], whole[order], atol=1e-5
    )
    again = NeighbourEmbedder.from_state(model.config, model.state())
    np.testing.assert_allclose(again.encode(content)["joint"], whole, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)


def test_it_finds_partners_that_look_nothing_alike_among_unseen_items():
    content, kind_I = items(240)
    first = np.arange(120)
    model = NeighbourEmbedder(NeighbourEmbedderConfig(**SMALL))
    train_P2 = pairs_of(np.where(np.arange(240) < 120, kind_I, -1), 150)
    fit(model, PairContext(train_P2, content), TrainConfig(epochs=30, lr=3e-3))
    asked_P2 = pairs_of(np.where(np.arange(240) < 120, -1, kind_I), 100, seed=1)
    assert not np.isin(asked_P2, first).any()
    task = RetrievalTask.of(*targets_of(asked_P2), np.arange(240))
    plain = per_query(task, by_cosine(content.tables["text"].values_EF))["recall_at_10"].mean()
    learnt = per_query(task, by_cosine(model.encode(content)["joint"]))["recall_at_10"].mean()
    assert learnt > plain + 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoder": "sa_hop"}, "not sa_hop"),
        ({"position": "laplacian"}, "position rank, hop or none"),
        ({"heads": 3}, "heads = 3 does not divide"),
        ({"tables": ("text", "text")}, "once"),
    ],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(ValidationError, match=said):
        NeighbourEmbedderConfig(**SMALL | settings)
