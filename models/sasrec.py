"""SASRec: self-attention over item ids.

After Kang and McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018). Departures: softmax over many sampled
negatives, the one change that makes it strong (Klenitskiy and Vasilev, RecSys 2023), in place of one negative a
position; and the block that all sequence models here share (gated feed-forward, start vector), so that trunks are
compared with all else equal.

S3-Rec's SASRec (CIKM 2020), whose figures many papers cite, is `sasrec-published` of the recipe baselines-beauty: loss
bce, one negative, norm post, positions input, ffn gelu, ffn_multiple 4. What then remains: the start vector, which is
trained to give the first item; rows before the last window, which are trained too; negatives that may be of the user's
history; initial weights.
"""

from typing import Annotated

from pydantic import Field

from recsys.models.objective import Loss
from recsys.models.sequence import SequenceModel
from recsys.models.sequence_config import SequenceConfig
from recsys.models.trunk import Mixer, Norm, Share


class SASRecConfig(SequenceConfig):
    """Settings of SASRec."""

    trunk: Mixer = "attention"
    """What mixes the steps of a history."""
    widths: tuple[int, ...] = (64,)
    """The width."""
    norm: Norm = "pre"
    """LayerNorm after each residual sum, or before each mixer and feed-forward."""
    window: Annotated[int, Field(ge=2)] = 50
    """Longest stretch of a history in one training row; scoring reads the last window - 1 items."""
    id_dropout: Share = 0.0
    """Share of items whose id vector is zero in a training step."""
    item_bias: bool = False
    """A learnt popularity bias per item."""
    loss: Loss = "sampled"
    """The kind of softmax, or another loss (see `ObjectiveConfig`)."""
    negatives: Annotated[int, Field(ge=1)] = 256
    """sampled, gbce: items drawn a step, the same for all its positions. bce, bpr: items drawn for each position."""


class SASRec(SequenceModel[SASRecConfig]):
    """Next-item ranking with an attention trunk."""

    Config = SASRecConfig
