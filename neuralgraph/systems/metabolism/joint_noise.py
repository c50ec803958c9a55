"""Rate constants, law, homeostasis and types from noisy concentrations, without derivatives.

Errors are proportional to the concentration, of mean 0, and independent between frames.

1. Each course is smoothed (Whittaker, on log c, smoothness by cross-validation); the weak form of
   the smoothed courses gives a start for rate constants and law.
2. Trajectories of greatest likelihood through the measured concentrations
   (:mod:`~neuralgraph.systems.metabolism.joint_trajectory`).
3. The law: a power law is refused where splines would gain more likelihood than their number pays
   for (score test against the Bayesian information criterion, errors counted as correlated as they
   are); splines are refused where they do not. A power within its error of a multiple of 1/2 is
   that multiple.
4. Types by the mixture of lines with their covariances; then one line for each type, and the rate
   constants that go with it: generalised least squares in the covariance of the likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.errors import TrainingError
from neuralgraph.numerics.identifiability import determined, null_space_of_gram
from neuralgraph.numerics.smoothing import whittaker
from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_fit import JointFit, fit_joint
from neuralgraph.systems.metabolism.joint_law import SMALLEST_CONCENTRATION, Law
from neuralgraph.systems.metabolism.joint_solver import (
    NULL,
    LinearFit,
    Solver,
    correlated_frames,
    scaled_inverse,
)
from neuralgraph.systems.metabolism.joint_split import positive_rate_constants
from neuralgraph.systems.metabolism.joint_trajectory import (
    Series,
    TrajectoryFit,
    fit_trajectories,
    gain_of_splines,
)
from neuralgraph.systems.metabolism.joint_types import Types, metabolite_types
from neuralgraph.systems.metabolism.joint_weak import weak_form

N_CELL_TEST = 16
"""Cells of the splines that a power law is tested against."""
POWER_STEP = 0.5
"""Powers are tried at multiples of this."""
SURE = 0.95
"""Posterior from which a metabolite takes the line of its type."""
ENOUGH = 1.2
"""Standard deviation of the errors, relative to that of third differences, of a fit that holds."""
N_POOL = 3
"""Rounds of pooling."""
LN10 = math.log(10.0)


@dataclass(frozen=True)
class NoisyFit:
    """Result of :func:`fit_concentrations`.

    Args:
        joint: Law, rate constants, lines and their errors, as from exact derivatives;
            ``score`` is the variance of the errors of log c.
        types: Types, or ``None`` without homeostasis.
        type_covariance: Of (value at ``joint.at``, slope) of each type, ``(n_type, 2, 2)``.
        u: Natural logarithm of the states, ``(n_frame, n_met)``.
        is_snapped: Whether the power was put to a multiple of 1/2.
        n_iteration: Steps of the likelihood.
        warnings: What a reader must know before trusting it, as sentences.
    """

    joint: JointFit
    types: Types | None
    type_covariance: Tensor
    u: Tensor
    is_snapped: bool
    n_iteration: int
    warnings: tuple[str, ...]


def fit_concentrations(
    data: KineticData,
    time: Tensor,
    runs: Sequence[tuple[int, int]],
    known: Tensor | None,
    *,
    max_types: int,
    n_iteration: int = 8,
) -> NoisyFit:
    """Everything from concentrations whose errors are proportional to them.

    Args:
        data: Frames and graph; ``target`` is not used.
        time: Time of each frame, ``(n_frame,)``, evenly spaced in each run.
        runs: First frame of each run and the frame after its last.
        known: Known part of dc/dt, ``(n_frame, n_met)``, or ``None``.
        max_types: Largest number of types considered.
        n_iteration: Bound on the steps of each likelihood.

    Raises:
        DataError: runs too short to be smoothed.
        TrainingError: no trajectory fits.

    Source:
        own.
    """
    log_c = measured_logarithm(data.concentration)
    log_c = log_c + mean_of_logarithm(log_c, runs)
    smooth = torch.cat([whittaker(log_c[first:stop]) for first, stop in runs])
    series = Series(log_c, time, tuple(runs), known)
    data = replace(data, concentration=smooth.exp())
    fit, is_sufficient = _with_law(data, series, smooth, n_iteration)
    is_snapped = False
    if is_sufficient:
        fit, is_snapped = snapped(fit, log_c.numel())
    at = float(fit.u.exp().mean())
    types, spread = None, torch.zeros(0, 2, 2, dtype=torch.float64)
    if data.has_homeostasis:
        line, covariance = _lines(fit, at)
        size = line.square().median(0).values.sqrt()
        types = metabolite_types(
            line, covariance, smallest=(1e-3 * size).clamp_min(1e-12), max_types=max_types
        )
        alone, refined = fit, types
        for _ in range(N_POOL):  # lines of the doubtful gain from the sure ones
            fit, types, spread = pooled(alone, refined, at)
            refined = _judged_again(fit, types, at)
        types = replace(refined, mean=types.mean)
    line, covariance = _lines(fit, at)
    log_k, deviation = _rate_constants(data, fit)
    joint = JointFit(fit.law, log_k, fit.line, covariance, at, fit.sigma**2, deviation)
    warnings: list[str] = []
    if not fit.is_settled:
        warnings.append(
            f"the likelihood stopped after {fit.n_iteration} steps without settling: neither the "
            "rate constants nor their standard errors are to be trusted"
        )
    if not is_sufficient:
        warnings.append(
            "the data refuse a power law and no other law could be fitted: the power law stands, "
            "and the standard errors are too small"
        )
    return NoisyFit(joint, types, spread, fit.u, is_snapped, fit.n_iteration, tuple(warnings))


def measured_logarithm(concentration: Tensor) -> Tensor:
    """Logarithm of c; 0 counts as half the smallest that was seen of its metabolite."""
    seen = torch.where(concentration > 0, concentration, torch.full_like(concentration, math.inf))
    floor = (0.5 * seen.amin(0)).clamp(SMALLEST_CONCENTRATION, 1e300)
    return concentration.maximum(floor).log()


def mean_of_logarithm(log_c: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Half the variance of the errors of each metabolite, ``(n_met,)``.

    Errors of mean 0 of c have a mean of minus that in log c. The variance is that of third
    differences, in which smooth courses vanish.
    """
    third = torch.cat([log_c[first:stop].diff(n=3, dim=0) for first, stop in runs])
    return 0.5 * third.square().mean(0) / 20


