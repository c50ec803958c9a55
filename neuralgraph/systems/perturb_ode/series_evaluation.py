"""How arms are judged on a measured time series, one held-out perturbation at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.perturb_ode.directional import DirectionalNetwork
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.glossary import SERIES
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.reference import PATHS, nested

ARMS = ("standard", "ss0", "ssP", "both")
"""Arms with a place of their own in the scorecard even where they cannot be trained."""


@dataclass(frozen=True)
class Curve:
    """Error along training of one arm on the held-out conditions.

    Args:
        epoch: ``(n_point,)``.
        test: ``(n_point, n_seed, n_held)``.
        inner: Mean error over the inner folds, ``(n_point, n_held)``, or ``None``.
    """

    epoch: list[int]
    test: Tensor
    inner: Tensor | None


class SeriesEvaluator:
    """Every score over held-out perturbations, with baselines and the noise of the target beside.

    Errors are mean squared errors of mean log expression on the days after the first, over all
    genes but the knocked-out one, mean over perturbations. ``test_mse_<arm>`` is the last epoch,
    mean over seeds; ``test_mse_selected`` the arm and epoch, or the local field, with the lowest
    error on inner held-out perturbations; ``test_mse_baseline`` the reference path plus the shrunk
    first-day deviation; ``response_R2c`` is 1 - excess / excess of the reference path, where the
    excess is what the error has above the sampling variance of the target (``target_noise``).

    Args:
        every: Epochs between two looks while training; measured data have no truth to look at.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        path: Reference path, ``mean`` or ``median`` (geometric) of the training perturbations.
        baseline_components: Values of the number of components of the baseline; chosen within.
        field_components: The same for the local field.
        field_ridge: Values of its ridge.
        field_power: Values of its power.
        n_bootstrap: Draws of perturbations for intervals.
        twin: The neural twin of the local field, ``null`` to leave it out.
    """

    meanings = SERIES

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        path: str,
        baseline_components: list[int],
        field_components: list[int],
        field_ridge: list[float],
        field_power: list[float],
        n_bootstrap: Count,
        twin: DirectionalNetwork | None,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.path = path
        self.baseline_components = baseline_components
        self.field_grid: dict[str, Sequence[float | str]] = {
            "path": [path],
            "n_component": field_components,
            "ridge": field_ridge,
            "power": field_power,
        }
        self.n_bootstrap = n_bootstrap
        self.twin = twin

    def __call__(
        self,
        model: FieldEnsemble,
        data: FoldedSeries,
        truth: Truth | None,
        *,
        log: Mapping[str, Any],
    ) -> Scorecard:
        """Every score; facts hold the errors by perturbation and the curves."""
        card = Scorecard()
        series, held = data.series, data.held
        simple = self.simple_errors(data)
        baseline = nested(
            series,
            "persistence",
            {"path": [self.path], "n_component": self.baseline_components},
            held,
        )
        field = nested(series, "kernel_field", self.field_grid, held)
        by_name = {
            **simple,
            "baseline": torch.tensor([series.error(baseline[h].prediction, h) for h in held]),
            "local_field": torch.tensor([series.error(field[h].prediction, h) for h in held]),
        }
        if self.twin is not None:
            twin = self.twin.nested(series, held)
            errors = [series.error(twin[h].prediction, h) for h in held]
            by_name["neural_twin"] = torch.tensor(errors)
        else:
            card.skip("test_mse_neural_twin", "evaluation.twin is null")
        noise = torch.tensor([series.noise(h) for h in held])
        curves = training_curves(model, data, log["store"]["curve"])
        chosen: list[str] = []
        selected, selected_ode = [], []
        for i, row in enumerate(held):
            arm, point, inner = best_inner(curves, i)
            ode = float(curves[arm].test[point, :, i].mean()) if arm else float("nan")
            selected_ode.append(ode)
            if arm and inner < field[row].inner_error:
                selected.append(ode)
                chosen.append(f"{arm}, epoch {curves[arm].epoch[point]}")
            else:
                selected.append(float(by_name["local_field"][i]))
                chosen.append("local field " + _settings(field[row].settings))
        by_name["selected"] = torch.tensor(selected)
        by_name["selected_ode"] = torch.tensor(selected_ode)
        for arm, curve in curves.items():
            by_name[arm] = curve.test[-1].mean(0)
        by_name["untrained"] = curves["standard"].test[0].mean(0)
        for name, values in by_name.items():
            if bool(torch.isfinite(values).all()):
                card.add(f"test_mse_{name}", float(values.mean()))
            else:
                card.skip(f"test_mse_{name}", "the inner folds were not trained")
        for arm in ARMS:
            if arm not in model.arms:
                card.skip(
                    f"test_mse_{arm}",
                    "these data hold no unperturbed cells; see perturb_ode_simulated"
                    if arm in ("ss0", "both") and not data.has_control
                    else "the arm is not in model.arms",
                )
        card.add("target_noise", float(noise.mean()))
        reference = (by_name["reference_path"] - noise).sum()
        rows = ("selected", "local_field", "neural_twin", "baseline", "selected_ode", "standard",
                "ssP")  # fmt: skip
        for name in rows:
            if f"test_mse_{name}" in card.metrics:
                suffix = "" if name == "selected" else f"_{name}"
                excess = (by_name[name] - noise).sum()
                card.add(f"response_R2c{suffix}", float(1 - excess / reference))
        self._compare(card, by_name, noise)
        card.add("final_loss", log["final_loss"])
        names = [data.conditions[h] for h in held]
        card.facts["selected"] = dict(zip(names, chosen, strict=True))
        card.facts["errors"] = {
            name: dict(zip(names, values.tolist(), strict=True))
            for name, values in by_name.items()
            if bool(torch.isfinite(values).all())
        }
        card.facts["curves"] = {
            arm: {
                "epoch": curve.epoch,
                "mean": curve.test.mean((1, 2)).tolist(),
                "low": curve.test.mean(2).quantile(0.025, dim=1).tolist(),
                "high": curve.test.mean(2).quantile(0.975, dim=1).tolist(),
                "n_seed": curve.test.shape[1],
            }
            for arm, curve in curves.items()
        }
        shown = ("no_change", "drift", "baseline")
        row = {name.replace("_", " "): card.metrics[f"test_mse_{name}"] for name in shown}
        row["noise of the target"] = card.metrics["target_noise"]
        card.facts["baselines"] = {
            f"test_mse_{name}": row
            for name in ("selected", "local_field", "neural_twin", "selected_ode", *model.arms)
            if f"test_mse_{name}" in card.metrics
        }
        return card

    def simple_errors(self, data: FoldedSeries) -> dict[str, Tensor]:
        """Predictions without a fitted model, raw and with the start projected on components."""
        series, batch = data.series, data.everything()
        found: dict[str, list[float]] = {}

        def note(name: str, prediction: Tensor, row: int) -> None:
            found.setdefault(name, []).append(series.error(prediction, row))

        for fold, row in enumerate(data.held):
            train = batch.is_train[fold].cpu()
            path = PATHS[self.path](series.mean[train])
            mean = series.mean[train].mean(0)
            start = series.mean[row, 0]
            smooth = start
            if batch.decoder is not None and batch.offset is not None:
                basis = batch.decoder[fold].double().cpu()
                origin = batch.offset[fold].double().cpu()
                smooth = origin + (start - origin) @ basis.T @ basis
            note("reference_path", path[1:], row)
            for suffix, begin in (("", start), ("_projected", smooth)):
                note(f"no_change{suffix}", begin.expand_as(path[1:]), row)
                note(f"drift{suffix}", begin + mean[1:] - mean[0], row)
        return {name: torch.tensor(values) for name, values in found.items()}

    def _compare(self, card: Scorecard, by_name: Mapping[str, Tensor], noise: Tensor) -> None:
        """Perturbations are the unit: differences, intervals and exact sign tests over them."""
        baseline = by_name["baseline"]
        pairs = {
            "selected_vs_baseline": (by_name["selected"], baseline),
            "local_field_vs_baseline": (by_name["local_field"], baseline),
        }
        if "neural_twin" in by_name:
            pairs["neural_twin_vs_baseline"] = (by_name["neural_twin"], baseline)
        if "ssP" in by_name and "standard" in by_name:
            pairs["ssP_vs_standard"] = (by_name["ssP"], by_name["standard"])
        for name, (mine, other) in pairs.items():
            difference = mine - other
            low, high = bootstrap_interval(difference, self.n_bootstrap)
            card.add(f"{name}_difference", float(difference.mean()))
            card.add(f"{name}_difference_lo", low)
            card.add(f"{name}_difference_hi", high)
            card.add(f"{name}_n_better", int((difference < 0).sum()))
            card.add(f"{name}_p_sign_flip", sign_flip(difference))
            floor = 0.1 * noise  # an excess near 0 has no logarithm to speak of
            excess = (mine - noise).maximum(floor) / (other - noise).maximum(floor)
            ratio = excess.log().mean().exp()
            card.add(f"{name}_excess_ratio", float(ratio))
        card.add("n_test_perturbations", len(baseline))

    def watch(
        self, model: FieldEnsemble, data: FoldedSeries, truth: Truth | None
    ) -> dict[str, float]:
        """Measured data have no truth to watch."""
        return {}


def training_curves(
    model: FieldEnsemble, data: FoldedSeries, kept: Mapping[str, Any]
) -> dict[str, Curve]:
    """Errors of the kept predictions, by arm."""
    series = data.series
    place = {rows: fold for fold, rows in enumerate(data.left_out)}
    has_inner = any(len(rows) == 2 for rows in data.left_out)
    # (n_point, n_model, n_condition)
    fold = model.get_buffer("fold").cpu()
    rows = data.held_rows.cpu()[fold]
    batch = data.everything()
    points = []
    for state in kept["state"]:
        genes = batch.decode(state.to(batch.target), model.get_buffer("fold")).double().cpu()
        measured = series.measured[rows]
        error = ((genes - series.mean[rows, 1:]) ** 2 * measured[:, :, None]).sum((-1, -2))
        error = error / (measured.sum(-1) * (series.mean.shape[1] - 1))
        every = torch.full((len(rows), series.mean.shape[0]), float("nan"), dtype=torch.float64)
        points.append(every.scatter(1, rows, error))
    squared = torch.stack(points)
    curves = {}
    for arm in model.arms:
        test = torch.stack(
            [squared[:, model.of(arm, place[(h,)]).cpu(), h] for h in data.held], dim=-1
        )
        inner = None
        if has_inner:
            inner = torch.stack(
                [
                    torch.stack(
                        [
                            squared[:, model.of(arm, place[tuple(sorted((h, v)))]).cpu(), v].mean(1)
                            for v in data.held
                            if v != h
                        ]
                    ).mean(0)
                    for h in data.held
                ],
                dim=-1,
            )
        curves[arm] = Curve(list(kept["epoch"]), test, inner)
    return curves


def best_inner(curves: Mapping[str, Curve], held: int) -> tuple[str, int, float]:
    """Arm and point of lowest inner error for a held-out condition; ``("", 0, inf)`` for none."""
    best = ("", 0, float("inf"))
    for arm, curve in curves.items():
        if curve.inner is None:
            continue
        value, point = curve.inner[:, held].min(0)
        if float(value) < best[2]:
            best = (arm, int(point), float(value))
    return best


def bootstrap_interval(values: Tensor, n_draw: int) -> tuple[float, float]:
    """95 % percentile interval of a mean over perturbations."""
    generator = torch_generator(0, "bootstrap over perturbations")
    index = torch.randint(len(values), (n_draw, len(values)), generator=generator)
    means = values[index].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def sign_flip(difference: Tensor) -> float:
    """One-sided p of a mean below 0 under random signs: all signs up to 16 values, else drawn."""
    n = len(difference)
    if n > 16:
        generator = torch_generator(0, "sign flips")
        signs = torch.randint(0, 2, (65536, n), generator=generator) * 2 - 1
        signs[0] = 1  # the data themselves
    else:
        bits = torch.arange(2**n)[:, None] >> torch.arange(n) & 1
        signs = bits * 2 - 1
    return float(((signs * difference).mean(1) <= difference.mean() + 1e-15).double().mean())


def _settings(settings: Mapping[str, float | str]) -> str:
    return "(" + ", ".join(f"{k} {v}" for k, v in settings.items()) + ")"
