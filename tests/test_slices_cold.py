"""Slices and monitors of cold start, by hand."""

import hand
import numpy as np
import pytest

from recsys.errors import EvaluationError
from recsys.evaluate import evaluate, validation_metric
from recsys.protocol import Protocol

TRAIN = [[0] * 3 + [1], [0] * 4 + [1], [0] * 4 + [2] * 4, []]
TEST = [[2, 4], [3, 2], [1], [4]]
"""Rows of the items in training: 11, 2, 4, 0, 0. The last user has none."""


def scorer() -> hand.Table:
    return hand.Table(np.array([[0, 0, 5, 0, 1], [0, 0, 1, 3, 2], [5, 1, 0, 0, 0], [9, 0, 0, 0, 1.0]]))


def test_targets_by_training_count_and_both_cold():
    split = hand.split_of(TRAIN, [[0], [], [], []], TEST, 5)
    protocol = Protocol(ks=(1,), slices=("count", "both"), bootstrap=0, mask="off")
    found = evaluate(scorer(), split, "test", protocol, progress=False)
    assert found.value("test/recall_at_1/count.0") == pytest.approx(
        1 / 3
    )  # users 0 and 3 miss theirs, 1 has 3 on top
    assert found.value("test/recall_at_1/count.1-2") == 0
    assert found.value("test/recall_at_1/count.3-5") == 0.5
    assert found.values["test/recall_at_1/count.3-5"]["n"] == 2
    assert found.value("test/recall_at_1/cold.both") == 0
    assert found.values["test/recall_at_1/cold.both"]["n"] == 1
    assert "test/recall_at_1/count.11-up" not in found.values  # nobody is asked for it


def test_the_harmonic_monitor_is_that_of_both_pools():
    split = hand.split_of(TRAIN, TEST, [[0], [], [], []], 5)
    protocol = Protocol(ks=(1,), slices=("pool",), bootstrap=0, mask="off")
    found = evaluate(scorer(), split, "valid", protocol, progress=False)
    warm, cold = (found.value(f"valid/ndcg_at_1/pool.{pool}") for pool in ("warm", "cold"))
    assert warm != cold
    measured = validation_metric(scorer(), split, "valid", "ndcg_at_1", "off", harmonic=True)
    assert measured == pytest.approx(2 * warm * cold / (warm + cold))
    whole = hand.split_of([[0, 1, 2, 3, 4]] * 4, TEST, TEST, 5)
    with pytest.raises(EvaluationError, match="pools"):
        validation_metric(scorer(), whole, "valid", "ndcg_at_1", harmonic=True)
