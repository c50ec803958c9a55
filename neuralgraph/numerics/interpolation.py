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


_POWERS = {
    # rows: the neighbours -1, 0, 1, 2; columns: coefficients of 1, t, t^2, t^3
    "value": [[0, -2, 3, -1], [6, -3, -6, 3], [0, 6, 3, -3], [0, -1, 0, 1]],
    "slope": [[-2, 6, -3, 0], [-3, -12, 9, 0], [6, 6, -9, 0], [-1, 0, 3, 0]],
}


_KEPT: dict[tuple[str, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}


def _weights(t: Tensor, kind: str) -> Tensor:
    """Weights of the four neighbours, or their derivatives, ``(4, n)``."""
    key = (kind, t.dtype, t.device)
    if key not in _KEPT:
        ones = torch.ones(1, dtype=t.dtype, device=t.device)
        _KEPT[key] = (t.new_tensor(_POWERS[kind]) / 6, ones)
    matrix, one = _KEPT[key]
    square = t * t
    return matrix @ torch.stack([one.expand_as(t), t, square, square * t])


class _Cubic(torch.autograd.Function):
    """Gather four neighbours; the backward adds into the table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, start: Tensor, t: Tensor) -> Tensor:
        weight = _weights(t, "value")
        index = (start + torch.arange(4, device=start.device).unsqueeze(1)).view(-1)
        neighbours = table.index_select(0, index).view(4, -1)
        ctx.save_for_backward(table, index, t, weight)
        return (neighbours * weight).sum(0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, t, weight = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        g = grads[0]
        grad_table = grad_t = None
        if ctx.needs_input_grad[0]:
            grad_table = torch.zeros_like(table).index_add_(0, index, (g * weight).view(-1))
        if ctx.needs_input_grad[2]:
            neighbours = table.index_select(0, index).view(4, -1)
            grad_t = (neighbours * _weights(t, "slope")).sum(0).mul_(g)
        return grad_table, None, grad_t
