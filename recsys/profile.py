"""A query vector made of what is known of its user: a vector learnt for the user, or one summed up from the history.

Models use it offline and their torch-free program in service, so that both say the same. NumPy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.schema import Form, Queries


@dataclass(frozen=True)
class Profile:
    """What query vectors are made of.

    A user that known_U marks has the row of users_UD. Any other, and everybody where there is no users_UD: the rows of
    inputs_ID for the history, weighted by 0.5^(age in events / half_life), summed and scaled (mean: over the weights'
    sum; root: over its square root; solved: what least squares, the rows against 1 and all items by gram_DD against 0,
    make of it, times fold_1), plus offset_D, through the activation. An empty history gives default_D as it is, or the
    row of users_UD for a user that cold_U marks.
    """

    inputs_ID: np.ndarray
    default_D: np.ndarray
    users_UD: np.ndarray | None = None
    known_U: np.ndarray | None = None
    offset_D: np.ndarray | None = None
    half_life: float | None = None
    scaling: Literal["mean", "root", "solved"] = "mean"
    activation: Literal["none", "sigmoid"] = "none"
    cold_U: np.ndarray | None = None
    gram_DD: np.ndarray | None = None
    fold_1: np.ndarray | None = None

    def vectors(self, queries: Queries) -> np.ndarray:
        """[Q, D] float32."""
        vectors_QD = self._of_histories(queries)
        if self.users_UD is not None:
            known_Q = (queries.user_Q >= 0) & self.known_U[queries.user_Q]
            if self.cold_U is not None:
                alone_Q = (queries.user_Q >= 0) & (queries.history.lengths == 0)
                known_Q |= alone_Q & self.cold_U[queries.user_Q]
            vectors_QD[known_Q] = self.users_UD[queries.user_Q[known_Q]]
        return vectors_QD

    def _of_histories(self, queries: Queries) -> np.ndarray:
        history = queries.history
        if len(history) == 1 and self.scaling != "solved":
            return self._of_one(history[0])
        lengths_Q = history.lengths
        rows_R, items_R = history.flat()
        weights_R = np.ones(len(rows_R))
        if self.half_life is not None:
            ago_R = np.repeat(np.cumsum(lengths_Q), lengths_Q) - np.arange(len(rows_R)) - 1
            weights_R = 0.5 ** (ago_R / self.half_life)
        total_QD = np.zeros((len(queries), self.inputs_ID.shape[1]))
        full_Q = lengths_Q > 0
        if len(rows_R):
            starts = (np.cumsum(lengths_Q) - lengths_Q)[full_Q]
            total_QD[full_Q] = np.add.reduceat(weights_R[:, None] * self.inputs_ID[items_R], starts)
        weight_Q = np.maximum(np.bincount(rows_R, weights_R, len(queries)), 1e-12)
        if self.scaling == "solved":
            total_QD = self._solved(total_QD, weights_R, rows_R, items_R)
        else:
            total_QD /= self._mass(weight_Q)[:, None]
        total_QD = self._finished(total_QD)
        total_QD[~full_Q] = self.default_D
        return total_QD.astype(np.float32)

    def _of_one(self, items_R: np.ndarray) -> np.ndarray:
        """[1, D]: as for many, without what tells them apart."""
        if not len(items_R):
            return self.default_D.astype(np.float32).reshape(1, -1)
        weights_R = np.ones(len(items_R))
        if self.half_life is not None:
            weights_R = 0.5 ** (np.arange(len(items_R))[::-1] / self.half_life)
        total_D = weights_R @ self.inputs_ID[items_R].astype(np.float64)
        total_D /= self._mass(max(weights_R.sum(), 1e-12))
        return self._finished(total_D).astype(np.float32)[None]

    def _mass(self, weight):
        """What sums are divided by."""
        return weight if self.scaling == "mean" else np.sqrt(weight)

    def _finished(self, total: np.ndarray) -> np.ndarray:
        """Offset and activation, over the last axis."""
        if self.offset_D is not None:
            total = total + self.offset_D
        return 1 / (1 + np.exp(-total)) if self.activation == "sigmoid" else total

    def _solved(
        self, total_QD: np.ndarray, weights_R: np.ndarray, rows_R: np.ndarray, items_R: np.ndarray
    ) -> np.ndarray:
        """(gram + sum of w v v')^-1 sum of w v, times fold_1."""
        out_QD = np.zeros_like(total_QD)
        ends = np.searchsorted(rows_R, np.arange(len(total_QD)), side="right")
        start = 0
        for row, end in enumerate(ends.tolist()):
            seen_RD = self.inputs_ID[items_R[start:end]].astype(np.float64)
            gram_DD = self.gram_DD + (weights_R[start:end, None] * seen_RD).T @ seen_RD
            out_QD[row], start = np.linalg.solve(gram_DD, total_QD[row]), end
        return out_QD * self.fold_1[0]

    @classmethod
    def array_names(cls) -> set[str]:
        return {"inputs_ID", "default_D", "users_UD", "known_U", "offset_D", "cold_U", "gram_DD", "fold_1"}

    def arrays(self, *, shared: bool) -> dict[str, np.ndarray]:
        """Those that there are. shared: without inputs_ID, as they are the item vectors."""
        found = {name: getattr(self, name) for name in sorted(self.array_names())}
        if shared:
            del found["inputs_ID"]
        return {name: value for name, value in found.items() if value is not None}

    def meta(self) -> dict[str, object]:
        return {"half_life": self.half_life, "scaling": self.scaling, "activation": self.activation}

    @classmethod
    def of(cls, form: Form) -> "Profile":
        """The profile of a `dot` form, as wide as its item vectors."""
        width = form.item_vectors_ID.shape[1]
        return cls(**{"inputs_ID": form.item_vectors_ID} | cut_arrays(form.arrays, width), **form.meta)


def cut_arrays(arrays: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """The first `width` values of all vectors among the arrays of a profile."""
    return {
        name: value if name in ("known_U", "cold_U", "fold_1") else np.ascontiguousarray(value[..., :width])
        for name, value in arrays.items()
    }
