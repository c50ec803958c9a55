"""Figures of one Boolean network: circuit, state-transition graph, attractors, trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.boolean_grn.attractors import AttractorList
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.plots.drawing import (
    N_GENE_GRAPH,
    N_STATE_DRAWN,
    draw_attractors,
    draw_circuit,
    draw_trajectory,
    draw_transitions,
)
from neuralgraph.systems.boolean_grn.trajectories.dataset import TransitionData
from neuralgraph.systems.boolean_grn.trajectories.evaluation import (
    influences,
    learned_successors,
    sampled_states,
)
from neuralgraph.systems.boolean_grn.trajectories.model import LearnedNetwork
from neuralgraph.viz.figure import Figure

N_COLUMN_SHOWN = 60
"""States of attractors drawn side by side."""
N_GENE_DRAWN = 40
"""Largest network drawn as a circuit."""


def network_figures(
    network: BooleanNetwork,
    found: Mapping[str, AttractorList],
    recording: Recording,
    folder: Path,
) -> Iterator[Figure]:
    """Draw a network and its attractors into a folder.

    Args:
        network: The network.
        found: Its attractors, by update.
        recording: Trajectories of it.
        folder: Where the pictures go.
    """
    from neuralgraph.viz import style

    with style.house():
        signs = network.signs()
        if network.n_gene <= N_GENE_DRAWN:
            is_dual = signs == 2
            circuit = SignedCircuit.from_adjacency(
                np.where(is_dual, 0, signs).astype(np.int8), network.names
            )
            side = 4.2 if network.n_gene <= 6 else style.WIDTH
            figure = style.canvas(side, side)
            draw_circuit(figure.add_subplot(), circuit, size=1.2 if network.n_gene <= 12 else 0.8)
            dual = f" {int(is_dual.sum())} influences with both signs are left out." * bool(
                is_dual.any()
            )
            yield style.save(
                figure, folder / "circuit.png", "Circuit",
                "Blue arrows activate, vermilion bars inhibit: the signs of each gene's function."
                + dual,
            )  # fmt: skip
        if network.n_gene <= N_GENE_GRAPH:
            yield transition_figure(network.successors(), network.names, folder)
        for update, each in found.items():
            shown, n_column = [], 0
            for attractor in each.attractors:
                n_column += min(len(attractor.states), N_STATE_DRAWN)
                if shown and n_column > N_COLUMN_SHOWN:
                    break
                shown.append(attractor)
            if not shown:
                continue
            height = max(2.4, min(9.0, 0.9 + 0.16 * network.n_gene))
            figure = style.canvas(style.WIDTH, height)
            draw_attractors(figure.add_subplot(), network.names, shown)
            total = sum(each.counts.values())
            cut = f" The first {len(shown)} of {total:,} are drawn." * (len(shown) < total)
            yield style.save(
                figure, folder / f"attractors_{update}.png", f"Attractors, {update} update",
                "One column for each state, dark is on; under each attractor its period or size, "
                "and the share of all states that lead to it and to no other, where known." + cut,
            )  # fmt: skip
        yield _trajectory_figure(recording, folder)


def transition_figure(
    successor: np.ndarray, names: tuple[str, ...], folder: Path, name: str = "transitions"
) -> Figure:
    """The synchronous state-transition graph of a small network."""
    from neuralgraph.systems.boolean_grn import kernels
    from neuralgraph.viz import style

    attractor_of = np.empty(len(successor), dtype=np.int32)
    kernels.synchronous_attractors(successor, attractor_of)
    side = 4.2 if len(successor) <= 8 else style.WIDTH
    figure = style.canvas(side, side)
    draw_transitions(figure.add_subplot(), successor, attractor_of, len(names))
    order = "".join(names) if all(len(n) == 1 for n in names) else ", ".join(names)
    return style.save(
        figure, folder / f"{name}.png", "State-transition graph",
        "Every state and its successor under synchronous update; filled states are attractors, a "
        f"colour is a basin (colours repeat after six). Bits in the order {order}.",
    )  # fmt: skip


def _trajectory_figure(recording: Recording, folder: Path) -> Figure:
    from neuralgraph.viz import style

    n_shown = min(3, recording.n_run)
    n_gene = len(recording.names)
    figure = style.canvas(style.WIDTH, max(2.0, min(6.0, 0.8 + 0.14 * n_gene)))
    axes = figure.subplots(1, n_shown, squeeze=False)[0]
    for run, ax in enumerate(axes):
        draw_trajectory(ax, recording.names, recording.state[run].numpy())
        ax.set_xlabel("step")
        if run:
            ax.set_yticks([])
    return style.save(
        figure, folder / "trajectories.png", "Trajectories",
        "From three drawn states; dark is on.",
    )  # fmt: skip


class TrajectoryReporter:
    """The learned network: its influences beside the true ones, its states, and the loss."""

    def figures(
        self,
        model: LearnedNetwork,
        data: TransitionData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import panels, style

        out = folder / "figures"
        n_gene, names = data.spec.n_gene, data.spec.names
        found = influences(model, sampled_states(n_gene)).numpy()
        with style.house():
            if truth is not None:
                signs = truth.parameters["signs"].numpy()
                figure = style.canvas(style.WIDTH, 3.6)
                axes = figure.subplots(1, 2)
                shown = np.where(signs == 2, 0, signs)
                for ax, values, title in zip(
                    axes, (shown, found), ("true sign", "learned mean influence"), strict=True
                ):
                    image = ax.imshow(values, cmap=style.DIVERGING, vmin=-1, vmax=1)
                    ax.set_title(title)
                    ax.set(xlabel="target", ylabel="source")
                    if n_gene <= 20:
                        ax.set_xticks(range(n_gene), names, rotation=90)
                        ax.set_yticks(range(n_gene), names)
                figure.colorbar(image, ax=axes, shrink=0.8)
                yield style.save(
                    figure, out / "influences.png", "Who influences whom",
                    "Left: the sign in the true network (red activates). Right: mean change of the "
                    "target's next value when the source is switched on, over all or 4,096 states.",
                )  # fmt: skip
            if n_gene <= N_GENE_GRAPH:
                yield transition_figure(learned_successors(model, n_gene), names, out)
            figure = style.canvas(5.4, 3.2)
            panels.loss_curves(figure.add_subplot(), folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "Cross-entropy of the next state, and the validation loss (dashed).",
            )  # fmt: skip
