"""NoteLLM-2's network: what each vector has seen, the gate, what learns, and what comes back from disk."""

import numpy as np
import pytest
import torch
from notellm2_case import SMALL, STYLES, items, language, pairs, trained

from recsys.errors import ModelError
from recsys.models.embedders.contract import ItemContent, PairContext
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.models.notellm2.parts import Gate, QFormer
from recsys.models.notellm2.prompt import Prompt, Writer
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

VARIANTS = ("base", "micl", "late_fusion", "full", "residual")


def built(**config) -> tuple[NoteLLM2, ItemContent]:
    """Not trained."""
    content, topic_I, style_I = items(12)
    model = NoteLLM2(NoteLLM2Config(**SMALL | config))
    torch.manual_seed(0)
    model.setup(PairContext(pairs(topic_I, style_I, 4), content, open_language=language))
    return model, content


def with_texts(content: ItemContent, texts) -> ItemContent:
    return ItemContent(texts, content.tables)


@pytest.mark.parametrize("variant", ["micl", "full", "residual"])
def test_the_visual_vector_has_not_seen_the_text(variant):
    model, content = built(variant=variant)
    other = with_texts(content, ["w150 w199"] * len(content))
    first, second = model.encode(content), model.encode(other)
    assert np.array_equal(first["visual"], second["visual"])
    assert not np.allclose(first["joint"], second["joint"], atol=1e-3)


