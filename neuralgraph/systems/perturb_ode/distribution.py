"""Clouds of cells: distances between them, and how a field moves them at random.

Differentiating cells do not rest; what is compared is a distribution on each day.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Positive
from neuralgraph.core.errors import ConfigError, MissingExtraError, SolverError


def energy_distance(a: Tensor, b: Tensor, weight_a: Tensor | None = None) -> Tensor:
    r"""Energy distance of two clouds, batched: 0 if and only if the distributions are the same.

    :math:`2\,E|X - Y| - E|X - X'| - E|Y - Y'|`, pairs of a cell with itself left out, so that the
    value is unbiased (and may fall below 0) for equal weights.

    Args:
        a: ``(*batch, n_a, n_gene)``.
        b: ``(*batch, n_b, n_gene)``.
        weight_a: Weights of the first cloud, ``(*batch, n_a)``, summing to 1; equal for ``None``.

    Source:
        Székely & Rizzo (2013).
    """
    n_a, n_b = a.shape[-2], b.shape[-2]
    if n_a < 2 or n_b < 2:
        raise ConfigError(f"an energy distance needs 2 cells on each side, got {n_a} and {n_b}")
    across, within_a, within_b = _distance(a, b), _distance(a, a), _distance(b, b)
    if weight_a is None:
        cross = across.mean((-1, -2))
        own = within_a.sum((-1, -2)) / (n_a * (n_a - 1))
    else:
        cross = (weight_a * across.mean(-1)).sum(-1)
        pair = weight_a[..., :, None] * weight_a[..., None, :]
        kept = 1 - weight_a.square().sum(-1)
        own = (pair * within_a).sum((-1, -2)) / kept.clamp_min(1e-12)
    return 2 * cross - own - within_b.sum((-1, -2)) / (n_b * (n_b - 1))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances with a gradient everywhere (0 where two points are the same)."""
    square = (
        a.square().sum(-1)[..., :, None]
        + b.square().sum(-1)[..., None, :]
        - 2 * a @ b.transpose(-1, -2)
    )
    return square.clamp_min(1e-12).sqrt()


def sinkhorn_divergence(
    a: Tensor, b: Tensor, *, blur: Positive, weight_a: Tensor | None = None
) -> Tensor:
    r"""Debiased entropic transport cost between two clouds, by POT (extra ``transport``).

    :math:`S(a, b) - \tfrac12 S(a, a) - \tfrac12 S(b, b)` with squared distances and entropy weight
    ``blur`` times their mean; 0 for equal clouds.

    Args:
        a: ``(n_a, n_gene)``.
        b: ``(n_b, n_gene)``.
        blur: Entropy weight relative to the mean squared distance.
        weight_a: Weights of the first cloud, ``(n_a,)``, summing to 1; equal for ``None``.

    Raises:
        MissingExtraError: POT is not installed.

    Source:
        Genevay, Peyré & Cuturi (2018); POT (Flamary et al. 2021).
    """
    try:
        import ot
    except ImportError as error:
        raise MissingExtraError("POT", "transport", "a Sinkhorn loss") from error

    even_b = torch.full((len(b),), 1 / len(b), dtype=b.dtype, device=b.device)
    if weight_a is None:
        weight_a = torch.full((len(a),), 1 / len(a), dtype=a.dtype, device=a.device)
    scale = blur * float(_distance(a, b).detach().square().mean())

    def cost(x: Tensor, y: Tensor, wx: Tensor, wy: Tensor) -> Tensor:
        squared = _distance(x, y).square()
        plan: Any = ot.sinkhorn(
            wx.detach(), wy.detach(), squared.detach(), scale, method="sinkhorn_log",
            numItermax=500, stopThr=1e-6, warn=False,
        )  # fmt: skip
        # the plan is optimal: the gradient of the cost with the plan held is that of the problem
        entropy = (plan * (plan / (wx[:, None] * wy)).clamp_min(1e-300).log()).sum()
        return (plan * squared).sum() + scale * entropy.detach()

    return (
        cost(a, b, weight_a, even_b)
        - 0.5 * cost(a, a, weight_a, weight_a)
        - 0.5 * cost(b, b, even_b, even_b)
    )


def euler_maruyama(
    drift: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    start: Tensor,
    time: Tensor,
    *,
    max_step: Positive,
    generator: torch.Generator,
    growth: Callable[[Tensor], Tensor] | None = None,
    floor: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Cells under :math:`dx = f(x)\,dt + \sigma(x)\,dW`, strong order 1/2, and their growth.

    Weights follow :math:`d \log w / dt = h(x)`: a cell of a dividing kind counts for more.

    Args:
        drift: f, ``(*n, n_gene)`` to the same shape, units / day.
        spread: σ, the same, units / day^½.
        start: ``(*n, n_gene)``.
        time: Days, ``(n_time,)``, increasing; the first is that of the start.
        max_step: Longest step, days.
        generator: Source of the noise.
        growth: h, ``(*n, n_gene)`` to ``(*n,)``, 1 / day; ``None`` for none.
        floor: Lowest value of a state (0 for expression), ``None`` for none.

    Returns:
        States ``(n_time, *n, n_gene)`` and log weights ``(n_time, *n)``, 0 at the start.

    Raises:
        SolverError: a state that is not finite; names the day.

    Source:
        Kloeden & Platen (1992), section 10.2.
    """
    state, weight = start, torch.zeros_like(start[..., 0])
    states, weights = [state], [weight]
    grid = time.tolist()
    for begin, end in itertools.pairwise(grid):
        n_step = max(1, -int(-(end - begin) // max_step))
        h = (end - begin) / n_step
        for _ in range(n_step):
            if growth is not None:
                weight = weight + h * growth(state)
            noise = torch.randn(state.shape, dtype=state.dtype, generator=generator)
            state = state + h * drift(state) + h**0.5 * spread(state) * noise.to(state.device)
            if floor is not None:
                state = state.clamp_min(floor)
        if not bool(torch.isfinite(state.detach()).all()):
            raise SolverError(
                f"the cells are not finite by day {end:g}: shorten max_step (now {max_step:g} "
                "days), or lower the noise"
            )
        states.append(state)
        weights.append(weight)
    return torch.stack(states), torch.stack(weights)
