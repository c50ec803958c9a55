"""Figures of the classifiers: confusion, generalisation to larger circuits, calibration, loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.boolean_grn.dataset import GRNData
from neuralgraph.systems.boolean_grn.evaluation import SUFFIX
from neuralgraph.systems.boolean_grn.model import GRNRows
from neuralgraph.viz.figure import Figure

N_CALIBRATION = 20
"""Fewest circuits of a bin that is drawn."""
ROW_WORDS = {"informed": "with soft dynamics", "structure": "structure only"}


class GRNReporter:
    """Confusion matrices, accuracy against size, calibration and loss curves."""

    def figures(
        self,
        model: GRNRows,
        data: GRNData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import panels, style

        out = folder / "figures"
        tables = scorecard.facts.get("tables", {})
        with style.house():
            if tables.get("confusion"):
                yield _sizes(scorecard, out)
            for row, by_size in tables.get("confusion", {}).items():
                yield _confusion(by_size, row, data.spec.phenotypes, out)
            if tables.get("calibration"):
                yield _calibration(tables["calibration"], out)
            if tables.get("explorer"):
                yield _policy(tables["explorer"], out)
            figure = style.canvas(5.4, 3.2)
            panels.loss_curves(figure.add_subplot(), folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "Cross entropy (thick blue) of the row under training, the weighted further terms, "
                "and the loss on isomorphism classes kept for validation (dashed). The curve "
                "breaks between the stages of the curriculum.",
            )  # fmt: skip


def _sizes(scorecard: Scorecard, out: Path) -> Figure:
    from neuralgraph.viz import style

    metrics = scorecard.metrics
    figure = style.canvas(style.WIDTH, 3.2)
    axes = figure.subplots(1, 2, sharey=True)
    colours = {"informed": style.BLUE, "structure": style.ORANGE}
    for ax, kind, title in zip(
        axes, ("accuracy", "balanced_accuracy"), ("accuracy", "mean recall"), strict=True
    ):
        for row, suffix in SUFFIX.items():
            stem = f"{kind}{suffix}_"
            sizes = sorted(int(k[len(stem) :]) for k in metrics if _is_size(k, stem))
            if sizes:
                value = [metrics[f"{stem}{n}"] for n in sizes]
                ax.plot(sizes, value, "o-", color=colours[row], label=ROW_WORDS[row])
        if kind == "accuracy":
            sizes = sorted(int(k[9:]) for k in metrics if _is_size(k, "majority_"))
            value = [metrics[f"majority_{n}"] for n in sizes]
            ax.plot(sizes, value, "o--", color=style.SOFT, label="commonest phenotype")
        ax.axvspan(2.5, 5.5, color=style.LINE, alpha=0.5, lw=0)
        ax.set(title=title, xlabel="genes", ylim=(0, 1.02))
        ax.grid(axis="y")
    axes[0].legend(loc="lower left")
    return style.save(
        figure, out / "sizes.png", "Generalisation to larger circuits",
        "Held-out circuits by size; the shaded sizes were learnt from, the others never seen.",
    )  # fmt: skip


def _is_size(name: str, stem: str) -> bool:
    return name.startswith(stem) and name[len(stem) :].isdigit()


def _confusion(
    by_size: dict[str, list[list[int]]], row: str, phenotypes: tuple[str, ...], out: Path
) -> Figure:
    from neuralgraph.viz import style

    n_column = 3
    n_row = -(-len(by_size) // n_column)
    figure = style.canvas(style.WIDTH, 2.5 * n_row + 0.9)
    axes = np.atleast_1d(figure.subplots(n_row, n_column, squeeze=False)).ravel()
    words = [name.replace("_", " ") for name in phenotypes]
    for at, (ax, (size, counts)) in enumerate(zip(axes, by_size.items(), strict=False)):
        count = np.array(counts)
        share = count / np.maximum(count.sum(1, keepdims=True), 1)
        ax.imshow(share, vmin=0, vmax=1, cmap="Blues")
        for i, j in zip(*count.nonzero(), strict=True):
            colour = "white" if share[i, j] > 0.6 else style.INK
            ax.text(j, i, str(count[i, j]), ha="center", va="center", fontsize=6, color=colour)
        ax.set_title(f"{size} genes")
        is_left, is_low = at % n_column == 0, at >= len(by_size) - n_column
        ax.set_yticks(range(len(words)), words if is_left else [""] * len(words))
        ax.set_xticks(range(len(words)), words if is_low else [""] * len(words), rotation=90)
        ax.tick_params(labelsize=7, length=0)
    for ax in axes[len(by_size) :]:
        ax.set_axis_off()
    return style.save(
        figure, out / f"confusion_{row}.png", f"Confusion, {ROW_WORDS[row]}",
        "Rows: the oracle's phenotype; columns: the network's. Colour is the share of the row, "
        "numbers are circuits, unstratified and stratified together.",
    )  # fmt: skip


def _calibration(by_size: dict[str, dict], out: Path) -> Figure:
    from neuralgraph.viz import style

    figure = style.canvas(4.4, 3.6)
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=style.INK, lw=1, ls="--")
    for place, (size, table) in enumerate(by_size.items()):
        shown = np.array(table["count"]) >= N_CALIBRATION
        ax.plot(
            np.array(table["confidence"])[shown], np.array(table["accuracy"])[shown], "o-", ms=4,
            color=style.CYCLE[place % len(style.CYCLE)],
            label=f"{size} genes, error {table['error']:.3f}",
        )  # fmt: skip
    ax.set(xlabel="probability given to the answer", ylabel="share that is right")
    ax.legend(loc="upper left")
    return style.save(
        figure, out / "calibration.png", "Calibration",
        "Unstratified circuits in ten bins of the highest probability; the network with dynamics. "
        f"Bins of fewer than {N_CALIBRATION} circuits are left out of the figure. "
        "On the dashed line the probabilities mean what they say. The training circuits hold more "
        "of the rare phenotypes than the unstratified ones.",
    )  # fmt: skip


def _policy(by_size: dict[str, dict[str, list[float]]], out: Path) -> Figure:
    from neuralgraph.viz import style

    titles = ("of the phenotype", "of these, distinct", "of these, new")
    figure = style.canvas(style.WIDTH, 2.7)
    for at, (ax, title) in enumerate(zip(figure.subplots(1, 3), titles, strict=True)):
        names = list(next(iter(by_size.values())))
        share = np.array([[by_size[size][name][at] for size in by_size] for name in names])
        ax.imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (i, j), value in np.ndenumerate(share):
            colour = "white" if value > 0.6 else style.INK
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        words = [name.replace("_", " ") for name in names]
        ax.set_yticks(range(len(words)), words if at == 0 else [""] * len(words))
        ax.set_xticks(range(len(by_size)), list(by_size))
        ax.set(title=title, xlabel="genes")
        ax.tick_params(labelsize=7, length=0)
    return style.save(
        figure, out / "policy.png", "Circuits the policy writes",
        "Stage 5: shares of fresh proposals that the exact oracle confirms and that are connected; "
        "of those, the share of distinct classes; of these, the share that was not learnt from.",
    )  # fmt: skip
