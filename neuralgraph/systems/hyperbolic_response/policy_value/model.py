"""The models of document 003, on whichever manifold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Part, Positive
from neuralgraph.nn.hyperbolic import (
    HyperbolicDense,
    HyperbolicGraphConv,
    ManifoldEmbedding,
    ManifoldName,
    geometry,
    glorot,
)
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import PolicyValueSpec


@dataclass(frozen=True)
class PolicyValue:
    """What the heads say; B cell types, G genes, P perturbations.

    Args:
        logits: Of the policy, ``(B, G, P)``.
        value: Sensitivity of each gene, ``(B, G)``.
        signed: Mean log fold change, ``(B, P, G)``, or ``None`` without that head.
    """

    logits: Tensor
    value: Tensor
    signed: Tensor | None

    def policy(self, is_open: Tensor) -> Tensor:
        """Distribution of each gene over the open perturbations, ``(B, G, P)``.

        Args:
            is_open: ``(B, P)`` bool.
        """
        return self.logits.masked_fill(~is_open[:, None, :], -torch.inf).softmax(-1)


class HyperPerturbModel(nn.Module):
    """Encoder of two graph convolutions; heads for policy, value and direction.

    Node features are a learnable point of the manifold for each gene, joined in the tangent space
    with mean, spread and detection rate of its control cells (of the cell type asked for): their
    rank does not collapse, while the document's one mean of scaled expression is 0 up to rounding.
    Encoder: convolution, LayerNorm, dropout, convolution, dropout. Policy: convolution, then one
    logit for each perturbation; value: convolution, then one number. LayerNorm, dropout and
    nonlinearities act in the tangent space at the origin.

    Args:
        spec: Graph, features and sizes.
        manifold: ``poincare``, ``lorentz`` or ``euclidean``; equal numbers of parameters.
        curvature: Of the space at the start.
        learnable_curvature: Whether it is learned.
        n_embedding: Dimension of the learnable points.
        n_hidden: Dimension after the first convolution (the document: 512).
        n_encoded: Dimension after the second (256).
        n_head: Dimension of the convolutions of the heads (128).
        dropout: Share of tangent coordinates left out in training.
        skip: Whether the last linear map of each head sees a gene's own features too, past four
            rounds of averaging over neighbours (the document: false).
        signed: Whether there is a head for the direction of effects.
        generator: Source of the initial weights.

    Source:
        Document 003, section 3.1; the signed head and cell types are its section 5.3.
    """

    def __init__(
        self,
        spec: PolicyValueSpec,
        *,
        manifold: ManifoldName,
        curvature: Positive,
        learnable_curvature: bool,
        n_embedding: Count,
        n_hidden: Count,
        n_encoded: Count,
        n_head: Count,
        dropout: Part,
        skip: bool,
        signed: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.space = geometry(manifold, curvature=curvature, learnable=learnable_curvature)
        space = self.space
        for name in ("node_features", "edge_index", "edge_weight", "gene_node"):
            self.register_buffer(name, getattr(spec, name), persistent=False)
        self.table = ManifoldEmbedding(space, spec.n_node, n_embedding, generator=generator)
        n_in = n_embedding + spec.node_features.shape[-1]
        self.encode_1 = HyperbolicGraphConv(space, n_in, n_hidden, generator=generator)
        self.norm = nn.LayerNorm(n_hidden)
        self.encode_2 = HyperbolicGraphConv(space, n_hidden, n_encoded, generator=generator)
        self.policy_conv = HyperbolicGraphConv(space, n_encoded, n_head, generator=generator)
        n_last = n_head + n_in if skip else n_head
        self.skip = skip
        self.policy_out = _linear(n_last, spec.n_perturbation, generator)
        self.value_conv = HyperbolicGraphConv(space, n_encoded, n_head, generator=generator)
        self.value_out = _linear(n_last, 1, generator)
        self.signed_out = _linear(n_last, spec.n_perturbation, generator) if signed else None
        self.dropout = nn.Dropout(dropout)

    def features(self, context: Tensor) -> Tensor:
        """Tangent vectors at the nodes, ``(B, N, n_in)``."""
        own = self.space.logmap0(self.table())
        seen = self.get_buffer("node_features")[context]
        return torch.cat([own.to(seen.dtype).expand(len(context), -1, -1), seen], -1)

    def encode(self, context: Tensor) -> Tensor:
        """Points of the genes after the encoder, ``(B, N, coordinates(n_encoded))``."""
        index, weight = self.get_buffer("edge_index"), self.get_buffer("edge_weight")
        x = self.encode_1(self.space.expmap0(self.features(context)), index, weight)
        u = self.dropout(torch.relu(self.norm(self.space.logmap0(x))))
        x = self.encode_2(self.space.expmap0(u), index, weight)
        u = self.dropout(torch.relu(self.space.logmap0(x)))
        return self.space.expmap0(u)

    def forward(self, context: Tensor) -> PolicyValue:
        """Heads for each cell type, ``(B,)`` long."""
        index, weight = self.get_buffer("edge_index"), self.get_buffer("edge_weight")
        genes = self.get_buffer("gene_node")
        x = self.encode(context)
        policy = torch.relu(self.space.logmap0(self.policy_conv(x, index, weight)))
        value = torch.relu(self.space.logmap0(self.value_conv(x, index, weight)))
        if self.skip:
            own = self.features(context)
            policy, value = (torch.cat([head, own], -1) for head in (policy, value))
        policy, value = policy[:, genes], value[:, genes]
        signed = None
        if self.signed_out is not None:
            signed = self.signed_out(policy).transpose(1, 2)
        return PolicyValue(self.policy_out(policy), self.value_out(value)[..., 0], signed)


class HyperbolicPerturbationModel(nn.Module):
    r"""Perturbations as points, their response by dense layers: the document's simple model.

    A perturbation of several genes is the point $\exp_0(\sum_g m_g \log_0 e_g)$ of their points.
    Each response is a linear map of the tangent vector that two dense layers make of it.

    Args:
        n_target: Genes that can be perturbed.
        n_gene: Response genes.
        manifold: Of the points.
        curvature: At the start.
        learnable_curvature: Whether it is learned.
        n_embedding: Dimension of the points (the document: 32).
        n_hidden: Dimensions of the two dense layers (64, 32).
        generator: Source of the initial weights.

    Source:
        Document 003, section 3.2.
    """

    def __init__(
        self,
        n_target: Count,
        n_gene: Count,
        *,
        manifold: ManifoldName,
        curvature: Positive,
        learnable_curvature: bool,
        n_embedding: Count,
        n_hidden: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.space = geometry(manifold, curvature=curvature, learnable=learnable_curvature)
        first, second = n_hidden
        self.table = ManifoldEmbedding(self.space, n_target, n_embedding, generator=generator)
        self.dense_1 = HyperbolicDense(
            self.space, n_embedding, first, activation=torch.tanh, generator=generator
        )
        self.dense_2 = HyperbolicDense(
            self.space, first, second, activation=torch.tanh, generator=generator
        )
        self.out = _linear(second, n_gene, generator)

    def forward(self, multi_hot: Tensor) -> Tensor:
        """Mean log fold change of every gene.

        Args:
            multi_hot: Perturbed genes, ``(B, n_target)``.

        Returns:
            ``(B, n_gene)``.
        """
        own = self.space.logmap0(self.table())
        x = self.space.expmap0(multi_hot.to(own.dtype) @ own)
        return self.out(self.space.logmap0(self.dense_2(self.dense_1(x))))


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose start comes from the generator."""
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")  # no global draw
    with torch.no_grad():
        layer.weight.copy_(glorot(n_out, n_in, generator))
        layer.bias.zero_()
    return layer
