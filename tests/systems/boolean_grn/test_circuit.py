"""Circuits: what is refused, text form, canonical form, random draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import (
    SignedCircuit,
    all_relabellings,
    as_batch,
    canonical_form,
    canonical_keys,
    canonical_orders,
    distinct,
    enumerate_circuits,
    example_circuit,
    random_circuits,
)


def test_an_edge_with_two_signs_is_refused():
    with pytest.raises(DataError, match="A to B has two signs"):
        SignedCircuit.from_edges([("A", "B", 1), ("B", "C", 1), ("A", "B", -1)])
    with pytest.raises(DataError, match="A to B has two signs"):
        SignedCircuit.from_text("A -> B, A -| B")
    assert SignedCircuit.from_text("A -> B, A -> B").n_edge == 1


def test_an_empty_circuit_is_refused():
    for make in (
        lambda: SignedCircuit.from_text(" , "),
        lambda: SignedCircuit.from_edges([]),
        lambda: SignedCircuit.from_adjacency(np.zeros((0, 0))),
    ):
        with pytest.raises(DataError, match="the circuit is empty"):
            make()


def test_gene_names_that_collide_are_refused():
    with pytest.raises(DataError, match="'Gata1' and 'GATA1' collide"):
        SignedCircuit.from_text("Gata1 -> PU1, PU1 -| GATA1")
    with pytest.raises(DataError, match="'x' and 'x' collide"):
        SignedCircuit.from_adjacency(np.zeros((2, 2)), ["x", "x"])
    with pytest.raises(DataError, match="empty name"):
        SignedCircuit.from_adjacency(np.zeros((2, 2)), ["x", " "])
    with pytest.raises(DataError, match="2 genes need 2 names"):
        SignedCircuit.from_adjacency(np.zeros((2, 2)), ["x"])


def test_matrices_that_are_no_circuits_are_refused():
    with pytest.raises(DataError, match=r"n_gene, n_gene"):
        SignedCircuit.from_adjacency(np.zeros((2, 3)))
    with pytest.raises(DataError, match="inhibition as 2"):
        SignedCircuit.from_adjacency(np.array([[0, 2], [1, 0]]))
    with pytest.raises(DataError, match=r"got 0\.5"):
        as_batch(np.array([[0.5]]))
    with pytest.raises(DataError, match=r"must be \+1 or -1"):
        SignedCircuit.from_edges([("A", "B", 0)])


@pytest.mark.parametrize("text", ["A likes B", "A ->", "-> B", "A B -> C"])
def test_text_that_is_no_edge_is_refused(text):
    with pytest.raises(DataError, match="is no edge"):
        SignedCircuit.from_text(text)


def test_the_text_form_takes_words_arrows_and_chains():
    expected = [[0, 1, -1], [0, 0, -1], [0, 0, 0]]
    for text in (
        "A activates B, A inhibits C, B inhibits C",
        "A->B\nA-|C\nB⊣C",
        "A -> B -| C; A represses C",
    ):
        circuit = SignedCircuit.from_text(text)
        assert circuit.names == ("A", "B", "C")
        assert circuit.adjacency.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(n_gene=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_the_text_form_keeps_every_edge_and_lonely_gene(n_gene, seed):
    matrix = np.random.default_rng(seed).integers(-1, 2, (n_gene, n_gene))
    circuit = SignedCircuit.from_adjacency(matrix)
    again = SignedCircuit.from_text(circuit.to_text())
    assert set(again.names) == set(circuit.names)
    assert set(again.edges()) == set(circuit.edges())


@settings(max_examples=150, deadline=None)
@given(n_gene=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), density=st.floats(0.05, 1.0))
def test_the_canonical_form_is_the_same_for_every_relabelling(n_gene, seed, density):
    generator = np.random.default_rng(seed)
    matrix = generator.integers(-1, 2, (n_gene, n_gene)) * (
        generator.random((n_gene, n_gene)) < density
    )
    order = generator.permutation(n_gene)
    pair = np.stack([matrix, matrix[np.ix_(order, order)]]).astype(np.int8)
    canonical, orders = canonical_orders(pair)
    assert (canonical[0] == canonical[1]).all()
    for k in range(2):  # and it is a relabelling
        assert sorted(orders[k]) == list(range(n_gene))
        assert (pair[k][np.ix_(orders[k], orders[k])] == canonical[k]).all()


def brute_force_classes(batch):
    """Isomorphism classes by trying every permutation."""
    return {min(m.tobytes() for m in all_relabellings(matrix)) for matrix in batch}


def test_canonical_forms_are_as_many_as_isomorphism_classes():
    assert len(set(canonical_keys(enumerate_circuits(2)))) == 44
    assert len(set(canonical_keys(enumerate_circuits(3)))) == 3_410  # 3,411 by Burnside, less one
    generator = numpy_generator(3, "canonical")
    for n_gene, n_circuit in ((4, 300), (5, 40), (6, 6)):
        base = random_circuits(
            n_circuit, n_gene, in_degree=1.0, share_inhibition=0.3, generator=generator
        )
        shuffled = [m[np.ix_(o, o)] for m in base for o in [generator.permutation(n_gene)]]
        batch = np.concatenate([base, np.stack(shuffled)])
        assert len(set(canonical_keys(batch))) == len(brute_force_classes(base))


def test_symmetric_circuits_are_told_apart():
    """Two triangles and one hexagon look alike to refinement; the search tells them apart."""
    hexagon, triangles = np.zeros((2, 6, 6), dtype=np.int8)
    for g in range(6):
        hexagon[g, (g + 1) % 6] = 1
        triangles[g, 3 * (g // 3) + (g % 3 + 1) % 3] = 1
    assert not (canonical_form(hexagon) == canonical_form(triangles)).all()
    order = np.random.default_rng(0).permutation(6)
    again = triangles[np.ix_(order, order)]
    assert (canonical_form(triangles) == canonical_form(again)).all()


def test_many_equal_genes_cost_nothing():
    lonely = np.zeros((1, 20, 20), dtype=np.int8)
    assert (canonical_form(lonely) == lonely).all()


def test_a_circuit_too_symmetric_for_the_search_is_refused(monkeypatch):
    monkeypatch.setattr("neuralgraph.systems.boolean_grn.circuit.N_LEAF_MAX", 1000)
    pairs = np.zeros((1, 24, 24), dtype=np.int8)
    for g in range(0, 24, 2):
        pairs[0, g, g + 1] = pairs[0, g + 1, g] = 1
    with pytest.raises(DataError, match="too symmetric"):
        canonical_form(pairs)


def test_distinct_keeps_the_first_of_each_class():
    batch = np.concatenate([enumerate_circuits(2), enumerate_circuits(2)[:, ::-1, ::-1]])
    index = distinct(batch)
    assert len(index) == 44 and (np.diff(index) > 0).all() and index.max() < 80


def test_isomorphic_circuits_know_each_other():
    a = SignedCircuit.from_text("A -| B, B -| C, C -| A")
    b = SignedCircuit.from_text("y -| x, x -| z, z -| y")
    assert a.is_isomorphic(b) and a != b
    assert not a.is_isomorphic(example_circuit("cascade"))
    assert not a.is_isomorphic(example_circuit("toggle_switch"))
    assert (a.canonical().adjacency == b.canonical().adjacency).all()


def test_random_circuits_have_the_in_degree_and_repeat_with_the_seed():
    def draw(seed):
        return random_circuits(
            4000, 5, in_degree=2.2, share_inhibition=0.25, generator=numpy_generator(seed, "x")
        )

    batch = draw(1)
    assert batch.shape == (4000, 5, 5) and batch.any((1, 2)).all()
    assert abs(np.count_nonzero(batch) / (4000 * 5) - 2.2) < 0.05
    assert abs((batch < 0).sum() / np.count_nonzero(batch) - 0.25) < 0.02
    assert (draw(1) == batch).all() and not (draw(2) == batch).all()


def test_draws_that_cannot_be_are_refused():
    generator = numpy_generator(1, "x")
    with pytest.raises(ConfigError, match="in_degree"):
        random_circuits(1, 3, in_degree=4, share_inhibition=0.5, generator=generator)
    with pytest.raises(ConfigError, match="share_inhibition"):
        random_circuits(1, 3, in_degree=2, share_inhibition=2, generator=generator)
    with pytest.raises(ConfigError, match="1 to 3 genes, got 4"):
        enumerate_circuits(4)
    with pytest.raises(ConfigError, match="did you mean 'repressilator'"):
        example_circuit("represilator")
