"""The population: exact labels, and no isomorphic copy on two sides of a split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.boolean_grn.circuit import enumerate_circuits
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, label_circuits
from neuralgraph.systems.boolean_grn.simulator import (
    LEARN,
    NATURAL,
    STRATIFIED,
    CircuitPopulation,
    core_keys,
)


def naive_core_key(matrix: np.ndarray) -> bytes:
    """Least matrix over all relabellings of the genes that have an edge."""
    import itertools

    keep = [g for g in range(len(matrix)) if matrix[g].any() or matrix[:, g].any()]
    core = matrix[np.ix_(keep, keep)]
    orders = itertools.permutations(range(len(keep)))
    return bytes([len(keep)]) + min(core[np.ix_(o, o)].tobytes() for o in orders)


def test_no_isomorphic_copy_straddles_training_validation_and_test(small):
    recording, _, data = small
    matrices, sizes = recording.graph["adjacency"].numpy(), recording.graph["n_gene"].numpy()
    use = recording.graph["use"].numpy()

    def keys(index):
        return {naive_core_key(matrices[i][: sizes[i], : sizes[i]]) for i in index if sizes[i] <= 4}

    train, held = keys(data.train.tolist()), keys(data.held.tolist())
    test = keys((use != LEARN).nonzero()[0])
    assert len(train) > 2000 and len(held) > 100 and len(test) > 500
    assert not train & held and not train & test and not held & test


def test_what_occurs_in_a_test_is_dropped_from_learning_also_where_copies_are_many(learning):
    """Sparse circuits of 4 genes: half of those drawn occur in a test, or among the folds."""
    recording, _, _ = learning.population(
        n_natural=400, n_per_phenotype=0, sizes_test=[4], n_test=400, n_test_per_phenotype=0,
        in_degree=0.7,
    )  # fmt: skip
    graph = recording.graph
    keys = np.array([hash(k) for k in core_keys(graph["adjacency"].numpy())])
    is_learn = (graph["use"] == LEARN).numpy()
    drawn = is_learn & (graph["n_gene"] == 4).numpy()
    assert 50 < drawn.sum() < 350 and not set(keys[is_learn]) & set(keys[~is_learn])


def test_core_keys_agree_with_the_naive_ones():
    circuits = enumerate_circuits(3)[::37]
    keys, naive = core_keys(circuits), [naive_core_key(m) for m in circuits]
    pairs = set(zip(keys, naive, strict=True))
    assert len(pairs) == len(set(keys)) == len(set(naive)) > 100


def test_five_folds_hold_out_every_class_once(learning):
    held = []
    for fold in range(5):
        recording, _, _ = learning.population(
            fold, sizes_learn=[], sizes_test=[], n_test_per_phenotype=0
        )
        graph = recording.graph
        is_test = (graph["use"] == NATURAL) & (graph["n_gene"] == 3)
        held += core_keys(graph["adjacency"][is_test, :3, :3].numpy())
    # classes of exactly three connected genes or fewer, all but the empty circuit
    assert len(held) == len(set(held)) == 3410


def test_labels_are_the_oracles_and_tests_are_not_assayed(small):
    recording, truth, data = small
    graph = recording.graph
    for n in (3, 4, 6):
        chosen = graph["n_gene"] == n
        circuits = graph["adjacency"][chosen, :n, :n].numpy()
        assert (truth.parameters["label"][chosen].numpy() == label_circuits(circuits)).all()
    is_test = graph["use"] != LEARN
    assert recording.state[is_test].abs().max() == 0
    assert torch.equal(recording.state[~is_test, 0].argmax(-1), truth.parameters["label"][~is_test])
    batch = next(data.test_batches(6, 16))
    assert batch.label is None and batch.attractors is None


def test_every_size_has_its_natural_and_stratified_tests(small):
    recording, truth, _ = small
    graph, label = recording.graph, truth.parameters["label"]
    for n in (4, 6):
        of_size = graph["n_gene"] == n
        assert int((of_size & (graph["use"] == NATURAL)).sum()) == 40
        counts = torch.bincount(label[of_size & (graph["use"] != LEARN)], minlength=6)
        assert int(counts.min()) >= 3, dict(zip(PHENOTYPES, counts.tolist(), strict=True))
    assert int((graph["use"] == STRATIFIED).sum()) > 0


def test_the_attractor_facts_of_tests_are_not_given(small, learning):
    recording, truth, _ = small
    simulator = CircuitPopulation(**learning.SMALL)
    given = simulator.reveal(recording, truth, attractors=True)
    is_test = recording.graph["use"] != LEARN
    assert all(float(value[is_test].abs().max()) == 0 for value in given.values())
    assert simulator.reveal(recording, truth, attractors=False) == {}


def test_the_same_seed_gives_the_same_circuits(learning, small):
    again, _, _ = learning.population(0)
    other, _, _ = learning.population(1)
    assert torch.equal(small[0].graph["adjacency"], again.graph["adjacency"])
    assert small[0].graph["adjacency"].shape != other.graph["adjacency"].shape or not torch.equal(
        small[0].graph["adjacency"], other.graph["adjacency"]
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sizes_test": [3]}, "from 4 genes"),
        ({"sizes_learn": [17]}, "2\\^17"),
        ({"n_fold": 1}, "n_fold"),
        ({"fold": 5}, "below n_fold"),
    ],
)
def test_impossible_populations_are_refused(learning, changed, words):
    with pytest.raises(ConfigError, match=words):
        CircuitPopulation(**{**learning.SMALL, **changed})
