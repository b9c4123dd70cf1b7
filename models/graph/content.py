"""What the presets know of items' content: whitened rows, maps of them, and what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recsys.features.whitening import Whitening
from recsys.item_encoding import TableMap
from recsys.models.graph.knn import neighbours
from recsys.models.graph.propagation import Edges
from recsys.near import Keys
from recsys.schema import Dense

_INITIAL = 0.1
"""Standard deviation of what the maps give at first, as of id vectors."""


@dataclass(frozen=True)
class Content:
    """One table: rows_IK whitened on the trained items, zeros where absent; trained: items with a training row."""

    whitening: Whitening
    rows_IK: np.ndarray
    present_I: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, table: Dense, counts_I: np.ndarray, dims: int) -> "Content":
        whitening = Whitening.fit(table, counts_I > 0, dims)
        return cls(whitening, *_whitened(whitening, table), np.flatnonzero(counts_I))

    def read(self, table: Dense) -> "Content":
        """Other rows of the same items through the same whitening."""
        return Content(self.whitening, *_whitened(self.whitening, table), self.trained)

    @property
    def spread_K(self) -> np.ndarray:
        """Standard deviation of each dimension before whitening."""
        lengths_K = np.linalg.norm(self.whitening.map_FK, axis=0)
        return np.where(lengths_K > 0, 1 / np.where(lengths_K > 0, lengths_K, 1), 0).astype(np.float32)

    def map_FP(self, map_KP: np.ndarray | None = None) -> np.ndarray:
        """From centred raw rows to where neighbours are looked for: the principal dimensions as they are, not whitened,
        or a map of the whitened ones."""
        return self.whitening.map_FK * self.spread_K if map_KP is None else self.whitening.map_FK @ map_KP

    def keys(self, map_KP: np.ndarray | None = None, weight: float = 1.0) -> Keys:
        """The trained items as neighbours of new ones."""
        rows_TK = self.rows_IK[self.trained]
        keys_TP = rows_TK * self.spread_K if map_KP is None else rows_TK @ map_KP
        keys_TP[~self.present_I[self.trained]] = 0
        return Keys(self.whitening.mean_F, self.map_FP(map_KP), keys_TP, weight)

    def nearest(
        self, k: int, *, mutual: bool, in_degree: int | None, map_KP: np.ndarray | None = None
    ) -> Edges:
        """Edges among the trained items and their cosines."""
        rows_IP = self.rows_IK * self.spread_K if map_KP is None else self.rows_IK @ map_KP
        indptr_I1, target_E, cosine_E = neighbours(
            Dense(rows_IP, self.present_I), self.trained, k, mutual=mutual, in_degree=in_degree
        )
        return np.repeat(np.arange(len(rows_IP)), np.diff(indptr_I1)), target_E, cosine_E


def _whitened(whitening: Whitening, table: Dense) -> tuple[np.ndarray, np.ndarray]:
    """(rows, zeros where absent; present)."""
    rows_IK = whitening(table.values_EF, table.present_E)
    rows_IK[~table.present_E] = 0
    return rows_IK, table.present_E.copy()


class ContentMaps(nn.Module):
    """A linear map of every table's whitened rows; what an item lacks is a learnt vector.

    In training, a table of an item is taken for missing with probability `dropout`, but never all that it has.
    learnt: the rows themselves are parameters.
    """

    def __init__(
        self, content: Mapping[str, Content], widths: Mapping[str, int], dropout: float, learnt: bool
    ):
        super().__init__()
        self.dropout = dropout
        self.rows = nn.ParameterDict()
        for name, table in content.items():
            rows_IK = torch.from_numpy(table.rows_IK)
            if learnt:
                self.rows[name] = nn.Parameter(rows_IK.clone())
            else:
                self.register_buffer(f"rows_{name}", rows_IK, persistent=False)
            self.register_buffer(f"present_{name}", torch.from_numpy(table.present_I), persistent=False)
        self.maps = nn.ModuleDict(
            {name: nn.Linear(t.rows_IK.shape[1], widths[name], bias=False) for name, t in content.items()}
        )
        for linear in self.maps.values():
            nn.init.normal_(linear.weight, std=_INITIAL / linear.in_features**0.5)
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(widths[name]) * _INITIAL) for name in content}
        )

    def rows_of(self, name: str) -> torch.Tensor:
        """[I, K], zeros where absent."""
        return self.rows[name] if name in self.rows else self.get_buffer(f"rows_{name}")

    def present(self) -> dict[str, torch.Tensor]:
        """[I] masks; in training, after dropout."""
        masks_MI = torch.stack([self.get_buffer(f"present_{name}") for name in self.maps])
        if self.training and self.dropout:
            luck_MI = torch.rand(masks_MI.shape, device=masks_MI.device).masked_fill(~masks_MI, -1.0)
            best_MI = luck_MI == luck_MI.amax(0)  # the one that stays whatever happens
            masks_MI = masks_MI & ((luck_MI >= self.dropout) | best_MI)
        return dict(zip(self.maps, masks_MI, strict=True))

    def forward(self, present: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """{name: [I, D]}. present: masks of `present`, where they are wanted for something else too."""
        present = self.present() if present is None else present
        return {
            name: torch.where(present[name][:, None], linear(self.rows_of(name)), self.missing[name])
            for name, linear in self.maps.items()
        }

    def table_map(self, name: str, whitening: Whitening) -> TableMap:
        """From raw rows, as arrays."""
        weight_DK = self.maps[name].weight.detach().cpu().numpy()
        missing_D = self.missing[name].detach().cpu().numpy()
        return TableMap(whitening.mean_F, whitening.map_FK @ weight_DK.T, missing_D)
