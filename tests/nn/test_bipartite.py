"""BipartitePropagation: the fused path is message passing."""

from __future__ import annotations

import torch

from neuralgraph.nn.bipartite import BipartitePropagation
from neuralgraph.numerics.incidence import Incidence


def graph() -> Incidence:
    flat = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:17]
    return Incidence(flat // 8, flat % 8, 5, 8)


def test_fused_and_edge_list_paths_agree_with_gradients() -> None:
    edges = graph()
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    for weight in (torch.randn(17, dtype=torch.float64, requires_grad=True), None):
        leaves = [x] if weight is None else [x, weight]
        out = []
        for fused in (True, False):
            y = BipartitePropagation(fused=fused).sum_messages(edges, x, weight)
            out.append((y, *torch.autograd.grad(y.pow(3).sum(), leaves)))
        for a, b in zip(*out, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_propagate_takes_a_sparse_adjacency() -> None:
    edges = graph()
    layer = BipartitePropagation(fused=True)
    weight, x = torch.randn(17), torch.randn(8, 3)
    adjacency = edges.matrix("csr", weight, x)
    y = layer.propagate(adjacency, x=(x, None), weight=None, size=None)
    torch.testing.assert_close(y, layer.sum_messages(edges, x, weight))
