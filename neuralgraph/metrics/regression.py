"""Regression scores on the identity line, and the refitted line that older work reported.

Every function flattens its inputs unless it says otherwise, works in float64 and returns a Python
float; ``nan`` where the score is not defined (no entries, or a target without variance), so that a
scorecard moves it to ``not_computed``.
"""

from __future__ import annotations

from torch import Tensor


def mse(prediction: Tensor, target: Tensor) -> float:
    r"""Mean squared error, $\frac1n \sum (\hat y - y)^2$.

    Args:
        prediction: Any shape.
        target: Same shape.
    Returns:
        The error in squared units of the target.
    Raises:
        ValueError: the shapes differ.
    Source:
        Standard definition.

    >>> import torch
    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    2.0
    """
    prediction, target = _pair(prediction, target)
    return float((prediction - target).square().mean()) if target.numel() else float("nan")


def r2_identity(prediction: Tensor, target: Tensor, *, per_variable: bool) -> float:
    r"""Coefficient of determination on the identity line, $1 - SSE/SST$.

    $SSE = \sum (\hat y - y)^2$; $SST = \sum (y - \bar y)^2$ with one mean for all entries, or one
    mean for each entry of the last axis. Nothing is refitted: a wrong scale or offset lowers it.
    It is 1 only for a perfect prediction and has no lower bound.

    Args:
        prediction: ``(*, n_var)``.
        target: Same shape.
        per_variable: ``True`` centres each variable of the last axis on its own mean (sums are
            pooled afterwards, so a variable weighs as much as it varies); ``False`` uses one mean.
    Returns:
        The score, or ``nan`` where the target does not vary.
    Raises:
        ValueError: the shapes differ.
    Source:
        Standard definition.

    >>> import torch
    >>> r2_identity(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]), per_variable=False)
    -9.0
    """
    prediction, target = _pair(prediction, target)
    if not target.numel():
        return float("nan")
    if per_variable:
        target = target.reshape(-1, target.shape[-1])
        prediction = prediction.reshape(target.shape)
        centre = target.mean(0, keepdim=True)
    else:
        centre = target.mean()
    sse = (prediction - target).square().sum()
    sst = (target - centre).square().sum()
    return float(1 - sse / sst) if float(sst) > 0 else float("nan")


def r2_refit(prediction: Tensor, target: Tensor) -> float:
    r"""R² of the line $\hat y = a y + b$ fitted to the pairs: the squared Pearson correlation.

    Blind to scale, to offset and to a common sign: reported beside :func:`r2_identity` only
    because earlier work used it.

    Args:
        prediction: Any shape.
        target: Same shape.
    Returns:
        A number in [0, 1], or ``nan`` where either side does not vary.
    Raises:
        ValueError: the shapes differ.
    Source:
        Least squares with intercept.

    >>> import torch
    >>> round(r2_refit(torch.tensor([-2.0, -4.0, -6.0]), torch.tensor([1.0, 2.0, 3.0])), 6)
    1.0
    """
    return pearson(prediction, target) ** 2


def pearson(prediction: Tensor, target: Tensor) -> float:
    """Pearson correlation of all pairs.

    Args:
        prediction: Any shape.
        target: Same shape.
    Returns:
        A number in [-1, 1], or ``nan`` where either side does not vary.
    Raises:
        ValueError: the shapes differ.
    Source:
        Pearson (1895).
    """
    prediction, target = _pair(prediction, target)
    if target.numel() < 2:
        return float("nan")
    x, y = prediction.flatten(), target.flatten()
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return float((x @ y / scale).clamp(-1, 1)) if float(scale) > 0 else float("nan")


def mean_pearson(prediction: Tensor, target: Tensor) -> float:
    """Mean over the last axis of the Pearson correlation along all others.

    A variable whose target does not vary is left out; one whose prediction does not vary counts
    as 0 (a constant explains nothing).

    Args:
        prediction: ``(*, n_var)``.
        target: Same shape.
    Returns:
        A number in [-1, 1], or ``nan`` where no target varies.
    Raises:
        ValueError: the shapes differ.
    Source:
        Own choice of the two exceptions.
    """
    prediction, target = _pair(prediction, target)
    if not target.numel():
        return float("nan")
    x = prediction.reshape(-1, prediction.shape[-1])
    y = target.reshape(x.shape)
    x, y = x - x.mean(0), y - y.mean(0)
    size_x, size_y = x.norm(dim=0), y.norm(dim=0)
    varies = size_y > 1e-12 * (size_y.max() if size_y.numel() else 0)
    if not bool(varies.any()):
        return float("nan")
    correlation = (x * y).sum(0) / (size_x * size_y).clamp_min(1e-300)
    return float(correlation[varies].clamp(-1, 1).mean())


def least_squares_slope(prediction: Tensor, target: Tensor) -> float:
    """Slope of prediction against target, with intercept.

    Args:
        prediction: Any shape.
        target: Same shape.
    Returns:
        The slope (1 is ideal), or ``nan`` where the target does not vary.
    Raises:
        ValueError: the shapes differ.
    Source:
        Least squares.
    """
    prediction, target = _pair(prediction, target)
    if target.numel() < 2:
        return float("nan")
    y = target.flatten() - target.mean()
    variance = y @ y
    if float(variance) == 0:
        return float("nan")
    return float(y @ (prediction.flatten() - prediction.mean()) / variance)


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    return prediction.detach().double(), target.detach().double()
