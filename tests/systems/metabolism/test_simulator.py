"""Simulators with drawn kinetics: physics, designs, noise, inputs, priors, bad settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuralgraph.core.errors import ConfigError, SolverError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.systems.metabolism.kinetics import (
    LearnedRate,
    activity_rank,
    network_of_truth,
    random_weights,
    true_flux,
)
from neuralgraph.systems.metabolism.network import random_network

CONF = Path(__file__).parents[3] / "conf" / "simulator"
FREE = {"support": False, "roles": False, "stoichiometry": False, "rate_constants": False}


def make(stem: str, **changes: Any) -> Any:
    """Simulator of a config file, with keys such as ``noise__process_mM`` changed."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONF / f"{stem}.yaml")
    config.pop("seed")  # the pipeline's
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=False)
    return instantiate(config, _convert_="all")


def small(**changes: Any) -> Any:
    return make("metabolism_rate_network", **{
        "n_met": 12, "n_rxn": 20, "n_run": 6, "n_test_run": 2, "n_frame": 5, "hidden_dim": 8,
        "message_dim": 4, **changes,
    })  # fmt: skip


def cycles(**changes: Any) -> Any:
    return make("metabolism_oscillatory", **{
        "n_met": 12, "n_rxn": 15, "n_test_run": 1, "n_frame": 40, **changes,
    })  # fmt: skip


def bytes_of(recording: Recording, truth: Truth) -> tuple[torch.Tensor, ...]:
    assert recording.dx_dt is not None
    return (recording.state, recording.dx_dt, recording.time, *truth.parameters.values())


