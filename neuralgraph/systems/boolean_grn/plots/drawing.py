"""Panels of Boolean circuits: the circuit, its state-transition graph, attractors, trajectories.

Activation is a blue arrow with a head, inhibition a vermilion line with a bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuralgraph.systems.boolean_grn.attractors import Attractor, as_states
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

N_GENE_GRAPH = 8
"""Largest circuit whose states are drawn one by one (256 of them)."""
N_STATE_DRAWN = 24
"""States of one attractor that are drawn."""


def draw_circuit(ax: Axes, circuit: SignedCircuit, *, size: float = 1.0) -> Axes:
    """Genes on a circle, with activation (blue arrow) and inhibition (vermilion bar).

    Args:
        ax: Where to draw.
        circuit: At most a few dozen genes stay readable.
        size: Scale of nodes, lines and letters.
    """
    from matplotlib.patches import Circle, FancyArrowPatch

    from neuralgraph.viz import style

    n = circuit.n_gene
    radius = 1.0 if n > 1 else 0.0
    # two genes lie beside each other, others begin at the top
    turn = math.pi if n == 2 else math.pi / 2
    angle = turn - 2 * math.pi * np.arange(n) / n
    place = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    node = min(0.24, 0.62 * math.sin(math.pi / n)) if n > 1 else 0.24
    for source in range(n):
        for target in range(n):
            sign = int(circuit.adjacency[source, target])
            if sign == 0:
                continue
            colour = style.BLUE if sign > 0 else style.VERMILION
            head = "-|>,head_length=4.5,head_width=2.6" if sign > 0 else "|-|,widthA=0,widthB=3.2"
            if source == target:
                start, end, bend = _self_loop(place[source], angle[source] if n > 1 else turn, node)
            else:
                is_double = circuit.adjacency[target, source] != 0
                bend = 0.22 if is_double else 0.0
                start, end = _between(place[source], place[target], node, bend)
            ax.add_patch(
                FancyArrowPatch(
                    tuple(start),
                    tuple(end),
                    arrowstyle=head,
                    connectionstyle=f"arc3,rad={bend}",
                    mutation_scale=1.35 * size,
                    lw=1.5 * size,
                    color=colour,
                    shrinkA=0,
                    shrinkB=0,
                    zorder=1,
                )
            )
    letters = max(2, *(len(name) for name in circuit.names)) if n > 1 else 2
    for gene, name in enumerate(circuit.names):
        ax.add_patch(
            Circle(tuple(place[gene]), node, facecolor="white", edgecolor=style.INK, lw=1.1 * size)
        )
        ax.text(
            place[gene][0],
            place[gene][1],
            name,
            ha="center",
            va="center",
            fontsize=size * min(9.0, 46 * node, 70 * node / letters),
            zorder=3,
        )
    reach = max(radius, 0.6) + node + 0.46
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.axis("off")
    return ax


def _between(
    a: NDArray[np.float64], b: NDArray[np.float64], node: float, bend: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of an arrow on the rims of two nodes; a bent arrow leaves and arrives at a slant."""
    along = (b - a) / np.linalg.norm(b - a)
    slant = math.atan(2 * bend)
    turn = np.array([[math.cos(slant), math.sin(slant)], [-math.sin(slant), math.cos(slant)]])
    return a + node * (turn @ along), b - (node + 0.02) * (turn.T @ along)


