r"""What noisy derivatives tell about parameters: rank, combinations, standard errors, design.

A model predicts the derivative of variable i at frame t as $\hat{\dot x}_i(x_t; \theta)$. Near a
point $\theta$ all there is to know lies in the sensitivities $J_i = \partial \hat{\dot x}_i /
\partial \theta$ and the noise $\sigma_i$ of each derivative, independent between variables and
frames: the Fisher information is $F = \sum_i J_i^\top J_i / \sigma_i^2$, its null space are the
directions that the data leave free, and the inverse on the rest bounds the covariance of every
unbiased estimate (Cramér–Rao). Nothing here knows what the parameters mean.

No Gram matrix is formed: each $J_i$ is reduced to its triangular factor (same information, as many
rows as columns), factors are stacked, columns scaled to unit length, and one singular value
decomposition for each set of entangled parameters gives everything at full precision. The cost
beyond one pass over the frames does not depend on their number.

The statements are *local*: they hold near the parameters at which the sensitivities were taken.
Where the parameters enter linearly, rank and combinations hold everywhere.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch types parts of its own methods as unknown)
from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.numerics.identifiability import (
    PRESENT,
    ZERO_COLUMN,
    NullSpace,
    determined,
    groups,
)
from neuralgraph.numerics.nuisance import Learned, Nuisance, learned_root

if TYPE_CHECKING:
    from neuralgraph.numerics.design import Candidate

DETERMINED, COMBINATION, UNDETERMINED = "determined", "combination", "undetermined"
STATUSES = (DETERMINED, COMBINATION, UNDETERMINED)
SMALLEST_GAP = 1e2
"""Below this ratio between the smallest kept and the largest dropped singular value, the rank is a
matter of the tolerance and the report says so."""
LARGEST_SVD = 1200
"""Entangled parameters up to which one singular value decomposition is taken; beyond, the Gram
matrix with its small directions decided anew."""
SUSPICIOUS = 1e-4
"""Relative singular value below which a direction found through a Gram matrix is decided anew."""
MOST_TERMS = 6
"""Terms of a combination written out."""


@dataclass(frozen=True)
class Parameters:
    """What is to be found, at the point of linearisation.

    Args:
        name: Readable names, as in ``k(R7)``.
        group: Kind of each, as in ``rate constant``.
        value: ``(n_par,)`` float64.
        unit: Unit of each; empty where it has none.
    """

    name: tuple[str, ...]
    group: tuple[str, ...]
    value: Tensor
    unit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.name)
        if len(self.group) != n or tuple(self.value.shape) != (n,) or len(self.unit) not in (0, n):
            raise ValueError(
                f"{n} parameters are named, but there are {len(self.group)} groups, "
                f"{len(self.unit)} units and values of shape {tuple(self.value.shape)}"
            )

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class Equation:
    r"""Sensitivity of one variable's derivative, $J = \mathrm{base}[:, \mathrm{at}] \cdot
    \mathrm{scale}$, on the parameters it depends on.

    Variables that share regressors (rates, states) share ``base``, which is then factored once.

    Args:
        variable: Which derivative.
        columns: Parameters it depends on, ``(n_local,)`` long.
        base: Regressors ``(n_frame, n_base)`` float64.
        at: Column of ``base`` for each of them, ``(n_local,)`` long.
        scale: Factor of each, ``(n_local,)``.
    """

    variable: int
    columns: Tensor
    base: Tensor
    at: Tensor
    scale: Tensor

    def jacobian(self) -> Tensor:
        """J itself, ``(n_frame, n_local)``."""
        return self.base[:, self.at] * self.scale


@dataclass(frozen=True)
class Problem:
    """A model, a prior and a design, as the engine sees them.

    Args:
        parameters: What is to be found, and the point of linearisation.
        design: Sensitivities at the frames of the data, one entry for each variable.
        variable: Names of the variables.
        size: Root mean square of each variable's derivative, ``(n_var,)``: the scale of its rows.
        point: Where the linearisation was taken, in words.
        assumed: Sentences: what is held as known beyond the data.
        residual: Measured less predicted derivative at this point, ``(n_frame, n_var)``, or
            ``None`` where the point was not fitted.
        state: Frames of the design, ``(n_frame, n_var)``.
        time: Times of one trajectory, ``(n_time,)``: what one more trajectory would measure.
        start: First frames of the trajectories of the design, ``(n_run, n_var)``.
        lowest: Smallest value a state may take, or ``None``.
        equations: Sensitivities at other states ``(n_frame, n_var)``, or ``None``: no design is
            scored.
        rhs: Derivative at the linearisation point, ``(n, n_var) -> (n, n_var)``, or ``None``.
        evaluate: Parameters ``(n_par,)`` -> prediction at the design's frames ``(n_frame, n_var)``
            and its sensitivities, for models that are not linear in them; ``None``: linear.
        interpret: Turns the analysis into rows of the table where what was analysed (products,
            say) is not what the user asked for; ``None``: one row for each parameter.
        run: Run of each frame, ``(n_frame,)`` long, or ``None``: residuals count as independent.
        nuisance: What else is learned from the same data, or ``None``.
        quantity: What is measured of each variable, in words.
        candidates: Further experiments, as ``equations`` takes them, in place of trajectories from
            other starts; ``None``: these.
    """

    parameters: Parameters
    design: Sequence[Equation]
    variable: tuple[str, ...]
    size: Tensor
    point: str
    assumed: tuple[str, ...] = ()
    residual: Tensor | None = None
    state: Tensor | None = None
    time: Tensor | None = None
    start: Tensor | None = None
    lowest: float | None = None
    equations: Callable[[Tensor], Sequence[Equation]] | None = None
    rhs: Callable[[Tensor], Tensor] | None = None
    evaluate: Callable[[Tensor], tuple[Tensor, Sequence[Equation]]] | None = None
    interpret: Callable[[Analysis], list[Row]] | None = None
    run: Tensor | None = None
    nuisance: Nuisance | None = None
    quantity: str = "each derivative"
    candidates: Callable[[], Sequence[Candidate]] | None = None

    @property
    def n_frame(self) -> int:
        """Frames of the design."""
        return self.design[0].base.shape[0] if self.design else 0


@dataclass(frozen=True)
class Noise:
    """Noise of the derivatives, independent between variables and frames.

    Args:
        sd: Standard deviation for each variable, ``(n_var,)``, positive.
        source: Where it comes from, in words.
    """

    sd: Tensor
    source: str


@dataclass(frozen=True)
class Combination:
    """A combination of parameters that is determined though its members are not.

    Args:
        members: Their indices.
        weight: ``(n_member,)``, the first is 1.
        text: The same as a formula.
        value: Its value at the point of linearisation.
        standard_error: Predicted.
    """

    members: tuple[int, ...]
    weight: Tensor
    text: str
    value: float
    standard_error: float


@dataclass(frozen=True)
class Row:
    """One line of ``identifiability.csv``.

    Args:
        parameter: Name.
        group: Kind.
        status: ``determined``, ``combination`` or ``undetermined``.
        combination: The determined combinations it takes part in; empty where it is determined.
        estimate: Value at the point of linearisation; ``None`` where the data say nothing.
        standard_error: Predicted, ``None`` where it is not determined.
        relative_error: Standard error over the estimate's magnitude.
        note: Why, in words.
        unit: Of estimate and standard error.
    """

    parameter: str
    group: str
    status: str
    combination: str
    estimate: float | None
    standard_error: float | None
    relative_error: float | None
    note: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Component:
    """Parameters that share equations, directly or through others.

    Args:
        index: Which parameters, ``(n,)`` long.
        space: Null space of the stacked, row- and column-scaled factors.
        kept: Right singular vectors of what is determined, ``(n, rank)``, scaled coordinates.
        factor: Stacked factors with rows divided by ``size``, columns unscaled.
        row: Variable of each row of ``factor``.
    """

    index: Tensor
    space: NullSpace
    kept: Tensor
    factor: Tensor
    row: Tensor

    @property
    def inverse_length(self) -> Tensor:
        """From scaled coordinates to parameters; 0 for a parameter that never acts."""
        length = self.space.length
        return torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))


@dataclass(frozen=True)
class Analysis:
    """What data of a design determine, and how well.

    Args:
        problem: What was analysed.
        noise: The noise the standard errors belong to.
        rtol: Relative singular value from which a direction counts as free.
        status: Of each parameter.
        standard_error: ``(n_par,)``; NaN where a parameter is not determined alone.
        combinations: Determined combinations of parameters that are not determined alone.
        spectrum: Singular values of the column-scaled sensitivity, each relative to the largest of
            its component, descending, ``(n_par,)``.
        rank: Number of independent combinations that are determined.
        gap: Smallest kept over largest dropped value of the spectrum; infinite where none was
            dropped or all that were dropped are 0.
        components: The parts.
        held_error: ``standard_error`` with what else is learned held at its fit, ``(n_par,)``.
        learned: What that adds, or ``None`` where nothing else is learned.
    """

    problem: Problem
    noise: Noise
    rtol: float
    status: tuple[str, ...]
    standard_error: Tensor
    combinations: tuple[Combination, ...]
    spectrum: Tensor
    rank: int
    gap: float
    components: tuple[Component, ...] = field(repr=False)
    held_error: Tensor = field(repr=False)
    learned: Learned | None = field(repr=False, default=None)

    @property
    def n_par(self) -> int:
        """Number of parameters."""
        return len(self.problem.parameters)

    def is_determined(self) -> Tensor:
        """``(n_par,)`` bool."""
        return torch.tensor([s == DETERMINED for s in self.status], dtype=torch.bool)

    def combinations_of(self) -> dict[int, list[Combination]]:
        """Combinations by parameter."""
        found: dict[int, list[Combination]] = {}
        for one in self.combinations:
            for member in one.members:
                found.setdefault(member, []).append(one)
        return found

    def rows(self) -> list[Row]:
        """The table: one row for each parameter, or what the system makes of it."""
        if self.problem.interpret is not None:
            return self.problem.interpret(self)
        p, of = self.problem.parameters, self.combinations_of()
        result: list[Row] = []
        for i, name in enumerate(p.name):
            status, value = self.status[i], float(p.value[i])
            error = float(self.standard_error[i]) if status == DETERMINED else None
            note = "does not act on the data" if status == UNDETERMINED else ""
            result.append(
                Row(
                    parameter=name,
                    group=p.group[i],
                    status=status,
                    combination=several([c.text for c in of.get(i, [])]),
                    estimate=None if status == UNDETERMINED else value,
                    standard_error=error,
                    relative_error=relative(error, value),
                    note=note,
                    unit=p.unit[i] if p.unit else "",
                )
            )
        return result


# -- from sensitivities to statements ---------------------------------------------------------


def analyse(problem: Problem, noise: Noise, *, rtol: float) -> Analysis:
    r"""Rank, null space, determined parameters and combinations, standard errors.

    Rank is decided on rows divided by the size of their derivative and columns of unit length, so
    that neither units nor a very unequal noise decide what counts as determined; the standard
    errors belong to the noise.

    Args:
        problem: Sensitivities and parameters.
        noise: Noise of the derivatives.
        rtol: Relative singular value below which a direction is free.
    Returns:
        The analysis.
    Raises:
        ValueError: sensitivities that are not finite, or noise that is not positive.
    Source:
        Kay (1993), chapter 3 (Cramér–Rao); the reduction to factors: own.
    """
    n_par = len(problem.parameters)
    sd = noise.sd.double()
    if not bool((sd > 0).all()) or not bool(torch.isfinite(sd).all()):
        raise ValueError("the noise of every variable must be positive and finite")
    size = row_size(problem.size)
    components = _components(problem.design, n_par, size, rtol)
    error = torch.full((n_par,), math.nan, dtype=torch.float64)
    held = error.clone()
    learned = None
    if problem.nuisance is not None:
        learned = learned_root(
            problem.nuisance, problem.design, components, noise, n_par, problem.residual
        )
    status = [UNDETERMINED] * n_par
    combinations: list[Combination] = []
    spectrum: list[Tensor] = []
    rank, smallest_kept, largest_dropped = 0, math.inf, 0.0
    for part in components:
        space = part.space
        values = space.singular_values
        largest = float(values[0]) if values.numel() else 0.0
        relative_values = torch.zeros(space.n_par, dtype=torch.float64)
        if largest > 0:
            relative_values[: values.numel()] = values / largest
        spectrum.append(relative_values)
        rank += space.rank
        if space.rank:
            smallest_kept = min(smallest_kept, float(relative_values[space.rank - 1]))
        if space.rank < space.n_par:
            largest_dropped = max(largest_dropped, float(relative_values[space.rank]))
        root = _root_covariance(part, sd / size)
        length = space.length
        alone = determined(space)
        held[part.index[alone]] = root[alone].norm(dim=1) / length[alone]
        if learned is not None:
            root = torch.cat([root, learned.root[part.index] * length[:, None]], 1)
        for i in alone.nonzero().flatten().tolist():
            at = int(part.index[i])
            status[at] = DETERMINED
            error[at] = float(root[i].norm() / length[i])
        if space.rank < space.n_par:
            for one in _combinations(part, problem.parameters, root):
                combinations.append(one)
                for member in one.members:
                    status[member] = COMBINATION
    gap = math.inf
    if largest_dropped > 0 and math.isfinite(smallest_kept):
        gap = smallest_kept / largest_dropped
    return Analysis(
        problem=problem,
        noise=noise,
        rtol=rtol,
        status=tuple(status),
        standard_error=error,
        combinations=tuple(combinations),
        spectrum=torch.cat(spectrum).sort(descending=True).values if spectrum else error,
        rank=rank,
        gap=gap,
        components=components,
        held_error=held,
        learned=learned,
    )


def row_size(size: Tensor) -> Tensor:
    """Scale of each variable's rows; a derivative that is always 0 takes the smallest other one.

    >>> row_size(torch.tensor([2.0, 0.0])).tolist()
    [2.0, 2.0]
    """
    size = size.double()
    positive = size[size > 0]
    return torch.where(size > 0, size, positive.min() if positive.numel() else 1.0)


def relative_noise(problem: Problem, fraction: float) -> Noise:
    """Noise that is stated: the same fraction of each derivative's root mean square."""
    return Noise(
        fraction * row_size(problem.size),
        f"stated: {100 * fraction:g} % of the root mean square of {problem.quantity}",
    )


