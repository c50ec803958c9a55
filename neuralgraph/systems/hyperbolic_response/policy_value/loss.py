"""What is asked of the two-headed model."""

from __future__ import annotations

from neuralgraph.core.bounds import NotNegative, Positive
from neuralgraph.core.terms import Terms
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import PolicyValueBatch
from neuralgraph.systems.hyperbolic_response.policy_value.model import HyperPerturbModel
from neuralgraph.systems.hyperbolic_response.policy_value.rewards import safe_kl


class PolicyValueObjective:
    """Safe KL of the policy, mean squared error of the value and of the direction.

    Args:
        policy_weight: Of the KL divergence (the document: 1.0).
        value_weight: Of the value (0.5).
        signed_weight: Of the mean log fold change, where the model has that head.

    Source:
        Document 003, section 4.4.
    """

    def __init__(
        self, *, policy_weight: Positive, value_weight: NotNegative, signed_weight: NotNegative
    ) -> None:
        self.policy_weight = policy_weight
        self.value_weight, self.signed_weight = value_weight, signed_weight

    def __call__(self, model: HyperPerturbModel, batch: PolicyValueBatch) -> Terms:
        """Loss terms of some cell types."""
        said = model(batch.context)
        terms = Terms(self.policy_weight * safe_kl(batch.policy, said.policy(batch.is_open)))
        if self.value_weight:
            terms.add("value_mse", (said.value - batch.value).square().mean(), self.value_weight)
        if self.signed_weight and said.signed is not None:
            error = (said.signed - batch.signed).square()[batch.is_open]
            terms.add("signed_mse", error.mean(), self.signed_weight)
        return terms
