r"""Rate constants, rate law, homeostasis and metabolite types together, S given.

$\dot c_i = \sum_j S_{ij} k_j \prod_{e \in \mathrm{sub}(j)} f(c_e, s_e) + \alpha_i + \beta_i c_i$.
With $\log f$ linear in some features of $\log c$ the rates at k = 1 are $\exp(\sum_q \theta_q
Q_q(c))$. The few $\theta$ are found by Gauss–Newton on what is left once everything linear (k and
one line of homeostasis for each metabolite) is solved: variable projection. All of it goes through
normal equations $(S^\top W S) \circ (V^\top V)$, whose size does not depend on the frames.

The power law $f = c^{p s}$ has one feature. Where it does not reach rounding error, a cubic spline
in log c for each |s| takes its place if that lowers the Bayesian information criterion. Types are
then the components of a Gaussian mixture of the lines, each with its own measurement covariance;
their number is the one with the lowest criterion.

Nothing here is drawn at random, and no step is bounded by the clock.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuralgraph.core.errors import ConfigError, DataError, TrainingError
from neuralgraph.nn.mlp import MLP, PowerLawMLP
from neuralgraph.numerics.identifiability import Group, determined, groups, null_space_of_gram
from neuralgraph.systems.metabolism.closed_form import log_k_of_combination

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

SMALLEST_CONCENTRATION = 1e-8
RIDGE = 1e-11
"""Added to the diagonal of column-scaled normal equations."""
EXACT = 1e-9
"""Relative residual at which a law is exact: only rounding is left to explain."""
POWERS = tuple(0.25 * n for n in range(1, 13))
"""Powers the scan starts from."""
TAUS = tuple(4.0**n for n in range(12))
"""Factors by which the covariances of the lines may be too small."""
N_CELLS = (16, 32, 64)
"""Cells of the splines in log c that are tried, coarse to fine."""
LARGEST_BASIS = 40_000_000
"""Numbers that the features of a finer spline may take in memory."""
LARGEST_GROUP = 32
"""Undetermined groups beyond this keep their minimum-norm solution."""
TYPE_TOLERANCE = 1e-3
"""Lines closer than this, relative to the size of all lines, are not told apart."""
NULL = 1e-7
"""Relative singular value below which a direction counts as undetermined."""
N_NODE = 128
"""Concentrations at which ``MLP_sub`` is fitted, for each |s|."""
N_NODE_TYPE = 48
"""Concentrations at which ``MLP_node`` is fitted, for each type."""
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class KineticData:
    """Frames and graph of a mass-action network whose stoichiometry is given.

    Args:
        concentration: ``(n_frame, n_met)``, >= 0.
        target: What reactions and homeostasis must explain: dc/dt less known inputs.
        met_sub, rxn_sub: Substrate edges, ``(n_sub_edge,)``.
        order: |s| of each substrate edge.
        sto_all: S, dense ``(n_met, n_rxn)``.
        factor: Known factor of each rate ``(n_frame, n_rxn)``, or ``None``.
        has_homeostasis: Whether each metabolite has a line of its own.
    """

    concentration: Tensor
    target: Tensor
    met_sub: Tensor
    rxn_sub: Tensor
    order: Tensor
    sto_all: Tensor
    factor: Tensor | None
    has_homeostasis: bool

    def __post_init__(self) -> None:
        if self.concentration.shape[0] < 2:
            raise DataError(
                f"{self.concentration.shape[0]} training frame cannot determine rate constants: "
                "record at least 2"
            )

    @property
    def n_met(self) -> int:
        """Number of metabolites."""
        return self.sto_all.shape[0]

    @property
    def n_rxn(self) -> int:
        """Number of reactions."""
        return self.sto_all.shape[1]

    @property
    def n_frame(self) -> int:
        """Number of frames."""
        return self.concentration.shape[0]

    def every(self, step: int) -> KineticData:
        """Each ``step``-th frame."""
        return replace(
            self,
            concentration=self.concentration[::step],
            target=self.target[::step],
            factor=None if self.factor is None else self.factor[::step],
        )

    def over_substrates(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum of ``value * order`` (or of ``value`` on masked edges) over a reaction's substrates.

        Args:
            value: ``(n_frame, n_met)``.
            mask: Edges that count, ``(n_sub_edge,)`` bool; with it the order is not applied.

        Returns:
            ``(n_frame, n_rxn)``.
        """
        met, rxn = self.met_sub, self.rxn_sub
        if mask is not None:
            met, rxn = met[mask], rxn[mask]
        edge = value.T[met]
        if mask is None:
            edge = edge * self.order[:, None]
        total = value.new_zeros(self.n_rxn, value.shape[0])
        return total.index_add_(0, rxn, edge).T


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


