"""δ-hyperbolicity, distortion and precision are what they say; a tree fits into the disk."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import DataError
from neuralgraph.systems.hyperbolic_response.treelikeness import (
    average_distortion,
    classical_scaling,
    embed,
    hyperbolicity,
    largest_component,
    mean_average_precision,
    path_lengths,
    regular_tree,
)


def ring(n: int) -> torch.Tensor:
    return torch.stack((torch.arange(n), (torch.arange(n) + 1) % n))


def test_delta_is_0_on_trees_and_known_on_rings_and_cliques():
    tree = path_lengths(13, regular_tree(3, 2))
    found = hyperbolicity(tree, n_sample=100, seed=0)
    assert found.delta == 0 and found.relative == 0 and found.is_exact
    assert found.n_quadruple == 715
    for n, delta in ((4, 1.0), (8, 2.0), (12, 3.0)):  # n / 4
        assert hyperbolicity(path_lengths(n, ring(n)), n_sample=1, seed=0).delta == delta
    square = hyperbolicity(path_lengths(4, ring(4)), n_sample=1, seed=0)
    assert square.relative == 1.0
    clique = torch.combinations(torch.arange(5)).T
    assert hyperbolicity(path_lengths(5, clique), n_sample=1, seed=0).delta == 0


def test_a_sample_bounds_delta_from_below_and_says_so():
    big = path_lengths(100, ring(100))
    found = hyperbolicity(big, n_sample=20_000, seed=0)
    assert not found.is_exact and 15 < found.delta <= 25 and found.n_quadruple <= 20_000
    assert found == hyperbolicity(big, n_sample=20_000, seed=0)


def test_path_lengths_components_and_refusals():
    edges = torch.tensor([[0, 1, 3], [1, 2, 4]])
    distance = path_lengths(5, edges)
    assert distance[0, 2] == 2 and torch.isinf(distance[0, 3])
    assert largest_component(distance).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="largest component"):
        hyperbolicity(distance, n_sample=10, seed=0)
    with pytest.raises(DataError, match="4 points"):
        hyperbolicity(distance[:3, :3], n_sample=10, seed=0)


def test_distortion_is_free_of_scale_and_its_scale_is_the_best():
    distance = path_lengths(13, regular_tree(3, 2))
    assert average_distortion(distance, 7.3 * distance) == pytest.approx(0.0, abs=1e-12)
    noise = torch.rand(13, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bent = distance * (1 + 0.5 * (noise + noise.T))
    found = average_distortion(distance, bent)
    assert found == pytest.approx(average_distortion(distance, 0.1 * bent))
    i, j = torch.triu_indices(13, 13, offset=1)
    ratio = bent[i, j] / distance[i, j]
    tried = [float((s * ratio - 1).abs().mean()) for s in torch.linspace(0.4, 1.2, 400)]
    assert found <= min(tried) + 1e-9 and found == pytest.approx(min(tried), abs=1e-3)


def test_mean_average_precision():
    distance = path_lengths(7, regular_tree(2, 2))
    assert mean_average_precision(distance, distance) == 1.0
    # node 0 of the path 0 - 1 - 2: the neighbour 1 is farther than 2
    path = path_lengths(3, torch.tensor([[0, 1], [1, 2]]))
    wrong = torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    assert mean_average_precision(path, wrong) == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    with pytest.raises(DataError, match="neighbour"):
        mean_average_precision(torch.full((3, 3), 5.0), wrong)


def test_a_tree_has_at_most_half_the_distortion_in_the_hyperbolic_plane():
    distance = path_lengths(40, regular_tree(3, 3))
    found = {
        name: embed(distance, name, 2, n_step=250, learning_rate=0.2, seed=0)
        for name in ("lorentz", "euclidean")
    }
    assert found["lorentz"].distortion <= 0.5 * found["euclidean"].distortion
    assert found["lorentz"].precision > 0.95 > found["euclidean"].precision
    assert found["lorentz"].points.shape == (40, 3)


def test_both_charts_embed_alike():
    distance = path_lengths(13, regular_tree(3, 2))
    a, b = (
        embed(distance, name, 2, n_step=150, learning_rate=0.1, seed=1)
        for name in ("lorentz", "poincare")
    )
    assert a.distortion == pytest.approx(b.distortion, abs=0.02)


def test_classical_scaling_finds_flat_coordinates():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = classical_scaling(torch.cdist(x, x), 3)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(x, x))
    assert classical_scaling(torch.cdist(x, x), 12).shape == (9, 12)
