"""A query vector fused from all that is known of its user: id, history, attributes, the hour. NumPy only.

Models use it offline and their torch-free program in service, so that both say the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.fusion import FieldMaps, Fused, Fusion, below, with_bias
from recsys.schema import Dense, Form, Queries

DAY, HOUR = 86_400, 3_600


def hour_and_weekday(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of UTC seconds; Monday is 0."""
    return at % DAY // HOUR, (at // DAY + 3) % 7


@dataclass(frozen=True)
class QueryTower:
    """Fields in this order: id, history, those of the attribute tables, then hour and weekday where there is context.

    inputs_ID: vectors of the items, the last value their bias. ids_UD, strength_U: vectors of users and log(1 + rows
    they were learnt from), 0 for a user without any. rows: attribute table -> rows of the users; a query's own
    `user_fields` (table -> [Q, F], NaN where absent) win over them. history_DD: map of the mean of a history's items,
    weighted by exp(-decay * age in events). context: hour [24, D] and weekday [7, D], or nothing.
    linear: [1] weight of a linear half, whose values stand behind the first D of inputs_ID; its part of a query is
    their sum over the history.
    """

    inputs_ID: np.ndarray
    fusion: Fusion
    fields: FieldMaps
    ids_UD: np.ndarray
    strength_U: np.ndarray
    history_DD: np.ndarray
    decay_1: np.ndarray
    rows: Mapping[str, Dense]
    context: Mapping[str, np.ndarray]
    linear: np.ndarray | None = None

    def vectors(self, queries: Queries) -> np.ndarray:
        """[Q, D] float32; the last value is 1, which takes an item's bias as it is."""
        fused_QD = self.fused(queries).vectors_ND
        parts = [fused_QD]
        if self.linear is not None:
            parts.append(self.linear[0] * self._sums(queries, self.inputs_ID[:, fused_QD.shape[1] : -1]))
        return with_bias(np.concatenate(parts, axis=1), np.ones(len(queries)))

    def fused(self, queries: Queries) -> Fused:
        """With the weights that fields and groups were given."""
        vectors_QFD, strength_QF = self._known(queries)
        return self.fusion(vectors_QFD, strength_QF)

    def silent(self, queries: Queries) -> np.ndarray:
        """[Q] nothing is known of the user; the hour alone says nothing."""
        _, strength_QF = self._known(queries)
        own = strength_QF.shape[1] - len(self.context)
        return ~(strength_QF[:, :own] > 0).any(axis=1)

    def _known(self, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        known_Q = queries.user_Q >= 0
        user_Q = np.maximum(queries.user_Q, 0)
        id_QD = np.where(known_Q[:, None], self.ids_UD[user_Q], 0).astype(np.float64)
        id_Q = np.where(known_Q, self.strength_U[user_Q], 0)
        attributes_QFD, attribute_QF = self.fields(self._rows(queries, known_Q, user_Q), len(queries))
        vectors = [
            id_QD[:, None],
            self._histories(queries)[:, None],
            attributes_QFD.reshape(len(queries), -1, id_QD.shape[1]),
        ]
        strengths = [id_Q[:, None], np.log1p(queries.history.lengths)[:, None], attribute_QF]
        if self.context:
            places = zip(("hour", "weekday"), hour_and_weekday(queries.at_Q), strict=True)
            vectors += [self.context[name][at_Q][:, None] for name, at_Q in places]
            strengths += [np.ones((len(queries), 2))]
        return np.concatenate(vectors, axis=1), np.concatenate(strengths, axis=1)

    def _rows(self, queries: Queries, known_Q: np.ndarray, user_Q: np.ndarray) -> dict[str, Dense]:
        found = {}
        for name, table in self.rows.items():
            values_QF, there_Q = table.values_EF[user_Q], table.present_E[user_Q] & known_Q
            if name in queries.user_fields:
                given_QF = queries.user_fields[name]
                given_Q = np.isfinite(given_QF).all(axis=1)
                values_QF = np.where(given_Q[:, None], given_QF, values_QF)
                there_Q = there_Q | given_Q
            found[name] = Dense(values_QF, there_Q)
        return found

    def _histories(self, queries: Queries) -> np.ndarray:
        lengths_Q = queries.history.lengths
        rows_R, _ = queries.history.flat()
        ago_R = np.repeat(np.cumsum(lengths_Q), lengths_Q) - np.arange(len(rows_R)) - 1
        weights_R = np.exp(-self.decay_1[0] * ago_R)
        total_QD = self._sums(queries, self.inputs_ID[:, : len(self.history_DD)], weights_R)
        total_QD /= np.maximum(np.bincount(rows_R, weights_R, len(queries)), 1e-12)[:, None]
        return total_QD @ self.history_DD

    @staticmethod
    def _sums(queries: Queries, vectors_ID: np.ndarray, weights_R: np.ndarray | None = None) -> np.ndarray:
        """[Q, D] float64: of every history's items, each by its weight."""
        lengths_Q = queries.history.lengths
        _, items_R = queries.history.flat()
        total_QD = np.zeros((len(queries), vectors_ID.shape[1]))
        full_Q = lengths_Q > 0
        if len(items_R):
            rows_RD = vectors_ID[items_R].astype(np.float64)
            if weights_R is not None:
                rows_RD *= weights_R[:, None]
            total_QD[full_Q] = np.add.reduceat(rows_RD, (np.cumsum(lengths_Q) - lengths_Q)[full_Q])
        return total_QD

    def arrays(self, *, shared: bool = True) -> dict[str, np.ndarray]:
        """All but inputs_ID, which are the item vectors."""
        found = {f"fusion.{name}": value for name, value in self.fusion.arrays.items()}
        for name, table in self.rows.items():
            filled_UF = np.where(table.present_E[:, None], table.values_EF, 0).astype(np.float32)
            found |= {f"rows.{name}": filled_UF, f"there.{name}": table.present_E}
        found |= {f"context.{name}": value for name, value in self.context.items()}
        own = {
            "group": self.fusion.group_F,
            "ids": self.ids_UD,
            "strength": self.strength_U,
            "history": self.history_DD,
            "decay": self.decay_1,
        }
        if self.linear is not None:
            own["linear"] = self.linear
        return found | self.fields.arrays() | own

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], inputs_ID: np.ndarray) -> "QueryTower":
        """From what `arrays` gave."""
        return cls(
            inputs_ID,
            Fusion(arrays["group"], below(arrays, "fusion.")),
            FieldMaps.of(arrays),
            arrays["ids"],
            arrays["strength"],
            arrays["history"],
            arrays["decay"],
            {name: Dense(rows, arrays[f"there.{name}"]) for name, rows in below(arrays, "rows.").items()},
            below(arrays, "context."),
            arrays.get("linear"),
        )

    @classmethod
    def of(cls, form: Form) -> "QueryTower":
        """That of a `tower` form."""
        return cls.from_arrays(form.arrays, form.item_vectors_ID)
