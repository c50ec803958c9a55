"""Panels about what data determine: spectrum, predicted errors, further experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralgraph.viz import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR = 1e-17
"""Where singular values of exactly 0 are drawn."""
LARGEST = 1e30
"""Errors above it are left out of figures."""


def spectrum(ax: Axes, values: Any, *, rank: int, rtol: float) -> Axes:
    """Singular values of the scaled sensitivity, descending; what counts as 0 in orange.

    Args:
        ax: Where to draw.
        values: ``(n_par,)``, relative to the largest.
        rank: How many of them are kept.
        rtol: Tolerance, drawn as a line.
    Returns:
        The axes.
    """
    y = np.maximum(np.sort(np.asarray(values, float))[::-1], FLOOR)
    x = np.arange(1, len(y) + 1)
    size = float(np.clip(900 / max(len(y), 1), 2.5, 14))
    ax.scatter(x[:rank], y[:rank], s=size, color=style.BLUE, lw=0, label=f"determined ({rank})")
    if rank < len(y):
        label = f"free ({len(y) - rank})"
        ax.scatter(x[rank:], y[rank:], s=1.6 * size, color=style.ORANGE, lw=0, label=label)
    ax.axhline(rtol, color=style.SOFT, lw=0.9, ls=(0, (4, 3)))
    ax.annotate(
        "tolerance", (1, rtol), (0, 3), xycoords=("axes fraction", "data"), ha="right",
        textcoords="offset points", fontsize=8, color=style.SOFT,
    )  # fmt: skip
    low = min(float(y.min()), rtol)
    ax.set(yscale="log", ylim=(low / 30, 3), xlabel="direction, by size", ylabel="singular value")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    ax.grid(axis="y")
    return ax


def error_shares(
    ax: Axes, errors: Mapping[str, Sequence[float]], totals: Mapping[str, int], *, precise: float
) -> Axes:
    """Share of the parameters of each kind whose relative standard error lies below x.

    A curve that ends below 1 leaves out parameters that are not determined.

    Args:
        ax: Where to draw.
        errors: Relative standard errors of determined parameters, by kind.
        totals: Number of parameters, by kind.
        precise: Bound of a precise parameter, drawn as a line.
    Returns:
        The axes.
    """
    for place, (kind, values) in enumerate(errors.items()):
        x = np.sort(_drawable(values))
        x = x[~np.isnan(x)]
        if not len(x):
            continue
        total = max(totals[kind], 1)
        y = np.arange(1, len(x) + 1) / total
        colour = style.CYCLE[place % len(style.CYCLE)]
        label = f"{kind} ({len(x)} of {total})"
        if len(x) == 1:
            ax.plot(x, y, "o", ms=5, color=colour, label=label)
        else:
            ax.step(np.r_[x[0], x], np.r_[0, y], where="post", color=colour, lw=1.8, label=label)
    ax.axvline(precise, color=style.SOFT, lw=0.9, ls=(0, (4, 3)))
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="relative standard error",
           ylabel="share of parameters below")  # fmt: skip
    ax.grid(axis="y")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return ax


def _drawable(values: Any) -> Any:
    """Numbers, NaN for those that no axis can show: a fit that failed has such errors."""
    x = np.asarray(values, float)
    return np.where(np.abs(x) < LARGEST, x, np.nan)


def more_trajectories(
    ax: Axes, n: Sequence[int], median: Any, high: Any, *, precise: float
) -> Axes:
    """Relative standard errors against the number of further trajectories.

    Args:
        ax: Where to draw.
        n: Further trajectories, the first is 0.
        median: Median over determined parameters.
        high: Their 95 % quantile.
        precise: Bound of a precise parameter, drawn as a line.
    Returns:
        The axes.
    """
    x = np.arange(len(n))
    ax.plot(x, _drawable(median), "o-", ms=4, color=style.BLUE, label="median")
    ax.plot(x, _drawable(high), "o-", ms=4, color=style.SKY, label="95 % quantile")
    ax.axhline(precise, color=style.SOFT, lw=0.9, ls=(0, (4, 3)))
    ax.set_xticks(x, [str(i) for i in n])
    ax.set(yscale="log", xlabel="further trajectories", ylabel="relative standard error")
    ax.set_title("more trajectories like those so far")
    ax.grid(axis="y")
    low, top = ax.get_ylim()
    ax.set_ylim(low, top * (top / low) ** 0.22)  # room for the legend
    ax.legend(loc="upper right", ncols=2)
    return ax


def candidates(ax: Axes, names: Sequence[str], factors: Sequence[float], gains: Any) -> Axes:
    """By how much one further trajectory lowers the errors; gained combinations in words.

    Args:
        ax: Where to draw.
        names: Of the candidates, best first.
        factors: Geometric mean of the errors, after over before.
        gains: Combinations each determines in addition.
    Returns:
        The axes.
    """
    y = np.arange(len(names))[::-1]
    lower = np.nan_to_num(100 * (1 - _drawable(factors)))
    gains = np.asarray(gains)
    colours = [style.GREEN if g > 0 else style.BLUE for g in gains]
    ax.barh(y, lower, color=colours, height=0.62)
    for at, gain, width in zip(y, gains, lower, strict=True):
        if gain > 0:
            ax.annotate(
                f"determines {gain:g} more", (width, at), (3, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=style.GREEN,
            )  # fmt: skip
    ax.set_yticks(y, names, fontsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="fall of the standard errors (%, geometric mean)")
    ax.set_xlim(0, max(float(lower.max()) * (1.45 if (gains > 0).any() else 1.08), 1e-3))
    ax.set_title("one further trajectory")
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    return ax
