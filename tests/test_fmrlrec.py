"""fMRLRec's parts against slow references: nesting, serving step, loss, whitening, and the use of content."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch
import torch.nn.functional as F
from contracts.cases import state_bytes
from contracts.worlds import world
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluate import validation_metric
from recsys.features.whitening import Whitening
from recsys.models import layers
from recsys.models.base import FitContext
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.models.layers import BlockNorm, NestedLinear, increments
from recsys.models.sequence_module import SequenceModule, training_batch
from recsys.schema import Dense, Queries, Ragged
from recsys.serving.network import Network
from recsys.splits import SplitConfig, make_split
from recsys.train import fit
from recsys.train_config import TrainConfig

WIDTHS = (4, 8, 16)


def trained(seed: int = 0, **changes) -> FMRLRec:
    settings = {"widths": WIDTHS, "blocks": 2, "ffn_multiple": 3, "tables": ("text",), "window": 20}
    model = FMRLRec(FMRLRecConfig(**settings | changes))
    fit(model, world("hidden").context(seed=seed), TrainConfig(epochs=2, lr=1e-2))
    return model


@pytest.fixture(scope="module")
def model() -> FMRLRec:
    return trained()


def asked() -> Queries:
    rng = np.random.default_rng(0)
    return Queries.of([[], [3], *(rng.integers(48, size=n).tolist() for n in (2, 5, 5, 40))])


@pytest.mark.parametrize("width", WIDTHS[:-1])
def test_weights_cut_by_hand_score_as_the_width(model, width):
    """A model of width m built from the first m (or hidden 3 m) rows and columns of every weight."""
    small = FMRLRec(model.config.model_copy(update={"widths": tuple(w for w in WIDTHS if w <= width)}))
    small.whitenings = model.whitenings
    features = {
        "text": tuple(
            model.module.items.get_buffer(f"{part}_text").numpy() for part in ("whitened", "present")
        )
    }
    trained_I = model.module.items.trained_I.numpy() > 0
    small.module = type(model.module)(small.config, features, trained_I)
    weights = model.module.state_dict()
    cut = {
        name: weights[name][tuple(slice(size) for size in value.shape)].clone()
        for name, value in small.module.state_dict().items()
    }
    assert any(value.shape != weights[name].shape for name, value in cut.items())
    small.module.load_state_dict(cut)
    np.testing.assert_allclose(small.score(asked()), model.score(asked(), width=width), atol=1e-5)


def test_late_weights_do_not_reach_early_values(model):
    """Noise in everything past width 8 leaves the vectors up to 8 as they are."""
    noisy = FMRLRec.from_state(model.config, model.state())
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in noisy.module.parameters():
            if value.ndim == 2 and value.shape[0] >= 16 and value.shape[0] != 48:
                share = value.shape[0] // 16
                value[8 * share :] += torch.randn(value[8 * share :].shape, generator=rng)
    np.testing.assert_allclose(noisy.query_vectors(asked(), 8), model.query_vectors(asked(), 8), atol=1e-5)
    assert not np.allclose(noisy.query_vectors(asked(), 16), model.query_vectors(asked(), 16), atol=1e-2)


def test_an_untrained_item_is_its_content_and_nothing_else(model):
    """No bias, no id vector, and no part in the whitening: its content may be anything."""
    place = world("hidden")
    table, cold_I = place.tables["item", "text"], place.split.fit_log().item_counts() == 0
    vectors_ID, bias_I = model.item_table()
    assert (bias_I[cold_I] == 0).all() and (bias_I[~cold_I] != 0).all()
    absent = cold_I & ~table.present_E
    missing_D = model.encode_items({"text": Dense(table.values_EF[:1] * np.nan, np.zeros(1, bool))})
    np.testing.assert_array_equal(missing_D[0], model.module.items.missing["text"].detach().numpy())
    assert (missing_D != 0).any()  # it is learnt, not left out
    np.testing.assert_allclose(vectors_ID[absent], np.repeat(missing_D, absent.sum(), axis=0), atol=1e-6)
    other = table.values_EF.copy()
    other[cold_I & table.present_E] = 1e3
    changed = FMRLRec(model.config)
    ctx = place.context(tables={("item", "text"): replace(table, values_EF=other)})
    fit(changed, ctx, TrainConfig(epochs=2, lr=1e-2))
    for name in ("mean", "map"):
        key = f"whitening.text.{name}"
        np.testing.assert_array_equal(changed.state()[key], model.state()[key])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_nested_layers_equal_separate_ones(steps, seed):
    """Output block i of a NestedLinear is a plain layer over inputs 0..i; a BlockNorm normalises each alone."""
    widths = tuple(np.cumsum(steps).tolist())
    torch.manual_seed(seed)
    layer, norm = NestedLinear(widths, tuple(2 * w for w in widths)), BlockNorm(widths)
    x = torch.randn(3, widths[-1])
    with torch.no_grad():
        layer.bias.normal_()
        for start, end in increments(widths):
            rows = slice(2 * start, 2 * end)
            plain = x[:, :end] @ layer.weight[rows, :end].T + layer.bias[rows]
            torch.testing.assert_close(layer(x)[:, rows], plain)
            torch.testing.assert_close(norm(x)[:, start:end], F.layer_norm(x[:, start:end], (end - start,)))


def test_a_wide_layer_multiplies_block_by_block(monkeypatch):
    """Values and gradients equal those of one product with the masked matrix."""
    torch.manual_seed(0)
    layer, x = NestedLinear((2, 5, 9), (4, 10, 18)), torch.randn(7, 9, requires_grad=True)
    found = {}
    for least in (1, 512):
        monkeypatch.setattr(layers, "_GROUPED_FROM", least)
        out = layer(x)
        found[least] = (out, *torch.autograd.grad(out.square().sum(), (x, layer.weight, layer.bias)))
    for grouped, masked in zip(found[1], found[512], strict=True):
        torch.testing.assert_close(grouped, masked)
    assert (found[1][2][layer.mask == 0] == 0).all()


def test_width_1024_takes_a_step():
    """The recipe for a GPU, eight widths of it: loss, gradient and a score at every width are finite."""
    widths = (8, 16, 32, 64, 128, 256, 512, 1024)
    model = FMRLRec(FMRLRecConfig(widths=widths, tables=("text",), repeat_bias=True, distil=0.5))
    fit(model, world("hidden").context(), TrainConfig(epochs=1, lr=1e-3))
    for width in widths:
        assert np.isfinite(model.score(asked(), width=width)).all()


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=25, deadline=None)
@given(history=st.lists(st.integers(0, 47), max_size=30))
def test_one_event_at_a_time_equals_the_whole_history(model, width, history):
    """The serving network stepped event by event, its `encode`, and the model's own vectors."""
    network = Network(model.serving_form(), width)
    encoded = network.initial(1)
    for item in history:
        encoded = network.step(encoded, np.array([item]))
    whole = network.encode(Ragged.of([[5, 6], history, []]))[1:2]
    np.testing.assert_allclose(encoded.vectors_BD, whole, atol=1e-5)
    np.testing.assert_allclose(whole, model.query_vectors(Queries.of([history]), width), atol=1e-5)


