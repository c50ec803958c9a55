"""Recovery behind the flux limiter, the oracle, and noise on derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.metabolism import structure
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import design_flux
from neuralgraph.systems.metabolism.kinetics import network_of_truth
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.oracle import oracle_scores, oracle_stoichiometry
from neuralgraph.systems.metabolism.recovery_checks import checked_problem
from neuralgraph.systems.metabolism.recovery_limited import recover_limited
from neuralgraph.systems.metabolism.recovery_noise import derivative_noise
from neuralgraph.systems.metabolism.start import stock_layers

PRIOR = {"support": True, "roles": True, "stoichiometry": False, "rate_constants": False}


def make(stem: str, **changes: Any) -> Any:
    from pathlib import Path

    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    folder = Path(__file__).parents[3] / "conf"
    values = {"n_met": 12, "n_rxn": 16, "hidden_dim": 8, "message_dim": 4, **changes}
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(
            overrides=[f"+simulator={stem}", *(f"simulator.{k}={v}" for k, v in values.items())]
        ).simulator
    plain = OmegaConf.create(OmegaConf.to_container(config))
    plain.pop("seed")
    return instantiate(plain, _convert_="all")


def limited() -> tuple[Any, Any, Any]:
    simulator = make("metabolism_rate_network_limited", n_frame=300)
    recording, truth = simulator.simulate(4)
    given = simulator.reveal(recording, truth, **PRIOR)
    return MetabolismData(recording, given, validation_fraction=0.0), truth, recording


def test_the_model_with_the_true_values_predicts_the_limited_data() -> None:
    data, truth, _ = limited()
    model = Metabolism_Propagation(
        data.spec,
        generator=torch.Generator().manual_seed(0),
        flux_limit=True,
        hidden_dim_sub=8,
        message_dim=4,
        hidden_dim_rate=8,
    ).double()
    p = truth.parameters
    model.set_stoichiometry(sto_all=p["sto_all"], sto_sub=p["sto_sub"])
    with torch.no_grad():
        model.log_k.copy_(p["log_k"])
        for name, mlp in (("msg_mlp", model.msg_mlp), ("rate_mlp", model.rate_mlp)):
            for at, layer in ((0, mlp[0]), (2, mlp[2])):
                layer.weight.copy_(p[f"{name}.{at}.weight"])
                layer.bias.copy_(p[f"{name}.{at}.bias"])
            mlp[0].weight.div_(mlp.input_scale)
        predicted = model(data.train.concentration)
    torch.testing.assert_close(predicted, data.train.dx_dt, rtol=1e-9, atol=1e-11)
    model.flux_limit = False
    with torch.no_grad():
        free = model(data.train.concentration)
    assert float((free - data.train.dx_dt).abs().max()) > 0.1


def test_the_limiter_is_in_the_rates_that_the_evaluator_takes_for_true() -> None:
    data, truth, _ = limited()
    network = network_of_truth(truth)
    flux = design_flux(data, truth, network)
    assert flux is not None
    torch.testing.assert_close(flux @ network.matrix().T, data.train.dx_dt)


def test_recovery_behind_the_limiter_lowers_the_residual_and_keeps_signs() -> None:
    data, _, _ = limited()
    batch, spec = data.train, data.spec
    model = Metabolism_Propagation(
        spec,
        generator=torch.Generator().manual_seed(0),
        flux_limit=True,
        hidden_dim_sub=8,
        message_dim=4,
        hidden_dim_rate=8,
    ).double()
    problem = checked_problem(
        batch.concentration.numpy(),
        batch.dx_dt.numpy(),
        *(t.numpy() for t in (model.met_sub, model.rxn_sub, model.met_all, model.rxn_all)),
        spec.sign_all.numpy(),
        n_met=spec.n_met,
        n_rxn=spec.n_rxn,
        max_coefficient=2,
    )
    rng_state = torch.get_rng_state()
    said: list[str] = []
    found = recover_limited(
        model,
        problem,
        batch.frame.numpy(),
        layers=stock_layers,
        rng=np.random.default_rng(0),
        n_share=4,
        n_round=2,
        n_step=20,
        most_frames=90,
        log=said.append,
    )
    assert torch.equal(rng_state, torch.get_rng_state())
    np.testing.assert_array_equal(np.sign(found.sto_all), problem.sign_all)
    assert set(np.abs(found.sto_all)) <= {1, 2} and set(found.sto_sub) <= {1, 2}
    np.testing.assert_array_equal(model.sto_all.detach().numpy(), found.sto_all)
    assert np.isfinite(found.confidence).all()
    assert found.median_residual < 0.3
    assert len(said) == 3
    assert all(p.requires_grad for p in model.parameters())


def test_the_oracle_is_exact_without_noise_and_wrong_with_much() -> None:
    simulator = make("metabolism_rate_network", n_run=40, n_test_run=2)
    recording, truth = simulator.simulate(3)
    given = simulator.reveal(recording, truth, **PRIOR)
    data = MetabolismData(recording, given, validation_fraction=0.0)
    network = network_of_truth(truth)
    flux = design_flux(data, truth, network)
    assert flux is not None
    column, _ = structure.column_identifiability(network)
    scores = {}
    for size in (0.0, 1.0):
        noise = torch.randn(data.train.dx_dt.shape, generator=torch.Generator().manual_seed(0))
        noisy = data.train.dx_dt + size * data.train.dx_dt.square().mean(0).sqrt() * noise
        for is_support_given in (True, False):
            known = (
                network.sto_all.sign() if is_support_given else torch.zeros(len(network.sto_all))
            )
            estimate = oracle_stoichiometry(
                network,
                flux,
                noisy,
                is_support_given=is_support_given,
                known_sign=known,
                max_coefficient=2,
            )
            found = oracle_scores(estimate, network, is_identifiable=column)
            scores[size, is_support_given] = found["exact_edges_identifiable_oracle"]
            assert float(estimate.abs().max()) <= 2
    assert scores[0.0, True] == 1.0
    assert scores[0.0, False] > 0.9
    assert scores[1.0, True] < 0.9
    assert scores[1.0, False] < scores[1.0, True]


def test_noise_on_derivatives_leaves_the_state_and_is_found_again() -> None:
    changes = {"n_run": 60, "n_test_run": 2}
    clean, _ = make("metabolism_rate_network", **changes).simulate(3)
    recording, truth = make("metabolism_rate_network_noisy", **changes).simulate(3)
    assert clean.dx_dt is not None and recording.dx_dt is not None
    assert torch.equal(clean.state, recording.state)
    assert torch.equal(truth.parameters["clean_dx_dt"], clean.dx_dt)
    assert recording.dx_dt_source == "measured"
    rms = clean.dx_dt.square().mean((0, 1)).sqrt()
    spread = (recording.dx_dt - clean.dx_dt).std((0, 1)) / rms
    torch.testing.assert_close(spread, torch.full_like(spread, 1e-3), rtol=0.15, atol=0)
    n_run, n_frame, n_met = recording.dx_dt.shape
    found = derivative_noise(
        recording.dx_dt.reshape(-1, n_met).numpy(),
        np.repeat(np.arange(n_run), n_frame),
        np.tile(np.arange(n_frame), n_run),
    )
    assert found is not None
    np.testing.assert_allclose(found / rms.numpy(), 1e-3, rtol=0.25)


def test_noise_on_derivatives_and_on_the_state_exclude_each_other() -> None:
    from neuralgraph.systems.metabolism.conditions import Noise

    with pytest.raises(ConfigError, match="set one of the two to 0"):
        Noise(
            process_mM=0.0, measurement_mM=0.1, measurement_relative=0.0, derivative_relative=1e-3
        )
