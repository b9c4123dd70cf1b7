"""The loss of pairs against a slow loop, GradCache, hard negatives, and the heads over frozen features."""

import math

import numpy as np
import pytest
import torch
from notellm2_case import SMALL, items, language, pairs

from recsys.errors import ModelError
from recsys.models.embedders.config import PairLossConfig
from recsys.models.embedders.contract import ItemContent, PairContext
from recsys.models.embedders.frozen_head import FrozenHead, FrozenHeadConfig
from recsys.models.embedders.loss import PairLoss, TeacherLoss
from recsys.models.embedders.negatives import hard_negatives
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.models.notellm2.gradcache import cached
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig


def slow_loss(vectors, pairs_, allied, widths, scale, margin):
    """One row, one width, one negative at a time."""
    total = []
    for width in widths:
        unit = [row[:width] / np.linalg.norm(row[:width]) for row in vectors]
        for row in range(2 * pairs_):
            partner = (row + pairs_) % (2 * pairs_)
            own = float(unit[row] @ unit[partner])
            kept = [math.exp(scale * own)]
            for other in range(len(vectors)):
                cosine = float(unit[row] @ unit[other])
                if other in (row, partner) or allied[row, other]:
                    continue
                if margin is None or cosine <= own + margin:
                    kept.append(math.exp(scale * cosine))
            total.append(-math.log(kept[0] / sum(kept)))
    return sum(total) / len(total)


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("further", [0, 3])
def test_nt_xent_is_what_a_loop_gives(margin, further):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10 + further, 6))
    allied = np.zeros((10 + further,) * 2, bool)
    allied[1, 7] = allied[7, 1] = allied[2, 4] = allied[4, 2] = True
    allied[0, 5] = allied[5, 0] = True  # a pair of the batch is known, too, and stays its positive
    loss = PairLoss((2, 6), 1.0, margin)
    found = loss(torch.from_numpy(vectors), 5, torch.from_numpy(allied)).item()
    assert found == pytest.approx(slow_loss(vectors, 5, allied, (2, 6), math.e, margin), rel=1e-5)


def test_order_of_pairs_and_sides_change_nothing():
    torch.manual_seed(0)
    vectors, loss, none = torch.randn(12, 4), PairLoss((4,), 3.0, 0.1), torch.zeros(12, 12, dtype=torch.bool)
    order = torch.randperm(6)
    moved = torch.cat([vectors[6:][order], vectors[:6][order]])
    torch.testing.assert_close(loss(moved, 6, none), loss(vectors, 6, none))


def test_the_temperature_is_learnt_and_bounded():
    loss = PairLoss((4,), 3.0, None)
    none = torch.zeros(8, 8, dtype=torch.bool)
    torch.manual_seed(0)
    vectors = torch.randn(8, 4)
    loss(vectors, 4, none).backward()
    assert loss.log_scale.grad.abs() > 0
    with torch.no_grad():
        loss.log_scale.fill_(50.0)
    hundred = PairLoss((4,), math.log(100), None)
    torch.testing.assert_close(loss(vectors, 4, none), hundred(vectors, 4, none))


def gradients(chunk, dtype=torch.float64, **settings):
    content, topic_I, style_I = items(40)
    model = NoteLLM2(NoteLLM2Config(**SMALL | settings, chunk=chunk))
    torch.manual_seed(0)
    model.setup(PairContext(pairs(topic_I, style_I, 16), content, open_language=language))
    model.module.to(dtype).train()
    batch = next(model.batches(0))
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    loss, _ = model.module(batch)
    (3 * loss).backward()  # as accumulation scales it
    return loss.item(), {name: value.grad for name, value in model.module.learnt().items()}


@pytest.mark.parametrize("variant", ["base", "full"])
@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_gradcache_equals_the_full_batch(variant, chunk):
    """The learnt temperature included."""
    whole_loss, whole = gradients(None, variant=variant, tune="full")
    loss, found = gradients(chunk, variant=variant, tune="full")
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    assert found["loss.log_scale"].abs() > 0
    for name, value in whole.items():
        if value is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)


