"""Sparse matrices with a fixed pattern and learned values: one product, three ways to run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neuralgraph.core.errors import DataError

DENSE_LIMIT = 262_144
"""Products of at most this many multiplications run dense (measured on a CPU: faster there)."""


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
    position: Tensor
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
            "position": torch.argsort(order),
            "col_by_row": col[order],
            "crow_transposed": _pointers(col, n_col),
            "order_transposed": order_t,
            "row_by_col": row[order_t],
            "flat": row * n_col + col,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        self._kept: dict[str, tuple[object, ...]] = {}

    @property
    def edge_index(self) -> Tensor:
        """``(2, n_edge)`` with source = column and target = row, as PyG wants it."""
        return torch.stack([self.col, self.row])

    def forward(self, value: Tensor | None, x: Tensor) -> Tensor:
        """Product $A x$.

        Args:
            value: Entries, ``(n_edge,)`` in the caller's order; ``None``: every entry is 1.
            x: ``(n_col, n_batch)``.

        Returns:
            ``(n_row, n_batch)``.
        """
        n_product = self.n_row * self.n_col * x.shape[1]
        function = _DenseProduct if n_product <= DENSE_LIMIT else _SparseProduct
        return cast(Tensor, function.apply(self, value, x))  # pyright: ignore[reportUnknownMemberType]

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

    def product(self, value: Tensor | None, x: Tensor, *, transposed: bool = False) -> Tensor:
        r"""$A x$ or $A^\top x$, not differentiable: for functions with a backward of their own.

        A small product is computed as (x^T A^T)^T: with few columns that is 2 to 4 times faster.
        """
        if self.n_row * self.n_col * x.shape[1] <= DENSE_LIMIT:
            dense = self.matrix("dense", value, x)
            return torch.mm(x.t(), dense if transposed else dense.t()).t()
        kind = "transposed" if transposed else "csr"
        return self.matrix(kind, value, x) @ x.contiguous()

    # -- matrices of the moment -----------------------------------------------------------------

    def matrix(self, kind: str, value: Tensor | None, like: Tensor) -> Tensor:
        """Matrix of these values, not differentiable; kept while nobody learns or changes them.

        Args:
            kind: ``csr``, ``transposed`` (CSR of the transpose), or ``dense``.
            value: ``(n_edge,)``; ``None``: ones.
            like: Tensor whose type and device ones take.
        """
        if value is not None and (value.requires_grad or isinstance(value, nn.Parameter)):
            return self._make(kind, value)
        state = (like.dtype, like.device, None if value is None else value._version)
        kept = self._kept.get(kind)
        if kept is None or kept[0] is not value or kept[1] != state:
            entries = like.new_ones(self.n_edge) if value is None else value
            kept = (value, state, self._make(kind, entries))
            self._kept[kind] = kept
        return cast(Tensor, kept[2])

    def _make(self, kind: str, value: Tensor) -> Tensor:
        value = value.detach()
        if kind == "dense":
            return self.dense(value)
        if kind == "csr":
            entries = value.index_select(0, self.order)
            return _csr(self.crow, self.col_by_row, entries, self.n_row, self.n_col)
        entries = value.index_select(0, self.order_transposed)
        return _csr(self.crow_transposed, self.row_by_col, entries, self.n_col, self.n_row)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the kept matrices behind."""
        return {**self.__dict__, "_kept": {}}