def residual_noise(problem: Problem) -> Noise:
    """Noise as the residual of a fit shows it, with one degree of freedom less for each unknown.

    Unknowns that appear in several equations count in each in part. Residuals that resemble their
    neighbours in a run (a misfit, smoothed derivatives) count as fewer: their deviation is enlarged
    by the root of the frames that carry as much as one independent frame. Residuals at rounding
    give standard errors at rounding.

    Raises:
        ValueError: the problem has no residual.
    """
    if problem.residual is None:
        raise ValueError("this problem was not fitted: it has no residual")
    left = problem.residual.double()
    uses = torch.zeros(len(problem.parameters), dtype=torch.float64)
    for one in problem.design:
        uses.index_add_(0, one.columns, torch.ones(one.columns.numel(), dtype=torch.float64))
    n_unknown = torch.zeros(left.shape[1], dtype=torch.float64)
    for one in problem.design:
        n_unknown[one.variable] += float((1 / uses[one.columns]).sum())
    free = (left.shape[0] - n_unknown).clamp_min(1)
    sd = (left.square().sum(0) / free).sqrt()
    source = "residual of the fit, for each variable"
    if problem.run is not None:
        alike = alike_frames(left, problem.run)
        sd = sd * alike.sqrt()
        middle = float(alike.median())
        if middle > 1.5:
            source += (
                f"; neighbouring residuals are alike, so that {middle:.2g} frames (median) count "
                "as one"
            )
    floor = torch.finfo(torch.float64).eps * row_size(problem.size)
    return Noise(torch.maximum(sd, floor), source)


