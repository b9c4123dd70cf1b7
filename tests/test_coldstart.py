"""The cold-start model: both halves agree, gates weigh what tells, cold users and items are served."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.cases import queries_of
from contracts.worlds import World, world

from recsys.evaluate import evaluate
from recsys.models.base import FitContext
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.coldstart.contrast import info_nce
from recsys.models.coldstart.model import ColdStart, ColdStartConfig
from recsys.models.coldstart.module import ColdStartModule
from recsys.protocol import Protocol
from recsys.schema import Dense, Queries
from recsys.serving.forms import open_form
from recsys.train import fit
from recsys.train_config import TrainConfig

SMALL = {"width": 17, "hidden": 8, "batch_size": 16, "whiten": 16}
LOOP = TrainConfig(epochs=25, lr=1e-2)


def fitted(place: World, ctx: FitContext | None = None, **settings) -> ColdStart:
    model = ColdStart(ColdStartConfig(**SMALL | settings))
    fit(model, place.context() if ctx is None else ctx, LOOP)
    return model


@pytest.fixture(scope="module")
def by_content() -> ColdStart:
    return fitted(world("content"), tables=("text", "noise"), ctx=with_noise(world("content")))


@pytest.fixture(scope="module")
def by_attributes() -> ColdStart:
    return fitted(world("attributes"), tables=("about",))


def with_noise(place: World) -> FitContext:
    """A table beside the text that says nothing of an item, absent for a third of them."""
    rng = np.random.default_rng(1)
    present_I = np.arange(place.split.num_items) % 3 > 0
    noise_IF = rng.standard_normal((place.split.num_items, 16)).astype(np.float32)
    noise_IF[~present_I] = np.nan
    return place.context(tables=place.tables | {("item", "noise"): Dense(noise_IF, present_I)})


def hits(model, place: World, pool: str | None = None) -> float:
    protocol = Protocol(ks=(5,), mask="history", bootstrap=0)
    found = evaluate(model, place.split, "test", protocol, progress=False)
    return found.value("test/hr_at_5" + (f"/pool.{pool}" if pool else ""))


@pytest.mark.parametrize(
    "switches", [{}, {"selection": False, "fusion": False}, {"context": True, "half_life": 2.0}]
)
def test_both_halves_say_the_same(switches):
    place = world("hidden")
    config = ColdStartConfig(**SMALL, tables=("text", "about"), **switches)
    model = ColdStart(config)
    model.setup(place.context())
    module: ColdStartModule = model.module
    for value in module.parameters():  # gates and layers begin as nothing: let them say something
        torch.nn.init.normal_(value, std=0.3)
    module.eval()
    queries = queries_of(place)
    with torch.no_grad():
        items_ID = module.item_vectors(torch.arange(place.split.num_items))[0]
        np.testing.assert_allclose(model.item_vectors(), items_ID, atol=1e-5)
        known = queries.take(queries.user_Q >= 0)
        rows, seen = (torch.from_numpy(one) for one in known.history.flat())
        history_BD, length_B = module._histories(rows, items_ID[seen, :-1], len(known))
        users, at = torch.from_numpy(known.user_Q), torch.from_numpy(np.array(known.at_Q))
        asked_QD = module.query_vectors(users, history_BD, length_B, at)[0]
    np.testing.assert_allclose(model.query_vectors(known), asked_QD, atol=1e-5)


def test_info_nce_by_loops():
    torch.manual_seed(0)
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    q_a, q_b = torch.rand(5).log(), torch.rand(5).log()
    same = torch.zeros(5, 5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    total = 0.0
    for x, y, log_q in ((a, b, q_b), (b, a, q_a)):
        for n in range(5):
            terms = []
            for m in range(5):
                cosine = float(x[n] @ y[m] / x[n].norm() / y[m].norm()) / 0.3
                if m == n:
                    terms.append(cosine)
                elif not same[n, m]:
                    terms.append(cosine - float(log_q[m]))
            own = float(x[n] @ y[n] / x[n].norm() / y[n].norm()) / 0.3
            total += np.log(np.exp(terms).sum()) - own
    assert float(info_nce(a, b, 0.3, (q_a, q_b), same)) == pytest.approx(total / 10, rel=1e-5)


def test_what_is_shown_is_not_asked_for():
    module = ColdStart(ColdStartConfig(**SMALL, targets=3))
    module.setup(world("content").context())
    batch = next(iter(module.batches(0)))
    for causal in (False, True):
        module.module.config = module.config.model_copy(update={"causal": causal})
        for _ in range(20):
            shown, asked = module.module._parts(batch["row_P"], len(batch["user_B"]))
            assert not set(shown.tolist()) & set(asked.tolist())
            assert len(asked)
            if causal:  # nothing that is shown of a user comes after what is asked of it
                for row in range(len(batch["user_B"])):
                    own = [part[batch["row_P"][part] == row] for part in (shown, asked)]
                    if len(own[0]) and len(own[1]):
                        assert own[0].max() < own[1].min()


def test_cold_items_are_found_by_content_and_not_by_others_content(by_content):
    place = world("content")
    text = place.tables["item", "text"]
    assert hits(by_content, place, "cold") > 0.9
    order = np.random.default_rng(3).permutation(place.split.num_items)
    dealt = place.tables | {("item", "text"): text.take(order)}
    wrong = fitted(place, place.context(tables=dealt))
    chance = 5 / (place.split.fit_log().item_counts() == 0).sum()
    assert hits(wrong, place, "cold") < chance + 0.2


def test_gates_prefer_what_tells(by_content):
    weights = by_content.gates()
    assert weights["field.text"] > 1.5 * weights["field.noise"]
    assert sum(value for name, value in weights.items() if name.startswith("field.")) == pytest.approx(1)
    assert sum(value for name, value in weights.items() if name.startswith("group.")) == pytest.approx(1)


def test_a_missing_field_has_no_weight(by_content):
    place = world("content")
    lacking = np.flatnonzero(np.arange(place.split.num_items) % 3 == 0)
    weights = by_content.gates(items=lacking)
    assert weights["field.noise"] == weights["group.noise"] == 0
    cold = np.flatnonzero(place.split.fit_log().item_counts() == 0)
    assert by_content.gates(items=cold)["field.id"] == 0
    rows = {name: with_noise(place).item_table(name) for name in ("text", "noise")}
    assert by_content.gates(items=rows)["field.id"] == 0


def test_without_gates_all_are_alike():
    model = fitted(world("content"), tables=("text", "about"), selection=False, fusion=False, contrastive=())
    weights = model.gates()
    warm = (world("content").split.fit_log().item_counts() > 0).mean()
    assert weights["field.text"] == pytest.approx(warm / 4 + (1 - warm) / 3)
    assert weights["group.text"] == pytest.approx(warm / 3 + (1 - warm) / 2)


def test_users_without_a_history_ask_with_their_attributes(by_attributes):
    """The planted group decides what is taken; a user that training never saw brings it with the question."""
    place = world("attributes")
    about = place.tables["user", "about"].dense().values_EF
    rows = np.array([0, 1, 2, 3])  # one user of each group
    queries = Queries(
        np.full(4, -1), Queries.of([[]] * 4).history, np.zeros(4, np.int64), {"about": about[rows]}
    )
    for scorer in (by_attributes, open_form(by_attributes.serving_form())):
        top = np.argsort(-scorer.score(queries), axis=1)[:, :10] // 10
        assert (top == rows[:, None]).mean() > 0.9
    nobody = replace(queries, user_fields={"about": np.full_like(about[rows], np.nan)})
    assert np.ptp(by_attributes.score(nobody), axis=0).max() == 0
    weights = by_attributes.gates(queries=queries)
    assert weights["field.about.group"] == pytest.approx(1)
    floor = Popularity(PopularityConfig())
    floor.fit(place.context())
    unknown = replace(place.split.queries("test").queries, user_Q=np.full(place.split.num_users, -1))
    assert np.ptp(floor.score(unknown), axis=0).max() == 0  # popularity tells nobody apart


def test_a_few_liked_items_are_enough(by_attributes):
    queries = Queries.of([[3, 7], [15], [22, 28, 21], [33]])
    top = np.argsort(-by_attributes.score(queries), axis=1)[:, :10] // 10
    assert (top == np.arange(4)[:, None]).mean() > 0.9


def test_ids_can_begin_as_a_teachers():
    place = world("co_occurrence")
    model = ColdStart(ColdStartConfig(**SMALL, tables=("about",), pretrained=2.0))
    model.setup(place.context())
    lengths = model.module.items.ids.detach().norm(dim=1)
    seen = torch.from_numpy(place.split.fit_log().item_counts() > 0)
    assert float(lengths[seen].mean()) == pytest.approx(2.0, rel=1e-4)
