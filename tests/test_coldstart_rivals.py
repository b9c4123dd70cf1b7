"""What the cold-start specialists rest on: their losses, closed forms and teachers, against slow references."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch
from contracts.worlds import world

from recsys.layered_items import LayeredItems
from recsys.models.baselines.ease import EASE, EASEConfig
from recsys.models.baselines.mf import MF, MFConfig
from recsys.models.coldstart.entmax import entmax, entmax_loss
from recsys.models.coldstart.marec import MARec, MARecConfig, aligned_weights, content_similarity
from recsys.models.coldstart.taught import DropoutNet, DropoutNetConfig
from recsys.models.coldstart.teacher import wmf
from recsys.profile import Profile
from recsys.schema import Dense, Queries
from recsys.train import fit
from recsys.train_config import TrainConfig


@pytest.mark.parametrize("scale", [3, 300])
@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0])
def test_entmax_against_a_root_finder(alpha, scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.standard_normal((4, 9))

    def weights(z, t):
        return np.maximum((alpha - 1) * z - t, 0) ** (1 / (alpha - 1))

    found = entmax(torch.from_numpy(logits), alpha).numpy()
    for row, z in enumerate(logits):
        top = (alpha - 1) * z.max()
        t = scipy.optimize.brentq(lambda t, z=z: weights(z, t).sum() - 1, top - 1, top)
        np.testing.assert_allclose(found[row], weights(z, t), atol=1e-5)
    assert (found == 0).any()


def test_the_entmax_loss_has_the_gradient_of_its_definition():
    """It is convex in the logits with gradient p - e, and 0 where all weight is on the label."""
    torch.manual_seed(1)
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 5, 2])
    loss = entmax_loss(logits, labels, 1.5)
    (gradient,) = torch.autograd.grad(loss, logits)
    for row in range(3):
        for column in range(6):
            step = torch.zeros_like(logits)
            step[row, column] = 1e-5
            change = entmax_loss(logits + step, labels, 1.5) - entmax_loss(logits - step, labels, 1.5)
            assert float(change.detach()) / 2e-5 == pytest.approx(float(gradient[row, column]), abs=1e-5)
    sure = torch.tensor([[50.0, 0.0, -1e9]])
    assert float(entmax_loss(sure, torch.tensor([0]), 1.5)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(7, 12), (30, 9)])  # fewer users than items, and more
def test_aligned_weights_against_a_direct_solve(shape):
    rng = np.random.default_rng(2)
    x = (rng.random(shape) < 0.4).astype(float)
    x[:, -2:] = 0  # two cold items
    similarity = rng.random((shape[1], shape[1]))
    np.fill_diagonal(similarity, 0)
    weight, regularisation = rng.random(shape[1]) + 0.1, 2.0
    found = aligned_weights(sp.csr_matrix(x), similarity, regularisation, weight)
    for j in range(shape[1]):
        others = np.delete(np.arange(shape[1]), j)
        seen, z = float(x[:, j].any()), x[:, others]
        left = (seen + weight[j]) * z.T @ z + regularisation * np.eye(len(others))
        right = z.T @ (seen * x[:, j] + weight[j] * x @ similarity[:, j])
        np.testing.assert_allclose(found[others, j], np.linalg.solve(left, right), atol=1e-5)
        assert found[j, j] == 0


def test_without_alignment_it_is_ease():
    ctx = world("content").context()
    ours, theirs = MARec(MARecConfig(alignment=0.0, regularisation=5.0)), EASE(EASEConfig(regularisation=5.0))
    for model in (ours, theirs):
        model.fit(ctx)
    np.testing.assert_allclose(ours.weights_II, theirs.weights_II, atol=1e-5)


def test_content_similarity_fits_what_was_seen():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((10, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    x = sp.csr_matrix((rng.random((20, 10)) < 0.3).astype(float))
    similarity = content_similarity(vectors, x, 2.0)
    assert (similarity.diagonal() == 0).all() and (similarity >= 0).all()
    errors = [np.square(x - scale * (x @ similarity)).sum() for scale in (0.9, 1.0, 1.1)]
    assert errors[1] < min(errors[0], errors[2])


def test_the_teacher_by_a_direct_solve():
    """After its sweeps every user's vector is the least-squares answer to the items', and cold items have none."""
    log = world("content").split.fit_log()
    users, items = wmf(log, 6, 2.0, 5.0, 30, 0)
    cold = log.item_counts() == 0
    assert cold.any() and not items[cold].any()
    for user in (0, 7):
        own = np.unique(log.item_N[log.user_N == user])
        confidence = np.ones(len(items))
        confidence[own] += 5.0
        left = (items * confidence[:, None]).T @ items + 2.0 * np.eye(6)
        wanted = np.linalg.solve(left, 6.0 * items[own].sum(axis=0))
        np.testing.assert_allclose(users[user], wanted, atol=0.02 * np.abs(wanted).max())


def test_a_layered_tower_in_numpy_is_the_learnt_one():
    place = world("hidden")
    model = DropoutNet(DropoutNetConfig(width=8, hidden=16, tables=("text", "about")))
    model.setup(place.context())
    module, rows = model.module, torch.arange(place.split.num_items)
    with torch.no_grad():
        torch.nn.init.normal_(module.items.missing)
        wanted = module.items(rows)
    encoding: LayeredItems = module.encoding()
    found = encoding.vectors({name: place.context().item_table(name) for name in encoding.tables})
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_cold_users_of_dropoutnet_ask_with_their_attributes():
    """Only while they have no history: then their items speak."""
    place = world("hidden")
    log = place.split.fit_log()
    log = log.take(log.user_N > 3)  # the first users lose all rows
    model = DropoutNet(DropoutNetConfig(width=8, hidden=16, tables=("text", "about"), batch_size=64))
    fit(model, place.context(log=log), TrainConfig(epochs=1))
    there = place.tables["user", "about"].present_E[:4]
    empty = model.query_vectors(Queries.of([[]] * 4, users=range(4)))
    nobody = model.query_vectors(Queries.of([[]]))
    differs = ~np.isclose(empty, nobody).all(axis=1)
    np.testing.assert_array_equal(differs, there)
    with_items = model.query_vectors(Queries.of([[1, 2]] * 4, users=range(4)))
    np.testing.assert_array_equal(with_items, np.repeat(with_items[:1], 4, axis=0))


def test_folding_in_is_least_squares():
    model = MF(MFConfig(widths=(8,), fold_in=0.5, batch_size=64))
    fit(model, world("co_occurrence").context(), TrainConfig(epochs=2))
    profile: Profile = model.vectors.profile
    items = model.item_vectors().astype(np.float64)
    weights = np.full(len(items), 0.1)
    left = (items * weights[:, None]).T @ items + 0.5 * np.eye(8)
    left += items[[3, 5]].T @ items[[3, 5]]
    wanted = np.linalg.solve(left, items[[3, 5]].sum(axis=0)) * profile.fold_1[0]
    np.testing.assert_allclose(model.query_vectors(Queries.of([[3, 5]]))[0], wanted, rtol=1e-4)
    known = np.linalg.norm(profile.users_UD[profile.known_U], axis=1).mean()
    sequences = world("co_occurrence").split.fit_log().sequences
    folded = model.query_vectors(Queries.of([sequences[user] for user in range(len(sequences))]))
    assert np.linalg.norm(folded, axis=1).mean() == pytest.approx(known, rel=1e-3)


def test_an_item_without_any_content_has_a_vector():
    place = world("hidden")
    model = DropoutNet(DropoutNetConfig(width=8, hidden=16))
    fit(model, place.context(), TrainConfig(epochs=1))
    nothing = Dense(np.full((2, 16), np.nan, np.float32), np.zeros(2, bool))
    assert np.isfinite(model.encode_items({"text": nothing})).all()