def alike_frames(left: Tensor, run: Tensor, n_lag: int = 64) -> Tensor:
    r"""Frames that carry as much as one independent frame, >= 1, ``(n_var,)``.

    $1 + 2 \sum_l \rho_l$ over the lags within runs, up to the first that is not positive.

    Args:
        left: Residuals ``(n_frame, n_var)``, frames of a run in order.
        run: Run of each frame, ``(n_frame,)``.
        n_lag: Largest lag.
    Source:
        Initial positive sequence, Geyer (1992).

    >>> run = torch.arange(40).repeat_interleave(10)
    >>> alternating = torch.tensor([1.0, -1.0]).repeat(200)[:, None]
    >>> float(alike_frames(alternating, run))
    1.0
    >>> steps = torch.tensor([1.0, -1.0]).repeat(20).repeat_interleave(10)[:, None]
    >>> float(alike_frames(steps, run))
    10.0
    """
    power = left.square().mean(0).clamp_min(1e-300)
    total = torch.ones_like(power)
    is_open = torch.ones_like(power, dtype=torch.bool)
    n_frame = left.shape[0]
    for lag in range(1, min(n_lag, n_frame - 1) + 1):
        same = run[lag:] == run[:-lag]
        n_pair = int(same.sum())
        if n_pair < 32:
            break
        # what a lag has in pairs, relative to all frames: 1 - lag / length of a run
        rho = (left[lag:] * left[:-lag])[same].sum(0) / n_frame / power
        is_open &= rho > 0
        total += torch.where(is_open, 2 * rho, torch.zeros_like(rho))
    return total.clamp_max(n_frame / 2)


