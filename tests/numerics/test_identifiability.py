from __future__ import annotations

import pytest
import torch

from neuralgraph.numerics.identifiability import (
    determined,
    groups,
    null_space,
    null_space_of_gram,
)


def example(seed=0, n_obs=40):
    """Seven columns: 0 free, 1 = 2 * 3, 2 free, 4 = 0 column, 5 = -6."""
    a = torch.randn(n_obs, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a[:, 1] = 2 * a[:, 3]
    a[:, 4] = 0
    a[:, 5] = -a[:, 6]
    return a


@pytest.mark.parametrize("route", ["svd", "gram", "gram and apply"])
def test_determined_parameters_and_groups_of_a_known_matrix(route):
    a = example()
    if route == "svd":
        space = null_space(a, rtol=1e-8)
    else:
        apply = (lambda x: a @ x) if route == "gram and apply" else None
        space = null_space_of_gram(a.T @ a, rtol=1e-8, apply=apply)
    assert space.rank == 4
    assert determined(space).tolist() == [True, False, True, False, False, False, False]
    found = groups(space)
    assert [g.members for g in found] == [(1, 3), (4,), (5, 6)]
    assert found[0].combination.tolist() == pytest.approx([1, 0.5])
    assert found[1].combination is None and found[1].n_null == 1
    assert found[2].combination.tolist() == [1, -1]


def test_the_answer_does_not_depend_on_the_units_of_the_parameters():
    a = example()
    scale = torch.tensor([1e-6, 1e5, 1.0, 1e-3, 1.0, 1e7, 1e-7], dtype=torch.float64)
    assert torch.equal(
        determined(null_space(a * scale, rtol=1e-8)), determined(null_space(a, rtol=1e-8))
    )
    (first, _, _) = groups(null_space(a * scale, rtol=1e-8))
    # 1e5 * 2 * theta_1 + 1e-3 * theta_3 is what is seen
    assert first.combination[1] == pytest.approx(1e-3 / 2e5)


@pytest.mark.parametrize(("gap", "is_null"), [(1e-7, False), (1e-9, True)])
def test_tolerance_is_relative_on_singular_values_even_through_the_gram_matrix(gap, is_null):
    a = example()[:, :3].clone()
    a = torch.linalg.qr(a)[0]
    a[:, 2] = a[:, 0] + gap * a[:, 1]
    a = a[:, [0, 2]]
    direct = null_space(a, rtol=1e-8)
    through_gram = null_space_of_gram(a.T @ a, rtol=1e-8, apply=lambda x: a @ x)
    assert direct.rank == through_gram.rank == (1 if is_null else 2)


def test_three_proportional_columns_leave_one_sum():
    c = torch.randn(9, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (group,) = groups(null_space(torch.cat([c, c, -c], 1), rtol=1e-8))
    assert (group.members, group.n_null) == ((0, 1, 2), 2)
    assert group.combination.tolist() == [1, 1, -1]


def test_fewer_observations_than_parameters_and_an_empty_sensitivity():
    wide = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert null_space(wide, rtol=1e-8).rank == 2
    assert not bool(determined(null_space(wide, rtol=1e-8)).any())
    nothing = null_space_of_gram(torch.zeros(3, 3), rtol=1e-8)
    assert nothing.rank == 0 and [g.members for g in groups(nothing)] == [(0,), (1,), (2,)]


def test_permuting_parameters_permutes_the_answer():
    a = example()
    order = torch.tensor([3, 6, 0, 5, 1, 2, 4])
    assert torch.equal(
        determined(null_space(a[:, order], rtol=1e-8)), determined(null_space(a, rtol=1e-8))[order]
    )


def test_non_finite_or_misshapen_matrices_are_refused():
    with pytest.raises(ValueError, match="finite"):
        null_space(torch.tensor([[float("nan")]]), rtol=1e-8)
    with pytest.raises(ValueError, match="square"):
        null_space_of_gram(torch.zeros(2, 3), rtol=1e-8)
