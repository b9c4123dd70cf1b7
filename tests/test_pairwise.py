"""Losses of a position against items of its own, and of directions alone, by hand; values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from test_losses import ITEMS, POSITIONS, WIDTHS, compare, ingredients, leaves, plain_logits

from recsys.models.losses import Widths
from recsys.models.pairwise import bce, bpr, directau

SHARES = Widths(WIDTHS, (0.5, 0.3, 0.2))


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("loss_of", [bpr, bce])
def test_against_items_of_its_own(loss_of, repeats):
    """An item that is drawn twice counts twice, a position's own label not at all."""
    scores, labels = ingredients(repeats=repeats)
    drawn = torch.randint(ITEMS, (POSITIONS, 3), generator=torch.Generator().manual_seed(1))
    drawn[0], drawn[1, :2] = labels[0], drawn[1, 2]
    loss, per_width = loss_of(scores, labels, drawn, SHARES)
    pairs = [(p, item) for p, own in enumerate(drawn.tolist()) for item in own if item != labels[p]]
    totals = []
    for logits in plain_logits(scores):
        if loss_of is bpr:
            terms = [torch.log(torch.sigmoid(logits[p, labels[p]] - logits[p, item])) for p, item in pairs]
            totals.append(-torch.stack(terms).mean())
        else:
            others = [torch.log(torch.sigmoid(-logits[p, item])) for p, item in pairs]
            own = torch.log(torch.sigmoid(logits.gather(1, labels[:, None]))).sum()
            totals.append(-(own + torch.stack(others).sum() / 3) / POSITIONS)
    torch.testing.assert_close(per_width, torch.stack(totals))
    expected = sum(weight * total for weight, total in zip(SHARES.weights, totals, strict=True))
    compare(loss, expected, leaves(scores))


def test_alignment_and_uniformity():
    scores, labels = ingredients(repeats=False)
    labels[:ITEMS] = torch.arange(ITEMS)
    total = 0.0
    for width, weight in zip(WIDTHS, SHARES.weights, strict=True):
        q, e = (F.normalize(part[:, :width], dim=1) for part in (scores.queries_PD, scores.items_ID))
        apart = [
            torch.stack(
                [torch.exp(-2 * (x[i] - x[j]) @ (x[i] - x[j])) for i in range(len(x)) for j in range(i)]
            )
            for x in (q, e)
        ]
        close = torch.stack([(q[p] - e[labels[p]]) @ (q[p] - e[labels[p]]) for p in range(POSITIONS)]).mean()
        total = total + weight * (close + 0.7 * sum(torch.log(part.mean()) for part in apart) / 2)
    loss, _ = directau(scores, labels, SHARES, 0.7)
    compare(loss, total, (scores.queries_PD, scores.items_ID))


def test_one_vector_crowds_nobody():
    scores, labels = ingredients(repeats=False)
    alone = scores._replace(queries_PD=scores.queries_PD[:1], items_ID=scores.items_ID[:1])
    loss, _ = directau(alone, labels[:1] * 0, SHARES, 1.0)
    assert torch.isfinite(loss)
