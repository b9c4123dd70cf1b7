"""The neighbour encoder as a recommender: its modes, what training leaves out, items that no fit has seen."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from contracts.worlds import graph_of, world
from pydantic import ValidationError
from torch_geometric.nn import SimpleConv

from recsys.errors import ModelError
from recsys.models.baselines.lightgcn import LightGCN, LightGCNConfig
from recsys.models.graph.hetero import hetero_data
from recsys.models.graph.mmgl import MMGL, MMGLConfig
from recsys.neighbour_encoding import Ego, NeighbourEncoding
from recsys.schema import Dense, Queries
from recsys.train import fit
from recsys.train_config import TrainConfig

SMALL = {
    "widths": (8,),
    "tables": ("text", "about"),
    "fanout": 4,
    "tokens": 2,
    "batch_size": 64,
    "negatives": 8,
}
CERTAIN = {"id_dropout": 0.0, "edge_dropout": 0.0, "modality_dropout": 0.0}
KINDS = list(itertools.product(("pool", "sa", "ca", "sa_hop"), ("rank", "laplacian", "gnn", "hop", "none")))


def set_up(seed: int = 3, **settings) -> MMGL:
    """As before the first step, but with random weights: at gates of zero there would be nothing to see."""
    model = MMGL(MMGLConfig(**SMALL | settings))
    torch.manual_seed(seed)
    model.setup(world("hidden").context())
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if "norm" not in name:
                value.copy_(torch.randn(value.shape) * 0.4)
    return model


def rows_of(model: MMGL, items_N: np.ndarray) -> dict[str, Dense]:
    return {name: t.take(items_N) for name, t in model.tables.items()}


def encode(model: MMGL, items_N, *, training: bool = False, seed: int = 0) -> torch.Tensor:
    model.module.train(training)
    torch.manual_seed(seed)
    return model.module.encoded(torch.as_tensor(items_N))


@pytest.mark.parametrize(("encoder", "position"), KINDS)
def test_the_numpy_form_is_the_module(encoder, position):
    """Given the same neighbours, from raw rows."""
    model = set_up(encoder=encoder, position=position, id_vectors=False, blocks=2)
    encoding, around = model.serving_form().encoding, model.module.neighbours
    ego = Ego(*(value.numpy()[model.trained] for value in (around.nodes_IN, around.weights_IN)))
    assert (ego.nodes_BN >= len(model.module.trained_I)).any() and (ego.nodes_BN == -1).any()
    found = encoding.encoded(rows_of(model, model.trained), ego)
    with torch.inference_mode():
        expected = encode(model, model.trained).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = NeighbourEncoding.of(encoding.facts(), encoding.arrays())
    np.testing.assert_array_equal(again.encoded(rows_of(model, model.trained), ego), found)
    np.testing.assert_array_equal(
        again.cut(4).vectors(rows_of(model, model.cold)), model.vectors.items_ID[model.cold, :4]
    )


@pytest.mark.parametrize("encoder", ["pool", "sa", "ca", "sa_hop"])
def test_without_relations_a_new_item_is_its_own_content(encoder, monkeypatch):
    monkeypatch.setattr("recsys.neighbour_encoding._BLOCK", 5)  # several blocks
    model = set_up(encoder=encoder, relations=(), id_vectors=False)
    with torch.inference_mode():
        expected = encode(model, model.trained).numpy()
    np.testing.assert_allclose(model.encode_items(rows_of(model, model.trained)), expected, atol=1e-5)
    assert model.encode_items(rows_of(model, model.trained[:0])).shape == (0, 8)
    model.module.train()
    assert torch.isfinite(model.module(next(iter(model.batches(0))))[0])


def test_a_new_item_finds_what_resembles_it_and_its_values():
    model = set_up()
    encoding = model.serving_form().encoding
    names = [relation["name"] for relation in encoding.settings["relations"]]
    assert names == ["knn.text", "co_occurrence", "values.about.group", "values.about.groups"]
    text, trained = model.tables["text"], model.trained
    twins = trained[text.present_E[trained]][:5]
    ego = encoding.neighbours(rows_of(model, twins))
    found = ego.nodes_BN.reshape(5, 4, 4)
    np.testing.assert_array_equal(
        found[:, 0, 0], twins
    )  # nobody is more like it than an item of the same text
    centred = text.values_EF - text.values_EF[trained[text.present_E[trained]]].mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    for row, item in enumerate(twins):
        cosine_T = np.where(text.present_E[trained], unit[trained] @ unit[item], -1)
        np.testing.assert_allclose(ego.weights_BN[row, :4], np.sort(cosine_T)[::-1][:4], atol=1e-6)
    assert (found[:, 1] == -1).all()  # no user has taken it
    own = model.module.neighbours.nodes_IN.numpy().reshape(-1, 4, 4)[twins]
    np.testing.assert_array_equal(
        found[:, 2:], own[:, 2:]
    )  # values are those that the graph has for its twin
    np.testing.assert_allclose(
        ego.weights_BN.reshape(5, 4, 4)[:, 2:],
        model.module.neighbours.weights_IN.numpy().reshape(-1, 4, 4)[twins, 2:],
    )


def test_without_what_new_items_lack_a_trained_item_is_encoded_as_they_are():
    """Once its own vector and its neighbours by behaviour are left out; so cold items are what training has seen."""
    nearly = 1 - 1e-7
    model = set_up(
        relations=("values.about.group", "co_occurrence"),
        edge_dropout=nearly,
        id_dropout=nearly,
        modality_dropout=0.0,
    )
    new = model.encode_items(rows_of(model, model.trained))
    dropped = encode(model, model.trained, training=True).detach().numpy()
    np.testing.assert_allclose(dropped, new, atol=1e-5)
    kept = encode(model, model.trained).detach().numpy()
    assert (np.abs(kept - new).max(axis=1) > 1e-3).all()


def test_content_is_left_out_of_training_but_never_all_of_it():
    model = set_up(modality_dropout=0.6, relations=())
    items_B = torch.arange(len(model.module.trained_I))
    rows = model.module.rows(items_B)
    model.module.train()
    present = {name: found for name, (_, found) in rows.items()}
    both = present["text"] & present["about"]
    gone = torch.zeros(len(items_B))
    for _ in range(200):
        thinned = model.module._thinned(rows)
        left = [found for _, found in thinned.values()]
        assert (
            not (left[0] & ~present["text"]).any()
            and (left[0] | left[1]).eq(present["text"] | present["about"]).all()
        )
        gone += both & ~left[0]
    # the first goes where it draws below the share and not the larger of the two: .6 - .6^2 / 2
    assert abs(gone[both].mean() / 200 - 0.42) < 0.02
    model.module.eval()
    assert model.module._thinned(rows) is rows


def test_sampled_with_room_for_all_is_full():
    """Loss and gradients, where nothing is left out and every neighbour fits."""
    losses = {}
    for mode in ("full", "sampled"):
        model = set_up(mode=mode, fanout=40, **CERTAIN)
        model.module.train()
        torch.manual_seed(5)
        loss, _ = model.module(next(iter(model.batches(0))))
        loss.backward()
        losses[mode] = loss, {name: value.grad for name, value in model.module.named_parameters()}
    torch.testing.assert_close(losses["sampled"][0], losses["full"][0])
    for name, gradient in losses["full"][1].items():
        assert gradient is not None, name
        torch.testing.assert_close(losses["sampled"][1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_sample_draws_other_neighbours_every_time():
    model = set_up(mode="sampled", fanout=2, encoder="sa_hop", position="laplacian", **CERTAIN)
    one, other = (encode(model, model.trained, training=True, seed=seed) for seed in (0, 1))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(encode(model, model.trained), encode(model, model.trained, seed=1))


def test_the_cache_is_refreshed_every_few_steps_and_learns_nothing_between():
    model = set_up(mode="cached", refresh=3, **CERTAIN)
    module, batch = model.module, next(iter(model.batches(0)))
    module.train()
    with torch.no_grad():
        fresh = module.encoder.content(module.rows(torch.arange(len(module.trained_I))))
    seen = []
    for _ in range(4):
        module(batch)
        seen.append(module.cache_ID.clone())
        with torch.no_grad():
            module.encoder.own_gates.mul_(2)  # content doubles
    torch.testing.assert_close(seen[0], fresh)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    present = torch.from_numpy(model.tables["text"].present_E | model.tables["about"].present_E)
    torch.testing.assert_close(seen[3][present], 8 * fresh[present])
    assert {"cache_ID", "steps"} <= module.state_dict().keys()  # a checkpoint goes on from them
    # what neighbours give is held constant: an item without a text teaches the text's map nothing
    full = set_up(mode="full", **CERTAIN)
    bare = [item for item in model.trained if not model.tables["text"].present_E[item]]
    for one, learns in ((module, False), (full.module, True)):
        one.train()
        one.zero_grad()
        one.encoded(torch.as_tensor(np.array(bare)))[:, 0].sum().backward()
        assert one.encoder.item_map.weight.grad.abs().sum() > 1e-3
        assert (one.encoder.maps["text"].weight.grad.abs().sum() > 1e-3) == learns
    assert full.module.state_dict().keys() == module.state_dict().keys() - {"cache_ID", "steps"}


def test_propagated_vectors_are_lightgcn_on_the_encoded():
    """With the same first layer; an item without an edge keeps a third of its own at two layers."""
    model, ctx = set_up(head="propagation", layers=2), world("hidden").context()
    other = LightGCN(LightGCNConfig(widths=(8,), layers=2))
    other.setup(ctx)
    with torch.no_grad():
        encoded = encode(model, model.trained)
        other.module.users.copy_(model.module.users)
        other.module.items[model.trained] = encoded
        model.module.eval()
        for ours, theirs in zip(model.module.vectors(), other.module.vectors(), strict=True):
            torch.testing.assert_close(ours, theirs)
    plain = set_up(head="dot")
    plain.module.load_state_dict(model.module.state_dict())
    rows = rows_of(model, model.cold)
    np.testing.assert_allclose(model.encode_items(rows), plain.encode_items(rows) / 3, atol=1e-6)


def test_relations_are_chosen_by_name():
    ctx = world("hidden").context()
    alone = set_up(relations=(), encoder="pool")
    module, items_B = alone.module, torch.as_tensor(alone.trained)
    with torch.no_grad():
        own = module.encoder.content(module.rows(items_B)) + module.gate * module.items[items_B]
        torch.testing.assert_close(encode(alone, alone.trained), module.norm(own))
    model = MMGL(MMGLConfig(**SMALL | {"relations": ("knn.txt",)}))
    with pytest.raises(ModelError, match=r"did you mean 'knn\.text'"):
        model.setup(ctx)
    model = MMGL(MMGLConfig(**SMALL | {"tables": ("text",), "relations": ("values.about.group",)}))
    with pytest.raises(ModelError, match="add 'about'"):
        model.setup(ctx)
    with pytest.raises(ModelError, match=r"add \[graph\]"):
        model.setup(dataclasses.replace(ctx, graph=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (4, 8)}, "one width"),
        ({"heads": 3}, "heads = 3 does not divide the width 64"),
        ({"head": "propagation", "users": "history"}, "makes users of their items already"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValidationError, match=message):
        MMGLConfig(**settings)


def test_served_new_items_are_ranked_by_their_content(tmp_path):
    """Through a bundle and the engine, which know nothing of the model."""
    from hash_text import HashText, HashTextConfig
    from two_stage_case import GROUPS, WORDS, content_of, planted_days

    from recsys.bundle_writing import write_bundle
    from recsys.features.extract import extract
    from recsys.models.base import FitContext
    from recsys.serving.answers import Query
    from recsys.serving.content import NewItem
    from recsys.serving.engine import RankingEngine
    from recsys.splits import SplitConfig, make_split

    dataset = planted_days(tmp_path / "data")
    split = make_split(dataset, SplitConfig(method="staged", queries="event", catalogue="listed"))
    table, _ = extract(dataset, HashText(HashTextConfig()), "text", tmp_path / "store", progress=False)
    rows = table.align(split.item_ids)
    tables = {("item", "text"): rows}
    log = split.fit_log()
    model = MMGL(MMGLConfig(tables=("text",), widths=(16,), batch_size=256))
    fit(model, FitContext(log, tables, graph=graph_of(log, tables)), TrainConfig(epochs=10, lr=2e-2))
    content = content_of(dataset, split, {"fmrlrec": model}, rows, None)
    bundle = write_bundle(tmp_path / "bundle", content)
    np.testing.assert_allclose(
        bundle.form.encoding.vectors({"text": rows}), model.encode_items({"text": rows}), atol=1e-6
    )
    engine = RankingEngine(bundle)
    before = [item.score for item in engine.rank(Query(user_id=0), [1, 20, 30]).items]
    new = [NewItem(1000 + group, title=WORDS[group]) for group in range(GROUPS)]
    assert not engine.add_items(new)
    for group in range(GROUPS):
        ranked = engine.rank(Query(user_id=split.user_ids[group]), [item.item_id for item in new])
        assert ranked.items[0].item_id == 1000 + group and ranked.fallback is None
    assert [item.score for item in engine.rank(Query(user_id=0), [1, 20, 30]).items] == before


def test_users_ask_with_their_histories_without_the_item_asked_for():
    """Against a loop over pairs; and scores of known and unknown users are those of the module, over one scale."""
    model, ctx = set_up(users="history", **CERTAIN, user_dropout=0.0), world("hidden").context()
    module, pairs = model.module, {tuple(pair) for pair in model.pairs_N2.tolist()}
    batch = next(iter(model.batches(0)))
    with torch.no_grad():
        module.pull.fill_(-1.0)
        module.eval()
        items_ID, bias_I = module.all_items(), module.bias()
        asking_PD = module._asking(batch, items_ID)
        for row, (user, item) in enumerate(
            zip(batch["user_P"].tolist(), batch["item_P"].tolist(), strict=True)
        ):
            others = [other for owner, other in pairs if owner == user and other != item]
            mean_D = items_ID[others].mean(0) if others else torch.zeros(8)
            torch.testing.assert_close(
                asking_PD[row], module.users[user] + np.exp(-1) * mean_D, atol=1e-5, rtol=1e-4
            )
        user = int(ctx.train.user_N[0])
        own = sorted({other for owner, other in pairs if owner == user})
        mean_D = items_ID[own].mean(0)
        known = (module.users[user] + np.exp(-1) * mean_D) @ items_ID.T + bias_I
        unknown = np.exp(-1) * mean_D @ items_ID.T + bias_I
    found = model.score(Queries.of([own, own], users=[user, -1]))[:, model.trained]
    np.testing.assert_allclose(found[0], known.numpy()[model.trained] * np.e, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], unknown.numpy()[model.trained] * np.e, rtol=1e-4, atol=1e-4)
    module.train()
    module.zero_grad()
    module(batch)[0].backward()
    assert module.pull.grad.abs() > 0 and module.users.grad.abs().sum() > 0


def test_pooled_neighbours_are_what_torch_geometric_passes_on():
    """Its own operator on the graph as HeteroData: weighted sums over the sums of weights."""
    names = ("knn.text", "co_occurrence", "values.about.groups")
    model = set_up(encoder="pool", position="none", tokens=1, fanout=20, relations=names)
    module, graph = model.module, world("hidden").context().graph
    encoder, data, items = module.encoder, hetero_data(graph), graph.num_items
    rows = module.rows(torch.arange(items))
    with torch.no_grad():
        content_ID = encoder.content(rows)
        total_ID = content_ID + module.gate * module.trained_I[:, None] * module.items
        for place, name in enumerate(names):
            kind = graph.relations[name].kind
            x_ND = encoder.item_map(content_ID) if kind == "item" else encoder.values
            store, conv = data[kind, name, "item"], SimpleConv(aggr="sum")
            sums_ID, weights_I1 = (
                conv((x, x.new_zeros(items, x.shape[1])), store.edge_index, store.edge_weight)
                for x in (x_ND, torch.ones(len(x_ND), 1))
            )
            mean_ID = sums_ID / weights_I1.clamp(min=1e-6) + encoder.relations[place, 0]
            total_ID += encoder.relation_gates[place].tanh() * mean_ID * (weights_I1 > 0)
        expected = module.norm(total_ID)[model.trained]
        torch.testing.assert_close(encode(model, model.trained), expected, atol=1e-5, rtol=1e-5)


def test_biases_start_from_the_counts():
    model = MMGL(MMGLConfig(**SMALL))
    ctx = world("hidden").context()
    model.setup(ctx)
    counts_I = ctx.train.item_counts()
    expected_I = np.where(counts_I > 0, np.log(np.maximum(counts_I, 1)), 0)
    np.testing.assert_allclose(model.vectors.bias_I, expected_I, rtol=1e-6)
