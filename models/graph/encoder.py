"""An item's vector from its own content and its neighbours: MMGL's neighbour encoding, for items.

After Yoon et al., "Multimodal Graph Learning for Generative Tasks" (arXiv 2310.07478): every neighbour becomes k tokens
by a map of its kind, and the item reads them by self-attention (SA-E) or gated cross-attention (CA-E). `sa_hop` follows
Graph4MM: attention along edges only, then diffused over hops. Departures: a neighbour that is an item enters by its own
content alone, whatever neighbours it has; edge weights are a prior of attention; a missing modality has no token.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn

from recsys.config import Config
from recsys.ego_graph import ABSENT, ALPHA, EIGENVECTORS, HOPS
from recsys.models.graph.attention import Block

Rows = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Table -> (whitened rows [N, K], presence mask [N])."""
_SMALL = 0.02


class EncoderConfig(Config):
    """Settings of the neighbour encoder."""

    encoder: Literal["pool", "sa", "ca", "sa_hop"] = "ca"
    """pool: weighted means of neighbours, gated. sa: self-attention over own and neighbour tokens. ca: own tokens
    attend to neighbour tokens, gated. sa_hop: sa along the edges of the small graph alone, then diffused over it."""
    position: Literal["rank", "laplacian", "gnn", "hop", "none"] = "rank"
    """What tells neighbours apart beside their relation: rank in it, eigenvectors of the small graph's Laplacian, two
    layers of graph convolution over it, or the distance from the item."""
    tokens: Annotated[int, Field(ge=1)] = 1
    """Tokens of each modality, neighbour and value."""
    heads: Annotated[int, Field(ge=1)] = 2
    """Attention heads; they divide the width."""
    blocks: Annotated[int, Field(ge=1)] = 1
    """Attention blocks; pool has none."""
    fanout: Annotated[int, Field(ge=1)] = 10
    """Most neighbours of each relation that are read at a time."""


class Ego(NamedTuple):
    """Neighbours of a batch of items: relation r has the places r * fanout and on. nodes_BN: -1 = none. edges_BSS and
    spectrum_BNE: as of `recsys.ego_graph`, where the settings need them."""

    nodes_BN: torch.Tensor
    weights_BN: torch.Tensor
    edges_BSS: torch.Tensor | None
    spectrum_BNE: torch.Tensor | None


