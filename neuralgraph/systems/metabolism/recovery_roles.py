r"""Recovery where it is known who takes part in a reaction, but not on which side.

A rate depends on the concentrations of the substrates alone. So a metabolite is a product when the
derivatives of its partners do not depend on it. Two steps before the integers:

1. *Roles.* For each metabolite $\dot c_i = \sum_j w_{ij} \cdot \varphi_j(c)$, with Legendre
   products $\varphi_j$ of all members of a reaction as features: one Bayesian least squares, the
   scale of each reaction learned (automatic relevance). For each split of the members into
   substrates and products the evidence that all members' $w_{ij} = S_{ij} b_j$ share one vector
   $b_j$, which is 0 on features of products, is summed over the members. Splits that are out of
   the question are dropped, which leaves fewer features, and the step is repeated; from the second
   time on the shape of $b_j$ is that of the reactions that are decided already.
2. *Integers* with the most probable roles, as where the roles are known.
3. *Roles again.* With the learned law every split is compared with the present one, all rate
   constants solved again. Those that come close are candidates in the search that changes columns
   where a joint refit lowers the objective.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery import decode
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem, open_problem
from neuralgraph.systems.metabolism.recovery_columns import (
    RecoveredNetwork,
    answers_of,
    column_of,
    go_on,
    network_of,
    screened,
)
from neuralgraph.systems.metabolism.recovery_law import (
    PolynomialLaw,
    collocation,
    legendre,
    random_rate_laws,
)

Array = np.ndarray
Log = Callable[[str], None]
Split = tuple[int, ...]
"""Places of the substrates among the members of a reaction."""

CLASSES = ((1,), (2,), (3,), (4,), (1, 1), (2, 1), (3, 1), (2, 2), (1, 1, 1), (2, 1, 1))
"""Exponents of the Legendre products that are told apart; order within a product is none."""
FIRST_CLASSES = ((1,), (2,), (3,), (1, 1), (2, 1), (1, 1, 1))
"""Those of the first pass, where every member may be a substrate."""
TEMPER = 1 / 8
"""Weight of a frame: frames of one run are nearly the same."""
DROP = 20.0
"""Log evidence below the best at which a split is dropped."""
CLEAR = 10.0
"""Log evidence between the best two splits at which a reaction counts as decided."""
CLOSE = 30.0
"""Log evidence below the present split up to which another one is a candidate again."""
MOST_OTHER = 4
"""Other splits of a reaction that are candidates again."""


def recover_roles(
    concentration: Any,
    dx_dt: Any,
    met_all: Any,
    rxn_all: Any,
    *,
    n_met: int,
    n_rxn: int,
    rng: np.random.Generator,
    max_coefficient: int,
    max_substrates: int,
    max_products: int,
    log_k_range: tuple[float, float],
    n_pass: int = 3,
    n_step: int = 6,
    n_frame_roles: int = 1440,
    degree: Sequence[int] = (10, 6, 5),
    sharp_degree: Sequence[int] = (12, 8, 7),
    max_frames: int = 432,
    n_scan: int = 24,
    n_start: int = 3,
    n_anneal: int = 20,
    n_sharpen: int = 10,
    log: Log | None = None,
) -> RecoveredNetwork:
    """Recover roles, integer coefficients and rate constants from the support alone.

    Args:
        concentration: ``(n_frame, n_met)``, mM.
        dx_dt: Exact derivatives, ``(n_frame, n_met)``, mM min⁻¹.
        met_all: Metabolite of each edge of S, ``(n_all_edge,)``.
        rxn_all: Reaction of each edge of S.
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        rng: Source of all randomness.
        max_coefficient: Largest integer considered.
        max_substrates: Largest number of substrates considered.
        max_products: Largest number of products considered.
        log_k_range: log10 k considered, in units where the rate law is about 1.
        n_pass: Passes of the first step.
        n_step: Rounds of automatic relevance in a pass.
        n_frame_roles: Frames used by the first step.
        degree: As in :func:`~neuralgraph.systems.metabolism.recovery.recover_stoichiometry`.
        sharp_degree: As there.
        max_frames: As there.
        n_scan: As there.
        n_start: As there.
        n_anneal: As there.
        n_sharpen: As there.
        log: Called with one line of text per stage.

    Returns:
        The recovered network.

    Raises:
        DataError: arrays that do not fit together, or a reaction that no split fits.

    Source:
        own; automatic relevance after MacKay (1992).
    """
    say: Log = log if log is not None else lambda _: None
    problem = open_problem(
        concentration,
        dx_dt,
        met_all,
        rxn_all,
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
    )
    member = [np.sort(problem.met_all[problem.rxn_all == j]) for j in range(n_rxn)]
    splits = {n: _splits(n, max_substrates, max_products) for n in {len(m) for m in member}}
    for j, m in enumerate(member):
        if not splits[len(m)]:
            raise DataError(
                f"reaction {j} has {len(m)} members, which no split into 1 to {max_substrates} "
                f"substrates and 1 to {max_products} products fits"
            )
    search = RoleSearch(problem, member, [splits[len(m)] for m in member], rng, n_frame_roles)
    for turn in range(n_pass):
        search.regress(is_first=turn == 0, n_step=n_step if turn == 0 else min(n_step, 4))
        n_clear, n_left = search.decide()
        say(f"roles, pass {turn + 1}: {n_clear} of {n_rxn} reactions clear, {n_left} splits left")

    met_all = np.concatenate(member)
    rxn_all = np.repeat(np.arange(n_rxn), [len(m) for m in member])
    sign = np.ones(len(met_all), dtype=np.int64)
    first = np.concatenate([[0], np.cumsum([len(m) for m in member])[:-1]])
    for j, ranked in enumerate(search.ranked):
        sign[first[j] + np.array(ranked[0][1])] = -1
    is_sub = sign < 0
    problem = replace(
        problem,
        met_all=met_all,
        rxn_all=rxn_all,
        sign_all=sign,
        met_sub=met_all[is_sub],
        rxn_sub=rxn_all[is_sub],
    )
    found = decode(
        problem,
        rng=rng,
        tie_substrates=True,
        width=32,
        n_message=16,
        log_k_range=log_k_range,
        degree=degree,
        sharp_degree=sharp_degree,
        max_frames=max_frames,
        n_scan=n_scan,
        n_start=n_start,
        n_anneal=n_anneal,
        n_sharpen=min(n_sharpen, 3),
        n_try=2,
        log=say,
    )
    for _ in range(2 if n_sharpen > 1 else 0):
        if found.net is None:
            break
        answers = answers_of(problem, found)
        every = [
            column_of(answer, [_sides(m, s) for s in splits[len(m)]], max_coefficient)
            for answer, m in zip(answers, member, strict=True)
        ]
        other = screened(
            problem,
            every,
            found,
            sharp_degree=sharp_degree,
            max_frames=max_frames,
            keep=MOST_OTHER,
            within=CLOSE,
        )
        columns = [
            column_of(
                answer,
                [_sides(m, np.flatnonzero(np.isin(m, s))) for s in (answer.substrates, *more)],
                max_coefficient,
            )
            for answer, m, more in zip(answers, member, other, strict=True)
        ]
        n_open = sum(map(bool, other))
        say(f"{n_open} reactions whose roles are in question")
        before = found.objective
        found = go_on(
            problem,
            columns,
            found,
            rng=rng,
            sharp_degree=sharp_degree,
            max_frames=max_frames,
            n_round=n_sharpen,
            log=say,
        )
        if not n_open or found.objective > before - 0.5:
            break
    return network_of(problem, found)


def _splits(n: int, max_substrates: int, max_products: int) -> list[Split]:
    return [
        split
        for k in range(1, min(n - 1, max_substrates) + 1)
        if n - k <= max_products
        for split in itertools.combinations(range(n), k)
    ]


def _sides(member: Array, split: Sequence[int] | Array) -> tuple[tuple[int, ...], Array, Array]:
    is_sub = np.isin(np.arange(len(member)), split)
    products = member[~is_sub]
    return tuple(member[is_sub].tolist()), products, np.zeros(len(products), dtype=bool)


def feature_exponents(
    n: int, classes: Sequence[tuple[int, ...]]
) -> list[tuple[tuple[int, int], ...]]:
    """Legendre products of n variables: tuples of (variable, exponent), of these classes.

    >>> feature_exponents(2, [(1,), (2, 1)])
    [((0, 1),), ((1, 1),), ((0, 1), (1, 2)), ((0, 2), (1, 1))]
    """
    out: list[tuple[tuple[int, int], ...]] = []
    for k in range(1, n + 1):
        exponents = sorted({e for c in classes if len(c) == k for e in itertools.permutations(c)})
        for variables in itertools.combinations(range(n), k):
            out += [tuple(zip(variables, e, strict=True)) for e in exponents]
    return out


def class_of(feature: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Exponents of a feature, largest first."""
    return tuple(sorted((e for _, e in feature), reverse=True))


