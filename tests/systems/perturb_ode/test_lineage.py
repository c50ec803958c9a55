"""Rules as networks, lineages with known ends, clouds that a field is fitted to."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.systems.perturb_ode.lineage import (
    CloudData,
    CloudObjective,
    LineageField,
    LineageScreen,
    fit_clouds,
)
from neuralgraph.systems.perturb_ode.lineage_evaluation import LineageEvaluator, shares_of
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.rules import TREE, read_rules, read_start
from neuralgraph.training.session import Session

CONSTANTS = {"maximum": 1.0, "gamma": 1.0, "threshold": 0.5, "exponent": 6.0}
COUNTS = Measurement(
    depth=500.0, depth_spread=0.2, batch_spread=0.0, batch_condition_spread=0.0, dispersion=0.1,
    dropout="none", dropout_rate=0.0, dropout_steepness=1.0, dropout_percentile=65.0, reference=0.0,
)  # fmt: skip
TREE_SCREEN = {
    "rules": "tree", "kind": "pin", "n_test": 2, "days": [1.0, 4.0, 8.0], "n_cell": 24,
    "noise": 0.2, "start_spread": 0.05, "measurement": COUNTS, **CONSTANTS,
}  # fmt: skip


def rules(text: str, **changed):
    return read_rules("Gene\tRule\n" + text, source="test", **{**CONSTANTS, **changed})


def test_at_saturated_hill_functions_production_is_the_rule():
    network = rules("A\t(B or C) and not A\nB\tnot (A and C)\nC\tC\n", exponent=200.0)
    for bits in itertools.product((False, True), repeat=3):
        a, b, c = bits
        state = torch.tensor([float(x) for x in bits], dtype=torch.float64)
        expected = [(b or c) and not a, not (a and c), c]
        torch.testing.assert_close(
            network.production(state), torch.tensor(expected, dtype=torch.float64)
        )


def test_between_on_and_off_the_table_is_interpolated():
    network = rules("A\tB or C\nB\tB\nC\tC\n", exponent=1.0)
    x = torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64)
    h = x / (0.5 + x)
    assert float(network.production(x)[0]) == pytest.approx(float(h[1] + h[2] - h[1] * h[2]))
    assert network.is_edge.tolist()[0] == [False, True, True]


def test_a_gene_without_a_rule_keeps_its_level_and_wrong_rules_are_named():
    network = rules("A\tInput\n", exponent=50.0)
    assert network.names == ("A", "Input")
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(network.rate(x, torch.ones(2), torch.ones(2))[1]) == pytest.approx(0, abs=1e-9)
    for text, words in (
        ("A\tB +\n", "line 2: the rule of 'A' cannot be read"),
        ("A\tB + C\n", r"holds 'B \+ C'"),
        ("A\tf(B)\n", r"holds 'f\(B\)'"),
        ("A B\n", "expected gene, tab and rule"),
        ("A\tB\nA\tC\n", "'A' has a rule already"),
        ("", "holds no rule"),
    ):
        with pytest.raises(DataError, match=words):
            rules(text)


@pytest.mark.parametrize(
    ("name", "n_gene", "inputs_of"),
    [
        ("HSC", 11, {"Gata1": {"Gata1", "Gata2", "Fli1", "Pu1"}}),
        ("GSD", 19, {"FGF9": {"SOX9", "WNT4"}}),
        ("mCAD", 5, {"Sp8": {"Fgf8", "Emx2"}}),
        ("VSC", 8, {"Nkx61": {"Dbx2"}}),
        ("dyn-bifurcating", 7, {"g7": {"g4"}}),
    ],
)
def test_published_rule_files_are_read(name, n_gene, inputs_of):
    try:
        path = find_data(f"boolode/{name}.txt")
    except MissingDataError as error:
        pytest.skip(str(error))
    network = read_rules(path.read_text(), source=name, **CONSTANTS)
    assert network.n_gene == n_gene
    for gene, inputs in inputs_of.items():
        row = network.is_edge[network.names.index(gene)]
        assert {n for n, flag in zip(network.names, row, strict=True) if flag} == inputs
    start = path.with_name(f"{name}_ics.txt")
    if start.is_file():
        assert set(read_start(start)) <= set(network.names)


@pytest.fixture(scope="module")
def tree():
    return LineageScreen(**TREE_SCREEN).simulate(1)


def test_the_tree_ends_in_its_four_kinds_of_cells():
    network = read_rules(TREE, source="tree", **CONSTANTS)
    screen = LineageScreen(**{**TREE_SCREEN, "n_cell": 80, "n_test": 0, "days": [10.0]})
    recording, truth = screen.simulate(3)
    ends = {frozenset(n for n, v in zip(network.names, row, strict=True) if v > 0.5)
            for row in truth.parameters["ends"]}  # fmt: skip
    assert {"Red", "Mega", "Mono", "Gran"} <= set().union(*ends)
    assert all(len({"Red", "Mega", "Mono", "Gran"} & end) <= 1 for end in ends)
    cells = recording.graph["cells"].reshape(10, 2, 80, 9)
    lost = recording.provenance["conditions"].index("Ery")
    for gene in ("Ery", "Red", "Mega", "Hb", "Plt"):
        assert cells[lost, 1, :, network.names.index(gene)].median() < 0.3
    assert cells[0, 1, :, network.names.index("Ery")].quantile(0.75) > 0.6


def test_a_pinned_gene_is_gone_and_the_same_seed_gives_the_same_cells(tree):
    recording, _ = tree
    target = recording.graph["target"][recording.graph["cell_condition"]]
    assert (recording.graph["cells"][target > 0] == 0).all()
    again, _ = LineageScreen(**TREE_SCREEN).simulate(1)
    assert torch.equal(again.graph["cells"], recording.graph["cells"])


def test_a_clear_error_names_what_needs_no_file():
    with pytest.raises(
        MissingDataError, match=r"fetch boolode.*perturb_ode_lineage_tree needs none"
    ):
        LineageScreen(**{**TREE_SCREEN, "rules": "boolode/nothing.txt"}).simulate(0)
    with pytest.raises(ConfigError, match="lower n_test"):
        LineageScreen(**{**TREE_SCREEN, "n_test": 9}).simulate(0)


def field(data, **changed):
    knobs = {"n_hidden": 6, "max_step": 0.5, "is_noisy": True, "has_growth": False, **changed}
    return LineageField(data.spec, generator=torch.Generator().manual_seed(0), **knobs).double()


@pytest.mark.parametrize("kind", ["pin", "knockout"])
def test_a_pinned_gene_stays_at_0_and_one_no_longer_produced_flickers(kind):
    screen = LineageScreen(**{**TREE_SCREEN, "kind": kind, "days": [4.0, 8.0], "n_cell": 8})
    data = CloudData(screen.simulate(1)[0], {})
    with torch.no_grad():
        clouds, _ = field(data)(data.everything())
    gone = data.everything().production[:, None, None].expand_as(clouds) == 0
    assert bool((clouds[gone] == 0).all()) == (kind == "pin")
    assert float(clouds[~gone].std()) > 0


@pytest.mark.parametrize("has_growth", [False, True])
def test_training_brings_the_clouds_closer(tree, has_growth):
    data = CloudData(tree[0], {"is_edge": tree[1].parameters["is_edge"]})
    model = field(data, has_growth=has_growth)
    objective = CloudObjective(distance="energy", blur=0.05)
    batch = data.batch(data.starts(1))
    before = float(objective(model, batch).total.detach())
    session = Session(model, data, objective, seed=0)
    fit_clouds(session, n_epochs=12, learning_rate=0.05, clip_norm=1.0)
    assert float(objective(model, batch).total.detach()) < 0.7 * before
    _, weights = model(batch)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (float(weights.detach().std()) > 1e-6) is has_growth


def test_held_out_clouds_are_not_read_in_training(tree):
    recording, _ = tree
    changed = recording.graph["cells"].clone()
    is_held = recording.is_test[recording.graph["cell_condition"]]
    changed[is_held] += 3.0
    other = replace(recording, graph={**recording.graph, "cells": changed})
    found = []
    for one in (recording, other):
        data = CloudData(one, {})
        model = field(data)
        session = Session(model, data, CloudObjective(distance="energy", blur=0.05), seed=0)
        fit_clouds(session, n_epochs=2, learning_rate=0.05, clip_norm=1.0)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_a_gene_sees_its_regulators_alone_where_the_graph_is_given(tree):
    recording, truth = tree
    edges = truth.parameters["is_edge"]
    model = field(CloudData(recording, {"is_edge": edges}))
    x = torch.rand(1, 9, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda y: model.drift(y, torch.ones(1, 9).double()), x
    )[0, :, 0]
    off = ~(edges | torch.eye(9, dtype=torch.bool))
    assert jacobian[off].abs().max() == 0 and jacobian[edges].abs().min() > 0


def test_a_sinkhorn_loss_trains_too(tree):
    pytest.importorskip("ot", reason="POT (extra 'transport') is not installed")
    data = CloudData(tree[0], {})
    model = field(data)
    objective = CloudObjective(distance="sinkhorn", blur=0.1)
    terms = objective(model, data.batch(data.starts(1)[:2]))
    terms.total.backward()
    assert model.outer.grad is not None and float(model.outer.grad.abs().sum()) > 0
    with pytest.raises(ConfigError, match="sinkhorn"):
        CloudObjective(distance="sinkhorm", blur=0.1)


def test_the_true_cells_have_no_error_and_pseudotime_follows_the_days(tree):
    recording, truth = tree
    data = CloudData(recording, {})

    class Oracle(torch.nn.Module):
        def forward(self, batch, seed=0):
            mine = batch.target.flip(2)
            return mine, torch.full(mine.shape[:3], 1 / mine.shape[2]).to(mine)

    judge = LineageEvaluator(
        every=0, primary_metric="energy_distance_held_out", direction="minimize",
        n_cell_pseudotime=700, n_neighbors=30,
    )  # fmt: skip
    card = judge(Oracle(), data, truth, log={"final_loss": 0.0})
    assert card.metrics["energy_distance_held_out"] < 0
    assert card.metrics["energy_distance_held_out_no_change"] > 0.5
    assert card.metrics["type_share_error_held_out"] == pytest.approx(0, abs=1e-6)
    assert card.metrics["pseudotime_day_spearman"] > 0.5
    shares = shares_of(torch.tensor([[0, 2, 2, 2]]), 3, torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    torch.testing.assert_close(shares, torch.tensor([[0.4, 0.0, 0.6]]).double())
