r"""Are predicted standard errors right? Draw noise, refit, count.

The refit goes another way than the prediction: weighted normal equations from the sensitivities
themselves at every frame, not factors and singular vectors.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch types parts of its own methods as unknown)
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.numerics.information import Analysis, Equation, Problem

TWO_SIDED_95 = 1.959963984540054
"""Half-width of a 95 % interval in standard errors."""

SETTLED = 1e-3
"""Gauss-Newton steps below this many standard errors end a refit."""


@dataclass(frozen=True)
class Coverage:
    """Refits of data with fresh noise, beside what was predicted.

    Args:
        n_replicate: Number of refits.
        mean: Share of 95 % intervals that hold the true value, over all determined parameters.
        lowest: Of the parameter that is covered least.
        highest: Of the one covered most.
        of_combinations: The same share over determined combinations; NaN where there are none.
        error_ratio: Median over parameters of measured over predicted standard error.
        n_parameter: Determined parameters counted.
        n_failed: Refits that did not converge (left out).
    """

    n_replicate: int
    mean: float
    lowest: float
    highest: float
    of_combinations: float
    error_ratio: float
    n_parameter: int
    n_failed: int


def monte_carlo(
    analysis: Analysis, n_replicate: int, generator: torch.Generator, *, n_step: int = 20
) -> Coverage:
    """Draw noise, refit every parameter, and count how often ±1.96 standard errors hold the truth.

    The refit is weighted least squares through normal equations, built from the sensitivities
    themselves and not from the factors of the analysis: an independent way to the same numbers.
    Models that are not linear in their parameters (``problem.evaluate``) are refitted by
    Gauss–Newton from the true point, with sensitivities taken anew at every step.

    Args:
        analysis: Whose standard errors are checked; its point of linearisation is the truth. What
            else is learned (``problem.nuisance``) is held, in the refits and in the errors that
            they are compared with; combinations are then left out.
        n_replicate: Number of data sets.
        generator: Source of the noise.
        n_step: Gauss–Newton steps at most.
    """
    problem, sd = analysis.problem, analysis.noise.sd.double()
    truth = problem.parameters.value.double()
    n_frame, n_var = problem.n_frame, len(problem.variable)
    fitted: list[Tensor] = []
    n_failed = 0
    if problem.evaluate is None:
        solve = _normal_solver(problem.design, analysis.n_par, sd, analysis)
        for first in range(0, n_replicate, 50):
            n = min(50, n_replicate - first)
            moment = torch.zeros(analysis.n_par, n, dtype=torch.float64)
            for one in problem.design:
                noise = torch.randn(n_frame, n, dtype=torch.float64, generator=generator)
                slope = one.jacobian().T @ noise / sd[one.variable]
                moment.index_add_(0, one.columns, slope)
            fitted.extend((truth[:, None] + solve(moment)).T)
    else:
        exact, _ = problem.evaluate(truth)
        for _ in range(n_replicate):
            noise = torch.randn(n_frame, n_var, dtype=torch.float64, generator=generator)
            value = _gauss_newton(problem, exact + sd * noise, sd, analysis, n_step)
            if value is None:
                n_failed += 1
            else:
                fitted.append(value)
    estimate = torch.stack(fitted)
    alone = analysis.is_determined()
    held = analysis.standard_error if analysis.learned is None else analysis.held_error
    error = held[alone]
    away = estimate[:, alone] - truth[alone]
    covered = (away.abs() <= TWO_SIDED_95 * error).double().mean(0)
    spread = away.square().mean(0).sqrt()
    inside: list[float] = []
    for one in analysis.combinations if analysis.learned is None else ():
        members = torch.tensor(one.members)
        shift = (estimate[:, members] - truth[members]) @ one.weight
        inside.append(float((shift.abs() <= TWO_SIDED_95 * one.standard_error).double().mean()))
    has = covered.numel() > 0
    return Coverage(
        n_replicate=len(fitted),
        mean=float(covered.mean()) if has else math.nan,
        lowest=float(covered.min()) if has else math.nan,
        highest=float(covered.max()) if has else math.nan,
        of_combinations=sum(inside) / len(inside) if inside else math.nan,
        error_ratio=float((spread / error).median()) if has else math.nan,
        n_parameter=int(alone.sum()),
        n_failed=n_failed,
    )


def _normal_solver(
    design: Sequence[Equation], n_par: int, sd: Tensor, analysis: Analysis
) -> Callable[[Tensor], Tensor]:
    """Minimum-norm solution of the weighted normal equations, component by component."""
    parts: list[tuple[Tensor, Tensor]] = []
    local = torch.zeros(n_par, dtype=torch.long)
    place = torch.zeros(n_par, dtype=torch.long)
    grams: list[Tensor] = []
    for at, part in enumerate(analysis.components):
        n = part.index.numel()
        place[part.index], local[part.index] = at, torch.arange(n)
        grams.append(torch.zeros(n, n, dtype=torch.float64))
    for one in design:
        if not one.columns.numel():
            continue
        j = one.jacobian() / sd[one.variable]
        columns = local[one.columns]
        grams[int(place[one.columns[0]])].index_put_(
            (columns[:, None], columns[None, :]), j.T @ j, accumulate=True
        )
    for part, gram in zip(analysis.components, grams, strict=True):
        length = gram.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
        values, vectors = torch.linalg.eigh(inverse[:, None] * gram * inverse)
        drop = part.index.numel() - part.space.rank
        kept = vectors[:, drop:] * inverse[:, None]
        parts.append((part.index, (kept / values[drop:]) @ kept.T))

    def solve(moment: Tensor) -> Tensor:
        result = torch.zeros_like(moment)
        for index, matrix in parts:
            result[index] = matrix @ moment[index]
        return result

    return solve


def _gauss_newton(
    problem: Problem, seen: Tensor, sd: Tensor, analysis: Analysis, n_step: int
) -> Tensor | None:
    assert problem.evaluate is not None
    value = problem.parameters.value.double().clone()
    alone, error = analysis.is_determined(), analysis.standard_error
    for _ in range(n_step):
        predicted, equations = problem.evaluate(value)
        left = (seen - predicted) / sd
        moment = torch.zeros(value.numel(), 1, dtype=torch.float64)
        for one in equations:
            slope = one.jacobian().T @ left[:, one.variable] / sd[one.variable]
            moment.index_add_(0, one.columns, slope[:, None])
        step = _normal_solver(equations, value.numel(), sd, analysis)(moment)[:, 0]
        value = value + step
        if not bool(torch.isfinite(value).all()):
            return None
        # the next step would move nothing by a visible part of its error
        if float((step[alone] / error[alone]).abs().max()) < SETTLED:
            return value
    return value
