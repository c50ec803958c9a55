"""Graphs over genes: STRING, TRRUST, correlation, or the simulator's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, nearest

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

    def in_order(self) -> GeneGraph:
        """The same graph, edges sorted by source and target."""
        order = (self.edge_index[0] * self.n_node + self.edge_index[1]).argsort(stable=True)
        return replace(
            self,
            edge_index=self.edge_index[:, order],
            weight=self.weight[order],
            sign=None if self.sign is None else self.sign[order],
        )

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


def make_graph(
    source: GraphSource,
    nodes: Sequence[str],
    given: Mapping[str, Tensor],
    *,
    measured: Sequence[str],
    control: Tensor,
    path: str | None,
    names_path: str | None,
    threshold: float | None,
    n_bridge: int,
) -> GeneGraph:
    """The gene graph of a data set, from any source.

    Args:
        source: Where the edges come from.
        nodes: Genes of the graph; bridges may follow them.
        given: What a simulator reveals.
        measured: Genes of the recording, columns of ``control``; nodes or not.
        control: Log-normalised expression of control cells for training, ``(n_cell, n_gene)``.
        path: File of the edges (``string``, ``trrust``).
        names_path: Table from STRING identifiers to symbols.
        threshold: Least combined score, or least absolute correlation.
        n_bridge: Genes that may join to link nodes (``string``, ``trrust``).

    Raises:
        ConfigError: a setting that the source needs is missing.
        DataError: the simulator revealed no graph, or the file cannot be used.
    """
    if source in ("string", "trrust") and path is None:
        raise ConfigError(f"dataset.graph={source} needs its file: set dataset.graph_path")
    if source in ("string", "correlation") and threshold is None:
        raise ConfigError(
            f"dataset.graph={source} needs dataset.graph_threshold "
            + ("(a combined score, 700)" if source == "string" else "(a correlation, 0.2)")
        )
    if source == "trrust":
        return read_trrust(find_data(str(path)), nodes, n_bridge)
    if source == "string":
        assert threshold is not None
        table = None if names_path is None else find_data(names_path)
        return read_string(find_data(str(path)), table, nodes, threshold, n_bridge)
    if source == "correlation":
        assert threshold is not None
        place = {name: i for i, name in enumerate(measured)}
        genes = [name for name in nodes if name in place]
        return correlation_graph(nodes, genes, control[:, [place[g] for g in genes]], threshold)
    if source == "simulator":
        return subgraph(given_graph(measured, given), nodes)
    return identity_graph(nodes)


def subgraph(graph: GeneGraph, names: Sequence[str]) -> GeneGraph:
    """Edges among some of the nodes, in their new order; names without an edge may be new."""
    place = {name: i for i, name in enumerate(names)}
    moved = torch.tensor([place.get(name, -1) for name in graph.names])
    ends = moved[graph.edge_index]
    is_kept = (ends >= 0).all(0)
    return GeneGraph(
        tuple(names),
        ends[:, is_kept],
        graph.weight[is_kept],
        None if graph.sign is None else graph.sign[is_kept],
        graph.is_directed,
        graph.source,
    )


def identity_graph(names: Sequence[str]) -> GeneGraph:
    """No edges: what the document falls back to, only when asked for."""
    empty = torch.zeros(2, 0, dtype=torch.long)
    return GeneGraph(tuple(names), empty, torch.zeros(0), None, False, "identity, no edges")


def given_graph(names: Sequence[str], given: Mapping[str, Tensor]) -> GeneGraph:
    """The graph that a simulator reveals: ``edge_index``, ``edge_weight``, ``edge_sign``.

    Raises:
        DataError: it revealed none, or one that does not fit the measured genes.
    """
    if "edge_index" not in given:
        raise DataError(
            "dataset.graph=simulator needs a simulator that reveals its graph: set "
            "prior.graph=true, or take another graph (trrust, string, correlation)"
        )
    index, weight, sign = (given[f"edge_{key}"] for key in ("index", "weight", "sign"))
    if index.ndim != 2 or index.shape[0] != 2:
        raise DataError(
            f"the simulator's edge_index must be (2, n_edge), got {tuple(index.shape)}: give "
            "source and target of each edge, not an adjacency matrix"
        )
    if {tuple(weight.shape), tuple(sign.shape)} != {(index.shape[1],)}:
        raise DataError(
            f"the simulator's graph has {index.shape[1]} edges, but edge_weight "
            f"{tuple(weight.shape)} and edge_sign {tuple(sign.shape)}: give one number an edge"
        )
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(names):
        raise DataError(
            f"the simulator's graph has nodes {int(index.min())} to {int(index.max())}, but "
            f"{len(names)} genes are measured: nodes are their columns, 0 to {len(names) - 1}"
        )
    return GeneGraph(tuple(names), index, weight.float(), sign.float(), True, "the simulator's own")


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
    centred = expression - expression.mean(0)
    scale = centred.norm(dim=0)
    unit = torch.where(scale > 0, centred / scale.clamp_min(1e-30), torch.zeros_like(centred))
    pairs, values = [], []
    for first in range(0, unit.shape[1], 1024):  # all pairs at once would be genes² numbers
        r = unit[:, first : first + 1024].T @ unit[:, first:]
        found = (r.abs() >= threshold).triu(1).nonzero()
        pairs.append(found + first)
        values.append(r[found[:, 0], found[:, 1]])
    pair, value = torch.cat(pairs), torch.cat(values).float()
    place = {name: i for i, name in enumerate(names)}
    node = torch.tensor([place[gene] for gene in genes], dtype=torch.long)
    ends = node[pair].T
    return GeneGraph(
        tuple(names),
        torch.stack([ends.min(0).values, ends.max(0).values]),
        value.abs().clamp_max(1.0),
        value.sign(),
        False,
        f"correlation over control cells, |r| ≥ {threshold:g}",
    )


def read_trrust(path: Path, names: Sequence[str], n_bridge: int) -> GeneGraph:
    """Edges of a TRRUST file among the nodes.

    Args:
        path: Tab-separated: transcription factor, target, ``Activation`` / ``Repression`` /
            ``Unknown``, references; no header.
        names: Nodes.
        n_bridge: Genes outside ``names`` that may join, see :func:`among`.

    Returns:
        Directed graph; an edge listed as both activation and repression has sign 0.

    Raises:
        DataError: not a TRRUST file, or no edge among the nodes.
    """
    import pandas as pd

    kinds = {"Activation": 1.0, "Repression": -1.0, "Unknown": 0.0}
    try:
        table = pd.read_csv(path, sep="\t", header=None, dtype=str, comment="#")
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as a TRRUST table: {error}") from error
    if table.shape[1] < 3 or not bool(table[2].isin(kinds).all()):
        raise DataError(
            f"{path} is no TRRUST file: expected tab-separated factor, target and "
            "Activation, Repression or Unknown in the first three columns"
        )
    total: dict[tuple[str, str], float] = {}
    for factor, target, kind in zip(table[0], table[1], table[2], strict=True):
        if factor != target:
            total[factor, target] = total.get((factor, target), 0.0) + kinds[kind]
    vocabulary = sorted({name for pair in total for name in pair})
    place = {name: i for i, name in enumerate(vocabulary)}
    ends = torch.tensor([(place[a], place[b]) for a, b in total], dtype=torch.long).T
    sign = torch.tensor(list(total.values())).sign()
    nodes, index, is_kept = among(names, vocabulary, ends, n_bridge)
    if index.shape[1] == 0:
        raise _no_edge(path, names)
    return GeneGraph(
        nodes, index, torch.ones(index.shape[1]), sign[is_kept], True, path.name
    ).in_order()


STRING_IDS = ("protein_id", "protein_external_id", "#string_protein_id", "string_protein_id")
STRING_NAMES = ("gene_symbol", "preferred_name", "preferred_gene_name")
STRING_COLUMNS = ("protein1", "protein2", "combined_score")


def read_string(
    links_path: Path,
    names_path: Path | None,
    names: Sequence[str],
    threshold: float,
    n_bridge: int,
) -> GeneGraph:
    """Edges of a STRING links file among the nodes.

    STRING lists every pair in both directions; each pair is kept once with its largest score, so
    that 900 is 0.9 (added up it would be 1.8). The file is streamed, and low scores are dropped on
    the way: a proteome of 13 million rows is read in seconds and little memory.

    Args:
        links_path: Table separated by blanks with ``protein1 protein2 combined_score``, may be
            compressed (``.gz``).
        names_path: Tab-separated table from identifiers to symbols (``9606.protein.info``),
            ``None`` where the links hold symbols.
        names: Nodes.
        threshold: Least combined score, exclusive, 0 to 1000.
        n_bridge: Genes outside ``names`` that may join, see :func:`among`.

    Raises:
        DataError: a column is missing, a score is no number, or no edge among the nodes.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute, csv

    pc: Any = compute  # its functions are made when it is imported: no type checker sees them
    identifiers, symbols = (None, None) if names_path is None else _string_names(names_path)
    vocabulary: list[str] = []
    value_set = None
    if identifiers is not None:
        assert symbols is not None
        vocabulary = sorted(set(symbols))
        place = {name: i for i, name in enumerate(vocabulary)}
        code = np.array([place[symbol] for symbol in symbols])
        value_set = pa.array(identifiers)
    elif n_bridge == 0:
        vocabulary, code = list(names), np.arange(len(names))
        value_set = pa.array(vocabulary)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    loose: list[pa.Table] = []
    try:
        reader = csv.open_csv(
            str(links_path),
            read_options=csv.ReadOptions(block_size=1 << 24, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=" "),
            convert_options=csv.ConvertOptions(
                include_columns=list(STRING_COLUMNS),
                column_types={
                    "protein1": pa.string(),
                    "protein2": pa.string(),
                    "combined_score": pa.float64(),
                },
            ),
        )
        for batch in reader:
            high = batch.filter(pc.greater(batch["combined_score"], threshold))
            if value_set is None:
                loose.append(pa.Table.from_batches([high]))
                continue
            ends = [pc.index_in(high[c], value_set=value_set) for c in STRING_COLUMNS[:2]]
            known = pc.and_(pc.is_valid(ends[0]), pc.is_valid(ends[1]))
            first, second = (code[e.filter(known).to_numpy(zero_copy_only=False)] for e in ends)
            found.append((first, second, high["combined_score"].filter(known).to_numpy()))
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(
            f"{links_path} is no STRING links file: expected columns "
            f"{' '.join(STRING_COLUMNS)} separated by blanks ({error})"
        ) from error
    if loose:
        table = pa.concat_tables(loose)
        both = pc.unique(pa.chunked_array(table["protein1"].chunks + table["protein2"].chunks))
        vocabulary = both.to_pylist()
        ends = [
            np.asarray(pc.index_in(table[c], value_set=both).combine_chunks())
            for c in STRING_COLUMNS[:2]
        ]
        found.append((ends[0], ends[1], table["combined_score"].to_numpy()))
    first, second, score = (
        torch.from_numpy(np.concatenate([part[i] for part in found]).copy())
        if found
        else torch.zeros(0, dtype=torch.long)
        for i in range(3)
    )
    low, high_end = torch.minimum(first, second).long(), torch.maximum(first, second).long()
    ends, weight = largest_of_each(low, high_end, score.float() / 1000, max(len(vocabulary), 1))
    nodes, index, is_kept = among(names, vocabulary, ends, n_bridge)
    if index.shape[1] == 0:
        raise _no_edge(links_path, names)
    pair = torch.stack([index.min(0).values, index.max(0).values])
    source = f"{links_path.name}, score > {threshold:g}"
    return GeneGraph(nodes, pair, weight[is_kept], None, False, source).in_order()


