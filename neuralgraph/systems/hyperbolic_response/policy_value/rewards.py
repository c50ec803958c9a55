"""Rewards of perturbations by gene, and the targets made of them. Pure functions of tensors."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Reward: TypeAlias = Literal["cell", "mean"]
"""``cell``: mean over cells of |log fold change|, the document's; ``mean``: |mean over cells|."""

EPSILON = 1e-6
"""Smallest probability a distribution is clipped to."""


def rewards(change: Tensor, label: Tensor, n_perturbation: int, kind: Reward) -> Tensor:
    r"""$R_{pg} = E_{\text{cells with } p} |\mathrm{LFC}_g|$ (or of the mean over cells).

    Args:
        change: Log fold change of each cell against the control mean, ``(n_cell, G)``.
        label: Perturbation of each cell, ``(n_cell,)`` long in ``[0, P)``.
        n_perturbation: P.
        kind: Where the magnitude is taken. Per cell, it is mostly noise of counting and the policy
            comes near the uniform one; of the mean, it is the size of the effect.

    Returns:
        ``(P, G)``; rows of perturbations without cells are 0.

    Source:
        Document 003, section 4.2.
    """
    values = change.abs() if kind == "cell" else change
    total = values.new_zeros(n_perturbation, change.shape[1]).index_add(0, label, values)
    count = torch.bincount(label, minlength=n_perturbation).clamp_min(1)
    mean = total / count[:, None]
    return mean if kind == "cell" else mean.abs()


def policy_of(reward: Tensor, is_open: Tensor) -> Tensor:
    """Share of each perturbation in the reward of a gene: its policy.

    Args:
        reward: ``(*batch, P, G)``, not negative.
        is_open: ``(*batch, P)`` bool, perturbations that take part.

    Returns:
        ``(*batch, G, P)``, rows sum to 1; a gene that nothing moves gets equal shares.
    """
    by_gene = (reward * is_open[..., None]).transpose(-1, -2)
    total = by_gene.sum(-1, keepdim=True)
    n_open = is_open.sum(-1).clamp_min(1)[..., None, None]
    even = is_open[..., None, :] / n_open
    share = by_gene / total.clamp_min(torch.finfo(reward.dtype).tiny)
    return torch.where(total > 0, share, even.to(reward.dtype).expand_as(share))


def value_of(reward: Tensor, is_open: Tensor) -> Tensor:
    """Sensitivity of each gene: its mean reward over the perturbations that take part.

    Args:
        reward: ``(*batch, P, G)``.
        is_open: ``(*batch, P)`` bool.

    Returns:
        ``(*batch, G)``.
    """
    n_open = is_open.sum(-1, keepdim=True).clamp_min(1)
    return (reward * is_open[..., None]).sum(-2) / n_open


def safe_kl(target: Tensor, prediction: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    r"""Mean over genes of $\sum_p t_p \log(t_p / q_p)$, both clipped to [ε, 1], $q$ renormalised.

    Finite whatever the prediction, and 0 only for equal distributions.

    Args:
        target: ``(*batch, G, P)``, rows sum to 1.
        prediction: The same shape, rows sum to 1.
        epsilon: Lower clip.

    Source:
        Document 003, section 4.4 (``safe_kl_divergence``).
    """
    q = prediction.clamp(epsilon, 1.0)
    q = q / q.sum(-1, keepdim=True)
    t = target.clamp(epsilon, 1.0)
    t = t / t.sum(-1, keepdim=True)
    return (t * (t.log() - q.log())).sum(-1).mean()


def easy_first(signed: Tensor, reward: Tensor) -> Tensor:
    """Perturbations by the size of their mean effect, the clearest first: a curriculum's order.

    Args:
        signed: Mean log fold change, ``(K, P, G)``.
        reward: ``(K, P, G)``, for ties.

    Returns:
        ``(P,)`` long.
    """
    size = signed.square().mean((0, 2)).sqrt() + 1e-9 * reward.mean((0, 2))
    return torch.argsort(size, descending=True, stable=True)