def factor_of(equation: Equation, cache: dict[int, Tensor]) -> Tensor:
    """Triangular factor of J: as many rows as columns, same information."""
    key = id(equation.base)
    if key not in cache:
        cache[key] = triangular(equation.base)
    return triangular(cache[key][:, equation.at] * equation.scale)


def triangular(matrix: Tensor) -> Tensor:
    """A matrix with no more rows than columns and the same Gram matrix."""
    if matrix.shape[0] <= matrix.shape[1]:
        return matrix
    return torch.linalg.qr(matrix, mode="r")[1]


def _components(
    design: Sequence[Equation], n_par: int, size: Tensor, rtol: float
) -> tuple[Component, ...]:
    label = _label(design, n_par)
    members: dict[int, list[int]] = {}
    for at, group in enumerate(label):
        members.setdefault(group, []).append(at)
    of: dict[int, list[Equation]] = {group: [] for group in members}
    for one in design:
        if one.columns.numel():
            of[label[int(one.columns[0])]].append(one)
    bases: dict[int, Tensor] = {}
    seen: dict[tuple[int, bytes], tuple[Tensor, NullSpace, Tensor]] = {}
    local = torch.zeros(n_par, dtype=torch.long)
    result: list[Component] = []
    for group, inside in members.items():
        index = torch.tensor(inside)
        local[index] = torch.arange(len(inside))
        equations = of[group]
        # variables that differ in nothing but their index have the same spectrum
        key = None
        if len(equations) == 1 and bool((equations[0].scale == 1).all()):
            one = equations[0]
            order = local[one.columns]
            if torch.equal(order, torch.arange(len(inside))):
                key = (id(one.base), one.at.numpy().tobytes())
        if key is not None and key in seen:
            factor, space, kept = seen[key]
            ratio = 1 / float(size[equations[0].variable])
            space = replace(space, length=space.length * ratio)
            factor = factor * ratio
        else:
            blocks: list[Tensor] = []
            for one in equations:
                small = factor_of(one, bases)
                block = small.new_zeros(small.shape[0], len(inside))
                block.index_add_(1, local[one.columns], small)
                blocks.append(block / size[one.variable])
            factor = torch.cat(blocks) if blocks else torch.zeros(0, len(inside)).double()
            if not bool(torch.isfinite(factor).all()):
                raise ValueError("the sensitivities are not finite: look at the states and values")
            space, kept = _decompose(factor, rtol)
            if key is not None:
                back = float(size[equations[0].variable])
                seen[key] = (factor * back, replace(space, length=space.length * back), kept)
        rows = [
            torch.full((min(one.base.shape[0], one.base.shape[1], one.at.numel()),), one.variable)
            for one in equations
        ]
        row = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
        result.append(Component(index, space, kept, factor, row))
    return tuple(result)


