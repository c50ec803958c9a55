from __future__ import annotations

import math

import pytest
import torch

from neuralgraph.numerics.coverage import monte_carlo
from neuralgraph.numerics.design import (
    Candidate,
    can_be_scored,
    propose,
    score_candidates,
    score_more,
)
from neuralgraph.numerics.information import (
    COMBINATION,
    DETERMINED,
    UNDETERMINED,
    Equation,
    Noise,
    Parameters,
    Problem,
    analyse,
    autograd_equations,
    reduced_rows,
    relative_noise,
    residual_noise,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def regression(matrix, value, *, size=None, **options):
    """One equation y = matrix @ value."""
    n = matrix.shape[1]
    one = Equation(0, torch.arange(n), matrix, torch.arange(n), torch.ones(n, dtype=F64))
    names = tuple(f"p{i}" for i in range(n))
    size = (matrix @ value).square().mean().sqrt()[None] if size is None else size
    return Problem(Parameters(names, ("g",) * n, value), [one], ("y",), size, "here", **options)


def unit(problem, sd=1.0):
    return Noise(torch.full((len(problem.variable),), sd, dtype=F64), "stated")


def test_statuses_combinations_and_errors_of_a_known_matrix():
    a = torch.randn(50, 6, generator=generator(), dtype=F64)
    a[:, 1] = a[:, 0]  # p0 + p1
    a[:, 3] = -2 * a[:, 2]  # p2 - 2 p3
    a[:, 5] = 0
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=F64)
    problem = regression(a, value)
    found = analyse(problem, unit(problem, 0.5), rtol=1e-8)
    assert found.status == (*[COMBINATION] * 4, DETERMINED, UNDETERMINED)
    assert found.rank == 3 and found.gap > 1e6
    assert [c.text for c in found.combinations] == ["p0 + p1", "p2 - 2 p3"]
    assert [c.value for c in found.combinations] == pytest.approx([3, -5])
    # against the textbook formula on the merged regressors
    merged = a[:, [0, 2, 4]]
    exact = 0.5 * torch.linalg.inv(merged.T @ merged).diagonal().sqrt()
    assert found.standard_error[4] == pytest.approx(float(exact[2]))
    errors = [c.standard_error for c in found.combinations]
    assert errors == pytest.approx(exact[:2].tolist())
    rows = found.rows()
    assert rows[0].combination == "p0 + p1" and rows[0].standard_error is None
    assert rows[5].note == "does not act on the data" and rows[5].estimate is None
    assert rows[4].relative_error == pytest.approx(float(exact[2]) / 5)


def test_units_of_parameters_and_of_variables_change_nothing():
    a = torch.randn(40, 3, generator=generator(1), dtype=F64)
    scale = torch.tensor([1e-6, 1.0, 1e5], dtype=F64)
    value = torch.ones(3, dtype=F64)
    problem, other = regression(a, value), regression(1e5 * a * scale, value / scale)
    one = analyse(problem, relative_noise(problem, 0.01), rtol=1e-8)
    two = analyse(other, relative_noise(other, 0.01), rtol=1e-8)
    assert torch.allclose(one.spectrum, two.spectrum)
    assert torch.allclose(one.standard_error, two.standard_error * scale)


def shared(n_frame=30, seed=2):
    """Three variables that share regressors: p0 acts on all, p1 on the first, p2 on the last."""
    base = torch.randn(n_frame, 3, generator=generator(seed), dtype=F64)
    one = torch.ones(2, dtype=F64)

    def equations(base):
        return [
            Equation(0, torch.tensor([0, 1]), base, torch.tensor([0, 1]), one),
            Equation(1, torch.tensor([0]), base, torch.tensor([0]), -one[:1]),
            Equation(2, torch.tensor([0, 2]), base, torch.tensor([2, 1]), 3 * one),
        ]

    value = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    parameters = Parameters(("a", "b", "c"), ("g",) * 3, value)
    return Problem(parameters, equations(base), ("x", "y", "z"), torch.ones(3), "here"), equations


