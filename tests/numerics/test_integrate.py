from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import SolverError
from neuralgraph.numerics.integrate import DivergedError, integrate, rollout


def oscillator(t, x):
    return torch.stack([x[..., 1], -x[..., 0]], dim=-1)


def exact(times):
    return torch.stack([times.cos(), -times.sin()], dim=-1)


def test_adaptive_solution_matches_the_exact_one_within_tolerance():
    times = torch.linspace(0, 6, 13, dtype=torch.float64)
    x = integrate(oscillator, exact(times)[0], times, rtol=1e-9, atol=1e-11)
    assert x.shape == (13, 2)
    assert float((x - exact(times)).abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4), ("adams", 4)]
)
def test_fixed_step_error_falls_with_the_claimed_order(method, order):
    times = torch.linspace(0, 2, 9, dtype=torch.float64)
    x0 = exact(times)[:1]

    def error(n):
        x = rollout(oscillator, x0, times, method=method, n_substep=n)
        return float((x[0, -1] - exact(times)[-1]).norm())

    measured = torch.tensor(error(4) / error(8)).log2()
    assert abs(float(measured) - order) < 0.25


def test_rollout_uses_the_time_of_the_stage_and_uneven_grids_per_run():
    def rhs(t, x):
        return (3 * t**2)[:, None].expand_as(x)

    times = torch.tensor([[0.0, 0.5, 2.0], [1.0, 1.25, 3.0]], dtype=torch.float64)
    x = rollout(rhs, times[:, :1] ** 3, times, method="rk4")
    assert torch.allclose(x[..., 0], times**3)


def test_adams_calls_half_as_often_as_runge_kutta_and_survives_a_change_of_step():
    calls = {"rk4": 0, "adams": 0}
    even = torch.linspace(0, 4, 81, dtype=torch.float64)
    times = torch.cat([even, 4 + 0.1 * torch.arange(1, 21, dtype=torch.float64)])
    for method in calls:

        def rhs(t, x, method=method):
            calls[method] += 1
            return oscillator(t, x)

        x = rollout(rhs, exact(times)[:1], times, method=method)
        assert float((x[0] - exact(times)).abs().max()) < 1e-4
    assert calls["adams"] < 0.6 * calls["rk4"]


def test_runs_do_not_influence_each_other():
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    x0 = torch.tensor([[1.0, 0.0], [0.3, 2.0]], dtype=torch.float64)
    both = rollout(oscillator, x0, times)
    assert torch.equal(both[1:], rollout(oscillator, x0[1:], times))


def test_a_solution_that_blows_up_names_the_variable_and_the_time_and_the_remedy():
    def rhs(t, x):
        return torch.stack([-x[..., 0], x[..., 1] ** 2], dim=-1)  # blows up at t = 1

    start = torch.tensor([1.0, 1.0], dtype=torch.float64)
    times = torch.linspace(0, 2, 5, dtype=torch.float64)
    with pytest.raises(SolverError, match=r"t = (0\.99|1).*ATP.*rtol"):
        integrate(rhs, start, times, names=("ADP", "ATP"), max_steps=2000)
    with pytest.raises(DivergedError) as caught:
        rollout(rhs, torch.stack([start * 0, start]), times, n_substep=20, names=("ADP", "ATP"))
    assert (caught.value.variable, caught.value.run) == ("ATP", 1)
    assert 1 <= caught.value.time <= 2


def test_step_underflow_is_a_readable_error_with_time_variable_and_remedy():
    def rhs(t, x):
        return torch.stack([-x[0], -1e20 * x[1]])

    times = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.raises(SolverError, match=r"underflows its step at t = 1; .*ATP.*loosen rtol"):
        integrate(rhs, torch.ones(2, dtype=torch.float64), times, names=("ADP", "ATP"))


def test_nan_derivative_names_the_first_bad_variable():
    def rhs(t, x):
        return torch.stack([x[..., 0], (1 - t).sqrt() * torch.ones_like(x[..., 1])], dim=-1)

    with pytest.raises(DivergedError, match=r"derivative is not finite.*variable 1"):
        integrate(rhs, torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 2.0]).double())


def test_bad_arguments_are_refused_in_words():
    x, t = torch.ones(1, 2), torch.tensor([0.0, 1.0])
    with pytest.raises(SolverError, match="call rollout"):
        integrate(oscillator, x, t, method="rk4")
    with pytest.raises(SolverError, match="call integrate"):
        rollout(oscillator, x, t, method="dopri5")
    with pytest.raises(SolverError, match="did you mean 'euler'"):
        rollout(oscillator, x, t, method="eulr")
    with pytest.raises(SolverError, match="strictly increasing"):
        rollout(oscillator, x, t.flip(0))
    with pytest.raises(SolverError, match="n_substep"):
        rollout(oscillator, x, t, n_substep=0)
    with pytest.raises(SolverError, match="positive"):
        integrate(oscillator, x, t, rtol=0.0)
