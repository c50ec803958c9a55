"""Operators against exact results: commutation, closed forms, orders of vanishing, memory."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.perturb_ode.operators import (
    CellState,
    Culture,
    Medium,
    Perturb,
    apply,
    branches,
    in_vitro,
    in_vivo,
    order_effect,
)

torch.manual_seed(0)
A = torch.tensor([[1.2, -0.4, 0.1], [0.3, 0.9, -0.2], [0.0, 0.5, 1.5]], dtype=torch.float64)
REST = torch.tensor([1.0, 0.7, 0.4], dtype=torch.float64)
B_MEDIUM = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
B_GENE = torch.tensor([0.6, 0.0, 0.0], dtype=torch.float64)


def linear(state: CellState) -> torch.Tensor:
    """dx/dt = b_0 + added + v b_M - A x, at rest at REST without intervention."""
    return A @ REST + state.added + state.medium[:, :1] * B_MEDIUM - state.expression @ A.T


def cells(x: torch.Tensor) -> CellState:
    return CellState.unperturbed(x[None], torch.zeros(1, dtype=torch.float64))


P, M = Perturb(0, "overexpression", 0.6), Medium((1.0,))


def swapped(t1: float, t2: float, step: float = 0.01):
    return (
        [P, Culture(t1, step), M, Culture(t2, step)],
        [M, Culture(t1, step), P, Culture(t2, step)],
    )


def test_a_perturbation_and_a_medium_commute_while_no_culture_lies_between():
    difference, index = order_effect(
        [P, M, Culture(2.0)], [M, P, Culture(2.0)], cells(REST), linear
    )
    assert difference.abs().max() == 0 and index == 0


def test_the_linear_case_has_its_closed_form():
    t1, t2 = 0.8, 1.3
    difference, index = order_effect(*swapped(t1, t2, 0.005), cells(REST), linear)
    eye = torch.eye(3, dtype=torch.float64)
    exact = (
        torch.matrix_exp(-A * t2)
        @ torch.linalg.solve(A, eye - torch.matrix_exp(-A * t1))
        @ (B_GENE - B_MEDIUM)
    )
    torch.testing.assert_close(difference[0], exact, atol=1e-9, rtol=0)
    assert index > 0.05


def test_the_order_matters_in_proportion_to_a_short_first_culture():
    sizes = [
        float(order_effect(*swapped(t1, 0.5, t1), cells(REST + 0.3), linear)[0].norm())
        for t1 in (0.02, 0.01)
    ]
    slope = torch.log2(torch.tensor(sizes[0] / sizes[1]))
    assert slope == pytest.approx(1.0, abs=0.02)


def nonlinear(state: CellState) -> torch.Tensor:
    drive = state.regulation * state.expression
    made = torch.sigmoid(drive @ A.T + state.medium[:, :1] * B_MEDIUM)
    return state.production * made + state.added - state.expression


def test_washing_out_in_two_orders_differs_by_the_bracket_of_the_fields():
    start = torch.tensor([[0.2, 0.9, 0.5]], dtype=torch.float64)
    flat = CellState.unperturbed(start, torch.zeros(1, dtype=torch.float64))
    perturbed, medium = P(flat, nonlinear), M(flat, nonlinear)

    def under(context: CellState, x: torch.Tensor) -> torch.Tensor:
        from dataclasses import replace

        return nonlinear(replace(context, expression=x[None]))[0]

    x = start[0]
    f_p, f_m = under(perturbed, x), under(medium, x)
    _, d_m = torch.func.jvp(lambda y: under(medium, y), (x,), (f_p,))
    _, d_p = torch.func.jvp(lambda y: under(perturbed, y), (x,), (f_m,))
    bracket = d_m - d_p

    def alternate(first: CellState, second: CellState, t: float) -> torch.Tensor:
        from dataclasses import replace

        mid = Culture(t, t / 4)(replace(first, expression=start), nonlinear).expression
        return Culture(t, t / 4)(replace(second, expression=mid), nonlinear).expression[0]

    found = []
    for t in (0.04, 0.02):
        found.append(alternate(perturbed, medium, t) - alternate(medium, perturbed, t))
    assert torch.log2(found[0].norm() / found[1].norm()) == pytest.approx(2.0, abs=0.05)
    direction = torch.cosine_similarity(found[1], bracket, dim=0)
    assert direction == pytest.approx(1.0, abs=1e-3)
    assert found[1].norm() / 0.02**2 == pytest.approx(float(bracket.norm()), rel=0.05)


def test_a_bistable_switch_remembers_a_transient_knockout_and_a_linear_system_forgets_it():
    def toggle(state: CellState) -> torch.Tensor:
        other = (state.regulation * state.expression).flip(1)
        drive = state.medium[:, :1] * torch.tensor([1.0, 0.0], dtype=torch.float64)
        return state.production * (4 / (1 + other**3) + drive) - state.expression

    start = CellState.unperturbed(
        torch.tensor([[3.9, 0.07]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    )

    def transient(first: bool) -> torch.Tensor:
        knocked = Perturb(0)(start, toggle)
        after = Culture(8.0)(knocked, toggle).expression if first else start.expression
        return Culture(100.0)(CellState.unperturbed(after, start.medium[0]), toggle).expression

    assert (transient(True) - transient(False)).norm() > 3
    late, _ = order_effect(*swapped(1.0, 40.0, 0.05), cells(REST), linear)
    assert late.norm() < 1e-6


@pytest.mark.parametrize(("n_p", "n_m"), [(0, 0), (3, 2), (5, 1)])
def test_there_are_as_many_branches_as_the_design_says(n_p, n_m):
    found = list(
        branches([Perturb(i) for i in range(n_p)], [Medium((float(i),)) for i in range(n_m)])
    )
    assert len(set(found)) == len(found) == (n_p + 1) * (n_m + 1)


def test_culture_is_a_semigroup():
    whole = Culture(1.5, 0.01)(cells(REST + 1), linear).expression
    parts = apply([Culture(0.5, 0.01), Culture(1.0, 0.01)], cells(REST + 1), linear).expression
    torch.testing.assert_close(whole, parts, atol=1e-10, rtol=0)


def test_a_knocked_out_gene_decays_a_pinned_one_stays_a_nuclease_leaves_the_transcript():
    def decay(state: CellState) -> torch.Tensor:
        return state.production * 2.0 + state.added - 0.7 * state.expression

    start = cells(REST)
    out = apply([Perturb(1), Culture(2.0, 0.01)], start, decay).expression[0, 1]
    assert out == pytest.approx(float(REST[1]) * 2.718281828459045 ** (-1.4), abs=1e-8)
    pinned = apply([Perturb(1, "pin", 0.05), Culture(2.0)], start, decay).expression[0, 1]
    assert pinned == 0.05
    nuclease = apply([Perturb(1, "nuclease"), Culture(2.0)], start, decay)
    assert nuclease.expression[0, 1] > REST[1] and nuclease.regulation[0, 1] == 0
    half = Perturb(1, "knockdown", 0.5)(start, decay)
    assert half.production[0].tolist() == [1.0, 0.5, 1.0]


def test_presets_and_bad_steps():
    assert [type(s).__name__ for s in in_vitro(P, M, before=1, after=2)] == [
        "Perturb", "Culture", "Medium", "Culture",
    ]  # fmt: skip
    assert in_vivo(P, M, expansion=1, engraftment=5)[-1] == Culture(5)
    with pytest.raises(ConfigError, match="knockdown"):
        Perturb(0, "knock-down")
    with pytest.raises(ConfigError, match=r"\(0, 1\)"):
        Perturb(0, "knockdown", 1.5)
    with pytest.raises(ConfigError, match="there are 3"):
        Perturb(7)(cells(REST), linear)
    with pytest.raises(ConfigError, match="1 components"):
        Medium((1.0, 2.0))(cells(REST), linear)
    with pytest.raises(ConfigError, match="positive days"):
        Culture(0.0)
