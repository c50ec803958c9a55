from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import gauged_stoichiometry
from neuralgraph.systems.metabolism.evaluation import MetabolismEvaluator
from neuralgraph.systems.metabolism.held_out import held_out_rollouts
from neuralgraph.systems.metabolism.kinetics import MassAction, network_of_truth
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.network import network_from_edges

SETTINGS = {
    "every": 0,
    "primary_metric": "exact_edges_identifiable",
    "direction": "maximize",
    "class_metric": "stoichiometry_R2",
    "class_rule": "score",
    "converged_above": 0.9,
    "failed_below": 0.1,
    "trivial_margin": 0.05,
    "degeneracy": ["test_pearson", "stoichiometry_R2"],
    "max_coefficient": 2,
    "rtol": 1e-8,
    "rollout_method": "rk4",
    "rollout_n_substep": 1,
    "cluster_eps": 0.1,
    "cluster_min_samples": 3,
}
LOG = {"final_loss": 0.25}


def evaluator(**changes):
    return MetabolismEvaluator(**{**SETTINGS, **changes})


def case(*, stoichiometry=False, support=True, roles=True, planted=True, homeostasis=False):
    """A small mass-action network with its data and a model that holds the truth."""
    g = torch.Generator().manual_seed(7)
    n_met, n_rxn = 10, 16
    sub, net = [], []
    for j in range(n_rxn):
        met = torch.randperm(n_met, generator=g)[:4].tolist()
        size = torch.randint(1, 3, (4,), generator=g).tolist()
        n_sub = 1 + j % 2
        sub += [(m, j, s) for m, s in zip(met[:n_sub], size[:n_sub], strict=True)]
        net += [(m, j, -s) for m, s in zip(met[:n_sub], size[:n_sub], strict=True)]
        net += [(m, j, s) for m, s in zip(met[n_sub:], size[n_sub:], strict=True)]

    def edges(rows):
        return tuple(torch.tensor(column) for column in zip(*rows, strict=True))

    network = network_from_edges(
        edges(sub), edges(net), [f"M{i}" for i in range(n_met)], [f"R{j}" for j in range(n_rxn)]
    )
    log_k = -3 + torch.rand(n_rxn, generator=g, dtype=torch.float64)
    law = MassAction(network, log_k.numpy(), network.sto_sub.numpy())
    types = (torch.arange(n_met) >= 5).long()
    rate = torch.tensor([0.02, 0.05], dtype=torch.float64)[types] * homeostasis
    level = torch.tensor([1.0, 2.0], dtype=torch.float64)[types]

    def rhs(c):
        flux = torch.from_numpy(law.flux(c.numpy()))
        return flux @ network.matrix().T - rate * (c - level)

    n_run, n_time, dt = 30, 6, 0.05
    state = [0.5 + 2 * torch.rand(n_run, n_met, generator=g, dtype=torch.float64)]
    for _ in range(n_time - 1):
        c = state[-1]
        k1 = rhs(c)
        k2 = rhs(c + dt / 2 * k1)
        k3 = rhs(c + dt / 2 * k2)
        state.append(c + dt / 6 * (k1 + 2 * k2 + 2 * k3 + rhs(c + dt * k3)))
    states = torch.stack(state, 1)
    recording = Recording(
        time=(dt * torch.arange(n_time, dtype=torch.float64)).expand(n_run, -1).clone(),
        state=states,
        names=network.metabolite_names,
        dx_dt=rhs(states.reshape(-1, n_met)).reshape(states.shape),
        dx_dt_source="exact",
        is_test=torch.arange(n_run) >= 25,
        provenance={"reaction_names": list(network.reaction_names)},
    )
    parameters = {
        name: getattr(network, name)
        for name in ("met_sub", "rxn_sub", "sto_sub", "met_all", "rxn_all", "sto_all")
    }
    parameters |= {"log_k": log_k, "order_sub": network.sto_sub}
    if homeostasis:
        parameters |= {
            "metabolite_type": types,
            "homeostasis_lambda": rate,
            "homeostasis_baseline": level,
        }
    facts = {
        "rate_law": "mass_action",
        "metabolite_names": list(network.metabolite_names),
        "reaction_names": list(network.reaction_names),
        "warnings": [],
    }
    truth = Truth(parameters, facts)
    given = {"n_rxn": torch.tensor(n_rxn)}
    names = []
    if support:
        names += ["met_all", "rxn_all"]
    if roles:
        names += ["met_sub", "rxn_sub"]
    if stoichiometry:
        names += ["sto_all", "sto_sub"]
    given |= {name: parameters[name] for name in names}
    if support and roles:
        given["sign_all"] = network.sto_all.sign()
    data = MetabolismData(recording, given, validation_fraction=0.0)
    model = Metabolism_Propagation(
        data.spec,
        generator=torch.Generator().manual_seed(0),
        kinetics="mass_action",
        hidden_dim_sub=4,
        homeostasis=homeostasis,
        initial_power=1.0,
        initial_log_k=(-3.0, -2.0),
    ).double()
    with torch.no_grad():
        for p in model.MLP_sub.parameters():
            if p.ndim:
                p.zero_()  # what is left is c ** |s|
        if planted:
            model.log_k.copy_(log_k)
            if not stoichiometry:
                dense = network.matrix()
                in_rate = torch.zeros_like(dense)
                in_rate[network.met_sub, network.rxn_sub] = network.sto_sub
                model.set_stoichiometry(
                    sto_all=dense[model.met_all, model.rxn_all],
                    sto_sub=in_rate[model.met_sub, model.rxn_sub],
                )
    return model, data, truth


