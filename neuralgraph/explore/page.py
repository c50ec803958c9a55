"""``exploration.html``: the whole search on one page that needs nothing beside it.

Figures are drawn as SVG here, without matplotlib: they are light enough to be drawn anew while the
search goes, and tell more under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from neuralgraph.core.files import write_text
from neuralgraph.explore import blocks, writing
from neuralgraph.explore.history import History, Iteration
from neuralgraph.explore.knowledge import Knowledge, importance
from neuralgraph.explore.setup import Search
from neuralgraph.explore.words import rounded, word
from neuralgraph.viz import style

PAGE = "exploration.html"
VIRIDIS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
"""Anchors of the colour map viridis (matplotlib, CC0)."""
WIDTH = 840
N_TICKS = 5
NEARLY_1 = 1e-4
SMALLEST_RANGE = 0.05
"""Range of the curve below which outliers are not cut off, in scales of the reward."""


def write_page(search: Search, history: History, folder: Path) -> None:
    """Write the page of a search so far."""
    write_text(folder / PAGE, render(search, history, folder.name))


def render(search: Search, history: History, name: str) -> str:
    """HTML of the page.

    Args:
        search: The search.
        history: What was run.
        name: Of the folder.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("neuralgraph"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    known = history.once("knowledge", lambda: Knowledge(history, search.space))
    rewards = [i.reward for i in history]
    scale = (min(rewards, default=0.0), max(rewards, default=1.0))
    best = history.best_run
    settings = search.settings
    return environment.get_template("exploration.html").render(
        search=search,
        name=name,
        best=best,
        best_value="" if best is None or best.metric is None else _score(best.metric),
        best_settings=[] if best is None else _settings(search, best),
        n_done=len(history),
        n_all=settings.n_iterations,
        n_failed=sum(i.metric is None for i in history),
        spread=history.spread,
        tree=tree_svg(search, history, scale),
        curve=curve_svg(search, history),
        bars=bars_svg(search, importance(history, search.space)),
        legend=_legend(scale),
        principles=[
            {
                "text": p.sentence(search.space[p.key].name, search.metric),
                "runs": ", ".join(map(str, p.runs)),
                "against": ", ".join(map(str, p.against)),
                "is_established": p.is_established,
            }
            for p in known.principles
        ],
        summaries=[
            writing.block_summary(search, history, block)
            for block in sorted({i.block for i in history})
            if len(history.block(block)) == settings.n_iter_block
        ],
        focus=blocks.focus(
            history, history[-1].block if len(history) else 1, search.plan, search.space
        ).words,
        rows=[_row(search, i, scale) for i in history],
        space=[(p.name, p.key, p.words(), p.group) for p in search.space.values()],
    )


def _settings(search: Search, iteration: Iteration) -> list[str]:
    return [
        f"{key}={word(rounded(v, 3) if isinstance(v, float) else v)}"
        for key, v in iteration.values.items()
        if key in search.space and v != search.root[key]
    ]


def _row(search: Search, iteration: Iteration, scale: tuple[float, float]) -> dict[str, Any]:
    proposal = iteration.proposal
    changes = [
        f"{writing.short(search, c.key)}: {_value(c.old)} → {_value(c.new)}"
        for c in proposal.changes
    ]
    return {
        "number": iteration.number,
        "block": iteration.block,
        "parent": "root" if iteration.parent is None else iteration.parent,
        "strategy": proposal.strategy,
        "changes": changes or ["baseline"],
        "code": proposal.code,
        "metric": "–" if iteration.metric is None else _score(iteration.metric),
        "colour": colour(iteration, scale),
        "verdict": iteration.verdict,
        "observation": iteration.observation,
        "rule": proposal.rule,
        "folder": iteration.folder,
        "has_report": search.settings.report and iteration.status == "finished",
    }


def _score(metric: float) -> str:
    """A metric in four digits, or by what is missing to 1.

    >>> _score(0.87654), _score(1 - 2.34e-9), _score(-3.0)
    ('0.8765', '1 − 2.3E-9', '-3.0')
    """
    if 0 < 1 - metric < NEARLY_1:
        return f"1 − {word(rounded(1 - metric, 2))}"
    return word(rounded(metric))


def _value(value: Any) -> str:
    return word(rounded(value, 3) if isinstance(value, float) else value)


# -- colours ------------------------------------------------------------------------------------


def viridis(share: float) -> str:
    """Colour at a share in [0, 1].

    >>> viridis(0.0), viridis(1.0)
    ('#440154', '#fde725')
    """
    at = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(at), len(VIRIDIS) - 2)
    part = at - low
    mixed = []
    for place in (1, 3, 5):
        a, b = (int(VIRIDIS[i][place : place + 2], 16) for i in (low, low + 1))
        mixed.append(round(a + part * (b - a)))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def colour(iteration: Iteration, scale: tuple[float, float]) -> str:
    """Colour of a node: its reward within those of the search; white for a failed run."""
    if iteration.metric is None:
        return "#ffffff"
    low, high = scale
    return viridis((iteration.reward - low) / (high - low) if high > low else 1.0)


