r"""Recovery where it is known what drives each reaction, but not what it produces.

The substrates of every reaction are known, and with them that $S_{ij} < 0$ there; every other
metabolite may be a product. Three steps:

1. *Which reactions act on a metabolite.* $\dot c_i$ depends on the substrates of the reactions that
   act on it. Starting from the reactions that consume i, the one whose substrates explain most of
   what is left is added until nothing is gained (orthogonal matching pursuit). A reaction has the
   average shape of a rate law as its feature, and the Legendre products of its substrates, with a
   prior, for what it deviates; the average shape is learned along the way.
2. *Integers* from the amounts with which the reactions act; rate constants and law, two shared
   networks, by Gauss-Newton from the random networks nearest to the shape that was learned.
3. *Support again.* The pursuit is repeated with the rates that were learned. What it finds
   becomes a candidate in the search that changes columns where a joint refit lowers the objective.
   Both are repeated; unless they end where the data are explained, the second step's answer stays.

Reactions with the same substrates are told apart by their coefficients and rate constants only:
the first step sees them as one, and what it finds is a candidate of each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralgraph.systems.metabolism.recovery import Decoded
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem, checked_problem
from neuralgraph.systems.metabolism.recovery_columns import (
    Column,
    ColumnProblem,
    ReactionAnswer,
    RecoveredNetwork,
    answers_of,
    column_of,
    go_on,
    network_of,
)
from neuralgraph.systems.metabolism.recovery_law import (
    PolynomialLaw,
    collocation,
    legendre,
    random_rate_laws,
)
from neuralgraph.systems.metabolism.recovery_messages import LOWEST
from neuralgraph.systems.metabolism.recovery_mlp import SharedRateNetwork, networks_from
from neuralgraph.systems.metabolism.recovery_roles import (
    CLASSES,
    class_of,
    feature_exponents,
    nearest_laws,
    spread_of_laws,
)
from neuralgraph.systems.metabolism.recovery_sharpen import refit

Array = np.ndarray
Log = Callable[[str], None]

PURSUIT_CLASSES = (*CLASSES, (5,))
LEAST_SHARE = 0.055
"""Share of the squared residual that a further reaction must explain."""
LEAST_SHARE_SHARP = 0.3
"""The same with learned rates."""
MOST_OPTIONAL = 3
"""Candidate products of a reaction that may be absent."""
SURE = 0.7
"""Deviation of a coefficient from an integer below which a product is not put in question."""

EXPLAINED = 2 * float(np.log(1e-4))
"""Mean log squared relative residual below which the search of the third step is believed."""


def recover_support(
    concentration: Any,
    dx_dt: Any,
    met_sub: Any,
    rxn_sub: Any,
    *,
    n_met: int,
    n_rxn: int,
    rng: np.random.Generator,
    max_coefficient: int,
    max_products: int,
    log_k_range: tuple[float, float],
    n_pass: int = 2,
    n_frame_pursuit: int = 1440,
    sharp_degree: Sequence[int] = (12, 8, 7),
    max_frames: int = 432,
    n_sharpen: int = 10,
    n_turn: int = 2,
    log: Log | None = None,
) -> RecoveredNetwork:
    """Recover products, integer coefficients and rate constants from the substrate graph alone.

    Args:
        concentration: ``(n_frame, n_met)``, mM.
        dx_dt: Exact derivatives, ``(n_frame, n_met)``, mM min⁻¹.
        met_sub: Metabolite of each substrate edge, ``(n_sub_edge,)``.
        rxn_sub: Reaction of each substrate edge.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        rng: Source of all randomness.
        max_coefficient: Largest integer considered.
        max_products: Largest number of products considered.
        log_k_range: log10 k considered, in units where the rate law is about 1.
        n_pass: Passes of the first step.
        n_frame_pursuit: Frames used by the pursuits.
        sharp_degree: As in
            :func:`~neuralgraph.systems.metabolism.recovery.recover_stoichiometry`.
        max_frames: As there.
        n_sharpen: As there.
        n_turn: Repetitions of the third step at most.
        log: Called with one line of text per stage.

    Returns:
        The recovered network.

    Raises:
        DataError: arrays that do not fit together.

    Source:
        own; matching pursuit after Pati et al. (1993).
    """
    say: Log = log if log is not None else lambda _: None
    met, rxn = np.asarray(met_sub), np.asarray(rxn_sub)
    problem = checked_problem(
        concentration,
        dx_dt,
        met,
        rxn,
        met,
        rxn,
        -np.ones(met.shape, dtype=np.int64),
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
    )
    substrates = [np.sort(problem.met_sub[problem.rxn_sub == j]) for j in range(n_rxn)]
    pursuit = Pursuit(problem, substrates, rng, n_frame_pursuit)
    for turn in range(n_pass):
        n_found, misfit = pursuit.run()
        say(f"support, pass {turn + 1}: {n_found} products, residual {misfit:.1e} of the change")
    found = _first_guess(
        problem,
        pursuit,
        rng=rng,
        log_k_range=log_k_range,
        sharp_degree=sharp_degree,
        max_frames=max_frames,
        n_step=max(2, n_sharpen),
    )
    say(f"integers of the amounts: objective {found.objective:.2f}")
    first = found
    for _ in range(n_turn if n_sharpen > 1 else 0):
        columns, n_new, n_doubtful = _reopened(
            problem, found, substrates, n_frame_pursuit, max_products
        )
        say(f"support again: {n_new} new products to try, {n_doubtful} to doubt")
        before = found.objective
        found = go_on(
            problem,
            columns,
            replace(found, net=deepcopy(found.net)),
            rng=rng,
            sharp_degree=sharp_degree,
            max_frames=max_frames,
            n_round=max(1, n_sharpen // 3),
            log=say,
        )
        if found.objective > before - 0.1:
            break
    if found is not first and found.objective > EXPLAINED:
        # while much is unexplained, a lower objective is bought with wrong integers
        say(f"objective {found.objective:.2f}: the data stay unexplained, back to the amounts")
        found = first
    return network_of(problem, found)


def _first_guess(
    problem: RecoveryProblem,
    pursuit: Pursuit,
    *,
    rng: np.random.Generator,
    log_k_range: tuple[float, float],
    sharp_degree: Sequence[int],
    max_frames: int,
    n_step: int,
    n_draw: int = 400,
) -> Decoded:
    """Integers and rate constants from the amounts, the law from the nearest random networks."""
    coarse = PolynomialLaw(problem.max_substrates, problem.max_coefficient, (5,) * 3)
    points = collocation(coarse, problem.center, problem.half_width, rng)
    draws, weights = random_rate_laws(points, rng, n_draw)
    nearest = int(pursuit.order(coarse, draws)[0])
    fine = PolynomialLaw(problem.max_substrates, problem.max_coefficient, sharp_degree)
    points = collocation(fine, problem.center, problem.half_width, rng)
    net = SharedRateNetwork(*networks_from([w[nearest] for w in weights]), points)
    columns, unit = [], np.ones(problem.n_rxn)
    for j in range(problem.n_rxn):
        answer, unit[j] = pursuit.answer_of(j, problem.max_coefficient)
        columns.append(column_of(answer, [], problem.max_coefficient))
    linear = [draws[nearest, coarse.index[1][shape][1]] for shape in range(problem.max_coefficient)]
    scale = float(draws[nearest, coarse.constant[0]])
    k_range = (10.0 ** log_k_range[0] / scale, 10.0 ** log_k_range[1] / scale)
    k = np.clip(unit / float(np.mean(np.abs(linear))), *k_range)
    frames = problem.frames(max_frames)
    decoder = ColumnProblem.of(problem, columns).decoder(fine, frames, tie_substrates=True)
    c = problem.concentration[frames].T
    end = refit(decoder, c, net, np.zeros(problem.n_rxn, dtype=int), k, n_step)
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


@dataclass
class _Row:
    """Result of one row of the pursuit: reactions, their amounts, and variances of these."""

    active: list[int]
    amount: Array
    variance: Array


class Pursuit:
    """First step of :func:`recover_support`.

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
                open_ &= np.abs(amount) - error < 3 * self.high
            share = np.where(open_, left * amount, 0.0) / (noise * self.n_frame)
            best = int(share.argmax())
            if share[best] < LEAST_SHARE:
                break
            active.append(best)
            size[best] = abs(float(amount[best]))
            w, cov, feature, noise = self._fit(i, active, size, noise, 3)
            if not self.sign and step <= 3:
                continue
            weak = [
                j
                for q, j in enumerate(active)
                if not self.is_sub[i, j]
                and j != best
                and (abs(w[q]) < 5 * np.sqrt(cov[q, q]) or w[q] * self.sign < 0)
            ]
            if weak:
                active = [j for j in active if j not in weak]
                w, cov, feature, noise = self._fit(i, active, size, noise, 3)
        n = len(active)
        self._collect(active, w, cov, feature, ratio)
        return _Row(active, w[:n].copy(), np.diag(cov)[:n].copy()), noise

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
            # as a substrate the amount is 1 or 2 times k
            middle = float(np.median([amount[i].get(j, 0.0) for i in self.substrates[j]]))
            alone = int((self.stands_for == j).sum()) == 1
            self.low[j] = middle / 2 if alone else 0.0
            self.high[j] = middle

    def order(self, poly: PolynomialLaw, draws: Array) -> Array:
        """Random rate laws by their distance to the learned shape."""
        return nearest_laws(poly, draws, PURSUIT_CLASSES, self.mean, self.deviation, self.sign)

    def answer_of(self, j: int, max_coefficient: int) -> tuple[ReactionAnswer, float]:
        """Integers that fit the amounts of reaction j best, and the amount of a coefficient 1."""
        lead = self.stands_for[j]
        n_share = int((self.stands_for == lead).sum())
        substrates = self.substrates[j]
        amount: dict[int, float] = {}
        for i, row in enumerate(self.rows):
            if lead not in row.active:
                continue
            value = float(row.amount[row.active.index(lead)]) * self.sign
            if i in substrates or (value > 0 and j == lead):
                amount[i] = abs(value) / (n_share if i in substrates else 1)
        size = np.maximum(np.array(list(amount.values())), 1e-9)
        steps = np.log(np.arange(1, max_coefficient + 1))
        best = (np.inf, 1.0, np.ones(len(size), dtype=int))
        for unit in (size[:, None] / np.exp(steps)).ravel().tolist():
            off = np.abs(np.log(size / unit)[:, None] - steps)
            # the smaller integers where several fit alike
            cost = float(np.minimum(off.min(1), 1.0).sum()) - 1e-6 * unit / size.max()
            if cost < best[0]:
                best = (cost, unit, off.argmin(1) + 1)
        met = np.array(list(amount), dtype=int)
        value = best[2] * np.where(np.isin(met, substrates), -1, 1)
        missing = [m for m in substrates if m not in amount]
        met = np.r_[met, np.array(missing, dtype=int)]
        value = np.r_[value, -np.ones(len(missing), dtype=int)]
        place = {int(m): int(-v) for m, v in zip(met, value, strict=True)}
        return ReactionAnswer(met, value, substrates, tuple(place[m] for m in substrates)), best[1]


