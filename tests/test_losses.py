"""Losses against plain softmaxes: every width, distillation, temperatures, repeats, samples; values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys.models import losses
from recsys.models.losses import Repeats, Scores, Widths, full_softmax
from recsys.models.sampled import Sample, draw, in_batch, sampled_loss

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
def test_full_softmax_equals_one_softmax_a_width(monkeypatch, chunk, distil, repeats):
    """Whole, and in chunks of 16 or of a single position."""
    monkeypatch.setattr(losses, "_CHUNK_FLOATS", chunk)
    monkeypatch.setattr(losses, "_LEAST_ROWS", min(chunk, 16))
    scores, labels = ingredients(repeats=repeats)
    widths = Widths(WIDTHS, (0.5, 0.3, 0.2), distil)
    loss, per_width = full_softmax(scores, labels, widths)
    logits = plain_logits(scores)
    compare(loss, plain_loss(logits, labels, widths), leaves(scores))
    hard = torch.stack([F.cross_entropy(own, labels) for own in logits])
    torch.testing.assert_close(per_width, hard.detach())


def test_confident_logits_stay_finite():
    """A label whose probability is no float32 number still has a finite loss and gradient."""
    queries, items = torch.tensor([[30.0, 0.0]]).requires_grad_(), torch.tensor([[10.0, 0.0], [-10.0, 0.0]])
    empty = torch.zeros(0, dtype=torch.long)
    scores = Scores(queries, items, torch.zeros(2), torch.ones(1), Repeats(empty, empty, torch.zeros(0)))
    loss, _ = full_softmax(scores, torch.tensor([1]), Widths((2,), (1.0,)))
    loss.backward()
    assert loss.item() == pytest.approx(600) and torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("distil", [0.0, 0.4])
def test_sampled_softmax_over_every_other_item_is_the_full_one(distil):
    """Each item once and no correction: the position's label counts once, as itself."""
    scores, labels = ingredients()
    widths = Widths(WIDTHS, (0.5, 0.3, 0.2), distil)
    everything = Sample(torch.randperm(ITEMS), torch.zeros(ITEMS, dtype=torch.float64), ITEMS)
    loss, _ = sampled_loss(scores, labels, everything, widths)
    compare(loss, plain_loss(plain_logits(scores), labels, widths), leaves(scores))


def test_an_item_drawn_twice_counts_twice():
    scores, labels = ingredients()
    drawn = torch.tensor([3, 3, 5, 0])
    loss, _ = sampled_loss(
        scores,
        labels,
        Sample(drawn, torch.zeros(4, dtype=torch.float64), ITEMS),
        Widths(WIDTHS, (0.5, 0.3, 0.2)),
    )
    total = 0.0
    for logits, weight in zip(plain_logits(scores), (0.5, 0.3, 0.2), strict=True):
        for position, label in enumerate(labels.tolist()):
            others = [logits[position, item] for item in drawn.tolist() if item != label]
            total = total + weight * (
                torch.logsumexp(torch.stack([logits[position, label], *others]), 0) - logits[position, label]
            )
    compare(loss, total / POSITIONS, leaves(scores))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_log_q_makes_the_sample_stand_for_the_catalogue(power):
    """The mean over many draws of sum exp(s - log q) is the sum over the catalogue."""
    torch.manual_seed(0)
    counts = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0]) ** power
    scores = torch.randn(5)
    sample = draw(counts / counts.sum(), 200_000)
    estimate = torch.exp(scores[sample.items_N] - sample.log_q_N).sum()
    torch.testing.assert_close(estimate, torch.exp(scores).sum(), rtol=0.02, atol=0)
    assert (draw(counts / counts.sum(), 10, log_q=False).log_q_N == 0).all()


def test_in_batch_negatives_are_weighted_by_their_chance_to_be_there():
    """Over many batches, sum over the sample of exp(s - log q) averages to the sum over the catalogue."""
    torch.manual_seed(0)
    probability = torch.tensor([0.1, 0.5, 0.2, 0.15, 0.05])
    scores = torch.randn(5)
    estimates = []
    for _ in range(4000):
        labels = torch.multinomial(probability, 6, replacement=True)
        sample = in_batch(labels, probability)
        assert len(sample.items_N) == len(set(labels.tolist()))
        estimates.append(torch.exp(scores[sample.items_N] - sample.log_q_N).sum())
    torch.testing.assert_close(torch.stack(estimates).mean(), torch.exp(scores).sum(), rtol=0.03, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_by_hand(t):
    scores, labels = ingredients(repeats=False)
    drawn = torch.tensor([3, 1, 5, 0])
    sample = Sample(drawn, torch.randn(4, dtype=torch.float64), ITEMS)  # log q is the softmax's affair
    loss, _ = sampled_loss(scores, labels, sample, Widths(WIDTHS, (0.5, 0.3, 0.2)), t)
    rate = 4 / (ITEMS - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    assert beta == pytest.approx({0.0: 1.0, 0.75: 0.25 + 0.75 * rate, 1.0: rate}[t])
    total = 0.0
    for logits, weight in zip(plain_logits(scores), (0.5, 0.3, 0.2), strict=True):
        for position, label in enumerate(labels.tolist()):
            negatives = [logits[position, item] for item in drawn.tolist() if item != label]
            own = beta * torch.log(torch.sigmoid(logits[position, label]))
            total = total - weight * (own + torch.log(1 - torch.sigmoid(torch.stack(negatives))).sum())
    compare(loss, total / POSITIONS, leaves(scores))


def test_widths_share_out_distillation():
    assert Widths(WIDTHS, (1.0, 1.0, 1.0), 0.3).shares() == [0.3, 0.3, 0.0]
    assert Widths((8,), (1.0,), 0.3).shares() == [0.0]
    np.testing.assert_allclose(Widths(WIDTHS, (1.0, 1.0, 1.0)).shares(), 0)