def _self_loop(
    centre: NDArray[np.float64], angle: float, node: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """A loop that points away from the middle of the drawing."""
    wide = 0.62
    start = centre + (node + 0.02) * np.array([math.cos(angle + wide), math.sin(angle + wide)])
    end = centre + (node + 0.02) * np.array([math.cos(angle - wide), math.sin(angle - wide)])
    return start, end, -1.9


def draw_legend(ax: Axes) -> Axes:
    """What arrow and bar mean, on empty axes."""
    from matplotlib.lines import Line2D

    from neuralgraph.viz import style

    ax.legend(
        handles=[
            Line2D([], [], color=style.BLUE, marker=">", markevery=[-1], label="activates"),
            Line2D([], [], color=style.VERMILION, marker="|", markevery=[-1], label="inhibits"),
        ],
        loc="center",
        ncols=2,
    )
    ax.axis("off")
    return ax


def draw_transitions(
    ax: Axes, successor: NDArray[np.int32], attractor_of: NDArray[np.int32], n_gene: int
) -> Axes:
    """Every state and where it goes; each attractor with its basin in a colour of its own.

    The states of an attractor lie on an inner ring (a fixed point in the middle), those that reach
    it in one, two … steps on rings around.

    Args:
        ax: Where to draw.
        successor: ``(2ⁿ,)`` synchronous successors.
        attractor_of: ``(2ⁿ,)`` number of the attractor each state leads to.
        n_gene: At most 8.
    """
    from matplotlib.patches import Circle, FancyArrowPatch

    from neuralgraph.viz import style

    places = [
        _rings(successor, np.flatnonzero(attractor_of == k))
        for k in range(int(attractor_of.max()) + 1)
    ]
    boxes = [np.array(list(place.values())) for place in places]
    middles = [(box.min(0) + box.max(0)) / 2 for box in boxes]
    radii = [
        float(np.linalg.norm(box - middle, axis=1).max()) + 0.75
        for box, middle in zip(boxes, middles, strict=True)
    ]
    order = sorted(range(len(places)), key=lambda k: -radii[k])
    centres = _packed([radii[k] for k in order])
    where = np.zeros((len(successor), 2))
    for rank, k in enumerate(order):
        for state, at in places[k].items():
            where[state] = np.asarray(at) - middles[k] + centres[rank]
    colours = {
        k: style.CYCLE[rank % len(style.CYCLE)] for rank, k in enumerate(order)
    }  # the largest basins first
    n_state = len(successor)
    is_labelled = n_state <= 32
    dot = 0.40 if is_labelled else 0.30
    low, high = where.min(0) - 0.8, where.max(0) + 0.8
    spare = np.maximum(0.0, 6.5 - (high - low)) / 2  # few states are not blown up
    low, high = low - spare, high + spare
    inches = ax.get_position().size * ax.figure.get_size_inches()  # type: ignore[union-attr]  # drawn
    scale = 72 * float((inches / (high - low)).min())  # points for a unit of the drawing
    is_attractor = _on_cycle(successor)
    labels = as_states(np.arange(n_state), n_gene)
    for state in range(n_state):
        colour = colours[int(attractor_of[state])]
        target = int(successor[state])
        inside = bool(is_attractor[state])
        ax.add_patch(
            Circle(
                tuple(where[state]),
                dot,
                facecolor=colour if inside else "white",
                edgecolor=colour,
                lw=max(0.4, min(1.1, scale / 20)),
                zorder=2,
            )
        )
        if is_labelled:
            ax.text(
                where[state][0],
                where[state][1],
                "".join("01"[int(v)] for v in labels[state]),
                ha="center",
                va="center_baseline",
                fontsize=min(9.0, 1.15 * dot * 2 * scale / max(3, n_gene)),
                color="white" if inside else style.INK,
                zorder=3,
            )
        if target == state:
            continue
        a, b = where[state], where[target]
        along = (b - a) / np.linalg.norm(b - a)
        is_pair = int(successor[target]) == state
        ax.add_patch(
            FancyArrowPatch(
                tuple(a + (dot + 0.02) * along),
                tuple(b - (dot + 0.03) * along),
                arrowstyle="-|>,head_length=3,head_width=1.6",
                connectionstyle="arc3,rad=0.3" if is_pair else "arc3,rad=0",
                mutation_scale=max(0.4, min(1.3, scale / 16)),
                lw=max(0.4, min(1.1, scale / 20)),
                color=colour,
                alpha=0.8,
                shrinkA=0,
                shrinkB=0,
                zorder=1,
            )
        )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.axis("off")
    return ax


def _on_cycle(successor: NDArray[np.int32]) -> NDArray[np.bool_]:
    reached = np.arange(len(successor))
    for _ in range(len(successor).bit_length()):  # after 2ⁿ steps only cycles are left
        successor_of = successor[reached]
        reached = np.unique(successor_of)
    while len(following := np.unique(successor[reached])) < len(reached):
        reached = following
    is_on = np.zeros(len(successor), dtype=bool)
    is_on[reached] = True
    return is_on


def _rings(
    successor: NDArray[np.int32], members: NDArray[np.intp]
) -> dict[int, tuple[float, float]]:
    """Places of a basin: the cycle inside, every tree that leads to it in its own sector."""
    sources: dict[int, list[int]] = {int(s): [] for s in members}
    state = int(members[0])
    for _ in range(len(members)):
        state = int(successor[state])
    cycle = [state]
    while (following := int(successor[cycle[-1]])) != state:
        cycle.append(following)
    for s in members.tolist():
        if s not in cycle:
            sources[int(successor[s])].append(s)

    def leaves(s: int) -> int:
        return max(1, sum(leaves(t) for t in sources[s]))

    def depth(s: int) -> int:
        return 1 + max((depth(t) for t in sources[s]), default=-1)

    total = sum(leaves(s) for s in cycle)
    levels = max(depth(s) for s in cycle)
    inner = 0.0 if len(cycle) == 1 else max(0.65, len(cycle) / (2 * math.pi) * 1.15)
    widths = [0] * (levels + 1)

    def count(s: int, level: int) -> None:
        widths[level] += 1
        for t in sources[s]:
            count(t, level + 1)

    for s in cycle:
        count(s, 0)
    # sectors go by leaves: a ring must be wide enough for the leaf sectors it holds
    radius = [inner]
    for level in range(1, levels + 1):
        need = total / (2 * math.pi) if widths[level] > len(cycle) else 0.0
        radius.append(max(radius[-1] + 1.15, need))
    place: dict[int, tuple[float, float]] = {}

    def put(s: int, level: int, begin: float, end: float) -> None:
        middle = (begin + end) / 2
        place[s] = radius[level] * math.cos(middle), radius[level] * math.sin(middle)
        at = begin
        share = sum(leaves(t) for t in sources[s])
        for t in sources[s]:
            width = (end - begin) * leaves(t) / share
            put(t, level + 1, at, at + width)
            at += width

    at = math.pi / 2
    for s in cycle:
        width = 2 * math.pi * leaves(s) / total
        put(s, 0, at, at - width)
        at -= width
    if len(cycle) > 1:  # the cycle itself is spread evenly
        for k, s in enumerate(cycle):
            begin = math.pi / 2 - 2 * math.pi * k / len(cycle)
            put(s, 0, begin + math.pi / len(cycle), begin - math.pi / len(cycle))
    return place


def _packed(radii: Sequence[float]) -> list[NDArray[np.float64]]:
    """Centres of circles of given radii, in rows of about the width of the widest square."""
    width = max(2 * radii[0], 1.25 * math.sqrt(sum((2 * r) ** 2 for r in radii)))
    centres = []
    x = y = 0.0
    row = 0.0
    for r in radii:
        if x > 0 and x + 2 * r > width + 1e-9:
            x, y, row = 0.0, y - row, 0.0
        row = max(row, 2 * r)
        centres.append(np.array([x + r, y - r]))
        x += 2 * r
    return centres


def draw_attractors(ax: Axes, names: Sequence[str], attractors: Sequence[Attractor]) -> Axes:
    """States of each attractor side by side: dark is on, a wide gap lies between attractors.

    Under each stands how many of all states lead to it, where that is known.
    """
    from neuralgraph.viz import style

    x = 0.0
    for attractor in attractors:
        n_shown = min(len(attractor.states), N_STATE_DRAWN)
        for column, state in enumerate(attractor.states[:n_shown]):
            for row, is_on in enumerate(state):
                ax.add_patch(_cell(x + column, len(names) - 1 - row, bool(is_on)))
        more = "…" if attractor.n_state > n_shown else ""
        kind = {"fixed_point": "fixed", "cycle": f"period {attractor.period}"}.get(
            attractor.kind, f"{attractor.n_state:,} states"
        )
        share = "" if attractor.basin is None else f"\n{100 * attractor.basin:.3g} %"
        is_many = len(attractors) > 12
        ax.text(
            x + n_shown / 2,
            -0.35,
            f"{kind}{more}{share}",
            ha="right" if is_many else "center",
            va="top",
            rotation=60 if is_many else 0,
            rotation_mode="anchor" if is_many else "default",
            fontsize=6.5 if is_many else 7.5,
            color=style.SOFT,
        )
        x += n_shown + 0.8
    ax.set(xlim=(-0.3, max(x, 24.0)), ylim=(-0.5, len(names)))
    ax.set_yticks([len(names) - 0.5 - k for k in range(len(names))], names)
    ax.set_xticks([])
    ax.tick_params(length=0, labelsize=max(3.5, min(8.0, 260 / max(1, len(names)))))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return ax


def _cell(x: float, y: float, is_on: bool) -> Patch:
    from matplotlib.patches import Rectangle

    from neuralgraph.viz import style

    return Rectangle(
        (x + 0.05, y + 0.05), 0.9, 0.9, facecolor=style.BLUE if is_on else style.LINE, lw=0
    )


def draw_trajectory(ax: Axes, names: Sequence[str], states: NDArray[np.generic]) -> Axes:
    """One trajectory as a raster: genes down, time to the right, dark is on."""
    from matplotlib.colors import ListedColormap

    from neuralgraph.viz import style

    values = np.asarray(states, dtype=float).T
    ax.imshow(
        values, aspect="auto", cmap=ListedColormap([style.LINE, style.BLUE]), vmin=0, vmax=1,
        interpolation="nearest",
    )  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(0, values.shape[1], max(1, values.shape[1] // 8)))
    ax.set_yticks([k - 0.5 for k in range(1, len(names))], minor=True)
    ax.grid(which="minor", axis="y", color="white", lw=1)
    ax.tick_params(which="both", length=0, labelsize=max(3.5, min(8.0, 200 / max(1, len(names)))))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return ax
