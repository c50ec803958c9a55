from __future__ import annotations

import math

import pytest
import torch
import yaml

from neuralgraph.building import build
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_fit import fit_joint
from neuralgraph.systems.metabolism.joint_noise import fit_concentrations, measured_logarithm
from neuralgraph.systems.metabolism.joint_trajectory import runs_of
from neuralgraph.systems.metabolism.joint_weak import weak_form
from neuralgraph.systems.metabolism.loop import refuse

LAWS = {
    "mass_action": lambda c: c,
    "square_root": lambda c: c.sqrt(),
    "michaelis_menten": lambda c: 3 * c / (c + 2),
    "hill": lambda c: 5 * c.square() / (c.square() + 4),
}


def courses(law, *, noise, n_frame=400, n_run=2, seed=3):
    """Noisy courses of a cyclic network under ``v = k f(a) f(b)``, and its parameters."""
    with open(f"{CONFIG_FOLDER}/simulator/metabolism_oscillatory.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    small = {"n_met": 12, "n_rxn": 12, "n_frame": 4, "avoid_shared_pairs": True}
    _, truth = build({**config, **small}, "simulator").simulate(seed)
    p = truth.parameters
    s = torch.zeros(12, 12, dtype=torch.float64)
    s[p["met_all"], p["rxn_all"]] = p["sto_all"].double()
    k = 10 ** p["log_k"]
    pull, rest = p["homeostasis_lambda"], p["homeostasis_baseline"]

    def slope(c):
        factor = law(c)[:, p["met_sub"]]
        v = torch.zeros(len(c), 12, dtype=torch.float64)
        v = v.index_add(1, p["rxn_sub"], factor.log()).exp()
        return (v * k) @ s.T - pull * (c - rest)

    g = torch.Generator().manual_seed(seed)
    c = 1 + 8 * torch.rand(n_run, 12, generator=g, dtype=torch.float64)
    frames, dt, n_step = [c], 0.1, 2
    for _ in range(n_frame - 1):
        for _ in range(n_step):
            h = dt / n_step
            a = slope(c)
            b = slope(c + 0.5 * h * a)
            d = slope(c + 0.5 * h * b)
            e = slope(c + h * d)
            c = c + h / 6 * (a + 2 * b + 2 * d + e)
        frames.append(c)
    state = torch.stack(frames, dim=1).reshape(-1, 12)
    measured = state * (1 + noise * torch.randn(state.shape, generator=g, dtype=torch.float64))
    order = torch.ones(len(p["met_sub"]), dtype=torch.float64)
    data = KineticData(
        measured, torch.zeros_like(state), p["met_sub"], p["rxn_sub"], order, s, None, True
    )
    time = (dt * torch.arange(n_frame, dtype=torch.float64)).repeat(n_run)
    runs = tuple((n_frame * r, n_frame * (r + 1)) for r in range(n_run))
    return data, time, runs, p


def error_of(fit, p):
    return (fit.joint.log_k - p["log_k"]).abs()


@pytest.mark.parametrize(("name", "power"), [("mass_action", 1.0), ("square_root", 0.5)])
def test_a_power_law_is_recognised_in_noise(name, power):
    data, time, runs, p = courses(LAWS[name], noise=0.03)
    fit = fit_concentrations(data, time, runs, None, max_types=4)
    assert fit.is_snapped and fit.joint.law.power == power and fit.warnings == ()
    assert float(error_of(fit, p).max()) < 0.02
    z = (fit.joint.log_k - p["log_k"]) / fit.joint.deviation
    assert 0.4 < float(z.square().mean().sqrt()) < 1.8
    assert math.sqrt(fit.joint.score) == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize(("name", "noise"), [("michaelis_menten", 0.05), ("hill", 0.01)])
def test_a_law_that_is_no_power_law_is_never_snapped_in_noise(name, noise):
    data, time, runs, _ = courses(LAWS[name], noise=noise)
    fit = fit_concentrations(data, time, runs, None, max_types=4)
    assert fit.joint.law.power is None and not fit.is_snapped
    states = fit.u.flatten().double()
    x = torch.linspace(float(states.quantile(0.1)), float(states.quantile(0.9)), 40).double()
    learned = fit.joint.law.log_value(x, 0)
    true = LAWS[name](x.exp()).log() - LAWS[name](torch.ones(1).double()).log()
    assert float((learned - true).abs().max()) < 0.05 + 2 * noise


def test_a_likelihood_that_was_cut_short_says_so():
    data, time, runs, _ = courses(LAWS["mass_action"], noise=0.03)
    fit = fit_concentrations(data, time, runs, None, max_types=4, n_iteration=1)
    assert any("after 1 steps without settling" in sentence for sentence in fit.warnings)


def test_two_types_and_their_lines_come_back_from_noise():
    data, time, runs, _ = courses(LAWS["mass_action"], noise=0.01, n_frame=1000)
    fit = fit_concentrations(data, time, runs, None, max_types=4)
    assert len(fit.types.mean) == 2
    slope = fit.types.mean[:, 1]
    error = fit.type_covariance[:, 1, 1].sqrt()
    assert bool(((slope - torch.tensor([-0.001, -0.002]).double()).abs() < 4 * error).all())


def test_the_weak_form_needs_no_derivative():
    data, time, runs, p = courses(LAWS["mass_action"], noise=0.0)
    fit = fit_joint(weak_form(data, time, runs, None))
    assert fit.law.power == pytest.approx(1, abs=1e-3)
    assert float((fit.log_k - p["log_k"]).abs().max()) < 5e-3
    known = torch.full_like(data.concentration, 0.01)  # an input that is known is taken off
    shifted = fit_joint(weak_form(data, time, runs, known))
    torch.testing.assert_close(shifted.line[:, 0], fit.line[:, 0] - 0.01, atol=1e-4, rtol=0)


def test_runs_too_short_are_refused_and_zeros_have_a_logarithm():
    data, time, _, _ = courses(LAWS["mass_action"], noise=0.0, n_frame=6)
    with pytest.raises(DataError, match="at least"):
        fit_concentrations(data, time, ((0, 6), (6, 12)), None, max_types=2)
    c = torch.tensor([[0.0, 1.0], [0.4, 2.0]], dtype=torch.float64)
    assert measured_logarithm(c)[0, 0] == pytest.approx(math.log(0.2))


def test_runs_are_stretches_of_consecutive_frames():
    run = torch.tensor([0, 0, 0, 1, 1, 1])
    frame = torch.tensor([0, 1, 2, 0, 1, 5])
    assert runs_of(run, frame) == ((0, 3), (3, 5), (5, 6))


@pytest.mark.parametrize(
    ("loop", "prior"),
    [
        ({"fit_to": "flux"}, {"stoichiometry": True}),
        ({"fit_to": "concentration"}, {"stoichiometry": False}),
        ({"fit_to": "concentration", "start": "random"}, {"stoichiometry": True}),
    ],
)
def test_what_concentrations_cannot_be_fitted_with_is_refused(loop, prior):
    knobs = {"start": "closed_form", "learning_rate_S_start": 0.0, "clip_S": None}
    config = {"loop": {**knobs, **loop}, "prior": prior, "loss": {}, "model": {}}
    with pytest.raises(ConfigError, match="fit_to"):
        refuse(config)
