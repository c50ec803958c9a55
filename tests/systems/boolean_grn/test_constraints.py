"""The document's necessary conditions, against plain loops, and its third theorem."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from neuralgraph.systems.boolean_grn import constraints
from neuralgraph.systems.boolean_grn.circuit import distinct, enumerate_circuits
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, label_circuits


def conditions(matrix: np.ndarray) -> dict[str, bool]:
    """Plain restatement: cycles by enumeration."""
    n = len(matrix)
    cycles = []
    for length in range(1, n + 1):
        for genes in itertools.permutations(range(n), length):
            signs = [matrix[genes[k], genes[(k + 1) % length]] for k in range(length)]
            if all(signs):
                cycles.append((length, int(np.prod(signs))))
    negative = any(sign < 0 for _, sign in cycles)
    long = any(length > 1 for length, _ in cycles)
    triples = list(itertools.permutations(range(n), 3))
    return {
        "toggle_switch": any(
            matrix[i, j] < 0 and matrix[j, i] < 0 for i, j in itertools.permutations(range(n), 2)
        ),
        "oscillator": negative,
        "pulse_generator": any(
            matrix[a, b] > 0 and matrix[a, c] > 0 and matrix[b, c] < 0 for a, b, c in triples
        ),
        "amplifier": any(matrix[a, b] > 0 and matrix[b, c] > 0 for a, b, c in triples)
        and not negative
        and not long,
        "adaptation": True,
        "stable": True,
    }


def test_zero_constraint_loss_holds_exactly_when_the_necessary_condition_does():
    """Theorem 3, on every circuit of up to 3 genes (one of each isomorphism class)."""
    for n in (1, 2, 3):
        circuits = enumerate_circuits(n)
        circuits = circuits[distinct(circuits)]
        found = constraints.violations(torch.from_numpy(circuits).float())
        expected = torch.tensor(
            [[1.0 - conditions(m)[name] for name in PHENOTYPES] for m in circuits]
        )
        assert torch.equal(found, expected)
        for c in range(len(PHENOTYPES)):
            sure = torch.zeros(1, len(PHENOTYPES))
            sure[0, c] = 1
            loss = torch.stack(
                [constraints.constraint_loss(torch.from_numpy(m[None]).float(), sure)
                 for m in circuits[::200]]
            )  # fmt: skip
            assert torch.equal(loss == 0, expected[::200, c] == 0)


def test_the_conditions_are_necessary_for_the_oracles_labels_and_not_sufficient():
    circuits = enumerate_circuits(3)
    labels = torch.from_numpy(label_circuits(circuits)).long()
    found = constraints.violations(torch.from_numpy(circuits).float())
    assert found[torch.arange(len(labels)), labels].max() == 0
    for name in constraints.CONSTRAINED:
        c = PHENOTYPES.index(name)
        assert ((found[:, c] == 0) & (labels != c)).any(), name


def test_violations_pass_gradients_to_relaxed_edges():
    generator = torch.Generator().manual_seed(0)
    adjacency = (torch.rand(8, 4, 4, generator=generator) - 0.5).requires_grad_()
    found = constraints.violations(adjacency)
    assert float(found.detach().min()) >= 0 and float(found.detach().max()) <= 1
    for c, name in enumerate(PHENOTYPES[:4]):
        (gradient,) = torch.autograd.grad(found[:, c].sum(), adjacency, retain_graph=True)
        assert gradient.abs().max() > 0, name
