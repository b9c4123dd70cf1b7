"""Matrix factorisation: a vector a user and a vector an item, learnt from pairs.

With BPR it is BPR-MF (Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009); other
losses are one setting away. Departure: decay of the weights is the loop's (decoupled, every row at every step).
"""

from recsys.models.pairs import PairsConfig, PairsModel


class MFConfig(PairsConfig):
    """Settings of matrix factorisation."""


class MF(PairsModel[MFConfig]):
    """Matrix factorisation."""

    Config = MFConfig
