"""The simulated screen does what its tree says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.hyperbolic_response.simulator import RegulatorTree


@pytest.fixture
def tree():
    """0 regulates 1 and 2; 1 regulates 3 (repression) and 4; 2 regulates 5."""
    return RegulatorTree(
        parent=np.array([-1, 0, 0, 1, 1, 2]),
        strength=np.array([0.0, 0.5, 0.8, 0.5, 0.4, 1.0]),
        sign=np.array([1.0, 1.0, 1.0, -1.0, 1.0, 1.0]),
    )


def test_effects_run_down_the_tree_with_decay_and_sign(tree):
    expected = np.eye(6)
    expected[0, 1:] = [0.5, 0.8, -0.25, 0.2, 0.8]
    expected[1, 3:5] = [-0.5, 0.4]
    expected[2, 5] = 1.0
    np.testing.assert_allclose(tree.path(), expected)
    assert tree.depth().tolist() == [0, 1, 1, 2, 2, 2]


def test_common_ancestors_and_distances(tree):
    assert tree.common_ancestor(3, 4) == (1, 2)
    assert tree.common_ancestor(1, 3) == (1, 1) and tree.common_ancestor(3, 1) == (1, 1)
    assert tree.common_ancestor(3, 5) == (0, 4)


def test_two_knock_downs_are_additive_but_for_redundancy_and_masking(tree):
    from neuralgraph.systems.hyperbolic_response.simulator import SimulatedScreen

    screen = object.__new__(SimulatedScreen)
    screen.n_gene, screen.epistasis, screen.epistasis_length, screen.masking = 6, 1.0, 2.0, 1.0
    size = np.full(6, -1.0)
    eta = np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
    groups = [(), (3, 4), (1, 3), (3, 5)]
    additive, epistasis = screen.effects(tree, groups, size, eta)
    path = tree.path()
    np.testing.assert_allclose(
        additive, [np.zeros(6), *(-path[a] - path[b] for a, b in groups[1:])]
    )
    np.testing.assert_allclose(epistasis[1], -np.exp(-0.5) * path[1])
    masked = np.zeros(6)
    masked[3] = path[1, 3]  # gene 1 acts on gene 3 no more
    np.testing.assert_allclose(epistasis[2], -path[1] + masked)
    np.testing.assert_allclose(epistasis[3], np.exp(-1.5) * path[0])


def test_sizes_names_and_counts(simulated):
    recording, truth, given = simulated(n_cell_type=2, n_only_combined=2)
    facts = recording.provenance
    assert recording.state.shape == (2 * (40 + 24 * 12), 1, 60)
    assert len(facts["conditions"]) == 25 and facts["conditions"][0] == "control"
    state = recording.state
    assert (state >= 0).all() and (state == state.round()).all() and (state.sum(2) > 0).all()
    assert all(
        len(t) == (0 if i == 0 else 1 if i <= 10 else 2) for i, t in enumerate(facts["targets"])
    )
    combined = {gene for targets in facts["targets"][11:] for gene in targets}
    alone = {targets[0] for targets in facts["targets"][1:11]}
    assert set(truth.facts["only_combined"]) == combined - alone and len(combined - alone) == 2
    assert given["edge_index"].shape == (2, 59)
    assert torch.equal(truth.parameters["effect"][:11], truth.parameters["additive"][:11])
    assert truth.parameters["epistasis"][11:].abs().max() > 0.5


def test_the_cells_show_the_true_effects(simulated):
    recording, truth, _ = simulated(n_cell=150, n_control=400, n_batch=1, dispersion=0.05)
    counts, label = recording.state[:, 0].double(), recording.graph["condition"]
    rate = counts / counts.sum(1, keepdim=True)
    mean = torch.stack([rate[label == i].mean(0) for i in range(25)])
    seen = (mean / mean[0]).log()
    expected = truth.parameters["effect"]
    expected = (
        expected
        - ((truth.parameters["baseline"].softmax(0) * expected.exp()).sum(1, keepdim=True)).log()
    )
    common = mean[0] > 0.005
    error = (seen - expected)[1:, common]
    assert error.abs().median() < 0.1 and expected[1:, common].abs().max() > 1
    stacked = torch.stack([seen[1:, common].flatten(), expected[1:, common].flatten()])
    assert torch.corrcoef(stacked)[0, 1] > 0.95


def test_cell_types_scale_whole_branches(simulated):
    _, truth, _ = simulated(n_cell_type=3)
    scale, parent = truth.parameters["cell_type_scale"], truth.parameters["parent"]
    root = int((parent < 0).nonzero()[0, 0])
    for gene in range(60):
        if int(parent[gene]) not in (-1, root):
            assert torch.equal(scale[:, gene], scale[:, parent[gene]])
    assert scale.std() > 0.1
    assert (simulated(n_cell_type=1)[1].parameters["cell_type_scale"] == 1).all()


def test_the_graph_is_revealed_only_when_asked_for(simulated):
    from neuralgraph.systems.hyperbolic_response.simulator import SimulatedScreen

    recording, truth, given = simulated()
    child = given["edge_index"][1]
    assert torch.equal(truth.parameters["parent"][child], given["edge_index"][0])
    screen = object.__new__(SimulatedScreen)
    assert screen.reveal(recording, truth, graph=False) == {}
    with pytest.raises(ConfigError, match=r"prior\.graph=true needs a simulated screen"):
        screen.reveal(recording, None, graph=True)


def test_the_revealed_graph_may_lack_edges_and_hold_false_ones(simulated):
    recording, truth, given = simulated(missing_edges=0.5, false_edges=0.25)
    parent = truth.parameters["parent"].tolist()
    known = [(a, b) for a, b in given["edge_index"].T.tolist()]
    is_true = [parent[b] == a for a, b in known]
    assert sum(is_true) == 29 or sum(is_true) == 30
    assert len(known) - sum(is_true) == 15 and len(set(known)) == len(known)
    assert len(given["edge_weight"]) == len(given["edge_sign"]) == len(known)
    assert torch.equal(recording.state, simulated()[0].state), "cells are the same"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_double": 46}, "45 pairs, fewer"),
        ({"n_only_combined": 29}, "do not fit"),
        ({"n_single": 1, "n_double": 0}, "n_single"),
        ({"masking": 1.5}, "masking"),
        ({"n_cell": 3}, "at least 4"),
        ({"branching": 1.5}, "branching"),
        ({"false_edges": 9.0}, "false_edges"),
    ],
)
def test_screens_that_cannot_be_are_refused(simulated, changed, message):
    with pytest.raises(ConfigError, match=message):
        simulated(**changed)


def test_a_tree_with_too_few_regulators_is_refused(simulated):
    with pytest.raises(ConfigError, match="regulators besides its root"):
        simulated(n_gene=20, n_single=15)
