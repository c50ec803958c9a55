"""Labelled circuits, cut for learning, and unlabelled ones for the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Part
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.simulator import LEARN, core_keys, hash_share

ATTRACTOR_NAMES = ("has_cycle", "is_bistable", "n_attractor")


@dataclass(frozen=True)
class GRNSpec:
    """Sizes a model is built from."""

    phenotypes: tuple[str, ...]
    has_attractors: bool

    @property
    def n_phenotype(self) -> int:
        """Number of classes."""
        return len(self.phenotypes)


@dataclass(frozen=True)
class Features:
    """Features of circuits in blocks: genes, pairs, circuits.

    Args:
        node: ``(n_batch, n, n_feature)``.
        pair: ``(n_batch, n, n, n_feature)``.
        graph: ``(n_batch, n_feature)``.
    """

    node: Tensor
    pair: Tensor
    graph: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """The same function on each tensor."""
        return Features(function(self.node), function(self.pair), function(self.graph))

    def cut(self, index: Tensor, n: int) -> Features:
        """Circuits by index, padded to ``n`` genes."""
        return Features(self.node[index, :n], self.pair[index, :n, :n], self.graph[index])


@dataclass(frozen=True)
class GRNBatch:
    """Circuits padded to the same number of genes; absent genes have no edges.

    Args:
        adjacency: ``(n_batch, n, n)`` in {−1, 0, 1}, ``[source, target]``, float.
        n_gene: ``(n_batch,)``; genes from this number on are padding.
        label: Phenotypes, ``(n_batch,)``, or ``None``.
        attractors: Cycle, bistability, number of attractors, ``(n_batch, 3)``, or ``None``.
        features: Features computed beforehand, by block, or ``None``.
        key: What ``features`` were computed with; a model that differs computes its own.
    """

    adjacency: Tensor
    n_gene: Tensor
    label: Tensor | None = None
    attractors: Tensor | None = None
    features: Mapping[str, Features] | None = None
    key: str = ""

    @property
    def is_gene(self) -> Tensor:
        """``(n_batch, n)`` bool."""
        place = torch.arange(self.adjacency.shape[-1], device=self.n_gene.device)
        return place < self.n_gene[:, None]

    def __len__(self) -> int:
        return self.adjacency.shape[0]

    def part(self, first: int, last: int) -> GRNBatch:
        """Circuits ``first`` to ``last − 1``."""
        index = slice(first, last)
        return GRNBatch(
            self.adjacency[index],
            self.n_gene[index],
            None if self.label is None else self.label[index],
            None if self.attractors is None else self.attractors[index],
            None
            if self.features is None
            else {k: v.map(lambda t: t[index]) for k, v in self.features.items()},
            self.key,
        )


def circuit_batch(circuits: list[SignedCircuit], dtype: torch.dtype = torch.float32) -> GRNBatch:
    """Circuits of any sizes as one batch, for use outside a run.

    Raises:
        DataError: no circuit.
    """
    if not circuits:
        raise DataError("a batch needs at least one circuit")
    n = max(circuit.n_gene for circuit in circuits)
    adjacency = torch.zeros(len(circuits), n, n, dtype=dtype)
    for at, circuit in enumerate(circuits):
        m = circuit.n_gene
        adjacency[at, :m, :m] = torch.from_numpy(circuit.adjacency.copy()).to(dtype)
    return GRNBatch(adjacency, torch.tensor([circuit.n_gene for circuit in circuits]))


def pyg_batch(graphs: Any, dtype: torch.dtype = torch.float32) -> GRNBatch:
    """Circuits from a ``torch_geometric`` ``Data`` or ``Batch``.

    Args:
        graphs: With ``edge_index`` (source, target), ``edge_sign`` (+1 or −1) and ``num_nodes``.
        dtype: Float type of the batch.

    Raises:
        DataError: no signs, other signs, or an edge that occurs twice.
    """
    sign = getattr(graphs, "edge_sign", None)
    if sign is None or not bool(((sign == 1) | (sign == -1)).all()):
        raise DataError("a PyG graph needs edge_sign of +1 (activates) or -1 (inhibits)")
    edge = graphs.edge_index
    if torch.unique(edge, dim=1).shape[1] != edge.shape[1]:
        raise DataError("an edge occurs twice in the PyG graph: keep one, with one sign")
    which = getattr(graphs, "batch", None)
    if which is None:
        which = torch.zeros(graphs.num_nodes, dtype=torch.long)
    n_gene = torch.bincount(which)
    n = int(n_gene.max())
    first = n_gene.cumsum(0) - n_gene
    place = torch.arange(len(which)) - first[which]
    adjacency = torch.zeros(len(n_gene), n, n, dtype=dtype)
    adjacency[which[edge[0]], place[edge[0]], place[edge[1]]] = sign.to(dtype)
    return GRNBatch(adjacency, n_gene)


class GRNData:
    """Circuits to learn from, and test circuits without their phenotype.

    Validation circuits are chosen by a hash of their canonical form, so that no isomorphic copy
    straddles training and validation either.

    Args:
        recording: Circuits and assayed phenotypes.
        given: Attractor facts where they are told.
        validation_fraction: Share of the isomorphism classes kept for the validation loss.
    """

    def __init__(
        self, recording: Recording, given: Mapping[str, Tensor], *, validation_fraction: Part
    ) -> None:
        for name in ("adjacency", "n_gene", "use"):
            if name not in recording.graph:
                raise DataError(f"the recording holds no '{name}': it is no population of circuits")
        use = recording.graph["use"]
        assay = recording.state[:, 0]
        is_learn = use == LEARN
        if not bool(((assay == 1).sum(-1) == 1)[is_learn].all()):
            raise DataError("every circuit to learn from needs exactly one assayed phenotype")
        self.spec = GRNSpec(recording.names, all(name in given for name in ATTRACTOR_NAMES))
        self.adjacency = recording.graph["adjacency"]
        self.n_gene = recording.graph["n_gene"]
        self.label = assay.argmax(-1)
        self.attractors: Tensor | None = None
        if self.spec.has_attractors:
            self.attractors = torch.stack([given[name] for name in ATTRACTOR_NAMES], -1)
        learn = is_learn.nonzero()[:, 0]
        n_own = int(self.n_gene[learn].max())
        keys = core_keys(self.adjacency[learn, :n_own, :n_own].numpy())
        is_held = torch.tensor([hash_share(k, 0, "validation") < validation_fraction for k in keys])
        self.train = learn[~is_held]
        self.held = learn[is_held]
        if self.train.numel() == 0:
            raise DataError("no circuit is left to learn from: lower validation_fraction")
        self.use = use
        self.dtype = torch.float64
        self.features: dict[str, Features] = {}
        self.features_row = torch.full((len(use),), -1, dtype=torch.long)
        self.key = ""
        self.n_test_max: int | None = None

    def starts(self, horizon: int) -> Tensor:
        """Indices of the training circuits; they have no future, whatever the horizon."""
        return torch.arange(self.train.numel())

    def batch(self, index: Tensor, horizon: int = 1) -> GRNBatch:
        """Training circuits by index."""
        return self._take(self.train[index.to(self.train.device)], is_told=True)

    def validation(self) -> GRNBatch | None:
        """Validation circuits, or ``None``."""
        return self._take(self.held, is_told=True) if self.held.numel() else None

    def test_index(self, n_gene: int) -> Tensor:
        """Circuits of one size to be judged by, ``(n_test,)``; see ``use`` for natural ones."""
        index = ((self.use != LEARN) & (self.n_gene == n_gene)).nonzero()[:, 0]
        n = index.numel()
        if self.n_test_max is None or n <= self.n_test_max:
            return index
        return index[torch.linspace(0, n - 1, self.n_test_max).round().long()]

    def test_batches(self, n_gene: int, batch_size: int) -> Iterator[GRNBatch]:
        """Test circuits of one size, without labels, in the order of :meth:`test_index`."""
        for part in self.test_index(n_gene).split(batch_size):
            yield self._take(part, is_told=False)

    def up_to(self, n_gene: int) -> GRNData:
        """The same data with training circuits of at most so many genes."""
        copy = self._copy()
        copy.train = self.train[self.n_gene[self.train] <= n_gene]
        if copy.train.numel() == 0:
            raise DataError(f"no training circuit has {n_gene} genes or fewer")
        return copy

    def thinned(self, n_circuit: int) -> GRNData:
        """The same data with at most so many training circuits, and tests of each size, evenly
        spread; for runs that only show that they run.
        """
        n = self.train.numel()
        if n_circuit >= n:
            return self
        copy = self._copy()
        copy.train = self.train[torch.linspace(0, n - 1, n_circuit).round().long()]
        copy.n_test_max = n_circuit
        return copy

    def without_validation(self) -> GRNData:
        """The same data without validation circuits, where a loss is not about circuits given."""
        copy = self._copy()
        copy.held = self.held[:0]
        return copy

    def described(
        self, describe: Callable[[Tensor, Tensor], Mapping[str, Features]], key: str
    ) -> GRNData:
        """The same data with features computed once, for training and validation circuits.

        Args:
            describe: From adjacency and numbers of genes to features by block.
            key: What they are computed with, e.g. the temperature.
        """
        copy = self._copy()
        index = torch.cat([self.train, self.held]).sort().values
        n = int(self.n_gene[index].max())
        parts: list[Mapping[str, Features]] = []
        with torch.no_grad():
            for part in index.split(4096):
                adjacency = self.adjacency[part, :n, :n].to(self.dtype)
                parts.append(describe(adjacency, self.n_gene[part]))
        copy.features = {
            name: Features(
                *(
                    torch.cat([getattr(part[name], kind) for part in parts])
                    for kind in ("node", "pair", "graph")
                )
            )
            for name in parts[0]
        }
        copy.features_row = torch.full_like(self.features_row, -1)
        copy.features_row[index] = torch.arange(index.numel(), device=index.device)
        copy.key = key
        return copy

    def to(self, device: torch.device | str) -> GRNData:
        """A copy on a device."""
        copy = self._copy()
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(copy, name, value.to(device=device))
        copy.features = {k: v.map(lambda t: t.to(device)) for k, v in self.features.items()}
        return copy

    def astype(self, dtype: torch.dtype) -> GRNData:
        """A copy whose batches come in another float type."""
        copy = self._copy()
        copy.dtype = dtype
        copy.spec = replace(self.spec)
        return copy

    def _copy(self) -> GRNData:
        copy = object.__new__(GRNData)
        copy.__dict__.update(self.__dict__)
        return copy

    def _take(self, index: Tensor, *, is_told: bool) -> GRNBatch:
        n_gene = self.n_gene[index]
        n = int(n_gene.max())
        features = None
        if self.features:
            row = self.features_row[index]
            if bool((row >= 0).all()):
                features = {name: block.cut(row, n) for name, block in self.features.items()}
        attractors = self.attractors
        return GRNBatch(
            self.adjacency[index, :n, :n].to(self.dtype),
            n_gene,
            self.label[index] if is_told else None,
            attractors[index].to(self.dtype) if is_told and attractors is not None else None,
            features,
            self.key if features is not None else "",
        )
