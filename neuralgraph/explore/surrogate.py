"""What to expect of a change: an additive Gaussian process over the parameters' positions.

Each parameter contributes a smooth function of its position in its range; the sum of them, learned
from every run so far, predicts the gain of one configuration over another and how uncertain that
is. The variance of each component, and that of the noise, is what the runs say of it together with
a prior (automatic relevance determination, MacKay 1992): the few parameters that matter are told
from the many that do not, and a parameter that no run has varied keeps its prior variance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuralgraph.explore.history import History, Values
from neuralgraph.explore.space import Space
from neuralgraph.explore.words import word

Array = NDArray[np.float64]
LENGTH = 0.35
"""Distance along a range over which a parameter's effect changes."""
SIGNAL, NOISE = 0.5, 0.5
"""Prior variances of the sum of effects and of a run around it; the rewards' variance is 1."""
PRIOR_WEIGHT = 1.0
"""Observations that the prior of a variance is worth."""
N_ROUNDS = 10
"""Rounds of the fixed point of the variances."""
INACTIVE = -1.0
LEAST = 0.01
"""Rewards nearer to 0 or 1 than this count as this near."""
SMALLEST_SCALE = 1e-9


def log_odds(reward: float) -> float:
    """Log odds of a reward, which for ``s / (s + d)`` is the logarithm of ``s / d``.

    On this scale a distance that is halved counts the same wherever it was. Ends are cut off.

    >>> log_odds(0.5), round(log_odds(0.0), 2)
    (0.0, -4.6)
    """
    share = min(max(reward, LEAST), 1 - LEAST)
    return math.log(share / (1 - share))


