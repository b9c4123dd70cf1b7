"""Exact nearest rows by cosine, block by block: no matrix of all pairs is ever held. NumPy only."""

import numpy as np

_DECIMALS = 7


def nearest(
    queries_QF: np.ndarray, rows_NF: np.ndarray, k: int, *, own_Q: np.ndarray | None = None, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """(places [Q, K] among the rows, their cosines [Q, K] float32), strongest first, equal ones by lower place.

    K = min(k, N). A row or query of length zero has no direction and is nobody's neighbour: place -1, cosine -inf.
    own_Q: place of each query among the rows, never its own neighbour; -1 = none. block: queries at a time.
    Cosines are summed in float64 and then rounded to seven decimals, so that neither blocks nor company nor the machine
    decide between rows that are equally near, at right angles among them.
    """
    k = min(k, len(rows_NF))
    places_QK = np.full((len(queries_QF), k), -1, np.int64)
    cosine_QK = np.full((len(queries_QF), k), -np.inf, np.float32)
    if not k:
        return places_QK, cosine_QK
    rows_NF, pointless_N = _unit(rows_NF)
    for start in range(0, len(queries_QF), block):
        here = slice(start, start + block)
        queries_BF, pointless_B = _unit(queries_QF[here])
        cosine_BN = np.round(queries_BF @ rows_NF.T, _DECIMALS).astype(np.float32)
        cosine_BN[:, pointless_N] = -np.inf
        cosine_BN[pointless_B] = -np.inf
        if own_Q is not None:
            inside = np.flatnonzero(own_Q[here] >= 0)
            cosine_BN[inside, own_Q[here][inside]] = -np.inf
        places_QK[here], cosine_QK[here] = _strongest(cosine_BN, k)
    places_QK[np.isneginf(cosine_QK)] = -1
    return places_QK, cosine_QK


def _unit(rows_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of length one, those that have none)."""
    rows_NF = rows_NF.astype(np.float64)
    lengths_N = np.linalg.norm(rows_NF, axis=1)
    return rows_NF / np.where(lengths_N > 0, lengths_N, 1.0)[:, None], lengths_N == 0


def _strongest(scores_BN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(columns [B, k], scores [B, k]) of the k largest of each row, equal ones by lower column."""
    last_B1 = -np.partition(-scores_BN, k - 1, axis=1)[:, k - 1 : k]
    above_BN, level_BN = scores_BN > last_B1, scores_BN == last_B1
    wanted_B1 = k - above_BN.sum(axis=1, keepdims=True)
    taken_BN = above_BN | (level_BN & (level_BN.cumsum(axis=1) <= wanted_B1))
    columns_BK = taken_BN.nonzero()[1].reshape(len(scores_BN), k)
    scores_BK = np.take_along_axis(scores_BN, columns_BK, axis=1)
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")
    return np.take_along_axis(columns_BK, order_BK, axis=1), np.take_along_axis(scores_BK, order_BK, axis=1)
