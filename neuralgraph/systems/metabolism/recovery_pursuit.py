r"""Which reactions act on a metabolite, before the rate law is known.

The substrates of every reaction are given. Starting from the reactions that consume a metabolite,
the one whose substrates explain most of what is left of its derivative is added until nothing is
gained (orthogonal matching pursuit). A reaction has the average shape of a rate law as its feature,
and the Legendre products of its substrates, with a prior, for what it deviates; the average shape
is learned along the way. Reactions with equal substrates look the same here: the first of them
stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralgraph.systems.metabolism.recovery_amounts import LEAST_TOTAL
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw, legendre
from neuralgraph.systems.metabolism.recovery_roles import (
    CLASSES,
    class_of,
    feature_exponents,
    nearest_laws,
    spread_of_laws,
)

Array = np.ndarray

PURSUIT_CLASSES = (*CLASSES, (5,))
LEAST_SHARE = 0.055
"""Share of the squared residual that a further reaction must explain."""
LEAST_CLEARNESS = 5.0
"""Standard errors from doing nothing below which a product is dropped."""


@dataclass
class _Row:
    """Result of one row of the pursuit: reactions, their amounts, and variances of these."""

    active: list[int]
    amount: Array
    variance: Array


class Pursuit:
    """Products by matching pursuit; the shape of the rate law is learned along.

    Args:
        problem: Data.
        substrates: Substrates of each reaction, sorted.
        rng: Source of random rate laws.
        n_frame: Frames used.
    """

    def __init__(
        self,
        problem: RecoveryProblem,
        substrates: Sequence[Array],
        rng: np.random.Generator,
        n_frame: int,
    ) -> None:
        self.substrates = [tuple(s.tolist()) for s in substrates]
        self.n_rxn, self.n_met = len(substrates), problem.n_met
        self.max_coefficient = problem.max_coefficient
        c = problem.concentration
        extent = np.abs((c - problem.center) / problem.half_width).max(1)
        frames = np.sort(np.argsort(extent, kind="stable")[:n_frame])
        z = (c[frames] - problem.center) / problem.half_width
        _, self.mean, self.deviation = spread_of_laws(
            PURSUIT_CLASSES,
            problem.center,
            problem.half_width,
            rng,
            max_substrates=max(len(s) for s in substrates),
            max_coefficient=problem.max_coefficient,
        )
        self.mean[0], self.deviation[0] = 1.0, max(self.deviation[0], 0.2)
        self._features(z.T)
        first: dict[tuple[int, ...], int] = {}
        self.stands_for = np.array([first.setdefault(s, j) for j, s in enumerate(self.substrates)])
        y = problem.dx_dt[frames].T
        y = y - y.mean(1, keepdims=True)  # constants are free
        self.n_frame = y.shape[1]
        self.gram = self.phi @ self.phi.T
        self.right = self.phi @ y.T
        self.total = (y**2).sum(1)
        self.live = self.total > LEAST_TOTAL * self.total.max()
        self.is_sub = np.zeros((self.n_met, self.n_rxn), dtype=bool)
        for j, subs in enumerate(self.substrates):
            self.is_sub[list(subs), self.stands_for[j]] = True
        self.rows: list[_Row] = []
        self.sign = 0.0
        self.low = np.zeros(self.n_rxn)
        self.high = np.full(self.n_rxn, np.inf)

    def _features(self, z: Array) -> None:
        number: dict[tuple[int, ...], int] = {c: q for q, c in enumerate(PURSUIT_CLASSES)}
        power = legendre(z, max(max(c) for c in PURSUIT_CLASSES))
        index: dict[tuple[tuple[int, int], ...], int] = {}
        kind: list[int] = []
        self.group: list[Array] = []
        exponents = {
            n: feature_exponents(n, PURSUIT_CLASSES) for n in {len(s) for s in self.substrates}
        }
        for subs in self.substrates:
            members = []
            for feature in exponents[len(subs)]:
                key = tuple((subs[v], e) for v, e in feature)
                if key not in index:
                    index[key] = len(index)
                    kind.append(number[class_of(feature)])
                members.append(index[key])
            self.group.append(np.array(members))
        self.kind = np.array(kind)
        self.phi = np.ones((len(index), z.shape[1]))
        for row, key in zip(self.phi, index, strict=True):
            for m, e in key:
                row *= power[e, m]
        self.phi -= self.phi.mean(1, keepdims=True)

    def run(self) -> tuple[int, float]:
        """One pass over all metabolites; then the shape of the law and the amounts are learned.

        Returns:
            Number of products found, median residual relative to the variation of a derivative.
        """
        mix = np.zeros((self.n_rxn, len(self.kind)))
        for j, group in enumerate(self.group):
            mix[j, group] = self.mean[self.kind[group]]
        self.mix_gram = mix @ self.gram
        self.mix_mix = self.mix_gram @ mix.T
        self.mix_right = mix @ self.right
        self.square = np.maximum(np.diag(self.mix_mix), 1e-300)
        self.spread = self.deviation[self.kind] ** 2
        ratio: list[list[float]] = [[] for _ in PURSUIT_CLASSES]
        old, self.rows, misfit = self.rows, [], []
        for i in range(self.n_met):
            row, noise = self._row(i, old[i] if old else None, ratio)
            self.rows.append(row)
            misfit.append(np.sqrt(noise * self.n_frame / max(self.total[i], 1e-300)))
        votes = sum(
            np.sign(amount)
            for i, row in enumerate(self.rows)
            for j, amount in zip(row.active, row.amount, strict=True)
            if self.is_sub[i, j]
        )
        self.sign = -float(np.sign(votes))
        self._learn(ratio)
        n_found = sum(not self.is_sub[i, j] for i, row in enumerate(self.rows) for j in row.active)
        return n_found, float(np.median(misfit))

    def _fit(self, i: int, active: list[int], size: dict[int, float], noise: float, n_step: int):
        w = cov = np.empty(0)
        feature: Any = np.empty(0, dtype=int)
        for _ in range(n_step):
            prior = np.zeros(len(self.kind))
            for j in active:
                prior[self.group[j]] += size[j] ** 2 * self.spread[self.group[j]]
            feature = np.flatnonzero(prior)
            n = len(active)
            a = np.empty((n + len(feature),) * 2)
            a[:n, :n] = self.mix_mix[np.ix_(active, active)]
            a[:n, n:] = self.mix_gram[np.ix_(active, feature)]
            a[n:, :n] = a[:n, n:].T
            a[n:, n:] = self.gram[np.ix_(feature, feature)]
            right = np.concatenate([self.mix_right[active, i], self.right[feature, i]])
            weight = np.concatenate([np.full(n, 1e-12), 1 / prior[feature]])
            h = a / noise
            h[np.diag_indices_from(h)] += weight
            unit = 1 / np.sqrt(np.diag(h))
            h *= np.outer(unit, unit)
            h[np.diag_indices_from(h)] += 1e-11
            cov = np.linalg.inv(h) * np.outer(unit, unit)
            w = cov @ (right / noise)
            least = max(1e-13 * self.total[i], 1e-300)
            left = max(self.total[i] - 2 * w @ right + w @ a @ w, least)
            free = self.n_frame - (len(w) - (np.diag(cov) * weight).sum())
            noise = max(left / max(free, self.n_frame / 10), least / self.n_frame)
            for q, j in enumerate(active):
                size[j] = max(float(np.sqrt(w[q] ** 2 + cov[q, q])), 1e-4)
        return w, cov, feature, noise

    def _row(self, i: int, old: _Row | None, ratio: list[list[float]]) -> tuple[_Row, float]:
        if not self.live[i]:
            return _Row([], np.empty(0), np.empty(0)), max(self.total[i], 1e-300) / self.n_frame
        # a reaction brings about 40 coefficients
        most = max(2, min(30, self.n_frame // 40))
        active = np.flatnonzero(self.is_sub[i]).tolist()
        known = {} if old is None else dict(zip(old.active, np.abs(old.amount), strict=True))
        guess = np.sqrt(self.total[i] / self.square) / (len(active) + 1)
        size = {j: max(float(known.get(j, guess[j])), 1e-3) for j in active}
        noise = max(self.total[i], 1e-300) / self.n_frame * (1e-2 if old is None else 1e-4)
        w, cov, feature, noise = self._fit(i, active, size, noise, 6)
        may = self.stands_for == np.arange(self.n_rxn)
        for step in range(most):
            cross = np.concatenate([self.mix_mix[:, active], self.mix_gram[:, feature]], 1)
            left = self.mix_right[:, i] - cross @ w
            own = self.square - np.einsum("ja,ab,jb->j", cross, cov, cross) / noise
            open_ = may & (own > 1e-7 * self.square)
            open_[active] = False
            own = np.maximum(own, 1e-9 * self.square)
            amount = left / own
            error = 4 * np.sqrt(noise / own)
            if self.sign:
                open_ &= amount * self.sign > 0
                open_ &= np.abs(amount) + error > 0.5 * self.low
                open_ &= np.abs(amount) - error < 1.5 * self.max_coefficient * self.high
            share = np.where(open_, left * amount, 0.0) / (noise * self.n_frame)
            best = int(share.argmax())
            if share[best] < LEAST_SHARE:
                break
            active.append(best)
            size[best] = abs(float(amount[best]))
            w, cov, feature, noise = self._fit(i, active, size, noise, 3)
            if not self.sign and step <= 3:
                continue
            clear = self._clearness(active, w, cov, feature)
            weak = [
                j
                for q, j in enumerate(active)
                if not self.is_sub[i, j]
                and j != best
                and (clear[q] < LEAST_CLEARNESS or w[q] * self.sign < 0)
            ]
            if weak:
                active = [j for j in active if j not in weak]
                w, cov, feature, noise = self._fit(i, active, size, noise, 3)
        n = len(active)
        self._collect(active, w, cov, feature, ratio)
        return _Row(active, w[:n].copy(), np.diag(cov)[:n].copy()), noise

    def _clearness(self, active: list[int], w: Array, cov: Array, feature: Array) -> Array:
        """How many standard errors each reaction is from doing nothing, ``(n_active,)``.

        Its amount and the deviations that no other reaction of the row has are tested together:
        where laws differ much the amount alone is uncertain, since its own deviations can make up
        for it, however clear the reaction is.
        """
        use = np.zeros(len(self.kind), dtype=int)
        for j in active:
            use[self.group[j]] += 1
        n = len(active)
        place = {int(f): n + q for q, f in enumerate(feature)}
        out = np.empty(n)
        for q, j in enumerate(active):
            own = [q, *(place[int(f)] for f in self.group[j] if use[f] == 1)]
            out[q] = np.sqrt(max(w[own] @ np.linalg.solve(cov[np.ix_(own, own)], w[own]), 0.0))
        return out

    def _collect(
        self, active: list[int], w: Array, cov: Array, feature: Array, ratio: list[list[float]]
    ) -> None:
        """Shape of reactions whose features no other reaction of the row has."""
        use = np.zeros(len(self.kind), dtype=int)
        for j in active:
            use[self.group[j]] += 1
        place = {int(f): len(active) + q for q, f in enumerate(feature)}
        for q, j in enumerate(active):
            if abs(w[q]) < 6 * np.sqrt(cov[q, q]):
                continue
            for f in self.group[j]:
                if use[f] == 1:
                    kind = self.kind[f]
                    ratio[kind].append(float(self.mean[kind] + w[place[int(f)]] / w[q]))

    def _learn(self, ratio: list[list[float]]) -> None:
        for q, values in enumerate(ratio):
            if len(values) < 11:
                continue
            self.mean[q] = np.median(values)
            spread = 1.48 * float(np.median(np.abs(np.array(values) - self.mean[q])))
            self.deviation[q] = max(1.3 * spread, 0.1 if q == 0 else 0.01)
        if self.mean[0] > 0:
            self.mean /= self.mean[0]
        amount = [dict(zip(r.active, np.abs(r.amount), strict=True)) for r in self.rows]
        for j in np.unique(self.stands_for):
            # as a substrate the amount is 1 to max_coefficient times k
            live = [i for i in self.substrates[j] if self.live[i]]
            if not live:
                continue
            middle = float(np.median([amount[i].get(j, 0.0) for i in live]))
            alone = int((self.stands_for == j).sum()) == 1
            self.low[j] = middle / self.max_coefficient if alone else 0.0
            self.high[j] = middle

    def order(self, poly: PolynomialLaw, draws: Array) -> Array:
        """Random rate laws by their distance to the learned shape."""
        return nearest_laws(poly, draws, PURSUIT_CLASSES, self.mean, self.deviation, self.sign)

    def amounts(self) -> Array:
        """Signed amounts with which reactions act, ``(n_met, n_rxn)``, on those that stand for
        others; 0 for a product whose sign is wrong.
        """
        out = np.zeros((self.n_met, self.n_rxn))
        for i, row in enumerate(self.rows):
            out[i, row.active] = row.amount * self.sign
        return np.where(self.is_sub, -np.abs(out), np.maximum(out, 0.0))
