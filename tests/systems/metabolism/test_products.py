"""A recovered network as files: read back by ourselves, by libsbml and by libroadrunner."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from neuralgraph.systems.metabolism.network import network_from_edges
from neuralgraph.systems.metabolism.plots import MetabolismReporter
from neuralgraph.systems.metabolism.products import (
    Reaction,
    coefficient_evidence,
    recovered_network,
    write_products,
)
from neuralgraph.systems.metabolism.sbml_export import write_sbml

_path = Path(__file__).with_name("test_evaluation.py")
_spec = importlib.util.spec_from_file_location("metabolism_case", _path)
assert _spec is not None and _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


def written(folder, store=None, **options):
    """The products of a small mass-action network whose model holds the truth."""
    model, data, truth = cases.case(**options)
    network = recovered_network(model, data, max_coefficient=2, store=store or {})
    products = list(write_products(network, data, folder, title="a test"))
    return network, {p.path.name: p for p in products if p.path}, data, truth


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_matrix_has_names_and_the_true_integers(tmp_path):
    _, files, data, truth = written(tmp_path)
    rows = table(tmp_path / "stoichiometry.csv")
    assert rows[0] == ["metabolite", *data.spec.reaction_names]
    assert [row[0] for row in rows[1:]] == list(data.spec.metabolite_names)
    found = torch.tensor([[int(x) for x in row[1:]] for row in rows[1:]]).double()
    true = cases.network_of_truth(truth).matrix()
    assert torch.equal(found, true)
    assert set(files) == {
        "stoichiometry.csv", "stoichiometry_confidence.csv", "reactions.txt", "network.xml",
    }  # fmt: skip


def test_every_coefficient_has_a_confidence_and_exact_data_give_certainty(tmp_path):
    network, _, _, _ = written(tmp_path)
    rows = table(tmp_path / "stoichiometry_confidence.csv")
    assert rows[0][:5] == ["metabolite", "reaction", "coefficient", "confidence", "log_evidence"]
    assert len(rows) - 1 == network.met.numel()
    assert min(float(row[3]) for row in rows[1:]) > 0.999
    assert min(float(row[4]) for row in rows[1:]) > 100


def test_the_log_evidence_of_the_loop_is_taken_where_there_is_one(tmp_path):
    model, data, _ = cases.case()
    evidence = torch.full((model.met_all.numel(),), 3.0)
    network = recovered_network(model, data, max_coefficient=2, store={"confidence": evidence})
    torch.testing.assert_close(network.evidence, torch.full_like(network.evidence, 3.0))
    torch.testing.assert_close(network.confidence, torch.sigmoid(network.evidence))


def test_evidence_is_the_log_likelihood_ratio_of_the_regression():
    g = torch.Generator().manual_seed(1)
    n, sd = 4000, 0.5
    rate = torch.randn(n, 2, generator=g, dtype=torch.float64)
    noise = sd * torch.randn(n, 1, generator=g, dtype=torch.float64)
    target = (rate[:, :1] - 2 * rate[:, 1:]) + noise
    met, rxn = torch.tensor([0, 0]), torch.tensor([0, 1])
    integer, sign = torch.tensor([1.0, -2.0]).double(), torch.tensor([1.0, -1.0]).double()
    evidence, error, residual = coefficient_evidence(
        rate, target, met, rxn, integer, sign, max_coefficient=2, is_support_given=True
    )
    torch.testing.assert_close(error, torch.full_like(error, sd / n**0.5), rtol=0.05, atol=0)
    expected = 1 / (2 * error**2)  # the next best integer is 1 away
    assert ((evidence / expected - 1).abs() < 0.1).all()
    torch.testing.assert_close(residual, torch.tensor([sd / (5 + sd**2) ** 0.5]).double(),
                               rtol=0.05, atol=0)  # fmt: skip


def test_rates_that_are_proportional_decide_nothing():
    rate = torch.rand(50, 1, dtype=torch.float64).repeat(1, 2) * torch.tensor([1.0, 3.0])
    both = torch.tensor([0, 0]), torch.tensor([0, 1])
    evidence, error, _ = coefficient_evidence(
        rate.double(), rate.sum(1, keepdim=True).double(), *both, torch.ones(2).double(),
        torch.ones(2).double(), max_coefficient=2, is_support_given=True,
    )  # fmt: skip
    assert evidence.tolist() == [0, 0] and torch.isinf(error).all()


def test_a_wrong_integer_has_a_confidence_below_one_half():
    rate = torch.rand(50, 1, dtype=torch.float64)
    one = torch.tensor([0])
    evidence, _, _ = coefficient_evidence(
        rate, 2 * rate, one, one, torch.ones(1).double(), torch.ones(1).double(),
        max_coefficient=2, is_support_given=True,
    )  # fmt: skip
    assert float(evidence) < -100


def test_reactions_read_like_chemistry():
    names = ["A", "B", "C"]
    autocatalytic = Reaction("r", {0: 1.0, 1: 1.0}, {1: 2.0}, {}, None, True, None)
    assert autocatalytic.text(names) == "A + B -> 2 B"
    assert Reaction("r", {}, {2: 1.0}, {}, None, True, None).text(names) == "-> C"
    assert Reaction("r", {2: 0.25}, {}, {}, None, True, None).text(names) == "0.25 C ->"
    assert "no metabolite" in Reaction("r", {}, {}, {}, None, True, None).text(names)


def test_a_catalyst_stands_on_both_sides(tmp_path):
    model, data, _ = cases.case()
    # the last substrate of R1 is used in the rate law and not consumed
    edge = int(((model.rxn_all == 1) & (model.sto_all < 0)).nonzero()[0])
    met = int(model.met_all[edge])
    with torch.no_grad():
        model.sign_all[edge] = 0  # type: ignore[index]
        model._parameters["sto_all"][edge] = 1.0
    network = recovered_network(model, data, max_coefficient=2, store={})
    reaction = network.reactions[1]
    assert reaction.left[met] >= 1 and reaction.right[met] == reaction.left[met] + 1


def test_the_network_comes_back_from_its_sbml_file(tmp_path):
    libsbml = pytest.importorskip("libsbml", reason="python-libsbml is not installed (extra sbml)")
    from neuralgraph.systems.metabolism.sbml import directed_network, read_sbml

    _, _, data, truth = written(tmp_path)
    document = libsbml.readSBML(str(tmp_path / "network.xml"))
    document.checkConsistency()
    assert document.getNumErrors(libsbml.LIBSBML_SEV_ERROR) == 0
    assert document.getLevel() == 3
    read = read_sbml(tmp_path / "network.xml")
    back, split = directed_network(read, exchange="declared")
    assert torch.equal(back.matrix(), cases.network_of_truth(truth).matrix()) and not split
    assert back.metabolite_names == data.spec.metabolite_names
    assert back.reaction_names == data.spec.reaction_names
    assert read.time_unit == "min"


def test_libroadrunner_runs_the_recovered_network_as_the_model_does(tmp_path):
    roadrunner = pytest.importorskip("roadrunner", reason="libroadrunner is not installed")
    pytest.importorskip("libsbml")
    _, _, data, _ = written(tmp_path)
    runner = roadrunner.RoadRunner((tmp_path / "network.xml").read_text())
    frame = data.train
    names = data.spec.metabolite_names
    speed = torch.tensor([runner[f"M_{name}'"] for name in names], dtype=torch.float64)
    torch.testing.assert_close(speed, frame.dx_dt[0], rtol=1e-6, atol=1e-9)
    runner.timeCourseSelections = ["time", *[f"[M_{name}]" for name in names]]
    runner.integrator.relative_tolerance = 1e-8
    end = torch.from_numpy(runner.simulate(0, 5 * data.spec.frame_interval, 2)[-1, 1:].copy())
    torch.testing.assert_close(end, frame.concentration[5], rtol=1e-4, atol=1e-6)


def test_without_the_extra_the_report_says_so_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libsbml", None)
    model, data, _ = cases.case()
    network = recovered_network(model, data, max_coefficient=2, store={})
    products = list(write_products(network, data, tmp_path, title="x"))
    assert products[-1].path is None and "neuralgraph[sbml]" in products[-1].caption
    assert (tmp_path / "stoichiometry.csv").exists() and not (tmp_path / "network.xml").exists()


def test_names_that_sbml_does_not_allow_stay_apart(tmp_path):
    libsbml = pytest.importorskip("libsbml")
    names = ["D-glucose", "D_glucose", "α", "2pg"]
    reaction = Reaction("1 → 2", {0: 1.0}, {1: 1.0, 2: 2.0}, {0: 1.0, 3: 0.5}, 0.1, True, 0.9)
    write_sbml(
        tmp_path / "n.xml", title="1 test", metabolite_names=names, reactions=[reaction],
        initial=torch.ones(4), time_unit="weeks", concentration_unit="a.u.", notes=["a < b"],
    )  # fmt: skip
    model = libsbml.readSBML(str(tmp_path / "n.xml")).getModel()
    assert [model.getSpecies(i).getName() for i in range(4)] == names
    assert len({model.getSpecies(i).getId() for i in range(4)}) == 4
    assert model.getReaction(0).getNumModifiers() == 1  # 2pg acts and is not consumed


def test_given_coefficients_are_no_result_and_rate_constants_are_written(tmp_path):
    _, files, _, truth = written(tmp_path, stoichiometry=True)
    assert set(files) == {"reactions.txt", "network.xml"}
    first = (tmp_path / "reactions.txt").read_text().splitlines()[0]
    k = float(10 ** truth.parameters["log_k"][0])
    assert float(first.rsplit("k = ", 1)[1]) == pytest.approx(k, rel=1e-3)


def test_a_column_of_fractions_keeps_them():
    """The rest of the network is exact, so a coefficient far from every integer is meant."""
    model, data, _ = cases.case()
    edge = int((model.rxn_all == 3).nonzero()[0])
    with torch.no_grad():
        model._parameters["sto_all"][edge] *= 13.7
    data._dx_dt[:, model.met_all[edge]] += (
        model.flux(data.train.concentration)[:, 3].detach()
        * (model.sto_all[edge] - model.sto_all[edge] / 13.7).detach()
    )
    network = recovered_network(model, data, max_coefficient=2, store={})
    assert [r.is_integer for r in network.reactions].count(False) == 1
    assert not network.reactions[3].is_integer
    column = network.coefficient[network.rxn == 3].abs()
    assert float(column.min()) == 1.0 and float(column.max()) > 6


def test_the_reporter_yields_the_products_without_the_truth(tmp_path):
    model, data, truth = cases.case(planted=False)
    card = cases.evaluator()(model, data, truth, log=cases.LOG)
    card.provenance["name"] = "run"
    reporter = MetabolismReporter(
        n_metabolite_shown=2, n_curve_shown=2, max_image_size=10, is_periodic=False
    )
    products = list(reporter.products(model, data, card, tmp_path, store={}))
    assert all((tmp_path / p.path.name).exists() for p in products if p.path)
    shown = next(p for p in products if p.title == "Reactions").preview
    assert shown.splitlines()[0].startswith("R0: ") and "->" in shown


def test_a_network_without_roles_is_written_with_what_it_consumes(tmp_path):
    network, _, _, _ = written(tmp_path, roles=False, support=True)
    for reaction in network.reactions:
        assert not set(reaction.left) & set(reaction.right)
    assert any("no kinetic law" in note for note in network.notes)


def test_the_matrix_file_is_a_graph_for_recorded_data(tmp_path):
    """What a run writes, the next run can be told."""
    import pandas as pd

    from neuralgraph.systems.metabolism.recorded import _from_matrix

    _, _, data, truth = written(tmp_path)
    path = tmp_path / "stoichiometry.csv"
    network, _ = _from_matrix(pd.read_csv(path), data.spec.metabolite_names, path)
    assert torch.equal(network.matrix(), cases.network_of_truth(truth).matrix())


def test_an_empty_reaction_is_named_and_written(tmp_path):
    pytest.importorskip("libsbml")
    from neuralgraph.systems.metabolism.sbml import directed_network, read_sbml

    reactions = [
        Reaction("r1", {0: 1.0}, {1: 1.0}, {0: 1.0}, 1.0, True, None),
        Reaction("r2", {}, {}, {}, None, True, None),
    ]
    write_sbml(
        tmp_path / "n.xml", title="t", metabolite_names=["A", "B"], reactions=reactions,
        initial=torch.ones(2), time_unit="s", concentration_unit="mM", notes=[],
    )  # fmt: skip
    network, _ = directed_network(read_sbml(tmp_path / "n.xml"), exchange="declared")
    expected = network_from_edges(
        (torch.tensor([0]), torch.tensor([0]), torch.ones(1)),
        (torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([-1.0, 1.0])),
        ["A", "B"], ["r1", "r2"],
    )  # fmt: skip
    assert torch.equal(network.matrix(), expected.matrix())