class GroupSum(nn.Module):
    r"""Sums over groups of rows, $y_g = \sum_{e: g_e = g} x_e$, by adding contiguous slices.

    Rows are handed over in :attr:`order`: the first member of every group, groups with more members
    first, then the second members, and so on. Each further member is then one slice added to the
    front of the result, and the backward pass reads slices of its gradient. Groups come out in
    :attr:`group`, biggest first.

    Args:
        index: Group of each row, ``(n_row,)`` long.
        n_group: Number of groups; some may be empty.

    Source:
        own; jagged diagonal storage (Saad 1989).
    """

    order: Tensor
    group: Tensor
    rank: Tensor

    def __init__(self, index: Tensor, n_group: int) -> None:
        super().__init__()
        size = torch.bincount(index, minlength=n_group)
        group = torch.argsort(size, descending=True, stable=True)
        rank = torch.argsort(group)
        by_group = torch.argsort(index, stable=True)
        first = size.cumsum(0) - size
        member = torch.empty_like(index)
        member[by_group] = torch.arange(index.numel()) - first[index[by_group]]
        order = torch.argsort(member * n_group + rank[index], stable=True)
        for name, value in (("order", order), ("group", group), ("rank", rank)):
            self.register_buffer(name, value, persistent=False)
        self.n_group = int(n_group)
        self.counts: list[int] = torch.bincount(member).tolist()  # pyright: ignore[reportUnknownMemberType]
        """Rows of the first members, the second members, …"""

    def forward(self, x: Tensor) -> Tensor:
        """``(n_row, *) -> (n_group, *)``, rows in :attr:`order`, groups in :attr:`group`."""
        return cast(Tensor, _GroupSum.apply(self, x))  # pyright: ignore[reportUnknownMemberType]

    def total(self, x: Tensor) -> Tensor:
        """The sums, not differentiable: for functions with a backward of their own."""
        counts = [*self.counts, 0, 0][: max(2, len(self.counts))]
        n_first, n_second = counts[:2]
        result, at = x.new_empty(self.n_group, *x.shape[1:]), n_first + n_second
        torch.add(x[:n_second], x[n_first:at], out=result[:n_second])
        result[n_second:n_first] = x[n_second:n_first]
        result[n_first:] = 0.0
        for count in counts[2:]:
            result[:count] += x[at : at + count]
            at += count
        return result

    def in_given_order(self, y: Tensor) -> Tensor:
        """Rows of a result back in the order of group numbers."""
        return cast(Tensor, _Permuted.apply(y, self.rank, self.group))  # pyright: ignore[reportUnknownMemberType]


class _GroupSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: GroupSum, x: Tensor) -> Tensor:
        ctx.counts = groups.counts
        return groups.total(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slices = [grads[0][:count] for count in ctx.counts]
        return None, torch.cat(slices) if slices else grads[0][:0]


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = cast("tuple[Tensor]", ctx.saved_tensors)
        return grads[0].index_select(0, inverse), None, None


def _pointers(index: Tensor, n: int) -> Tensor:
    count = torch.bincount(index, minlength=n)
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


_sparse_csr = cast("Callable[..., Tensor]", torch.sparse_csr_tensor)  # pyright: ignore[reportUnknownMemberType]
_sampled_addmm = cast("Callable[..., Tensor]", torch.sparse.sampled_addmm)  # pyright: ignore[reportUnknownMemberType]
with warnings.catch_warnings():
    # torch says once per process that CSR tensors are in beta: let it say so here
    warnings.simplefilter("ignore", UserWarning)
    _sparse_csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def _csr(crow: Tensor, col: Tensor, value: Tensor, n_row: int, n_col: int) -> Tensor:
    return _sparse_csr(crow, col, value, (n_row, n_col), check_invariants=False)


class _SparseProduct(torch.autograd.Function):
    """CSR product; backward by the stored transpose, and by sampling g x^T at the edges."""

    @staticmethod
    def forward(ctx: Any, pattern: Incidence, value: Tensor | None, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.pattern = pattern
        ctx.save_for_backward(value, x)
        return pattern.matrix("csr", value, x) @ x

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None]:
        pattern: Incidence = ctx.pattern
        value, x = cast("tuple[Tensor | None, Tensor]", ctx.saved_tensors)
        g = grads[0].contiguous()
        grad_value = grad_x = None
        if ctx.needs_input_grad[1]:
            zero = g.new_zeros(pattern.n_edge)
            at = _csr(pattern.crow, pattern.col_by_row, zero, pattern.n_row, pattern.n_col)
            sampled = _sampled_addmm(at, g, x.t(), beta=0.0)
            grad_value = sampled.values().index_select(0, pattern.position)
        if ctx.needs_input_grad[2]:
            grad_x = pattern.matrix("transposed", value, g) @ g
        return None, grad_value, grad_x


class _DenseProduct(torch.autograd.Function):
    """The same product on a small dense matrix, where the cost is that of calling operations."""

    @staticmethod
    def forward(ctx: Any, pattern: Incidence, value: Tensor | None, x: Tensor) -> Tensor:
        dense = pattern.matrix("dense", value, x)
        ctx.pattern = pattern
        ctx.save_for_backward(dense, x)
        return torch.mm(x.t(), dense.t()).t()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None]:
        pattern: Incidence = ctx.pattern
        dense, x = cast("tuple[Tensor, Tensor]", ctx.saved_tensors)
        g = grads[0]
        grad_value = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_value = (g @ x.t()).reshape(-1).index_select(0, pattern.flat)
        if ctx.needs_input_grad[2]:
            grad_x = torch.mm(g.t(), dense).t()
        return None, grad_value, grad_x