def test_gradcache_replays_random_numbers():
    """With dropout, the second pass drops what the first did: the gradient is that of the loss that was shown."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.5))
    seen = []

    def encode(batch):
        out = net(batch["x"])
        seen.append(out.detach())
        return [out]

    (vectors,) = cached(encode, {"x": torch.randn(9, 4)}, 4)
    after = torch.get_rng_state()
    vectors.square().sum().backward()
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first, second) and (first == 0).any()
    assert torch.equal(torch.get_rng_state(), after)


def test_known_pairs_and_the_same_item_are_no_negatives():
    content, _, _ = items(6)
    model = NoteLLM2(NoteLLM2Config(**SMALL))
    model.setup(PairContext(np.array([[0, 1], [1, 2], [3, 4]]), content, open_language=language))
    allied = model.allied(np.array([0, 2, 1, 0, 4]))
    expected = np.array(
        [[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool
    )
    assert np.array_equal(allied, expected)


def test_hard_negatives_are_near_but_not_nearer_than_the_pair():
    rng = np.random.default_rng(0)
    teacher, found = rng.normal(size=(80, 6)), rng.permutation(80).reshape(-1, 2)
    config = PairLossConfig(hard_negatives=4, hard_ranks=(3, 40), hard_margin=0.1)
    codes = np.unique(np.concatenate([found, found[:, ::-1]]) @ [80, 1])
    mined = hard_negatives(teacher, found, codes, config)
    unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    assert mined.shape == (40, 4) and (mined >= 0).sum() > 40
    for (left, right), row in zip(found, mined, strict=True):
        cosines = unit[left] @ unit.T
        rank = {
            item: place
            for place, item in enumerate(np.argsort(-np.where(np.arange(80) == left, -2, cosines)), 1)
        }
        eligible = [
            item for item, place in sorted(rank.items(), key=lambda entry: entry[1])
            if 3 <= place <= 40 and item not in (left, right) and cosines[item] <= cosines[right] + 0.1
        ]  # fmt: skip
        assert row[row >= 0].tolist() == eligible[:4]


def frozen(count: int = 60):
    """Two tables of which the second lacks rows."""
    content, topic_I, style_I = items(count)
    values = np.random.default_rng(1).normal(size=(count, 5)).astype(np.float32) + topic_I[:, None]
    present = np.arange(count) % 5 != 0
    values[~present] = np.nan
    return ItemContent(content.texts, dict(content.tables) | {"text": Dense(values, present)}), pairs(
        topic_I, style_I, 64
    )


def test_the_linear_head_is_linear_and_comes_back():
    content, found = frozen()
    model = FrozenHead(FrozenHeadConfig(widths=(4, 8), batch_size=32))
    history = fit(model, PairContext(found, content), TrainConfig(epochs=8, lr=1e-2)).history
    assert history[-1]["loss"] < history[0]["loss"]
    again = FrozenHead.from_state(model.config, model.state())
    assert np.array_equal(again.encode(content)["joint"], model.encode(content)["joint"])
    assert [type(layer).__name__ for layer in model.module.net] == ["Linear"]
    # an absent row is a state: what lies in it has no say
    table = content.tables["text"]
    other = Dense(np.nan_to_num(table.values_EF, nan=5.0), table.present_E)
    same = ItemContent(content.texts, dict(content.tables) | {"text": other})
    assert np.array_equal(model.encode(same)["joint"], model.encode(content)["joint"])


def test_a_student_comes_near_its_teacher():
    content, found = frozen()
    teacher = np.random.default_rng(2).normal(size=(37, 8)).astype(np.float32)
    features = np.concatenate([np.nan_to_num(one.values_EF) for one in content.tables.values()], 1)
    taught = np.tanh(features @ teacher)
    ctx = PairContext(found, content, teacher_ID=taught)
    model = FrozenHead(FrozenHeadConfig(widths=(4, 8), hidden=(32,), teacher_weight=1.0, batch_size=32))
    untaught = FrozenHead(FrozenHeadConfig(widths=(4, 8), hidden=(32,), batch_size=32))
    fit(model, ctx, TrainConfig(epochs=40, lr=1e-2))
    fit(untaught, ctx, TrainConfig(epochs=40, lr=1e-2))
    unit = taught / np.linalg.norm(taught, axis=1, keepdims=True)
    near = [(one.encode(content)["joint"] * unit).sum(1).mean() for one in (model, untaught)]
    assert near[0] > 0.9 > near[1] + 0.2


def test_teacher_loss_is_zero_at_the_teacher():
    vectors = torch.randn(6, 8)
    assert TeacherLoss((4, 8))(3 * vectors, vectors).item() == pytest.approx(0, abs=1e-6)


def test_what_needs_a_teacher_says_so():
    content, found = frozen()
    for config, words in (
        (FrozenHeadConfig(hard_negatives=2), "hard_negatives without teacher"),
        (FrozenHeadConfig(teacher_weight=0.5), "teacher_weight without teacher"),
    ):
        with pytest.raises(ModelError, match=words):
            FrozenHead(config).setup(PairContext(found, content))
    with pytest.raises(ModelError, match="expected 256, the widest"):
        FrozenHead(FrozenHeadConfig(teacher_weight=0.5)).setup(
            PairContext(found, content, teacher_ID=np.ones((60, 4)))
        )
    with pytest.raises(ModelError, match="at least 2"):
        FrozenHead(FrozenHeadConfig()).setup(PairContext(found[:1], content))
    with pytest.raises(ModelError, match="one process"):
        next(NoteLLM2(NoteLLM2Config(chunk=4)).batches(0, 0, 2))


def test_hard_negatives_reach_the_batch():
    content, found = frozen()
    teacher = np.random.default_rng(3).normal(size=(60, 4))
    model = FrozenHead(FrozenHeadConfig(batch_size=8, hard_negatives=3, hard_ranks=(1, 40), widths=(4,)))
    model.setup(PairContext(found, content, teacher_ID=teacher))
    batch = next(model.batches(0))
    assert len(batch["items"]) > 2 * int(batch["pairs"]) == 16
    loss, _ = model.module(batch)
    assert torch.isfinite(loss)


def test_items_without_a_teacher_teach_nothing():
    torch.manual_seed(0)
    own, taught, loss = torch.randn(6, 8), torch.randn(6, 8), TeacherLoss((4, 8))
    some = torch.cat([taught[:4], torch.zeros(2, 8)])
    torch.testing.assert_close(loss(own, some), loss(own[:4], taught[:4]))
    nobody = own.clone().requires_grad_()
    loss(nobody, torch.zeros(6, 8)).backward()
    assert loss(own, torch.zeros(6, 8)) == 0 and (nobody.grad == 0).all()
