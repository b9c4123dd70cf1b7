"""Scores of a pair that are more than a dot product: constants, a dot product, and a small network over both sides.

DeepFM uses it offline and its torch-free program in service, so that both say the same. NumPy only.
"""

from collections.abc import Mapping

import numpy as np

from recsys.schema import Queries

_CHUNK_FLOATS = 1 << 24
"""Floats of the hidden layer that exist at once."""


def deepfm_scores(
    arrays: Mapping[str, np.ndarray], queries: Queries, candidates: np.ndarray | None
) -> np.ndarray:
    """[Q, I], or the columns of candidates as in `score`; float32.

    arrays, each with a row for every user and a last one for an unknown user, or a row for every item:
    user_constant, item_constant; user_factor, item_factor [., D]; user_hidden, item_hidden [., H], the two sides'
    shares of the first hidden layer. Then hidden.{n}.weight [H', H] and hidden.{n}.bias for the layers after it, the
    last one of a single unit. score = constants + factor . factor + network(relu(hidden + hidden)).
    """
    row_Q = np.where(queries.user_Q >= 0, queries.user_Q, len(arrays["user_constant"]) - 1)
    items = len(arrays["item_constant"])
    if candidates is None:
        columns_QC = np.broadcast_to(np.arange(items), (len(queries), items))
    else:
        columns_QC = np.broadcast_to(candidates, (len(queries), np.shape(candidates)[-1]))
    out_QC = np.empty(columns_QC.shape, np.float32)
    rows = max(_CHUNK_FLOATS // max(columns_QC.shape[1] * arrays["item_hidden"].shape[1], 1), 1)
    for start in range(0, len(queries), rows):
        here = slice(start, start + rows)
        out_QC[here] = _chunk(arrays, row_Q[here], None if candidates is None else columns_QC[here])
    return np.where(columns_QC < 0, -np.inf, out_QC).astype(np.float32)


def _chunk(arrays: Mapping[str, np.ndarray], row_Q: np.ndarray, columns_QC: np.ndarray | None) -> np.ndarray:
    user = {name: arrays[f"user_{name}"][row_Q] for name in ("constant", "factor", "hidden")}
    if columns_QC is None:
        item = {name: arrays[f"item_{name}"][None] for name in ("constant", "factor", "hidden")}
        dots_QC = user["factor"] @ arrays["item_factor"].T
    else:
        safe_QC = np.maximum(columns_QC, 0)
        item = {name: arrays[f"item_{name}"][safe_QC] for name in ("constant", "factor", "hidden")}
        dots_QC = np.einsum("qd,qcd->qc", user["factor"], item["factor"])
    hidden = np.maximum(user["hidden"][:, None] + item["hidden"], 0)
    number = 0
    while f"hidden.{number}.weight" in arrays:
        if number:
            hidden = np.maximum(hidden, 0)
        hidden = hidden @ arrays[f"hidden.{number}.weight"].T + arrays[f"hidden.{number}.bias"]
        number += 1
    return user["constant"][:, None] + item["constant"] + dots_QC + hidden[..., 0]
