"""The writer: what neighbours may do to a language model, and what they may not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from text_models import save_gpt2, save_llama
from writer_case import SMALL, items, language, trained, untrained

from recsys.config import parse
from recsys.errors import ConfigError, ModelError
from recsys.features.language import open_language_model
from recsys.models.graph.writer import TextWriter
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_content import WriterContent, WriterContext, alike
from recsys.models.graph.writer_language import CausalModel
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

pytest.importorskip("peft", reason="the extra `llm` is not installed")

POSITIONS = ("rank", "laplacian", "gnn", "none")


@pytest.fixture(scope="module")
def case():
    return items()


def plain_logits(writer: TextWriter, batch: dict) -> torch.Tensor:
    """Those of the language model by itself, row by row without padding."""
    model, found = language().model, []
    for ids_L, mask_L, labels_T in zip(batch["ids"], batch["mask"], batch["labels"], strict=True):
        out = model(input_ids=ids_L[mask_L.bool()][None]).logits[0]
        found.append(out[-len(labels_T) - 1 : -1])
    return torch.stack(found)


def test_a_shut_gate_is_the_plain_model_exactly(case):
    content, _ = case
    cross = untrained(content, entry="cross", lora_rank=0)
    plain = untrained(content, entry="none")  # adapters begin as zero
    batch = cross.rows(content, content.known[:5], learn=True)
    cross.module.eval(), plain.module.eval()
    with torch.no_grad():
        assert torch.equal(cross.module.logits(batch), plain.module.logits(batch))
        torch.testing.assert_close(cross.module.logits(batch), plain_logits(cross, batch))
        for block in cross.module.cross:
            block.gates.fill_(0.5)
        assert not torch.allclose(cross.module.logits(batch), plain.module.logits(batch))


@pytest.mark.parametrize("entry", ["prefix", "cross"])
@pytest.mark.parametrize("position", POSITIONS)
def test_what_is_masked_changes_nothing(case, entry, position):
    content, _ = case
    writer = untrained(content, entry=entry, position=position)
    if entry == "cross":
        with torch.no_grad():
            [block.gates.fill_(0.5) for block in writer.module.cross]
    writer.module.eval()
    batch = writer.rows(content, content.known[:4], learn=True)
    seen_BS = batch["seen.image"].clone()
    seen_BS[:, 2] = False
    batch |= {"seen.image": seen_BS}
    noisy = dict(batch)
    for name in ("text", "image"):
        noise = torch.randn(batch[f"rows.{name}"].shape) * ~batch[f"seen.{name}"][:, :, None]
        noisy[f"rows.{name}"] = batch[f"rows.{name}"] + noise
    with torch.no_grad():
        assert torch.equal(writer.module.logits(batch), writer.module.logits(noisy))


def test_an_item_without_neighbours_reads_its_prompt_alone(case):
    content, _ = case
    alone = replace(content, neighbours_IN=np.full_like(content.neighbours_IN, -1))
    writer = untrained(alone, entry="prefix", own=())
    writer.module.eval()
    batch = writer.rows(alone, alone.known[:4], learn=True)
    with torch.no_grad():
        torch.testing.assert_close(writer.module.logits(batch), plain_logits(writer, batch))


@pytest.mark.parametrize("entry", ["prefix", "cross"])
def test_neighbours_reach_the_loss(case, entry):
    content, _ = case
    writer = untrained(content, entry=entry)
    if entry == "cross":
        with torch.no_grad():
            [block.gates.fill_(0.5) for block in writer.module.cross]
    batch = writer.rows(content, content.known[:4], learn=True)
    for name in ("text", "image"):
        batch[f"rows.{name}"].requires_grad_()
    writer.module(batch)[0].backward()
    for name in ("text", "image"):
        grad_BS = batch[f"rows.{name}"].grad.abs().sum(2)
        assert (grad_BS[batch[f"seen.{name}"]] > 0).all()
        assert (grad_BS[~batch[f"seen.{name}"]] == 0).all()


def test_the_first_word_is_told_by_neighbours_and_a_word_never_by_later_ones(case):
    content, _ = case
    writer = untrained(content, entry="prefix")
    writer.module.eval()
    batch = writer.rows(content, content.known[:1], learn=True)
    changed = batch | {"ids": batch["ids"].clone()}
    changed["ids"][:, -1] += 1  # the last word, which nothing is to see
    with torch.no_grad():
        assert torch.equal(writer.module.logits(batch), writer.module.logits(changed))
        other = batch | {"rows.text": batch["rows.text"] + 1}
        assert not torch.allclose(writer.module.logits(batch)[:, 0], writer.module.logits(other)[:, 0])


def test_padding_and_company_change_nothing(case):
    content, _ = case
    uneven = replace(content, prompts=["w1 " * (1 + number % 5) for number in range(len(content))])
    writer = untrained(uneven, entry="prefix")
    writer.module.eval()
    chosen = uneven.known[:5]
    with torch.no_grad():
        together = writer.module.logits(writer.rows(uneven, chosen, learn=True))
        alone = [
            writer.module.logits(writer.rows(uneven, chosen[row : row + 1], learn=True)) for row in range(5)
        ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert writer.write(uneven, chosen) == writer.write(uneven, chosen, batch_size=1)


@pytest.mark.parametrize("entry", ["none", "prefix", "cross"])
def test_training_leaves_the_frozen_weights_bit_for_bit(case, entry):
    content, _ = case
    before = language().model.state_dict()
    writer = trained(content, entry=entry, lora_rank=0 if entry == "cross" else 2)
    frozen = {
        name.replace("language.base_model.model.", "")
        .replace("language.", "")
        .replace("base_layer.", ""): value
        for name, value in writer.module.named_parameters()
        if not value.requires_grad
    }
    assert frozen.keys() == dict(language().model.named_parameters()).keys()
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    fresh = untrained(content, entry=entry, lora_rank=0 if entry == "cross" else 2).state()
    assert any(not np.array_equal(value, fresh[name]) for name, value in writer.state().items())


@pytest.mark.parametrize(("entry", "rank"), [("prefix", 4), ("cross", 0)])
def test_it_learns_from_neighbours_what_the_prompt_does_not_tell(case, entry, rank):
    """A text is the topic's word. All prompts are alike, so none who reads them alone gets below its entropy."""
    content, topic_I = case
    words = [text and text.split()[0] for text in content.texts]
    content = replace(content, texts=words)
    writer = trained(content, 30, 1e-2, entry=entry, lora_rank=rank)
    shares = np.bincount(topic_I[content.known]) / len(content.known)
    with torch.no_grad():
        loss, _ = writer.module.eval()(writer.rows(content, content.known, learn=True))
    assert loss.item() < 0.6 * -(shares * np.log(shares)).sum()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("entry", ["prefix", "cross"])
