r"""Reactions with equal substrates: one for the rows of the data, several for the columns of S.

Their rates are proportional (equal coefficients inside the rate) or nearly so. While the rate law
is not known sharply, only the sum of their actions on each metabolite can be seen. So

- :func:`merged_columns` puts in their place one *free* reaction for every metabolite they act on,
  whose amount is tied to nothing: their neighbours are then decoded undisturbed;
- :func:`split` tells them apart at the end. For each pair of columns of integers, all other rate
  constants are solved again; the pair that explains most is taken. With equal coefficients inside
  the rate only the integers speak: $S_{i1} k_1 + S_{i2} k_2$ has to fit on every metabolite. Which
  of two such reactions is which, nothing in the data says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from neuralgraph.systems.metabolism.recovery import Decoded
from neuralgraph.systems.metabolism.recovery_columns import (
    Column,
    ColumnDecoder,
    ReactionAnswer,
    column_of,
)

Array = np.ndarray
CHUNK = 256
MOST_STARTS = 3
"""Beginnings at most from which a group of more than two is told apart."""
MOST_SWEEPS = 3
"""Sweeps over the pairs of such a group at most; they end when nothing more is explained."""
MOST_SPLIT = 9
"""Products of a group at most that are tried in all ways; groups that have more come out wrong."""
MOST_CANDIDATES = 8000
"""Columns of a reaction at most, whose pairs are tried; reached with coefficients above 2 only."""


@dataclass(frozen=True)
class Groups:
    """Reactions with equal substrates together.

    Attributes:
        member: Reactions of each group, ascending.
        substrates: Metabolites that drive the reactions of a group, ascending.
    """

    member: tuple[tuple[int, ...], ...]
    substrates: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, substrates: Sequence[Array]) -> Groups:
        """Group reactions by their substrates."""
        found: dict[tuple[int, ...], list[int]] = {}
        for j, subs in enumerate(substrates):
            found.setdefault(tuple(int(m) for m in sorted(subs)), []).append(j)
        return cls(tuple(tuple(m) for m in found.values()), tuple(found))

    @property
    def is_single(self) -> Array:
        """Whether a group is one reaction, ``(n_group,)``."""
        return np.array([len(m) == 1 for m in self.member])

    def is_sub(self, n_met: int) -> Array:
        """Which metabolites drive a group, ``(n_met, n_group)``."""
        out = np.zeros((n_met, len(self.member)), dtype=bool)
        for g, subs in enumerate(self.substrates):
            out[list(subs), g] = True
        return out


def merged_columns(
    groups: Groups, amount: Array, max_coefficient: int
) -> tuple[list[Column], list[tuple[int, ...]]]:
    """Columns with a free reaction for every metabolite that a group of several acts on.

    Args:
        groups: Reactions with equal substrates.
        amount: Products of each group where positive, ``(n_met, n_group)``.
        max_coefficient: Largest integer.

    Returns:
        Columns, and for each group the places of its columns: one for a single reaction, else one
        for each substrate and product.
    """
    columns: list[Column] = []
    place: list[tuple[int, ...]] = []
    for g, (member, subs) in enumerate(zip(groups.member, groups.substrates, strict=True)):
        made = np.flatnonzero(amount[:, g] > 0)
        made = made[~np.isin(made, subs)]
        first = len(columns)
        if len(member) == 1:
            columns.append(plain_column(subs, made, max_coefficient))
        else:
            values = range(1, max_coefficient + 1)
            rate = tuple((subs, s) for s in itertools.product(values, repeat=len(subs)))
            for i in (*subs, *made.tolist()):
                sign = -1.0 if i in subs else 1.0
                columns.append(
                    Column(
                        met=np.array([i]),
                        table=np.full((len(rate), 1), int(sign)),
                        rate=rate,
                        code=np.arange(len(rate)),
                        log_prior=np.zeros(len(rate)),
                        guess=np.array([sign]),
                    )
                )
        place.append(tuple(range(first, len(columns))))
    return columns, place


def plain_column(subs: tuple[int, ...], made: Array, max_coefficient: int) -> Column:
    """A reaction with these substrates and products, coefficients unknown."""
    met = np.r_[np.array(subs, dtype=int), made]
    value = np.r_[-np.ones(len(subs), dtype=int), np.ones(len(made), dtype=int)]
    answer = ReactionAnswer(met, value, subs, (1,) * len(subs))
    sure = np.zeros(len(made), dtype=bool)
    column = column_of(answer, [(subs, made, sure)], max_coefficient)
    return replace(column, guess=np.where(np.isin(column.met, subs), -1.0, 1.0))


def split(
    decoder: ColumnDecoder,
    found: Decoded,
    groups: Groups,
    place: Sequence[tuple[int, ...]],
    max_coefficient: int,
    max_products: int,
) -> dict[int, tuple[ReactionAnswer, float]]:
    """Columns and rate constants of the reactions that were merged.

    Args:
        decoder: Of the merged columns, with the rate functions of the law.
        found: What its decoding ended with.
        groups: Reactions with equal substrates.
        place: Columns of each group, as from :func:`merged_columns`.
        max_coefficient: Largest integer.
        max_products: Largest number of products.

    Returns:
        Answer and rate constant of every reaction in a group of several.
    """
    relative = found.noise / decoder.rms**2
    weight = 1 / (np.maximum(relative, np.median(relative)) * decoder.rms**2)
    weight = np.where(decoder.live, weight, 0.0)
    size, _ = decoder.coefficients(found.pattern)
    s = np.zeros((decoder.n_met, decoder.n_rxn))
    np.add.at(s, (decoder.met, decoder.rxn), size.astype(float))
    rate = decoder.rate[
        np.arange(decoder.n_rxn), decoder.pattern_shape[np.arange(decoder.n_rxn), found.pattern]
    ]
    out: dict[int, tuple[ReactionAnswer, float]] = {}
    for g, member in enumerate(groups.member):
        if len(member) == 1:
            continue
        own = list(place[g])
        rest = np.setdiff1d(np.arange(decoder.n_rxn), own)
        data = _Rest(decoder.y, s[:, rest], rate[rest], weight, found.k[rest], found.k_range)
        subs = groups.substrates[g]
        met = np.array([int(decoder.columns[q].met[0]) for q in own])
        amount = found.k[own]
        codes = decoder.rate[own[0], decoder.valid[own[0]]]
        out |= _split_group(
            data, member, subs, met, amount, codes, decoder.columns[own[0]], max_coefficient,
            max_products,
        )  # fmt: skip
    return out


@dataclass(frozen=True)
class _Rest:
    """Data, and the reactions outside a group."""

    y: Array
    s: Array
    rate: Array
    weight: Array
    k: Array
    k_range: tuple[float, float]

    def add(self, x: Array, rate: Array, k: float) -> _Rest:
        """With one more reaction."""
        return replace(
            self,
            s=np.column_stack([self.s, x]),
            rate=np.vstack([self.rate, rate]),
            k=np.r_[self.k, k],
        )

    def best_pair(
        self, x: Array, code: Array, codes: Array
    ) -> tuple[float, int, int, float, float]:
        """Two columns, and their rate constants, that explain most with all k solved again.

        What is explained comes first, comparable between different reactions outside the pair.

        Args:
            x: Candidates, signed coefficients, ``(n_candidate, n_met)``.
            code: Rate function of each.
            codes: Rate functions, ``(n_code, n_frame)``.
        """
        w, rows = self.weight, np.flatnonzero(np.abs(x).any(0))
        h = ((self.s * w[:, None]).T @ self.s) * (self.rate @ self.rate.T)
        h[np.diag_indices_from(h)] += 1 / self.k**2
        unit = 1 / np.sqrt(np.diag(h))
        h *= np.outer(unit, unit)
        h[np.diag_indices_from(h)] += 1e-12
        inverse = np.linalg.inv(h) * np.outer(unit, unit)
        b = ((self.s * w[:, None]).T @ self.y * self.rate).sum(1) + 1 / self.k
        gram = codes @ codes.T
        scaled = x[:, rows] * w[rows]
        cross = (scaled @ self.s[rows]) * (codes @ self.rate.T)[code]
        carried = cross @ inverse
        right = (scaled * (codes @ self.y[rows].T)[code]).sum(1) - carried @ b
        own = (scaled * x[:, rows]).sum(1) * gram[code, code] - (carried * cross).sum(1)
        own = np.maximum(own, 1e-300)
        best = (-1.0, 0, 0, 1.0, 1.0)
        low, high = self.k_range
        for start in range(0, len(x), CHUNK):
            a = slice(start, start + CHUNK)
            both = (scaled[a] @ x[:, rows].T) * gram[np.ix_(code[a], code)]
            both -= carried[a] @ cross.T
            det = own[a][:, None] * own - both**2
            may = det > 1e-9 * own[a][:, None] * own
            det = np.where(may, det, 1.0)
            k1 = (right[a][:, None] * own - right * both) / det
            k2 = (right * own[a][:, None] - right[a][:, None] * both) / det
            may &= (k1 > low) & (k2 > low) & (k1 < high) & (k2 < high)
            gain = np.where(may, right[a][:, None] * k1 + right * k2, -1.0)
            at = np.unravel_index(int(gain.argmax()), gain.shape)
            if gain[at] > best[0]:
                best = (float(gain[at]), start + int(at[0]), int(at[1]), k1[at], k2[at])
        return best[0] + float(b @ inverse @ b), best[1], best[2], float(best[3]), float(best[4])


def _n_column(n_rate: int, n_product: int, max_coefficient: int, max_products: int) -> int:
    """Columns with any coefficients on some of ``n_product`` metabolites."""
    sizes = range(min(n_product, max_products) + 1)
    return n_rate * sum(math.comb(n_product, n) * max_coefficient**n for n in sizes)


def _split_group(
    data: _Rest,
    member: tuple[int, ...],
    subs: tuple[int, ...],
    met: Array,
    amount: Array,
    codes: Array,
    column: Column,
    max_coefficient: int,
    max_products: int,
) -> dict[int, tuple[ReactionAnswer, float]]:
    made = met[len(subs) :]
    # the largest, where there are too many to try everything
    n_tried = MOST_SPLIT
    while _n_column(len(column.rate), n_tried, max_coefficient, max_products) > MOST_CANDIDATES:
        n_tried -= 1
    tried = made[np.argsort(-amount[len(subs) :], kind="stable")[:n_tried]]
    start = ReactionAnswer(np.array(subs), -np.ones(len(subs), dtype=int), subs, (1,) * len(subs))
    optional = np.ones(len(tried), dtype=bool)
    table = column_of(start, [(subs, tried, optional)], max_coefficient, max_products)
    number = {sizes: q for q, (_, sizes) in enumerate(column.rate)}
    code = np.array([number[table.rate[int(q)][1]] for q in table.code])
    x = np.zeros((len(table.table), data.y.shape[0]))
    x[:, table.met] = table.table
    best: tuple[float, dict[int, tuple[int, float]]] = (-np.inf, {})
    pairs = list(itertools.combinations(member, 2))
    # more than two: pair after pair, from several beginnings
    for first in range(min(len(pairs), MOST_STARTS)):
        chosen: dict[int, tuple[int, float]] = {}
        value, before = 0.0, -1.0
        for _ in range(MOST_SWEEPS):
            for one, two in pairs[first:] + pairs[:first]:
                rest = data
                for j in set(chosen) - {one, two}:
                    q, k = chosen[j]
                    rest = rest.add(x[q], codes[code[q]], k)
                value, a, b, k1, k2 = rest.best_pair(x, code, codes)
                chosen[one], chosen[two] = (a, k1), (b, k2)
            if len(pairs) == 1 or value <= before * (1 + 1e-12):
                break
            before = value
        if value > best[0]:
            best = (value, chosen)
    out = {}
    for j, (q, k) in best[1].items():
        on = np.flatnonzero(x[q])
        out[j] = (ReactionAnswer(on, x[q, on].astype(int), subs, column.rate[code[q]][1]), k)
    return out
