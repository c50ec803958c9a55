r"""Which measurement next: expected gain in rank and in error of candidate trajectories.

The information of independent frames adds up: $F + F_c$ is what a candidate would leave. Scores
are taken on the combinations that are determined already (their errors), and on those that are not
(whether the candidate would see them). Expected values at the point of linearisation: a design that
is best there need not be best at the true parameters.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch types parts of its own methods as unknown)
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.numerics.identifiability import PRESENT
from neuralgraph.numerics.information import (
    Analysis,
    Problem,
    factor_of,
    row_size,
    triangular,
)
from neuralgraph.numerics.integrate import DivergedError, rollout

LARGEST_DESIGN = 1500
"""Entangled parameters beyond which candidates are not scored (cubic cost for each)."""
SMALL = 100
"""Rows up to which a smallest eigenvalue is computed by decomposition."""
N_ITERATION = 20
"""Steps of the inverse iteration for a smallest eigenvalue (advice, not a result)."""
SEEN = 1e-10
"""Smallest relative singular value with which a candidate sees a free direction."""
LONGEST = 200
"""Frames of a candidate trajectory at most."""


@dataclass(frozen=True)
class Candidate:
    """Frames that could be measured in addition.

    Args:
        name: What to do, in words.
        state: ``(n_frame, n_var)``.
        kind: ``more`` (as the data so far), ``wide`` or ``pulse``.
    """

    name: str
    state: Tensor
    kind: str


@dataclass(frozen=True)
class Score:
    r"""Worth of one candidate at the stated noise.

    Args:
        name: Candidate.
        kind: Its kind.
        rank_gain: Combinations it determines in addition.
        newly_determined: Parameters it determines in addition.
        d_factor: Geometric mean of the standard errors along the principal axes, after over
            before (D-optimality): $(|F| / |F + F_c|)^{1/(2r)}$.
        a_factor: Root mean square of the relative standard errors of determined parameters, after
            over before (A-optimality).
        e_factor: Largest standard error of any scaled direction, after over before (E-optimality).
        median_error: Median relative standard error after.
    """

    name: str
    kind: str
    rank_gain: int
    newly_determined: int
    d_factor: float
    a_factor: float
    e_factor: float
    median_error: float


def can_be_scored(analysis: Analysis) -> bool:
    """Whether candidates can be evaluated, and at a bearable cost."""
    largest = max((c.index.numel() for c in analysis.components), default=0)
    return analysis.problem.equations is not None and largest <= LARGEST_DESIGN


def score_candidates(analysis: Analysis, candidates: Sequence[Candidate]) -> list[Score]:
    """Expected gain in rank and in error of each candidate, best first.

    Args:
        analysis: Of the data so far.
        candidates: Frames that could be measured.
    Source:
        Atkinson, Donev & Tobias (2007), chapter 10 (D-, A-, E-optimality); on the determined
        subspace: own.
    """
    known = _known(analysis)
    found = [
        _score(analysis, known, one.name, one.kind, _added(analysis, one.state))
        for one in candidates
    ]
    return sorted(found, key=lambda s: (-s.rank_gain, -s.newly_determined, s.d_factor))


@dataclass(frozen=True)
class More:
    """What more trajectories like those so far would bring.

    Args:
        n_more: Additional trajectories, ascending, the first is 0.
        median_error: Median relative standard error of determined parameters.
        high_error: Their 95 % quantile.
        share_precise: Share of all parameters with a relative standard error below the bound.
        rank: Determined combinations.
    """

    n_more: tuple[int, ...]
    median_error: tuple[float, ...]
    high_error: tuple[float, ...]
    share_precise: tuple[float, ...]
    rank: tuple[int, ...]


def score_more(
    analysis: Analysis, alike: Sequence[Candidate], n_more: Sequence[int], *, precise_below: float
) -> More:
    """Errors after ``n`` more trajectories: the first of ``alike``, beyond those their mean.

    Args:
        analysis: Of the data so far.
        alike: Trajectories as they would be measured.
        n_more: How many to add.
        precise_below: Relative standard error from which a parameter counts as precise.
    """
    each = [_added(analysis, candidate.state) for candidate in alike]
    mean = [
        triangular(torch.cat(parts)) / math.sqrt(len(parts)) for parts in zip(*each, strict=True)
    ]
    known = _known(analysis)
    value = analysis.problem.parameters.value.double()
    median: list[float] = []
    high: list[float] = []
    share: list[float] = []
    rank: list[int] = []
    for n in n_more:
        if 0 < n <= len(each):  # as many as were drawn: those themselves
            first = [torch.cat(parts) for parts in zip(*each[:n], strict=True)]
            after = _with(analysis, known, first, 1.0)
        else:
            after = _with(analysis, known, mean, float(n))
        of_value = _relative_errors(after.error, value)
        finite = of_value[torch.isfinite(of_value)]
        median.append(float(finite.median()) if finite.numel() else math.nan)
        high.append(float(finite.quantile(0.95)) if finite.numel() else math.nan)
        share.append(float((of_value < precise_below).double().mean()))
        rank.append(analysis.rank + after.gained)
    return More(tuple(n_more), tuple(median), tuple(high), tuple(share), tuple(rank))


@dataclass(frozen=True)
class _Known:
    """What the data so far say about a component, in the coordinates of its kept directions."""

    information: Tensor
    log_determinant: float
    lowest: float


def _known(analysis: Analysis) -> list[_Known]:
    ratio = analysis.noise.sd.double() / row_size(analysis.problem.size)
    result: list[_Known] = []
    for part in analysis.components:
        rank = part.kept.shape[1]
        if rank == 0:
            result.append(_Known(part.kept.new_zeros(0, 0), 0.0, math.inf))
            continue
        weighted = (part.factor / ratio[part.row][:, None] * part.inverse_length) @ part.kept
        information = weighted.T @ weighted
        lower, _ = _cholesky(information)
        result.append(_Known(information, _log_determinant(lower), _lowest(lower)))
    return result


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor and whether it failed; a scaled copy is factored, for safety."""
    scale = matrix.diagonal().clamp_min(1e-300).sqrt()
    lower, failed = torch.linalg.cholesky_ex(matrix / scale[:, None] / scale)
    return scale[:, None] * lower, failed