def test_saved_and_loaded(case, entry, position):
    content, _ = case
    writer = trained(content, entry=entry, position=position)
    again = TextWriter.from_state(writer.config, writer.state(), language())
    missing = np.setdiff1d(np.arange(len(content)), content.known)
    batch = writer.rows(content, content.known, learn=True)
    with torch.no_grad():
        assert torch.equal(writer.module.eval().logits(batch), again.module.eval().logits(batch))
    assert writer.write(content, missing) == again.write(content, missing)
    with pytest.raises(ModelError, match="do not fit"):
        TextWriter.from_state(
            WriterConfig(**SMALL | {"entry": entry, "tokens": 3}), writer.state(), language()
        )


def test_what_it_writes_of_an_item_does_not_depend_on_its_text(case):
    """Neither through the words nor through the row that was made of them."""
    content, _ = case
    writer = trained(content)
    for item in content.known[:3]:
        table = content.tables["text"]
        values_IF = table.values_EF.copy()
        values_IF[item] += 10
        tables = dict(content.tables) | {"text": Dense(values_IF, table.present_E)}
        texts = [None if row == item else text for row, text in enumerate(content.texts)]
        other = replace(content, texts=texts, tables=tables)
        here, there = (writer.rows(one, np.array([item])) for one in (content, other))
        assert all(torch.equal(here[name], there[name]) for name in here)


def slowly(writer: TextWriter, batch: dict, count: int) -> torch.Tensor:
    """[B, count] likeliest words, each by a whole forward pass."""
    found, one = [], torch.ones(len(batch["ids"]), 1, dtype=torch.int64)
    for _ in range(count):
        longer = {"ids": torch.cat([batch["ids"], 0 * one], 1), "mask": torch.cat([batch["mask"], one], 1)}
        found.append(writer.module.logits(batch | longer | {"labels": one})[:, 0].argmax(1, keepdim=True))
        longer["ids"][:, -1:] = found[-1]
        batch = batch | longer
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("entry", ["none", "prefix", "cross"])
@pytest.mark.parametrize("save", [save_llama, save_gpt2])
def test_it_writes_what_forward_passes_find_likeliest(case, entry, save, tmp_path):
    content, _ = case
    save(tmp_path)
    found, tokenizer = open_language_model(str(tmp_path), writes=True)
    with torch.no_grad():
        for value in found.model.parameters():
            value *= 10 if value.ndim > 1 else 1
    uneven = replace(content, prompts=["w1 " * (1 + number % 5) for number in range(len(content))])
    writer = TextWriter(WriterConfig(**SMALL | {"entry": entry, "no_repeat": 0}))
    writer.setup(WriterContext(uneven, lambda: CausalModel(found.model, tokenizer, found.facts)))
    if entry == "cross":
        with torch.no_grad():
            [block.gates.fill_(0.5) for block in writer.module.cross]
    writer.module.eval()
    batch = writer.rows(uneven, np.arange(8))
    with torch.no_grad():
        assert torch.equal(writer.module.generate(batch, None, 0), slowly(writer, batch, 6))