def _reopened(
    problem: RecoveryProblem,
    found: Decoded,
    substrates: Sequence[Array],
    n_frame: int,
    max_products: int,
) -> tuple[list[Column], int, int]:
    """Candidates after a pursuit with the learned rates.

    Returns:
        Columns, the number of products that are new, and of present ones that are in question.
    """
    decoder = found.decoder
    answers = answers_of(problem, found)
    shape = decoder.pattern_shape[np.arange(problem.n_rxn), found.pattern]
    frames = problem.frames(n_frame)
    rate = found.k[:, None] * found.law(problem.concentration[frames].T, shape)
    y = problem.dx_dt[frames].T
    gram, right, total = rate @ rate.T, rate @ y.T, (y**2).sum(1)
    s = np.zeros((problem.n_met, problem.n_rxn))
    for j, answer in enumerate(answers):
        s[answer.met, j] = answer.value
    twins: dict[tuple[int, ...], list[int]] = {}
    for j, subs in enumerate(substrates):
        twins.setdefault(tuple(subs.tolist()), []).append(j)
    wanted: list[dict[int, float]] = [{} for _ in answers]
    doubtful: set[tuple[int, int]] = set()
    n_new = 0
    for i in range(problem.n_met):
        amount, added = _pursue_row(gram, right[:, i], float(total[i]), s[i], len(frames))
        for j, gain in added:
            for twin in twins[tuple(substrates[j].tolist())]:
                if s[i, twin] == 0:
                    wanted[twin][i] = gain
                    n_new += 1
        for j in np.flatnonzero(s[i] > 0).tolist():
            if abs(amount[j] - s[i, j]) > SURE:
                doubtful.add((i, j))
                for twin in twins[tuple(substrates[j].tolist())]:
                    if s[i, twin] == 0:
                        wanted[twin].setdefault(i, 0.0)
    columns = []
    for j, answer in enumerate(answers):
        made = answer.met[answer.value > 0]
        new = sorted(wanted[j], key=lambda i: -wanted[j][i])[:MOST_OPTIONAL]
        products = np.array([*made.tolist(), *new], dtype=int)
        # a present product is in question when another one may take its place
        optional = np.array([(int(i), j) in doubtful or len(new) > 0 for i in made], dtype=bool)
        optional = np.r_[optional, np.ones(len(new), dtype=bool)].astype(bool)
        size = np.zeros(len(products), dtype=int)
        size[: len(made)] = answer.value[answer.value > 0]
        value = np.r_[[answer.value[answer.met == m][0] for m in answer.substrates], size]
        present = ReactionAnswer(
            np.r_[np.array(answer.substrates, dtype=int), products],
            value.astype(int),
            answer.substrates,
            answer.sizes,
        )
        columns.append(
            column_of(
                present,
                [(answer.substrates, products, optional)],
                problem.max_coefficient,
                max_products,
            )
        )
    return columns, n_new, len(doubtful)


