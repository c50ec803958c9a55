"""Positive rate constants where the data determine sums and differences only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralgraph.numerics.identifiability import Group, determined, groups, null_space_of_gram
from neuralgraph.systems.metabolism.closed_form import log_k_of_combination
from neuralgraph.systems.metabolism.joint_solver import NULL, LinearFit

LARGEST_GROUP = 32
"""Undetermined groups beyond this keep their minimum-norm solution."""


def positive_rate_constants(fit: LinearFit) -> Tensor:
    """Positive rate constants of a solution, ``(n_rxn,)``."""
    n = fit.k.numel()
    space = null_space_of_gram(fit.gram, rtol=NULL)
    found = [group for group in groups(space) if group.members[0] < n]
    return split_undetermined(fit.k, found, determined(space)[:n], n)


def split_undetermined(
    k: Tensor, found: Sequence[Group], is_determined: Tensor, n_rxn: int
) -> Tensor:
    r"""Positive rate constants that keep every determined combination.

    Where the data determine a combination only (k1 + k2, k1 - k2), log k is expected from what
    the determined rate constants say of all (uniform over their range), and moved to the nearest
    rate constants with that combination. A reaction that never acts is set to the middle of the
    range.

    Args:
        k: Least-squares solution, of either sign, ``(n_rxn,)``.
        found: Undetermined groups; members at or beyond ``n_rxn`` are not rate constants.
        is_determined: ``(n_rxn,)`` bool.
        n_rxn: Number of reactions.
    """
    positive = is_determined & (k > 0)
    if not bool(positive.any()):
        positive = k > 0
    if not bool(positive.any()):
        return torch.ones_like(k)
    log_k = k[positive].log10()
    low, high = float(log_k.min()), float(log_k.max())
    low, high = low - 1e-3, high + 1e-3
    result = k.clone()
    for group in found:
        members = [j for j in group.members if j < n_rxn]
        if len(members) < len(group.members):
            continue
        index = torch.tensor(members)
        if group.n_null == len(members):
            result[index] = 10 ** (0.5 * (low + high))
        elif group.combination is not None and len(members) <= LARGEST_GROUP:
            result[index] = _nearest_split(group.combination, k[index], (low, high))
    return torch.where(result > 0, result, torch.full_like(result, 10 ** (low - 1)))


def _nearest_split(weight: Tensor, k: Tensor, prior: tuple[float, float]) -> Tensor:
    """Rate constants nearest to their expectation with ``weight @ k`` fixed.

    All members of one sign of ``weight`` are moved by a common factor.
    """
    value = float(weight @ k)
    mean, variance = log_k_of_combination(weight, value, prior)
    expected = 10**mean
    plus = weight > 0
    part = (weight * expected).abs()
    up, down = float(part[plus].sum()), float(part[~plus].sum())
    if up == 0 or down == 0:
        return expected * (value / float(weight @ expected))
    # the side that decides the sign is solved for, the factor of the other scanned
    this, other = (up, down) if value > 0 else (down, up)
    stiff = 1 / variance.clamp_min(1e-12)
    solved_for = plus if value > 0 else ~plus
    factor = torch.logspace(-3, 3, 2401, dtype=torch.float64)
    solved = (abs(value) + other * factor) / this
    cost = (
        float(stiff[~solved_for].sum()) * factor.log10().square()
        + float(stiff[solved_for].sum()) * solved.log10().square()
    )
    best = int(cost.argmin())
    return expected * torch.where(solved_for, solved[best], factor[best])
