r"""A policy that writes circuits entry by entry, and how an oracle's reward trains it.

The entries of the matrix are written one after the other, each as no edge, activation or
inhibition, so that an ordered pair of genes cannot have two signs:
$p(A \mid c) = \prod_d p(A_d \mid A_{<d}, c)$ with the phenotype wanted and the number of genes as
$c$ (a neural autoregressive density estimator). Entries of the first $k$ genes come before those of
gene $k + 1$, so that a small circuit is the beginning of a larger one.

**Permutations.** A phenotype does not change under relabelling, so the reward of a matrix is that
of its isomorphism class, and the expected reward depends on the probability of classes only. The
policy need not be symmetric, and is better when it is not: it may always call the input of a
cascade gene 0. What must not depend on labels is what counts as new, and that is decided on
canonical forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Part, Positive, Share
from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.boolean_grn.circuit import Adjacency
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES

SIGN_OF_CHOICE = (0, 1, -1)
"""What the three choices at an entry mean."""
RATIO_MAX = 5.0
"""Largest logarithm of a probability ratio that is followed."""


@dataclass(frozen=True)
class Rollouts:
    """Circuits a policy has written for wishes of one size, and what they were worth.

    Args:
        choices: At each entry, ``(n_circuit, n_gene²)`` in 0 to 2.
        phenotype: Index of the phenotype wished for, ``(n_circuit,)``.
        n_gene: Genes of each circuit.
        log_p: Logarithm of the probability they were drawn with, ``(n_circuit,)``.
        reward: ``(n_circuit,)``.
    """

    choices: Tensor
    phenotype: Tensor
    n_gene: int
    log_p: Tensor
    reward: Tensor

    def advantage(self) -> Tensor:
        """Reward less its mean over the circuits of the same wish, in units of its spread."""
        advantage = torch.zeros_like(self.reward)
        for wish in self.phenotype.unique().tolist():
            own = self.phenotype == wish
            reward = self.reward[own]
            spread = reward.std(correction=0)
            advantage[own] = (reward - reward.mean()) / (spread + 1e-6)
        return advantage


def joined(parts: list[Rollouts]) -> Rollouts:
    """Rollouts of one size as one."""
    return replace(
        parts[0],
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("choices", "phenotype", "log_p", "reward")
        },
    )


class CircuitPolicy(nn.Module):
    r"""Writes circuits of a phenotype and a size.

    At entry $d$ the state is $h_d = \mathrm{silu}(c + \sum_{e<d} W_{e, A_e})$, the choice
    $\mathrm{softmax}(V_d h_d + b_d)$, mixed with a share of the plain random circuit so that
    nothing ever becomes impossible. At the start it is, almost, that random circuit.

    Args:
        n_gene_max: Largest circuits.
        n_hidden: Width of the state.
        in_degree: Expected regulators of a gene in the random circuit it starts from.
        share_inhibition: Expected share of inhibitions in it.
        share_random: Share of the random circuit's probability in each choice.
        generator: Source of the initial weights.

    Source:
        Larochelle & Murray, The neural autoregressive distribution estimator (AISTATS 2011).
    """

    plain: Tensor
    order: Tensor

    def __init__(
        self,
        *,
        n_gene_max: Count,
        n_hidden: Count,
        in_degree: Positive,
        share_inhibition: Share,
        share_random: Part,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_gene_max = n_gene_max
        self.share_random = share_random
        n_entry, n_wish = n_gene_max**2, len(PHENOTYPES)

        def small(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        self.written = small(n_entry, 3, n_hidden, scale=0.3)
        self.wish = small(n_wish, n_hidden, scale=0.3)
        self.size = small(n_gene_max + 1, n_hidden, scale=0.3)
        self.read = small(n_entry, n_hidden, 3, scale=0.02)
        self.bias = nn.Parameter(torch.zeros(n_wish, n_entry, 3))
        edge = torch.tensor([min(in_degree / max(n, 1), 0.9) for n in range(n_gene_max + 1)])
        inhibition = torch.full_like(edge, share_inhibition)
        plain = torch.stack([1 - edge, edge * (1 - inhibition), edge * inhibition], 1)
        self.register_buffer("plain", plain.clamp_min(1e-4), persistent=False)
        source, target = np.divmod(np.arange(n_entry), n_gene_max)
        order = np.lexsort((target, source, np.maximum(source, target)))
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def log_probability(self, rollouts: Rollouts) -> Tensor:
        """Log probability of the three choices at each entry, ``(n_circuit, n_gene², 3)``."""
        choices, n_gene = rollouts.choices, rollouts.n_gene
        n_entry = n_gene**2
        told = self.written[torch.arange(n_entry, device=choices.device), choices]
        before = told.cumsum(1) - told
        state = before + (self.wish[rollouts.phenotype] + self.size[n_gene])[:, None]
        state = nn.functional.silu(state)
        score = torch.einsum("bdh,dhk->bdk", state, self.read[:n_entry])
        return self._log_mixed(score + self.bias[rollouts.phenotype, :n_entry], n_gene)

    @torch.no_grad()
    def sample(self, phenotype: Tensor, n_gene: int, generator: torch.Generator) -> Rollouts:
        """Write one circuit for each wish; the rewards are still 0.

        Args:
            phenotype: Indices of the phenotypes wished for, ``(n_circuit,)``.
            n_gene: Genes of each circuit.
            generator: Source of the draws.

        Raises:
            ConfigError: more genes than the policy was made for.
        """
        if not 1 <= n_gene <= self.n_gene_max:
            raise ConfigError(
                f"the policy writes circuits of 1 to {self.n_gene_max} genes, got {n_gene}"
            )
        device = self.read.device
        phenotype = phenotype.to(device)
        choices = torch.zeros(len(phenotype), n_gene**2, dtype=torch.long, device=device)
        log_p = torch.zeros(len(phenotype), dtype=self.read.dtype, device=device)
        state = self.wish[phenotype] + self.size[n_gene]
        for entry in range(n_gene**2):
            score = nn.functional.silu(state) @ self.read[entry] + self.bias[phenotype, entry]
            log_each = self._log_mixed(score, n_gene)
            chosen = torch.multinomial(log_each.exp().cpu(), 1, generator=generator)
            chosen = chosen.to(log_each.device)
            choices[:, entry] = chosen[:, 0]
            log_p += log_each.gather(1, chosen)[:, 0]
            state = state + self.written[entry, chosen[:, 0]]
        return Rollouts(choices, phenotype, n_gene, log_p, torch.zeros_like(log_p))

    def matrices(self, rollouts: Rollouts) -> Adjacency:
        """The circuits, ``(n_circuit, n_gene, n_gene)``."""
        n, n_entry = self.n_gene_max, rollouts.n_gene**2
        signs = np.array(SIGN_OF_CHOICE, dtype=np.int8)[rollouts.choices.cpu().numpy()]
        matrices = np.zeros((len(signs), n * n), dtype=np.int8)
        matrices[:, self.order[:n_entry].cpu().numpy()] = signs
        matrices = matrices.reshape(-1, n, n)[:, : rollouts.n_gene, : rollouts.n_gene]
        return np.ascontiguousarray(matrices)

    def _log_mixed(self, score: Tensor, n_gene: int) -> Tensor:
        plain = self.plain[n_gene].log()
        learned = (score + plain).log_softmax(-1)
        if self.share_random == 0:
            return learned
        kept = math.log1p(-self.share_random)
        return torch.logaddexp(learned + kept, plain + math.log(self.share_random))


def reward(
    score: NDArray[np.float64],
    credit: NDArray[np.float64],
    *,
    is_new: NDArray[np.bool_],
    is_repeat: NDArray[np.bool_],
    shaping: float,
    novelty: float,
) -> NDArray[np.float64]:
    """What a circuit is worth, ``(n_circuit,)``: the oracle's answer and a bonus for what is new.

    A circuit of the phenotype earns its score, another one ``shaping`` times its partial credit;
    a class met for the first time earns ``novelty`` on top, and one met before earns nothing.

    Args:
        score: 1 or more for a circuit of the phenotype, else 0.
        credit: How much of what the phenotype needs is there, 0 to 1.
        is_new: Neither met before nor in the training data.
        is_repeat: Met before.
        shaping: Weight of the partial credit.
        novelty: The bonus.
    """
    value = np.where(score > 0, score, shaping * credit)
    return np.where(is_repeat, 0.0, value + novelty * is_new)


def policy_gradient(policy: CircuitPolicy, rollouts: Rollouts, *, clip: float) -> Tensor:
    r"""Surrogate whose gradient is that of the expected reward, with a baseline.

    $-\overline{\min(\rho A, \mathrm{clip}(\rho, 1 \pm \epsilon) A)}$ with the advantage $A$ (reward
    less the mean of the same wish) and the ratio $\rho$ of the probability now to that of the
    draw. On fresh rollouts $\rho = 1$ and the gradient is REINFORCE's, $-\overline{A \nabla \log
    p}$; the clip lets a batch be used more than once.

    Source:
        Williams, Machine Learning 8 (1992); Schulman et al., arXiv:1707.06347, eq. 7.
    """
    log_each = policy.log_probability(rollouts)
    log_p = log_each.gather(2, rollouts.choices[..., None])[..., 0].sum(1)
    ratio = (log_p - rollouts.log_p).clamp(-RATIO_MAX, RATIO_MAX).exp()
    advantage = rollouts.advantage()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
