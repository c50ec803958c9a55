r"""Last stage of the recovery: two shared networks as the law, integers decided by joint refits.

A polynomial law leaves a residual that wrong integers can hide in. Networks do not, so that from
here on every change of the integers is judged by a fit in which all rate constants and the law
are solved again. Proposals come from two sides: single columns that lower the joint least squares
(:meth:`StoichiometryDecoder.polish`), and message passing that starts at the present answer with
its rate constants blurred, which leaves the basins that single columns cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from neuralgraph.systems.metabolism.recovery_messages import (
    LOWEST,
    Belief,
    StoichiometryDecoder,
)
from neuralgraph.systems.metabolism.recovery_mlp import (
    FixedStoichiometry,
    LawMetric,
    SharedRateNetwork,
)

Array = np.ndarray
BLUR = 0.5
"""Relative deviation given to $|S|k$ where message passing starts at a hard answer."""
HEAT = ((10.0, 3.0), (30.0, 10.0))
"""Noise of the rows in message passing, in units of the median residual, in turns."""
PATIENCE = 3
"""Rounds without an accepted change of a column after which the search ends."""


@dataclass(frozen=True)
class Settled:
    """An integer answer with its rate constants and its law.

    Attributes:
        objective: Mean over metabolites of log squared relative residual.
        pattern: Column pattern of each reaction, ``(n_rxn,)``.
        k: Rate constants in the scale of the networks, ``(n_rxn,)``.
        residual: Mean squared residual of each row, ``(n_met,)``.
        weights: Of the networks.
    """

    objective: float
    pattern: Array
    k: Array
    residual: Array
    weights: Tensor


def soft_round(
    decoder: StoichiometryDecoder,
    concentration: Array,
    net: SharedRateNetwork,
    belief: Belief,
    k_range: tuple[float, float],
    level: float = 3e-5,
    n_step: int = 3,
) -> Belief:
    """Fit the networks in place with all $|S|k$ integrated out, between two rounds of messages."""
    decoder.set_rates(net.rates(concentration, decoder))
    belief = decoder.sweep(belief, level, k_range=k_range, n_pass=4)
    damping = 1e2
    for _ in range(n_step):
        value = float(decoder.misfit(belief).mean())
        h, g = decoder.law_normal_equations(belief)
        metric = LawMetric(h)
        step, origin = metric.steps(net.theta_jacobian(), metric.target(g)), net.weights
        for _ in range(6):
            net.weights = origin + origin.new_tensor(step(damping))
            rate = net.rates(concentration, decoder, belief.shape)
            new = decoder.refresh(belief, rate, level)
            if float(decoder.misfit(new).mean()) < value:
                break
            damping *= 8
        else:
            net.weights = origin
            break
        belief, damping = new, max(damping / 4, 1e-3)
    decoder.set_rates(net.rates(concentration, decoder))
    relative = np.sqrt(belief.residual) / decoder.rms
    level = float(np.clip(0.3 * np.median(relative), 1e-7, level))
    return decoder.sweep(belief, level, k_range=k_range, n_pass=4)


def refit(
    decoder: StoichiometryDecoder,
    concentration: Array,
    net: SharedRateNetwork,
    pattern: Array,
    k: Array,
    n_step: int,
) -> Settled:
    """Solve for the rate constants and the networks (in place) with the integers held.

    Args:
        decoder: Tables of the problem.
        concentration: ``(n_met, n_frame)``, mM.
        net: Where to start; holds the result afterwards.
        pattern: Column patterns, ``(n_rxn,)``.
        k: Centre of a wide Gaussian prior on the rate constants; keeps the ones that the data
            leave free away from 0 and from negative values.
        n_step: Gauss-Newton steps at most.
    """
    size, _ = decoder.coefficients(pattern)
    shape = decoder.pattern_shape[np.arange(decoder.n_rxn), pattern]
    fixed = FixedStoichiometry(decoder, size.astype(float), shape)
    centre = k
    rate = net.rates(concentration, decoder, shape)

    def relative(left: Array) -> Array:
        return np.sqrt((left**2).mean(1)) / decoder.rms

    def weight_of(rel: Array) -> Array:
        weight = 1 / (decoder.rms**2 * (rel**2 + np.median(rel) ** 2 + LOWEST))
        return np.where(decoder.live, weight, 0.0)

    rel, left = np.full(decoder.n_met, 1e-3), decoder.y
    for _ in range(4):
        k, left = fixed.solve(rate, weight_of(rel), centre)
        rel = relative(left)
    damping = 1e2
    for _ in range(n_step):
        weight = weight_of(rel)
        value = float((weight * (left**2).mean(1)).sum())
        h, g = fixed.normal(rate, k, left, weight)
        metric, origin = LawMetric(h), net.weights
        step = metric.steps(net.theta_jacobian(), metric.target(g))
        for _ in range(7):
            net.weights = origin + origin.new_tensor(step(damping))
            new_rate = net.rates(concentration, decoder, shape)
            new_k, new_left = fixed.solve(new_rate, weight, centre)
            new_value = float((weight * (new_left**2).mean(1)).sum())
            if new_value < value:
                break
            damping *= 10
        else:
            net.weights = origin
            break
        rate, k, left = new_rate, new_k, new_left
        rel, damping = relative(left), max(damping / 5, 1e-3)
        if new_value > 0.9 * value:
            break
    objective = float(np.log(rel[decoder.live] ** 2 + LOWEST).mean())
    return Settled(objective, pattern, k, (left**2).mean(1), net.weights)


def settle(
    decoder: StoichiometryDecoder,
    concentration: Array,
    net: SharedRateNetwork,
    belief: Belief,
    k_range: tuple[float, float],
    n_round: int,
    say: Callable[[str], None],
) -> Settled:
    """Propose integers, refit, and keep what lowers the objective, until nothing changes.

    The networks hold the weights of the result afterwards.
    """

    def soft_k(belief: Belief) -> Array:
        return np.clip(decoder.guess_rate_constants(belief), *k_range)

    best = refit(decoder, concentration, net, belief.pattern, soft_k(belief), 2)
    idle = 0
    for turn in range(n_round):
        net.weights = best.weights
        decoder.set_rates(net.rates(concentration, decoder))
        k = np.where(best.k > k_range[0], best.k, np.median(best.k))
        k = np.clip(k, *k_range)
        size, _ = decoder.coefficients(best.pattern)
        u = size * k[decoder.rxn]
        shape = decoder.pattern_shape[np.arange(decoder.n_rxn), best.pattern]
        blur = BLUR * np.maximum(np.abs(size), 1) * k[decoder.rxn]
        belief = replace(belief, mean=u, var=blur**2, shape=shape)
        relative = np.sqrt(best.residual[decoder.live]) / decoder.rms[decoder.live]
        for heat in HEAT[turn % len(HEAT)]:
            level = max(heat * float(np.median(relative)), 1e-7)
            belief = decoder.sweep(belief, level, k_range=k_range, n_pass=4)
        k_belief = soft_k(belief)
        tried = []
        for pattern, noise, centre in (
            (best.pattern, np.maximum(best.residual, LOWEST * decoder.rms**2), k),
            (belief.pattern, belief.noise, k_belief),
        ):
            net.weights = best.weights
            pattern = decoder.polish(pattern, noise, centre)
            tried.append(refit(decoder, concentration, net, pattern, centre, 3))
        new = min(tried, key=lambda t: t.objective)
        changed = int((new.pattern != best.pattern).sum())
        kept = new.objective < best.objective
        say(
            f"round {turn + 1}: {changed} columns changed, objective "
            + " or ".join(f"{t.objective:.2f}" for t in tried)
            + (", kept" if kept else f", {best.objective:.2f} stays")
        )
        idle = 0 if kept and changed else idle + 1
        if kept:
            best = new
        if idle >= PATIENCE:
            break
    net.weights = best.weights
    return best
