r"""The document's necessary conditions, as violations between 0 and 1 that pass gradients.

On weights in {−1, 0, 1} a violation is exactly 0 where the condition holds and exactly 1 where it
does not; between, each edge counts with its absolute weight and a conjunction is a product.

| phenotype | condition |
| --- | --- |
| toggle switch | two genes inhibit each other |
| oscillator | a loop with an odd number of inhibitions |
| pulse generator | A → B, A → C, B ⊣ C on three genes |
| amplifier | A → B → C on three genes, no negative loop, no loop of two or more genes |

They are necessary for the oracle's labels and far from sufficient. Adaptation and stable circuits
have none in the document; the oracle asks adaptation for a negative loop, which is not used here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES

CONSTRAINED = ("toggle_switch", "oscillator", "pulse_generator", "amplifier")


def mutual_inhibition(adjacency: Tensor) -> Tensor:
    """Strength of the strongest mutually inhibiting pair, ``(n_batch,)``."""
    inhibits = _off_diagonal((-adjacency).clamp_min(0))
    return (inhibits * inhibits.transpose(-1, -2)).amax((-1, -2))


def loops(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Strength of the strongest negative loop, and of the strongest loop of two or more genes.

    The strength of a walk is the product of its weights; the closure is taken in the semiring
    (max, ×) on the double cover, whose two sheets are the signs of a walk. A closed walk of
    negative sign always holds a negative cycle.

    Args:
        adjacency: ``(n_batch, n, n)``.
    """
    even, odd = adjacency.clamp_min(0), (-adjacency).clamp_min(0)
    n = adjacency.shape[-1]
    for k in range(n):
        # walks through gene k; a negative walk from k to itself may be taken on the way once
        here_even, here_odd = even[:, k, :], odd[:, k, :]
        turn = odd[:, k, k, None]
        here_even, here_odd = (
            torch.maximum(here_even, turn * here_odd),
            torch.maximum(here_odd, turn * here_even),
        )
        to_even, to_odd = even[:, :, k, None], odd[:, :, k, None]
        even, odd = (
            _most(even, to_even * here_even[:, None], to_odd * here_odd[:, None]),
            _most(odd, to_even * here_odd[:, None], to_odd * here_even[:, None]),
        )
    reach = _off_diagonal(torch.maximum(even, odd))
    negative = odd.diagonal(dim1=-2, dim2=-1).amax(-1)
    return negative, (reach * reach.transpose(-1, -2)).amax((-1, -2))


def incoherent_feed_forward(adjacency: Tensor) -> Tensor:
    """Strength of the strongest A → B, A → C, B ⊣ C on distinct genes, ``(n_batch,)``."""
    activates = _off_diagonal(adjacency.clamp_min(0))
    inhibits = _off_diagonal((-adjacency).clamp_min(0))
    both = activates[:, :, :, None] * activates[:, :, None, :] * inhibits[:, None]
    return both.amax((1, 2, 3))


def cascade(adjacency: Tensor) -> Tensor:
    """Strength of the strongest A → B → C on distinct genes, ``(n_batch,)``."""
    activates = _off_diagonal(adjacency.clamp_min(0))
    chain = activates[:, :, :, None] * activates[:, None]
    eye = torch.eye(adjacency.shape[-1], dtype=chain.dtype, device=chain.device)
    return (chain * (1 - eye)[None, :, None, :]).amax((1, 2, 3))


def violations(adjacency: Tensor) -> Tensor:
    """Violation of each phenotype's necessary condition.

    Args:
        adjacency: Signed weights in [−1, 1], ``(n_batch, n, n)``; gradients pass.

    Returns:
        ``(n_batch, n_phenotype)`` in [0, 1], in the order of ``PHENOTYPES``.
    """
    negative, feedback = loops(adjacency)
    met = {
        "toggle_switch": mutual_inhibition(adjacency),
        "oscillator": negative,
        "pulse_generator": incoherent_feed_forward(adjacency),
        "amplifier": cascade(adjacency) * (1 - negative) * (1 - feedback),
    }
    one = adjacency.new_ones(adjacency.shape[0])
    return torch.stack([1 - met.get(name, one) for name in PHENOTYPES], -1)


def constraint_loss(adjacency: Tensor, probability: Tensor) -> Tensor:
    r"""$\sum_c p_c\,\mathrm{violation}_c(G)$, averaged over the circuits.

    Args:
        adjacency: ``(n_batch, n, n)``.
        probability: Of each phenotype, ``(n_batch, n_phenotype)``.
    """
    return (probability * violations(adjacency)).sum(-1).mean()


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def _most(*values: Tensor) -> Tensor:
    most = values[0]
    for value in values[1:]:
        most = torch.maximum(most, value)
    return most
