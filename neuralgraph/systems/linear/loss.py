"""What is asked of the linear model."""

from __future__ import annotations

import torch

from neuralgraph.core.bounds import NotNegative
from neuralgraph.core.terms import Terms
from neuralgraph.systems.linear.dataset import LinearBatch
from neuralgraph.systems.linear.model import LinearDynamics


class LinearObjective:
    """Mean squared error of the derivative, plus an L1 penalty on A.

    Args:
        coeff_L1: Weight of the mean absolute entry of A.
    """

    def __init__(self, *, coeff_L1: NotNegative) -> None:
        self.coeff_L1 = coeff_L1

    def __call__(self, model: LinearDynamics, batch: LinearBatch) -> Terms:
        """Loss terms of a batch."""
        terms = Terms(torch.mean((model(batch.state) - batch.dx_dt) ** 2))
        if self.coeff_L1:
            terms.add("L1", model.matrix.abs().mean(), self.coeff_L1)
        return terms
