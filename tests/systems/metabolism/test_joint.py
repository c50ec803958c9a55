from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import yaml

from neuralgraph.building import build
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.seeding import torch_generator
from neuralgraph.nn.mlp import MLP
from neuralgraph.numerics.identifiability import Group
from neuralgraph.systems.metabolism import metrics, structure, verdicts
from neuralgraph.systems.metabolism.closed_form import log_k_of_combination
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import homeostasis_lines
from neuralgraph.systems.metabolism.evaluation import MetabolismEvaluator
from neuralgraph.systems.metabolism.joint import fit_joint, set_model, standard_errors
from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_networks import fit_network
from neuralgraph.systems.metabolism.joint_split import split_undetermined
from neuralgraph.systems.metabolism.joint_types import metabolite_types
from neuralgraph.systems.metabolism.loop import data_train_metabolism
from neuralgraph.systems.metabolism.loss import MetabolismObjective
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.training.session import Session

PRIOR = {"support": True, "roles": True, "stoichiometry": True, "rate_constants": False}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def simulated(seed, rate=(0.001, 0.002), baseline=(4.0, 6.0), **changes):
    """A small network of autocatalytic cycles: data and truth."""
    with open(f"{CONFIG_FOLDER}/simulator/metabolism_oscillatory.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    config["homeostasis"].update(lambda_per_min=list(rate), baseline_mM=list(baseline))
    small = {"n_met": 18, "n_rxn": 31, "n_frame": 240, "n_test_run": 1}
    simulator = build({**config, **small, **changes}, "simulator")
    recording, truth = simulator.simulate(seed)
    given = simulator.reveal(recording, truth, **PRIOR)
    return MetabolismData(recording, given, validation_fraction=0.0), truth


def model_for(data, **changes):
    arguments = {
        "kinetics": "mass_action",
        "homeostasis": True,
        "hidden_dim_node": 32,
        "n_layers_node": 2,
        "tabulate": 128,
        **changes,
    }
    generator = torch_generator(0, "model")
    model = Metabolism_Propagation(data.spec, generator=generator, **arguments)
    return model.to(data.dtype)


def identifiable(data, truth):
    from neuralgraph.systems.metabolism.kinetics import network_of_truth, true_flux

    network = network_of_truth(truth)
    flux = true_flux(truth, network, data.train.concentration)
    log_k = truth.parameters["log_k"]
    return structure.identifiability(
        network, flux, log_k=log_k, is_stoichiometry_given=True, rtol=1e-8
    )


def loss_of(model, data):
    with torch.no_grad():
        return float(MetabolismObjective()(model, data.train).total)


def slopes(model, data, types):
    slope, offset = homeostasis_lines(model, data)
    each = types.unique().tolist()
    return (
        torch.stack([slope[types == t].median() for t in each]),
        torch.stack([offset[types == t].median() for t in each]),
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rate_constants_homeostasis_and_types_come_back_together(seed):
    data, truth = simulated(seed)
    model = model_for(data)
    said = set_model(model, data.spec, data.train, max_types=8).said
    found = identifiable(data, truth)
    error = (model.log_k.detach() - truth.parameters["log_k"]).abs()
    assert float(error[found.k].max()) < 1e-4
    assert said["power"] == pytest.approx(1, abs=1e-9) and said["n_types"] == 2
    types = truth.parameters["metabolite_type"]
    slope, offset = slopes(model, data, types)
    torch.testing.assert_close(slope, f64(-0.001, -0.002), rtol=0.01, atol=0)
    torch.testing.assert_close(offset, f64(0.004, 0.012), rtol=0.02, atol=0)
    centre = torch.stack([model.a[types == t].mean(0) for t in (0, 1)]).detach()
    assert float((model.a.detach() - centre[types]).norm(dim=1).max()) < 1e-6
    assert float((centre[0] - centre[1]).norm()) == pytest.approx(1)
    assert loss_of(model, data) < 1e-10


@pytest.mark.parametrize(
    ("rate", "baseline"),
    [
        ((0.001,), (4.0,)),
        ((0.001, 0.002, 0.004), (4.0, 6.0, 3.0)),
        ((0.001, 0.001, 0.003, 0.002), (4.0, 6.0, 5.0, 2.0)),
        ((0.0, 0.002), (4.0, 6.0)),
    ],
)
def test_the_number_of_types_is_found(rate, baseline):
    data, truth = simulated(4, rate, baseline)
    model = model_for(data)
    said = set_model(model, data.spec, data.train, max_types=8).said
    assert said["n_types"] == len(rate)
    slope, _ = slopes(model, data, truth.parameters["metabolite_type"])
    torch.testing.assert_close(slope, -f64(*rate), rtol=0.01, atol=1e-6)


def test_it_is_deterministic_and_does_not_depend_on_the_model_s_start():
    data, _ = simulated(5)
    models = [model_for(data), model_for(data)]
    with torch.no_grad():
        models[1].log_k.fill_(3.0)
    for model in models:
        set_model(model, data.spec, data.train, max_types=8)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_gradient_phase_does_not_raise_the_loss_and_moves_every_kind_of_parameter():
    data, truth = simulated(6)
    model = model_for(data)
    set_model(model, data.spec, data.train, max_types=8)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = loss_of(model, data)
    session = Session(model, data, MetabolismObjective(), seed=0)
    data_train_metabolism(
        session,
        start="closed_form",
        max_coefficient=2,
        max_types=8,
        fit_to="derivative",
        n_epochs=4,
        batch_size=64,
        n_batches=20,
        learning_rate_start=1e-8,
        learning_rate_k=0.0,
        learning_rate_node=0.0,
        learning_rate_sub=0.0,
        learning_rate_embedding=0.0,
        learning_rate_S_start=0.0,
        clip_S=None,
    )
    assert loss_of(model, data) < before
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert {"log_k", "a", "MLP_node.0.weight", "MLP_sub.power", "MLP_sub.net.2.weight"} <= moved
    found = identifiable(data, truth)
    assert float((model.log_k.detach() - truth.parameters["log_k"]).abs()[found.k].max()) < 1e-4


def test_a_plain_substrate_network_and_single_precision_are_served_too():
    data, truth = simulated(7)
    found = identifiable(data, truth)
    plain = model_for(data, substrate_form="plain")
    said = set_model(plain, data.spec, data.train, max_types=8).said
    assert said["error_MLP_sub"] < 1e-3
    assert float((plain.log_k.detach() - truth.parameters["log_k"]).abs()[found.k].median()) < 5e-3
    single = data.astype(torch.float32)
    model = model_for(single)
    set_model(model, single.spec, single.train, max_types=8)
    assert float((model.log_k.detach() - truth.parameters["log_k"]).abs()[found.k].max()) < 1e-2


def test_the_scorecard_of_document_002_is_within_every_target():
    data, truth = simulated(1)
    model = model_for(data)
    set_model(model, data.spec, data.train, max_types=8)
    judge = MetabolismEvaluator(
        every=0,
        primary_metric="rate_constants_R2_identifiable",
        direction="maximize",
        class_metric="rate_constants_R2_identifiable",
        class_rule="joint",
        converged_above=0.9,
        failed_below=0.5,
        trivial_margin=0.05,
        degeneracy=["test_pearson", "rate_constants_R2"],
        max_coefficient=2,
        rtol=1e-8,
        rollout_method="rk4",
        rollout_n_substep=1,
        cluster_eps=0.1,
        cluster_min_samples=5,
    )
    card = judge(model, data, truth, log={"final_loss": loss_of(model, data)})
    m = card.metrics
    assert m["rate_constants_R2_identifiable"] > 0.99999 and m["n_outliers_identifiable"] == 0
    assert m["rate_constants_R2"] < m["rate_constants_R2_identifiable"]
    assert 0.5 < m["rate_constants_R2_ceiling"] < 1
    assert abs(m["alpha"] - 1) < 1e-3 and m["MLP_sub_curve_error_1"] < 1e-6
    assert "not determined" in card.not_computed["MLP_sub_curve_error_2"]
    for t in (0, 1):
        assert m[f"MLP_node_slope_ratio_{t}"] == pytest.approx(1, abs=0.01)
        assert m[f"MLP_node_offset_ratio_{t}"] == pytest.approx(1, abs=0.02)
    assert m["embedding_cluster_acc"] == 1 and m["embedding_n_clusters"] == 2
    assert card.facts["class"] == "converged"
    assert card.facts["homeostasis"] == "type 0: correct; type 1: correct"
    assert m["degeneracy_gap"] == pytest.approx(m["test_pearson"] - m["rate_constants_R2"])
    with torch.no_grad():  # opposite errors, which the mean of the ratios hides
        model.homeostasis = lambda c: (
            -torch.where(  # type: ignore[method-assign]
                truth.parameters["metabolite_type"] == 0, 0.0001, 0.0038
            )
            * (c - 5)
        )
    wrong = judge(model, data, truth, log={})
    assert wrong.metrics["avg_slope_ratio"] == pytest.approx(1, abs=0.01)
    assert wrong.facts["class"] == "partial-k"


# -- rate laws that are no power law ---------------------------------------------------------------


def kinetic(law, *, noise=0.0, n_frame=600, orders=(1.0,)):
    """Frames at random concentrations of a random network with the law ``f(c, s)``."""
    g = torch.Generator().manual_seed(11)
    n_met, n_rxn = 12, 20
    pairs = torch.combinations(torch.arange(n_met))  # no two reactions on one pair
    met = pairs[torch.randperm(len(pairs), generator=g)[:n_rxn]].flatten()
    rxn = torch.arange(n_rxn).repeat_interleave(2)
    order = f64(*orders)[torch.arange(2 * n_rxn) % len(orders)]
    sto = torch.zeros(n_met, n_rxn, dtype=torch.float64)
    sto[met, rxn] = f64(-1.0, 1.0).repeat(n_rxn)
    c = torch.exp(3 * torch.rand(n_frame, n_met, generator=g, dtype=torch.float64) - 1.0)
    k = 10 ** (torch.rand(n_rxn, generator=g, dtype=torch.float64) - 2)
    v = torch.ones(n_frame, n_rxn, dtype=torch.float64)
    for e in range(2 * n_rxn):
        v[:, rxn[e]] *= law(c[:, met[e]], float(order[e]))
    lines = f64(0.01, -0.002).expand(n_met, 2)
    y = (v * k) @ sto.T + lines[:, 0] + lines[:, 1] * c
    y = y * (1 + noise * torch.randn(y.shape, generator=g, dtype=torch.float64))
    return KineticData(c, y, met, rxn, order, sto, None, True), k


LAWS = {
    "michaelis_menten": lambda c, s: 3 * c / (c + 2),
    "hill": lambda c, s: 10 * c**2 / (c**2 + 9),
    "by_order": lambda c, s: c if s == 1 else 4 * c / (c + 3),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_that_is_no_power_law_is_not_snapped_to_one(name):
    orders = (1.0, 2.0) if name == "by_order" else (1.0,)
    data, k = kinetic(LAWS[name], orders=orders)
    fit = fit_joint(data)
    assert fit.law.power is None
    x = torch.linspace(-0.9, 1.9, 50, dtype=torch.float64)
    for level, order in enumerate(orders):
        learned = fit.law.log_value(x, level)
        torch.testing.assert_close(learned, LAWS[name](x.exp(), order).log(), rtol=0, atol=2e-3)
    assert float((fit.log_k - k.log10()).abs().max()) < 2e-3


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize("power", [0.7, 1.0, 2.0])
def test_a_power_law_is_snapped_to_one_with_and_without_noise(power, noise):
    data, k = kinetic(lambda c, s: c ** (power * s), noise=noise, orders=(1.0, 2.0))
    fit = fit_joint(data)
    assert fit.law.power == pytest.approx(power, abs=1e-10 + noise)
    assert float((fit.log_k - k.log10()).abs().max()) < 1e-8 + 30 * noise


# -- parts -----------------------------------------------------------------------------------------


def test_undetermined_rate_constants_are_positive_and_keep_what_is_determined():
    k = f64(0.02, 0.05, 0.08, 0.06, 0.06, 0.015, -0.015, 7.0)
    is_determined = torch.arange(8) < 3
    found = [
        Group((3, 4), 1, f64(1.0, 1.0)),
        Group((5, 6), 1, f64(1.0, -1.0)),
        Group((7,), 1, None),
    ]
    split = split_undetermined(k, found, is_determined, 8)
    assert bool((split > 0).all())
    torch.testing.assert_close(split[:3], k[:3])
    torch.testing.assert_close(split[3] + split[4], f64(0.12)[0])
    torch.testing.assert_close(split[5] - split[6], f64(0.03)[0])
    assert 0.02 < float(split[7]) < 0.08
    assert 0.01 < float(split[6]) < 0.08


def test_posterior_of_a_combination_agrees_with_rejection_sampling():
    weight, value, prior = f64(1.0, -1.0), 0.03, (-2.0, -1.0)
    mean, variance = log_k_of_combination(weight, value, prior)
    draw = prior[0] + torch.rand(2_000_000, 2, generator=torch.Generator().manual_seed(0))
    near = ((10**draw) @ weight.float() - value).abs() < 3e-4
    torch.testing.assert_close(mean, draw[near].double().mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(variance, draw[near].double().var(0), atol=0.005, rtol=0)


def test_ceiling_counts_only_what_is_left_open():
    log_k = f64(-1.9, -1.5, -1.1, -1.3)
    everything = torch.ones(4, dtype=torch.bool)
    arguments = {"prior": (-2.0, -1.0)}
    assert (
        metrics.rate_constants_ceiling(log_k, is_determined=everything, group=[], **arguments) == 1
    )
    open_one = everything.clone()
    open_one[3] = False
    dead = [Group((3,), 1, None)]
    value = metrics.rate_constants_ceiling(log_k, is_determined=open_one, group=dead, **arguments)
    spread = float((log_k - log_k.mean()).square().sum())
    assert value == pytest.approx(1 - (1 / 12) / spread)


@pytest.mark.parametrize("n_type", [1, 2, 4])
@pytest.mark.parametrize("spread", [1e-9, 0.05])
def test_types_by_information_criterion(n_type, spread):
    g = torch.Generator().manual_seed(n_type)
    centres = f64(4, -1, 12, -2, 0, -4, 20, -0.5).view(4, 2)
    label = torch.arange(60) % n_type
    z = centres[label] + spread * torch.randn(60, 2, generator=g, dtype=torch.float64)
    z[0] = f64(40.0, 3.0)  # a metabolite of no type makes no type
    covariance = (spread**2 * torch.eye(2, dtype=torch.float64)).expand(60, 2, 2)
    types = metabolite_types(z, covariance, smallest=f64(4e-3, 1e-3), max_types=8)
    assert len(types.mean) == n_type
    group = types.posterior.argmax(1)[1:]
    for t in range(n_type):
        assert len(group[label[1:] == t].unique()) == 1
    assert len(group.unique()) == n_type


def test_a_badly_measured_metabolite_follows_its_own_covariance():
    z = torch.cat([f64(0, 0).expand(20, 2), f64(1, 1).expand(20, 2), f64(5, 1).view(1, 2)])
    covariance = 1e-6 * torch.eye(2, dtype=torch.float64).repeat(41, 1, 1)
    covariance[40, 0, 0] = 100.0  # its first coordinate is worthless
    types = metabolite_types(z, covariance, smallest=f64(1e-3, 1e-3), max_types=4)
    assert len(types.mean) == 2
    assert types.posterior.argmax(1)[40] == types.posterior.argmax(1)[39]


def test_network_fit_in_the_space_of_points_reaches_the_target():
    net = MLP(2, 1, hidden_dim=32, n_layers=3, generator=torch_generator(0, "net")).double()
    x = torch.linspace(-2, 2, 60, dtype=torch.float64)
    inputs = torch.stack([x, torch.ones_like(x)], dim=1)
    target = torch.sin(2 * x) + 0.3 * x
    said = fit_network(net, inputs, target)
    error = float((net.single(inputs).detach() - target).square().mean().sqrt())
    assert error / float(target.square().mean().sqrt()) == pytest.approx(said, rel=1e-6)
    assert said < 1e-4


def test_standard_errors_cover_the_errors_that_noise_makes():
    data, k = kinetic(lambda c, s: c, noise=0.0)
    g = torch.Generator().manual_seed(5)
    z = []
    for _ in range(6):
        size = 0.01 * data.target.square().mean(0).sqrt()
        error = size * torch.randn(data.target.shape, generator=g, dtype=torch.float64)
        fit = fit_joint(replace(data, target=data.target + error))
        z.append((fit.log_k - k.log10()) / fit.deviation)
    spread = float(torch.cat(z).square().mean().sqrt())
    assert 0.7 < spread < 1.5
    types = metabolite_types(
        torch.stack([fit.line[:, 0] + fit.at * fit.line[:, 1], fit.line[:, 1]], 1),
        fit.covariance,
        smallest=f64(1e-6, 1e-6),
        max_types=2,
    )
    said = standard_errors(fit, types, None)
    assert len(types.mean) == 1 and said["type_of"].unique().tolist() == [0]
    assert abs(float(said["type_slope"][0]) + 0.002) < 4 * float(said["type_slope_error"][0])
    assert abs(float(said["type_offset"][0]) - 0.01) < 4 * float(said["type_offset_error"][0])


# -- data that cannot say everything ---------------------------------------------------------------


def test_fewer_frames_than_parameters_leave_no_invalid_number():
    data, _ = simulated(8, n_frame=12)
    model = model_for(data)
    set_model(model, data.spec, data.train, max_types=8)
    assert bool(torch.isfinite(model.log_k).all()) and math.isfinite(loss_of(model, data))


def test_a_stationary_recording_is_answered_not_crashed_on():
    data, _ = kinetic(lambda c, s: c, n_frame=50)
    still = KineticData(
        data.concentration[:1].expand(50, -1).clone(), torch.zeros_like(data.target),
        data.met_sub, data.rxn_sub, data.order, data.sto_all, None, True,
    )  # fmt: skip
    fit = fit_joint(still)
    assert bool(torch.isfinite(fit.log_k).all())


def test_rate_constants_over_five_orders_of_magnitude():
    data, truth = simulated(
        9, log_k_min=-5.0, log_k_max=0.0, integrator="adaptive", avoid_shared_pairs=True, n_rxn=24
    )
    model = model_for(data)
    set_model(model, data.spec, data.train, max_types=8)
    found = identifiable(data, truth)
    error = (model.log_k.detach() - truth.parameters["log_k"]).abs()
    assert float(error[found.k].median()) < 1e-4


def test_without_homeostasis_the_rate_constants_are_exact():
    data, truth = simulated(10, (0.0,), (4.0,))
    model = model_for(data, homeostasis=False)
    set_model(model, data.spec, data.train, max_types=8)
    found = identifiable(data, truth)
    error = (model.log_k.detach() - truth.parameters["log_k"]).abs()
    assert float(error[found.k].max()) < 1e-9


# -- classes of document 002 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "ratios", "accuracy", "expected"),
    [
        (0.95, [1.0, 1.1], 1.0, "converged"),
        (0.95, [1.0, 1.1], 0.99, "partial-k"),
        (0.95, [0.4, 1.6], 1.0, "partial-k"),
        (0.95, [0.0, 0.0], 0.5, "partial-k"),
        (0.7, [0.6, 0.9], 1.0, "partial-homeo"),
        (0.7, [0.05, 0.9], 1.0, "failed"),
        (0.4, [1.0, 1.0], 1.0, "failed"),
        (0.95, [], None, "partial-k"),
    ],
)
def test_classes_of_document_002(score, ratios, accuracy, expected):
    bounds = {"converged_above": 0.9, "failed_below": 0.5}
    assert verdicts.classify_joint(score, ratios, accuracy, **bounds) == expected


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(1.0, "correct"), (0.5, "partial"), (2.0, "partial"), (5.0, "overshoots"),
     (0.2, "undershoots"), (0.01, "inactive"), (-1.0, "away")],
)  # fmt: skip
def test_homeostasis_diagnosis_of_document_002(ratio, word):
    assert word in verdicts.homeostasis_diagnosis(ratio)


def test_curve_error_is_relative_and_zero_for_the_power_law():
    c = torch.linspace(0.1, 5, 40, dtype=torch.float64)
    assert metrics.substrate_curve_error(c**2, c, 2.0) == 0
    assert metrics.substrate_curve_error(1.1 * c, c, 1.0) == pytest.approx(0.1)
