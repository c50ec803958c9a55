"""Figures of designed circuits: an overview, and a card for each circuit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.design.demonstrate import demonstrate
from neuralgraph.systems.boolean_grn.oracle import successors
from neuralgraph.systems.boolean_grn.plots.drawing import (
    N_GENE_GRAPH,
    draw_circuit,
    draw_legend,
    draw_trajectory,
    draw_transitions,
)
from neuralgraph.viz.figure import Figure

N_OVERVIEW = 40


def design_figures(
    circuits: Sequence[SignedCircuit],
    robustness: NDArray[np.float64],
    phenotype: str,
    rule: str,
    folder: Path,
    n_card: int,
) -> Iterator[Figure]:
    """Draw designed circuits.

    Args:
        circuits: The circuits, in the order of the list.
        robustness: Of each.
        phenotype: What they are.
        rule: Update rule.
        folder: Where the pictures go.
        n_card: Circuits drawn with their states and a trajectory.
    """
    from neuralgraph.viz import style

    with style.house():
        shown = list(circuits[:N_OVERVIEW])
        n_column = min(5, len(shown))
        n_row = -(-len(shown) // n_column)
        figure = style.canvas(style.WIDTH, 0.35 + 1.62 * n_row)
        heights = [*([1.62] * n_row), 0.3]
        axes = figure.subplots(
            n_row + 1, n_column, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for ax in axes.flat:
            ax.axis("off")
        for k, circuit in enumerate(shown):
            ax = axes[k // n_column, k % n_column]
            draw_circuit(ax, circuit, size=0.62)
            ax.set_title(f"{k + 1}", fontsize=7, fontweight="normal", pad=0, loc="left")
        draw_legend(axes[-1, n_column // 2])
        cut = f" The first {len(shown)} of {len(circuits)}." * (len(shown) < len(circuits))
        yield style.save(
            figure, folder / "circuits.png", "Circuits",
            f"Each is confirmed by the exact oracle; no two are the same up to relabelling.{cut}",
        )  # fmt: skip
        for k, circuit in enumerate(circuits[:n_card]):
            yield _card(k, circuit, float(robustness[k]), phenotype, rule, folder)


def _card(
    k: int, circuit: SignedCircuit, robustness: float, phenotype: str, rule: str, folder: Path
) -> Figure:
    from neuralgraph.systems.boolean_grn import kernels
    from neuralgraph.viz import style

    is_drawn = circuit.n_gene <= N_GENE_GRAPH
    widths = [1.0, 1.35, 1.15] if is_drawn else [1.0, 1.4]
    figure = style.canvas(style.WIDTH, 2.7)
    axes = figure.subplots(1, len(widths), gridspec_kw={"width_ratios": widths})
    draw_circuit(axes[0], circuit, size=0.85)
    if is_drawn:
        table = successors(circuit, rule=rule)
        attractor_of = np.empty(len(table), dtype=np.int32)
        kernels.synchronous_attractors(table, attractor_of)
        draw_transitions(axes[1], table, attractor_of, circuit.n_gene)
    shown = demonstrate(circuit, phenotype, rule=rule)
    draw_trajectory(axes[-1], circuit.names, shown.states)
    for cut in shown.cuts:
        axes[-1].axvline(cut - 0.5, color=style.VERMILION, lw=1.2)
    axes[-1].set_xlabel("step")
    states = " Middle: every state and its successor, filled: attractors." if is_drawn else ""
    return style.save(
        figure, folder / f"circuit_{k + 1:03d}.png", f"Circuit {k + 1}",
        f"{circuit.to_text()}. {100 * robustness:.0f} % of its one-edge mutants stay a "
        f"{phenotype.replace('_', ' ')}.{states} Right: {shown.caption}.",
    )  # fmt: skip
