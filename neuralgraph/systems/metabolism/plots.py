"""Figures of a metabolic network: dynamics, recovered parameters, rate laws, identifiability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.product import Product
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.numerics.integrate import DivergedError
from neuralgraph.systems.metabolism import metrics, structure
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import (
    gauged_log_k,
    gauged_stoichiometry,
    is_stoichiometry_given,
    substrate_amplitude,
)
from neuralgraph.systems.metabolism.held_out import held_out_rollouts
from neuralgraph.systems.metabolism.kinetics import network_of_truth, true_flux
from neuralgraph.systems.metabolism.network import ReactionNetwork
from neuralgraph.systems.metabolism.plots_rates import own_rate_laws
from neuralgraph.systems.metabolism.products import recovered_network, write_products
from neuralgraph.systems.metabolism.uncertainty import (
    coefficient_errors,
    log_k_errors,
    read_uncertainty,
    write_rate_constants,
)
from neuralgraph.viz import panels, style
from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

BARS = "Bars: 95 % intervals at the residual noise, a learned rate law among the unknowns"
TYPE_COLOURS = (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE)


class MetabolismReporter:
    """Figures for ``report.html``, and ``identifiability_structure.csv`` beside them.

    Without truth, the figures that need none are drawn: dynamics, rate laws, loss.

    Args:
        n_metabolite_shown: Courses in the figure of a held-out trajectory.
        n_curve_shown: Reactions in the figure of the rate laws.
        max_image_size: Largest number of matrix entries drawn as an image; a larger network gets
            the scatter alone.
        is_periodic: Whether the figures of document 002 are drawn while training, every
            ``evaluation.every`` epochs.
    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self,
        *,
        n_metabolite_shown: int,
        n_curve_shown: int,
        max_image_size: int,
        is_periodic: bool,
    ) -> None:
        if min(n_metabolite_shown, n_curve_shown, max_image_size) < 1:
            raise ConfigError(
                "report.n_metabolite_shown, n_curve_shown and max_image_size must be at least 1"
            )
        self.n_metabolite_shown = n_metabolite_shown
        self.n_curve_shown = n_curve_shown
        self.max_image_size = max_image_size
        self.is_periodic = is_periodic

    def watch(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        folder: Path,
        label: str,
    ) -> list[Figure]:
        """Substrate function, homeostasis, embeddings, rate constants and loss, as they are now.

        Args:
            model: The model as far as it is trained.
            data: Its data.
            truth: The truth, or ``None``: the comparison of rate constants is then left out, and
                the dashed lines are.
            folder: Run folder; ``metrics.jsonl`` is read where it exists.
            label: End of the files' names, as ``final`` is of the last ones.
        """
        out = folder / "figures"
        units = {"time": data.time_unit, "state": data.concentration_unit}
        figures: list[Figure] = []
        with torch.no_grad(), style.house():
            if truth is not None:
                network = network_of_truth(truth)
                gauged = gauged_stoichiometry(model, data, max_coefficient=2)
                pair = gauged_log_k(model, data, truth, network, gauged)
                if not isinstance(pair, str):
                    figures.append(self._rate_constants(pair, None, out, label=label))
            if model.kinetics == "mass_action":
                figures.append(self._substrate_function(model, data, truth, out, units, label))
            if model.has_homeostasis:
                figures += self._homeostasis(model, data, truth, out, units, label)
            figures.append(self._loss(folder))
        return figures

    def figures(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        scorecard: Scorecard,
        folder: Path,
    ) -> Iterator[Figure]:
        """Draw into ``folder/figures``, one by one.

        Args:
            model: The fitted model.
            data: Its data.
            truth: The truth, or ``None``.
            scorecard: Scores of :class:`~.evaluation.MetabolismEvaluator`, whose settings of the
                gauge and of the rollout are used again.
            folder: Run folder; ``metrics.jsonl`` is read where it exists.
        """
        out = folder / "figures"
        units = {"time": data.time_unit, "state": data.concentration_unit}
        known = read_uncertainty(folder)
        names = data.spec.reaction_names
        pair: tuple[Tensor, Tensor] | str = "no truth"
        with torch.no_grad(), style.house():
            yield from self._dynamics(model, data, scorecard, out, units)
            if truth is not None:
                network = network_of_truth(truth)
                gauged = gauged_stoichiometry(
                    model, data, max_coefficient=scorecard.facts["max_coefficient"]
                )
                rows = scorecard.facts["identifiability"]
                if not is_stoichiometry_given(data):
                    s_error = coefficient_errors(known, network, network.met_all, network.rxn_all)
                    yield self._stoichiometry(gauged, network, rows, out, s_error)
                pair = gauged_log_k(model, data, truth, network, gauged)
                if not isinstance(pair, str):
                    yield self._rate_constants(pair, rows, out, log_k_errors(known, names))
                yield self._rate_law(model, data, truth, network, gauged, out, units)
                if model.has_homeostasis:
                    yield from self._homeostasis(model, data, truth, out, units)
                yield self._identifiability(gauged, network, data, rows, pair, out)
                structure.write_identifiability(rows, folder / "identifiability_structure.csv")
            else:
                yield self._rate_law(model, data, None, None, None, out, units)
                if model.has_homeostasis:
                    yield from self._homeostasis(model, data, None, out, units)
            if known and data.spec.log_k is None:
                log_k, true = (None, None) if isinstance(pair, str) else pair
                path = folder / "rate_constants.csv"
                write_rate_constants(path, names, known, log_k=log_k, true_log_k=true)
            yield self._loss(folder)

    @staticmethod
    def _loss(folder: Path) -> Figure:
        figure = style.canvas(style.WIDTH, 3.0)
        panels.loss_curves(figure.add_subplot(), folder / "metrics.jsonl")
        return style.save(
            figure,
            folder / "figures" / "loss.png",
            "Training",
            "The data term loss (thick blue), each weighted regulariser coeff_… that is on, "
            "their sum regul_total (cyan) and validation_loss (dashed), as far as they are "
            "above 0, at the end of each epoch. Thin vertical lines part the phases; a diamond "
            "is a phase solved in closed form, without steps.",
        )

    def products(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        scorecard: Scorecard,
        folder: Path,
        *,
        store: Mapping[str, Any],
    ) -> Iterator[Product]:
        """The recovered network as files; see :mod:`neuralgraph.systems.metabolism.products`.

        Args:
            model: The fitted model.
            data: Its data.
            scorecard: Scores, for the settings of the gauge and the name of the run.
            folder: Run folder.
            store: What the loop kept.
        """
        largest = scorecard.facts["max_coefficient"]
        network = recovered_network(model, data, max_coefficient=largest, store=store)
        yield from write_products(network, data, folder, title=scorecard.provenance["name"])

    # -- dynamics -----------------------------------------------------------------------------

    def _dynamics(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        scorecard: Scorecard,
        out: Path,
        units: Mapping[str, str],
    ) -> Iterator[Figure]:
        settings: Mapping[str, Any] = scorecard.facts["rollout"]
        try:
            runs = held_out_rollouts(
                model, data, method=settings["method"], n_substep=settings["n_substep"]
            )
        except DivergedError:
            runs = []
        diverged = not runs and bool(data.test)
        if diverged:
            held = data.test[0]
            time = (held.time - held.time[0]).double().cpu()
            seen, predicted = held.state.double().cpu(), None
        elif runs:
            time, seen, predicted = runs[0].time - runs[0].time[0], runs[0].seen, runs[0].predicted
        else:
            return
        figure = style.canvas(style.WIDTH, 3.6)
        ax = figure.add_subplot()
        panels.trajectories(
            ax,
            time,
            seen,
            predicted,
            names=data.spec.metabolite_names,
            n_shown=self.n_metabolite_shown,
        )
        ax.set(xlabel=f"time ({units['time']})", ylabel=f"concentration ({units['state']})")
        says = (
            "The prediction diverged and is not drawn."
            if diverged
            else "Predicted (thin): the model from the first frame alone."
        )
        yield style.save(
            figure,
            out / "concentrations.png",
            "A held-out trajectory",
            "Measured (dots, or a wide line of them): data the training never saw "
            f"({data.test_description}). {says} Metabolites are spread over the range of activity.",
        )
        if predicted is None:
            return
        error = predicted - seen
        change = seen - seen[:1]
        is_short = float(change.square().mean()) < 0.1 * float(seen[0].var())
        if is_short:  # rows would look constant
            seen, predicted = change, predicted - seen[:1]
        figure = style.canvas(style.WIDTH * 1.3, 3.9)
        axes = figure.subplots(1, 3, sharey=True)
        reach = (float(seen.min()), float(seen.max()))
        if is_short:
            reach = (-max(-reach[0], reach[1]), max(-reach[0], reach[1]))
        quantity = "change of concentration" if is_short else "concentration"
        extent = (float(time[0]), float(time[-1]))
        unit = units["state"]
        for ax, values, title, label, diverging in (
            (axes[0], seen, "measured", f"{quantity} ({unit})", is_short),
            (axes[1], predicted, "predicted", f"{quantity} ({unit})", is_short),
            (axes[2], error, "predicted − measured", f"residual ({unit})", True),
        ):
            panels.heatmap(
                ax,
                values.T,
                label=label,
                extent=extent,
                limits=None if values is error else reach,
                diverging=diverging,
            )
            ax.set(title=title, xlabel=f"time ({units['time']})")
            ax.locator_params(axis="x", nbins=4)
        axes[0].set_ylabel("metabolite (number)")
        yield style.save(
            figure,
            out / "kinograph.png",
            "Kinograph of the same trajectory",
            f"Every metabolite in time{' (change since the first frame)' if is_short else ''}. "
            "The residual has a colour scale of its own, "
            f"largest {float(error.abs().max()):.2g} {unit}.",
        )

    # -- recovered parameters -----------------------------------------------------------------

    def _stoichiometry(
        self,
        gauged: metrics.GaugedStoichiometry,
        network: ReactionNetwork,
        rows: Sequence[Mapping[str, Any]],
        out: Path,
        error: Tensor | None = None,
    ) -> Figure:
        truth, value = network.matrix(), gauged.dense(gauged.value)
        met, rxn = network.met_all, network.rxn_all
        known = torch.tensor([row["column_determined"] for row in rows])[rxn]
        drawn = truth.numel() <= self.max_image_size
        figure = style.canvas(style.WIDTH * 1.45, 3.7) if drawn else style.canvas(4.4, 4.2)
        grid = figure.add_gridspec(
            1, 3 if drawn else 1, width_ratios=[1.15, 1, 1] if drawn else [1]
        )
        ax = figure.add_subplot(grid[0])
        panels.identity_scatter(
            ax,
            truth[met, rxn],
            value[met, rxn],
            groups={
                "determined": (known, style.BLUE),
                "not determined": (~known, style.ORANGE),
            },
            jitter=0.28,
        )
        says = ""
        if error is not None and bool(torch.isfinite(error).any()):
            panels.error_bars(ax, truth[met, rxn], value[met, rxn], 1.96 * error, jitter=0.28)
            says = f" {BARS}."
        integers = truth[met, rxn].round().unique().tolist()
        ax.set_xticks(integers if len(integers) < 10 else ax.get_xticks())
        low, high = ax.get_ylim()
        ax.set(xlim=(low - 0.2, high + 0.2), ylim=(low - 0.2, high + 0.9))
        ax.set(xlabel="true coefficient", ylabel="recovered coefficient (gauge fixed)")
        ax.grid(axis="y")
        if drawn:
            reach = float(truth.abs().max())
            for place, (matrix, title) in enumerate(((truth, "true S"), (value, "recovered S"))):
                other = figure.add_subplot(grid[place + 1])
                panels.heatmap(
                    other,
                    matrix,
                    label="coefficient",
                    extent=None,
                    limits=(-reach, reach),
                    diverging=True,
                )
                other.set(title=title, xlabel="reaction (number)", ylabel="metabolite (number)")
        return style.save(
            figure,
            out / "stoichiometry.png",
            "True against recovered stoichiometry",
            "Each point is an edge of the true network, shifted sideways to be seen; the line is "
            "perfect recovery. Orange: edges of reactions that noise-free data cannot tell apart."
            + says,
        )

    def _rate_constants(
        self,
        pair: tuple[Tensor, Tensor],
        rows: Sequence[Mapping[str, Any]] | None,
        out: Path,
        error: Tensor | None = None,
        label: str = "final",
    ) -> Figure:
        log_k, true_log_k = pair
        groups = {"reactions": (torch.ones(log_k.shape, dtype=torch.bool), style.BLUE)}
        if rows is not None:
            known = torch.tensor([bool(row["k_determined"]) for row in rows])
            groups = {
                "determined": (known, style.BLUE),
                "not determined": (~known, style.ORANGE),
            }
        figure = style.canvas(4.6, 4.4)
        ax = figure.add_subplot()
        panels.identity_scatter(
            ax,
            true_log_k,
            log_k,
            groups=groups,
            band=metrics.OUTLIER,
        )
        says = ""
        if error is not None and bool(torch.isfinite(error).any()):
            panels.error_bars(ax, true_log_k, log_k, 1.96 * error)
            says = f" {BARS} (rate_constants.csv has them all)."
        ax.set(xlabel="true log$_{10}$ k", ylabel="recovered log$_{10}$ k (gauge fixed)")
        return style.save(
            figure,
            out / "rate_constants" / f"comparison_{label}.png",
            "True against recovered rate constants",
            f"Outside the grey band a reaction counts as an outlier (error above "
            f"{metrics.OUTLIER:g}). "
            + ("" if rows is None else "Orange: not determined by noise-free data of this design.")
            + says,
        )

    # -- rate laws ----------------------------------------------------------------------------

    def _rate_law(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        network: ReactionNetwork | None,
        gauged: metrics.GaugedStoichiometry | None,
        out: Path,
        units: Mapping[str, str],
    ) -> Figure:
        if model.kinetics == "mass_action":
            return self._substrate_function(model, data, truth, out, units)
        if model.kinetics == "own_rates":
            return own_rate_laws(model, data, truth, gauged, out, units)
        train = data.train
        state = train.concentration.double().cpu().median(0).values
        chosen = self._curve_reactions(model)
        evaluate = _model_flux(model, data)
        exact: Callable[[Tensor], Tensor] | None = None
        if truth is not None and network is not None and truth.facts["rate_law"] != "sbml":
            exact = partial(true_flux, truth, network)
        n_column = min(3, len(chosen)) or 1
        n_row = max(1, -(-len(chosen) // n_column))
        figure = style.canvas(style.WIDTH * 1.15, 2.1 * n_row + 0.5)
        axes = figure.subplots(n_row, n_column, squeeze=False, sharey=True).flatten()
        for ax, (met, rxn) in zip(axes, chosen, strict=False):
            seen = train.concentration[:, met].double().cpu()
            x = torch.linspace(float(seen.min()), float(seen.max()), 60, dtype=torch.float64)
            frames = state.repeat(60, 1)
            frames[:, met] = x
            at_state = state[None]
            learned = evaluate(frames)[:, rxn] / evaluate(at_state)[0, rxn]
            dashed = None
            if exact is not None:
                dashed = (exact(frames)[:, rxn] / exact(at_state)[0, rxn])[:, None]
            panels.curves(ax, x, learned[:, None], dashed, colours=(style.BLUE,))
            ax.plot([float(state[met])], [1], "o", ms=3.5, color=style.INK)
            name = data.spec.metabolite_names[met]
            ax.set(title=data.spec.reaction_names[rxn], xlabel=f"{name} ({units['state']})")
        for ax in axes[len(chosen) :]:
            ax.set_visible(False)
        figure.supylabel("rate relative to that at the median state", fontsize=9)
        dashed_text = "Dashed: truth. " if exact is not None else ""
        return style.save(
            figure,
            out / "rate_law.png",
            "Rate laws",
            f"Rate of some reactions as one substrate varies over the training range, the others "
            f"at their median; divided by the rate at the median state (dot), which fixes the "
            f"gauge. Solid: learned. {dashed_text}",
        )

    def _curve_reactions(self, model: Metabolism_Propagation) -> list[tuple[int, int]]:
        """Substrate and reaction of each curve, spread evenly over the reactions."""
        first: dict[int, int] = {}
        for met, rxn in zip(model.met_sub.tolist(), model.rxn_sub.tolist(), strict=True):
            first.setdefault(rxn, met)
        reactions = sorted(first)
        step = max(1, len(reactions) // self.n_curve_shown)
        return [(first[j], j) for j in reactions[::step][: self.n_curve_shown]]

    def _substrate_function(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        out: Path,
        units: Mapping[str, str],
        label: str = "final",
    ) -> Figure:
        values = data.train.concentration.double().flatten().cpu()
        values = values[:: max(1, values.numel() // 500_000)]
        top = float(values.quantile(0.999))
        x = torch.linspace(1e-3 * top, top, 120, dtype=torch.float64)
        alpha = substrate_amplitude(model) or 1.0
        used = set(model.order_levels.double().cpu().round(decimals=6).tolist())
        is_known = data.spec.sto_sub is not None
        figure = style.canvas(4.8, 3.6)
        ax = figure.add_subplot()
        ax.set_yscale("symlog", linthresh=1.0)
        for colour, order in ((style.BLUE, 1.0), (style.VERMILION, 2.0)):
            point = torch.stack([x, torch.full_like(x, order)], 1).to(
                model.log_k.device, model.log_k.dtype
            )
            learned = model.MLP_sub(point).detach().double().cpu().flatten() / alpha
            free = is_known and order not in used
            ax.plot(
                x,
                learned,
                color=colour,
                lw=2.2,
                alpha=0.35 if free else 0.8,
                label=f"|s| = {order:g}" + (" (not determined: no such edge)" if free else ""),
            )
            if truth is not None and truth.facts["rate_law"] == "mass_action":
                ax.plot(x, x**order, color=style.INK, lw=1.1, ls=(0, (4, 2)))
        ax.legend(loc="upper left")
        ax.set(
            xlabel=f"concentration ({units['state']})",
            ylabel="MLP_sub(c, |s|) / MLP_sub(1, 1)",
        )
        ax.grid(axis="y")
        return style.save(
            figure,
            out / "substrate_func" / f"MLP_sub_{label}.png",
            "Substrate function",
            "Factor of one substrate in the rate, learned (solid) and the power law of mass action "
            "(dashed), over the range of the training data.",
        )

    def _homeostasis(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        out: Path,
        units: Mapping[str, str],
        label: str = "final",
    ) -> Iterator[Figure]:
        types = torch.zeros(data.spec.n_met, dtype=torch.long)
        if truth is not None and "metabolite_type" in truth.parameters:
            types = truth.parameters["metabolite_type"].long()
        values = data.train.concentration.double().flatten().cpu()
        values = values[:: max(1, values.numel() // 500_000)]
        x = torch.linspace(float(values.min()), float(values.quantile(0.99)), 60).double()
        grid = x[:, None].expand(-1, data.spec.n_met).to(model.log_k.device, model.log_k.dtype)
        h = model.homeostasis(grid.contiguous()).double().cpu()
        figure = style.canvas(4.8, 3.6)
        ax = figure.add_subplot()
        named = truth is not None and "metabolite_type" in truth.parameters
        for t in types.unique().tolist():
            here = types == t
            colour = TYPE_COLOURS[t % len(TYPE_COLOURS)]
            ax.plot(x, h[:, here], color=colour, lw=0.5, alpha=0.25)
            legend = f"type {t}: median" if named else "median"
            ax.plot(x, h[:, here].median(1).values, color=colour, lw=2.2, label=legend)
            if truth is not None and named:
                rate = truth.parameters["homeostasis_lambda"][here].mean()
                level = truth.parameters["homeostasis_baseline"][here].mean()
                ax.plot(x, -rate * (x - level), color=style.INK, lw=1.1, ls=(0, (4, 2)))
        ax.legend(loc="best")
        ax.set(
            xlabel=f"concentration ({units['state']})",
            ylabel=f"MLP_node(c, a) ({units['state']}/{units['time']})",
        )
        ax.grid(axis="y")
        yield style.save(
            figure,
            out / "rate_func" / f"MLP_node_{label}.png",
            "Learned homeostasis",
            "One thin line for each metabolite; thick: median"
            + (" of its type; dashed: truth." if named else "."),
        )
        a = model.a.detach().double().cpu()
        figure = style.canvas(4.2, 3.8)
        ax = figure.add_subplot()
        for t in types.unique().tolist():
            here = types == t
            y = a[here, 1] if a.shape[1] > 1 else torch.zeros(int(here.sum()))
            ax.scatter(
                a[here, 0].numpy(),
                y.numpy(),
                s=18,
                lw=0,
                alpha=0.7,
                color=TYPE_COLOURS[t % len(TYPE_COLOURS)],
                label=f"type {t}" if named else None,
            )
        if named:
            ax.legend(loc="best")
        ax.set(xlabel="embedding, first coordinate", ylabel="embedding, second coordinate")
        yield style.save(
            figure,
            out / "embedding" / f"embedding_{label}.png",
            "Metabolite embeddings",
            "One point for each metabolite; those of one type may lie on top of each other"
            + (". Coloured by true type." if named else "."),
        )

    # -- identifiability ----------------------------------------------------------------------

    def _identifiability(
        self,
        gauged: metrics.GaugedStoichiometry,
        network: ReactionNetwork,
        data: MetabolismData,
        rows: Sequence[Mapping[str, Any]],
        pair: tuple[Tensor, Tensor] | str,
        out: Path,
    ) -> Figure:
        is_k = is_stoichiometry_given(data)
        key = "k_determined" if is_k else "column_determined"
        known = torch.tensor([bool(row[key]) for row in rows])
        if not is_k:
            right = (gauged.dense(gauged.integer) == network.matrix()).all(0)
            right_word, wrong_word, what = "exact", "wrong", "column of S"
        elif not isinstance(pair, str):
            right = (pair[0] - pair[1]).abs() <= metrics.OUTLIER
            right_word, wrong_word, what = "recovered", "outlier", "rate constant"
        else:
            right = torch.ones_like(known)
            right_word, wrong_word, what = "given", "", "rate constant"
        empty = torch.bincount(network.rxn_all, minlength=network.n_rxn) == 0
        kinds = (
            (f"determined, {right_word}", style.BLUE, known & right & ~empty),
            (f"determined, {wrong_word}", style.VERMILION, known & ~right & ~empty),
            (f"not determined, {right_word}", style.SKY, ~known & right & ~empty),
            (f"not determined, {wrong_word}", style.ORANGE, ~known & ~right & ~empty),
            ("no metabolite changes", style.LINE, empty),
        )
        return style.save(
            _tiles(kinds, network.n_rxn),
            out / "identifiability.png",
            f"Identifiability of each {what}",
            f"One tile for each reaction, numbered row by row. Whether its {what} is determined "
            "follows from the true network and the design alone; whether it was found is the "
            "result of this run.",
        )


def _tiles(kinds: Sequence[tuple[str, str, Tensor]], n: int) -> Canvas:
    """Coloured squares in reading order, with a legend that counts them."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    n_column = 16 if n <= 128 else 32 if n <= 640 else 64 if n <= 2048 else 96
    n_row = -(-n // n_column)
    code = torch.full((n_row * n_column,), len(kinds), dtype=torch.long)
    for number, (_, _, mask) in enumerate(kinds):
        code[: len(mask)][mask] = number
    side = (style.WIDTH - 0.7) / n_column  # inches
    figure = style.canvas(style.WIDTH, side * n_row + 1.0)
    ax = figure.add_subplot()
    x = (torch.arange(n_column + 1) - 0.5).numpy()
    y = (torch.arange(n_row + 1) - 0.5).numpy()
    ax.pcolormesh(
        x,
        y,
        code.reshape(n_row, n_column).numpy(),
        cmap=ListedColormap([colour for _, colour, _ in kinds] + ["white"]),
        vmin=-0.5,
        vmax=len(kinds) + 0.5,
        edgecolors="white",
        linewidth=1.0 if n_column < 60 else 0.3,
    )
    ax.set_aspect("equal")
    ax.invert_yaxis()
    shown = range(0, n_row, max(1, n_row // 12))
    ax.set_yticks(list(shown), [str(row * n_column + 1) for row in shown])
    ticks = range(0, n_column, 8)
    ax.set_xticks(list(ticks), [f"+{tick}" for tick in ticks])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("reaction (number)")
    handles = [
        Patch(color=colour, label=f"{label} ({int(mask.sum())})")
        for label, colour, mask in kinds
        if bool(mask.any())
    ]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(3, len(handles)),
        handlelength=1,
        handleheight=1,
    )
    return figure


def _model_flux(model: Metabolism_Propagation, data: MetabolismData) -> Callable[[Tensor], Tensor]:
    inputs = data.train.inputs
    mean = None if inputs is None else inputs.double().mean(0)

    def flux(c: Tensor) -> Tensor:
        device, dtype = model.log_k.device, model.log_k.dtype
        now = None if mean is None else mean.expand(c.shape[0], -1).to(device, dtype)
        return model.flux(c.to(device, dtype), now).double().cpu()

    return flux