def test_the_true_parameters_score_perfectly_and_every_score_has_its_trivial_neighbour():
    model, data, truth = case()
    card = evaluator()(model, data, truth, log=LOG)
    for name in (
        "stoichiometry_R2",
        "stoichiometry_R2_full",
        "stoichiometry_R2_refit",
        "exact_edges",
        "exact_columns",
        "exact_edges_identifiable",
        "rate_constants_R2",
        "test_R2",
        "test_R2_change",
        "test_pearson",
        "test_R2_one_step",
        "alpha",
    ):
        assert card.metrics[name] == pytest.approx(1, abs=1e-6), name
    assert card.metrics["n_outliers"] == 0
    assert card.metrics["final_loss"] == 0.25
    assert card.facts["class"] == card.facts["class_document"] == "converged"
    assert card.facts["diagnosis"].startswith("nothing")
    assert card.facts["degeneracy"].startswith("healthy")
    baselines = card.facts["baselines"]
    assert baselines["stoichiometry_R2"]["1.5 × known sign"] == pytest.approx(
        card.metrics["stoichiometry_R2_trivial"]
    )
    for name in (
        "test_R2",
        "test_pearson",
        "test_R2_one_step",
        "exact_columns",
        "final_loss",
        "stoichiometry_R2_full",
        "stoichiometry_R2_refit",
        "rate_constants_R2_identifiable",
        "n_outliers_identifiable",
        "max_abs_dlog10_k_identifiable",
        "trimmed_R2",
        "slope",
    ):
        assert baselines[name], name
    assert baselines["slope"]["best constant"] == pytest.approx(0, abs=1e-12)
    assert 0 < baselines["n_outliers_identifiable"]["best constant"] <= data.spec.n_rxn
    assert baselines["stoichiometry_R2_full"]["1.5 × known sign"] < 1
    assert baselines["test_R2"]["no change"] < 1
    assert "sign_accuracy" in card.not_computed and "support_f1" in card.not_computed


def test_scaling_a_column_against_its_rate_constant_changes_no_score_but_the_refit():
    model, data, truth = case()
    before = evaluator()(model, data, truth, log=LOG)
    alpha = 10 ** torch.linspace(-1, 1, data.spec.n_rxn, dtype=torch.float64)
    with torch.no_grad():
        model.set_stoichiometry(sto_all=model.sto_all * alpha[model.rxn_all])
        model.log_k -= alpha.log10()
    after = evaluator()(model, data, truth, log=LOG)
    refit = "stoichiometry_R2_refit"
    assert after.metrics.pop(refit) < before.metrics.pop(refit) - 0.1
    assert after.metrics == pytest.approx(before.metrics, abs=1e-6)


