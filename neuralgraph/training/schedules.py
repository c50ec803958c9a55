"""Factors on the learning rate along training."""

from __future__ import annotations

import math

from neuralgraph.training.session import Phase


def exponential_cosine(step: int, *, period: int, floor: float) -> float:
    r"""Exponential decay times half a cosine, over a floor.

    $(1 - a)\, e^{-t/T}\, \tfrac12 (1 + \cos(\pi t / T)) + a$ with $t = $ step mod $T$: from 1 down
    to about $a$, and a warm restart after each period.

    Args:
        step: Steps (or epochs) done.
        period: $T$, at least 1.
        floor: $a$ in [0, 1].

    Source:
        The schedule of document 003 (there named after annealing), section 2.2.

    >>> [round(1e-5 * exponential_cosine(t, period=30, floor=0.1), 8) for t in (0, 1, 15, 29, 30)]
    [1e-05, 9.68e-06, 3.73e-06, 1.01e-06, 1e-05]
    """
    phase = (step % period) / period
    return (1.0 - floor) * math.exp(-phase) * 0.5 * (1.0 + math.cos(math.pi * phase)) + floor


def set_rate(phase: Phase, factor: float) -> None:
    """Set the learning rate of each group to a factor of its rate at the start of the phase."""
    if phase.optimizer is None:
        return
    for group, rate in zip(phase.optimizer.param_groups, phase.rates, strict=True):
        group["lr"] = rate * factor