# -- least squares in k and the lines --------------------------------------------------------------


@dataclass(frozen=True)
class LinearFit:
    """Rate constants and homeostatic lines at a given law.

    Args:
        k: ``(n_rxn,)``, of either sign.
        line: Intercept and slope of each metabolite, ``(n_met, 2)``.
        left: What is not explained, ``(n_frame, n_met)``.
        gram: Normal matrix over ``[k, intercepts, slopes]``.
        score: Weighted mean square of ``left``, relative to that of the target.
    """

    k: Tensor
    line: Tensor
    left: Tensor
    gram: Tensor
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

    def rates(self, theta: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Rates at k = 1, ``(n_frame, n_rxn)``."""
        exponent = sum(t * q for t, q in zip(theta, features, strict=True))
        assert isinstance(exponent, Tensor)
        v = exponent.clamp(-300.0, 300.0).exp()
        return v if self.data.factor is None else v * self.data.factor

    def gram(self, v: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normal matrix over ``[k, intercepts, slopes]`` (k alone without homeostasis)."""
        data = self.data
        w = self.weight if weight is None else weight
        weighted = w[:, None] * data.sto_all
        top = (data.sto_all.T @ weighted) * (v.T @ v)
        if not data.has_homeostasis:
            return top
        c, n = data.concentration, data.n_met
        cross = torch.cat([weighted.T * v.sum(0)[:, None], weighted.T * (v.T @ c)], dim=1)
        corner = torch.zeros(2 * n, 2 * n, dtype=v.dtype)
        i = torch.arange(n)
        corner[i, i] = w * data.n_frame
        corner[i, n + i] = corner[n + i, i] = w * c.sum(0)
        corner[n + i, n + i] = w * c.square().sum(0)
        return torch.cat([torch.cat([top, cross], 1), torch.cat([cross.T, corner], 1)])

    def moment(self, v: Tensor, value: Tensor) -> Tensor:
        """Inner products of every linear column with ``value`` ``(n_frame, n_met)``."""
        top = ((value @ self.weighted_s) * v).sum(0)
        if not self.data.has_homeostasis:
            return top
        w, c = self.weight, self.data.concentration
        return torch.cat([top, w * value.sum(0), w * (value * c).sum(0)])

    def prediction(self, x: Tensor, v: Tensor) -> Tensor:
        """Linear columns times ``x``, ``(n_frame, n_met)``."""
        data = self.data
        result = (v * x[: data.n_rxn]) @ data.sto_all.T
        if data.has_homeostasis:
            a, b = x[data.n_rxn :].view(2, -1)
            result = result + a + b * data.concentration
        return result

    def solve(self, v: Tensor) -> LinearFit:
        """Least squares with one step of refinement; free directions stay at minimum norm."""
        data = self.data
        gram = self.gram(v)
        inverse = _inverse(gram)
        x = inverse(self.moment(v, data.target))
        x = x + inverse(self.moment(v, data.target - self.prediction(x, v)))
        left = data.target - self.prediction(x, v)
        line = torch.zeros(data.n_met, 2, dtype=x.dtype)
        if data.has_homeostasis:
            line = x[data.n_rxn :].view(2, -1).T.contiguous()
        score = float((self.weight * left.square()).sum()) / max(self.total, 1e-300)
        return LinearFit(x[: data.n_rxn], line, left, gram, score)

    def step(self, fit: LinearFit, v: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Gauss–Newton step of theta, with everything linear projected out."""
        data = self.data
        kv = v * fit.k
        tangent = [(kv * q) @ data.sto_all.T for q in features]
        cross = torch.stack([self.moment(v, d) for d in tangent], dim=1)
        flat = torch.stack([(d * self.weight.sqrt()).flatten() for d in tangent])
        corner = flat @ flat.T
        slope = flat @ (fit.left * self.weight.sqrt()).flatten()
        inverse = _inverse(fit.gram)
        projected = corner - cross.T @ inverse(cross)
        residual = slope - cross.T @ inverse(self.moment(v, fit.left))
        return _inverse(projected, ridge=1e-9)(residual)


def _inverse(gram: Tensor, ridge: float = RIDGE) -> Callable[[Tensor], Tensor]:
    """Solver of a column-scaled, slightly regularised symmetric system."""
    scale = gram.diagonal().clamp_min(0).sqrt()
    longest = scale.max()
    scale = torch.where(scale > 1e-15 * longest, 1 / scale.clamp_min(1e-300), 0.0)
    scaled = gram * scale[:, None] * scale
    scaled = scaled + (ridge + (scale == 0).to(scaled)).diag()
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


# -- the law ---------------------------------------------------------------------------------------


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
    """

    law: Law
    log_k: Tensor
    line: Tensor
    covariance: Tensor
    at: float
    score: float


def fit_joint(data: KineticData, *, n_iteration: int = 30, n_some: int = 1024) -> JointFit:
    """Substrate law, rate constants and homeostatic lines.

    Args:
        data: Frames and graph.
        n_iteration: Bound on Gauss–Newton steps.
        n_some: Frames of the scan over powers and of the splines, evenly spaced.

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
        score = _score(scan, law, features)
        if score > EXACT**2:
            law = _maybe_flexible(scan, law, score, n_iteration)
        whole = Solver(data, weight)
        law = _descend(whole, law, law.features(data), 4)
    whole = Solver(data, weight)
    v = whole.rates(law.theta, law.features(data))
    fit = whole.solve(v)
    at = float(data.concentration.mean())
    covariance = torch.zeros(data.n_met, 2, 2, dtype=torch.float64)
    if data.has_homeostasis:
        covariance = _line_covariance(whole, v, fit, at)
    log_k = _finish(whole, v, fit).log10()
    return JointFit(law, log_k, fit.line, covariance, at, fit.score)


def metabolite_weights(target: Tensor) -> Tensor:
    """1 / mean square of each metabolite's dc/dt, bounded, mean 1, ``(n_met,)``."""
    square = target.square().mean(0)
    floor = 1e-6 * square.mean()
    weight = 1 / square.clamp_min(floor.clamp_min(1e-300))
    return weight / weight.mean()


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
        n = data.target.numel() / float(_correlated_frames(fit.left).mean())
        gain = n * math.log(score / max(fit.score, 1e-300))
        if gain <= (n_new - n_theta) * math.log(max(n, 2.0)):
            break
        law, score, n_theta = finer, fit.score, n_new
        if score <= EXACT**2:
            break
    return law


def law_slope(law: Law, level: Tensor) -> float:
    """Slope of log f in log c beyond the data: that of the power law, 0 for splines."""
    return float(law.theta[0] * level) if law.knots is None else 0.0


def _correlated_frames(left: Tensor, n_lag: int = 64) -> Tensor:
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


def _finish(solver: Solver, v: Tensor, fit: LinearFit) -> Tensor:
    """Positive rate constants of a solution, ``(n_rxn,)``."""
    n = solver.data.n_rxn
    space = null_space_of_gram(fit.gram, rtol=NULL)
    found = [group for group in groups(space) if group.members[0] < n]
    return split_undetermined(fit.k, found, determined(space)[:n], n)


def _line_covariance(solver: Solver, v: Tensor, fit: LinearFit, at: float) -> Tensor:
    """Covariance of (value at ``at``, slope) of each line, ``(n_met, 2, 2)``.

    Errors of each metabolite have a size and a correlation in time of their own (sandwich).
    """
    data, n = solver.data, solver.data.n_rxn
    error = fit.left.square().mean(0) * _correlated_frames(fit.left)
    middle = solver.gram(v, solver.weight.square() * error)
    pick = torch.zeros(fit.gram.shape[0], 2 * data.n_met, dtype=torch.float64)
    i = torch.arange(data.n_met)
    pick[n + i, i] = 1.0
    pick[n + data.n_met + i, i] = at
    pick[n + data.n_met + i, data.n_met + i] = 1.0
    bread = _inverse(fit.gram)(pick)
    full = bread.T @ middle @ bread
    rows = torch.stack([i, data.n_met + i], dim=1)
    covariance = full[rows[:, :, None], rows[:, None, :]]
    known = determined(null_space_of_gram(fit.gram, rtol=NULL))[n:].view(2, -1).all(0)
    covariance[~known] += 1e6 * torch.eye(2, dtype=torch.float64)
    return covariance


def split_undetermined(
    k: Tensor, found: Sequence[Group], is_determined: Tensor, n_rxn: int
) -> Tensor:
    r"""Positive rate constants that keep every determined combination.

    Where the data determine a combination only (k1 + k2, k1 - k2), log k is expected from what
    the determined rate constants say of all (uniform over their range), and moved to the nearest
    rate constants with that combination. A reaction that never acts is set to the middle of the
    range.

    Args:
        k: Least-squares solution, of either sign, ``(n_rxn,)``.
        found: Undetermined groups; members at or beyond ``n_rxn`` are not rate constants.
        is_determined: ``(n_rxn,)`` bool.
        n_rxn: Number of reactions.
    """
    positive = is_determined & (k > 0)
    if not bool(positive.any()):
        positive = k > 0
    if not bool(positive.any()):
        return torch.ones_like(k)
    log_k = k[positive].log10()
    low, high = float(log_k.min()), float(log_k.max())
    low, high = low - 1e-3, high + 1e-3
    result = k.clone()
    for group in found:
        members = [j for j in group.members if j < n_rxn]
        if len(members) < len(group.members):
            continue
        index = torch.tensor(members)
        if group.n_null == len(members):
            result[index] = 10 ** (0.5 * (low + high))
        elif group.combination is not None and len(members) <= LARGEST_GROUP:
            result[index] = _nearest_split(group.combination, k[index], (low, high))
    return torch.where(result > 0, result, torch.full_like(result, 10 ** (low - 1)))


def _nearest_split(weight: Tensor, k: Tensor, prior: tuple[float, float]) -> Tensor:
    """Rate constants nearest to their expectation with ``weight @ k`` fixed.

    All members of one sign of ``weight`` are moved by a common factor.
    """
    value = float(weight @ k)
    mean, variance = log_k_of_combination(weight, value, prior)
    expected = 10**mean
    plus = weight > 0
    part = (weight * expected).abs()
    up, down = float(part[plus].sum()), float(part[~plus].sum())
    if up == 0 or down == 0:
        return expected * (value / float(weight @ expected))
    # the side that decides the sign is solved for, the factor of the other scanned
    this, other = (up, down) if value > 0 else (down, up)
    stiff = 1 / variance.clamp_min(1e-12)
    solved_for = plus if value > 0 else ~plus
    factor = torch.logspace(-3, 3, 2401, dtype=torch.float64)
    solved = (abs(value) + other * factor) / this
    cost = (
        float(stiff[~solved_for].sum()) * factor.log10().square()
        + float(stiff[solved_for].sum()) * solved.log10().square()
    )
    best = int(cost.argmin())
    return expected * torch.where(solved_for, solved[best], factor[best])


# -- metabolite types ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Types:
    """Components of a Gaussian mixture with known measurement covariances.

    Args:
        mean: Value at the reference concentration and slope of each type, ``(n_type, 2)``.
        posterior: Probability of each type for each metabolite, ``(n_met, n_type)``.
        criterion: Bayesian information criterion for 1, 2, … types.
    """

    mean: Tensor
    posterior: Tensor
    criterion: tuple[float, ...]


def metabolite_types(
    value: Tensor, covariance: Tensor, *, smallest: Tensor, max_types: int
) -> Types:
    r"""Types of metabolites from what was measured of each, their number included.

    $z_i \sim \sum_t w_t\, N(\mu_t, \tau C_i + \sigma_0^2)$: metabolites of one type share
    one line, $C_i$ is what the fit says of its error, $\tau \ge 1$ (fitted) allows for its being
    too small, $\sigma_0$ is a tolerance; a flat background takes metabolites of no type.
    Components are added where the likelihood gains most, and their number has the lowest criterion.

    Args:
        value: ``(n_met, 2)``.
        covariance: $C_i$, ``(n_met, 2, 2)``.
        smallest: $\sigma_0$ of both coordinates, ``(2,)``, > 0.
        max_types: Largest number of types considered.

    Source:
        own; expectation-maximisation after Dempster, Laird & Rubin (1977), criterion after
        Schwarz (1978).
    """
    n = value.shape[0]
    z = value / smallest
    size, axis = torch.linalg.eigh(covariance / (smallest[:, None] * smallest))
    noise = _Spread(size.clamp_min(0), axis)
    best: tuple[Tensor, Tensor] | None = None
    lowest = float("inf")
    centres = z[:0]
    criterion: list[float] = []
    for n_type in range(1, max_types + 1):
        if n_type > n:
            break
        centres = _one_more(z, noise, centres)
        centres, posterior, log_likelihood = _expectation_maximisation(z, noise, centres)
        n_free = 3 * n_type + 1  # two coordinates and a share each; tau
        criterion.append(n_free * math.log(n) - 2 * log_likelihood)
        is_shared = n_type == 1 or float(posterior.sum(0).min()) > 1.5  # one metabolite is no type
        if criterion[-1] < lowest and is_shared:
            lowest, best = criterion[-1], (centres, posterior)
        elif n_type > 2 and criterion[-1] > criterion[-2] > lowest:
            break
    assert best is not None
    mean, posterior = best
    order = torch.argsort(mean[:, 1], descending=True)
    return Types(mean[order] * smallest, posterior[:, order], tuple(criterion))


@dataclass(frozen=True)
class _Spread:
    """Eigenvalues ``(n, 2)`` and eigenvectors ``(n, 2, 2)`` of measurement covariances."""

    size: Tensor
    axis: Tensor

    def along(self, x: Tensor) -> Tensor:
        """Coordinates of ``x`` ``(n, m, 2)`` along the eigenvectors."""
        return x @ self.axis

    def mean(self, z: Tensor, posterior: Tensor, tau: float) -> Tensor:
        """Precision-weighted means, ``(n_type, 2)``."""
        precision = (self.axis / (tau * self.size + 1)[:, None, :]) @ self.axis.transpose(1, 2)
        total = torch.einsum("nt,nij->tij", posterior, precision)
        total = total + 1e-12 * torch.eye(2, dtype=z.dtype)
        moment = torch.einsum("nt,nij,nj->ti", posterior, precision, z)
        return torch.linalg.solve(total, moment)

    def log_density(self, z: Tensor, centres: Tensor, tau: float) -> Tensor:
        """``(n, n_type)``."""
        variance = tau * self.size + 1
        square = self.along(z[:, None] - centres).square() / variance[:, None]
        return -0.5 * (square.sum(2) + variance.log().sum(1, keepdim=True)) - LOG_2PI


def _expectation_maximisation(
    z: Tensor, noise: _Spread, centres: Tensor, n_iteration: int = 200
) -> tuple[Tensor, Tensor, float]:
    """Centres, posterior (types alone) and log likelihood; a flat background takes stray points."""
    n_type = centres.shape[0]
    share = torch.full((n_type + 1,), 1 / (n_type + 1), dtype=z.dtype)
    area = float((z.amax(0) - z.amin(0) + 1).prod())
    background = torch.full((z.shape[0], 1), -math.log(area), dtype=z.dtype)
    log_likelihood, posterior = -float("inf"), torch.ones(z.shape[0], n_type, dtype=z.dtype)
    taus = list(range(len(TAUS)))
    for _ in range(n_iteration):
        each = {}
        for t in taus:
            density = torch.cat([noise.log_density(z, centres, TAUS[t]), background], 1)
            each[t] = density + share.log()
        total = {t: float(joint.logsumexp(1).sum()) for t, joint in each.items()}
        best = max(total, key=total.__getitem__)
        posterior = each[best].softmax(1)
        gain = total[best] - log_likelihood
        log_likelihood = total[best]
        if gain < 1e-8 * (1 + abs(log_likelihood)):
            break
        share = posterior.mean(0).clamp_min(1e-12)
        centres = noise.mean(z, posterior[:, :-1], TAUS[best])
        taus = [t for t in (best - 1, best, best + 1) if 0 <= t < len(TAUS)]
    kept = posterior[:, :-1] + 1e-300 * share[:-1]
    return centres, kept / kept.sum(1, keepdim=True), log_likelihood


def _one_more(z: Tensor, noise: _Spread, centres: Tensor, n_try: int = 12) -> Tensor:
    """One centre more, at the metabolite where the likelihood gains most."""
    if len(centres):
        candidates = torch.argsort(noise.log_density(z, centres, 1.0).amax(1))
    else:
        candidates = torch.argsort(z[:, 1], stable=True)
    spaced = torch.linspace(0, len(z) - 1, min(n_try, len(z))).round().long()
    starts = [z[i : i + 1] for i in candidates[spaced].tolist()]
    if not len(centres):
        starts.append(noise.mean(z, torch.ones(len(z), 1, dtype=z.dtype), 1.0))
    best, best_gain = None, -float("inf")
    for start in starts:
        trial = torch.cat([centres, start])
        trial, _, gain = _expectation_maximisation(z, noise, trial, n_iteration=15)
        if gain > best_gain:
            best, best_gain = trial, gain
    assert best is not None
    return best


def type_tolerance(data: KineticData, fit: JointFit) -> Tensor:
    """Differences in (value, slope) that no data could tell apart in earnest, ``(2,)``."""
    value = fit.line[:, 0] + fit.line[:, 1] * fit.at
    size = torch.stack([value.square().median(), fit.line[:, 1].square().median()]).sqrt()
    motion = float(data.target.square().mean().sqrt())
    floor = 1e-9 * motion * torch.tensor([1.0, 1 / max(fit.at, 1e-12)], dtype=torch.float64)
    return torch.maximum(TYPE_TOLERANCE * size, floor).clamp_min(1e-30)


def places_of_types(types: Types, n_dim: int) -> Tensor:
    """Where each type lies in the space of embeddings, ``(n_type, n_dim)``.

    Types lie at their (slope, value), each in units of its spread over types, scaled so that the
    nearest two are 1 apart; further coordinates are 0.
    """
    place = types.mean.flip(1)
    place = place - place.mean(0)
    place = place / place.square().mean(0).sqrt().clamp_min(1e-30)
    n_type = place.shape[0]
    if n_type == 1:
        place = torch.zeros_like(place)
    place = place[:, :n_dim]
    if n_type > 1:
        apart = torch.pdist(place)
        if float(apart.min()) < 0.05 * float(apart.max()):  # a crowd: evenly along one line
            place = torch.zeros_like(place)
            place[:, 0] = torch.arange(n_type, dtype=place.dtype) - 0.5 * (n_type - 1)
        else:
            place = place / apart.min()
    return nn.functional.pad(place, (0, n_dim - place.shape[1]))


# -- into the model --------------------------------------------------------------------------------


def kinetic_data(
    model: Metabolism_Propagation, spec: MetabolismSpec, batch: MetabolismBatch
) -> KineticData:
    """Frames and given graph in the form the solvers take, float64 on the CPU."""
    if model.flux_limit:
        raise ConfigError(
            "loop.start=closed_form with given S has no flux limiter: set model.flux_limit=false, "
            "or use loop=metabolism_adam"
        )
    assert spec.sto_all is not None
    order = spec.order_sub if spec.order_sub is not None else spec.sto_sub
    assert order is not None
    c, target = (x.detach().double().cpu() for x in (batch.concentration, batch.dx_dt))
    factor = None
    if model.input_mode == "additive" and batch.inputs is not None:
        target = target - batch.inputs.detach().double().cpu()
    elif model.input_mode.startswith("multiplicative") and batch.inputs is not None:
        with torch.no_grad():
            factor = model._mean_input(batch.inputs.t().contiguous()).t().double().cpu()
    sto_all = torch.zeros(spec.n_met, spec.n_rxn, dtype=torch.float64)
    sto_all[spec.met_all.cpu(), spec.rxn_all.cpu()] = spec.sto_all.double().cpu()
    return KineticData(
        concentration=c,
        target=target,
        met_sub=spec.met_sub.cpu(),
        rxn_sub=spec.rxn_sub.cpu(),
        order=order.double().cpu().abs(),
        sto_all=sto_all,
        factor=factor,
        has_homeostasis=model.has_homeostasis,
    )


@torch.no_grad()
def set_model(
    model: Metabolism_Propagation,
    spec: MetabolismSpec,
    batch: MetabolismBatch,
    *,
    max_types: int,
) -> dict[str, float]:
    """Solve jointly and leave the result in ``log_k``, ``MLP_sub``, ``MLP_node`` and ``a``.

    The rate constants are solved once more with what the two networks have become, so that their
    small errors of fit are compensated as far as k can.

    Args:
        model: A mass-action model whose S is given; changed in place.
        spec: What is given.
        batch: Every training frame.
        max_types: Largest number of metabolite types considered.

    Returns:
        ``residual`` (relative root mean square before the networks), ``power`` (where the law is
        one), ``n_types``, and ``error_MLP_sub`` and ``error_MLP_node``, relative errors of fit.
    """
    data = kinetic_data(model, spec, batch)
    fit = fit_joint(data)
    said = {"residual": math.sqrt(fit.score)}
    if fit.law.power is not None:
        said["power"] = fit.law.power
    said["error_MLP_sub"] = _set_law(model, data, fit.law)
    if model.has_homeostasis:
        value = fit.line[:, 0] + fit.line[:, 1] * fit.at
        types = metabolite_types(
            torch.stack([value, fit.line[:, 1]], dim=1),
            fit.covariance,
            smallest=type_tolerance(data, fit),
            max_types=max_types,
        )
        said["n_types"] = float(types.mean.shape[0])
        said["error_MLP_node"] = _set_homeostasis(model, data, fit, types)
    log_k = rate_constants(data, *_parts_at_unit_k(model, batch))
    model.log_k.copy_(log_k)
    return said


def rate_constants(data: KineticData, v: Tensor, homeostasis: Tensor) -> Tensor:
    """log10 k for rates at k = 1 ``(n_frame, n_rxn)`` and a homeostasis ``(n_frame, n_met)``."""
    rest = replace(data, target=data.target - homeostasis, has_homeostasis=False)
    solver = Solver(rest, torch.ones(data.n_met, dtype=torch.float64))
    return _finish(solver, v, solver.solve(v)).log10()


def _parts_at_unit_k(
    model: Metabolism_Propagation, batch: MetabolismBatch
) -> tuple[Tensor, Tensor]:
    model.log_k.zero_()
    v, h = [], []
    for start in range(0, len(batch), 512):
        c = batch.concentration[start : start + 512]
        inputs = None if batch.inputs is None else batch.inputs[start : start + 512]
        v.append(model.flux(c, inputs).double().cpu())
        h.append(model.homeostasis(c).double().cpu())
    return torch.cat(v), torch.cat(h)


def _set_law(model: Metabolism_Propagation, data: KineticData, law: Law) -> float:
    """Put the law into ``MLP_sub``; returns the relative error of fit of log f (of f: plain)."""
    log_c = data.concentration.clamp_min(SMALLEST_CONCENTRATION).log()
    low, high = min(float(log_c.min()), 0.0), max(float(log_c.max()), 0.0)
    module = copy.deepcopy(model.MLP_sub).double().cpu()
    error = 0.0
    if isinstance(module, PowerLawMLP):
        if law.power is not None:
            module.power.fill_(law.power)
            module.net.last.weight.zero_()
        else:
            x = torch.linspace(low, high, N_NODE, dtype=torch.float64)
            curve = [law.log_value(x, n) for n in range(len(law.levels))]
            slope = torch.cat([s * x for s in law.levels])
            power = (slope @ torch.cat(curve)) / (slope @ slope)
            module.power.copy_(power)
            inputs = torch.cat([torch.stack([x, s.expand_as(x)], 1) for s in law.levels])
            origin = inputs * torch.tensor([0.0, 1.0], dtype=torch.float64)
            error = fit_network(module.net, inputs, torch.cat(curve) - power * slope, offset=origin)
    else:
        top = math.exp(high)
        c = top * torch.linspace(0.0, 1.0, N_NODE, dtype=torch.float64).square()
        c = torch.cat([c[1:], torch.ones(1, dtype=torch.float64)])
        inputs = torch.cat([torch.stack([c, s.expand_as(c)], 1) for s in law.levels])
        clipped = c.log().clamp_min(low)
        target = torch.cat([law.log_value(clipped, n).exp() for n in range(len(law.levels))])
        error = fit_network(module, inputs, target)
    model.MLP_sub.load_state_dict(module.state_dict())
    return error


def _set_homeostasis(
    model: Metabolism_Propagation, data: KineticData, fit: JointFit, types: Types
) -> float:
    """Put the lines of the types into ``MLP_node`` and ``a``; returns the relative error of fit."""
    place = places_of_types(types, model.a.shape[1])
    model.a.copy_(types.posterior @ place)
    top = float(data.concentration.max())
    c = top * torch.linspace(0.0, 1.0, N_NODE_TYPE, dtype=torch.float64).square()
    inputs = torch.cat([torch.cat([c[:, None], p.expand(len(c), -1)], 1) for p in place])
    target = torch.cat([m[0] + m[1] * (c - fit.at) for m in types.mean])
    module = copy.deepcopy(model.MLP_node).double().cpu()
    error = fit_network(module, inputs, target)
    model.MLP_node.load_state_dict(module.state_dict())
    return error


# -- networks --------------------------------------------------------------------------------------


@torch.no_grad()
def fit_network(
    net: MLP,
    inputs: Tensor,
    target: Tensor,
    *,
    offset: Tensor | None = None,
    n_iteration: int = 200,
) -> float:
    r"""Fit a network with one output to few points, by Levenberg–Marquardt in their space.

    With fewer points than weights the step is $J^\top (J J^\top + \mu)^{-1} r$. $J J^\top$ needs
    no Jacobian: it is $\sum_l (\delta_l \delta_l^\top) \circ (h_l h_l^\top + 1)$ over layers.

    Args:
        net: The network, changed in place.
        inputs: ``(n_point, n_in)``.
        target: ``(n_point,)``.
        offset: Inputs whose values are subtracted, ``(n_point, n_in)``, or ``None``.
        n_iteration: Bound on the steps.

    Returns:
        Root mean square of the error, relative to the target's.

    Source:
        own; Levenberg (1944), Marquardt (1963).
    """
    points = inputs if offset is None else torch.cat([inputs, offset])
    n = target.numel()
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    size = float(target.square().mean().sqrt()) or 1.0

    def difference(value: Tensor) -> Tensor:
        return value if offset is None else value[:n] - value[n:]

    damping = 1e-3
    error = target - difference(net.single(points))
    score = float(error.square().mean())
    for _ in range(n_iteration):
        h, delta = _activations(net, points)
        kernel = sum(
            (d @ d.T) * (x @ x.T + (layer.bias is not None))
            for x, d, layer in zip(h, delta, layers, strict=True)
        )
        assert isinstance(kernel, Tensor)
        if offset is not None:
            kernel = kernel[:n, :n] - kernel[:n, n:] - kernel[n:, :n] + kernel[n:, n:]
        scale = float(kernel.diagonal().mean())
        before = [w.clone() for w in weights]
        is_better = False
        for _ in range(12):
            damped = kernel + damping * scale * torch.eye(n, dtype=kernel.dtype)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if int(failed) == 0:
                dual = torch.cholesky_solve(error[:, None], factor)[:, 0]
                if offset is not None:
                    dual = torch.cat([dual, -dual])
                for layer, x, d in zip(layers, h, delta, strict=True):
                    step = dual[:, None] * d
                    layer.weight.add_(step.T @ x)
                    if layer.bias is not None:
                        layer.bias.add_(step.sum(0))
                new = target - difference(net.single(points))
                new_score = float(new.square().mean())
                if new_score < score:
                    is_better = True
                    break
                for w, old in zip(weights, before, strict=True):
                    w.copy_(old)
            damping *= 8
        if not is_better:
            break
        gain = 1 - new_score / score
        error, score = new, new_score
        damping = max(damping / 6, 1e-15)
        if score < (1e-9 * size) ** 2 or (gain < 1e-3 and damping < 1e-14):
            break
    return math.sqrt(score) / size


def _activations(net: MLP, points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of every linear layer, and the derivative of the output by its pre-activations."""
    with torch.enable_grad():
        x = points * net.input_scale if net.is_scaled else points
        h: list[Tensor] = []
        pre: list[Tensor] = []
        for layer in net:
            if isinstance(layer, nn.Linear):
                h.append(x.detach())
                bias = None if layer.bias is None else layer.bias.detach()
                x = nn.functional.linear(x, layer.weight.detach(), bias)
                if not pre:
                    x.requires_grad_()
                pre.append(x)
            else:
                x = layer(x)
        delta = torch.autograd.grad(x.sum(), pre)
    return h, list(delta)