def _label(design: Sequence[Equation], n_par: int) -> list[int]:
    """Component of each parameter, by union-find over the equations."""
    parent = list(range(n_par))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for one in design:
        columns = one.columns.tolist()
        for other in columns[1:]:
            a, b = root(columns[0]), root(other)
            if a != b:
                parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(n_par)]


def _decompose(factor: Tensor, rtol: float) -> tuple[NullSpace, Tensor]:
    """Null space and the determined directions of the column-scaled factor."""
    length = factor.norm(dim=0)
    longest = float(length.max()) if length.numel() else 0.0
    length = torch.where(length > ZERO_COLUMN * longest, length, torch.zeros_like(length))
    inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
    n = factor.shape[1]
    if factor.shape[0] == 0 or longest == 0:
        space = NullSpace(torch.eye(n).double(), length, torch.zeros(0).double(), rtol)
        return space, torch.zeros(n, 0).double()
    scaled = factor * inverse
    if n > LARGEST_SVD:
        return _decompose_large(scaled, length, rtol)
    _, values, right = torch.linalg.svd(triangular(scaled), full_matrices=True)
    rank = int((values > rtol * values[0]).sum())
    basis = right[rank:].T.contiguous()
    return NullSpace(basis, length, values, rtol), right[:rank].T.contiguous()


