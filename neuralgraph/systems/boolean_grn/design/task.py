"""What is designed: a phenotype, a number of genes, and what counts as a new circuit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.boolean_grn.circuit import (
    Adjacency,
    are_connected,
    canonical_form,
    distinct,
    enumerate_circuits,
)
from neuralgraph.systems.boolean_grn.oracle import (
    FEEDBACKS,
    PHENOTYPES,
    RULES,
    UPDATES,
    CircuitFacts,
    analyse_circuits,
    check_size,
    label_circuits,
    phenotype_index,
)

N_GENE_ENUMERATED = 3
"""Up to so many genes all circuits are known, and the classes of a phenotype are counted."""


@dataclass(frozen=True)
class DesignTask:
    """A phenotype to be built.

    Args:
        phenotype: One of :data:`~neuralgraph.systems.boolean_grn.oracle.PHENOTYPES`.
        n_gene: Genes of each circuit.
        rule: Update rule.
        update: ``synchronous`` or ``asynchronous``.
        feedback: What an amplifier must be free of.
        is_connected: Every gene takes part: the circuit hangs together, signs and directions aside.

    Raises:
        ConfigError: unknown names, too many genes for the oracle, or a phenotype that no circuit of
            this size has (with the counts of those there are).
    """

    phenotype: str
    n_gene: int
    rule: str
    update: str
    feedback: str
    is_connected: bool

    def __post_init__(self) -> None:
        phenotype_index(self.phenotype)
        if self.n_gene < 1:
            raise ConfigError(f"n_genes must be at least 1, got {self.n_gene}")
        check_size(self.n_gene)
        for name, known in (("rule", RULES), ("update", UPDATES), ("feedback", FEEDBACKS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"there is no {name} '{getattr(self, name)}': choose one of {', '.join(known)}"
                )

    @property
    def label(self) -> int:
        """Index of the phenotype."""
        return phenotype_index(self.phenotype)

    def facts(self, circuits: Adjacency) -> CircuitFacts:
        """The oracle's answer, with every fact."""
        return analyse_circuits(
            circuits, rule=self.rule, update=self.update, feedback=self.feedback
        )

    def is_hit(self, circuits: Adjacency) -> NDArray[np.bool_]:
        """Whether each circuit has the phenotype."""
        labels = label_circuits(
            circuits, rule=self.rule, update=self.update, feedback=self.feedback
        )
        return labels == self.label

    def classes(self) -> Adjacency | None:
        """Every circuit with the phenotype, one of each isomorphism class; ``None`` above 3 genes.

        Raises:
            ConfigError: there is none.
        """
        if self.n_gene > N_GENE_ENUMERATED:
            return None
        every, labels = self._all(self.n_gene)
        hits = self._hits(self.n_gene)
        if len(hits) == 0:
            counts = ", ".join(
                f"{int((labels == k).sum()):,} {name}" for k, name in enumerate(PHENOTYPES)
            )
            larger = range(self.n_gene + 1, N_GENE_ENUMERATED + 1)
            enough = next((n for n in larger if len(self._hits(n))), N_GENE_ENUMERATED + 1)
            raise ConfigError(
                f"no {'connected ' if self.is_connected else ''}circuit of {self.n_gene} "
                f"gene{'s' if self.n_gene > 1 else ''} has the phenotype {self.phenotype}: the "
                f"{len(every):,} circuits there are fall into {counts}. Ask for more genes "
                f"(n_genes={enough}) or another phenotype"
            )
        return canonical_form(hits[distinct(hits)])

    def _all(self, n_gene: int) -> tuple[Adjacency, NDArray[np.int8]]:
        """Every circuit of a size, and its phenotype."""
        every = enumerate_circuits(n_gene)
        return every, label_circuits(
            every, rule=self.rule, update=self.update, feedback=self.feedback
        )

    def _hits(self, n_gene: int) -> Adjacency:
        """Those with the phenotype."""
        every, labels = self._all(n_gene)
        hits = every[labels == self.label]
        return hits[are_connected(hits)] if self.is_connected else hits

    def robustness(self, circuits: Adjacency) -> NDArray[np.float64]:
        """Share of the one-edge mutants of each circuit that keep the phenotype.

        A mutant has one edge removed, added or turned round in sign: ``2 n²`` of them.

        Args:
            circuits: ``(n_circuit, n, n)``.

        Returns:
            ``(n_circuit,)``, 0 to 1.
        """
        if len(circuits) == 0:
            return np.zeros(0)
        kept = self.is_hit(np.concatenate([mutants(circuit) for circuit in circuits]))
        return kept.reshape(len(circuits), -1).mean(1)


def mutants(circuit: NDArray[np.int8]) -> Adjacency:
    """All circuits that differ in one entry of the matrix, ``(2 n², n, n)``."""
    n = len(circuit)
    found = np.repeat(circuit[None], 2 * n * n, axis=0)
    entry = np.repeat(np.arange(n * n), 2)
    shift = np.tile([1, 2], n * n)
    flat = found.reshape(2 * n * n, n * n)
    value = (flat[np.arange(2 * n * n), entry] + 1 + shift) % 3 - 1
    flat[np.arange(2 * n * n), entry] = value
    return found
