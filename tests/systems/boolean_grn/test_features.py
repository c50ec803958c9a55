"""Structural features: equivariant, and what the spectra claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn import features
from neuralgraph.systems.boolean_grn.circuit import random_circuits


def drawn(n_circuit: int, n_gene: int, in_degree: float = 2.2) -> torch.Tensor:
    circuits = random_circuits(
        n_circuit, n_gene, in_degree=min(in_degree, n_gene), share_inhibition=0.5,
        generator=numpy_generator(0, "features"),
    )  # fmt: skip
    return torch.from_numpy(circuits).float()


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_node_features_obey_f_of_PtGP_is_P_f_of_G(n):
    adjacency = drawn(30, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    turned = adjacency[:, order][:, :, order]
    node, pair = features.structure(adjacency)
    assert node.shape[-1] == features.N_NODE_STRUCTURE
    assert pair.shape[-1] == features.N_PAIR_STRUCTURE
    node_, pair_ = features.structure(turned)
    assert torch.equal(node[:, order], node_)
    assert torch.equal(pair[:, order][:, :, order], pair_)
    node, pair, graph = features.spectral(adjacency)
    shown = node.shape[-1], pair.shape[-1], graph.shape[-1]
    assert shown == features.n_spectral(features.SPECTRA)
    node_, pair_, graph_ = features.spectral(turned)
    assert torch.allclose(node[:, order], node_, atol=1e-6)
    assert torch.allclose(pair[:, order][:, :, order], pair_, atol=1e-6)
    assert torch.allclose(graph, graph_, atol=1e-6)


@pytest.mark.parametrize("name", features.SPECTRA)
def test_each_spectrum_alone_is_its_part_of_all_of_them(name):
    adjacency = drawn(10, 5)
    alone = features.spectral(adjacency, [name])
    assert tuple(t.shape[-1] for t in alone) == features.n_spectral([name])
    first = list(features.SPECTRA[: features.SPECTRA.index(name)])
    for own, every, skip in zip(
        alone, features.spectral(adjacency), features.n_spectral(first), strict=True
    ):
        assert torch.equal(own, every[..., skip : skip + own.shape[-1]])


def test_spectra_that_are_not_known_are_refused():
    with pytest.raises(ConfigError, match="there is no spectrum 'laplace': known are walks, lap"):
        features.n_spectral(["laplace"])
    with pytest.raises(ConfigError, match="'walks' is named twice"):
        features.n_spectral(["walks", "laplacian", "walks"])


def test_zero_eigenvalues_of_the_laplacian_count_the_components():
    for in_degree in (0.4, 0.9, 2.2):
        for matrix in drawn(60, 7, in_degree):
            seen, components = set(), 0
            linked = (matrix + matrix.abs() + matrix.abs().T) != 0
            linked |= matrix != 0
            linked |= matrix.T != 0
            for gene in range(7):
                if gene in seen:
                    continue
                components += 1
                queue = [gene]
                while queue:
                    g = queue.pop()
                    if g not in seen:
                        seen.add(g)
                        queue += linked[g].nonzero()[:, 0].tolist()
            assert int(features.n_components(matrix[None])) == components


def test_the_signed_laplacian_is_singular_exactly_for_balanced_connected_circuits():
    def smallest(rows):
        matrix = features.signed_laplacian(torch.tensor([rows]).double())
        return float(torch.linalg.eigvalsh(matrix)[0, 0])

    assert abs(smallest([[0, -1, -1], [0, 0, 1], [0, 0, 0]])) < 1e-12
    assert smallest([[0, -1, 1], [0, 0, 1], [0, 0, 0]]) > 1e-3


def test_the_magnetic_laplacian_is_hermitian_and_knows_the_direction():
    adjacency = drawn(20, 5).double()
    matrix = features.magnetic_laplacian(adjacency)
    assert torch.allclose(matrix, matrix.mH)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-9
    forward = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]).double()
    one, other = (features.magnetic_laplacian(m) for m in (forward, forward.mT))
    assert not torch.allclose(one, other)
    assert torch.allclose(one, other.mT)


def test_traces_are_power_sums_of_the_eigenvalues():
    matrix = drawn(1, 5).double()
    _, _, graph = features.spectral(matrix)
    values = np.linalg.eigvals(matrix[0].numpy())
    for k in range(features.N_WALK):
        expected = np.arcsinh((values ** (k + 1)).sum().real)
        assert float(graph[0, k]) == pytest.approx(expected, abs=1e-6)
