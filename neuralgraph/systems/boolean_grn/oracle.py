r"""The exact oracle: which phenotype a circuit has, over all its states.

**Rule.** $x_g' = [\,a_g - i_g + b_g > 0\,]$ with $a_g$ and $i_g$ the numbers of active activators
and inhibitors of gene $g$; $b_g = +\tfrac12$ for a gene with inhibitors only (it is on unless
repressed), $-\tfrac12$ for a gene with an activator. A gene without regulators is an input and
holds. Ties never occur, so that the soft rule $\sigma(\tau(a - i + b))$ becomes this one as
$\tau \to \infty$.

**Slices.** Inputs never change; attractors are compared within one assignment of the inputs.

**Tests**, the first that holds names the phenotype:

1. ``toggle_switch``: a mutually inhibiting pair separates two fixed points of one slice.
2. ``oscillator``: a limit cycle whose moving genes hold a negative loop.
3. ``pulse_generator``: A → B, A → C, B ⊣ C, and a fixed point with A and C off from which A, held
   on, leads C 0 → 1 → 0 until the circuit rests.
4. ``amplifier``: A → B → C, and a fixed point with all three off from which A, held on, leaves B
   and C on; without feedback (self-activation allowed by default).
5. ``adaptation``: each slice has one attractor, a fixed point, and there is a negative loop.
6. ``stable``: every other circuit; :class:`CircuitFacts` says what that hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.systems.boolean_grn.circuit import Adjacency, SignedCircuit, as_batch

PHENOTYPES = (
    "toggle_switch", "oscillator", "pulse_generator", "amplifier", "adaptation", "stable",
)  # fmt: skip
"""Names of the labels 0 to 5, in the order of the decision."""

RULES = ("threshold", "tie_on", "tie_hold", "inhibitor_wins", "inhibitor_wins_or_off", "literal")
"""Update rules. They differ where activators and inhibitors are balanced, and where none is active:

