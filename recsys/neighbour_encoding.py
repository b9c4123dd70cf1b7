"""Vectors of items from their own content, what resembles it, and the values they have: the neighbour encoder of
`recsys.models.graph`, for items that no fit has seen. Models and bundles use this one. NumPy only.

A new item's neighbours are the nearest trained items in each feature table, and the values of its typed fields; no
user has taken it yet, so relations of that kind are empty for it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from recsys.ego_graph import ABSENT, ALPHA, HOPS, ego_edges, laplacian_positions
from recsys.nearest import nearest
from recsys.schema import Dense

_EPS = 1e-5
_SETTINGS = "settings"
_BLOCK = 1024
"""Items at a time."""


class Ego(NamedTuple):
    """nodes_BN: neighbours, -1 = none; weights_BN: of their edges."""

    nodes_BN: np.ndarray
    weights_BN: np.ndarray


@dataclass(frozen=True)
class NeighbourEncoding:
    """settings: JSON values: encoder, position, tokens, heads, blocks, fanout, tables, width (of the vectors), scale,
    and relations: by place, each with its table (None: no new item has any), the column of its first value (None: it is
    one of resemblance) and the most neighbours. weights: arrays by the names of the torch module, and

    table.T.mean, table.T.map, table.T.bias   from a row of table T to its tokens
    nodes                                     [J, k, D] tokens of all nodes
    lists                                     [I, N] the neighbours of the trained items, for settings that read edges
    relation.R.items, .rows, .mean            trained items, their rows less the mean row, for one of resemblance
    relation.R.nodes, .weight                 node and weight of every value; -1 where no trained item has it
    """

    settings: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    kind = "neighbour"

    @property
    def tables(self) -> list[str]:
        return list(self.settings["tables"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, so that a model's state and a bundle can hold it: the settings are JSON as bytes."""
        found = {name: np.ascontiguousarray(value) for name, value in self.weights.items()}
        return found | {_SETTINGS: np.frombuffer(json.dumps(dict(self.settings)).encode(), np.uint8)}

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"kind": self.kind, "tables": self.tables}

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """From what `arrays` gave."""
        weights = {name: value for name, value in arrays.items() if name != _SETTINGS}
        return cls(json.loads(arrays[_SETTINGS].tobytes()), weights)

    def cut(self, width: int) -> Self:
        """That of a nested model's narrower width."""
        return replace(self, settings=dict(self.settings) | {"width": width})

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float32; a row depends on its own content alone. rows: every table's, in one order."""
        parts = [np.zeros((0, self.settings["width"]), np.float32)]
        for start in range(0, len(rows[self.tables[0]].present_E), _BLOCK):
            here = slice(start, start + _BLOCK)
            part = {name: rows[name].take(here) for name in self.tables}
            parts.append(self.encoded(part, self.neighbours(part)))
        return np.concatenate(parts)

    def neighbours(self, rows: Mapping[str, Dense]) -> Ego:
        """Of new items, by their rows."""
        settings, count = self.settings, len(rows[self.tables[0]].present_E)
        fanout = settings["fanout"]
        nodes_BN = np.full((count, len(settings["relations"]) * fanout), -1, np.int64)
        weights_BN = np.zeros(nodes_BN.shape)
        for place, relation in enumerate(settings["relations"]):
            if relation["table"] is None:
                continue
            table = rows[relation["table"]]
            column, most = relation["column"], relation["most"]
            found = (
                self._nearest(place, table, most) if column is None else self._values(place, table, column)
            )
            here = slice(place * fanout, place * fanout + found[0].shape[1])
            nodes_BN[:, here], weights_BN[:, here] = found
        return Ego(nodes_BN, weights_BN)

    def _nearest(self, place: int, table: Dense, most: int) -> tuple[np.ndarray, np.ndarray]:
        parts = ("items", "mean", "rows")
        items_N, mean_F, rows_NF = (self.weights[f"relation.{place}.{part}"] for part in parts)
        # an absent row lies at the mean: it has no direction, and no neighbour
        filled_BF = np.where(table.present_E[:, None], table.values_EF, mean_F)
        places_BF, cosine_BF = nearest(filled_BF - mean_F, rows_NF, most)
        alike_BF = cosine_BF > 0
        return np.where(alike_BF, np.append(items_N, -1)[places_BF], -1), np.where(alike_BF, cosine_BF, 0)

    def _values(self, place: int, table: Dense, column: int) -> tuple[np.ndarray, np.ndarray]:
        """The heaviest values, equal ones by lower code."""
        nodes_V, weight_V = (self.weights[f"relation.{place}.{part}"] for part in ("nodes", "weight"))
        own_BV = table.values_EF[:, column : column + len(nodes_V)]
        weight_BV = np.where((own_BV > 0) & (nodes_V >= 0) & table.present_E[:, None], weight_V, 0.0)
        order_BF = np.argsort(-weight_BV, axis=1, kind="stable")[:, : self.settings["fanout"]]
        weight_BF = np.take_along_axis(weight_BV, order_BF, axis=1)
        return np.where(weight_BF > 0, nodes_V[order_BF], -1), weight_BF

    def encoded(self, rows: Mapping[str, Dense], ego: Ego) -> np.ndarray:
        """[N, D] float32 for these neighbours. Sums are taken in float64, so that company changes nothing."""
        settings, k = self.settings, self.settings["tokens"]
        tokens_BMkD, present_BM = self._own(rows)
        memory_BNkD, edges_BSS = self._memory(ego)
        count, width = len(tokens_BMkD), tokens_BMkD.shape[-1]
        memory_BSD = memory_BNkD.reshape(count, -1, width)
        log_BN = np.log(np.maximum(ego.weights_BN.astype(np.float32), 1e-6))
        bias_BS = np.repeat(np.where(ego.nodes_BN >= 0, log_BN, ABSENT), k, axis=1)
        x_BPD = tokens_BMkD.reshape(count, -1, width)
        if settings["encoder"] == "pool":
            content_BD = self._pooled(tokens_BMkD, present_BM) + self._means(memory_BNkD, ego.weights_BN)
        elif settings["encoder"] == "ca":
            for number in range(settings["blocks"]):
                x_BPD = self._block(number, x_BPD, memory_BSD, bias_BS[:, None])
            content_BD = self._pooled(x_BPD.reshape(tokens_BMkD.shape), present_BM)
        else:
            if settings["position"] == "hop":
                x_BPD = x_BPD + self._get("places")[0]
            own_BP = np.repeat(np.where(present_BM, 0.0, ABSENT), k, axis=1)
            start_B1D = np.broadcast_to(self._get("start"), (count, 1, width))
            x_BSD = np.concatenate([start_B1D, x_BPD, memory_BSD], axis=1)
            bias_BS = np.concatenate([np.zeros((count, 1)), own_BP, bias_BS], axis=1)
            content_BD = self._among_themselves(x_BSD, bias_BS, edges_BSS, own_BP.shape[1])
        vectors_BD = _normed(content_BD, self._get("norm.weight"), self._get("norm.bias")) * settings["scale"]
        return vectors_BD[:, : settings["width"]].astype(np.float32)

    def _get(self, name: str) -> np.ndarray:
        return self.weights[name].astype(np.float64)

    def _own(self, rows: Mapping[str, Dense]) -> tuple[np.ndarray, np.ndarray]:
        k, parts, present = self.settings["tokens"], [], []
        for name in self.tables:
            table, mean_F = rows[name], self._get(f"table.{name}.mean")
            filled_BF = np.where(table.present_E[:, None], table.values_EF, mean_F)
            made = (filled_BF - mean_F) @ self._get(f"table.{name}.map") + self._get(f"table.{name}.bias")
            made = made * table.present_E[:, None]
            parts.append(made.reshape(len(made), k, -1))
            present.append(table.present_E)
        tokens_BMkD, present_BM = np.stack(parts, axis=1), np.stack(present, axis=1)
        nothing_B = ~present_BM.any(axis=1)
        tokens_BMkD[nothing_B, 0] = self._get("absent")
        present_BM[nothing_B, 0] = True
        return tokens_BMkD, present_BM

    def _pooled(self, tokens_BMkD: np.ndarray, present_BM: np.ndarray) -> np.ndarray:
        return (tokens_BMkD.mean(axis=2) * (present_BM * self._get("own_gates"))[:, :, None]).sum(axis=1)

    def _memory(self, ego: Ego) -> tuple[np.ndarray, np.ndarray | None]:
        """(tokens of the neighbours [B, N, k, D], edges of the small graphs where the settings read them)."""
        settings = self.settings
        position, fanout = settings["position"], settings["fanout"]
        memory_BNkD = self.weights["nodes"][np.maximum(ego.nodes_BN, 0)].astype(np.float64)
        places = self._get("relations")
        if position == "rank":
            places = places + self._get("places")
        elif position == "hop":
            places = places + self._get("places")[1]
        shape = (len(places), fanout, *places.shape[2:])
        memory_BNkD += np.broadcast_to(places, shape).reshape(-1, *shape[2:])
        if "lists" not in self.weights:
            return memory_BNkD, None
        edges_BSS = ego_edges(ego.nodes_BN, self.weights["lists"])
        if position == "laplacian":
            added = laplacian_positions(edges_BSS) @ self._get("spectral.weight").T
            memory_BNkD = memory_BNkD + added.reshape(memory_BNkD.shape)
        elif position == "gnn":
            mean_BSS = _row_normalised(edges_BSS)
            x_BNF = memory_BNkD.reshape(*memory_BNkD.shape[:2], -1)
            x_BSF = np.concatenate([np.zeros((len(x_BNF), 1, x_BNF.shape[2])), x_BNF], axis=1)
            h_BSF = np.concatenate([x_BSF, mean_BSS @ x_BSF], axis=2) @ self._get("hidden.weight").T
            h_BSF = np.maximum(h_BSF, 0)
            out_BSF = np.concatenate([h_BSF, mean_BSS @ h_BSF], axis=2) @ self._get("output.weight").T
            memory_BNkD = memory_BNkD + out_BSF[:, 1:].reshape(memory_BNkD.shape)
        return memory_BNkD, edges_BSS

    def _means(self, memory_BNkD: np.ndarray, weights_BN: np.ndarray) -> np.ndarray:
        gates_R = np.tanh(self._get("relation_gates"))
        shape = (len(weights_BN), len(gates_R), self.settings["fanout"])
        weights_BRF = weights_BN.reshape(shape)
        values = memory_BNkD.mean(axis=2).reshape(*shape, memory_BNkD.shape[-1])
        sums_BRD = (weights_BRF[..., None] * values).sum(axis=2)
        means_BRD = sums_BRD / np.maximum(weights_BRF.sum(axis=2), 1e-6)[:, :, None]
        return (means_BRD * gates_R[:, None]).sum(axis=1)

    def _among_themselves(
        self, x_BSD: np.ndarray, bias_BS: np.ndarray, edges_BSS: np.ndarray | None, own: int
    ) -> np.ndarray:
        along = self.settings["encoder"] == "sa_hop"
        bias_BPS = bias_BS[:, None]
        if along:
            neighbours = np.arange(1, edges_BSS.shape[1])
            node_S = np.concatenate([np.zeros(1 + own, int), np.repeat(neighbours, self.settings["tokens"])])
            joined = edges_BSS[:, node_S][:, :, node_S]
            bias_BPS = np.where(joined | (node_S[:, None] == node_S), bias_BPS, ABSENT)
            mean_BSS = _row_normalised(joined & (bias_BS > ABSENT / 2)[:, None])
        for number in range(self.settings["blocks"]):
            x_BSD = self._block(number, x_BSD, None, bias_BPS)
        if not along:
            return x_BSD[:, 0]
        hop_BSD, total_BSD = x_BSD, ALPHA * x_BSD
        for hop in range(1, HOPS + 1):
            hop_BSD = mean_BSS @ hop_BSD
            total_BSD = total_BSD + ALPHA * (1 - ALPHA) ** hop * hop_BSD
        return (x_BSD + total_BSD)[:, 0]

    def _block(
        self, number: int, x_BPD: np.ndarray, memory_BSD: np.ndarray | None, bias_BPS: np.ndarray
    ) -> np.ndarray:
        def get(name: str) -> np.ndarray:
            return self._get(f"blocks.{number}.{name}")

        own = _normed(x_BPD, get("norm1.weight"), get("norm1.bias"))
        memory_BSD = own if memory_BSD is None else memory_BSD
        heads, width = self.settings["heads"], own.shape[2]
        query, key, value = (_split(a @ get(f"attention.{part}.weight").T, heads)
                             for part, a in (("query", own), ("key", memory_BSD), ("value", memory_BSD)))  # fmt: skip
        logits = query @ key.transpose(0, 1, 3, 2) / np.sqrt(width // heads) + bias_BPS[:, None]
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=ABSENT))
        weights /= weights.sum(axis=-1, keepdims=True)
        found = (weights @ value).transpose(0, 2, 1, 3).reshape(own.shape)
        attended = found @ get("attention.out.weight").T + get("attention.out.bias")
        attended = attended * (bias_BPS > ABSENT / 2).any(axis=-1, keepdims=True)
        gated = f"blocks.{number}.gates" in self.weights
        first, second = np.tanh(get("gates")) if gated else (1.0, 1.0)
        x_BPD = x_BPD + first * attended
        hidden = _normed(x_BPD, get("norm2.weight"), get("norm2.bias")) @ get("up.weight").T + get("up.bias")
        return x_BPD + second * (np.maximum(hidden, 0) @ get("down.weight").T + get("down.bias"))


def _split(x_BSD: np.ndarray, heads: int) -> np.ndarray:
    """[B, H, S, D / H]"""
    return x_BSD.reshape(*x_BSD.shape[:2], heads, x_BSD.shape[2] // heads).transpose(0, 2, 1, 3)


def _row_normalised(edges_BSS: np.ndarray) -> np.ndarray:
    return edges_BSS / np.maximum(edges_BSS.sum(axis=2, keepdims=True), 1)


def _normed(x: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPS) * weight_D + bias_D
