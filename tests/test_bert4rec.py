"""Attention both ways, and batches with hidden items."""

import numpy as np
import pytest
import torch
from test_mixers import WIDTH, by_row, planted, slow_attention

from recsys.config import parse
from recsys.errors import ConfigError, ModelError
from recsys.models.bert4rec import BERT4Rec
from recsys.models.mixers.attention import Attention
from recsys.models.packing import hidden, with_question
from recsys.models.sequence_module import masked_batch
from recsys.schema import Ragged
from recsys.serving import mixers as served
from recsys.serving.network import WholeNetwork


def built(dtype: torch.dtype) -> Attention:
    torch.manual_seed(3)
    mixer = Attention(WIDTH, heads=2, window=60, causal=False)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return mixer.to(dtype).eval()


def test_the_last_token_sees_what_a_causal_one_sees_and_the_others_more():
    """Row by row: the last output equals causal attention's, and so do all, once the row ends there."""
    mixer, rows = built(torch.float64), planted()
    for row, out in zip(rows, by_row(mixer, rows), strict=True):
        torch.testing.assert_close(out[-1], slow_attention(mixer, row)[-1])
        if len(row) > 1:
            assert not torch.allclose(out[0], slow_attention(mixer, row)[0])
    # a row's order of keys does not matter but through their positions: turn both around
    turned = built(torch.float64)
    turned.position.data[:5] = mixer.position[:5].flip(0)
    torch.testing.assert_close(by_row(turned, [rows[0].flip(0)])[0].flip(0), by_row(mixer, rows)[0])


def test_numpy_reads_rows_whole():
    mixer = built(torch.float32)
    rows = planted((7, 7, 7), dtype=torch.float32)
    twin = served.Bidirectional({key: value.detach().numpy() for key, value in mixer.arrays().items()})
    with torch.no_grad():
        expected = torch.stack(by_row(mixer, rows)).numpy()
    np.testing.assert_allclose(twin.whole(torch.stack(rows).numpy()), expected, rtol=1e-5, atol=1e-5)


def test_hidden_items_are_asked_for():
    rows = Ragged.of([[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8]] * 200)
    share = 0.3
    covered = hidden(rows, share, np.random.default_rng(0))
    assert np.array_equal(covered.lengths, rows.lengths)
    hide = covered.flat()[1] == -1
    assert np.array_equal(covered.flat()[1][~hide], rows.flat()[1][~hide])
    assert all(-1 in covered[row] for row in range(len(rows)))
    long = np.repeat(rows.lengths == 8, rows.lengths)
    assert abs(hide[long].mean() - share - 0.7**8 / 8) < 0.02
    batch = masked_batch(rows, share, np.random.default_rng(0))
    asked, tokens, counts = batch["asked_P"].numpy(), batch["tokens_P"].numpy(), batch["counts_T"].numpy()
    assert (tokens[asked] == -1).all() and (tokens == -1).sum() == len(asked) == hide.sum()
    whole = tokens.copy()
    whole[asked] = batch["labels_P"].numpy()
    # longest rows first: the first token of each
    firsts = whole[: counts[0]]
    assert firsts.tolist() == [5] * 200 + [3] * 200 + [1] * 200


def test_a_question_stands_before_or_after():
    rows = Ragged.of([[3, 1], [], [7]])
    found = {
        first: [row.tolist() for row in map(with_question(rows, first=first).__getitem__, range(3))]
        for first in (True, False)
    }
    assert found == {True: [[-1, 3, 1], [-1], [-1, 7]], False: [[3, 1, -1], [-1], [7, -1]]}


def test_what_looks_both_ways_has_no_steps():
    with pytest.raises(ModelError, match="no state"):
        WholeNetwork.initial(None, 1)
    with pytest.raises(ConfigError, match="repeat_bias needs a trunk that goes forward"):
        parse(BERT4Rec.Config, {"repeat_bias": True}, where="x")
