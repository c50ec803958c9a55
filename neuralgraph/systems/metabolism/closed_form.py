r"""Closed-form starts for mass-action networks: what is linear is solved, not descended to.

With rates $v_j = k_j \prod_i c_i^{p\,s_{ij}}$ and one power $p$, every unknown but $p$ is linear:
given S the rate constants are, and with S unknown the products $W_{ij} = S_{ij} k_j$ are,
metabolite by metabolite. $p$ is found by minimising what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError

GOLDEN = 0.5 * (5**0.5 - 1)
SMALLEST_CONCENTRATION = 1e-8
MISFIT = 0.05
"""Relative residual above which coefficients read from single metabolites mean nothing."""


@dataclass(frozen=True)
class MassActionStart:
    """A closed-form solution.

    Args:
        power: Common power p of the substrate law.
        log_k: log10 rate constants, ``(n_rxn,)``.
        sto_all: Signed coefficients, ``(n_all_edge,)``.
        residual: Root-mean-square of what is left of dc/dt over that of dc/dt, per metabolite,
            ``(n_met,)``; 0 where dc/dt is 0.
    """

    power: float
    log_k: Tensor
    sto_all: Tensor
    residual: Tensor


def unit_rates(
    concentration: Tensor, met_sub: Tensor, rxn_sub: Tensor, order: Tensor, n_rxn: int
) -> Callable[[float], Tensor]:
    """Rates at k = 1 as a function of the power: ``p -> (n_frame, n_rxn)``.

    Args:
        concentration: ``(n_frame, n_met)``, >= 0.
        met_sub: Metabolite of each substrate edge, ``(n_sub_edge,)``.
        rxn_sub: Reaction of each substrate edge.
        order: Kinetic order of each edge, ``(n_sub_edge,)``.
        n_rxn: Number of reactions; one without substrates runs at 1.
    """
    log_c = concentration.double().clamp_min(SMALLEST_CONCENTRATION).log()
    exponent = log_c.new_zeros(n_rxn, log_c.shape[0])
    exponent.index_add_(0, rxn_sub, log_c.T[met_sub] * order.double()[:, None])
    return lambda power: torch.exp(power * exponent).T


def start_from_support(
    concentration: Tensor,
    dx_dt: Tensor,
    met_sub: Tensor,
    rxn_sub: Tensor,
    order: Tensor,
    met_all: Tensor,
    rxn_all: Tensor,
    sign_all: Tensor,
    *,
    n_rxn: int,
    max_coefficient: int,
    powers: tuple[float, float] = (0.25, 3.0),
    n_steps: int = 30,
    misfit: float = MISFIT,
) -> MassActionStart:
    r"""Stoichiometry and rate constants from support and signs.

    For each metabolite, $W_{i\cdot}$ is the non-negative least-squares solution in the known signs;
    for each reaction, $W_{\cdot j} = k_j S_{\cdot j}$ is split by the smallest integer column that
    fits within its standard errors. Where the rate law misses the data (median relative residual
    above ``misfit``) all coefficients stay at 1 in their signs and the rate constants are fitted
    to all metabolites together.

    Args:
        concentration: ``(n_frame, n_met)``.
        dx_dt: ``(n_frame, n_met)``.
        met_sub: Metabolite of each substrate edge.
        rxn_sub: Reaction of each substrate edge.
        order: Kinetic order of each substrate edge.
        met_all: Metabolite of each net edge.
        rxn_all: Reaction of each net edge.
        sign_all: Sign of each net edge, 0 where unknown.
        n_rxn: Number of reactions.
        max_coefficient: Largest integer coefficient considered.
        powers: Bounds on the common power.
        n_steps: Golden-section steps.
        misfit: See above; infinite where the derivatives are estimated, whose noise is in the
            residual and says nothing against the law.

    Raises:
        DataError: fewer frames than one metabolite has reactions.

    Source:
        own; non-negative least squares after Lawson & Hanson (1974).
    """
    n_frame, n_met = concentration.shape
    degree = torch.bincount(met_all, minlength=n_met)
    if int(degree.max()) > n_frame:
        raise DataError(
            f"{n_frame} frames cannot determine a metabolite that takes part in "
            f"{int(degree.max())} reactions: record at least {int(degree.max())} frames"
        )
    rates = unit_rates(concentration, met_sub, rxn_sub, order, n_rxn)
    target = dx_dt.double()

    # the scan over powers needs no more frames than make every metabolite overdetermined
    n_scan = min(n_frame, max(256, 4 * int(degree.max())))
    some = torch.linspace(0, n_frame - 1, n_scan).round().long()

    def score(power: float) -> float:
        rate = rates(power)[some]
        _, _, residual = solve_rows(rate, target[some], met_all, rxn_all, sign_all)
        return float(torch.log(residual[residual > 0] + 1e-12).mean())

    power = golden_section(score, *powers, n_steps=n_steps)
    product, deviation, residual = solve_rows(rates(power), target, met_all, rxn_all, sign_all)
    if float(residual.median()) > misfit:
        # no common power law explains the rows, so their coefficients are no evidence against 1
        ones = torch.where(sign_all == 0, torch.sign(product), sign_all.double())
        k, residual = refit_rate_constants(rates(power), target, met_all, rxn_all, ones, n_rxn)
        return MassActionStart(power, torch.log10(k), ones, residual)
    coefficient, k = split_into_integers(
        product, deviation, rxn_all, n_rxn=n_rxn, max_coefficient=max_coefficient
    )
    coefficient, k = split_equal_rates(
        product, deviation, coefficient, k, met_all, rxn_all, sign_all,
        same_rate=_rate_classes(met_sub, rxn_sub, order, n_rxn), max_coefficient=max_coefficient,
    )  # fmt: skip
    return MassActionStart(power, torch.log10(k), coefficient, residual)


def solve_rows(
    rate: Tensor, target: Tensor, met_all: Tensor, rxn_all: Tensor, sign_all: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Products W = S k, metabolite by metabolite, in their known signs.

    Returns:
        ``W`` and its standard error on the edges, ``(n_all_edge,)`` each, and the relative
        residual of each metabolite, ``(n_met,)``.
    """
    from scipy.optimize import nnls

    n_frame, n_met = target.shape
    product = rate.new_zeros(met_all.numel())
    deviation = torch.full_like(product, float("inf"))
    residual = rate.new_zeros(n_met)
    norm = rate.norm(dim=0).clamp_min(1e-300)
    scaled = rate / norm
    order = torch.argsort(met_all, stable=True)
    for edges in order.split(torch.bincount(met_all, minlength=n_met).tolist()):
        if edges.numel() == 0:
            continue
        met = int(met_all[edges[0]])
        total = float(target[:, met].norm())
        if total == 0.0:
            continue
        sign = sign_all[edges].double()
        free = sign == 0
        columns = scaled[:, rxn_all[edges]] * torch.where(free, 1.0, sign)
        if bool(free.any()):  # an unknown sign is the difference of two non-negative numbers
            columns = torch.cat([columns, -columns[:, free]], dim=1)
        factor, triangle = torch.linalg.qr(columns)
        projected = factor.T @ target[:, met]
        found = torch.from_numpy(nnls(triangle.numpy(), projected.numpy(), maxiter=10**5)[0])
        left = target[:, met] - columns @ found
        value = found[: edges.numel()] * torch.where(free, 1.0, sign)
        if bool(free.any()):
            value[free] -= found[edges.numel() :]
        # standard errors from the covariance of the unconstrained problem
        width = edges.numel()
        spread = float(left.square().sum()) / max(n_frame - width, 1)
        inverse = torch.linalg.pinv(triangle[:, :width], rtol=1e-10)
        error = (spread * inverse.square().sum(1)).sqrt()
        undetermined = (inverse @ triangle[:, :width]).diagonal() < 1 - 1e-6
        error[undetermined] = float("inf")
        product[edges] = value / norm[rxn_all[edges]]
        deviation[edges] = error / norm[rxn_all[edges]]
        residual[met] = float(left.norm()) / total
    return product, deviation, residual