def _string_names(path: Path) -> tuple[list[str], list[str]]:
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype=str, quoting=3)
    columns = [str(c) for c in table.columns]
    identifier = next((c for c in STRING_IDS if c in columns), None)
    symbol = next((c for c in STRING_NAMES if c in columns), None)
    if identifier is None or symbol is None:
        raise DataError(
            f"{path} must have an identifier column ({', '.join(STRING_IDS)}) and a symbol column "
            f"({', '.join(STRING_NAMES)}), separated by tabs; it has {', '.join(columns)}"
        )
    both = cast("pd.DataFrame", table[[identifier, symbol]])
    table = both.dropna().drop_duplicates(identifier)
    return table[identifier].tolist(), table[symbol].tolist()


def among(
    names: Sequence[str], vocabulary: Sequence[str], ends: Tensor, n_bridge: int
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Edges of a large graph among the nodes, and over genes that bridge them.

    Args:
        names: Nodes.
        vocabulary: Genes of the large graph.
        ends: ``(2, n)`` long, edges by place in the vocabulary.
        n_bridge: Largest number of genes outside ``names`` that join: those with an edge to two
            nodes or more, the best connected first. They are neither measured nor perturbed, but
            information passes through them.

    Returns:
        All nodes, ``names`` first; ``(2, n_kept)`` edges by node; which edges were kept.
    """
    place = {name: i for i, name in enumerate(names)}
    nodes = list(names)
    node = torch.tensor([place.get(name, -1) for name in vocabulary], dtype=torch.long)
    if n_bridge > 0 and ends.shape[1]:
        is_in = node[ends] >= 0
        # edges with one end inside, as (outer, inner), each pair once
        outer = torch.cat([ends[0][~is_in[0] & is_in[1]], ends[1][is_in[0] & ~is_in[1]]])
        inner = torch.cat([ends[1][~is_in[0] & is_in[1]], ends[0][is_in[0] & ~is_in[1]]])
        pairs = torch.stack([outer, inner]).unique(dim=1)
        reach = torch.bincount(pairs[0], minlength=len(vocabulary))
        ranked: list[int] = sorted(
            (reach >= 2).nonzero()[:, 0].tolist(),
            key=lambda i: (-int(reach[i]), vocabulary[i]),
        )[:n_bridge]
        for i in ranked:
            node[i] = len(nodes)
            nodes.append(vocabulary[i])
    index = node[ends] if ends.shape[1] else ends
    is_kept = (index >= 0).all(0) & (index < len(names)).any(0)
    return tuple(nodes), index[:, is_kept], is_kept


def _no_edge(path: Path, names: Sequence[str]) -> DataError:
    return DataError(
        f"{path} holds no edge among the {len(names)} genes of this screen "
        f"({', '.join(names[:5])} …): are both in the same kind of names (symbols)? "
        "dataset.graph=identity goes on without a graph"
    )
