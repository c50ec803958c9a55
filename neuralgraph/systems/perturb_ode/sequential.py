"""Changes between sequential days as a run: the common change is fitted, the rest is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Natural, Positive, Share
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.terms import Terms
from neuralgraph.systems.perturb_ode.glossary import MOVEMENT
from neuralgraph.systems.perturb_ode.lfc import CellGroups, fold_changes, movement
from neuralgraph.training.session import Session


@dataclass(frozen=True)
class DaySpec:
    """Sizes: genes and steps between days."""

    names: tuple[str, ...]
    n_step: int


@dataclass(frozen=True)
class DayBatch:
    """Changes of every condition.

    Args:
        change: log2 fold changes, ``(n_condition, n_step, n_gene)``.
        weight: 0 for a perturbed gene, else 1, ``(n_condition, 1, n_gene)``.
    """

    change: Tensor
    weight: Tensor


class DayPairs:
    """Cells of a time series, and their changes from day to day.

    Args:
        recording: With every cell (``simulator.keep_cells=true``), log-normalised.
        given: Nothing is needed.
        pseudocount: Added to mean normalised expression before the logarithm.
    """

    def __init__(
        self, recording: Recording, given: Mapping[str, Tensor], *, pseudocount: Positive
    ) -> None:
        if "cells" not in recording.graph:
            raise DataError(
                "shuffling days needs single cells and the recording holds means alone: set "
                "simulator.keep_cells=true"
            )
        self.conditions: list[str] = list(recording.provenance["conditions"])
        self.days: list[float] = recording.time[0].tolist()
        self.cells = CellGroups(
            expression=recording.graph["cells"].double().expm1(),
            condition=recording.graph["cell_condition"],
            day=recording.graph["cell_day"],
            measured=1 - recording.graph["target"],
            pseudocount=pseudocount,
        )
        self._all = DayBatch(fold_changes(self.cells), self.cells.measured[:, None])
        self.spec = DaySpec(recording.names, len(self.days) - 1)

    def starts(self, horizon: int) -> Tensor:
        """One item: everything."""
        return torch.arange(1)

    def batch(self, index: Tensor, horizon: int = 1) -> DayBatch:
        """Every condition."""
        return self._all

    def validation(self) -> None:
        """Nothing is chosen here."""
        return None

    def to(self, device: torch.device | str) -> DayPairs:
        """A copy on a device; the cells stay where they are."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> DayPairs:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> DayPairs:
        copy = object.__new__(DayPairs)
        copy.__dict__.update(self.__dict__)
        copy._all = replace(
            self._all,
            change=self._all.change.to(device=device, dtype=dtype),
            weight=self._all.weight.to(device=device, dtype=dtype),
        )
        return copy


class CommonChange(nn.Module):
    """One change for all conditions: ``common``, ``(n_step, n_gene)``, log2 units."""

    def __init__(self, spec: DaySpec, *, generator: torch.Generator) -> None:
        super().__init__()
        start = 0.01 * torch.randn(spec.n_step, len(spec.names), generator=generator)
        self.common = nn.Parameter(start)


class ChangeObjective:
    """Squared distance of every change from the common one, perturbed genes left out."""

    def __call__(self, model: CommonChange, batch: DayBatch) -> Terms:
        """The one term."""
        error = (batch.change - model.common).square() * batch.weight
        n_step = batch.change.shape[1]
        return Terms(error.sum() / (batch.weight.sum() * n_step))


def fit_common(session: Session) -> None:
    """Closed form: the mean over conditions."""
    model: Any = session.model
    with session.phase("mean", train={}) as phase:
        for _ in phase.epochs(1):
            batch = session.data.batch(session.data.starts(1))
            weight = batch.weight.expand_as(batch.change)
            mean = (batch.change * weight).sum(0) / weight.sum(0).clamp_min(1)
            with torch.no_grad():
                model.common.copy_(mean)


