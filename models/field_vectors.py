"""A vector for every field of a user or an item: its id, its typed attributes, its content."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recsys.features.whitening import Whitening
from recsys.fields import Categorical, Fields, MultiValued, Numeric
from recsys.schema import Dense

_INITIAL = 0.01


class FieldVectors(nn.Module):
    """`forward(rows_N)` gives [N, M, D]. What a row lacks is a learnt vector of its own field.

    known_E: rows that training saw; others have no id vector, so that their attributes alone speak for them.
    Row E, after the last, is of one that nothing is known of.
    """

    def __init__(self, tables: Iterable[Dense | Fields], known_E: np.ndarray, width: int, dims: int):
        """dims: most whitened dimensions kept of a table of vectors."""
        super().__init__()
        self.rows = len(known_E)
        _buffer(self, "known", known_E.astype(np.float32)[:, None])
        self.ids = nn.Parameter(torch.randn(self.rows + 1, width) * _INITIAL)
        self.fields = nn.ModuleList(
            field for table in tables for field in _fields_of(table, known_E, width, dims)
        )

    def __len__(self) -> int:
        return 1 + len(self.fields)

    def forward(self, rows_N: torch.Tensor) -> torch.Tensor:
        own_ND = self.ids[rows_N] * self.known[rows_N]
        return torch.stack([own_ND, *(field(rows_N) for field in self.fields)], dim=1)


class _Field(nn.Module):
    """One field. weight: vectors of its codes or dimensions; missing: of rows that lack it."""

    def __init__(self, present_E: np.ndarray, size: int, width: int):
        super().__init__()
        _buffer(self, "present", present_E[:, None])
        self.weight = nn.Parameter(torch.randn(size, width) * _INITIAL)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, rows_N: torch.Tensor) -> torch.Tensor:
        return torch.where(self.present[rows_N], self.vectors(rows_N), self.missing)


class _Codes(_Field):
    """Categories: the vector of the code; sets: the mean over their codes."""

    def __init__(self, field: Categorical | MultiValued, width: int):
        super().__init__(field.present_E, field.size, width)
        if isinstance(field, Categorical):
            codes, lengths = field.codes_E, np.ones(len(field.codes_E), np.int64)
        else:
            codes, lengths = field.codes.flat()[1], field.codes.lengths
        codes, lengths = np.append(codes, 0), np.append(lengths, 1)  # one more row, of which nothing is known
        starts = np.cumsum(lengths) - lengths
        for name, array in {"codes": codes, "starts": starts, "lengths": lengths}.items():
            self.register_buffer(name, torch.from_numpy(array.astype(np.int64)), persistent=False)

    def vectors(self, rows_N: torch.Tensor) -> torch.Tensor:
        lengths_N = self.lengths[rows_N]
        offsets_N = lengths_N.cumsum(0) - lengths_N
        which = torch.repeat_interleave(torch.arange(len(rows_N), device=rows_N.device), lengths_N)
        within = torch.arange(len(which), device=which.device) - offsets_N[which]
        codes = self.codes[self.starts[rows_N][which] + within]
        return F.embedding_bag(codes, self.weight, offsets_N, mode="mean")


class _Values(_Field):
    """Numbers: each dimension's value times its vector."""

    def __init__(self, values_EK: np.ndarray, present_E: np.ndarray, width: int):
        super().__init__(present_E, values_EK.shape[1], width)
        _buffer(self, "values", values_EK)

    def vectors(self, rows_N: torch.Tensor) -> torch.Tensor:
        return self.values[rows_N] @ self.weight


def _buffer(module: nn.Module, name: str, array_EK: np.ndarray) -> None:
    """A constant with one more row of zeros, for what nothing is known of."""
    padded = np.concatenate([array_EK, np.zeros_like(array_EK[:1])])
    module.register_buffer(name, torch.from_numpy(padded), persistent=False)


def _fields_of(table: Dense | Fields, known_E: np.ndarray, width: int, dims: int) -> list[nn.Module]:
    if isinstance(table, Dense):
        values_EK = Whitening.fit(table, known_E, dims)(table.values_EF, table.present_E)
        return [_Values(values_EK, table.present_E, width)]
    made: list[nn.Module] = []
    for field in table.fields.values():
        if isinstance(field, Numeric):
            values_E1 = np.where(field.present_E, field.values_E, 0)[:, None].astype(np.float32)
            made.append(_Values(values_E1, field.present_E, width))
        else:
            made.append(_Codes(field, width))
    return made
