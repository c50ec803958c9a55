"""Message passing between two kinds of nodes, fused over a CSR adjacency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from neuralgraph.numerics.incidence import Incidence


class BipartitePropagation(MessagePassing):
    r"""Weighted sums over the edges of a bipartite graph: $y_i = \sum_{e: j \to i} w_e x_j$.

    Two paths give the same values and gradients. ``fused=True`` multiplies by the adjacency
    (message and aggregate at once, no per-edge tensor); ``fused=False`` is plain PyG message
    passing over an edge list, for reading and for comparison. Features are ``(n_node, n_batch)``:
    nodes first, frames last.

    Args:
        fused: Which path :meth:`sum_messages` takes.

    Source:
        own; Fey & Lenssen (2019), message passing with sparse adjacency.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__(aggr="sum", node_dim=0)
        self.fused = bool(fused)

    def sum_messages(self, graph: Incidence, x: Tensor, weight: Tensor | None) -> Tensor:
        """Sum of messages at each target.

        Args:
            graph: Edges, targets as rows and sources as columns.
            x: Source features, ``(n_source, n_batch)``.
            weight: ``(n_edge,)`` or ``None`` for ones.

        Returns:
            ``(n_target, n_batch)``.
        """
        if self.fused:
            # propagate(adjacency) would end in this same call, after dispatching by name
            return self.message_and_aggregate(graph, x, weight)
        return self.propagate(
            graph.edge_index, x=(x, None), weight=weight, size=(graph.n_col, graph.n_row)
        )

    def message(self, x_j: Tensor, weight: Tensor | None) -> Tensor:
        """Message of one edge: the source's value times the edge's weight."""
        return x_j if weight is None else weight.unsqueeze(1) * x_j

    def message_and_aggregate(
        self, edge_index: Any, x: Any, weight: Tensor | None = None
    ) -> Tensor:
        """Both steps at once, as a sparse matrix product.

        Args:
            edge_index: An :class:`Incidence`, or a sparse adjacency ``(n_target, n_source)`` (what
                ``propagate`` hands on), whose own values are the weights.
            x: Source features, ``(n_source, n_batch)``, or PyG's pair (source, target).
            weight: ``(n_edge,)``, or ``None``.
        """
        source = x[0] if isinstance(x, tuple) else x
        if isinstance(edge_index, Incidence):
            return edge_index(weight, source)
        assert isinstance(edge_index, torch.Tensor)
        return edge_index @ source
