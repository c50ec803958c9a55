r"""Decoding of columns whose support or roles are open.

The message passing of :mod:`neuralgraph.systems.metabolism.recovery_messages` enumerates the
integers of a column whose signs are known. Here a column is any list of candidates: signed integers
(0 included) on the metabolites that may take part, and for each the rate function, that is which
metabolites drive the reaction and with which coefficients. Everything else is inherited: rows,
Gauss-Newton steps on the law, networks, and the search that changes columns where a joint refit
lowers the objective. A change of a role or of the support is a change of the column like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuralgraph.systems.metabolism.recovery import Decoded
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw, collocation
from neuralgraph.systems.metabolism.recovery_messages import (
    LEAST_VARIANCE,
    LOWEST,
    Belief,
    StoichiometryDecoder,
)
from neuralgraph.systems.metabolism.recovery_sharpen import settle

Array = np.ndarray


@dataclass(frozen=True)
class Column:
    """What one reaction may look like.

    Attributes:
        met: Metabolites that may change, ``(n_edge,)``.
        table: Candidates, signed coefficients, ``(n_pattern, n_edge)``.
        rate: Different rate functions: pairs (substrates, their coefficients).
        code: Rate function of each candidate, ``(n_pattern,)``.
        log_prior: Log probability of each candidate before the data, up to a constant.
        guess: Expected coefficients at the start, ``(n_edge,)``.
    """

    met: Array
    table: Array
    rate: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    code: Array
    log_prior: Array
    guess: Array


@dataclass(frozen=True)
class ColumnProblem(RecoveryProblem):
    """A recovery problem whose reactions have candidates; its own edges are a first guess."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, problem: RecoveryProblem, columns: Sequence[Column]) -> ColumnProblem:
        """The same data with other candidates."""
        return cls(**vars(problem), columns=tuple(columns))

    @property
    def max_substrates(self) -> int:
        """Largest number of substrates of a candidate."""
        return max(len(subs) for column in self.columns for subs, _ in column.rate)

    def decoder(
        self, poly: PolynomialLaw, frames: Array, tie_substrates: bool
    ) -> StoichiometryDecoder:
        """Decoder on some of the frames; candidates say themselves what is tied."""
        z = (self.concentration[frames] - self.center) / self.half_width
        return ColumnDecoder(
            np.ascontiguousarray(z.T),
            np.ascontiguousarray(self.dx_dt[frames].T),
            self.columns,
            poly,
            self.max_coefficient,
        )