class Surrogate:
    """Posterior of the log odds of the reward given a history.

    The mean of all runs is unknown and integrated out (restricted likelihood), so that only
    differences between runs count.

    Args:
        history: Runs; failed ones count with their reward of 0.
        space: Parameters.
    """

    def __init__(self, history: History, space: Space) -> None:
        self.space = space
        self.keys = list(space)
        self.is_ordered = np.array([p.is_ordered for p in space.values()])
        n = len(self.keys)
        self.weight = np.full(n, SIGNAL / n)
        self.noise = NOISE
        self.scale = 1.0
        self.x = np.array([self.encoded(i.values) for i in history]).reshape(-1, n)
        reward = np.array([log_odds(i.reward) for i in history])
        if len(reward) > 1:
            self.scale = max(float(reward.std()), SMALLEST_SCALE)
        self.y = (reward - reward.mean()) / self.scale if len(reward) else reward
        self.all_x = self.x
        self.alpha: Array = np.zeros(0)
        self.inverse: Array = np.zeros((0, 0))
        if len(reward):
            self._fit()

    def given(self, pending: Sequence[Values]) -> Surrogate:
        """The same expectations, less uncertain where runs are under way (GP-BUCB, Desautels 2014).

        Args:
            pending: Configurations whose rewards are not known yet.
        """
        if not pending:
            return self
        other = copy.copy(self)
        other.all_x = np.vstack([self.all_x, [self.encoded(values) for values in pending]])
        other.inverse = other._inverse(_centred(other._kernel(other.all_x, other.all_x)))
        return other

    def encoded(self, values: Values) -> list[float]:
        """Position of every parameter; values without order by their place in the list."""
        row = []
        for key, parameter in self.space.items():
            if parameter.missing(values) != {}:
                row.append(INACTIVE)
            elif parameter.is_ordered:
                row.append(parameter.position(values[key]))
            else:
                labels = [word(v) for v in parameter.values]
                here = word(values[key])
                row.append(float(labels.index(here)) if here in labels else float(len(labels)))
        return row

    def gains(self, old: Values, news: Sequence[Values]) -> tuple[Array, Array]:
        """Expected gain in log odds over ``old``, and its standard deviation.

        Args:
            old: A configuration.
            news: Others.
        Returns:
            Two arrays, one entry for each of ``news``.
        """
        start, points = self._points(old, news)
        prior = self._components(points, points, paired=True) @ self.weight
        prior += self._components(start, start, paired=True) @ self.weight
        prior -= 2 * self._kernel(points, start)[:, 0]
        mean, cross = self._regression(start, points)
        variance = prior - np.einsum("ij,jk,ik->i", cross, self.inverse, cross)
        return mean * self.scale, np.sqrt(np.maximum(variance, 0.0)) * self.scale

    def draw(self, old: Values, news: Sequence[Values], rng: np.random.Generator) -> Array:
        """Gains as they may well be: one draw from their joint posterior (Thompson sampling).

        What is known well comes out as known, what is unknown as chance has it, so that changes
        that are taken together by their drawn gains test much at once and little twice.

        Args:
            old: A configuration.
            news: Others, each one change away from it.
            rng: Source of chance.
        Returns:
            One gain for each of ``news``.
        """
        start, points = self._points(old, news)
        side = self._kernel(points, start)
        covariance = self._kernel(points, points) - side - side.T + self._kernel(start, start)
        mean, cross = self._regression(start, points)
        covariance -= cross @ self.inverse @ cross.T
        values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return (mean + root @ rng.standard_normal(len(news))) * self.scale

    def _points(self, old: Values, news: Sequence[Values]) -> tuple[Array, Array]:
        return np.array([self.encoded(old)]), np.array([self.encoded(new) for new in news])

    def _regression(self, start: Array, points: Array) -> tuple[Array, Array]:
        """Expected gains, and covariance of the gains with every run, those under way included."""
        if not len(self.all_x):
            return np.zeros(len(points)), np.zeros((len(points), 0))
        cross = self._kernel(points, self.all_x) - self._kernel(start, self.all_x)
        known = cross[:, : len(self.y)]
        mean = known @ self.alpha if len(self.y) else np.zeros(len(points))
        return mean, cross - cross.mean(axis=1, keepdims=True)

    def _fit(self) -> None:
        """Variances by MacKay's fixed point, each with an inverse gamma prior."""
        parts = self._components(self.x, self.x)
        parts = parts - parts.mean(axis=0) - parts.mean(axis=1)[:, None] + parts.mean(axis=(0, 1))
        prior, noise = self.weight, self.noise
        for _ in range(N_ROUNDS):
            self.inverse = self._inverse(parts @ self.weight)
            self.alpha = self.inverse @ self.y
            size = np.einsum("i,ijp,j->p", self.alpha, parts, self.alpha) * self.weight**2
            known = np.einsum("ij,ijp->p", self.inverse, parts) * self.weight
            left = self.noise * np.trace(self.inverse) - 1  # observations that noise explains
            rest = self.noise**2 * self.alpha @ self.alpha
            self.weight = (PRIOR_WEIGHT * prior + size) / (PRIOR_WEIGHT + known)
            self.noise = float((PRIOR_WEIGHT * noise + rest) / (PRIOR_WEIGHT + left))
        self.inverse = self._inverse(parts @ self.weight)
        self.alpha = self.inverse @ self.y

    def _inverse(self, kernel: Array) -> Array:
        inverse = np.linalg.inv(kernel + self.noise * np.eye(len(kernel)))
        return np.asarray(inverse, dtype=np.float64)

    def _kernel(self, a: Array, b: Array) -> Array:
        return self._components(a, b) @ self.weight

    def _components(self, a: Array, b: Array, *, paired: bool = False) -> Array:
        """Kernel of each parameter, ``(n_a, n_b, n_parameter)``; paired: ``(n, n_parameter)``."""
        one, other = (a, b) if paired else (a[:, None, :], b[None, :, :])
        near = np.exp(-0.5 * ((one - other) / LENGTH) ** 2)
        same = (one == other).astype(float)
        idle = (one == INACTIVE) | (other == INACTIVE)
        return np.where(self.is_ordered & ~idle, near, np.where(idle & (same == 0), 0.5, same))


def _centred(kernel: Array) -> Array:
    """Kernel of what is left when the mean of all runs is taken off."""
    return kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