def refit_rate_constants(
    rate: Tensor, target: Tensor, met_all: Tensor, rxn_all: Tensor, sto_all: Tensor, n_rxn: int
) -> tuple[Tensor, Tensor]:
    """Non-negative rate constants for a fixed S, by the normal equations over all metabolites.

    Returns:
        ``k``, ``(n_rxn,)``, positive (a constant that least squares sets to 0 becomes 1e-6 of the
        largest), and the relative residual of each metabolite.
    """
    from scipy.optimize import nnls

    n_met = target.shape[1]
    matrix = torch.zeros(n_met, n_rxn, dtype=torch.float64)
    matrix[met_all, rxn_all] = sto_all.double()
    gram = (matrix.T @ matrix) * (rate.T @ rate)
    moment = ((target @ matrix) * rate).sum(0)
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()
    scaled = gram * scale[:, None] * scale[None, :]
    values, vectors = torch.linalg.eigh(scaled)
    root = values.clamp_min(1e-12).sqrt()
    design = root[:, None] * vectors.T
    aim = (vectors.T @ (scale * moment)) / root
    k = scale * torch.from_numpy(nnls(design.numpy(), aim.numpy(), maxiter=10**5)[0])
    left = target - (rate * k) @ matrix.T
    total = target.norm(dim=0).clamp_min(1e-300)
    return k.clamp_min(1e-6 * float(k.max())), left.norm(dim=0) / total


