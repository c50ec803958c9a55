"""Local cubic interpolation on an even grid."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cubic_interpolate(table: Tensor, start: Tensor, t: Tensor) -> Tensor:
    r"""Cubic through four neighbours of a table on an even grid; exact for cubics, order 4.

    With the neighbours $y_{-1}, y_0, y_1, y_2$ around the cell and $t \in [0, 1]$ inside it:
    $\sum_m y_m \ell_m(t)$ with the Lagrange weights $\ell_m$.

    Args:
        table: Values at the nodes, ``(n_node,)``; several tables may lie behind each other.
        start: Index of $y_{-1}$ of each query, ``(n,)`` long.
        t: Place of each query in its cell, in units of the step, ``(n,)``.

    Returns:
        ``(n,)``; differentiable in ``table`` and ``t``.

    Source:
        Lagrange interpolation, four points.
    """
    return cast(Tensor, _Cubic.apply(table, start, t))  # pyright: ignore[reportUnknownMemberType]


def _weights(t: Tensor) -> Tensor:
    a, b, c = t + 1, t - 1, t - 2
    tb, ac = t * b, a * c
    return torch.stack([tb * c / -6, ac * b / 2, ac * t / -2, tb * a / 6])


def _slopes(t: Tensor) -> Tensor:
    square = t * t
    return torch.stack(
        [
            -(3 * square - 6 * t + 2) / 6,
            (3 * square - 4 * t - 1) / 2,
            -(3 * square - 2 * t - 2) / 2,
            (3 * square - 1) / 6,
        ]
    )


class _Cubic(torch.autograd.Function):
    """Gather four neighbours; the backward adds into the table by bin counts."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, start: Tensor, t: Tensor) -> Tensor:
        weight = _weights(t)
        ctx.save_for_backward(table, start, t, weight)
        value = table.index_select(0, start).mul_(weight[0])
        for m in range(1, 4):
            value.addcmul_(table.index_select(0, start + m), weight[m])
        return value

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        table, start, t, weight = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        g = grads[0]
        grad_table = grad_t = None
        if ctx.needs_input_grad[0]:
            grad_table = torch.zeros_like(table)
            for m in range(4):
                grad_table.index_add_(0, start + m, g * weight[m])
        if ctx.needs_input_grad[2]:
            slope = _slopes(t)
            grad_t = torch.zeros_like(t)
            for m in range(4):
                grad_t.addcmul_(table.index_select(0, start + m), slope[m])
            grad_t = grad_t * g
        return grad_table, None, grad_t