def _decompose_large(scaled: Tensor, length: Tensor, rtol: float) -> tuple[NullSpace, Tensor]:
    """The same through the Gram matrix, several times faster.

    A Gram matrix hides singular values below about 1e-7 of the largest. The directions it calls
    small (below 1e-4) are decided by the singular values of their image under the factor itself
    (Rayleigh-Ritz), at full precision.
    """
    values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    singular = values.clamp_min(0).sqrt()
    small = singular <= SUSPICIOUS * singular[-1]
    sure = singular[~small].flip(0)
    kept = vectors[:, ~small].flip(1)
    candidate = vectors[:, small]
    image = triangular(scaled @ candidate)
    _, low, right = torch.linalg.svd(image, full_matrices=True)
    padded = torch.zeros(candidate.shape[1], dtype=torch.float64)
    padded[: low.numel()] = low
    n_more = int((padded > rtol * singular[-1]).sum())
    turned = candidate @ right.T
    kept = torch.cat([kept, turned[:, :n_more]], 1)
    basis = turned[:, n_more:].contiguous()
    return NullSpace(basis, length, torch.cat([sure, padded]), rtol), kept


def _root_covariance(part: Component, ratio: Tensor) -> Tensor:
    """Rows whose squared norms are the variances of the scaled coordinates, ``(n, rank)``.

    Args:
        part: The component; its rows are in units of the size of the derivative.
        ratio: Noise in the same units, ``(n_var,)``.
    """
    rank = part.kept.shape[1]
    if rank == 0:
        return part.kept
    here = ratio[part.row]
    if float(here.max()) <= float(here.min()) * (1 + 1e-12):
        return part.kept * (float(here[0]) / part.space.singular_values[:rank])
    weighted = (part.factor / here[:, None] * part.inverse_length) @ part.kept
    small = triangular(weighted)
    # weighted = Q small, covariance of the kept coordinates = (small' small)^-1
    whitened = torch.linalg.solve_triangular(small.T, part.kept.T, upper=False)
    return whitened.T


def _combinations(part: Component, names: Parameters, root: Tensor) -> list[Combination]:
    """Determined combinations of the free parameters: reduced rows, each as short as can be."""
    result: list[Combination] = []
    length = part.space.length
    for group in groups(part.space):
        n_member = len(group.members)
        n_combination = n_member - group.n_null
        if n_combination <= 0:
            continue
        local = torch.tensor(group.members)
        basis = part.space.basis[local]
        # complement of the null space inside the group, in original coordinates
        left, values, _ = torch.linalg.svd(basis, full_matrices=True)
        n_null = int((values > 0.5).sum()) if values.numel() else 0
        weight = reduced_rows(left[:, n_null:].T * length[local])
        for row in weight:
            on = row.abs() > 1e-9 * row.abs().max()
            chosen = local[on]
            w = row[on]
            members = tuple(part.index[chosen].tolist())
            spread = (w / length[chosen]) @ root[chosen]
            value = float(w @ names.value[list(members)].double())
            result.append(
                Combination(
                    members,
                    w,
                    formula([names.name[m] for m in members], w),
                    value,
                    float(spread.norm()),
                )
            )
    return result


