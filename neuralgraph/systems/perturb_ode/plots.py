"""Figures of a simulated screen, and of a measured time series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.perturb_ode.batching import LAYOUTS, Variances, effect_variance, layout
from neuralgraph.systems.perturb_ode.causal import BranchingTree, CausalGraph
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.lineage import CloudData, LineageField
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.sequential import CommonChange, DayPairs
from neuralgraph.systems.perturb_ode.vae import CellCounts, CountVAE
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"no_change": "no change", "additive": "additive"}

TRAINING = "Summed over all models; loss: data and what arms add, regul_total: what they add alone."
"""Caption of the loss of an ensemble."""

LINES = {
    "no_change": "no change",
    "drift": "drift",
    "baseline": "baseline",
    "local_field": "local field",
}
"""Rows of the error curves and their labels."""


def _loss_figure(folder: Path, caption: str) -> Figure:
    """Loss along training; called within the house style."""
    from neuralgraph.viz import panels, style

    figure = style.canvas(width=5.4, height=3.0)
    panels.loss_curves(figure.add_subplot(), folder / "metrics.jsonl")
    return style.save(figure, folder / "figures" / "loss.png", "Training", caption)


def apart(levels: Mapping[str, float], gap: float) -> dict[str, float]:
    """Places of labels near their levels, at least about ``gap`` from each other.

    >>> apart({"a": 1.0, "b": 1.2, "c": 5.0}, gap=1.0)
    {'a': 0.6, 'b': 1.6, 'c': 5.0}
    """
    names = sorted(levels, key=lambda name: levels[name])
    place = [levels[name] for name in names]
    for _ in range(100):
        for i in range(1, len(place)):
            missing = gap - (place[i] - place[i - 1])
            if missing > 0:
                place[i - 1] -= missing / 2
                place[i] += missing / 2
    return {name: round(at, 6) for name, at in zip(names, place, strict=True)}


class ScreenReporter:
    """Error of the arms on unseen knock-outs, and the loss of each arm."""

    def figures(
        self,
        model: FieldEnsemble,
        data: ScreenData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        import matplotlib.pyplot as plt

        from neuralgraph.viz import style

        out = folder / "figures"
        out.mkdir(exist_ok=True)
        with style.house():
            for what, title in (
                ("test_mse", "Unseen knock-outs on the measured days"),
                ("attractor_mse", "Unseen knock-outs at rest"),
            ):
                kinds = [
                    k
                    for k in ("double", "single", "medium")
                    if f"{what}_{k}_standard" in scorecard.metrics
                ]
                if not kinds:
                    continue
                figure, axes = plt.subplots(
                    1, len(kinds), figsize=(4.4 * len(kinds), 3.4), squeeze=False
                )
                for ax, kind in zip(axes[0], kinds, strict=True):
                    self._dots(ax, model, scorecard, f"{what}_{kind}")
                    ax.set_title("in another medium" if kind == "medium" else f"{kind} knock-outs")
                yield style.save(
                    figure, out / f"{what}.png", title,
                    "Mean squared error of each arm against the clean truth (mean over its starts; "
                    "knocked-out genes left out); lines: what needs no model.",
                )  # fmt: skip
            yield _loss_figure(folder, TRAINING)

    @staticmethod
    def _dots(ax: Axes, model: FieldEnsemble, scorecard: Scorecard, name: str) -> None:
        """One dot an arm on a logarithmic axis; lines for what needs no model."""
        from matplotlib.ticker import NullFormatter

        arms = [arm for arm in model.arms if f"{name}_{arm}" in scorecard.metrics]
        position = list(range(len(arms)))
        ax.plot([scorecard.metrics[f"{name}_{arm}"] for arm in arms], position, "o")
        for (key, text), dashes in zip(NAMES.items(), ("--", ":"), strict=True):
            value = scorecard.metrics.get(f"{name}_{key}")
            if value:
                ax.axvline(value, color="0.35", linestyle=dashes, linewidth=1.2, label=text)
        ax.set_yticks(position, arms)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        low, high = ax.get_xlim()
        ax.xaxis.set_minor_formatter("{x:g}" if high < 4 * low else NullFormatter())
        ax.set_xlabel("mean squared error")
        ax.grid(axis="y", linewidth=0.4)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


class SeriesReporter:
    """Test error of every arm along training, errors by perturbation, and the loss."""

    def figures(
        self,
        model: FieldEnsemble,
        data: FoldedSeries,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        import matplotlib.pyplot as plt

        from neuralgraph.viz import style

        out = folder / "figures"
        out.mkdir(exist_ok=True)
        curves = scorecard.facts["curves"]
        errors = scorecard.facts["errors"]
        with style.house():
            figure, ax = plt.subplots(figsize=(7.4, 4.2))
            for i, (arm, curve) in enumerate(curves.items()):
                dashes = ("-", "-.", ":")[i // len(style.CYCLE) % 3]  # colours come round
                (line,) = ax.plot(
                    curve["epoch"], curve["mean"], dashes, label=f"{arm} ({curve['n_seed']})"
                )
                if curve["n_seed"] > 1:
                    ax.fill_between(
                        curve["epoch"], curve["low"], curve["high"], alpha=0.18, lw=0,
                        color=line.get_color(),
                    )  # fmt: skip
            levels = {t: scorecard.metrics[f"test_mse_{n}"] for n, t in LINES.items()}
            for value in levels.values():
                ax.axhline(value, color=style.SOFT, lw=1, ls="--")
            levels["noise of the target"] = scorecard.metrics["target_noise"]
            ax.axhspan(0, levels["noise of the target"], color=style.LINE, alpha=0.6, lw=0)
            for text, place in apart(levels, 0.036 * ax.get_ylim()[1]).items():
                ax.text(
                    1.01, place, text, transform=ax.get_yaxis_transform(), va="center",
                    fontsize=8, color=style.SOFT,
                )  # fmt: skip
            ax.set(xlabel="epoch", ylabel="test mean squared error", ylim=(0, None))
            ax.legend(
                title="arm (starts)", fontsize=8, title_fontsize=8, ncols=5,
                loc="upper center", bbox_to_anchor=(0.5, -0.14),
            )  # fmt: skip
            yield style.save(
                figure, out / "test_mse.png", "Test error along training",
                "Mean over held-out perturbations; line: mean over seeds, band: 2.5 to 97.5 % of "
                "the seeds (spread of the optimiser, not of the biology). Dashed: what needs no "
                "trained field. Grey: sampling variance of the target, below which no predictor "
                "can be told apart.",
            )  # fmt: skip

            names = list(errors["baseline"])
            figure, ax = plt.subplots(figsize=(7.4, 3.8))
            shown = [n for n in ("standard", "ssP", "baseline", "selected") if n in errors]
            width = 0.8 / len(shown)
            for i, name in enumerate(shown):
                position = [k + (i - (len(shown) - 1) / 2) * width for k in range(len(names))]
                ax.bar(position, [errors[name][k] for k in names], width=width, label=name)
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
            ax.set_ylabel("test mean squared error")
            ax.legend(fontsize=8)
            yield style.save(
                figure, out / "by_perturbation.png", "Error by held-out perturbation",
                "Perturbations are the unit of inference. Arms at their last epoch, mean over "
                "seeds; selected: chosen on inner held-out perturbations.",
            )  # fmt: skip

            yield _loss_figure(folder, TRAINING)


LAYOUT_WORDS = {
    "crossed": "both in every batch",
    "control_in_one": "controls in one batch",
    "one_batch_each": "treated in one batch",
    "separate": "separate batches",
}


def plan_figure(
    variances: Variances, *, n_treated: int, n_control: int, n_batch: int, path: Path
) -> Figure:
    """Variance of an effect against the cells of each perturbation, and against the batches."""
    from neuralgraph.viz import style

    with style.house():
        figure = style.canvas(height=3.4)
        by_cell, by_batch = figure.subplots(1, 2, sharey=True)
        cells = torch.logspace(1, 4, 40).round().int().tolist()
        batches = list(range(2, 17))
        for name in LAYOUTS:
            if n_batch < 2 and name != "crossed":
                continue
            by_cell.plot(
                cells,
                [
                    effect_variance(
                        *layout(
                            name,
                            n_treated=n,
                            n_control=round(n * n_control / n_treated),
                            n_batch=n_batch,
                        ),
                        variances,
                    )
                    for n in cells
                ],
                label=LAYOUT_WORDS[name],
            )
            by_batch.plot(
                batches,
                [
                    effect_variance(
                        *layout(name, n_treated=n_treated, n_control=n_control, n_batch=b),
                        variances,
                    )
                    for b in batches
                ],
            )
        by_cell.set(xscale="log", yscale="log", xlabel="cells of each perturbation")
        by_cell.set_ylabel("variance of the effect")
        by_cell.set_title(f"{n_batch} batches")
        by_cell.axvline(n_treated, color=style.SOFT, lw=0.8, ls=":")
        by_batch.set(xlabel="batches")
        by_batch.set_title(f"{n_treated} cells of each perturbation")
        figure.legend(*by_cell.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return style.save(
            figure, path, "Cells or batches",
            "Left: more cells at the same ratio of controls; a curve that levels off has met what "
            "only batches can lower. Right: more batches at the same number of cells.",
        )  # fmt: skip


VERDICT_MARKS = {"settled": "o", "moving": "s", "undecided": "D"}


class MovementReporter:
    """Changes between sequential days beside their null, and the verdict of each condition."""

    def figures(
        self,
        model: CommonChange,
        data: DayPairs,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import style

        out = folder / "figures"
        metrics, facts = scorecard.metrics, scorecard.facts
        steps: list[str] = facts["steps"]
        keys = [step.replace(" → ", "_") for step in steps]
        with style.house():
            figure = style.canvas(height=3.3)
            raw, parts = figure.subplots(1, 2)
            position = list(range(len(steps)))
            change = data.batch(data.starts(1)).change.abs()
            weight = data.batch(data.starts(1)).weight.expand_as(change) > 0
            values = [change[:, s][weight[:, s]].tolist() for s in position]
            raw.violinplot(values, position, widths=0.8, showextrema=False)
            for name, mark, text in (
                ("mean_abs_lfc", "o", "mean"),
                ("null_mean_abs_lfc", "_", "mean, shuffled days"),
            ):
                raw.plot(
                    position, [metrics[f"{name}_{k}"] for k in keys], mark, color=style.INK,
                    ms=5 if mark == "o" else 18, label=text,
                )  # fmt: skip
            raw.set_xticks(position, [f"day {s}" for s in steps])
            raw.set(ylabel="|log2 fold change|", ylim=(0, None))
            raw.set_title("Raw")
            raw.legend(loc="upper right")
            for name, text in (("common_rms", "common to all"), ("specific_rms", "of its own")):
                parts.plot(position, [metrics[f"{name}_{k}"] for k in keys], "o-", label=text)
            parts.set_xticks(position, [f"day {s}" for s in steps])
            parts.set(ylabel="root mean square, log2", ylim=(0, None))
            parts.set_title("Noise taken out")
            parts.legend(loc="lower left")
            yield style.save(
                figure, out / "lfc.png", "Change between sequential days",
                "Left: absolute log2 fold changes of all conditions and genes; most of it is there "
                "under shuffled days too. Right: the part all conditions share (drift, or each "
                "day's own library) and what a condition does alone.",
            )  # fmt: skip

            rows = facts["by_condition"]
            names = sorted(rows, key=lambda n: rows[n]["excess"][-1])
            figure = style.canvas(width=5.6, height=0.9 + 0.26 * len(names))
            ax = figure.add_subplot()
            for i, name in enumerate(names):
                row = rows[name]
                colour = {
                    "settled": style.GREEN, "moving": style.VERMILION, "undecided": style.SOFT,
                }[row["verdict"]]  # fmt: skip
                ax.plot([row["low"][-1], row["high"][-1]], [i, i], color=colour, lw=1.6)
                ax.plot(row["excess"][-1], i, VERDICT_MARKS[row["verdict"]], color=colour, ms=5)
            ax.axvline(facts["margin"], color=style.INK, ls="--", lw=1)
            ax.set_yticks(range(len(names)), names)
            ax.set(xlim=(0, None), ylim=(-0.6, len(names) - 0.4))
            ax.set_xlabel(f"change of its own, day {steps[-1]}, log2")
            for verdict, mark in VERDICT_MARKS.items():
                if any(row["verdict"] == verdict for row in rows.values()):
                    colour = {"settled": style.GREEN, "moving": style.VERMILION}.get(
                        verdict, style.SOFT
                    )
                    ax.plot([], [], mark, color=colour, label=verdict)
            figure.legend(loc="outside upper right", ncols=3)
            yield style.save(
                figure, out / "verdicts.png", "Has it come to rest?",
                "Change between the last two days that other conditions do not share (root mean "
                "square over genes, noise taken out) with its interval over resampled cells. "
                "Settled: the interval ends below the dashed margin. Moving: above 0. Few cells "
                "leave it undecided.",
            )  # fmt: skip


class LineageReporter:
    """Kinds of cells, where knock-outs lie in pseudotime, and the error on held-out knock-outs."""

    def figures(
        self,
        model: LineageField,
        data: CloudData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import style

        out = folder / "figures"
        facts = scorecard.facts
        cells = facts["cells"]
        names = data.conditions
        with style.house():
            figure = style.canvas(height=max(3.4, 0.8 + 0.27 * len(names)))
            grid = figure.add_gridspec(1, 2, width_ratios=[1, 1.15])
            ax = figure.add_subplot(grid[0])
            points = torch.tensor(cells["coordinates"])
            time = torch.tensor([float("nan") if v is None else v for v in cells["pseudotime"]])
            colours = (style.SOFT, *style.CYCLE)
            if cells["type"] is not None:
                kind = torch.tensor(cells["type"])
                for k, name in enumerate(facts["shares"]["types"]):
                    mine = points[kind == k]
                    ax.scatter(
                        mine[:, 0], mine[:, 1], s=5, lw=0, alpha=0.7, label=name,
                        color=colours[k % len(colours)],
                    )  # fmt: skip
                ax.legend(markerscale=2.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
            else:
                ax.scatter(points[:, 0], points[:, 1], s=5, lw=0, c=time)
            ax.set(xlabel="component 1", ylabel="component 2")
            ax.set_title("Kinds of cells")
            ax = figure.add_subplot(grid[1])
            condition = torch.tensor(cells["condition"])
            levels = torch.linspace(0, 1, 41)
            for row in range(len(names)):
                k = len(names) - 1 - row
                mine = time[(condition == k) & torch.isfinite(time)]
                density = torch.histc(mine, 40, 0, 1)
                density = torch.nn.functional.conv1d(
                    density[None, None], torch.tensor([[[0.25, 0.5, 0.25]]]), padding=1
                )[0, 0]
                height = 0.85 * density / density.max().clamp_min(1e-9)
                colour = style.VERMILION if bool(data.is_test[k]) else style.BLUE
                ax.fill_between(
                    (levels[1:] + levels[:-1]) / 2, row, row + height, color=colour, alpha=0.5, lw=0
                )
            ax.set_yticks(range(len(names)), list(reversed(names)))
            ax.set(xlabel="pseudotime", xlim=(0, 1))
            ax.set_title("Cells of each knock-out")
            yield style.save(
                figure, out / "lineage.png", "Cells along the lineage",
                "Left: measured cells of all conditions and days on two principal components. "
                "Right: where along pseudotime (diffusion from the progenitors) the cells of each "
                "condition lie, all days together; orange: held out. Knock-outs differ as "
                "distributions.",
            )  # fmt: skip

            rows = facts["energy"]
            held = [name for name in names if rows[name]["held_out"]] or names
            figure = style.canvas(width=5.8, height=3.2)
            ax = figure.add_subplot()
            shown = ("model", "unperturbed", "no change")
            for i, what in enumerate(shown):
                position = [k + 0.27 * (i - 1) for k in range(len(held))]
                ax.bar(position, [rows[n][what] for n in held], width=0.25, label=what)
            ax.set_xticks(range(len(held)), held)
            ax.set_ylabel("energy distance")
            ax.axhline(0, color=style.INK, lw=0.8)
            ax.legend()
            yield style.save(
                figure, out / "held_out.png", "Held-out knock-outs",
                "Energy distance to the measured cells, mean over days; 0 is the same "
                "distribution. Unperturbed: cells without a knock-out, the gene taken away. No "
                "change: cells stay as on day 0.",
            )  # fmt: skip

            if "shares" in facts:
                shares = facts["shares"]
                figure = style.canvas(width=style.WIDTH, height=3.2)
                axes = figure.subplots(1, 2, sharey=True)
                for ax, what in zip(axes, ("measured", "predicted"), strict=True):
                    left = torch.zeros(len(held))
                    for k, kind in enumerate(shares["types"]):
                        value = torch.tensor([shares[what][name][k] for name in held])
                        ax.barh(
                            range(len(held)), value, left=left, label=kind,
                            color=colours[k % len(colours)],
                        )  # fmt: skip
                        left = left + value
                    ax.set_title(what)
                    ax.set_xlabel("share of the cells")
                axes[0].set_yticks(range(len(held)), held)
                axes[0].invert_yaxis()
                figure.legend(
                    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
                )
                yield style.save(
                    figure, out / "shares.png", "What held-out knock-outs become",
                    "Shares of cell types on the last day, by the nearest state of rest.",
                )  # fmt: skip
            yield _loss_figure(
                folder, "Distance between predicted and measured clouds of the training conditions."
            )


def branching_figure(tree: BranchingTree, path: Path) -> Figure:
    """Root, perturbations, media: one leaf for each combination."""
    from neuralgraph.viz import style

    n_leaf = len(tree.leaves)
    with style.house():
        figure = style.canvas(width=6.4, height=max(2.2, 0.5 + 0.19 * n_leaf))
        ax = figure.add_subplot()
        height = {i: n_leaf - 1 - i for i in range(n_leaf)}
        middle = []
        for b in range(len(tree.branches)):
            mine = [height[i] for i, (branch, _) in enumerate(tree.leaves) if branch == b]
            middle.append(sum(mine) / len(mine))
        root = sum(middle) / len(middle)
        for b, word in enumerate(tree.branches):
            ax.plot([0, 1], [root, middle[b]], color=style.SOFT, lw=1)
            ax.text(
                1.02, middle[b], f" {word} ", va="center", fontsize=8,
                bbox={"fc": "white", "ec": "none", "pad": 0.5}, zorder=3,
            )  # fmt: skip
        for i, (branch, word) in enumerate(tree.leaves):
            ax.plot([1, 2.2], [middle[branch], height[i]], color=style.LINE, lw=1, zorder=1)
            ax.plot(2.2, height[i], "o", color=style.BLUE, ms=3.5)
            ax.text(2.27, height[i], word, va="center", fontsize=8)
        ax.plot(0, root, "s", color=style.INK, ms=6)
        ax.text(-0.04, root, "cells", ha="right", va="center", fontsize=8)
        ax.text(0.5, n_leaf - 0.2, "P", ha="center", weight="bold")
        ax.text(1.9, n_leaf - 0.2, "M", ha="center", weight="bold")
        ax.set(xlim=(-0.35, 2.9), ylim=(-0.8, n_leaf + 0.4))
        ax.axis("off")
        return style.save(
            figure, path, "The branching design",
            f"{n_leaf} leaves: each perturbation or none, in each medium or the usual one.",
        )  # fmt: skip


def contextual_figure(graph: CausalGraph, path: Path) -> Figure:
    """Context variables above, expression below, time from left to right."""
    from neuralgraph.viz import style

    columns = max(node.column for node in graph.nodes)
    with style.house():
        figure = style.canvas(width=max(5.2, 2.3 * (columns + 1)), height=2.8)
        ax = figure.add_subplot()
        place: dict[int, tuple[float, float]] = {}
        for column in range(columns + 1):
            context = [
                i
                for i, node in enumerate(graph.nodes)
                if node.column == column and node.kind == "context"
            ]
            for rank, i in enumerate(context):
                place[i] = (column + 0.15 + 0.5 * rank, 1.0 + 0.5 * rank)
        for i, node in enumerate(graph.nodes):
            if node.kind == "expression":
                place[i] = (float(node.column), 0.0)
        for edge in graph.edges:
            (x0, y0), (x1, y1) = place[edge.source], place[edge.target]
            along = graph.nodes[edge.source].kind == "expression"
            half = [0.03 + 0.014 * len(graph.nodes[n].name) for n in (edge.source, edge.target)]
            begin = (x0 + half[0], y0) if along else (x0, y0)
            end = (x1 - half[1], y1) if along else (x1, y1 + 0.12)
            _arrow(ax, begin, end, style.SOFT, shrink=0)
            x = 0.5 * (place[edge.source][0] + place[edge.target][0])
            y = 0.5 * (place[edge.source][1] + place[edge.target][1])
            ax.text(
                x, y, edge.label, fontsize=7, color=style.SOFT, ha="center", va="center",
                bbox={"fc": "white", "ec": "none", "pad": 0.6},
            )  # fmt: skip
        for i, node in enumerate(graph.nodes):
            colour = style.BLUE if node.kind == "expression" else style.ORANGE
            ax.text(
                *place[i], node.name, ha="center", va="center", fontsize=8, color=style.INK,
                bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": colour, "lw": 1.3},
            )  # fmt: skip
        top = max(y for _, y in place.values())
        ax.set(xlim=(-0.5, columns + 0.4), ylim=(-0.45, top + 0.45))
        ax.axis("off")
        return style.save(
            figure, path, "Contextual causal graph",
            "What is done (orange) and the expression after each culture (blue). An arrow says on "
            "which genes it acts.",
        )  # fmt: skip


def gene_figure(graph: CausalGraph, path: Path) -> Figure:
    """Genes on a circle; perturbations are written on the mechanisms they change."""
    import math

    from neuralgraph.viz import style

    n = len(graph.nodes)
    with style.house():
        figure = style.canvas(width=5.0, height=4.8)
        ax = figure.add_subplot()
        place = [(math.sin(2 * math.pi * i / n), math.cos(2 * math.pi * i / n)) for i in range(n)]
        for edge in graph.edges:
            colour = {1: style.GREEN, -1: style.VERMILION}.get(edge.sign, style.SOFT)
            _arrow(ax, place[edge.source], place[edge.target], colour, bar=edge.sign < 0)
        for (x, y), node in zip(place, graph.nodes, strict=True):
            changed = bool(node.parameter)
            fill = style.YELLOW if changed else "white"
            ax.scatter(x, y, s=440, color=fill, edgecolor=style.INK, linewidth=1.0, zorder=3)
            ax.text(x, y, node.name, ha="center", va="center", fontsize=8, zorder=4)
            if changed:
                ax.text(1.27 * x, 1.22 * y, node.parameter, ha="center", va="center", fontsize=8)
        ax.set(xlim=(-1.45, 1.45), ylim=(-1.35, 1.35), aspect="equal")
        ax.axis("off")
        return style.save(
            figure, path, "Gene-level causal graph",
            "Genes are variables; a perturbation is a parameter of a mechanism (yellow, with what "
            "it sets), not a variable. Green activates, orange represses.",
        )  # fmt: skip


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    bar: bool = False,
    shrink: float = 13,
) -> None:
    ax.annotate(
        "", xy=end, xytext=start,
        arrowprops={
            "arrowstyle": "|-|,widthA=0,widthB=0.25" if bar else "-|>", "color": colour, "lw": 1.1,
            "shrinkA": shrink, "shrinkB": shrink, "connectionstyle": "arc3,rad=0.08",
        },
    )  # fmt: skip


class CountReporter:
    """Latent cells by condition, factors of the batches, and the loss."""

    def figures(
        self,
        model: CountVAE,
        data: CellCounts,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import style

        out = folder / "figures"
        test = data.rows(data.test_index if len(data.test_index) else data.train_index)
        with torch.no_grad():
            z = model.encode(test)[0].double().cpu()
            factors = model.factors().log().double().cpu()
        z = z - z.mean(0)
        axes_of = torch.linalg.svd(z, full_matrices=False)[2][:2]
        points = z @ axes_of.T
        with style.house():
            has_batches = data.spec.n_batch > 1
            figure = style.canvas(width=style.WIDTH if has_batches else 4.6, height=3.8)
            panes = figure.subplots(1, 2 if has_batches else 1, squeeze=False)[0]
            latent = panes[0]
            n_colour = len(style.CYCLE)
            for k, name in enumerate(data.conditions):
                mine = points[test.condition.cpu() == k]
                latent.scatter(
                    mine[:, 0], mine[:, 1] if points.shape[1] > 1 else 0 * mine[:, 0], s=9, lw=0,
                    alpha=0.7, marker="o^s*"[(k - 1) // n_colour % 4] if k else "o", label=name,
                    color=style.CYCLE[(k - 1) % n_colour] if k else style.SOFT,
                )  # fmt: skip
            latent.set(xlabel="latent component 1", ylabel="latent component 2")
            latent.set_title("Held-out cells")
            latent.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
            if has_batches:
                size = float(factors.abs().max().clamp_min(1e-3))
                image = panes[1].imshow(
                    factors, aspect="auto", cmap=style.DIVERGING, vmin=-size, vmax=size
                )
                panes[1].set(xlabel="gene", ylabel="batch")
                panes[1].set_yticks(range(len(factors)))
                panes[1].set_title("Log factor of each batch")
                figure.colorbar(image, ax=panes[1], shrink=0.8)
            yield style.save(
                figure, out / "latent.png", "Latent cells and batches",
                "Means of the latent cells on their two main directions; where there are batches, "
                "what each does to each gene beside the first.",
            )  # fmt: skip
            yield _loss_figure(
                folder,
                "Misfit of the counts and divergence from the prior, for each gene of a cell.",
            )
