"""Graphs over genes: STRING, TRRUST, correlation, or the simulator's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError, nearest

GraphSource: TypeAlias = Literal["string", "trrust", "correlation", "simulator", "identity"]
"""Where the edges of a gene graph come from."""


@dataclass(frozen=True)
class GeneGraph:
    """Edges among genes, each once.

    Args:
        names: Nodes: measured genes and perturbed genes, each once.
        edge_index: ``(2, n_edge)`` long, source and target node. Undirected graphs hold each pair
            once, the smaller node first.
        weight: ``(n_edge,)``, in (0, 1].
        sign: ``(n_edge,)``, +1 activation, -1 repression, 0 unknown; ``None`` without signs.
        is_directed: Whether an edge runs from regulator to target.
        source: Where the edges come from, in words.
    """

    names: tuple[str, ...]
    edge_index: Tensor
    weight: Tensor
    sign: Tensor | None
    is_directed: bool
    source: str

    def __post_init__(self) -> None:
        n_edge = self.edge_index.shape[1]
        assert self.edge_index.shape[0] == 2 and self.weight.shape == (n_edge,)
        assert n_edge == 0 or int(self.edge_index.max()) < len(self.names)

    @property
    def n_node(self) -> int:
        """Number of nodes."""
        return len(self.names)

    @property
    def n_edge(self) -> int:
        """Number of edges, self loops not counted."""
        return self.edge_index.shape[1]

    def index(self, name: str) -> int:
        """Node of a gene.

        Raises:
            DataError: no node has that name; says which are near.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(
                f"the gene graph ({self.source}) does not know '{name}': "
                f"{nearest(name, self.names)}"
            ) from None

    def symmetric(self) -> tuple[Tensor, Tensor]:
        """Both directions of every edge: ``(2, n)`` index and ``(n,)`` weight, the larger weight
        where a pair is there in both directions.
        """
        source, target = self.edge_index
        low, high = torch.minimum(source, target), torch.maximum(source, target)
        index, weight = largest_of_each(low, high, self.weight, self.n_node)
        return torch.cat([index, index.flip(0)], 1), torch.cat([weight, weight])

    def normalised(self) -> tuple[Tensor, Tensor]:
        r"""Symmetric normalisation with self loops.

        $\hat A = D^{-1/2} (A + I) D^{-1/2}$, $D$ the row sums of $A + I$. Every eigenvalue lies
        in $[-1, 1]$, so repeated convolution never grows.

        Returns:
            ``(2, n)`` index with both directions and self loops, and ``(n,)`` weight.

        Source:
            Kipf & Welling (2017), equation 2.
        """
        index, weight = self.symmetric()
        loop = torch.arange(self.n_node)
        index = torch.cat([index, torch.stack([loop, loop])], 1)
        weight = torch.cat([weight, torch.ones(self.n_node, dtype=weight.dtype)])
        degree = torch.zeros(self.n_node, dtype=weight.dtype).index_add(0, index[0], weight)
        return index, weight / (degree[index[0]] * degree[index[1]]).sqrt()

    def adjacency(self) -> Tensor:
        """Normalised adjacency as a dense matrix, ``(n_node, n_node)``."""
        index, weight = self.normalised()
        dense = torch.zeros(self.n_node, self.n_node, dtype=weight.dtype)
        return dense.index_put((index[0], index[1]), weight)

    def degree(self) -> Tensor:
        """Neighbours of each node, ``(n_node,)`` long."""
        index, _ = self.symmetric()
        return torch.bincount(index[0], minlength=self.n_node)

    def isolated(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that have no edge."""
        degree = dict(zip(self.names, self.degree().tolist(), strict=True))
        return [name for name in names if degree.get(name, 0) == 0]


def largest_of_each(
    first: Tensor, second: Tensor, weight: Tensor, n_node: int
) -> tuple[Tensor, Tensor]:
    """Pairs once each, with the largest weight of their repetitions; pairs of equals are dropped.

    >>> index, weight = largest_of_each(
    ...     torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([0.9, 0.7]), 2
    ... )
    >>> index.tolist(), weight.tolist()
    ([[0], [1]], [0.8999...])
    """
    apart = first != second
    first, second, weight = first[apart], second[apart], weight[apart]
    key, place = torch.unique(first * n_node + second, return_inverse=True)
    largest = torch.full(key.shape, -torch.inf, dtype=weight.dtype)
    largest = largest.scatter_reduce(0, place, weight, "amax")
    index = torch.stack([torch.div(key, n_node, rounding_mode="floor"), key % n_node])
    return index, largest


def identity_graph(names: Sequence[str]) -> GeneGraph:
    """No edges: what the document falls back to, only when asked for."""
    empty = torch.zeros(2, 0, dtype=torch.long)
    return GeneGraph(tuple(names), empty, torch.zeros(0), None, False, "identity, no edges")


def given_graph(names: Sequence[str], given: Mapping[str, Tensor]) -> GeneGraph:
    """The graph that a simulator reveals: ``edge_index``, ``edge_weight``, ``edge_sign``.

    Raises:
        DataError: it revealed none.
    """
    if "edge_index" not in given:
        raise DataError(
            "dataset.graph=simulator needs a simulator that reveals its graph: set "
            "prior.graph=true, or take another graph (trrust, string, correlation)"
        )
    return GeneGraph(
        tuple(names),
        given["edge_index"],
        given["edge_weight"].float(),
        given["edge_sign"].float(),
        True,
        "the simulator's own",
    )


def correlation_graph(
    names: Sequence[str], genes: Sequence[str], expression: Tensor, threshold: float
) -> GeneGraph:
    """Genes whose correlation over cells reaches a threshold in absolute value.

    Args:
        names: Nodes.
        genes: Measured genes, each one of ``names``.
        expression: Log-normalised expression of control cells for training,
            ``(n_cell, len(genes))``.
        threshold: Least absolute Pearson correlation.

    Returns:
        Graph with weight ``|r|`` and the sign of r.
    """
    if expression.shape[0] < 10:
        raise DataError(
            f"a correlation graph needs 10 control cells or more, got {expression.shape[0]}: use "
            "dataset.graph=trrust or string"
        )
    centred = expression.double() - expression.double().mean(0)
    scale = centred.norm(dim=0)
    unit = torch.where(scale > 0, centred / scale.clamp_min(1e-300), torch.zeros_like(centred))
    r = unit.T @ unit
    pair = (r.abs() >= threshold).triu(1).nonzero()
    place = {name: i for i, name in enumerate(names)}
    node = torch.tensor([place[gene] for gene in genes], dtype=torch.long)
    value = r[pair[:, 0], pair[:, 1]].float()
    ends = node[pair].T
    return GeneGraph(
        tuple(names),
        torch.stack([ends.min(0).values, ends.max(0).values]),
        value.abs().clamp_max(1.0),
        value.sign(),
        False,
        f"correlation over control cells, |r| ≥ {threshold:g}",
    )


def read_trrust(path: Path, names: Sequence[str]) -> GeneGraph:
    """Edges of a TRRUST file among the nodes.

    Args:
        path: Tab-separated: transcription factor, target, ``Activation`` / ``Repression`` /
            ``Unknown``, references; no header.
        names: Nodes.

    Returns:
        Directed graph; an edge listed as both activation and repression has sign 0.

    Raises:
        DataError: not a TRRUST file, or no edge among the nodes.
    """
    import pandas as pd

    table = pd.read_csv(path, sep="\t", header=None, dtype=str, comment="#")
    kinds = {"Activation": 1.0, "Repression": -1.0, "Unknown": 0.0}
    if table.shape[1] < 3 or not table[2].isin(kinds).all():
        raise DataError(
            f"{path} is no TRRUST file: expected tab-separated factor, target and "
            "Activation, Repression or Unknown in the first three columns"
        )
    place = {name: i for i, name in enumerate(names)}
    table = table[table[0].isin(place) & table[1].isin(place) & (table[0] != table[1])]
    if table.empty:
        raise _no_edge(path, names)
    total: dict[tuple[int, int], float] = {}
    for factor, target, kind in zip(table[0], table[1], table[2], strict=True):
        key = (place[factor], place[target])
        total[key] = total.get(key, 0.0) + kinds[kind]
    edges = sorted(total)
    return GeneGraph(
        tuple(names),
        torch.tensor(edges, dtype=torch.long).T.contiguous(),
        torch.ones(len(edges)),
        torch.tensor([total[key] for key in edges]).sign(),
        True,
        path.name,
    )


def _no_edge(path: Path, names: Sequence[str]) -> DataError:
    return DataError(
        f"{path} holds no edge among the {len(names)} genes of this screen "
        f"({', '.join(names[:5])} …): are both in the same kind of names (symbols)? "
        "dataset.graph=identity goes on without a graph"
    )


def read_string(
    links_path: Path, names_path: Path, names: Sequence[str], threshold: float
) -> GeneGraph:
    """Edges of a STRING links file among the nodes; see the module."""
    raise NotImplementedError
