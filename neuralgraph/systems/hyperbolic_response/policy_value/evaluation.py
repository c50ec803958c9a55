"""How the two-headed model is judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import (
    PolicyValueBatch,
    PolicyValueData,
)
from neuralgraph.systems.hyperbolic_response.policy_value.glossary import MEANINGS
from neuralgraph.systems.hyperbolic_response.policy_value.model import (
    HyperPerturbModel,
    PolicyValue,
)
from neuralgraph.systems.hyperbolic_response.policy_value.rewards import safe_kl


class PolicyValueEvaluator:
    """Policy, value and direction beside what needs no model, on seen and on other cells.

    ``policy_kld``, ``policy_mae``, ``value_mse``, ``value_mae``, ``signed_mse``,
    ``signed_pearson``, ``top_recall``; each with ``_held_out`` (disjoint cells and controls of the
    same perturbations), and after it ``_uniform`` (policy), ``_mean`` (value), ``_zero`` (value,
    direction) and, held out, ``_table``: the training targets themselves as prediction, which is
    the split-half ceiling of whatever only memorises. A model that shares strength between genes
    can pass it. No simulator truth enters.

    Args:
        every: Epochs between two looks while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        n_top: Perturbations counted in ``top_recall``.
    """

    meanings = MEANINGS

    def __init__(
        self, *, every: Natural, primary_metric: str, direction: str, n_top: Count
    ) -> None:
        self.every, self.primary_metric, self.direction = every, primary_metric, direction
        self.n_top = n_top

    def __call__(
        self,
        model: HyperPerturbModel,
        data: PolicyValueData,
        truth: Truth | None,
        *,
        log: Mapping[str, float],
    ) -> Scorecard:
        """Every score, with the trivial ones beside it."""
        card = Scorecard()
        with torch.no_grad():
            said = model(data.train.context)
        rows: dict[str, PolicyValue] = {"": said, **trivial(data.train)}
        baselines: dict[str, dict[str, float]] = {}
        for suffix, batch in (("", data.train), ("_held_out", data.held_out)):
            for name, prediction in rows.items():
                if name == "table" and not suffix:
                    continue
                for metric, value in self.scores(prediction, batch).items():
                    if name == "":
                        card.add(metric + suffix, value)
                    elif _belongs(metric, name):
                        card.add(f"{metric}{suffix}_{name}", value)
                        words = {"table": "training targets", "mean": "mean value"}.get(name, name)
                        baselines.setdefault(metric + suffix, {})[words] = value
        if said.signed is None:
            for metric in ("signed_mse", "signed_pearson"):
                card.skip(metric, "the model has no head for the direction (model.signed=false)")
        with torch.no_grad():
            card.add("feature_rank", feature_rank(model.features(data.train.context)[0]))
        if model.space.name == "euclidean":
            card.skip("curvature", "a Euclidean space has none")
        else:
            card.add("curvature", float(model.space.curvature.detach()))
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = baselines
        kld, table = card.metrics["policy_kld_held_out"], card.metrics["policy_kld_held_out_table"]
        even = card.metrics["policy_kld_held_out_uniform"]
        card.facts["note"] = (
            f"On other cells of the same perturbations the policy is "
            f"{'nearer to' if kld < even else 'farther from'} its target than equal shares "
            f"({kld:.4g} against {even:.4g} nats), and "
            f"{'nearer' if kld < table else 'farther'} than a table of the training cells "
            f"({table:.4g})."
        )
        return card

    def watch(
        self, model: HyperPerturbModel, data: PolicyValueData, truth: Truth | None
    ) -> dict[str, float]:
        """Held-out scores for ``evaluation.jsonl``; never fed back."""
        said = model(data.held_out.context)
        found = self.scores(said, data.held_out)
        return {f"{name}_held_out": found[name] for name in ("policy_kld", "value_mse")}

    def scores(self, said: PolicyValue, batch: PolicyValueBatch) -> dict[str, float]:
        """Every metric of one prediction against the targets of one half."""
        policy, target = said.policy(batch.is_open).double(), batch.policy.double()
        difference = (said.value - batch.value).double()
        found = {
            "policy_kld": float(safe_kl(target, policy)),
            "policy_mae": float((policy - target).abs().mean()),
            "value_mse": float(difference.square().mean()),
            "value_mae": float(difference.abs().mean()),
            "top_recall": top_recall(target, policy, self.n_top),
        }
        if said.signed is not None:
            a, b = said.signed[batch.is_open].double(), batch.signed[batch.is_open].double()
            found["signed_mse"] = float((a - b).square().mean())
            a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
            found["signed_pearson"] = float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-300))
        return found


def trivial(train: PolicyValueBatch) -> dict[str, PolicyValue]:
    """Predictions that need no model: ``uniform``, ``mean``, ``zero``, ``table``."""
    even = torch.zeros_like(train.policy)
    zero = torch.zeros_like(train.signed)
    mean = train.value.mean(1, keepdim=True).expand_as(train.value)
    return {
        "uniform": PolicyValue(even, mean, zero),
        "mean": PolicyValue(even, mean, zero),
        "zero": PolicyValue(even, torch.zeros_like(train.value), zero),
        "table": PolicyValue(train.policy.clamp_min(1e-30).log(), train.value, train.signed),
    }


def _belongs(metric: str, name: str) -> bool:
    """Which trivial prediction stands beside which metric."""
    kind = metric.split("_")[0]
    beside = {"uniform": ("policy", "top"), "mean": ("value",), "zero": ("value", "signed")}
    if metric == "signed_pearson" and name == "zero":
        return False
    return name == "table" or kind in beside[name]


def top_recall(target: Tensor, policy: Tensor, n_top: int) -> float:
    """Share of the ``n_top`` most probable entries of a row that two distributions share.

    Ties are broken by position.
    """
    n_top = min(n_top, target.shape[-1])
    a = torch.zeros_like(target).scatter(-1, target.topk(n_top).indices, 1.0)
    b = torch.zeros_like(policy).scatter(-1, policy.topk(n_top).indices, 1.0)
    return float((a * b).sum(-1).mean() / n_top)


def feature_rank(features: Tensor, *, rtol: float = 1e-3) -> int:
    """Singular values of the centred node features above ``rtol`` of the largest."""
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    return int((values > rtol * values[0]).sum())