def test_shared_parameters_agree_with_the_stacked_matrix_at_unequal_noise():
    problem, _ = shared()
    sd = torch.tensor([0.1, 10.0, 1e-3], dtype=F64)
    found = analyse(problem, Noise(sd, "stated"), rtol=1e-8)
    whole = torch.zeros(90, 3, dtype=F64)
    for i, one in enumerate(problem.design):
        whole[30 * i : 30 * (i + 1), one.columns] = one.jacobian() / sd[one.variable]
    exact = torch.linalg.inv(whole.T @ whole).diagonal().sqrt()
    assert torch.allclose(found.standard_error, exact)
    assert len(found.components) == 1


def test_variables_with_the_same_regressors_and_none_in_common_are_parts_of_their_own():
    base = torch.randn(20, 3, generator=generator(3), dtype=F64)
    at, one = torch.arange(3), torch.ones(3, dtype=F64)
    design = [Equation(i, 3 * i + at, base, at, one) for i in range(4)]
    size = torch.tensor([1.0, 2.0, 0.0, 4.0])
    value = torch.ones(12, dtype=F64)
    names = tuple(f"p{i}" for i in range(12))
    problem = Problem(Parameters(names, ("g",) * 12, value), design, tuple("abcd"), size, "here")
    found = analyse(problem, unit(problem), rtol=1e-8)
    assert len(found.components) == 4
    exact = torch.linalg.inv(base.T @ base).diagonal().sqrt()
    assert torch.allclose(found.standard_error.view(4, 3), exact.expand(4, 3))


def test_fewer_frames_than_parameters_leave_combinations():
    a = torch.randn(2, 4, generator=generator(4), dtype=F64)
    problem = regression(a, torch.ones(4, dtype=F64))
    found = analyse(problem, unit(problem), rtol=1e-8)
    assert found.rank == 2 and set(found.status) == {COMBINATION}
    assert len(found.combinations) == 2
    for one in found.combinations:  # each is a row of the row space
        row = torch.zeros(4, dtype=F64)
        row[list(one.members)] = one.weight
        assert torch.linalg.matrix_rank(torch.cat([a, row[None]])) == 2


def test_nothing_that_acts_at_all():
    problem = regression(torch.zeros(5, 3, dtype=F64), torch.ones(3, dtype=F64))
    found = analyse(problem, unit(problem), rtol=1e-8)
    assert found.status == (UNDETERMINED,) * 3 and found.rank == 0 and found.gap == math.inf


def test_values_that_are_not_finite_and_noise_that_is_not_positive_are_refused():
    problem = regression(torch.ones(3, 1, dtype=F64), torch.ones(1, dtype=F64))
    with pytest.raises(ValueError, match="positive"):
        analyse(problem, unit(problem, 0.0), rtol=1e-8)
    broken = regression(torch.full((3, 1), math.nan, dtype=F64), torch.ones(1), size=torch.ones(1))
    with pytest.raises(ValueError, match="finite"):
        analyse(broken, unit(broken), rtol=1e-8)


def test_the_way_for_many_parameters_gives_the_same_answer(monkeypatch):
    from neuralgraph.numerics import information

    a = torch.randn(60, 9, generator=generator(20), dtype=F64)
    a[:, 1] = a[:, 0] - 2 * a[:, 2]
    a[:, 4] = a[:, 3] + 1e-6 * a[:, 4]  # small, and determined
    a[:, 8] = 0
    problem = regression(a, torch.ones(9, dtype=F64))
    one = analyse(problem, unit(problem), rtol=1e-9)
    monkeypatch.setattr(information, "LARGEST_SVD", 1)
    two = analyse(problem, unit(problem), rtol=1e-9)
    assert one.status == two.status and one.rank == two.rank == 7
    assert torch.allclose(one.spectrum, two.spectrum, atol=1e-12)
    assert torch.allclose(one.standard_error, two.standard_error, rtol=1e-5, equal_nan=True)
    assert [c.text for c in one.combinations] == [c.text for c in two.combinations]