class NeighbourEncoder(nn.Module):
    """Item vectors before the id's part, and the tokens that nodes are read by."""

    def __init__(
        self, config: EncoderConfig, width: int, tables: Mapping[str, int], relations: int, values: int
    ):
        """tables: name -> width of its rows. values: number of value nodes."""
        super().__init__()
        self.config, self.width = config, width
        block = config.tokens * width
        # the bias of a map is the embedding of its modality
        self.maps = nn.ModuleDict({name: nn.Linear(columns, block) for name, columns in tables.items()})
        self.own_gates = nn.Parameter(torch.ones(len(tables)))
        self.absent = nn.Parameter(torch.randn(width) * _SMALL)
        self.item_map = nn.Linear(width, block)
        self.values = nn.Parameter(torch.randn(values, block) / 3**0.5)
        self.relations = nn.Parameter(torch.randn(relations, 1, config.tokens, width) * _SMALL)
        shape = {"rank": (1, config.fanout, config.tokens, width), "hop": (2, width)}.get(config.position)
        self.places = None if shape is None else nn.Parameter(torch.randn(shape) * _SMALL)
        if config.position == "laplacian":
            self.spectral = nn.Linear(EIGENVECTORS, block, bias=False)
        elif config.position == "gnn":
            self.hidden = nn.Linear(2 * block, block, bias=False)
            self.output = nn.Linear(2 * block, block, bias=False)
        if config.encoder == "pool":
            self.relation_gates = nn.Parameter(torch.zeros(relations))
        else:
            gated = config.encoder == "ca"
            self.blocks = nn.ModuleList(Block(width, config.heads, gated=gated) for _ in range(config.blocks))
        if config.encoder in ("sa", "sa_hop"):
            self.start = nn.Parameter(torch.randn(width) * _SMALL)

    def own(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens [B, M, k, D], present [B, M]); an item without anything has the absent token in the first place."""
        tokens, present = [], []
        for name, table_map in self.maps.items():
            values_BK, present_B = rows[name]
            made_BkD = table_map(values_BK).view(len(values_BK), self.config.tokens, self.width)
            tokens.append(made_BkD * present_B[:, None, None])
            present.append(present_B)
        tokens_BMkD, present_BM = torch.stack(tokens, dim=1), torch.stack(present, dim=1)
        nothing_B1 = ~present_BM.any(1, keepdim=True)
        first_BM = torch.zeros_like(present_BM)
        first_BM[:, :1] = nothing_B1
        tokens_BMkD = torch.where(first_BM[:, :, None, None], self.absent, tokens_BMkD)
        return tokens_BMkD, present_BM | first_BM

    def pooled(self, tokens_BMkD: torch.Tensor, present_BM: torch.Tensor) -> torch.Tensor:
        """[B, D]: the gated sum over modalities of the mean of their tokens."""
        return (tokens_BMkD.mean(2) * (present_BM * self.own_gates)[:, :, None]).sum(1)

    def content(self, rows: Rows) -> torch.Tensor:
        """[N, D]: items by their own content alone."""
        return self.pooled(*self.own(rows))

    def node_tokens(self, content_ND: torch.Tensor, values_V: torch.Tensor) -> torch.Tensor:
        """[N + V, k, D] tokens of items of this content, then of these values."""
        tokens = torch.cat([self.item_map(content_ND), self.values[values_V]])
        return tokens.view(-1, self.config.tokens, self.width)

    def forward(self, rows: Rows, ego: Ego, node_tokens: torch.Tensor) -> torch.Tensor:
        """[B, D]. node_tokens: [J, k, D], at least one; the nodes of `ego` are its rows."""
        config = self.config
        tokens_BMkD, present_BM = self.own(rows)
        memory_BNkD = self._memory(ego, node_tokens)
        there_BN = ego.nodes_BN >= 0
        if config.encoder == "pool":
            return self.pooled(tokens_BMkD, present_BM) + self._means(memory_BNkD, ego.weights_BN)
        bias_BN = torch.where(there_BN, ego.weights_BN.clamp(min=1e-6).log(), ABSENT)
        bias_BS = bias_BN.repeat_interleave(config.tokens, dim=1)
        memory_BSD, x_BPD = memory_BNkD.flatten(1, 2), tokens_BMkD.flatten(1, 2)
        if config.encoder == "ca":
            for block in self.blocks:
                x_BPD = block(x_BPD, memory_BSD, bias_BS[:, None])
            return self.pooled(x_BPD.view_as(tokens_BMkD), present_BM)
        if config.position == "hop":
            x_BPD = x_BPD + self.places[0]
        start_B1D = self.start.expand(len(x_BPD), 1, -1)
        own_BP = torch.where(present_BM, 0.0, ABSENT).repeat_interleave(config.tokens, dim=1)
        x_BSD = torch.cat([start_B1D, x_BPD, memory_BSD], dim=1)
        bias_BS = torch.cat([own_BP.new_zeros(len(own_BP), 1), own_BP, bias_BS], dim=1)
        if config.encoder == "sa":
            for block in self.blocks:
                x_BSD = block(x_BSD, None, bias_BS[:, None])
            return x_BSD[:, 0]
        return self._along_edges(x_BSD, bias_BS, ego.edges_BSS, own_BP.shape[1])

    def _memory(self, ego: Ego, node_tokens: torch.Tensor) -> torch.Tensor:
        config = self.config
        memory_BNkD = node_tokens[ego.nodes_BN.clamp(min=0)]
        places = self.relations if config.position != "rank" else self.relations + self.places
        if config.position == "hop":
            places = places + self.places[1]
        memory_BNkD = memory_BNkD + places.expand(-1, config.fanout, -1, -1).flatten(0, 1)
        if config.position == "laplacian":
            spectrum_BNE = ego.spectrum_BNE
            if self.training:
                flip_B1E = torch.randint(
                    0, 2, (len(spectrum_BNE), 1, EIGENVECTORS), device=spectrum_BNE.device
                )
                spectrum_BNE = spectrum_BNE * (2 * flip_B1E - 1)
            return memory_BNkD + self.spectral(spectrum_BNE).view_as(memory_BNkD)
        if config.position == "gnn":
            return memory_BNkD + self._convolved(memory_BNkD.flatten(2), ego.edges_BSS).view_as(memory_BNkD)
        return memory_BNkD

    def _convolved(self, x_BNF: torch.Tensor, edges_BSS: torch.Tensor) -> torch.Tensor:
        """Two layers over the small graph, in which the item itself starts from zeros."""
        mean_BSS = _row_normalised(edges_BSS.to(x_BNF.dtype))
        x_BSF = torch.cat([x_BNF.new_zeros(len(x_BNF), 1, x_BNF.shape[2]), x_BNF], dim=1)
        h_BSF = self.hidden(torch.cat([x_BSF, mean_BSS @ x_BSF], dim=2)).relu()
        return self.output(torch.cat([h_BSF, mean_BSS @ h_BSF], dim=2))[:, 1:]

    def _means(self, memory_BNkD: torch.Tensor, weights_BN: torch.Tensor) -> torch.Tensor:
        """The gated sum over relations of the weighted mean of their nodes."""
        shape = (len(weights_BN), len(self.relation_gates), self.config.fanout)
        weights_BRF = weights_BN.view(shape)
        totals_BR = weights_BRF.sum(2).clamp(min=1e-6)
        sums_BRD = torch.einsum("brf,brfd->brd", weights_BRF, memory_BNkD.mean(2).view(*shape, self.width))
        return torch.einsum("r,brd->bd", self.relation_gates.tanh(), sums_BRD / totals_BR[:, :, None])

    def _along_edges(
        self, x_BSD: torch.Tensor, bias_BS: torch.Tensor, edges_BSS: torch.Tensor, own: int
    ) -> torch.Tensor:
        """Attention among tokens of one node or of two that are joined; then the same edges, without loops, carry the
        result HOPS further."""
        neighbours = torch.arange(1, edges_BSS.shape[1], device=x_BSD.device)
        node_S = torch.cat([neighbours.new_zeros(1 + own), neighbours.repeat_interleave(self.config.tokens)])
        joined = edges_BSS[:, node_S][:, :, node_S]
        allowed = joined | (node_S[:, None] == node_S)
        bias_BSS = torch.where(allowed, bias_BS[:, None], ABSENT)
        there_BS = bias_BS > ABSENT / 2
        mean_BSS = _row_normalised((joined & there_BS[:, None]).to(x_BSD.dtype))
        for block in self.blocks:
            x_BSD = block(x_BSD, None, bias_BSS)
        hop_BSD, total_BSD = x_BSD, ALPHA * x_BSD
        for hop in range(1, HOPS + 1):
            hop_BSD = mean_BSS @ hop_BSD
            total_BSD = total_BSD + ALPHA * (1 - ALPHA) ** hop * hop_BSD
        return (x_BSD + total_BSD)[:, 0]


def _row_normalised(edges_BSS: torch.Tensor) -> torch.Tensor:
    return edges_BSS / edges_BSS.sum(2, keepdim=True).clamp(min=1)
