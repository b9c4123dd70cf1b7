"""ItemKNN: cosine similarity of items over the users they share (Sarwar et al., WWW 2001, section 3.1)."""

from typing import Annotated

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys.config import Config
from recsys.models.baselines.neighbourhood import ItemItemModel, nearest


class ItemKNNConfig(Config):
    """Settings of ItemKNN."""

    neighbours: Annotated[int, Field(ge=1)] = 100
    """Most similar items kept for each candidate item."""
    shrink: Annotated[float, Field(ge=0)] = 10.0
    """Added to the denominator, so that similarities resting on few common users count less."""


class ItemKNN(ItemItemModel[ItemKNNConfig]):
    """W[i, j] = common users / (sqrt(n_i n_j) + shrink) for the `neighbours` most similar i of each j."""

    Config = ItemKNNConfig

    def weights(self, users_UI: sp.csr_matrix) -> sp.csr_matrix:
        norms_I = np.sqrt(np.asarray(users_UI.sum(axis=0)).ravel())
        common_II = (users_UI.T @ users_UI).tocsr()
        common_II.setdiag(0)
        common_II.eliminate_zeros()
        entries = common_II.tocoo()
        cosine = entries.data / (norms_I[entries.row] * norms_I[entries.col] + self.config.shrink)
        cosine_II = sp.coo_matrix((cosine, (entries.row, entries.col)), shape=common_II.shape)
        return nearest(cosine_II, self.config.neighbours)
