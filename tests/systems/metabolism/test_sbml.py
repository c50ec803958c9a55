"""SBML: reading, splitting, drawn mass action, own kinetics, files that cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError, SolverError
from neuralgraph.systems.metabolism.kinetics import network_of_truth, true_flux
from neuralgraph.systems.metabolism.sbml import directed_network, read_sbml

pytest.importorskip("libsbml", reason="python-libsbml is not installed (extra [sbml])")
CONF = Path(__file__).parents[3] / "conf" / "simulator"
FREE = {"support": False, "roles": False, "stoichiometry": False, "rate_constants": False}


def make(stem: str, **changes: Any) -> Any:
    """Simulator of a config file with some keys changed."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONF / f"{stem}.yaml")
    config.pop("seed")  # the pipeline's
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=False)
    return instantiate(config, _convert_="all")


def real(name: str) -> str:
    """The name of a real model, or skip with the reason."""
    try:
        find_data(name)
    except MissingDataError as error:
        pytest.skip(str(error))
    return name


TOY = """<?xml version="1.0" encoding="UTF-8"?>
<sbml xmlns="http://www.sbml.org/sbml/level2/version4" level="2" version="4">
<model id="toy"><listOfCompartments><compartment id="c" size="1"/></listOfCompartments>
<listOfSpecies>
<species id="M_a" compartment="c" initialConcentration="2"/>
<species id="M_b" compartment="c" initialConcentration="1"/>
<species id="M_fixed" compartment="c" initialConcentration="1" boundaryCondition="true"/>
</listOfSpecies>
<listOfParameters><parameter id="k" value="{k}"/></listOfParameters>
<listOfReactions>{reactions}</listOfReactions></model></sbml>"""
CONVERT = """<reaction id="R_convert" reversible="{reversible}">
<listOfReactants><speciesReference species="M_a" stoichiometry="2"/></listOfReactants>
<listOfProducts><speciesReference species="M_b"/><speciesReference species="M_fixed"/>
</listOfProducts>
<kineticLaw><math xmlns="http://www.w3.org/1998/Math/MathML">
<apply><times/><ci>k</ci>{law}</apply></math></kineticLaw></reaction>"""
EXCHANGE = """<reaction id="R_EX_a" reversible="false">
<listOfReactants><speciesReference species="M_a"/></listOfReactants></reaction>"""


def toy(folder: Path, *, k: float = 0.5, reversible: str = "true", law: str = "<ci>M_a</ci>",
        exchange: bool = False) -> str:  # fmt: skip
    text = CONVERT.format(reversible=reversible, law=law) + (EXCHANGE if exchange else "")
    path = folder / "toy.xml.gz"
    path.write_bytes(gzip.compress(TOY.format(k=k, reactions=text).encode()))
    return str(path)


def test_boundary_species_are_left_out_and_named(tmp_path):
    model = read_sbml(toy(tmp_path))
    assert model.metabolite_names == ("a", "b")
    assert any("M_fixed" in w for w in model.warnings)


def test_reversible_reactions_become_a_named_pair(tmp_path):
    network, split = directed_network(read_sbml(toy(tmp_path)), exchange="declared")
    assert network.reaction_names == ("convert", "convert_reverse")
    assert network.matrix().tolist() == [[-2.0, 2.0], [1.0, -1.0]]
    assert split == ["convert"]
    one_way = read_sbml(toy(tmp_path, reversible="false"))
    assert directed_network(one_way, exchange="declared")[0].n_rxn == 1


def test_exchanges_are_fed_and_drained_by_default(tmp_path):
    model = read_sbml(toy(tmp_path, exchange=True, reversible="false"))
    both, _ = directed_network(model, exchange="bidirectional")
    assert both.reaction_names == ("convert", "EX_a", "EX_a_reverse")
    simulator = make(
        "metabolism_sbml", model=toy(tmp_path, exchange=True, reversible="false"), n_run=3,
        n_test_run=0, n_frame=6,
    )  # fmt: skip
    recording, truth = simulator.simulate(1)
    v = true_flux(truth, network_of_truth(truth), recording.state.reshape(-1, 2))
    k = 10 ** truth.parameters["log_k"]
    torch.testing.assert_close(v[:, 2], k[2].expand(18))  # constant import
    torch.testing.assert_close(v[:, 1], k[1] * recording.state.reshape(-1, 2)[:, 0])
    assert "order_sub" in simulator.reveal(recording, truth, **{**FREE, "roles": True})


