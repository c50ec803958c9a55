"""Message passing from regulators to genes, for many fields at once."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.nn import MessagePassing


class RegulatorMessages(MessagePassing):
    r"""Input of each gene: $\sum_{j \to i} a_e \tanh(w_e x_j + b_e)$, one a, w, b for each edge.

    Genes are the last axis; every axis before it is a batch (models, conditions).
    """

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=-1)

    def forward(
        self, state: Tensor, edge_index: Tensor, top: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Input of every gene, same shape as the state.

        Args:
            state: ``(n_model, n_condition, n_gene)``.
            edge_index: Regulator and gene of each edge, ``(2, n_edge)``.
            top: a, ``(n_model, 1, n_edge)``.
            weight: w, same shape.
            bias: b, same shape.
        """
        return self.propagate(edge_index, x=state, top=top, weight=weight, bias=bias)

    def message(self, x_j: Tensor, top: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What each edge carries, ``(n_model, n_condition, n_edge)``."""
        return top * (weight * x_j + bias).tanh()