def test_width_weights_by_hand():
    known = {
        "uniform": [1, 1, 1],
        "inverse_sqrt": [1 / 2, 1 / 8**0.5, 1 / 4],
        "inverse": [1 / 4, 1 / 8, 1 / 16],
        "proportional": [4, 8, 16],
    }
    for kind, raw in known.items():
        config = FMRLRecConfig(widths=WIDTHS, width_weights=kind)
        weights = SequenceModule(config, {}, np.ones(3)).objective.widths.weights
        np.testing.assert_allclose(weights, np.array(raw) / sum(raw))


def test_a_training_batch_asks_for_every_next_item():
    batch = training_batch(Ragged.of([[7, 8], [1, 2, 3]]))
    # step by step, the longer row first: start, start | 1, 7 | 2; what is asked for: 1, 7 | 2, 8 | 3
    assert batch["counts_T"].tolist() == [2, 2, 1]
    assert batch["tokens_P"].tolist() == [-1, -1, 1, 7, 2]
    assert batch["labels_P"].tolist() == [1, 7, 2, 8, 3]


def rows_of(count: int, width: int, seed: int = 0) -> Dense:
    """Correlated values of unequal scale, a tenth of the rows absent."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) * 10 + 3
    present = rng.random(count) > 0.1
    values[~present] = np.nan
    return Dense(values.astype(np.float32), present)


def test_whitening_gives_unit_covariance_on_the_fitted_rows():
    table, fitted = rows_of(200, 6), np.arange(200) < 120
    whitening = Whitening.fit(table, fitted, 6)
    white = whitening(table.values_EF, table.present_E)
    used = white[fitted & table.present_E]
    np.testing.assert_allclose(used.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(used, rowvar=False), np.eye(6), atol=1e-3)
    assert (white[~table.present_E] == 0).all() and np.isfinite(white).all()
    some = Whitening.fit(table, fitted, 2)  # the first directions are those of the largest variance
    np.testing.assert_allclose(some(table.values_EF, table.present_E), white[:, :2], atol=1e-4)


def test_whitening_looks_at_fitted_rows_alone():
    table, fitted = rows_of(50, 4), np.arange(50) < 30
    other = table.values_EF.copy()
    other[~fitted & table.present_E] = 1e6
    one, two = Whitening.fit(table, fitted, 4), Whitening.fit(Dense(other, table.present_E), fitted, 4)
    np.testing.assert_array_equal(one.mean_F, two.mean_F)
    np.testing.assert_array_equal(one.map_FK, two.map_FK)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (np.random.default_rng(0).standard_normal((30, 1)), 1),  # a table of one column
        (np.ones((30, 3)), 1),  # the same content everywhere: nothing to tell apart
        (np.outer(np.arange(30), [1.0, 2.0, 4.0]), 1),  # one direction in three columns
        (np.random.default_rng(0).standard_normal((3, 8)), 2),  # three rows span two directions
        (np.zeros((1, 5)), 1),
    ],
)
def test_whitening_of_poor_tables(values, kept):
    table = Dense(values.astype(np.float32), np.ones(len(values), bool))
    whitening = Whitening.fit(table, table.present_E, 8)
    white = whitening(table.values_EF, table.present_E)
    assert white.shape == (len(values), kept) and np.isfinite(white).all()


def test_content_decides_on_planted_content():
    """Texts dealt to the wrong items: validation falls with content, and is the very same without."""
    place = world("content")
    table = place.tables["item", "text"]
    dealt = np.random.default_rng(0).permutation(len(table.values_EF))
    wrong = {("item", "text"): replace(table, values_EF=table.values_EF[dealt])}
    found = {}
    for name, own in {"content": {"tables": ("text",)}, "ids": {}}.items():
        for texts, tables in {"right": place.tables, "wrong": wrong}.items():
            # most validation targets are cold: a bias would put every trained item before them
            config = FMRLRecConfig(widths=WIDTHS, blocks=1, window=20, item_bias=False, **own)
            model = FMRLRec(config)
            fit(model, place.context(tables=tables), TrainConfig(epochs=20, lr=1e-2))
            metric = validation_metric(model, place.split, "valid", "ndcg_at_10")
            found[name, texts] = (metric, state_bytes(model))
    assert found["content", "right"][0] > 5 * found["content", "wrong"][0]
    assert found["ids", "right"] == found["ids", "wrong"]
    assert found["content", "right"][0] > 5 * found["ids", "right"][0]


def test_the_width_of_a_gpu_recipe_trains_here_too(tmp_path):
    """One epoch at 1024, nested from 64: finite, and every width's scores are those of its own head of the vectors."""
    split = make_split(planted.order(tmp_path / "data", users=20), SplitConfig(method="leave_last_out"))
    model = FMRLRec(FMRLRecConfig(widths=(64, 256, 1024), batch_size=8))
    progress = fit(model, FitContext(split.fit_log()), TrainConfig(epochs=1))
    assert np.isfinite(progress.history[0]["loss"])
    queries = split.queries("valid").queries
    for width in model.widths:
        heads = model.query_vectors(queries)[:, :width] @ model.item_vectors()[:, :width].T
        apart = model.score(queries, None, width) - model.scale(width) * heads - model.item_table()[1]
        np.testing.assert_allclose(apart, 0, atol=1e-3)
