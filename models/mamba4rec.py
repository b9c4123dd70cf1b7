"""Mamba4Rec: a selective state space over item ids.

After Liu et al., "Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space Models" (arXiv
2403.03900): state 32, convolution 4, expansion 2, full softmax, every position supervised. Departures: the block that
all sequence models here share (residuals also with a single layer, gated feed-forward in place of 4 x GELU, start
vector, input norm without a dropout before it), so that trunks are compared with all else equal; and Mamba's own
initial step sizes, which the published code overwrites.
"""

from typing import Annotated

from pydantic import Field

from recsys.models.sequence import SequenceModel
from recsys.models.sequence_config import SequenceConfig
from recsys.models.trunk import Mixer, Share


class Mamba4RecConfig(SequenceConfig):
    """Settings of Mamba4Rec; `trunk = "mamba2"` for its successor."""

    trunk: Mixer = "mamba"
    """What mixes the steps of a history."""
    widths: tuple[int, ...] = (64,)
    """The width."""
    blocks: Annotated[int, Field(ge=1)] = 1
    """Blocks of mixer and feed-forward."""
    ffn_multiple: Annotated[int, Field(ge=1)] = 4
    """Hidden units of the feed-forward, as a multiple of the width."""
    id_dropout: Share = 0.0
    """Share of items whose id vector is zero in a training step."""
    item_bias: bool = False
    """A learnt popularity bias per item."""


class Mamba4Rec(SequenceModel[Mamba4RecConfig]):
    """Next-item ranking with a Mamba trunk."""

    Config = Mamba4RecConfig
