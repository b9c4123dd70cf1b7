"""Items that no preset was trained on: their vectors from content, stored, and told apart from missing content."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_graph import (
    COLD,
    ITEMS,
    REFERENCES,
    content,
    context,
    cosine_graph,
    dense_world,
    ids,
    lattice_graph,
    plain_graph,
    row_mean,
)  # fmt: skip
from hash_text import HashText, HashTextConfig
from test_graph_presets import preset
from two_stage_case import GROUPS, WORDS, content_of, planted_days

from recsys.bundle_writing import write_bundle
from recsys.config import parse
from recsys.errors import ConfigError, ModelError
from recsys.features.extract import extract
from recsys.models.base import FitContext, Model
from recsys.models.graph.freedom import FREEDOM, FREEDOMConfig
from recsys.models.graph.pgl import PGL, PGLConfig
from recsys.models.graph.vbpr import VBPRConfig
from recsys.registry import MODELS, load_class
from recsys.schema import Dense, Queries
from recsys.serving.answers import Query
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine
from recsys.splits import SplitConfig, make_split
from recsys.stored_form import form_arrays, form_facts, form_from
from recsys.train import fit
from recsys.train_config import TrainConfig


def rows_of(indices: list[int]) -> dict[str, Dense]:
    tables = {name: context().item_table(name) for name in ("text", "image")}
    return {name: t.take(indices) for name, t in tables.items()}


def reference(name: str, model) -> torch.Tensor:
    """The cold item's vector, from dense matrices in which it has a row and no column."""
    module, world, config = model.module, dense_world(), model.config
    own = content(module, world)
    if name == "vbpr":
        return torch.cat([torch.zeros(3), own["text"][COLD] + own["image"][COLD]])
    if name == "freedom":
        return (plain_graph(world, {"text": 0.9, "image": 0.1}, cold=True) @ ids(module))[COLD]
    if name == "lattice":
        return F.normalize(lattice_graph(module, world, config, cold=True) @ ids(module), dim=1)[COLD]
    if name == "pgl":
        x = torch.cat([F.normalize(part, dim=1) for part in own.values()], dim=1)
        near = plain_graph(world, {"text": 0.5, "image": 0.5}, cold=True) @ x
        return x[COLD] / (config.layers + 1) + near[COLD]
    mixed = row_mean(sum(cosine_graph(world, table, cold=True) for table in world.x))
    return mixed[COLD] @ module.vectors()[1]


@pytest.mark.parametrize("name", REFERENCES)
def test_a_new_item_is_a_node_without_users(name):
    model = preset(name)
    encoded = model.encode_items(rows_of([COLD]))
    with torch.no_grad():
        wanted = reference(name, model)
    np.testing.assert_allclose(encoded[0], wanted.numpy(), atol=1e-5)
    # in the catalogue, where it was never trained on, it is the same item
    np.testing.assert_allclose(model.item_vectors()[COLD], encoded[0], atol=1e-6)
    trained = np.arange(ITEMS) != COLD
    with torch.no_grad():
        np.testing.assert_array_equal(
            model.item_vectors()[trained], model.module.vectors()[1].numpy()[trained]
        )


@pytest.mark.parametrize("name", REFERENCES)
def test_each_table_alone_and_none_at_all(name):
    """A new item is encoded from whatever it has; what stands in its absent rows says nothing."""
    model, rows = preset(name), rows_of([COLD] * 4)
    present = {"text": np.array([1, 1, 0, 0], bool), "image": np.array([1, 0, 1, 0], bool)}
    cut = {table: Dense(row.values_EF.copy(), present[table]) for table, row in rows.items()}
    vectors = model.encode_items(cut)
    assert np.isfinite(vectors).all() and len(np.unique(vectors.round(6), axis=0)) == 4
    for table, row in cut.items():
        row.values_EF[~present[table]] = np.nan
    np.testing.assert_array_equal(model.encode_items(cut), vectors)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_stored_form_encodes_as_the_model_does(name):
    model, rows = preset(name), rows_of([COLD, 4, 0, 2])
    form = model.serving_form()
    facts = json.loads(json.dumps(form_facts(form)))
    opened = form_from(facts, form_arrays(form), form.item_vectors_ID, form.widths)
    np.testing.assert_allclose(opened.encoding.vectors(rows), model.encode_items(rows), atol=1e-6)
    loaded = type(model).from_state(model.config, model.state())
    np.testing.assert_allclose(loaded.encode_items(rows), model.encode_items(rows), atol=1e-6)


def test_a_missing_modality_is_neither_zero_nor_the_mean():
    """An item without text is nobody's neighbour by text, and its learnt vector stands for it in the maps."""
    model = preset("pgl")
    module = model.module
    for name, table in module.known.items():
        source, target, _ = table.nearest(3, mutual=False, in_degree=None)
        absent = np.flatnonzero(~table.present_I)
        assert len(absent) and not np.isin(source, absent).any() and not np.isin(target, absent).any()
        got = module.content()[name]
        for item in absent:
            torch.testing.assert_close(got[item], module.content.missing[name])
            assert got[item].any()


