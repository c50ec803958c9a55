"""How the arms of a simulated screen are judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Positive
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.glossary import SCREEN
from neuralgraph.systems.perturb_ode.model import FieldEnsemble

KINDS = ("single", "double", "medium")


class ScreenEvaluator:
    """Error of every arm on unseen knock-outs, on the measured days and at rest.

    Metrics, mean over the seeds of an arm, clean truth, knocked-out genes left out:
    ``test_mse_single_<arm>`` and ``test_mse_double_<arm>`` (measured days), ``attractor_mse_…``
    (day ``attractor_day`` against the true attractor), ``speed_at_rest_<arm>`` (mean |f|² at the
    true attractors of the held-out conditions), ``attractor_ratio_<arm>`` (doubles, over the arm
    ``standard``), and the baselines ``…_no_change`` (cells stay as they were on day 0),
    ``…_additive`` (control plus the sum of the training effects of the targets; for a single
    knock-out that was never seen, the mean effect of the training knock-outs; plus the effect of
    the medium on unperturbed cells). ``…_medium_…`` are knock-outs in a medium in which they were
    not seen. An arm whose prediction overflows has no value.

    Args:
        every: Epochs between two looks at the truth while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        attractor_day: Day that stands for rest.
    """

    meanings = SCREEN

    def __init__(
        self, *, every: Natural, primary_metric: str, direction: str, attractor_day: Positive
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.attractor_day = attractor_day

    def __call__(
        self,
        model: FieldEnsemble,
        data: ScreenData,
        truth: Truth | None,
        *,
        log: Mapping[str, Any],
    ) -> Scorecard:
        """Every score, with the baselines beside it."""
        card = Scorecard()
        baselines: dict[str, dict[str, float]] = {}
        names = [f"{what}_{kind}" for what in ("test_mse", "attractor_mse") for kind in KINDS]
        if truth is None:
            for name in names:
                card.skip(name, "no truth: measured data")
            card.add("final_loss", log["final_loss"])
            return card
        batch = data.everything()
        n_knocked = data.knocked_out.sum(1)
        horizon = torch.tensor([0.0, self.attractor_day], dtype=batch.target.dtype)
        with torch.no_grad():
            days = model.predict(batch).cpu()
            rest = model.predict(batch, horizon)[:, :, -1].cpu()
        clean, attractor = truth.parameters["state"][:, 1:], truth.parameters["attractor"]
        measured = (data.knocked_out == 0).double()
        start = batch.start[0].double().cpu()
        effects = training_effects(data)
        in_medium = batch.medium.cpu().any(1)
        for number, kind in enumerate(KINDS, start=1):
            held = data.is_test & (
                in_medium if kind == "medium" else (n_knocked == number) & ~in_medium
            )
            if not bool(held.any()):
                where = "knock-out in another medium" if kind == "medium" else f"{kind} knock-out"
                for what in ("test_mse", "attractor_mse"):
                    card.skip(f"{what}_{kind}", f"no {where} is held out")
                continue
            weight = measured[held]
            for what, estimate, true in (
                ("test_mse", days, clean),
                ("attractor_mse", rest[:, :, None], attractor[:, None]),
            ):
                error = masked_mse(estimate[:, held].double(), true[held], weight)
                for arm in model.arms:
                    card.add(f"{what}_{kind}_{arm}", float(error[model.of(arm)].mean()))
                last = what == "attractor_mse"
                simple = {
                    "no_change": start[:, None].expand_as(clean),
                    "additive": additive(data, effects),
                }
                row = {
                    name: float(masked_mse((x[:, -1:] if last else x)[held], true[held], weight))
                    for name, x in simple.items()
                }
                for name, value in row.items():
                    card.add(f"{what}_{kind}_{name}", value)
                for arm in model.arms:
                    baselines[f"{what}_{kind}_{arm}"] = {
                        name.replace("_", " "): value for name, value in row.items()
                    }
        for arm in list(model.arms)[1:]:
            mine = card.metrics.get(f"attractor_mse_double_{arm}")
            standard = card.metrics.get("attractor_mse_double_standard")
            if mine is not None and standard is not None:
                card.add(f"attractor_ratio_{arm}", mine / standard)
        self._speed(card, model, data, truth)
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = baselines
        return card

    def _speed(self, card: Scorecard, model: FieldEnsemble, data: ScreenData, truth: Truth) -> None:
        """Speed of the field where the held-out cells truly rest."""
        if not bool(data.is_test.any()):
            return
        batch = data.conditions_batch(data.test_index)
        rest = truth.parameters["attractor"][data.is_test].to(batch.target)
        with torch.no_grad():
            rate = model.rate(rest.expand(model.n_model, -1, -1), batch).double()
        speed = rate.square().mean((-1, -2))
        for arm in model.arms:
            card.add(f"speed_at_rest_{arm}", float(speed[model.of(arm)].mean()))

    def watch(
        self, model: FieldEnsemble, data: ScreenData, truth: Truth | None
    ) -> dict[str, float]:
        """Error on the held-out doubles by arm, for ``evaluation.jsonl``."""
        if truth is None:
            return {}
        usual = ~data.everything().medium.cpu().any(1)
        held = data.is_test & (data.knocked_out.sum(1) == 2) & usual
        if not bool(held.any()):
            return {}
        with torch.no_grad():
            days = model.predict(data.everything()).double().cpu()
        error = masked_mse(
            days[:, held],
            truth.parameters["state"][held, 1:],
            (data.knocked_out[held] == 0).double(),
        )
        return {f"test_mse_double_{a}": float(error[model.of(a)].mean()) for a in model.arms}


def masked_mse(estimate: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Mean over conditions, days and measured genes; leading axes of ``estimate`` stay.

    Args:
        estimate: ``(…, n_condition, n_day, n_gene)``.
        true: ``(n_condition, n_day, n_gene)``.
        weight: 1 where a gene counts, ``(n_condition, n_gene)``.
    """
    error = (estimate - true) ** 2 * weight[:, None]
    return error.sum((-1, -2, -3)) / (weight.sum() * true.shape[1])


