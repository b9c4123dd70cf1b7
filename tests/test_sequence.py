"""What all sequence models share: settings that exclude each other, reduced precision, samples without cold items."""

import numpy as np
import pytest
import torch
from contracts.worlds import world

from recsys.config import parse
from recsys.errors import ConfigError
from recsys.models.fmrlrec import FMRLRec
from recsys.models.gru4rec import GRU4Rec
from recsys.models.mamba4rec import Mamba4Rec
from recsys.models.sasrec import SASRec
from recsys.models.sequence_config import SequenceConfig
from recsys.train import fit
from recsys.train_config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trunk": "gru", "widths": [4, 8]}, "not nested: give one width"),
        ({"trunk": "attention", "widths": [8], "heads": 3}, "3 heads do not divide the width 8"),
        ({"positions": "input"}, "positions = input needs trunk = attention or bidirectional, not lru"),
        ({"trunk": "gru", "widths": [8], "positions": "input"}, "positions = input needs trunk"),
        ({"loss": "gbce", "distil": 0.5}, "distil needs a softmax"),
        ({"id_vectors": False}, "nothing tells items apart"),
        ({"widths": [8, 4]}, "ascending widths"),
    ],
)
def test_settings_that_exclude_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse(SequenceConfig, settings, where="models.x")


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (FMRLRec, {"widths": [4, 8, 16], "tables": ["text"], "repeat_bias": True, "distil": 0.5}),
        (FMRLRec, {"widths": [16], "loss": "sampled", "negatives": 20}),
        (Mamba4Rec, {"widths": [16], "state": 4}),
        (Mamba4Rec, {"widths": [16], "state": 4, "trunk": "mamba2"}),
        (SASRec, {"widths": [16], "negatives": 20}),
        (GRU4Rec, {"widths": [16]}),
    ],
)
def test_mixed_precision_learns_as_full_precision(model_class, settings):
    """bfloat16 products: three epochs end within a hundredth of the loss of float32."""
    losses = {}
    for precision in ("no", "bf16"):
        model = model_class(parse(model_class.Config, settings, where="x"))
        progress = fit(model, world("hidden").context(), TrainConfig(epochs=3, lr=1e-2, precision=precision))
        losses[precision] = progress.history[-1]["loss"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.01)
    assert losses["bf16"] != losses["no"]


def test_history_dropout_thins_training_rows_anew_each_epoch():
    """The same rows for the same seed and epoch, others in the next; scoring reads histories whole."""
    ctx, model = world("order").context(), FMRLRec(parse(FMRLRec.Config, {"history_dropout": 0.3}, where="x"))
    model.setup(ctx)

    def tokens(epoch: int) -> list[list[int]]:
        return [batch["labels_P"].tolist() for batch in model.batches(epoch)]

    counts = [sum(map(len, tokens(epoch))) for epoch in range(3)]
    assert tokens(0) == tokens(0) and len(set(counts)) > 1
    assert all(0.6 < count / len(ctx.train) < 0.8 for count in counts)


@pytest.mark.parametrize("loss", ["full", "sampled", "in_batch"])
def test_cold_items_are_no_negatives(loss):
    """No gradient reaches what only cold items have: their content is never pushed away from a query."""
    place = world("content")
    cold_I = place.split.fit_log().item_counts() == 0
    model = FMRLRec(
        parse(FMRLRec.Config, {"widths": [8], "tables": ["text"], "loss": loss, "negatives": 500}, where="x")
    )
    torch.manual_seed(0)
    model.setup(place.context())
    whitened = model.module.items.whitened_text.requires_grad_()
    model.module(next(iter(model.batches(0))))[0].backward()
    moved_I = whitened.grad.abs().sum(1).numpy() > 0
    assert cold_I.any() and not moved_I[cold_I].any()
    present_I = place.tables["item", "text"].present_E
    assert np.mean(moved_I[~cold_I & present_I]) > (0.95 if loss != "in_batch" else 0.2)
