"""Losses against plain softmaxes: every width, distillation, temperatures, repeats, samples; values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys.models import losses
from recsys.models.losses import Repeats, Scores, Widths, nested_softmax
from recsys.models.sampled import gbce, mixed_sample, sampled_softmax

WIDTHS = (2, 4, 8)
POSITIONS, ITEMS = 40, 9


def ingredients(seed: int = 0, repeats: bool = True) -> tuple[Scores, torch.Tensor]:
    """Leaves in float64; every position has two to four items of its past."""
    rng = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()

    rows, items = [], []
    if repeats:
        for position in range(POSITIONS):
            own = torch.randperm(ITEMS, generator=rng)[: 2 + position % 3]
            rows += [position] * len(own)
            items += own.tolist()
    past = Repeats(
        torch.tensor(rows, dtype=torch.long), torch.tensor(items, dtype=torch.long), leaf(len(rows))
    )
    scales = (leaf(3).detach().abs() + 0.5).requires_grad_()
    scores = Scores(leaf(POSITIONS, 8), leaf(ITEMS, 8), leaf(ITEMS), scales, past)
    return scores, torch.randint(ITEMS, (POSITIONS,), generator=rng)


def leaves(scores: Scores) -> tuple[torch.Tensor, ...]:
    return (*scores[:4], scores.repeats.values_R)


def plain_logits(scores: Scores) -> list[torch.Tensor]:
    queries, items, bias, scales, (rows, columns, values) = scores
    added = torch.zeros(POSITIONS, ITEMS, dtype=torch.float64).index_put((rows, columns), values)
    return [
        scale * (queries[:, :width] @ items[:, :width].T) + bias + (added if width == 8 else added.detach())
        for width, scale in zip(WIDTHS, scales, strict=True)
    ]


def plain_loss(logits: list[torch.Tensor], labels: torch.Tensor, widths: Widths) -> torch.Tensor:
    """One softmax a width; the target is a mixture of the label and the full width's own softmax."""
    teacher = torch.softmax(logits[-1].detach(), 1)
    total = torch.zeros((), dtype=torch.float64)
    for own, weight, share in zip(logits, widths.weights, [widths.distil, widths.distil, 0.0], strict=True):
        target = (1 - share) * F.one_hot(labels, own.shape[1]) + share * teacher
        total = total - weight * (target * torch.log_softmax(own, 1)).sum(1).mean()
    return total


