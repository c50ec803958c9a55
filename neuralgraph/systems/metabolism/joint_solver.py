"""Least squares in rate constants and homeostatic lines at a given substrate law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neuralgraph.core.errors import TrainingError
from neuralgraph.numerics.identifiability import determined, null_space_of_gram
from neuralgraph.systems.metabolism.joint_data import KineticData

RIDGE = 1e-11
"""Added to the diagonal of column-scaled normal equations."""
NULL = 1e-7
"""Relative singular value below which a direction counts as undetermined."""


@dataclass(frozen=True)
class LinearFit:
    """Rate constants and homeostatic lines at a given law.

    Args:
        k: ``(n_rxn,)``, of either sign.
        line: Intercept and slope of each metabolite, ``(n_met, 2)``.
        left: What is not explained, ``(n_frame, n_met)``.
        gram: Normal matrix over ``[k, intercepts, slopes]``.
        inverse: Its solver.
        score: Weighted mean square of ``left``, relative to that of the target.
    """

    k: Tensor
    line: Tensor
    left: Tensor
    gram: Tensor
    inverse: Callable[[Tensor], Tensor]
    score: float


class Solver:
    """Normal equations of one data set at given metabolite weights.

    Args:
        data: The data.
        weight: Weight of each metabolite's squared error, ``(n_met,)``.
    """

    def __init__(self, data: KineticData, weight: Tensor) -> None:
        self.data = data
        self.weight = weight
        self.weighted_s = weight[:, None] * data.sto_all
        self.total = float((weight * data.target.square()).sum())
        self.concentration = data.averaged(data.concentration)
        one = torch.ones(data.n_frame, 1, dtype=data.concentration.dtype)
        self.one = None if data.window is None else data.averaged(one)[:, 0]

    @cached_property
    def square_of_s(self) -> Tensor:
        """S^T W S, ``(n_rxn, n_rxn)``: the same for every law."""
        return self.data.sto_all.T @ self.weighted_s

    def rates(self, theta: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Rates at k = 1 at every frame, ``(n_frame, n_rxn)``."""
        exponent = sum(t * q for t, q in zip(theta, features, strict=True))
        assert isinstance(exponent, Tensor)
        v = exponent.clamp(-300.0, 300.0).exp()
        return v if self.data.factor is None else v * self.data.factor

    def gram(self, v: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normal matrix over ``[k, intercepts, slopes]`` (k alone without homeostasis).

        Here and below ``v`` holds rates in the equations: ``data.averaged`` of those at frames.
        """
        data = self.data
        w = self.weight if weight is None else weight
        weighted = self.weighted_s if weight is None else w[:, None] * data.sto_all
        square = self.square_of_s if weight is None else data.sto_all.T @ weighted
        top = (v.T @ v).mul_(square)
        if not data.has_homeostasis:
            return top
        c, n = self.concentration, data.n_met
        cross = torch.cat([weighted.T * self._summed(v)[:, None], weighted.T * (v.T @ c)], dim=1)
        corner = torch.zeros(2 * n, 2 * n, dtype=v.dtype)
        i = torch.arange(n)
        corner[i, i] = w * (data.n_frame if self.one is None else self.one.square().sum())
        corner[i, n + i] = corner[n + i, i] = w * self._summed(c)
        corner[n + i, n + i] = w * c.square().sum(0)
        return torch.cat([torch.cat([top, cross], 1), torch.cat([cross.T, corner], 1)])

    def moment(self, v: Tensor, value: Tensor) -> Tensor:
        """Inner products of every linear column with ``value`` ``(n_frame, n_met)``."""
        top = ((value @ self.weighted_s) * v).sum(0)
        if not self.data.has_homeostasis:
            return top
        w, c = self.weight, self.concentration
        return torch.cat([top, w * self._summed(value), w * (value * c).sum(0)])

    def _summed(self, value: Tensor) -> Tensor:
        """Inner products of the constant with every column."""
        return value.sum(0) if self.one is None else self.one @ value

    def prediction(self, x: Tensor, v: Tensor) -> Tensor:
        """Linear columns times ``x``, ``(n_equation, n_met)``."""
        data = self.data
        result = (v * x[: data.n_rxn]) @ data.sto_all.T
        if data.has_homeostasis:
            a, b = x[data.n_rxn :].view(2, -1)
            constant = a if self.one is None else self.one[:, None] * a
            result = result + constant + b * self.concentration
        return result

    def solve(self, v: Tensor) -> LinearFit:
        """Least squares at the rates ``v`` of every frame, with one step of refinement.

        Free directions stay at minimum norm.
        """
        data = self.data
        v = data.averaged(v)
        gram = self.gram(v)
        inverse = scaled_inverse(gram)
        x = inverse(self.moment(v, data.target))
        x = x + inverse(self.moment(v, data.target - self.prediction(x, v)))
        left = data.target - self.prediction(x, v)
        line = torch.zeros(data.n_met, 2, dtype=x.dtype)
        if data.has_homeostasis:
            line = x[data.n_rxn :].view(2, -1).T.contiguous()
        score = float((self.weight * left.square()).sum()) / max(self.total, 1e-300)
        return LinearFit(x[: data.n_rxn], line, left, gram, inverse, score)

    def step(self, fit: LinearFit, v: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Gauss–Newton step of theta, with everything linear projected out; ``v`` at frames."""
        data = self.data
        kv = v * fit.k
        tangent = [data.averaged(kv * q) @ data.sto_all.T for q in features]
        v = data.averaged(v)
        cross = torch.stack([self.moment(v, d) for d in tangent], dim=1)
        flat = torch.stack([(d * self.weight.sqrt()).flatten() for d in tangent])
        corner = flat @ flat.T
        slope = flat @ (fit.left * self.weight.sqrt()).flatten()
        inverse = fit.inverse
        projected = corner - cross.T @ inverse(cross)
        residual = slope - cross.T @ inverse(self.moment(v, fit.left))
        return scaled_inverse(projected, ridge=1e-9)(residual)


def scaled_inverse(gram: Tensor, ridge: float = RIDGE) -> Callable[[Tensor], Tensor]:
    """Solver of a column-scaled, slightly regularised symmetric system."""
    scale = gram.diagonal().clamp_min(0).sqrt()
    longest = scale.max()
    scale = torch.where(scale > 1e-15 * longest, 1 / scale.clamp_min(1e-300), 0.0)
    scaled = (gram * scale[:, None]).mul_(scale)
    scaled.diagonal().add_(ridge + (scale == 0).to(scaled))
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(scaled)
        if int(failed) == 0:
            break
        ridge *= 10
        scaled.diagonal().add_(ridge)
    else:
        raise TrainingError(
            "the normal equations of the rate constants are not finite: look for huge or "
            "missing values in the concentrations"
        )

    def apply(b: Tensor) -> Tensor:
        column = scale if b.ndim == 1 else scale[:, None]
        b2 = (column * b)[:, None] if b.ndim == 1 else column * b
        x = torch.cholesky_solve(b2, factor)
        return column * (x[:, 0] if b.ndim == 1 else x)

    return apply


def metabolite_weights(target: Tensor) -> Tensor:
    """1 / mean square of each metabolite's dc/dt, bounded, mean 1, ``(n_met,)``."""
    square = target.square().mean(0)
    floor = 1e-6 * square.mean()
    weight = 1 / square.clamp_min(floor.clamp_min(1e-300))
    return weight / weight.mean()


def correlated_frames(left: Tensor, n_lag: int = 64) -> Tensor:
    """Frames that carry as much as one independent frame, for each metabolite, >= 1."""
    x = left - left.mean(0)
    power = x.square().mean(0).clamp_min(1e-300)
    total = torch.ones_like(power)
    is_open = torch.ones_like(power, dtype=torch.bool)
    for lag in range(1, min(n_lag, left.shape[0] // 4) + 1):
        rho = (x[lag:] * x[:-lag]).mean(0) / power
        is_open &= rho > 0  # initial positive sequence
        total += torch.where(is_open, 2 * rho, torch.zeros_like(rho))
    return total


def line_covariance(solver: Solver, v: Tensor, fit: LinearFit, at: float) -> Tensor:
    """Covariance of (value at ``at``, slope) of each line, ``(n_met, 2, 2)``.

    Errors of each metabolite have a size and a correlation in time of their own (sandwich).
    """
    data, n = solver.data, solver.data.n_rxn
    error = fit.left.square().mean(0) * correlated_frames(fit.left)
    middle = solver.gram(solver.data.averaged(v), solver.weight.square() * error)
    pick = torch.zeros(fit.gram.shape[0], 2 * data.n_met, dtype=torch.float64)
    i = torch.arange(data.n_met)
    pick[n + i, i] = 1.0
    pick[n + data.n_met + i, i] = at
    pick[n + data.n_met + i, data.n_met + i] = 1.0
    bread = scaled_inverse(fit.gram)(pick)
    full = bread.T @ middle @ bread
    rows = torch.stack([i, data.n_met + i], dim=1)
    covariance = full[rows[:, :, None], rows[:, None, :]]
    known = determined(null_space_of_gram(fit.gram, rtol=NULL))[n:].view(2, -1).all(0)
    covariance[~known] += 1e6 * torch.eye(2, dtype=torch.float64)
    return covariance


def standard_errors(
    solver: Solver, v: Tensor, fit: LinearFit, features: Sequence[Tensor] = ()
) -> Tensor:
    """Standard errors of a solution, in the order of its normal equations.

    As in :func:`line_covariance` each metabolite's errors have a size and a correlation in time of
    their own (sandwich). The coefficients of the law count among the unknowns.

    Args:
        solver: The solver that found it.
        v: Rates at k = 1 at every frame, ``(n_frame, n_rxn)``.
        fit: The solution.
        features: Change of log rates along each coefficient of the law, ``(n_frame, n_rxn)`` each;
            none: the law counts as known.

    Returns:
        Of ``[k, intercepts, slopes]`` (k alone without homeostasis), infinite where the data
        determine combinations only.

    Source:
        Huber (1967); Newey & West (1987).
    """
    data = solver.data
    error = fit.left.square().mean(0) * correlated_frames(fit.left)
    at = data.averaged(v)
    middle = solver.gram(at, solver.weight.square() * error)
    bread = fit.inverse(torch.eye(fit.gram.shape[0], dtype=fit.gram.dtype))
    variance = ((bread @ middle) * bread).sum(1).clamp_min(0)
    if len(features):
        # directions of the law with everything linear projected out, and how the linear follows
        kv = v * fit.k
        tangent = [data.averaged(kv * q) @ data.sto_all.T for q in features]
        follow = fit.inverse(torch.stack([solver.moment(at, d) for d in tangent], dim=1))
        apart = torch.stack(
            [d - solver.prediction(f, at) for d, f in zip(tangent, follow.T, strict=True)]
        )
        flat = (apart * solver.weight.sqrt()).flatten(1)
        inverse = scaled_inverse(flat @ flat.T, ridge=1e-9)
        spread = (apart * (solver.weight * error.sqrt())).flatten(1)
        of_law = inverse(inverse(spread @ spread.T).T)
        variance = variance + ((follow @ of_law) * follow).sum(1).clamp_min(0)
    is_known = determined(null_space_of_gram(fit.gram, rtol=NULL))
    return torch.where(is_known, variance.sqrt(), torch.full_like(variance, float("inf")))