class MovementEvaluator:
    """Movement between days with its null, and a verdict for each condition.

    For each step from day a to day b: ``mean_abs_lfc_a_b`` and ``median_abs_lfc_a_b``; the same
    under shuffled days (``null_…``); at equal numbers of cells ``equal_n_abs_lfc_a_b`` and the
    ``equal_n_excess_a_b`` over shuffled days; ``common_rms_a_b`` and ``specific_rms_a_b`` (root
    mean square of log2 changes, noise taken out) and ``specific_p_a_b``. ``n_settled``,
    ``n_moving`` and ``n_undecided`` count the verdicts at the last step.

    Args:
        every: 0, nothing is watched.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        n_permutation: Shuffles of days.
        n_bootstrap: Draws of cells.
        level: Of the intervals; 0.9 makes the verdict an equivalence test at 5 %.
        margin: Change of a day below which cells count as settled, log2 units (root mean square
            over genes).
        seed: Of every draw.
    """

    meanings = MOVEMENT

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        n_permutation: Count,
        n_bootstrap: Count,
        level: Share,
        margin: Positive,
        seed: int,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.n_permutation, self.n_bootstrap = n_permutation, n_bootstrap
        self.level, self.margin, self.seed = level, margin, seed

    def __call__(
        self,
        model: CommonChange,
        data: DayPairs,
        truth: Truth | None,
        *,
        log: Mapping[str, Any],
    ) -> Scorecard:
        """Every number; the facts hold the values by condition for the figure."""
        found = movement(
            data.cells,
            n_permutation=self.n_permutation,
            n_bootstrap=self.n_bootstrap,
            level=self.level,
            seed=self.seed,
        )
        card = Scorecard()
        steps = [f"{a:g}_{b:g}" for a, b in zip(data.days, data.days[1:], strict=False)]
        columns = {
            "mean_abs_lfc": found.mean,
            "median_abs_lfc": found.median,
            "null_mean_abs_lfc": found.null_mean,
            "null_median_abs_lfc": found.null_median,
            "equal_n_abs_lfc": found.equal_mean,
            "equal_n_excess": found.equal_excess,
            "common_rms": found.common,
            "specific_rms": found.specific,
            "specific_p": found.specific_p,
        }
        for name, values in columns.items():
            for step, value in zip(steps, values.tolist(), strict=True):
                card.add(f"{name}_{step}", value, "" if name == "specific_p" else "log2")
        card.add("specific_rms_last", float(found.specific[-1]), "log2")
        margin = self.margin * (data.days[-1] - data.days[-2])
        verdicts = found.verdicts(margin)
        for verdict in ("settled", "moving", "undecided"):
            card.add(f"n_{verdict}", verdicts.count(verdict))
        card.add("equal_n_cells", found.equal_n)
        card.add("final_loss", log["final_loss"])
        card.facts["by_condition"] = {
            name: {
                "excess": found.own[k].tolist(),
                "low": found.own_low[k].tolist(),
                "high": found.own_high[k].tolist(),
                "p": found.own_p[k].tolist(),
                "n_cell": data.cells.size()[k].tolist(),
                "verdict": verdicts[k],
            }
            for k, name in enumerate(data.conditions)
        }
        for verdict in ("settled", "moving", "undecided"):
            named = [n for n, v in zip(data.conditions, verdicts, strict=True) if v == verdict]
            if named:
                card.facts[verdict] = ", ".join(named)
        card.facts["steps"] = [step.replace("_", " → ") for step in steps]
        card.facts["margin"] = margin
        card.facts["baselines"] = {
            f"{what}_abs_lfc_{step}": {"shuffled days": card.metrics[f"null_{what}_abs_lfc_{step}"]}
            for what in ("mean", "median")
            for step in steps
        }
        return card

    def watch(self, model: CommonChange, data: DayPairs, truth: Truth | None) -> dict[str, float]:
        """Nothing."""
        return {}
