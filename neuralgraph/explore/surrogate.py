"""What to expect of a change: an additive Gaussian process over the parameters' positions.

Each parameter contributes a smooth function of its position in its range; the sum of them, learned
from every run so far, predicts the gain of one configuration over another and how uncertain that
is. Components are weighted by what they explained (one step of automatic relevance determination),
so that the few parameters that matter are told from the many that do not.
"""

from __future__ import annotations

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
NOISE = 0.1
"""Variance of a run around the sum of effects, in units of the variance of the rewards."""
N_RELEVANCE = 3
"""Rounds of weighting the components by what they explain."""
SHRINKAGE = 0.3
"""Share of the weight that every component keeps whatever it explained."""
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

    Args:
        history: Runs; failed ones count with their reward of 0.
        space: Parameters.
    """

    def __init__(self, history: History, space: Space) -> None:
        self.space = space
        self.keys = list(space)
        self.is_ordered = np.array([p.is_ordered for p in space.values()])
        n = len(self.keys)
        self.weight = np.full(n, 1.0 / n)
        self.scale = 1.0
        self.x = np.array([self.encoded(i.values) for i in history]).reshape(-1, n)
        reward = np.array([log_odds(i.reward) for i in history])
        if len(reward) > 1:
            self.scale = max(float(reward.std()), SMALLEST_SCALE)
        self.y = (reward - reward.mean()) / self.scale if len(reward) else reward
        self.inverse: Array = np.zeros((0, 0))
        if len(reward):
            self._fit()

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
        start = np.array([self.encoded(old)])
        points = np.array([self.encoded(new) for new in news])
        prior = self._components(points, points, paired=True) @ self.weight
        prior += self._components(start, start, paired=True) @ self.weight
        prior -= 2 * (self._components(points, start) @ self.weight)[:, 0]
        if not len(self.y):
            return np.zeros(len(news)), np.sqrt(np.maximum(prior, 0.0)) * self.scale
        cross = (self._components(points, self.x) - self._components(start, self.x)) @ self.weight
        mean = cross @ self.inverse @ self.y
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
        start = np.array([self.encoded(old)])
        points = np.array([self.encoded(new) for new in news])

        def between(a: Array, b: Array) -> Array:
            return self._components(a, b) @ self.weight

        side = between(points, start)
        covariance = between(points, points) - side - side.T + between(start, start)
        mean = np.zeros(len(news))
        if len(self.y):
            cross = between(points, self.x) - between(start, self.x)
            mean = cross @ self.inverse @ self.y
            covariance -= cross @ self.inverse @ cross.T
        values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return (mean + root @ rng.standard_normal(len(news))) * self.scale

    def _fit(self) -> None:
        parts = self._components(self.x, self.x)
        for _ in range(N_RELEVANCE):
            self._invert(parts)
            alpha = self.inverse @ self.y
            explained = np.array(
                [np.var(self.weight[p] * parts[:, :, p] @ alpha) for p in range(len(self.weight))]
            )
            if explained.sum() <= 0:
                return
            n = len(self.weight)
            self.weight = SHRINKAGE / n + (1 - SHRINKAGE) * explained / explained.sum()
        self._invert(parts)

    def _invert(self, parts: Array) -> None:
        kernel = parts @ self.weight
        inverse = np.linalg.inv(kernel + NOISE * np.eye(len(kernel)))
        self.inverse = np.asarray(inverse, dtype=np.float64)

    def _components(self, a: Array, b: Array, *, paired: bool = False) -> Array:
        """Kernel of each parameter, ``(n_a, n_b, n_parameter)``; paired: ``(n, n_parameter)``."""
        one, other = (a, b) if paired else (a[:, None, :], b[None, :, :])
        near = np.exp(-0.5 * ((one - other) / LENGTH) ** 2)
        same = (one == other).astype(float)
        idle = (one == INACTIVE) | (other == INACTIVE)
        return np.where(self.is_ordered & ~idle, near, np.where(idle & (same == 0), 0.5, same))
