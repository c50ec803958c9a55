"""Soft dynamics: the oracle's rule in the limit, equivariant starts and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn import dynamics
from neuralgraph.systems.boolean_grn.circuit import distinct, enumerate_circuits, random_circuits
from neuralgraph.systems.boolean_grn.oracle import analyse_circuits, successors

SETTINGS = dynamics.DynamicsSettings(32, 40, 12, True, True)


def drawn(n_circuit: int, n_gene: int, name: str = "dynamics") -> torch.Tensor:
    circuits = random_circuits(
        n_circuit, n_gene, in_degree=min(2.2, n_gene), share_inhibition=0.5,
        generator=numpy_generator(0, name),
    )  # fmt: skip
    return torch.from_numpy(circuits).float()


def all_states(n: int) -> torch.Tensor:
    return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).float()


@pytest.mark.parametrize("tau", [60.0, float("inf")])
def test_a_soft_step_is_the_oracles_step_as_tau_goes_to_infinity(tau):
    for n in (2, 3, 5):
        states = all_states(n)
        adjacency = drawn(60, n)
        new = dynamics.soft_step(states.expand(60, -1, -1), adjacency, tau)
        for matrix, found in zip(adjacency, new, strict=True):
            code = torch.from_numpy(successors(matrix.numpy().astype(np.int8))).long()
            expected = states[code]
            assert torch.allclose(found, expected, atol=0 if tau == float("inf") else 1e-6)


def test_the_error_of_a_soft_step_falls_as_exp_of_minus_half_tau():
    adjacency, states = drawn(40, 4).double(), all_states(4).double().expand(40, -1, -1)
    hard = dynamics.soft_step(states, adjacency, float("inf"))
    errors = [
        float((dynamics.soft_step(states, adjacency, t) - hard).abs().max()) for t in (8, 12, 16)
    ]
    for tau, error in zip((8, 12, 16), errors, strict=True):
        assert error == pytest.approx(1 / (1 + np.exp(tau / 2)), rel=1e-6)


def test_a_whole_soft_run_ends_where_the_hard_run_ends():
    adjacency = drawn(100, 4)
    start = dynamics.starting_states(adjacency, 32)
    runs = [
        dynamics.soft_run(start, adjacency, tau=t, n_step=40, n_window=12)
        for t in (20.0, float("inf"))
    ]
    assert torch.allclose(runs[0].final, runs[1].final, atol=1e-2)
    assert torch.allclose(runs[0].settled, runs[1].settled, atol=1e-2)


def test_theorem_2_rounded_soft_dynamics_have_the_oracles_attractors():
    """On every class of up to 3 genes: no state is a tie, so that at large tau the nearest Boolean
    state of each soft step is the oracle's, and with it every attractor and the label.
    """
    for n in (1, 2, 3):
        circuits = enumerate_circuits(n)
        circuits = circuits[distinct(circuits)]
        adjacency, states = torch.from_numpy(circuits).float(), all_states(n)
        new = dynamics.soft_step(states.expand(len(circuits), -1, -1), adjacency, 10.0)
        assert (new - 0.5).abs().min() > 0.49
        code = (new.round().long() * 2 ** torch.arange(n)).sum(-1)
        hard = torch.stack([torch.from_numpy(successors(m)).long() for m in circuits])
        assert torch.equal(code, hard)
        n_fixed = (code == torch.arange(2**n)).sum(1)
        assert (n_fixed.numpy() == analyse_circuits(circuits).n_fixed_point).all()


def test_statistics_of_sharp_soft_dynamics_are_those_of_the_hard_rule():
    for n in (2, 3, 4):
        adjacency = drawn(200, n, "sharp")
        hard = dynamics.statistics(adjacency, SETTINGS, float("inf"))
        soft = dynamics.statistics(adjacency, SETTINGS, 30.0)
        for a, b in zip(hard, soft, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_gradients_reach_weights_and_starts():
    adjacency = drawn(8, 3).requires_grad_()
    start = torch.full((8, 4, 3), 0.4, requires_grad=True)
    run = dynamics.soft_run(start, adjacency, tau=3.0, n_step=10, n_window=4)
    run.final.sum().backward()
    assert adjacency.grad is not None and adjacency.grad.abs().max() > 0
    assert start.grad is not None and start.grad.abs().max() > 0


@pytest.mark.parametrize("n", [1, 2, 4, 6, 9, 20])
def test_starts_are_an_equivariant_set_of_at_most_32(n):
    adjacency = drawn(6, n, "starts")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    turned = adjacency[:, order][:, :, order]
    before, after = (dynamics.starting_states(a, 32) for a in (adjacency, turned))
    assert before.shape[1] <= 32
    for one, other in zip(before[:, :, order], after, strict=True):
        as_sets = [sorted(map(tuple, rows.tolist())) for rows in (one, other)]
        assert as_sets[0] == as_sets[1]


def test_starts_tell_symmetric_genes_apart():
    """In a ring of toggles every gene looks the same; the starts must not all be symmetric."""
    n = 6
    adjacency = torch.zeros(1, n, n)
    for i in range(n):
        adjacency[0, i, (i + 1) % n] = adjacency[0, (i + 1) % n, i] = -1
    starts = dynamics.starting_states(adjacency, 32)[0]
    assert len({tuple(s) for s in starts.tolist()}) > 2
    node, pair, _ = dynamics.statistics(adjacency, SETTINGS, 10.0)
    against = pair[0, :, :, dynamics.n_statistics(SETTINGS)[1] - 10]
    assert node.shape == (1, n, len(dynamics.NODE_STATISTICS))
    assert against[0, 1] > 0.9


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_statistics_follow_a_relabelling(n):
    adjacency = drawn(40, n, "statistics")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    turned = adjacency[:, order][:, :, order]
    for tau in (4.0, 10.0):
        node, pair, graph = dynamics.statistics(adjacency, SETTINGS, tau)
        node_, pair_, graph_ = dynamics.statistics(turned, SETTINGS, tau)
        assert torch.allclose(node[:, order], node_, atol=1e-5)
        assert torch.allclose(pair[:, order][:, :, order], pair_, atol=1e-5)
        assert torch.allclose(graph, graph_, atol=1e-5)


@pytest.mark.parametrize("relations", [True, False])
@pytest.mark.parametrize("interventions", [True, False])
def test_switches_change_the_number_of_statistics(relations, interventions):
    settings = dynamics.DynamicsSettings(32, 40, 12, relations, interventions)
    node, pair, graph = dynamics.statistics(drawn(5, 3), settings, 10.0)
    assert (node.shape[-1], pair.shape[-1], graph.shape[-1]) == dynamics.n_statistics(settings)


def test_statistics_of_known_circuits():
    def of(rows):
        node, pair, graph = dynamics.statistics(torch.tensor([rows]).float(), SETTINGS, 12.0)
        names = (
            dynamics.PAIR_STATISTICS + dynamics.RELATION_STATISTICS + dynamics.RESPONSE_STATISTICS
        )
        return (
            dict(zip(dynamics.NODE_STATISTICS, node[0].T, strict=True)),
            dict(zip(names, pair[0].permute(2, 0, 1), strict=True)),
            dict(zip(dynamics.GRAPH_STATISTICS, graph[0], strict=True)),
        )

    node, pair, _ = of([[0, -1], [-1, 0]])  # toggle
    assert pair["switch_against"][0, 1] > 0.95 and node["bistable_in_slice"].min() > 0.95
    assert pair["remembers"][0, 1] > 0.95
    node, _, graph = of([[0, -1, 0], [0, 0, -1], [-1, 0, 0]])  # repressilator
    assert node["moves_most"].min() > 0.9 and graph["settles_least"] < 0.1
    _, pair, _ = of([[0, 1, 1], [0, 0, -1], [0, 0, 0]])  # incoherent feed-forward loop
    assert pair["pulse"][0, 2] > 0.8 and pair["pulse"][0, 1] < 0.1
    _, pair, _ = of([[0, 1, 0], [0, 0, 1], [0, 0, 0]])  # cascade
    assert pair["raised_together"][1, 2] > 0.9 and pair["switch_against"].max() < 0.1
    _, pair, _ = of([[0, 1], [0, 0]])
    assert pair["raised"][0, 1] > 0.9 and pair["raised"][1, 0] < 0.1


def test_circuits_do_not_see_each_other():
    adjacency = torch.from_numpy(enumerate_circuits(2)).float()
    together = dynamics.statistics(adjacency, SETTINGS, 10.0)
    alone = dynamics.statistics(adjacency[7:8], SETTINGS, 10.0)
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a[7:8], b, atol=1e-6)


def test_too_many_starts_or_steps_are_refused():
    with pytest.raises(ConfigError, match="n_start"):
        dynamics.DynamicsSettings(33, 40, 12, True, True)
    with pytest.raises(ConfigError, match="n_step"):
        dynamics.DynamicsSettings(32, 41, 12, True, True)
    with pytest.raises(ConfigError, match="n_start of at least"):
        dynamics.starting_states(torch.zeros(1, 10, 10), 8)