def spread_of_laws(
    classes: Sequence[tuple[int, ...]],
    center: float,
    half_width: float,
    rng: np.random.Generator,
    *,
    max_substrates: int,
    max_coefficient: int,
    n_draw: int = 200,
) -> tuple[Array, Array, Array]:
    """What random rate laws look like, per class of features.

    Returns:
        Median size relative to the constant term; median and robust deviation relative to the
        mean linear term; each ``(n_class,)``.
    """
    top = max(sum(c) for c in classes)
    poly = PolynomialLaw(max_substrates, max_coefficient, (top,) * max_substrates)
    points = collocation(poly, center, half_width, rng)
    draws, _ = random_rate_laws(points, rng, n_draw)
    size: list[list[Array]] = [[] for _ in classes]
    ratio: list[list[Array]] = [[] for _ in classes]
    number = {c: q for q, c in enumerate(classes)}
    for t, kind in enumerate(poly.types):
        n = len(kind)
        index = poly.index[n][poly.shapes[n].index(kind)]
        unit = [poly.monomials[n].index(tuple(int(x == q) for x in range(n))) for q in range(n)]
        linear = draws[:, index[unit]].mean(1)
        for monomial, entry in zip(poly.monomials[n], index, strict=True):
            key = tuple(sorted((e for e in monomial if e), reverse=True))
            if key in number:
                size[number[key]].append(draws[:, entry] / draws[:, poly.constant[t]])
                ratio[number[key]].append(draws[:, entry] / linear)
    scale, mean, spread = np.zeros((3, len(classes)))
    for q in range(len(classes)):
        if not size[q]:  # products of more variables than a reaction has substrates
            scale[q], spread[q] = 1e-4, 1e-2
            continue
        s, r = np.concatenate(size[q]), np.concatenate(ratio[q])
        scale[q] = np.sqrt(np.median(s**2))
        mean[q] = np.median(r)
        spread[q] = 1.48 * np.median(np.abs(r - mean[q]))
    return scale, mean, spread