def test_the_order_rule_sets_the_kinetic_order(tmp_path):
    for rule, order in (("one", 1.0), ("coefficient", 2.0)):
        _, truth = make(
            "metabolism_sbml", model=toy(tmp_path, reversible="false"), order_rule=rule, n_run=1,
            n_test_run=0,
        ).simulate(1)  # fmt: skip
        assert truth.parameters["order_sub"].tolist() == [order]
        assert truth.parameters["sto_sub"].tolist() == [2.0]


def test_a_file_without_reactions_is_refused(tmp_path):
    path = tmp_path / "empty.xml"
    path.write_text(TOY.format(k=1, reactions=""), encoding="utf-8")
    with pytest.raises(DataError, match="holds no reactions"):
        read_sbml(path)


@pytest.mark.parametrize("content", [b"not xml at all", b"\x1f\x8bbroken", b""])
def test_a_file_that_is_no_sbml_is_refused(tmp_path, content):
    path = tmp_path / "broken.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.xml"):
        read_sbml(path)


def test_a_model_that_is_not_there_names_the_places(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALGRAPH_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"neuralgraph\.fetch bigg"):
        make("metabolism_sbml", model="bigg/absent.xml.gz").simulate(1)


def test_the_core_network_of_e_coli():
    recording, truth = make(
        "metabolism_sbml", model=real("bigg/textbook.xml.gz"), n_run=8, n_test_run=2
    ).simulate(42)
    p, facts = truth.parameters, recording.provenance
    assert recording.n_var == 72
    assert facts["split"].startswith("72 metabolites and 95 reactions in the file; 59 reactions")
    assert facts["n_rxn"] == 154
    assert int((~p["is_integer_column"]).sum()) == 2
    assert float(p["sto_all"].abs().max()) == pytest.approx(59.81)
    assert float(recording.state.min()) > 0
    assert float(recording.state.max()) < 20
    network = network_of_truth(truth)
    v = true_flux(truth, network, recording.state.reshape(-1, 72))
    torch.testing.assert_close(
        (v @ network.matrix().T).reshape(recording.state.shape), recording.dx_dt
    )
    assert facts["mass_balanced"] is False


def test_forward_and_backward_columns_are_opposite():
    model = read_sbml(find_data(real("bigg/textbook.xml.gz")))
    network, split = directed_network(model, exchange="declared")
    S, names = network.matrix(), network.reaction_names
    for name in split:
        assert torch.equal(S[:, names.index(name)], -S[:, names.index(name + "_reverse")])


@pytest.mark.long
def test_a_genome_scale_model_simulates():
    recording, _ = make(
        "metabolism_sbml", model=real("bigg/iJO1366.xml.gz"), n_run=1, n_test_run=0, n_frame=3
    ).simulate(1)
    assert recording.n_var == 1805
    assert "2583 reactions in the file" in recording.provenance["split"]
    assert any("duplicated" in w for w in recording.provenance["warnings"])


def kinetic(folder: Path, **changes: Any) -> Any:
    pytest.importorskip("roadrunner", reason="libroadrunner is not installed (extra [sbml])")
    model = changes.pop("model", None) or toy(folder)
    return make("metabolism_sbml_kinetic", **{
        "model": model, "n_run": 2, "n_test_run": 1, "n_frame": 6, "split_reversible": False,
        **changes,
    })  # fmt: skip