def _log_determinant(lower: Tensor) -> float:
    return 2 * float(lower.diagonal().clamp_min(1e-300).log().sum())


def _lowest(lower: Tensor) -> float:
    """Smallest eigenvalue of L L', by inverse iteration where that is the cheaper way."""
    if lower.shape[0] <= SMALL:
        return max(float(torch.linalg.svdvals(lower)[-1]) ** 2, 1e-300)
    x = torch.ones(lower.shape[0], 1, dtype=torch.float64)
    size = 1.0
    for _ in range(N_ITERATION):
        x = torch.cholesky_solve(x / x.norm(), lower)
        size = float(x.norm())
    return 1 / max(size, 1e-300)


def _added(analysis: Analysis, state: Tensor) -> list[Tensor]:
    """Whitened factor of additional frames on each component's scaled coordinates."""
    problem = analysis.problem
    assert problem.equations is not None
    equations = problem.equations(state)
    place = torch.zeros(analysis.n_par, dtype=torch.long)
    local = torch.zeros(analysis.n_par, dtype=torch.long)
    for at, part in enumerate(analysis.components):
        place[part.index] = at
        local[part.index] = torch.arange(part.index.numel())
    blocks: list[list[Tensor]] = [[] for _ in analysis.components]
    bases: dict[int, Tensor] = {}
    sd = analysis.noise.sd.double()
    for one in equations:
        if not one.columns.numel():
            continue
        at = int(place[one.columns[0]])
        part = analysis.components[at]
        small = factor_of(one, bases)
        block = small.new_zeros(small.shape[0], part.index.numel())
        block.index_add_(1, local[one.columns], small)
        # a parameter that did not act so far keeps its own unit
        length = part.space.length
        unit = torch.where(length > 0, part.inverse_length, torch.ones_like(length))
        blocks[at].append(block / sd[one.variable] * unit)
    return [
        torch.cat(some) if some else torch.zeros(0, part.index.numel(), dtype=torch.float64)
        for some, part in zip(blocks, analysis.components, strict=True)
    ]


@dataclass(frozen=True)
class _After:
    """State of knowledge once frames were added.

    Args:
        error: Standard errors, ``(n_par,)``.
        gained: Combinations determined in addition.
        newly: Parameters determined in addition.
        log_change: Log determinant of the information on what was determined, after less before.
        lowest_ratio: Its smallest eigenvalue, before over after.
    """

    error: Tensor
    gained: int
    newly: int
    log_change: float
    lowest_ratio: float


def _with(
    analysis: Analysis, known: Sequence[_Known], added: Sequence[Tensor], amount: float
) -> _After:
    """What is known once the added frames were measured ``amount`` times."""
    error = torch.full((analysis.n_par,), math.nan, dtype=torch.float64)
    gained = newly = 0
    change = 0.0
    before, after = math.inf, math.inf
    for part, old, more in zip(analysis.components, known, added, strict=True):
        kept, free = part.kept, part.space.basis
        factor = more * math.sqrt(amount)
        n_old = kept.shape[1]
        if free.shape[1] and factor.shape[0] and amount > 0:
            image = triangular(factor @ free)
            _, values, right = torch.linalg.svd(image, full_matrices=True)
            largest = max(float(factor.norm(dim=0).max()), 1e-300)
            seen = int((values > max(analysis.rtol, SEEN) * largest).sum())
            if seen:
                gained += seen
                now_free = free @ right[seen:].T
                was, now = free.norm(dim=1) > PRESENT, now_free.norm(dim=1) <= PRESENT
                newly += int((was & now).sum())
                kept = torch.cat([kept, free @ right[:seen].T], 1)
                free = now_free
        n = kept.shape[1]
        if n == 0:
            continue
        image = factor @ kept
        information = image.T @ image
        information[:n_old, :n_old] += old.information
        lower, failed = _cholesky(information)
        if int(failed):
            continue
        if n_old:
            inner = lower[:n_old, :n_old]  # of the leading block
            change += _log_determinant(inner) - old.log_determinant
            lowest = _lowest(inner)
            if old.lowest < before:
                before = old.lowest
            after = min(after, lowest)
        root = torch.linalg.solve_triangular(lower, kept.T, upper=False).T
        alone = free.norm(dim=1) <= PRESENT if free.shape[1] else torch.ones(part.index.numel()) > 0
        sd = root.norm(dim=1) * part.inverse_length
        error[part.index[alone]] = sd[alone]
    return _After(error, gained, newly, change, before / after if after > 0 else math.nan)