def split_into_integers(
    product: Tensor, deviation: Tensor, rxn_all: Tensor, *, n_rxn: int, max_coefficient: int
) -> tuple[Tensor, Tensor]:
    """Split each column W = k S into the smallest integers that fit, and k.

    The scale of a column is a gauge: (2, -2) with k and (1, -1) with 2 k are the same reaction, so
    the primitive column is taken. A column that no integers up to ``max_coefficient`` fit is
    returned with real coefficients, the smallest well-determined one set to 1.

    Returns:
        ``(n_all_edge,)`` coefficients and ``(n_rxn,)`` rate constants (> 0).
    """
    coefficient = torch.sign(product)
    k = torch.ones(n_rxn, dtype=product.dtype)
    order = torch.argsort(rxn_all, stable=True)
    for edges in order.split(torch.bincount(rxn_all, minlength=n_rxn).tolist()):
        if edges.numel() == 0:
            continue
        rxn = int(rxn_all[edges[0]])
        value, error = product[edges], deviation[edges]
        known = torch.isfinite(error) & (value != 0)
        if not bool(known.any()):
            known = value != 0
            error = torch.ones_like(error)
        if not bool(known.any()):
            coefficient[edges] = 0.0
            k[rxn] = 1e-12
            continue
        size = value[known].abs()
        smallest = float(size.min())
        tolerance = (5 * error[known] / size).clamp(min=1e-3)
        weight = 1 / error[known].clamp(min=1e-9 * float(size.max())) ** 2
        best: float | None = None
        for multiple in range(1, max_coefficient + 1):
            nearest = (size * (multiple / smallest)).round()
            if float(nearest.max()) > max_coefficient:
                break
            scale = float((weight * size * nearest).sum() / (weight * nearest.square()).sum())
            if bool(((size / scale - nearest).abs() / nearest < tolerance).all()):
                best = scale
                break
        if best is None:
            k[rxn] = smallest
            coefficient[edges] = value / smallest
        else:
            k[rxn] = best
            coefficient[edges] = (value / best).round()
            doubtful = coefficient[edges] == 0
            coefficient[edges[doubtful]] = torch.sign(value[doubtful])
    return coefficient, k


def _rate_classes(met_sub: Tensor, rxn_sub: Tensor, order: Tensor, n_rxn: int) -> list[list[int]]:
    """Groups of two or more reactions with the same substrates and orders: equal rates."""
    content: list[list[tuple[int, float]]] = [[] for _ in range(n_rxn)]
    for met, rxn, power in zip(met_sub.tolist(), rxn_sub.tolist(), order.tolist(), strict=True):
        content[rxn].append((met, power))
    groups: dict[tuple[tuple[int, float], ...], list[int]] = {}
    for rxn, substrates in enumerate(content):
        groups.setdefault(tuple(sorted(substrates)), []).append(rxn)
    return [group for group in groups.values() if len(group) > 1]