def compare(loss: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, inputs, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(3 * expected, inputs, retain_graph=True, allow_unused=True)
    for own, other, leaf in zip(ours, theirs, inputs, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if own is None else own, zero if other is None else other)


@pytest.mark.parametrize("chunk", [1, 16, 1 << 23])
@pytest.mark.parametrize("distil", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("repeats", [True, False])
def test_nested_softmax_equals_one_softmax_a_width(monkeypatch, chunk, distil, repeats):
    """Whole, and in chunks of 16 or of a single position."""
    monkeypatch.setattr(losses, "_CHUNK_FLOATS", chunk)
    monkeypatch.setattr(losses, "_LEAST_ROWS", min(chunk, 16))
    scores, labels = ingredients(repeats=repeats)
    widths = Widths(WIDTHS, (0.5, 0.3, 0.2), distil)
    loss, per_width = nested_softmax(scores, labels, widths)
    logits = plain_logits(scores)
    compare(loss, plain_loss(logits, labels, widths), leaves(scores))
    hard = torch.stack([F.cross_entropy(own, labels) for own in logits])
    torch.testing.assert_close(per_width, hard.detach())


def test_confident_logits_stay_finite():
    """A label whose probability is no float32 number still has a finite loss and gradient."""
    queries, items = torch.tensor([[30.0, 0.0]]).requires_grad_(), torch.tensor([[10.0, 0.0], [-10.0, 0.0]])
    empty = torch.zeros(0, dtype=torch.long)
    scores = Scores(queries, items, torch.zeros(2), torch.ones(1), Repeats(empty, empty, torch.zeros(0)))
    loss, _ = nested_softmax(scores, torch.tensor([1]), Widths((2,), (1.0,)))
    loss.backward()
    assert loss.item() == pytest.approx(600) and torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("distil", [0.0, 0.4])
def test_sampled_softmax_by_hand(distil):
    """Five of nine items; each term but the label's own is divided by its chance to be there."""
    scores, labels = ingredients()
    columns = torch.tensor([0, 2, 3, 5, 8])
    labels = torch.searchsorted(columns, columns[labels % 5])
    log_q = torch.log(torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7], dtype=torch.float64))
    rows, items, values = scores.repeats
    here = torch.isin(items, columns)
    inside = Repeats(rows[here], torch.searchsorted(columns, items[here]), values[here])
    part = Scores(
        scores.queries_PD, scores.items_ID[columns], scores.bias_I[columns], scores.scales_K, inside
    )
    widths = Widths(WIDTHS, (0.5, 0.3, 0.2), distil)
    loss, _ = sampled_softmax(part, labels, log_q, widths)
    kept = torch.where(F.one_hot(labels, 5) > 0, 0.0, log_q)
    logits = [own[:, columns] - kept for own in plain_logits(scores)]
    compare(loss, plain_loss(logits, labels, widths), leaves(scores))


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("draws", [0, 4])
def test_the_sample_stands_for_the_catalogue(power, draws):
    """Over many steps, the sum over the sample of exp(s) / q averages to the sum over the catalogue."""
    torch.manual_seed(0)
    frequency = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05])
    probability = frequency**power / (frequency**power).sum()
    scores = torch.randn(5)
    estimates = []
    for _ in range(4000):
        labels = torch.multinomial(frequency, 3, replacement=True)
        drawn = torch.multinomial(probability, max(draws, 1), replacement=True)[:draws]
        sample = mixed_sample(labels, drawn, frequency, probability)
        assert set(sample.items_N.tolist()) == {*labels.tolist(), *drawn.tolist()}
        estimates.append(torch.exp(scores[sample.items_N] - sample.log_q_N).sum())
    torch.testing.assert_close(torch.stack(estimates).mean(), torch.exp(scores).sum(), rtol=0.03, atol=0)


def test_an_item_that_is_all_there_is():
    sample = mixed_sample(torch.tensor([0, 0]), torch.tensor([0]), torch.ones(1), torch.ones(1))
    assert sample.items_N.tolist() == [0] and sample.log_q_N.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_by_hand(t, repeats):
    """An item that is drawn twice counts twice, a position's label among the draws not at all."""
    scores, labels = ingredients(repeats=repeats)
    drawn = torch.tensor([3, 3, 5, 0])
    loss, _ = gbce(scores, labels, drawn, Widths(WIDTHS, (0.5, 0.3, 0.2)), ITEMS, t)
    rate = 4 / (ITEMS - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    assert beta == pytest.approx({0.0: 1.0, 0.75: 0.25 + 0.75 * rate, 1.0: rate}[t])
    total = 0.0
    for shown, weight in zip(plain_logits(scores), (0.5, 0.3, 0.2), strict=True):
        logits = shown - np.log(4)  # as rare as one in so many
        for position, label in enumerate(labels.tolist()):
            negatives = [logits[position, item] for item in drawn.tolist() if item != label]
            own = beta * torch.log(torch.sigmoid(logits[position, label]))
            total = total - weight * (own + torch.log(1 - torch.sigmoid(torch.stack(negatives))).sum())
    compare(loss, total / POSITIONS, leaves(scores))


def test_widths_share_out_distillation():
    assert Widths(WIDTHS, (1.0, 1.0, 1.0), 0.3).shares() == [0.3, 0.3, 0.0]
    assert Widths((8,), (1.0,), 0.3).shares() == [0.0]
    np.testing.assert_allclose(Widths(WIDTHS, (1.0, 1.0, 1.0)).shares(), 0)
