"""Models of pairs: LightGCN against torch-geometric, and what known and unknown users ask with."""

import numpy as np
import torch
from contracts.worlds import world
from test_baselines import context
from torch_geometric.nn import LightGCN as Reference

from recsys.models.baselines.lightgcn import LightGCN, LightGCNConfig
from recsys.models.baselines.mf import MF, MFConfig
from recsys.models.sparse import csr, symmetric_product
from recsys.schema import Queries
from recsys.train import fit
from recsys.train_config import TrainConfig


def test_smoothing_equals_torch_geometric():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 8, rng.integers(1, 9)).tolist() for _ in range(12)]  # pairs occur again
    model = LightGCN(LightGCNConfig(widths=(4,), layers=2))
    model.setup(context(rows, 9))
    module = model.module
    reference = Reference(12 + 9, 4, 2)
    with torch.no_grad():
        reference.embedding.weight.copy_(torch.cat([module.users, module.items * module.trained_I[:, None]]))
    pairs = np.unique([(user, item + 12) for user, row in enumerate(rows) for item in row], axis=0).T
    edges = torch.from_numpy(np.concatenate([pairs, pairs[::-1]], axis=1))
    torch.testing.assert_close(torch.cat(module.vectors()), reference.get_embedding(edges))


def test_the_gradient_of_a_symmetric_product():
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=rng, dtype=torch.float64).relu().triu()
    dense = half + half.T
    places = dense.nonzero().T
    matrix = csr(places.flip(1), dense[tuple(places.flip(1))], 6)
    x = torch.randn(6, 3, generator=rng, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(symmetric_product(matrix, x), dense @ x)
    assert torch.autograd.gradcheck(lambda inner: symmetric_product(matrix, inner), x)


def test_a_pair_counts_once_and_every_rank_takes_as_many_steps():
    model = MF(MFConfig(widths=(4,), batch_size=2))
    model.setup(context([[0, 0, 1], [2, 2, 2], [1, 0, 2]], 4))
    pairs = {(0, 0), (0, 1), (1, 2), (2, 0), (2, 1), (2, 2)}
    for world_size in (1, 2, 4):
        seen = []
        for rank in range(world_size):
            batches = list(model.batches(0, rank, world_size))
            assert len(batches) == model.steps_per_epoch(world_size)
            seen += [
                tuple(pair)
                for b in batches
                for pair in zip(b["user_P"].tolist(), b["item_P"].tolist(), strict=True)
            ]
        assert set(seen) == pairs and (world_size > 1 or len(seen) == len(pairs))


def test_who_asks_with_what():
    """Trained users with their own vector; others with the mean of their history's items, or of all trained users."""
    model = MF(MFConfig(widths=(4,)))
    ctx = world("content").context()
    fit(model, ctx, TrainConfig(epochs=2))
    profile, items, bias = model.vectors
    trained = np.flatnonzero(np.diff(ctx.train.indptr_U1))
    untrained = np.flatnonzero(np.diff(ctx.train.indptr_U1) == 0)
    users = [trained[3], untrained[0], untrained[0], -1]
    vectors = model.query_vectors(Queries.of([[1], [1, 2, 2], [], []], users=users))
    np.testing.assert_array_equal(vectors[0], profile.users_UD[trained[3]])
    mean = (items[1] + 2 * items[2]) / 3
    np.testing.assert_allclose(vectors[1], mean, rtol=1e-5)
    np.testing.assert_allclose(vectors[2:], [profile.users_UD[trained].mean(axis=0)] * 2, rtol=1e-5)
    cold = ctx.train.item_counts() == 0
    assert cold.any() and not items[cold].any() and not bias[cold].any()


def test_vectors_are_made_once_for_weights_as_they_are(monkeypatch):
    """A step of the optimiser, a loaded state, a value written in place: each makes them again."""
    model = LightGCN(LightGCNConfig(widths=(4,)))
    ctx = world("content").context()
    fit(model, ctx, TrainConfig(epochs=1))
    calls = []
    vectors = type(model.module).vectors
    monkeypatch.setattr(type(model.module), "vectors", lambda module: calls.append(1) or vectors(module))
    asked = Queries.of([[1], [2]], users=[0, 1])
    before = model.score(asked)
    np.testing.assert_array_equal(model.score(asked), before)
    assert len(calls) == 1
    kept = {name: value.clone() for name, value in model.module.state_dict().items()}
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=0.1, fused=True)
    model.module(next(iter(model.batches(0))))[0].backward()
    optimizer.step()
    assert not np.array_equal(model.score(asked), before)
    model.module.load_state_dict(kept)
    np.testing.assert_array_equal(model.score(asked), before)
    with torch.no_grad():
        model.module.items.mul_(2)
    assert not np.array_equal(model.score(asked), before)
