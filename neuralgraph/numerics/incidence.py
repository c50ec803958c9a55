"""Sparse matrices with a fixed pattern and learned values: one product, three ways to run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from neuralgraph.core.errors import DataError

DENSE_LIMIT = 65_536
"""Matrices with at most this many entries are multiplied as dense ones (measured: faster there)."""


class Incidence(nn.Module):
    r"""Pattern of a sparse ``(n_row, n_col)`` matrix $A$, and $y = A x$ with a cheap backward.

    The entries are learned, the pattern is not: both row order and its transpose are therefore
    sorted once, and the backward pass multiplies by the *stored* transpose instead of scattering.
    With $g = \partial L / \partial y$: $\partial L / \partial x = A^\top g$ and
    $\partial L / \partial a_e = \sum_b g_{r_e b}\, x_{c_e b}$.

    Columns of ``x`` are the batch: in the ``(n, B)`` layout every entry of $A$ touches one
    contiguous row, so that a product moves about ``4 B (n_edge + n_row)`` bytes.

    Args:
        row, col: Position of each entry, ``(n_edge,)`` long, in the caller's order (kept for the
            values).
        n_row, n_col: Shape of the matrix.

    Raises:
        DataError: an index outside the matrix.

    Source:
        own; compressed sparse rows after Tinney & Walker (1967).
    """

    row: Tensor
    col: Tensor
    crow: Tensor
    order: Tensor
    col_by_row: Tensor
    crow_transposed: Tensor
    order_transposed: Tensor
    row_by_col: Tensor
    flat: Tensor

    def __init__(self, row: Tensor, col: Tensor, n_row: int, n_col: int) -> None:
        super().__init__()
        row, col = row.long(), col.long()
        if row.numel() and (
            int(row.min()) < 0
            or int(col.min()) < 0
            or int(row.max()) >= n_row
            or int(col.max()) >= n_col
        ):
            raise DataError(
                f"edges must stay inside ({n_row}, {n_col}), they reach row {int(row.max())} and "
                f"column {int(col.max())}: check that rows and columns are not exchanged"
            )
        self.n_row, self.n_col, self.n_edge = int(n_row), int(n_col), int(row.numel())
        order = torch.argsort(row * n_col + col, stable=True)
        order_t = torch.argsort(col * n_row + row, stable=True)
        buffers = {
            "row": row,
            "col": col,
            "crow": _pointers(row, n_row),
            "order": order,
            "col_by_row": col[order],
            "crow_transposed": _pointers(col, n_col),
            "order_transposed": order_t,
            "row_by_col": row[order_t],
            "flat": row * n_col + col,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self.is_sorted = bool((order == torch.arange(self.n_edge)).all())
        key = (row * n_col + col)[order]
        self.has_repeats = bool((key.diff() == 0).any())

    @property
    def is_dense(self) -> bool:
        """Whether products run on a dense matrix (small, and no entry occurs twice)."""
        return not self.has_repeats and self.n_row * self.n_col <= DENSE_LIMIT

    @property
    def edge_index(self) -> Tensor:
        """``(2, n_edge)`` with source = column and target = row, as PyG wants it."""
        return torch.stack([self.col, self.row])

    def matrix(self, value: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
        """CSR tensor with these values (ones when ``None``), ``(n_row, n_col)``."""
        value = self.row.new_ones(self.n_edge, dtype=dtype) if value is None else value
        return _csr(self.crow, self.col_by_row, value[self.order], self.n_row, self.n_col)

    def forward(self, value: Tensor | None, x: Tensor) -> Tensor:
        """Product $A x$.

        Args:
            value: Entries, ``(n_edge,)`` in the caller's order; ``None``: every entry is 1.
            x: ``(n_col, n_batch)``.

        Returns:
            ``(n_row, n_batch)``.
        """
        if self.is_dense:
            if value is None:
                value = x.new_ones(self.n_edge)
            return self.dense(value) @ x
        return cast(Tensor, _SparseProduct.apply(self, value, x))  # pyright: ignore[reportUnknownMemberType]

    def dense(self, value: Tensor) -> Tensor:
        """Dense ``(n_row, n_col)`` matrix; differentiable in ``value``."""
        flat = value.new_zeros(self.n_row * self.n_col).index_add(0, self.flat, value)
        return flat.view(self.n_row, self.n_col)

    def reference(self, value: Tensor | None, x: Tensor) -> Tensor:
        """The same product by gather and ``index_add``, for comparison."""
        message = x[self.col] if value is None else value.unsqueeze(1) * x[self.col]
        return x.new_zeros(self.n_row, x.shape[1]).index_add(0, self.row, message)

    def extra_repr(self) -> str:
        """Shape and number of entries."""
        return f"{self.n_row} x {self.n_col}, {self.n_edge} entries"


def _pointers(index: Tensor, n: int) -> Tensor:
    count = torch.bincount(index, minlength=n)
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


with warnings.catch_warnings():
    # torch says once per process that CSR tensors are in beta: let it say so here
    warnings.simplefilter("ignore", UserWarning)
    _sparse_csr: Callable[..., Tensor] = torch.sparse_csr_tensor  # pyright: ignore[reportUnknownMemberType]
    _sparse_csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def _csr(crow: Tensor, col: Tensor, value: Tensor, n_row: int, n_col: int) -> Tensor:
    return _sparse_csr(crow, col, value, (n_row, n_col), check_invariants=False)


class _SparseProduct(torch.autograd.Function):
    """CSR product whose backward multiplies by the stored transpose."""

    @staticmethod
    def forward(ctx: Any, pattern: Incidence, value: Tensor | None, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        return pattern.matrix(value, x.dtype) @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        pattern: Incidence = ctx.pattern
        value, x = ctx.saved_tensors
        g = grads[0].contiguous()
        grad_value = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_value = (g[pattern.row] * x[pattern.col]).sum(1)
        if ctx.needs_input_grad[2]:
            ones = value is None
            entries = g.new_ones(pattern.n_edge) if ones else value[pattern.order_transposed]
            transposed = _csr(
                pattern.crow_transposed,
                pattern.row_by_col,
                entries,
                pattern.n_col,
                pattern.n_row,
            )
            grad_x = transposed @ g
        return None, grad_value, grad_x
