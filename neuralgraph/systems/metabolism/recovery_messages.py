r"""Joint decoding of integer stoichiometric columns by message passing.

For metabolite i, $\dot c_i = \sum_j \sigma_{ij} u_{ij} f_j$ with known signs $\sigma$ and
$u_{ij} = |S_{ij}| k_j$. With the rate functions $f_j$ given this is one small least-squares
problem per *row*; for each *column* the $u_{ij}$ must be small integers times one $k_j$. Rows and
columns tell each other what they know about $u_{ij}$ as Gaussians (expectation propagation); the
column side enumerates every integer pattern, including the coefficients inside $f_j$. All products
over frames are in Gram matrices formed once per rate law.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw

Array = np.ndarray
MAX_PATTERNS = 4096
LOWEST = 1e-14
"""Squared relative residual below which rows count as equally well explained."""
LEAST_VARIANCE = 1e-5
"""Least relative variance of a message: without it, wrong but certain columns make rows swing."""
LEAST_GAIN = 0.15
"""Gain in log evidence per frame from which a column is changed, where what is left is misfit."""


@dataclass
class Belief:
    """What rows and columns believe.

    Attributes:
        mean, var: Of $u$ on every edge as the column tells its row, ``(n_edge,)``.
        shape: Index of the substrate pattern in use, ``(n_rxn,)``.
        pattern: Index of the best column pattern, ``(n_rxn,)``.
        score: Log evidence of every pattern, ``(n_rxn, n_pattern)``, -inf where none.
        row_mean, row_cov: Posterior of each row, ``(n_met, n_slot[, n_slot])``.
        noise: Variance given to each row, ``(n_met,)``.
        residual: Mean squared residual of each row, ``(n_met,)``.
    """

    mean: Array
    var: Array
    shape: Array
    pattern: Array
    score: Array
    row_mean: Array
    row_cov: Array
    noise: Array
    residual: Array


@dataclass(frozen=True)
class _Joint:
    """Weighted normal equations of all rate constants for an integer matrix."""

    s: Array
    flat: Array
    weight: Array
    inverse: Array
    b: Array


class StoichiometryDecoder:
    """Tables, Gram matrices and updates of one recovery problem.

    Args:
        z: Scaled concentrations, ``(n_met, n_frame)``.
        dx_dt: ``(n_met, n_frame)``, mM min⁻¹.
        met_sub, rxn_sub: Substrate edges.
        met_all, rxn_all, sign_all: All edges, sign ±1.
        n_rxn: Number of reactions.
        poly: Polynomial law, gives the features of the rate functions.
        max_coefficient: Largest coefficient.
        tie_substrates: Consumed substrates have the same coefficient in the rate and in S.

    Source:
        Minka (2001), expectation propagation; the model is own.
    """

    def __init__(
        self,
        z: Array,
        dx_dt: Array,
        met_sub: Array,
        rxn_sub: Array,
        met_all: Array,
        rxn_all: Array,
        sign_all: Array,
        n_rxn: int,
        poly: PolynomialLaw,
        max_coefficient: int,
        tie_substrates: bool,
    ) -> None:
        self.n_met, self.n_frame = dx_dt.shape
        self.n_rxn, self.n_edge = n_rxn, len(met_all)
        self.y, self.poly, self.max_coefficient = dx_dt, poly, max_coefficient
        self.met, self.rxn, self.sign = met_all, rxn_all, sign_all.astype(float)
        self.sub_edges = [np.flatnonzero(rxn_sub == j) for j in range(n_rxn)]
        self.n_sub = np.array([len(e) for e in self.sub_edges])
        self.products: dict[int, tuple[Array, Array]] = {}
        self.place = np.zeros(n_rxn, dtype=int)
        self.substrates: dict[int, Array] = {}
        for n in np.unique(self.n_sub):
            members = np.flatnonzero(self.n_sub == n)
            subs = np.array([met_sub[self.sub_edges[j]] for j in members])
            self.substrates[int(n)] = subs
            self.products[int(n)] = (members, poly.products(z, subs))
            self.place[members] = np.arange(len(members))
        count = np.array([len(poly.shapes[int(n)]) for n in self.n_sub])
        self.n_shape = int(count.max())
        self.offset = np.concatenate([[0], np.cumsum(count)[:-1]])
        self.n_candidate = int(count.sum())
        self.valid = np.arange(self.n_shape) < count[:, None]
        self._row_tables()
        self._column_tables(met_sub, tie_substrates)
        self.yy = (self.y**2).sum(1)
        used = np.sqrt(self.yy / self.n_frame)
        self.rms = np.maximum(used, 1e-12 * max(used.max(), 1e-300))
        self.live = used > 1e-9 * used.max()

    def _row_tables(self) -> None:
        rows = [np.flatnonzero(self.met == i) for i in range(self.n_met)]
        self.n_slot = max(len(r) for r in rows)
        self.row_edge = np.zeros((self.n_met, self.n_slot), dtype=int)
        self.row_used = np.zeros((self.n_met, self.n_slot), dtype=bool)
        self.slot = np.zeros(self.n_edge, dtype=int)
        for i, r in enumerate(rows):
            self.row_edge[i, : len(r)] = r
            self.row_used[i, : len(r)] = True
            self.slot[r] = np.arange(len(r))
        self.row_rxn = self.rxn[self.row_edge]
        self.row_sign = np.where(self.row_used, self.sign[self.row_edge], 0.0)

    def _column_tables(self, met_sub: Array, tie_substrates: bool) -> None:
        values = range(1, self.max_coefficient + 1)
        patterns, shapes = [], []
        self.column_slot = np.zeros(self.n_edge, dtype=int)
        columns = [np.flatnonzero(self.rxn == j) for j in range(self.n_rxn)]
        for j, edges in enumerate(columns):
            self.column_slot[edges] = np.arange(len(edges))
            subs = met_sub[self.sub_edges[j]]
            tied = []
            for m in subs:
                same = np.flatnonzero((self.met[edges] == m) & (self.sign[edges] < 0))
                tied.append(int(same[0]) if tie_substrates and len(same) else -1)
            n_free = sum(t < 0 for t in tied)
            n_pattern = self.max_coefficient ** (len(edges) + n_free)
            if n_pattern > MAX_PATTERNS:
                raise DataError(
                    f"reaction {j} has {n_pattern} coefficient patterns, more than {MAX_PATTERNS}: "
                    "lower max_coefficient or set tie_substrates"
                )
            table = np.array(list(itertools.product(values, repeat=len(edges) + n_free)))
            code = np.zeros(len(table), dtype=int)
            free = len(edges)
            for t in tied:
                digit = table[:, t] if t >= 0 else table[:, free]
                free += t < 0
                code = code * self.max_coefficient + digit - 1
            patterns.append(table[:, : len(edges)])
            shapes.append(code)
        n_pattern = max(len(p) for p in patterns)
        n_slot = max(len(e) for e in columns)
        self.pattern = np.ones((self.n_rxn, n_pattern, n_slot))
        self.pattern_used = np.zeros((self.n_rxn, n_pattern), dtype=bool)
        self.pattern_shape = np.zeros((self.n_rxn, n_pattern), dtype=int)
        self.column_edge = np.zeros((self.n_rxn, n_slot), dtype=int)
        self.column_used = np.zeros((self.n_rxn, n_slot), dtype=bool)
        for j, (p, code, edges) in enumerate(zip(patterns, shapes, columns, strict=True)):
            self.pattern[j, : len(p), : len(edges)] = p
            self.pattern_used[j, : len(p)] = True
            self.pattern_shape[j, : len(p)] = code
            self.column_edge[j, : len(edges)] = edges
            self.column_used[j, : len(edges)] = True

    # --- rate functions -----------------------------------------------------------------------

    def polynomial_rates(self, theta: Array) -> Array:
        """Rate functions of every substrate pattern, ``(n_rxn, n_shape, n_frame)``."""
        rate = np.zeros((self.n_rxn, self.n_shape, self.n_frame))
        for n, (members, product) in self.products.items():
            coefficient = theta[self.poly.index[n]]
            rate[members, : len(coefficient)] = coefficient @ product
        return rate

    def set_rates(self, rate: Array) -> None:
        """Form the Gram matrices of ``(n_rxn, n_shape, n_frame)`` rate functions."""
        self.rate = rate
        flat = rate[self.valid]
        self.gram = flat @ flat.T
        self.flat_y = flat @ self.y.T

    def inner(self, a: Array, b: Array) -> Array:
        """Products over frames of candidate rate functions, ``(len(a), len(b))``."""
        return self.gram[np.ix_(a, b)]

    def square(self, a: Array) -> Array:
        """Squared norms of candidate rate functions."""
        return self.gram[a, a]

    def rate_groups(
        self, shape: Array | None
    ) -> Iterator[tuple[Array, Array, Array, tuple[int, ...]]]:
        """Candidate rate functions with equal coefficients, together.

        Args:
            shape: The candidate of each reaction; ``None`` for all of them.

        Yields:
            Reactions, their candidates, substrates ``(n, n_sub)``, coefficients.
        """
        for n, (members, _) in self.products.items():
            for code, sizes in enumerate(self.poly.shapes[n]):
                pick = np.arange(len(members))
                if shape is not None:
                    pick = np.flatnonzero(shape[members] == code)
                if len(pick):
                    rxn = members[pick]
                    yield rxn, np.full(len(rxn), code), self.substrates[n][pick], sizes

    def basis(self, shape: Array) -> list[tuple[slice, Array]]:
        """Derivative of each rate function by ``theta``: its block, ``(n_block, n_frame)``."""
        out: list[tuple[slice, Array]] = [(slice(0, 0), np.empty(0))] * self.n_rxn
        for n, (members, product) in self.products.items():
            for code in np.unique(shape[members]):
                where = np.flatnonzero(shape[members] == code)
                index = self.poly.index[n][code]
                block = slice(int(index.min()), int(index.max()) + 1)
                fold = np.zeros((block.stop - block.start, len(index)))
                fold[index - block.start, np.arange(len(index))] = 1
                for w, value in zip(where, fold @ product[where], strict=True):
                    out[members[w]] = (block, value)
        return out

    # --- rows ---------------------------------------------------------------------------------

    def start(self, mean: float, sd: float) -> Belief:
        """A belief without information: every $u$ has this mean and deviation."""
        nan = np.empty(0)
        return Belief(
            mean=np.full(self.n_edge, mean),
            var=np.full(self.n_edge, sd**2),
            shape=np.zeros(self.n_rxn, dtype=int),
            pattern=np.zeros(self.n_rxn, dtype=int),
            score=nan,
            row_mean=nan,
            row_cov=nan,
            noise=nan,
            residual=nan,
        )

    def _load_rows(self, gram: Array, flat_y: Array, flat: Array) -> None:
        s = self.row_sign
        self._rr = gram[flat[:, :, None], flat[:, None, :]] * s[:, :, None] * s[:, None, :]
        self._ry = flat_y[flat, np.arange(self.n_met)[:, None]] * s

    def _load(self, shape: Array) -> None:
        flat = (self.offset + shape)[self.row_rxn]
        s = self.row_sign
        self._load_rows(self.gram, self.flat_y, flat)
        candidate = np.where(
            self.valid[self.rxn], self.offset[self.rxn][:, None] + np.arange(self.n_shape), 0
        )
        i = self.met
        cross = self.gram[candidate[:, :, None], flat[i][:, None, :]]
        self._er = cross * s[i][:, None, :] * self.sign[:, None, None]
        self._ee = self.gram[candidate, candidate]
        self._ey = self.flat_y[candidate, i[:, None]] * self.sign[:, None]

    def _row_posterior(self, mean: Array, var: Array, noise: Array) -> tuple[Array, Array]:
        weight = np.where(self.row_used, 1 / var[self.row_edge], 1.0)
        prior = np.where(self.row_used, mean[self.row_edge], 0.0)
        a = self._rr / noise[:, None, None]
        k = np.arange(self.n_slot)
        a[:, k, k] = a[:, k, k] * (1 + 1e-14) + weight
        cov = np.linalg.inv(a)
        return np.einsum("ijk,ik->ij", cov, self._ry / noise[:, None] + weight * prior), cov

    def _row_residual(self, mean: Array) -> Array:
        quad = np.einsum("ij,ijk,ik->i", mean, self._rr, mean)
        floor = 1e-15 * self.yy
        return np.maximum(self.yy - 2 * (mean * self._ry).sum(1) + quad, floor) / self.n_frame

    def _messages(self, mean: Array, var: Array, noise: Array, cov: Array) -> tuple[Array, Array]:
        """Per edge and candidate rate function: precision and precision-mean of $u$."""
        e, i, slot = np.arange(self.n_edge), self.met, self.slot
        noise = noise[i]
        own = cov[i]
        column = own[e, :, slot]
        rest = own - column[:, :, None] * column[:, None, :] / own[e, slot, slot][:, None, None]
        prior = np.where(self.row_used, mean[self.row_edge], 0.0)[i]
        prior[e, slot] = 0
        cross = self._er.copy()
        cross[e, :, slot] = 0
        left = self._ry[i] - np.einsum("ejk,ek->ej", self._rr[i], prior)
        own_left = self._ey - np.einsum("epk,ek->ep", cross, prior)
        carried = cross @ rest
        precision = self._ee - np.einsum("epk,epk->ep", carried, cross) / noise[:, None]
        shift = own_left - np.einsum("epk,ek->ep", carried, left) / noise[:, None]
        return np.maximum(precision / noise[:, None], 1e-300), shift / noise[:, None]

    # --- columns ------------------------------------------------------------------------------

    def _rate_constant(self, a: Array, b: Array, k_range: tuple[float, float]):
        """Laplace evidence of exp(b k - a k²/2) under a broad prior on log k."""
        a = np.maximum(a, 1e-300)
        with np.errstate(over="ignore"):  # an undetermined k meets its bound
            k = np.clip(b / a, *k_range)
        sharp = a * k * k
        score = b * k - 0.5 * sharp - 0.5 * np.log1p(2.0 * sharp)
        return k, score, k * k / (sharp + 0.5)

    def _columns(self, a: Array, b: Array, k_range: tuple[float, float]):
        edge = self.column_edge[:, None, :]
        shape = self.pattern_shape[:, :, None]
        used = self.column_used[:, None, :]
        ax = np.where(used, a[edge, shape], 0.0) * self.pattern**2
        bx = np.where(used, b[edge, shape], 0.0) * self.pattern
        total_a, total_b = ax.sum(2), bx.sum(2)
        k, score, _ = self._rate_constant(total_a, total_b, k_range)
        score = np.where(self.pattern_used, score, -np.inf)
        k_rest, rest, k_var = self._rate_constant(
            total_a[:, :, None] - ax, total_b[:, :, None] - bx, k_range
        )
        rest = np.where(self.pattern_used[:, :, None], rest, -np.inf)
        weight = np.exp(rest - rest.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        u = self.pattern * k_rest
        mean = (weight * u).sum(1)
        var = (weight * (self.pattern**2 * k_var + (u - mean[:, None, :]) ** 2)).sum(1)
        edge_mean, edge_var = np.empty(self.n_edge), np.empty(self.n_edge)
        edge_mean[self.column_edge[self.column_used]] = mean[self.column_used]
        edge_var[self.column_edge[self.column_used]] = var[self.column_used]
        return k, score, edge_mean, edge_var

    def sweep(
        self,
        belief: Belief,
        level: float,
        *,
        k_range: tuple[float, float],
        inflation: float = 3.0,
        n_pass: int = 2,
        damping: float = 0.5,
    ) -> Belief:
        """Pass messages between rows and columns and return the new belief.

        Args:
            belief: Where to start.
            level: Least relative error of the rows; residuals above it count as noise.
            k_range: Smallest and largest rate constant, in units of the rate functions.
            inflation: Factor on the noise variance, for frames that are not independent.
            n_pass: Row-column passes.
            damping: Share of the old message kept.
        """
        mean, var = belief.mean, belief.var
        least = (level * self.rms) ** 2
        self._load(belief.shape)
        score = belief.score
        for _ in range(n_pass):
            noise = self._noise(mean, var, least, inflation)
            _, cov = self._row_posterior(mean, var, noise)
            a, b = self._messages(mean, var, noise, cov)
            _, score, new_mean, new_var = self._columns(a, b, k_range)
            mean = damping * mean + (1 - damping) * new_mean
            var = np.maximum(damping * var + (1 - damping) * new_var, LEAST_VARIANCE * mean**2)
        pattern = score.argmax(1)
        shape = self.pattern_shape[np.arange(self.n_rxn), pattern]
        self._load(shape)
        noise = self._noise(mean, var, least, inflation)
        row_mean, row_cov = self._row_posterior(mean, var, noise)
        residual = self._row_residual(row_mean)
        return Belief(mean, var, shape, pattern, score, row_mean, row_cov, noise, residual)

    def refresh(self, belief: Belief, rate: Array, level: float, inflation: float = 3.0) -> Belief:
        """Row posterior under new rate functions ``(n_rxn, n_frame)`` of the patterns in use."""
        self.rate[np.arange(self.n_rxn), belief.shape] = rate
        self._load_rows(rate @ rate.T, rate @ self.y.T, self.row_rxn)
        noise = self._noise(belief.mean, belief.var, (level * self.rms) ** 2, inflation)
        row_mean, row_cov = self._row_posterior(belief.mean, belief.var, noise)
        residual = self._row_residual(row_mean)
        return replace(belief, row_mean=row_mean, row_cov=row_cov, noise=noise, residual=residual)

    def _noise(self, mean: Array, var: Array, least: Array, inflation: float) -> Array:
        row_mean, _ = self._row_posterior(mean, var, least * inflation)
        return inflation * np.maximum(least, self._row_residual(row_mean))

    # --- the law ------------------------------------------------------------------------------

    def law_normal_equations(self, belief: Belief) -> tuple[Array, Array]:
        """Gauss-Newton matrix and gradient in ``theta`` with every $u$ integrated out."""
        n = self.poly.n_theta
        h, g, x = np.zeros((n, n)), np.zeros(n), np.empty((n, self.n_frame))
        basis = self.basis(belief.shape)
        for i in range(self.n_met):
            edges = self.row_edge[i][self.row_used[i]]
            if not len(edges):
                continue
            x[:] = 0
            for q, e in enumerate(edges):
                block, value = basis[self.rxn[e]]
                x[block] += (self.sign[e] * belief.row_mean[i, q]) * value
            rxn = self.rxn[edges]
            f = self.rate[rxn, belief.shape[rxn]] * self.sign[edges][:, None]
            left = self.y[i] - belief.mean[edges] @ f
            xf = x @ f.T
            cov = belief.row_cov[i, : len(edges), : len(edges)] / belief.noise[i]
            h += (x @ x.T - xf @ cov @ xf.T) / belief.noise[i]
            g += (x @ left - xf @ (cov @ (f @ left))) / belief.noise[i]
        return h, g

    def misfit(self, belief: Belief) -> Array:
        """Log squared relative residual of every row, ``(n_met,)``."""
        return np.log(belief.residual / self.rms**2 + LOWEST)

    def hard_misfit(self, belief: Belief) -> float:
        """Mean log squared relative residual of the best patterns with least-squares k."""
        size, _ = self.coefficients(belief.pattern)
        _, residual = self.rate_constants(size.astype(float), belief.shape, belief.noise)
        return float(np.mean(np.log(residual / self.rms**2 + LOWEST)))

    def polish(
        self,
        pattern: Array,
        noise: Array,
        centre: Array,
        n_pass: int = 3,
        least_gain: float = LEAST_GAIN,
    ) -> Array:
        """Change single columns while that lowers the joint weighted least squares.

        Every pattern of a reaction is scored with all other rate constants solved again, which is
        a downdate of the inverse normal matrix. Weights are held during a pass.

        Args:
            pattern: Where to start, ``(n_rxn,)``.
            noise: Variance of the rows, ``(n_met,)``.
            centre: Mean of the prior on k, with a relative deviation of 1, ``(n_rxn,)``.
            n_pass: Passes; the rows are weighted again by their residuals in between.
            least_gain: Gain in log evidence per frame from which a column is changed.

        Returns:
            The pattern of least mean log residual among those after each pass.
        """
        pattern = pattern.copy()
        best = (np.inf, pattern.copy())
        for turn in range(n_pass + 1):
            joint, residual = self._joint(pattern, noise, centre)
            value = float(np.mean(np.log(residual / self.rms**2 + LOWEST)))
            if value < best[0]:
                best = (value, pattern.copy())
            if turn == n_pass:
                break
            gain = np.zeros(self.n_rxn)
            for j in range(self.n_rxn):
                score = self._column_scores(j, joint)
                gain[j] = score.max() - score[pattern[j]]
            moved = 0
            for j in np.argsort(-gain, kind="stable").tolist():
                if gain[j] <= least_gain * self.n_frame:
                    break
                score = self._column_scores(j, joint)
                new = int(score.argmax())
                if score[new] - score[pattern[j]] <= least_gain * self.n_frame:
                    continue
                moved += 1
                pattern[j] = new
                joint = self._normal(pattern, joint.weight, centre)
            if not moved:
                break
        return best[1]

    def confidence(self, pattern: Array, noise: Array, centre: Array) -> Array:
        """Log evidence between each edge's coefficient and the best column that differs there.

        All other rate constants are solved again for every column. The noise is taken as white,
        so that the numbers rank edges; they are no probabilities.

        Args:
            pattern: The answer, ``(n_rxn,)``.
            noise: Variance of the rows, ``(n_met,)``.
            centre: As in :meth:`polish`.

        Returns:
            ``(n_edge,)``, 0 where another column does as well.
        """
        joint, _ = self._joint(pattern, noise, centre)
        out = np.empty(self.n_edge)
        for j in range(self.n_rxn):
            score = self._column_scores(j, joint)
            edges = self.column_edge[j][self.column_used[j]]
            table = self.pattern[j, self.pattern_used[j]][:, : len(edges)]
            differs = table != table[pattern[j]]
            other = np.where(differs, score[:, None], -np.inf).max(0, initial=-np.inf)
            out[edges] = score[pattern[j]] - other
        return np.maximum(out, 0.0)

    def column_scores(self, pattern: Array, noise: Array, centre: Array) -> list[Array]:
        """Log evidence of every candidate of each reaction, all other k solved again."""
        joint, _ = self._joint(pattern, noise, centre)
        return [self._column_scores(j, joint) for j in range(self.n_rxn)]

    def _joint(self, pattern: Array, noise: Array, centre: Array) -> tuple[_Joint, Array]:
        """Normal equations weighted by the residuals, and these."""
        size, _ = self.coefficients(pattern)
        shape = self.pattern_shape[np.arange(self.n_rxn), pattern]
        _, residual = self.rate_constants(size.astype(float), shape, noise, centre)
        floor = np.median(residual[self.live] / self.rms[self.live] ** 2) + LOWEST
        weight = np.where(self.live, 1 / np.maximum(residual, floor * self.rms**2), 0.0)
        return self._normal(pattern, weight, centre), residual

    def _normal(self, pattern: Array, weight: Array, centre: Array) -> _Joint:
        size, _ = self.coefficients(pattern)
        s = np.zeros((self.n_met, self.n_rxn))
        np.add.at(s, (self.met, self.rxn), self.sign * size)
        flat = self.offset + self.pattern_shape[np.arange(self.n_rxn), pattern]
        h = ((s * weight[:, None]).T @ s) * self.inner(flat, flat)
        h[np.diag_indices_from(h)] += 1 / centre**2
        scale = 1 / np.sqrt(np.diag(h))
        h = h * np.outer(scale, scale)
        h[np.diag_indices_from(h)] += 1e-12
        inverse = np.linalg.inv(h) * np.outer(scale, scale)
        b = ((s * weight[:, None]).T * self.flat_y[flat]).sum(1) + 1 / centre
        return _Joint(s, flat, weight, inverse, b)

    def _column_scores(self, j: int, joint: _Joint) -> Array:
        """Gain in log evidence of every pattern of a column over leaving the reaction out."""
        s, flat, w, inverse = joint.s, joint.flat, joint.weight, joint.inverse
        edges = self.column_edge[j][self.column_used[j]]
        rows = self.met[edges]
        used = self.pattern_used[j]
        x = self.pattern[j, used][:, : len(edges)] * self.sign[edges]
        code = self.offset[j] + self.pattern_shape[j, used]
        # the normal matrix without column j
        u = inverse[:, j]
        rest = inverse - np.outer(u, u) / u[j]
        left = joint.b.copy()
        left[j] = 0
        weighted = x * w[rows]
        cross = (weighted @ s[rows]) * self.inner(code, flat)
        cross[:, j] = 0
        carried = cross @ rest
        own = (weighted * x).sum(1) * self.square(code)
        a = own - (carried * cross).sum(1)
        r = (weighted * self.flat_y[np.ix_(code, rows)]).sum(1) - carried @ left
        # a column that the others can replace earns nothing
        fresh = (r > 0) & (a > 1e-9 * own)
        return np.where(fresh, 0.5 * r * r / np.where(fresh, a, 1.0), 0.0)

    # --- decisions ----------------------------------------------------------------------------

    def coefficients(self, pattern: Array) -> tuple[Array, list[tuple[int, ...]]]:
        """|S| on every edge, and the coefficients inside each rate, of chosen patterns."""
        size = self.pattern[self.rxn, pattern[self.rxn], self.column_slot]
        code = self.pattern_shape[np.arange(self.n_rxn), pattern]
        inside = [self.poly.shapes[int(n)][c] for n, c in zip(self.n_sub, code, strict=True)]
        return size.astype(np.int64), inside

    def guess_rate_constants(self, belief: Belief) -> Array:
        """Mean of $u / |S|$ over the edges of each reaction, ``(n_rxn,)``."""
        size, _ = self.coefficients(belief.pattern)
        total = np.bincount(self.rxn, belief.mean / size, self.n_rxn)
        return total / np.bincount(self.rxn, minlength=self.n_rxn)

    def rate_constants(
        self, size: Array, shape: Array, noise: Array, centre: Array | None = None
    ) -> tuple[Array, Array]:
        """Least-squares k for fixed integers, and the row residuals (mean squares)."""
        pull = np.zeros(self.n_rxn) if centre is None else 1 / centre**2
        s = np.zeros((self.n_met, self.n_rxn))
        s[self.met, self.rxn] = self.sign * size
        flat = self.offset + shape
        gram = self.inner(flat, flat)
        h = (s.T @ (s / noise[:, None])) * gram
        h[np.diag_indices_from(h)] += pull
        b = ((s / noise[:, None]).T * self.flat_y[flat]).sum(1)
        if centre is not None:
            b = b + pull * centre
        scale = np.sqrt(np.maximum(np.diag(h), 1e-300))
        h = h / np.outer(scale, scale)
        h[np.diag_indices_from(h)] += 1e-13
        k = np.linalg.solve(h, b / scale) / scale
        fit = s @ (k[:, None] * self.rate[np.arange(self.n_rxn), shape])
        return k, ((self.y - fit) ** 2).mean(1)
