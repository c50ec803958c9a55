r"""Recovery of integer stoichiometry, rate constants and the rate law from exact derivatives.

The model is $\dot c = S v$, $v_j = k_j f(\{(c_i, |s_{ij}|)\})$ with one unknown smooth function
$f$ shared by all reactions. Four steps, none of which sees anything but the data and the graph:

1. *Prior.* Random untrained networks say which $f$ are plausible: mean and covariance of the
   coefficients of a polynomial law.
2. *Start.* Some of the draws are tried as $f$; message passing between metabolites and reactions
   decodes the integers; a few joint updates; the start with the least residual goes on.
3. *Anneal.* The noise level falls while message passing and Gauss-Newton steps on the law (all
   coefficients of $S$ and $k$ integrated out) alternate.
4. *Sharpen.* The polynomial law is replaced by two shared networks, which reach residuals the
   polynomial cannot; changes of the integers are proposed, and kept if a joint refit of law and
   rate constants says so (:mod:`neuralgraph.systems.metabolism.recovery_sharpen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem, checked_problem
from neuralgraph.systems.metabolism.recovery_gaps import open_parts
from neuralgraph.systems.metabolism.recovery_law import (
    Collocation,
    PolynomialLaw,
    collocation,
    random_rate_laws,
)
from neuralgraph.systems.metabolism.recovery_messages import (
    LOWEST,
    Belief,
    StoichiometryDecoder,
)
from neuralgraph.systems.metabolism.recovery_mlp import (
    SharedRateNetwork,
    fit_to_theta,
    networks_from,
)
from neuralgraph.systems.metabolism.recovery_noise import average_noise, excess, is_noisy
from neuralgraph.systems.metabolism.recovery_sharpen import settle, soft_round

Array = np.ndarray
Log = Callable[[str], None]
GOOD_START = 2 * float(np.log(5e-4))
"""Median misfit of a start that needs no further starts beside it."""
GOOD_EXCESS = 0.3
"""The same where there is noise: mean log excess of the squared residual over it."""


@dataclass(frozen=True)
class Recovered:
    r"""A recovered reaction network.

    Attributes:
        sto_sub: Coefficients inside the rate law, ``(n_sub_edge,)``, integers >= 1.
        sto_all: Signed stoichiometric coefficients, ``(n_all_edge,)``, integers.
        log_k: log10 of the rate constants, ``(n_rxn,)``, in the scale of ``rate``.
        rate: ``(n_frame, n_met)`` mM -> ``(n_frame, n_rxn)`` velocities $k_j f_j$, mM min⁻¹.
        objective: Mean over metabolites of log squared relative residual on the frames used;
            lower is better.
        relative_residual: rms residual over rms derivative on all frames, ``(n_met,)``.
        confidence: Log evidence between the coefficient of an edge and the best column that
            differs there, ``(n_all_edge,)``; near 0 means undecided.
        open: What is not determined, by reason; see
            :func:`~neuralgraph.systems.metabolism.recovery_gaps.open_parts`.
    """

    sto_sub: Array
    sto_all: Array
    log_k: Array
    rate: Callable[[Array], Array]
    objective: float
    relative_residual: Array
    confidence: Array
    open: dict[str, Array]


@dataclass
class _Prior:
    """Gaussian over ``theta``, one entry (the gauge) held at 1."""

    draws: Array
    scale: Array
    mean: Array
    free: Array
    precision: Array

    @classmethod
    def of(cls, draws: Array, gauge: int) -> _Prior:
        scale = draws[:, gauge]
        draws = draws / scale[:, None]
        mean = draws.mean(0)
        away = draws - mean
        cov = away.T @ away / len(draws)
        cov += np.diag((0.03 * away.std(0)) ** 2 + 3e-5**2)
        free = np.arange(len(mean)) != gauge
        return cls(draws, scale, mean, free, np.linalg.inv(cov[np.ix_(free, free)]))

    def step(self, theta: Array, h: Array, g: Array) -> Array:
        """Gauss-Newton update of ``theta``."""
        f = self.free
        out = theta.copy()
        pull = self.precision @ (self.mean - theta)[f]
        out[f] += np.linalg.solve(h[np.ix_(f, f)] + self.precision, g[f] + pull)
        return out


def recover_stoichiometry(
    concentration: Any,
    dx_dt: Any,
    met_sub: Any,
    rxn_sub: Any,
    met_all: Any,
    rxn_all: Any,
    sign_all: Any,
    *,
    n_met: int,
    n_rxn: int,
    rng: np.random.Generator,
    max_coefficient: int = 2,
    tie_substrates: bool = True,
    width: int = 32,
    n_message: int = 16,
    log_k_range: tuple[float, float] = (-2.6, 1.6),
    degree: Sequence[int] = (10, 6, 5),
    sharp_degree: Sequence[int] = (12, 8, 7),
    max_frames: int = 432,
    n_scan: int = 24,
    n_start: int = 3,
    n_anneal: int = 20,
    n_sharpen: int = 10,
    noise: Any = None,
    noisy_degree: Sequence[int] = (6, 5, 4),
    noisy_rounds: int = 2,
    log: Log | None = None,
) -> Recovered:
    r"""Recover integer coefficients, rate constants and the rate law.

    Identifiable are all columns whose set {(substrate, |s|)} is unique in the network; reactions
    that share it have proportional rates and are told apart only by integers. The common scale
    of k and the rate law is not identifiable ($k \to a k$, $f \to f / a$).

    Args:
        concentration: Concentrations, ``(n_frame, n_met)``, mM.
        dx_dt: Exact derivatives, ``(n_frame, n_met)``, mM min⁻¹.
        met_sub: Metabolite of each substrate edge, ``(n_sub_edge,)``.
        rxn_sub: Reaction of each substrate edge.
        met_all: Metabolite of each edge of S, ``(n_all_edge,)``.
        rxn_all: Reaction of each edge of S.
        sign_all: -1 consumed, +1 produced, for every edge of S.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        rng: Source of all randomness.
        max_coefficient: Largest integer considered.
        tie_substrates: A consumed substrate has one coefficient in S and in the rate law; when
            false the two are separate unknowns.
        width: Hidden width of the networks that describe plausible rate laws.
        n_message: Width of their messages.
        log_k_range: log10 k considered, in units where $f$ is about 1.
        degree: Total degree of the polynomial law in products of 1, 2, 3 substrates.
        sharp_degree: The same for the Jacobian of the networks.
        max_frames: Frames used, evenly spread.
        n_scan: Rate laws tried.
        n_start: Rate laws followed further; up to four times as many while none explains the data.
        n_anneal: Iterations of the third step.
        n_sharpen: Rounds of the fourth step at most; 0 leaves it out.
        noise: Standard deviation of the noise on ``dx_dt``, ``(n_met,)``, as
            :func:`~neuralgraph.systems.metabolism.recovery_noise.derivative_noise` estimates it;
            ``None``, or below 1e-5 of the derivative: exact data.
        noisy_degree: Degree of the polynomial law where there is noise.
        noisy_rounds: Rounds on all frames where there is noise, in place of the fourth step.
        log: Called with one line of text per stage.

    Returns:
        The recovered network. Restarts are chosen by residual alone.

    Raises:
        DataError: arrays that do not fit together, are not finite, or too few frames.

    Source:
        own; expectation propagation after Minka (2001).
    """
    if not isinstance(rng, np.random.Generator):
        raise DataError(f"rng must be a numpy Generator, got {type(rng).__name__}")
    problem = checked_problem(
        concentration,
        dx_dt,
        met_sub,
        rxn_sub,
        met_all,
        rxn_all,
        sign_all,
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
    )
    found = decode(
        problem,
        rng=rng,
        tie_substrates=tie_substrates,
        width=width,
        n_message=n_message,
        log_k_range=log_k_range,
        degree=degree,
        sharp_degree=sharp_degree,
        max_frames=max_frames,
        n_scan=n_scan,
        n_start=n_start,
        n_anneal=n_anneal,
        n_sharpen=n_sharpen,
        noise=noise,
        noisy_degree=noisy_degree,
        noisy_rounds=noisy_rounds,
        log=log,
    )
    say: Log = log if log is not None else lambda _: None
    decoder, law, k, pattern = found.decoder, found.law, found.k, found.pattern
    every = np.arange(problem.n_rxn)
    shape = decoder.pattern_shape[every, pattern]
    size, inside = decoder.coefficients(pattern)

    def rate(concentration: Array) -> Array:
        c = np.asarray(concentration, dtype=np.float64).T
        return (k[:, None] * law(c, shape)).T

    sto_all = size * problem.sign_all
    sto_sub = np.zeros(len(problem.met_sub), dtype=np.int64)
    for edges, values in zip(decoder.sub_edges, inside, strict=True):
        sto_sub[edges] = values
    s = np.zeros((problem.n_met, problem.n_rxn))
    s[problem.met_all, problem.rxn_all] = sto_all
    left = problem.dx_dt - rate(problem.concentration) @ s.T
    rms = np.sqrt((problem.dx_dt**2).mean(0))
    relative = np.sqrt((left**2).mean(0)) / np.where(rms > 0, rms, 1.0)
    say(f"done: objective {found.objective:.2f}, median row residual {np.median(relative):.1e}")
    confidence = decoder.confidence(pattern, found.noise, k)
    return Recovered(
        sto_sub=sto_sub,
        sto_all=sto_all,
        log_k=np.log10(k),
        rate=rate,
        objective=found.objective,
        relative_residual=relative,
        confidence=confidence,
        open=open_parts(problem, confidence, k, found.k_range),
    )


@dataclass(frozen=True)
class Decoded:
    """What :func:`decode` ends with.

    Attributes:
        law: Rate functions of concentrations and candidates.
        decoder: Tables of the problem, with the final rate functions.
        pattern: Column pattern of each reaction, ``(n_rxn,)``.
        k: Rate constants, ``(n_rxn,)``.
        noise: Variance of the rows, ``(n_met,)``.
        objective: Mean over metabolites of log squared relative residual.
        k_range: Rate constants considered, in the scale of ``k``.
        net: The law, where it is two networks.
        theta: The polynomial law that was found first.
    """

    law: RateFunctions
    decoder: StoichiometryDecoder
    pattern: Array
    k: Array
    noise: Array
    objective: float
    k_range: tuple[float, float] = (0.0, np.inf)
    net: SharedRateNetwork | None = None
    theta: Array | None = None


def decode(
    problem: RecoveryProblem,
    *,
    rng: np.random.Generator,
    tie_substrates: bool,
    width: int,
    n_message: int,
    log_k_range: tuple[float, float],
    degree: Sequence[int],
    sharp_degree: Sequence[int],
    max_frames: int,
    n_scan: int,
    n_start: int,
    n_anneal: int,
    n_sharpen: int,
    noise: Any = None,
    noisy_degree: Sequence[int] = (6, 5, 4),
    noisy_rounds: int = 2,
    order: Callable[[PolynomialLaw, Array], Array] | None = None,
    n_try: int = 1,
    first: Array | None = None,
    needs_networks: bool = False,
    log: Log | None = None,
) -> Decoded:
    """Steps 1 to 4 of the module's text; arguments as in :func:`recover_stoichiometry`.

    ``order`` ranks the random rate laws ``(n_draw, n_theta)``, those to be tried first in front.
    ``n_try`` of the starts are annealed; the least objective goes on. ``first`` is a polynomial
    law, ``(n_theta,)``, followed before any random one; it must come from data without noise, and
    from the same ``degree`` and kinds of reactions. With ``needs_networks`` the law is two networks
    even where the polynomial explains more.
    """
    say: Log = log if log is not None else lambda _: None
    noise = np.zeros(problem.n_met) if noise is None else np.asarray(noise, dtype=np.float64)
    noisy = is_noisy(problem.dx_dt, noise)
    if noisy:
        problem, degree = problem.whole(), noisy_degree
    poly = PolynomialLaw(problem.max_substrates, problem.max_coefficient, degree)
    frames = problem.frames(max_frames)
    decoder = problem.decoder(poly, frames, tie_substrates)
    points = collocation(poly, problem.center, problem.half_width, rng)
    gauge = int(poly.constant[min(problem.max_coefficient, len(poly.types) - 1)])
    draws, weights = random_rate_laws(points, rng, 400, width, n_message)
    if order is not None:
        rank = order(poly, draws)
        draws, weights = draws[rank], [w[rank] for w in weights]
    prior = _Prior.of(draws, gauge)
    k_range = (10.0 ** log_k_range[0], 10.0 ** log_k_range[1])

    least = float(np.median(noise[decoder.live] / decoder.rms[decoder.live])) if noisy else 0.0
    if noisy:
        say(f"noise of the derivatives, from their differences in time: {least:.2g} of their rms")
    starts = _best_starts(
        decoder, prior, k_range, n_scan, n_start, noise if noisy else None, first, say
    )
    best = (np.inf, *starts[0])
    # the few frames of this step cannot tell more than the noise lets them
    n_level = max(2, n_anneal // 3) if noisy else n_anneal
    for theta, belief in starts[:n_try]:
        for level in np.geomspace(max(2e-3, least), max(3e-5, 0.5 * least), n_level):
            decoder.set_rates(decoder.polynomial_rates(theta))
            belief = decoder.sweep(belief, level, k_range=k_range)
            if (value := decoder.hard_misfit(belief)) < best[0]:
                best = (value, theta, belief)
            theta = prior.step(theta, *decoder.law_normal_equations(belief))
    _, theta, belief = best
    say(f"best objective of the polynomial law {best[0]:.2f}")
    decoder.set_rates(decoder.polynomial_rates(theta))
    say(f"annealed: {_summary(belief, decoder)}")

    if noisy:
        every_frame = problem.decoder(poly, problem.inner, tie_substrates)
        end = average_noise(every_frame, theta, belief, prior, noise, k_range, noisy_rounds, say)
        found = Decoded(
            _polynomial_rates(problem, every_frame, end.theta),
            every_frame,
            end.pattern,
            np.clip(end.k, *k_range),
            np.maximum(end.residual, LOWEST * every_frame.rms**2),
            end.objective,
            k_range,
        )
    else:
        found = _of_polynomial(problem, decoder, theta, belief, k_range)
    if n_sharpen > 0 and not noisy:
        sharp = _of_networks(
            problem,
            decoder,
            theta,
            belief,
            prior,
            weights,
            k_range,
            points,
            sharp_degree,
            max_frames,
            n_sharpen,
            tie_substrates,
            rng,
            say,
        )
        if needs_networks or sharp.objective < found.objective:
            found = sharp
    return replace(found, theta=theta)


def _of_polynomial(
    problem: RecoveryProblem,
    decoder: StoichiometryDecoder,
    theta: Array,
    belief: Belief,
    k_range: tuple[float, float],
) -> Decoded:
    """Polish the columns of the polynomial law and solve for k."""
    centre = np.clip(decoder.guess_rate_constants(belief), *k_range)
    pattern = decoder.polish(belief.pattern, belief.noise, centre)
    size, _ = decoder.coefficients(pattern)
    shape = decoder.pattern_shape[np.arange(problem.n_rxn), pattern]
    noise = np.maximum(belief.noise, LOWEST * decoder.rms**2)
    k, residual = decoder.rate_constants(size.astype(float), shape, noise, centre)
    relative = (residual / decoder.rms**2)[decoder.live]
    return Decoded(
        _polynomial_rates(problem, decoder, theta),
        decoder,
        pattern,
        np.clip(k, *k_range),
        np.maximum(residual, LOWEST * decoder.rms**2),
        float(np.log(relative + LOWEST).mean()),
        k_range,
    )


def _summary(belief: Belief, decoder: StoichiometryDecoder) -> str:
    relative = np.sqrt(belief.residual) / decoder.rms
    return f"row residual median {np.median(relative):.1e} max {relative.max():.1e}"


def _best_starts(
    decoder: StoichiometryDecoder,
    prior: _Prior,
    k_range: tuple[float, float],
    n_scan: int,
    n_start: int,
    noise: Array | None,
    first: Array | None,
    say: Log,
) -> list[tuple[Array, Belief]]:
    """Try draws of the prior as the law; follow the best few; return these, best first.

    ``first`` is followed before them.

    With noise the best is the one that leaves least above the noise, over all rows: the median
    row of many starts is at the noise.
    """

    def value_of(belief: Belief) -> float:
        if noise is None:
            return float(np.median(decoder.misfit(belief)))
        return excess(decoder, belief.residual, noise)

    good = GOOD_START if noise is None else GOOD_EXCESS
    scores = []
    for draw in prior.draws[:n_scan]:
        decoder.set_rates(decoder.polynomial_rates(draw))
        belief = decoder.sweep(decoder.start(2.0, 3.0), 1e-2, k_range=k_range)
        scores.append(np.median(decoder.misfit(belief)))
    best: list[tuple[float, Array, Belief]] = []
    rank = np.argsort(scores, kind="stable").tolist()
    laws = [(f"start {a}", prior.draws[a]) for a in rank]
    if first is not None:
        laws.insert(0, ("law as found before", first))
    for tried, (name, law) in enumerate(laws):
        if tried >= n_start and (best[0][0] < good or tried >= 4 * n_start):
            break
        theta, belief = law.copy(), decoder.start(2.0, 3.0)
        for level in np.geomspace(1e-2, 2e-3, 8):
            decoder.set_rates(decoder.polynomial_rates(theta))
            belief = decoder.sweep(belief, level, k_range=k_range)
            theta = prior.step(theta, *decoder.law_normal_equations(belief))
        value = value_of(belief)
        say(f"{name}: {_summary(belief, decoder)}")
        best = sorted([*best, (value, theta, belief)], key=lambda start: start[0])
    return [(theta, belief) for _, theta, belief in best]


RateFunctions = Callable[[Array, Array], Array]
"""Concentrations ``(n_met, n_frame)`` and patterns ``(n_rxn,)`` to ``(n_rxn, n_frame)``."""


def _polynomial_rates(
    problem: RecoveryProblem, decoder: StoichiometryDecoder, theta: Array
) -> RateFunctions:
    def rates(c: Array, shape: Array) -> Array:
        # polynomials explode outside their box
        z = np.clip((c - problem.center) / problem.half_width, -1.2, 1.2)
        out = np.empty((problem.n_rxn, c.shape[1]))
        for rxn, _, substrates, sizes in decoder.rate_groups(shape):
            n = len(sizes)
            coefficient = theta[decoder.poly.index[n][decoder.poly.shapes[n].index(sizes)]]
            out[rxn] = coefficient @ decoder.poly.products(z, substrates)
        return out

    return rates


def _of_networks(
    problem: RecoveryProblem,
    coarse: StoichiometryDecoder,
    theta: Array,
    belief: Belief,
    prior: _Prior,
    weights: list[Array],
    k_range: tuple[float, float],
    points: Collocation,
    degree: Sequence[int],
    max_frames: int,
    n_round: int,
    tie_substrates: bool,
    rng: np.random.Generator,
    say: Log,
) -> Decoded:
    """Fit two networks to the polynomial law, then settle them and the integers on the data."""
    h, _ = coarse.law_normal_equations(belief)
    away = prior.draws - theta
    nearest = int(np.einsum("ij,jk,ik->i", away, h, away).argmin())
    net = SharedRateNetwork(*networks_from([w[nearest] for w in weights]), points)
    scale = float(prior.scale[nearest])
    k_range = (k_range[0] / scale, k_range[1] / scale)
    belief = replace(belief, mean=belief.mean / scale, var=belief.var / scale**2)
    off = fit_to_theta(net, theta * scale, h / scale**2)
    say(f"networks fitted to the polynomial law, distance {off:.0f}")
    fine = PolynomialLaw(problem.max_substrates, problem.max_coefficient, degree)
    net = net.on(collocation(fine, problem.center, problem.half_width, rng))
    frames = problem.frames(max_frames)
    decoder = problem.decoder(fine, frames, tie_substrates)
    c = problem.concentration[frames].T
    belief = soft_round(decoder, c, net, belief, k_range)
    end = settle(decoder, c, net, belief, k_range, n_round, say)
    decoder.set_rates(net.rates(c, decoder))
    return Decoded(
        lambda c, shape: net.rates(c, decoder, shape),
        decoder,
        end.pattern,
        np.clip(end.k, *k_range),
        np.maximum(end.residual, LOWEST * decoder.rms**2),
        end.objective,
        k_range,
        net,
    )
