"""The reference of benchmarks/train.py computes what our model computes, so that its cost is a fair measure."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.models.fmrlrec import FMRLRecConfig
from recsys.models.sequence_module import SequenceModule, training_batch
from recsys.schema import Ragged

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ITEMS, WIDTHS, WINDOW = 23, (2, 6, 8), 11  # 11: padded to 16 in the scan


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return script("reference_fmrlrec")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports the reference beside it, as a script does
    return script("train")


def ours(**changes) -> SequenceModule:
    """With every parameter away from its initial value: a zero start would hide what is left out."""
    settings = {"widths": WIDTHS, "tables": ("text",), "dropout": 0, "id_dropout": 0, "radius": (0.5, 0.95)}
    config = FMRLRecConfig(**settings | changes)
    rng = np.random.default_rng(0)
    features = {"text": (rng.normal(size=(ITEMS, 5)).astype(np.float32), rng.random(ITEMS) > 0.2)}
    torch.manual_seed(0)
    module = SequenceModule(config, features, np.ones(ITEMS, np.int64))
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return module


def rows(lengths: list[int]) -> Ragged:
    """Planted order: x is followed by 5 x + 1."""
    found = []
    for row, length in enumerate(lengths):
        chain = [row % ITEMS]
        while len(chain) < length:
            chain.append((5 * chain[-1] + 1) % ITEMS)
        found.append(chain)
    return Ragged.of(found)


@pytest.mark.parametrize("lengths", [[1], [WINDOW], [3, 1, WINDOW, 8, 2, 1, 5], [4] * 3])
def test_loss_and_every_gradient_are_ours(reference, lengths):
    module, histories = ours(), rows(lengths)
    plain = reference.PlainFMRLRec(module)
    loss, _ = module(training_batch(histories))
    loss.backward()
    known = plain(*reference.left_padded(histories, WINDOW))
    known.backward()
    torch.testing.assert_close(loss, known, rtol=1e-5, atol=0)
    mine, found = dict(module.named_parameters()), plain.gradients()
    assert found.keys() == mine.keys()
    scale = max(value.abs().max().item() for value in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(mine[name].grad, gradient, rtol=1e-3, atol=1e-6 * scale, msg=name)


def test_the_doubling_scan_is_the_recurrence(reference):
    torch.manual_seed(1)
    u_BLD = torch.randn(3, 16, 4, dtype=torch.complex64)
    lambda_D = 0.9 * torch.exp(1j * torch.rand(4))
    valid_BL = torch.arange(16) >= torch.tensor([[0], [5], [15]])
    scanned_BLD = reference.doubling_scan(u_BLD, valid_BL, lambda_D)
    state_BD = torch.zeros_like(u_BLD[:, 0])
    for step in range(16):
        state_BD = lambda_D * state_BD + u_BLD[:, step] * valid_BL[:, step, None]
        here = valid_BL[:, step]
        torch.testing.assert_close(scanned_BLD[here, step], state_BD[here])


def test_a_left_padded_row(reference):
    tokens_BL, labels_BL = reference.left_padded(Ragged.of([[7, 8, 9], [4]]), 4)
    first = reference.FIRST_ITEM
    assert tokens_BL.tolist() == [[0, 1, first + 7, first + 8], [0, 0, 0, 1]]
    assert labels_BL.tolist() == [[-1, 7, 8, 9], [-1, -1, -1, 4]]


@pytest.mark.parametrize(
    "change", [{"norm": "pre"}, {"distil": 0.5}, {"dropout": 0.1}, {"repeat_bias": True}]
)
def test_settings_in_which_the_forms_differ_are_refused(reference, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        reference.PlainFMRLRec(ours(**change))


def test_generated_histories_are_like_the_train_part_of_beauty(benchmark):
    log = benchmark.generated()
    lengths = log.sequences.lengths
    assert (log.num_users, log.num_items) == (22_363, 12_101) and (log.item_counts() > 0).all()
    assert lengths.min() == 3 and np.median(lengths) == 4 and 6.7 < lengths.mean() < 7.1


def test_the_verdict_names_what_is_missed(benchmark):
    same = {"loss": 2e-5, "gradient": 1e-4, "worst": "items.ids.weight"}
    reference, ours = {"median": 10.0, "above": 400.0}, {"median": 1.0, "above": 100.0}
    assert benchmark.verdict(same, reference, ours) == ([], [])
    slow, large = ours | {"median": 1.1}, ours | {"above": 120.0}
    assert benchmark.verdict(same, reference, slow) == ([], ["9.1 times faster, target 10"])
    assert benchmark.verdict(same, reference, large) == ([], ["0.30 of the memory, target 0.25"])
    for name in ("loss", "gradient"):
        wrong, short = benchmark.verdict(same | {name: float("nan")}, reference, ours)
        assert len(wrong) == 1 and name in wrong[0] and not short


def test_every_form_takes_the_same_rows(benchmark):
    """And goes round where the steps outnumber the rows."""
    model = benchmark.Metered(FMRLRecConfig(batch_size=3), 4, benchmark.Meter())
    model.seed, model.rows = 0, rows([1, 2, 3, 4, 5])
    taken = [step.lengths.tolist() for step in benchmark.step_rows(model, 4)]
    assert taken == [step.lengths.tolist() for step in benchmark.step_rows(model, 4)]
    flat = np.concatenate(taken).tolist()
    assert sorted(flat[:5]) == [1, 2, 3, 4, 5] and flat[5:10] == flat[:5] and len(flat) == 12