def test_later_text_changes_the_visual_state_by_exactly_nothing():
    model, content = built(variant="micl")
    vectors = [
        model.module.network(model.rows(with_texts(content, [word] * len(content)))).visual_RD
        for word in ("w1 w2 w3", "w4 w5 w6")
    ]
    assert (vectors[0] - vectors[1]).abs().max().item() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_padding_and_batching_change_nothing(variant):
    model, content = built(variant=variant)
    content = with_texts(content, ["w1"] * 6 + ["w1 w2 w3 w4 w5 w6 w7 w8"] * 5 + [None])
    whole = model.encode(content)
    order = np.random.default_rng(0).permutation(len(content))
    moved = model.encode(content.take(order), batch_size=3)
    for name, vectors in whole.items():
        np.testing.assert_allclose(moved[name], vectors[order], atol=1e-5)
    alone = model.encode(content.take(np.array([0])))
    np.testing.assert_allclose(alone["joint"][0], whole["joint"][0], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vector_depends_on_what_the_variant_shows(variant):
    model, content = built(variant=variant)
    seen = model.encode(content)["joint"]
    without_image = model.encode(content.only("text"))["joint"]
    without_text = model.encode(content.only("image"))["joint"]
    assert np.abs(seen - without_image).max() > 1e-5
    assert np.abs(seen - without_text).max() > 1e-5


def test_an_absent_picture_has_no_say():
    """NaN in an absent row, or any number, gives the same vectors."""
    model, content = built(variant="full")
    values = content.tables["image"].values_EF.copy()
    present = np.arange(len(content)) % 2 == 0
    values[~present] = np.nan
    one = model.encode(ItemContent(content.texts, {"image": Dense(values, present)}))
    other = model.encode(
        ItemContent(content.texts, {"image": Dense(np.nan_to_num(values, nan=99.0), present)})
    )
    assert np.isfinite(one["joint"]).all()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("towards", [-1.0, 1.0])
def test_gate_limits(towards):
    """Wide open it is the picture, shut it is the state; between them a convex mixture."""
    gate = Gate(3, 4, residual=False, balance=False)
    visual, state = torch.ones(5, 3), torch.randn(5, 4)
    with torch.no_grad():
        gate.project.weight.fill_(1.0)
        gate.mix.weight.zero_()
        gate.mix.weight[:, :4] = towards * 1e4
    out = gate(visual, state, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(out, torch.full((5, 4), 3.0) if towards > 0 else state)
    assert torch.equal(gate(visual, state, torch.zeros(5, dtype=torch.bool)), state)


def test_the_gate_is_one_formula():
    gate = Gate(3, 4, residual=True, balance=False)
    visual, state, seen = torch.randn(5, 3), torch.randn(5, 4), torch.ones(5, dtype=torch.bool)
    v = visual @ gate.project.weight.T
    z = torch.sigmoid(torch.cat([v, state], 1) @ gate.mix.weight.T)
    torch.testing.assert_close(gate(visual, state, seen), z * v + (1 - z) * state + v)


def test_balanced_norms_make_scale_irrelevant():
    gate = Gate(3, 4, residual=False, balance=True)
    visual, state, seen = torch.randn(5, 3), torch.randn(5, 4), torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(
        gate(visual, state, seen), gate(100 * visual, 0.01 * state, seen), atol=1e-3, rtol=1e-3
    )


def test_q_former_queries_give_different_places():
    torch.manual_seed(0)
    former = QFormer(6, 3, 16, layers=1, inner=16).eval()
    out = former(torch.randn(2, 5, 6))
    assert out.shape == (2, 3, 16)
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-4
    assert former.queries_ND.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(
    ("tune", "learns"), [("full", {0, 1}), ("last", {1}), ("lora", set()), ("frozen", set())]
)
def test_frozen_parts_get_no_gradient(tune, learns):
    settings = {"tune": "last", "last_layers": 0} if tune == "frozen" else {"tune": tune}
    model, _ = built(variant="full", **settings)
    loss, _ = model.module(next(model.batches(0)))
    loss.backward()
    found = set()
    for name, value in model.module.network.decoder.named_parameters():
        if "lora_" in name:
            assert value.requires_grad
        elif ".layers." in f".{name}":
            layer = int(f".{name}".split(".layers.")[1].split(".")[0])
            if value.grad is not None:
                found.add(layer)
        elif tune != "full":
            assert value.grad is None, name
    assert found == learns
    for part in ("connector", "gate", "head"):
        for name, value in getattr(model.module.network, part).named_parameters():
            assert value.grad is not None and value.grad.abs().sum() > 0, (part, name)
    assert model.module.network.word_D.grad.abs().sum() > 0
    assert model.module.loss.log_scale.grad.abs() > 0


def test_new_parts_have_their_own_rate():
    model, _ = built(variant="full", tune="last", new_lr_scale=7.0)
    groups = model.param_groups()
    decoder = {id(value) for value in model.module.network.decoder.parameters()}
    for group in groups:
        assert {id(value) in decoder for value in group["params"]} == {group["lr_scale"] == 1.0}
        assert all((value.ndim < 2) == ("weight_decay" in group) for value in group["params"])
    learnt = sum(value.numel() for value in model.module.learnt().values())
    assert sum(value.numel() for group in groups for value in group["params"]) == learnt


@pytest.mark.parametrize(
    "settings", [{"tune": "lora"}, {"tune": "last"}, {"connector": "qformer", "qformer_width": 16}]
)
def test_a_state_gives_the_model_back(settings):
    """New token rows included: they were trained, and stand in the state."""
    model, content = trained(variant="full", **settings)
    state = model.state()
    assert {"network.word_D", "network.absent_ND", "loss.log_scale"} <= state.keys()
    assert not np.array_equal(
        state["network.word_D"], built(variant="full", **settings)[0].state()["network.word_D"]
    )
    again = NoteLLM2.from_state(model.config, state, language)
    for name, vectors in model.encode(content).items():
        np.testing.assert_allclose(again.encode(content)[name], vectors, atol=1e-6)
    with pytest.raises(ModelError, match="do not fit"):
        NoteLLM2.from_state(NoteLLM2Config(**SMALL | {"variant": "base"}), state, language)


def test_the_same_seed_gives_the_same_weights_and_a_resumed_run_too(tmp_path):
    content, topic_I, style_I = items(40)
    found = pairs(topic_I, style_I, 32)

    def fitted(folder, *epochs: int, seed: int = 0):
        for count in epochs:
            model = NoteLLM2(NoteLLM2Config(**SMALL, text_dropout=0.2))
            ctx = PairContext(found, content, open_language=language, seed=seed, folder=folder)
            fit(model, ctx, TrainConfig(epochs=count, lr=1e-3))
        return model.state()

    whole, again = fitted(None, 2), fitted(tmp_path, 1, 2)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    other = fitted(None, 2, seed=1)
    assert any(not np.array_equal(whole[name], other[name]) for name in whole)
    # what is frozen is in no checkpoint
    assert (tmp_path / "checkpoint" / "weights.safetensors").stat().st_size < 4 * 2 * sum(
        v.size for v in whole.values()
    )


def test_the_prompt_reads_where_it_says():
    tokenizer = language().tokenizer
    writer = Writer(Prompt(), tokenizer, len(tokenizer), micl=True, sees=True, places=3, longest=2)
    notes = writer.notes(writer.texts(["w1 w2 w3", None]))
    long, short = notes.ids_RL
    assert (long == writer.picture).sum() == 3 and (long == writer.word).sum() == 1
    assert (notes.visual_R == np.flatnonzero(long == writer.word)[0] - 1).all()
    assert notes.joint_R.tolist() == [len(long) - 1, len(long) - 3]  # two words are read of three
    ending = tokenizer(Prompt().ending, add_special_tokens=False)["input_ids"]
    for ids, at in zip((long, short), notes.joint_R, strict=True):
        assert ids[at + 1 - len(ending) : at + 1].tolist() == ending  # never cut
    assert long[0] == tokenizer.bos_token_id
    assert not notes.mask_RL[1, notes.joint_R[1] + 1 :].any()
    w1 = tokenizer.convert_tokens_to_ids("w1")
    assert np.flatnonzero(long == w1)[0] > notes.visual_R[0]
    one = Writer(Prompt(), tokenizer, len(tokenizer), micl=False, sees=False, places=3, longest=2).notes(
        [[5]]
    )
    assert (one.ids_RL < len(tokenizer)).all() and (one.visual_R == one.joint_R).all()


def test_truncated_depth_and_bad_settings():
    model, content = built(variant="full", layers=1, last_layers=1)
    assert len(model.module.network.decoder.layers) == 1
    assert model.encode(content)["joint"].shape == (len(content), 8)
    with pytest.raises(ModelError, match="at most 2"):
        built(layers=3)
    with pytest.raises(ModelError, match="a multiple of 5 tokens"):
        built(image_tokens=5)
    with pytest.raises(ModelError, match="no table 'image_b'"):
        built(table="image_b")
    for wrong in ({"widths": (8, 4)}, {"table": "picture"}, {"tune": "last", "frozen_dtype": "bfloat16"}):
        with pytest.raises(ValueError):
            NoteLLM2Config(**wrong)


@pytest.mark.parametrize("settings", [{"compute": "bfloat16"}, {"tune": "lora", "frozen_dtype": "bfloat16"}])
def test_bfloat16_is_close_and_learns_in_float32(settings):
    model, content = built(variant="full", **settings)
    exact, _ = built(variant="full", **{name: value for name, value in settings.items() if name == "tune"})
    cosines = (model.encode(content)["joint"] * exact.encode(content)["joint"]).sum(1)
    assert (cosines > 0.99).all()
    assert {value.dtype for value in model.module.learnt().values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model, _ = built(variant="full", gradient_checkpointing=checkpointing)
        model.module.train()
        model.module(next(model.batches(0)))[0].backward()
        gradients.append({name: value.grad for name, value in model.module.learnt().items()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


def test_visual_neglect_and_its_cure():
    """Topic in the text, style in the picture under a louder noise, partners share both. The base variant hardly learns
    to look; the full one finds the style of unseen items by their picture alone."""
    content, topic_I, style_I = items(200)
    found, (unseen, _, style_U) = pairs(topic_I, style_I, 256), items(120, seed=50)
    share = {}
    for variant in ("base", "full"):
        model = NoteLLM2(NoteLLM2Config(**SMALL | {"variant": variant, "tune": "full", "batch_size": 32}))
        fit(model, PairContext(found, content, open_language=language), TrainConfig(epochs=6, lr=1e-3))
        for inputs in ("both", "text", "image"):
            vectors = model.encode(unseen.only(inputs))["joint"]
            cosines = vectors @ vectors.T
            np.fill_diagonal(cosines, -2)
            near = np.argsort(-cosines, axis=1)[:, :5]
            share[variant, inputs] = (style_U[near] == style_U[:, None]).mean()
    assert share["full", "image"] > share["base", "image"] + 0.2
    assert share["full", "both"] - share["full", "text"] > share["base", "both"] - share["base", "text"] + 0.2
    assert share["full", "text"] < 1 / STYLES + 0.1  # chance: the text says nothing of the style