def reduced_rows(matrix: Tensor) -> Tensor:
    """Reduced row echelon form by Gauss–Jordan with pivoting; near-integers are rounded.

    >>> reduced_rows(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])).tolist()
    [[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]]
    """
    a = matrix.double().clone()
    scale = a.abs().amax(0).clamp_min(1e-300)
    a = a / scale  # decide pivots without units
    row = 0
    for column in range(a.shape[1]):
        if row == a.shape[0]:
            break
        size, at = a[row:, column].abs().max(0)
        if float(size) <= PRESENT:
            continue
        pivot = row + int(at)
        if pivot != row:
            a[[row, pivot]] = a[[pivot, row]]
        a[row] = a[row] / a[row, column]
        others = a[:, column].clone()
        others[row] = 0
        a = a - others[:, None] * a[row]
        row += 1
    a = torch.where(a.abs() < 1e-7, torch.zeros_like(a), a)
    a = a * scale
    first = (a != 0).long().argmax(1)
    a = a / a.gather(1, first[:, None])
    whole = a.round()
    near = ((a - whole).abs() < 1e-6 * a.abs()) & (whole != 0)
    return torch.where(near, whole, a)


def formula(names: Sequence[str], weight: Tensor) -> str:
    """A combination as a readable sum.

    >>> formula(["k(R1)", "k(R7)"], torch.tensor([1.0, -1.0]))
    'k(R1) - k(R7)'
    >>> formula(["a", "b"], torch.tensor([2.0, 0.5]))
    '2 a + 0.5 b'
    """
    parts: list[str] = []
    for place, (name, w) in enumerate(zip(names, weight.tolist(), strict=True)):
        if place == MOST_TERMS:
            parts.append(f" + … ({len(names)} terms)")
            break
        amount = "" if abs(abs(w) - 1) < 1e-9 else f"{abs(w):.4g} "
        sign = ("-" if w < 0 else "") if place == 0 else (" - " if w < 0 else " + ")
        parts.append(f"{sign}{amount}{name}")
    return "".join(parts)


def several(texts: Sequence[str], most: int = 3) -> str:
    """Texts joined, the end of a long list left out.

    >>> several(["a", "b", "c", "d", "e"])
    'a; b; c; … (5)'
    """
    shown = "; ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown}; … ({len(texts)})"


def relative(error: float | None, value: float) -> float | None:
    """Standard error over magnitude; ``None`` where either is missing or the value is 0.

    >>> relative(0.1, -2.0), relative(None, 1.0), relative(0.1, 0.0)
    (0.05, None, None)
    """
    if error is None or not math.isfinite(error) or not value or not math.isfinite(value):
        return None
    return error / abs(value)


# -- sensitivities of any differentiable model ------------------------------------------------


def autograd_equations(
    predict: Callable[[Tensor, Tensor], Tensor], value: Tensor, state: Tensor
) -> list[Equation]:
    """Sensitivities by automatic differentiation, for models without a formula for them.

    Args:
        predict: Parameters ``(n_par,)`` and states ``(n_frame, n_var)`` -> derivatives
            ``(n_frame, n_var)``; written in torch.
        value: Where to differentiate, ``(n_par,)``.
        state: Frames, ``(n_frame, n_var)``.
    Returns:
        One equation for each variable, on the parameters that act on it somewhere.

    >>> field = lambda p, x: p[0] * x + p[1]
    >>> one, = autograd_equations(field, torch.tensor([2.0, 3.0]), torch.tensor([[1.0], [4.0]]))
    >>> one.jacobian().tolist()
    [[1.0, 1.0], [4.0, 1.0]]
    """
    value, state = value.detach().double(), state.detach().double()
    n_par, n_frame = value.numel(), state.shape[0]
    rows = max(1, int(4e7 // max(n_par * state.shape[1], 1)))
    parts: list[Tensor] = []
    for first in range(0, n_frame, rows):
        some = state[first : first + rows]

        def at(theta: Tensor, some: Tensor = some) -> Tensor:
            return predict(theta, some)

        with warnings.catch_warnings():  # torch's own, when forward differentiation is first used
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
            parts.append(torch.func.jacfwd(at)(value).detach())
    whole = torch.cat(parts)
    result: list[Equation] = []
    for i in range(state.shape[1]):
        local = whole[:, i]
        columns = (local != 0).any(0).nonzero().flatten()
        base = local[:, columns].contiguous()
        n = columns.numel()
        result.append(
            Equation(i, columns, base, torch.arange(n), torch.ones(n, dtype=torch.float64))
        )
    return result