def _legend(scale: tuple[float, float]) -> str:
    stops = "".join(
        f'<stop offset="{i / (len(VIRIDIS) - 1):.2f}" stop-color="{c}"/>'
        for i, c in enumerate(VIRIDIS)
    )
    return (
        f'<svg width="260" height="34" role="img" aria-label="colours of the reward">'
        f'<defs><linearGradient id="reward">{stops}</linearGradient></defs>'
        f'<rect x="0" y="2" width="260" height="10" fill="url(#reward)"/>'
        f'<text x="0" y="28" class="tick">reward {scale[0]:.3g}</text>'
        f'<text x="260" y="28" class="tick" text-anchor="end">{scale[1]:.3g}</text></svg>'
    )


# -- figures ------------------------------------------------------------------------------------


def tree_svg(search: Search, history: History, scale: tuple[float, float]) -> str:
    """One tree for each block, side by side; a node's colour is its reward."""
    if not len(history):
        return ""
    places, n_column, deepest = _layout(history)
    radius = 13.0
    step = min(64.0, max(30.0, (WIDTH - 60) / max(n_column, 1)))
    width, height = max(WIDTH, n_column * step + 40), 62 + deepest * 56
    best = history.best_run
    lines, nodes = [], []
    for block in sorted({i.block for i in history}):
        columns = [places[i.number][0] for i in history.block(block)]
        middle = 20 + (min(columns) + max(columns) + 1) / 2 * step
        lines.append(
            f'<text x="{middle:.1f}" y="16" text-anchor="middle" class="label">block {block}</text>'
            f'<circle cx="{middle:.1f}" cy="30" r="4" fill="{style.SOFT}"/>'
        )
        for iteration in history.block(block):
            x, y = _point(places[iteration.number], step)
            above = (middle, 30.0)
            if iteration.parent in places and iteration.parent is not None:
                above = _point(places[iteration.parent], step)
            bend = (above[1] + y) / 2
            lines.append(
                f'<path d="M{above[0]:.1f} {above[1]:.1f} C{above[0]:.1f} {bend:.1f} {x:.1f} '
                f'{bend:.1f} {x:.1f} {y:.1f}" class="edge"/>'
            )
            is_best = best is not None and iteration.number == best.number
            nodes.append(_node(search, iteration, x, y, radius, colour(iteration, scale), is_best))
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="tree of the search">{"".join(lines)}{"".join(nodes)}</svg>'
    )


def _point(place: tuple[float, int], step: float) -> tuple[float, float]:
    return 20 + (place[0] + 0.5) * step, 30.0 + place[1] * 56


def _node(
    search: Search, iteration: Iteration, x: float, y: float, radius: float, fill: str, best: bool
) -> str:
    changes = ", ".join(
        f"{writing.short(search, c.key)}: {_value(c.old)} → {_value(c.new)}"
        for c in iteration.proposal.changes
    )
    value = "failed" if iteration.metric is None else _score(iteration.metric)
    tip = escape(
        f"iteration {iteration.number}: {search.metric} {value} ({iteration.verdict})\n"
        f"{iteration.proposal.strategy}: {changes or 'baseline'}"
    )
    dark = fill in ("#ffffff",) or int(fill[1:3], 16) + int(fill[3:5], 16) > 300
    ring = f'stroke="{style.VERMILION}" stroke-width="3"' if best else f'stroke="{style.SOFT}"'
    return (
        f'<a href="#iter-{iteration.number}"><g><title>{tip}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" {ring}/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" '
        f'fill="{style.INK if dark else "#ffffff"}" class="id">{iteration.number}</text></g></a>'
    )


def _layout(history: History) -> tuple[dict[int, tuple[float, int]], int, int]:
    """Column and depth of every node: leaves side by side, parents above their children."""
    children: dict[tuple[int, int | None], list[int]] = {}
    for i in history:
        children.setdefault((i.block, i.parent), []).append(i.number)
    places: dict[int, tuple[float, int]] = {}
    column = 0
    deepest = 1

    def place(block: int, root: int) -> None:
        nonlocal column, deepest
        stack: list[tuple[int, int, bool]] = [(root, 1, False)]
        while stack:
            number, depth, is_done = stack.pop()
            below = children.get((block, number), [])
            if is_done:
                places[number] = (sum(places[b][0] for b in below) / len(below), depth)
            elif below:
                stack.append((number, depth, True))
                stack.extend((b, depth + 1, False) for b in reversed(below))
            else:
                places[number] = (column, depth)
                column += 1
            deepest = max(deepest, depth)

    for block in sorted({i.block for i in history}):
        for number in children.get((block, None), []):
            place(block, number)
        column += 1
    return places, max(column - 1, 1), deepest


