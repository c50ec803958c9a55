from __future__ import annotations

import json

import pytest
import torch

from neuralgraph.core.seeding import torch_generator
from neuralgraph.identifying import examine
from neuralgraph.numerics.coverage import monte_carlo
from neuralgraph.numerics.information import analyse, relative_noise
from neuralgraph.systems.linear.dataset import LinearData
from neuralgraph.systems.linear.identifiability import LinearIdentifiability
from neuralgraph.systems.linear.model import LinearDynamics
from neuralgraph.systems.linear.simulator import LinearNetwork

PART = LinearIdentifiability(rtol=1e-8, noise_relative=0.01, precise_below=0.1, n_pulse=2)


def case(*, n_run=4, n_time=12, support=False, n_var=5):
    simulator = LinearNetwork(
        n_var=n_var,
        n_edge_per_var=2,
        n_run=n_run,
        n_test_run=1,
        n_time=n_time,
        dt=0.2,
        slowest_rate=0.1,
        measurement_noise=0.0,
    )
    recording, truth = simulator.simulate(3)
    given = simulator.reveal(recording, truth, support=support)
    data = LinearData(recording, given, validation_fraction=0.0)
    model = LinearDynamics(data.spec, init_scale=0.1, generator=torch_generator(0, "model"))
    return data, model.to(torch.float64), truth


@pytest.mark.parametrize("support", [False, True])
def test_errors_are_those_of_least_squares_row_by_row(support):
    data, model, truth = case(support=support)
    problem = PART.problem(model, data, truth, is_fitted=False)
    found = analyse(problem, relative_noise(problem, 0.01), rtol=1e-8)
    assert set(found.status) == {"determined"}
    assert found.n_par == (25 if not support else int((truth.parameters["matrix"] != 0).sum()))
    expected = []
    for i in range(5):
        x = data.state if not support else data.state[:, data.spec.is_edge[i]]
        expected.append(found.noise.sd[i] * torch.linalg.inv(x.T @ x).diagonal().sqrt())
    assert torch.allclose(found.standard_error, torch.cat(expected), rtol=1e-6)
    covered = monte_carlo(found, 200, torch_generator(1, "noise"))
    assert 0.9 < covered.mean < 0.98


def test_too_few_frames_are_named_and_a_further_trajectory_is_advised():
    data, model, _ = case(n_run=1, n_time=3)
    found = examine(PART, model, data, None, at="prior", seed=1)
    assert found.analysis.rank == 15 and set(found.analysis.status) == {"combination"}
    assert found.summary["design"]["candidates"][0]["rank_gain"] == pytest.approx(10)
    more = found.summary["design"]["more"]
    assert more["rank"][:2] == [15, 25]
    text = " ".join(found.summary["sentences"])
    assert "25 more only in combinations" in text and "would determine 25 of 25" in text
    json.dumps(found.summary, allow_nan=False)


def test_a_variable_that_never_moves_leaves_its_column_open():
    data, model, _ = case()
    data.state[:, 2] = 0
    found = examine(PART, model, data, None, at="prior", seed=1)
    names = {r.parameter for r in found.rows if r.status == "undetermined"}
    assert names == {f"A(x{i},x2)" for i in range(5)}


def test_a_fitted_matrix_shows_the_noise_of_its_residual():
    data, model, truth = case()
    noise = torch.randn(data.dx_dt.shape, generator=torch_generator(2, "x"), dtype=torch.float64)
    data.dx_dt = data.dx_dt + 0.05 * noise
    estimate = torch.linalg.lstsq(data.state, data.dx_dt).solution.T
    with torch.no_grad():
        model.weight.copy_(estimate)
    found = examine(PART, model, data, None, at="fitted", seed=1)
    assert torch.tensor(found.summary["noise_sd"]).mean() == pytest.approx(0.05, rel=0.15)
    matrix = truth.parameters["matrix"]
    away = (estimate - matrix).flatten() / found.analysis.standard_error
    assert 0.6 < float(away.square().mean().sqrt()) < 1.5
