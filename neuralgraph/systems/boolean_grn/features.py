r"""Structural features of a signed circuit: neighbourhoods, walks and spectra.

Everything here follows a relabelling of the genes exactly: $f(P^T G P) = P f(G)$. Spectra enter as
functions that do not depend on a choice of eigenvectors (traces, heat kernels $e^{-tL}$), because
eigenvectors of repeated eigenvalues are arbitrary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError

N_WALK = 6
N_NODE_STRUCTURE, N_PAIR_STRUCTURE = 8, 5
N_SPECTRAL = {
    "walks": (2 * N_WALK, 4, 2 * N_WALK),
    "laplacian": (1, 1, 3),
    "signed_laplacian": (1, 1, 1),
    "magnetic_laplacian": (1, 2, 0),
}
"""Spectral features of genes, pairs and circuits, by the operator they come from."""
SPECTRA = tuple(N_SPECTRAL)
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


def n_spectral(spectra: Sequence[str]) -> tuple[int, int, int]:
    """Number of spectral features of genes, pairs and circuits.

    Raises:
        ConfigError: an operator that is not known, or one that is named twice.
    """
    for name in spectra:
        if name not in N_SPECTRAL:
            raise ConfigError(f"there is no spectrum '{name}': known are {', '.join(SPECTRA)}")
        if list(spectra).count(name) > 1:
            raise ConfigError(f"the spectrum '{name}' is named twice")
    node, pair, graph = (sum(N_SPECTRAL[name][k] for name in spectra) for k in range(3))
    return node, pair, graph


def spectral(adjacency: Tensor, spectra: Sequence[str] = SPECTRA) -> tuple[Tensor, Tensor, Tensor]:
    r"""Spectral features of $W = A^+ - A^-$ and $|W|$ (``walks``), and of three Laplacians.

    Genes: closed signed and unsigned walks $(W^k)_{ii}$, $(|W|^k)_{ii}$, heat kept. Pairs: walks
    of two and three steps, heat kernels. Circuits: the traces $\sum_l \lambda_l^k$ (equivalent to
    the eigenvalues of $W$, and well conditioned where those are not), components, algebraic
    connectivity, largest eigenvalue of the Laplacian, smallest of the signed one.

    Args:
        adjacency: ``(n_batch, n, n)``.
        spectra: Operators, some of :data:`SPECTRA`.

    Returns:
        Of genes ``(n_batch, n, …)``, pairs ``(n_batch, n, n, …)`` and circuits ``(n_batch, …)`` in
        the given float type; :func:`n_spectral` says how many.
    """
    weight = adjacency.double()
    nodes, pairs, graphs = [], [], []
    for name in [each for each in SPECTRA if each in spectra]:
        if name == "walks":
            walks = _walks(weight)
            closed = walks.diagonal(dim1=1, dim2=2).transpose(1, 2)
            nodes.append(closed.asinh())
            pairs.append(walks[..., [1, 2, N_WALK + 1, N_WALK + 2]].asinh())
            graphs.append(closed.sum(1).asinh())
            continue
        if name == "magnetic_laplacian":
            heat = heat_kernel(magnetic_laplacian(weight), HEAT_TIME)
            parts = [heat.real, heat.imag]
        else:
            operator = laplacian(weight) if name == "laplacian" else signed_laplacian(weight)
            parts = [heat_kernel(operator, HEAT_TIME)]
            graphs.append(_extremes(operator, name))
        nodes.append(parts[0].diagonal(dim1=-2, dim2=-1)[..., None])
        pairs.append(torch.stack(parts, -1))
    empty = weight.new_zeros(len(weight), 0)
    joined = torch.cat(nodes, -1), torch.cat(pairs, -1), torch.cat([empty, *graphs], -1)
    node, pair, graph = (t.to(adjacency.dtype) for t in joined)
    return node, pair, graph


def _walks(weight: Tensor) -> Tensor:
    """Signed walks of 1 to :data:`N_WALK` steps, then unsigned ones, in the last axis."""
    signed, unsigned = [weight], [weight.abs()]
    for _ in range(N_WALK - 1):
        signed.append(signed[-1] @ weight)
        unsigned.append(unsigned[-1] @ weight.abs())
    return torch.stack([*signed, *unsigned], -1)


def _extremes(operator: Tensor, name: str) -> Tensor:
    """Components, connectivity and largest eigenvalue, or the smallest of the signed Laplacian."""
    values = torch.linalg.eigvalsh(operator)
    if name == "signed_laplacian":
        return values[:, :1]
    n_component = (values < 1e-6).to(values.dtype).sum(-1)
    connected = values[:, 1] if values.shape[1] > 1 else torch.zeros_like(n_component)
    return torch.stack([n_component, connected, values[:, -1]], -1)


def n_components(adjacency: Tensor) -> Tensor:
    """Connected components of each circuit: zero eigenvalues of its Laplacian, ``(n_batch,)``."""
    return (torch.linalg.eigvalsh(laplacian(adjacency.double())) < 1e-6).sum(-1)