def _score(
    analysis: Analysis, known: Sequence[_Known], name: str, kind: str, added: Sequence[Tensor]
) -> Score:
    after = _with(analysis, known, added, 1.0)
    value = analysis.problem.parameters.value.double()
    old = _relative_errors(analysis.standard_error, value)
    new = _relative_errors(after.error, value)
    both = torch.isfinite(old) & torch.isfinite(new)
    a_factor = median = math.nan
    if bool(both.any()):
        a_factor = float((new[both].square().mean() / old[both].square().mean()).sqrt())
        median = float(new[torch.isfinite(new)].median())
    return Score(
        name=name,
        kind=kind,
        rank_gain=after.gained,
        newly_determined=after.newly,
        d_factor=math.exp(-after.log_change / (2 * max(analysis.rank, 1))),
        a_factor=a_factor,
        e_factor=math.sqrt(after.lowest_ratio),
        median_error=median,
    )


def _relative_errors(error: Tensor, value: Tensor) -> Tensor:
    return torch.where(value != 0, error / value.abs(), torch.full_like(error, math.nan))


# -- candidates -------------------------------------------------------------------------------


def propose(
    problem: Problem,
    generator: torch.Generator,
    *,
    n_alike: int,
    n_wide: int,
    pulse: Sequence[int],
    fold: float,
) -> list[Candidate]:
    """Trajectories that could be measured, integrated at the point of linearisation.

    ``more``: starts drawn uniformly between the lowest and highest start so far (with one run:
    between the lowest and highest state so far), each variable for itself. ``wide``: the same
    range widened ``fold`` times around its centre (multiplicatively where states have a lowest
    value). ``pulse``: the median start with one variable moved ``fold`` times away. Each has the
    frames of one trajectory so far, ``LONGEST`` of them at most. Candidates that diverge are left
    out.

    Args:
        problem: With ``rhs``, ``state``, ``start`` and ``time``.
        generator: Source of the starts.
        n_alike: Number of ``more``.
        n_wide: Number of ``wide``.
        pulse: Variables to move.
        fold: By how much.
    """
    assert problem.state is not None and problem.start is not None and problem.time is not None
    rhs = problem.rhs
    assert rhs is not None
    start, every = problem.start.double(), problem.state.double()
    low, high = start.amin(0), start.amax(0)
    if start.shape[0] < 2:
        low, high = every.amin(0), every.amax(0)
    centre = start.median(0).values if start.shape[0] > 1 else every.median(0).values
    span = (high - low).clamp_min(1e-12)
    names: list[tuple[str, str]] = []
    rows: list[Tensor] = []

    def draw() -> Tensor:
        return torch.rand(low.numel(), dtype=torch.float64, generator=generator)

    for _ in range(n_alike):
        names.append(("one more trajectory like those so far", "more"))
        rows.append(low + span * draw())
    for _ in range(n_wide):
        names.append((f"one more trajectory, starts spread {fold:g} times as wide", "wide"))
        if problem.lowest is None:
            middle = (low + high) / 2
            rows.append(middle + fold * span * (draw() - 0.5))
        else:
            shifted = (centre - problem.lowest).clamp_min(1e-12)
            rows.append(problem.lowest + shifted * fold ** (2 * draw() - 1))
    for at in pulse:
        names.append((f"median start, {problem.variable[at]} {fold:g} times as high", "pulse"))
        one = centre.clone()
        if problem.lowest is None:
            one[at] = centre[at] + fold * span[at] / 2
            names[-1] = (f"median start, {problem.variable[at]} pushed out of its range", "pulse")
        else:
            one[at] = problem.lowest + fold * (centre[at] - problem.lowest)
        rows.append(one)
    if not rows:
        return []
    time = problem.time.double()[:LONGEST]
    time = time - time[0]
    result: list[Candidate] = []
    left = list(range(len(rows)))
    while left:
        begin = torch.stack([rows[i] for i in left])
        try:
            state = rollout(lambda t, x: rhs(x), begin, time, bound=1e8)
        except DivergedError as error:
            del left[error.run or 0]
            continue
        for at, i in enumerate(left):
            frames = state[at]
            if problem.lowest is not None:
                frames = frames.clamp_min(problem.lowest)
            result.append(Candidate(names[i][0], frames, names[i][1]))
        break
    return result