def test_own_kinetics_give_exact_rates_and_fluxes(tmp_path):
    recording, truth = kinetic(tmp_path).simulate(1)
    flux = truth.parameters["flux"]
    torch.testing.assert_close(flux[..., 0], 0.5 * recording.state[..., 0], rtol=1e-9, atol=0)
    S = network_of_truth(truth).matrix()
    torch.testing.assert_close(flux @ S.T, recording.dx_dt)
    expected = recording.state[:, :1, 0] * torch.exp(-recording.time)  # da/dt = -2 k a
    torch.testing.assert_close(recording.state[..., 0], expected, rtol=1e-6, atol=0)
    fold = recording.state[:, 0] / torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert float(fold.max()) <= 1.5 and float(fold.min()) >= 1 / 1.5
    assert truth.facts["kinetic_laws"] == {"convert": "k * M_a"}
    assert recording.is_test.tolist() == [False, False, True]


def test_products_in_a_law_are_arguments_of_the_rate_without_losing_their_sign(tmp_path):
    law = "<apply><minus/><ci>M_a</ci><ci>M_b</ci></apply>"
    simulator = kinetic(tmp_path, model=toy(tmp_path, law=law), n_frame=40, dt=1.0)
    recording, truth = simulator.simulate(1)
    p = truth.parameters
    assert p["met_sub"].tolist() == [0, 1]
    assert p["sto_sub"].tolist() == [2.0, 1.0]
    assert p["sign_all"].tolist() == [-1.0, 1.0]
    with pytest.raises(ConfigError, match=r"prior\.rate_constants=true needs 'log_k'"):
        simulator.reveal(recording, truth, **{**FREE, "rate_constants": True})


def test_a_split_reaction_shares_its_flux_between_forward_and_backward(tmp_path):
    law = "<apply><minus/><ci>M_a</ci><ci>M_b</ci></apply>"
    kept = kinetic(tmp_path, model=toy(tmp_path, law=law), n_frame=40, dt=1.0)
    split = kinetic(
        tmp_path, model=toy(tmp_path, law=law), n_frame=40, dt=1.0, split_reversible=True
    )
    (recording, one), (again, two) = kept.simulate(1), split.simulate(1)
    assert torch.equal(recording.dx_dt, again.dx_dt)
    flux = two.parameters["flux"]
    assert two.facts["reaction_names"] == ["convert", "convert_reverse"]
    assert float(flux.min()) == 0 and float(flux.max()) > 0
    torch.testing.assert_close(flux[..., 0] - flux[..., 1], one.parameters["flux"][..., 0])
    S = network_of_truth(two).matrix()
    assert S.tolist() == [[-2.0, 2.0], [1.0, -1.0]]
    assert two.parameters["met_sub"].tolist() == [0, 1]
    torch.testing.assert_close(flux @ S.T, again.dx_dt, rtol=1e-9, atol=1e-12)


def test_structure_alone_cannot_be_simulated_with_its_own_kinetics(tmp_path):
    with pytest.raises(DataError, match="simulator=metabolism_sbml"):
        kinetic(tmp_path, model=toy(tmp_path, exchange=True)).simulate(1)


def test_a_solver_that_fails_names_reaction_and_time(tmp_path):
    growth = "<apply><minus/><apply><power/><ci>M_a</ci><cn>3</cn></apply></apply>"
    with pytest.raises(SolverError, match=r"t = .*fastest reaction convert.*initial_fold"):
        kinetic(tmp_path, model=toy(tmp_path, law=growth, k=2.0), n_frame=20).simulate(1)


def test_the_central_carbon_model_of_e_coli(tmp_path):
    simulator = kinetic(tmp_path, model=real("biomd51/BIOMD0000000051.xml"), n_frame=21, dt=0.5)
    (recording, truth), (again, _) = simulator.simulate(42), simulator.simulate(42)
    assert (recording.n_var, recording.provenance["n_rxn"]) == (18, 48)
    assert float(truth.parameters["sto_all"].abs().max()) == 65
    assert recording.provenance["dx_dt_minus_S_v_max"] < 1e-9
    assert "catp" in recording.provenance["time_dependent_names"]
    assert recording.inputs["time_dependent"].shape == (3, 21, 7)
    assert recording.units["time"] == "s"
    warnings = " ".join(recording.provenance["warnings"])
    assert "explicit functions of time" in warnings and "run backwards" in warnings
    assert torch.equal(recording.state, again.state)
    assert torch.equal(recording.dx_dt, again.dx_dt)
