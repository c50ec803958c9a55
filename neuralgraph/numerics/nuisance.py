r"""Something else is learned from the same data: what that adds to the errors of the parameters.

A rate law, say, that is a network: nobody asks for its weights, yet they moved with the parameters,
and what the data do not pin down of them is not pinned down of the parameters either. Near a fit
the predicted derivative of variable i is $J_i \theta + N_i u$ with parameters $\theta$ and
directions $u$ of the network, scaled so that $u$ has variance 1 before the data are seen. Once
$\theta$ is projected out, the data know $u$ with the information $\sum_i N_i^\top (1 - P_i) N_i /
\sigma_i^2 + 1$ ($P_i$ projects onto the columns of $J_i$: the Schur complement of the Fisher
information), and $\theta$ follows $u$ by $-J^+ N u$. Everything is done by orthogonal factors: no
normal matrix is formed.

A fit that stopped early has left a residual that the directions could still explain. How far the
parameters would go with it (one Gauss-Newton step) counts as an error as well.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch types parts of its own methods as unknown)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neuralgraph.numerics.information import Component, Equation, Noise

TINY = 1e-10
"""Relative singular value below which tied parameters are not told apart."""


@dataclass(frozen=True)
class Nuisance:
    """Directions that are learned besides the parameters, and not reported.

    Args:
        frames: Frames of the design at which they are given, evenly spread, ``(n_some,)`` long.
        slope: Change of each predicted derivative along each direction,
            ``(n_some, n_var, n_direction)``; a step of 1 is one standard deviation of what was
            known before the data.
        tie: What can move freely beside the directions: parameters = ``tie @ free``, with
            ``(n_par, n_free)``; ``None``: each parameter for itself.
    """

    frames: Tensor
    slope: Tensor
    tie: Tensor | None = None


@dataclass(frozen=True)
class Learned:
    """What :class:`Nuisance` does to the parameters at the noise of an analysis.

    Args:
        root: Change of the parameters along independent unit directions of what stays open, and
            in its last column the step that is left to go, ``(n_par, n_direction + 1)``: add its
            squared row norms to the variances.
        free_root: The same for what is free under ``tie``, ``(n_free, n_direction + 1)``; ``root``
            itself without one.
        free_error: Standard error of what is free where nothing else is learned, ``(n_free,)``;
            infinite where it is not determined.
    """

    root: Tensor
    free_root: Tensor
    free_error: Tensor


def learned_root(
    nuisance: Nuisance,
    design: Sequence[Equation],
    components: Sequence[Component],
    noise: Noise,
    n_par: int,
    residual: Tensor | None,
) -> Learned:
    """How the parameters move with what stays open of the directions.

    Args:
        nuisance: The directions.
        design: Sensitivities of all frames.
        components: Parts of the analysis, with what is determined of each.
        noise: Of the derivatives.
        n_par: Number of parameters.
        residual: Of the fit, ``(n_frame, n_var)``, or ``None``: nothing is left to go.
    Returns:
        The roots.
    Raises:
        ValueError: fewer frames of the directions than one variable has parameters.
    Source:
        Schur complement of the Fisher information, Kay (1993), chapter 3; by factors: own.
    """
    n_direction = nuisance.slope.shape[2]
    some = nuisance.frames
    piles: list[Tensor] = []
    rows: list[tuple[Equation, Tensor, Tensor]] = []
    for one in design:
        n_local = one.columns.numel()
        if n_local == 0:
            continue
        if some.numel() < n_local:
            raise ValueError(
                f"{some.numel()} frames of the directions, variable {one.variable} has {n_local} "
                "parameters"
            )
        more = (one.base.shape[0] / some.numel()) ** 0.5 / float(noise.sd[one.variable])
        jacobian = one.base[some][:, one.at] * one.scale
        left = jacobian.new_zeros(some.numel())
        if residual is not None:
            left = residual[some, one.variable].double()
        beside = torch.cat([nuisance.slope[:, one.variable], left[:, None]], 1)
        both = torch.cat([jacobian, beside], 1) * more
        factor = torch.linalg.qr(both, mode="r")[1]
        rows.append((one, factor[:n_local, :n_local], factor[:n_local, n_local:]))
        piles.append(factor[n_local:, n_local:])
        if len(piles) == 16:
            piles = [_triangular(torch.cat(piles))]
    part_of = torch.zeros(n_par, dtype=torch.long)
    local = torch.zeros(n_par, dtype=torch.long)
    for at, part in enumerate(components):
        part_of[part.index] = at
        local[part.index] = torch.arange(part.index.numel())
    by_part: dict[int, list[tuple[Equation, Tensor, Tensor]]] = {}
    for row in rows:
        by_part.setdefault(int(part_of[row[0].columns[0]]), []).append(row)
    follow = torch.zeros(n_par, n_direction + 1, dtype=torch.float64)
    for at, mine in by_part.items():
        part = components[at]
        if part.kept.shape[1] == 0:
            continue
        blocks = []
        for one, own, _ in mine:
            block = own.new_zeros(own.shape[0], part.index.numel())
            block.index_add_(1, local[one.columns], own)
            blocks.append(block)
        scaled = (torch.cat(blocks) * part.inverse_length) @ part.kept
        beside = torch.cat([p for _, _, p in mine])
        q, r = torch.linalg.qr(scaled)
        inside = q.T @ beside
        follow[part.index] = (part.inverse_length[:, None] * part.kept) @ torch.linalg.lstsq(
            r, inside, driver="gelsd"
        ).solution
        if nuisance.tie is None:
            piles.append(_triangular(beside - q @ inside))
    free_follow, free_error = follow, torch.zeros(0, dtype=torch.float64)
    if nuisance.tie is not None:
        blocks = [own @ nuisance.tie[one.columns].double() for one, own, _ in rows]
        beside = torch.cat([p for _, _, p in rows])
        free_follow, free_error, left = _tied(torch.cat(blocks), beside)
        piles.append(_triangular(left))
    prior = torch.eye(n_direction, n_direction + 1, dtype=torch.float64)
    known = _triangular(torch.cat([*piles, prior]))[:n_direction]

    def roots(follow: Tensor) -> Tensor:
        # u = known^-1 e with independent unit e; the parameters move by -follow u
        each = torch.linalg.solve_triangular(known[:, :-1], follow[:, :-1], upper=True, left=False)
        step = follow[:, -1] - each @ known[:, -1]
        return torch.cat([-each, step[:, None]], 1)

    root = roots(follow)
    free_root = root if nuisance.tie is None else roots(free_follow)
    return Learned(root, free_root, free_error)


def _tied(columns: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares of ``beside`` in column-scaled ``columns``: solution, errors, what is left."""
    length = columns.norm(dim=0)
    inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
    left, values, right = torch.linalg.svd(columns * inverse, full_matrices=False)
    keep = values > TINY * values[:1].sum()
    left, values, right = left[:, keep], values[keep], right[keep]
    inside = left.T @ beside
    back = inverse[:, None] * (right.T / values)
    error = back.norm(dim=1)
    is_known = (right.square().sum(0) > 1 - 1e-6) & (length > 0)
    error = torch.where(is_known, error, torch.full_like(error, float("inf")))
    return back @ inside, error, beside - left @ inside


def _triangular(matrix: Tensor) -> Tensor:
    if matrix.shape[0] <= matrix.shape[1]:
        return matrix
    return torch.linalg.qr(matrix, mode="r")[1]
