r"""Maximum likelihood for measured concentrations: trajectories through the data, not derivatives.

With $u = \log c$ and errors proportional to the concentration, $\log y_t = u_t + \sigma e_t$, and
$\dot u = f(u; \theta) / e^u$ without noise of its own. States at every frame and parameters are
found together by Gauss–Newton (multiple shooting): $u$ starts from the smoothed data, so that no
trajectory is ever integrated with bad parameters, and the linearised equations close the gaps
between neighbouring frames,

$\delta_{t+1} = M_t \delta_t + B_t\, d\theta + \mathrm{gap}_t$.

A run is cut into pieces with a start of their own; inside a piece every $\delta_t$ is affine in
its start and $d\theta$, and the start is eliminated. The steps' Jacobians are computed on bins of
frames, which costs efficiency in the order of (bin times rate)² and no bias; the gaps themselves
are of fourth order in the frame interval.

Parameters: $[\ln k, \alpha, \beta, \theta]$, rate constants, lines of homeostasis, law.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.errors import TrainingError
from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_law import Law
from neuralgraph.systems.metabolism.joint_solver import scaled_inverse

PIECES = (240, 960)
"""Frames of a piece: in the first two iterations, and after them."""
BINS = (8, 4)
"""Frames that share one Jacobian, likewise."""
LARGEST_STEP = 1.0
"""Of a natural logarithm of k in one iteration."""
LARGEST_MOVE = 0.5
"""Of a natural logarithm of a concentration in one iteration."""
ROUGH = 0.3
"""Second differences of spline coefficients are expected to be of this size, in log f."""
LARGEST_DECAY = 2.0
"""Rate of decay times width of a bin."""
CHUNK = 16
"""Bins whose rows are multiplied at once."""


@dataclass(frozen=True)
class Series:
    """Measured courses.

    Args:
        log_c: Natural logarithm of the measured concentrations, ``(n_frame, n_met)``.
        time: Time of each frame, ``(n_frame,)``.
        runs: First frame of each run and the frame after its last.
        known: Known part of dc/dt, ``(n_frame, n_met)``, or ``None``.
    """

    log_c: Tensor
    time: Tensor
    runs: tuple[tuple[int, int], ...]
    known: Tensor | None

    def pieces(self, longest: int) -> list[tuple[int, int]]:
        """The runs cut into pieces of nearly equal length, at most ``longest``."""
        result: list[tuple[int, int]] = []
        for first, stop in self.runs:
            n = -(-(stop - first) // longest)
            ends = [first + (stop - first) * i // n for i in range(n + 1)]
            result += list(itertools.pairwise(ends))
        return result


@dataclass(frozen=True)
class TrajectoryFit:
    """Result of :func:`fit_trajectories`.

    Args:
        law: Substrate function.
        log_k: Natural logarithm of k, ``(n_rxn,)``.
        line: Intercept and slope of each metabolite, ``(n_met, 2)``.
        u: Natural logarithm of the states, ``(n_frame, n_met)``.
        covariance: Of ``[ln k, intercepts, slopes, theta]``.
        sigma: Standard deviation of the errors of log c.
        criterion: Bayesian information criterion.
        left: Errors of log c, ``(n_frame, n_met)``.
        n_iteration: Steps taken.
        is_settled: Whether the last step changed nothing that matters; else the covariance is that
            of a point on the way.
    """

    law: Law
    log_k: Tensor
    line: Tensor
    u: Tensor
    covariance: Tensor
    sigma: float
    criterion: float
    left: Tensor
    n_iteration: int
    is_settled: bool


class Shooting:
    """One network and one set of courses; see the module's text.

    Args:
        data: The graph; its concentrations are not used.
        series: The courses.
    """

    def __init__(self, data: KineticData, series: Series) -> None:
        self.data, self.series = data, series
        self.met_all, self.rxn_all = data.sto_all.nonzero(as_tuple=True)
        self.sto = data.sto_all[self.met_all, self.rxn_all]
        # (row, column) of d f_row / d u_column through each pair of an edge and a substrate
        pairs = [((data.rxn_sub == j).nonzero()[:, 0]) for j in range(data.n_rxn)]
        edge, substrate = [], []
        for e, j in enumerate(self.rxn_all.tolist()):
            for s in pairs[j].tolist():
                edge.append(e)
                substrate.append(s)
        self.pair_edge = torch.tensor(edge, dtype=torch.long)
        self.pair_sub = torch.tensor(substrate, dtype=torch.long)
        row, column = self.met_all[self.pair_edge], data.met_sub[self.pair_sub]
        self.place = row * data.n_met + column
        self.n_line = 2 * data.n_met if data.has_homeostasis else 0

    def at(self, u: Tensor, frames: slice, law: Law) -> KineticData:
        """The graph with the states ``u`` of some frames, inside the reach of the law."""
        if law.knots is not None:
            u = u.clamp(law.knots[0], law.knots[1])
        factor = self.data.factor
        return replace(
            self.data,
            concentration=u.exp(),
            target=u,
            factor=None if factor is None else factor[frames],
            window=None,
        )

    def rates(self, u: Tensor, frames: slice, law: Law, log_k: Tensor) -> tuple[Tensor, list]:
        """Velocities ``(n, n_rxn)`` and the features of the law."""
        data = self.at(u, frames, law)
        features = law.features(data)
        exponent = log_k.expand(len(u), -1).clone()
        for t, q in zip(law.theta, features, strict=True):
            exponent += t * q
        v = exponent.clamp(-300.0, 300.0).exp()
        return (v if data.factor is None else v * data.factor), features

    def slope(self, u: Tensor, v: Tensor, frames: slice, line: Tensor) -> Tensor:
        """du/dt, ``(n, n_met)``."""
        c = u.exp()
        f = v @ self.data.sto_all.T + line[:, 0] + line[:, 1] * c
        if self.series.known is not None:
            f = f + self.series.known[frames]
        return f / c

    def gaps(self, u: Tensor, g: Tensor, first: int, stop: int) -> Tensor:
        """Where each frame leads less where the next one is, ``(n - 1, n_met)``."""
        step = self.series.time[first:stop].diff()[:, None]
        area = 0.5 * step * (g[1:] + g[:-1])
        even = bool(((step - step.mean()).abs() <= 1e-6 * step.mean()).all())
        if even and len(g) >= 4:
            area[1:-1] = step[1:-1] / 24 * (13 * (g[1:-2] + g[2:-1]) - g[:-3] - g[3:])
            area[0] = step[0] / 24 * (9 * g[0] + 19 * g[1] - 5 * g[2] + g[3])
            area[-1] = step[-1] / 24 * (9 * g[-1] + 19 * g[-2] - 5 * g[-3] + g[-4])
        return u[:-1] + area - u[1:]


@dataclass(frozen=True)
class _Piece:
    """Linearisation of one piece, its start eliminated.

    Args:
        first, stop: Frames.
        jacobian: d(du/dt)/du at each frame, ``(n, n_met, n_met)``.
        drive: Columns of the parameters, for any step: see :func:`_drive`.
        gap: ``(n - 1, n_met)``.
        cross: Start against parameters in the normal equations, ``(n_met, n_par)``.
        moment: Right side of the start, ``(n_met,)``.
        solve: Solver of the start's block.
    """

    first: int
    stop: int
    jacobian: Tensor
    drive: _Drive
    gap: Tensor
    cross: Tensor
    moment: Tensor
    solve: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Drive:
    """d(du/dt)/d parameters of a stretch of frames, in factors."""

    v: Tensor
    c: Tensor
    of_law: Tensor
    has_line: bool

    def column(self, s: Tensor, step: Tensor) -> Tensor:
        """The drive of a parameter step, ``(n, n_met)``."""
        n_rxn, n_met = self.v.shape[1], self.c.shape[1]
        f = (self.v * step[:n_rxn]) @ s.T
        rest = step[n_rxn:]
        if self.has_line:
            f = f + rest[:n_met] + rest[n_met : 2 * n_met] * self.c
            rest = rest[2 * n_met :]
        f = f / self.c
        return f + torch.tensordot(rest, self.of_law, dims=1) if len(rest) else f

    def matrix(self, shooting: Shooting, weight: Tensor, rows: slice) -> Tensor:
        """Weighted sum over some frames, ``(n_met, n_par)``."""
        w = weight[:, None]
        v, inverse = self.v[rows], 1 / self.c[rows]
        n_rxn, n_met = v.shape[1], inverse.shape[1]
        n_line = 2 * n_met if self.has_line else 0
        result = v.new_zeros(n_met, n_rxn + n_line + len(self.of_law))
        met, rxn = shooting.met_all, shooting.rxn_all
        result[met, rxn] = shooting.sto * (w * v[:, rxn] * inverse[:, met]).sum(0)
        if self.has_line:
            i = torch.arange(n_met)
            result[i, n_rxn + i] = (w * inverse).sum(0)
            result[i, n_rxn + n_met + i] = weight.sum()
        if len(self.of_law):
            result[:, n_rxn + n_line :] = torch.einsum("t,qtm->mq", weight, self.of_law[:, rows])
        return result


def _propagated(x: Tensor, path: Tensor) -> Tensor:
    """exp(path) x to fourth order."""
    term = total = x
    for n in range(1, 5):
        term = path @ term / n
        total = total + term
    return total


def _linearised(
    shooting: Shooting,
    u: Tensor,
    law: Law,
    log_k: Tensor,
    line: Tensor,
    piece: tuple[int, int],
    extra: Law | None,
    width: int,
) -> tuple[_Piece, Tensor, Tensor]:
    """One piece, and its share of the normal equations of the parameters."""
    first, stop = piece
    frames, n_met = slice(first, stop), u.shape[1]
    here, s = u[frames], shooting.data.sto_all
    v, features = shooting.rates(here, frames, law, log_k)
    g = shooting.slope(here, v, frames, line)
    c = here.exp()
    edge_slope = law.slopes(here, shooting.data.met_sub, shooting.data.order)
    per_edge = v[:, shooting.rxn_all] * shooting.sto / c[:, shooting.met_all]
    jacobian = u.new_zeros(stop - first, n_met * n_met)
    values = per_edge[:, shooting.pair_edge] * edge_slope[:, shooting.pair_sub]
    jacobian.index_add_(1, shooting.place, values)
    jacobian = jacobian.view(-1, n_met, n_met)
    diagonal = jacobian.diagonal(dim1=1, dim2=2)
    diagonal += line[:, 1] - g
    if extra is not None:
        features = [*features, *extra.features(shooting.at(here, frames, extra))]
    of_law = torch.stack([((v * q) @ s.T) / c for q in features])
    drive = _Drive(v, c, of_law, shooting.n_line > 0)
    gap = shooting.gaps(here, g, first, stop)
    step = shooting.series.time[frames].diff()
    # what remains of the data when the gaps alone are closed
    move, moves = u.new_zeros(n_met), []
    for t in range(stop - first):
        moves.append(move)
        if t < stop - first - 1:
            path = 0.5 * step[t] * (jacobian[t] + jacobian[t + 1])
            move = _propagated(move, path) + gap[t]
    left = shooting.series.log_c[frames] - here - torch.stack(moves)
    # the same on bins, for every start and parameter at once; fast pieces take narrow bins
    fastest = float(jacobian.diagonal(dim1=1, dim2=2).abs().max() * step.max())
    width = max(1, min(width, int(LARGEST_DECAY / max(fastest, 1e-12))))
    n_par = log_k.numel() + shooting.n_line + len(of_law)
    nodes = list(range(0, stop - first, width))
    owner = ((torch.arange(stop - first) + (width - 1) // 2) // width).clamp(max=len(nodes) - 1)
    count = torch.bincount(owner, minlength=len(nodes)).double()
    total = u.new_zeros(len(nodes), n_met).index_add_(0, owner, left)
    state = torch.cat([torch.eye(n_met, dtype=u.dtype), u.new_zeros(n_met, n_par)], 1)
    normal = u.new_zeros(n_met + n_par, n_met + n_par)
    right = u.new_zeros(n_met + n_par)
    rows: list[Tensor] = []
    for b, node in enumerate(nodes):
        rows.append(state * count[b].sqrt())
        right += state.T @ total[b]
        if len(rows) == CHUNK or b == len(nodes) - 1:
            stacked = torch.cat(rows)
            normal.addmm_(stacked.T, stacked)
            rows = []
        if b == len(nodes) - 1:
            break
        after = nodes[b + 1]
        weight = torch.zeros(after - node + 1, dtype=u.dtype)
        weight[1:] += 0.5 * step[node:after]
        weight[:-1] += 0.5 * step[node:after]
        span = slice(node, after + 1)
        path = (weight[:, None, None] * jacobian[span]).sum(0)
        push = 0.5 * drive.matrix(shooting, weight, span)
        state[:, n_met:] += push
        state = torch.linalg.matrix_exp(path) @ state
        state[:, n_met:] += push
    solve = scaled_inverse(normal[:n_met, :n_met])
    cross, moment = normal[:n_met, n_met:], right[:n_met]
    reduced = normal[n_met:, n_met:] - cross.T @ solve(cross)
    slope = right[n_met:] - cross.T @ solve(moment)
    return _Piece(first, stop, jacobian, drive, gap, cross, moment, solve), reduced, slope


def _moved(shooting: Shooting, piece: _Piece, step: Tensor) -> Tensor:
    """Change of the states for a step of the parameters, ``(n, n_met)``."""
    time = shooting.series.time[piece.first : piece.stop].diff()
    drive = piece.drive.column(shooting.data.sto_all, step)
    move = piece.solve(piece.moment - piece.cross @ step)
    result = [move]
    for t in range(piece.stop - piece.first - 1):
        path = 0.5 * time[t] * (piece.jacobian[t] + piece.jacobian[t + 1])
        move = _propagated(move + 0.5 * time[t] * drive[t], path)
        move = move + 0.5 * time[t] * drive[t + 1] + piece.gap[t]
        result.append(move)
    return torch.stack(result)


def fit_trajectories(
    data: KineticData,
    series: Series,
    *,
    law: Law,
    log_k: Tensor,
    line: Tensor,
    u: Tensor,
    is_law_fixed: bool = False,
    n_iteration: int = 8,
) -> TrajectoryFit | None:
    """Parameters and states of greatest likelihood.

    Args:
        data: The graph.
        series: Measured courses.
        law: Where the law starts; its family stays.
        log_k: Natural logarithm of the rate constants at the start, ``(n_rxn,)``.
        line: Lines of homeostasis at the start, ``(n_met, 2)``.
        u: Natural logarithm of the states at the start, ``(n_frame, n_met)``.
        is_law_fixed: Whether the law's coefficients stay as they are.
        n_iteration: Bound on the steps.

    Returns:
        The fit, or ``None`` where the iteration leaves the finite numbers.

    Source:
        own; multiple shooting after Bock (1983).
    """
    shooting = Shooting(data, series)
    n_rxn, n_met = data.n_rxn, data.n_met
    n_free = n_rxn + shooting.n_line
    n_par = n_free + law.theta.numel()
    is_settled = False
    taken, sigma = 0, float((series.log_c - u).square().mean().sqrt())
    for taken in range(1, n_iteration + 1):
        stage = 0 if taken <= 2 else 1
        normal, slope = u.new_zeros(n_par, n_par), u.new_zeros(n_par)
        linear: list[_Piece] = []
        for piece in series.pieces(PIECES[stage]):
            try:
                one, share, right = _linearised(
                    shooting, u, law, log_k, line, piece, None, BINS[stage]
                )
            except TrainingError:
                return None
            normal += share
            slope += right
            linear.append(one)
        if law.knots is not None:
            stiff = _stiffness(law) * (sigma / ROUGH) ** 2
            normal[n_free:, n_free:] += stiff
            slope[n_free:] -= stiff @ law.theta
        if is_law_fixed:
            normal, slope = normal[:n_free, :n_free], slope[:n_free]
        if not bool(torch.isfinite(normal).all()):
            return None
        inverse = scaled_inverse(normal, ridge=1e-9)
        step = inverse(slope)
        if is_law_fixed:
            step = torch.cat([step, step.new_zeros(law.theta.numel())])
        step[:n_rxn].clamp_(-LARGEST_STEP, LARGEST_STEP)
        step[n_free:].clamp_(-LARGEST_MOVE, LARGEST_MOVE)
        move = torch.cat([_moved(shooting, one, step) for one in linear])
        log_k = log_k + step[:n_rxn]
        if shooting.n_line:
            line = line + step[n_rxn:n_free].view(2, n_met).T
        law = replace(law, theta=law.theta + step[n_free:])
        u = u + move.clamp(-LARGEST_MOVE, LARGEST_MOVE)
        if not bool(torch.isfinite(u).all()):
            return None
        sigma = float((series.log_c - u).square().mean().sqrt())
        gap = torch.cat([one.gap for one in linear]).square().mean().sqrt()
        gain = float(step[: len(slope)] @ slope) / max(sigma, 1e-300) ** 2
        is_still = float(move.square().mean().sqrt()) < 0.05 * sigma
        is_settled = gain < 0.05 * n_par and float(gap) < 0.02 * sigma and is_still
        if taken > 2 and is_settled:
            break
    left = series.log_c - u
    sigma = float(left.square().mean().sqrt())
    identity = torch.eye(normal.shape[0], dtype=u.dtype)
    covariance = inverse(identity) * sigma**2
    n_free = normal.shape[0]
    count = n_free + len(series.runs) * n_met
    n = left.numel()
    criterion = n * math.log(max(sigma, 1e-300) ** 2) + count * math.log(n)
    return TrajectoryFit(law, log_k, line, u, covariance, sigma, criterion, left, taken, is_settled)


def _stiffness(law: Law) -> Tensor:
    """Sum of squared second differences of the coefficients of each |s|, as a matrix."""
    n_level = law.levels.numel()
    n = law.theta.numel() // n_level
    second = torch.eye(n, dtype=law.theta.dtype).diff(n=2, dim=0)
    return torch.block_diag(*[second.T @ second] * n_level)


def gain_of_splines(
    data: KineticData, series: Series, fit: TrajectoryFit, splines: Law, *, variance: float
) -> float:
    """Twice the log likelihood that a richer law would gain, to second order: a score test.

    Args:
        data: The graph.
        series: Measured courses.
        fit: Fit of the simpler law.
        splines: A law whose coefficients start at 0.
        variance: Of the errors of log c.

    Source:
        Rao (1948).
    """
    shooting = Shooting(data, series)
    extra = splines.theta.numel()
    normal: Tensor | None = None
    slope: Tensor | None = None
    for piece in series.pieces(PIECES[1]):
        _, share, right = _linearised(
            shooting, fit.u, fit.law, fit.log_k, fit.line, piece, splines, BINS[0]
        )
        normal = share if normal is None else normal + share
        slope = right if slope is None else slope + right
    assert normal is not None and slope is not None
    n = normal.shape[0] - extra
    with_extra = float(slope @ scaled_inverse(normal, ridge=1e-9)(slope))
    without = float(slope[:n] @ scaled_inverse(normal[:n, :n], ridge=1e-9)(slope[:n]))
    return (with_extra - without) / variance


def runs_of(run: Sequence[int] | Tensor, frame: Tensor) -> tuple[tuple[int, int], ...]:
    """Stretches of consecutive frames of one run: first frame and the frame after the last."""
    run = torch.as_tensor(run)
    broken = (run[1:] != run[:-1]) | (frame[1:] != frame[:-1] + 1)
    ends = (broken.nonzero()[:, 0] + 1).tolist()
    return tuple(itertools.pairwise([0, *ends, len(run)]))