def training_effects(data: ScreenData) -> dict[int, Tensor]:
    """Measured difference to the start of each single training knock-out, ``(n_day, n_gene)``."""
    batch = data.everything()
    found = {}
    for run in data.train_index.tolist():
        genes = data.knocked_out[run].nonzero()[:, 0].tolist()
        if len(genes) == 1 and not bool(batch.medium[run].any()):
            start = batch.start[0, run].double().cpu()
            found[genes[0]] = batch.target[run].double().cpu() - start
    return found


def medium_effects(data: ScreenData) -> Tensor:
    """Measured difference to the start of unperturbed cells in each medium, 0 where unseen.

    Shape ``(n_medium, n_day, n_gene)``.
    """
    batch = data.everything()
    found = torch.zeros(batch.medium.shape[1], *batch.target.shape[1:], dtype=torch.float64)
    for run in data.train_index.tolist():
        if not bool(data.knocked_out[run].any()) and bool(batch.medium[run].any()):
            change = batch.target[run].double().cpu() - batch.start[0, run].double().cpu()
            found[int(batch.medium[run].argmax())] = change
    return found


def additive(data: ScreenData, effects: Mapping[int, Tensor]) -> Tensor:
    """Start plus the effects of the targets and the medium, the mean effect for a new target."""
    batch = data.everything()
    if not effects:
        return batch.start[0, :, None].double().cpu().expand(*batch.target.shape)
    # a target's own loss is no effect on others: each gene is averaged over the other knock-outs
    seen = torch.stack([torch.ones_like(effect) for effect in effects.values()])
    for i, gene in enumerate(effects):
        seen[i, :, gene] = 0
    mean = (torch.stack(list(effects.values())) * seen).sum(0) / seen.sum(0).clamp_min(1)
    by_medium = medium_effects(data)
    rows = []
    for run in range(batch.target.shape[0]):
        genes = data.knocked_out[run].nonzero()[:, 0].tolist()
        change = sum((effects.get(gene, mean) for gene in genes), torch.zeros_like(mean))
        change = change + torch.tensordot(batch.medium[run].double().cpu(), by_medium, 1)
        rows.append(batch.start[0, run].double().cpu() + change)
    return torch.stack(rows)