def _with_law(
    data: KineticData, series: Series, smooth: Tensor, n_iteration: int
) -> tuple[TrajectoryFit, bool]:
    """The likelihood under the law that its criterion prefers, and whether that law suffices."""
    weak = weak_form(data, series.time, series.runs, series.known)
    power = fit_joint(weak, family="power")
    simple = _likelihood(data, series, power, smooth, n_iteration)
    if simple is not None and not _is_refused(data, series, simple):
        return simple, True
    start = fit_joint(weak, family="splines")
    rich = _likelihood(data, series, start, smooth, n_iteration)
    if rich is None:  # from the power law in place of the weak form
        if simple is not None:
            power = replace(power, law=simple.law, log_k=simple.log_k / LN10, line=simple.line)
        power = replace(power, law=_as_splines(power.law, smooth))
        rich = _likelihood(data, series, power, smooth, n_iteration)
    if simple is None or rich is None:
        found = simple or rich
        if found is None:
            raise TrainingError(
                "no trajectory of this network follows the measured concentrations: check the "
                "stoichiometry and the times, or use loop.fit_to=derivative"
            )
        return found, found is rich
    n = rich.left.numel() / float(correlated_frames(rich.left).mean())
    gain = 2 * n * math.log(simple.sigma / rich.sigma)
    is_better = gain > (rich.law.theta.numel() - 1) * math.log(n)
    return (rich if is_better else simple), True


def _is_refused(data: KineticData, series: Series, fit: TrajectoryFit) -> bool:
    """Whether splines promise more likelihood than their number pays for."""
    low, high = _reach(fit.u)
    n = fit.law.levels.numel() * (N_CELL_TEST + 3)
    blank = Law(torch.zeros(n, dtype=torch.float64), (low, high, N_CELL_TEST), fit.law.levels)
    noise = 2 * float(mean_of_logarithm(series.log_c, series.runs).mean())
    gain = gain_of_splines(data, series, fit, blank, variance=min(noise, fit.sigma**2))
    return gain > (n - 1) * math.log(fit.left.numel())


