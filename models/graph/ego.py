"""Neighbours of items across the relations that a model reads, in one numbering of nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from recsys.ego_graph import ego_edges, laplacian_positions
from recsys.errors import ModelError, nearest
from recsys.fields import Categorical, Fields, MultiValued
from recsys.item_graph import ITEM, ItemGraph, Relation
from recsys.models.graph.encoder import Ego, EncoderConfig
from recsys.models.graph.sampler import Sampler
from recsys.schema import Dense


@dataclass(frozen=True)
class Read:
    """A relation as a model reads it. offset: number of its first node. table: of the content that a new item's edges
    come from; None = it has none. column: of the first value in the table's columns, for values."""

    name: str
    relation: Relation
    offset: int
    table: str | None
    column: int | None


def read_relations(
    graph: ItemGraph, names: Sequence[str] | None, tables: Mapping[str, Dense | Fields]
) -> list[Read]:
    """The named relations, or all that stand on these tables or on none.

    Raises ModelError for one that is not there, or stands on another table.
    """
    on = {name: name.split(".")[1] if "." in name else None for name in graph.relations}
    if names is None:
        names = [name for name, table in on.items() if table is None or table in tables]
    found, offset = [], graph.num_items
    for name in names:
        if name not in on:
            raise ModelError(f"relations names {name!r}", fix=nearest(name, on))
        table, relation = on[name], graph.relations[name]
        if table is not None and table not in tables:
            raise ModelError(
                f"the relation {name!r} stands on a table the model does not read", fix=f"add {table!r}"
            )
        if relation.kind == ITEM:
            found.append(Read(name, relation, 0, table, None))
        else:
            column = _column(tables[table], name.split(".", 2)[2])
            found.append(Read(name, relation, offset, table, column))
            offset += relation.size
    return found


def _column(fields: Fields, name: str) -> int:
    """Where the field's values begin among the columns of `Fields.dense`: each field has one for its presence first."""
    column = 0
    for other, field in fields.fields.items():
        if other == name:
            return column + 1
        column += 1 + (field.size if isinstance(field, Categorical | MultiValued) else 1)
    raise ModelError(
        f"the graph has values of a field {name!r} that the table lacks", fix="make the graph again"
    )


class Neighbours(nn.Module):
    """`forward(rows_B)` gives the small graphs of items: the strongest neighbours of each, or, `drawn` in training, a
    sample of those that have more."""

    def __init__(self, read: Sequence[Read], num_items: int, config: EncoderConfig):
        super().__init__()
        self.items = num_items
        self.reads_spectrum = config.position == "laplacian"
        self.reads_edges = self.reads_spectrum or config.position == "gnn" or config.encoder == "sa_hop"
        shifted = [
            replace(one.relation, indices_E=one.relation.indices_E + one.offset, kind="node") for one in read
        ]
        self.samplers = nn.ModuleList(Sampler(relation, config.fanout) for relation in shifted)
        parts = [relation.strongest(config.fanout) for relation in shifted]
        empty = np.zeros((num_items, 0))
        nodes_IN, weights_IN = (
            np.concatenate([empty.astype(kind), *(part[place] for part in parts)], axis=1)
            for place, kind in ((0, np.int64), (1, np.float32))
        )
        self.register_buffer("nodes_IN", torch.from_numpy(nodes_IN), persistent=False)
        self.register_buffer("weights_IN", torch.from_numpy(weights_IN), persistent=False)
        behaviour = [one.table is None for one in read]
        self.register_buffer(
            "behaviour_N",
            torch.tensor(behaviour, dtype=torch.bool).repeat_interleave(config.fanout),
            persistent=False,
        )
        if self.reads_edges:
            edges_ISS = ego_edges(nodes_IN, nodes_IN)
            self.register_buffer("edges_ISS", torch.from_numpy(edges_ISS), persistent=False)
        if self.reads_spectrum:
            spectrum = torch.from_numpy(laplacian_positions(edges_ISS))
            self.register_buffer("spectrum_INE", spectrum, persistent=False)

    def forward(self, rows_B: torch.Tensor, *, drawn: bool = False) -> Ego:
        if drawn and self.training and len(self.samplers):
            nodes, weights = zip(*(sampler(rows_B) for sampler in self.samplers), strict=True)
            nodes_BN, weights_BN = torch.cat(nodes, dim=1), torch.cat(weights, dim=1)
            return Ego(nodes_BN, weights_BN, *self._geometry(nodes_BN))
        edges_BSS = self.edges_ISS[rows_B] if self.reads_edges else None
        spectrum_BNE = self.spectrum_INE[rows_B] if self.reads_spectrum else None
        return Ego(self.nodes_IN[rows_B], self.weights_IN[rows_B], edges_BSS, spectrum_BNE)

    def _geometry(self, nodes_BN: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.reads_edges:
            return None, None
        edges_BSS = ego_edges(nodes_BN.cpu().numpy(), self.nodes_IN.cpu().numpy())
        spectrum = torch.from_numpy(laplacian_positions(edges_BSS)) if self.reads_spectrum else None
        return (
            torch.from_numpy(edges_BSS).to(nodes_BN.device),
            None if spectrum is None else spectrum.to(nodes_BN.device),
        )

    def without(self, ego: Ego, gone_B: torch.Tensor) -> Ego:
        """The same without neighbours by behaviour for these items; edges among what is left stay."""
        gone_BN = gone_B[:, None] & self.behaviour_N
        edges_BSS = ego.edges_BSS
        if edges_BSS is not None:
            kept_BS = torch.cat([gone_B.new_ones(len(gone_B), 1), ~gone_BN], dim=1)
            edges_BSS = edges_BSS & kept_BS[:, :, None] & kept_BS[:, None]
        return Ego(
            ego.nodes_BN.masked_fill(gone_BN, -1), ego.weights_BN.masked_fill(gone_BN, 0.0), edges_BSS,
            ego.spectrum_BNE,
        )  # fmt: skip
