"""Panels: ``(ax, arrays) -> ax``. Tensors or arrays come in; axis labels are the caller's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralgraph.viz import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS_BLUE = "#1f4fd6"
TERM_COLOURS = (style.VERMILION, style.GREEN, style.PURPLE, style.ORANGE, style.SOFT)


def identity_scatter(
    ax: Axes,
    true: Any,
    estimate: Any,
    *,
    groups: Mapping[str, tuple[Any, str]] | None = None,
    jitter: float = 0.0,
    band: float | None = None,
) -> Axes:
    """Estimate against truth on equal axes with the line of perfect recovery.

    Args:
        ax: Where to draw.
        true: ``(n,)``.
        estimate: ``(n,)``.
        groups: Label -> (mask ``(n,)``, colour), drawn in order; by default all in one colour.
        jitter: Half-width of a fixed, evenly spread sideways shift, for discrete truths.
        band: Half-width of a shaded band around the line.
    Returns:
        The axes.
    """
    x, y = _array(true).ravel(), _array(estimate).ravel()
    finite = np.isfinite(x) & np.isfinite(y)
    if groups is None:
        groups = {"": (np.ones(len(x), bool), style.BLUE)}
    values = np.concatenate([x[finite], y[finite]]) if finite.any() else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    line = np.array([low, high])
    if band is not None:
        ax.fill_between(line, line - band, line + band, color=style.LINE, alpha=0.6, lw=0)
    ax.plot(line, line, color=style.INK, lw=1, ls="--", zorder=1)
    size = float(np.clip(4000 / max(len(x), 1), 5, 26))
    shift = jitter * _spread(len(x))
    for label, (mask, colour) in groups.items():
        chosen = _array(mask).astype(bool).ravel() & finite
        ax.scatter(
            (x + shift)[chosen],
            y[chosen],
            s=size,
            color=colour,
            alpha=0.65,
            lw=0,
            label=f"{label} (n = {int(chosen.sum())})" if label else None,
            zorder=2,
        )
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_aspect("equal")
    if any(groups):
        ax.legend(loc="upper left", markerscale=1.6, handletextpad=0.2, borderaxespad=0.2)
    return ax


def error_bars(ax: Axes, true: Any, estimate: Any, half: Any, *, jitter: float = 0.0) -> Axes:
    """Vertical intervals behind the points of :func:`identity_scatter`; the limits stay.

    Args:
        ax: With the points drawn.
        true: ``(n,)``.
        estimate: ``(n,)``.
        half: Half-width of each interval, ``(n,)``; not finite: none is drawn.
        jitter: As in :func:`identity_scatter`.
    Returns:
        The axes.
    """
    x, y, h = _array(true).ravel(), _array(estimate).ravel(), _array(half).ravel()
    limits = ax.get_ylim()
    x = x + jitter * _spread(len(x))
    on = np.isfinite(h) & np.isfinite(x) & np.isfinite(y)
    h = np.minimum(h, 10 * (limits[1] - limits[0]))  # beyond the axes either way
    ax.vlines(x[on], (y - h)[on], (y + h)[on], color=style.BLUE, lw=0.7, alpha=0.4, zorder=1.5)
    ax.set_ylim(limits)
    return ax


def trajectories(
    ax: Axes,
    time: Any,
    seen: Any,
    predicted: Any | None,
    *,
    names: Sequence[str],
    n_shown: int,
) -> Axes:
    """Measured and predicted courses of the variables that move most, named beside the curve.

    Args:
        ax: Where to draw.
        time: ``(n_time,)``.
        seen: Measured, ``(n_time, n_var)``: dots, or broad pale lines from 60 frames on.
        predicted: Same shape, drawn as thin lines; or ``None``.
        names: ``n_var`` names.
        n_shown: How many variables at most.
    Returns:
        The axes.
    """
    time, seen = _array(time), _array(seen)
    chosen = most_active(seen, n_shown)
    is_long = len(time) > 60
    measured: dict[str, Any] = {"ls": "", "marker": "o", "ms": 3.5, "mew": 0, "alpha": 0.8}
    if is_long:
        measured = {"ls": "-", "lw": 3.2, "alpha": 0.35}
    ends = []
    for place, at in enumerate(chosen):
        colour = style.CYCLE[place % len(style.CYCLE)]
        ax.plot(time, seen[:, at], color=colour, **measured)
        if predicted is not None:
            ax.plot(time, _array(predicted)[:, at], color=colour, lw=1.3)
        ends.append((float(seen[-1, at]), names[at], colour))
    _label_ends(ax, float(time[-1]), ends)
    ax.margins(x=0.02)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=style.SOFT, label="measured", **measured)]
    if predicted is not None:
        handles.append(Line2D([], [], color=style.SOFT, lw=1.3, label="predicted"))
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def most_active(seen: Any, n_shown: int) -> list[int]:
    """Variables spread over the range of activity: every k-th in order of their change.

    Args:
        seen: ``(n_time, n_var)``.
        n_shown: How many at most.
    Returns:
        Indices, the most active first.
    """
    values = _array(seen)
    change = np.abs(values - values[:1]).max(0)
    order = np.argsort(-change, kind="stable")
    moving = order[: max(1, (len(order) + 1) // 2)]
    step = max(1, len(moving) // max(n_shown, 1))
    return [int(i) for i in moving[::step][:n_shown]]


def heatmap(
    ax: Axes,
    values: Any,
    *,
    label: str,
    extent: tuple[float, float] | None,
    limits: tuple[float, float] | None,
    diverging: bool,
) -> Axes:
    """Matrix as an image with its colour bar.

    Args:
        ax: Where to draw.
        values: ``(n_row, n_column)``; row 0 on top.
        label: Of the colour bar, with its unit.
        extent: Values of the horizontal axis at its two ends; ``None``: column numbers.
        limits: Of the colours; ``None``: those of the data (0.5 and 99.5 % quantiles when
            ``diverging``, symmetric around 0).
        diverging: Two-sided colours around 0.
    Returns:
        The axes.
    """
    image = _array(values)
    if limits is None:
        finite = image[np.isfinite(image)]
        if diverging:
            reach = float(np.quantile(np.abs(finite), 0.995)) if finite.size else 1.0
            reach = reach or (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
            limits = (-reach, reach)
        elif finite.size:
            limits = (float(finite.min()), float(finite.max()))
        else:
            limits = (0.0, 1.0)
    left, right = extent if extent is not None else (-0.5, image.shape[1] - 0.5)
    shown = ax.imshow(
        image,
        aspect="auto",
        cmap=style.DIVERGING if diverging else style.SEQUENTIAL,
        vmin=limits[0],
        vmax=limits[1],
        extent=(left, right, image.shape[0] - 0.5, -0.5),
    )
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02, aspect=28, fraction=0.05)
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib leaves it untyped
    bar.ax.tick_params(length=2)
    ax.spines[["left", "bottom"]].set_visible(False)
    return ax


def curves(ax: Axes, x: Any, learned: Any, true: Any | None, *, colours: Sequence[str]) -> Axes:
    """Families of curves: learned solid, truth dashed and darker on top.

    Args:
        ax: Where to draw.
        x: ``(n_point,)`` or ``(n_point, n_curve)``.
        learned: ``(n_point, n_curve)``.
        true: Same shape, or ``None``.
        colours: One for each curve (repeated as needed).
    Returns:
        The axes.
    """
    x, learned = _array(x), _array(learned)
    grid = np.broadcast_to(x[:, None] if x.ndim == 1 else x, learned.shape)
    for at in range(learned.shape[1]):
        colour = colours[at % len(colours)]
        ax.plot(grid[:, at], learned[:, at], color=colour, lw=2.2, alpha=0.75)
        if true is not None:
            ax.plot(grid[:, at], _array(true)[:, at], color=style.INK, lw=0.9, ls=(0, (4, 2)))
    return ax


def loss_curves(ax: Axes, path: Path | str) -> Axes:
    """Terms of the loss in ``metrics.jsonl`` on a log axis, as document 002 colours them.

    Drawn are ``loss`` (thick blue), ``regul_total`` (cyan), ``validation_loss`` (dashed) and the
    weighted regularisers ``coeff_*``, nothing else of the log. Curves break between phases. A
    phase without optimiser steps (solved in closed form) is a diamond with its name. Values that
    are not positive are left out.

    Args:
        ax: Where to draw.
        path: ``metrics.jsonl`` of a run folder; a missing or empty file leaves a note.
    Returns:
        The axes.
    """
    path = Path(path)
    rows = []
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if isinstance(row.get("loss"), (int, float))]
    ax.set(xlabel="training step", ylabel="loss")
    if not rows:
        ax.text(0.5, 0.5, "no epoch was logged", ha="center", va="center", transform=ax.transAxes)
        return ax
    steps = [float(row.get("step", i + 1)) for i, row in enumerate(rows)]
    is_closed = np.array([b <= a for a, b in zip([0.0, *steps], steps, strict=False)])
    x = np.array(steps)
    if is_closed.any():  # phases without steps have no place of their own on an axis of steps
        x = np.arange(1, len(rows) + 1, dtype=float)
        ax.set_xlabel("epoch, counted over all phases")
    phases = [str(row.get("phase", "")) for row in rows]
    breaks = [at for at in range(1, len(rows)) if phases[at] != phases[at - 1]]
    names = list(dict.fromkeys(k for row in rows for k, v in row.items() if _is_number(v)))
    terms = [name for name in names if name.startswith("coeff_")]

    def draw(name: str, **options: Any) -> None:
        value = np.array([row[name] if _is_number(row.get(name)) else np.nan for row in rows])
        value = np.where((value > 0) & ~is_closed, value, np.nan)
        if not np.isfinite(value).any():
            return
        ax.plot(
            np.insert(x, breaks, np.nan), np.insert(value, breaks, np.nan), label=name, **options
        )
        alone = [part for part in np.split(np.arange(len(x)), breaks) if len(part) == 1]
        if alone:  # a line through one point cannot be seen
            at = np.concatenate(alone)
            ax.plot(x[at], value[at], "o", ms=4, color=options["color"])

    for place, name in enumerate(terms):
        draw(name, color=TERM_COLOURS[place % len(TERM_COLOURS)], lw=0.9, alpha=0.9)
    draw("regul_total", color="#00BCD4", lw=1.6)
    draw("validation_loss", color=style.INK, lw=1.1, ls="--")
    draw("loss", color=LOSS_BLUE, lw=2.8)
    for at in np.flatnonzero(is_closed):
        if rows[at]["loss"] > 0:
            ax.plot(x[at], rows[at]["loss"], "D", ms=5, color=LOSS_BLUE)
            ax.annotate(
                phases[at], (x[at], rows[at]["loss"]), (7, 0),
                textcoords="offset points", fontsize=8, va="center", color=style.SOFT,
            )  # fmt: skip
    if ax.lines:
        ax.set_yscale("log")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    for at in breaks:
        ax.axvline((x[at - 1] + x[at]) / 2, color=style.LINE, lw=1, zorder=0)
    ax.grid(axis="y")
    return ax


def _label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of curves, pushed apart until none overlap."""
    if not ends:
        return
    low, high = ax.get_ylim()
    height = ax.get_window_extent().height / ax.figure.dpi * 72
    gap = (high - low) * 10.5 / max(height, 1)
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    place = np.array([ends[i][0] for i in order], float)
    for _ in range(200):
        overlap = gap - np.diff(place)
        if (overlap <= 1e-9).all():
            break
        for i, amount in enumerate(overlap):
            if amount > 0:
                place[i] -= amount / 2
                place[i + 1] += amount / 2
    for at, y in zip(order, place, strict=True):
        value, name, colour = ends[at]
        ax.annotate(
            name,
            (x, value),
            xytext=(1.015, y),
            textcoords=ax.get_yaxis_transform(),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def _spread(n: int) -> Any:
    """Numbers evenly spread over (-1, 1) in an order without visible pattern (golden ratio)."""
    return 2 * ((np.arange(n) * 0.6180339887498949) % 1) - 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _array(values: Any) -> Any:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values)
