"""The graph around items for torch-geometric."""

import torch
from torch_geometric.data import HeteroData

from recsys.item_graph import ITEM, ItemGraph


def hetero_data(graph: ItemGraph) -> HeteroData:
    """Node types: "item", and a type for the values of every field. Edge types (kind, relation, "item") carry
    `edge_index` and `edge_weight` from a neighbour to the item that has it, the way messages go."""
    data = HeteroData()
    data[ITEM].num_nodes = graph.num_items
    for name, relation in graph.relations.items():
        data[relation.kind].num_nodes = relation.size
        store = data[relation.kind, name, ITEM]
        store.edge_index = torch.stack(
            [torch.from_numpy(relation.indices_E), torch.from_numpy(relation.source_E)]
        )
        store.edge_weight = torch.from_numpy(relation.weight_E)
    return data
