"""Causal readings of a protocol, and a linear field as a structural causal model."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.perturb_ode.causal import (
    branching_tree,
    contextual_graph,
    gene_graph,
    linear_scm,
)
from neuralgraph.systems.perturb_ode.operators import (
    CellState,
    Culture,
    Medium,
    Perturb,
    apply,
    in_vivo,
)

NAMES = ("A", "B", "C")


def test_the_rest_of_a_linear_field_is_a_linear_scm_under_the_same_intervention():
    generator = torch.Generator().manual_seed(0)
    w = 0.4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)  # cycles included
    w.fill_diagonal_(0)
    base = torch.rand(4, generator=generator, dtype=torch.float64)
    gamma = 0.8 + torch.rand(4, generator=generator, dtype=torch.float64)

    def field(cells: CellState) -> torch.Tensor:
        seen = cells.regulation * cells.expression
        return cells.production * (seen @ w.T + base) - gamma * cells.expression

    cells = CellState.unperturbed(torch.ones(1, 4).double(), torch.zeros(1).double())
    scaled, constant = w / gamma[:, None], base / gamma
    for protocol, pinned in (
        ([], {}),
        ([Perturb(2, "pin", 1.7)], {2: 1.7}),
        ([Perturb(1, "pin", 0.0), Perturb(3, "pin", 0.4)], {1: 0.0, 3: 0.4}),
        ([Perturb(0)], {0: 0.0}),  # production stopped: rest at 0
    ):
        rest = apply([*protocol, Culture(80.0)], cells, field).expression[0]
        torch.testing.assert_close(rest, linear_scm(scaled, constant, pinned), atol=1e-9, rtol=0)


def test_the_contextual_graph_follows_the_protocol():
    protocol = in_vivo(Perturb(1), Medium((1.0,)), expansion=2.0, engraftment=10.0)
    graph = contextual_graph(protocol, NAMES, ["A", "C"])
    names = [node.name for node in graph.nodes]
    assert names == ["X before", "P: knockout of B", "X on day 2", "M: v = 1", "X on day 12"]
    edges = {(names[e.source], names[e.target], e.label) for e in graph.edges}
    assert edges == {
        ("X before", "X on day 2", "W 2 d"),
        ("P: knockout of B", "X on day 2", "B"),
        ("X on day 2", "X on day 12", "W 10 d"),
        ("P: knockout of B", "X on day 12", "B"),
        ("M: v = 1", "X on day 12", "A, C"),
    }
    twice = contextual_graph([Medium((1.0,)), Culture(1.0), Medium((2.0,)), Culture(1.0)], NAMES)
    last = [twice.nodes[e.source].name for e in twice.edges if e.target == len(twice.nodes) - 1]
    assert "M: v = 1" not in last and "M: v = 2" in last


def test_perturbations_are_parameters_of_genes_and_never_variables():
    sign = torch.tensor([[0, 1, 0], [-1, 0, 1], [1, 0, 0]])
    assert len(gene_graph(sign, NAMES).edges) == 4
    for kind, level, gone, word in (
        ("knockout", 0.0, set(), "u = 0"),
        ("pin", 0.5, {(0, 1), (2, 1)}, "x = 0.5"),
        ("nuclease", 0.0, {(1, 0)}, "w = 0"),
    ):
        graph = gene_graph(sign, NAMES, [Perturb(1, kind, level), Culture(1.0)])
        assert [node.name for node in graph.nodes] == list(NAMES)
        assert [node.parameter for node in graph.nodes] == ["", word, ""]
        whole = {(1, 0), (0, 1), (2, 1), (0, 2)}
        assert {(e.source, e.target) for e in graph.edges} == whole - gone
    with pytest.raises(ConfigError, match=r"\(3, 3\)"):
        gene_graph(sign[:2], NAMES)


@pytest.mark.parametrize(("n_p", "n_m"), [(0, 0), (3, 0), (2, 1), (3, 2)])
def test_the_tree_has_exactly_the_product_of_leaves(n_p, n_m):
    media = [Medium((float(m),)) for m in range(n_m)]
    tree = branching_tree([Perturb(g) for g in range(n_p)], media, NAMES)
    assert len(tree.leaves) == len(set(tree.leaves)) == (n_p + 1) * (n_m + 1)
    assert len(tree.branches) == n_p + 1


def test_a_simulated_screen_shows_its_design(inside, tmp_path):
    status, message = inside(
        "simulate", "+experiment=perturb_ode_simulated", "simulator.n_gene=6",
        "simulator.n_train_single=3", "simulator.n_test_single=1", "simulator.n_test_double=2",
        "simulator.n_medium=1", "hydra.run.dir=out",
    )  # fmt: skip
    assert status == 0, message
    found = {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    assert found == {"branching.png", "contextual.png", "genes.png"}
    assert "10 leaves" in (tmp_path / "out" / "report.html").read_text()