@pytest.mark.parametrize("make_one", [small, cycles])
def test_same_seed_same_bytes(make_one):
    a, b = (bytes_of(*make_one(noise__measurement_mM=0.1).simulate(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    other = bytes_of(*make_one().simulate(4))
    assert not torch.equal(a[0], other[0])


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    small().simulate(1)
    assert torch.equal(before, torch.get_rng_state())


def test_streams_are_independent():
    """Rate constants and network do not depend on widths or the number of runs."""
    _, a = small().simulate(1)
    _, b = small(hidden_dim=16, message_dim=3, n_run=2, n_test_run=0).simulate(1)
    for name in ("log_k", "met_all", "sto_all"):
        assert torch.equal(a.parameters[name], b.parameters[name])
    first, _ = small(n_run=2).simulate(1)
    more, _ = small(n_run=6).simulate(1)
    torch.testing.assert_close(first.state[:2], more.state[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(first.state[2:], more.state[6:], rtol=0, atol=1e-12)


def test_the_rate_law_is_the_documented_network_of_two_mlps():
    """k softplus(rate_mlp(sum msg_mlp([c, |s|]))), evaluated plainly with torch modules."""
    generator = torch.Generator().manual_seed(0)
    network = random_network(
        10, 15, n_substrate_max=3, n_product_max=3, coefficient_max=2, mass_balanced=False,
        generator=generator,
    )  # fmt: skip
    weights = random_weights(generator, 32, 16)
    log_k = torch.randn(15, generator=generator, dtype=torch.float64)
    msg = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 16)).double()
    rate = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    both = nn.ModuleDict({"msg_mlp": msg, "rate_mlp": rate})
    both.load_state_dict(weights)
    c = 10 * torch.rand(40, 10, generator=generator, dtype=torch.float64)
    edge = torch.stack([c[:, network.met_sub], network.sto_sub.expand(40, -1)], dim=-1)
    total = torch.zeros(40, 15, 16, dtype=torch.float64)
    total.index_add_(1, network.rxn_sub, msg(edge))
    expected = 10**log_k * nn.functional.softplus(rate(total)).squeeze(-1)
    found = LearnedRate(network, log_k.numpy(), weights).flux(c.numpy())
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-12)


def test_initialisation_spans_the_default_of_a_linear_layer():
    w = random_weights(torch.Generator().manual_seed(0), 32, 16)["rate_mlp.0.weight"]
    assert w.shape == (32, 16)
    assert 0.9 * 16**-0.5 < float(w.abs().max()) <= 16**-0.5


@pytest.mark.parametrize("make_one", [small, cycles])
def test_derivatives_are_stoichiometry_times_flux(make_one):
    recording, truth = make_one(homeostasis__lambda_per_min=[0.0],
                                homeostasis__baseline_mM=[1.0]).simulate(1)  # fmt: skip
    network = network_of_truth(truth)
    v = true_flux(truth, network, recording.state.reshape(-1, 12))
    torch.testing.assert_close(
        (v @ network.matrix().T).reshape(recording.state.shape), recording.dx_dt
    )
    assert recording.dx_dt_source == "exact"


def test_mass_action_of_a_cycle_is_k_times_food_times_catalyst():
    recording, truth = cycles().simulate(1)
    v = true_flux(truth, network_of_truth(truth), recording.state[0])
    first = truth.parameters["met_sub"][:2]
    product = recording.state[0][:, first].prod(dim=1)
    torch.testing.assert_close(v[:, 0], 10 ** truth.parameters["log_k"][0] * product)


def test_homeostasis_pulls_each_type_to_its_baseline():
    recording, truth = cycles(log_k_min=-9.0, log_k_max=-9.0).simulate(1)
    assert truth.parameters["metabolite_type"].tolist() == [0] * 6 + [1] * 6
    expected = -truth.parameters["homeostasis_lambda"] * (
        recording.state - truth.parameters["homeostasis_baseline"]
    )
    torch.testing.assert_close(recording.dx_dt, expected, rtol=1e-3, atol=1e-6)


def test_rk4_agrees_with_the_adaptive_and_stiff_solvers_and_euler_converges():
    def end(integrator: str, n_substep: int = 1) -> torch.Tensor:
        return cycles(integrator=integrator, n_substep=n_substep).simulate(2)[0].state[:, -1]

    exact = end("adaptive")
    assert float((end("rk4") - exact).abs().max()) < 1e-4
    assert float((end("stiff") - exact).abs().max()) < 1e-4
    wide, narrow = (float((end("adams", n) - exact).abs().max()) for n in (2, 4))
    assert wide < 1e-4 and 10 < wide / narrow < 40  # fourth order
    coarse, fine = ((end("euler", n) - exact).abs().max() for n in (4, 8))
    assert 1.8 < float(coarse / fine) < 2.2


def test_adams_agrees_with_rk4_on_the_default_horizon():
    adams, rk4 = (small(integrator=name, n_frame=10).simulate(1)[0] for name in ("adams", "rk4"))
    torch.testing.assert_close(adams.state, rk4.state, rtol=0, atol=1e-6)
    noisy = [
        small(integrator=name, noise__process_mM=0.1).simulate(1)[0] for name in ("adams", "rk4")
    ]
    assert torch.equal(noisy[0].state, noisy[1].state)


def test_the_circadian_baseline_swings():
    still, _ = cycles(circadian__amplitude=0.0).simulate(1)
    moving, truth = cycles(circadian__amplitude=0.5, circadian__period_min=2.0).simulate(1)
    p = truth.parameters
    swing = 0.5 * torch.sin(torch.pi * moving.time)[..., None]
    gain = p["homeostasis_lambda"] * p["homeostasis_baseline"] * swing
    torch.testing.assert_close(moving.dx_dt[:, 0], still.dx_dt[:, 0] + gain[:, 0])
    assert float((moving.state - still.state).abs().max()) > 1e-4


def test_additive_input_enters_the_derivative():
    changes = {"external_input__mode": "additive", "external_input__n_met": 4}
    recording, truth = small(**changes).simulate(1)
    u = recording.inputs["external_input"]
    assert u.shape == recording.state.shape
    assert int((u.abs().sum((0, 1)) > 0).sum()) == 4
    network = network_of_truth(truth)
    v = true_flux(truth, network, recording.state.reshape(-1, 12))
    torch.testing.assert_close((v @ network.matrix().T).reshape(u.shape) + u, recording.dx_dt)


@pytest.mark.parametrize("side", ["substrate", "product"])
def test_multiplicative_input_scales_rates_by_the_mean_over_the_side(side):
    recording, truth = small(external_input__mode=f"multiplicative_{side}").simulate(1)
    network = network_of_truth(truth)
    S = network.matrix()
    part = (S < 0 if side == "substrate" else S > 0).double()
    u = recording.inputs["external_input"].reshape(-1, 12)
    factor = (u @ part) / part.sum(0)
    v = true_flux(truth, network, recording.state.reshape(-1, 12)) * factor
    torch.testing.assert_close((v @ S.T).reshape(recording.state.shape), recording.dx_dt)


def test_measurement_noise_leaves_derivatives_to_be_estimated():
    recording, truth = cycles(noise__measurement_relative=0.01).simulate(1)
    clean = truth.parameters["clean_state"]
    spread = (recording.state / clean - 1).std()
    assert float(spread) == pytest.approx(0.01, rel=0.1)
    assert recording.dx_dt_source == "estimated"
    assert not torch.equal(recording.dx_dt, truth.parameters["clean_dx_dt"])
    assert bool((recording.state >= 0).all())


def test_process_noise_keeps_the_exact_derivative_at_the_stored_state():
    recording, truth = cycles(
        noise__process_mM=0.05, homeostasis__lambda_per_min=[0.0], homeostasis__baseline_mM=[1.0]
    ).simulate(1)
    network = network_of_truth(truth)
    v = true_flux(truth, network, recording.state.reshape(-1, 12))
    torch.testing.assert_close(
        (v @ network.matrix().T).reshape(recording.state.shape), recording.dx_dt
    )
    quiet, _ = cycles().simulate(1)
    assert not torch.equal(quiet.state, recording.state)


def test_the_flux_limiter_never_lets_a_step_use_up_a_substrate():
    recording, _ = small(dt_min=1.0, flux_limit=True, integrator="euler").simulate(1)
    assert float(recording.state.min()) >= 0
    assert recording.provenance["flux_limited_fraction"] > 0.5
    loose, _ = small(flux_limit=True).simulate(1)
    assert loose.provenance["flux_limited_fraction"] == 0


def test_a_metabolite_that_runs_out_cuts_the_recording_and_says_so():
    recording, _ = small(n_frame=60).simulate(1)
    assert recording.n_time < 60
    assert float(recording.state.min()) > 0
    assert any("reaches 0 in run" in w for w in recording.provenance["warnings"])
    with pytest.raises(SolverError, match="before the 60 frames asked for"):
        small(n_frame=60, depletion="error").simulate(1)


def test_steps_that_are_too_large_name_metabolite_time_and_remedy():
    with pytest.raises(SolverError, match=r"M\d+ reaches 0 .*mass action never.*n_substep"):
        cycles(log_k_min=2.0, log_k_max=2.0).simulate(1)
    flooded = {
        "integrator": "euler",
        "external_input__mode": "additive",
        "external_input__amplitude": 1e300,
    }
    with pytest.raises(SolverError, match=r"M\d+ in run 0 is no longer finite at t = .*n_substep"):
        cycles(**flooded).simulate(1)


def test_a_step_that_underflows_names_parameter_and_time():
    from neuralgraph.systems.metabolism.kinetics import MassAction, ReactionSystem, integrate_frames
    from neuralgraph.systems.metabolism.network import network_from_edges

    # 2 A -> 3 A blows up in finite time
    at, one = torch.tensor([0]), torch.ones(1, dtype=torch.float64)
    network = network_from_edges((at, at, 2 * one), (at, at, one), ("A",), ("growth",))
    system = ReactionSystem(
        network, MassAction(network, np.zeros(1), np.array([2.0])), None, np.zeros(1), np.zeros(1)
    )
    with pytest.raises(SolverError, match=r"stopped after t = .*growth \(log_k = 0\.00\).*Use"):
        integrate_frames(
            system, np.ones((1, 1)), 21, 0.1,
            integrator="adaptive", n_substep=1, process_noise=None,
        )  # fmt: skip


def test_default_design_ends_before_depletion_and_says_by_how_much():
    recording, truth = make("metabolism_rate_network", n_test_run=4).simulate(42)
    assert recording.state.shape == (292, 10, 100)
    facts = recording.provenance
    assert facts["design"].startswith("288 initial conditions uniform in [2.5, 7.5] mM, 10 frames")
    assert "(2880 frames)" in facts["design"]
    assert facts["lowest_concentration_mM"] > 0
    assert "ended before any metabolite reaches 0" in facts["depletion_margin"]
    assert int(recording.is_test.sum()) == 4
    assert recording.units["state"] == "mM"
    assert facts["mass_balanced"] is False
    assert facts["activity_rank"] > 50
    log_k = truth.parameters["log_k"]
    assert -2 <= float(log_k.min()) < -1.9 and 0.9 < float(log_k.max()) <= 1


def test_default_oscillations_last():
    recording, _ = make("metabolism_oscillatory", n_test_run=0).simulate(42)
    assert recording.state.shape == (1, 2880, 100)
    late = recording.state[0, 2000:]
    swing = (late.amax(0) - late.amin(0)) / late.mean(0)
    assert float(swing.median()) > 0.5
    assert recording.is_test is None
    assert recording.provenance["activity_rank"] > 15


def test_activity_rank_counts_singular_values_of_the_uncentred_matrix():
    x = torch.zeros(1, 3, 3)
    x[0, 0, 0], x[0, 1, 1], x[0, 2, 2] = 10.0, 10.0, 0.1
    assert activity_rank(x) == 2
    assert activity_rank(torch.ones(2, 4, 3)) == 1
    assert activity_rank(torch.eye(3, 8)) == 3


def test_save_and_load_round_trip(tmp_path):
    recording, truth = small(external_input__mode="additive").simulate(1)
    recording.save(tmp_path / "recording.pt")
    truth.save(tmp_path / "truth.pt")
    again = Recording.load(tmp_path / "recording.pt")
    assert torch.equal(again.state, recording.state)
    assert again.provenance == recording.provenance
    assert Truth.load(tmp_path / "truth.pt").facts == truth.facts


def test_reveal_tells_what_the_switches_say_and_no_more():
    simulator = small()
    recording, truth = simulator.simulate(1)
    p = truth.parameters
    assert set(simulator.reveal(recording, truth, **FREE)) == {"n_rxn"}
    given = simulator.reveal(recording, truth, **{**FREE, "support": True, "roles": True})
    assert set(given) == {"n_rxn", "met_all", "rxn_all", "met_sub", "rxn_sub", "sign_all"}
    assert int(given["n_rxn"]) == 20
    assert torch.equal(given["sign_all"], p["sto_all"].sign())
    full = simulator.reveal(recording, truth, **{**FREE, "stoichiometry": True})
    assert {"met_sub", "met_all", "sto_sub", "sto_all"} <= set(full)
    assert "log_k" not in full
    rates = simulator.reveal(recording, truth, **{**FREE, "rate_constants": True})
    assert set(rates) == {"n_rxn", "log_k"}
    rates["log_k"].zero_()
    assert not torch.equal(rates["log_k"], p["log_k"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_run": 0}, r"simulator\.n_run"),
        ({"n_frame": 1}, r"simulator\.n_frame must be a number >= 2"),
        ({"dt_min": -1.0}, r"simulator\.dt_min"),
        ({"dt_min": float("nan")}, r"simulator\.dt_min"),
        ({"integrator": "magic"}, "must be one of rk4, adams"),
        ({"integrator": "stiff"}, "needs the Jacobian"),
        ({"initial_low_mM": 9.0}, "initial_high_mM must not be below"),
        ({"log_k_max": -5.0}, "log_k_max must not be below"),
        ({"noise__process_mM": -1.0}, r"simulator\.noise\.process_mM"),
        ({"homeostasis__baseline_mM": [1.0, 2.0]}, "one entry for each"),
        ({"circadian__amplitude": 2.0}, r"lie in \[0, 1\]"),
        ({"external_input__mode": "visual"}, "must be one of none, additive"),
        (
            {"external_input__mode": "multiplicative_product", "external_input__amplitude": 1.5},
            "below 1",
        ),
        ({"derivative__window": 4}, "must be odd"),
        ({"noise__measurement_mM": 0.1, "n_frame": 3}, "raise simulator.n_frame"),
        ({"noise__process_mM": 0.1, "integrator": "adaptive"}, "integrator=rk4, adams or euler"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes, message):
    with pytest.raises(Exception, match=message) as caught:
        small(**changes)
    cause = caught.value.__cause__ or caught.value
    assert isinstance(caught.value, ConfigError) or isinstance(cause, ConfigError)


def test_facts_about_noisy_data_are_those_of_what_was_measured():
    recording, truth = small(noise__measurement_mM=0.5, n_frame=12).simulate(3)
    facts = recording.provenance
    assert facts["lowest_concentration_mM"] == float(recording.state.min())
    assert facts["lowest_concentration_mM"] < float(truth.parameters["clean_state"].min())
    assert "lowest measured concentration" in facts["depletion_margin"]
    trained = recording.state[: facts["n_initial_condition"]]
    assert facts["activity_rank"] == activity_rank(trained)
    clean = truth.parameters["clean_state"][: facts["n_initial_condition"]]
    assert facts["activity_rank"] != activity_rank(clean)
