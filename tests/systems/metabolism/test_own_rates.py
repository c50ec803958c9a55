"""Rate laws of their own: S and the laws of a small network with saturating and inhibited rates."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.own_rates import (
    Metabolism_OwnRates,
    near_integers,
    refuse,
    solve_own_rates,
)
from neuralgraph.systems.metabolism.rate_laws import law_scores

NAMES = ("A", "B", "C", "D")
# reaction -> net coefficients, metabolites the rate depends on
NETWORK = [
    ({0: -1.0, 1: 20.0}, (0, 3)),  # saturating in A, inhibited by D
    ({1: -2.0, 2: 1.0}, (1, 2)),  # reversible
    ({2: -1.0, 3: 1.0}, (2,)),
    ({3: -1.0, 0: 1.0}, (3,)),
]


def rates(c, drive):
    a, b, x, d = c.unbind(-1)
    return torch.stack(
        [a / (0.5 + a) / (1 + d) * drive[..., 0], b - 0.5 * x, x**2 / (1 + x**2), 0.7 * d], -1
    )


def case(*, given=False, drives=True, seed=3):
    """Frames at random states, with one function of time acting in the first law."""
    g = torch.Generator().manual_seed(seed)
    S = torch.zeros(4, len(NETWORK), dtype=torch.float64)
    for j, (net, _) in enumerate(NETWORK):
        for i, s in net.items():
            S[i, j] = s
    state = 0.6 + 1.2 * torch.rand(40, 25, 4, generator=g, dtype=torch.float64)
    time = torch.linspace(0, 1, 25, dtype=torch.float64).expand(40, -1).clone()
    drive = (1 + 0.5 * torch.rand(40, 25, 1, generator=g)).double() if drives else None
    v = rates(state, torch.ones_like(state[..., :1]) if drive is None else drive)
    recording = Recording(
        time=time,
        state=state,
        names=NAMES,
        dx_dt=v @ S.T,
        dx_dt_source="exact",
        inputs={} if drive is None else {"time_dependent": drive},
        provenance={"reaction_names": [f"r{j}" for j in range(len(NETWORK))]},
        is_test=torch.arange(40) >= 32,
    )
    net = [(i, j) for j, (edges, _) in enumerate(NETWORK) for i in edges]
    sub = [(i, j) for j, (_, known) in enumerate(NETWORK) for i in known]
    (met_all, rxn_all), (met_sub, rxn_sub) = (
        torch.tensor(x).T.contiguous().unbind(0) for x in (net, sub)
    )
    value = S[met_all, rxn_all]
    told = {"n_rxn": torch.tensor(4), "met_all": met_all, "rxn_all": rxn_all,
            "met_sub": met_sub, "rxn_sub": rxn_sub, "sign_all": value.sign()}  # fmt: skip
    if drives:
        told |= {"drive_sub": torch.tensor([0]), "drive_rxn": torch.tensor([0])}
    if given:
        told |= {"sto_all": value, "sto_sub": torch.ones(len(sub)).double()}
    data = MetabolismData(recording, told, validation_fraction=0.0)
    return data, S, v, Truth({"flux": v}, {})


def model_of(data, degree=4):
    return Metabolism_OwnRates(data.spec, generator=torch.Generator(), degree=degree).double()


def test_s_and_the_laws_come_back_from_derivatives():
    data, S, v, _ = case()
    model = model_of(data)
    error, n_settled = solve_own_rates(
        model, data.train, n_sweep=200, ridge=1e-9, max_coefficient=30
    )
    assert error < 1e-4 and n_settled == 4
    expected = S.clone()
    assert torch.equal(model.matrix().detach(), expected)
    held = torch.cat([h.state for h in data.test])
    inputs = torch.cat([h.inputs for h in data.test])
    found, true = model.flux(held, inputs).detach(), v[32:].flatten(0, 1)
    score = law_scores(found - found.mean(0), true - true.mean(0), true.norm(dim=0))
    assert float(score.min()) > 0.99


def test_with_s_given_one_solution_is_enough():
    data, S, _, _ = case(given=True)
    model = model_of(data)
    error, _ = solve_own_rates(model, data.train, n_sweep=1, ridge=1e-9, max_coefficient=2)
    assert error < 1e-4 and torch.equal(model.matrix(), S)
    assert "sto_all" not in dict(model.named_parameters())


def test_a_law_needs_the_functions_of_time_it_depends_on():
    data, *_ = case()
    with pytest.raises(DataError, match="known functions of time"):
        model_of(data).flux(data.train.concentration, None)
    without, *_ = case(drives=False)
    assert model_of(without).flux(without.train.concentration).shape == (800, 4)


def test_every_parameter_has_a_gradient_before_and_after_the_solution():
    data, *_ = case()
    model = model_of(data, degree=2)
    for _ in range(2):
        model.zero_grad()
        (model(data.train.concentration, data.train.inputs) - data.train.dx_dt).square().mean(
        ).backward()  # fmt: skip
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert float(model.theta.grad.abs().max()) > 0
        solve_own_rates(model, data.train, n_sweep=5, ridge=1e-9, max_coefficient=2)


def test_beyond_the_training_range_a_rate_stays_finite():
    data, *_ = case()
    model = model_of(data)
    model.standardise(data.train)
    far = torch.full((1, 4), 1e6, dtype=torch.float64)
    top = data.train.concentration.amax(0, keepdim=True)
    drive = data.train.inputs.amax(0, keepdim=True)
    torch.testing.assert_close(model.flux(far, drive), model.flux(top, drive))


@pytest.mark.parametrize(
    ("size", "tolerance", "whole"),
    [
        ([0.5, 1.0, 0.5], 0.01, [1, 2, 1]),
        ([1.0, 1.51], 0.02, [2, 3]),
        ([1.0, 1.51], 0.05, None),
        ([1.0, 0.27], 0.02, None),
        ([1.0, 64.2, 65.2, 65.1], 0.08, [1, 65, 65, 65]),
        ([1.0, 99.0], 0.02, None),
    ],
)
def test_ratios_near_integers(size, tolerance, whole):
    found = near_integers(torch.tensor(size).double(), tolerance, 65)
    assert whole is None if found is None else found.tolist() == whole


def test_what_the_prior_must_hold():
    data, *_ = case()
    from dataclasses import replace

    with pytest.raises(ConfigError, match=r"prior\.support=true and prior\.roles=true"):
        Metabolism_OwnRates(
            replace(data.spec, has_roles=False), generator=torch.Generator(), degree=2
        )
    with pytest.raises(ConfigError, match=r"prior\.roles=true"):
        refuse({"prior": {"support": True, "roles": False, "stoichiometry": False}})
    with pytest.raises(ConfigError, match="at least 1"):
        model_of(data, degree=0)


def test_a_constant_rate_has_no_law_to_score():
    true = torch.zeros(10, 2, dtype=torch.float64)
    true[:, 1] = torch.linspace(-1, 1, 10)
    score = law_scores(true, true, torch.ones(2).double())
    assert torch.isnan(score[0]) and score[1] == 1


def test_a_run_writes_the_network_and_says_what_was_read(tmp_path):
    from neuralgraph.systems.metabolism.products import recovered_network, write_products

    data, *_ = case()
    model = model_of(data)
    solve_own_rates(model, data.train, n_sweep=200, ridge=1e-9, max_coefficient=30)
    network = recovered_network(model, data, max_coefficient=30, store={})
    list(write_products(network, data, tmp_path, title="own"))
    lines = (tmp_path / "reactions.txt").read_text().splitlines()
    assert lines[0].startswith("r0: A <-> 20 B   [rate depends on D]")
    assert lines[1].startswith("r1: 2 B <-> C")


def test_what_the_data_determine_of_s_beside_laws_of_their_own():
    import yaml

    from neuralgraph.config import CONFIG_FOLDER
    from neuralgraph.numerics.information import analyse, relative_noise
    from neuralgraph.systems.metabolism.own_identifiability import OwnRatesIdentifiability

    with open(f"{CONFIG_FOLDER}/identifiability/metabolism_own_rates.yaml", encoding="utf-8") as f:
        part = OwnRatesIdentifiability(
            **{k: v for k, v in yaml.safe_load(f).items() if not k.startswith("_")}
        )
    data, S, _, truth = case()
    model = model_of(data, degree=2)
    with torch.no_grad():
        model.sto_all.copy_(S[model.met_all, model.rxn_all])
    problem = part.problem(model, data, None, is_fitted=False)
    # one coefficient of each column holds its scale
    assert sum(g == "stoichiometry" for g in problem.parameters.group) == 8 - 4
    # the sensitivities are the differences of the prediction
    batch = data.train
    names = problem.parameters.name
    at = names.index("S(B,r0)")
    edge = int(((model.met_all == 1) & (model.rxn_all == 0)).nonzero())
    found = torch.zeros(len(batch), 4, len(names), dtype=torch.float64)
    for one in problem.design:
        found[:, one.variable, one.columns] = one.jacobian()
    with torch.no_grad():
        before = model(batch.concentration, batch.inputs)
        model.sto_all[edge] += 1
        change = model(batch.concentration, batch.inputs) - before
        model.sto_all[edge] -= 1
        assert torch.allclose(found[..., at], change, atol=1e-10)
        at = names.index("theta(r2,1)")
        model.theta[(model.feature_rxn == 2).nonzero()[0]] += 1
        change = model(batch.concentration, batch.inputs) - before
    assert torch.allclose(found[..., at], change, atol=1e-10)
    analysis = analyse(problem, relative_noise(problem, 0.01), rtol=1e-8)
    rows = {r.parameter: r for r in analysis.rows()}
    assert rows["S(B,r0)"].status == "determined" and rows["level(A)"].status == "determined"
    with pytest.raises(ConfigError, match=r"identify\.at=prior"):
        part.problem(model, data, truth, is_fitted=False)