def _as_splines(law: Law, u: Tensor) -> Law:
    """A power law in the basis of splines."""
    low, high = _reach(u)
    centre = low + (high - low) / N_CELL_TEST * (torch.arange(N_CELL_TEST + 3).double() - 1)
    theta = torch.cat([law.log_value(centre, n) for n in range(law.levels.numel())])
    return Law(theta, (low, high, N_CELL_TEST), law.levels)


def _reach(u: Tensor) -> tuple[float, float]:
    return min(float(u.min()), 0.0) - 0.05, max(float(u.max()), 0.0) + 0.05


def _likelihood(
    data: KineticData, series: Series, start: JointFit, smooth: Tensor, n_iteration: int
) -> TrajectoryFit | None:
    """Its start is kept from extremes: a first step finds k and lines, but not from anywhere.

    Where the courses are not followed down to their noise, one line for all is tried as a start.
    """
    ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
    low, high = torch.quantile(start.log_k, ends)
    log_k = LN10 * start.log_k.clamp(low - 0.5, high + 0.5)
    low, high = torch.quantile(start.line, ends, dim=0)
    noise = math.sqrt(2 * float(mean_of_logarithm(series.log_c, series.runs).mean()))
    best: TrajectoryFit | None = None
    for line in (start.line.clamp(low, high), start.line.median(0).values.expand_as(start.line)):
        fit = fit_trajectories(
            data,
            series,
            law=start.law,
            log_k=log_k,
            line=line,
            u=smooth,
            n_iteration=n_iteration,
        )
        if best is None or (fit is not None and fit.sigma < best.sigma):
            best = fit
        if best is not None and best.sigma < ENOUGH * noise:
            break
    return best


def snapped(fit: TrajectoryFit, n: int) -> tuple[TrajectoryFit, bool]:
    """The fit with its power at a multiple of 1/2, where the criterion prefers that.

    Everything else moves to its optimum under that power, in the covariance of the fit.

    Args:
        fit: Fit of any law; splines pass unchanged.
        n: Number of measured values.
    """
    power = fit.law.power
    if power is None or not bool((fit.law.levels > 0).any()):
        return fit, False
    nearest = max(POWER_STEP, POWER_STEP * round(power / POWER_STEP))
    variance = float(fit.covariance[-1, -1])
    inflation = float(correlated_frames(fit.left).mean())
    if (power - nearest) ** 2 > math.log(n) * variance * inflation:
        return fit, False
    column = fit.covariance[:, -1] / variance
    step = column * (nearest - power)
    law = replace(fit.law, theta=torch.full_like(fit.law.theta, nearest))
    covariance = fit.covariance - variance * torch.outer(column, column)
    return _stepped(replace(fit, law=law, covariance=covariance), step), True


def _stepped(fit: TrajectoryFit, step: Tensor) -> TrajectoryFit:
    """Rate constants and lines moved by a step of all parameters."""
    n_rxn, n_met = fit.log_k.numel(), fit.line.shape[0]
    line = fit.line
    if step.numel() >= n_rxn + 2 * n_met:
        line = line + step[n_rxn : n_rxn + 2 * n_met].view(2, n_met).T
    return replace(fit, log_k=fit.log_k + step[:n_rxn], line=line)


def _lines(fit: TrajectoryFit, at: float) -> tuple[Tensor, Tensor]:
    """(Value at ``at``, slope) of each metabolite and their covariance; zeros without lines."""
    n_rxn, n_met = fit.log_k.numel(), fit.line.shape[0]
    value = torch.stack([fit.line[:, 0] + at * fit.line[:, 1], fit.line[:, 1]], dim=1)
    if fit.covariance.shape[0] < n_rxn + 2 * n_met:
        return value, torch.zeros(n_met, 2, 2, dtype=torch.float64)
    i = n_rxn + torch.arange(n_met)
    rows = torch.stack([i, i + n_met], dim=1)
    raw = fit.covariance[rows[:, :, None], rows[:, None, :]]
    change = torch.tensor([[1.0, at], [0.0, 1.0]], dtype=torch.float64)
    return value, change @ raw @ change.T


