"""Signed Hill networks: gene regulation with known truth, under interventions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import SolverError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.numerics.integrate import rollout

STEADY = 1e-9
"""Largest |dx/dt| at which a state counts as an attractor (expression units / day)."""


@dataclass(frozen=True)
class HillNetwork:
    r"""Expression $\dot x_i = u_i\,g_i(w \odot x) - \gamma_i x_i$ with signed Hill regulation.

    .. math::
        g_i = \alpha_i \Big(\beta_i
            + (1-\beta_i)\, \bar h^+_i \prod_{j \in rep(i)} (1 - h_{ij})\Big), \quad
            h_{ij} = \frac{x_j^{n}}{K^{n} + x_j^{n}}

    where :math:`\bar h^+_i` is the mean over the activators of i (1 where there is none). An
    intervention multiplies the production of a gene (u) or what it does as a regulator (w).

    Args:
        sign: ``(n_gene, n_gene)``, entry (i, j) in {-1, 0, 1}: gene j on gene i.
        alpha: Largest production, ``(n_gene,)``, expression units / day.
        beta: Share of it that is there without activation, ``(n_gene,)``, in [0, 1].
        gamma: Decay, ``(n_gene,)``, 1 / day.
        threshold: K of each edge, ``(n_gene, n_gene)``, expression units.
        exponent: n of each edge, ``(n_gene, n_gene)``.

    Source:
        own choice of a common form; regulation of production alone and decay as in BoolODE
        (Pratapa et al. 2020).
    """

    sign: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    threshold: Tensor
    exponent: Tensor

    @property
    def n_gene(self) -> int:
        """Number of genes."""
        return self.sign.shape[0]

    def production(self, state: Tensor) -> Tensor:
        """Production g of states ``(*n, n_gene)`` as the regulators act, expression units / day."""
        ratio = (state.clamp_min(0)[..., None, :] / self.threshold) ** self.exponent
        hill = ratio / (1 + ratio)
        is_activator, is_repressor = self.sign > 0, self.sign < 0
        n_activator = is_activator.sum(1)
        active = torch.where(
            n_activator > 0,
            (hill * is_activator).sum(-1) / n_activator.clamp_min(1),
            torch.ones_like(hill[..., 0]),
        )
        free = torch.where(is_repressor, 1 - hill, torch.ones_like(hill)).prod(-1)
        return self.alpha * (self.beta + (1 - self.beta) * active * free)

    def rate(
        self, state: Tensor, production: Tensor, regulation: Tensor, added: Tensor | float = 0.0
    ) -> Tensor:
        """dx/dt of ``(*n, n_gene)`` under interventions u and w of the same shape.

        A medium adds constant production ``added`` (expression units / day), which a knock-out
        stops too.
        """
        made = self.production(regulation * state) + added
        return production * made - self.gamma * state

    def flow(
        self,
        start: Tensor,
        time: Tensor,
        production: Tensor,
        regulation: Tensor,
        added: Tensor | float = 0.0,
    ) -> Tensor:
        """States at ``time`` (n_time,) from ``start`` (n, n_gene): ``(n, n_time, n_gene)``.

        Runge–Kutta of order 4, 40 steps from one time to the next: relative error below 1e-7 for
        days apart at decays near 1 / day.
        """
        return rollout(
            lambda _, x: self.rate(x, production, regulation, added), start, time, n_substep=40
        )

    def attractor(
        self,
        start: Tensor,
        production: Tensor,
        regulation: Tensor,
        added: Tensor | float = 0.0,
    ) -> Tensor:
        """Where the flow from ``start`` (n, n_gene) settles.

        Runge–Kutta steps have the fixed points of the flow, so the result is exact at rest.

        Raises:
            SolverError: it has not settled after 1,000 days (a cycle, or a slow mode).
        """
        state = start
        for _ in range(20):
            time = torch.tensor([0.0, 50.0], dtype=state.dtype)
            state = rollout(
                lambda _, x: self.rate(x, production, regulation, added),
                state,
                time,
                n_substep=200,
            )[:, -1]
            if float(self.rate(state, production, regulation, added).abs().max()) < STEADY:
                return state
        raise SolverError("the network has not settled after 1,000 days")

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by name."""
        return dict(vars(self))


def draw_network(seed: int, *, n_gene: int, n_regulator: tuple[int, int]) -> HillNetwork:
    """A random network; the ranges are those of the prototype that the numbers compare with.

    Args:
        seed: Same seed, same network.
        n_gene: Genes.
        n_regulator: Fewest and most regulators of a gene, none of them itself.
    """
    generator = torch_generator(seed, "network")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)

    sign = torch.zeros(n_gene, n_gene, dtype=torch.float64)
    for gene in range(n_gene):
        count = int(torch.randint(n_regulator[0], n_regulator[1] + 1, (1,), generator=generator))
        others = torch.randperm(n_gene - 1, generator=generator)[:count]
        others = others + (others >= gene)
        signs = torch.where(torch.rand(count, generator=generator) < 0.6, 1.0, -1.0)
        sign[gene, others] = signs.double()
    exponent = torch.randint(2, 4, (n_gene, n_gene), generator=generator).double()
    return HillNetwork(
        sign=sign,
        alpha=uniform(0.8, 2.0, n_gene),
        beta=uniform(0.05, 0.2, n_gene),
        gamma=uniform(0.4, 1.2, n_gene),
        threshold=uniform(0.3, 1.0, n_gene, n_gene),
        exponent=exponent,
    )