def test_reduced_rows_span_the_same_space_with_leading_ones():
    m = torch.randn(3, 6, generator=generator(5), dtype=F64)
    reduced = reduced_rows(m)
    assert torch.linalg.matrix_rank(torch.cat([m, reduced])) == 3
    assert torch.equal(reduced[:, :3], torch.eye(3, dtype=F64))


def test_autograd_agrees_with_the_formula_of_a_hill_field():
    state = 0.1 + torch.rand(25, 2, generator=generator(6), dtype=F64)

    def field(p, x):
        first = p[0] * x[:, 1] ** p[2] / (p[1] ** p[2] + x[:, 1] ** p[2])
        return torch.stack([first, -p[3] * x[:, 1]], 1)

    value = torch.tensor([2.0, 0.4, 1.5, 0.7], dtype=F64)
    first, second = autograd_equations(field, value, state)
    assert first.columns.tolist() == [0, 1, 2] and second.columns.tolist() == [3]
    assert torch.allclose(first.base[:, 0], field(value, state)[:, 0] / 2)
    assert torch.allclose(second.base[:, 0], -state[:, 1])
    step = 1e-6 * torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=F64)
    slope = (field(value + step, state) - field(value - step, state))[:, 0] / 2e-6
    assert torch.allclose(first.base[:, 1], slope, rtol=1e-6)


def test_noise_of_a_residual_counts_the_unknowns():
    a = torch.randn(400, 5, generator=generator(7), dtype=F64)
    noise = 0.3 * torch.randn(400, generator=generator(8), dtype=F64)
    solution = torch.linalg.lstsq(a, noise[:, None]).solution
    left = noise[:, None] - a @ solution
    problem = regression(a, torch.ones(5, dtype=F64), residual=left)
    found = residual_noise(problem)
    assert float(found.sd) == pytest.approx(float((left.square().sum() / 395).sqrt()))
    with pytest.raises(ValueError, match="not fitted"):
        residual_noise(regression(a, torch.ones(5, dtype=F64)))


# -- Monte Carlo --------------------------------------------------------------------------------


def test_intervals_of_a_linear_model_hold_the_truth_as_often_as_they_say():
    problem, _ = shared()
    found = analyse(problem, Noise(torch.tensor([0.1, 10.0, 1e-3]), "stated"), rtol=1e-8)
    covered = monte_carlo(found, 400, generator(9))
    assert covered.n_replicate == 400 and covered.n_parameter == 3
    assert 0.92 < covered.mean < 0.975
    assert covered.error_ratio == pytest.approx(1, abs=0.1)


def test_intervals_of_a_nonlinear_model_refitted_by_gauss_newton():
    state = 0.1 + 2 * torch.rand(60, 1, generator=generator(10), dtype=F64)
    value = torch.tensor([2.0, 0.5], dtype=F64)

    def field(p, x):
        return p[0] * x / (p[1] + x)

    def evaluate(p):
        x = state[:, 0]
        base = torch.stack([x / (p[1] + x), -p[0] * x / (p[1] + x) ** 2], 1)
        at = torch.arange(2)
        return field(p, state), [Equation(0, at, base, at, torch.ones(2, dtype=F64))]

    problem = Problem(
        Parameters(("vmax", "K"), ("g", "g"), value), evaluate(value)[1], ("x",),
        field(value, state).square().mean(0).sqrt(), "here", evaluate=evaluate,
    )  # fmt: skip
    covered = monte_carlo(
        analyse(problem, relative_noise(problem, 0.02), rtol=1e-8), 600, generator(11)
    )
    assert covered.n_failed == 0 and 0.9 < covered.mean < 0.98


def test_wrong_errors_are_noticed():
    problem, _ = shared()
    found = analyse(problem, Noise(torch.ones(3, dtype=F64), "stated"), rtol=1e-8)
    from dataclasses import replace

    small = replace(found, standard_error=found.standard_error / 2)
    assert monte_carlo(small, 200, generator(12)).mean < 0.8


