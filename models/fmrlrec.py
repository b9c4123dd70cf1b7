"""fMRLRec: a Matryoshka linear-recurrent sequence model over content and ids.

After Wang et al., "Train Once, Deploy Anywhere" (EMNLP 2024 Findings, arXiv 2409.16627). Departures:
a residual id vector with id dropout (the paper has content only), a LayerNorm on the item vectors
that enter the trunk, post-norm, whitened features, a learnt start vector in place of padding, a
learnt vector for a missing modality, an item bias, and a learnt bias for items of the own history.
"""

from recsys.models.sequence import SequenceModel
from recsys.models.sequence_config import SequenceConfig


class FMRLRecConfig(SequenceConfig):
    """Settings of fMRLRec."""


class FMRLRec(SequenceModel[FMRLRecConfig]):
    """Next-item ranking from the whole history; every nested width is a model of its own."""

    Config = FMRLRecConfig
    version = 2
