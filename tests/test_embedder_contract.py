"""What every registered embedder keeps to: what it reads and gives, order, gaps, and the way back from disk."""

from functools import cache

import numpy as np
import pytest
from notellm2_case import items, language, pairs
from safetensors.numpy import load, save

from recsys.errors import ModelError
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext
from recsys.registry import EMBEDDERS, load_class
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

SETTINGS = {
    "notellm2": {"tune": "last", "last_layers": 1, "visual_tokens": 2},
    "neighbours": {"heads": 2, "fanout": 3, "whiten": 6},
    "frozen_head": {"hidden": (8,)},
}


def content(seed: int = 0) -> tuple[ItemContent, np.ndarray, np.ndarray]:
    """Texts and both tables, with gaps in each."""
    found, topic_I, style_I = items(40, seed)
    rng = np.random.default_rng([seed, 1])
    tables = {"text": Dense(rng.normal(size=(40, 9)).astype(np.float32), np.arange(40) % 5 != 0)}
    image = found.tables["image"]
    tables["image"] = Dense(image.values_EF, np.arange(40) % 7 != 0)
    for one in tables.values():
        one.values_EF[~one.present_E] = np.nan
    texts = [None if row % 11 == 0 else text for row, text in enumerate(found.texts)]
    return ItemContent(texts, tables), topic_I, style_I


@cache
def trained(name: str) -> Embedder:
    found, topic_I, style_I = content()
    kind = load_class(name, EMBEDDERS, Embedder)
    model = kind(kind.Config(widths=(4, 8), batch_size=16, **SETTINGS[name]))
    ctx = PairContext(
        pairs(topic_I, style_I, 32), found, open_language=language if kind.reads_texts else None
    )
    fit(model, ctx, TrainConfig(**{**model.loop, "epochs": 1}))
    return model


@pytest.fixture(params=EMBEDDERS)
def model(request) -> Embedder:
    return trained(request.param)


def test_it_gives_what_it_names_in_any_order(model):
    unseen = content(seed=5)[0]
    whole = model.encode(unseen)
    assert tuple(whole) == model.vectors and model.vectors[0] == "joint"
    order = np.random.default_rng(0).permutation(len(unseen))
    shuffled = model.encode(unseen.take(order), batch_size=7)
    for name, vectors_ED in whole.items():
        assert vectors_ED.shape == (len(unseen), model.widths[-1]) and vectors_ED.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors_ED, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(shuffled[name], vectors_ED[order], atol=1e-5)


def test_it_reads_what_it_names_and_nothing_else(model):
    unseen = content(seed=5)[0]
    before = model.encode(unseen)["joint"]

    def with_table(name: str, values_EF: np.ndarray, present_E: np.ndarray) -> np.ndarray:
        changed = ItemContent(unseen.texts, dict(unseen.tables) | {name: Dense(values_EF, present_E)})
        return model.encode(changed)["joint"]

    for name, table in unseen.tables.items():
        moved = with_table(name, table.values_EF + 1, table.present_E)
        assert np.allclose(moved, before, atol=1e-6) != (name in model.tables)
        filled = with_table(name, np.nan_to_num(table.values_EF, nan=5.0), table.present_E)
        np.testing.assert_array_equal(filled, before)  # an absent row is a state: what lies in it has no say
    other = model.encode(ItemContent([*unseen.texts[1:], None], unseen.tables))["joint"]
    assert np.allclose(other, before, atol=1e-6) != model.reads_texts
    with pytest.raises(ModelError, match="no table"):
        model.encode(ItemContent(unseen.texts, {}))


def test_a_state_gives_it_back(model):
    """From arrays that were read from disk, which cannot be written to."""
    state = load(save({name: np.asarray(value, order="C") for name, value in model.state().items()}))
    for value in state.values():
        value.flags.writeable = False
    again = type(model).from_state(model.config, state, language if model.reads_texts else None)
    unseen = content(seed=5)[0]
    for name, vectors_ED in model.encode(unseen).items():
        np.testing.assert_allclose(again.encode(unseen)[name], vectors_ED, atol=1e-6)
    if model.reads_texts:
        with pytest.raises(ModelError, match="no language model"):
            type(model).from_state(model.config, state)


def test_the_loop_that_it_names_is_one(model):
    assert TrainConfig.model_validate(dict(model.loop)).lr > 0


def test_an_item_has_a_modality_by_text_or_table():
    shown = content()[0]
    rows = np.arange(40)
    np.testing.assert_array_equal(shown.has("text"), (rows % 11 != 0) | (rows % 5 != 0))
    np.testing.assert_array_equal(shown.has("image"), rows % 7 != 0)
    assert not shown.only("image").has("text").any() and not shown.only("text").has("image").any()
