r"""Which reactions act on a metabolite, once the rate law is known roughly.

A reaction has two kinds of features: its rate function at the coefficients $|s|$ that a decoding
gave its substrates, and for every substrate what another $|s|$ would change, with a prior. Where
reactions share their substrates there is no such guess, and the mean over all coefficients takes
its place. So a wrong guess of $|s|$ spoils nothing, a right one costs nothing, and matching pursuit
over all reactions finds products that are a thousand times slower than the fastest one of a
metabolite.

How much a reaction acts on its own substrates bounds its rate constant, and with it the amounts
with which it may act on anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
LEAST_SHARE = 0.05
"""Share of the squared residual that a further reaction must explain."""
LEAST_SIGNAL = 4.0
"""Amount over its error below which a product is dropped."""
MOST_REACTIONS = 40
"""Reactions of a row at most."""
MOST_TRIES = 3
"""Times a reaction may enter a row while it grows."""
RIDGE = 1e-14
LEAST_TOTAL = 1e-18
"""Squared variation of a derivative, over the largest one, below which nothing happens there."""


@dataclass(frozen=True)
class Amounts:
    """How much each reaction acts on each metabolite.

    Attributes:
        value: Signed amounts, ``(n_met, n_rxn)``; 0 where a reaction does not act.
        error: Their standard errors.
        residual: rms residual over rms variation of the derivative, ``(n_met,)``.
    """

    value: Array
    error: Array
    residual: Array


class RatePursuit:
    """Matching pursuit with known rate functions.

    Args:
        rate: For each reaction its candidate rate functions, ``(n_candidate, n_frame)``.
        sizes: Coefficients of the substrates of each candidate, ``(n_candidate, n_substrate)``.
        guess: The candidate believed in, ``None`` for no guess; one for each reaction.
        y: Derivatives, ``(n_met, n_frame)``.
        is_sub: Which metabolites a reaction consumes, ``(n_met, n_rxn)``.
        is_single: Whether a reaction stands for itself only, ``(n_rxn,)``: the amounts of several
            reactions with one rate need not be small multiples of each other.
    """

    def __init__(
        self,
        rate: Sequence[Array],
        sizes: Sequence[Array],
        guess: Sequence[int | None],
        y: Array,
        is_sub: Array,
        is_single: Array,
    ) -> None:
        self.is_sub, self.is_single = is_sub, is_single
        self.n_met, self.n_rxn = is_sub.shape
        middle, deviation = [], []
        for f, s, chosen in zip(rate, sizes, guess, strict=True):
            if chosen is None:
                middle.append(f.mean(0))
                deviation += _half_differences(f, s)
            else:
                middle.append(f[chosen])
                deviation += _changes(f, s, chosen)
        self.largest = max(int(s.max()) for s in sizes)
        count = [s.shape[1] for s in sizes]
        self.own = np.split(self.n_rxn + np.arange(sum(count)), np.cumsum(count)[:-1])
        x = np.array([*middle, *deviation])
        # constants are free: they would make all features nearly equal
        x -= x.mean(1, keepdims=True)
        y = y - y.mean(1, keepdims=True)
        self.gram, self.right = x @ x.T, x @ y.T
        self.square = np.maximum(np.diag(self.gram)[: self.n_rxn], 1e-300)
        total = (y**2).sum(1)
        self.live = total > LEAST_TOTAL * total.max()
        self.total = np.maximum(total, 1e-300)
        self.n_frame = y.shape[1]

    def run(self, value: Array, n_pass: int = 3) -> Amounts:
        """Find the products of every reaction.

        Args:
            value: Amounts to start from, ``(n_met, n_rxn)``, 0 where none is known.
            n_pass: Passes; after each, the bounds of the rate constants are drawn tighter.
        """
        low, high = np.zeros(self.n_rxn), np.full(self.n_rxn, np.inf)
        # only the amounts first, then products
        found = self._all(value, low, high, 2.0, 0.0)
        for _ in range(n_pass):
            low, high = self._bounds(found)
            found = self._all(found.value, low, high, LEAST_SHARE, LEAST_SIGNAL)
        return found

    def _all(self, value: Array, low: Array, high: Array, share: float, signal: float) -> Amounts:
        new, error = np.zeros((2, self.n_met, self.n_rxn))
        residual = np.ones(self.n_met)
        for i in np.flatnonzero(self.live).tolist():
            # what was found before may be a dead end: start without it as well
            starts = [value[i], np.where(self.is_sub[i], value[i], 0.0)] if signal else [value[i]]
            rows = [_Row(self, i, start) for start in starts]
            for row in rows:
                row.grow(low, high, share, signal)
                row.prune(low, high, signal)
            row = min(rows, key=_Row.cost)
            sign = np.where(self.is_sub[i, row.active], -1.0, 1.0)
            new[i, row.active] = sign * np.maximum(sign * row.amount, 0.0)
            error[i, row.active] = row.error
            residual[i] = np.sqrt(row.left / self.total[i])
        return Amounts(new, error, residual)

    def _bounds(self, found: Amounts) -> tuple[Array, Array]:
        """Amounts a product of each reaction may have: its substrates have 1 to largest times k."""
        low, high = np.zeros(self.n_rxn), np.full(self.n_rxn, np.inf)
        for j in range(self.n_rxn):
            rows = np.flatnonzero(self.is_sub[:, j] & self.live)
            if not len(rows):
                continue
            size, error = np.abs(found.value[rows, j]), 3 * found.error[rows, j]
            # where the reaction is seen best
            clear = int(np.argmin(error / np.maximum(size, 1e-12)))
            least = max(float(size[clear] - error[clear]) / self.largest, 0.0)
            low[j] = 0.8 * least if self.is_single[j] else 0.0
            high[j] = 1.2 * self.largest * max(float(size[clear] + error[clear]), 1e-12)
            if size[clear] < error[clear]:  # hardly seen
                high[j] *= 10
        return low, high


def _half_differences(rate: Array, sizes: Array) -> list[Array]:
    """Between large and small coefficients of each substrate, averaged over those of the others."""
    small = sizes == sizes.min()
    out = []
    for v in range(sizes.shape[1]):
        low, high = rate[small[:, v]], rate[~small[:, v]]
        out.append((high.mean(0) - low.mean(0)) / 2 if len(high) else np.zeros_like(rate[0]))
    return out


def _changes(rate: Array, sizes: Array, chosen: int) -> list[Array]:
    """What other coefficients of each substrate alone would change, averaged over them."""
    out = []
    for v in range(sizes.shape[1]):
        rest = np.delete(sizes, v, axis=1)
        other = (rest == rest[chosen]).all(1) & (sizes[:, v] != sizes[chosen, v])
        out.append(rate[other].mean(0) - rate[chosen] if other.any() else np.zeros_like(rate[0]))
    return out


class _Row:
    """Least squares of one metabolite on a growing set of reactions."""

    def __init__(self, pursuit: RatePursuit, i: int, value: Array) -> None:
        self.p, self.i = pursuit, i
        self.is_sub = pursuit.is_sub[i]
        self.active = [int(j) for j in np.flatnonzero(self.is_sub | (value != 0))]
        self.right = pursuit.right[:, i]
        self.total = float(pursuit.total[i])
        self.noise = 1e-6 * self.total / pursuit.n_frame
        guess = np.sqrt(self.total / pursuit.square) / (len(self.active) + 1)
        self.size = {j: max(abs(float(value[j])) or float(guess[j]), 1e-4) for j in self.active}
        self._fit(4)

    @property
    def amount(self) -> Array:
        """Of the active reactions, ``(n_active,)``."""
        return self.w[: len(self.active)]

    @property
    def error(self) -> Array:
        """Standard errors of the amounts."""
        return np.sqrt(np.diag(self.cov)[: len(self.active)])

    def cost(self) -> float:
        """Log residual, with what a further reaction has to gain for each one in use."""
        return float(np.log(self.left) - len(self.active) * np.log(1 - LEAST_SHARE))

    def _fit(self, n_step: int) -> None:
        p, n = self.p, len(self.active)
        if not n:
            self.w, self.cov, self.left = np.empty(0), np.empty((0, 0)), self.total
            self.column = np.empty(0, dtype=int)
            return
        own = [p.own[j] for j in self.active]
        self.column = np.concatenate([np.array(self.active), *own])
        gram, right = p.gram[np.ix_(self.column, self.column)], self.right[self.column]
        for _ in range(n_step):
            spread = [np.full(len(o), self.size[j]) for j, o in zip(self.active, own, strict=True)]
            prior = np.concatenate([np.full(n, 1e3), *spread]) ** 2
            h = gram / self.noise
            h[np.diag_indices_from(h)] += 1 / prior
            unit = 1 / np.sqrt(np.diag(h))
            h *= np.outer(unit, unit)
            h[np.diag_indices_from(h)] += RIDGE
            self.cov = np.linalg.inv(h) * np.outer(unit, unit)
            self.w = self.cov @ (right / self.noise)
            left = self.total - 2 * self.w @ right + self.w @ gram @ self.w
            self.left = max(float(left), 1e-15 * self.total)
            self.noise = self.left / p.n_frame
            variance = np.diag(self.cov)
            for q, j in enumerate(self.active):
                self.size[j] = max(float(np.sqrt(self.w[q] ** 2 + variance[q])), 1e-4)

    def grow(self, low: Array, high: Array, least_share: float, signal: float) -> None:
        """Add the reaction that explains most, while it explains enough.

        Two reactions can push each other out for ever; each is therefore taken in ``MOST_TRIES``
        times at most, which bounds the work.
        """
        p = self.p
        tries = np.zeros(p.n_rxn, dtype=int)
        while len(self.active) < MOST_REACTIONS:
            cross = p.gram[: p.n_rxn, self.column]
            rest = self.right[: p.n_rxn] - cross @ self.w
            own = p.square - np.einsum("ja,ab,jb->j", cross, self.cov, cross) / self.noise
            own = np.maximum(own, 1e-9 * p.square)
            more, error = rest / own, 4 * np.sqrt(self.noise / own)
            may = ~self.is_sub & (more > 0) & (more + error > low) & (more - error < high)
            may[self.active] = False
            may &= tries < MOST_TRIES
            share = np.where(may, rest * more, 0.0) / self.left
            best = int(share.argmax())
            if share[best] < least_share:
                return
            self.active.append(best)
            tries[best] += 1
            self.size[best] = float(more[best])
            self._fit(3)
            while True:
                ratio = self.amount / self.error
                weak = [
                    q
                    for q, j in enumerate(self.active)
                    if not self.is_sub[j] and j != best and ratio[q] < signal
                ]
                if not weak:
                    break
                self._drop(min(weak, key=lambda q: ratio[q]))

    def prune(self, low: Array, high: Array, signal: float) -> None:
        """Drop products that are uncertain, or whose amount the rate constant forbids."""
        while True:
            ratio, slack = self.amount / self.error, 3 * self.error
            out = [
                q
                for q, j in enumerate(self.active)
                if not self.is_sub[j]
                and (
                    ratio[q] < signal
                    or self.amount[q] + slack[q] < low[j]
                    or self.amount[q] - slack[q] > high[j]
                )
            ]
            if not out:
                return
            self._drop(min(out, key=lambda q: ratio[q]))

    def _drop(self, place: int) -> None:
        self.active.pop(place)
        self._fit(2)