def split_equal_rates(
    product: Tensor,
    deviation: Tensor,
    coefficient: Tensor,
    k: Tensor,
    met_all: Tensor,
    rxn_all: Tensor,
    sign_all: Tensor,
    *,
    same_rate: list[list[int]],
    max_coefficient: int,
) -> tuple[Tensor, Tensor]:
    r"""Separate, on the integer lattice, what proportional rates leave as a sum.

    Reactions with the same substrates share one rate, so a metabolite that takes part in several
    of them shows only $\sum_j S_{ij} k_j$. Where the other metabolites of each reaction fix its
    $k_j$, the integers are those whose sum fits; where they do not, a coefficient of 1 is taken.

    Returns:
        New coefficients and rate constants.
    """
    coefficient, k = coefficient.clone(), k.clone()
    for group in same_rate:
        members = torch.isin(rxn_all, torch.tensor(group))
        for met in torch.unique(met_all[members]).tolist():
            edges = (members & (met_all == met)).nonzero()[:, 0]
            if edges.numel() < 2 or bool((sign_all[edges] == 0).any()):
                continue
            total = float(product[edges].sum())
            sign = sign_all[edges].double()
            rxn = rxn_all[edges]
            others = [
                bool((torch.isfinite(deviation) & (rxn_all == r) & (product != 0)).any())
                for r in rxn.tolist()
            ]
            fixed = torch.tensor(others)
            coefficient[edges] = sign
            if not bool(fixed.all()):
                # reactions seen only here: one each, sharing what the fixed ones leave
                left = total - float((sign * k[rxn])[fixed].sum())
                open_rxn = rxn[~fixed]
                share = left / float(sign[~fixed].sum()) if float(sign[~fixed].sum()) else 0.0
                k[open_rxn] = max(share, 1e-12)
                continue
            best = float("inf")
            for sizes in itertools.product(range(1, max_coefficient + 1), repeat=edges.numel()):
                trial = sign * torch.tensor(sizes, dtype=torch.float64)
                misfit = abs(float((trial * k[rxn]).sum()) - total)
                if misfit < best * (1 - 1e-6):
                    best, chosen = misfit, trial
            coefficient[edges] = chosen
    return coefficient, k


def log_k_of_combination(
    weight: Tensor, value: float, prior: tuple[float, float], *, n_draw: int = 1 << 13
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of log10 k when only ``weight @ k = value`` is known.

    log10 k is uniform a priori. The integrals run over a low-discrepancy sequence in all but the
    last member, whose density given the others is $1/k$ within the range.

    Args:
        weight: ``(n_member,)``, non-zero.
        value: The combination.
        prior: Range of log10 k.
        n_draw: Points of the sequence.

    Returns:
        Two tensors ``(n_member,)``; the prior's own where the value is outside its reach.

    Source:
        own.
    """
    low, high = prior
    weight = weight.double()
    n = weight.numel()
    if n == 1:
        k = torch.tensor([value]) / weight
        return k.clamp_min(1e-300).log10(), torch.zeros(1, dtype=torch.float64)
    draw = torch.quasirandom.SobolEngine(n - 1, scramble=True, seed=0).draw(n_draw)
    log_k = low + (high - low) * draw.double()
    last = (value - (10**log_k) @ weight[:-1]) / weight[-1]
    inside = (last >= 10**low) & (last <= 10**high)
    if not bool(inside.any()):
        mean = torch.full_like(weight, 0.5 * (low + high))
        return mean, torch.full_like(weight, (high - low) ** 2 / 12)
    log_k = torch.cat([log_k, last.clamp_min(1e-300).log10()[:, None]], dim=1)[inside]
    density = 1 / last[inside]
    density = density / density.sum()
    mean = density @ log_k
    return mean, density @ (log_k - mean).square()


def golden_section(
    score: Callable[[float], float], low: float, high: float, *, n_steps: int
) -> float:
    """Minimum of a unimodal function of one number; a coarse grid finds the valley first.

    >>> round(golden_section(lambda x: (x - 1.3) ** 2, 0.0, 3.0, n_steps=40), 6)
    1.3
    """
    grid = torch.linspace(low, high, 12).tolist()
    values = [score(x) for x in grid]
    i = min(range(len(grid)), key=values.__getitem__)
    a, b = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    x1, x2 = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    f1, f2 = score(x1), score(x2)
    for _ in range(n_steps):
        if f1 < f2:
            b, x2, f2 = x2, x1, f1
            x1 = b - GOLDEN * (b - a)
            f1 = score(x1)
        else:
            a, x1, f1 = x1, x2, f2
            x2 = a + GOLDEN * (b - a)
            f2 = score(x2)
    return 0.5 * (a + b)
