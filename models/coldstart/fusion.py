"""The learnt half of `recsys.fusion`: gates, groups and field vectors, under the same names."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recsys.features.whitening import Whitening
from recsys.fields import Fields, MultiValued, Numeric
from recsys.fusion import FieldMaps, Place
from recsys.models.base import FitContext
from recsys.schema import Dense

_INITIAL = 0.1


class FusionModule(nn.Module):
    """`recsys.fusion.Fusion` as it is learnt: what each part does stands there."""

    def __init__(self, group_F: Sequence[int], width: int, hidden: int, *, selects: bool, fuses: bool):
        super().__init__()
        fields, groups = len(group_F), max(group_F) + 1
        member_GF = torch.arange(groups)[:, None] == torch.tensor(group_F)
        self.register_buffer("member_GF", member_GF, persistent=False)
        self.absent = nn.Parameter(torch.randn(fields, width) * 0.01)
        self.select = _gate(fields, width, hidden) if selects else None
        self.fuse = _gate(groups, width, hidden) if fuses else None
        self.up = nn.Parameter(torch.randn(groups, width, hidden) / width**0.5)
        self.up_bias = nn.Parameter(torch.zeros(groups, hidden))
        self.down = nn.Parameter(torch.zeros(groups, hidden, width))

    def forward(
        self, vectors_NFD: torch.Tensor, strength_NF: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([N, D], weights of selection [N, F])."""
        present_NF = strength_NF > 0
        e_NFD = torch.where(present_NF[..., None], vectors_NFD, self.absent)
        selection_NF = _weights(self.select, e_NFD, strength_NF)
        chosen_NFD = (present_NF.sum(1, keepdim=True) * selection_NF)[..., None] * e_NFD
        sums_NGD = torch.einsum("gf,nfd->ngd", self.member_GF.float(), chosen_NFD)
        hidden_NGH = F.relu(torch.einsum("ngd,gdh->ngh", sums_NGD, self.up) + self.up_bias)
        h_NGD = sums_NGD + torch.einsum("ngh,ghd->ngd", hidden_NGH, self.down)
        available_NG = (present_NF[:, None] & self.member_GF).any(2)
        fusion_NG = _weights(self.fuse, h_NGD * available_NG[..., None], available_NG.float())
        out_ND = torch.einsum("ng,ngd->nd", fusion_NG, h_NGD)
        some_N1 = present_NF.any(1, keepdim=True)
        return torch.where(some_N1, out_ND, self.absent.mean(0)), selection_NF

    def arrays(self) -> dict[str, np.ndarray]:
        """As `recsys.fusion.Fusion` takes them."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.named_parameters()}


def _gate(entries: int, width: int, hidden: int) -> nn.Sequential:
    gate = nn.Sequential(nn.Linear(entries * width + entries, hidden), nn.Linear(hidden, entries))
    nn.init.zeros_(gate[1].weight)  # the gate begins as the mean
    nn.init.zeros_(gate[1].bias)
    return gate


def _weights(
    gate: nn.Sequential | None, vectors_NFD: torch.Tensor, strength_NF: torch.Tensor
) -> torch.Tensor:
    present_NF = strength_NF > 0
    if gate is None:
        return present_NF / present_NF.sum(1, keepdim=True).clamp_min(1)
    logits_NF = gate[1](F.relu(gate[0](torch.cat([vectors_NFD.flatten(1), strength_NF], dim=1))))
    # rows without any field: finite logits, so that no NaN reaches the gradient, and weights of zero
    logits_NF = logits_NF.masked_fill(~present_NF, -1e9)
    return torch.softmax(logits_NF, 1) * present_NF


def entropy(weights_NF: torch.Tensor, strength_NF: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the weights over rows with several fields, each as a share of the most it can be."""
    count_N = (strength_NF > 0).sum(1)
    own_N = -(weights_NF * weights_NF.clamp_min(1e-9).log()).sum(1)
    several_N = count_N > 1
    return (own_N / count_N.clamp_min(2).log() * several_N).sum() / several_N.sum().clamp_min(1)


class TableFields(nn.Module):
    """Vectors of the fields of tables: typed ones each for itself, a table of vectors as one field, whitened.

    Statistics come from the rows that `known_E` marks.
    """

    def __init__(
        self, ctx: FitContext, entity: str, names: Sequence[str], known_E: np.ndarray, width: int, dims: int
    ):
        super().__init__()
        self.places: list[Place] = []
        self.groups: list[int] = []
        self.bases: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self.maps = nn.ParameterList()
        present = []
        for group, name in enumerate(names):
            table = ctx.tables[entity, name]
            dense = table.dense() if isinstance(table, Fields) else table
            for place, there_E in _places(name, table, dense):
                filled_EF = np.where(there_E[:, None], dense.values_EF[:, place.start : place.stop], 0)
                if isinstance(table, Fields):
                    mean_F, base_FK = np.zeros(filled_EF.shape[1], np.float32), None
                    values_EK = filled_EF.astype(np.float32)
                else:
                    whitening = Whitening.fit(table, known_E, dims)
                    mean_F, base_FK = whitening.mean_F, whitening.map_FK
                    values_EK = whitening(table.values_EF, table.present_E)
                number = len(self.places)
                self.places.append(place)
                self.groups.append(group)
                self.bases[place.name] = mean_F, base_FK
                self.register_buffer(f"values_{number}", torch.from_numpy(values_EK), persistent=False)
                size = values_EK.shape[1]
                scale = _INITIAL / (size**0.5 if base_FK is not None else 1)
                self.maps.append(nn.Parameter(torch.randn(size, width) * scale))
                present.append(there_E)
        stacked = np.stack(present, axis=1) if present else np.zeros((len(known_E), 0))
        self.register_buffer("present_EF", torch.from_numpy(stacked.astype(np.float32)), persistent=False)

    def forward(self, rows_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """([N, F, D], strengths [N, F])."""
        vectors = [values[rows_N] @ one for values, one in zip(self.values(), self.maps, strict=True)]
        present_NF = self.present_EF[rows_N]
        if not vectors:
            return present_NF[..., None], present_NF
        return torch.stack(vectors, dim=1), present_NF

    def values(self) -> list[torch.Tensor]:
        """[E, K] of every field, those of the rows that have it not included."""
        return [self.get_buffer(f"values_{number}") for number in range(len(self.places))]

    def learnt(self, maps_KD: Sequence[np.ndarray] | None = None) -> FieldMaps:
        """As they stand now, or other maps of the same values, for rows as tables have them."""
        means, maps = {}, {}
        if maps_KD is None:
            maps_KD = [weight.detach().cpu().numpy() for weight in self.maps]
        for place, weight in zip(self.places, maps_KD, strict=True):
            means[place.name], base_FK = self.bases[place.name]
            map_KD = weight.astype(np.float64)
            maps[place.name] = (map_KD if base_FK is None else base_FK.astype(np.float64) @ map_KD).astype(
                np.float32
            )
        return FieldMaps(self.places, means, maps)


def _places(name: str, table: Dense | Fields, dense: Dense) -> list[tuple[Place, np.ndarray]]:
    """The fields of a table, and which rows have them."""
    if isinstance(table, Dense):
        return [(Place(name, name, 0, table.width, False), table.present_E)]
    found, start = [], 0
    for field_name, field in table.fields.items():
        size = 1 if isinstance(field, Numeric) else field.size
        there_E = field.present_E
        if isinstance(field, MultiValued):
            there_E = there_E & (field.codes.lengths > 0)
        found.append((Place(f"{name}.{field_name}", name, start + 1, start + 1 + size, True), there_E))
        start += 1 + size
    return found
