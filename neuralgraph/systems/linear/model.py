"""The learnable linear network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import NotNegative
from neuralgraph.systems.linear.dataset import LinearSpec


class LinearDynamics(nn.Module):
    r"""$\hat{\dot x} = A x$ with a learnable matrix, masked to the given support.

    Args:
        spec: Sizes, and the support where it is given.
        init_scale: Standard deviation of the initial entries.
        generator: Source of the initial entries.
    """

    def __init__(
        self, spec: LinearSpec, *, init_scale: NotNegative, generator: torch.Generator
    ) -> None:
        super().__init__()
        start = init_scale * torch.randn(spec.n_var, spec.n_var, generator=generator)
        mask = torch.ones_like(start) if spec.is_edge is None else spec.is_edge.to(start.dtype)
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(start * mask)

    @property
    def matrix(self) -> Tensor:
        """The matrix A, ``(n_var, n_var)``."""
        mask = self.get_buffer("mask")
        return self.weight * mask

    def forward(self, state: Tensor) -> Tensor:
        """Time derivative of ``state``, ``(*batch, n_var)``."""
        return state @ self.matrix.T