def pooled(fit: TrajectoryFit, types: Types, at: float) -> tuple[TrajectoryFit, Types, Tensor]:
    r"""One line for each type, and everything else at its optimum under these lines.

    With the covariance C of all parameters, the lines L of metabolites whose type is sure and
    $L = X \mu + e$: $\mu = (X^\top C_{LL}^{-1} X)^{-1} X^\top C_{LL}^{-1} L$; the parameters move
    by $-C_{\cdot L} C_{LL}^{-1} (L - X \mu)$.

    Args:
        fit: Fit with a line of its own for each metabolite.
        types: Types of the metabolites.
        at: Concentration at which values are compared.

    Returns:
        The fit, the types with these lines, and their covariances ``(n_type, 2, 2)``.

    Source:
        generalised least squares, Aitken (1936).
    """
    n_rxn, n_met = fit.log_k.numel(), fit.line.shape[0]
    best, label = types.posterior.max(1)
    sure = (best > SURE).nonzero()[:, 0]
    n_type = types.mean.shape[0]
    spread = 1e6 * torch.eye(2, dtype=torch.float64).repeat(n_type, 1, 1)
    present = torch.unique(label[sure])
    if not len(sure):
        return fit, types, spread
    place = torch.searchsorted(present, label[sure])
    index = n_rxn + torch.cat([sure, n_met + sure])
    design = torch.zeros(2 * len(sure), 2 * len(present), dtype=torch.float64)
    design[torch.arange(len(sure)), place] = 1.0
    design[len(sure) + torch.arange(len(sure)), len(present) + place] = 1.0
    value = torch.cat([fit.line[sure, 0], fit.line[sure, 1]])
    block = fit.covariance[index][:, index]
    inverse = scaled_inverse(block, ridge=1e-12)
    white = inverse(design)
    of_mean = torch.linalg.inv(design.T @ white)
    mean = of_mean @ (white.T @ value)
    gain = inverse(fit.covariance[index]).T
    step = -gain @ (value - design @ mean)
    gain_mean = gain @ design
    covariance = fit.covariance - gain @ fit.covariance[index] + gain_mean @ of_mean @ gain_mean.T
    lines = torch.stack([mean[: len(present)] + at * mean[len(present) :], mean[len(present) :]], 1)
    types_mean = types.mean.clone()
    types_mean[present] = lines
    change = torch.tensor([[1.0, at], [0.0, 1.0]], dtype=torch.float64)
    for t, p in enumerate(present.tolist()):
        rows = torch.tensor([t, len(present) + t])
        spread[p] = change @ of_mean[rows][:, rows] @ change.T
    moved = _stepped(replace(fit, covariance=covariance), step)
    return moved, replace(types, mean=types_mean), spread


def _judged_again(fit: TrajectoryFit, types: Types, at: float) -> Types:
    """Posterior of the metabolites without a sure type, from their lines after the pooling."""
    line, covariance = _lines(fit, at)
    posterior = types.posterior.clone()
    doubtful = (posterior.amax(1) <= SURE).nonzero()[:, 0]
    share = posterior.mean(0).clamp_min(1e-12).log()
    for i in doubtful.tolist():
        away = line[i] - types.mean
        precision = torch.linalg.inv(covariance[i] + 1e-18 * torch.eye(2, dtype=torch.float64))
        square = torch.einsum("ti,ij,tj->t", away, precision, away)
        posterior[i] = (share - 0.5 * square).softmax(0)
    return replace(types, posterior=posterior)


def _rate_constants(data: KineticData, fit: TrajectoryFit) -> tuple[Tensor, Tensor]:
    """log10 k with undetermined combinations split, and its standard errors."""
    states = replace(data, concentration=fit.u.exp(), target=torch.zeros_like(fit.u), window=None)
    solver = Solver(states, torch.ones(data.n_met, dtype=torch.float64))
    v = solver.rates(fit.law.theta, fit.law.features(states))
    gram = solver.gram(v)
    nothing = torch.zeros_like(fit.u)
    linear = LinearFit(fit.log_k.exp(), fit.line, nothing, gram, scaled_inverse(gram), 0.0)
    log_k = positive_rate_constants(linear).log10()
    known = determined(null_space_of_gram(gram, rtol=NULL))[: data.n_rxn]
    error = fit.covariance.diagonal()[: data.n_rxn].clamp_min(0).sqrt() / LN10
    return log_k, torch.where(known, error, torch.full_like(error, math.inf))
