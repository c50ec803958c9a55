r"""Substrate law, rate constants and homeostatic lines at once, by variable projection.

$\dot c_i = \sum_j S_{ij} k_j \prod_{e \in \mathrm{sub}(j)} f(c_e, s_e) + \alpha_i + \beta_i c_i$.
With $\log f$ linear in some features of $\log c$ the rates at k = 1 are $\exp(\sum_q \theta_q
Q_q(c))$. The few $\theta$ are found by Gauss–Newton on what is left once everything linear (k and
one line of homeostasis for each metabolite) is solved.

The power law $f = c^{p s}$ has one feature. Where it does not reach rounding error, a cubic spline
in log c for each |s| takes its place if that lowers the Bayesian information criterion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_law import SMALLEST_CONCENTRATION, Law, law_slope
from neuralgraph.systems.metabolism.joint_solver import (
    Solver,
    correlated_frames,
    line_covariance,
    metabolite_weights,
    standard_errors,
)
from neuralgraph.systems.metabolism.joint_split import positive_rate_constants

EXACT = 1e-9
"""Relative residual at which a law is exact: only rounding is left to explain."""
POWERS = tuple(0.25 * n for n in range(1, 13))
"""Powers the scan starts from."""
N_CELLS = (16, 32, 64)
"""Cells of the splines in log c that are tried, coarse to fine."""
LARGEST_BASIS = 40_000_000
"""Numbers that the features of a finer spline may take in memory."""


@dataclass(frozen=True)
class JointFit:
    """Result of :func:`fit_joint`.

    Args:
        law: Substrate function.
        log_k: log10 rate constants, ``(n_rxn,)``.
        line: Intercept and slope of each metabolite's homeostasis, ``(n_met, 2)``.
        covariance: Of (value at ``at``, slope), ``(n_met, 2, 2)``.
        at: Concentration at which the lines are compared.
        score: Weighted mean square of what is left, relative to the target's.
        deviation: Standard errors of ``log_k``, ``(n_rxn,)``; infinite where the data determine a
            combination only.
    """

    law: Law
    log_k: Tensor
    line: Tensor
    covariance: Tensor
    at: float
    score: float
    deviation: Tensor


def fit_joint(
    data: KineticData,
    *,
    n_iteration: int = 30,
    n_some: int = 1024,
    family: str = "any",
) -> JointFit:
    """Substrate law, rate constants and homeostatic lines.

    Args:
        data: Frames and graph.
        n_iteration: Bound on Gauss–Newton steps.
        n_some: Frames of the scan over powers and of the splines, evenly spaced.
        family: ``power`` or ``splines`` whatever the criterion says, or ``any``.

    Returns:
        The fit; undetermined rate constants are split as :func:`split_undetermined` says.

    Source:
        own; variable projection after Golub & Pereyra (1973).
    """
    levels = torch.unique(data.order)
    if not levels.numel():
        levels = torch.ones(1, dtype=torch.float64)
    weight = metabolite_weights(data.target)
    few = data.every(max(1, data.n_frame // n_some))
    scan = Solver(few, weight)
    law = Law(torch.ones(1, dtype=torch.float64), None, levels)
    features = law.features(few)
    powers = torch.tensor(POWERS, dtype=torch.float64)
    scores = [scan.solve(scan.rates(p[None], features)).score for p in powers]
    best = powers[min(range(len(scores)), key=scores.__getitem__)]
    law = replace(law, theta=best[None].clone())
    if len(data.order):
        law = _descend(scan, law, features, n_iteration)
        score = math.inf if family == "splines" else _score(scan, law, features)
        if score > EXACT**2 and family != "power":
            law = _maybe_flexible(scan, law, score, n_iteration)
        whole = Solver(data, weight)
        law = _descend(whole, law, law.features(data), 4)
    whole = Solver(data, weight)
    v = whole.rates(law.theta, law.features(data))
    fit = whole.solve(v)
    at = float(data.concentration.mean())
    covariance = torch.zeros(data.n_met, 2, 2, dtype=torch.float64)
    if data.has_homeostasis:
        covariance = line_covariance(whole, v, fit, at)
    log_k = positive_rate_constants(fit).log10()
    features = law.features(data) if len(data.order) else []
    error = standard_errors(whole, v, fit, features)[: data.n_rxn]
    deviation = error / (fit.k.abs() * math.log(10))
    return JointFit(law, log_k, fit.line, covariance, at, fit.score, deviation)


def _score(solver: Solver, law: Law, features: Sequence[Tensor]) -> float:
    return solver.solve(solver.rates(law.theta, features)).score


def _descend(solver: Solver, law: Law, features: Sequence[Tensor], n_iteration: int) -> Law:
    """Damped Gauss–Newton in theta; a step that does not lower the score is halved."""
    v = solver.rates(law.theta, features)
    fit = solver.solve(v)
    for _ in range(n_iteration):
        step = solver.step(fit, v, features)
        size, is_better = 1.0, False
        for _ in range(8):
            theta = law.theta + size * step
            v_new = solver.rates(theta, features)
            new = solver.solve(v_new)
            if new.score < fit.score:
                is_better = True
                break
            size /= 2
        if not is_better:
            break
        gain = 1 - new.score / fit.score
        law, v, fit = replace(law, theta=theta), v_new, new
        if gain < 1e-3 or fit.score < 1e-28:
            break
    return law


def _maybe_flexible(solver: Solver, law: Law, score: float, n_iteration: int) -> Law:
    """Splines in place of the power law, and ever finer ones, where the criterion asks for them."""
    data = solver.data
    log_c = data.concentration.clamp_min(SMALLEST_CONCENTRATION).log()
    values = log_c[:, torch.unique(data.met_sub)].flatten()
    low, high = float(values.min()), float(values.max())
    low, high = min(low, 0.0) - 1e-6, max(high, 0.0) + 1e-6
    n_theta = 1
    for n_cell in N_CELLS:
        n_new = int(law.levels.numel()) * (n_cell + 2)
        if n_new * data.n_frame * data.n_rxn > LARGEST_BASIS and n_theta > 1:
            break
        # sum_b centre_b B_b(x) = x exactly, and smooth functions are near their own values there
        centre = low + (high - low) / n_cell * (torch.arange(n_cell + 3).double() - 1)
        inside = centre.clamp(low, high)
        theta = [
            law.log_value(inside, n) + law_slope(law, level) * (centre - inside)
            for n, level in enumerate(law.levels)
        ]
        finer = Law(torch.cat(theta), (low, high, n_cell), law.levels)
        features = finer.features(data)
        finer = _descend(solver, finer, features, n_iteration)
        fit = solver.solve(solver.rates(finer.theta, features))
        n = data.target.numel() / float(correlated_frames(fit.left).mean())
        gain = n * math.log(score / max(fit.score, 1e-300))
        if gain <= (n_new - n_theta) * math.log(max(n, 2.0)):
            break
        law, score, n_theta = finer, fit.score, n_new
        if score <= EXACT**2:
            break
    return law