def test_an_untrained_model_is_told_apart_and_its_faults_are_named():
    model, data, truth = case(planted=False)
    card = evaluator()(model, data, truth, log=LOG)
    assert card.metrics["exact_edges"] < 0.9
    assert card.metrics["rate_constants_R2"] < 0.5
    assert "magnitude" in card.facts["diagnosis"]
    assert card.facts["class"] != "converged"


def test_the_given_prior_decides_what_is_scored():
    given = evaluator(class_metric="rate_constants_R2", degeneracy=None)
    card = given(*case(stoichiometry=True), log=LOG)
    assert card.not_computed["exact_edges"] == "the stoichiometry is given"
    assert card.not_computed["identifiable_fraction_columns"] == "the stoichiometry is given"
    assert card.metrics["rate_constants_R2"] == pytest.approx(1)
    assert card.facts["class"] == "converged"
    unknown = evaluator()(*case(support=False), log=LOG)
    assert unknown.metrics["support_f1"] == 1
    assert unknown.metrics["sign_accuracy"] == 1
    assert 0 < unknown.facts["baselines"]["support_f1"]["every pair"] < 0.7
    roles = evaluator()(*case(roles=False), log=LOG)
    assert roles.metrics["sign_accuracy"] == 1 and "support_f1" in roles.not_computed
    assert roles.facts["baselines"]["exact_edges"]["1.5 × known sign"] == 0


def test_measured_data_skip_what_needs_truth_and_score_the_rest():
    model, data, _ = case()
    card = evaluator()(model, data, None, log=LOG)
    assert card.not_computed["exact_edges"] == "no truth: measured data"
    assert card.metrics["test_R2_one_step"] == pytest.approx(1)
    assert card.metrics["test_R2"] == pytest.approx(1)
    assert card.facts["class"].startswith("none: stoichiometry_R2 was not computed")
    assert card.not_computed["degeneracy_gap"] == "stoichiometry_R2 was not computed"
    assert evaluator().watch(model, data, None) == {}


def test_identifiability_does_not_depend_on_the_estimate():
    cards = [
        evaluator()(*case(planted=planted), log=LOG).facts["identifiability"]
        for planted in (True, False)
    ]
    assert cards[0] == cards[1]
    assert len(cards[0]) == 16 and {"reaction", "column_determined", "k_reason"} <= set(cards[0][0])


def test_a_rollout_that_diverges_is_reported_with_its_time_and_json_stays_finite(tmp_path):
    model, data, truth = case()
    with torch.no_grad():
        model.set_stoichiometry(sto_all=model.sto_all.abs().clamp_min(1) * model.sto_all.sign())
        model.log_k += 6
    card = evaluator(rollout_method="euler")(model, data, truth, log=LOG)
    assert "test_R2" not in card.metrics
    assert "diverged at t = " in card.not_computed["test_R2"]
    assert "(M" in card.not_computed["test_R2"]
    card.save(tmp_path)
    text = json.loads((tmp_path / "scorecard.json").read_text())
    assert all(math.isfinite(value) for value in text["metrics"].values())


def test_homeostasis_slopes_and_clusters_are_read_per_type():
    model, data, truth = case(stoichiometry=True, homeostasis=True)
    types = truth.parameters["metabolite_type"]
    with torch.no_grad():
        model.a.copy_(types[:, None].double() * 2 + 0.01 * torch.arange(10)[:, None])
    card = evaluator(class_metric="rate_constants_R2", degeneracy=None)(model, data, truth, log=LOG)
    assert card.metrics["MLP_node_gt_slope_0"] == pytest.approx(-0.02)
    assert card.metrics["MLP_node_gt_offset_1"] == pytest.approx(0.1)
    assert card.metrics["embedding_cluster_acc"] == 1
    assert card.metrics["embedding_n_clusters"] == 2
    assert card.metrics["embedding_silhouette"] > 0.9
    ratio = card.metrics["MLP_node_slope_0"] / -0.02
    assert card.metrics["MLP_node_slope_ratio_0"] == pytest.approx(ratio)