@pytest.mark.parametrize("entry", ["prefix", "cross"])
def test_another_decoder_with_learnt_positions_and_an_end(case, entry, tmp_path):
    content, _ = case
    save_gpt2(tmp_path)

    def gpt2() -> CausalModel:
        found, tokenizer = open_language_model(str(tmp_path), writes=True)
        return CausalModel(found.model, tokenizer, found.facts)

    writer = TextWriter(WriterConfig(**SMALL | {"entry": entry}))
    fit(writer, WriterContext(content, gpt2), TrainConfig(epochs=1, lr=1e-2))
    batch = writer.rows(content, content.known[:3], learn=True)
    assert (batch["labels"][:, -1] == 1).all()  # a text that is not cut ends with the end
    again = TextWriter.from_state(writer.config, writer.state(), gpt2())
    with torch.no_grad():
        assert torch.equal(writer.module.eval().logits(batch), again.module.eval().logits(batch))
    assert len(writer.write(content, [0, 1])) == 2


def test_neighbours_are_the_nearest_known_ones():
    rng = np.random.default_rng(3)
    tables = [Dense(rng.normal(size=(12, 5)).astype(np.float32), rng.random(12) < 0.8) for _ in range(2)]
    known_I = rng.random(12) < 0.6
    found_IN = alike(tables, known_I, 4)
    unit = []
    for table in tables:
        rows = table.values_EF - table.values_EF[known_I & table.present_E].mean(0)
        rows[~table.present_E] = 0
        unit.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))
    cosine_II = sum(one @ one.T for one in unit)
    lengths_I = np.sqrt(sum((one**2).sum(1) for one in unit))
    for item in range(12):
        if not lengths_I[item]:
            assert (found_IN[item] == -1).all()
            continue
        legal = [other for other in range(12) if known_I[other] and other != item and lengths_I[other]]
        order = sorted(legal, key=lambda other: -cosine_II[item, other] / lengths_I[other])[:4]
        assert found_IN[item].tolist() == order + [-1] * (4 - len(order))


def test_every_process_has_as_many_batches_and_all_items_are_met(case):
    content, _ = case
    writer = untrained(content, entry="none", batch_size=4)
    words = {text: writer._target(text) for text in content.texts if text}
    alone = list(writer.batches(0))
    assert sum(len(batch["ids"]) for batch in alone) == len(content.known) == 18
    shared = [list(writer.batches(0, rank, 2)) for rank in range(2)]
    assert [len(batches) for batches in shared] == [writer.steps_per_epoch(2)] * 2 == [3, 3]
    rows = [row for step in zip(*shared, strict=True) for batch in step for row in batch["ids"].tolist()]
    assert rows[:18] == [row for batch in alone for row in batch["ids"].tolist()]
    assert rows[18:] == rows[:6]
    assert all(row[-4:] in words.values() for row in rows)
    other = [row for batch in writer.batches(1) for row in batch["ids"].tolist()]
    assert other != rows[:18] and sorted(other) == sorted(rows[:18])


def test_refusals(case):
    content, _ = case
    with pytest.raises(ModelError, match="its own neighbour"):
        WriterContent(["a"], [None], {}, np.array([[0]]))
    with pytest.raises(ModelError, match="no item has a text"):
        untrained(replace(content, texts=[None] * len(content)))
    with pytest.raises(ModelError, match="no feature table 'sound'"):
        untrained(content, tables=("sound",))
    with pytest.raises(ModelError, match="3 neighbours of each item"):
        untrained(content, neighbours=4).rows(content, content.known[:1])
    with pytest.raises(ModelError, match="every = 3"):
        untrained(content, entry="cross", every=3)
    with pytest.raises(ConfigError, match="nothing would learn"):
        parse(WriterConfig, {"entry": "none", "lora_rank": 0}, where="model")