def nearest_laws(
    poly: PolynomialLaw,
    draws: Array,
    classes: Sequence[tuple[int, ...]],
    mean: Array,
    deviation: Array,
    sign: float,
) -> Array:
    """Order of random rate laws by their distance to a learned shape.

    Args:
        poly: What ``draws`` are coefficients of.
        draws: ``(n_draw, n_theta)``.
        classes: Of the features of the shape.
        mean: Learned coefficients in units of the linear one, ``(n_class,)``.
        deviation: Their deviations.
        sign: +1 where rates rise with concentration, -1 where they fall.
    """
    number = {c: q for q, c in enumerate(classes)}
    far = np.zeros(len(draws))
    for t, kind in enumerate(poly.types):
        n = len(kind)
        index = poly.index[n][poly.shapes[n].index(kind)]
        unit = [poly.monomials[n].index(tuple(int(x == q) for x in range(n))) for q in range(n)]
        linear = draws[:, index[unit]].mean(1)
        far += 1e6 * (linear * draws[:, poly.constant[t]] * sign <= 0)
        linear = np.where(np.abs(linear) > 1e-12, linear, 1e-12)
        for monomial, entry in zip(poly.monomials[n], index, strict=True):
            q = number.get(tuple(sorted((e for e in monomial if e), reverse=True)), 0)
            if q:
                off = (draws[:, entry] / linear - mean[q]) / max(float(deviation[q]), 0.02)
                far += np.minimum(off**2, 1e4) / len(poly.monomials[n])
    return np.argsort(far, kind="stable")


@dataclass
class _Message:
    """What the row of a metabolite says about its coefficients of one reaction."""

    precision: Array
    shift: Array


