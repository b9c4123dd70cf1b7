"""Vectors of the training rows that specialists learn from: weighted matrix factorisation in closed steps."""

import numpy as np

from recsys.models.baselines.neighbourhood import binary_matrix
from recsys.schema import Log


def wmf(
    log: Log, width: int, regularisation: float, confidence: float, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(users [U, D], items [I, D]), float32, after Hu, Koren and Volinsky (ICDM 2008, equations 4 and 5): least squares
    to 1 for pairs that were seen, of weight 1 + confidence, and to 0 for all others. Users and items without a row are
    zeros."""
    matrix_UI = binary_matrix(log)
    matrix_IU = matrix_UI.T.tocsr()
    items_ID = np.random.default_rng(seed).standard_normal((log.num_items, width)) * 0.1
    items_ID[np.diff(matrix_IU.indptr) == 0] = 0
    for _ in range(rounds):
        users_UD = _solved(matrix_UI.indptr, matrix_UI.indices, items_ID, regularisation, confidence)
        items_ID = _solved(matrix_IU.indptr, matrix_IU.indices, users_UD, regularisation, confidence)
    return users_UD.astype(np.float32), items_ID.astype(np.float32)


def _solved(
    indptr: np.ndarray, indices: np.ndarray, other_ND: np.ndarray, regularisation: float, confidence: float
) -> np.ndarray:
    width = other_ND.shape[1]
    base_DD = other_ND.T @ other_ND + regularisation * np.eye(width)
    out_ED = np.zeros((len(indptr) - 1, width))
    for row in np.flatnonzero(np.diff(indptr)):
        seen_RD = other_ND[indices[indptr[row] : indptr[row + 1]]]
        gram_DD = base_DD + confidence * seen_RD.T @ seen_RD
        out_ED[row] = np.linalg.solve(gram_DD, (1 + confidence) * seen_RD.sum(axis=0))
    return out_ED
