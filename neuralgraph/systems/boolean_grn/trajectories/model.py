"""A learnable Boolean network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Positive
from neuralgraph.systems.boolean_grn.trajectories.dataset import TransitionSpec


class LearnedNetwork(nn.Module):
    r"""Each gene's next value from the values of its regulators.

    $\operatorname{logit} p_g = c_g + \sum_h v_{gh} \tanh\big(b_{gh} + \sum_s W_{gsh}\,
    m_{sg}\,(2 x_s - 1)\big)$: a small network for each gene, on the regulators that the mask
    $m$ leaves (all genes where the support is not given). With enough hidden units it can be any
    Boolean function.

    Args:
        spec: Sizes, and the support where it is given.
        n_hidden: Hidden units of each gene.
        init_scale: Standard deviation of the initial weights.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        *,
        n_hidden: Count,
        init_scale: Positive,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n = spec.n_gene

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(init_scale * torch.randn(*shape, generator=generator))

        mask = torch.ones(n, n) if spec.is_edge is None else spec.is_edge.to(torch.float32)
        self.register_buffer("mask", mask)
        self.inner = drawn(n, n, n_hidden)
        self.inner_bias = drawn(n, n_hidden)
        self.outer = drawn(n, n_hidden)
        self.outer_bias = nn.Parameter(torch.zeros(n))

    def forward(self, state: Tensor) -> Tensor:
        """Logits of the next value of each gene, ``(n_batch, n_gene)``."""
        mask = self.get_buffer("mask")
        signal = torch.einsum("bs,sgh->bgh", 2 * state - 1, self.inner * mask[:, :, None])
        hidden = torch.tanh(signal + self.inner_bias)
        return (hidden * self.outer).sum(-1) + self.outer_bias

    @torch.no_grad()
    def successor(self, state: Tensor) -> Tensor:
        """The most likely synchronous successor, ``(n_batch, n_gene)``, 0 or 1."""
        return (self(state) > 0).to(state.dtype)
