"""Fields weighed against each other and fused into one vector: what a cold-start model does with an item or a user.

The model learns the weights; offline and in service it is computed here, so that both say the same. NumPy only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from recsys.schema import Dense

ABSENT, SELECT, FUSE, UP, DOWN = "absent", "select", "fuse", "up", "down"


class Place(NamedTuple):
    """Where a field stands: columns start to stop of a table's rows. flagged: the column before them says whether the
    row has it, as `Fields.dense` writes; otherwise a row of the table has it whenever it is there."""

    name: str
    table: str
    start: int
    stop: int
    flagged: bool


class Fused(NamedTuple):
    """vectors_ND; selection_NF: weight of every field, sum 1 over those present; fusion_NG: of every group. Rows
    without any field have weights of zero."""

    vectors_ND: np.ndarray
    selection_NF: np.ndarray
    fusion_NG: np.ndarray


def masked_softmax(logits_NF: np.ndarray, present_NF: np.ndarray) -> np.ndarray:
    """Softmax over the present entries of every row; zeros elsewhere, and in rows that have none."""
    top_N1 = np.max(np.where(present_NF, logits_NF, -np.inf), axis=1, keepdims=True)
    powers = np.where(present_NF, np.exp(np.where(present_NF, logits_NF - np.maximum(top_N1, -1e30), 0)), 0)
    return powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-30)


@dataclass(frozen=True)
class Fusion:
    """Selection among fields, then a gated sum over groups of them.

    With strengths m (0 = absent, 1 = there, log(1 + n) for what rests on n events) and the absent vector in place of a
    field that is not there:
        a = softmax over present fields of W2 relu(W1 [e; m]),   e'_f = (number present) a_f e_f
        s_g = sum of e'_f over the group's fields,   h_g = s_g + D_g relu(U_g s_g + c_g)
        b = softmax over available groups of V2 relu(V1 [h; available]),   h = sum of b_g h_g
    Without selection a is uniform, without the fusion gate b. A row without any field is the mean of the absent
    vectors.

    group_F: group of each field, from 0 without gaps. arrays: absent [F, D]; select.{0,1}.{weight,bias} or none,
    fuse.* likewise; up [G, D, H], up_bias [G, H], down [G, H, D].
    """

    group_F: np.ndarray
    arrays: Mapping[str, np.ndarray]

    def __call__(self, vectors_NFD: np.ndarray, strength_NF: np.ndarray) -> Fused:
        present_NF, arrays = strength_NF > 0, self.arrays
        e_NFD = np.where(present_NF[..., None], vectors_NFD, arrays[ABSENT])
        selection_NF = self._gate(SELECT, e_NFD, strength_NF)
        count_N1 = present_NF.sum(axis=1, keepdims=True)
        chosen_NFD = (count_N1 * selection_NF)[..., None] * e_NFD
        member_GF = np.arange(self.group_F.max() + 1)[:, None] == self.group_F
        sums_GND = np.stack([chosen_NFD[:, own_F].sum(axis=1) for own_F in member_GF])
        hidden_GNH = np.maximum(sums_GND @ arrays[UP] + arrays["up_bias"][:, None], 0)
        h_NGD = (sums_GND + hidden_GNH @ arrays[DOWN]).transpose(1, 0, 2)
        available_NG = (present_NF[:, None] & member_GF).any(axis=2)
        fusion_NG = self._gate(FUSE, h_NGD * available_NG[..., None], available_NG.astype(h_NGD.dtype))
        out_ND = np.einsum("ng,ngd->nd", fusion_NG, h_NGD)
        out_ND[~present_NF.any(axis=1)] = arrays[ABSENT].mean(axis=0)
        return Fused(out_ND, selection_NF, fusion_NG)

    def _gate(self, name: str, vectors_NFD: np.ndarray, strength_NF: np.ndarray) -> np.ndarray:
        present_NF = strength_NF > 0
        if f"{name}.0.weight" not in self.arrays:
            return present_NF / np.maximum(present_NF.sum(axis=1, keepdims=True), 1)
        input_NK = np.concatenate([vectors_NFD.reshape(len(vectors_NFD), -1), strength_NF], axis=1)
        first, second = (
            (self.arrays[f"{name}.{layer}.weight"], self.arrays[f"{name}.{layer}.bias"]) for layer in (0, 1)
        )
        logits_NF = np.maximum(input_NK @ first[0].T + first[1], 0) @ second[0].T + second[1]
        return masked_softmax(logits_NF, present_NF)


@dataclass(frozen=True)
class FieldMaps:
    """Vectors of fields that stand in tables: (x - mean) @ map of a field's columns. means, maps: by field name."""

    places: Sequence[Place]
    means: Mapping[str, np.ndarray]
    maps: Mapping[str, np.ndarray]

    @property
    def tables(self) -> list[str]:
        return list(dict.fromkeys(place.table for place in self.places))

    def __call__(self, rows: Mapping[str, Dense], count: int) -> tuple[np.ndarray, np.ndarray]:
        """([N, F, D], strengths [N, F] of 0 and 1), float64; a table that is not given is absent everywhere."""
        width = next((one.shape[1] for one in self.maps.values()), 0)
        vectors_NFD = np.zeros((count, len(self.places), width))
        present_NF = np.zeros((count, len(self.places)))
        for number, place in enumerate(self.places):
            if place.table not in rows:
                continue
            table, mean_F = rows[place.table], self.means[place.name]
            there_N = table.present_E
            if place.flagged:
                there_N = there_N & (np.nan_to_num(table.values_EF[:, place.start - 1]) > 0)
            columns_NF = table.values_EF[:, place.start : place.stop]
            filled_NF = np.where(there_N[:, None], columns_NF, mean_F).astype(np.float64)
            vectors_NFD[:, number] = (filled_NF - mean_F) @ self.maps[place.name]
            present_NF[:, number] = there_N
        return vectors_NFD, present_NF

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"places": json_array([place._asdict() for place in self.places])}
        for number, place in enumerate(self.places):
            found[f"field.{number}.mean"] = self.means[place.name].astype(np.float32)
            found[f"field.{number}.map"] = np.ascontiguousarray(self.maps[place.name], np.float32)
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "FieldMaps":
        places = [Place(**one) for one in from_json_array(arrays["places"])]
        return cls(
            places,
            {place.name: arrays[f"field.{number}.mean"] for number, place in enumerate(places)},
            {place.name: arrays[f"field.{number}.map"] for number, place in enumerate(places)},
        )


