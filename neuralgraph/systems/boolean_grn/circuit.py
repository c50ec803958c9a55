"""Signed gene circuits: what they are, how they are written, and when two are the same."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError, DataError, nearest

Adjacency: TypeAlias = NDArray[np.int8]
"""``adjacency[source, target]``: +1 activates, −1 inhibits, 0 no edge."""

SIGNS = {
    "activates": 1, "->": 1, "→": 1, "inhibits": -1, "-|": -1, "⊣": -1, "represses": -1,
}  # fmt: skip
"""Words and arrows of the text form."""

N_LEAF_MAX = 200_000


@dataclass(frozen=True, eq=False)
class SignedCircuit:
    """Genes and signed directed edges; at most one edge from a gene to a gene.

    Args:
        adjacency: ``(n_gene, n_gene)`` in {−1, 0, +1}, ``[source, target]``.
        names: One name per gene; names that differ by case only collide.

    Raises:
        DataError: no genes, a matrix of another shape or with other values, colliding names.
    """

    adjacency: Adjacency
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        given = np.asarray(self.adjacency)
        if given.ndim != 2 or given.shape[0] != given.shape[1]:
            raise DataError(f"adjacency must be (n_gene, n_gene), got {given.shape}")
        if given.shape[0] == 0:
            raise DataError("the circuit is empty: give at least one gene")
        check_signs(given)
        object.__setattr__(self, "adjacency", given.astype(np.int8))
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        self.adjacency.flags.writeable = False
        if len(self.names) != self.n_gene:
            raise DataError(f"{self.n_gene} genes need {self.n_gene} names, got {len(self.names)}")
        refuse_collisions(self.names)

    @classmethod
    def from_adjacency(
        cls, adjacency: NDArray[np.integer], names: Sequence[str] | None = None
    ) -> SignedCircuit:
        """A circuit from its matrix; genes are called A, B, C … where no names are given."""
        matrix = np.asarray(adjacency)
        own = tuple(names) if names is not None else gene_names(len(matrix))
        return cls(matrix, own)  # type: ignore[arg-type]  # made int8 in __post_init__

    @classmethod
    def from_edges(
        cls, edges: Iterable[tuple[str, str, int]], genes: Iterable[str] = ()
    ) -> SignedCircuit:
        """A circuit from edges (source, target, sign).

        Args:
            edges: Names of both genes, and +1 or −1.
            genes: Genes that shall be there even without an edge; they come first.

        Raises:
            DataError: an edge with two signs, or a sign that is neither +1 nor −1.
        """
        edges = list(edges)
        names = list(dict.fromkeys([*genes, *(g for s, t, _ in edges for g in (s, t))]))
        place = {name: i for i, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)), dtype=np.int8)
        for source, target, sign in edges:
            if sign not in (-1, 1):
                raise DataError(f"the sign of {source} to {target} must be +1 or -1, got {sign!r}")
            at = place[source], place[target]
            if matrix[at] == -sign:
                raise DataError(
                    f"the edge {source} to {target} has two signs: here a gene either activates "
                    "or inhibits another; keep one (a .bnet file can hold both)"
                )
            matrix[at] = sign
        return cls(matrix, tuple(names))

    @classmethod
    def from_text(cls, text: str) -> SignedCircuit:
        """Read ``A activates B, B inhibits A`` or ``A -> B, B -| A``; a lone name is a gene.

        >>> SignedCircuit.from_text("A inhibits B, B inhibits A").adjacency.tolist()
        [[0, -1], [-1, 0]]
        """
        edges: list[tuple[str, str, int]] = []
        genes: list[str] = []
        edge = "|".join(rf"\b{w}\b" if w.isalpha() else re.escape(w) for w in SIGNS)
        for part in re.split(r"[,;\n]", text):
            words = re.split(rf"\s*({edge})\s*", part.strip())
            if words == [""]:
                continue
            if len(words) % 2 == 0 or any(not re.fullmatch(r"[\w.]+", w) for w in words[::2]):
                raise DataError(
                    f"'{part.strip()}' is no edge: write  A activates B  or  A -> B  for an "
                    "activation,  A inhibits B  or  A -| B  for an inhibition, separated by commas"
                )
            genes += words[::2]
            for k in range(1, len(words), 2):
                edges.append((words[k - 1], words[k + 1], SIGNS[words[k]]))
        return cls.from_edges(edges, genes)

    @property
    def n_gene(self) -> int:
        """Number of genes."""
        return self.adjacency.shape[0]

    @property
    def n_edge(self) -> int:
        """Number of edges."""
        return int(np.count_nonzero(self.adjacency))

    def edges(self) -> list[tuple[str, str, int]]:
        """(source, target, sign) of each edge, in the order of the matrix."""
        return [
            (self.names[s], self.names[t], int(self.adjacency[s, t]))
            for s, t in np.argwhere(self.adjacency)
        ]

    def to_text(self) -> str:
        """Text form that :meth:`from_text` reads; genes without an edge stand alone.

        >>> SignedCircuit.from_text("A -> B, B -| A, C").to_text()
        'A activates B, B inhibits A, C'
        """
        parts = [
            f"{source} {'activates' if sign > 0 else 'inhibits'} {target}"
            for source, target, sign in self.edges()
        ]
        is_edge = self.adjacency != 0
        parts += [
            name
            for k, name in enumerate(self.names)
            if not is_edge[k].any() and not is_edge[:, k].any()
        ]
        return ", ".join(parts)

    def relabelled(self, order: Sequence[int]) -> SignedCircuit:
        """The same circuit with gene ``order[k]`` at place ``k``."""
        index = np.asarray(order)
        return SignedCircuit(
            self.adjacency[np.ix_(index, index)], tuple(self.names[k] for k in index)
        )

    def canonical(self) -> SignedCircuit:
        """The same circuit in its canonical order of genes."""
        return self.relabelled(canonical_orders(self.adjacency[None])[1][0].tolist())

    def is_isomorphic(self, other: SignedCircuit) -> bool:
        """Whether the genes of one can be relabelled to give the other."""
        return self.n_gene == other.n_gene and np.array_equal(
            canonical_form(self.adjacency[None]), canonical_form(other.adjacency[None])
        )

    def __eq__(self, other: object) -> bool:
        """Equal names and edges, gene by gene."""
        return (
            isinstance(other, SignedCircuit)
            and self.names == other.names
            and np.array_equal(self.adjacency, other.adjacency)
        )

    def __hash__(self) -> int:
        return hash((self.names, self.adjacency.tobytes()))


def check_signs(adjacency: NDArray[np.generic]) -> None:
    """Refuse entries other than −1, 0 and +1."""
    is_sign = (adjacency == 0) | (adjacency == 1) | (adjacency == -1)
    if not is_sign.all():
        wrong = adjacency[~is_sign].flat[0]
        raise DataError(
            f"adjacency must hold -1 (inhibits), 0 and +1 (activates), got {wrong}: data sets that "
            "code inhibition as 2 must be recoded first"
        )


def refuse_collisions(names: Sequence[str]) -> None:
    """Refuse empty names, and names that are equal or differ by case only."""
    first: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise DataError("a gene has an empty name: name every gene")
        other = first.setdefault(name.casefold(), name)
        if other is not name or list(names).count(name) > 1:
            raise DataError(
                f"the gene names '{other}' and '{name}' collide: names must differ by more than "
                "case"
            )


def gene_names(n_gene: int) -> tuple[str, ...]:
    """A, B, C …; g0, g1 … beyond 26 genes."""
    if n_gene <= 26:
        return tuple(chr(ord("A") + i) for i in range(n_gene))
    return tuple(f"g{i}" for i in range(n_gene))


def as_batch(adjacency: NDArray[np.generic] | Sequence[SignedCircuit]) -> Adjacency:
    """``(n_circuit, n, n)`` int8 from a matrix, a stack of matrices or circuits of one size.

    Raises:
        DataError: shape or values that are no circuits.
    """
    if not isinstance(adjacency, np.ndarray):
        items = [c.adjacency if isinstance(c, SignedCircuit) else np.asarray(c) for c in adjacency]
        if len({item.shape for item in items}) > 1:
            raise DataError(
                "the circuits of a batch must have the same number of genes, got "
                f"{sorted({len(item) for item in items})}: one batch for each size"
            )
        adjacency = np.stack(items) if items else np.zeros((0, 1, 1), dtype=np.int8)
    if adjacency.ndim == 2:
        adjacency = adjacency[None]
    if adjacency.ndim != 3 or adjacency.shape[1] != adjacency.shape[2]:
        raise DataError(f"circuits must be (n_circuit, n, n), got {adjacency.shape}")
    if adjacency.shape[1] == 0:
        raise DataError("the circuit is empty: give at least one gene")
    if adjacency.dtype != np.int8 or (adjacency.size and np.abs(adjacency).max() > 1):
        check_signs(adjacency)
    return np.ascontiguousarray(adjacency, dtype=np.int8)


def canonical_orders(adjacency: NDArray[np.generic]) -> tuple[Adjacency, NDArray[np.int32]]:
    """Canonical form of each circuit, and which gene stands at each place of it.

    Exact for every size: genes are refined by their signed surroundings, and where that leaves a
    choice, all choices are compared. Swaps of twin genes are recognised.

    Args:
        adjacency: ``(n_circuit, n, n)``.

    Returns:
        ``(n_circuit, n, n)`` int8 and ``(n_circuit, n)`` int32.

    Raises:
        DataError: a circuit so symmetric that more than 200,000 orders would be compared.
    """
    from neuralgraph.systems.boolean_grn import kernels

    batch = as_batch(adjacency)
    canonical = np.empty_like(batch)
    orders = np.empty(batch.shape[:2], dtype=np.int32)
    at = kernels.canonicalise(batch, canonical, orders, N_LEAF_MAX)
    if at >= 0:
        raise DataError(
            f"circuit {at} is too symmetric: its canonical form needs more than {N_LEAF_MAX:,} "
            "orders of its genes; compare its connected parts one by one"
        )
    return canonical, orders


def canonical_form(adjacency: NDArray[np.generic]) -> Adjacency:
    """Canonical form of each circuit, ``(n_circuit, n, n)``: equal exactly for isomorphic circuits.

    >>> a = SignedCircuit.from_text("A -> B, B -| C").adjacency
    >>> b = SignedCircuit.from_text("C, A -| B, C -> A").adjacency
    >>> bool((canonical_form(a) == canonical_form(b)).all())
    True
    """
    return canonical_orders(adjacency)[0]


def canonical_keys(adjacency: NDArray[np.generic]) -> list[bytes]:
    """A key for each circuit, equal exactly for isomorphic ones (also across sizes)."""
    return [matrix.tobytes() for matrix in canonical_form(adjacency)]


def distinct(adjacency: NDArray[np.generic]) -> NDArray[np.intp]:
    """Index of the first circuit of each isomorphism class, ascending."""
    keys = canonical_keys(adjacency)
    return np.array(
        sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values()), np.intp
    )


def enumerate_circuits(n_gene: int) -> Adjacency:
    """Every circuit of ``n_gene`` genes with at least one edge: ``3^(n²) − 1`` of them.

    Raises:
        ConfigError: more than 3 genes (4 would be 43 million).

    >>> enumerate_circuits(2).shape
    (80, 2, 2)
    """
    if not 1 <= n_gene <= 3:
        raise ConfigError(
            f"all circuits are listed for 1 to 3 genes, got {n_gene}: draw random_circuits instead"
        )
    code = np.arange(1, 3 ** (n_gene**2))
    trits = code[:, None] // 3 ** np.arange(n_gene**2) % 3
    return np.where(trits == 2, -1, trits).astype(np.int8).reshape(-1, n_gene, n_gene)


def random_circuits(
    n_circuit: int,
    n_gene: int,
    *,
    in_degree: float,
    share_inhibition: float,
    generator: np.random.Generator,
) -> Adjacency:
    """Circuits whose edges are drawn independently, self-edges included.

    Each of the ``n²`` edges is there with probability ``in_degree / n``, so that a gene has
    ``in_degree`` regulators on average.

    Args:
        n_circuit: How many.
        n_gene: Genes of each.
        in_degree: Expected regulators of a gene, 0 to ``n_gene``.
        share_inhibition: Expected share of inhibitions among the edges, 0 to 1.
        generator: Source of the draws, from ``neuralgraph.core.seeding.numpy_generator``.

    Returns:
        ``(n_circuit, n_gene, n_gene)`` int8; circuits without any edge are drawn again.
    """
    if n_gene < 1:
        raise ConfigError(f"n_gene must be at least 1, got {n_gene}")
    if not 0 < in_degree <= n_gene:
        raise ConfigError(f"in_degree must lie in (0, n_gene = {n_gene}], got {in_degree}")
    if not 0 <= share_inhibition <= 1:
        raise ConfigError(f"share_inhibition must lie in [0, 1], got {share_inhibition}")
    found = np.empty((0, n_gene, n_gene), dtype=np.int8)
    while len(found) < n_circuit:
        shape = (n_circuit - len(found), n_gene, n_gene)
        is_edge = generator.random(shape) < in_degree / n_gene
        is_inhibition = generator.random(shape) < share_inhibition
        drawn = np.where(is_edge, np.where(is_inhibition, -1, 1), 0).astype(np.int8)
        found = np.concatenate([found, drawn[drawn.any((1, 2))]])
    return found


def are_connected(circuits: Adjacency) -> NDArray[np.bool_]:
    """Whether the genes of each circuit hang together, directions aside."""
    n = circuits.shape[1]
    near = (circuits != 0) | (circuits != 0).transpose(0, 2, 1) | np.eye(n, dtype=bool)
    for _ in range(max(1, (n - 1).bit_length())):
        near = (near.astype(np.int32) @ near.astype(np.int32)) > 0
    return near.all((1, 2))


EXAMPLES = {
    "toggle_switch": "A inhibits B, B inhibits A",
    "self_repressor": "A inhibits A",
    "single_activation": "A activates B",
    "repressilator": "A inhibits B, B inhibits C, C inhibits A",
    "five_ring": "A inhibits B, B inhibits C, C inhibits D, D inhibits E, E inhibits A",
    "incoherent_feed_forward": "A activates B, A activates C, B inhibits C",
    "cascade": "A activates B, B activates C",
    "long_cascade": "A activates B, B activates C, C activates D",
    "gated_repressilator": (
        "S inhibits T, T inhibits S, T inhibits A, A inhibits B, B inhibits C, C inhibits A"
    ),
}
"""The circuits the seed document names as text, and a repressilator that a toggle switches."""


def example_circuit(name: str) -> SignedCircuit:
    """One of :data:`EXAMPLES` by name."""
    if name not in EXAMPLES:
        raise ConfigError(f"there is no example circuit '{name}': {nearest(name, EXAMPLES)}")
    return SignedCircuit.from_text(EXAMPLES[name])


def all_relabellings(adjacency: NDArray[np.generic]) -> Adjacency:
    """Every relabelling of one circuit, ``(n!, n, n)``."""
    n = len(adjacency)
    orders = np.array(list(itertools.permutations(range(n))))
    return np.asarray(adjacency)[orders[:, :, None], orders[:, None, :]].astype(np.int8)