def curve_svg(search: Search, history: History) -> str:
    """Primary metric of every iteration, and the best so far as a line."""
    judged = [(i.number, i.metric, i.verdict) for i in history if i.metric is not None]
    if not judged:
        return ""
    metrics = sorted(m for _, m, _ in judged)
    low, high = metrics[0], metrics[-1]
    middle = metrics[len(metrics) // 2]
    least = SMALLEST_RANGE * search.reward.scale
    cut = high - max(4 * (high - middle), least)
    if search.reward.direction == "maximize" and low < cut:
        low = cut  # far outliers sit on the lower edge
    top = low + max(4 * (middle - low), least)
    if search.reward.direction == "minimize" and high > top:
        high = top
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - pad, high + pad
    left, right, upper, lower = 92.0, WIDTH - 16.0, 14.0, 250.0
    n = max(history[-1].number, 2)

    def at(number: int, metric: float) -> tuple[float, float]:
        share = min(max((metric - low) / (high - low), 0.0), 1.0)
        return left + (number - 1) / (n - 1) * (right - left), lower - share * (lower - upper)

    marks = [_axes(search.metric, low, high, n, left, right, upper, lower)]
    best, path = None, ""
    for number, metric, _ in judged:
        better = best is None or search.reward.is_better(metric, best)
        x, y = at(number, metric if better else best or 0.0)
        path += f"H{x:.1f}" + (f"V{y:.1f}" if better else "") if path else f"M{x:.1f} {y:.1f}"
        best = metric if better else best
    path += f"H{right:.1f}"
    marks.append(f'<path d="{path}" fill="none" stroke="{style.BLUE}" stroke-width="2"/>')
    size = settings_edges(search, n)
    for edge in size:
        x = left + (edge - 0.5) / (n - 1) * (right - left)
        marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{upper}" y2="{lower}" class="block"/>')
    for number, metric, verdict in judged:
        x, y = at(number, metric)
        tip = escape(f"iteration {number}: {_score(metric)} ({verdict})")
        marks.append(
            f'<a href="#iter-{number}"><circle cx="{x:.1f}" cy="{y:.1f}" r="4" '
            f'fill="{style.INK}" fill-opacity="0.65"><title>{tip}</title></circle></a>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} 292" width="{WIDTH}" role="img" '
        f'aria-label="metric against iteration">{"".join(marks)}</svg>'
    )


def settings_edges(search: Search, n: int) -> list[int]:
    """Last iterations of the blocks that are followed by another."""
    size = search.settings.n_iter_block
    return [edge for edge in range(size, n, size)]


def _axes(
    name: str, low: float, high: float, n: int, left: float, right: float, upper: float,
    lower: float,
) -> str:  # fmt: skip
    parts = []
    for tick in _ticks(low, high):
        y = lower - (tick - low) / (high - low) * (lower - upper)
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" class="tick">{tick:.6g}</text>'
        )
    every = max(1, round(n / 10))
    for number in range(1, n + 1):
        if number == 1 or number % every == 0:
            x = left + (number - 1) / (n - 1) * (right - left)
            parts.append(
                f'<text x="{x:.1f}" y="{lower + 18}" text-anchor="middle" class="tick">'
                f"{number}</text>"
            )
    parts.append(
        f'<text x="{(left + right) / 2}" y="{lower + 38}" text-anchor="middle" class="label">'
        f"iteration</text>"
        f'<text x="14" y="{(upper + lower) / 2}" text-anchor="middle" class="label" '
        f'transform="rotate(-90 14 {(upper + lower) / 2})">{escape(name)}</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / N_TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((s * unit for s in (1, 2, 5, 10) if s * unit >= rough - 1e-12), default=unit)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def bars_svg(search: Search, shares: dict[str, float]) -> str:
    """Share of the variance of the reward each parameter explains alone."""
    shown: Sequence[tuple[str, float]] = [(k, s) for k, s in shares.items() if s > 0]
    if not shown:
        return ""
    left, right, height = 220.0, WIDTH - 70.0, 24
    most = max(s for _, s in shown)
    parts = []
    for row, (key, share) in enumerate(shown):
        y = 8 + row * height
        parts.append(
            f'<text x="{left - 10}" y="{y + 13}" text-anchor="end" class="label">'
            f"{escape(search.space[key].name)}</text>"
            f'<rect x="{left}" y="{y}" height="16" width="{(right - left) * share / most:.1f}" '
            f'fill="{style.BLUE}"><title>{escape(key)}</title></rect>'
            f'<text x="{left + (right - left) * share / most + 8:.1f}" y="{y + 13}" class="tick">'
            f"{share:.2f}</text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {16 + len(shown) * height}" width="{WIDTH}" role="img" '
        f'aria-label="importance of the parameters">{"".join(parts)}</svg>'
    )