def test_watch_returns_a_few_of_the_same_numbers():
    model, data, truth = case(planted=False)
    watched = evaluator().watch(model, data, truth)
    card = evaluator()(model, data, truth, log=LOG)
    assert {"exact_edges", "stoichiometry_R2", "rate_constants_R2"} <= set(watched)
    for name, value in watched.items():
        assert value == pytest.approx(card.metrics[name])


def test_kept_rollouts_are_made_anew_when_the_weights_change():
    model, data, _ = case()
    first = held_out_rollouts(model, data, method="rk4", n_substep=1)
    assert held_out_rollouts(model, data, method="rk4", n_substep=1) is first
    with torch.no_grad():
        model.log_k += 0.3
    second = held_out_rollouts(model, data, method="rk4", n_substep=1)
    assert not torch.equal(first[0].predicted, second[0].predicted)
    assert torch.equal(first[0].predicted[0], first[0].seen[0])


def test_evaluating_changes_neither_weights_nor_the_truth():
    model, data, truth = case()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = {name: value.clone() for name, value in truth.parameters.items()}
    evaluator()(model, data, truth, log=LOG)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(v, held[n]) for n, v in truth.parameters.items())


def test_the_gauge_has_no_way_to_see_the_truth():
    model, data, truth = case()
    arguments = inspect.signature(gauged_stoichiometry).parameters
    assert list(arguments) == ["model", "data", "max_coefficient"]
    doubled = replace(
        truth, parameters={**truth.parameters, "sto_all": 2 * truth.parameters["sto_all"]}
    )
    one = evaluator()(model, data, truth, log=LOG).metrics["exact_edges"]
    other = evaluator()(model, data, doubled, log=LOG).metrics["exact_edges"]
    assert network_of_truth(doubled).sto_all.abs().max() == 4
    assert one == 1 and other == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "up"}, "maximize or minimize"),
        ({"degeneracy": ["test_pearson"]}, "pair"),
        ({"failed_below": 0.95}, "swap them"),
        ({"rollout_method": "dopri5"}, "must be one of"),
        ({"max_coefficient": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluator(**changes)


def test_units_are_those_of_the_recording():
    model, data, truth = case(stoichiometry=True, homeostasis=True)
    data.time_unit, data.concentration_unit = "h", "uM"
    card = evaluator()(model, data, truth, log=LOG)
    assert card.units["final_loss"] == "(uM/h)²"
    assert card.units["MLP_node_slope_0"] == "1/h"
    assert card.units["MLP_node_offset_1"] == "uM/h"


def test_what_cannot_fit_the_data_is_noted_and_logged(caplog):
    model, data, truth = case()
    assert "note" not in evaluator()(model, data, truth, log=LOG).facts
    data.spec = replace(data.spec, flux_limit=True)
    with caplog.at_level("WARNING", logger="neuralgraph"):
        limited = Metabolism_Propagation(
            data.spec, generator=torch.Generator().manual_seed(0), kinetics="mass_action"
        ).double()
        data.note("the penalty is biased")
        data.note("the penalty is biased")
    assert [r.getMessage() for r in caplog.records] == [limited.notes[0], "the penalty is biased"]
    note = evaluator(max_coefficient=1)(limited, data, truth, log=LOG).facts["note"]
    assert "model.flux_limit=true" in note
    assert note.count("the penalty is biased") == 1
    assert "the true coefficients reach 2, the gauge considers up to 1" in note
    same = Metabolism_Propagation(
        data.spec, generator=torch.Generator().manual_seed(0), kinetics="mass_action",
        flux_limit=True,
    )  # fmt: skip
    assert not same.notes


def test_a_ceiling_that_cannot_be_computed_says_which_openness_is_to_blame():
    model, data, truth = case()
    truth.facts["log_k_range"] = [-3.0, -2.0]
    assert "rate_constants_R2_ceiling" in evaluator()(model, data, truth, log=LOG).metrics
    truth.parameters["sto_all"] = truth.parameters["sto_all"].clone()
    truth.parameters["sto_all"][0] *= 1.3
    card = evaluator()(model, data, truth, log=LOG)
    assert "their columns of S are" in card.not_computed["rate_constants_R2_ceiling"]
