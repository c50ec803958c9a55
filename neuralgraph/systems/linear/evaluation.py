"""How a recovered linear network is judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.linear.dataset import LinearData
from neuralgraph.systems.linear.glossary import MEANINGS
from neuralgraph.systems.linear.model import LinearDynamics


class LinearEvaluator:
    """Recovery of A and prediction of held-out trajectories.

    Metrics: ``matrix_R2`` (1 − SSE/SST over all entries of A, identity line), ``matrix_max_error``,
    ``test_R2`` (held-out trajectories by the matrix exponential of the estimate),
    ``identifiable_fraction`` (share of the rows of A whose regressors have full rank),
    ``final_loss`` (mean squared error of the derivative).

    Args:
        every: Epochs between two looks at the truth while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        converged_above: ``matrix_R2`` from which the run counts as converged.
        failed_below: ``matrix_R2`` under which it counts as failed.
        degeneracy: Pair (prediction, parameter) of metrics whose gap tells compensation, or null.
    """

    meanings = MEANINGS

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        converged_above: float,
        failed_below: float,
        degeneracy: list[str] | None,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.converged_above = converged_above
        self.failed_below = failed_below
        self.degeneracy = degeneracy

    def __call__(
        self,
        model: LinearDynamics,
        data: LinearData,
        truth: Truth | None,
        *,
        log: Mapping[str, float],
    ) -> Scorecard:
        """Every score, with the trivial one beside it."""
        card = Scorecard()
        baselines: dict[str, dict[str, float]] = {}
        estimate = model.matrix.detach().double().cpu()
        card.update(self.watch(model, data, truth))
        if truth is None:
            for name in ("matrix_R2", "matrix_max_error"):
                card.skip(name, "no truth: measured data")
        else:
            diagonal = torch.diag(estimate.diagonal().mean().expand(estimate.shape[0]))
            baselines["matrix_R2"] = {
                "mean decay only": float(_r2(truth.parameters["matrix"], diagonal))
            }
        if data.test_state.shape[0]:
            time = (data.test_time[0] - data.test_time[0, 0]).double().cpu()
            flow = torch.linalg.matrix_exp(time[:, None, None] * estimate)
            seen = data.test_state.double().cpu()
            rollout = torch.einsum("tij,rj->rti", flow, seen[:, 0])
            card.add("test_R2", float(_r2(seen, rollout)))
            still = seen[:, :1].expand_as(seen)
            baselines["test_R2"] = {"no change": float(_r2(seen, still))}
        else:
            card.skip("test_R2", "no trajectory was held out")
        card.add("identifiable_fraction", _identifiable_fraction(data))
        card.add("final_loss", log["final_loss"])
        if self.degeneracy is not None:
            ahead, behind = (card.metrics.get(name) for name in self.degeneracy)
            if ahead is not None and behind is not None:
                card.add("degeneracy_gap", ahead - behind)
        if "matrix_R2" in card.metrics:
            score = card.metrics["matrix_R2"]
            card.facts["class"] = (
                "converged"
                if score > self.converged_above
                else "failed"
                if score < self.failed_below
                else "partial"
            )
        card.facts["baselines"] = baselines
        return card

    def watch(
        self, model: LinearDynamics, data: LinearData, truth: Truth | None
    ) -> dict[str, float]:
        """Cheap truth metrics for ``evaluation.jsonl``."""
        if truth is None:
            return {}
        estimate = model.matrix.detach().double().cpu()
        matrix = truth.parameters["matrix"]
        return {
            "matrix_R2": float(_r2(matrix, estimate)),
            "matrix_max_error": float((matrix - estimate).abs().max()),
        }


def _r2(target: Tensor, prediction: Tensor) -> Tensor:
    return 1 - ((target - prediction) ** 2).sum() / ((target - target.mean()) ** 2).sum()


def _identifiable_fraction(data: LinearData) -> float:
    """A row of A is determined when the states on its support span it."""
    n = data.spec.n_var
    is_edge = data.spec.is_edge
    state = data.state.double().cpu()
    determined = 0
    for row in range(n):
        regressors = state if is_edge is None else state[:, is_edge[row].cpu()]
        values = torch.linalg.svdvals(regressors)
        determined += int((values > 1e-8 * values[0]).sum()) == regressors.shape[1]
    return determined / n
