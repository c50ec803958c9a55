r"""Structural features of a signed circuit: neighbourhoods, walks and spectra.

Everything here follows a relabelling of the genes exactly: $f(P^T G P) = P f(G)$. Spectra enter as
functions that do not depend on a choice of eigenvectors (traces, heat kernels $e^{-tL}$), because
eigenvectors of repeated eigenvalues are arbitrary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N_WALK = 6
N_NODE_STRUCTURE, N_PAIR_STRUCTURE = 8, 5
N_NODE_SPECTRAL, N_PAIR_SPECTRAL, N_GRAPH_SPECTRAL = 2 * N_WALK + 3, 8, 2 * N_WALK + 4
HEAT_TIME = 1.0
MAGNETIC_CHARGE = 0.25


def structure(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of self-edges, degrees and inputs of genes; signs of both edges between two genes.

    Args:
        adjacency: ``(n_batch, n, n)`` in {−1, 0, +1}, ``[source, target]``.

    Returns:
        ``(n_batch, n, 8)`` and ``(n_batch, n, n, 5)``.
    """
    activates, inhibits = adjacency.clamp_min(0), (-adjacency).clamp_min(0)
    n = adjacency.shape[-1]
    own = torch.stack([m.diagonal(dim1=-2, dim2=-1) for m in (activates, inhibits)], -1)
    degree = torch.stack([m.sum(d) for m in (activates, inhibits) for d in (-2, -1)], -1)
    has = torch.stack([(m.sum(-2) > 0).to(adjacency.dtype) for m in (activates, inhibits)], -1)
    node = torch.cat([own, degree / 2, has], -1)
    eye = torch.eye(n, dtype=adjacency.dtype, device=adjacency.device).expand_as(adjacency)
    turned = [m.transpose(-1, -2) for m in (activates, inhibits)]
    return node, torch.stack([activates, inhibits, *turned, eye], -1)


def laplacian(adjacency: Tensor) -> Tensor:
    """Unsigned Laplacian $D - A$ of the undirected graph; self-edges do not count.

    The number of its zero eigenvalues is the number of connected components.
    """
    undirected = torch.maximum(adjacency.abs(), adjacency.abs().transpose(-1, -2))
    undirected = undirected - torch.diag_embed(undirected.diagonal(dim1=-2, dim2=-1))
    return torch.diag_embed(undirected.sum(-1)) - undirected


def signed_laplacian(adjacency: Tensor) -> Tensor:
    r"""$\bar D - (W + W^T)/2$ with absolute degrees: positive semidefinite, singular for balance.

    Source:
        Kunegis et al., Spectral analysis of signed graphs (SDM 2010).
    """
    weight = adjacency - torch.diag_embed(adjacency.diagonal(dim1=-2, dim2=-1))
    both = (weight + weight.transpose(-1, -2)) / 2
    return torch.diag_embed(both.abs().sum(-1)) - both


def magnetic_laplacian(adjacency: Tensor) -> Tensor:
    r"""Hermitian Laplacian whose phases $e^{2\pi i q (W - W^T)}$ carry direction and sign.

    Source:
        Zhang et al., MagNet (NeurIPS 2021), with signed weights.
    """
    weight = adjacency - torch.diag_embed(adjacency.diagonal(dim1=-2, dim2=-1))
    size = (weight.abs() + weight.abs().transpose(-1, -2)) / 2
    phase = 2 * math.pi * MAGNETIC_CHARGE * (weight - weight.transpose(-1, -2)) / 2
    hermitian = torch.polar(size, phase)
    return torch.diag_embed(size.sum(-1)).to(hermitian.dtype) - hermitian


def heat_kernel(operator: Tensor, time: float) -> Tensor:
    """$e^{-tL}$ of a Hermitian operator, by its eigenvalues."""
    values, vectors = torch.linalg.eigh(operator)
    return (vectors * torch.exp(-time * values)[..., None, :].to(vectors.dtype)) @ vectors.mH


def spectral(adjacency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Spectral features of $W = A^+ - A^-$, of $|W|$, and of three Laplacians.

    Genes: closed signed and unsigned walks $(W^k)_{ii}$, $(|W|^k)_{ii}$, heat kept. Pairs: walks
    of two and three steps, heat kernels. Circuits: the traces $\sum_l \lambda_l^k$ (equivalent to
    the eigenvalues of $W$, and well conditioned where those are not), components, algebraic
    connectivity, largest eigenvalue of the Laplacian, smallest of the signed one.

    Args:
        adjacency: ``(n_batch, n, n)``.

    Returns:
        ``(n_batch, n, 15)``, ``(n_batch, n, n, 8)``, ``(n_batch, 16)`` in the given float type.
    """
    dtype = adjacency.dtype
    weight = adjacency.double()
    power, size = weight, weight.abs()
    absolute = size
    signed, unsigned = [], []
    for _ in range(N_WALK):
        signed.append(power)
        unsigned.append(absolute)
        power, absolute = power @ weight, absolute @ size
    walks = torch.stack([*signed, *unsigned], -1)
    closed = walks.diagonal(dim1=1, dim2=2).transpose(1, 2)  # (batch, n, 2 N_WALK)
    traces = closed.sum(1)
    plain, with_sign = laplacian(weight), signed_laplacian(weight)
    eigenvalues = torch.linalg.eigvalsh(plain)
    n_component = (eigenvalues < 1e-6).to(torch.float64).sum(-1)
    connected = eigenvalues[:, 1] if eigenvalues.shape[1] > 1 else torch.zeros_like(n_component)
    heats = [heat_kernel(plain, HEAT_TIME), heat_kernel(with_sign, HEAT_TIME)]
    turned = heat_kernel(magnetic_laplacian(weight), HEAT_TIME)
    heats += [turned.real, turned.imag]
    kept = torch.stack([h.diagonal(dim1=-2, dim2=-1) for h in heats[:3]], -1)
    pair = torch.cat(
        [torch.stack([signed[1], signed[2], unsigned[1], unsigned[2]], -1).asinh(),
         torch.stack(heats, -1)], -1,
    )  # fmt: skip
    graph = torch.cat(
        [
            traces.asinh(),
            torch.stack(
                [
                    n_component,
                    connected,
                    eigenvalues[:, -1],
                    torch.linalg.eigvalsh(with_sign)[:, 0],
                ],
                -1,
            ),
        ],
        -1,
    )
    return torch.cat([closed.asinh(), kept], -1).to(dtype), pair.to(dtype), graph.to(dtype)


def n_components(adjacency: Tensor) -> Tensor:
    """Connected components of each circuit: zero eigenvalues of its Laplacian, ``(n_batch,)``."""
    return (torch.linalg.eigvalsh(laplacian(adjacency.double())) < 1e-6).sum(-1)
