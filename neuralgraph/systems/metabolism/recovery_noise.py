r"""Recovery of integer stoichiometry from derivatives that carry noise.

How large the noise is is never told: :func:`derivative_noise` reads it off the derivatives
themselves, from differences of high order along each run, in which a smooth course cancels and
white noise does not. With it known,

- every frame is used, so that the noise averages out, and a law of low degree is enough;
- a start is good when its residual is no more than that noise, not when it is small;
- a column is changed when the joint evidence for the change exceeds a few units, because what is
  left is white; in exact data what is left is a misfit of the law, and far more is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import comb
from typing import Protocol

import numpy as np

from neuralgraph.systems.metabolism.recovery_messages import (
    LOWEST,
    Belief,
    StoichiometryDecoder,
)
from neuralgraph.systems.metabolism.recovery_mlp import FixedStoichiometry

Array = np.ndarray
ORDER = 4
"""Order of the differences that the noise is read from."""
LEAST_NOISE = 1e-5
"""Noise relative to the derivative below which data count as exact."""
LEAST_EVIDENCE = 3.0
"""Gain in log evidence from which a column is changed."""
HEAT = (10.0, 3.0, 1.0, 0.5)
"""Least relative error of the rows in message passing, in units of the noise, in turn."""
BLUR = 0.5
"""Relative deviation given to $|S|k$ where message passing starts again at a hard answer."""


class LawPrior(Protocol):
    """Prior of the coefficients of a polynomial law."""

    def step(self, theta: Array, h: Array, g: Array) -> Array:
        """Gauss-Newton update of ``theta``."""
        ...


def derivative_noise(dx_dt: Array, run: Array, frame: Array) -> Array | None:
    """Standard deviation of white noise on derivatives, from their own course in time.

    Differences of order 4 along a run remove what is smooth and enlarge white noise by a known
    factor. Without noise they leave the fourth derivative of the course, far below 1e-5 of the
    signal at the frame interval of the default design; a course that changes within a few frames
    is taken for noise.

    Args:
        dx_dt: ``(n_frame, n_met)``, mM min⁻¹.
        run: Run of each frame, ``(n_frame,)``.
        frame: Its number in the run, ``(n_frame,)``.

    Returns:
        ``(n_met,)``; ``None`` where fewer than 32 stretches of 5 frames in a row exist.

    Source:
        Own; von Neumann et al. (1941) for first differences.

    >>> t = np.linspace(0, 1, 200)
    >>> noisy = np.sin(t) + 0.01 * np.random.default_rng(0).standard_normal(200)
    >>> sd = derivative_noise(noisy[:, None], np.zeros(200), np.arange(200))
    >>> bool(abs(sd[0] - 0.01) < 0.001)
    True
    """
    order = np.lexsort((frame, run))
    y, run, frame = dx_dt[order], np.asarray(run)[order], np.asarray(frame)[order]
    n = len(y) - ORDER
    if n < 1:
        return None
    whole = (run[ORDER:] == run[:n]) & (frame[ORDER:] == frame[:n] + ORDER)
    if whole.sum() < 32:
        return None
    bend = np.diff(y, n=ORDER, axis=0)[whole]
    enlarged = sum(comb(ORDER, q) ** 2 for q in range(ORDER + 1))
    return np.sqrt((bend**2).mean(0) / enlarged)


def is_noisy(dx_dt: Array, noise: Array) -> bool:
    """Whether the noise ``(n_met,)`` is worth more than the rounding of exact data."""
    rms = np.sqrt((dx_dt**2).mean(0))
    live = rms > 0
    return bool(live.any() and np.median(noise[live] / rms[live]) > LEAST_NOISE)


@dataclass(frozen=True)
class Averaged:
    """An integer answer on all frames.

    Attributes:
        objective: Mean over metabolites of log squared relative residual.
        pattern: Column pattern of each reaction, ``(n_rxn,)``.
        k: Rate constants, ``(n_rxn,)``.
        theta: Coefficients of the law.
        residual: Mean squared residual of each row, ``(n_met,)``.
    """

    objective: float
    pattern: Array
    k: Array
    theta: Array
    residual: Array


def excess(decoder: StoichiometryDecoder, residual: Array, noise: Array) -> float:
    """Mean log of the squared residual over the noise, rows at the noise counting as 0."""
    live = decoder.live
    floor = noise[live] ** 2 + LOWEST * decoder.rms[live] ** 2
    return float(np.log(np.maximum(residual[live] / floor, 1.0)).mean())


def average_noise(
    decoder: StoichiometryDecoder,
    theta: Array,
    belief: Belief,
    prior: LawPrior,
    noise: Array,
    k_range: tuple[float, float],
    n_round: int,
    say: Callable[[str], None],
) -> Averaged:
    """Decode on all frames: message passing that cools to the noise, then single columns.

    Args:
        decoder: Tables on all frames.
        theta: Law to start from.
        belief: Belief to start from.
        prior: Of the law.
        noise: Standard deviation of each row, ``(n_met,)``, mM min⁻¹.
        k_range: Smallest and largest rate constant.
        n_round: Times the search is heated up and cooled down again, at least 1; it ends early
            when every row is explained up to the noise and nothing improves.
        say: Called with a line of text.

    Returns:
        The answer of least objective.
    """
    live = decoder.live
    relative = float(np.median(noise[live] / decoder.rms[live]))
    every = np.arange(decoder.n_rxn)

    def cool(belief: Belief, theta: Array) -> tuple[Belief, Array]:
        for heat in (*HEAT, HEAT[-1]):
            decoder.set_rates(decoder.polynomial_rates(theta))
            belief = decoder.sweep(
                belief, heat * relative, k_range=k_range, inflation=1.0, n_pass=4
            )
            theta = prior.step(theta, *decoder.law_normal_equations(belief))
        decoder.set_rates(decoder.polynomial_rates(theta))
        belief = decoder.sweep(belief, heat * relative, k_range=k_range, inflation=1.0, n_pass=4)
        return belief, theta

    def harden(pattern: Array, k: Array, theta: Array, n_step: int) -> Averaged:
        size, _ = decoder.coefficients(pattern)
        shape = decoder.pattern_shape[every, pattern]
        fixed = FixedStoichiometry(decoder, size.astype(float), shape)
        centre, left = k, decoder.y
        weight = np.where(live, 1 / np.maximum(belief.noise, noise**2 + 1e-300), 0.0)
        rate = decoder.polynomial_rates(theta)[every, shape]
        for step in range(n_step + 1):
            k, left = fixed.solve(rate, weight, centre)
            weight = np.where(live, 1 / np.maximum((left**2).mean(1), noise**2 + 1e-300), 0.0)
            if step < n_step:
                theta = prior.step(theta, *fixed.normal(rate, k, left, weight))
                rate = decoder.polynomial_rates(theta)[every, shape]
        residual = (left**2).mean(1)
        value = np.log(residual[live] / decoder.rms[live] ** 2 + LOWEST).mean()
        return Averaged(float(value), pattern, k, theta, residual)

    best: Averaged | None = None
    for turn in range(max(1, n_round)):
        if best is not None:
            size, _ = decoder.coefficients(best.pattern)
            k = np.where(best.k > k_range[0], best.k, np.median(best.k))
            mean = size * np.clip(k, *k_range)[decoder.rxn]
            shape = decoder.pattern_shape[every, best.pattern]
            belief = replace(belief, mean=mean, var=(BLUR * mean) ** 2, shape=shape)
            theta = best.theta
        belief, theta = cool(belief, theta)
        k = np.clip(decoder.guess_rate_constants(belief), *k_range)
        found = decoder.polish(
            belief.pattern, belief.noise, k, least_gain=LEAST_EVIDENCE / decoder.n_frame
        )
        tried = [harden(belief.pattern, k, theta, 1)]
        if not np.array_equal(found, belief.pattern):
            tried.append(harden(found, k, theta, 1))
        new = min(tried, key=lambda t: t.objective)
        over = excess(decoder, new.residual, noise)
        is_better = best is None or new.objective < best.objective
        say(
            f"all frames, round {turn + 1}: objective {new.objective:.4f}, log excess over the "
            f"noise {over:.4f}" + ("" if is_better else ", not kept")
        )
        if is_better:
            best = new
        if best is not None and excess(decoder, best.residual, noise) < 0.02 and turn > 0:
            break
    assert best is not None
    return best