class ColumnDecoder(StoichiometryDecoder):
    """Message passing over columns given as lists of candidates.

    Args:
        z: Scaled concentrations, ``(n_met, n_frame)``.
        dx_dt: ``(n_met, n_frame)``, mM min⁻¹.
        columns: One entry for each reaction.
        poly: Polynomial law.
        max_coefficient: Largest coefficient.
    """

    def __init__(
        self,
        z: Array,
        dx_dt: Array,
        columns: Sequence[Column],
        poly: PolynomialLaw,
        max_coefficient: int,
    ) -> None:
        self.n_met, self.n_frame = dx_dt.shape
        self.z, self.y, self.poly, self.max_coefficient = z, dx_dt, poly, max_coefficient
        self.columns, self.n_rxn = tuple(columns), len(columns)
        size = np.array([len(c.met) for c in columns])
        self.n_edge = int(size.sum())
        self.met = np.concatenate([c.met for c in columns]).astype(int)
        self.rxn = np.repeat(np.arange(self.n_rxn), size)
        self.sign = np.ones(self.n_edge)
        self.guess = np.concatenate([c.guess for c in columns])
        count = np.array([len(c.rate) for c in columns])
        self.n_shape = int(count.max())
        self.offset = np.concatenate([[0], np.cumsum(count)[:-1]])
        self.n_candidate = int(count.sum())
        self.valid = np.arange(self.n_shape) < count[:, None]
        self._candidate_tables()
        self._row_tables()
        self._pattern_tables(size)
        self.yy = (self.y**2).sum(1)
        used = np.sqrt(self.yy / self.n_frame)
        self.rms = np.maximum(used, 1e-12 * max(used.max(), 1e-300))
        self.live = used > 1e-9 * used.max()

    def _candidate_tables(self) -> None:
        """All candidate rate functions, those with equal coefficients together."""
        groups: dict[tuple[int, ...], list[tuple[int, int, tuple[int, ...]]]] = {}
        for j, column in enumerate(self.columns):
            for code, (subs, sizes) in enumerate(column.rate):
                groups.setdefault(sizes, []).append((j, code, subs))
        self._groups = {
            sizes: (
                np.array([g[0] for g in group]),
                np.array([g[1] for g in group]),
                np.array([g[2] for g in group]),
            )
            for sizes, group in sorted(groups.items(), key=lambda item: (len(item[0]), item[0]))
        }

    def _pattern_tables(self, size: Array) -> None:
        n_slot = int(size.max())
        n_pattern = np.array([len(c.table) for c in self.columns])
        most = int(n_pattern.max())
        first = np.concatenate([[0], np.cumsum(size)[:-1]])
        self.column_slot = np.arange(self.n_edge) - first[self.rxn]
        slot = np.arange(n_slot)
        self.column_used = slot < size[:, None]
        self.column_edge = np.where(self.column_used, first[:, None] + slot, 0)
        self.pattern = np.zeros((self.n_rxn, most, n_slot))
        self.pattern_used = np.arange(most) < n_pattern[:, None]
        self.pattern_shape = np.zeros((self.n_rxn, most), dtype=int)
        self.log_prior = np.full((self.n_rxn, most), -np.inf)
        for j, c in enumerate(self.columns):
            self.pattern[j, : len(c.table), : len(c.met)] = c.table
            self.pattern_shape[j, : len(c.table)] = c.code
            self.log_prior[j, : len(c.table)] = c.log_prior
        # reactions with tables of similar length are worked on together
        kind = np.ceil(np.log2(np.maximum(n_pattern, 2)))
        self._bucket = [np.flatnonzero(kind == value) for value in np.unique(kind)]

    # --- rate functions -----------------------------------------------------------------------

    def rate_groups(
        self, shape: Array | None
    ) -> Iterator[tuple[Array, Array, Array, tuple[int, ...]]]:
        """As in the parent, over the candidates of every reaction."""
        for sizes, (rxn, code, substrates) in self._groups.items():
            pick = np.arange(len(rxn)) if shape is None else np.flatnonzero(shape[rxn] == code)
            if len(pick):
                yield rxn[pick], code[pick], substrates[pick], sizes

    def polynomial_rates(self, theta: Array) -> Array:
        """Rate functions of every candidate, ``(n_rxn, n_shape, n_frame)``."""
        rate = np.zeros((self.n_rxn, self.n_shape, self.n_frame))
        for n, (substrates, place) in self._substrate_sets().items():
            index, shapes = self.poly.index[n], self.poly.shapes[n]
            for first in range(0, len(substrates), 64):
                some = slice(first, first + 64)
                value = theta[index] @ self.poly.products(self.z, substrates[some])
                for q, uses in enumerate(place[some]):
                    for rxn, code, sizes in uses:
                        rate[rxn, code] = value[q, shapes.index(sizes)]
        return rate

    def _substrate_sets(self):
        if not hasattr(self, "_sets"):
            found: dict[int, dict[tuple[int, ...], list]] = {}
            for sizes, (rxn, code, substrates) in self._groups.items():
                for j, c, subs in zip(rxn, code, substrates.tolist(), strict=True):
                    uses = found.setdefault(len(sizes), {}).setdefault(tuple(subs), [])
                    uses.append((j, c, sizes))
            self._sets = {
                n: (np.array(list(sets)), list(sets.values())) for n, sets in found.items()
            }
        return self._sets

    def set_rates(self, rate: Array) -> None:
        """Keep ``(n_rxn, n_shape, n_frame)`` rate functions; products are formed where needed."""
        self.rate = rate
        self.flat = rate[self.valid]
        self.flat_y = self.flat @ self.y.T
        self.norm = (self.flat**2).sum(1)

    def inner(self, a: Array, b: Array) -> Array:
        """Products over frames of candidate rate functions, ``(len(a), len(b))``."""
        once, back = np.unique(a, return_inverse=True)
        return (self.flat[once] @ self.flat[b].T)[back]

    def square(self, a: Array) -> Array:
        """Squared norms of candidate rate functions."""
        return self.norm[a]

    def basis(self, shape: Array) -> list[tuple[slice, Array]]:
        """Derivative of each rate function by ``theta``: its block, ``(n_block, n_frame)``."""
        out: list[tuple[slice, Array]] = [(slice(0, 0), np.empty(0))] * self.n_rxn
        for rxn, _, substrates, sizes in self.rate_groups(shape):
            n = len(sizes)
            index = self.poly.index[n][self.poly.shapes[n].index(sizes)]
            block = slice(int(index.min()), int(index.max()) + 1)
            fold = np.zeros((block.stop - block.start, len(index)))
            fold[index - block.start, np.arange(len(index))] = 1
            for j, value in zip(rxn, fold @ self.poly.products(self.z, substrates), strict=True):
                out[j] = (block, value)
        return out

    # --- messages -----------------------------------------------------------------------------

    def start(self, mean: float, sd: float) -> Belief:
        """A belief without information but the guess of each column."""
        belief = super().start(mean, sd)
        belief.mean = mean * self.guess
        return belief

    def _load(self, shape: Array) -> None:
        current = self.offset + shape
        cross = self.flat @ self.flat[current].T
        self._load_rows(cross[current], self.flat_y[current], self.row_rxn)
        candidate = np.where(
            self.valid[self.rxn], self.offset[self.rxn][:, None] + np.arange(self.n_shape), 0
        )
        i = self.met
        self._er = cross[candidate[:, :, None], self.row_rxn[i][:, None, :]]
        self._er = self._er * self.row_sign[i][:, None, :]
        self._ee = self.norm[candidate]
        self._ey = self.flat_y[candidate, i[:, None]]

    def _columns(self, a: Array, b: Array, k_range: tuple[float, float]):
        n_pattern = self.pattern.shape[1]
        k_all = np.ones((self.n_rxn, n_pattern))
        score_all = np.full((self.n_rxn, n_pattern), -np.inf)
        edge_mean, edge_var = np.empty(self.n_edge), np.empty(self.n_edge)
        for members in self._bucket:
            most = int(self.pattern_used[members].sum(1).max())
            edge = self.column_edge[members][:, None, :]
            used = self.column_used[members]
            shape = self.pattern_shape[members, :most, None]
            pattern = self.pattern[members, :most]
            there = self.pattern_used[members, :most]
            prior = self.log_prior[members, :most]
            ax = np.where(used[:, None], a[edge, shape], 0.0) * pattern**2
            bx = np.where(used[:, None], b[edge, shape], 0.0) * pattern
            total_a, total_b = ax.sum(2), bx.sum(2)
            k, score, _ = self._rate_constant(total_a, total_b, k_range)
            score = np.where(there, score + prior, -np.inf)
            k_rest, rest, k_var = self._rate_constant(
                total_a[:, :, None] - ax, total_b[:, :, None] - bx, k_range
            )
            rest = np.where(there[:, :, None], rest + prior[:, :, None], -np.inf)
            weight = np.exp(rest - rest.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
            u = pattern * k_rest
            mean = (weight * u).sum(1)
            var = (weight * (pattern**2 * k_var + (u - mean[:, None, :]) ** 2)).sum(1)
            # an edge that is surely absent may still come back
            var = np.maximum(var, LEAST_VARIANCE * (weight * k_rest).sum(1) ** 2)
            edge_mean[self.column_edge[members][used]] = mean[used]
            edge_var[self.column_edge[members][used]] = var[used]
            k_all[members, :most], score_all[members, :most] = k, score
        # nothing but its own row speaks about the amount of a reaction with one edge
        alone = self.column_edge[self.column_used.sum(1) == 1, 0]
        edge_mean[alone] = np.sign(self.guess[alone]) * 0.3 * np.sqrt(k_range[1])
        edge_var[alone] = (0.5 * k_range[1]) ** 2
        return k_all, score_all, edge_mean, edge_var

    # --- decisions ----------------------------------------------------------------------------

    def coefficients(self, pattern: Array) -> tuple[Array, list[tuple[int, ...]]]:
        """Signed S on every edge, and the coefficients inside each rate, of chosen candidates."""
        size = self.pattern[self.rxn, pattern[self.rxn], self.column_slot]
        code = self.pattern_shape[np.arange(self.n_rxn), pattern]
        inside = [c.rate[int(q)][1] for c, q in zip(self.columns, code, strict=True)]
        return size.astype(np.int64), inside

    def substrates_of(self, pattern: Array) -> list[tuple[int, ...]]:
        """Metabolites that drive each reaction, of chosen candidates."""
        code = self.pattern_shape[np.arange(self.n_rxn), pattern]
        return [c.rate[int(q)][0] for c, q in zip(self.columns, code, strict=True)]

    def guess_rate_constants(self, belief: Belief) -> Array:
        """Mean of $u / S$ over the non-zero edges of each reaction, ``(n_rxn,)``."""
        size, _ = self.coefficients(belief.pattern)
        on = size != 0
        total = np.bincount(self.rxn[on], belief.mean[on] / size[on], self.n_rxn)
        return total / np.maximum(np.bincount(self.rxn[on], minlength=self.n_rxn), 1)


# --- answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReactionAnswer:
    """What is believed about one reaction.

    Attributes:
        met: Metabolites, ``(n_edge,)``.
        value: Signed coefficients, ``(n_edge,)``, 0 where a candidate takes no part.
        substrates: Metabolites that drive it.
        sizes: Their coefficients in the rate law.
    """

    met: Array
    value: Array
    substrates: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class RecoveredNetwork:
    """A network recovered without its roles or its support.

    Attributes:
        met_sub, rxn_sub, sto_sub: Substrate edges and their coefficients in the rate law.
        met_all, rxn_all, sto_all: Edges with a net change, and their signed coefficients.
        log_k: log10 of the rate constants, ``(n_rxn,)``.
        confidence: Log evidence between each ``all`` edge and the best column that differs there.
        relative_residual: rms residual over rms derivative on all frames, ``(n_met,)``.
        objective: Mean log squared relative residual on the frames used; lower is better.
    """

    met_sub: Array
    rxn_sub: Array
    sto_sub: Array
    met_all: Array
    rxn_all: Array
    sto_all: Array
    log_k: Array
    confidence: Array
    relative_residual: Array
    objective: float

    def matrix(self, n_met: int) -> Array:
        """S, ``(n_met, n_rxn)``."""
        s = np.zeros((n_met, len(self.log_k)))
        s[self.met_all, self.rxn_all] = self.sto_all
        return s


def answers_of(problem: RecoveryProblem, found: Decoded) -> list[ReactionAnswer]:
    """The columns that a decoding ended with."""
    decoder = found.decoder
    value, inside = decoder.coefficients(found.pattern)
    value = (value * decoder.sign).astype(np.int64)
    if isinstance(decoder, ColumnDecoder):
        substrates = decoder.substrates_of(found.pattern)
    else:
        substrates = [tuple(problem.met_sub[e].tolist()) for e in decoder.sub_edges]
    answers = []
    for j, (subs, sizes) in enumerate(zip(substrates, inside, strict=True)):
        edges = np.flatnonzero(decoder.rxn == j)
        order = sorted(zip(subs, sizes, strict=True))
        subs, sizes = tuple(int(m) for m, _ in order), tuple(int(s) for _, s in order)
        answers.append(ReactionAnswer(decoder.met[edges], value[edges], subs, sizes))
    return answers


def relative_residual(problem: RecoveryProblem, found: Decoded) -> Array:
    """Residual over derivative, root mean squares over all frames, ``(n_met,)``."""
    decoder = found.decoder
    shape = decoder.pattern_shape[np.arange(problem.n_rxn), found.pattern]
    value, _ = decoder.coefficients(found.pattern)
    s = np.zeros((problem.n_met, problem.n_rxn))
    s[decoder.met, decoder.rxn] = value * decoder.sign
    rate = found.k[:, None] * found.law(problem.concentration.T, shape)
    left = problem.dx_dt - (s @ rate).T
    rms = np.sqrt((problem.dx_dt**2).mean(0))
    return np.sqrt((left**2).mean(0)) / np.where(rms > 0, rms, 1.0)


def network_of(problem: RecoveryProblem, found: Decoded) -> RecoveredNetwork:
    """The answer of a decoding as a network."""
    decoder = found.decoder
    value, _ = decoder.coefficients(found.pattern)
    value = (value * decoder.sign).astype(np.int64)
    on = value != 0
    answers = answers_of(problem, found)
    count = [len(a.substrates) for a in answers]
    return RecoveredNetwork(
        met_sub=np.array([m for a in answers for m in a.substrates], dtype=np.int64),
        rxn_sub=np.repeat(np.arange(problem.n_rxn), count),
        sto_sub=np.array([s for a in answers for s in a.sizes], dtype=np.int64),
        met_all=decoder.met[on],
        rxn_all=decoder.rxn[on],
        sto_all=value[on],
        log_k=np.log10(found.k),
        confidence=decoder.confidence(found.pattern, found.noise, found.k)[on],
        relative_residual=relative_residual(problem, found),
        objective=found.objective,
    )


def go_on(
    problem: RecoveryProblem,
    columns: Sequence[Column],
    found: Decoded,
    *,
    rng: np.random.Generator,
    sharp_degree: Sequence[int],
    max_frames: int,
    n_round: int,
    log: Callable[[str], None],
) -> Decoded:
    """Search again from an answer, with other candidates.

    Args:
        problem: Data.
        columns: Candidates; the first of each reaction is its present answer.
        found: The present answer, with networks as its law; these are moved.
        rng: Source of the sampling points.
        sharp_degree: See :func:`~neuralgraph.systems.metabolism.recovery.recover_stoichiometry`.
        max_frames: Frames used.
        n_round: Rounds at most.
        log: Called with one line of text per round.
    """
    assert found.net is not None
    wide = ColumnProblem.of(problem, columns)
    poly = PolynomialLaw(wide.max_substrates, wide.max_coefficient, sharp_degree)
    net = found.net.on(collocation(poly, wide.center, wide.half_width, rng))
    frames = wide.frames(max_frames)
    decoder = wide.decoder(poly, frames, tie_substrates=True)
    c = wide.concentration[frames].T
    first = np.zeros(wide.n_rxn, dtype=int)
    belief = decoder.start(0.0, 1.0)
    value, _ = decoder.coefficients(first)
    belief.mean = value * found.k[decoder.rxn]
    decoder.set_rates(net.rates(c, decoder))
    end = settle(decoder, c, net, belief, found.k_range, n_round, log)
    decoder.set_rates(net.rates(c, decoder))
    return Decoded(
        lambda c, shape: net.rates(c, decoder, shape),
        decoder,
        end.pattern,
        np.clip(end.k, *found.k_range),
        np.maximum(end.residual, LOWEST * decoder.rms**2),
        end.objective,
        found.k_range,
        net,
    )


def screened(
    problem: RecoveryProblem,
    columns: Sequence[Column],
    found: Decoded,
    *,
    sharp_degree: Sequence[int],
    max_frames: int,
    keep: int,
    within: float,
) -> list[list[tuple[int, ...]]]:
    """Substrates that come close to, or improve on, the present ones when all k are solved again.

    Args:
        problem: Data.
        columns: Every candidate; the first of each reaction is its present answer.
        found: The present answer, with networks as its law.
        sharp_degree: As in :func:`go_on`.
        max_frames: As there.
        keep: Alternatives of a reaction kept at most.
        within: Log evidence below the present answer up to which one is kept.

    Returns:
        For each reaction the alternatives to its present substrates, best first.
    """
    assert found.net is not None
    wide = ColumnProblem.of(problem, columns)
    frames = wide.frames(max_frames)
    poly = PolynomialLaw(wide.max_substrates, wide.max_coefficient, sharp_degree)
    decoder = wide.decoder(poly, frames, tie_substrates=True)
    assert isinstance(decoder, ColumnDecoder)
    decoder.set_rates(found.net.rates(wide.concentration[frames].T, decoder))
    pattern = np.zeros(wide.n_rxn, dtype=int)
    score = decoder.column_scores(pattern, found.noise, found.k)
    out = []
    for j, column in enumerate(columns):
        best: dict[tuple[int, ...], float] = {}
        for code, value in zip(column.code, score[j], strict=True):
            subs = column.rate[int(code)][0]
            best[subs] = max(best.get(subs, -np.inf), float(value))
        present = best.pop(column.rate[0][0])
        close = [s for s in best if best[s] > present - within]
        out.append(sorted(close, key=lambda s: -best[s])[:keep])
    return out


def column_of(
    answer: ReactionAnswer,
    alternatives: Sequence[tuple[tuple[int, ...], Array, Array]],
    max_coefficient: int,
    max_products: int | None = None,
) -> Column:
    """Candidates of one reaction, its present answer first.

    Args:
        answer: The present answer.
        alternatives: ``(substrates, products, optional)``: every integer on the substrates (tied to
            the rate law) and on the products; an optional product may be absent.
        max_coefficient: Largest integer.
        max_products: Largest number of products of a candidate; ``None`` for any.
    """
    met = np.unique(np.concatenate([answer.met, *[np.r_[s, p] for s, p, _ in alternatives]]))
    met = met.astype(int)
    place = {int(m): q for q, m in enumerate(met)}
    values, most = range(1, max_coefficient + 1), max_products or len(met)
    rate: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    rows: dict[tuple[int, ...], int] = {}
    value = np.zeros(len(met), dtype=int)
    value[[place[int(m)] for m in answer.met]] = answer.value
    rows[(*value.tolist(), rate.setdefault((answer.substrates, answer.sizes), 0))] = 0
    for substrates, products, optional in alternatives:
        choice = [(0, *values) if free else tuple(values) for free in optional]
        for sizes in itertools.product(values, repeat=len(substrates)):
            key = (tuple(int(m) for m in substrates), tuple(int(s) for s in sizes))
            code = rate.setdefault(key, len(rate))
            for made in _with_at_most(most, choice):
                value = np.zeros(len(met), dtype=int)
                value[[place[int(m)] for m in substrates]] = [-s for s in sizes]
                value[[place[int(m)] for m in products]] = made
                rows.setdefault((*value.tolist(), code), len(rows))
    table = np.array(list(rows))
    n_product = (table[:, :-1] > 0).sum(1)
    keep = (n_product > 0) & (n_product <= most)
    keep[0] = True
    if not n_product.any():  # nothing known to be produced yet
        keep[:] = True
    table = table[keep]
    return Column(
        met=met,
        table=table[:, :-1],
        rate=tuple(rate),
        code=table[:, -1],
        log_prior=np.zeros(len(table)),
        guess=table[0, :-1].astype(float),
    )


def _with_at_most(most: int, choice: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """The product of the choices, in its order, without entries that have more non-zeros."""
    if not choice:
        yield ()
        return
    for value in choice[0]:
        left = most - (value != 0)
        if left >= 0:
            for rest in _with_at_most(left, choice[1:]):
                yield (value, *rest)
