"""Sparse matrices, and products with them that are as quick backward as forward."""

import warnings
from typing import Any

import torch
from torch import nn


def csr(
    places_2N: torch.Tensor, values_N: torch.Tensor, size: int, columns: int | None = None
) -> torch.Tensor:
    """[size, columns] (as many as rows by default) in CSR form from (row, column) places, each once."""
    columns = size if columns is None else columns
    order = torch.argsort(places_2N[0] * columns + places_2N[1])
    rows_N, columns_N = places_2N[:, order]
    return _csr(_starts(rows_N, size), columns_N, values_N[order], (size, columns))


def _starts(rows_N: torch.Tensor, size: int) -> torch.Tensor:
    """Where each row begins among sorted ones, and where the last ends."""
    return torch.searchsorted(rows_N.contiguous(), torch.arange(size + 1, device=rows_N.device))


def _csr(
    starts: torch.Tensor, columns_N: torch.Tensor, values_N: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch calls its CSR tensors beta
        return torch.sparse_csr_tensor(starts, columns_N, values_N, size=shape)


class _Product(torch.autograd.Function):
    """Autograd of a CSR product transposes the matrix at every call, eight times the work of the product itself: the
    transpose is given instead, and a symmetric matrix is its own."""

    @staticmethod
    def forward(
        ctx: Any, matrix_NM: torch.Tensor, transposed_MN: torch.Tensor, x_MD: torch.Tensor
    ) -> torch.Tensor:
        ctx.transposed_MN = transposed_MN
        with torch.autocast(x_MD.device.type, enabled=False):  # a sparse product has no half precision
            return matrix_NM @ x_MD

    @staticmethod
    def backward(ctx: Any, d_ND: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        return None, None, ctx.transposed_MN @ d_ND


def symmetric_product(matrix_NN: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
    """matrix_NN @ x_ND, the matrix a constant in CSR form that equals its transpose."""
    return _Product.apply(matrix_NN, matrix_NN, x_ND.to(matrix_NN.dtype))


class SparseMap(nn.Module):
    """A constant sparse matrix of any shape, kept with its transpose; `forward(x)` is the product with x."""

    def __init__(self, places_2N: torch.Tensor, values_N: torch.Tensor, shape: tuple[int, int]):
        """places_2N: (row, column), each once."""
        super().__init__()
        self.register_buffer("matrix_NM", csr(places_2N, values_N, *shape), persistent=False)
        self.register_buffer(
            "transposed_MN", csr(places_2N.flip(0), values_N, *reversed(shape)), persistent=False
        )

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        return _Product.apply(self.matrix_NM, self.transposed_MN, x_MD.to(self.matrix_NM.dtype))


class Pattern:
    """Places of a square sparse matrix whose values are learnt, kept with those of its transpose.

    `product(values_N, x_ND)` is the matrix of these values times x, `dots(x_ND)` the products of the two rows of x that
    each place names; values stand in the order of the places.
    """

    def __init__(self, rows_N: torch.Tensor, columns_N: torch.Tensor, size: int):
        """(row, column), each once."""
        self.rows_N, self.columns_N, self.size = rows_N, columns_N, size
        self.orders = torch.argsort(rows_N * size + columns_N), torch.argsort(columns_N * size + rows_N)
        self.starts = _starts(rows_N[self.orders[0]], size), _starts(columns_N[self.orders[1]], size)

    def matrix(self, values_N: torch.Tensor) -> torch.Tensor:
        order, starts = self.orders[0], self.starts[0]
        return _csr(starts, self.columns_N[order], values_N[order], (self.size, self.size))

    def transposed(self, values_N: torch.Tensor) -> torch.Tensor:
        order, starts = self.orders[1], self.starts[1]
        return _csr(starts, self.rows_N[order], values_N[order], (self.size, self.size))

    def product(self, values_N: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        return _LearntProduct.apply(self, values_N, x_ND)

    def dots(self, x_ND: torch.Tensor) -> torch.Tensor:
        return _Dots.apply(self, x_ND)


class _LearntProduct(torch.autograd.Function):
    """Summing gathered rows is ten times the work, forward and backward."""

    @staticmethod
    def forward(ctx: Any, pattern: Pattern, values_N: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values_N, x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            return pattern.matrix(values_N) @ x_ND

    @staticmethod
    def backward(ctx: Any, d_ND: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor]:
        pattern, (values_N, x_ND) = ctx.pattern, ctx.saved_tensors
        d_values_N = (d_ND[pattern.rows_N] * x_ND[pattern.columns_N]).sum(1)
        return None, d_values_N, pattern.transposed(values_N) @ d_ND


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, x_ND: torch.Tensor) -> torch.Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x_ND)
        return (x_ND[pattern.rows_N] * x_ND[pattern.columns_N]).sum(1)

    @staticmethod
    def backward(ctx: Any, d_N: torch.Tensor) -> tuple[None, torch.Tensor]:
        pattern, (x_ND,) = ctx.pattern, ctx.saved_tensors
        return None, pattern.matrix(d_N) @ x_ND + pattern.transposed(d_N) @ x_ND