def _pursue_row(
    gram: Array, right: Array, total: float, s: Array, n_frame: int, most: int = 20
) -> tuple[Array, list[tuple[int, float]]]:
    """Least squares of one row on the rates in use, and the rates that should be added."""
    active = np.flatnonzero(s).tolist()
    added: list[tuple[int, float]] = []
    amount = np.zeros(len(s))
    square = np.maximum(np.diag(gram), 1e-300)
    is_sub = s < 0
    for _ in range(most):
        a = gram[np.ix_(active, active)]
        unit = 1 / np.sqrt(np.maximum(np.diag(a), 1e-300))
        h = a * np.outer(unit, unit)
        h[np.diag_indices_from(h)] += 1e-12
        inverse = np.linalg.inv(h) * np.outer(unit, unit)
        w = inverse @ right[active]
        amount[:] = 0
        amount[active] = w
        left = max(total - 2 * w @ right[active] + w @ a @ w, 1e-15 * total)
        cross = gram[:, active]
        rest = right - cross @ w
        own = square - np.einsum("ja,ab,jb->j", cross, inverse, cross)
        may = (own > 1e-9 * square) & ~is_sub
        may[active] = False
        own = np.maximum(own, 1e-12 * square)
        more = rest / own
        error = 3 * np.sqrt(left / n_frame / own)
        may &= (more + error > 0.6) & (more - error < 2.6) & (more > 0)
        share = np.where(may, rest * more, 0.0) / left
        best = int(share.argmax())
        if share[best] < LEAST_SHARE_SHARP:
            break
        active.append(best)
        added.append((best, float(share[best])))
    return amount, added
