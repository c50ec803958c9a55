"""Figures of predicted responses, and tables of them for others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count
from neuralgraph.core.files import write_text
from neuralgraph.core.product import Product
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.hyperbolic_response.dataset import ResponseData
from neuralgraph.systems.hyperbolic_response.embedding import (
    disk_map,
    model_distance,
    response_distance,
)
from neuralgraph.systems.hyperbolic_response.evaluation import Judged, judge
from neuralgraph.systems.hyperbolic_response.metrics import BASELINES, mean_of
from neuralgraph.systems.hyperbolic_response.model import ResponseModel
from neuralgraph.systems.hyperbolic_response.tasks import Builder, known_conditions
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("pearson_delta", "Pearson delta\nshared"),
    ("pearson_delta_disjoint", "Pearson delta\ndisjoint"),
    ("pearson_delta_vs_mean_disjoint", "… against mean\ndisjoint"),
    ("pds_disjoint", "PDS\ndisjoint"),
    ("mse_disjoint", "MSE\ndisjoint"),
)
"""Metrics of the forest plot."""
MAX_ROWS = 40
"""Perturbations in the figure of scores by perturbation."""


class ResponseReporter:
    """What was predicted, how well, and where perturbations lie.

    Args:
        n_ranked: Perturbations and genes in the rankings.
        n_shown: Perturbations in the figure of predicted against observed responses.
        highlight: Perturbations named in the embedding; empty: all.
    """

    def __init__(self, *, n_ranked: Count, n_shown: Count, highlight: list[str]) -> None:
        self.n_ranked, self.n_shown, self.highlight = n_ranked, n_shown, highlight
        self._judged: tuple[ResponseModel, ResponseData, Judged] | None = None

    def judged(self, model: ResponseModel, data: ResponseData) -> Judged:
        """Predictions and measurements, made once for figures and products."""
        if self._judged is None or self._judged[0] is not model or self._judged[1] is not data:
            builder = Builder(data, model.settings)
            self._judged = (model, data, judge(model, builder, subgroup=None, fdr=None))
        return self._judged[2]

    def figures(
        self,
        model: ResponseModel,
        data: ResponseData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``."""
        from neuralgraph.viz import panels, style

        out = folder / "figures"
        out.mkdir(exist_ok=True)
        judged = self.judged(model, data)
        with style.house():
            figure = style.canvas(style.WIDTH, 0.9 + 0.3 * (1 + len(BASELINES)))
            forest(figure, scorecard)
            yield style.save(
                figure, out / "forest.png", "Scores beside what needs no model",
                "Mean over the scored perturbations with its 95 % bootstrap interval. Shared: "
                "prediction and truth are measured against the same control cells, whose noise is "
                "then in both. Disjoint: against different ones. The ceiling is one half of the "
                "cells predicting the other.",
            )  # fmt: skip
            rows = scorecard.facts.get("by_perturbation", [])
            if rows:
                chosen = both_tails(rows, MAX_ROWS)
                figure = style.canvas(style.WIDTH, 0.9 + 0.21 * len(chosen))
                by_perturbation(figure, chosen)
                some = (
                    ""
                    if len(chosen) == len(rows)
                    else f" Of {len(rows)} the {MAX_ROWS // 2} that gain most and the "
                    f"{MAX_ROWS // 2} that gain least with disjoint controls; all are in "
                    "scores_by_perturbation.csv."
                )
                yield style.save(
                    figure, out / "by_perturbation.png", "Scores by perturbation",
                    "Filled: ours; open: the reference baseline; grey tick: the split-half ceiling "
                    f"of that perturbation, below which none can be told apart from noise.{some}",
                )  # fmt: skip
            scored = {r["perturbation"] for r in rows}
            order = judged.truth[0].square().sum(1).argsort(descending=True).tolist()
            order.sort(key=lambda i: judged.names[i] not in scored)  # stable: scored ones first
            shown = order[: self.n_shown]
            columns = min(3, len(shown))
            lines = -(-len(shown) // columns)
            figure = style.canvas(style.WIDTH, 0.3 + 2.4 * lines)
            for ax, i in zip(figure.subplots(lines, columns, squeeze=False).flat, shown,
                             strict=False):  # fmt: skip
                predicted_against_observed(ax, judged, i)
            for ax in figure.axes[len(shown) :]:
                ax.set_visible(False)
            yield style.save(
                figure, out / "predicted.png", "Predicted and observed responses",
                "Test perturbations, scored ones first, then by size of the response; one dot a "
                "gene (all controls); bars: 90 % prediction intervals of the named genes. None of "
                "these conditions was learned from.",
            )  # fmt: skip
            figure = style.canvas(style.WIDTH, 0.8 + 0.22 * 2 * self.n_ranked)
            rankings(figure, judged, self.n_ranked)
            yield style.save(
                figure, out / "rankings.png", "Genes of a perturbation, perturbations of a gene",
                "Left: genes predicted to respond most to the strongest perturbation, up and down. "
                "Right: perturbations predicted to move the most sensitive gene most, up and down. "
                "Bars: predicted, with its standard deviation; dots: measured.",
            )  # fmt: skip
            figure = style.canvas(style.WIDTH, 0.9 + 0.2 * 2 * self.n_ranked)
            sensitivity(figure, judged, 2 * self.n_ranked)
            yield style.save(
                figure, out / "sensitivity.png", "Sensitivity of genes",
                "Mean response over test perturbations, upward and downward parts apart. Bars: "
                "predicted, dots: measured.",
            )  # fmt: skip
            figure = style.canvas(style.WIDTH, 4.0)
            self._embedding(figure, model, data)
            start = (
                ""
                if model.descent_kept() > 0
                else " No descent was kept: these are distances of the start, the gene graph "
                "through random weights, and take part in no prediction."
            )
            yield style.save(
                figure, out / "embedding.png", "Perturbations in the Poincaré disk",
                "Left: geodesic distances of the model, mean over folds and members, drawn in two "
                f"dimensions.{start} Right: 1 − correlation of the measured single responses "
                "(shrunk), drawn the same way: a description of all the data, which no prediction "
                "uses. Area: size of the response.",
            )  # fmt: skip
            figure = style.canvas(5.4, 3.2)
            panels.loss_curves(figure.subplots(), folder / "metrics.jsonl")
            yield style.save(
                figure, out / "loss.png", "Training",
                "Sum over all models of the squared error in shares of the baseline's.",
            )  # fmt: skip

    def _embedding(self, figure: Any, model: ResponseModel, data: ResponseData) -> None:
        known = everything_known(data)
        single = known.hot.sum(1) == 1
        first = known.context == known.context[single][0]
        known = known.rows(single & first)
        which = known.hot.argmax(1).tolist()
        names = [data.perturbations[p] for p in which]
        size = known.delta.norm(dim=1)
        inside = model_distance(model)[which][:, which]
        left, right = figure.subplots(1, 2)
        disk(left, disk_map(inside), names, size, self.highlight)
        what = "model" if model.descent_kept() > 0 else "model at its start"
        left.set_title(f"{what} ({model.space.name}, dimension {model.dim})")
        disk(right, disk_map(response_distance(known)), names, size, self.highlight)
        right.set_title("measured responses")

    def products(
        self,
        model: ResponseModel,
        data: ResponseData,
        scorecard: Scorecard,
        folder: Path,
        *,
        store: Mapping[str, Any],
    ) -> Iterator[Product]:
        """``predictions.csv`` and ``scores_by_perturbation.csv``."""
        judged = self.judged(model, data)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head = ("perturbation", "gene", "predicted", "std", "baseline", "measured")
        writer.writerow(head)
        tables = (
            judged.prediction["ours"][0],
            judged.std[0],
            judged.prediction[model.settings.baseline][0],
            judged.truth[0],
        )
        for i, name in enumerate(judged.names):
            for g, gene in enumerate(judged.genes):
                writer.writerow([name, gene, *(f"{float(t[i, g]):.5g}" for t in tables)])
        path = folder / "predictions.csv"
        write_text(path, text.getvalue())
        preview = "\n".join(text.getvalue().splitlines()[:6])
        yield Product(
            path, "Predicted responses",
            "Every test perturbation and gene: predicted response against all controls, its "
            "standard deviation, the closed-form baseline, and what was measured.", preview,
        )  # fmt: skip
        rows = scorecard.facts.get("by_perturbation", [])
        if rows:
            text = io.StringIO()
            table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            path = folder / "scores_by_perturbation.csv"
            write_text(path, text.getvalue())
            yield Product(
                path, "Scores by perturbation",
                "Pearson delta of each scored perturbation, ours, of the reference baseline and "
                "of the split-half ceiling.", "\n".join(text.getvalue().splitlines()[:6]),
            )  # fmt: skip


def everything_known(data: ResponseData) -> Any:
    """Every condition that is tested or learned from, against all controls; for description."""
    fold = data.to("cpu").folds[0]
    parts = [fold.train, fold.validation, fold.test]
    from dataclasses import replace

    known = [known_conditions(fold, 0, part) for part in parts if part is not None]
    return replace(
        known[0],
        delta=torch.cat([k.delta for k in known]),
        variance=torch.cat([k.variance for k in known]),
        hot=torch.cat([k.hot for k in known]),
        context=torch.cat([k.context for k in known]),
    )


def forest(figure: Any, scorecard: Scorecard) -> None:
    """Intervals of ours and of each baseline, one panel a metric."""
    from neuralgraph.viz import style

    metrics = [(name, title) for name, title in PANELS if name in scorecard.metrics]
    names = ["", *BASELINES]
    labels = ["ours", *(b.replace("_", " ") for b in BASELINES)]
    axes = figure.subplots(1, max(len(metrics), 1), sharey=True, squeeze=False)[0]
    for ax, (metric, title) in zip(axes, metrics, strict=False):
        for y, baseline in enumerate(names):
            name = f"{metric}_{baseline}" if baseline else metric
            value = scorecard.metrics.get(name)
            if value is None:
                ax.text(0.5, y, "–", transform=ax.get_yaxis_transform(), ha="center",
                        va="center", color=style.SOFT)  # fmt: skip
                continue
            colour = style.BLUE if not baseline else style.SOFT
            low, high = (scorecard.metrics.get(f"{name}_{b}", value) for b in ("lo", "hi"))
            ax.plot([low, high], [y, y], color=colour, lw=2.2 if not baseline else 1.4)
            ax.plot([value], [y], "o", color=colour, ms=6 if not baseline else 4)
        ours = scorecard.metrics[metric]
        ax.axvline(ours, color=style.BLUE, lw=0.7, ls=":", zorder=0)
        ax.set_title(title, fontsize=7.5)
        ax.tick_params(labelsize=7)
        ax.locator_params(axis="x", nbins=3)
        ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()


def score_keys(row: dict[str, Any], *, disjoint: bool) -> tuple[str, str]:
    """Keys of our score and of the reference's in a row of scores by perturbation."""
    own = "pearson_delta_disjoint" if disjoint else "pearson_delta"
    other = next(k for k in row if k.startswith(f"{own}_") and not k.endswith("ceiling")
                 and ("disjoint" in k) == disjoint)  # fmt: skip
    return own, other


def both_tails(rows: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The n / 2 rows that gain most on the reference and the n / 2 that gain least, by gain.

    All of them, as they come, where they are ``n`` or fewer; undefined gains are in the middle.
    """
    if len(rows) <= n:
        return rows
    own, other = score_keys(rows[0], disjoint=True)
    gain = [0.0 if None in (r[own], r[other]) else r[own] - r[other] for r in rows]
    order = sorted(range(len(rows)), key=lambda i: -gain[i])
    return [rows[i] for i in [*order[: n // 2], *order[-(n // 2) :]]]


def by_perturbation(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Ours, reference and ceiling of each perturbation, shared and disjoint."""
    from neuralgraph.viz import style

    axes = figure.subplots(1, 2, sharey=True)
    for ax, disjoint in zip(axes, (False, True), strict=True):
        own, other = score_keys(rows[0], disjoint=disjoint)
        for y, row in enumerate(rows):
            a, b, c = row[own], row[other], row[f"{own}_ceiling"]
            if a is not None and b is not None:
                colour = style.GREEN if a >= b else style.VERMILION
                ax.plot([b, a], [y, y], color=colour, lw=1.6)
            if b is not None:
                ax.plot([b], [y], "o", mfc="white", mec=style.SOFT, ms=5)
            if a is not None:
                ax.plot([a], [y], "o", color=style.BLUE, ms=5)
            if c is not None:
                ax.plot([c], [y], "|", color=style.SOFT, ms=9, mew=2)
        ax.set_title("disjoint controls" if disjoint else "shared controls")
        ax.set_xlabel("Pearson delta")
        ax.axvline(0, color=style.LINE, lw=1, zorder=0)
        ax.margins(y=0.6 / max(len(rows), 1))
    axes[0].set_yticks(range(len(rows)), [row["perturbation"] for row in rows], fontsize=7.5)
    axes[0].invert_yaxis()


def predicted_against_observed(ax: Axes, judged: Judged, row: int) -> None:
    """One dot a gene; the genes with the largest responses are named."""
    from neuralgraph.viz import panels, style

    observed, predicted = judged.truth[0][row], judged.prediction["ours"][0][row]
    panels.identity_scatter(ax, observed, predicted)
    top = observed.abs().topk(min(4, len(observed))).indices.tolist()
    std = judged.std[0][row]
    chosen = torch.full_like(std, float("nan"))
    chosen[top] = 1.645 * std[top]
    panels.error_bars(ax, observed, predicted, chosen)
    low, high = ax.get_xlim()
    taken: list[tuple[float, float]] = []
    for g in top:
        point = float(observed[g]), float(predicted[g])
        x, y = ((value - low) / (high - low) for value in point)  # both axes are the same
        place = apart(x, y + 0.04, taken, width=0.4, height=0.075 if y < 0.7 else -0.075)
        is_right = x > 0.5
        ax.annotate(
            judged.genes[g], point, xytext=(x - 0.02 if is_right else x + 0.02, place),
            textcoords="axes fraction", fontsize=6.5, va="center",
            ha="right" if is_right else "left",
            arrowprops={"arrowstyle": "-", "lw": 0.3, "color": style.SOFT}
            if abs(place - y) > 0.05 else None,
        )  # fmt: skip
    from neuralgraph.systems.hyperbolic_response.metrics import pearson

    r = mean_of(pearson(predicted[None], observed[None]))
    ax.set_title(f"{judged.names[row]}  r {r:.2f}", fontsize=8)
    ax.set(xlabel="observed", ylabel="predicted")


def rankings(figure: Any, judged: Judged, n: int) -> None:
    """Genes of the strongest perturbation, and perturbations of the most sensitive gene."""
    left, right = figure.subplots(1, 2)
    predicted, measured, std = judged.prediction["ours"][0], judged.truth[0], judged.std[0]
    row = int(predicted.square().sum(1).argmax())
    both_ends(left, predicted[row], std[row], measured[row], judged.genes, n)
    left.set_title(f"genes, {judged.names[row]}")
    column = int(predicted.square().sum(0).argmax())
    both_ends(
        right, predicted[:, column], std[:, column], measured[:, column], tuple(judged.names), n
    )
    right.set_title(f"perturbations, gene {judged.genes[column]}")


def both_ends(
    ax: Axes, predicted: Tensor, std: Tensor, measured: Tensor, names: tuple[str, ...], n: int
) -> None:
    """The largest and the smallest predictions with what was measured."""
    from neuralgraph.viz import style

    order = predicted.argsort(descending=True).tolist()
    chosen = order if len(order) <= 2 * n else [*order[:n], *order[-n:]]
    value = predicted[chosen]
    colours = [style.VERMILION if v > 0 else style.BLUE for v in value.tolist()]
    place = range(len(chosen))
    ax.barh(place, value.tolist(), color=colours, alpha=0.65, height=0.75)
    low, high = (value - std[chosen]).tolist(), (value + std[chosen]).tolist()
    ax.hlines(place, low, high, color=style.SOFT, lw=0.9)
    ax.plot(measured[chosen].tolist(), list(place), "o", color=style.INK, ms=3)
    ax.axvline(0, color=style.SOFT, lw=0.8)
    ax.set_yticks(place, [names[i] for i in chosen], fontsize=7)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("response (log expression)")


def sensitivity(figure: Any, judged: Judged, n: int) -> None:
    """Upward and downward parts of the mean response of the most sensitive genes."""
    from neuralgraph.viz import style

    predicted, measured = judged.prediction["ours"][0], judged.truth[0]
    order = predicted.abs().mean(0).argsort(descending=True)[:n].tolist()
    ax = figure.subplots()
    place = list(range(len(order)))
    for sign, colour in ((1.0, style.VERMILION), (-1.0, style.BLUE)):
        part = (sign * predicted[:, order]).clamp_min(0).mean(0) * sign
        seen = (sign * measured[:, order]).clamp_min(0).mean(0) * sign
        ax.barh(place, part.tolist(), color=colour, alpha=0.65, height=0.75)
        ax.plot(seen.tolist(), place, "o", color=style.INK, ms=3)
    ax.axvline(0, color=style.SOFT, lw=0.8)
    ax.set_yticks(place, [judged.genes[g] for g in order], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("mean response over test perturbations: down, up (log expression)")


def apart(
    x: float, y: float, taken: list[tuple[float, float]], *, width: float, height: float
) -> float:
    """Height of a label that covers none of those before, which it then joins.

    Args:
        x: Where it begins.
        y: Where it would stand.
        taken: Labels that stand.
        width: Of a label.
        height: Of a label; negative to move down instead of up.
    """
    near = sorted((b for a, b in taken if abs(x - a) < width), reverse=height < 0)
    for other in near:
        if abs(y - other) < abs(height):
            y = other + height
    taken.append((x, y))
    return y


def disk(ax: Axes, points: Tensor, names: list[str], size: Tensor, highlight: list[str]) -> None:
    """Points in the unit disk, named; highlighted ones in colour."""
    from matplotlib.patches import Circle

    from neuralgraph.viz import style

    ax.add_patch(Circle((0, 0), 1, fill=False, color=style.SOFT, lw=1))
    named = [n for n in names if n in highlight] or names
    area = (12 + 120 * size / size.max().clamp_min(1e-9)).tolist()
    for i, name in enumerate(names):
        x, y = points[i].tolist()
        is_marked = name in highlight
        ax.scatter(
            [x], [y], s=area[i], color=style.VERMILION if is_marked else style.BLUE,
            alpha=0.75, lw=0, zorder=3 if is_marked else 2,
        )  # fmt: skip
    taken: list[tuple[float, float]] = []
    for i, name in sorted(enumerate(names), key=lambda item: item[1] not in highlight):
        x, y = points[i].tolist()
        above = apart(x, y, taken, width=0.28, height=0.055 if y >= 0 else -0.055)
        is_bold = bool(highlight) and name in named
        ax.annotate(
            name, (x, y), xytext=(x + 0.03, above), fontsize=7 if is_bold else 5.5,
            color=style.VERMILION if name in highlight else style.INK,
            fontweight="bold" if is_bold else "normal", va="center", zorder=4,
            arrowprops={"arrowstyle": "-", "lw": 0.3, "color": style.SOFT}
            if abs(above - y) > 0.03 else None,
        )  # fmt: skip
    ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    ax.set_aspect("equal")
    ax.axis("off")
