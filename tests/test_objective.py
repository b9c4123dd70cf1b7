"""The loss switch: what is asked once for a query is what would be asked for each of its positions."""

import numpy as np
import pytest
import torch

from recsys.models.losses import Widths
from recsys.models.objective import SOFTMAX, Objective, ObjectiveConfig


@pytest.mark.parametrize("loss", [*SOFTMAX, "gbce", "bce", "bpr"])
def test_positions_that_share_a_query(loss):
    """Loss, parts and gradients, nested widths and items that training never saw among them."""
    torch.manual_seed(0)
    counts_I = np.array([3, 0, 1, 2, 5, 1, 0, 4, 2, 1])
    objective = Objective(ObjectiveConfig(loss=loss, negatives=3), counts_I, Widths.equal((4, 8)))
    queries_QD, items_ID, bias_I = torch.randn(3, 8), torch.randn(10, 8), torch.randn(10)
    rows_P, labels_P = torch.tensor([0, 0, 2, 1, 0]), torch.tensor([4, 7, 4, 9, 0])
    columns = objective.columns(labels_P)
    found = []
    for shared in (False, True):
        given = [value.clone().requires_grad_() for value in (queries_QD, items_ID, bias_I)]
        items_ND, bias_N = given[1][columns.rows_N], given[2][columns.rows_N]
        if shared:
            value, parts = objective.of_rows(given[0], rows_P, items_ND, bias_N, columns)
        else:
            value, parts = objective(objective.scores(given[0][rows_P], items_ND, bias_N), columns)
        value.backward()
        found.append((value.item(), parts, [one.grad for one in given]))
    (value, parts, gradients), (shared_value, shared_parts, shared_gradients) = found
    assert shared_value == pytest.approx(value, rel=1e-5)
    assert shared_parts == pytest.approx(parts, rel=1e-5)
    for one, other in zip(gradients, shared_gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