def test_modality_dropout_leaves_something_of_everything():
    model = preset("mgcn", modality_dropout=0.5)
    maps = model.module.content.train()
    torch.manual_seed(0)
    stated = torch.stack([maps.get_buffer(f"present_{name}") for name in ("text", "image")])
    masks = torch.stack([torch.stack(list(maps.present().values())) for _ in range(600)])
    assert not (masks & ~stated).any(), "what is missing came back"
    has = stated.any(0)
    assert masks.any(1)[:, has].all(), "an item lost all that it has"
    both = stated.all(0)
    lost = 1 - masks[:, :, both].float().mean().item()
    assert abs(lost - (0.5 - 0.25 / 2)) < 0.03, "a half each, but where both fall one stays"
    single = stated.sum(0) == 1
    assert masks.any(1)[:, single].all()
    assert torch.equal(torch.stack(list(maps.eval().present().values())), stated)


def test_learnt_features_score_no_cold_items():
    """The published transductive form: features move with training, and new ones would say nothing."""
    model = PGL(PGLConfig(tables=("text", "image"), widths=(6,), neighbours=2, train_features=True))
    frozen = PGL(PGLConfig(tables=("text", "image"), widths=(6,), neighbours=2))
    assert not model.scores_cold_items and frozen.scores_cold_items
    for one in (model, frozen):
        fit(one, context(), TrainConfig(epochs=2, lr=0.1))
    first, moved = model.module.known["text"].rows_IK, model.module.content.rows_of("text").detach().numpy()
    assert np.abs(moved - first).max() > 1e-3
    np.testing.assert_array_equal(frozen.module.content.rows_of("text").numpy(), first)
    assert model.serving_form().encoding is None and frozen.serving_form().encoding is not None
    with pytest.raises(ModelError, match="learnt features"):
        model.encode_items(rows_of([COLD]))
    loaded = PGL.from_state(model.config, model.state())
    asked = Queries.of([[1], []], users=[0, -1])
    np.testing.assert_array_equal(loaded.score(asked), model.score(asked))


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="one width"):
        parse(VBPRConfig, {"widths": [8, 16]}, where="test")
    with pytest.raises(ConfigError, match="tables"):
        parse(VBPRConfig, {"tables": []}, where="test")
    with pytest.raises(ConfigError, match="table_weights"):
        parse(FREEDOMConfig, {"tables": ["text"], "table_weights": [0.9, 0.1]}, where="test")


def test_permuted_content_is_another_model():
    """The graph of items follows the content, not the rows."""
    ctx, model = context(), FREEDOM(FREEDOMConfig(tables=("text",), widths=(6,), neighbours=2))
    table = ctx.item_table("text")
    order = np.roll(np.arange(ITEMS), 3)
    dealt = replace(ctx, tables={("item", "text"): table.take(order)})
    graphs = []
    for one in (ctx, dealt):
        model.setup(one)
        graphs.append(model.module.similar.matrix_NM.to_dense())
    assert not torch.equal(*graphs)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Days of four groups, each with a word of its own for all its items."""
    folder = tmp_path_factory.mktemp("staged")
    dataset = planted_days(folder / "data")
    split = make_split(dataset, SplitConfig(method="staged", queries="event", catalogue="listed"))
    table, _ = extract(dataset, HashText(HashTextConfig()), "text", folder / "store", progress=False)
    return dataset, split, table.align(split.item_ids)


@pytest.mark.parametrize("name", ["lattice", "pgl"])
def test_an_added_item_is_ranked_by_its_content(name, staged, tmp_path):
    """Through a bundle and the engine, from its title alone; items that were there keep their scores."""
    dataset, split, rows = staged
    kind = load_class(name, MODELS, Model)
    model = kind(kind.Config(tables=("text",), widths=(16,), batch_size=256))
    fit(model, FitContext(split.fit_log(), {("item", "text"): rows}), TrainConfig(epochs=6, lr=3e-2))
    bundle = write_bundle(tmp_path / "bundle", content_of(dataset, split, {"fmrlrec": model}, rows, None))
    engine = RankingEngine(bundle)
    before = [item.score for item in engine.rank(Query(user_id=0), [1, 20, 30]).items]
    new = [NewItem(1000 + group, title=WORDS[group]) for group in range(GROUPS)]
    assert not engine.add_items(new)
    for group in range(GROUPS):
        ranked = engine.rank(Query(user_id=split.user_ids[group]), [item.item_id for item in new])
        assert ranked.items[0].item_id == 1000 + group and ranked.fallback is None
    assert [item.score for item in engine.rank(Query(user_id=0), [1, 20, 30]).items] == before


@pytest.mark.parametrize("what", ["absent", "zeros"])
@pytest.mark.parametrize("name", REFERENCES)
def test_content_that_tells_nothing_apart(name, what):
    """No item has any, or all have the same: no graph of items, and a model all the same."""
    kind, tables = load_class(name, MODELS, Model), {}
    for key, table in context().tables.items():
        values_EF = np.full_like(table.values_EF, np.nan if what == "absent" else 0)
        tables[key] = Dense(values_EF, np.full(ITEMS, what == "zeros"))
    model = kind(kind.Config(tables=("text", "image"), widths=(6,), modality_dropout=0.3))
    fit(model, replace(context(), tables=tables), TrainConfig(epochs=1))
    encoded = model.encode_items({key[1]: table for key, table in tables.items()})
    assert np.isfinite(model.item_vectors()).all()
    np.testing.assert_array_equal(encoded, np.repeat(encoded[:1], ITEMS, axis=0))
