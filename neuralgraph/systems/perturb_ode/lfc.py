r"""Do the cells still move? Absolute log fold change between sequential days, and what it is worth.

:math:`\mathrm{LFC}_{k,g,t} = \log_2(\bar x_{k,g,t+1} + e) - \log_2(\bar x_{k,g,t} + e)` of mean
expression. Its absolute value is above 0 by sampling alone, so it stands beside its values under
shuffled days, at equal numbers of cells, and with the noise taken out; what all perturbations share
(drift of the culture, or each day's own library) is split from what a perturbation does alone.

Source:
    the statistic as in Kovačević et al. (2025), Fig. 5; the null, the corrections, the split and
    the verdict are our own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.seeding import torch_generator

VERDICTS = ("settled", "moving", "undecided")


@dataclass(frozen=True)
class CellGroups:
    """Cells of K conditions on T days.

    Args:
        expression: Normalised expression, not logarithmic, ``(n_cell, n_gene)``.
        condition: ``(n_cell,)`` in 0 … K - 1.
        day: ``(n_cell,)`` in 0 … T - 1.
        measured: 0 for the perturbed gene of a condition, else 1, ``(K, n_gene)``.
        pseudocount: e, units of the normalised expression.
    """

    expression: Tensor
    condition: Tensor
    day: Tensor
    measured: Tensor
    pseudocount: float

    @property
    def n_condition(self) -> int:
        """Conditions."""
        return self.measured.shape[0]

    @property
    def n_day(self) -> int:
        """Days."""
        return int(self.day.max()) + 1

    def groups(self) -> list[list[Tensor]]:
        """Row numbers by condition and day."""
        return [
            [
                ((self.condition == k) & (self.day == t)).nonzero()[:, 0]
                for t in range(int(self.day.max()) + 1)
            ]
            for k in range(self.measured.shape[0])
        ]

    def size(self) -> Tensor:
        """Number of cells, ``(K, T)``."""
        return torch.tensor([[len(rows) for rows in row] for row in self.groups()])

    def log(self, mean: Tensor) -> Tensor:
        """log2 of mean expression above the pseudocount."""
        return (mean + self.pseudocount).log2()


def fold_changes(cells: CellGroups) -> Tensor:
    """LFC of every condition, step and gene, ``(K, T - 1, n_gene)``."""
    mean = torch.stack(
        [torch.stack([cells.expression[rows].mean(0) for rows in row]) for row in cells.groups()]
    )
    return cells.log(mean).diff(dim=1)


def permuted(cells: CellGroups, n_draw: int, *, seed: int) -> Tensor:
    """LFC after shuffling the two days of each condition and step, ``(n_draw, K, T - 1, G)``."""
    generator = torch_generator(seed, "permutations of days")
    every = []
    for row in cells.groups():
        steps = []
        for early, late in itertools.pairwise(row):
            pool = cells.expression[torch.cat([early, late])]
            order = torch.rand(n_draw, len(pool), generator=generator).argsort(1)
            first = (order < len(early)).to(pool.dtype)
            before = first @ pool / len(early)
            after = (pool.sum(0) - first @ pool) / len(late)
            steps.append(cells.log(after) - cells.log(before))
        every.append(torch.stack(steps, 1))
    return torch.stack(every, 1)


def resampled(cells: CellGroups, n_draw: int, *, seed: int) -> Tensor:
    """LFC of cells drawn again with replacement in each group, ``(n_draw, K, T - 1, G)``."""

    def means(pool: Tensor, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (n_draw, len(pool)), generator=generator)
        weight = torch.zeros(n_draw, len(pool), dtype=pool.dtype)
        weight.scatter_add_(1, index, torch.ones_like(index, dtype=pool.dtype))
        return weight @ pool / len(pool)

    return _by_group(cells, means, seed, "bootstrap of cells")


def subsampled(cells: CellGroups, n_draw: int, n_cell: int, *, seed: int) -> Tensor:
    """LFC of ``n_cell`` cells of each group, without replacement, ``(n_draw, K, T - 1, G)``."""

    def means(pool: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.rand(n_draw, len(pool), generator=generator).argsort(1)
        return (order < n_cell).to(pool.dtype) @ pool / n_cell

    return _by_group(cells, means, seed, "subsamples of cells")


def subsampled_null(cells: CellGroups, n_draw: int, n_cell: int, *, seed: int) -> Tensor:
    """The same with shuffled days: both groups of ``n_cell`` come from the pooled days."""
    generator = torch_generator(seed, "subsamples under shuffled days")
    every = []
    for row in cells.groups():
        steps = []
        for early, late in itertools.pairwise(row):
            pool = cells.expression[torch.cat([early, late])]
            order = torch.rand(n_draw, len(pool), generator=generator).argsort(1)
            before = (order < n_cell).to(pool.dtype) @ pool / n_cell
            after = ((order >= n_cell) & (order < 2 * n_cell)).to(pool.dtype) @ pool / n_cell
            steps.append(cells.log(after) - cells.log(before))
        every.append(torch.stack(steps, 1))
    return torch.stack(every, 1)


def _by_group(
    cells: CellGroups, means: Callable[[Tensor, torch.Generator], Tensor], seed: int, name: str
) -> Tensor:
    generator = torch_generator(seed, name)
    every = []
    for row in cells.groups():
        found = torch.stack([means(cells.expression[rows], generator) for rows in row], 1)
        every.append(cells.log(found).diff(dim=1))
    return torch.stack(every, 1)


def split(change: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Common part and the rest of changes ``(…, K, T - 1, G)``; perturbed genes are left out.

    Returns:
        The mean over conditions ``(…, T - 1, G)``, and what remains ``(…, K, T - 1, G)``, 0 at
        perturbed genes.
    """
    weight = measured[:, None].to(change.dtype)
    common = (change * weight).sum(-3) / weight.sum(-3).clamp_min(1)
    return common, (change - common.unsqueeze(-3)) * weight


