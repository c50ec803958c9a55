"""How predicted responses are judged: every score beside what needs no model, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, Share
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.hyperbolic_response import metrics
from neuralgraph.systems.hyperbolic_response.baselines import (
    PREDICTORS,
    additive_shrunk,
    parts,
    population_control,
    ridge_choice,
)
from neuralgraph.systems.hyperbolic_response.dataset import Fold, Half, ResponseData
from neuralgraph.systems.hyperbolic_response.glossary import RESPONSE
from neuralgraph.systems.hyperbolic_response.metrics import (
    BASELINES,
    METRICS,
    interval,
    mean_of,
    name_of,
)
from neuralgraph.systems.hyperbolic_response.model import Prediction, ResponseModel
from neuralgraph.systems.hyperbolic_response.tasks import FEATURES, Builder, Tasks

VS_MEAN = ("pearson_delta", "direction_match")
"""Metrics for which it matters whether responses are taken against control or the mean."""
NOT_VS_MEAN = {
    "mse": "the mean is taken from prediction and truth and cancels: see the score against control",
    "mse_top20_de": (
        "the mean cancels in the error, and genes are ranked by their response against control: "
        "see that score"
    ),
    "pds": "the mean is taken from prediction and truth and cancels: see the score against control",
    "de_overlap": "genes are called differential against control cells, never against the mean",
    "energy_distance": "it compares cells with cells, from which no reference is taken",
}
"""Why the other metrics have no score against the perturbed mean."""
POPULATION = FEATURES.index("shrunk, control of the population")
"""The direction that corrects the controls of prediction."""


@dataclass
class Judged:
    """Test perturbations of all folds in one table; N perturbations, G genes common to all folds.

    Args:
        names: Perturbation of each row, with its cell type where there are several.
        fold: Fold of each row.
        row: Row in the test set of its fold.
        subgroup: What of it was seen in training.
        is_scored: Whether it counts for the headline scores.
        is_target: Perturbed genes that are measured, ``(N, G)`` bool.
        prediction: By predictor, a list over forms of ``(N, G)``.
        truth: Measured response, by form.
        against_mean: Measured response against the perturbed mean, by form.
        mean: The perturbed mean, by form.
        ungated: With the whole residual, by form.
        std: Predicted standard deviation, by form.
        gate: Gate of each row, by form.
        level: By how much ours and the shrunk additive take the controls of prediction to be off,
            by predictor, a list over forms of ``(N, G)``.
        ceiling: Two halves of the cells, by form; the second against the controls of the truth.
        ceiling_against_mean: The second half against the perturbed mean, by form.
        is_de: Differentially expressed genes, shared and disjoint, ``(N, G)`` bool.
        genes: Names of the genes.
    """

    names: list[str] = field(default_factory=list)
    fold: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    subgroup: list[str] = field(default_factory=list)
    is_scored: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    is_target: Tensor = field(default_factory=lambda: torch.zeros(0))
    prediction: dict[str, list[Tensor]] = field(default_factory=dict)
    truth: list[Tensor] = field(default_factory=list)
    against_mean: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    ungated: list[Tensor] = field(default_factory=list)
    std: list[Tensor] = field(default_factory=list)
    gate: list[Tensor] = field(default_factory=list)
    level: dict[str, list[Tensor]] = field(default_factory=dict)
    ceiling: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    ceiling_against_mean: list[Tensor] = field(default_factory=list)
    is_de: list[Tensor] = field(default_factory=list)
    genes: tuple[str, ...] = ()

    @property
    def n_form(self) -> int:
        """Forms: all controls, then each cut of them."""
        return len(self.truth)

    def forms(self, disjoint: bool) -> list[int]:
        """Forms that a shared or a disjoint score is the mean of."""
        return list(range(1, self.n_form)) if disjoint else [0]


class ResponseEvaluator:
    """Scores over held-out perturbations, in shared-control and disjoint-control form.

    ``{metric}[_vs_mean][_disjoint][_{baseline}][_lo|_hi]``: metrics and baselines as in
    :mod:`~neuralgraph.systems.hyperbolic_response.metrics`; lo and hi bound a 95 % bootstrap
    interval over perturbations. ``gain_{metric}…_{baseline}`` is the paired improvement on a
    baseline (positive: ours is better), ``detectable_…`` the smallest true gain a paired t-test of
    this many perturbations would find with 80 % power. Disjoint scores are means over the cuts of
    the controls; energy distance and what needs differential genes are of the first cut alone.

    Args:
        every: Epochs between two looks while training (there is nothing cheap to look at: 0).
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        subgroup: Test perturbations that are scored: ``seen2`` …, ``measured`` (every perturbed
            gene is a response gene), or ``null`` for all. The others stand in a table of facts.
        reference_baseline: Baseline that gains in the verdict are against.
        n_bootstrap: Draws for intervals.
        fdr: False discovery rate of differential expression (Wilcoxon, Benjamini-Hochberg).
        max_cells: Cells of each side of an energy distance.
    """

    meanings = RESPONSE

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        subgroup: str | None,
        reference_baseline: str,
        n_bootstrap: Count,
        fdr: Share,
        max_cells: Count,
    ) -> None:
        self.every, self.primary_metric, self.direction = every, primary_metric, direction
        self.subgroup, self.reference_baseline = subgroup, reference_baseline
        self.n_bootstrap, self.fdr, self.max_cells = n_bootstrap, fdr, max_cells

    def __call__(
        self, model: ResponseModel, data: ResponseData, truth: Truth | None, *, log: Mapping
    ) -> Scorecard:
        """Every score."""
        card = Scorecard()
        builder = Builder(data, model.settings)
        judged = judge(model, builder, subgroup=self.subgroup, fdr=self.fdr)
        reasons = unavailable(judged, builder)
        values = self.values(judged, data)
        self._scores(card, judged, values, reasons)
        self._own(card, model, judged, log)
        self._truth(card, judged, data, truth)
        self._facts(card, judged, values, reasons)
        if "ridge" not in reasons:
            card.facts["ridge"] = chosen_ridges(builder)
        return card

    def watch(self, model: Any, data: Any, truth: Truth | None) -> dict[str, float]:
        """Nothing cheap to look at."""
        return {}

    # --- values by perturbation ----------------------------------------------------------------

    def values(self, judged: Judged, data: ResponseData) -> dict[tuple, Tensor]:
        """Score of each scored perturbation by (metric, vs_mean, disjoint, predictor)."""
        found: dict[tuple, Tensor] = {}
        at = judged.is_scored.nonzero()[:, 0]
        predictors = ["ours", *BASELINES]
        energy = self._energy(judged, data, at)
        for disjoint in (False, True):
            is_de = judged.is_de[int(disjoint)][at]
            per_form: dict[tuple, list[Tensor]] = {}
            for form in judged.forms(disjoint):
                truth, against = judged.truth[form][at], judged.against_mean[form][at]
                mean = judged.mean[form][at]
                for name in predictors:
                    response = truth
                    if name == "ceiling":
                        guess, response = (half[at] for half in judged.ceiling[form])
                        beyond, apart = guess - mean, judged.ceiling_against_mean[form][at]
                    else:
                        guess = judged.prediction[name][form][at]
                        beyond, apart = guess - mean, against
                    scores = {
                        ("pearson_delta", False): metrics.pearson(guess, response),
                        ("pearson_delta", True): metrics.pearson(beyond, apart),
                        ("mse", False): metrics.mse(guess, response),
                        ("mse_top20_de", False): metrics.mse_top(guess, response, truth),
                        ("direction_match", False): metrics.direction_match(guess, response, is_de),
                        ("direction_match", True): metrics.direction_match(beyond, apart, is_de),
                        ("pds", False): metrics.pds(guess, response, judged.is_target[at]),
                        ("de_overlap", False): metrics.de_overlap(guess, is_de),
                    }
                    for (metric, vs_mean), value in scores.items():
                        if metric in ("direction_match", "de_overlap") and form > 1:
                            continue  # their genes are called against the first cut's controls
                        per_form.setdefault((metric, vs_mean, disjoint, name), []).append(value)
            found |= {key: metrics.stacked(parts) for key, parts in per_form.items()}
            found |= {
                ("energy_distance", False, disjoint, name): energy[disjoint, name]
                for name in predictors
            }
        return found

    def _energy(
        self, judged: Judged, data: ResponseData, at: Tensor
    ) -> dict[tuple[bool, str], Tensor]:
        """Energy distance of control cells moved by the prediction to the perturbed cells."""
        found: dict[tuple[bool, str], list[float]] = {}
        generator = torch_generator(0, "cells of energy distances")

        def some(cells: Tensor, n: int) -> Tensor:
            return cells[torch.randperm(len(cells), generator=generator)[:n]]

        for i in at.tolist():
            fold = data.folds[judged.fold[i]]
            place = [fold.gene_names.index(g) for g in judged.genes]
            cells = some(fold.test.cells(judged.row[i])[:, place], 2 * self.max_cells)
            target = cells[: self.max_cells]
            own = metrics.mean_distance(target) if len(target) > 1 else float("nan")
            half = len(cells) // 2
            split = metrics.energy_distance(cells[:half], cells[half:])
            for disjoint in (False, True):
                which = "prediction" if disjoint else "all"
                rows = matched_rows(data, fold, which, judged.row[i])
                control = data.matrix.values[rows][:, fold.genes.cpu()][:, place]
                control = some(control, self.max_cells)
                spread = metrics.mean_distance(control) if len(control) > 1 else float("nan")
                form = int(disjoint)
                for name in ["ours", *BASELINES]:
                    if name == "ceiling":
                        value = split
                    else:
                        moved = control + judged.prediction[name][form][i].to(control)
                        if name in judged.level:  # its controls are those of the population
                            moved = moved + judged.level[name][form][i].to(control)
                        value = 2 * float(torch.cdist(moved, target).mean()) - spread - own
                    found.setdefault((disjoint, name), []).append(value)
        return {key: torch.tensor(values) for key, values in found.items()}

    # --- the scorecard -------------------------------------------------------------------------

    def _scores(
        self,
        card: Scorecard,
        judged: Judged,
        values: Mapping[tuple, Tensor],
        reasons: Mapping[str, str],
    ) -> None:
        baselines: dict[str, dict[str, float]] = {}
        detail: list[str] = []
        for metric in METRICS:
            for vs_mean in (False, True):
                for disjoint in (False, True):
                    own = name_of(metric, vs_mean=vs_mean, disjoint=disjoint)
                    if vs_mean and metric in NOT_VS_MEAN:
                        for name in ("", *BASELINES):
                            full = name_of(metric, vs_mean=True, disjoint=disjoint, baseline=name)
                            card.skip(full, NOT_VS_MEAN[metric])
                        continue
                    ours = values[metric, vs_mean, disjoint, "ours"]
                    self._add(card, own, ours, detail)
                    beside: dict[str, float] = {}
                    for baseline in BASELINES:
                        name = name_of(metric, vs_mean=vs_mean, disjoint=disjoint,
                                       baseline=baseline)  # fmt: skip
                        detail.append(name)
                        if baseline in reasons:
                            card.skip(name, reasons[baseline])
                            continue
                        theirs = values[metric, vs_mean, disjoint, baseline]
                        self._add(card, name, theirs, detail)
                        if name in card.metrics:
                            beside[baseline.replace("_", " ")] = card.metrics[name]
                        if baseline != "ceiling" and name in card.metrics:
                            gain = metrics.gain(ours, theirs, metric)
                            self._add(card, f"gain_{name}", gain, detail, unit="gain")
                            detail.append(f"gain_{name}")
                            if metric == "pearson_delta":
                                least = metrics.detectable(gain)
                                detail.append(f"detectable_{name}")
                                if least == least:
                                    card.add(f"detectable_{name}", least)
                                else:
                                    why = "too few perturbations, or the same predictions"
                                    card.skip(f"detectable_{name}", why)
                    if beside:
                        baselines[own] = beside
        card.facts["baselines"] = baselines
        card.facts["detail"] = [name for name in dict.fromkeys(detail) if name in card.metrics]

    def _add(
        self, card: Scorecard, name: str, values: Tensor, detail: list[str], unit: str = ""
    ) -> None:
        """Mean over perturbations with its interval."""
        mean = mean_of(values)
        if mean != mean:
            what = (
                "no gene is differentially expressed"
                if "de_overlap" in name or "direction" in name
                else "undefined: one side does not vary"
            )
            if "pds" in name:
                what = "one perturbation alone cannot be told apart"
            card.skip(name, what)
            return
        card.add(name, mean)
        low, high = interval(values, self.n_bootstrap)
        if low == low:
            card.add(f"{name}_lo", low)
            card.add(f"{name}_hi", high)
            detail += [f"{name}_lo", f"{name}_hi"]

    def _own(
        self, card: Scorecard, model: ResponseModel, judged: Judged, log: Mapping[str, Any]
    ) -> None:
        """The gate, where descent was kept, the score without it, calibration, sizes."""
        at = judged.is_scored
        for disjoint in (False, True):
            suffix = "_disjoint" if disjoint else ""
            forms = judged.forms(disjoint)
            gate = torch.stack([judged.gate[form][at] for form in forms])
            card.add(f"residual_gate{suffix}", float(gate.mean()))
            bare = metrics.stacked(
                [metrics.pearson(judged.ungated[f][at], judged.truth[f][at]) for f in forms]
            )
            card.add(f"pearson_delta_ungated{suffix}", mean_of(bare))
            inside = [
                (judged.truth[f][at] - judged.prediction["ours"][f][at]).abs()
                <= 1.645 * judged.std[f][at]
                for f in forms
            ]
            card.add(f"coverage_90{suffix}", float(torch.stack(inside).double().mean()))
        card.add("descent_kept", model.descent_kept())
        curvature = model.kept_curvature()
        if curvature == curvature and model.space.name != "euclidean":
            card.add("curvature", curvature)
        else:
            card.skip("curvature", "no descent was kept, or the space is flat")
        card.add("n_test_perturbations", int(at.sum()))
        card.add("n_test_perturbations_all", len(at))
        card.add("n_gene_scored", len(judged.genes))
        card.add("final_loss", log["final_loss"])

    def _truth(
        self, card: Scorecard, judged: Judged, data: ResponseData, truth: Truth | None
    ) -> None:
        """Whether the planted interaction was found, where it is known."""
        name = "epistasis_pearson"
        if truth is None or "epistasis" not in truth.parameters:
            card.skip(name, "measured data: nobody planted an interaction")
            return
        planted = truth.parameters["epistasis"]
        conditions = list(truth.facts["conditions"])
        columns = [data.gene_names.index(g) for g in judged.genes]
        for who, called in (("ours", name), ("additive_shrunk", f"{name}_additive_shrunk")):
            found = []
            for i in judged.is_scored.nonzero()[:, 0].tolist():
                label = judged.names[i].partition(" in ")[0]
                row = planted[conditions.index(label), columns][None]
                departure = judged.prediction[who][0][i] - judged.prediction["additive"][0][i]
                found.append(metrics.pearson(departure[None].double(), row.double()))
            value = torch.cat(found) if found else torch.zeros(0)
            if mean_of(value) != mean_of(value):
                card.skip(called, "no interaction is planted, or none is predicted")
            else:
                self._add(card, called, value, [])

    def _facts(
        self,
        card: Scorecard,
        judged: Judged,
        values: Mapping[tuple, Tensor],
        reasons: Mapping[str, str],
    ) -> None:
        """Sentences and tables for the report."""
        reference = self.reference_baseline
        lines = []
        for disjoint, words in ((False, "shared controls"), (True, "disjoint controls")):
            own = name_of("pearson_delta", vs_mean=False, disjoint=disjoint)
            other = f"{own}_{reference}"
            if own in card.metrics and f"gain_{other}_lo" in card.metrics:
                m = card.metrics
                lines.append(
                    f"{words}: Pearson delta {m[own]:.3f} against {m[other]:.3f} "
                    f"({reference.replace('_', ' ')}), gain {m[f'gain_{other}']:+.3f} "
                    f"[{m[f'gain_{other}_lo']:+.3f}, {m[f'gain_{other}_hi']:+.3f}]"
                    + (
                        f", detectable {m[f'detectable_{other}']:.3f}"
                        if f"detectable_{other}" in m
                        else ""
                    )
                )
        n = int(judged.is_scored.sum())
        note = f"{n} of {len(judged.names)} test perturbations are scored" + (
            f" (subgroup '{self.subgroup}')" if self.subgroup else ""
        )
        if n < 10:
            note += "; with so few, an interval by bootstrap is too narrow rather than too wide"
        card.facts["note"] = "; ".join([*lines, note])
        trap = [
            card.metrics.get(name_of("pearson_delta", vs_mean=False, disjoint=d,
                                     baseline="perturbed_mean"))
            for d in (False, True)
        ]  # fmt: skip
        if trap[0] is not None and trap[1] is not None:
            card.facts["shared controls"] = (
                "the mean of other perturbations, which knows nothing of the one asked for, scores "
                f"{trap[0]:.3f} with shared and {trap[1]:.3f} with disjoint controls: the "
                "difference is control noise in prediction and truth alike, and depth"
            )
        groups: dict[str, list[int]] = {}
        for i, group in enumerate(judged.subgroup):
            groups.setdefault(group, []).append(i)
        card.facts["subgroups"] = [
            {
                "subgroup": group,
                "n": len(rows),
                **{
                    f"{label}{'_disjoint' if disjoint else ''}": mean_of(
                        metrics.stacked(
                            [
                                metrics.pearson(table[f][rows], judged.truth[f][rows])
                                for f in judged.forms(disjoint)
                            ]
                        )
                    )
                    for disjoint in (False, True)
                    for label, table in (
                        ("pearson_delta", judged.prediction["ours"]),
                        (f"pearson_delta_{reference}", judged.prediction[reference]),
                    )
                },
            }
            for group, rows in groups.items()
        ]
        for row in card.facts["subgroups"]:
            for key, value in row.items():
                if isinstance(value, float) and value != value:
                    row[key] = None
        chosen = judged.is_scored.nonzero()[:, 0].tolist()
        card.facts["by_perturbation"] = [
            {
                "perturbation": judged.names[i],
                "subgroup": judged.subgroup[i],
                **{
                    name_of("pearson_delta", vs_mean=False, disjoint=disjoint,
                            baseline="" if who == "ours" else who):
                    _plain(values["pearson_delta", False, disjoint, who][k])
                    for disjoint in (False, True)
                    for who in ("ours", reference, "ceiling")
                },
                "gate": float(judged.gate[0][i]),
            }
            for k, i in enumerate(chosen)
        ]  # fmt: skip


def _plain(value: Tensor) -> float | None:
    number = float(value)
    return number if number == number else None


def judge(
    model: ResponseModel, builder: Builder, *, subgroup: str | None, fdr: float | None
) -> Judged:
    """Predictions and measurements of every test perturbation, in all forms.

    Args:
        model: Trained.
        builder: Of its data.
        subgroup: What is scored, as in :class:`ResponseEvaluator`.
        fdr: Of differential expression; ``None``: it is not asked for.
    """
    data = builder.data
    tasks = builder.test()
    weight = model.weight["embed"]
    with torch.no_grad():
        placed = tasks.to(weight.device, weight.dtype)
        predicted = model(placed)
        share = model.direction_weights(placed)[..., POPULATION].double().cpu()
    judged = Judged()
    common = set(data.folds[0].gene_names)
    for fold in data.folds[1:]:
        common &= set(fold.gene_names)
    judged.genes = tuple(g for g in data.folds[0].gene_names if g in common)
    n_context = len(data.contexts)
    is_target, is_scored = [], []
    for f, fold in enumerate(data.folds):
        for row, name in enumerate(fold.test.names):
            genes = name.split("+")
            where = data.contexts[int(fold.test.context[row])]
            judged.names.append(name if n_context == 1 else f"{name} in {where}")
            judged.fold.append(f)
            judged.row.append(row)
            judged.subgroup.append(fold.test.subgroup[row])
            hit = fold.test.multi_hot[row].nonzero()[:, 0].tolist()
            genes = [data.perturbations[p] for p in hit]
            is_target.append([g in genes for g in judged.genes])
            measured = all(g in common for g in genes)
            is_scored.append(
                subgroup is None
                or subgroup == fold.test.subgroup[row]
                or (subgroup == "measured" and measured)
            )
    judged.is_target = torch.tensor(is_target)
    judged.is_scored = torch.tensor(is_scored)
    for form in range(builder.n_form):
        _fill(judged, builder, predicted, tasks, share, form)
    if fdr is not None:
        halves: tuple[Half, ...] = ("all", "truth")
        judged.is_de = [_differential(judged, data, half, fdr) for half in halves]
    return judged


def _fill(
    judged: Judged,
    builder: Builder,
    predicted: Prediction,
    tasks: Tasks,
    share: Tensor,
    form: int,
) -> None:
    """One form of every table; ``share``: weight of the correction of controls, (V, F, T)."""
    rows: dict[str, list[Tensor]] = {}
    for f, fold in enumerate(builder.data.folds):
        place = [fold.gene_names.index(g) for g in judged.genes]
        test, n = fold.test, fold.test.n_condition
        known = builder.known[form][f]
        hot, context = (test.multi_hot.cpu() > 0).double(), test.context.cpu()

        def put(name: str, value: Tensor, place: list[int] = place) -> None:
            rows.setdefault(name, []).append(value.double().cpu()[:, place])

        for name, predictor in PREDICTORS.items():
            put(name, predictor(known, hot, context))
        put("additive_shrunk", additive_shrunk(known, hot, context, control_is_exact=form == 0))
        mean = PREDICTORS["perturbed_mean"](known, hot, context)
        put("ours", predicted.delta[form, f, :n])
        put("ungated", predicted.ungated[form, f, :n])
        put("std", predicted.std[form, f, :n])
        put("mean", mean)
        if form == 0:
            own = test.delta_shared
            put("truth", own)
            put("against", own.double().cpu() - mean)
            halves = test.half_a_shared[0], test.half_b_shared[0]
            apart = torch.zeros_like(test.control_shared)
        else:
            put("truth", test.deltas_disjoint()[form - 1])
            put("against", test.deltas()[form - 1].double().cpu() - mean)
            halves = test.half_a[form - 1], test.half_b[form - 1]
            # against the mean both sides use the controls of prediction, which cancel
            apart = test.control_truth[form - 1] - test.control[form - 1]
        put("half_a", halves[0])
        put("half_b", halves[1])
        put("half_b_against", (halves[1] + apart).double().cpu() - mean)
        gate = predicted.gate[form, f, :n, None].double().cpu()
        rows.setdefault("gate", []).append(gate)
        shift = population_control(known)[0] if form > 0 else torch.zeros_like(known.control)
        full = tasks.is_full[f, :n, None].double()  # elsewhere controls are taken as they are
        put("level", gate * share[form, f, :n, None] * full * shift[context])
        put("level_shrunk", full * shift[context])
    table = {name: torch.cat(parts) for name, parts in rows.items()}
    for name in ("ours", "additive_shrunk", *PREDICTORS):
        judged.prediction.setdefault(name, []).append(table[name])
    judged.ungated.append(table["ungated"])
    judged.std.append(table["std"])
    judged.mean.append(table["mean"])
    judged.truth.append(table["truth"])
    judged.against_mean.append(table["against"])
    judged.ceiling.append((table["half_a"], table["half_b"]))
    judged.gate.append(table["gate"][:, 0])
    judged.ceiling_against_mean.append(table["half_b_against"])
    judged.level.setdefault("ours", []).append(table["level"])
    judged.level.setdefault("additive_shrunk", []).append(table["level_shrunk"])


def matched_rows(data: ResponseData, fold: Fold, half: Half, row: int) -> Tensor:
    """Rows of control cells (first cut) composed as the cells of a test condition are.

    In every stratum of the controls (``dataset.reference``) the same share as among the perturbed
    cells, as many as can be had: a replicate that is rarer among them must not pass for a response.
    """
    halves = ("prediction", "truth") if half == "all" else (half,)
    rows = torch.cat([fold.control_rows[part] for part in halves]).cpu()
    of, mine = data.stratum_of(rows), data.stratum_of(fold.test.rows[row].cpu())
    places = {int(s): (of == s).nonzero()[:, 0] for s in mine.unique() if bool((of == s).any())}
    if not places:
        return rows
    count = {s: int((mine == s).sum()) for s in places}
    n = min(len(places[s]) / count[s] for s in places)
    generator = torch_generator(0, "controls composed as the perturbed cells")
    is_chosen = torch.zeros(len(rows), dtype=torch.bool)
    for s, place in places.items():
        order = torch.randperm(len(place), generator=generator)
        is_chosen[place[order[: max(1, int(n * count[s] + 1e-9))]]] = True
    return rows[is_chosen]


def _differential(judged: Judged, data: ResponseData, half: Half, fdr: float) -> Tensor:
    """Differentially expressed genes of every row, ``(N, G)`` bool."""
    found = []
    for f, row in zip(judged.fold, judged.row, strict=True):
        fold = data.folds[f]
        place = [fold.gene_names.index(g) for g in judged.genes]
        rows = matched_rows(data, fold, half, row)
        control = data.matrix.values[rows][:, fold.genes.cpu()][:, place]
        cells = fold.test.cells(row)[:, place]
        found.append(metrics.differential_genes(cells, control, fdr=fdr))
    return torch.stack(found)


def chosen_ridges(builder: Builder) -> str:
    """Components and penalties the ridge chose, by fold, in a sentence."""
    said = []
    for f, fold in enumerate(builder.data.folds):
        hot = (fold.test.multi_hot.cpu() > 0).double()
        known = builder.known[0][f]
        n_component, penalty = ridge_choice(known, hot)
        n_component = min(n_component, *known.delta.shape)  # as many as there are
        said.append(f"{n_component} components, penalty {penalty:g}")
    return "chosen on training conditions, by fold, shared controls: " + "; ".join(said)


def unavailable(judged: Judged, builder: Builder) -> dict[str, str]:
    """Baselines that say nothing of their own here, and why."""
    reasons = {}
    at = judged.is_scored.nonzero()[:, 0].tolist()
    if not at:
        return {name: "no test perturbation belongs to the scored subgroup" for name in BASELINES}
    combined, has_row = False, False
    for i in at:
        f, row = judged.fold[i], judged.row[i]
        test, known = builder.data.folds[f].test, builder.known[0][f]
        hot = (test.multi_hot[row : row + 1].cpu() > 0).double()
        _, is_known = parts(known, hot, test.context[row : row + 1].cpu())
        combined |= bool(is_known.any())
        measured = (known.gene_of >= 0).double()
        enough = int((known.hot @ measured == known.hot.sum(1)).sum()) > 1
        has_row |= enough and bool((known.gene_of[hot[0] > 0] >= 0).all())
    if not combined:
        why = "no scored perturbation has a gene that was perturbed alone in training: it is the "
        reasons["additive"] = reasons["matching_mean"] = why + "perturbed mean"
    if not has_row:
        reasons["ridge"] = reasons["ridge_published"] = (
            "no scored perturbation, or fewer than two of training, acts on measured genes alone, "
            "which is what the bilinear model describes perturbations by: it is the perturbed mean"
        )
    return reasons
