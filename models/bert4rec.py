"""BERT4Rec: self-attention in both directions over item ids, taught by hiding items.

After Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer"
(CIKM 2019): items of a history are hidden at random and asked for; to recommend, one hidden item is put after it.
Departures: a row in which chance hides nothing hides its last item; the block is the one that all sequence models here
share (gated feed-forward, item vectors as output layer), so that trunks are compared with all else equal.
"""

from typing import Annotated

from pydantic import Field

from recsys.models.sequence import SequenceModel
from recsys.models.sequence_config import SequenceConfig
from recsys.models.trunk import Mixer, Share


class BERT4RecConfig(SequenceConfig):
    """Settings of BERT4Rec."""

    trunk: Mixer = "bidirectional"
    """What mixes the steps of a history."""
    widths: tuple[int, ...] = (64,)
    """The width."""
    heads: Annotated[int, Field(ge=1)] = 2
    """Heads, which divide the width."""
    window: Annotated[int, Field(ge=2)] = 50
    """Longest stretch of a history in one training row; scoring reads the last window - 1 items."""
    id_dropout: Share = 0.0
    """Share of items whose id vector is zero in a training step."""


class BERT4Rec(SequenceModel[BERT4RecConfig]):
    """Next-item ranking with attention in both directions."""

    Config = BERT4RecConfig