``threshold``: the default; balance is off, and a gene with inhibitors only is on unless repressed.
``tie_on``: as ``threshold``, but a balance of active regulators is on.
``tie_hold``: majority; a balance, and no active regulator, hold the state.
``inhibitor_wins``: an active inhibitor is off, else an active activator is on, else hold.
``inhibitor_wins_or_off``: the same, else off.
``literal``: the seed document's sentence: on if a > i, else off, also without regulators.
"""

UPDATES = ("synchronous", "asynchronous")
FEEDBACKS = ("strict", "self_activation", "no_negative_loop")
"""What an amplifier must be free of: ``strict`` any loop; ``self_activation`` negative loops and
loops of two or more genes; ``no_negative_loop`` negative loops only."""

N_GENE_EXACT = 16
"""Largest circuit whose states are all visited (65,536 of them)."""


@dataclass(frozen=True)
class CircuitFacts:
    """Facts about each circuit of a batch, each ``(n_circuit,)``.

    Args:
        label: Index into :data:`PHENOTYPES`.
        n_input: Genes that never change.
        n_fixed_point: Fixed points, over all slices.
        n_cycle: Limit cycles of period 2 or more under synchronous update.
        longest_period: Of the synchronous attractors.
        n_loop_cycle: Limit cycles whose moving genes hold a negative loop.
        is_monostable: Each slice has one attractor, a fixed point (under the update asked for).
        is_multistable: Some slice has two or more fixed points.
        has_mutual_inhibition: Two genes inhibit each other.
        has_negative_loop: Some cycle has an odd number of inhibitions.
        has_complex_attractor: An asynchronous attractor of several states.
        has_spurious_cycle: A limit cycle whose moving genes hold no negative loop.
    """

    label: NDArray[np.int8]
    n_input: NDArray[np.int32]
    n_fixed_point: NDArray[np.int32]
    n_cycle: NDArray[np.int32]
    longest_period: NDArray[np.int32]
    n_loop_cycle: NDArray[np.int32]
    is_monostable: NDArray[np.bool_]
    is_multistable: NDArray[np.bool_]
    has_mutual_inhibition: NDArray[np.bool_]
    has_negative_loop: NDArray[np.bool_]
    has_complex_attractor: NDArray[np.bool_]
    has_spurious_cycle: NDArray[np.bool_]

    @property
    def is_synchronous_only(self) -> NDArray[np.bool_]:
        """The circuit cycles under synchronous update, and rests under asynchronous update."""
        return (self.n_cycle > 0) & ~self.has_complex_attractor

    @property
    def is_multistable_without_toggle(self) -> NDArray[np.bool_]:
        """Several fixed points in a slice, not told apart by a mutually inhibiting pair."""
        return self.is_multistable & (self.label != PHENOTYPES.index("toggle_switch"))

    def phenotype(self, index: int = 0) -> str:
        """Name of the phenotype of one circuit."""
        return PHENOTYPES[int(self.label[index])]


def label_circuits(
    adjacency: NDArray[np.generic] | Sequence[SignedCircuit],
    *,
    rule: str = "threshold",
    update: str = "synchronous",
    feedback: str = "self_activation",
) -> NDArray[np.int8]:
    """Phenotype of each circuit, exactly; the same for every relabelling of its genes.

    Args:
        adjacency: ``(n_circuit, n, n)`` in {−1, 0, +1}, ``[source, target]``.
        rule: One of :data:`RULES`.
        update: ``synchronous``; ``asynchronous`` asks in test 2 for an asynchronous attractor of
            several states instead, and leaves the other tests as they are.
        feedback: What an amplifier must be free of, one of :data:`FEEDBACKS`.

    Returns:
        ``(n_circuit,)`` index into :data:`PHENOTYPES`.

    Raises:
        ConfigError: an unknown rule, or more genes than can be enumerated.
        DataError: matrices that are no circuits.

    >>> circuits = [SignedCircuit.from_text(t) for t in ("A -| B, B -| A", "A -| A, B", "A -> B")]
    >>> [PHENOTYPES[label] for label in label_circuits(circuits)]
    ['toggle_switch', 'oscillator', 'stable']
    """
    return _classify(adjacency, rule, update, feedback, is_complete=False)[0]


def analyse_circuits(
    adjacency: NDArray[np.generic] | Sequence[SignedCircuit],
    *,
    rule: str = "threshold",
    update: str = "synchronous",
    feedback: str = "self_activation",
) -> CircuitFacts:
    """Phenotype of each circuit and what it hides. Arguments as :func:`label_circuits`."""
    from neuralgraph.systems.boolean_grn import kernels

    labels, facts = _classify(adjacency, rule, update, feedback, is_complete=True)
    return CircuitFacts(
        label=labels,
        n_input=facts[:, kernels.N_INPUT],
        n_fixed_point=facts[:, kernels.N_FIXED_POINT],
        n_cycle=facts[:, kernels.N_CYCLE],
        longest_period=facts[:, kernels.LONGEST_PERIOD],
        n_loop_cycle=facts[:, kernels.N_LOOP_CYCLE],
        is_monostable=facts[:, kernels.IS_MONOSTABLE] > 0,
        is_multistable=facts[:, kernels.IS_MULTISTABLE] > 0,
        has_mutual_inhibition=facts[:, kernels.HAS_MUTUAL_INHIBITION] > 0,
        has_negative_loop=facts[:, kernels.HAS_NEGATIVE_LOOP] > 0,
        has_complex_attractor=facts[:, kernels.N_COMPLEX] > 0,
        has_spurious_cycle=facts[:, kernels.HAS_SPURIOUS_CYCLE] > 0,
    )


def successors(
    adjacency: NDArray[np.generic] | SignedCircuit, *, rule: str = "threshold"
) -> NDArray[np.int32]:
    """Synchronous successor of every state of one circuit.

    A state is an integer whose bit ``g`` is gene ``g``.

    Args:
        adjacency: ``(n, n)``, or a circuit.
        rule: One of :data:`RULES`.

    Returns:
        ``(2ⁿ,)`` int32.
    """
    from neuralgraph.systems.boolean_grn import kernels

    matrix = adjacency.adjacency if isinstance(adjacency, SignedCircuit) else adjacency
    batch = as_batch(matrix)
    check_size(batch.shape[1])
    n_state = 2 ** batch.shape[1]
    successor = np.empty(n_state, dtype=np.int32)
    kernels.fill_successors(
        batch[0], _index(rule, RULES, "rule"), np.empty((4, n_state), np.int64), successor
    )
    return successor


def phenotype_index(phenotype: str) -> int:
    """Label of a phenotype's name.

    Raises:
        ConfigError: an unknown name, with the names there are.
    """
    return _index(phenotype, PHENOTYPES, "phenotype")


def check_size(n_gene: int) -> None:
    """Refuse circuits with more states than can be enumerated."""
    if n_gene > N_GENE_EXACT:
        raise ConfigError(
            f"{n_gene} genes have 2^{n_gene} states; exact enumeration ends at {N_GENE_EXACT} "
            "genes: write the circuit as .bnet and take the symbolic engine (python -m "
            "neuralgraph.simulate +experiment=boolean_attractors simulator.path=FILE, extra "
            "'boolean'), which finds attractors without listing the states"
        )


def _index(name: str, known: Sequence[str], what: str) -> int:
    if name not in known:
        raise ConfigError(
            f"there is no {what} '{name}': {nearest(str(name), known)} (choose one of "
            f"{', '.join(known)})"
        )
    return known.index(name)


def _classify(
    adjacency: NDArray[np.generic] | Sequence[SignedCircuit],
    rule: str,
    update: str,
    feedback: str,
    *,
    is_complete: bool,
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    from neuralgraph.systems.boolean_grn import kernels

    batch: Adjacency = as_batch(adjacency)
    check_size(batch.shape[1])
    labels = np.empty(len(batch), dtype=np.int8)
    facts = np.zeros((len(batch) if is_complete else 0, kernels.N_FACT), dtype=np.int32)
    kernels.classify(
        batch,
        _index(rule, RULES, "rule"),
        _index(feedback, FEEDBACKS, "feedback"),
        _index(update, UPDATES, "update") == 1,
        is_complete,
        labels,
        facts,
    )
    return labels, facts
