"""Symmetric sparse matrices, and products with them that are as quick backward as forward."""

import warnings
from typing import Any

import torch


def csr(places_2N: torch.Tensor, values_N: torch.Tensor, size: int) -> torch.Tensor:
    """[size, size] in CSR form from (row, column) places, each once."""
    order = torch.argsort(places_2N[0] * size + places_2N[1])
    rows_N, columns_N = places_2N[:, order]
    starts = torch.searchsorted(rows_N.contiguous(), torch.arange(size + 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch calls its CSR tensors beta
        return torch.sparse_csr_tensor(starts, columns_N, values_N[order], size=(size, size))


class _SymmetricProduct(torch.autograd.Function):
    """Autograd of a CSR product transposes the matrix at every call, eight times the work of the product itself; a
    symmetric one is its own transpose."""

    @staticmethod
    def forward(ctx: Any, matrix_NN: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        ctx.matrix_NN = matrix_NN
        return matrix_NN @ x_ND

    @staticmethod
    def backward(ctx: Any, d_ND: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.matrix_NN @ d_ND


def symmetric_product(matrix_NN: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
    """matrix_NN @ x_ND, the matrix a constant in CSR form that equals its transpose."""
    return _SymmetricProduct.apply(matrix_NN, x_ND)