class RoleSearch:
    """First step of :func:`recover_roles`.

    Args:
        problem: Data; its roles are not looked at.
        member: Metabolites of each reaction.
        splits: Splits of each reaction to choose from.
        rng: Source of random rate laws.
        n_frame: Frames used.

    Attributes:
        ranked: For each reaction ``(log evidence, split)``, best first.
    """

    def __init__(
        self,
        problem: RecoveryProblem,
        member: Sequence[Array],
        splits: Sequence[Sequence[Split]],
        rng: np.random.Generator,
        n_frame: int,
    ) -> None:
        self.member = list(member)
        self.left = [list(s) for s in splits]
        self.max_coefficient = problem.max_coefficient
        c = problem.concentration
        extent = np.abs((c - problem.center) / problem.half_width).max(1)
        frames = np.sort(np.argsort(extent, kind="stable")[:n_frame])
        z = (c[frames] - problem.center) / problem.half_width
        self.y = problem.dx_dt[frames].T
        self.n_met, self.n_frame = self.y.shape
        self.power = legendre(z.T, max(max(c) for c in CLASSES))
        most = max(len(s) for splits_of in splits for s in splits_of)
        self.size, _, _ = spread_of_laws(
            CLASSES,
            problem.center,
            problem.half_width,
            rng,
            max_substrates=most,
            max_coefficient=problem.max_coefficient,
        )
        self.rxn_of = [[j for j, m in enumerate(self.member) if i in m] for i in range(self.n_met)]
        self.shape: tuple[Array, Array] | None = None
        self.scale = {(i, j): 1.0 for i in range(self.n_met) for j in self.rxn_of[i]}
        mean_square = (self.y**2).mean(1)
        self.floor = 1e-14 * max(float(mean_square.max()), 1e-300)
        self.noise = 1e-6 * mean_square + self.floor
        self.ranked: list[list[tuple[float, Split]]] = []

    def regress(self, *, is_first: bool, n_step: int) -> None:
        """Posterior of the coefficients of every row, on the features that are left."""
        classes = FIRST_CLASSES if is_first else CLASSES
        at = [CLASSES.index(c) for c in classes]
        self.spread = self._spread()
        self.kind, self.variables, value = [], [], []
        exponents = {n: feature_exponents(n, classes) for n in {len(m) for m in self.member}}
        for m, left in zip(self.member, self.left, strict=True):
            allowed = [frozenset(s) for s in left]
            features = [
                f for f in exponents[len(m)] if any({v for v, _ in f} <= a for a in allowed)
            ]
            self.variables.append([frozenset(v for v, _ in f) for f in features])
            self.kind.append(np.array([at[classes.index(class_of(f))] for f in features]))
            rows = np.ones((len(features), self.n_frame))
            for row, feature in zip(rows, features, strict=True):
                for v, e in feature:
                    row *= self.power[e, m[v]]
            value.append(rows)
        self.message: dict[tuple[int, int], _Message] = {}
        for i, rxn in enumerate(self.rxn_of):
            if rxn:
                self._regress_row(i, rxn, [value[j] for j in rxn], n_step)

    def _spread(self) -> Array:
        if self.shape is None:
            return self.size
        mean, deviation = self.shape
        return np.maximum(np.sqrt(mean**2 + deviation**2), 0.3 * self.size / self.size[0])

    def _regress_row(self, i: int, rxn: list[int], value: list[Array], n_step: int) -> None:
        phi = np.concatenate([np.ones((1, self.n_frame)), *value])
        gram, right = phi @ phi.T, phi @ self.y[i]
        total = float(self.y[i] @ self.y[i])
        kind = [self.kind[j] for j in rxn]
        end = 1 + np.cumsum([len(q) for q in kind])
        block = [slice(e - len(q), e) for e, q in zip(end, kind, strict=True)]
        prior = w = cov = np.empty(0)
        for step in range(n_step):
            prior = np.concatenate(
                [[1e6]]
                + [(self.scale[i, j] * self.spread[q]) ** 2 for j, q in zip(rxn, kind, strict=True)]
            )
            a = gram / self.noise[i]
            a[np.diag_indices_from(a)] += 1 / prior
            cov = np.linalg.inv(a)
            w = cov @ (right / self.noise[i])
            var = np.diag(cov)
            left = max(total - 2 * w @ right + w @ gram @ w, 0.0)
            free = self.n_frame - (1 - var / prior).sum()
            self.noise[i] = max(
                left / max(free, self.n_frame / 10), 1e-14 * total / self.n_frame, self.floor
            )
            if step == n_step - 1:
                break
            for j, q, s in zip(rxn, kind, block, strict=True):
                linear = q == 0
                size = (w[s] ** 2 + var[s])[linear] / self.spread[0] ** 2
                self.scale[i, j] = max(float(np.sqrt(size.mean())), 1e-6)
        for j, s in zip(rxn, block, strict=True):
            inverse = np.linalg.inv(cov[s, s])
            self.message[i, j] = _Message(inverse - np.diag(1 / prior[s]), inverse @ w[s])

    def decide(self) -> tuple[int, int]:
        """Rank the splits of every reaction, drop the hopeless, learn the shape of the law.

        Returns:
            Number of decided reactions, number of splits left.
        """
        self.ranked, clear = [], []
        for j in range(len(self.member)):
            found = self._rank(j)
            self.ranked.append([(value, split) for value, split, *_ in found])
            best = found[0]
            if len(found) == 1 or best[0] - found[1][0] > CLEAR:
                clear.append(best)
            self.left[j] = [split for value, split, *_ in found if value > best[0] - DROP]
            for i in self.member[j]:
                # from here on in units of the linear term
                self.scale[i, j] = 1.4 * best[5] * (1 if self.shape else self.size[0])
        self.shape = self._shape_of([(b, var, kind) for _, _, b, var, kind, _ in clear])
        return len(clear), sum(len(s) for s in self.left)

    def _rank(self, j: int) -> list[tuple[float, Split, Array, Array, Array, float]]:
        m, kind, variables = self.member[j], self.kind[j], self.variables[j]
        messages = [self.message[i, j] for i in m]
        precision = TEMPER * np.array([q.precision for q in messages])
        shift = TEMPER * np.array([q.shift for q in messages])
        size = float(np.exp(np.mean([np.log(self.scale[i, j]) for i in m])))
        span = np.arange(-2, 2) if self.shape is None else np.arange(-3, 2.1, 0.5)
        values = range(1, self.max_coefficient + 1)
        integers = np.array(list(itertools.product(values, repeat=len(m))), dtype=float)
        found = []
        for split in self.left[j]:
            inside = np.array([q for q, v in enumerate(variables) if v <= frozenset(split)])
            pattern = integers * np.where(np.isin(np.arange(len(m)), split), -1, 1)
            h = precision[:, inside][:, :, inside].reshape(len(m), -1)
            h = (pattern**2 @ h).reshape(len(pattern), len(inside), len(inside))
            g = pattern @ shift[:, inside]
            best = None
            for unit in size * 2.0**span:
                if self.shape is None:
                    weight = 1 / (unit * self.spread[kind[inside]]) ** 2
                    mean = np.zeros(len(inside))
                else:
                    weight = 1 / (unit * self.shape[1][kind[inside]]) ** 2
                    mean = unit * self.shape[0][kind[inside]]
                a = h + np.diag(weight)
                right = g + weight * mean
                b = np.linalg.solve(a, right[..., None])[..., 0]
                value = 0.5 * (right * b).sum(1) - 0.5 * (weight * mean * mean).sum()
                value -= 0.5 * (np.linalg.slogdet(a)[1] - np.log(weight).sum())
                q = int(value.argmax())
                if best is None or value[q] > best[0]:
                    best = (float(value[q]), b[q], a[q], float(unit))
            assert best is not None
            var = np.diag(np.linalg.inv(best[2]))
            found.append((best[0], split, best[1], var, kind[inside], best[3]))
        return sorted(found, key=lambda f: -f[0])

    def order(self, poly: PolynomialLaw, draws: Array) -> Array:
        """Random rate laws by their distance to the learned shape."""
        if self.shape is None:
            return np.arange(len(draws))
        mean, deviation = self.shape
        sign = float(np.sign(mean[0]))
        return nearest_laws(poly, draws, CLASSES, sign * mean, deviation, sign)

    def _shape_of(self, clear: list[tuple[Array, Array, Array]]) -> tuple[Array, Array]:
        """Mean and deviation of ``b`` per class, in units of the linear term, with its sign."""
        sign = np.sign(sum(np.sign(b[kind == 0]).sum() for b, _, kind in clear)) or 1.0
        ratio: list[list[tuple[float, float]]] = [[] for _ in CLASSES]
        for b, var, kind in clear:
            unit = b[kind == 0].mean()
            if sign * unit <= 0:
                continue
            for q, x, v in zip(kind, b / unit, var / unit**2, strict=True):
                ratio[q].append((x, v))
        mean, deviation = np.zeros(len(CLASSES)), self.size / self.size[0]
        for q, pairs in enumerate(ratio):
            if len(pairs) < 8:
                continue
            x, v = np.array(pairs).T
            sure = x[v <= np.median(v)]
            mean[q] = np.median(sure)
            deviation[q] = 1.5 * max(1.48 * np.median(np.abs(sure - mean[q])), 0.003)
        deviation[0] = max(deviation[0], 0.15)
        if mean[0] == 0:
            mean[0] = 1.0
        return sign * mean, deviation
