from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralgraph.numerics.information import (
    Equation,
    Noise,
    Parameters,
    Problem,
    alike_frames,
    analyse,
    residual_noise,
)
from neuralgraph.numerics.nuisance import Nuisance

N_FRAME, N_DIRECTION = 60, 3


def case(seed=0, *, is_shared=False):
    """Two variables; parameters of their own, or all of them shared; directions of a nuisance."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    columns = [torch.arange(4)] * 2 if is_shared else [torch.arange(2), torch.arange(2, 4)]
    design = [
        Equation(i, c, normal(N_FRAME, c.numel()), torch.arange(c.numel()), torch.ones(c.numel()))
        for i, c in enumerate(columns)
    ]
    slope = normal(N_FRAME, 2, N_DIRECTION)
    problem = Problem(
        parameters=Parameters(tuple("abcd"), ("x",) * 4, normal(4)),
        design=[replace(one, scale=one.scale.double()) for one in design],
        variable=("u", "v"),
        size=torch.ones(2),
        point="",
        residual=normal(N_FRAME, 2),
        nuisance=Nuisance(torch.arange(N_FRAME), slope),
    )
    return problem, Noise(torch.tensor([0.5, 2.0]).double(), "test")


def stacked(problem, noise, columns=None):
    """Whitened sensitivities of parameters (or of ``columns`` of them) and directions, residual."""
    n = len(problem.parameters)
    rows, left = [], []
    for one in problem.design:
        whole = torch.zeros(N_FRAME, n, dtype=torch.float64)
        whole[:, one.columns] = one.jacobian()
        own = whole if columns is None else whole @ columns
        beside = problem.nuisance.slope[:, one.variable]
        rows.append(torch.cat([own, beside], 1) / noise.sd[one.variable])
        left.append(problem.residual[:, one.variable] / noise.sd[one.variable])
    return torch.cat(rows), torch.cat(left)


def joint(problem, noise, columns=None):
    """Covariance and Gauss-Newton step of parameters and directions together."""
    a, left = stacked(problem, noise, columns)
    information = a.T @ a
    information[-N_DIRECTION:, -N_DIRECTION:] += torch.eye(N_DIRECTION, dtype=torch.float64)
    covariance = torch.linalg.inv(information)
    return covariance, covariance @ (a.T @ left)


@pytest.mark.parametrize("is_shared", [False, True])
def test_errors_are_those_of_the_joint_least_squares(is_shared):
    problem, noise = case(is_shared=is_shared)
    covariance, step = joint(problem, noise)
    found = analyse(replace(problem, residual=None), noise, rtol=1e-8)
    assert torch.allclose(found.standard_error, covariance.diagonal()[:4].sqrt(), rtol=1e-9)
    assert bool((found.held_error < found.standard_error).all())
    # with a residual the step that is left to go counts too; directions that are fitted: own part
    a, left = stacked(problem, noise)
    own = torch.linalg.lstsq(a[:, :4], left).solution
    # what the parameters would do alone is their estimate's business: the step is the joint one
    found = analyse(problem, noise, rtol=1e-8)
    assert torch.allclose(found.learned.root[:, -1], step[:4], rtol=1e-7)
    assert not torch.allclose(step[:4], own)
    whole = (covariance.diagonal()[:4] + step[:4] ** 2).sqrt()
    assert torch.allclose(found.standard_error, whole, rtol=1e-7)


def test_fewer_frames_of_the_directions_stand_for_all():
    problem, noise = case()
    design = [replace(one, base=one.base.repeat_interleave(4, 0)) for one in problem.design]
    every = replace(problem, design=design, residual=None)
    some = Nuisance(torch.arange(0, 4 * N_FRAME, 4), problem.nuisance.slope)
    one = analyse(replace(every, nuisance=some), noise, rtol=1e-8)
    all_frames = Nuisance(torch.arange(4 * N_FRAME), problem.nuisance.slope.repeat_interleave(4, 0))
    two = analyse(replace(every, nuisance=all_frames), noise, rtol=1e-8)
    assert torch.allclose(one.standard_error, two.standard_error, rtol=1e-9)


def test_what_is_tied_teaches_the_directions_more():
    problem, noise = case()
    tie = torch.tensor([[1.0], [2.0], [-1.0], [1.0]]).double()
    tied = replace(problem, nuisance=replace(problem.nuisance, tie=tie))
    covariance, step = joint(problem, noise, tie)
    found = analyse(tied, noise, rtol=1e-8)
    law = found.learned
    free = (law.free_error.square() + law.free_root[:, :-1].square().sum(1)).sqrt()
    assert torch.allclose(free, covariance.diagonal()[:1].sqrt(), rtol=1e-9)
    assert torch.allclose(law.free_root[:, -1], step[:1], rtol=1e-7)
    alone = analyse(problem, noise, rtol=1e-8)
    bound = alone.learned.root[:, :-1].norm(dim=1) * (1 + 1e-9)
    assert bool((law.root[:, :-1].norm(dim=1) <= bound).all())


def test_a_column_that_never_acts_and_too_few_frames():
    problem, noise = case()
    one = problem.design[0]
    silent = replace(one, scale=torch.tensor([0.0, 1.0]).double())
    found = analyse(replace(problem, design=[silent, problem.design[1]]), noise, rtol=1e-8)
    assert found.status[0] == "undetermined" and bool(torch.isfinite(found.learned.root).all())
    short = Nuisance(torch.zeros(1, dtype=torch.long), problem.nuisance.slope[:1])
    with pytest.raises(ValueError, match="1 frames"):
        analyse(replace(problem, nuisance=short), noise, rtol=1e-8)


def test_residuals_alike_within_runs_count_as_fewer():
    problem, _ = case()
    run = torch.arange(200).repeat_interleave(10)
    g = torch.Generator().manual_seed(1)
    white = torch.randn(2000, 1, dtype=torch.float64, generator=g)
    assert float(alike_frames(white, run)) < 1.3
    same = white[::10].repeat_interleave(10, 0)
    assert float(alike_frames(same, run)) == pytest.approx(10, rel=0.01)
    left = torch.cat([same, white], 1)
    base = [replace(one, base=torch.ones(2000, one.columns.numel()).double())
            for one in problem.design]  # fmt: skip
    long = replace(problem, design=base, residual=left, nuisance=None)
    ratio = residual_noise(replace(long, run=run)).sd / residual_noise(long).sd
    assert float(ratio[0]) == pytest.approx(10**0.5, rel=0.01) and float(ratio[1]) < 1.15


def test_refits_hold_what_else_is_learned():
    from neuralgraph.numerics.coverage import monte_carlo

    problem, noise = case()
    found = analyse(replace(problem, residual=None), noise, rtol=1e-8)
    known = analyse(replace(problem, residual=None, nuisance=None), noise, rtol=1e-8)
    one, two = (monte_carlo(x, 300, torch.Generator().manual_seed(2)) for x in (found, known))
    assert one.mean == two.mean and 0.9 < one.mean < 0.98
