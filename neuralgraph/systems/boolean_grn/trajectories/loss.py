"""What is asked of a learned Boolean network."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from neuralgraph.core.bounds import NotNegative
from neuralgraph.core.terms import Terms
from neuralgraph.systems.boolean_grn.trajectories.dataset import TransitionBatch
from neuralgraph.systems.boolean_grn.trajectories.model import LearnedNetwork


class TransitionObjective:
    """Cross-entropy of the next state, plus an L1 penalty on the inner weights.

    Under asynchronous update one gene of ``n`` is updated, so that the next value of gene g is on
    with probability ``x_g + (p_g - x_g) / n``.

    Args:
        coeff_L1: Weight of the mean absolute inner weight.
    """

    def __init__(self, *, coeff_L1: NotNegative) -> None:
        self.coeff_L1 = coeff_L1

    def __call__(self, model: LearnedNetwork, batch: TransitionBatch) -> Terms:
        """Loss terms of a batch."""
        logits = model(batch.state)
        if batch.is_asynchronous:
            chance = torch.sigmoid(logits)
            chance = batch.state + (chance - batch.state) / batch.state.shape[1]
            terms = Terms(binary_cross_entropy(chance, batch.following))
        else:
            terms = Terms(binary_cross_entropy_with_logits(logits, batch.following))
        if self.coeff_L1:
            terms.add("L1", model.inner.abs().mean(), self.coeff_L1)
        return terms