# -- design -------------------------------------------------------------------------------------


def test_a_candidate_that_sees_a_free_direction_ranks_first_and_gains_rank():
    # x is always twice y in the data: p0 x + p1 y leaves one combination
    y = torch.randn(30, 1, generator=generator(13), dtype=F64)
    state = torch.cat([2 * y, y], 1)
    at, one = torch.arange(2), torch.ones(2, dtype=F64)

    def equations(x):
        return [Equation(0, at, x, at, one)]

    parameters = Parameters(("p0", "p1"), ("g", "g"), torch.ones(2, dtype=F64))
    problem = Problem(
        parameters, equations(state), ("x", "y"), torch.ones(2), "here", equations=equations
    )
    found = analyse(problem, unit(problem), rtol=1e-8)
    assert [c.text for c in found.combinations] == ["p0 + 0.5 p1"] and can_be_scored(found)
    other = torch.randn(30, 2, generator=generator(14), dtype=F64)
    same = Candidate("same", state, "more")
    scores = score_candidates(found, [same, Candidate("other", other, "wide")])
    assert [s.name for s in scores] == ["other", "same"]
    assert (scores[0].rank_gain, scores[0].newly_determined) == (1, 2)
    assert (scores[1].rank_gain, scores[1].newly_determined) == (0, 0)
    assert scores[1].d_factor == pytest.approx(math.sqrt(0.5))  # the same data twice


def test_scores_agree_with_the_analysis_of_all_frames_together():
    problem, equations = shared()
    from dataclasses import replace

    problem = replace(problem, equations=equations)
    found = analyse(problem, unit(problem), rtol=1e-8)
    more = torch.randn(12, 3, generator=generator(15), dtype=F64)
    (score,) = score_candidates(found, [Candidate("c", more, "more")])
    together = replace(
        problem,
        design=equations(torch.cat([problem.design[0].base, more])),
    )
    after = analyse(together, unit(problem), rtol=1e-8)
    relative = (after.standard_error / problem.parameters.value.abs()).median()
    assert score.median_error == pytest.approx(float(relative))
    information = [
        torch.linalg.slogdet(x.components[0].factor.T @ x.components[0].factor)[1]
        for x in (found, after)
    ]
    assert score.d_factor == pytest.approx(math.exp(float(information[0] - information[1]) / 6))


def test_more_of_the_same_falls_with_the_square_root():
    problem, equations = shared()
    from dataclasses import replace

    base = problem.design[0].base
    problem = replace(problem, equations=equations)
    found = analyse(problem, unit(problem), rtol=1e-8)
    more = score_more(found, [Candidate("c", base, "more")], [0, 3], precise_below=0.1)
    assert more.median_error[1] == pytest.approx(more.median_error[0] / 2)
    assert more.rank == (3, 3)


def test_candidates_start_where_they_should():
    time = torch.arange(5, dtype=F64)
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]], dtype=F64)
    problem, _ = shared()
    from dataclasses import replace

    problem = replace(
        problem, variable=("x", "y"), state=start, start=start, time=time, lowest=0.0,
        rhs=lambda x: -0.1 * x,
    )  # fmt: skip
    found = propose(problem, generator(16), n_alike=3, n_wide=4, pulse=[1], fold=4.0)
    assert [c.kind for c in found] == ["more"] * 3 + ["wide"] * 4 + ["pulse"]
    first = torch.stack([c.state[0] for c in found])
    assert bool(((first[:3] >= start.amin(0)) & (first[:3] <= start.amax(0))).all())
    assert bool((first > 0).all()) and first[7].tolist() == pytest.approx([2, 12])
    assert torch.allclose(found[0].state[4], found[0].state[0] * math.exp(-0.4), rtol=1e-4)
    diverging = replace(problem, rhs=lambda x: 40 * x)
    assert propose(diverging, generator(17), n_alike=2, n_wide=0, pulse=[], fold=2.0) == []
