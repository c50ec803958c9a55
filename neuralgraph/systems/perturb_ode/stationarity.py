"""Which conditions may be asked to rest: a gate in front of the steady-state loss."""

from __future__ import annotations

import torch
from torch import Tensor


def settled(
    change: Tensor, variance: Tensor, is_train: Tensor, measured: Tensor, *, margin: float
) -> Tensor:
    r"""Whether a condition's own change between the last two days is below a margin for sure.

    The mean change of the training conditions is taken out (drift, or each day's own library).
    What remains, squared, less its sampling variance, is a mean over genes with a standard error
    of :math:`\sqrt{\sum_g (2 v_g^2 + 4 q_g v_g)} / n`, q the corrected square; the condition is
    settled where mean plus 1.645 standard errors (one-sided, 5 %) is below the squared margin.

    Args:
        change: Last day minus the day before, ``(n_condition, n_gene)``.
        variance: Its sampling variance, same shape.
        is_train: Conditions a fold may learn from, ``(n_fold, n_condition)``.
        measured: 0 for a perturbed gene, else 1, ``(n_condition, n_gene)``.
        margin: Units of the state.

    Returns:
        ``(n_fold, n_condition)`` bool; genes count as independent, which makes the gate a little
        generous where they are not.
    """
    share = is_train[..., None] * measured
    number = share.sum(1, keepdim=True).clamp_min(1)
    common = (change * share).sum(1, keepdim=True) / number
    # a training condition is part of the mean that is taken out of it
    noise = (
        variance * (1 - share / number) ** 2
        + ((variance * share).sum(1, keepdim=True) - variance * share) / number**2
    )
    square = ((change - common) ** 2 - noise) * measured
    n = measured.sum(1)
    error = ((2 * noise**2 + 4 * square.clamp_min(0) * noise) * measured).sum(-1).sqrt() / n
    return square.sum(-1) / n + 1.645 * error < margin**2


def last_change(state: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Change between the last two days of ``(n_condition, n_day, n_gene)`` and its variance.

    A single day is no change: the variance is infinite, so that nothing counts as settled.
    """
    if state.shape[1] < 2:
        return torch.zeros_like(state[:, 0]), torch.full_like(state[:, 0], float("inf"))
    return state[:, -1] - state[:, -2], variance[:, -1] + variance[:, -2]
