"""EASE: a linear autoencoder with zero diagonal, in closed form (Steck, WWW 2019, equation 8)."""

from typing import Annotated

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from pydantic import Field

from recsys.config import Config
from recsys.models.baselines.neighbourhood import ItemItemModel


class EASEConfig(Config):
    """Settings of EASE."""

    regularisation: Annotated[float, Field(gt=0)] = 250.0
    """lambda, added to the diagonal of the item-item counts."""


class EASE(ItemItemModel[EASEConfig]):
    """W = I - P diag(1 / diag(P)) with P = (X'X + lambda I)^-1. Memory: two I x I float64 while fitting."""

    Config = EASEConfig

    def weights(self, users_UI: sp.csr_matrix) -> np.ndarray:
        gram_II = (users_UI.T @ users_UI).toarray().astype(np.float64)
        diagonal = np.arange(len(gram_II))
        gram_II[diagonal, diagonal] += self.config.regularisation
        factor = scipy.linalg.cho_factor(gram_II, lower=True, overwrite_a=True, check_finite=False)
        inverse_II = scipy.linalg.cho_solve(
            factor, np.eye(len(gram_II)), overwrite_b=True, check_finite=False
        )
        weights_II = inverse_II / -inverse_II[diagonal, diagonal]
        weights_II[diagonal, diagonal] = 0.0
        return weights_II.astype(np.float32)
