"""ItemKNN: cosine similarity of items over the users they share (Sarwar et al., WWW 2001, section 3.1)."""

from typing import Annotated

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys.config import Config
from recsys.models.baselines.neighbourhood import ItemItemModel


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
        # strongest first within each column; equal similarities keep the lower item index
        order = np.lexsort((entries.row, -cosine, entries.col))
        columns = entries.col[order]
        first = np.searchsorted(columns, columns)
        kept = order[np.arange(len(order)) - first < self.config.neighbours]
        places = (entries.row[kept], entries.col[kept])
        weights_II = sp.csr_matrix((cosine[kept].astype(np.float32), places), shape=common_II.shape)
        weights_II.sort_indices()
        return weights_II
