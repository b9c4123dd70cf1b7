"""Neighbours as tokens of a language model: maps, and what says where in the small graph each of them stands.

T_j = reshape(W_m x_j + p_j, (k, D)), after MMGL's equation, with m the modality and p the position encoding. Departure:
tokens are brought to the length of the language model's words, or a frozen model would not read them as such.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from recsys.ego_graph import EIGENVECTORS
from recsys.models.graph.writer_config import WriterConfig

_SMALL = 0.02
Batch = Mapping[str, torch.Tensor]


class NeighbourTokens(nn.Module):
    """Node 0 is the item itself, nodes 1 to N its neighbours; tokens of one node stand together, modality by modality.

    A modality that a node lacks, and a neighbour that is not there, is masked.
    """

    def __init__(self, config: WriterConfig, widths: Mapping[str, int], width: int, length: float):
        """widths: of the tables' whitened rows. width: of the language model. length: root mean square of its words."""
        super().__init__()
        self.config, self.width, self.length = config, width, length
        block = config.tokens * width
        self.maps = nn.ModuleDict({name: nn.Linear(columns, block) for name, columns in widths.items()})
        # the item itself, then neighbours: each rank, or all alike
        ranks = config.neighbours if config.position == "rank" else 1
        self.places = nn.Parameter(torch.randn(len(widths), 1 + ranks, block) * _SMALL)
        if config.position == "laplacian":
            self.spectral = nn.Linear(EIGENVECTORS, block, bias=False)
        elif config.position == "gnn":
            self.hidden = nn.Linear(2 * block, width, bias=False)
            self.output = nn.Linear(2 * width, block, bias=False)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens [B, S, D], which are there [B, S]). batch: rows.NAME [B, 1 + N, F] and seen.NAME [B, 1 + N] of every
        table; edges [B, 1 + N, 1 + N] for gnn, spectrum [B, N, E] for laplacian."""
        nodes = 1 + self.config.neighbours
        found, seen = [], []
        for number, (name, linear) in enumerate(self.maps.items()):
            place = self.places[number]
            if self.config.position != "rank":
                place = torch.cat([place[:1], place[1:].expand(nodes - 1, -1)])
            seen_BS = batch[f"seen.{name}"]
            x_BSF = (linear(batch[f"rows.{name}"]) + place) * seen_BS[:, :, None]
            found.append(self._placed(x_BSF, batch))
            seen.append(seen_BS)
        tokens_BSMkD = torch.stack(found, dim=2).unflatten(3, (self.config.tokens, self.width))
        there_BS = torch.stack(seen, dim=2).flatten(1).repeat_interleave(self.config.tokens, dim=1)
        tokens_BSD = F.layer_norm(tokens_BSMkD, (self.width,)).flatten(1, 3) * self.length
        return tokens_BSD, there_BS

    def _placed(self, x_BSF: torch.Tensor, batch: Batch) -> torch.Tensor:
        """With the position of each neighbour in the small graph added."""
        if self.config.position == "laplacian":
            spectrum_BNE = batch["spectrum"]
            if self.training:  # an eigenvector's sign means nothing
                flip_B1E = torch.randint(
                    0, 2, (len(spectrum_BNE), 1, EIGENVECTORS), device=spectrum_BNE.device
                )
                spectrum_BNE = spectrum_BNE * (2 * flip_B1E - 1)
            moved_BNF = self.spectral(spectrum_BNE)
        elif self.config.position == "gnn":
            moved_BNF = self._convolved(x_BSF[:, 1:], batch["edges"].to(x_BSF.dtype))
        else:
            return x_BSF
        return torch.cat([x_BSF[:, :1], x_BSF[:, 1:] + moved_BNF], dim=1)

    def _convolved(self, x_BNF: torch.Tensor, edges_BSS: torch.Tensor) -> torch.Tensor:
        """MMGL's GNN: H = relu([X ; AX] W1), Z = [H ; AH] W2, A the mean over edges; the item itself starts as 0."""
        mean_BSS = edges_BSS / edges_BSS.sum(2, keepdim=True).clamp(min=1)
        x_BSF = F.pad(x_BNF, (0, 0, 1, 0))
        h_BSD = self.hidden(torch.cat([x_BSF, mean_BSS @ x_BSF], dim=2)).relu()
        return self.output(torch.cat([h_BSD, mean_BSS @ h_BSD], dim=2))[:, 1:]
