"""benchmarks/graph.py: the forms it compares are one product, and its graph is what it says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.schema import Log


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks/graph.py"
    spec = importlib.util.spec_from_file_location("benchmark_graph", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_graph_has_sports_ratios_and_every_pair_once(bench):
    log: Log = bench.generated(540)
    assert log.num_users + log.num_items == 540
    assert log.num_users == pytest.approx(356, abs=1) and len(log) == pytest.approx(2186, abs=1)
    assert len(np.unique(log.user_N * log.num_items + log.item_N)) == len(log)
    assert log.item_N.max() < log.num_items and log.item_counts()[:20].mean() > log.item_counts()[-20:].mean()


def test_every_form_is_the_same_product_with_the_same_gradient(bench):
    log = bench.generated(300)
    places_2N, values_N = bench.edges(log)
    dense = torch.sparse_coo_tensor(places_2N, values_N, (300, 300), check_invariants=False).to_dense()
    x_ND = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    for form in bench.FORMS:
        ours = x_ND.clone().requires_grad_()
        found_ND = bench.product(form, log)(ours)
        torch.testing.assert_close(found_ND, dense @ x_ND)
        found_ND.backward(x_ND)
        torch.testing.assert_close(ours.grad, dense.T @ x_ND)


def test_a_form_that_differs_is_told(bench):
    facts = {"checks": [1.0, 2.0]}
    assert bench.same(facts, {"checks": [1.0, 2.0 + 1e-7]})
    assert not bench.same(facts, {"checks": [1.0, 2.1]})