@dataclass(frozen=True)
class GatedItems:
    """Vectors of items from their content through a `Fusion` whose first field is the id that a new item has not.

    Behind the fused values h stand those of a linear half, the sum of its maps of all fields, where there is one. The
    last value of a vector is the item's bias: h . bias_D + cold[0]. As `recsys.item_encoding.ItemEncoding` has it.
    """

    fusion: Fusion
    fields: FieldMaps
    bias_D: np.ndarray
    cold: np.ndarray
    linear: FieldMaps | None = None
    kind: ClassVar[str] = "gated"

    @property
    def tables(self) -> list[str]:
        return self.fields.tables

    def fused(self, rows: Mapping[str, Dense]) -> Fused:
        """Without ids; with the weights that fields and groups were given."""
        count = len(next(iter(rows.values())).present_E)
        vectors_NFD, strength_NF = self.fields(rows, count)
        id_N1D, none_N1 = np.zeros_like(vectors_NFD[:, :1]), np.zeros((count, 1))
        return self.fusion(
            np.concatenate([id_N1D, vectors_NFD], axis=1), np.concatenate([none_N1, strength_NF], axis=1)
        )

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float32; a row depends on its own content alone."""
        h_ND = self.fused(rows).vectors_ND
        parts = [h_ND]
        if self.linear is not None:
            parts.append(self.linear(rows, len(h_ND))[0].sum(axis=1))
        return with_bias(np.concatenate(parts, axis=1), h_ND @ self.bias_D + self.cold[0])

    def facts(self) -> dict[str, Any]:
        """What is not an array, as JSON values."""
        return {"kind": self.kind, "tables": self.tables}

    def arrays(self) -> dict[str, np.ndarray]:
        found = {f"fusion.{name}": value for name, value in self.fusion.arrays.items()}
        own = {"group": self.fusion.group_F, "bias": self.bias_D, "cold": self.cold}
        if self.linear is not None:
            own |= {f"linear.{name}": value for name, value in self.linear.arrays().items()}
        return found | self.fields.arrays() | own

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "GatedItems":
        """From what `facts` and `arrays` gave."""
        fusion = Fusion(arrays["group"], below(arrays, "fusion."))
        linear = below(arrays, "linear.")
        maps = FieldMaps.of(linear) if linear else None
        return cls(fusion, FieldMaps.of(arrays), arrays["bias"], arrays["cold"], maps)

    def cut(self, width: int) -> "GatedItems":
        """There is one width."""
        return self


def names_of(first: list[str], fields: FieldMaps, last: list[str]) -> tuple[list[str], list[str]]:
    """(names of fields, of groups): each of the first is its own group, the last are one together."""
    context = ["context"] if last else []
    return [*first, *(place.name for place in fields.places), *last], [*first, *fields.tables, *context]


def with_bias(h_ND: np.ndarray, bias_N: np.ndarray) -> np.ndarray:
    """[N, D + 1] float32: vectors, and their bias as a last value."""
    return np.concatenate([h_ND, bias_N[:, None]], axis=1).astype(np.float32)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def json_array(value: object) -> np.ndarray:
    """JSON as an array of bytes, so that it can stand among a model's arrays."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def from_json_array(array: np.ndarray) -> list[dict]:
    return json.loads(array.tobytes())
