"""Smoothing of evenly sampled series, the smoothness chosen by the data."""

# scipy has no stubs, and numpy's are partly unknown to a strict reader:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.errors import DataError

STRENGTHS = tuple(10.0 ** (0.5 * n) for n in range(-2, 15))
"""Penalties that are tried, in units of frames to the power of twice the order."""


def whittaker(series: Tensor, *, order: int = 3) -> Tensor:
    r"""Whittaker smoother with the penalty of each series chosen by generalised cross-validation.

    Minimises $\sum_t (y_t - z_t)^2 + \lambda \sum_t (\Delta^d z_t)^2$; polynomials below degree
    ``order`` pass unchanged at any $\lambda$. The trace of the smoother is that of a long series,
    $\sum_\omega 1 / (1 + \lambda (2 - 2\cos\omega)^d)$.

    Args:
        series: ``(n_time, n_series)``, evenly spaced.
        order: Order d of the differences.

    Returns:
        Smoothed series, ``(n_time, n_series)`` float64.

    Raises:
        DataError: fewer frames than the differences need.

    Source:
        Whittaker (1923); Eilers (2003); generalised cross-validation after Craven & Wahba (1979).
    """
    from scipy.linalg import cho_solve_banded, cholesky_banded

    y = series.detach().double().cpu().numpy()
    n = y.shape[0]
    if n < 2 * order + 2:
        raise DataError(
            f"smoothing needs at least {2 * order + 2} frames of each run, got {n}: record more"
        )
    difference = np.diff(np.eye(order + 1), order, axis=0)[0]
    band = np.zeros((order + 1, n))
    for row in range(n - order):
        for lag in range(order + 1):
            for first in range(order + 1 - lag):
                band[order - lag, row + first + lag] += difference[first] * difference[first + lag]
    frequency = 2 - 2 * np.cos(math.pi * np.arange(n) / n)
    lowest = np.full(y.shape[1], np.inf)
    smooth = y.copy()
    for strength in STRENGTHS:
        system = strength * band
        system[order] += 1
        z = cho_solve_banded((cholesky_banded(system), False), y)
        trace = float((1 / (1 + strength * frequency**order)).sum())
        score = np.square(y - z).mean(0) / (1 - trace / n) ** 2
        is_better = score < lowest
        lowest = np.where(is_better, score, lowest)
        smooth[:, is_better] = z[:, is_better]
    return torch.from_numpy(smooth)
