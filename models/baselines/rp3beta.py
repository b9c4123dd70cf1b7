"""RP3beta: a random walk of three steps from the user, its ends weighed against their popularity.

After Paudel et al., "Updatable, Accurate, Diverse, and Scalable Recommendations for Interactive Applications" (ACM TiiS
7(1), 2017), with the exponent on the steps of P3alpha (Cooper et al., WWW 2014 Companion).
"""

from typing import Annotated

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys.config import Config
from recsys.models.baselines.neighbourhood import ItemItemModel, nearest


class RP3BetaConfig(Config):
    """Settings of RP3beta."""

    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Exponent on the probability of each step; below 1 the walk prefers nodes of many edges less."""
    beta: Annotated[float, Field(ge=0)] = 0.6
    """Scores are divided by (users of the item)^beta; 0 = P3alpha."""
    neighbours: Annotated[int, Field(ge=1)] = 100
    """Strongest items kept for each candidate item."""


class RP3Beta(ItemItemModel[RP3BetaConfig]):
    """W[i, j] = n_j^-beta * sum over the users v of both of (1/n_i)^alpha (1/n_v)^alpha.

    Departure: the walk's first step, from the user to an item of the history, is left out: it is the same for all of
    them and changes no order.
    """

    Config = RP3BetaConfig

    def weights(self, users_UI: sp.csr_matrix) -> sp.csr_matrix:
        alpha, beta = self.config.alpha, self.config.beta
        users_I = np.maximum(np.asarray(users_UI.sum(axis=0)).ravel(), 1.0)
        items_U = np.maximum(np.asarray(users_UI.sum(axis=1)).ravel(), 1.0)
        step_UI = sp.diags_array(items_U**-alpha) @ users_UI
        walk_II = sp.coo_matrix(users_UI.T @ step_UI)
        off = walk_II.row != walk_II.col
        rows, columns = walk_II.row[off], walk_II.col[off]
        weights = walk_II.data[off] * users_I[rows] ** -alpha * users_I[columns] ** -beta
        return nearest(sp.coo_matrix((weights, (rows, columns)), shape=walk_II.shape), self.config.neighbours)
