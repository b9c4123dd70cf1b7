"""The closed-form half of the cold-start model: EASE cut to a few dimensions, with content for what is not known.

Of few users a network learns less than a linear autoencoder knows at once; but that one has no place for new items.
Here an item is its spectral vector, or what a ridge regression on content makes of it, or a mixture of both while its
training rows are few. Scores of both halves of the model are added up.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import svds

from recsys.fusion import FieldMaps
from recsys.models.baselines.neighbourhood import binary_matrix
from recsys.models.coldstart.config import LinearConfig
from recsys.models.coldstart.fusion import TableFields
from recsys.schema import Log

_CERTAIN = 4.0
"""Training rows at which an item counts half as much in the regression as one with very many."""


class LinearHalf(NamedTuple):
    """items_IL: vectors of the catalogue; maps: from the fields of a new item's content to such a vector, summed."""

    items_IL: np.ndarray
    maps: FieldMaps


def linear_half(log: Log, fields: TableFields, config: LinearConfig) -> LinearHalf:
    """Fitted on training rows alone. An item without any content and without a row is zeros."""
    own_IL = spectral(log, config.width, config.regularisation)
    count_I = log.item_counts()
    there_EF = fields.present_EF.numpy()
    # an absent field says nothing
    parts = [one.numpy() * there_EF[:, [number]] for number, one in enumerate(fields.values())]
    content_IK = np.concatenate([np.zeros((len(count_I), 0)), *parts], axis=1)
    map_KL = _ridge(content_IK, own_IL, count_I / (count_I + _CERTAIN), config.content_regularisation)
    told_IL = content_IK @ map_KL
    own_I1 = (count_I / (count_I + config.half))[:, None]
    mixed_IL = own_I1 * own_IL + (1 - own_I1) * np.where(
        content_IK.any(axis=1, keepdims=True), told_IL, own_IL
    )
    ends = np.cumsum([part.shape[1] for part in parts])
    return LinearHalf(
        mixed_IL.astype(np.float32), fields.learnt(np.split(map_KL, ends[:-1]) if parts else [])
    )


def spectral(log: Log, width: int, regularisation: float) -> np.ndarray:
    """Items [I, D]: the singular vectors V of the binary matrix X of training rows, each scaled by
    sqrt(s^2 / (s^2 + regularisation)). Zeros beyond the rank of X, and for items without a row.

    The dot product of the sum of a history's items with an item is EASE (Steck, "Embarrassingly Shallow Autoencoders
    for Sparse Data", WWW 2019, equation 8) off its diagonal, which a masked history never meets, cut to D dimensions
    and without the last factor 1 / (1 - |v_i|^2) of each item: X' (X X' + lambda)^-1 X = V s^2 / (s^2 + lambda) V'.
    """
    matrix_UI = binary_matrix(log).astype(np.float64)
    rank = min(width, min(matrix_UI.shape) - 1)
    _, spread_R, axes_RI = svds(matrix_UI, k=rank, random_state=0)
    # signs are the solver's own affair; here the strongest entry of an axis is positive
    strongest_R1 = np.take_along_axis(axes_RI, np.abs(axes_RI).argmax(axis=1)[:, None], axis=1)
    scale_R1 = np.sqrt(spread_R**2 / (spread_R**2 + regularisation))[:, None]
    items_IR = (axes_RI * np.sign(strongest_R1) * scale_R1).T[:, ::-1]
    items_ID = np.pad(items_IR, [(0, 0), (0, width - rank)])
    items_ID[matrix_UI.getnnz(axis=0) == 0] = 0  # exactly
    return items_ID


def _ridge(x_NK: np.ndarray, y_NL: np.ndarray, weight_N: np.ndarray, strength: float) -> np.ndarray:
    """[K, L] least squares of y on x, without a constant."""
    weighted_NK = x_NK * weight_N[:, None]
    return np.linalg.solve(weighted_NK.T @ x_NK + strength * np.eye(x_NK.shape[1]), weighted_NK.T @ y_NL)
