"""Sparse products with a fixed pattern: values, gradients, caching."""

from __future__ import annotations

import copy

import pytest
import torch

from neuralgraph.core.errors import DataError
from neuralgraph.numerics import incidence
from neuralgraph.numerics.incidence import GroupSum, Incidence
from neuralgraph.numerics.interpolation import cubic_interpolate

SHAPE = (7, 11)


def pattern(n_edge: int = 30) -> Incidence:
    g = torch.Generator().manual_seed(0)
    flat = torch.randperm(SHAPE[0] * SHAPE[1], generator=g)[:n_edge]
    return Incidence(flat // SHAPE[1], flat % SHAPE[1], *SHAPE)


@pytest.fixture(params=["dense", "sparse"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sparse":
        monkeypatch.setattr(incidence, "DENSE_LIMIT", -1)
    return request.param


def test_product_equals_gather_and_index_add(path: str) -> None:
    graph = pattern()
    value = torch.randn(30, dtype=torch.float64, requires_grad=True)
    x = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    results = []
    for product in (graph, graph.reference):
        y = product(value, x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (value, x))))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_ones_when_no_values(path: str) -> None:
    graph = pattern()
    x = torch.randn(11, 3)
    torch.testing.assert_close(graph(None, x), graph.reference(None, x))


def test_gradcheck(path: str) -> None:
    graph = pattern()
    value = torch.randn(30, dtype=torch.float64, requires_grad=True)
    x = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(graph, (value, x))
    assert torch.autograd.gradcheck(lambda x: graph(None, x), (x,))


def test_kept_matrix_follows_changes_of_fixed_values(path: str) -> None:
    graph = pattern()
    value, x = torch.randn(30), torch.randn(11, 2)
    first = graph(value, x)
    torch.testing.assert_close(graph(value, x), first)
    value.mul_(2)
    torch.testing.assert_close(graph(value, x), 2 * first)
    parameter = torch.nn.Parameter(value.clone(), requires_grad=False)
    graph(parameter, x)
    parameter.data.mul_(3)  # unseen by the version counter
    torch.testing.assert_close(graph(parameter, x), 6 * first)


def test_copies_leave_kept_matrices_behind() -> None:
    graph = pattern()
    graph(torch.randn(30), torch.randn(11, 2))
    assert copy.deepcopy(graph)._kept == {}


def test_follows_the_floating_type(path: str) -> None:
    graph = pattern()
    for dtype in (torch.float32, torch.float64):
        assert graph(None, torch.randn(11, 2, dtype=dtype)).dtype == dtype


def test_edge_outside_is_refused() -> None:
    with pytest.raises(DataError, match="exchanged"):
        Incidence(torch.tensor([0]), torch.tensor([7]), 11, 7)


def test_empty_rows_are_zero(path: str) -> None:
    graph = Incidence(torch.tensor([1]), torch.tensor([0]), 3, 2)
    y = graph(torch.tensor([2.0]), torch.tensor([[1.0], [5.0]]))
    assert y.flatten().tolist() == [0.0, 2.0, 0.0]


def test_cubic_interpolation_is_exact_for_cubics() -> None:
    node = torch.arange(8, dtype=torch.float64)
    table = node**3 - 2 * node**2 + 3
    t = torch.rand(5, dtype=torch.float64)
    start = torch.tensor([0, 1, 2, 3, 4])
    x = start + 1 + t
    expected = x**3 - 2 * x**2 + 3
    torch.testing.assert_close(cubic_interpolate(table, start, t), expected)


def test_cubic_interpolation_error_is_of_order_four() -> None:
    error = []
    for n in (40, 80):
        node = torch.linspace(0, 3, n, dtype=torch.float64)
        x = torch.linspace(0.5, 2.5, 301, dtype=torch.float64)
        place = x / node[1]
        cell = place.floor()
        value = cubic_interpolate(node.sin(), cell.long() - 1, place - cell)
        error.append(float((value - x.sin()).abs().max()))
    assert 12 < error[0] / error[1] < 22


def test_cubic_interpolation_gradients() -> None:
    table = torch.randn(9, dtype=torch.float64, requires_grad=True)
    t = torch.rand(6, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([0, 5, 2, 2, 3, 0])
    assert torch.autograd.gradcheck(lambda a, b: cubic_interpolate(a, start, b), (table, t))


def test_group_sum_equals_index_add_with_gradients() -> None:
    index = torch.tensor([4, 0, 0, 2, 4, 4, 1])  # groups 3 and 5 are empty
    groups = GroupSum(index, 6)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    expected = x.new_zeros(6, 3).index_add(0, index, x)
    result = groups.in_given_order(groups(x[groups.order]))
    torch.testing.assert_close(result, expected)
    weight = torch.randn(6, 3, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (result, expected))
    torch.testing.assert_close(ours, theirs)
    assert groups.counts == [4, 2, 1]
