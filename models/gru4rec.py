"""GRU4Rec: a gated recurrent network over item ids.

After Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (ICLR 2016). Departures: softmax
over the catalogue in place of the ranking losses, whole histories in place of session-parallel batches, and the block
that all sequence models here share (residuals, norms, gated feed-forward, start vector), so that trunks are compared
with all else equal.
"""

from typing import Annotated

from pydantic import Field

from recsys.models.sequence import SequenceModel
from recsys.models.sequence_config import SequenceConfig
from recsys.models.trunk import Mixer, Share


class GRU4RecConfig(SequenceConfig):
    """Settings of GRU4Rec."""

    trunk: Mixer = "gru"
    """What mixes the steps of a history."""
    widths: tuple[int, ...] = (64,)
    """The width."""
    blocks: Annotated[int, Field(ge=1)] = 1
    """Blocks of mixer and feed-forward."""
    id_dropout: Share = 0.0
    """Share of items whose id vector is zero in a training step."""
    item_bias: bool = False
    """A learnt popularity bias per item."""


class GRU4Rec(SequenceModel[GRU4RecConfig]):
    """Next-item ranking with a GRU trunk."""

    Config = GRU4RecConfig
