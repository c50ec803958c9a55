"""The substrate law: a power law, or cubic splines in log c for each |s|."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.systems.metabolism.joint_data import KineticData

SMALLEST_CONCENTRATION = 1e-8


@dataclass(frozen=True)
class Law:
    r"""A substrate function $\log f(c, s) = \sum_q \theta_q b_q(\log c, s)$.

    Args:
        theta: Coefficients, ``(n_feature,)``.
        knots: Ends and number of cells of the splines ``(low, high, n_cell)``, ``None`` for the
            power law, whose only coefficient is p.
        levels: The values of |s| the splines belong to.
    """

    theta: Tensor
    knots: tuple[float, float, int] | None
    levels: Tensor

    @property
    def power(self) -> float | None:
        """P of a power law, ``None`` for splines."""
        return float(self.theta[0]) if self.knots is None else None

    def features(self, data: KineticData) -> list[Tensor]:
        """Features summed over the substrates of each reaction, ``(n_frame, n_rxn)`` each."""
        log_c = data.concentration.clamp_min(SMALLEST_CONCENTRATION).log()
        if self.knots is None:
            return [data.over_substrates(log_c)]
        basis = spline_basis(log_c, self.knots)
        return [
            data.over_substrates(column, data.order == level)
            for level in self.levels
            for column in basis
        ]

    def slopes(self, log_c: Tensor, met_sub: Tensor, order: Tensor) -> Tensor:
        """Slope of log f in log c on each substrate edge, ``(n_frame, n_sub_edge)``.

        Args:
            log_c: ``(n_frame, n_met)``.
            met_sub: Metabolite of each edge.
            order: |s| of each edge.
        """
        if self.knots is None:
            return (self.theta[0] * order).expand(len(log_c), -1)
        slope = torch.stack(spline_slopes(log_c, self.knots))
        n = slope.shape[0]
        result = log_c.new_zeros(len(log_c), len(order))
        for index, level in enumerate(self.levels):
            edges = (order == level).nonzero()[:, 0]
            here = torch.tensordot(self.theta[index * n : (index + 1) * n], slope, dims=1)
            result[:, edges] = here[:, met_sub[edges]]
        return result

    def log_value(self, log_c: Tensor, level: int) -> Tensor:
        """Log f at ``log_c`` for the given position in :attr:`levels`; same shape."""
        if self.knots is None:
            return self.theta[0] * self.levels[level] * log_c
        basis = torch.stack(spline_basis(log_c, self.knots))
        n = basis.shape[0]
        return torch.tensordot(self.theta[level * n : (level + 1) * n], basis, dims=1)


def spline_basis(x: Tensor, knots: tuple[float, float, int]) -> list[Tensor]:
    """Uniform cubic B-splines less their values at x = 0, so that every combination vanishes there.

    Args:
        x: Positions, any shape.
        knots: ``(low, high, n_cell)``.

    Returns:
        ``n_cell + 3`` tensors of the shape of ``x``.
    """
    low, high, n_cell = knots

    def values(at: Tensor) -> list[Tensor]:
        position = (at - low) / (high - low) * n_cell
        result = []
        for b in range(n_cell + 3):
            u = (position - (b - 1)).abs()  # distance to the centre of the spline, in cells
            inner = (4 - 6 * u.square() + 3 * u**3) / 6
            outer = (2 - u).clamp_min(0) ** 3 / 6
            result.append(torch.where(u < 1, inner, outer))
        return result

    origin = values(x.new_zeros(()))
    return [value - zero for value, zero in zip(values(x), origin, strict=True)]


def spline_slopes(x: Tensor, knots: tuple[float, float, int]) -> list[Tensor]:
    """Derivatives of :func:`spline_basis`."""
    low, high, n_cell = knots
    position = (x - low) / (high - low) * n_cell
    result: list[Tensor] = []
    for b in range(n_cell + 3):
        away = position - (b - 1)
        u = away.abs()
        inner = -2 * u + 1.5 * u.square()
        outer = -0.5 * (2 - u).clamp_min(0).square()
        result.append(away.sign() * torch.where(u < 1, inner, outer) * (n_cell / (high - low)))
    return result


def law_slope(law: Law, level: Tensor) -> float:
    """Slope of log f in log c beyond the data: that of the power law, 0 for splines."""
    return float(law.theta[0] * level) if law.knots is None else 0.0
