"""An environment whose actions are perturbations, and the curriculum that widens it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError


class PerturbationEnv:
    """Choose perturbations, be rewarded by the responses of genes, and see more of them in time.

    ``complexity`` is the share of the perturbations that are open, the easy ones first. Only open
    ones may be chosen, and only they are in the loss: raising it changes what is learned.

    Args:
        reward: Reward of each perturbation by gene, ``(P, G)``: of training cells where a policy
            learns from it, of held-out cells where it is judged.
        order: Perturbations, easy ones first, ``(P,)`` long.
        complexity: Share that is open at the start, in (0, 1].

    Raises:
        ConfigError: a share out of range.
    """

    def __init__(self, reward: Tensor, order: Tensor, *, complexity: float) -> None:
        if not 0 < complexity <= 1:
            raise ConfigError(f"complexity is a share in (0, 1], got {complexity}")
        self.reward, self.order, self.complexity = reward, order, complexity
        self.history: list[tuple[int, float]] = []

    @property
    def n_perturbation(self) -> int:
        """All perturbations, open or not."""
        return self.reward.shape[0]

    @property
    def n_open(self) -> int:
        """Perturbations that may be chosen: at least 2, a choice of one is none."""
        wanted = math.ceil(self.complexity * self.n_perturbation - 1e-9)
        return min(max(2, wanted), self.n_perturbation)

    def is_open(self) -> Tensor:
        """``(P,)`` bool."""
        found = torch.zeros(self.n_perturbation, dtype=torch.bool, device=self.order.device)
        found[self.order[: self.n_open]] = True
        return found

    def step(self, action: int) -> tuple[Tensor, float]:
        """Apply one perturbation.

        Args:
            action: Number of an open perturbation.

        Returns:
            Response of the genes ``(G,)``, and the reward: its mean.

        Raises:
            ConfigError: the perturbation is not open (yet), or there is none of that number.
        """
        if not 0 <= action < self.n_perturbation or not bool(self.is_open()[action]):
            raise ConfigError(
                f"action {action} is not open: {self.n_open} of {self.n_perturbation} "
                "perturbations are; choose one of is_open(), or raise the complexity"
            )
        response = self.reward[action]
        value = float(response.mean())
        self.history.append((action, value))
        return response, value

    def increase_complexity(self, factor: float) -> None:
        """Open more: the share grows by a factor, up to all."""
        self.complexity = min(1.0, self.complexity * factor)


def complexity_at(epoch: int, *, start: float, factor: float, every: int) -> float:
    """Share of open perturbations in an epoch, when it grows by ``factor`` each ``every`` epochs.

    A function of the epoch alone, so that a resumed run goes on where it was.

    >>> [round(complexity_at(e, start=0.5, factor=1.2, every=10), 2) for e in (0, 9, 10, 25, 90)]
    [0.5, 0.5, 0.6, 0.72, 1.0]
    """
    return min(1.0, start * factor ** (epoch // every))