@dataclass(frozen=True)
class Movement:
    """What the cells do between days; S = T - 1 steps, K conditions. All in log2 units.

    Args:
        mean: Mean absolute change over conditions and genes, ``(S,)``.
        median: Its median.
        null_mean: The mean under shuffled days.
        null_median: The median under shuffled days.
        equal_n: Cells of each group in the comparison at equal numbers.
        equal_mean: Mean absolute change at equal numbers.
        equal_excess: √(observed² - shuffled²) of it.
        common: Root mean square of the common part, noise taken out.
        specific: The same of what a condition does alone.
        specific_p: Share of shuffles with as large a specific part.
        own: Specific part of each condition, noise taken out, ``(K, S)``.
        own_low: Lower end of its interval over resampled cells.
        own_high: Upper end.
        own_p: Share of shuffles with as large a specific part, ``(K, S)``.
    """

    mean: Tensor
    median: Tensor
    null_mean: Tensor
    null_median: Tensor
    equal_n: int
    equal_mean: Tensor
    equal_excess: Tensor
    common: Tensor
    specific: Tensor
    specific_p: Tensor
    own: Tensor
    own_low: Tensor
    own_high: Tensor
    own_p: Tensor

    def verdicts(self, margin: float) -> list[str]:
        """Of each condition at the last step.

        ``settled``: the whole interval lies below ``margin``; ``moving``: above 0 beyond doubt and
        not settled; ``undecided`` otherwise, as with few cells.
        """
        found = []
        for low, high in zip(self.own_low[:, -1], self.own_high[:, -1], strict=True):
            if float(high) < margin:
                found.append("settled")
            else:
                found.append("moving" if float(low) > 0 else "undecided")
        return found


def movement(
    cells: CellGroups, *, n_permutation: int, n_bootstrap: int, level: float, seed: int
) -> Movement:
    """Every number of :class:`Movement`.

    Args:
        cells: The cells.
        n_permutation: Shuffles of days.
        n_bootstrap: Draws of cells for intervals, and of equal numbers of cells.
        level: Of the intervals, such as 0.9 for an equivalence test at 5 %.
        seed: Of every draw.
    """
    measured = cells.measured.to(cells.expression.dtype)
    keep = measured[:, None].expand(-1, cells.n_day - 1, -1) > 0
    observed = fold_changes(cells)
    shuffled = permuted(cells, n_permutation, seed=seed)

    def spread(change: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([how(change[:, s][keep[:, s]].abs()) for s in range(change.shape[1])])

    null = [[spread(x, how) for x in shuffled] for how in (torch.mean, torch.median)]
    n_equal = int(cells.size().min())
    equal = torch.stack(
        [spread(x, torch.mean) for x in subsampled(cells, n_bootstrap, n_equal, seed=seed)]
    ).mean(0)
    equal_null = torch.stack(
        [spread(x, torch.mean) for x in subsampled_null(cells, n_bootstrap, n_equal, seed=seed)]
    ).mean(0)

    n_measured = measured.sum(1, keepdim=True)
    common, rest = split(observed, measured)
    null_common, null_rest = split(shuffled, measured)
    rest_square = rest.square().sum(-1) / n_measured
    null_square = null_rest.square().sum(-1) / n_measured
    total, null_total = rest_square.mean(0), null_square.mean(1)

    drawn = split(resampled(cells, n_bootstrap, seed=seed), measured)[1]
    noise = drawn.var(0).sum(-1) / n_measured
    own = rest_square - noise
    # resampled cells carry the noise of the sample and that of the draw
    spread_own = drawn.square().sum(-1) / n_measured - 2 * noise
    tail = (1 - level) / 2
    return Movement(
        mean=spread(observed, torch.mean),
        median=spread(observed, torch.median),
        null_mean=torch.stack(null[0]).mean(0),
        null_median=torch.stack(null[1]).mean(0),
        equal_n=n_equal,
        equal_mean=equal,
        equal_excess=(equal.square() - equal_null.square()).clamp_min(0).sqrt(),
        common=_root(common.square().mean(-1) - null_common.square().mean((0, -1))),
        specific=_root(total - null_total.mean(0)),
        specific_p=_share(null_total, total),
        own=_root(own),
        own_low=_root(spread_own.quantile(tail, dim=0)),
        own_high=_root(spread_own.quantile(1 - tail, dim=0)),
        own_p=_share(null_square, rest_square),
    )


def _root(values: Tensor) -> Tensor:
    return values.clamp_min(0).sqrt()


def _share(null: Tensor, observed: Tensor) -> Tensor:
    """Permutation p: (1 + number at least as large) / (1 + n)."""
    return (1 + (null >= observed).sum(0)) / (1 + len(null))
